"""Soft-NMS against a literal loop, and merging with known answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.soft_nms import merge, soft_nms
from tests.helpers import make_detections


def literal_soft_nms(boxes: list[list[float]], border: float) -> list[tuple[int, float]]:
    """Row and score of each box that is left, one box and one pair at a time; rows are [x1, y1, x2, y2, score]."""
    left = {row: box[4] for row, box in enumerate(boxes)}
    out = []
    while left:
        best = max(left, key=lambda row: (left[row], -row))
        out.append((best, left.pop(best)))
        a = boxes[best]
        for row in list(left):
            b = boxes[row]
            width = min(a[2], b[2]) - max(a[0], b[0]) + border
            height = min(a[3], b[3]) - max(a[1], b[1]) + border
            if width <= 0 or height <= 0:
                continue
            areas = [(c[2] - c[0] + border) * (c[3] - c[1] + border) for c in (a, b)]
            iou = width * height / (sum(areas) - width * height)
            left[row] *= math.exp(-(iou**2) / 0.5)
            if left[row] < 0.001:
                del left[row]
    return out


boxes = st.tuples(*[st.integers(0, 30)] * 4, st.floats(0.0, 1.0, width=32)).map(
    lambda b: [float(min(b[0], b[2])), float(min(b[1], b[3])), float(max(b[0], b[2])), float(max(b[1], b[3])), b[4]]
)


@given(rows=st.lists(boxes, max_size=12), border=st.sampled_from([0.0, 1.0]))
def test_it_equals_the_literal_loop(rows: list[list[float]], border: float) -> None:
    table = np.array(rows, np.float64).reshape(-1, 5)
    kept, scores = soft_nms(table[:, :4], table[:, 4], border_px=border)
    expected = literal_soft_nms(rows, border)
    assert kept.tolist() == [row for row, _ in expected]
    np.testing.assert_allclose(scores, [score for _, score in expected], rtol=1e-9, atol=1e-300)


@given(rows=st.lists(boxes, max_size=12))
def test_scores_only_fall_and_come_in_order(rows: list[list[float]]) -> None:
    table = np.array(rows, np.float64).reshape(-1, 5)
    kept, scores = soft_nms(table[:, :4], table[:, 4])
    assert (scores <= table[kept, 4]).all()
    assert (np.diff(scores) <= 0).all()
    assert len(set(kept.tolist())) == len(kept)


def test_pixels_of_the_border_count_where_asked() -> None:
    # 10 px wide with the border, 5 of them shared: IoU 1/3 with, 4/14 without.
    table = np.array([[0.0, 0, 9, 9], [5, 0, 14, 9]])
    for border, iou in ((1.0, 5 / 15), (0.0, 4 / 14)):
        _, scores = soft_nms(table, np.array([0.9, 0.8]), border_px=border)
        assert scores[1] == pytest.approx(0.8 * math.exp(-(iou**2) / 0.5))


def test_one_object_seen_twice_is_kept_once_near_its_score() -> None:
    merged = merge([make_detections([[0, 0, 10, 10]], [0.8]), make_detections([[0, 0, 10, 10]], [0.9])], limit=100)
    np.testing.assert_allclose(merged.scores, [0.9, 0.8 * math.exp(-2)], rtol=1e-6)


def test_classes_do_not_touch_each_other() -> None:
    both = make_detections([[0, 0, 10, 10], [0, 0, 10, 10]], [0.9, 0.8], [0, 1])
    np.testing.assert_allclose(merge([both], limit=100).scores, [0.9, 0.8], rtol=1e-6)


def test_keypoints_travel_with_their_box_and_the_best_are_kept() -> None:
    def person(x: float, score: float) -> Any:
        return make_detections([[x, 0, x + 10, 10]], [score], keypoints_xy=np.full((1, 3, 2), x))

    merged = merge([person(0, 0.3), person(20, 0.9), person(40, 0.6)], limit=2)
    assert merged.keypoints is not None
    np.testing.assert_array_equal(merged.xyxy[:, 0], [20, 40])
    np.testing.assert_array_equal(merged.keypoints.xy[:, 0, 0], [20, 40])
    assert merged.xyxy.dtype == merged.scores.dtype == np.float32 and merged.class_ids.dtype == np.int64


def test_nothing_merges_to_nothing() -> None:
    assert len(merge([make_detections([]), make_detections([])], limit=10)) == 0
