"""The whole chain can learn: 200 steps on eight pictures bring the smallest network to a box AP above 0.9 on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sdk.coco import read_coco
from sdk.geometry import letterbox
from train.batches import DrawnData
from train.coco import CocoData, find_split
from train.config import TrainConfig, override, preset
from train.data import TrainData
from train.loop import train
from train.samples import Sample, SampleSource

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


class Letterboxed:
    """Pictures brought to the network's size as the detector does it, so that training does not shift them."""

    num_keypoints = 0

    def __init__(self, source: SampleSource, wh: tuple[int, int]) -> None:
        self.class_names = source.class_names
        self._samples = [_letterboxed(source.sample(index), wh) for index in range(len(source))]

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int) -> Sample:
        return self._samples[index]


def _letterboxed(sample: Sample, wh: tuple[int, int]) -> Sample:
    height, width = sample.image.shape[:2]
    box = letterbox((width, height), wh)
    assert box.resized_wh == (width, height), "no scaling is wanted here, only borders"
    image = np.zeros((wh[1], wh[0], 3), np.uint8)
    image[box.top : box.top + height, box.left : box.left + width] = sample.image
    shift = np.array([box.left, box.top] * 2, np.float32)
    return replace(
        sample,
        image=image,
        boxes_xyxy=sample.boxes_xyxy + shift,
        ignore_xyxy=sample.ignore_xyxy + shift,
        keypoints=sample.keypoints[:, :0],
    )


def _overfit_ap(source: SampleSource, config: TrainConfig, out: Path) -> float:
    pictures = Letterboxed(source, config.size)
    assert len(pictures) == 8
    return train(config, TrainData(pictures, pictures, "eight pictures"), out)["AP"]


def test_eight_drawn_scenes_are_learnt(tmp_path: Path) -> None:
    config = override(preset("person-pose"), {**WITHOUT_AUGMENTATION, "size": "160x160"})
    assert _overfit_ap(DrawnData(8, config.size, seed=0), config, tmp_path) > 0.9


@pytest.mark.slow
def test_eight_photographs_are_learnt(photographs: Path, tmp_path: Path) -> None:
    images, annotations = find_split(photographs / "coco", "train", keypoints=True)
    ids = sorted(image["id"] for image in read_coco(annotations)["images"])
    drawn = [ids[row] for row in np.random.default_rng(0).permutation(len(ids))[:8]]
    config = override(preset("person-pose"), {**WITHOUT_AUGMENTATION, "size": "448x448"})
    source = CocoData(images, annotations, class_names=("person",), image_ids=drawn)
    assert _overfit_ap(source, config, tmp_path) > 0.9
