"""Which detections KITTI counts as right and as wrong, and the precision over recall that follows.

Each ground-truth object takes, in the order of its file, one detection of its frame that overlaps it enough. That is
done for up to 41 score thresholds. Frames do not touch each other, so all frames and thresholds are matched at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .kitti import DONT_CARE, KittiObjects, joined_objects
from .kitti_overlap import Metric, covered, ious

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Found in their place, these count neither for nor against.
_NEIGHBOURS = {"Car": "Van", "Pedestrian": "Person_sitting"}
_NUM_RECALLS = 41  # 0, 1/40 ... 1


@dataclass(frozen=True)
class Difficulty:
    """What an object must be for a detector to have to find it."""

    min_height_px: float
    max_occluded: int
    max_truncated: float


DIFFICULTIES = (Difficulty(40, 0, 0.15), Difficulty(25, 1, 0.3), Difficulty(25, 2, 0.5))


@dataclass(frozen=True)
class FrameRows:
    """The objects of all frames, one frame after the other."""

    objects: KittiObjects
    types: npt.NDArray[np.str_]  # in lower case
    frame: IntArray

    @classmethod
    def joined(cls, frames: Sequence[KittiObjects]) -> FrameRows:
        objects = joined_objects(frames)
        types = np.array([kind.lower() for kind in objects.types], np.str_)
        counts = np.array([len(frame) for frame in frames], np.int64)
        return cls(objects, types, np.repeat(np.arange(len(frames)), counts))

    def __len__(self) -> int:
        return len(self.types)

    @property
    def scores(self) -> FloatArray:
        assert self.objects.scores is not None  # evaluate_kitti has looked
        return self.objects.scores

    @property
    def height_px(self) -> FloatArray:
        return np.asarray(self.objects.xyxy[:, 3] - self.objects.xyxy[:, 1])


@dataclass(frozen=True)
class Candidates:
    """Pairs of a ground-truth object and a detection of the same frame that overlap enough, for one class.

    Attributes:
        truth_rows, found_rows: (P,) of the pairs.
        overlaps: (P,) IoU.
        is_class: (N,) whether a ground-truth object is of the class; in pairs, others are of the neighbouring one.
        is_class_found: (M,) whether a detection is of the class.
        in_dont_care: (M,) whether a detection lies in a region that nobody labelled.
    """

    truth: FrameRows
    found: FrameRows
    truth_rows: IntArray
    found_rows: IntArray
    overlaps: FloatArray
    is_class: BoolArray
    is_class_found: BoolArray
    in_dont_care: BoolArray

    @classmethod
    def between(cls, truth: FrameRows, found: FrameRows, name: str, metric: Metric, threshold: float) -> Candidates:
        is_class, is_class_found = truth.types == name.lower(), found.types == name.lower()
        is_neighbour = truth.types == _NEIGHBOURS.get(name, "").lower()
        # Low detections can be taken whatever their class: the official evaluator looks at the height first.
        is_low = np.abs(found.height_px) < max(difficulty.min_height_px for difficulty in DIFFICULTIES)
        rows = _pairs(truth, found, is_class | is_neighbour, is_class_found | is_low)
        overlaps = ious(truth.objects, found.objects, *rows, metric)
        keep = overlaps > threshold
        regions, inside = _pairs(truth, found, truth.types == DONT_CARE, is_class_found)
        in_dont_care = np.zeros(len(found), bool)
        in_dont_care[inside[covered(truth.objects, found.objects, regions, inside, metric) > threshold]] = True
        return cls(truth, found, rows[0][keep], rows[1][keep], overlaps[keep], is_class, is_class_found, in_dont_care)


def _pairs(truth: FrameRows, found: FrameRows, in_truth: BoolArray, in_found: BoolArray) -> tuple[IntArray, IntArray]:
    """All pairs of the chosen ground truth and detections within a frame: (P,) and (P,) rows."""
    truth_rows, found_rows = np.flatnonzero(in_truth), np.flatnonzero(in_found)
    first = np.searchsorted(found.frame[found_rows], truth.frame[truth_rows], side="left")
    last = np.searchsorted(found.frame[found_rows], truth.frame[truth_rows], side="right")
    counts = last - first
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(truth_rows, counts), found_rows[np.repeat(first, counts) + within]


def recall_curves(candidates: Candidates, difficulty: Difficulty) -> tuple[FloatArray, FloatArray] | None:
    """Precision and orientation similarity at the 41 recall positions, (41,) each; None without ground truth."""
    truth, found = candidates.truth, candidates.found
    is_hidden = (
        (truth.objects.occluded > difficulty.max_occluded)
        | (truth.objects.truncated > difficulty.max_truncated)
        | (truth.height_px < difficulty.min_height_px)
    )
    counts_truth = candidates.is_class & ~is_hidden
    if not counts_truth.any():
        return None
    is_low = np.abs(found.height_px) < difficulty.min_height_px
    matching = _Matching(candidates, counts_truth, candidates.is_class_found & ~is_low, is_low)
    thresholds = _score_thresholds(matching.true_positive_scores(), int(counts_truth.sum()))
    true_positives, false_positives, similarity = matching.count(thresholds)
    positives = np.maximum(true_positives + false_positives, 1)
    return _recall_curve(true_positives / positives), _recall_curve(similarity / positives)


def _score_thresholds(scores: FloatArray, num_truth: int) -> FloatArray:
    """Of the true positives' scores, those whose recall is nearest to 0, 1/40, 2/40 ...; at most 41, falling."""
    ordered = np.sort(scores)[::-1].tolist()
    thresholds = []
    recall = 0.0
    for i, score in enumerate(ordered):
        is_last = i == len(ordered) - 1
        here, after = (i + 1) / num_truth, (i + 2) / num_truth
        if not is_last and after - recall < recall - here:
            continue
        thresholds.append(score)
        recall += 1.0 / (_NUM_RECALLS - 1.0)
    return np.array(thresholds, np.float64)


def _recall_curve(values: FloatArray) -> FloatArray:
    """Values at the thresholds -> (41,), each the greatest from there on; positions that were not reached are 0."""
    curve = np.zeros(_NUM_RECALLS)
    curve[: len(values)] = np.maximum.accumulate(values[::-1])[::-1]
    return curve


class _Matching:
    """Who takes whom at one difficulty.

    Args:
        candidates: the pairs that overlap enough.
        counts_truth: (N,) ground truth that must be found; other candidates only take detections away.
        counts_found: (M,) detections of the class that are high enough.
        is_low: (M,) detections of any class that are not; taken, they count neither for nor against.
    """

    def __init__(
        self, candidates: Candidates, counts_truth: BoolArray, counts_found: BoolArray, is_low: BoolArray
    ) -> None:
        self._found, self._truth = candidates.found, candidates.truth
        keep = counts_found[candidates.found_rows] | is_low[candidates.found_rows]
        self._truth_rows, self._found_rows = candidates.truth_rows[keep], candidates.found_rows[keep]
        self._overlaps = candidates.overlaps[keep]
        self._is_low = is_low[self._found_rows]
        self._is_true = counts_truth[self._truth_rows] & ~self._is_low
        self._is_false_if_free = counts_found & ~candidates.in_dont_care

    def true_positive_scores(self) -> FloatArray:
        """Scores when each object takes the candidate of the highest score."""
        scores = self._found.scores[self._found_rows]
        order = np.lexsort((self._found_rows, -scores, self._truth_rows))
        won = self._won(order, np.array([-np.inf]))[:, 0]
        return np.asarray(scores[won & self._is_true])

    def count(self, thresholds: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """True positives, false positives and the sum of orientation similarities at T thresholds, (T,) each.

        Each object takes, of the detections that score enough, the one with the greatest overlap. Low ones are left
        out: an object takes one only where there is no other, and then neither of the two counts.
        """
        order = np.lexsort((self._found_rows, -self._overlaps, self._truth_rows))
        won = self._won(order[~self._is_low[order]], thresholds).astype(np.float64)
        delta_rad = self._truth.objects.alpha_rad[self._truth_rows] - self._found.objects.alpha_rad[self._found_rows]
        similarity = np.where(self._is_true, (1 + np.cos(delta_rad)) / 2, 0.0)
        scores = np.sort(self._found.scores[self._is_false_if_free])
        num_free = len(scores) - np.searchsorted(scores, thresholds, side="left")
        taken = self._is_false_if_free[self._found_rows] @ won
        return self._is_true @ won, num_free - taken, similarity @ won

    def _won(self, order: IntArray, thresholds: FloatArray) -> BoolArray:
        """Which pairs come about at each threshold, (P, T), when objects choose in turn.

        Args:
            order: of the pairs that take part: by object, then by the object's preference.
        """
        won = np.zeros((len(self._truth_rows), len(thresholds)), bool)
        scores = self._found.scores[self._found_rows]
        is_taken = np.zeros((len(self._found), len(thresholds)), bool)
        has_taken = np.zeros((len(self._truth), len(thresholds)), bool)
        for pairs in _turns(order, self._truth.frame[self._truth_rows[order]]):
            truth, found = self._truth_rows[pairs], self._found_rows[pairs]
            won[pairs] = (scores[pairs, None] >= thresholds) & ~has_taken[truth] & ~is_taken[found]
            has_taken[truth] |= won[pairs]
            is_taken[found] |= won[pairs]
        return won


def _turns(order: IntArray, frame: IntArray) -> Iterator[IntArray]:
    """The first pair of every frame, then the second one, and so on: frames do not touch each other.

    Args:
        order: (P,) pairs, frame by frame.
        frame: (P,) of the pairs in this order.
    """
    turn = np.arange(len(frame)) - np.searchsorted(frame, frame, side="left")
    by_turn = order[np.argsort(turn, kind="stable")]
    yield from np.split(by_turn, np.cumsum(np.bincount(turn))[:-1]) if len(turn) else ()
