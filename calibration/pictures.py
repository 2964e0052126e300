"""The photographs on which two precisions differ most, with what each found drawn in.

::

    chooser = PictureChooser(spec)
    for path in photographs:
        chooser.add(path, {"fp32": float_detector(image), "int8": int8_detector(image)})
    page = report_html(report, chooser.pictures())
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdk.drawing import draw
from sdk.opencv import load_cv2
from sdk.results import Detections, Keypoints
from sdk.sources.images import read_image
from sdk.spec import ModelSpec

NUM_PICTURES = 6
_LONGEST_SIDE = 640
_QUALITIES = (80, 65, 50, 35, 20)  # of JPEG, from the best on, until a picture is small enough
_MAX_BYTES = 150_000  # six pairs stay below 2.5 MB in base64
_SAME_OBJECT_IOU = 0.5

_Found = Mapping[str, Detections]  # by precision


@dataclass(frozen=True)
class SamplePicture:
    """One photograph with what each precision found in it.

    Attributes:
        name: of the file.
        jpegs: by precision, the drawn picture.
        num_objects: by precision, how many it shows.
    """

    name: str
    jpegs: Mapping[str, bytes]
    num_objects: Mapping[str, int]


class PictureChooser:
    """Keeps the few photographs that differ most, without their pixels.

    Args:
        spec: of the model: its score threshold says what is shown.
        count: how many photographs are kept.
    """

    def __init__(self, spec: ModelSpec, *, count: int = NUM_PICTURES) -> None:
        self._spec = spec
        self._count = count
        self._kept: list[tuple[float, int, Path, _Found]] = []  # a heap; the number tells equals apart
        self._seen = 0

    def add(self, path: Path, found: _Found) -> None:
        """What each precision found in a photograph, the baseline first; of any score."""
        shown = {name: each[each.scores >= self._spec.score_threshold] for name, each in found.items()}
        baseline, *others = shown.values()
        distance = sum(difference(baseline, other) for other in others)
        self._seen += 1
        heapq.heappush(self._kept, (distance, -self._seen, path, shown))
        if len(self._kept) > self._count:
            heapq.heappop(self._kept)

    def pictures(self) -> list[SamplePicture]:
        """The photographs that were kept, read again and drawn, by falling difference."""
        chosen = sorted(self._kept, key=lambda entry: entry[:2], reverse=True)
        return [self._picture(path, found) for _, _, path, found in chosen]

    def _picture(self, path: Path, found: _Found) -> SamplePicture:
        image, scale = _shrunk(read_image(path))
        drawn = {
            name: draw(
                image, _scaled(each, scale), skeleton=self._spec.skeleton, keypoint_names=self._spec.keypoint_names
            )
            for name, each in found.items()
        }
        jpegs = {name: _jpeg(picture) for name, picture in drawn.items()}
        return SamplePicture(path.name, jpegs, {name: len(each) for name, each in found.items()})


def difference(reference: Detections, other: Detections) -> float:
    """How much two answers differ: 0 where they are the same, about 1 for each object that only one of them has.

    An object that both have counts with the difference of its scores, what its boxes do not share, and the mean
    distance of its keypoints in sizes of the box.
    """
    free = np.ones(len(other), bool)
    total = 0.0
    for row in range(len(reference)):
        overlaps = _ious(reference.xyxy[row], other.xyxy) * (other.class_ids == reference.class_ids[row]) * free
        best = int(overlaps.argmax()) if len(other) else -1
        if best < 0 or overlaps[best] < _SAME_OBJECT_IOU:
            total += float(reference.scores[row])
            continue
        free[best] = False
        total += abs(float(reference.scores[row] - other.scores[best])) + 1.0 - float(overlaps[best])
        total += _keypoint_distance(reference[row], other[best])
    return total + float(other.scores[free].sum())


def _ious(box: npt.NDArray[Any], boxes: npt.NDArray[Any]) -> npt.NDArray[np.floating[Any]]:
    """(N,) overlap of one (4,) box with (N, 4) boxes."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.clip(high - low, 0.0, None).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _keypoint_distance(reference: Detections, other: Detections) -> float:
    if reference.keypoints is None or other.keypoints is None:
        return 0.0
    size = max(1.0, float(np.hypot(*(reference.xyxy[0, 2:] - reference.xyxy[0, :2]))))
    distances = np.linalg.norm(reference.keypoints.xy[0] - other.keypoints.xy[0], axis=1)
    return float(np.nan_to_num(distances).mean()) / size


def _shrunk(image: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], float]:
    """A photograph of at most _LONGEST_SIDE pixels, and by how much it was scaled."""
    cv2 = load_cv2()
    height, width = image.shape[:2]
    scale = min(1.0, _LONGEST_SIDE / max(height, width))
    wh = max(1, round(width * scale)), max(1, round(height * scale))
    return (image if scale == 1.0 else cv2.resize(image, wh, interpolation=cv2.INTER_AREA)), scale


def _scaled(found: Detections, scale: float) -> Detections:
    keypoints = found.keypoints
    return Detections(
        found.xyxy * np.float32(scale),
        found.scores,
        found.class_ids,
        found.class_names,
        None if keypoints is None else Keypoints(keypoints.xy * np.float32(scale), keypoints.scores),
    )


def _jpeg(picture: npt.NDArray[np.uint8]) -> bytes:
    cv2 = load_cv2()
    for quality in _QUALITIES:
        content = bytes(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
        if len(content) <= _MAX_BYTES:
            break
    return content
