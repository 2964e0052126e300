"""Which photographs are calibrated on: of a folder, a list or an annotation file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.errors import CalibrationError
from calibration.sets import (
    AnnotatedSet,
    choose_at_random,
    choose_balanced,
    list_photographs,
    open_annotated,
)
from sdk.errors import InputError, SourceError
from sdk.spec import HeadSpec, ModelSpec
from tests.fakes import FAKE_SPEC

from .conftest import Scenes

CLASSES = ("car", "person", "toaster")
COUNTS = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=4, max_size=60)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sixty different files."""
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"{number}.jpg" for number in range(60)]
    for number, path in enumerate(paths):
        path.write_text(str(number))
    return paths


def detector_of(class_names: Sequence[str]) -> ModelSpec:
    """A detector without keypoints."""
    return replace(
        FAKE_SPEC,
        tasks=("detection",),
        heads=(HeadSpec("heatmap", len(class_names), "sigmoid"), HeadSpec("size", 2, "none")),
        class_names=tuple(class_names),
        keypoint_names=(),
        skeleton=(),
    )


def annotated(paths: Sequence[Path], counts: Sequence[Sequence[int]], *, iscrowd: int = 0) -> AnnotatedSet:
    """Photographs with so many objects of each of CLASSES, and one of a class that no model has."""
    annotations: list[dict[str, Any]] = []
    for image_id, row in enumerate(counts):
        for category, count in enumerate([*row, 1]):
            annotations += [{"image_id": image_id, "category_id": category, "iscrowd": iscrowd}] * count
    categories = [{"id": number, "name": name} for number, name in enumerate([*CLASSES, "unicorn"])]
    truth = {"images": [], "annotations": annotations, "categories": categories}
    return AnnotatedSet(Path("annotations.json"), truth, dict(enumerate(paths[: len(counts)])))


# From a folder


def test_the_same_seed_chooses_the_same_photographs(files: list[Path]) -> None:
    first = choose_at_random(files, 3, seed=5)
    assert first == choose_at_random(files, 3, seed=5)
    assert len(set(first.paths)) == 3
    assert any(choose_at_random(files, 3, seed=seed).paths != first.paths for seed in range(5))
    assert first.sentences() == ["3 photographs were chosen at random, with seed 5."]


def test_more_than_there_are_means_all_in_natural_order_and_says_so(scenes: Scenes) -> None:
    chosen = choose_at_random(list_photographs(scenes.folder), 100)
    assert [path.stem for path in chosen.paths] == ["1", "2", "3", "4", "5", "6"]
    assert chosen.sentences() == ["All 6 photographs are used; 100 were asked for."]


def test_a_folder_without_images_or_none_at_all(scenes: Scenes, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no image"):
        list_photographs(tmp_path)
    with pytest.raises(CalibrationError, match=r"there is no folder .*nowhere; .* or a \.txt file"):
        list_photographs(tmp_path / "nowhere")
    shutil.copy(scenes.folder / "1.jpg", tmp_path)
    with pytest.raises(CalibrationError, match="has 1 photograph; calibration needs at least 2"):
        list_photographs(tmp_path)


# From a list


def test_a_list_names_files_relative_to_itself_in_its_order(scenes: Scenes, tmp_path: Path) -> None:
    for name in ("1.jpg", "2.png"):
        shutil.copy(scenes.folder / name, tmp_path)
    photographs = tmp_path / "list.txt"
    photographs.write_bytes(f"\ufeff# a comment\r\n2.png\r\n\r\n  {scenes.folder / '3.jpg'}  \r\n1.jpg\r\n".encode())
    assert list_photographs(photographs) == [tmp_path / "2.png", scenes.folder / "3.jpg", tmp_path / "1.jpg"]
    assert choose_at_random(list_photographs(photographs), 9).paths[0].name == "2.png"


def test_copies_in_a_list_count_once(scenes: Scenes, tmp_path: Path) -> None:
    shutil.copy(scenes.folder / "1.jpg", tmp_path / "renamed.jpg")
    names = ["1.jpg", "2.png", "1.jpg", str(tmp_path / "renamed.jpg"), "3.jpg"]
    photographs = tmp_path / "list.txt"
    photographs.write_text("\n".join(str(scenes.folder / name) for name in names))
    for seed in range(4):
        chosen = choose_at_random(list_photographs(photographs), 100, seed=seed)
        assert len(chosen.paths) == 3
        assert len(chosen.copies) == 2 and set(chosen.copies) <= {"1.jpg", "renamed.jpg"}
        assert "2 are copies of others and count once" in chosen.sentences()[1]
    with pytest.raises(CalibrationError, match="1 of 3 photographs differs"):
        choose_at_random([scenes.folder / "1.jpg"] * 3, 100)


def test_lists_that_cannot_be_used(scenes: Scenes, tmp_path: Path) -> None:
    photographs = tmp_path / "list.txt"

    def error(content: bytes) -> str:
        photographs.write_bytes(content)
        with pytest.raises((InputError, CalibrationError)) as raised:
            list_photographs(photographs)
        return str(raised.value)

    assert "has 0 photographs" in error(b"")
    assert "has 0 photographs" in error(b"# nothing\n\n")
    assert "has 1 photograph;" in error(str(scenes.folder / "1.jpg").encode())
    lines = [str(scenes.folder / "1.jpg"), *(f"gone{number}.jpg" for number in range(8))]
    missing = error("\n".join(lines).encode())
    assert "names 8 of 9 photographs that are not there" in missing
    assert "gone0.jpg" in missing and "and 2 more" in missing and f"relative to {tmp_path}" in missing
    assert "expected UTF-8 text" in error(b"\xff\xd8\xff\xe0 a picture")
    with pytest.raises(InputError, match="cannot read the list"):
        list_photographs(tmp_path / "nowhere.txt")


# From an annotation file


def edited(scenes: Scenes, path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """The annotations of the scenes, changed."""
    data = json.loads(scenes.annotations.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return path


def test_an_annotation_file_says_which_photographs_of_a_folder_there_are(scenes: Scenes, tmp_path: Path) -> None:
    fewer = edited(scenes, tmp_path / "fewer.json", lambda data: data["images"].pop(0))
    chosen = choose_balanced(open_annotated(scenes.folder, fewer, FAKE_SPEC), ("person",), 100)
    assert [path.name for path in chosen.paths] == ["2.png", "3.jpg", "4.png", "5.jpg", "6.png"]
    people = [row for row in json.loads(fewer.read_text())["annotations"] if row["image_id"] != 1]
    assert chosen.instances == {"person": len(people)}


def test_a_list_says_which_of_the_annotated_photographs_count(scenes: Scenes, tmp_path: Path) -> None:
    photographs = tmp_path / "list.txt"
    shutil.copy(scenes.folder / "3.jpg", tmp_path)
    names = [scenes.folder / "5.jpg", scenes.folder / "3.jpg", scenes.folder / "3.jpg", tmp_path / "3.jpg"]
    photographs.write_text("\n".join(map(str, names)))
    found = open_annotated(photographs, scenes.annotations, FAKE_SPEC)
    assert found.files == {5: names[0], 3: names[1]}
    assert choose_balanced(found, ("person",), 100).copies == ("3.jpg", "3.jpg")

    shutil.copy(scenes.folder / "1.jpg", tmp_path / "3.jpg")
    with pytest.raises(InputError, match="which differ"):
        open_annotated(photographs, scenes.annotations, FAKE_SPEC)
    (tmp_path / "other.jpg").write_bytes(b"other")
    photographs.write_text("other.jpg\n3.jpg")
    with pytest.raises(InputError, match=r"names 1 photographs that .* does not annotate: other\.jpg"):
        open_annotated(photographs, scenes.annotations, FAKE_SPEC)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data["categories"][0].update(name="cat"), r"classes \(person\) is annotated; .* has cat\. Use"),
        (lambda data: data["images"][2].update(file_name="gone.png"), "names 1 photographs that are not in"),
        (lambda data: data["images"][2].update(file_name="1.jpg"), r"several photographs of one name: 1\.jpg"),
        (lambda data: data["annotations"][0].update(bbox=[0, 0, 500, 5]), r"does not lie in 1\.jpg"),
        (lambda data: data["categories"][0]["keypoints"].reverse(), "put the annotations into that order"),
        (lambda data: data.pop("images"), "is no COCO annotation file"),
        (lambda data: data["images"].clear(), "lists no images"),
        (lambda data: data["annotations"].clear(), r"none of the 6 photographs shows .* classes \(person\) by"),
    ],
)
def test_annotations_that_cannot_be_used(
    scenes: Scenes, tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_annotated(scenes.folder, edited(scenes, tmp_path / "annotations.json", edit), FAKE_SPEC)


def test_a_long_list_of_classes_is_shortened(scenes: Scenes) -> None:
    spec = detector_of([f"class{number}" for number in range(80)])
    with pytest.raises(InputError, match=r"\(class0, .*, class5 and 74 more\) is annotated; .* has person"):
        open_annotated(scenes.folder, scenes.annotations, spec)


# Balance


def test_all_of_a_rare_class_are_taken_before_the_second_of_a_frequent_one(files: list[Path]) -> None:
    counts = [(0, 5, 0)] * 50 + [(0, 0, 1)] * 3 + [(1, 4, 0)]
    for seed in range(5):
        chosen = choose_balanced(annotated(files, counts), CLASSES, 6, seed=seed)
        assert chosen.instances["toaster"] == 3
        assert chosen.instances["car"] == 1
        assert set(files[50:54]) <= set(chosen.paths)


@given(counts=COUNTS, seed=st.integers(0, 9))
def test_a_balanced_choice_has_every_class_and_few_photographs_without_objects(
    files: list[Path], counts: list[tuple[int, ...]], seed: int
) -> None:
    found = annotated(files, counts)
    table = np.array(counts)
    previous: set[Path] = set()
    for count in range(4, len(counts) + 1):
        chosen = choose_balanced(found, CLASSES, count, seed=seed)
        rows = [files.index(path) for path in chosen.paths]
        assert rows == sorted(set(rows)) and len(rows) == count
        assert dict(zip(CLASSES, table[rows].sum(axis=0).tolist(), strict=True)) == chosen.instances
        assert all(table[rows, column].any() == table[:, column].any() for column in range(3))
        num_empty = int((~table[rows].any(axis=1)).sum())
        has_taken_all = table[rows].sum() == table.sum()
        assert num_empty <= count // 20 or has_taken_all
        assert previous <= set(chosen.paths)
        previous = set(chosen.paths)


def test_the_rule_and_what_is_missing_are_said(files: list[Path]) -> None:
    chosen = choose_balanced(annotated(files, [(1, 2, 0)] * 9), CLASSES, 4, seed=3)
    assert chosen.sentences() == [
        "4 photographs were chosen with seed 3, balanced over the model's classes: always one of the class with the "
        "fewest objects so far, and every 20th without objects.",
        "None of them shows toaster.",
    ]


def test_crowds_are_no_objects(files: list[Path]) -> None:
    chosen = choose_balanced(annotated(files, [(1, 2, 3)] * 9, iscrowd=1), CLASSES, 4)
    assert chosen.instances == {"car": 0, "person": 0, "toaster": 0}


def test_one_annotated_photograph_is_too_few(files: list[Path]) -> None:
    with pytest.raises(CalibrationError, match="1 of 1 photographs differs"):
        choose_balanced(annotated(files, [(1, 1, 1)]), CLASSES, 4)


def test_real_photographs_if_there_are_any(photographs: Path) -> None:
    coco = photographs / "coco"
    annotations = coco / "annotations" / "instances_train.json"
    names = [category["name"] for category in json.loads(annotations.read_text())["categories"]]
    found = open_annotated(coco / "train", annotations, detector_of(names))
    chosen = choose_balanced(found, names, 500)
    assert len(chosen.paths) == 500 and not chosen.copies
    assert min(chosen.instances.values()) >= 5
