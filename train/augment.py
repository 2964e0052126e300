"""Augmentation: a sample becomes a picture of network size, by one affine warp and one colour table.

Paper, sec. 5: "random flip, random scaling (between 0.6 to 1.3), cropping, and color jittering". Mosaic (four
pictures in one) is an addition for training from scratch on few photographs.

Boxes in space stay where they are when a picture is scaled or cut: its camera changes instead. A mirrored picture
shows a mirrored world, so that focal lengths stay positive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from sdk.camera import CameraIntrinsics
from sdk.geometry import Affine, letterbox, wrapped
from sdk.results import Boxes3D

from .samples import Sample, empty_boxes

Rng = np.random.Generator

# An object of which less than this share remains after a cut is not an example of its class any more.
MIN_VISIBLE = 0.25
MIN_SIDE_PX = 2.0


@dataclass(frozen=True)
class Augmentation:
    """Strengths, from TrainConfig.

    `flip_pairs` are the keypoints that change places when the picture is mirrored. Without `crop` a picture is
    shown whole and centred, and `scale_range` is not used.
    """

    flip: float
    scale_range: tuple[float, float]
    colour: float
    mosaic: float
    flip_pairs: tuple[tuple[int, int], ...]
    crop: bool = True

    def apply(self, draw: Callable[[], Sample], input_wh: tuple[int, int], rng: Rng) -> Sample:
        """A picture of `input_wh` from one sample, or from four; `draw` gives the next sample."""
        sample = (
            self._mosaic(draw, input_wh, rng) if rng.random() < self.mosaic else self._single(draw(), input_wh, rng)
        )
        return replace(sample, image=jitter_colour(sample.image, self.colour, rng))

    def _single(self, sample: Sample, input_wh: tuple[int, int], rng: Rng) -> Sample:
        if self.crop:
            return self._placed(sample, np.array(input_wh, np.float32), input_wh, rng)
        height, width = sample.image.shape[:2]
        to_input = letterbox((width, height), input_wh).image_to_input
        return self._warped(sample, to_input, input_wh, mirrored=rng.random() < self.flip)

    def _mosaic(self, draw: Callable[[], Sample], input_wh: tuple[int, int], rng: Rng) -> Sample:
        """Four pictures around a random point; each is cut at its quarter's border."""
        width, height = input_wh
        x = round(width * rng.uniform(0.3, 0.7))
        y = round(height * rng.uniform(0.3, 0.7))
        quarters = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        regions = [np.array(quarter, np.float32) for quarter in quarters]
        parts = [_shifted(self._placed(draw(), q[2:] - q[:2], input_wh, rng), q[:2]) for q in regions]
        image = np.zeros((height, width, 3), np.uint8)
        for part, (left, top, right, bottom) in zip(parts, quarters, strict=True):
            image[top:bottom, left:right] = part.image
        return _merged(image, parts)

    def _placed(self, sample: Sample, region_wh: np.ndarray, input_wh: tuple[int, int], rng: Rng) -> Sample:
        """The sample flipped, scaled and shifted into a region of the input, of the size of which it is then."""
        height, width = sample.image.shape[:2]
        whole = region_wh[0] >= input_wh[0] and region_wh[1] >= input_wh[1]
        fit = min(region_wh / (width, height)) if whole else max(region_wh / (width, height))
        scale = fit * np.exp(rng.uniform(*np.log(self.scale_range)))
        mirrored = rng.random() < self.flip
        # Where the picture is larger than the region, any part of it may show; where smaller, it may lie anywhere.
        slack = region_wh - scale * np.array([width, height])
        shift = slack * rng.uniform(0, 1, 2)
        to_region = Affine(np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), "image", "input")
        size = (int(region_wh[0]), int(region_wh[1]))
        return self._warped(sample, to_region, size, mirrored=mirrored)

    def _warped(self, sample: Sample, affine: Affine, wh: tuple[int, int], *, mirrored: bool) -> Sample:
        """The sample, mirrored in itself first where asked for, after an affine map to a picture of `wh`."""
        if mirrored:
            mirror = Affine(np.array([[-1.0, 0, sample.image.shape[1]], [0, 1, 0]]), "image", "image")
            affine = mirror.then(affine)
        image = cv2.warpAffine(sample.image, affine.index_matrix, wh, flags=cv2.INTER_LINEAR)
        moved = _moved(sample, affine, self.flip_pairs if mirrored else ())
        return _cut(replace(_mirrored_world(moved) if mirrored else moved, image=image), wh)


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
    """Boxes, keypoints and the camera after an affine map without rotation."""
    keypoints = sample.keypoints.copy()
    keypoints[..., :2] = affine.apply(keypoints[..., :2])
    for a, b in flip_pairs:
        keypoints[:, [a, b]] = keypoints[:, [b, a]]
    boxes = [_moved_boxes(boxes, affine) for boxes in (sample.boxes_xyxy, sample.ignore_xyxy)]
    camera = None if sample.camera is None else sample.camera.moved(affine)
    return replace(sample, boxes_xyxy=boxes[0], keypoints=keypoints, ignore_xyxy=boxes[1], camera=camera)


def _mirrored_world(sample: Sample) -> Sample:
    """The same picture of a world in which left is right.

    A mirroring warp leaves a camera with x pointing left. With x -> -x in the world as well it is a camera again:
    P diag(-1, 1, 1, 1). A direction (cos yaw, -sin yaw) in (x, z) becomes that of pi - yaw.
    """
    camera, boxes3d = sample.camera, sample.boxes3d
    if camera is not None:
        matrix = camera.matrix.copy()
        matrix[:, 0] *= -1.0
        camera = CameraIntrinsics(matrix)
    if boxes3d is not None:
        centre = boxes3d.center_m * np.array([-1, 1, 1], np.float32)
        yaw = wrapped(np.pi - boxes3d.yaw_rad).astype(np.float32)
        boxes3d = Boxes3D(centre, boxes3d.size_hwl_m, yaw)
    return replace(sample, boxes3d=boxes3d, camera=camera)


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
    return replace(
        sample,
        boxes_xyxy=clipped[keep],
        class_ids=sample.class_ids[keep],
        keypoints=keypoints,
        ignore_xyxy=np.concatenate([ignore, clipped[cut_off]]),
        boxes3d=None if sample.boxes3d is None else sample.boxes3d[keep],
    )


def _shifted(sample: Sample, offset_xy: np.ndarray) -> Sample:
    keypoints = sample.keypoints.copy()
    keypoints[..., :2] += offset_xy
    both = np.concatenate([offset_xy, offset_xy])
    boxes, ignore = sample.boxes_xyxy + both, sample.ignore_xyxy + both
    return replace(sample, boxes_xyxy=boxes, keypoints=keypoints, ignore_xyxy=ignore)


def _merged(image: np.ndarray, parts: Sequence[Sample]) -> Sample:
    """One sample of several regions; boxes in space are dropped, for every part has its own camera."""
    return Sample(
        image,
        np.concatenate([part.boxes_xyxy for part in parts]),
        np.concatenate([part.class_ids for part in parts]),
        np.concatenate([part.keypoints for part in parts]),
        np.concatenate([empty_boxes(), *(part.ignore_xyxy for part in parts)]),
    )
