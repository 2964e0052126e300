from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdk.errors import ConfigError, InputError
from tests.helpers import coco_json, write_coco_folder
from train.config import TrainConfig, preset
from train.data import data_format, open_data
from train.samples import COCO_KEYPOINTS, NO_KEYPOINTS, KeypointSchema

BOX = [10, 12, 20, 30]


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


def test_any_classes_and_keypoints(tmp_path: Path) -> None:
    content = coco_json([{"bbox": BOX, "keypoints": [12, 14, 2, 20, 30, 1]}], image_ids=(1, 2))
    content["categories"][0]["keypoints"] = ["wing_left", "wing_right"]
    _, path = write_coco_folder(tmp_path, content)
    path.rename(path.with_name("birds_train.json"))
    data = open_data(str(tmp_path), TrainConfig(task="pose"))
    assert data.train.class_names == ("cat",)
    assert data.train.keypoints == KeypointSchema(("wing_left", "wing_right"), ((0, 1),), (), (0.05, 0.05))
    both = open_data(str(tmp_path), TrainConfig(task="detection"))
    assert both.train.class_names == ("cat", "dog") and both.train.keypoints == NO_KEYPOINTS


@pytest.mark.parametrize(
    ("task", "class_names", "keypoints", "boxes3d"),
    [
        ("detection", ("person",), NO_KEYPOINTS, False),
        ("pose", ("person",), COCO_KEYPOINTS, False),
        ("3d", ("Car",), NO_KEYPOINTS, True),
        ("pose+3d", ("person", "Car"), COCO_KEYPOINTS, True),
    ],
)
def test_synthetic_data_for_every_task(
    task: str, class_names: tuple[str, ...], keypoints: KeypointSchema, boxes3d: bool
) -> None:
    config = replace(preset("synthetic-pose"), task=task, classes=(), size=(192, 160), held_back=32)
    data = open_data("synthetic", config)
    assert data.train.class_names == data.held_back.class_names == class_names
    assert data.train.keypoints == keypoints
    first, held_back = data.train.sample(0), data.held_back.sample(0)
    assert first.image.shape == (160, 192, 3) and not np.array_equal(first.image, held_back.image)
    assert first.keypoints.shape[1] == len(keypoints) == data.train.num_keypoints
    assert (first.boxes3d is not None, first.camera is not None) == (boxes3d, boxes3d)
    assert len(data.held_back) == 32


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("pose", "drawn scenes for task=pose have the classes person, not car, dog; set classes=person"),
        ("pose+3d", "have the classes person, Car, not car, dog; set classes=person,Car"),
    ],
)
def test_drawn_scenes_have_classes_of_their_own(task: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_data("synthetic", TrainConfig(task=task, classes=("car", "dog")))


def test_what_kind_of_folder_it_is(tmp_path: Path) -> None:
    assert data_format(tmp_path) == "coco"  # and says what it lacks when opened
    (tmp_path / "VOC2007" / "JPEGImages").mkdir(parents=True)
    assert data_format(tmp_path) == data_format(tmp_path / "VOC2007") == "voc"
    (tmp_path / "kitti" / "training").mkdir(parents=True)
    assert data_format(tmp_path / "kitti") == "kitti"
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; --data takes a COCO, KITTI or VOC folder"):
        data_format(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("folder", "task", "message"),
    [
        (
            "train",
            "3d",
            "is COCO data, which serves task=detection or task=pose, not 3d; KITTI folders and 'synthetic'",
        ),
        ("training", "pose", "is KITTI data, which serves task=detection or task=3d, not pose"),
        ("training", "pose+3d", "is KITTI data"),
        ("JPEGImages", "pose", "is VOC data, which serves task=detection, not pose"),
    ],
)
def test_a_folder_without_what_the_task_needs(tmp_path: Path, folder: str, task: str, message: str) -> None:
    (tmp_path / folder).mkdir()
    with pytest.raises(ConfigError, match=message):
        open_data(str(tmp_path), TrainConfig(task=task))
