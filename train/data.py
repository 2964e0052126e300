"""From the --data argument to samples: a COCO, KITTI or VOC folder, or drawn scenes; and a slice to choose by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from sdk.errors import ConfigError, InputError

from .coco import CocoData, find_split
from .config import TrainConfig
from .drawn import DrawnData, DrawnStreets
from .kitti_data import KittiData
from .samples import NO_KEYPOINTS, SampleSource
from .voc import VocData

SYNTHETIC = "synthetic"
_DRAWN_PER_EPOCH = 100_000
_TASKS_OF_FORMAT = {"coco": ("detection", "pose"), "kitti": ("detection", "3d"), "voc": ("detection",)}
Format = Literal["coco", "kitti", "voc"]


@dataclass(frozen=True)
class TrainData:
    """Samples to train on, samples of the same kind to choose the best weights by, and a line for the spec."""

    train: SampleSource
    held_back: SampleSource
    description: str


class _Files(SampleSource, Protocol):
    """A data set of files, that can be parted and kept in memory."""

    def subset(self, rows: Sequence[int]) -> _Files: ...

    def cache_images(self, limit_mb: int) -> bool: ...


def open_data(data: str, config: TrainConfig) -> TrainData:
    """The data that --data names; what is held back is of the training split, never of another.

    Args:
        data: a COCO folder (train or train2017, and annotations/), a KITTI folder (training/ and ImageSets/), a
            PASCAL VOC folder (JPEGImages, or years that have it), or "synthetic".
        config: of the run.

    Raises:
        InputError: the folder or its annotations are not usable.
        ConfigError: the data has not what the task needs, or not the classes.
    """
    if data == SYNTHETIC:
        return _drawn(config)
    root = Path(data)
    kind = data_format(root)
    if config.task not in _TASKS_OF_FORMAT[kind]:
        raise ConfigError(
            f"{root} is {kind.upper()} data, which serves task={' or task='.join(_TASKS_OF_FORMAT[kind])}, not "
            f"{config.task}; KITTI folders and 'synthetic' have 3D boxes, COCO folders and 'synthetic' have poses"
        )
    if kind == "kitti":
        frames = KittiData(root, class_names=config.classes, with_boxes3d=config.task == "3d")
        # The licence asks that weights say so.
        return _parted(frames, config, "{} frames of KITTI object, for non-commercial use (CC BY-NC-SA 3.0)")
    if kind == "voc":
        return _parted(VocData(root, class_names=config.classes), config, "{} pictures of PASCAL VOC")
    pose = config.task == "pose"
    images, annotations = find_split(root, "train", keypoints=pose)
    photographs = CocoData(images, annotations, class_names=config.classes, with_keypoints=pose)
    return _parted(photographs, config, "{} photographs of " + annotations.name)


def data_format(root: Path) -> Format:
    """What kind of data set a folder is, by its layout.

    Raises:
        InputError: there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {root}; --data takes a COCO, KITTI or VOC folder, or '{SYNTHETIC}'")
    if (root / "training").is_dir():
        return "kitti"
    if any(next(root.glob(pattern), None) for pattern in ("JPEGImages", "*/JPEGImages", "VOCdevkit/*/JPEGImages")):
        return "voc"
    return "coco"


def _parted(source: _Files, config: TrainConfig, description: str) -> TrainData:
    order = np.random.default_rng(0).permutation(len(source))
    split = min(config.held_back, len(source) // 2)
    train, held_back = (source.subset(sorted(rows)) for rows in (order[split:].tolist(), order[:split].tolist()))
    for part in (train, held_back):
        part.cache_images(config.cache_images_mb)
    return TrainData(train, held_back, description.format(len(train)))


def _drawn(config: TrainConfig) -> TrainData:
    train = _drawn_source(config, _DRAWN_PER_EPOCH, config.seed)
    if config.classes not in ((), train.class_names):
        raise ConfigError(
            f"drawn scenes for task={config.task} have the classes {', '.join(train.class_names)}, not "
            f"{', '.join(config.classes)}; set classes={','.join(train.class_names)}"
        )
    return TrainData(train, _drawn_source(config, config.held_back, config.seed + 1), "drawn scenes")


def _drawn_source(config: TrainConfig, length: int, seed: int) -> SampleSource:
    if config.task == "pose":
        return DrawnData(length, config.size, seed)
    if config.task == "detection":
        return DrawnData(length, config.size, seed, keypoints=NO_KEYPOINTS)
    return DrawnStreets(length, config.size, seed, people=config.task == "pose+3d")
