from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdk.errors import ConfigError, InputError, SdkError, SpecError
from train.checkpoint import Checkpoint, init_from, load_checkpoint, read_checkpoint, save_checkpoint
from train.config import TrainConfig, preset
from train.models import build_model
from train.samples import COCO_KEYPOINTS
from train.specs import spec_from_config

CONFIG = replace(preset("synthetic-pose"), size=(64, 64))
SPEC = spec_from_config(CONFIG, ("person",), COCO_KEYPOINTS, trained_on="drawn scenes")
EMPTY = {"format": 1, "spec": SPEC.to_json(), "config": {}, "weights": {}, "training": None}


def _checkpoint(*, config: TrainConfig = CONFIG, training: dict[str, Any] | None = None) -> Checkpoint:
    torch.manual_seed(3)
    spec = spec_from_config(config, ("person",), COCO_KEYPOINTS, trained_on="drawn scenes")
    return Checkpoint(spec, config, build_model(config.architecture, spec.heads).state_dict(), training)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a" / "last.pth"
    training = {"step": 7, "best_ap": 0.25, "model": {"w": torch.arange(3.0)}, "optimizer": {"state": {}}}
    written = _checkpoint(training=training)
    save_checkpoint(path, written)
    read = read_checkpoint(path)
    assert read.spec == written.spec and read.config == written.config
    assert read.weights.keys() == written.weights.keys()
    assert all(torch.equal(read.weights[name], value) for name, value in written.weights.items())
    assert read.training is not None and read.training["step"] == 7 and read.training["best_ap"] == 0.25
    assert os.listdir(path.parent) == ["last.pth"]


def test_a_model_answers_as_before(tmp_path: Path) -> None:
    checkpoint = _checkpoint()
    original = build_model(CONFIG.architecture, SPEC.heads)
    original.load_state_dict(checkpoint.weights)
    save_checkpoint(tmp_path / "best.pth", checkpoint)
    model, spec = load_checkpoint(tmp_path / "best.pth")
    assert spec == SPEC and not model.training
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = original.eval()(images), model(images)
    assert all(torch.equal(found[name], head) for name, head in expected.items())


def test_architecture_and_task_are_checked(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best.pth", _checkpoint())
    for task in ("pose", "multi_pose", "detection", "ctdet"):
        load_checkpoint(tmp_path / "best.pth", architecture="edge_n", task=task)
    with pytest.raises(ConfigError, match=r"best.pth holds a 'edge_n', not a 'res_18_up'; leave the option out"):
        load_checkpoint(tmp_path / "best.pth", architecture="res_18_up")
    with pytest.raises(ConfigError, match=r"best.pth does detection, pose, not 3d"):
        load_checkpoint(tmp_path / "best.pth", task="3d")


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, _checkpoint())
    before = path.read_bytes()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        save_checkpoint(path, _checkpoint(training={"step": lambda: None}))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pth"]


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, _checkpoint())
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # no file may grow beyond: writes fail
    try:
        with pytest.raises(InputError, match=r"last.pth cannot be written \(.+\); is the disk full\?"):
            save_checkpoint(path, _checkpoint())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pth"]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(InputError, match=r"last.pth cannot be written"):
        save_checkpoint(tmp_path / "runs" / "last.pth", _checkpoint())


class _Malicious:
    """Unpickling it would run a command."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self._marker),)


def test_a_file_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save({"spec": SPEC.to_json(), "weights": _Malicious(marker)}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match=r"evil.pth .*Python objects other than tensors, which could execute code"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not marker.exists()


@pytest.mark.parametrize("old", [False, True])
def test_an_official_looking_file_with_code_is_refused_too(tmp_path: Path, old: bool) -> None:
    marker = tmp_path / "executed"
    content = {"epoch": 1, "state_dict": {"module.conv1.weight": torch.zeros(3)}, "opt": _Malicious(marker)}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(InputError, match=r"evil.pth .*Python objects other than tensors, which could execute code"):
        load_checkpoint(tmp_path / "evil.pth")
    assert not marker.exists()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no checkpoint .*none.pth"):
        load_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-200],
        lambda content: b"not a checkpoint",
        lambda content: bytes(1000),
    ],
)
def test_a_damaged_file(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "last.pth"
    save_checkpoint(path, _checkpoint())
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=r"last.pth is (damaged|not a PyTorch checkpoint)"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "has no ModelSpec; expected a checkpoint that `centeredge train` wrote"),
        ([1, 2], "has no ModelSpec"),
        ({"spec": "{}", "format": 99}, "checkpoint format 99, this version reads 1"),
        ({"spec": SPEC.to_json(), "format": 1}, "has no config, weights"),
        (
            {**EMPTY, "config": {"lr": 1}},
            "unknown options",
        ),
    ],
)
def test_a_file_of_another_kind(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises((SpecError, ConfigError), match=message):
        read_checkpoint(tmp_path / "other.pth")


def test_weights_that_do_not_fit_the_config(tmp_path: Path) -> None:
    checkpoint = _checkpoint()
    save_checkpoint(tmp_path / "best.pth", replace(checkpoint, config=replace(CONFIG, architecture="edge_s")))
    with pytest.raises(SdkError, match=r"weights in .*best.pth do not fit .*edge_s"):
        load_checkpoint(tmp_path / "best.pth")


def test_starting_from_another_task_takes_what_fits(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "pose.pth", _checkpoint())
    detection = spec_from_config(replace(CONFIG, task="detection"), ("cat", "dog"), trained_on="")
    model = build_model("edge_n", detection.heads)
    fresh = init_from(model, tmp_path / "pose.pth")
    assert sorted(fresh) == ["heads.outputs.heatmap.bias", "heads.outputs.heatmap.weight"]
    taken = read_checkpoint(tmp_path / "pose.pth").weights["stem.0.0.weight"]
    assert torch.equal(model.state_dict()["stem.0.0.weight"], taken)


def test_starting_from_another_network_is_refused(tmp_path: Path) -> None:
    checkpoint = _checkpoint()
    save_checkpoint(tmp_path / "odd.pth", replace(checkpoint, weights={"other": torch.zeros(3)}))
    with pytest.raises(ConfigError, match=r"no tensor of .*odd.pth fits this network"):
        init_from(build_model("edge_n", SPEC.heads), tmp_path / "odd.pth")
