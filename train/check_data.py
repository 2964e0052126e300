"""`centeredge train --check-data`: every problem of a data set, or what is in it.

::

    report = check_data("coco", None)
    report.problems, report.summary
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from sdk.coco import annotation_problems, entry_problems, field_problems, id_problems, read_json
from sdk.errors import InputError
from sdk.kitti import LABEL_COLUMNS, read_kitti_calib

from . import kitti_data, voc
from .coco import KINDS, SPLIT_FOLDERS, find_split, keypoint_names, keypoint_schema
from .config import TrainConfig
from .data import SYNTHETIC, data_format
from .pictures import decode_whole

# The paper (appendix, "Center point collision") counts at stride 4; 512x512 is the input that it trains with.
COLLISION_STRIDE, COLLISION_WH = 4, (512, 512)
HIGH_IOU = 0.7  # two boxes that an anchor-based detector would assign to the same anchors (paper, the same place)

_COCO_LISTS = ("images", "annotations", "categories")
_KITTI_TYPES = (*kitti_data.CLASS_NAMES, *sum(kitti_data.ALIKE.values(), ()), "Tram", "Misc", kitti_data.DONT_CARE)

Size = tuple[int, int]
Boxes = npt.NDArray[np.floating[Any]]


@dataclass
class Overlaps:
    """Pairs of objects that a detector cannot tell apart, counted over pictures.

    Attributes:
        objects: how many there are.
        same_class: pairs of one class that share a centre cell; one heatmap cannot hold both.
        any_class: pairs of any classes that do; they share size and offset.
        high_iou: pairs of one class whose boxes overlap by more than HIGH_IOU.
    """

    objects: int = 0
    same_class: int = 0
    any_class: int = 0
    high_iou: int = 0

    def add(self, boxes_xyxy: Boxes, class_ids: Sequence[int], wh: Size) -> None:
        """Count one picture of size `wh`, with (N, 4) boxes in its pixels, fitted into COLLISION_WH as a whole."""
        boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
        cells_per_px = min(COLLISION_WH[0] / wh[0], COLLISION_WH[1] / wh[1]) / COLLISION_STRIDE
        padding = (np.array(COLLISION_WH) / COLLISION_STRIDE - np.array(wh) * cells_per_px) / 2
        cells = np.floor((boxes[:, :2] + boxes[:, 2:]) / 2 * cells_per_px + padding).astype(int).tolist()
        self.objects += len(boxes)
        self.any_class += _pairs(map(tuple, cells))
        self.same_class += _pairs((*cell, class_id) for cell, class_id in zip(cells, class_ids, strict=True))
        classes = np.asarray(class_ids)
        for class_id in set(class_ids):
            iou = _iou(boxes[classes == class_id])
            self.high_iou += int((np.triu(iou, k=1) > HIGH_IOU).sum())

    def __str__(self) -> str:
        share = 100 * self.same_class / max(1, self.objects)
        width, height = COLLISION_WH
        return (
            f"{self.same_class} pairs of objects of one class share a centre cell at {width}x{height}, stride "
            f"{COLLISION_STRIDE} ({share:.2f} % of {self.objects} objects), {self.any_class} pairs of any class; "
            f"{self.high_iou} pairs of one class have an IoU above {HIGH_IOU}"
        )


@dataclass
class Report:
    """What was found: one line a problem, with its file and annotation id or line; and lines that say what is there."""

    problems: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)


def check_data(data: str, config: TrainConfig | None) -> Report:
    """Read a whole data set, pictures included.

    Args:
        data: as for training.
        config: narrows a COCO folder to the annotation files of its task; None checks them all.

    Raises:
        InputError: the folder is missing, or has not the layout of its kind.
    """
    if data == SYNTHETIC:
        return Report(summary=["drawn scenes: nothing to check, their annotations are exact"])
    root = Path(data)
    kind = data_format(root)
    if kind == "kitti":
        return check_kitti(root)
    if kind == "voc":
        return check_voc(root)
    return check_coco(root, None if config is None else "pose" in config.task.split("+"))


def print_report(data: str, config: TrainConfig | None) -> int:
    """Check and print: the problems, or the summary, on stdout; their number on stderr. The exit code: 1 or 0."""
    report = check_data(data, config)
    if not report.problems:
        print("\n".join([*report.summary, f"{data}: no problems"]))
        return 0
    print("\n".join(" ".join(problem.split()) for problem in report.problems))
    print("\n".join([*report.summary, f"{data}: {len(report.problems)} problems"]), file=sys.stderr)
    return 1


def check_coco(root: Path, keypoints: bool | None) -> Report:
    """Both splits of a COCO folder; of `keypoints` or boxes alone, or all annotation files (None)."""
    report, pictures = Report(), _PictureCheck()
    for images, path in _coco_files(root, keypoints):
        try:
            data = read_json(path)
        except InputError as err:
            report.problems.append(str(err))
            continue
        problems = list(field_problems(data))
        if isinstance(data, dict) and all(isinstance(data.get(kind), list) for kind in _COCO_LISTS):
            usable = {kind: [row for row in data[kind] if not any(entry_problems(kind, row))] for kind in _COCO_LISTS}
            problems += _coco_problems(data, usable, images, path, pictures)
            report.summary.append(f"{path}: {_coco_summary(usable)}")
        report.problems += [f"{path}: {problem}" for problem in problems]
    return report


def check_kitti(root: Path) -> Report:
    """All labelled frames of a KITTI folder, and the splits that name them."""
    report, training = Report(), root / "training"
    labelled = {path.stem for path in (training / "label_2").glob("*.txt")}
    splits = sorted(path for path in (root / "ImageSets").glob("*.txt") if path.stem != "test")
    if not any(path.stem == "train" for path in splits):
        report.problems.append(f"{root / 'ImageSets' / 'train.txt'}: is missing; it lists the frames to train on")
    frames = set(labelled)
    for path in splits:
        names = path.read_text().split()
        report.problems += [f"{path}: frame {name} is there {n} times" for name, n in Counter(names).items() if n > 1]
        report.summary.append(f"{path}: {len(set(names))} frames")
        frames.update(names)
    pictures, overlaps, kinds = _PictureCheck(), Overlaps(), Counter[str]()
    paths = {name: _kitti_picture(training, name) for name in frames}
    pictures.decode(paths.values())
    for name in sorted(frames):
        label, calib = training / "label_2" / f"{name}.txt", training / "calib" / f"{name}.txt"
        report.problems += pictures.problems(paths[name])
        try:
            read_kitti_calib(calib)
        except InputError as err:
            report.problems.append(str(err))
        if name not in labelled:
            report.problems.append(f"{label}: is missing")
            continue
        report.problems += _kitti_label_problems(label, pictures.wh(paths[name]), overlaps, kinds)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    report.summary.append(f"{root}: {len(labelled)} labelled frames with {counts or 'no objects'}; {overlaps}")
    return report


def check_voc(root: Path) -> Report:
    """All pictures that the splits of the years of a VOC folder name."""
    report, pictures = Report(), _PictureCheck()
    for year in voc.find_years(root):
        names: set[str] = set()
        for split in ("train", "val", "trainval", "test"):
            path = year / "ImageSets" / "Main" / f"{split}.txt"
            if path.is_file():
                names.update(line.split()[0] for line in path.read_text().splitlines() if line.strip())
        if not names:
            report.problems.append(f"{year / 'ImageSets' / 'Main'}: no trainval.txt or train.txt that names pictures")
        paths = {name: _voc_picture(year, name) for name in names}
        pictures.decode(paths.values())
        overlaps, kinds = Overlaps(), Counter[str]()
        for name in sorted(names):
            report.problems += pictures.problems(paths[name])
            annotation = year / "Annotations" / f"{name}.xml"
            report.problems += _voc_problems(annotation, pictures.wh(paths[name]), overlaps, kinds)
        report.summary.append(
            f"{year}: {len(names)} pictures, {kinds.total()} objects of {len(kinds)} classes; {overlaps}"
        )
    return report


class _PictureCheck:
    """Decodes each picture once, in threads, and remembers its size or what is wrong with it."""

    def __init__(self) -> None:
        self._found: dict[Path, tuple[Size | None, str]] = {}

    def decode(self, paths: Iterable[Path]) -> None:
        todo = sorted(set(paths) - set(self._found))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(self._decoded, todo)
            # Nothing is drawn where stderr is no terminal.
            for path, result in zip(todo, tqdm(results, "pictures", len(todo), disable=None), strict=True):
                self._found[path] = result

    def wh(self, path: Path) -> Size | None:
        return self._found[path][0]

    def problems(self, path: Path) -> list[str]:
        problem = self._found[path][1]
        return [f"{path}: {problem}"] if problem else []

    @staticmethod
    def _decoded(path: Path) -> tuple[Size | None, str]:
        image, problem = decode_whole(path)
        return (None if image is None else (image.shape[1], image.shape[0])), problem


def _coco_files(root: Path, keypoints: bool | None) -> Iterator[tuple[Path, Path]]:
    """Photographs and annotation file of each split and kind that is there; `train` must be."""
    for split, folders in SPLIT_FOLDERS.items():
        if split != "train" and not any((root / name).is_dir() for name in folders):
            continue
        if keypoints is not None:
            yield find_split(root, split, keypoints=keypoints)
            continue
        found = []
        for kind in KINDS:
            try:
                found.append(find_split(root, split, keypoints=kind))
            except InputError as err:
                missing = err
        if not found:
            raise missing
        yield from sorted(set(found))


def _coco_problems(
    data: Mapping[str, Any], usable: Mapping[str, Any], images: Path, path: Path, pictures: _PictureCheck
) -> Iterator[str]:
    """Problems beyond those of single fields; `usable` are the entries of `data` that have none of those."""
    # An annotation of an image that only lacks its size is no annotation of an unknown image.
    named = [row for row in data["images"] if isinstance(row, dict) and isinstance(row.get("id"), (int, str))]
    yield from id_problems({**usable, "images": named})
    if not data["images"]:
        yield "lists no images"
    paths = {image["id"]: images / Path(image["file_name"]).name for image in usable["images"]}
    pictures.decode(paths.values())
    for image in usable["images"]:
        yield from _coco_image_problems(image, pictures.wh(paths[image["id"]]), pictures.problems(paths[image["id"]]))
    counts = yield from _coco_category_problems(usable["categories"], path)
    by_id = {image["id"]: image for image in usable["images"]}
    for row in usable["annotations"]:
        if row["image_id"] in by_id:
            problems = _coco_row_problems(row, by_id[row["image_id"]], counts.get(row["category_id"], 0))
            yield from (f"annotation {row['id']}: {problem}" for problem in problems)


def _coco_category_problems(
    categories: Sequence[Mapping[str, Any]], path: Path
) -> Generator[str, None, dict[int | str, int]]:
    """Returns how many keypoints each category has."""
    for_poses = path.name.startswith(KINDS[True])
    having = [row for row in categories if row.get("keypoints") or (for_poses and keypoint_names(row))]
    if for_poses and not having:
        yield 'no category has "keypoints", a list of their names'
    for row in having:
        try:
            keypoint_schema(path, [row])
        except InputError as err:
            yield f"category {row['id']}: {err}"
    return {row["id"]: len(keypoint_names(row)) for row in having}


def _coco_image_problems(image: Mapping[str, Any], wh: Size | None, problems: Sequence[str]) -> Iterator[str]:
    yield from (f"image {image['id']}: {problem}" for problem in problems)
    said = (image["width"], image["height"])
    if min(said) <= 0:
        yield f"image {image['id']}: {said[0]}x{said[1]} pixels is no size"
    elif wh is not None and wh != said:
        yield f"image {image['id']}: {image['file_name']} is {wh[0]}x{wh[1]} pixels, not {said[0]}x{said[1]}"


def _coco_row_problems(row: Mapping[str, Any], image: Mapping[str, Any], num_keypoints: int) -> Iterator[str]:
    unusable = list(annotation_problems(row, image, num_keypoints))
    yield from unusable
    box = row.get("bbox")
    if not unusable and isinstance(box, list) and min(box[2:]) == 0:
        yield f"box {box} (x, y, w, h) has no width or height; it is left out of training"
    if row.get("iscrowd", 0) not in (0, 1):
        yield f"iscrowd is {row['iscrowd']!r}, expected 0 or 1"
    values = row.get("keypoints")
    if unusable or not num_keypoints or not values:
        return
    visibilities = values[2::3]
    if strange := [value for value in visibilities if value not in (0, 1, 2)]:
        yield f"keypoint visibility {strange[0]}, expected 0 (not labelled), 1 (hidden) or 2 (seen)"
    labelled = sum(1 for value in visibilities if value > 0)
    if "num_keypoints" in row and row["num_keypoints"] != labelled:
        yield f"num_keypoints is {row['num_keypoints']}, but {labelled} keypoints are labelled"


def _coco_summary(data: Mapping[str, Any]) -> str:
    overlaps, by_image = Overlaps(), defaultdict(list)
    for row in data["annotations"]:
        box = row.get("bbox")
        if isinstance(box, list) and len(box) == 4 and all(isinstance(value, (int, float)) for value in box):
            by_image[row["image_id"]].append(row)  # crowds are counted too, as in the paper
    for image in data["images"]:
        rows = by_image[image["id"]]
        if rows and min(image["width"], image["height"]) > 0:
            xywh = np.array([row["bbox"] for row in rows], np.float64)
            boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
            overlaps.add(boxes, [row["category_id"] for row in rows], (image["width"], image["height"]))
    return (
        f"{len(data['images'])} photographs, {len(data['annotations'])} objects of "
        f"{len({row['category_id'] for row in data['annotations']})} classes; {overlaps}"
    )


def _kitti_picture(training: Path, name: str) -> Path:
    paths = [training / "image_2" / (name + suffix) for suffix in (".png", ".jpg")]
    return next((path for path in paths if path.is_file()), paths[0])


def _kitti_label_problems(path: Path, wh: Size | None, overlaps: Overlaps, kinds: Counter[str]) -> list[str]:
    problems, boxes, class_ids = [], [], []
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as err:
        return [f"{path}: cannot be read ({err})"]
    for number, line in enumerate(lines, 1):
        if fields := line.split():
            found = list(_kitti_row_problems(fields, wh))
            problems += [f"{path}:{number}: {problem}" for problem in found]
            kinds[fields[0]] += 1
            if not found and fields[0] in kitti_data.CLASS_NAMES:
                boxes.append([float(value) for value in fields[4:8]])
                class_ids.append(kitti_data.CLASS_NAMES.index(fields[0]))
    if wh is not None:
        overlaps.add(np.array(boxes, np.float64), class_ids, wh)
    return problems


def _kitti_row_problems(fields: Sequence[str], wh: Size | None) -> Iterator[str]:
    columns = LABEL_COLUMNS.split()
    if len(fields) != len(columns):
        yield f"{len(fields)} fields, expected {len(columns)}: {LABEL_COLUMNS}"
        return
    values = {}
    for name, text in zip(columns[1:], fields[1:], strict=True):
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = math.nan
        if not math.isfinite(values[name]):
            yield f"{name} is {text!r}, which is no number"
            return
    left, top, right, bottom = box = [values[name] for name in ("x1", "y1", "x2", "y2")]
    if right <= left or bottom <= top:
        yield f"box {box} (x1, y1, x2, y2) has no or negative size"
    elif wh is not None and (left < -2 or top < -2 or right > wh[0] + 2 or bottom > wh[1] + 2):
        yield f"box {box} (x1, y1, x2, y2) does not lie in {wh[0]}x{wh[1]} pixels"
    if fields[0] not in _KITTI_TYPES:
        yield f"type {fields[0]!r} is none of {', '.join(_KITTI_TYPES)}"
    if fields[0] == kitti_data.DONT_CARE:
        return
    if min(values[name] for name in "hwl") <= 0:
        yield f"size {[values[name] for name in 'hwl']} (h, w, l in metres) must be above 0"
    if values["occluded"] not in (0, 1, 2, 3) or not 0 <= values["truncated"] <= 1:
        yield (
            f"truncated {values['truncated']:g} and occluded {values['occluded']:g}; "
            "expected 0 to 1, and one of 0, 1, 2, 3"
        )
    if values["z"] <= 0 and min(values[name] for name in "hwl") > 0 and values["truncated"] == 0:
        yield f"z is {values['z']:g} m, behind the camera, and the object is not cut by the picture"


def _voc_picture(year: Path, name: str) -> Path:
    try:
        return voc.picture_path(year, name)
    except InputError:
        return year / "JPEGImages" / f"{name}.jpg"


def _voc_problems(path: Path, wh: Size | None, overlaps: Overlaps, kinds: Counter[str]) -> list[str]:
    try:
        tree = voc.voc_tree(path)
    except InputError as err:
        return [str(err)]
    if problems := voc.voc_problems(tree):
        return [f"{path}: {problem}" for problem in problems]
    objects = voc.read_voc(path)
    kinds.update(objects.names)
    overlaps.add(objects.xyxy, [sorted(kinds).index(name) for name in objects.names], objects.wh)
    if wh is not None and wh != objects.wh:
        problems.append(f"{path}: says {objects.wh[0]}x{objects.wh[1]} pixels, the picture has {wh[0]}x{wh[1]}")
    unknown = sorted(set(objects.names) - set(voc.CLASS_NAMES))
    return problems + [f"{path}: class {name!r} is none of VOC's 20" for name in unknown]


def _pairs(keys: Iterable[Any]) -> int:
    return sum(count * (count - 1) // 2 for count in Counter(keys).values())


def _iou(boxes_xyxy: Boxes) -> Boxes:
    """(N, N) intersection over union of (N, 4) boxes."""
    low = np.maximum(boxes_xyxy[:, None, :2], boxes_xyxy[None, :, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], boxes_xyxy[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=-1)
    areas = np.clip(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0, None).prod(axis=-1)
    return np.asarray(overlap / np.maximum(areas[:, None] + areas - overlap, 1e-9))
