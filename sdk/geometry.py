"""Affine maps between the three coordinate frames: image, input and feature.

All coordinates are continuous: the first pixel (or cell) covers 0 to 1, its centre is at 0.5. That is
how COCO writes boxes. OpenCV counts pixel centres as whole numbers instead; `Affine.index_matrix` is the
same map in that convention::

    image_to_input = letterbox_affine((1920, 1080), (320, 320))
    boxes_xyxy = image_to_input.inverse().apply(points_input)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FrameName = Literal["image", "input", "feature"]
FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Affine:
    """A 2x3 map from one named frame to another; points are (..., 2) arrays of (x, y)."""

    matrix: FloatArray
    source: FrameName
    target: FrameName

    def apply(self, points: FloatArray) -> FloatArray:
        """Map (..., 2) points of the source frame to the target frame."""
        return np.asarray(points @ self.matrix[:, :2].T + self.matrix[:, 2])

    def inverse(self) -> Affine:
        linear = np.linalg.inv(self.matrix[:, :2])
        return Affine(np.column_stack([linear, -linear @ self.matrix[:, 2]]), self.target, self.source)

    def then(self, after: Affine) -> Affine:
        """This map, followed by `after`."""
        if self.target != after.source:
            raise ValueError(f"a map to {self.target!r} cannot be followed by one from {after.source!r}")
        linear = after.matrix[:, :2] @ self.matrix[:, :2]
        shift = after.matrix[:, :2] @ self.matrix[:, 2] + after.matrix[:, 2]
        return Affine(np.column_stack([linear, shift]), self.source, after.target)

    @property
    def index_matrix(self) -> FloatArray:
        """The same map for cv2.warpAffine, where pixel centres are whole numbers."""
        matrix = self.matrix.copy()
        matrix[:, 2] += 0.5 * (self.matrix[:, :2].sum(axis=1) - 1.0)
        return np.asarray(matrix)


@dataclass(frozen=True)
class Letterbox:
    """How an image is scaled as a whole and centred on a canvas of input size.

    `resized_wh` is the scaled image in whole pixels, `left` and `top` where it starts. `image_to_input`
    is exact: it has the two scales that the rounding to whole pixels really gives.
    """

    resized_wh: tuple[int, int]
    left: int
    top: int
    image_to_input: Affine


def letterbox(image_wh: tuple[int, int], input_wh: tuple[int, int]) -> Letterbox:
    """Fit an image of `image_wh` pixels into `input_wh` pixels.

    >>> letterbox((1920, 1080), (320, 320)).resized_wh
    (320, 180)
    """
    scale = min(input_wh[0] / image_wh[0], input_wh[1] / image_wh[1])
    width = max(1, min(input_wh[0], round(image_wh[0] * scale)))
    height = max(1, min(input_wh[1], round(image_wh[1] * scale)))
    left, top = (input_wh[0] - width) // 2, (input_wh[1] - height) // 2
    matrix = np.array([[width / image_wh[0], 0.0, left], [0.0, height / image_wh[1], top]])
    return Letterbox((width, height), left, top, Affine(matrix, "image", "input"))


def centred_affine(image_wh: tuple[int, int], input_wh: tuple[int, int], side_px: float) -> Affine:
    """The official code's map from image to input: `side_px` of the image become the input's width, centre on centre.

    It is used as it stands for points and for cv2.warpAffine, although OpenCV counts pixel centres as whole numbers:
    imported models were trained on that.

    >>> centred_affine((1242, 375), (1280, 384), 1242).apply(np.array([621.0, 187.5])).tolist()
    [640.0, 192.0]
    """
    scale = input_wh[0] / side_px
    left, top = (side_out / 2 - scale * side / 2 for side, side_out in zip(image_wh, input_wh, strict=True))
    return Affine(np.array([[scale, 0.0, left], [0.0, scale, top]]), "image", "input")


def input_to_feature(stride: int) -> Affine:
    """The map from input pixels to feature cells."""
    scale = 1.0 / stride
    return Affine(np.array([[scale, 0.0, 0.0], [0.0, scale, 0.0]]), "input", "feature")


def xywh_to_xyxy(boxes_xywh: FloatArray) -> FloatArray:
    """(..., 4) boxes from corner and size (COCO's form) to two corners."""
    return np.concatenate([boxes_xywh[..., :2], boxes_xywh[..., :2] + boxes_xywh[..., 2:]], axis=-1)


def xyxy_to_xywh(boxes_xyxy: FloatArray) -> FloatArray:
    """(..., 4) boxes from two corners to corner and size (COCO's form)."""
    return np.concatenate([boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]], axis=-1)


def wrapped(angle_rad: FloatArray) -> FloatArray:
    """The same angles in (-pi, pi].

    >>> wrapped(np.array([-np.pi, 2 * np.pi])).round(4).tolist()
    [3.1416, 0.0]
    """
    return np.asarray(np.pi - (np.pi - angle_rad) % (2 * np.pi))
