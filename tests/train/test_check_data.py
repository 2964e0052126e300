from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from apps.cli import main
from tests.helpers import coco_json, write_coco_folder
from tests.train.folders import CAR, voc_object, write_kitti_folder, write_voc_year
from train.check_data import Overlaps, check_data

BOX = [10, 12, 20, 30]
NAMED = {"keypoints": ["a", "b"]}


def _problems(root: Path) -> list[str]:
    """With the folder left out."""
    return [problem.replace(f"{root}/", "") for problem in check_data(str(root), None).problems]


def test_a_clean_folder_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco_folder(tmp_path, coco_json([{"bbox": BOX}, {"bbox": BOX}], image_ids=(1, 2)))
    assert main(["train", "--check-data", "--data", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "2 photographs, 2 objects of 1 classes; 1 pairs of objects of one class share a centre cell" in out
    assert out.endswith("no problems\n") and not err


def test_problems_are_listed_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco_folder(tmp_path, coco_json([{"bbox": [1, 1, 0, 5]}, {"bbox": [1, 1, -3, 5]}]))
    for options in ([], ["--preset", "paper-detection"]):
        assert main(["train", "--check-data", "--data", str(tmp_path), *options]) == 1
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert len(lines) == 2 and all("instances_train.json: annotation " in line for line in lines)
        assert err.splitlines()[-1] == f"{tmp_path}: 2 problems"


def test_training_itself_still_needs_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", "synthetic"]) == 2
    assert "--preset and --out are needed" in capsys.readouterr().err


def test_drawn_scenes_have_nothing_to_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--check-data", "--data", "synthetic"]) == 0
    assert "nothing to check" in capsys.readouterr().out


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--check-data", "--data", str(tmp_path / "none")]) == 1
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"bbox": [1, 1, 0, 5]}, "box [1, 1, 0, 5] (x, y, w, h) has no width or height; it is left out of training"),
        ({"bbox": [1, 1, -3, 5]}, "box [1, 1, -3, 5] (x, y, w, h) has a negative size; correct or remove it"),
        ({"bbox": [60, 1, 30, 5]}, "box [60, 1, 30, 5] (x, y, w, h) does not lie in 1.png of 64x48 pixels"),
        ({"bbox": [1, 2]}, "[1, 2] is no bbox of four numbers"),
        ({"bbox": BOX, "category_id": 9}, "there is no category 9"),
        ({"bbox": BOX, "image_id": 9}, "there is no image 9"),
        ({"bbox": BOX, "iscrowd": 2}, "iscrowd is 2, expected 0 or 1"),
        ({"bbox": BOX, "keypoints": [1, 2, 2]}, "3 keypoint values; expected x, y and visibility of 2 keypoints"),
        (
            {"bbox": BOX, "keypoints": [1, 2, 2, 3, 4, 3]},
            "keypoint visibility 3, expected 0 (not labelled), 1 (hidden)",
        ),
        ({"bbox": BOX, "keypoints": [1, 2, 2, 3, 4, 0], "num_keypoints": 2}, "num_keypoints is 2, but 1 keypoints are"),
    ],
)
def test_a_problem_of_an_annotation(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    content = coco_json([{"bbox": [5, 5, 9, 9]}, row])
    content["categories"][0].update(NAMED)
    write_coco_folder(tmp_path, content)
    (problem,) = _problems(tmp_path)
    assert problem.startswith(f"annotations/instances_train.json: annotation 2: {message}")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _resize(path: Path) -> None:
    assert cv2.imwrite(str(path), np.zeros((24, 32, 3), np.uint8))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "cannot be read (No such file or directory)"),
        (_truncate, "is truncated"),
        (lambda path: path.write_bytes(b"GIF89a no picture"), "is not a picture that can be decoded"),
        (lambda path: path.write_bytes(b""), "is an empty file"),
        (_resize, "is 32x24 pixels, not 64x48"),
    ],
)
def test_a_problem_of_a_photograph(tmp_path: Path, suffix: str, spoil: Callable[[Path], object], message: str) -> None:
    content = coco_json([{"bbox": BOX}])
    content["images"][0]["file_name"] = f"one.{suffix}"
    images, _ = write_coco_folder(tmp_path, content)
    assert not _problems(tmp_path)
    spoil(images / f"one.{suffix}")
    (problem,) = _problems(tmp_path)
    assert problem.startswith("annotations/instances_train.json: image 1: ") and message in problem


def test_every_problem_of_a_file_not_only_the_first(tmp_path: Path) -> None:
    content = coco_json(
        [{"bbox": [1, 1, 0, 5]}, {"bbox": BOX, "image_id": 2}, {"id": 1, "bbox": BOX}], image_ids=(1, 2)
    )
    del content["images"][1]["width"]
    content["images"] += [{"id": 1, "file_name": "1.png", "width": 64, "height": 48}, {"id": 4, "file_name": "4.png"}]
    content["categories"].append({"id": 2, "name": "cat"})
    _, path = write_coco_folder(tmp_path, coco_json([]))
    path.write_text(json.dumps(content))
    (tmp_path / "val").mkdir()
    (tmp_path / "annotations" / "instances_val.json").write_text("{}")
    problems = [problem.partition(".json: ")[2] for problem in _problems(tmp_path)]
    assert len(problems) == 8
    for start in (
        "an entry of images has no width: {'id': 2",
        "an entry of images has no width, height: {'id': 4",
        "image 1: its id is given to 2 entries of images",
        "annotation 1: its id is given to 2 entries of annotations",
        "category 2: its id is given to 2 entries",
        "category 'cat' is there 2 times",
        "annotation 1: box [1, 1, 0, 5] (x, y, w, h) has no width or height",
        "is no COCO annotation file: it has no images, annotations, categories",
    ):
        assert any(problem.startswith(start) for problem in problems), start


def test_files_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    _, path = write_coco_folder(tmp_path, coco_json([]))
    path.write_text("{")
    (problem,) = _problems(tmp_path)
    assert "instances_train.json is not valid JSON" in problem


def test_keypoints_and_boxes_are_both_checked(tmp_path: Path) -> None:
    content = coco_json([{"bbox": BOX}], class_names=("person",))
    write_coco_folder(tmp_path, content)
    content["annotations"][0]["keypoints"] = [1, 2]
    (tmp_path / "annotations" / "person_keypoints_train.json").write_text(json.dumps(content))
    (problem,) = _problems(tmp_path)
    assert problem.startswith("annotations/person_keypoints_train.json: annotation 1: 2 keypoint values; expected")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Car 0 0 1 2 3", "6 fields, expected 15: type truncated"),
        (CAR.replace("1.57", "x"), "rotation_y is 'x', which is no number"),
        (CAR.replace("10 20 30 40", "30 20 10 40"), "box [30.0, 20.0, 10.0, 40.0] (x1, y1, x2, y2) has no or negative"),
        (CAR.replace("10 20 30 40", "10 20 90 40"), "does not lie in 64x48 pixels"),
        (CAR.replace("1.5 1.6 4", "1.5 0 4"), "size [1.5, 0.0, 4.0] (h, w, l in metres) must be above 0"),
        (CAR.replace("Car 0.00 0", "Car 0.00 7"), "truncated 0 and occluded 7; expected 0 to 1"),
        (CAR.replace("Car", "Bus"), "type 'Bus' is none of Pedestrian, Car, Cyclist"),
    ],
)
def test_a_problem_of_a_kitti_row(tmp_path: Path, row: str, message: str) -> None:
    write_kitti_folder(tmp_path, {"000000": [CAR], "000001": [CAR, row]})
    (problem,) = _problems(tmp_path)
    assert problem.startswith("training/label_2/000001.txt:2: ") and message in problem


def test_files_that_a_kitti_folder_lacks(tmp_path: Path) -> None:
    write_kitti_folder(tmp_path, {f"00000{i}": [CAR] for i in range(4)})
    assert check_data(str(tmp_path), None).summary[-1].startswith(f"{tmp_path}: 4 labelled frames with 4 Car; 0 pairs")
    training = tmp_path / "training"
    (training / "image_2" / "000000.png").unlink()
    (training / "label_2" / "000001.txt").unlink()
    (training / "calib" / "000002.txt").write_text("P0: 1\n")
    (training / "calib" / "000003.txt").unlink()
    (tmp_path / "ImageSets" / "train.txt").rename(tmp_path / "ImageSets" / "mine.txt")
    problems = _problems(tmp_path)
    assert len(problems) == 5
    for part in (
        "ImageSets/train.txt: is missing",
        "000000.png: cannot be read",
        "000001.txt: is missing",
        "000002.txt has no P2",
        "cannot read training/calib/000003.txt",
    ):
        assert any(part in problem for problem in problems), part


def test_a_voc_folder(tmp_path: Path) -> None:
    good = voc_object("dog", (1, 1, 20, 20))
    broken = [voc_object("dog", (9, 9, 5, 5)), voc_object("dog", (1, 1, 99, 5))]
    write_voc_year(
        tmp_path, {"a": [good], "b": [good], "c": ["<object>"], "d": broken, "e": [good.replace("dog", "x")]}
    )
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    _resize(tmp_path / "JPEGImages" / "b.jpg")
    problems = _problems(tmp_path)
    assert [problem.partition(":")[0] for problem in problems] == [
        "JPEGImages/a.jpg",
        "Annotations/b.xml",
        "Annotations/c.xml is not valid XML (mismatched tag",
        "Annotations/d.xml",
        "Annotations/d.xml",
        "Annotations/e.xml",
    ]
    assert "says 64x48 pixels, the picture has 32x24" in problems[1] and "class 'x' is none" in problems[-1]


def test_objects_that_share_a_centre_are_counted_by_pairs() -> None:
    overlaps = Overlaps()
    # 1024x512 fits into 512x512 at half its size: a cell of 4 px is 8 px of the picture.
    boxes = np.array([[0, 0, 16, 16], [2, 2, 18, 18], [1, 1, 17, 17], [20, 0, 28, 8], [0, 0, 15.9, 16]])
    overlaps.add(boxes, [1, 1, 2, 1, 2], (1024, 512))
    # Centres 8.0, 10.0, 9.0 share a cell, 24 does not, nor does 7.95.
    assert (overlaps.objects, overlaps.any_class, overlaps.same_class) == (5, 3, 1)
    assert overlaps.high_iou == 1  # of class 2; 14x14 of 16x16 is an IoU of 0.62
    overlaps.add(np.zeros((0, 4)), [], (64, 64))
    assert overlaps.objects == 5


def test_the_data_of_this_project_has_no_problems(photographs: Path) -> None:
    report = check_data(str(photographs / "kitti" / "object"), None)
    assert not report.problems and "101 labelled frames with 308 Car" in report.summary[-1]
