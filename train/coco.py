"""COCO-format data: boxes and keypoints from an annotation file, photographs from a folder."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sdk.errors import InputError

from .samples import Sample, as_float32

_log = logging.getLogger(__name__)

_NEEDED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id", "name"),
}
SPLIT_FOLDERS = {"train": ("train", "train2017"), "val": ("val", "val2017")}


class CocoData:
    """The photographs of one annotation file.

    Args:
        images: folder of the photographs.
        annotations: instances_*.json or person_keypoints_*.json.
        class_names: the classes to keep, in this order; empty keeps all.
        num_keypoints: 0 to ignore keypoints.
        image_ids: the photographs to keep; None keeps all.

    Raises:
        InputError: the file is missing or malformed, a class is unknown, a photograph is missing, or a box
            lies outside its photograph.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        *,
        class_names: Sequence[str] = (),
        num_keypoints: int = 0,
        image_ids: Sequence[int] | None = None,
    ) -> None:
        data = read_annotations(annotations)
        for kind, needed in _NEEDED.items():
            _check_fields(annotations, kind, data[kind], needed)
        names = {category["id"]: category["name"] for category in data["categories"]}
        self.class_names = tuple(class_names) or tuple(names.values())
        if missing := [name for name in self.class_names if name not in names.values()]:
            raise InputError(
                f"{annotations} has no class {', '.join(missing)}; it has {', '.join(map(str, names.values()))}"
            )
        self._class_ids = {
            category: self.class_names.index(name) for category, name in names.items() if name in self.class_names
        }
        self.num_keypoints = num_keypoints
        self._by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in data["annotations"]:
            if annotation["category_id"] in self._class_ids:
                self._by_image[annotation["image_id"]].append(annotation)
        wanted = None if image_ids is None else set(image_ids)
        self.images = [image for image in data["images"] if wanted is None or image["id"] in wanted]
        self._folder = images
        self._cache: dict[int, np.ndarray] = {}
        self._keep_decoded = False
        _check_photographs(annotations, images, self.images)
        for image in self.images:
            for annotation in self._by_image[image["id"]]:
                _check_annotation(annotations, annotation, image, num_keypoints)

    def __len__(self) -> int:
        return len(self.images)

    def cache_images(self, limit_mb: int) -> bool:
        """Decode every photograph once and keep it, if all fit into `limit_mb`; says whether they do."""
        total = sum(image["width"] * image["height"] * 3 for image in self.images)
        self._keep_decoded = total <= limit_mb * 1_000_000
        if self._keep_decoded:
            for index in range(len(self)):
                self._image(index)
        return self._keep_decoded

    def sample(self, index: int) -> Sample:
        """Sample `index`.

        Raises:
            InputError: the photograph cannot be decoded.
        """
        image = self._image(index)
        rows = self._by_image[self.images[index]["id"]]
        objects = [row for row in rows if not row.get("iscrowd", 0)]
        crowds = [row for row in rows if row.get("iscrowd", 0)]
        boxes = as_float32([row["bbox"] for row in objects], -1, 4)
        boxes[:, 2:] += boxes[:, :2]
        ignore = as_float32([row["bbox"] for row in crowds], -1, 4)
        ignore[:, 2:] += ignore[:, :2]
        keypoints = np.zeros((len(objects), self.num_keypoints, 3), np.float32)
        for keypoint_rows, row in zip(keypoints, objects, strict=True):
            if self.num_keypoints and row.get("keypoints"):
                keypoint_rows[:] = np.reshape(row["keypoints"], (-1, 3))
        class_ids = np.array([self._class_ids[row["category_id"]] for row in objects], np.int64)
        return Sample(image, boxes, class_ids, keypoints, ignore)

    def _image(self, index: int) -> np.ndarray:
        if index in self._cache:
            return self._cache[index]
        path = self._folder / self.images[index]["file_name"]
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f"{path} is not a picture that can be decoded; remove it from the annotations")
        if self._keep_decoded:
            self._cache[index] = image
        return np.asarray(image)


def find_split(data: Path, split: str, *, keypoints: bool) -> tuple[Path, Path]:
    """The photographs and the annotation file of a split ('train' or 'val') of a COCO folder.

    Raises:
        InputError: the folder has not the layout that is expected.
    """
    folder = next((data / name for name in SPLIT_FOLDERS[split] if (data / name).is_dir()), None)
    if folder is None:
        raise InputError(
            f"{data} has no folder {' or '.join(SPLIT_FOLDERS[split])}; expected a COCO layout with it and annotations/"
        )
    kind = "person_keypoints" if keypoints else "instances"
    annotations = data / "annotations" / f"{kind}_{folder.name}.json"
    if not annotations.is_file():
        raise InputError(f"{annotations} is missing; the photographs are in {folder}")
    return folder, annotations


def read_annotations(path: Path) -> dict[str, Any]:
    """A COCO annotation file.

    Raises:
        InputError: missing, not JSON, or without images, annotations or categories.
    """
    try:
        data = json.loads(path.read_text())
    except OSError as err:
        raise InputError(f"cannot read the annotations {path}: {err.strerror}") from err
    except ValueError as err:
        raise InputError(f"{path} is not valid JSON ({err})") from err
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(data, dict) or key not in data]
    if missing:
        raise InputError(f"{path} is no COCO annotation file: it has no {', '.join(missing)}")
    return data  # type: ignore[no-any-return]


def _check_fields(path: Path, kind: str, rows: Sequence[Mapping[str, Any]], needed: Sequence[str]) -> None:
    for row in rows:
        if missing := [name for name in needed if name not in row]:
            raise InputError(f"an entry of {kind} in {path} has no {', '.join(missing)}: {dict(row)!s:.120}")


def _check_photographs(path: Path, folder: Path, images: list[dict[str, Any]]) -> None:
    if not images:
        raise InputError(f"{path} lists no images to use")
    present = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    absent = [image["file_name"] for image in images if Path(image["file_name"]).name not in present]
    if absent:
        raise InputError(
            f"{path} names {len(absent)} photographs that are not in {folder}, the first is {absent[0]}; "
            "restore them or remove them from the annotations"
        )


def _check_annotation(path: Path, row: dict[str, Any], image: dict[str, Any], num_keypoints: int) -> None:
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
