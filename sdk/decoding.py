"""From heads to objects in two halves, without non-maximum suppression.

Objects as Points (arXiv:1904.07850), sec. 4, "From points to bounding boxes": an object is a cell whose score is
not below those of its 8 neighbours. `find_peaks` is the dense half, over all cells; `assemble` the sparse
half, over what it found::

    candidates = find_peaks(heads, spec, score_threshold=0.3)
    detections = assemble(candidates, spec, feature_to_image, image_wh=(1920, 1080))

All "raw" values are before the activation. Feature coordinates count cells, (0, 0) being the corner of the first.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .camera import CameraIntrinsics
from .decoding3d import locate
from .errors import BackendError, HeadShapeError
from .geometry import Affine
from .opencv import load_cv2
from .results import Detections, Keypoints
from .spec import ModelSpec

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

# Paper, sec. 4.2: joints are detected "with a confidence > 0.1".
JOINT_THRESHOLD = 0.1
# How far the official code lets a joint snap, in longer sides of the object's box.
_OFFICIAL_REACH = 0.3
# Looking at the neighbours of each cell above the threshold beats a dense maximum filter until about
# this many cells are left (docs/benchmarks.md).
_MAX_SPARSE_CELLS = 40_000
_PIECE = 65_536  # cells that are compared with the threshold at once
_of_thread = threading.local()
_WINDOW = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class Candidates:
    """The peaks of one image, by falling score, and the raw head values at them.

    Attributes:
        scores: (N,) float32 in 0..1.
        class_ids: (N,) int64.
        cells_yx: (N, 2) int64, feature cells.
        values: head name -> (N, C) float32 raw values, for the heads that are read at the object's cell.
        joint_scores, joint_ids, joint_cells_yx, joint_offsets: (M,), (M,), (M, 2), (M, 2) the same for joints, grouped
            by rising joint id; offsets are x, y in cells. Empty where the model has no joint heatmap.
    """

    scores: Float32Array
    class_ids: IntArray
    cells_yx: IntArray
    values: dict[str, Float32Array]
    joint_scores: Float32Array
    joint_ids: IntArray
    joint_cells_yx: IntArray
    joint_offsets: Float32Array

    def __len__(self) -> int:
        return len(self.scores)


def find_peaks(heads: Mapping[str, npt.NDArray[Any]], spec: ModelSpec, *, score_threshold: float = 0.0) -> Candidates:
    """The dense half: peaks of the heatmaps, at most `spec.max_detections` of them.

    A cell as high as its highest neighbour is a peak, so each cell of a plateau is one, as in the paper's 3x3
    max-pooling. Among equal scores the lower class, then the upper, then the left cell goes first.

    Args:
        heads: raw outputs (1, C, h, w) or (C, h, w) by name.
        spec: of the model.
        score_threshold: peaks of a lower score are left out; 0 keeps all.

    Raises:
        HeadShapeError: a head is missing or has another shape than the spec says.
        BackendError: a heatmap holds NaN, or another head is not finite at a peak.
    """
    maps: dict[str, Float32Array] = {head.name: _checked(heads, head.name, head.channels, spec) for head in spec.heads}
    scores, class_ids, cells = _peaks(maps["heatmap"], score_threshold, spec.max_detections, per_channel=False)
    at_cell = [str(name) for name in maps if "heatmap" not in name]
    values = {name: _at_cells(maps, name, cells, spec) for name in at_cell}
    joints = _joint_peaks(maps, spec) if len(scores) else no_joints()
    return Candidates(scores, class_ids, cells, values, *joints)


def assemble(
    candidates: Candidates,
    spec: ModelSpec,
    feature_to_image: Affine,
    *,
    image_wh: tuple[int, int],
    score_threshold: float = 0.0,
    camera: CameraIntrinsics | None = None,
) -> Detections:
    """The sparse half: boxes and keypoints in image pixels, 3D boxes in metres.

    Args:
        candidates: from `find_peaks`, or from a graph that finds peaks itself.
        spec: of the model.
        feature_to_image: from feature cells to image pixels; scale and shift, no rotation.
        image_wh: boxes are clipped to it.
        score_threshold: candidates of a lower score are left out; 0 keeps all.
        camera: of the image; a 3D model needs it for `boxes3d`.

    Returns:
        N detections by falling score.
    """
    kept = candidates.scores >= score_threshold
    scores, class_ids = candidates.scores[kept], candidates.class_ids[kept]
    cells_xy = candidates.cells_yx[kept][:, ::-1].astype(np.float32)  # (N, 2)
    values = {name: value[kept] for name, value in candidates.values.items()}
    size = _positive_size(_own_size(values["size"], class_ids), spec)
    # Without an offset head the best guess is the middle of the cell.
    centre = cells_xy + values.get("offset", np.float32(0.5))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)  # (N, 4) feature
    unclipped = feature_to_image.apply(boxes.reshape(-1, 2, 2)).reshape(-1, 4)
    if spec.decoding == "centernet" and "3d" in spec.tasks:
        # The official 3D code maps width and height as if they were a point, so they gain the shift of the affine.
        shift = feature_to_image.matrix[:, 2] / 2
        unclipped = unclipped + np.concatenate([-shift, shift])
    xyxy = np.clip(unclipped, 0.0, np.array([*image_wh, *image_wh])).astype(np.float32)
    keypoints = boxes3d = None
    if "keypoint_offset" in values:
        regressed = _regressed_joints(values["keypoint_offset"], cells_xy, size, spec)
        points, point_scores = _matched_joints(regressed, boxes, candidates, spec)
        keypoints = Keypoints(feature_to_image.apply(points).astype(np.float32), point_scores)
    if camera is not None and "3d" in spec.tasks:
        boxes3d = locate(values, unclipped, spec, camera, feature_to_image, image_wh=image_wh)
    return Detections(xyxy, scores.copy(), class_ids.copy(), spec.class_names, keypoints, boxes3d)


def _own_size(raw: Float32Array, class_ids: IntArray) -> Float32Array:
    """(N, 2) of (N, 2), or of (N, 2C) where each class has its own size."""
    if raw.shape[1] == 2:
        return raw
    return raw.reshape(len(raw), raw.shape[1] // 2, 2)[np.arange(len(raw)), class_ids]


def _positive_size(raw: Float32Array, spec: ModelSpec) -> Float32Array:
    """(N, 2) width and height in cells."""
    if spec.head("size").activation == "exp":
        # No object is larger than e^10 cells; without the limit a broken model overflows.
        return np.exp(np.minimum(raw, 10.0), dtype=np.float32)
    return np.maximum(raw, 0.0)


def _regressed_joints(raw: Float32Array, cells_xy: Float32Array, size: Float32Array, spec: ModelSpec) -> Float32Array:
    """(N, K, 2) joints in feature cells, each an offset from the object's cell (paper, sec. 4.2)."""
    offsets = raw.reshape(len(raw), raw.shape[1] // 2, 2)  # no -1: there may be no objects
    if spec.head("keypoint_offset").activation == "box":
        offsets = offsets * size[:, None]
    return cells_xy[:, None] + offsets


def _matched_joints(
    regressed: Float32Array, boxes: Float32Array, candidates: Candidates, spec: ModelSpec
) -> tuple[Float32Array, Float32Array]:
    """Snap each regressed joint to the closest detected joint of its kind inside the object's box.

    Paper, sec. 4.2: "assign each regressed location to its closest detection keypoint considering only joint
    detections within the bounding box of the detected object". The official code takes the closest of all, and
    refuses it outside the box or further away than 0.3 of the box's longer side.

    Returns:
        (N, K, 2) joints in feature cells and (N, K) their scores; a joint without a detection stays where it
        was regressed, with score 0.
    """
    points = regressed.copy()
    scores = np.zeros(points.shape[:2], np.float32)
    kinds = candidates.joint_ids
    if not len(kinds) or not len(points):
        return points, scores
    found = candidates.joint_cells_yx[:, ::-1] + candidates.joint_offsets  # (M, 2)
    x, y = found[:, 0], found[:, 1]
    left, top, right, bottom = boxes.T[:, :, None]  # (N, 1) each
    inside = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)  # (N, M)
    squared = (regressed[:, kinds, 0] - x) ** 2 + (regressed[:, kinds, 1] - y) ** 2
    if spec.decoding == "centernet":
        reach = _OFFICIAL_REACH * np.maximum(right - left, bottom - top)
        inside &= squared <= reach**2
    else:
        squared = np.where(inside, squared, np.inf)
    is_first = np.ones(len(kinds), bool)  # of its kind
    is_first[1:] = kinds[1:] != kinds[:-1]
    closest = np.minimum.reduceat(squared, np.flatnonzero(is_first), axis=1)  # (N, kinds that were found)
    rows, chosen = np.nonzero(inside & (squared == closest[:, np.cumsum(is_first) - 1]))
    rows, chosen = rows[::-1], chosen[::-1]  # of two equally close ones the better is assigned last, and stays
    points[rows, kinds[chosen]] = found[chosen]
    scores[rows, kinds[chosen]] = candidates.joint_scores[chosen]
    return points, scores


def _joint_peaks(
    maps: dict[str, Float32Array], spec: ModelSpec
) -> tuple[Float32Array, IntArray, IntArray, Float32Array]:
    if "keypoint_heatmap" not in maps:
        return no_joints()
    scores, kinds, cells = _peaks(
        maps["keypoint_heatmap"], JOINT_THRESHOLD, spec.max_joint_candidates, per_channel=True
    )
    offsets = np.full((len(scores), 2), 0.5, np.float32)
    if "keypoint_heatmap_offset" in maps:
        offsets = _at_cells(maps, "keypoint_heatmap_offset", cells, spec)
    return scores, kinds, cells, offsets


def _at_cells(maps: dict[str, Float32Array], name: str, cells_yx: IntArray, spec: ModelSpec) -> Float32Array:
    """(N, C) values of a head at N cells."""
    values = np.ascontiguousarray(maps[name][:, cells_yx[:, 0], cells_yx[:, 1]].T)
    if not np.isfinite(values).all():
        raise damaged(name, spec)
    return values


def no_joints() -> tuple[Float32Array, IntArray, IntArray, Float32Array]:
    """The joint fields of `Candidates` where there are none."""
    no_ids = np.zeros(0, np.int64)
    return np.zeros(0, np.float32), no_ids, np.zeros((0, 2), np.int64), np.zeros((0, 2), np.float32)


def _peaks(
    logits: Float32Array, score_threshold: float, limit: int, *, per_channel: bool
) -> tuple[Float32Array, IntArray, IntArray]:
    """Scores, channels and cells (y, x) of the `limit` best peaks, overall or for each channel."""
    flat = _peak_indices(logits, logit(score_threshold))
    values = logits.ravel()[flat]
    height, width = logits.shape[1:]
    if per_channel:
        channels = flat // (height * width)
        order = np.lexsort((-values, channels))
        flat = flat[order]
        rank = np.arange(len(flat)) - np.searchsorted(channels[order], channels[order])
        flat = flat[rank < limit]
    else:
        flat = flat[_best(values, limit)]
    channels, rest = np.divmod(flat, height * width)
    cells = np.stack(np.divmod(rest, width), axis=1)
    return sigmoid(logits.ravel()[flat]), channels, cells


def _peak_indices(logits: Float32Array, threshold: float) -> IntArray:
    """Flat indices, rising, of the peaks of (C, h, w) maps that are not below the threshold."""
    above = _cells_above(logits.ravel(), threshold)
    if above is None:
        return _dense_peak_indices(logits, threshold)
    height, width = logits.shape[1:]
    y, x = above // width % height, above % width
    # A neighbour outside the map is replaced by one inside, which changes no maximum: a cell is never above itself.
    steps_y = (np.where(y > 0, -width, 0), 0, np.where(y < height - 1, width, 0))
    steps_x = (np.where(x > 0, -1, 0), 0, np.where(x < width - 1, 1, 0))
    flat = logits.ravel()
    values = flat[above]
    peak = np.ones(len(above), bool)
    for step_y in steps_y:
        for step_x in steps_x:
            peak &= values >= flat[above + (step_y + step_x)]
    return above[peak]


def _cells_above(flat: Float32Array, threshold: float) -> IntArray | None:
    """Indices, rising, of values that are not below the threshold; None where they are too many to look at one by one.

    Piece by piece through one small mask that each thread keeps. A new mask is fresh memory in each call, and at times
    the system takes it back every time: the first touch of its pages then costs many times the comparison.
    """
    if not hasattr(_of_thread, "mask"):
        _of_thread.mask = np.empty(_PIECE, np.bool_)
    mask = _of_thread.mask
    found: list[IntArray] = []
    count = 0
    for start in range(0, len(flat), _PIECE):
        piece = flat[start : start + _PIECE]
        above = np.flatnonzero(np.greater_equal(piece, threshold, out=mask[: len(piece)]))
        count += len(above)
        if count > _MAX_SPARSE_CELLS:
            return None
        if len(above):
            found.append(above + start)
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _dense_peak_indices(logits: Float32Array, threshold: float) -> IntArray:
    """The same by a maximum filter over all cells, whose cost does not depend on how many are above."""
    cv2 = load_cv2()
    highest = np.empty_like(logits)
    for channel, out in zip(logits, highest, strict=True):
        cv2.dilate(channel, _WINDOW, dst=out)
    peaks = np.flatnonzero(logits.ravel() == highest.ravel())
    return peaks if threshold == -np.inf else peaks[logits.ravel()[peaks] >= threshold]


def _best(values: Float32Array, limit: int) -> IntArray:
    """Indices of the `limit` largest values, falling; among equals the first."""
    if len(values) <= limit:
        return np.argsort(-values, kind="stable")
    lowest = np.partition(values, len(values) - limit)[len(values) - limit]
    kept = np.flatnonzero(values >= lowest)
    return kept[np.argsort(-values[kept], kind="stable")][:limit]


def logit(score: float) -> float:
    """The raw value whose sigmoid is `score`; -inf for 0."""
    if score <= 0.0:
        return -np.inf
    return float(np.log(score) - np.log1p(-score)) if score < 1.0 else np.inf


def sigmoid(raw: Float32Array) -> Float32Array:
    """Scores in 0..1 of raw heatmap values."""
    return (1.0 / (1.0 + np.exp(-np.clip(raw, -80.0, 80.0)))).astype(np.float32)


def _checked(heads: Mapping[str, npt.NDArray[Any]], name: str, channels: int, spec: ModelSpec) -> Float32Array:
    """Head `name` as (C, h, w) float32."""
    if name not in heads:
        raise HeadShapeError(
            f"the model gave no {name!r}, which spec {spec.name!r} declares; it gave {', '.join(heads)}. "
            "Export the model again"
        )
    array = np.asarray(heads[name])
    width, height = spec.feature_wh
    shape = array.shape[1:] if array.ndim == 4 and array.shape[0] == 1 else array.shape
    if shape != (channels, height, width):
        raise HeadShapeError(
            f"{name} has shape {array.shape}, spec {spec.name!r} declares (1, {channels}, {height}, {width}). "
            "The model was exported from another checkpoint; export it again"
        )
    array = array.reshape(shape).astype(np.float32, copy=False)
    # The maximum is NaN if any cell is, and costs a tenth of testing each cell.
    if name.endswith("heatmap") and np.isnan(array.max()):
        raise damaged(name, spec)
    return array


def damaged(name: str, spec: ModelSpec) -> BackendError:
    """The error for a head that is not finite."""
    return BackendError(
        f"{name} of model {spec.name!r} holds NaN or infinity; the weights are damaged or training diverged. "
        "Export from a sound checkpoint"
    )
