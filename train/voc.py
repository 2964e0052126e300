"""PASCAL VOC data: boxes from XML files, for detection (the paper's supplement)."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sdk.errors import InputError

from .pictures import Pictures
from .samples import NO_KEYPOINTS, Sample

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
TRAIN_SPLITS = ("trainval", "train")  # the first that is there


@dataclass(frozen=True)
class VocObjects:
    """One annotation file.

    Attributes:
        wh: of the picture, pixels.
        names: N class names.
        xyxy: (N, 4) float32 continuous pixels; the files' are whole pixels from 1, both corners inside the box.
        difficult: (N,) bool; neither right nor wrong.
    """

    wh: tuple[int, int]
    names: tuple[str, ...]
    xyxy: npt.NDArray[np.float32]
    difficult: npt.NDArray[np.bool_]


class VocData:
    """The pictures of one split of one or several years.

    Args:
        root: VOC2007 or alike, with JPEGImages, Annotations and ImageSets/Main; or a folder of such (VOCdevkit).
        splits: the first of these that a year has is taken.
        class_names: the classes to keep, in this order; empty is VOC's 20.

    Raises:
        InputError: no year is there, or a split, an annotation or a picture is missing or malformed, or an object is
            of a class that is none of VOC's.
    """

    keypoints = NO_KEYPOINTS
    num_keypoints = 0

    def __init__(self, root: Path, *, splits: Sequence[str] = TRAIN_SPLITS, class_names: Sequence[str] = ()) -> None:
        self.class_names = tuple(class_names) or CLASS_NAMES
        self.names: tuple[str, ...] = ()
        self._objects: list[VocObjects] = []
        paths: list[Path] = []
        for year in find_years(root):
            for name in split_names(year, splits):
                annotation = year / "Annotations" / f"{name}.xml"
                objects = read_voc(annotation)
                if not class_names and (unknown := sorted(set(objects.names) - set(CLASS_NAMES))):
                    raise InputError(f"{annotation} has objects {', '.join(unknown)}, no class of VOC; set classes=...")
                self._objects.append(objects)
                paths.append(picture_path(year, name))
                self.names += (f"{year.name}/{name}",)
        self._pictures = Pictures(paths)

    def __len__(self) -> int:
        return len(self._objects)

    def subset(self, rows: Sequence[int]) -> VocData:
        """The same data with some of its pictures, by number."""
        part = copy.copy(self)
        part.names = tuple(self.names[row] for row in rows)
        part._objects = [self._objects[row] for row in rows]
        part._pictures = Pictures([self._pictures.paths[row] for row in rows])
        return part

    def cache_images(self, limit_mb: int) -> bool:
        """Decode every picture once and keep it, if all fit into `limit_mb`; says whether they do."""
        return self._pictures.keep(sum(3 * objects.wh[0] * objects.wh[1] for objects in self._objects), limit_mb)

    def name(self, index: int) -> str:
        """The file of a picture."""
        return self._pictures.paths[index].name

    def sample(self, index: int) -> Sample:
        """Sample `index`; difficult objects are regions to ignore.

        Raises:
            InputError: the picture cannot be decoded, or has another size than its annotation says.
        """
        image, objects = self._pictures.image(index), self._objects[index]
        if objects.wh != image.shape[1::-1]:
            width, height = image.shape[1::-1]
            raise InputError(
                f"{self._pictures.paths[index]} is {width}x{height} pixels, its annotation says "
                f"{objects.wh[0]}x{objects.wh[1]}; its boxes were made on another version of the picture"
            )
        wanted = np.array([name in self.class_names for name in objects.names], np.bool_)
        rows = np.flatnonzero(wanted & ~objects.difficult)
        return Sample(
            image,
            objects.xyxy[rows],
            np.array([self.class_names.index(objects.names[row]) for row in rows], np.int64),
            np.zeros((len(rows), 0, 3), np.float32),
            objects.xyxy[wanted & objects.difficult],
        )


def find_years(root: Path) -> list[Path]:
    """The folders with JPEGImages: `root` itself, those in it, or those in its VOCdevkit.

    Raises:
        InputError: there are none.
    """
    for folders in ([root], sorted(root.glob("*")), sorted(root.glob("VOCdevkit/*"))):
        if years := [folder for folder in folders if (folder / "JPEGImages").is_dir()]:
            return years
    raise InputError(f"{root} is no PASCAL VOC folder: neither it nor a folder in it has JPEGImages")


def split_names(year: Path, splits: Sequence[str]) -> list[str]:
    """The picture names of the first of these splits that the year has.

    Raises:
        InputError: it has none of them, or an empty one.
    """
    for split in splits:
        path = year / "ImageSets" / "Main" / f"{split}.txt"
        if path.is_file():
            if names := [line.split()[0] for line in path.read_text().splitlines() if line.strip()]:
                return names
            raise InputError(f"the split {path} names no pictures")
    raise InputError(f"{year} has no ImageSets/Main/{' or '.join(f'{split}.txt' for split in splits)}")


def picture_path(year: Path, name: str) -> Path:
    """A picture of a year.

    Raises:
        InputError: it is missing.
    """
    for suffix in (".jpg", ".png"):
        path = year / "JPEGImages" / (name + suffix)
        if path.is_file():
            return path
    raise InputError(f"picture {name} is missing: there is no {name}.jpg or .png in {year / 'JPEGImages'}")


def read_voc(path: Path) -> VocObjects:
    """The objects of an annotation file.

    Raises:
        InputError: it cannot be read, is not XML, lacks a field, or has a box of no or negative size, or outside the
            picture.
    """
    tree = voc_tree(path)
    problems = voc_problems(tree)
    if problems:
        raise InputError(f"{path}: {problems[0]}")
    objects = tree.findall("object")
    xyxy = np.array([_box(item) for item in objects], np.float32).reshape(-1, 4)
    return VocObjects(
        (int(tree.findtext("size/width") or 0), int(tree.findtext("size/height") or 0)),
        tuple((item.findtext("name") or "").strip() for item in objects),
        xyxy - np.array([1, 1, 0, 0], np.float32),
        np.array([(item.findtext("difficult") or "0").strip() == "1" for item in objects], np.bool_),
    )


def voc_tree(path: Path) -> ElementTree.Element:
    """Raises InputError where the file cannot be read or is not XML."""
    try:
        return ElementTree.parse(path).getroot()
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror}") from err
    except ElementTree.ParseError as err:
        raise InputError(f"{path} is not valid XML ({err})") from err


def voc_problems(tree: ElementTree.Element) -> list[str]:
    """Everything that makes an annotation file unusable."""
    try:
        width, height = (int(tree.findtext(f"size/{side}") or "") for side in ("width", "height"))
    except ValueError:
        return ["no size with a whole width and height"]
    problems = []
    for number, item in enumerate(tree.findall("object"), 1):
        where = f"object {number}"
        if not (item.findtext("name") or "").strip():
            problems.append(f"{where} has no name")
        try:
            left, top, right, bottom = box = _box(item)
        except ValueError:
            problems.append(f"{where} has no bndbox of four numbers xmin, ymin, xmax, ymax")
            continue
        if not (left <= right and top <= bottom):
            problems.append(f"{where}: box {box} (xmin, ymin, xmax, ymax) has a negative size")
        elif not (left >= -1 and top >= -1 and right <= width + 2 and bottom <= height + 2):  # two pixels of slack
            problems.append(f"{where}: box {box} (xmin, ymin, xmax, ymax) does not lie in {width}x{height} pixels")
    return problems


def _box(item: ElementTree.Element) -> list[float]:
    return [float(item.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
