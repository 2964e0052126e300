from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from sdk.errors import InputError
from tests.train.folders import CAR, write_kitti_folder
from train.config import TrainConfig
from train.data import open_data
from train.kitti_data import KittiData

PEDESTRIAN = "Pedestrian 0.00 0 -0.20 40 10 50 40 1.8 0.5 1.2 1.8 1.5 8.4 0.01"
OTHERS = [
    "Van 0.00 0 1.0 1 2 3 5 2 2 5 -5 2 30 1.0",
    "Truck 0.00 0 1.0 11 12 13 15 3 3 9 -5 2 30 1.0",
    "Person_sitting 0.00 0 1.0 21 22 23 25 1 1 1 -5 2 30 1.0",
    "DontCare -1 -1 -10 31 32 33 35 -1 -1 -1 -1000 -1000 -1000 -10",
    "Tram 0.00 0 1.0 41 42 43 45 3 3 9 -5 2 30 1.0",
    "Misc 0.00 0 1.0 51 42 53 45 3 3 9 -5 2 30 1.0",
]


def test_boxes_of_the_three_classes_and_regions_to_ignore(tmp_path: Path) -> None:
    write_kitti_folder(tmp_path, {"000000": [CAR, PEDESTRIAN, *OTHERS]})
    data = KittiData(tmp_path)
    assert data.class_names == ("Pedestrian", "Car", "Cyclist") and len(data) == 1
    sample = data.sample(0)
    assert sample.class_ids.tolist() == [1, 0]
    assert sample.boxes_xyxy.tolist() == [[10, 20, 30, 40], [40, 10, 50, 40]]
    assert sample.boxes_xyxy.dtype == np.float32 and sample.keypoints.shape == (2, 0, 3)
    assert sample.ignore_xyxy[:, 0].tolist() == [1, 11, 21, 31]  # neither Tram nor Misc


def test_3d_boxes_are_given_by_their_geometric_centre_and_p2(tmp_path: Path) -> None:
    write_kitti_folder(tmp_path, {"000000": [CAR]})
    sample = KittiData(tmp_path).sample(0)
    assert sample.boxes3d is not None and sample.camera is not None
    np.testing.assert_allclose(sample.boxes3d.center_m, [[-2, 1.75 - 0.75, 12]], rtol=1e-6)
    np.testing.assert_allclose(sample.boxes3d.size_hwl_m, [[1.5, 1.6, 4]], rtol=1e-6)
    np.testing.assert_allclose(sample.boxes3d.yaw_rad, [1.57], rtol=1e-6)
    assert sample.camera.projection.tolist() == [[60, 0, 32, 4], [0, 60, 24, 0.2], [0, 0, 1, 0.003]]


def test_what_is_not_known_of_a_box_is_nan(tmp_path: Path) -> None:
    unknown = "Car 0.00 0 -10 10 20 30 40 -1 -1 -1 -1000 -1000 -1000 -10"
    write_kitti_folder(tmp_path, {"000000": [unknown, CAR]})
    boxes3d = KittiData(tmp_path).sample(0).boxes3d
    assert boxes3d is not None
    assert np.isnan(boxes3d.center_m).all(axis=1).tolist() == [True, False]
    assert np.isnan(boxes3d.yaw_rad).tolist() == [True, False]


def test_some_classes_only(tmp_path: Path) -> None:
    write_kitti_folder(tmp_path, {"000000": [PEDESTRIAN, CAR, *OTHERS]})
    sample = KittiData(tmp_path, class_names=("Car",), with_boxes3d=False).sample(0)
    assert sample.class_ids.tolist() == [0] and sample.boxes3d is None and sample.camera is None
    assert sample.ignore_xyxy[:, 0].tolist() == [1, 11, 31]
    with pytest.raises(InputError, match="KITTI has no class Tram; it has Pedestrian, Car, Cyclist"):
        KittiData(tmp_path, class_names=("Tram",))


def test_only_the_frames_of_train_are_used_and_some_held_back(tmp_path: Path) -> None:
    write_kitti_folder(tmp_path, {f"{i:06}": [CAR] for i in range(8)}, train=range(6))
    data = open_data(str(tmp_path), TrainConfig(task="3d", held_back=2))
    assert (len(data.train), len(data.held_back)) == (4, 2)
    assert "non-commercial" in data.description and data.description.startswith("4 frames of KITTI")
    shades = {int(part.sample(i).image[0, 0, 0]) for part in (data.train, data.held_back) for i in range(len(part))}
    assert shades == set(range(40, 46))
    assert open_data(str(tmp_path), TrainConfig(held_back=2)).train.sample(0).boxes3d is None  # detection


def test_a_folder_that_lacks_something(tmp_path: Path) -> None:
    write_kitti_folder(tmp_path, {"000000": [CAR]})
    (tmp_path / "training" / "calib" / "000000.txt").write_text("P0: 1 2 3\n")
    with pytest.raises(InputError, match=r"000000\.txt has no P2"):
        KittiData(tmp_path)
    assert len(KittiData(tmp_path, with_boxes3d=False)) == 1
    (tmp_path / "training" / "image_2" / "000000.png").unlink()
    with pytest.raises(InputError, match="frame 000000 has no picture"):
        KittiData(tmp_path, with_boxes3d=False)
    (tmp_path / "ImageSets" / "train.txt").unlink()
    with pytest.raises(InputError, match=r"there is no split train .*train\.txt is missing"):
        KittiData(tmp_path)


def test_a_row_with_missing_fields_is_named(tmp_path: Path) -> None:
    write_kitti_folder(tmp_path, {"000000": [CAR, "Car 0 0 1 2 3"]})
    with pytest.raises(InputError, match=r"000000\.txt, line 2: 6 fields, expected 15"):
        KittiData(tmp_path)


@pytest.mark.parametrize(("limit_mb", "kept"), [(100, True), (0, False)])
def test_decoded_frames_are_kept_where_they_fit(tmp_path: Path, limit_mb: int, kept: bool) -> None:
    write_kitti_folder(tmp_path, {"000000": [CAR]})
    data = KittiData(tmp_path)
    before = data.sample(0).image
    assert data.cache_images(limit_mb) == kept
    cv2.imwrite(str(tmp_path / "training" / "image_2" / "000000.png"), np.zeros((48, 64, 3), np.uint8))
    assert np.array_equal(data.sample(0).image, before) == kept


def test_the_frames_of_this_project(photographs: Path) -> None:
    data = KittiData(photographs / "kitti" / "object")
    assert len(data) == 71
    sample = max((data.sample(index) for index in range(8)), key=lambda sample: len(sample.boxes_xyxy))
    assert sample.boxes3d is not None and sample.camera is not None
    centres = sample.camera.project(sample.boxes3d.center_m.astype(np.float64))
    middles = (sample.boxes_xyxy[:, :2] + sample.boxes_xyxy[:, 2:]) / 2
    assert np.median(np.abs(centres - middles)) < 10  # pixels: the labels and the camera belong together
