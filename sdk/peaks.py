"""What a graph gives that finds the peaks itself, and how that becomes `Candidates`.

Only a few hundred numbers leave the accelerator then, instead of the maps. export/peaks.py writes such graphs; their
spec says `output="peaks"`, and `assemble` goes on from here as it does from `find_peaks`::

    candidates = candidates_from_peaks(outputs, spec, score_threshold=0.3)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .decoding import JOINT_THRESHOLD, Candidates, Float32Array, IntArray, damaged, logit, no_joints, sigmoid
from .errors import HeadShapeError
from .spec import HeadSpec, ModelSpec

# In place of a raw heatmap value. A graph of fixed shapes gives K rows however few peaks there are.
NO_PEAK = float(np.finfo(np.float32).min)
# The value was NaN, which no sort has a place for; this one comes before every finite value.
WAS_NAN = float(np.finfo(np.float32).max)
INDEX_OUTPUTS = ("class_ids", "cells", "keypoint_cells")  # int32; all others are float32


def peak_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Outputs of the peaks form by name, with their shapes for one image, which lack the batch axis.

    `heatmap` (K,), raw values at the peaks, falling; `class_ids` (K,); `cells` (K,), y * w + x; each head that is read
    at the object's cell (K, C), raw. With a joint heatmap `keypoint_heatmap` (J, M), raw and falling for each of J
    joints, `keypoint_cells` (J, M), and `keypoint_heatmap_offset` (J, M, 2) where the model has it.
    """
    _, total = peak_limits(spec)
    shapes: dict[str, tuple[int, ...]] = {"heatmap": (total,), "class_ids": (total,), "cells": (total,)}
    shapes.update({head.name: (total, head.channels) for head in heads_at_peaks(spec)})
    if spec.has_head("keypoint_heatmap"):
        joints = (spec.num_keypoints, min(spec.max_joint_candidates, _num_cells(spec)))
        shapes.update({"keypoint_heatmap": joints, "keypoint_cells": joints})
        if spec.has_head("keypoint_heatmap_offset"):
            shapes["keypoint_heatmap_offset"] = (*joints, 2)
    return shapes


def peak_limits(spec: ModelSpec) -> tuple[int, int]:
    """How many peaks the graph keeps of each class, and of these in all (K)."""
    per_class = min(spec.max_detections, _num_cells(spec))
    return per_class, min(spec.max_detections, per_class * spec.head("heatmap").channels)


def heads_at_peaks(spec: ModelSpec) -> tuple[HeadSpec, ...]:
    """The heads that are read at the object's cell."""
    return tuple(head for head in spec.heads if "heatmap" not in head.name)


def candidates_from_peaks(
    outputs: Mapping[str, npt.NDArray[Any]], spec: ModelSpec, *, score_threshold: float = 0.0
) -> Candidates:
    """What `find_peaks` gives for the maps, from a graph that found the peaks itself.

    The two are equal to the bit where raw values are: among equals the lower class goes first, then the upper, then
    the left cell. ONNX's TopK keeps that order; TensorRT's promises none, so equals are sorted here once more, and
    there only a plateau that the K-th place cuts through may give other cells. A cell of -infinity is no peak here.

    Args:
        outputs: (1, ...) or (...) by name, as `peak_shapes` has them.
        spec: of the model.
        score_threshold: peaks of a lower score are left out; 0 keeps all.

    Raises:
        HeadShapeError: an output is missing or has another shape than the spec says.
        BackendError: a heatmap held NaN, or another head is not finite at a peak.
    """
    arrays = {name: _checked(outputs, name, shape, spec) for name, shape in peak_shapes(spec).items()}
    raw = arrays["heatmap"]
    rows = np.flatnonzero(_are_peaks(raw, score_threshold))
    rows = rows[np.lexsort((arrays["cells"][rows], arrays["class_ids"][rows], -raw[rows]))]
    cells_yx = _cells_yx(arrays["cells"][rows], spec)
    values = {str(head.name): _finite(arrays, head.name, rows, spec) for head in heads_at_peaks(spec)}
    joints = _joints(arrays, spec) if len(rows) and "keypoint_heatmap" in arrays else no_joints()
    return Candidates(sigmoid(raw[rows]), arrays["class_ids"][rows].astype(np.int64), cells_yx, values, *joints)


def _joints(
    arrays: Mapping[str, npt.NDArray[Any]], spec: ModelSpec
) -> tuple[Float32Array, IntArray, IntArray, Float32Array]:
    """Scores, joint ids, cells and offsets of the joints that were detected."""
    raw, cells = arrays["keypoint_heatmap"], arrays["keypoint_cells"]  # (J, M)
    places = np.flatnonzero(_are_peaks(raw, JOINT_THRESHOLD))  # of J * M
    kinds = places // raw.shape[1]
    order = np.lexsort((cells.ravel()[places], -raw.ravel()[places], kinds))
    places, kinds = places[order], kinds[order]
    offsets = np.full((len(places), 2), 0.5, np.float32)
    if "keypoint_heatmap_offset" in arrays:
        flat = {"keypoint_heatmap_offset": arrays["keypoint_heatmap_offset"].reshape(-1, 2)}
        offsets = _finite(flat, "keypoint_heatmap_offset", places, spec)
    return sigmoid(raw.ravel()[places]), kinds, _cells_yx(cells.ravel()[places], spec), offsets


def _are_peaks(raw: Float32Array, score_threshold: float) -> npt.NDArray[np.bool_]:
    return np.asarray((raw >= logit(score_threshold)) & (raw > NO_PEAK))


def _cells_yx(cells: npt.NDArray[Any], spec: ModelSpec) -> IntArray:
    """(N, 2) of flat indices (N,)."""
    return np.stack(np.divmod(cells.astype(np.int64), spec.feature_wh[0]), axis=1)


def _finite(arrays: Mapping[str, npt.NDArray[Any]], name: str, rows: IntArray, spec: ModelSpec) -> Float32Array:
    """(N, C) values of a head at N peaks."""
    values: Float32Array = arrays[name][rows]
    if not np.isfinite(values).all():
        raise damaged(name, spec)
    return values


def _checked(
    outputs: Mapping[str, npt.NDArray[Any]], name: str, shape: tuple[int, ...], spec: ModelSpec
) -> npt.NDArray[Any]:
    """An output without its batch axis."""
    if name not in outputs:
        raise HeadShapeError(
            f"the model gave no {name!r}, which the peaks form of spec {spec.name!r} has; it gave "
            f"{', '.join(outputs)}. Export the model again"
        )
    array = np.asarray(outputs[name])
    if array.shape not in (shape, (1, *shape)):
        raise HeadShapeError(
            f"{name} has shape {array.shape}, the peaks form of spec {spec.name!r} has {(1, *shape)}. "
            "The model was exported from another checkpoint; export it again"
        )
    array = array.reshape(shape)
    if name in INDEX_OUTPUTS:
        return array
    array = array.astype(np.float32, copy=False)
    if name.endswith("heatmap") and bool(((array == WAS_NAN) | np.isnan(array)).any()):
        raise damaged(name, spec)
    return array


def _num_cells(spec: ModelSpec) -> int:
    width, height = spec.feature_wh
    return width * height
