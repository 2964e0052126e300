"""COCO annotation files: reading them, and saying what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError

_NEEDED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id", "name"),
}


def read_coco(path: Path) -> dict[str, Any]:
    """The content of a COCO annotation file.

    Raises:
        InputError: missing, not JSON, without images, annotations or categories, or with entries that lack a field.
    """
    data = read_json(path)
    missing = [kind for kind in _NEEDED if not isinstance(data, dict) or kind not in data]
    if missing:
        raise InputError(f"{path} is no COCO annotation file: it has no {', '.join(missing)}")
    for kind, needed in _NEEDED.items():
        _check_fields(path, kind, data[kind], needed)
    return dict(data)


def read_json(path: Path) -> Any:
    """Raises InputError where the file is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror}") from err
    except ValueError as err:
        raise InputError(f"{path} is not valid JSON ({err})") from err


def _check_fields(path: Path, kind: str, rows: Sequence[Mapping[str, Any]], needed: Sequence[str]) -> None:
    for row in rows:
        if missing := [name for name in needed if name not in row]:
            raise InputError(f"an entry of {kind} in {path} has no {', '.join(missing)}: {dict(row)!s:.120}")


def check_photographs(path: Path, folder: Path, images: Sequence[Mapping[str, Any]]) -> None:
    """That there are images, and that each is in the folder.

    Args:
        path: the annotation file, for the message.
        folder: of the photographs.
        images: entries of `images`.

    Raises:
        InputError: there are none, or photographs are missing.
    """
    if not images:
        raise InputError(f"{path} lists no images to use")
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    absent = [image["file_name"] for image in images if Path(image["file_name"]).name not in present]
    if absent:
        raise InputError(
            f"{path} names {len(absent)} photographs that are not in {folder}, the first is {absent[0]}; "
            "restore them or remove them from the annotations"
        )


def check_annotation(path: Path, row: Mapping[str, Any], image: Mapping[str, Any], num_keypoints: int = 0) -> None:
    """That an annotation's box lies in its photograph, and that it has as many keypoints as expected (0: any).

    Raises:
        InputError: it does not; the message names the annotation and the file.
    """
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
        raise InputError(f"annotation {row['id']} in {path} has {box!r} for a bbox of four numbers (x, y, w, h)")
    x, y, width, height = box
    # Two pixels of slack: official COCO boxes end up to a pixel beyond the border.
    inside = x >= -2 and y >= -2 and x + width <= image["width"] + 2 and y + height <= image["height"] + 2
    if not inside or width < 0 or height < 0:
        raise InputError(
            f"annotation {row['id']} in {path}: box {box} (x, y, w, h) does not lie in "
            f"{image['file_name']} of {image['width']}x{image['height']} pixels; correct or remove it"
        )
    count = len(row.get("keypoints") or ())
    if num_keypoints and count not in (0, 3 * num_keypoints):
        raise InputError(
            f"annotation {row['id']} in {path} has {count} keypoint values; expected x, y and visibility of "
            f"{num_keypoints} keypoints"
        )


def check_size(path: Path, row: Mapping[str, Any], image: npt.NDArray[np.uint8]) -> None:
    """That a decoded photograph has the size that its entry says; boxes of another size would be silently wrong.

    Raises:
        InputError: it has not.
    """
    height, width = image.shape[:2]
    if (width, height) != (row["width"], row["height"]):
        raise InputError(
            f"{row['file_name']} is {width}x{height} pixels, {path} says {row['width']}x{row['height']}; "
            "its boxes were made on another version of the photograph (resized, or turned by its EXIF data)"
        )
