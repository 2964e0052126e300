from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from sdk.errors import ConfigError, SdkError
from tests.train.test_targets import make_sample
from train.batches import DrawnData
from train.checkpoint import load_checkpoint, read_checkpoint
from train.config import TrainConfig, override, preset
from train.data import TrainData, open_data
from train.evaluate import TorchBackend
from train.loop import Averaged, Trainer, train
from train.optim import build_optimizer, learning_rate
from train.samples import Sample


def tiny_config(**changes: str) -> TrainConfig:
    """Twenty steps of two small pictures."""
    small = {
        "size": "64x64",
        "batch": "2",
        "max_steps": "20",
        "workers": "0",
        "evaluate_every": "20",
        "checkpoint_every": "10",
        "held_back": "2",
        "warmup_steps": "3",
    }
    return override(preset("synthetic-pose"), {**small, **changes})


class StoppingSource(DrawnData):
    """Drawn scenes that fail after a number of pictures, as a killed run or a broken disk does."""

    def __init__(self, config: TrainConfig, pictures: int) -> None:
        super().__init__(100_000, config.size, config.seed)
        self._left = pictures

    def sample(self, index: int) -> Sample:
        if not self._left:
            raise KeyboardInterrupt
        self._left -= 1
        return super().sample(index)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "straight"
    figures = train(tiny_config(), open_data("synthetic", tiny_config()), out)
    assert set(figures) == {"AP", "AP50", "keypoint_AP"} and all(0 <= value <= 1 for value in figures.values())
    return out


def test_a_run_leaves_last_and_best(straight: Path) -> None:
    assert sorted(os.listdir(straight)) == ["best.pth", "last.pth", "tensorboard"]
    last, best = read_checkpoint(straight / "last.pth"), read_checkpoint(straight / "best.pth")
    assert last.training is not None and last.training["step"] == 20
    assert best.training is None
    assert last.spec.trained_on == best.spec.trained_on == "drawn scenes"
    assert last.config == tiny_config()
    assert best.weights.keys() == last.weights.keys()
    assert any((straight / "tensorboard").iterdir())


def test_the_checkpoint_is_a_model(straight: Path) -> None:
    model, spec = load_checkpoint(straight / "best.pth")
    heads = TorchBackend(model, spec).infer({"frame": np.zeros((1, 64, 64, 3), np.uint8)})
    assert list(heads) == [head.name for head in spec.heads]
    assert heads["heatmap"].shape == (1, 1, 16, 16) and heads["heatmap"].dtype == np.float32


def test_a_killed_run_resumes_to_bit_equal_weights(straight: Path, tmp_path: Path) -> None:
    config = tiny_config()
    data = open_data("synthetic", config)
    # Killed in step 13, of which nothing was saved since step 10.
    broken = TrainData(StoppingSource(config, 2 * 13 + 1), data.held_back, data.description)
    with pytest.raises(KeyboardInterrupt):
        train(config, broken, tmp_path)
    assert [name for name in os.listdir(tmp_path) if name.endswith(".pth")] == ["last.pth"]
    killed = read_checkpoint(tmp_path / "last.pth")
    assert killed.training is not None and killed.training["step"] == 10
    train(config, data, tmp_path, resume=True)
    expected, resumed = read_checkpoint(straight / "last.pth"), read_checkpoint(tmp_path / "last.pth")
    assert expected.training is not None and resumed.training is not None
    for name, value in expected.weights.items():
        assert torch.equal(resumed.weights[name], value), name
    for name, value in expected.training["model"].items():
        assert torch.equal(resumed.training["model"][name], value), name
    assert resumed.training["step"] == 20
    assert resumed.training["best_ap"] == expected.training["best_ap"]


def test_a_finished_run_resumed_changes_nothing(straight: Path) -> None:
    before = (straight / "last.pth").read_bytes()
    train(tiny_config(), open_data("synthetic", tiny_config()), straight, resume=True)
    assert (straight / "last.pth").read_bytes() == before


def test_an_existing_run_is_not_overwritten(straight: Path) -> None:
    before = (straight / "last.pth").read_bytes()
    with pytest.raises(ConfigError, match=r"last.pth exists; add --resume to continue it, or choose another --out"):
        train(tiny_config(), open_data("synthetic", tiny_config()), straight)
    assert (straight / "last.pth").read_bytes() == before


@pytest.mark.parametrize("changes", [{"architecture": "edge_s"}, {"task": "detection"}, {"size_activation": "none"}])
def test_a_resume_as_another_network_is_refused(straight: Path, changes: dict[str, str]) -> None:
    config = tiny_config(**changes)
    with pytest.raises(ConfigError, match=r"last.pth holds another network .* resume with the same --preset and --set"):
        train(config, open_data("synthetic", config), straight, resume=True)


def test_a_shipped_model_is_no_run_to_resume(straight: Path, tmp_path: Path) -> None:
    config = tiny_config()
    trainer = Trainer(config, open_data("synthetic", config), tmp_path)
    with pytest.raises(ConfigError, match=r"best.pth is a finished model without optimiser state; use --init"):
        trainer.resume(straight / "best.pth")


def test_a_run_can_start_from_another(straight: Path, tmp_path: Path) -> None:
    config = tiny_config(max_steps="1", learning_rate="1e-9", ema_decay="0")
    train(config, open_data("synthetic", config), tmp_path, init=straight / "best.pth")
    wanted, found = read_checkpoint(straight / "best.pth").weights, read_checkpoint(tmp_path / "last.pth").weights
    for name in wanted:
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)


def test_the_seed_decides_the_run(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        config = tiny_config(max_steps="2", seed=seed)
        train(config, open_data("synthetic", config), tmp_path / name)
        weights.append(read_checkpoint(tmp_path / name / "last.pth").weights["stem.0.0.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("task", ["detection", "pose"])
def test_pictures_without_objects_train_too(task: str, tmp_path: Path) -> None:
    class EmptySource(DrawnData):
        def sample(self, index: int) -> Sample:
            return make_sample(np.zeros((0, 4)), keypoints=np.zeros((0, 17, 3)))

    config = tiny_config(task=task, max_steps="2", drawn_scenes="0")
    source = EmptySource(10, config.size, 0)
    figures = train(config, TrainData(source, source, "nothing"), tmp_path)
    assert figures["AP"] == 0.0


def test_a_diverging_run_stops_and_says_so(tmp_path: Path) -> None:
    config = tiny_config(learning_rate="1e12", optimizer="adam", warmup_steps="0", gradient_clip="1e30")
    with pytest.raises(SdkError, match=r"diverged at step \d+: the losses are .*; lower learning_rate"):
        train(config, open_data("synthetic", config), tmp_path)


@pytest.mark.parametrize("device", ["no-such-device", "meta:x", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    config = tiny_config(device=device)
    with pytest.raises(ConfigError, match=rf"device='{device}' cannot be used .*set device=cpu"):
        Trainer(config, open_data("synthetic", config), Path("unused"))


def test_epochs_become_steps() -> None:
    config = tiny_config(max_steps="0", epochs="3", batch="4")
    source = DrawnData(10, config.size, 0)
    assert Trainer(config, TrainData(source, source, ""), Path("unused")).total_steps == 8  # 30 pictures


def test_rates_warm_up_and_fall() -> None:
    step = override(TrainConfig(), {"learning_rate": "1", "drop_at": "0.5,0.75", "warmup_steps": "10"})
    rates = [learning_rate(step, at, 100) for at in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[49] == 1.0
    assert rates[50] == pytest.approx(0.1) and rates[99] == pytest.approx(0.01)
    line = override(TrainConfig(), {"learning_rate": "1", "schedule": "linear", "decay_from": "0.5"})
    rates = [learning_rate(line, at, 100) for at in range(100)]
    assert set(rates[:51]) == {1.0} and rates[75] == pytest.approx(0.5) and 0 < rates[99] < 0.03
    assert all(a >= b for a, b in pairwise(rates))


def test_only_convolutions_decay() -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = build_optimizer(layers, override(TrainConfig(), {"optimizer": "adamw", "weight_decay": "0.1"}))
    decays = {
        parameter.ndim: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert decays == {4: 0.1, 1: 0.0}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(layers.parameters()))


def test_the_average_follows_the_weights() -> None:
    layer = torch.nn.BatchNorm2d(1)
    average = Averaged(layer, decay=0.9)
    with torch.no_grad():
        layer.weight.fill_(3.0)
        layer.running_mean.fill_(2.0)  # type: ignore[union-attr]
    average.update(layer, step=1000)
    assert average.state["weight"].item() == pytest.approx(0.9 * 1 + 0.1 * 3)
    assert average.state["running_mean"].item() == pytest.approx(0.2)
    average.update(layer, step=0)  # early on it forgets fast
    assert average.state["weight"].item() == pytest.approx(0.1 * 1.2 + 0.9 * 3)
    off = Averaged(layer, decay=0.0)
    with torch.no_grad():
        layer.weight.fill_(5.0)
    off.update(layer, step=1000)
    assert off.state["weight"].item() == 5.0
