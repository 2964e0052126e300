"""Annotated pictures: what a data set gives and augmentation changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Sample:
    """One picture with its objects, all coordinates in continuous pixels of the image frame.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        boxes_xyxy: (N, 4) float32.
        class_ids: (N,) int64.
        keypoints: (N, K, 3) float32 x, y, visibility (0 not labelled, 1 hidden, 2 seen).
        ignore_xyxy: (M, 4) float32 regions where nothing is counted as wrong (crowds, cut objects).
    """

    image: npt.NDArray[np.uint8]
    boxes_xyxy: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]
    keypoints: npt.NDArray[np.float32]
    ignore_xyxy: npt.NDArray[np.float32]


class SampleSource(Protocol):
    """A data set: samples by number, each with `num_keypoints` keypoints an object."""

    class_names: tuple[str, ...]
    num_keypoints: int

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample: ...


def empty_boxes() -> npt.NDArray[np.float32]:
    return np.zeros((0, 4), np.float32)


def as_float32(values: Any, *shape: int) -> npt.NDArray[np.float32]:
    return np.asarray(values, np.float32).reshape(shape)
