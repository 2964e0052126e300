"""Augmentation: a sample becomes a picture of network size, by one affine warp and one colour table.

Paper, sec. 5: "random flip, random scaling (between 0.6 to 1.3), cropping, and color jittering". Mosaic (four
pictures in one) is an addition for training from scratch on few photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from sdk.geometry import Affine

from .samples import Sample, empty_boxes

Rng = np.random.Generator

# An object of which less than this share remains after a cut is not an example of its class any more.
MIN_VISIBLE = 0.25
MIN_SIDE_PX = 2.0


@dataclass(frozen=True)
class Augmentation:
    """Strengths, from TrainConfig.

    `flip_pairs` are the keypoints that change places when the picture is mirrored.
    """

    flip: float
    scale_range: tuple[float, float]
    colour: float
    mosaic: float
    flip_pairs: tuple[tuple[int, int], ...]

    def apply(self, draw: Callable[[], Sample], input_wh: tuple[int, int], rng: Rng) -> Sample:
        """A picture of `input_wh` from one sample, or from four; `draw` gives the next sample."""
        sample = (
            self._mosaic(draw, input_wh, rng) if rng.random() < self.mosaic else self._single(draw(), input_wh, rng)
        )
        return replace(sample, image=jitter_colour(sample.image, self.colour, rng))

    def _single(self, sample: Sample, input_wh: tuple[int, int], rng: Rng) -> Sample:
        return self._placed(sample, np.array([0, 0, *input_wh], np.float32), input_wh, rng)

    def _mosaic(self, draw: Callable[[], Sample], input_wh: tuple[int, int], rng: Rng) -> Sample:
        """Four pictures around a random point; each is cut at its quarter's border."""
        width, height = input_wh
        x = round(width * rng.uniform(0.3, 0.7))
        y = round(height * rng.uniform(0.3, 0.7))
        quarters = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        parts = [self._placed(draw(), np.array(q, np.float32), input_wh, rng) for q in quarters]
        image = np.zeros((height, width, 3), np.uint8)
        for part, (left, top, right, bottom) in zip(parts, quarters, strict=True):
            image[top:bottom, left:right] = part.image
        return _merged(image, parts)

    def _placed(self, sample: Sample, region_xyxy: np.ndarray, input_wh: tuple[int, int], rng: Rng) -> Sample:
        """The sample flipped, scaled and shifted into a region of the input; its image has the region's size."""
        height, width = sample.image.shape[:2]
        region_wh = region_xyxy[2:] - region_xyxy[:2]
        whole = region_wh[0] >= input_wh[0] and region_wh[1] >= input_wh[1]
        fit = min(region_wh / (width, height)) if whole else max(region_wh / (width, height))
        scale = fit * np.exp(rng.uniform(*np.log(self.scale_range)))
        mirrored = rng.random() < self.flip
        # Where the picture is larger than the region, any part of it may show; where smaller, it may lie anywhere.
        slack = region_wh - scale * np.array([width, height])
        shift = slack * rng.uniform(0, 1, 2)
        x_scale = -scale if mirrored else scale
        x_shift = shift[0] + scale * width if mirrored else shift[0]
        matrix = np.array([[x_scale, 0, x_shift], [0, scale, shift[1]]])
        to_region = Affine(matrix, "image", "input")
        size = (int(region_wh[0]), int(region_wh[1]))
        image = cv2.warpAffine(sample.image, to_region.index_matrix, size, flags=cv2.INTER_LINEAR)
        moved = _moved(sample, to_region, self.flip_pairs if mirrored else ())
        return _shifted(_cut(replace(moved, image=image), size), region_xyxy[:2])


def jitter_colour(image: np.ndarray, strength: float, rng: Rng) -> np.ndarray:
    """Brightness, contrast and tint through one table a channel, saturation by mixing with gray."""
    if strength <= 0:
        return image
    values = np.arange(256, dtype=np.float32)
    gain = np.exp(rng.uniform(-strength, strength))
    tint = np.exp(rng.uniform(-strength, strength, 3) * 0.25)
    shift = rng.uniform(-strength, strength) * 60
    table = np.clip((values[:, None] - 128) * gain * tint + 128 + shift, 0, 255)
    out = cv2.LUT(image, table.astype(np.uint8)[None])
    saturation = 1.0 + rng.uniform(-strength, strength) * 1.5 if rng.random() > 0.05 else 0.0
    gray = cv2.cvtColor(cv2.cvtColor(out, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return np.asarray(cv2.addWeighted(out, saturation, gray, 1.0 - saturation, 0.0))


def _moved(sample: Sample, affine: Affine, flip_pairs: Sequence[tuple[int, int]]) -> Sample:
    """Boxes and keypoints after an affine map without rotation."""
    keypoints = sample.keypoints.copy()
    keypoints[..., :2] = affine.apply(keypoints[..., :2])
    for a, b in flip_pairs:
        keypoints[:, [a, b]] = keypoints[:, [b, a]]
    boxes = [_moved_boxes(boxes, affine) for boxes in (sample.boxes_xyxy, sample.ignore_xyxy)]
    return replace(sample, boxes_xyxy=boxes[0], keypoints=keypoints, ignore_xyxy=boxes[1])


def _moved_boxes(boxes_xyxy: np.ndarray, affine: Affine) -> np.ndarray:
    corners = affine.apply(boxes_xyxy.reshape(-1, 2, 2))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


def _cut(sample: Sample, wh: tuple[int, int]) -> Sample:
    """Clip to the picture; what is cut off too much becomes a region to ignore."""
    limit = np.array([*wh, *wh], np.float32)
    clipped = np.clip(sample.boxes_xyxy, 0, limit)
    sides = clipped[:, 2:] - clipped[:, :2]
    before = np.maximum((sample.boxes_xyxy[:, 2:] - sample.boxes_xyxy[:, :2]).prod(axis=1), 1e-6)
    keep = (sides.prod(axis=1) / before >= MIN_VISIBLE) & (sides >= MIN_SIDE_PX).all(axis=1)
    cut_off = ~keep & (sides > 0).all(axis=1)
    ignore = np.clip(sample.ignore_xyxy, 0, limit)
    ignore = ignore[(ignore[:, 2:] > ignore[:, :2]).all(axis=1)]
    keypoints = sample.keypoints[keep].copy()
    outside = ((keypoints[..., :2] < 0) | (keypoints[..., :2] >= np.array(wh))).any(axis=-1)
    keypoints[outside, 2] = 0
    return Sample(
        sample.image, clipped[keep], sample.class_ids[keep], keypoints, np.concatenate([ignore, clipped[cut_off]])
    )


def _shifted(sample: Sample, offset_xy: np.ndarray) -> Sample:
    keypoints = sample.keypoints.copy()
    keypoints[..., :2] += offset_xy
    both = np.concatenate([offset_xy, offset_xy])
    return replace(
        sample, boxes_xyxy=sample.boxes_xyxy + both, keypoints=keypoints, ignore_xyxy=sample.ignore_xyxy + both
    )


def _merged(image: np.ndarray, parts: Sequence[Sample]) -> Sample:
    return Sample(
        image,
        np.concatenate([part.boxes_xyxy for part in parts]),
        np.concatenate([part.class_ids for part in parts]),
        np.concatenate([part.keypoints for part in parts]),
        np.concatenate([empty_boxes(), *(part.ignore_xyxy for part in parts)]),
    )
