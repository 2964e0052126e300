from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.coco import read_coco
from sdk.errors import ConfigError, InputError
from tests.helpers import coco_json, write_coco_folder
from train.coco import DEFAULT_OKS_SIGMA, CocoData, find_split, flip_pairs_from_names, keypoint_schema
from train.samples import COCO_KEYPOINTS, KeypointSchema

BOX = [10, 12, 20, 30]


def _open(folder: Path, annotations: list[dict[str, Any]], **options: Any) -> CocoData:
    images, path = write_coco_folder(folder, coco_json(annotations, image_ids=(1, 2)))
    return CocoData(images, path, **options)


def _with_keypoints(rows: list[dict[str, Any]], by_category: dict[int, dict[str, Any]]) -> dict[str, Any]:
    data = coco_json(rows)
    for category in data["categories"]:
        category.update(by_category.get(category["id"], {}))
    return data


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
    rows: list[dict[str, Any]] = [{"bbox": BOX}, {"bbox": [0, 0, 5, 5], "category_id": 2}]
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
    rows: list[dict[str, Any]] = [
        {"bbox": BOX, "keypoints": labelled, "num_keypoints": 2},
        {"bbox": BOX, "keypoints": [0] * 9, "num_keypoints": 0},
        {"bbox": BOX},
        {"bbox": BOX, "keypoints": labelled},  # of one's own, without num_keypoints
    ]
    images, path = write_coco_folder(tmp_path, _with_keypoints(rows, {1: {"keypoints": ["nose", "ear_l", "ear_r"]}}))
    data = CocoData(images, path, with_keypoints=True)
    assert (data.class_names, data.num_keypoints) == (("cat",), 3)  # dogs have no keypoints
    keypoints = data.sample(0).keypoints
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
    "box", [[50, 10, 30, 10], [10, 40, 10, 20], [-10, 0, 20, 20], [0, -10, 20, 20], [70, 60, 5, 5]]
)
def test_boxes_outside_their_photograph(tmp_path: Path, box: list[int]) -> None:
    with pytest.raises(InputError, match=r"annotation 1 in .*\(x, y, w, h\) does not lie in 1\.png of 64x48 pixels"):
        _open(tmp_path, [{"bbox": box}])


def test_a_box_of_negative_size(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"annotation 1 in .*box \[10, 10, -5, 5\] .* has a negative size"):
        _open(tmp_path, [{"bbox": [10, 10, -5, 5]}])


def test_a_box_that_ends_on_the_border_is_fine(tmp_path: Path) -> None:
    assert len(_open(tmp_path, [{"bbox": [0, 0, 64.9, 48.5]}]).sample(0).boxes_xyxy) == 1


@pytest.mark.parametrize(
    "row", [{}, {"bbox": [1, 2, 3]}, {"bbox": None}, {"bbox": [1, 2, 3, "4"]}, {"bbox": [1, 2, 3, float("nan")]}]
)
def test_a_malformed_box_is_named(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"annotation 1 in .*instances_train.json: .* is no bbox of four numbers"):
        _open(tmp_path, [row])


def test_a_malformed_entry_is_shown(tmp_path: Path) -> None:
    images, path = write_coco_folder(tmp_path, coco_json([{"bbox": BOX}]))
    for kind, field in (("images", "width"), ("annotations", "category_id"), ("categories", "name")):
        data = json.loads(json.dumps(coco_json([{"bbox": BOX}])))
        del data[kind][0][field]
        path.write_text(json.dumps(data))
        with pytest.raises(InputError, match=f"instances_train.json: an entry of {kind} has no {field}: .*'id': 1"):
            CocoData(images, path)
        data[kind][0][field] = [1]
        path.write_text(json.dumps(data))
        with pytest.raises(InputError, match=rf"an entry of {kind} has \[1\] for its {field}"):
            CocoData(images, path)


@pytest.mark.parametrize(
    ("keypoints", "message"),
    [
        ([1, 2, 2, 3, 4, 2], "6 keypoint values; expected .* 3 keypoints"),
        ([1, 2, 2, 3, 4, 2, 0, None, 0], "a keypoint value is no number"),
        ("none", "'none' keypoint values"),
    ],
)
def test_keypoints_of_another_form_are_refused(tmp_path: Path, keypoints: Any, message: str) -> None:
    rows = [{"bbox": BOX, "keypoints": keypoints}]
    images, path = write_coco_folder(tmp_path, _with_keypoints(rows, {1: {"keypoints": ["a", "b", "c"]}}))
    with pytest.raises(InputError, match=f"annotation 1 in .*: {message}"):
        CocoData(images, path, with_keypoints=True)


def test_a_schema_of_ones_own() -> None:
    category = {
        "name": "dog",
        "keypoints": ["nose", "paw_l", "paw_r", "tail"],
        "skeleton": [[1, 2], [3, 4]],
    }
    schema = keypoint_schema(Path("own.json"), [{"name": "car"}, category])
    assert schema == KeypointSchema(
        ("nose", "paw_l", "paw_r", "tail"), ((1, 2),), ((0, 1), (2, 3)), (DEFAULT_OKS_SIGMA,) * 4
    )
    said = keypoint_schema(Path("own.json"), [{**category, "flip_pairs": [[1, 4]], "sigmas": [0.1, 0.2, 0.3, 0.4]}])
    assert (said.flip_pairs, said.oks_sigmas) == (((0, 3),), (0.1, 0.2, 0.3, 0.4))


def test_the_schema_of_people_is_cocos() -> None:
    for category in ({"name": "person"}, {"name": "walker", "keypoints": list(COCO_KEYPOINTS.names)}):
        assert keypoint_schema(Path("a.json"), [category]) == COCO_KEYPOINTS
    assert flip_pairs_from_names(COCO_KEYPOINTS.names) == COCO_KEYPOINTS.flip_pairs


def test_two_schemas_are_one_too_many() -> None:
    cat, dog = {"name": "cat", "keypoints": ["nose"]}, {"name": "dog", "keypoints": ["nose", "tail"]}
    with pytest.raises(ConfigError, match=r"cat and dog have different keypoints.*set classes=cat or classes=dog"):
        keypoint_schema(Path("own.json"), [cat, dog])
    assert len(keypoint_schema(Path("own.json"), [cat, {**cat, "name": "lynx"}])) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"skeleton": [[1, 3]]}, r"category cat has \[1, 3\] in skeleton; expected two numbers of keypoints, 1 to 2"),
        ({"flip_pairs": [[0, 1]]}, r"category cat has \[0, 1\] in flip_pairs"),
        ({"sigmas": [0.1]}, r"category cat has the sigmas \[0.1\]; expected 2"),
        ({"sigmas": [0.1, 0]}, "all above 0"),
    ],
)
def test_a_schema_that_does_not_fit_its_names(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        keypoint_schema(Path("own.json"), [{"name": "cat", "keypoints": ["a", "b"], **changes}])


def test_a_file_without_keypoints_says_so(tmp_path: Path) -> None:
    images, path = write_coco_folder(tmp_path, coco_json([{"bbox": BOX}]))
    with pytest.raises(ConfigError, match='no class of cat, dog has keypoints; give its category "keypoints"'):
        CocoData(images, path, with_keypoints=True)


@given(st.lists(st.sampled_from(["nose", "tail", "paw", "front_paw", "wing"]), unique=True), st.randoms())
def test_sides_are_found_in_any_spelling(parts: list[str], random: Random) -> None:
    spellings = ["left_{}", "{}_left", "L_{}", "{}-l", "l {}", "Left{}"]
    names: list[str] = []
    for part in parts:
        left = random.choice(spellings).format(part.capitalize())
        right = left.replace("left", "right").replace("Left", "Right")
        for old, new in (("L_", "R_"), ("-l", "-r"), ("l ", "r ")):
            right = right.replace(old, new) if right == left else right
        names += [left, right]
    random.shuffle(names)
    pairs = flip_pairs_from_names(names)
    assert sorted(index for pair in pairs for index in pair) == list(range(len(names)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [0, 0]}, "image 1: its id is given to 2 entries of images"),
        ({"annotations": [0, 0]}, "annotation 1: its id is given to 2 entries of annotations"),
        ({"categories": [0, 0]}, "category 1: its id is given to 2 entries of categories"),
        ({"images": []}, "annotation 1: there is no image 1"),
        ({"categories": []}, "annotation 1: there is no category 1"),
    ],
)
def test_ids_that_are_there_twice_or_not_at_all(tmp_path: Path, change: dict[str, list[int]], message: str) -> None:
    data = coco_json([{"bbox": BOX}])
    images, path = write_coco_folder(tmp_path, data)
    for kind, rows in change.items():
        data[kind] = [data[kind][row] for row in rows]
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=rf"instances_train.json: {message}.*--check-data"):
        CocoData(images, path)


def test_a_box_without_width_is_no_object(tmp_path: Path) -> None:
    data = _open(tmp_path, [{"bbox": [5, 5, 0, 9]}, {"bbox": BOX}, {"bbox": [5, 5, 9, 0], "iscrowd": 1}])
    sample = data.sample(0)
    assert sample.boxes_xyxy.tolist() == [[10, 12, 30, 42]] and len(sample.ignore_xyxy) == 0


def test_an_unknown_class_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no class bird, fish; it has cat, dog"):
        _open(tmp_path, [{"bbox": BOX}], class_names=("cat", "bird", "fish"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*No such file"),
        ("{", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[]", "is no COCO annotation file: it has no images, annotations, categories"),
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
    with pytest.raises(InputError, match=r"person_keypoints_train2017\.json is missing"):
        find_split(tmp_path, "train", keypoints=True)  # boxes are no poses


def test_annotation_files_with_names_of_ones_own(tmp_path: Path) -> None:
    for folder in ("train", "annotations"):
        (tmp_path / folder).mkdir()
    for name in ("birds_train.json", "birds_val.json"):
        (tmp_path / "annotations" / name).write_text("{}")
    for keypoints in (False, True):
        found = find_split(tmp_path, "train", keypoints=keypoints)
        assert found == (tmp_path / "train", tmp_path / "annotations" / "birds_train.json")
    (tmp_path / "annotations" / "train_old.json").write_text("{}")
    with pytest.raises(InputError, match=r"several files for train: birds_train\.json, train_old\.json; name the"):
        find_split(tmp_path, "train", keypoints=False)


def test_the_photographs_of_this_project(photographs: Path) -> None:
    images, annotations = find_split(photographs / "coco", "train", keypoints=True)
    data = CocoData(images, annotations, class_names=("person",), with_keypoints=True)
    assert data.keypoints == COCO_KEYPOINTS
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


def test_a_subset_keeps_its_own_photographs(tmp_path: Path) -> None:
    whole = _open(tmp_path, [{"bbox": BOX, "image_id": 2}])
    part = whole.subset([1])
    assert (len(part), len(whole)) == (1, 2)
    assert part.sample(0).image[0, 0, 0] == 42 and len(part.sample(0).boxes_xyxy) == 1
