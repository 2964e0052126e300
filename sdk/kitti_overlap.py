"""How much boxes of KITTI overlap: in the image, on the ground (bird's-eye view) and in space, pair by pair."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .kitti import KittiObjects

Metric = Literal["2d", "bev", "3d"]
METRICS: tuple[Metric, ...] = ("2d", "bev", "3d")
FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]


def ious(
    truth: KittiObjects, found: KittiObjects, truth_rows: IntArray, found_rows: IntArray, metric: Metric
) -> FloatArray:
    """(P,) intersection over union of pairs."""
    inter = _intersections(truth, found, truth_rows, found_rows, metric)
    union = _measures(found, metric)[found_rows] + _measures(truth, metric)[truth_rows] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)


def covered(
    truth: KittiObjects, found: KittiObjects, truth_rows: IntArray, found_rows: IntArray, metric: Metric
) -> FloatArray:
    """(P,) share of the detection that lies in the other box."""
    inter = _intersections(truth, found, truth_rows, found_rows, metric)
    own = _measures(found, metric)[found_rows]
    return np.divide(inter, own, out=np.zeros_like(inter), where=own > 0)


def _measures(rows: KittiObjects, metric: Metric) -> FloatArray:
    """(N,) area in the image or on the ground, or volume."""
    if metric == "2d":
        return np.asarray((rows.xyxy[:, 2] - rows.xyxy[:, 0]) * (rows.xyxy[:, 3] - rows.xyxy[:, 1]))
    height, width, length = rows.size_hwl_m.T
    return np.asarray(length * width if metric == "bev" else height * length * width)


def _intersections(
    truth: KittiObjects, found: KittiObjects, truth_rows: IntArray, found_rows: IntArray, metric: Metric
) -> FloatArray:
    """(P,) area or volume that pairs share."""
    if metric == "2d":
        a, b = truth.xyxy.T, found.xyxy.T
        width = np.minimum(a[2][truth_rows], b[2][found_rows]) - np.maximum(a[0][truth_rows], b[0][found_rows])
        height = np.minimum(a[3][truth_rows], b[3][found_rows]) - np.maximum(a[1][truth_rows], b[1][found_rows])
        return np.asarray(np.maximum(width, 0) * np.maximum(height, 0))
    area = _shared_footprints(truth, found, truth_rows, found_rows)
    if metric == "bev":
        return area
    bottom = np.minimum(truth.location_m[truth_rows, 1], found.location_m[found_rows, 1])  # y points down
    top = np.maximum(_top_m(truth)[truth_rows], _top_m(found)[found_rows])
    return np.asarray(area * np.maximum(bottom - top, 0))


def _top_m(rows: KittiObjects) -> FloatArray:
    return np.asarray(rows.location_m[:, 1] - rows.size_hwl_m[:, 0])


def _shared_footprints(
    truth: KittiObjects, found: KittiObjects, truth_rows: IntArray, found_rows: IntArray
) -> FloatArray:
    """(P,) area that footprints share; only those near enough to touch are looked at."""
    a, b = _footprints(truth), _footprints(found)
    reach = np.hypot(a[:, 2], a[:, 3])[truth_rows] + np.hypot(b[:, 2], b[:, 3])[found_rows]
    away = np.hypot(a[truth_rows, 0] - b[found_rows, 0], a[truth_rows, 1] - b[found_rows, 1])
    near = away < reach / 2
    area = np.zeros(len(truth_rows))
    area[near] = rotated_intersections(a[truth_rows[near]], b[found_rows[near]])
    return area


def _footprints(rows: KittiObjects) -> FloatArray:
    """(N, 5) x, z, length, width, yaw on the ground."""
    return np.column_stack([rows.location_m[:, [0, 2]], rows.size_hwl_m[:, [2, 1]], rows.yaw_rad])


def rotated_intersections(a: FloatArray, b: FloatArray) -> FloatArray:
    """Area that two rotated rectangles share, pair by pair.

    The area of a polygon is the integral of y dx around its border. In the frame of `b`, whose sides are then along
    the axes, the part inside `b` has the border of `a` with y held between the lower and the upper side, over the x
    between the left and the right one; each edge of `a` is a straight line, so that its share is exact.

    Args:
        a: (P, 5) float64 x, z, length, width, yaw (KITTI's rotation_y, from x towards -z).
        b: (P, 5) likewise.

    Returns:
        (P,) float64.

    >>> unit = np.array([[0.0, 0.0, 1.0, 1.0, 0.0]])
    >>> rotated_intersections(unit, unit + [0.25, 0, 0, 0, 0]).tolist()
    [0.75]
    """
    half_x, half_y = np.abs(b[:, 2:4].T)[:, :, None] / 2  # (P, 1) each
    start = _corners_in(a, b)  # (P, 4, 2)
    x, y = start[..., 0], start[..., 1]
    dx, dy = np.roll(x, -1, axis=1) - x, np.roll(y, -1, axis=1) - y
    # t runs from 0 to 1 along an edge; it enters and leaves the left and the right side, the lower and the upper.
    left, right = _crossings(x, dx, half_x)
    low, high = _crossings(y, dy, half_y)
    stops = np.stack([left, np.clip(low, left, right), np.clip(high, left, right), right], axis=-1)  # (P, 4, 4)
    heights = np.clip(y[..., None] + dy[..., None] * stops, -half_y[..., None], half_y[..., None])
    means = (heights[..., 1:] + heights[..., :-1]) / 2  # straight in between
    return np.asarray(np.abs((means * np.diff(stops, axis=-1) * dx[..., None]).sum(axis=(1, 2))))


def _crossings(start: FloatArray, step: FloatArray, half: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Where start + t * step enters and leaves [-half, half], as t in 0..1; (P, 4) each, equal where it never does."""
    # On an edge along the side t can be anything: its dx, or the change of y along it, is 0.
    step = np.where(np.abs(step) < 1e-30, 1e-30, step)
    first, second = (-half - start) / step, (half - start) / step
    return np.clip(np.minimum(first, second), 0, 1), np.clip(np.maximum(first, second), 0, 1)


def _corners_in(a: FloatArray, b: FloatArray) -> FloatArray:
    """(P, 4, 2) corners of `a` in the frame of `b`, one after the other along the border."""
    yaw = a[:, 4] - b[:, 4]
    cos, sin = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    x = a[:, 2, None] / 2 * np.array([1, 1, -1, -1])
    y = a[:, 3, None] / 2 * np.array([1, -1, -1, 1])
    own_cos, own_sin = np.cos(b[:, 4]), np.sin(b[:, 4])
    away_x, away_y = a[:, 0] - b[:, 0], a[:, 1] - b[:, 1]
    shift = np.stack([own_cos * away_x - own_sin * away_y, own_sin * away_x + own_cos * away_y], axis=-1)
    return np.stack([cos * x + sin * y, cos * y - sin * x], axis=-1) + shift[:, None]
