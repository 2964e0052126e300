"""KITTI's files: labels, results, camera matrices, and the folder that holds them.

::

    folder = KittiFolder(Path("kitti"))
    for name in folder.frame_names("val"):
        objects = read_kitti_labels(folder.label_path(name))
        projection = read_kitti_calib(folder.calib_path(name))      # (3, 4)
    write_kitti_results(Path("results/000000.txt"), kitti_from_detections(detector(image)))
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .geometry import wrapped
from .results import Boxes3D, Detections

FloatArray = npt.NDArray[np.floating[Any]]

LABEL_COLUMNS = "type truncated occluded alpha x1 y1 x2 y2 h w l x y z rotation_y"
RESULT_COLUMNS = LABEL_COLUMNS + " score"
DONT_CARE = "dontcare"  # the type of a region that nobody labelled, in lower case

# What stands in KITTI's files where a value is not known.
UNKNOWN_ALPHA_RAD = -10.0
UNKNOWN_SIZE_M = -1.0
UNKNOWN_LOCATION_M = -1000.0
UNKNOWN_YAW_RAD = -10.0


@dataclass
class KittiObjects:
    """The rows of one label or result file, N objects; all arrays float64 but `occluded`.

    Attributes:
        types: N names as in the file: Car, Van, DontCare ...
        truncated: (N,) 0 to 1 in labels, -1 in results.
        occluded: (N,) int64, 0 visible, 1 partly, 2 largely, 3 unknown; -1 in results.
        alpha_rad: (N,) the angle at which the camera sees the object; -10 where it is not known.
        xyxy: (N, 4) corners in pixels of the image frame.
        size_hwl_m: (N, 3) height, width, length; -1 where they are not known.
        location_m: (N, 3) centre of the box's bottom face in the camera frame; -1000 where it is not known.
        yaw_rad: (N,) rotation_y; -10 where it is not known.
        scores: (N,) of results, None for labels.

    Raises:
        InputError: on construction, if an array has another shape.
    """

    types: tuple[str, ...]
    truncated: FloatArray
    occluded: npt.NDArray[np.int64]
    alpha_rad: FloatArray
    xyxy: FloatArray
    size_hwl_m: FloatArray
    location_m: FloatArray
    yaw_rad: FloatArray
    scores: FloatArray | None = None

    def __post_init__(self) -> None:
        rows = len(self.types)
        columns = {"xyxy": 4, "size_hwl_m": 3, "location_m": 3}
        for name in ("truncated", "occluded", "alpha_rad", "xyxy", "size_hwl_m", "location_m", "yaw_rad", "scores"):
            array, expected = getattr(self, name), (rows, columns[name]) if name in columns else (rows,)
            if array is not None and np.shape(array) != expected:
                raise InputError(f"KittiObjects.{name} must have shape {expected}, got {np.shape(array)}")

    def __len__(self) -> int:
        return len(self.types)

    def boxes3d(self) -> Boxes3D:
        """The boxes by their geometric centre; only meaningful where the location is known."""
        center_m = self.location_m.copy()
        center_m[:, 1] -= self.size_hwl_m[:, 0] / 2  # y points down
        return Boxes3D(center_m.astype(np.float32), self.size_hwl_m.astype(np.float32), self.yaw_rad.astype(np.float32))


def joined_objects(frames: Sequence[KittiObjects]) -> KittiObjects:
    """The objects of several frames, one after the other; with scores where all have them."""

    def column(name: str, *shape: int) -> Any:
        return np.concatenate([np.empty((0, *shape)), *(getattr(objects, name) for objects in frames)])

    return KittiObjects(
        types=tuple(kind for objects in frames for kind in objects.types),
        truncated=column("truncated"),
        occluded=column("occluded").astype(np.int64),
        alpha_rad=column("alpha_rad"),
        xyxy=column("xyxy", 4),
        size_hwl_m=column("size_hwl_m", 3),
        location_m=column("location_m", 3),
        yaw_rad=column("yaw_rad"),
        scores=None if any(objects.scores is None for objects in frames) else column("scores"),
    )


def read_kitti_labels(path: Path) -> KittiObjects:
    """The objects of a label file: 15 columns a row.

    Raises:
        InputError: the file cannot be read, or a row lacks fields, has something else than a number, a box of
            negative size or a 3D box of negative size; the message names the file and the line.
    """
    return _read_objects(path, LABEL_COLUMNS)


def read_kitti_results(path: Path) -> KittiObjects:
    """The objects of a result file: 16 columns a row, the last one the score.

    Raises:
        InputError: as for labels.
    """
    return _read_objects(path, RESULT_COLUMNS)


def write_kitti_results(path: Path, objects: KittiObjects) -> None:
    """Write a result file, under its name only when complete; reading it gives the same numbers.

    Raises:
        InputError: the objects have no scores, a type has a space in it, or the file cannot be written.
    """
    if objects.scores is None:
        raise InputError(f"a KITTI result file needs scores, and these {len(objects)} objects have none")
    if spaced := [name for name in objects.types if len(name.split()) != 1]:
        raise InputError(f"the class name {spaced[0]!r} cannot be in a KITTI file, whose columns are parted by spaces")
    numbers = np.column_stack(
        [objects.alpha_rad, objects.xyxy, objects.size_hwl_m, objects.location_m, objects.yaw_rad, objects.scores]
    )
    lines = [
        " ".join([kind, f"{truncated:g}", str(occluded), *map(repr, row)]) + "\n"
        for kind, truncated, occluded, row in zip(
            objects.types, objects.truncated, objects.occluded, numbers.tolist(), strict=True
        )
    ]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text("".join(lines))
        os.replace(temporary, path)
    except OSError as err:
        raise InputError(f"cannot write {path}: {err.strerror}") from err
    finally:
        temporary.unlink(missing_ok=True)


def kitti_from_detections(detections: Detections) -> KittiObjects:
    """One frame's detections as the rows of a result file, to 4 decimals (a tenth of a millimetre or millipixel).

    alpha is the yaw less the direction in which the camera sees the object (paper, sec. 4.1); without `boxes3d`, the
    3D columns have KITTI's values for unknown.
    """
    rows = len(detections)
    size_hwl_m = np.full((rows, 3), UNKNOWN_SIZE_M)
    location_m = np.full((rows, 3), UNKNOWN_LOCATION_M)
    alpha_rad, yaw_rad = np.full(rows, UNKNOWN_ALPHA_RAD), np.full(rows, UNKNOWN_YAW_RAD)
    if detections.boxes3d is not None:
        boxes = detections.boxes3d
        size_hwl_m = boxes.size_hwl_m.astype(np.float64)
        location_m = boxes.center_m.astype(np.float64)
        location_m[:, 1] += size_hwl_m[:, 0] / 2  # y points down
        yaw_rad = boxes.yaw_rad.astype(np.float64)
        alpha_rad = wrapped(yaw_rad - np.arctan2(location_m[:, 0], location_m[:, 2]))
    return KittiObjects(
        types=tuple(detections.class_names[i] for i in detections.class_ids),
        truncated=np.full(rows, -1.0),
        occluded=np.full(rows, -1, np.int64),
        alpha_rad=np.round(alpha_rad, 4),
        xyxy=np.round(detections.xyxy.astype(np.float64), 4),
        size_hwl_m=np.round(size_hwl_m, 4),
        location_m=np.round(location_m, 4),
        yaw_rad=np.round(yaw_rad, 4),
        scores=detections.scores.astype(np.float64),
    )


def read_kitti_calib(path: Path) -> FloatArray:
    """P2 of a calib file, the projection of the left colour camera; (3, 4) float64.

    Raises:
        InputError: the file cannot be read, or has no P2 of twelve numbers.
    """
    for number, line in enumerate(_lines(path), 1):
        name, _, values = line.partition(":")
        if name.strip() == "P2":
            numbers = _numbers(values.split(), f"{path}, line {number}")
            if len(numbers) != 12:
                raise InputError(f"{path}, line {number}: P2 has {len(numbers)} numbers, expected 12 (3x4)")
            return np.reshape(numbers, (3, 4))
    raise InputError(f"{path} has no P2, the projection of KITTI's left colour camera (`P2: ` and 12 numbers)")


class KittiFolder:
    """A KITTI object folder: training/{image_2,label_2,calib} and ImageSets/NAME.txt.

    Raises:
        InputError: it has no training/label_2.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._training = root / "training"
        if not (self._training / "label_2").is_dir():
            raise InputError(f"{root} is no KITTI folder: it has no training/label_2")

    def frame_names(self, split: str | None = None) -> tuple[str, ...]:
        """The frames (`000000` ...) of a split in ImageSets, or all labelled ones.

        Raises:
            InputError: no such split, it names no frames, or frames without labels.
        """
        labelled = sorted(path.stem for path in (self._training / "label_2").glob("*.txt"))
        if split is None:
            if not labelled:
                raise InputError(f"there are no labels (.txt) in {self._training / 'label_2'}")
            return tuple(labelled)
        names = self._split_names(split)
        known = set(labelled)
        if missing := [name for name in names if name not in known]:
            raise InputError(
                f"the split {split} names {len(missing)} frames without a label, "
                f"the first is {self.label_path(missing[0])}"
            )
        return names

    def _split_names(self, split: str) -> tuple[str, ...]:
        path = self.root / "ImageSets" / f"{split}.txt"
        if not path.is_file():
            there_are = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt"))) or "none"
            raise InputError(f"there is no split {split} ({path} is missing); there are: {there_are}")
        names = tuple(dict.fromkeys(name for line in _lines(path) if (name := line.strip())))
        if not names:
            raise InputError(f"the split {path} names no frames")
        return names

    def label_path(self, name: str) -> Path:
        """Where a frame's labels are."""
        return self._training / "label_2" / f"{name}.txt"

    def calib_path(self, name: str) -> Path:
        """Where a frame's camera matrices are."""
        return self._training / "calib" / f"{name}.txt"

    def image_path(self, name: str) -> Path:
        """A frame's picture.

        Raises:
            InputError: there is neither a .png nor a .jpg.
        """
        for suffix in (".png", ".jpg"):
            path = self._training / "image_2" / (name + suffix)
            if path.is_file():
                return path
        raise InputError(f"frame {name} has no picture: there is no {name}.png or .jpg in {self._training / 'image_2'}")


def _read_objects(path: Path, columns: str) -> KittiObjects:
    num_columns = len(columns.split())
    types, rows = [], []
    for number, line in enumerate(_lines(path), 1):
        kind, *fields = line.split() or [""]
        if not kind:
            continue
        where = f"{path}, line {number}"
        if len(fields) + 1 != num_columns:
            raise InputError(f"{where}: {len(fields) + 1} fields, expected {num_columns}: {columns}")
        row = _numbers(fields, where)
        if row[5] < row[3] or row[6] < row[4]:
            raise InputError(f"{where}: the box {row[3:7]} has a negative size; expected x1 <= x2 and y1 <= y2")
        # The size in a result is a network's guess, and may be anything.
        is_placed = kind.lower() != DONT_CARE and row[12] != UNKNOWN_LOCATION_M
        if columns == LABEL_COLUMNS and is_placed and min(row[7:10]) < 0:
            raise InputError(f"{where}: {kind} has the size {row[7:10]} (h, w, l in metres); none may be negative")
        types.append(kind)
        rows.append(row)
    return _objects_from_rows(types, np.reshape(np.array(rows, np.float64), (len(rows), num_columns - 1)))


def _objects_from_rows(types: list[str], values: FloatArray) -> KittiObjects:
    return KittiObjects(
        types=tuple(types),
        truncated=values[:, 0],
        occluded=values[:, 1].astype(np.int64),
        alpha_rad=values[:, 2],
        xyxy=values[:, 3:7],
        size_hwl_m=values[:, 7:10],
        location_m=values[:, 10:13],
        yaw_rad=values[:, 13],
        scores=values[:, 14] if values.shape[1] > 14 else None,
    )


def _numbers(fields: list[str], where: str) -> list[float]:
    try:
        numbers = [float(field) for field in fields]
    except ValueError as err:
        raise InputError(f"{where}: {err.args[0].rpartition(': ')[2]} is no number") from err
    if not np.isfinite(numbers).all():
        raise InputError(f"{where}: a value is not finite: {' '.join(fields)}")
    return numbers


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror}") from err
    except ValueError as err:
        raise InputError(f"{path} is no text file") from err
