"""COCO-format data: boxes and keypoints from an annotation file, photographs from a folder."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdk.coco import check_annotation, check_photographs, check_size, id_problems, read_coco
from sdk.errors import ConfigError, InputError
from sdk.spec import COCO_KEYPOINT_NAMES

from .pictures import Pictures
from .samples import COCO_KEYPOINTS, NO_KEYPOINTS, KeypointSchema, Sample, as_float32

SPLIT_FOLDERS = {"train": ("train", "train2017"), "val": ("val", "val2017")}
KINDS = {False: "instances", True: "person_keypoints"}  # of annotation files: for boxes, for keypoints

# The tolerance of a keypoint whose annotators' spread nobody measured; COCO's lie between 0.025 and 0.107.
DEFAULT_OKS_SIGMA = 0.05
_SIDES = {"left": "right", "l": "r"}


class CocoData:
    """The photographs of one annotation file.

    Args:
        images: folder of the photographs; folders in the entries' file names do not count.
        annotations: instances_*.json, person_keypoints_*.json, or any file of that form.
        class_names: the classes to keep, in this order; empty keeps all, or those with keypoints where
            `with_keypoints`.
        with_keypoints: read keypoints, of the schema that `keypoint_schema` finds.
        image_ids: the photographs to keep; None keeps all.

    Raises:
        InputError: the file is missing or malformed, an id is there twice or points nowhere, a class is unknown, a
            photograph is missing, or a box lies outside its photograph.
        ConfigError: keypoints are wanted, and no class or classes of several schemas have them.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        *,
        class_names: Sequence[str] = (),
        with_keypoints: bool = False,
        image_ids: Sequence[int] | None = None,
    ) -> None:
        data = read_coco(annotations)
        for problem in id_problems(data):
            raise InputError(f"{annotations}: {problem}; correct it (--check-data lists all problems)")
        self.class_names = tuple(class_names) or _all_classes(data["categories"], with_keypoints)
        names = {category["id"]: category["name"] for category in data["categories"]}
        if missing := [name for name in self.class_names if name not in names.values()]:
            raise InputError(
                f"{annotations} has no class {', '.join(missing)}; it has {', '.join(map(str, names.values()))}"
            )
        kept = [category for category in data["categories"] if category["name"] in self.class_names]
        self.keypoints = keypoint_schema(annotations, kept) if with_keypoints else NO_KEYPOINTS
        self._class_ids = {category["id"]: self.class_names.index(category["name"]) for category in kept}
        self._by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in data["annotations"]:
            if annotation["category_id"] in self._class_ids:
                self._by_image[annotation["image_id"]].append(annotation)
        wanted = None if image_ids is None else set(image_ids)
        self.images = [image for image in data["images"] if wanted is None or image["id"] in wanted]
        self.annotations = annotations
        check_photographs(annotations, images, self.images)
        for image in self.images:
            for annotation in self._by_image[image["id"]]:
                check_annotation(annotations, annotation, image, self.num_keypoints)
        self._folder = images
        self._pictures = self._open_pictures()

    @property
    def num_keypoints(self) -> int:
        return len(self.keypoints)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: Sequence[int]) -> CocoData:
        """The same data with some of its photographs, by number."""
        part = copy.copy(self)
        part.images = [self.images[row] for row in rows]
        part._pictures = part._open_pictures()
        return part

    def cache_images(self, limit_mb: int) -> bool:
        """Decode every photograph once and keep it, if all fit into `limit_mb`; says whether they do."""
        return self._pictures.keep(sum(3 * image["width"] * image["height"] for image in self.images), limit_mb)

    def name(self, index: int) -> str:
        """The file of a picture."""
        return self._pictures.paths[index].name

    def sample(self, index: int) -> Sample:
        """Sample `index`; objects whose box has no width or height are left out.

        Raises:
            InputError: the photograph cannot be decoded, or has another size than the file says.
        """
        image = self._pictures.image(index)
        check_size(self.annotations, self.images[index], image)
        rows = [row for row in self._by_image[self.images[index]["id"]] if min(row["bbox"][2:]) > 0]
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

    def _open_pictures(self) -> Pictures:
        return Pictures([self._folder / Path(image["file_name"]).name for image in self.images])


def find_split(data: Path, split: str, *, keypoints: bool) -> tuple[Path, Path]:
    """The photographs and the annotation file of a split ('train' or 'val') of a COCO folder.

    The file is instances_SPLIT.json, or person_keypoints_SPLIT.json where keypoints are wanted; without it, the only
    other file in annotations/ with the split in its name.

    Raises:
        InputError: the folder has not the layout that is expected.
    """
    folder = next((data / name for name in SPLIT_FOLDERS[split] if (data / name).is_dir()), None)
    if folder is None:
        raise InputError(
            f"{data} has no folder {' or '.join(SPLIT_FOLDERS[split])}; expected a COCO layout with it and annotations/"
        )
    annotations = data / "annotations" / f"{KINDS[keypoints]}_{folder.name}.json"
    if annotations.is_file():
        return folder, annotations
    others = sorted(
        path for path in annotations.parent.glob(f"*{split}*.json") if not path.name.startswith(KINDS[not keypoints])
    )
    if len(others) == 1:
        return folder, others[0]
    if others:
        raise InputError(
            f"{annotations.parent} has several files for {split}: {', '.join(path.name for path in others)}; "
            f"name the one to use {annotations.name}"
        )
    raise InputError(f"{annotations} is missing; the photographs are in {folder}")


def keypoint_schema(path: Path, categories: Sequence[Mapping[str, Any]]) -> KeypointSchema:
    """The one keypoint schema of these categories of an annotation file.

    A category has `keypoints` (names) and may have `skeleton` and `flip_pairs` (pairs of numbers from 1, as COCO's
    skeleton has them) and `sigmas`. Without flip pairs, they are those names that differ in left and right; without
    sigmas, all are DEFAULT_OKS_SIGMA. COCO's own 17 names mean COCO's constants, and so does a class `person` that
    does not name its keypoints.

    Raises:
        ConfigError: no category has keypoints, or two have different ones.
        InputError: pairs or sigmas that do not fit the names.
    """
    having = [category for category in categories if keypoint_names(category)]
    if not having:
        raise ConfigError(
            f"{path}: no class of {', '.join(str(category['name']) for category in categories)} has keypoints; "
            'give its category "keypoints", a list of their names, or set task=detection'
        )
    first = having[0]
    for other in having[1:]:
        if keypoint_names(other) != keypoint_names(first):
            raise ConfigError(
                f"{path}: {first['name']} and {other['name']} have different keypoints, and a model has one schema; "
                f"set classes={first['name']} or classes={other['name']}"
            )
    names = keypoint_names(first)
    if names == COCO_KEYPOINT_NAMES:
        return COCO_KEYPOINTS
    sigmas = first.get("sigmas") or [DEFAULT_OKS_SIGMA] * len(names)
    if len(sigmas) != len(names) or min(sigmas) <= 0:
        raise InputError(
            f"{path}: category {first['name']} has the sigmas {sigmas}; expected {len(names)}, all above 0"
        )
    return KeypointSchema(
        names,
        _pairs(path, first, "flip_pairs", len(names)) if first.get("flip_pairs") else flip_pairs_from_names(names),
        _pairs(path, first, "skeleton", len(names)),
        tuple(map(float, sigmas)),
    )


def keypoint_names(category: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a category; COCO's for a person that does not name them, none for another."""
    names = category.get("keypoints") or (COCO_KEYPOINT_NAMES if category["name"] == "person" else ())
    return tuple(map(str, names))


def flip_pairs_from_names(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Pairs of names that differ only in one being left and the other right.

    The side is a word or one letter (l, r), at any place, parted by _, -, a space, a dot, or a capital letter:

    >>> flip_pairs_from_names(["nose", "left_eye", "right_eye", "L_Paw", "R_Paw", "earLeft", "earRight"])
    ((1, 2), (3, 4), (5, 6))
    """
    words = [tuple(re.split(r"[_\-. ]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())) for name in names]
    pairs = []
    for left, parts in enumerate(words):
        for place, part in enumerate(parts):
            mirrored = (*parts[:place], _SIDES.get(part), *parts[place + 1 :])
            if mirrored in words:
                pairs.append((left, words.index(mirrored)))
    return tuple(pairs)


def _all_classes(categories: Sequence[Mapping[str, Any]], with_keypoints: bool) -> tuple[str, ...]:
    having = [category for category in categories if keypoint_names(category)] if with_keypoints else []
    return tuple(category["name"] for category in having or categories)


def _pairs(path: Path, category: Mapping[str, Any], field: str, count: int) -> tuple[tuple[int, int], ...]:
    pairs = tuple(tuple(pair) for pair in category.get(field) or ())
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(number, int) and 1 <= number <= count for number in pair):
            raise InputError(
                f"{path}: category {category['name']} has {list(pair)} in {field}; "
                f"expected two numbers of keypoints, 1 to {count}"
            )
    return tuple((a - 1, b - 1) for a, b in pairs)
