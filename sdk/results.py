"""What a detector answers: parallel arrays, one row an object, in pixels of the caller's image.

::

    detections = detector(image)
    people = detections[detections.scores > 0.5]
    for box, score in zip(people.xyxy, people.scores): ...
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError

Float32Array = npt.NDArray[np.float32]
Index = int | slice | npt.NDArray[np.bool_] | npt.NDArray[np.integer[Any]] | list[int] | list[bool]


@dataclass
class Keypoints:
    """Keypoints of N objects.

    Attributes:
        xy: (N, K, 2) float32, pixels in the image frame.
        scores: (N, K) float32; 0 for a keypoint that the model cannot place.
    """

    xy: Float32Array
    scores: Float32Array

    def __post_init__(self) -> None:
        _check_shape("Keypoints.xy", self.xy, (None, None, 2))
        _check_shape("Keypoints.scores", self.scores, self.xy.shape[:2])

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, index: Index) -> Keypoints:
        rows = _rows(index, len(self))
        return Keypoints(self.xy[rows], self.scores[rows])


@dataclass
class Boxes3D:
    """Metric 3D boxes of N objects in the camera frame: x right, y down, z forward.

    Attributes:
        center_m: (N, 3) float32, geometric centre of the box.
        size_hwl_m: (N, 3) float32, height, width, length.
        yaw_rad: (N,) float32, rotation about the y axis; KITTI's rotation_y: at 0 an object faces along x, at -pi/2
            along z.
    """

    center_m: Float32Array
    size_hwl_m: Float32Array
    yaw_rad: Float32Array

    def __post_init__(self) -> None:
        _check_shape("Boxes3D.center_m", self.center_m, (None, 3))
        _check_shape("Boxes3D.size_hwl_m", self.size_hwl_m, (len(self.center_m), 3))
        _check_shape("Boxes3D.yaw_rad", self.yaw_rad, (len(self.center_m),))

    def __len__(self) -> int:
        return len(self.center_m)

    def __getitem__(self, index: Index) -> Boxes3D:
        rows = _rows(index, len(self))
        return Boxes3D(self.center_m[rows], self.size_hwl_m[rows], self.yaw_rad[rows])

    def corners_m(self) -> Float32Array:
        """(N, 8, 3) corners in the camera frame: the four bottom ones first, then the four top ones.

        Corners 0, 1, 5 and 4 are the front.
        """
        height, width, length = (self.size_hwl_m[:, i, None] / 2 for i in range(3))
        x = length * np.array([1, 1, -1, -1, 1, 1, -1, -1])  # (N, 8)
        y = height * np.array([1, 1, 1, 1, -1, -1, -1, -1])
        z = width * np.array([1, -1, -1, 1, 1, -1, -1, 1])
        cos, sin = np.cos(self.yaw_rad)[:, None], np.sin(self.yaw_rad)[:, None]
        corners = np.stack([cos * x + sin * z, y, cos * z - sin * x], axis=-1)
        return (corners + self.center_m[:, None]).astype(np.float32)


@dataclass
class Detections:
    """N detected objects of one image, by falling score.

    Attributes:
        xyxy: (N, 4) float32, corners in pixels of the image frame, clipped to the image.
        scores: (N,) float32 in 0..1.
        class_ids: (N,) int64, index into `class_names`.
        class_names: all classes of the model.
        keypoints: for a pose model, else None.
        boxes3d: for a 3D model with intrinsics, else None.
        track_ids: (N,) int64 once tracked, else None.

    Raises:
        InputError: on construction, if an array has another shape.
    """

    xyxy: Float32Array
    scores: Float32Array
    class_ids: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    keypoints: Keypoints | None = None
    boxes3d: Boxes3D | None = None
    track_ids: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        _check_shape("Detections.xyxy", self.xyxy, (None, 4))
        rows = len(self.xyxy)
        _check_shape("Detections.scores", self.scores, (rows,))
        _check_shape("Detections.class_ids", self.class_ids, (rows,))
        if self.track_ids is not None:
            _check_shape("Detections.track_ids", self.track_ids, (rows,))
        for name, part in (("keypoints", self.keypoints), ("boxes3d", self.boxes3d)):
            if part is not None and len(part) != rows:
                raise InputError(f"Detections.{name} has {len(part)} rows, xyxy has {rows}")

    def __len__(self) -> int:
        return len(self.xyxy)

    def __iter__(self) -> Iterator[Detections]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Index) -> Detections:
        """Some of the objects; an int gives one object as Detections of length 1."""
        rows = _rows(index, len(self))
        return Detections(
            self.xyxy[rows],
            self.scores[rows],
            self.class_ids[rows],
            self.class_names,
            None if self.keypoints is None else self.keypoints[rows],
            None if self.boxes3d is None else self.boxes3d[rows],
            None if self.track_ids is None else self.track_ids[rows],
        )

    def to_dict(self) -> list[dict[str, Any]]:
        """One JSON-ready object a detection; see docs/results.md for the fields."""
        return [self._row_dict(row) for row in range(len(self))]

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    def _row_dict(self, row: int) -> dict[str, Any]:
        keypoints = box3d = None
        if self.keypoints is not None:
            points = np.column_stack([self.keypoints.xy[row], self.keypoints.scores[row]])
            keypoints = _rounded(points)
        if self.boxes3d is not None:
            box3d = {
                "center_m": _rounded(self.boxes3d.center_m[row]),
                "size_hwl_m": _rounded(self.boxes3d.size_hwl_m[row]),
                "yaw_rad": _rounded(self.boxes3d.yaw_rad[row]),
            }
        class_id = int(self.class_ids[row])
        return {
            "class_id": class_id,
            "class_name": self.class_names[class_id],
            "score": _rounded(self.scores[row]),
            "xyxy": _rounded(self.xyxy[row]),
            "keypoints": keypoints,
            "box3d": box3d,
            "track_id": None if self.track_ids is None else int(self.track_ids[row]),
        }


@dataclass(frozen=True)
class Frame:
    """One picture from a source.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        index: counts the source's frames from 0, dropped ones included.
        source: where it came from; passwords are left out.
        capture_ns: time of capture on the monotonic clock (time.monotonic_ns).
    """

    image: npt.NDArray[np.uint8]
    index: int
    source: str
    capture_ns: int


@dataclass(frozen=True)
class FrameResult:
    """A frame and what was found in it.

    Attributes:
        ms: milliseconds of each stage: preprocess, inference, decode.
        age_ms: from capture to result.
        dropped: frames of the source that were skipped since the previous result.
    """

    frame: Frame
    detections: Detections
    ms: dict[str, float] = field(default_factory=dict)
    age_ms: float = 0.0
    dropped: int = 0

    def to_dict(self) -> dict[str, Any]:
        """One JSON-ready object; a line of `centeredge run --json`."""
        return {
            "index": self.frame.index,
            "source": self.frame.source,
            "capture_ns": self.frame.capture_ns,
            "age_ms": round(self.age_ms, 3),
            "dropped": self.dropped,
            "ms": {stage: round(ms, 3) for stage, ms in self.ms.items()},
            "detections": self.detections.to_dict(),
        }


def _rows(index: Index, length: int) -> Any:
    """The index in a form that gives rows, never a row without its axis."""
    if isinstance(index, (int, np.integer)):
        if not -length <= index < length:
            raise IndexError(f"index {index} is out of range for {length} rows")
        return slice(index, index + 1 or None)
    if isinstance(index, list):
        return np.asarray(index, dtype=None if index else np.int64)
    return index


def _rounded(values: Any) -> Any:
    """Plain Python numbers, to 4 decimals: a tenth of a millipixel is below what the network means."""
    return np.round(np.asarray(values, dtype=np.float64), 4).tolist()


def _check_shape(name: str, array: npt.NDArray[Any], expected: tuple[int | None, ...]) -> None:
    shape = np.shape(array)
    if len(shape) != len(expected) or any(e is not None and e != s for e, s in zip(expected, shape, strict=True)):
        wanted = tuple("N" if e is None else e for e in expected)
        raise InputError(f"{name} must have shape {wanted}, got {shape}")
