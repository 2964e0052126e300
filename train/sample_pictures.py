"""Sample pictures, to see what a network has learnt: the truth, what was found, and the heatmap behind it.

::

    for picture in sample_pictures(detector, samples, range(4)):     # (360, W, 3) uint8 BGR
        writer.add_image("held_back", picture[..., ::-1], step, dataformats="HWC")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from sdk.camera import CameraIntrinsics
from sdk.detector import Detector
from sdk.drawing import draw, draw_status
from sdk.geometry import Affine
from sdk.results import Boxes3D, Detections, Keypoints
from sdk.spec import ModelSpec

from .samples import Sample, SampleSource

Image = npt.NDArray[np.uint8]

_HEIGHT = 360  # pixels of a sample picture
_GAP = 6  # pixels between its parts
_WHITE = (255, 255, 255)
_IGNORED = (150, 150, 150)
_WIREFRAME = (0, 215, 255)
_NEAR_M = 0.1  # corners nearer to the camera have no place in the picture
# Pairs of corners as `Boxes3D.corners_m` numbers them: around the bottom, around the top, upright.
_EDGES = [
    (0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7),
]  # fmt: skip


def sample_pictures(detector: Detector, samples: SampleSource, indices: Iterable[int]) -> Iterator[Image]:
    """One picture a sample, side by side: truth, objects found, heatmap; (360, W, 3) uint8 BGR.

    Args:
        detector: its `score_threshold` decides which objects are shown.
        samples: with their truth.
        indices: of the samples to show.
    """
    for index in indices:
        sample = samples.sample(index)
        detector.intrinsics = sample.camera
        prepared = detector.preprocess(sample.image)
        heads = detector.infer(prepared)
        found = detector.decode(heads, prepared)
        yield _side_by_side(
            {
                "truth": _truth_picture(sample, detector.spec),
                f"found, score {detector.score_threshold:g} and above": _drawn(
                    sample.image, found, detector.spec, sample.camera
                ),
                "heatmap": heatmap_overlay(sample.image, heads["heatmap"][0], prepared.feature_to_image),
            }
        )


def heatmap_overlay(image: Image, logits: npt.NDArray[np.float32], feature_to_image: Affine) -> Image:
    """The dimmed image with the largest score of any class laid over it: the more certain, the hotter and the denser.

    Args:
        image: (H, W, 3) uint8 BGR.
        logits: (C, h, w) float32 heatmap before the sigmoid.
        feature_to_image: from its cells to pixels of the image.
    """
    scores = 1.0 / (1.0 + np.exp(-np.clip(logits.max(axis=0), -30, 30)))  # (h, w)
    heat = cv2.warpAffine(scores, feature_to_image.index_matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap(np.round(255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
    density = 0.8 * np.sqrt(heat)[..., None]  # the root, so that weak peaks can be seen too
    dimmed = 0.6 * image
    return np.asarray(np.round(dimmed * (1 - density) + colours * density), np.uint8)


def truth_of(sample: Sample, spec: ModelSpec) -> Detections:
    """A sample's annotations in the form of detections of score 1; joints that are not labelled score 0."""
    keypoints = None
    if spec.num_keypoints:
        keypoints = Keypoints(sample.keypoints[..., :2], (sample.keypoints[..., 2] > 0).astype(np.float32))
    scores = np.ones(len(sample.boxes_xyxy), np.float32)
    return Detections(sample.boxes_xyxy, scores, sample.class_ids, spec.class_names, keypoints, boxes3d=sample.boxes3d)


def stacked(pictures: Sequence[Image]) -> bytes:
    """The pictures below one another on white, as a JPEG file's content."""
    width = max(picture.shape[1] for picture in pictures)
    rows = [cv2.copyMakeBorder(p, 0, _GAP, 0, width - p.shape[1], cv2.BORDER_CONSTANT, value=_WHITE) for p in pictures]
    return bytes(cv2.imencode(".jpg", np.vstack(rows))[1])


def _truth_picture(sample: Sample, spec: ModelSpec) -> Image:
    image = sample.image.copy()
    for left, top, right, bottom in np.round(sample.ignore_xyxy).astype(int).tolist():
        image[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] //= 2
        cv2.rectangle(image, (left, top), (right - 1, bottom - 1), _IGNORED, 1)
    return _drawn(image, truth_of(sample, spec), spec, sample.camera)


def _drawn(image: Image, detections: Detections, spec: ModelSpec, camera: CameraIntrinsics | None) -> Image:
    out = draw(image, detections, skeleton=spec.skeleton, keypoint_names=spec.keypoint_names)
    if detections.boxes3d is not None and camera is not None:
        _draw_wireframes(out, detections.boxes3d, camera)
    return out


def _draw_wireframes(canvas: Image, boxes: Boxes3D, camera: CameraIntrinsics) -> None:
    far = 4 * max(canvas.shape)  # OpenCV cannot draw at any distance
    for corners_m in boxes.corners_m():  # (8, 3); NaN where an object has no place in space
        if not (corners_m[:, 2] > _NEAR_M).all():
            continue
        pixels = np.round(np.clip(camera.project(corners_m), -far, far)).astype(int).tolist()
        for a, b in _EDGES:
            cv2.line(canvas, pixels[a], pixels[b], _WIREFRAME, 1, cv2.LINE_AA)


def _side_by_side(parts: dict[str, Image]) -> Image:
    scaled: list[Image] = []
    for title, image in parts.items():
        width = max(1, round(image.shape[1] * _HEIGHT / image.shape[0]))
        shrinks = image.shape[0] > _HEIGHT
        resized = cv2.resize(image, (width, _HEIGHT), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        scaled.append(draw_status(np.asarray(resized, np.uint8), title))
        scaled.append(np.full((_HEIGHT, _GAP, 3), 255, np.uint8))
    return np.hstack(scaled[:-1])
