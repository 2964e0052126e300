"""Which photographs a model is calibrated on: some of a folder or a list, balanced where they are annotated.

::

    chosen = choose_at_random(list_photographs(images), 500)
    chosen = choose_balanced(open_annotated(images, annotations, spec), spec.class_names, 500)
    reader = PhotographReader(chosen.paths)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdk.coco import check_annotation, check_photographs, read_coco
from sdk.errors import InputError
from sdk.metrics import CocoResults
from sdk.sources.images import folder_images
from sdk.spec import ModelSpec

from .errors import CalibrationError
from .onnx_files import file_sha256
from .photographs import MIN_PHOTOGRAPHS, Unreadable

LIST_SUFFIX = ".txt"
# Photographs with nothing to find show the network what a background does to its activations: a few of them.
_EMPTY_EVERY = 20
_MAX_NAMES = 6  # of classes or files, in a message


@dataclass(frozen=True)
class AnnotatedSet:
    """Annotated photographs.

    Attributes:
        annotations: the COCO annotation file.
        truth: its content.
        files: image id -> file, of those that count.
        copies: names of files that are left out, each the same as another.
        calibrated_on: names of those that were left out because the model was calibrated on them.
        unreadable: those that were left out because they cannot be read.
    """

    annotations: Path
    truth: Mapping[str, Any]
    files: Mapping[int, Path]
    copies: tuple[str, ...] = ()
    calibrated_on: tuple[str, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True)
class CalibrationSet:
    """The photographs to calibrate on.

    Attributes:
        paths: of the files, in the order in which they are read.
        rule: how they were chosen, for a person.
        num_wanted: how many were asked for.
        copies: names of files that were left out, each the same as another, byte for byte.
        instances: class -> objects in the photographs, where they are annotated.
    """

    paths: tuple[Path, ...]
    rule: str
    num_wanted: int
    copies: tuple[str, ...] = ()
    instances: Mapping[str, int] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """What a person should know about the choice."""
        sentences = [f"{len(self.paths)} photographs were chosen {self.rule}."]
        if len(self.paths) < self.num_wanted:
            sentences = [f"All {len(self.paths)} photographs are used; {self.num_wanted} were asked for."]
        if self.copies:
            sentences.append(f"{len(self.copies)} are copies of others and count once: {_briefly(self.copies)}.")
        absent = [name for name, count in self.instances.items() if not count]
        if absent:
            sentences.append(f"None of them shows {_briefly(absent)}.")
        return sentences


def list_photographs(images: Path) -> list[Path]:
    """The image files of a folder in natural order, or those that a list names, in its order.

    A list is a text file with one path a line, absolute or relative to the list's folder; empty lines and those that
    start with # say nothing.

    Raises:
        CalibrationError: there is no such folder or list, or fewer than two photographs.
        InputError: the list cannot be read, or names files that are not there.
        SourceOpenError: the folder holds no image.
    """
    if _is_list(images):
        paths = _listed(images)
    elif images.is_dir():
        paths = folder_images(images)
    else:
        raise CalibrationError(
            f"there is no folder {images}; --images takes a folder of photographs, or a {LIST_SUFFIX} file with one "
            "path a line"
        )
    if len(paths) < MIN_PHOTOGRAPHS:
        plural = "" if len(paths) == 1 else "s"
        raise CalibrationError(
            f"{images} has {len(paths)} photograph{plural}; calibration needs at least {MIN_PHOTOGRAPHS}"
        )
    return paths


def open_annotated(images: Path, annotations: Path, spec: ModelSpec) -> AnnotatedSet:
    """All photographs of an annotation file; where `images` is a list, those that it names.

    Raises:
        InputError: the file is none of COCO's, has no object of the model's classes, other keypoints or a box outside
            its photograph; a photograph is missing, or one that the list names is not annotated.
        CalibrationError: as `list_photographs`.
    """
    truth = read_coco(annotations)
    _check_classes(annotations, truth, spec)
    CocoResults.for_spec(truth, spec)  # says so now if the keypoints do not fit
    _check_names_differ(annotations, truth)
    if _is_list(images):
        annotated = _listed_and_annotated(images, annotations, truth)
    else:
        check_photographs(annotations, images, truth["images"])
        files = {row["id"]: images / Path(row["file_name"]).name for row in truth["images"]}
        annotated = AnnotatedSet(annotations, truth, files)
    rows = {row["id"]: row for row in truth["images"]}
    for annotation in truth["annotations"]:
        if annotation["image_id"] in annotated.files:
            check_annotation(annotations, annotation, rows[annotation["image_id"]])
    if not _instances(annotated, spec.class_names).any():
        raise InputError(
            f"none of the {len(annotated.files)} photographs shows one of the model's classes "
            f"({_briefly(spec.class_names)}) by {annotations}; use annotations of what the model finds"
        )
    return annotated


def choose_at_random(photographs: Sequence[Path], count: int, *, seed: int = 0) -> CalibrationSet:
    """`count` different photographs, or all if there are fewer, in the order given; the same seed, the same files.

    Raises:
        CalibrationError: fewer than two are different.
    """
    order = np.random.default_rng(seed).permutation(len(photographs))
    chosen, copies = _first_different(photographs, order.tolist(), count)
    return CalibrationSet(
        tuple(photographs[index] for index in chosen), f"at random, with seed {seed}", count, tuple(copies)
    )


def choose_balanced(
    annotated: AnnotatedSet, class_names: Sequence[str], count: int, *, seed: int = 0
) -> CalibrationSet:
    """`count` different photographs in which all classes are there, or all if there are fewer, in the file's order.

    Again and again, the class that has the fewest objects so far gets another photograph, in an order that the seed
    shuffles: so all of a rare class are taken before a frequent one gets its second hundred. Every twentieth
    photograph shows no object. Crowds do not count.

    Args:
        annotated: the photographs.
        class_names: of the model; others do not count.

    Raises:
        CalibrationError: fewer than two are different.
    """
    paths = list(annotated.files.values())
    instances = _instances(annotated, class_names)
    order = _balanced_order(instances, np.random.default_rng(seed).permutation(len(paths)).tolist())
    chosen, copies = _first_different(paths, order, count)
    totals = instances[chosen].sum(axis=0).tolist()
    return CalibrationSet(
        tuple(paths[index] for index in chosen),
        f"with seed {seed}, balanced over the model's classes: always one of the class with the fewest objects "
        f"so far, and every {_EMPTY_EVERY}th without objects",
        count,
        (*annotated.copies, *copies),
        dict(zip(class_names, totals, strict=True)),
    )


def _is_list(images: Path) -> bool:
    return images.suffix.lower() == LIST_SUFFIX and not images.is_dir()


def _listed(path: Path) -> list[Path]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise InputError(f"cannot read the list {path}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise InputError(f"{path} is no list of photographs: expected UTF-8 text, one path a line") from err
    lines = [line.strip() for line in text.splitlines()]
    paths = [path.parent / line for line in lines if line and not line.startswith("#")]
    missing = [str(listed) for listed in paths if not listed.is_file()]
    if missing:
        raise InputError(
            f"{path} names {len(missing)} of {len(paths)} photographs that are not there: {_briefly(missing)}; "
            f"its paths are relative to {path.parent}"
        )
    return paths


def _listed_and_annotated(images: Path, annotations: Path, truth: Mapping[str, Any]) -> AnnotatedSet:
    ids = {Path(row["file_name"]).name: row["id"] for row in truth["images"]}
    paths = list_photographs(images)
    unknown = [path.name for path in paths if path.name not in ids]
    if unknown:
        raise InputError(
            f"{images} names {len(unknown)} photographs that {annotations} does not annotate: {_briefly(unknown)}; "
            "remove them from the list, or leave --annotations out"
        )
    files: dict[int, Path] = {}
    copies: list[str] = []
    for path in paths:
        first = files.setdefault(ids[path.name], path)
        if first is not path and _content(first) != _content(path):
            raise InputError(
                f"{images} names {first} and {path}, which differ, and {annotations} has one {path.name}; "
                "give each photograph a name of its own"
            )
        copies += [] if first is path else [path.name]
    return AnnotatedSet(annotations, truth, files, tuple(copies))


def _check_names_differ(annotations: Path, truth: Mapping[str, Any]) -> None:
    names = Counter(Path(row["file_name"]).name for row in truth["images"])
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise InputError(
            f"{annotations} has several photographs of one name: {_briefly(repeated)}; photographs are found by their "
            "names, which must differ"
        )


def _check_classes(annotations: Path, truth: Mapping[str, Any], spec: ModelSpec) -> None:
    names = [category["name"] for category in truth["categories"]]
    if not set(names) & set(spec.class_names):
        raise InputError(
            f"none of the model's classes ({_briefly(spec.class_names)}) is annotated; {annotations} has "
            f"{_briefly(names)}. Use annotations of what the model finds"
        )


def _instances(annotated: AnnotatedSet, class_names: Sequence[str]) -> npt.NDArray[np.int64]:
    """(photographs, classes): how many objects of each class each photograph shows."""
    rows = {image_id: row for row, image_id in enumerate(annotated.files)}
    names = {category["id"]: category["name"] for category in annotated.truth["categories"]}
    columns = {key: class_names.index(name) for key, name in names.items() if name in class_names}
    instances = np.zeros((len(rows), len(class_names)), np.int64)
    for annotation in annotated.truth["annotations"]:
        row, column = rows.get(annotation["image_id"]), columns.get(annotation["category_id"])
        if row is not None and column is not None and not annotation.get("iscrowd"):
            instances[row, column] += 1
    return instances


def _balanced_order(instances: npt.NDArray[np.int64], shuffled: Sequence[int]) -> Iterator[int]:
    """All photographs, each once, so that however many are taken from the front, they are balanced."""
    by_class = [iter([index for index in shuffled if counts[index]]) for counts in instances.T]
    empty = iter([index for index in shuffled if not instances[index].any()])
    totals = np.zeros(instances.shape[1])
    taken: set[int] = set()
    for position in range(1, len(shuffled) + 1):
        index = next(empty, None) if position % _EMPTY_EVERY == 0 else None
        while index is None and np.isfinite(totals).any():
            rarest = int(np.argmin(totals))
            index = next((other for other in by_class[rarest] if other not in taken), None)
            if index is None:
                totals[rarest] = np.inf  # all of this class are taken
        index = next(empty) if index is None else index
        taken.add(index)
        totals += instances[index]
        yield index


def _first_different(paths: Sequence[Path], order: Iterable[int], count: int) -> tuple[list[int], list[str]]:
    """The first `count` of an order that differ in content, sorted; and the names of the copies before those."""
    chosen: list[int] = []
    copies: list[str] = []
    contents: set[str] = set()
    for index in order:
        content = _content(paths[index])
        if content in contents:
            copies.append(paths[index].name)
            continue
        contents.add(content)
        chosen.append(index)
        if len(chosen) == count:
            break
    if len(chosen) < MIN_PHOTOGRAPHS:
        raise CalibrationError(
            f"{len(chosen)} of {len(paths)} photographs differs from the others in content; calibration needs at "
            f"least {MIN_PHOTOGRAPHS} different ones"
        )
    return sorted(chosen), copies


def _content(path: Path) -> str:
    """What a file is compared by; one that cannot be opened is itself, and said to be unreadable when it is read."""
    try:
        return file_sha256(path)
    except OSError:
        return str(path)


def _briefly(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
