from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from sdk.coco import read_coco
from sdk.errors import ConfigError, InputError
from tests.helpers import coco_json, write_coco_folder
from train.coco import CocoData, find_split
from train.config import TrainConfig, preset
from train.data import open_data

BOX = [10, 12, 20, 30]


def _open(folder: Path, annotations: list[dict[str, Any]], **options: Any) -> CocoData:
    images, path = write_coco_folder(folder, coco_json(annotations, image_ids=(1, 2)))
    return CocoData(images, path, **options)


def test_boxes_and_classes(tmp_path: Path) -> None:
    data = _open(tmp_path, [{"bbox": BOX}, {"bbox": [0, 0, 5, 5], "category_id": 2}, {"bbox": BOX, "image_id": 2}])
    assert data.class_names == ("cat", "dog") and len(data) == 2
    sample = data.sample(0)
    assert sample.image.shape == (48, 64, 3) and sample.image[0, 0, 0] == 41
    np.testing.assert_array_equal(sample.boxes_xyxy, [[10, 12, 30, 42], [0, 0, 5, 5]])
    assert sample.boxes_xyxy.dtype == np.float32
    assert sample.class_ids.tolist() == [0, 1]
    assert sample.keypoints.shape == (2, 0, 3)
    assert data.sample(1).boxes_xyxy.tolist() == [[10, 12, 30, 42]]


def test_classes_are_numbered_in_the_order_asked_for(tmp_path: Path) -> None:
    rows = [{"bbox": BOX}, {"bbox": [0, 0, 5, 5], "category_id": 2}]
    both = _open(tmp_path / "a", rows, class_names=("dog", "cat"))
    assert both.sample(0).class_ids.tolist() == [1, 0]
    dogs = _open(tmp_path / "b", rows, class_names=("dog",))
    assert dogs.sample(0).boxes_xyxy.tolist() == [[0, 0, 5, 5]]
    assert len(dogs) == 2 and len(dogs.sample(1).boxes_xyxy) == 0  # a picture without dogs teaches what is none


def test_crowds_are_regions_to_ignore(tmp_path: Path) -> None:
    sample = _open(tmp_path, [{"bbox": BOX, "iscrowd": 0}, {"bbox": [0, 0, 50, 20], "iscrowd": 1}]).sample(0)
    assert sample.boxes_xyxy.tolist() == [[10, 12, 30, 42]]
    assert sample.ignore_xyxy.tolist() == [[0, 0, 50, 20]]


def test_keypoints_and_people_without(tmp_path: Path) -> None:
    labelled = [12, 14, 2, 20, 30, 1, 0, 0, 0]
    rows = [
        {"bbox": BOX, "keypoints": labelled, "num_keypoints": 2},
        {"bbox": BOX, "keypoints": [0] * 9, "num_keypoints": 0},
        {"bbox": BOX},
        {"bbox": BOX, "keypoints": labelled},  # of one's own, without num_keypoints
    ]
    keypoints = _open(tmp_path, rows, num_keypoints=3).sample(0).keypoints
    assert keypoints.shape == (4, 3, 3)
    assert keypoints[0].ravel().tolist() == keypoints[3].ravel().tolist() == labelled
    assert not keypoints[1:3].any()


def test_some_of_the_photographs(tmp_path: Path) -> None:
    data = _open(tmp_path, [{"bbox": BOX, "image_id": 2}], image_ids=[2])
    assert len(data) == 1 and len(data.sample(0).boxes_xyxy) == 1


@pytest.mark.parametrize(("limit_mb", "kept"), [(100, True), (0, False)])
def test_decoded_photographs_are_kept_where_they_fit(tmp_path: Path, limit_mb: int, kept: bool) -> None:
    data = _open(tmp_path, [{"bbox": BOX}])
    before = data.sample(0).image
    assert data.cache_images(limit_mb) == kept
    cv2.imwrite(str(tmp_path / "train" / "1.png"), np.zeros((48, 64, 3), np.uint8))
    assert np.array_equal(data.sample(0).image, before) == kept


def test_missing_photographs_are_counted_and_named(tmp_path: Path) -> None:
    images, path = write_coco_folder(tmp_path, coco_json([{"bbox": BOX}], image_ids=(1, 2, 3)))
    (images / "2.png").unlink()
    (images / "3.png").unlink()
    with pytest.raises(InputError, match=r"instances_train.json names 2 photographs that are not in .*first is 2\.png"):
        CocoData(images, path)
    with pytest.raises(InputError, match="names 3 photographs"):
        CocoData(tmp_path / "nowhere", path)


def test_a_photograph_that_cannot_be_decoded(tmp_path: Path) -> None:
    data = _open(tmp_path, [{"bbox": BOX}])
    (tmp_path / "train" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n truncated")
    with pytest.raises(InputError, match=r"1\.png is not a picture that can be decoded"):
        data.sample(0)


@pytest.mark.parametrize(
    "box", [[50, 10, 30, 10], [10, 40, 10, 20], [-10, 0, 20, 20], [0, -10, 20, 20], [10, 10, -5, 5], [70, 60, 5, 5]]
)
def test_boxes_outside_their_photograph(tmp_path: Path, box: list[int]) -> None:
    with pytest.raises(InputError, match=r"annotation 1 in .*\(x, y, w, h\) does not lie in 1\.png of 64x48 pixels"):
        _open(tmp_path, [{"bbox": box}])


def test_a_box_that_ends_on_the_border_is_fine(tmp_path: Path) -> None:
    assert len(_open(tmp_path, [{"bbox": [0, 0, 64.9, 48.5]}]).sample(0).boxes_xyxy) == 1


@pytest.mark.parametrize("row", [{}, {"bbox": [1, 2, 3]}, {"bbox": None}, {"bbox": [1, 2, 3, "4"]}])
def test_a_malformed_box_is_named(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"annotation 1 in .*instances_train.json has .* for a bbox of four numbers"):
        _open(tmp_path, [row])


def test_a_malformed_entry_is_shown(tmp_path: Path) -> None:
    images, path = write_coco_folder(tmp_path, coco_json([{"bbox": BOX}]))
    for kind, field in (("images", "width"), ("annotations", "category_id"), ("categories", "name")):
        data = json.loads(json.dumps(coco_json([{"bbox": BOX}])))
        del data[kind][0][field]
        path.write_text(json.dumps(data))
        with pytest.raises(InputError, match=f"an entry of {kind} in .*instances_train.json has no {field}: .*'id': 1"):
            CocoData(images, path)


def test_keypoints_of_another_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"annotation 1 in .* has 6 keypoint values; expected .* 17 keypoints"):
        _open(tmp_path, [{"bbox": BOX, "keypoints": [1, 2, 2, 3, 4, 2]}], num_keypoints=17)


def test_an_unknown_class_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no class bird, fish; it has cat, dog"):
        _open(tmp_path, [{"bbox": BOX}], class_names=("cat", "bird", "fish"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*No such file"),
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[]", "no COCO annotation file: it has no images, annotations, categories"),
        ('{"images": [], "annotations": []}', "it has no categories"),
    ],
)
def test_an_unusable_annotation_file(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "instances_train.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_coco(path)


def test_an_annotation_file_without_images(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco_json([], image_ids=())))
    with pytest.raises(InputError, match="lists no images"):
        CocoData(tmp_path, path)


def test_the_layout_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no folder train or train2017; expected a COCO layout"):
        find_split(tmp_path, "train", keypoints=False)
    (tmp_path / "train2017").mkdir()
    with pytest.raises(InputError, match=r"person_keypoints_train2017.json is missing; the photographs are in"):
        find_split(tmp_path, "train", keypoints=True)
    (tmp_path / "annotations").mkdir()
    annotations = tmp_path / "annotations" / "instances_train2017.json"
    annotations.write_text("{}")
    assert find_split(tmp_path, "train", keypoints=False) == (tmp_path / "train2017", annotations)


def test_a_slice_of_train_is_held_back(tmp_path: Path) -> None:
    write_coco_folder(tmp_path, coco_json([{"bbox": BOX}], image_ids=range(1, 21)))
    config = TrainConfig(held_back=5)
    data = open_data(str(tmp_path), config)
    assert (len(data.train), len(data.held_back)) == (15, 5)
    assert data.description == "15 photographs of instances_train.json"

    def shades(source: Any) -> set[int]:
        return {int(source.sample(i).image[0, 0, 0]) for i in range(len(source))}

    assert shades(data.train) | shades(data.held_back) == {40 + i for i in range(1, 21)}
    assert not shades(data.train) & shades(data.held_back)
    assert shades(open_data(str(tmp_path), config).held_back) == shades(data.held_back)
    few = open_data(str(tmp_path), TrainConfig(held_back=64))  # never more than half
    assert (len(few.train), len(few.held_back)) == (10, 10)


def test_synthetic_data_needs_no_folder() -> None:
    data = open_data("synthetic", preset("synthetic-pose"))
    assert data.train.class_names == ("person",)
    first, held_back = data.train.sample(0), data.held_back.sample(0)
    assert first.image.shape == (192, 192, 3) and not np.array_equal(first.image, held_back.image)
    assert len(data.held_back) == 32


def test_drawn_scenes_have_people_alone() -> None:
    with pytest.raises(ConfigError, match="drawn scenes have people alone, not car, dog; set classes=person"):
        open_data("synthetic", TrainConfig(classes=("car", "dog")))


def test_the_photographs_of_this_project(photographs: Path) -> None:
    images, annotations = find_split(photographs / "coco", "train", keypoints=True)
    data = CocoData(images, annotations, class_names=("person",), num_keypoints=17)
    assert len(data) > 2000
    sample = max((data.sample(index) for index in range(10)), key=lambda sample: len(sample.boxes_xyxy))
    assert len(sample.boxes_xyxy) and max(sample.image.shape) <= 448


def test_a_photograph_of_another_size_than_its_annotations_is_refused(tmp_path: Path) -> None:
    images, annotations = write_coco_folder(tmp_path, coco_json([{"bbox": [1, 1, 9, 9]}]))
    assert cv2.imwrite(str(images / "1.png"), np.zeros((24, 32, 3), np.uint8))
    with pytest.raises(InputError, match=r"1.png is 32x24 pixels, .* says 64x48"):
        CocoData(images, annotations).sample(0)


def test_the_ground_truth_keeps_each_objects_own_area(tmp_path: Path) -> None:
    rows = [{"bbox": [1, 1, 10, 10], "area": 53, "image_id": 7, "category_id": 2}]
    images, annotations = write_coco_folder(tmp_path, coco_json(rows, image_ids=(5, 7)))
    truth = CocoData(images, annotations, class_names=("dog",)).ground_truth()
    assert [image["id"] for image in truth["images"]] == [1, 2]
    assert [(row["image_id"], row["category_id"], row["area"]) for row in truth["annotations"]] == [(2, 1, 53)]
    assert truth["categories"] == [{"id": 1, "name": "dog"}]
