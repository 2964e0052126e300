from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdk
from sdk.camera import CameraIntrinsics
from sdk.errors import InputError
from sdk.geometry import Affine, letterbox
from tests.helpers import Array

K = np.array([[700.0, 0.0, 600.0], [0.0, 710.0, 180.0], [0.0, 0.0, 1.0]])
P = np.column_stack([K, [45.0, -0.3, 0.005]])

ROWS = "700., 0., 600., 0., 710.,\n       180., 0., 0., 1."
OPENCV = f"""%YAML:1.0
---
calibration_time: "Tue 01 Jan 2030 10:00:00"
image_width: 1242
flags: 0
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ {ROWS} ]
distortion_coefficients: !!opencv-matrix
   rows: 5
   cols: 1
   dt: d
   data: [ -4.1e-01, 5.e-01, 0., 0., -5.7e-01 ]
avg_reprojection_error: 2.9e-01
"""
ROS = """image_width: 1242
image_height: 375
camera_name: front  # the left one
camera_matrix:
  rows: 3
  cols: 3
  data: [700, 0, 600, 0, 710, 180, 0, 0, 1]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [0.1, 0, 0, 0, 0]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1, 0, 0, 0, 1, 0, 0, 0, 1]
projection_matrix:
  rows: 3
  cols: 4
  data: [690, 0, 590, 0, 0, 690, 170, 0, 0, 0, 1, 0]
"""
BLOCK = "\n".join(f"  - {number}" for number in K.ravel())
KITTI = "\n".join(f"P{i}: " + " ".join(f"{x:.12e}" for x in (P + i - 2).ravel()) for i in range(4))


def _write(folder: Path, text: str) -> Path:
    path = folder / "intrinsics.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (KITTI, P),
        (KITTI.replace("\n", "\r\n"), P),
        (OPENCV, K),
        (OPENCV.replace("camera_matrix", "cameraMatrix"), K),
        (OPENCV.replace("camera_matrix", "Left"), K),  # the only 3x3 node
        (ROS, K),
        (ROS.replace("camera_matrix", "other"), [[690, 0, 590, 0], [0, 690, 170, 0], [0, 0, 1, 0]]),
        (f"camera_matrix:\n  cols: 3\n  data:\n{BLOCK}\n  rows: 3\nimage_width: 9\n", K),
        (f"camera_matrix: {{rows: 3, cols: 3, data: {K.ravel().tolist()}}}\n", K),
        (f"height: 480\nD: [0, 0, 0, 0, 0]\nK: {K.ravel().tolist()}\nR: [1, 0, 0, 0, 1, 0, 0, 0, 1]\n", K),
        (f"k:\n{BLOCK.replace('  -', '-')}\nr: [1, 0, 0, 0, 1, 0, 0, 0, 1]\n", K),
        (f"camera_matrix: {K.tolist()}\n", K),
    ],
)
def test_the_files_that_cameras_come_with(tmp_path: Path, text: str, expected: Array) -> None:
    camera = sdk.CameraIntrinsics.from_file(_write(tmp_path, text))
    np.testing.assert_allclose(camera.matrix, expected)


def test_a_file_that_opencv_writes(tmp_path: Path) -> None:
    import cv2

    path = str(tmp_path / "camera.yml")
    storage = cv2.FileStorage(path, cv2.FILE_STORAGE_WRITE)
    storage.write("image_width", 640)
    storage.write("camera_matrix", K + np.array([[0, 0, 1e-7], [0, 1 / 3, 0], [0, 0, 0]]))
    storage.write("distortion_coefficients", np.zeros((1, 5)))
    storage.write("points", np.zeros((3, 4, 2), np.float32))
    storage.release()
    np.testing.assert_allclose(
        CameraIntrinsics.from_file(path).matrix, K + np.array([[0, 0, 1e-7], [0, 1 / 3, 0], [0, 0, 0]]), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("P0: 1 2 3\nP1: 1 2\n", "no line P2:"),
        ("P2: 1 2 3\n", r"P2 has 3 numbers, expected 12 \(3x4\)"),
        ("P2: " + "x " * 12, "P2 holds something other than numbers: .*'x'"),
        ("P2: " + "0 " * 12, r"intrinsics.txt: camera matrix .* has no focal length"),
        ("", "no camera matrix; expected a KITTI calib file with a line P2:, or a YAML"),
        ("fx: 700\nfy: 700\n", "no camera matrix"),
        (OPENCV.replace("rows: 3", "rows: 2"), "no camera matrix"),
        (OPENCV.replace("180.,", ""), r"camera_matrix has 8 numbers, expected 9 \(3x3\)"),
        (OPENCV.replace("180.", ".Nan"), "camera_matrix holds something other than numbers"),
        (ROS.replace("700", "nan"), "all finite"),
        (
            ROS.replace("camera_matrix", "M1").replace("projection_matrix", "M2"),
            "several matrices, M1, rect.*, M2; name the camera's",
        ),
        (f"K: {K.T.ravel().tolist()}", "third row .* is it transposed"),
    ],
)
def test_what_holds_no_camera_says_so(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        CameraIntrinsics.from_file(_write(tmp_path, text))
    assert "intrinsics.txt" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_text_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing.txt cannot be read: No such file"):
        CameraIntrinsics.from_file(tmp_path / "missing.txt")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        CameraIntrinsics.from_file(tmp_path)
    path = tmp_path / "video.mp4"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match=r"video.mp4: no camera matrix"):
        CameraIntrinsics.from_file(path)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(4), r"shape \(4, 4\); expected 3x3, or 3x4 for a KITTI P"),
        (np.eye(3) * np.nan, "all finite"),
        (np.zeros((3, 3)), "no focal length"),
        (K.T, "third row .*transposed"),
        ("camera", "no array of numbers"),
        ([[1, 2], [3]], "no array of numbers"),
    ],
)
def test_what_is_no_camera_matrix(matrix: Array, message: str) -> None:
    with pytest.raises(InputError, match=message):
        CameraIntrinsics(matrix)


def test_the_matrix_is_the_cameras_own() -> None:
    mine = K.copy()
    camera = CameraIntrinsics(mine)
    mine[:] = 7
    np.testing.assert_array_equal(camera.matrix, K)


points = st.tuples(st.floats(-50, 50), st.floats(-5, 5), st.floats(0.5, 100))


@given(point=points, matrix=st.sampled_from([K, P]))
def test_unprojecting_undoes_projecting(point: tuple[float, float, float], matrix: Array) -> None:
    camera = CameraIntrinsics(matrix)
    pixel = camera.project(np.array(point))
    homogeneous = camera.projection @ [*point, 1.0]
    np.testing.assert_allclose(pixel, homogeneous[:2] / homogeneous[2], rtol=1e-9)
    np.testing.assert_allclose(camera.unproject(pixel, np.array(point[2])), point, atol=1e-9)


@given(point=points, matrix=st.sampled_from([K, P]), mirrored=st.booleans())
def test_a_moved_camera_sees_the_moved_picture(
    point: tuple[float, float, float], matrix: Array, mirrored: bool
) -> None:
    box = letterbox((1242, 375), (640, 192)).image_to_input
    if mirrored:
        box = Affine(box.matrix * [[-1], [1]] + [[0, 0, 640], [0, 0, 0]], "image", "input")
    camera = CameraIntrinsics(matrix)
    moved = camera.moved(box)
    np.testing.assert_allclose(moved.project(np.array(point)), box.apply(camera.project(np.array(point))), atol=1e-6)
    assert moved.focal_px == pytest.approx(700 * abs(box.matrix[0, 0]))
