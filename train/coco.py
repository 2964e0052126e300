"""COCO-format data: boxes and keypoints from an annotation file, photographs from a folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sdk.coco import check_annotation, check_photographs, check_size, read_coco
from sdk.errors import InputError

from .samples import Sample, as_float32

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
        data = read_coco(annotations)
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
        self._folder, self._annotations = images, annotations
        self._cache: dict[int, np.ndarray] = {}
        self._keep_decoded = False
        check_photographs(annotations, images, self.images)
        for image in self.images:
            for annotation in self._by_image[image["id"]]:
                check_annotation(annotations, annotation, image, num_keypoints)

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

    def ground_truth(self) -> dict[str, Any]:
        """The annotations of these photographs as a COCO file's content; image ids are the samples' numbers from 1.

        Unlike samples, it keeps each object's own area, by which keypoint similarity is measured.
        """
        images = [{**image, "id": number} for number, image in enumerate(self.images, 1)]
        annotations = [
            {**row, "image_id": number, "category_id": self._class_ids[row["category_id"]] + 1}
            for number, image in enumerate(self.images, 1)
            for row in self._by_image[image["id"]]
        ]
        categories = [{"id": i, "name": name} for i, name in enumerate(self.class_names, 1)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _image(self, index: int) -> np.ndarray:
        if index in self._cache:
            return self._cache[index]
        path = self._folder / self.images[index]["file_name"]
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f"{path} is not a picture that can be decoded; remove it from the annotations")
        check_size(self._annotations, self.images[index], image)
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
