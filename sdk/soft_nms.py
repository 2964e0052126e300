"""Merging what several passes over one image found: soft non-maximum suppression.

Soft-NMS (arXiv:1704.04503), Gaussian form. Objects as Points (arXiv:1904.07850), sec. 5, "Inference": "For
multi-scale, we use NMS to merge results"; the official code uses this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .results import Detections, Keypoints

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

# Of the official code.
SIGMA = 0.5
LOWEST_SCORE = 0.001


def soft_nms(
    xyxy: FloatArray,
    scores: FloatArray,
    *,
    sigma: float = SIGMA,
    lowest_score: float = LOWEST_SCORE,
    border_px: float = 0.0,
) -> tuple[IntArray, FloatArray]:
    """Lower the scores of boxes that overlap better ones, instead of removing them: s <- s exp(-IoU^2 / sigma).

    Args:
        xyxy: (N, 4) boxes of one class.
        scores: (N,).
        sigma: the smaller, the more an overlap costs.
        lowest_score: boxes whose score falls below it are dropped; what overlaps nothing is never dropped.
        border_px: added to widths and heights when areas are measured; the official code counts 1 for boxes
            whose last pixel is inside.

    Returns:
        The M rows that are left and their (M,) float64 scores, by falling score; among equals the first row goes
        first.

    >>> rows, scores = soft_nms(np.array([[0, 0, 9, 9], [50, 0, 59, 9], [0, 0, 9, 9]]), np.array([0.5, 0.7, 0.9]))
    >>> rows.tolist(), scores.round(3).tolist()
    ([2, 1, 0], [0.9, 0.7, 0.068])
    """
    xyxy, scores = xyxy.astype(np.float64), scores.astype(np.float64)
    left = np.arange(len(scores))
    kept: list[int] = []
    while len(left):
        best = left[np.argmax(scores[left])]
        kept.append(int(best))
        left = left[left != best]
        overlap = _iou(xyxy[best], xyxy[left], border_px)
        scores[left] *= np.exp(-(overlap**2) / sigma)
        left = left[(overlap == 0) | (scores[left] >= lowest_score)]
    rows = np.array(kept, np.int64)
    return rows, scores[rows]


def merge(found: Sequence[Detections], *, limit: int, border_px: float = 0.0) -> Detections:
    """One set of detections from several of the same image: soft-NMS within each class, the best `limit` kept.

    Keypoints stay with their box; none is averaged.

    Args:
        found: at least one, all of one model, in pixels of one image.
        limit: how many detections are kept.
        border_px: as in `soft_nms`.

    Returns:
        At most `limit` detections by falling, lowered score.
    """
    together = _joined(found)
    rows, scores = [], []
    for class_id in np.unique(together.class_ids):
        of_class = np.flatnonzero(together.class_ids == class_id)
        kept, lowered = soft_nms(together.xyxy[of_class], together.scores[of_class], border_px=border_px)
        rows.append(of_class[kept])
        scores.append(lowered)
    if not rows:
        return together
    all_rows, all_scores = np.concatenate(rows), np.concatenate(scores)
    best = np.argsort(-all_scores, kind="stable")[:limit]
    kept_rows = all_rows[best]
    return Detections(
        together.xyxy[kept_rows],
        all_scores[best].astype(np.float32),
        together.class_ids[kept_rows],
        together.class_names,
        None if together.keypoints is None else together.keypoints[kept_rows],
    )


def _iou(box: FloatArray, boxes: FloatArray, border_px: float) -> FloatArray:
    """(N,) overlap of one (4,) box with (N, 4) boxes, in 0..1; 0 for boxes without area."""
    corner_low, corner_high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.clip(corner_high - corner_low + border_px, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2] + border_px).prod(axis=1)
    union = (box[2:] - box[:2] + border_px).prod() + areas - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _joined(found: Sequence[Detections]) -> Detections:
    points = [detections.keypoints for detections in found if detections.keypoints is not None]
    keypoints = None
    if points:
        keypoints = Keypoints(np.concatenate([p.xy for p in points]), np.concatenate([p.scores for p in points]))
    return Detections(
        np.concatenate([detections.xyxy for detections in found]),
        np.concatenate([detections.scores for detections in found]),
        np.concatenate([detections.class_ids for detections in found]),
        found[0].class_names,
        keypoints,
    )
