"""From the --data argument to samples: a COCO folder, or drawn scenes; and a slice held back to choose by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdk.coco import read_coco
from sdk.errors import ConfigError
from sdk.spec import COCO_KEYPOINT_NAMES

from .batches import DrawnData
from .coco import CocoData, find_split
from .config import TrainConfig
from .samples import SampleSource


@dataclass(frozen=True)
class TrainData:
    """Samples to train on, samples of the same kind to choose the best weights by, and a line for the spec."""

    train: SampleSource
    held_back: SampleSource
    description: str


def open_data(data: str, config: TrainConfig) -> TrainData:
    """The data that --data names.

    Args:
        data: a COCO folder (train or train2017, and annotations/), or "synthetic".
        config: of the run.

    Raises:
        InputError: the folder or its annotations are not usable.
        ConfigError: other classes than people are asked of drawn scenes.
    """
    if data == "synthetic":
        if config.classes not in ((), DrawnData.class_names):
            raise ConfigError(f"drawn scenes have people alone, not {', '.join(config.classes)}; set classes=person")
        return TrainData(
            DrawnData(100_000, config.size, config.seed),
            DrawnData(max(1, config.held_back), config.size, config.seed + 1),
            "drawn scenes",
        )
    images, annotations = find_split(Path(data), "train", keypoints=config.task == "pose")
    image_ids = [image["id"] for image in read_coco(annotations)["images"]]
    order = np.random.default_rng(0).permutation(len(image_ids))
    split = min(config.held_back, len(image_ids) // 2)
    parts = []
    for rows in (order[split:], order[:split]):
        part = CocoData(
            images,
            annotations,
            class_names=config.classes,
            num_keypoints=len(COCO_KEYPOINT_NAMES) if config.task == "pose" else 0,
            image_ids=[image_ids[row] for row in sorted(rows)],
        )
        part.cache_images(config.cache_images_mb)
        parts.append(part)
    return TrainData(parts[0], parts[1], f"{len(parts[0])} photographs of {annotations.name}")
