from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import InputError
from sdk.kitti import (
    KittiFolder,
    KittiObjects,
    kitti_from_detections,
    read_kitti_calib,
    read_kitti_labels,
    read_kitti_results,
    write_kitti_results,
)
from sdk.results import Boxes3D, Detections

CAR = "Car 0.10 1 -1.57 100.00 120.50 200.00 180.00 1.50 1.60 4.00 2.00 1.65 20.00 -1.47"
DONT_CARE = "DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10"
P2 = "7.2e+02 0 6.1e+02 4.5e+01 0 7.2e+02 1.7e+02 2.0e-01 0 0 1 2.7e-03"


def _file(folder: Path, text: str) -> Path:
    path = folder / "000007.txt"
    path.write_text(text)
    return path


def _detections(boxes3d: Boxes3D | None = None, rows: int = 1, class_names: tuple[str, ...] = ("Car",)) -> Detections:
    xyxy = np.tile(np.float32([10, 20, 30, 40]), (rows, 1))
    return Detections(xyxy, np.full(rows, 0.3, np.float32), np.zeros(rows, np.int64), class_names, boxes3d=boxes3d)


def _boxes3d(center_m: list[float], size_hwl_m: list[float], yaw_rad: float) -> Boxes3D:
    return Boxes3D(np.float32([center_m]), np.float32([size_hwl_m]), np.float32([yaw_rad]))


def test_a_label_file_is_read(tmp_path: Path) -> None:
    objects = read_kitti_labels(_file(tmp_path, f"{CAR}\n\n{DONT_CARE}\n"))
    assert objects.types == ("Car", "DontCare") and len(objects) == 2
    assert objects.scores is None
    assert objects.truncated.tolist() == [0.1, -1.0] and objects.occluded.tolist() == [1, -1]
    assert objects.alpha_rad.tolist() == [-1.57, -10.0] and objects.yaw_rad.tolist() == [-1.47, -10.0]
    assert objects.xyxy[0].tolist() == [100.0, 120.5, 200.0, 180.0]
    assert objects.size_hwl_m[0].tolist() == [1.5, 1.6, 4.0]
    assert objects.location_m[0].tolist() == [2.0, 1.65, 20.0]


def test_boxes_are_given_by_their_geometric_centre(tmp_path: Path) -> None:
    boxes = read_kitti_labels(_file(tmp_path, CAR)).boxes3d()
    np.testing.assert_allclose(boxes.center_m, [[2.0, 1.65 - 0.75, 20.0]], rtol=1e-6)
    bottom, top = boxes.corners_m()[0, :4], boxes.corners_m()[0, 4:]
    np.testing.assert_allclose(bottom[:, 1], 1.65, rtol=1e-6)
    np.testing.assert_allclose(top[:, 1], 0.15, rtol=1e-5)


def test_an_empty_file_has_no_objects(tmp_path: Path) -> None:
    assert len(read_kitti_labels(_file(tmp_path, ""))) == 0
    objects = read_kitti_results(_file(tmp_path, "\n"))
    assert len(objects) == 0 and objects.scores is not None and objects.xyxy.shape == (0, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{CAR}\nCar 0 0 1.0\n", r"000007\.txt, line 2: 4 fields, expected 15: type truncated"),
        (f"{CAR} 0.9", "line 1: 16 fields, expected 15"),
        (CAR.replace("4.00", "four"), "line 1: 'four' is no number"),
        (CAR.replace("4.00", "nan"), "line 1: a value is not finite"),
        (CAR.replace("200.00", "90.00"), "line 1: the box .* has a negative size"),
        (CAR.replace("1.60", "-1.60"), r"line 1: Car has the size \[1.5, -1.6, 4.0\]"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_kitti_labels(_file(tmp_path, text))


def test_results_need_a_score(tmp_path: Path) -> None:
    assert read_kitti_results(_file(tmp_path, f"{CAR} 0.9")).scores is not None
    with pytest.raises(InputError, match=r"15 fields, expected 16: .* score"):
        read_kitti_results(_file(tmp_path, CAR))


def test_objects_labelled_in_the_image_alone_are_read(tmp_path: Path) -> None:
    unknown = CAR.replace("1.50 1.60 4.00 2.00 1.65 20.00 -1.47", "-1 -1 -1 -1000 -1000 -1000 -10")
    assert read_kitti_labels(_file(tmp_path, unknown)).size_hwl_m.tolist() == [[-1.0, -1.0, -1.0]]


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*000007\.txt: No such file"):
        read_kitti_labels(tmp_path / "000007.txt")
    (tmp_path / "000007.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="is no text file"):
        read_kitti_labels(tmp_path / "000007.txt")


def test_arrays_of_another_length_are_refused() -> None:
    one, none = np.zeros(1), np.zeros(0)
    with pytest.raises(InputError, match=r"KittiObjects.xyxy must have shape \(1, 4\), got \(0, 4\)"):
        KittiObjects(("Car",), one, one.astype(int), one, np.zeros((0, 4)), np.zeros((1, 3)), np.zeros((1, 3)), one)
    with pytest.raises(InputError, match="scores"):
        KittiObjects(
            ("Car",), one, one.astype(int), one, np.zeros((1, 4)), np.zeros((1, 3)), np.zeros((1, 3)), one, none
        )


@given(
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=7, max_size=7),
    score=st.floats(0, 1, width=32),
    rows=st.integers(0, 3),
)
def test_what_is_written_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], score: float, rows: int
) -> None:
    boxes = Boxes3D(
        np.tile(np.float32(values[:3]), (rows, 1)),
        np.tile(np.float32(values[3:6]), (rows, 1)),
        np.full(rows, values[6], np.float32),
    )
    detections = _detections(boxes, rows)
    detections.scores[:] = score
    objects = kitti_from_detections(detections)
    path = tmp_path_factory.mktemp("results") / "000000.txt"
    write_kitti_results(path, objects)
    again = read_kitti_results(path)
    assert again.types == objects.types
    for name in ("truncated", "occluded", "alpha_rad", "xyxy", "size_hwl_m", "location_m", "yaw_rad", "scores"):
        np.testing.assert_array_equal(getattr(again, name), getattr(objects, name))
    assert [file.name for file in path.parent.iterdir()] == ["000000.txt"]


def test_results_are_written_in_the_official_columns(tmp_path: Path) -> None:
    path = tmp_path / "000000.txt"
    write_kitti_results(path, kitti_from_detections(_detections(_boxes3d([0.0, 1.0, 10.0], [2.0, 1.5, 4.0], 0.5))))
    fields = path.read_text().split()
    assert fields[:3] == ["Car", "-1", "-1"] and len(fields) == 16
    numbers = [0.5, 10.0, 20.0, 30.0, 40.0, 2.0, 1.5, 4.0, 0.0, 2.0, 10.0, 0.5, 0.3]
    assert [float(field) for field in fields[3:]] == pytest.approx(numbers)


def test_detections_without_3d_boxes_are_marked_unknown() -> None:
    objects = kitti_from_detections(_detections())
    assert objects.alpha_rad.tolist() == [-10.0] and objects.yaw_rad.tolist() == [-10.0]
    assert objects.size_hwl_m.tolist() == [[-1.0] * 3] and objects.location_m.tolist() == [[-1000.0] * 3]


@given(angle=st.floats(-math.pi, math.pi), x=st.floats(-30, 30), z=st.floats(1, 60))
def test_alpha_is_the_yaw_seen_from_the_camera(angle: float, x: float, z: float) -> None:
    alpha = kitti_from_detections(_detections(_boxes3d([x, 1.0, z], [1.0, 1.0, 1.0], angle))).alpha_rad[0]
    assert abs(alpha) <= math.pi + 1e-4
    difference = alpha + math.atan2(x, z) - angle
    assert abs(math.remainder(difference, 2 * math.pi)) < 2e-4


def test_labels_results_and_spaces_are_not_written_as_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs scores"):
        write_kitti_results(tmp_path / "a.txt", read_kitti_labels(_file(tmp_path, CAR)))
    with pytest.raises(InputError, match="'traffic light' cannot be in a KITTI file"):
        write_kitti_results(tmp_path / "a.txt", kitti_from_detections(_detections(class_names=("traffic light",))))
    with pytest.raises(InputError, match=r"cannot write .*No such file"):
        write_kitti_results(tmp_path / "none" / "a.txt", kitti_from_detections(_detections()))
    assert not (tmp_path / "a.txt").exists()


def test_the_projection_of_the_left_colour_camera_is_read(tmp_path: Path) -> None:
    projection = read_kitti_calib(_file(tmp_path, f"P0: {P2.replace('7.2', '1.0')}\nP2: {P2}\nR0_rect: 1 0 0\n"))
    assert projection.shape == (3, 4) and projection.dtype == np.float64
    assert projection[0].tolist() == [720.0, 0.0, 610.0, 45.0] and projection[2, 3] == 0.0027


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"P0: {P2}\n", "has no P2"),
        ("", "has no P2"),
        ("P2: 1 2 3\n", r"000007\.txt, line 1: P2 has 3 numbers, expected 12"),
        (f"P0: 1\nP2: {P2.replace('45', 'x')}".replace("4.5", "x"), "line 2: 'xe.01' is no number"),
    ],
)
def test_a_bad_calib_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_kitti_calib(_file(tmp_path, text))


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    for folder in ("training/image_2", "training/label_2", "training/calib", "ImageSets"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("000003", "000001", "000002"):
        (tmp_path / "training" / "label_2" / f"{name}.txt").write_text(CAR)
    (tmp_path / "training" / "image_2" / "000001.jpg").touch()
    (tmp_path / "training" / "image_2" / "000002.png").touch()
    (tmp_path / "ImageSets" / "train.txt").write_text("000003\n000001\n\n")
    (tmp_path / "ImageSets" / "val.txt").write_text("000002\n")
    return tmp_path


def test_frames_of_a_folder(kitti: Path) -> None:
    folder = KittiFolder(kitti)
    assert folder.frame_names() == ("000001", "000002", "000003")
    assert folder.frame_names("train") == ("000003", "000001")
    assert folder.image_path("000001").name == "000001.jpg" and folder.image_path("000002").name == "000002.png"
    assert len(read_kitti_labels(folder.label_path("000003"))) == 1


def test_what_a_folder_lacks_is_named(kitti: Path, tmp_path: Path) -> None:
    folder = KittiFolder(kitti)
    with pytest.raises(InputError, match=r"there is no split test .* there are: train, val"):
        folder.frame_names("test")
    with pytest.raises(InputError, match="frame 000003 has no picture"):
        folder.image_path("000003")
    with pytest.raises(InputError, match=r"cannot read .*calib/000003\.txt"):
        read_kitti_calib(folder.calib_path("000003"))
    (kitti / "ImageSets" / "val.txt").write_text("000002\n000009\n")
    with pytest.raises(InputError, match=r"val names 1 frames without a label, the first is .*000009\.txt"):
        folder.frame_names("val")
    (kitti / "ImageSets" / "val.txt").write_text("\n")
    with pytest.raises(InputError, match="names no frames"):
        folder.frame_names("val")
    with pytest.raises(InputError, match="is no KITTI folder"):
        KittiFolder(tmp_path / "training")
