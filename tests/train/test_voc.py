from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from sdk.errors import InputError
from tests.train.folders import voc_object, write_voc_year
from train.config import TrainConfig
from train.data import open_data
from train.voc import CLASS_NAMES, VocData

DOG = voc_object("dog", (1, 1, 64, 48))


def test_boxes_count_pixels_from_one_and_include_both_corners(tmp_path: Path) -> None:
    write_voc_year(tmp_path, {"000001": [DOG, voc_object("cat", (11, 21, 11, 21))]})
    data = VocData(tmp_path)
    assert data.class_names == CLASS_NAMES and len(CLASS_NAMES) == 20
    sample = data.sample(0)
    assert sample.boxes_xyxy.tolist() == [[0, 0, 64, 48], [10, 20, 11, 21]]  # the whole picture, and one pixel
    assert sample.boxes_xyxy.dtype == np.float32
    assert [CLASS_NAMES[i] for i in sample.class_ids] == ["dog", "cat"]


def test_difficult_objects_are_regions_to_ignore(tmp_path: Path) -> None:
    write_voc_year(tmp_path, {"a": [DOG, voc_object("person", (2, 3, 10, 12), difficult=1)]})
    sample = VocData(tmp_path).sample(0)
    assert len(sample.boxes_xyxy) == 1 and sample.ignore_xyxy.tolist() == [[1, 2, 10, 12]]


def test_several_years_and_their_splits(tmp_path: Path) -> None:
    for root in (tmp_path / "VOCdevkit", tmp_path / "direct"):
        write_voc_year(root / "VOC2007", {"000001": [DOG], "000002": []})
        write_voc_year(root / "VOC2012", {"2008_01": [DOG]}, split="train")
    for root in (tmp_path / "VOCdevkit", tmp_path / "direct"):
        assert VocData(root).names == ("VOC2007/000001", "VOC2007/000002", "VOC2012/2008_01")
    assert len(VocData(tmp_path / "direct" / "VOC2012")) == 1
    data = open_data(str(tmp_path / "direct"), TrainConfig(held_back=1, classes=("dog", "cat")))
    assert (len(data.train), len(data.held_back), data.description) == (2, 1, "2 pictures of PASCAL VOC")
    assert data.train.class_names == ("dog", "cat")
    with pytest.raises(InputError, match=r"VOC2007 has no ImageSets/Main/test\.txt"):
        VocData(tmp_path / "direct" / "VOC2007", splits=("test",))


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ("<object><name>dog</name></object>", "object 1 has no bndbox of four numbers"),
        (voc_object("dog", (5, 5, 4, 9)), r"object 1: box \[5.0, 5.0, 4.0, 9.0\] .* has a negative size"),
        (voc_object("dog", (5, 5, 90, 9)), "does not lie in 64x48 pixels"),
        (voc_object("", (5, 5, 9, 9)), "object 1 has no name"),
        (voc_object("unicorn", (5, 5, 9, 9)), "has objects unicorn, no class of VOC; set classes"),
        ("<object>", "is not valid XML"),
    ],
)
def test_annotations_that_cannot_be_used(tmp_path: Path, objects: str, message: str) -> None:
    write_voc_year(tmp_path, {"a": [objects]})
    with pytest.raises(InputError, match=message):
        VocData(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    write_voc_year(tmp_path, {"a": [DOG]})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"picture a is missing: there is no a\.jpg or \.png"):
        VocData(tmp_path)
    (tmp_path / "Annotations" / "a.xml").unlink()
    with pytest.raises(InputError, match=r"cannot read .*a\.xml"):
        VocData(tmp_path)


def test_a_picture_of_another_size_than_its_annotation(tmp_path: Path) -> None:
    write_voc_year(tmp_path, {"a": [DOG]})
    data = VocData(tmp_path)
    assert data.cache_images(0) is False
    assert cv2.imwrite(str(tmp_path / "JPEGImages" / "a.jpg"), np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(InputError, match=r"a\.jpg is 20x20 pixels, its annotation says 64x48"):
        data.sample(0)
