"""The whole chain can learn: 200 steps on eight pictures bring the smallest network to a box AP above 0.9 on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdk.coco import read_coco
from sdk.detector import Detector
from train.checkpoint import load_checkpoint
from train.coco import CocoData, find_split
from train.config import TrainConfig, override, preset
from train.data import TrainData
from train.drawn import DrawnData, DrawnStreets
from train.evaluate import TorchBackend, detect_samples
from train.loop import train
from train.samples import NO_KEYPOINTS, SampleSource

# No augmentation, and an average that forgets within tens of steps: the weights of step 200 are what counts.
WITHOUT_AUGMENTATION = {
    "task": "detection",
    "architecture": "edge_n",
    "batch": "8",
    "max_steps": "200",
    "learning_rate": "4e-3",
    "warmup_steps": "10",
    "small_size_until": "",
    "flip": "0",
    "crop": "false",
    "scale_range": "1,1",
    "colour": "0",
    "mosaic": "0",
    "drawn_scenes": "0",
    "ema_decay": "0.9",
    "precision": "fp32",
    "workers": "0",
    "evaluate_every": "200",
    "checkpoint_every": "200",
}


def _overfit_ap(source: SampleSource, config: TrainConfig, out: Path) -> float:
    assert len(source) == 8
    return train(config, TrainData(source, source, "eight pictures"), out)["AP"]


def test_eight_drawn_scenes_are_learnt(tmp_path: Path) -> None:
    config = override(preset("person-pose"), {**WITHOUT_AUGMENTATION, "size": "160x160"})
    assert _overfit_ap(DrawnData(8, config.size, seed=0, keypoints=NO_KEYPOINTS), config, tmp_path) > 0.9


@pytest.mark.slow
def test_eight_drawn_streets_are_learnt_in_space(tmp_path: Path) -> None:
    changes = {**WITHOUT_AUGMENTATION, "task": "3d", "max_steps": "300", "evaluate_every": "300"}
    config = override(preset("synthetic-3d"), {**changes, "size": "192x128"})
    streets = DrawnStreets(8, config.size, seed=0)
    assert _overfit_ap(streets, config, tmp_path) > 0.9
    model, spec = load_checkpoint(tmp_path / "best.pth")
    found = detect_samples(Detector(TorchBackend(model, spec)), streets, range(8))
    distances, turns = [], []
    for index, detections in found.items():
        truth = streets.sample(index)
        assert truth.boxes3d is not None and detections.boxes3d is not None
        for box, center, yaw in zip(truth.boxes_xyxy, truth.boxes3d.center_m, truth.boxes3d.yaw_rad, strict=True):
            row = int(np.abs(detections.xyxy - box).sum(axis=1).argmin())
            distances.append(np.linalg.norm(detections.boxes3d.center_m[row] - center) / center[2])
            turns.append(np.cos(detections.boxes3d.yaw_rad[row] - yaw))
    assert np.median(distances) < 0.05
    assert np.median(turns) > np.cos(0.1)


@pytest.mark.slow
def test_eight_photographs_are_learnt(photographs: Path, tmp_path: Path) -> None:
    images, annotations = find_split(photographs / "coco", "train", keypoints=True)
    ids = sorted(image["id"] for image in read_coco(annotations)["images"])
    drawn = [ids[row] for row in np.random.default_rng(0).permutation(len(ids))[:8]]
    config = override(preset("person-pose"), {**WITHOUT_AUGMENTATION, "size": "448x448"})
    source = CocoData(images, annotations, class_names=("person",), image_ids=drawn)
    assert _overfit_ap(source, config, tmp_path) > 0.9
