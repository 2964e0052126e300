from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sdk.errors import InputError
from sdk.results import Boxes3D, Detections, Frame, FrameResult, Keypoints
from tests.helpers import make_detections

BOXES = [[0, 0, 10, 10], [10, 10, 30, 30], [5, 5, 6, 7], [1, 2, 3, 4]]


def _full() -> Detections:
    """Four detections with every optional part."""
    detections = make_detections(BOXES, [0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1], keypoints_xy=np.zeros((4, 3, 2)))
    detections.boxes3d = Boxes3D(
        np.arange(12, dtype=np.float32).reshape(4, 3), np.ones((4, 3), np.float32), np.zeros(4, np.float32)
    )
    detections.track_ids = np.array([7, 8, 9, 10])
    return detections


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (0, [0]),
        (-1, [3]),
        (np.int64(2), [2]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        ([2, 0], [2, 0]),
        ([-1, -1], [3, 3]),
        ([True, False, False, True], [0, 3]),
        ([], []),
        (np.array([False, True, False, False]), [1]),
        (np.array([3, 1]), [3, 1]),
        (np.zeros(0, np.int64), []),
    ],
)
def test_indexing_takes_rows_of_every_part(index: Any, rows: list[int]) -> None:
    whole, part = _full(), _full()[index]
    assert len(part) == len(rows)
    assert part.class_names == whole.class_names
    assert part.keypoints is not None and part.boxes3d is not None and part.track_ids is not None
    assert whole.boxes3d is not None and whole.track_ids is not None
    np.testing.assert_array_equal(part.xyxy, whole.xyxy[rows])
    np.testing.assert_array_equal(part.scores, whole.scores[rows])
    np.testing.assert_array_equal(part.boxes3d.center_m, whole.boxes3d.center_m[rows])
    np.testing.assert_array_equal(part.track_ids, whole.track_ids[rows])
    assert part.keypoints.xy.shape == (len(rows), 3, 2)


@pytest.mark.parametrize("index", [4, -5, np.int64(100)])
def test_an_index_outside_raises(index: int) -> None:
    with pytest.raises(IndexError, match="4 rows"):
        _full()[index]


def test_optional_parts_stay_absent() -> None:
    part = make_detections(BOXES)[1:]
    assert part.keypoints is None and part.boxes3d is None and part.track_ids is None


def test_iteration_gives_one_object_at_a_time() -> None:
    rows = list(_full())
    assert [len(row) for row in rows] == [1, 1, 1, 1]
    assert [float(row.scores[0]) for row in rows] == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert list(make_detections([])) == []


def test_to_dict_has_the_documented_fields_and_is_json() -> None:
    row = json.loads(_full().to_json())[1]
    assert row == {
        "class_id": 1,
        "class_name": "dog",
        "score": 0.8,
        "xyxy": [10.0, 10.0, 30.0, 30.0],
        "keypoints": [[0.0, 0.0, 1.0]] * 3,
        "box3d": {"center_m": [3.0, 4.0, 5.0], "size_hwl_m": [1.0, 1.0, 1.0], "yaw_rad": 0.0},
        "track_id": 8,
    }


def test_to_dict_of_plain_boxes_has_nulls() -> None:
    row = json.loads(make_detections(BOXES[:1]).to_json())[0]
    assert row["keypoints"] is None and row["box3d"] is None and row["track_id"] is None
    assert make_detections([]).to_json() == "[]"


def test_frame_result_is_one_json_line() -> None:
    frame = Frame(np.zeros((4, 4, 3), np.uint8), 3, "video.mp4", 123)
    result = FrameResult(frame, make_detections(BOXES[:2]), {"inference": 1.23456}, 2.34567, 4)
    data = json.loads(json.dumps(result.to_dict()))
    assert list(data) == ["index", "source", "capture_ns", "age_ms", "dropped", "ms", "detections"]
    assert (data["index"], data["dropped"], data["ms"]) == (3, 4, {"inference": 1.235})
    assert len(data["detections"]) == 2


def _float32(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Detections(_float32(2, 5), _float32(2), np.zeros(2, int), ()), r"xyxy .*\('N', 4\), got \(2, 5\)"),
        (lambda: Detections(_float32(2, 4), _float32(3), np.zeros(2, int), ()), r"scores .*\(2,\), got \(3,\)"),
        (lambda: Detections(_float32(2, 4), _float32(2), np.zeros((2, 1), int), ()), r"class_ids .*got \(2, 1\)"),
        (
            lambda: Detections(_float32(2, 4), _float32(2), np.zeros(2, int), (), track_ids=np.zeros(1, int)),
            r"track_ids .*\(2,\), got \(1,\)",
        ),
        (
            lambda: Detections(
                _float32(2, 4), _float32(2), np.zeros(2, int), (), Keypoints(_float32(1, 3, 2), _float32(1, 3))
            ),
            "keypoints has 1 rows, xyxy has 2",
        ),
        (lambda: Keypoints(_float32(2, 3, 3), _float32(2, 3)), r"Keypoints.xy must have shape .*got \(2, 3, 3\)"),
        (lambda: Keypoints(_float32(2, 3, 2), _float32(2, 4)), r"Keypoints.scores .*\(2, 3\), got \(2, 4\)"),
        (lambda: Boxes3D(_float32(2, 2), _float32(2, 3), _float32(2)), r"center_m"),
        (lambda: Boxes3D(_float32(2, 3), _float32(1, 3), _float32(2)), r"size_hwl_m .*\(2, 3\), got \(1, 3\)"),
        (lambda: Boxes3D(_float32(2, 3), _float32(2, 3), _float32(2, 1)), r"yaw_rad"),
    ],
)
def test_arrays_of_another_shape_are_refused(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_corners_are_those_of_a_turned_box() -> None:
    rng = np.random.default_rng(0)
    center, size, yaw = rng.normal(0, 5, (6, 3)), rng.uniform(1, 4, (6, 3)), rng.uniform(-np.pi, np.pi, 6)
    corners = Boxes3D(center.astype(np.float32), size.astype(np.float32), yaw.astype(np.float32)).corners_m()
    assert corners.shape == (6, 8, 3) and corners.dtype == np.float32
    for i in range(6):
        height, width, length = size[i]
        # KITTI: at yaw 0 the length lies along x and the width along z; yaw turns about y, which points down.
        turn = np.array([[np.cos(yaw[i]), 0, np.sin(yaw[i])], [0, 1, 0], [-np.sin(yaw[i]), 0, np.cos(yaw[i])]])
        expected = {
            tuple(np.round(center[i] + turn @ [sx * length / 2, sy * height / 2, sz * width / 2], 3))
            for sx in (-1, 1)
            for sy in (-1, 1)
            for sz in (-1, 1)
        }
        found = {tuple(np.round(corner.astype(np.float64), 3)) for corner in corners[i]}
        assert all(min(np.abs(np.subtract(f, e)).max() for e in expected) < 2e-3 for f in found)
        assert len(found) == 8
        # The bottom four come first, and y points down.
        assert corners[i, :4, 1].min() > corners[i, 4:, 1].max()
    # A box that looks along the camera's view (yaw -90 degrees) has its length along z.
    ahead = Boxes3D(np.zeros((1, 3), np.float32), np.array([[1, 2, 4]], np.float32), np.float32([-np.pi / 2]))
    np.testing.assert_allclose(np.ptp(ahead.corners_m()[0], axis=0), [2, 1, 4], atol=1e-5)
