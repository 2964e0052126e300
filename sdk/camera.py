"""The camera: from metres in front of it to pixels, and back.

The camera frame is x right, y down, z forward, in metres. `CameraIntrinsics` is a matrix and nothing else::

    camera = CameraIntrinsics.from_file("calib/000000.txt")     # KITTI, OpenCV YAML or ROS camera_info YAML
    pixels = camera.project(points_m)
    points_m = camera.unproject(pixels, depth_m)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .geometry import Affine

FloatArray = npt.NDArray[np.floating[Any]]

_UNKNOWN_FORM = (
    "no camera matrix; expected a KITTI calib file with a line P2:, or a YAML file of OpenCV or ROS with camera_matrix"
)
_MAX_FILE_BYTES = 1_000_000
# Names of the matrix in YAML files, without case and underscores, the most telling first: of the picture as the lens
# gives it (OpenCV, ROS; K in a CameraInfo message), then of the rectified one (ROS).
_MATRIX_NAMES = ("cameramatrix", "k", "projectionmatrix", "p")


@dataclass(frozen=True, eq=False)
class CameraIntrinsics:
    """A pinhole camera without distortion.

    Attributes:
        matrix: (3, 3) float64, or KITTI's (3, 4) projection P; pixels of the image frame.

    Raises:
        InputError: on construction, when the matrix has another shape, is not finite, has no focal length, or another
            third row than 0, 0, 1.
    """

    matrix: FloatArray

    def __post_init__(self) -> None:
        try:
            matrix = np.array(self.matrix, np.float64)
        except (TypeError, ValueError) as err:
            raise InputError(f"camera matrix {self.matrix!r} is no array of numbers; expected 3x3 or 3x4") from err
        if matrix.shape not in ((3, 3), (3, 4)) or not np.isfinite(matrix).all():
            raise InputError(f"camera matrix has shape {matrix.shape}; expected 3x3, or 3x4 for a KITTI P, all finite")
        if matrix[0, 0] == 0 or matrix[1, 1] == 0:
            raise InputError(f"camera matrix {matrix.tolist()} has no focal length; expected fx and fy in pixels")
        if not np.allclose(matrix[2, :3], (0.0, 0.0, 1.0), atol=1e-6):
            raise InputError(f"the third row of camera matrix {matrix.tolist()} is not 0, 0, 1; is it transposed?")
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def from_file(cls, path: str | Path) -> CameraIntrinsics:
        """Read a KITTI calib file (its P2), an OpenCV YAML or a ROS camera_info YAML.

        In YAML files `camera_matrix` goes before `projection_matrix`; an OpenCV file may instead hold one 3x3 or
        3x4 matrix of any name.

        Raises:
            InputError: the file cannot be read, or holds no camera matrix in one of these forms.
        """
        text = _text(path)
        is_kitti = re.search(r"^P\d:", text, re.MULTILINE)
        try:
            return cls(_kitti_p2(text) if is_kitti else _yaml_matrix(text))
        except InputError as err:
            raise InputError(f"{path}: {err}") from err

    @property
    def projection(self) -> FloatArray:
        """(3, 4) float64 P: homogeneous pixels of a point are P @ [x, y, z, 1]."""
        return self.matrix if self.matrix.shape == (3, 4) else np.hstack([self.matrix, np.zeros((3, 1))])

    @property
    def focal_px(self) -> float:
        """Focal length across, in pixels."""
        return float(abs(self.matrix[0, 0]))

    def project(self, points_m: FloatArray) -> FloatArray:
        """(..., 3) points in the camera frame to (..., 2) pixels; points must lie in front (z > 0)."""
        homogeneous = points_m @ self.projection[:, :3].T + self.projection[:, 3]
        return np.asarray(homogeneous[..., :2] / homogeneous[..., 2:])

    def unproject(self, points_px: FloatArray, depth_m: FloatArray) -> FloatArray:
        """The (..., 3) points in the camera frame at (..., 2) pixels and (...) depths z.

        The inverse of `project`: the camera's own offset (the last column of a KITTI P) is taken into account.
        """
        p = self.projection
        scale = (depth_m * p[2, 2] + p[2, 3])[..., None]  # homogeneous third component
        right = points_px * scale - (p[:2, 2] * depth_m[..., None] + p[:2, 3])
        xy = right @ np.linalg.inv(p[:2, :2]).T
        return np.concatenate([xy, depth_m[..., None]], axis=-1)

    def moved(self, image_to_other: Affine) -> CameraIntrinsics:
        """The camera of the picture after an affine warp (a scale, a crop, a mirror)."""
        return CameraIntrinsics(np.vstack([image_to_other.matrix, [0.0, 0.0, 1.0]]) @ self.matrix)


def _text(path: str | Path) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_FILE_BYTES).decode("utf-8")
    except OSError as err:
        raise InputError(f"the camera's intrinsics {path} cannot be read: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise InputError(f"{path}: {_UNKNOWN_FORM}") from err


def _kitti_p2(text: str) -> FloatArray:
    for line in text.splitlines():
        name, _, numbers = line.partition(":")
        if name == "P2":
            return _matrix(numbers.split(), 3, 4, "P2")
    raise InputError("no line P2:, the projection of KITTI's left colour camera")


def _yaml_matrix(text: str) -> FloatArray:
    """The camera matrix among the top-level nodes of an OpenCV or ROS YAML file.

    Of YAML this reads only what these two programs write: a name at the left margin, then a list of numbers, or rows,
    cols and a list of numbers as data.
    """
    nodes = {name: node for name, body in _yaml_nodes(text) if (node := _node_numbers(body)) is not None}
    plain_names = {name.replace("_", "").lower(): name for name in nodes}
    chosen = [plain_names[name] for name in _MATRIX_NAMES if name in plain_names]
    if not chosen:
        chosen = [name for name, (numbers, rows, cols) in nodes.items() if len(numbers) == rows * cols]
        if len(chosen) > 1:
            names = ", ".join(chosen)
            raise InputError(f"several matrices, {names}; name the camera's camera_matrix")
    if not chosen:
        raise InputError(_UNKNOWN_FORM)
    return _matrix(*nodes[chosen[0]], chosen[0])


def _yaml_nodes(text: str) -> Iterator[tuple[str, str]]:
    """Name and body of each node at the left margin, comments removed."""
    text = re.sub(r"#.*", "", text)
    parts = re.split(r"^[\"']?(\w+)[\"']?[ \t]*:", text, flags=re.MULTILINE)
    return zip(parts[1::2], parts[2::2], strict=True)


def _node_numbers(body: str) -> tuple[list[str], int, int] | None:
    """What a node holds, with its rows and columns, if these are 3x3 or 3x4."""
    data = re.search(r"(?:\bdata[ \t]*:|\A)\s*(\[[^:]*\]|(?:-[ \t]+\S+\s*)+)", body)
    if data is None:
        return None
    numbers = [number for number in re.split(r"[\[\],\s]+", data[1]) if number not in ("", "-")]
    rows, cols = (re.search(rf"\b{side}[ \t]*:[ \t]*(\d+)", body) for side in ("rows", "cols"))
    shape = (int(rows[1]), int(cols[1])) if rows and cols else (3, len(numbers) // 3)
    is_cameras = shape in ((3, 3), (3, 4)) and (rows is not None or len(numbers) in (9, 12))
    return (numbers, *shape) if is_cameras else None


def _matrix(numbers: list[str], rows: int, cols: int, what: str) -> FloatArray:
    if len(numbers) != rows * cols:
        raise InputError(f"{what} has {len(numbers)} numbers, expected {rows * cols} ({rows}x{cols})")
    try:
        return np.array([float(number) for number in numbers]).reshape(rows, cols)
    except ValueError as err:
        raise InputError(f"{what} holds something other than numbers: {err}") from err
