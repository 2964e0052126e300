"""COCO annotation files: reading them, and saying what is wrong with them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError

_KEY, _NUMBER = (int, str), (int, float)
_NEEDED: dict[str, dict[str, type | tuple[type, ...]]] = {
    "images": {"id": _KEY, "file_name": str, "width": _NUMBER, "height": _NUMBER},
    "annotations": {"id": _KEY, "image_id": _KEY, "category_id": _KEY},
    "categories": {"id": _KEY, "name": str},
}


def read_coco(path: Path) -> dict[str, Any]:
    """The content of a COCO annotation file.

    Raises:
        InputError: missing, not JSON, without images, annotations or categories, or with entries that lack a field.
    """
    data = read_json(path)
    for problem in field_problems(data):
        raise InputError(f"{path}: {problem}")
    return dict(data)


def read_json(path: Path) -> Any:
    """Raises InputError where the file is missing or not JSON."""
    try:
        return json.loads(path.read_text())
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror}") from err
    except ValueError as err:
        raise InputError(f"{path} is not valid JSON ({err})") from err


def field_problems(data: Any) -> Iterator[str]:
    """What a COCO file lacks: one of its three lists, or fields that each entry needs."""
    missing = [kind for kind in _NEEDED if not isinstance(data, dict) or not isinstance(data.get(kind), list)]
    if missing:
        yield f"is no COCO annotation file: it has no {', '.join(missing)}"
        return
    for kind in _NEEDED:
        yield from (problem for row in data[kind] for problem in entry_problems(kind, row))


def entry_problems(kind: str, row: Any) -> Iterator[str]:
    """What is wrong with the fields of one entry of `images`, `annotations` or `categories`."""
    needed = _NEEDED[kind]
    if not isinstance(row, dict):
        yield f"an entry of {kind} is {row!s:.120}, expected an object with {', '.join(needed)}"
    elif missing := [name for name in needed if name not in row]:
        yield f"an entry of {kind} has no {', '.join(missing)}: {row!s:.120}"
    elif wrong := [name for name, types in needed.items() if not isinstance(row[name], types)]:
        yield f"an entry of {kind} has {row[wrong[0]]!r} for its {wrong[0]}: {row!s:.120}"


def id_problems(data: Mapping[str, Any]) -> Iterator[str]:
    """Ids that are given twice, and annotations of images or categories that are not there.

    Args:
        data: without field problems.
    """
    for kind, one in (("images", "image"), ("annotations", "annotation"), ("categories", "category")):
        counts = Counter(row["id"] for row in data[kind])
        yield from (f"{one} {key}: its id is given to {n} entries of {kind}" for key, n in counts.items() if n > 1)
    names = Counter(row["name"] for row in data["categories"])
    yield from (f"category {name!r} is there {n} times" for name, n in names.items() if n > 1)
    image_ids = {row["id"] for row in data["images"]}
    category_ids = {row["id"] for row in data["categories"]}
    for row in data["annotations"]:
        if row["image_id"] not in image_ids:
            yield f"annotation {row['id']}: there is no image {row['image_id']}"
        if row["category_id"] not in category_ids:
            yield f"annotation {row['id']}: there is no category {row['category_id']}"


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
    for problem in annotation_problems(row, image, num_keypoints):
        raise InputError(f"annotation {row['id']} in {path}: {problem}")


def annotation_problems(row: Mapping[str, Any], image: Mapping[str, Any], num_keypoints: int = 0) -> Iterator[str]:
    """What makes an annotation unusable: its box, or its keypoints where `num_keypoints` are expected.

    A box without width or height is none of it: official files have such; it is no object to learn.
    """
    box = row.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        yield f"{box!r} is no bbox of four numbers (x, y, w, h)"
    elif box[2] < 0 or box[3] < 0:
        yield f"box {box} (x, y, w, h) has a negative size; correct or remove it"
    elif not _is_inside(box, image):
        yield (
            f"box {box} (x, y, w, h) does not lie in {image['file_name']} of "
            f"{image['width']}x{image['height']} pixels; correct or remove it"
        )
    values = row.get("keypoints") or []
    if num_keypoints and (not isinstance(values, list) or len(values) not in (0, 3 * num_keypoints)):
        count = len(values) if isinstance(values, list) else repr(values)
        yield f"{count} keypoint values; expected x, y and visibility of {num_keypoints} keypoints"
    elif num_keypoints and not all(map(_is_number, values)):
        yield "a keypoint value is no number"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_inside(box: Sequence[float], image: Mapping[str, Any]) -> bool:
    # Two pixels of slack: official COCO boxes end up to a pixel beyond the border.
    x, y, width, height = box
    return x >= -2 and y >= -2 and x + width <= image["width"] + 2 and y + height <= image["height"] + 2


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
