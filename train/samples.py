"""Annotated pictures: what a data set gives and augmentation changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sdk.camera import CameraIntrinsics
from sdk.results import Boxes3D
from sdk.spec import COCO_FLIP_PAIRS, COCO_KEYPOINT_NAMES, COCO_OKS_SIGMAS, COCO_SKELETON


@dataclass(frozen=True)
class Sample:
    """One picture with its objects, all coordinates in continuous pixels of the image frame.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        boxes_xyxy: (N, 4) float32.
        class_ids: (N,) int64.
        keypoints: (N, K, 3) float32 x, y, visibility (0 not labelled, 1 hidden, 2 seen).
        ignore_xyxy: (M, 4) float32 regions where nothing is counted as wrong (crowds, cut objects), of any class.
        boxes3d: N boxes in the camera's frame, NaN where an object has none; None for data without.
        camera: of this picture, in its pixels; None for data without.
    """

    image: npt.NDArray[np.uint8]
    boxes_xyxy: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]
    keypoints: npt.NDArray[np.float32]
    ignore_xyxy: npt.NDArray[np.float32]
    boxes3d: Boxes3D | None = None
    camera: CameraIntrinsics | None = None


@dataclass(frozen=True)
class KeypointSchema:
    """What the K keypoints of a data set are; no keypoints is `NO_KEYPOINTS`.

    Attributes:
        names: of the K keypoints.
        flip_pairs: keypoints that change places when a picture is mirrored.
        skeleton: bones, as pairs of keypoints.
        oks_sigmas: K tolerances of the object keypoint similarity, as shares of the object's scale.
    """

    names: tuple[str, ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    oks_sigmas: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


NO_KEYPOINTS = KeypointSchema()
COCO_KEYPOINTS = KeypointSchema(COCO_KEYPOINT_NAMES, COCO_FLIP_PAIRS, COCO_SKELETON, COCO_OKS_SIGMAS)


class SampleSource(Protocol):
    """A data set: samples by number, each with as many keypoints an object as the schema has."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def keypoints(self) -> KeypointSchema: ...

    @property
    def num_keypoints(self) -> int: ...

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample: ...


def empty_boxes() -> npt.NDArray[np.float32]:
    return np.zeros((0, 4), np.float32)


def as_float32(values: Any, *shape: int) -> npt.NDArray[np.float32]:
    return np.asarray(values, np.float32).reshape(shape)
