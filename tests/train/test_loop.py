from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from sdk.errors import ConfigError, InputError, SdkError
from tests.train.test_targets import make_sample
from train.checkpoint import load_checkpoint, read_checkpoint
from train.config import TrainConfig, override, preset
from train.data import TrainData, open_data
from train.drawn import DrawnData
from train.evaluate import TorchBackend
from train.loop import Averaged, Stopped, Trainer, train
from train.optim import build_optimizer, learning_rate
from train.samples import Sample

SMALL = {
    "size": "64x64",
    "batch": "2",
    "max_steps": "12",
    "workers": "0",
    "evaluate_every": "12",
    "checkpoint_every": "5",
    "held_back": "2",
    "warmup_steps": "3",
}


def tiny_config(**changes: str) -> TrainConfig:
    """Twelve steps of two small pictures."""
    return override(preset("synthetic-pose"), {**SMALL, **changes})


class FakeFailingSource(DrawnData):
    """Drawn scenes; the picture after a number of them brings a fault."""

    def __init__(self, config: TrainConfig, pictures: int, fault: Callable[[], None]) -> None:
        super().__init__(100_000, config.size, config.seed)
        self._left, self._fault = pictures, fault

    def sample(self, index: int) -> Sample:
        if not self._left:
            self._fault()
        self._left -= 1
        return super().sample(index)

    def name(self, index: int) -> str:
        return f"{index:012}.jpg"


def failing_data(config: TrainConfig, pictures: int, fault: Callable[[], None]) -> TrainData:
    data = open_data("synthetic", config)
    return TrainData(FakeFailingSource(config, pictures, fault), data.held_back, data.description)


def interrupt() -> None:
    raise KeyboardInterrupt


def assert_same_run(found: Path, expected: Path) -> None:
    """Bit-equal weights, averages, optimiser and history of figures."""
    a, b = read_checkpoint(found / "last.pth"), read_checkpoint(expected / "last.pth")
    assert a.training is not None and b.training is not None
    for left, right in ((a.weights, b.weights), (a.training["model"], b.training["model"])):
        assert left.keys() == right.keys()
        assert [name for name in left if not torch.equal(left[name], right[name])] == []
    for row, other in zip(
        a.training["optimizer"]["state"].values(), b.training["optimizer"]["state"].values(), strict=True
    ):
        assert all(torch.equal(row[name], other[name]) for name in row)
    assert a.training["step"] == b.training["step"]
    assert a.training["best_ap"] == b.training["best_ap"]
    assert a.training["history"]["figures"] == b.training["history"]["figures"]
    assert a.training["history"]["best_step"] == b.training["history"]["best_step"]
    best, other_best = read_checkpoint(found / "best.pth").weights, read_checkpoint(expected / "best.pth").weights
    assert all(torch.equal(best[name], other_best[name]) for name in best)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "straight"
    figures = train(tiny_config(), open_data("synthetic", tiny_config()), out)
    assert set(figures) == {"AP", "AP50", "keypoint_AP"} and all(0 <= value <= 1 for value in figures.values())
    return out


def test_a_run_leaves_last_and_best(straight: Path) -> None:
    assert sorted(os.listdir(straight)) == [
        "best.pth",
        "last.pth",
        "pictures.jpg",
        "summary.json",
        "summary.png",
        "tensorboard",
    ]
    last, best = read_checkpoint(straight / "last.pth"), read_checkpoint(straight / "best.pth")
    assert last.training is not None and last.training["step"] == 12
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


def test_an_interrupted_run_resumes_to_bit_equal_weights(straight: Path, tmp_path: Path) -> None:
    config = tiny_config()
    # Ended in step 8, of which nothing was saved since step 5.
    with pytest.raises(KeyboardInterrupt):
        train(config, failing_data(config, 2 * 8 + 1, interrupt), tmp_path)
    assert [name for name in os.listdir(tmp_path) if name.endswith(".pth")] == ["last.pth"]
    killed = read_checkpoint(tmp_path / "last.pth")
    assert killed.training is not None and killed.training["step"] == 5
    train(config, open_data("synthetic", config), tmp_path, resume=True)
    assert_same_run(tmp_path, straight)
    resumed = read_checkpoint(tmp_path / "last.pth").training
    assert resumed is not None
    assert [step for step, _ in resumed["history"]["losses"]] == [5, 10, 12]
    assert resumed["history"]["steps"] == 12


def test_a_run_killed_while_workers_prepare_batches_resumes_to_bit_equal_weights(
    straight: Path, tmp_path: Path
) -> None:
    config = tiny_config(workers="1")
    changes = [f"{name}={_as_text(getattr(config, name))}" for name in [*SMALL, "workers"]]
    command = [sys.executable, "-m", "train", "--preset", "synthetic-pose", "--data", "synthetic", "--set", *changes]
    run = subprocess.Popen(
        [*command, "--out", str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "last.pth").exists():
        assert run.poll() is None, "the run ended by itself"
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    training = read_checkpoint(tmp_path / "last.pth").training
    assert training is not None and training["step"] < 12
    train(config, open_data("synthetic", config), tmp_path, resume=True)
    assert_same_run(tmp_path, straight)


def _as_text(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_asked_to_stop_saves_its_step_first(
    number: signal.Signals, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped) as stopped:
        train(config, failing_data(config, 2 * 8 + 1, lambda: signal.raise_signal(number)), tmp_path)
    assert stopped.value.code == code
    assert f"stopped by {number.name} after step 9; --resume continues {tmp_path}" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    training = read_checkpoint(tmp_path / "last.pth").training
    assert training is not None and training["step"] == 9


def test_a_run_stopped_at_an_evaluation_makes_up_for_it(straight: Path, tmp_path: Path) -> None:
    config = tiny_config()
    last_picture = 2 * 12 - 1
    with pytest.raises(Stopped):
        train(config, failing_data(config, last_picture, lambda: signal.raise_signal(signal.SIGTERM)), tmp_path)
    assert not (tmp_path / "best.pth").exists()
    assert train(config, open_data("synthetic", config), tmp_path, resume=True).keys() == {"AP", "AP50", "keypoint_AP"}
    assert_same_run(tmp_path, straight)


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    config = tiny_config()
    with pytest.raises(KeyboardInterrupt):
        train(config, failing_data(config, 3, twice), tmp_path)


def test_a_resume_says_which_options_differ(straight: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(max_steps="13", evaluate_every="30", learning_rate="0.001")
    (tmp_path / "last.pth").write_bytes((straight / "last.pth").read_bytes())
    with caplog.at_level(logging.WARNING):
        train(config, open_data("synthetic", config), tmp_path, resume=True)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "last.pth is continued with other options: max_steps=13 (was 12), learning_rate=0.001 (was" in message


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


def test_a_diverging_run_stops_names_the_pictures_and_leaves_the_last_good_weights(tmp_path: Path) -> None:
    config = tiny_config(
        learning_rate="1e12", optimizer="adam", warmup_steps="0", gradient_clip="1e30", checkpoint_every="1"
    )
    with pytest.raises(
        SdkError,
        match=r"diverged at step \d+: the losses are .* with the pictures \d{12}.jpg, \d{12}.jpg; lower learning_rate",
    ):
        train(config, failing_data(config, 1000, interrupt), tmp_path)
    training = read_checkpoint(tmp_path / "last.pth").training
    assert training is not None
    assert all(torch.isfinite(value).all() for value in training["model"].values())


def test_a_loss_that_is_no_number_stops_before_anything_is_saved(tmp_path: Path) -> None:
    config = tiny_config()
    trainer = Trainer(config, open_data("synthetic", config), tmp_path)
    with torch.no_grad():
        trainer.model.heads.trunk[0].weight.fill_(float("nan"))  # type: ignore[operator, index, union-attr]
    with pytest.raises(SdkError, match=r"diverged at step 0: the losses are \{'heatmap': nan, .* pictures \d+, \d+;"):
        trainer.run()
    assert list(tmp_path.glob("*.pth")) == []


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    config = tiny_config()
    # From step 8 on no file may grow beyond 100 kB; a checkpoint has megabytes.
    data = failing_data(config, 15, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1])))
    try:
        with pytest.raises(InputError, match=r"last\.pth cannot be written .* What was there before stays"):
            train(config, TrainData(data.train, data.held_back, ""), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    training = read_checkpoint(tmp_path / "last.pth").training
    assert training is not None and training["step"] == 5
    assert not list(tmp_path.glob(".*.part"))


def test_a_broken_picture_in_a_worker_is_one_clear_line(tmp_path: Path) -> None:
    def broken() -> None:
        raise InputError("street.jpg is not a picture that can be decoded")

    config = tiny_config(workers="1")
    with pytest.raises(InputError) as caught:
        train(config, failing_data(config, 5, broken), tmp_path)
    assert str(caught.value) == "street.jpg is not a picture that can be decoded"


def test_accumulated_passes_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    gradients = []
    for accumulate in ("1", "3"):
        config = tiny_config(batch="7", accumulate=accumulate, freeze_batch_norm="true", precision="fp32")
        trainer = Trainer(config, open_data("synthetic", config), tmp_path)
        trainer.train_step([trainer.batches[number] for number in range(int(accumulate))])
        gradients.append({name: value.grad for name, value in trainer.model.named_parameters()})
    for name, whole in gradients[0].items():
        assert whole is not None and gradients[1][name] is not None
        assert (gradients[1][name] - whole).abs().max() <= 1e-5 * whole.abs().max(), name  # type: ignore[operator]


def test_a_frozen_batch_norm_keeps_its_statistics(tmp_path: Path) -> None:
    config = tiny_config(max_steps="2", freeze_batch_norm="true", ema_decay="0")
    train(config, open_data("synthetic", config), tmp_path)
    weights = read_checkpoint(tmp_path / "last.pth").weights
    means = [value for name, value in weights.items() if name.endswith("running_mean")]
    assert means and all(not value.any() for value in means)


def test_half_precision_needs_a_gpu() -> None:
    config = tiny_config(precision="fp16")
    with pytest.raises(ConfigError, match=r"precision=fp16 needs a GPU, and device is cpu; set precision=bf16"):
        Trainer(config, open_data("synthetic", config), Path("unused"))


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(compile="true")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"compile=true needs a C\+\+ compiler, .* or set compile=false"):
        Trainer(config, open_data("synthetic", config), Path("unused"))


def test_two_files_to_start_from_are_one_too_many(straight: Path, tmp_path: Path) -> None:
    config = tiny_config(backbone="resnet18.pth")
    with pytest.raises(ConfigError, match=r"--init .*best.pth and backbone=resnet18.pth both give weights"):
        train(config, open_data("synthetic", config), tmp_path, init=straight / "best.pth")


def test_the_summary_says_what_was_done(straight: Path) -> None:
    summary = json.loads((straight / "summary.json").read_text())
    assert summary["steps"] == 12 and summary["pictures_seen"] == 24 and summary["processes"] == 1
    assert summary["config"]["architecture"] == "edge_n" and summary["data"] == "drawn scenes"
    assert summary["torch"] == torch.__version__
    assert summary["last"]["step"] == 12 and set(summary["last"]["figures"]) == {"AP", "AP50", "keypoint_AP"}
    assert 0 <= summary["share_waiting_for_data"] <= 1 and summary["steps_per_second"] > 0


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


def test_a_size_that_the_network_cannot_halve_often_enough_is_refused(tmp_path: Path) -> None:
    config = tiny_config(architecture="hourglass", size="192x128")
    with torch.device("meta"), pytest.raises(ConfigError, match=r"192x128: hourglass takes multiples of 128 pixels"):
        Trainer(config, open_data("synthetic", config), tmp_path)
