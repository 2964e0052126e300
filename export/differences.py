"""What differs between two answers to one frame: raw values at the same cells, and boxes of the same cells.

The first answer is always the model's, with dense heads; the second is a file's, with dense heads or peaks.
`export.verification` judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdk.camera import CameraIntrinsics
from sdk.decoding import Candidates, assemble, find_peaks, logit
from sdk.geometry import input_to_feature
from sdk.peaks import NO_PEAK, WAS_NAN, candidates_from_peaks, heads_at_peaks, peak_shapes
from sdk.results import Detections
from sdk.spec import ModelSpec

from .errors import ExportError

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]
Pair = tuple[Array, Array]

_NEAREST_M = 1.0  # distances are counted from here on: nothing is 100 % wrong for being at the camera


@dataclass(frozen=True)
class HeadDifference:
    """How far one head of two backends is apart, in parts of the reference's largest absolute value.

    Attributes:
        name: of the head.
        largest: the reference's largest absolute value.
        max: largest absolute difference, divided by it.
        mean: mean absolute difference, divided by it.
    """

    name: str
    largest: float
    max: float
    mean: float


@dataclass(frozen=True)
class Choice:
    """Which boxes are compared: at most `count` of a frame, none of a score below `threshold`."""

    threshold: float
    count: int


@dataclass(frozen=True)
class LoneBox:
    """A box that one side found and the other did not.

    Attributes:
        label: class and score.
        xy: middle of its cell, in pixels of the input.
        side: who found it.
        reason: why the other side need not; empty where there is none.
    """

    label: str
    xy: tuple[float, float]
    side: str
    reason: str

    def __str__(self) -> str:
        return f"{self.label} at ({self.xy[0]:.0f}, {self.xy[1]:.0f}) px in {self.side} alone"


def check_outputs(outputs: Outputs, spec: ModelSpec, owner: str) -> None:
    """Raises ExportError unless the outputs are all there, in the shapes of one frame."""
    for name, shape in _shapes(spec).items():
        if name not in outputs:
            raise ExportError(f"{owner} gives no {name!r}, which its spec declares; it gives {', '.join(outputs)}")
        if outputs[name].shape != shape:
            raise ExportError(f"{owner} gives {name!r} as {outputs[name].shape}; its spec declares {shape}")
    if spec.output == "peaks":
        _check_peaks(outputs, spec, owner)


def same_cells(heads: Outputs, found: Outputs, spec: ModelSpec) -> Iterator[tuple[str, Array, Array]]:
    """Name, the model's raw values and the file's, for each head; those of peaks at their cells."""
    if spec.output == "dense":
        yield from ((head.name, heads[head.name], found[head.name]) for head in spec.heads)
        return
    for name, (places, values) in _rows_of_peaks(found, spec).items():
        maps = heads[name][0].reshape(spec.head(name).channels, -1)  # type: ignore[arg-type]  # (C, cells)
        if name.endswith("heatmap"):
            yield name, maps.reshape(-1)[places][:, None], values
        else:
            yield name, maps[:, places % maps.shape[1]].T, values


def same_rows(first: Outputs, second: Outputs, spec: ModelSpec) -> Iterator[tuple[str, Array, Array, float]]:
    """The same for two answers of one file; the last is the share of the first one's rows that the second has too."""
    if spec.output == "dense":
        yield from ((head.name, first[head.name], second[head.name], 1.0) for head in spec.heads)
        return
    rows = _rows_of_peaks(second, spec)
    for name, (places, values) in _rows_of_peaks(first, spec).items():
        others, other_values = rows[name]
        _, here, there = np.intersect1d(places, others, return_indices=True)
        yield name, values[here], other_values[there], len(here) / max(len(places), len(others), 1)


def head_difference(name: str, pairs: Sequence[Pair], *, largest: float) -> HeadDifference:
    """Over all frames; `largest` is the reference's largest absolute value."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are to be seen
        difference = np.concatenate([np.abs(found - expected).ravel() for expected, found in pairs])
        difference = difference / max(largest, np.finfo(np.float32).tiny)
        mean = float(difference.sum(dtype=np.float64) / max(difference.size, 1))
    return HeadDifference(name, largest, float(difference.max(initial=0.0)), mean)


def boxes_of_cells(
    heads: Outputs, found: Outputs, spec: ModelSpec, choice: Choice, *, tolerance: float, sides: tuple[str, str]
) -> tuple[dict[str, Array], list[LoneBox]]:
    """Decode both, and compare the boxes of the same class and cell, in the input frame.

    Args:
        heads: the model's.
        found: the file's.
        spec: with the file's form of output.
        choice: of the boxes.
        tolerance: what raw values of the heatmap may differ by.
        sides: names of the two.

    Returns:
        Property -> differences, one a box or more; and the boxes that one side alone has.
    """
    find = candidates_from_peaks if spec.output == "peaks" else find_peaks
    both = (
        find_peaks(heads, spec, score_threshold=choice.threshold),
        find(found, spec, score_threshold=choice.threshold),
    )
    places = [_places(candidates, spec)[: choice.count] for candidates in both]
    _, here, there = np.intersect1d(places[0], places[1], return_indices=True)
    expected, other = (_assembled(candidates, spec) for candidates in both)
    logits = heads["heatmap"][0]
    lone = []
    for side, candidates, own, others in zip(sides, both, places, places[::-1], strict=True):
        last = float(logits.reshape(-1)[others[-1]]) if len(others) >= choice.count else -np.inf
        for row in np.flatnonzero(~np.isin(own, others)):
            class_id, y, x = int(candidates.class_ids[row]), *map(int, candidates.cells_yx[row])
            threshold = logit(choice.threshold)
            reason = _reason(logits, (class_id, y, x), tolerance=tolerance, threshold=threshold, last=last)
            xy = ((x + 0.5) * spec.stride, (y + 0.5) * spec.stride)
            lone.append(LoneBox(f"{spec.class_names[class_id]} {candidates.scores[row]:.3f}", xy, side, reason))
    return _differences(expected[here], other[there]), lone


def _reason(logits: Array, place: tuple[int, int, int], *, tolerance: float, threshold: float, last: float) -> str:
    """Why a peak at (class, y, x) may come or go, see `verification.compare`; empty where it must be there, or not."""
    class_id, y, x = place
    value = logits[place]
    window = logits[class_id, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].ravel()
    others = np.delete(window, np.flatnonzero(window == value)[0])
    margins = {
        "at the threshold": (value - threshold, tolerance),
        "as high as a neighbour": (value - others.max(initial=-np.inf), 2 * tolerance),
    }
    if any(margin < -allowed for margin, allowed in margins.values()):
        return ""
    for reason, (margin, allowed) in margins.items():
        if margin <= allowed:
            return reason
    return "at the last place" if value <= last + 2 * tolerance else ""


def _differences(expected: Detections, found: Detections) -> dict[str, Array]:
    """Of N boxes in both."""
    rows = {
        "box corner": np.abs(found.xyxy - expected.xyxy).max(axis=1, initial=0.0),
        "score": np.abs(found.scores - expected.scores),
    }
    if expected.keypoints is not None and found.keypoints is not None:
        rows["keypoint"] = np.linalg.norm(found.keypoints.xy - expected.keypoints.xy, axis=2).ravel()
    if expected.boxes3d is not None and found.boxes3d is not None:
        rows["3D centre"] = np.linalg.norm(found.boxes3d.center_m - expected.boxes3d.center_m, axis=1)
        distance = np.linalg.norm(expected.boxes3d.center_m, axis=1)
        rows["3D centre / distance"] = rows["3D centre"] / np.maximum(distance, _NEAREST_M)
    return rows


def _assembled(candidates: Candidates, spec: ModelSpec) -> Detections:
    """In the input frame; a 3D model sees through a nominal camera, of its own focal length or as wide as it is far."""
    width, height = spec.input.wh
    focal_px = spec.focal_px or max(width, height)
    camera = CameraIntrinsics(np.array([[focal_px, 0.0, width / 2], [0.0, focal_px, height / 2], [0.0, 0.0, 1.0]]))
    feature_to_input = input_to_feature(spec.stride).inverse()
    return assemble(candidates, spec, feature_to_input, image_wh=(width, height), camera=camera)


def _places(candidates: Candidates, spec: ModelSpec) -> npt.NDArray[np.int64]:
    """(N,) where the peaks are in the heatmap, flat."""
    width, height = spec.feature_wh
    y, x = candidates.cells_yx.T
    return np.asarray((candidates.class_ids * height + y) * width + x)


def _rows_of_peaks(outputs: Outputs, spec: ModelSpec) -> dict[str, tuple[Array, Array]]:
    """Head -> (N,) places in its heatmap, flat, and (N, C) raw values, of rows that hold a peak."""
    cells = spec.feature_wh[0] * spec.feature_wh[1]
    objects = outputs["class_ids"][0].astype(np.int64) * cells + outputs["cells"][0]  # (K,)
    places = {"heatmap": objects, **{str(head.name): objects for head in heads_at_peaks(spec)}}
    if spec.has_head("keypoint_heatmap"):
        joints = np.arange(spec.num_keypoints)[:, None] * cells + outputs["keypoint_cells"][0]  # (J, M)
        names = [str(head.name) for head in spec.heads if head.name.startswith("keypoint_heatmap")]
        places.update(dict.fromkeys(names, joints))
    rows = {}
    for name, flat in places.items():
        kept = outputs["keypoint_heatmap" if flat.ndim == 2 else "heatmap"][0] != NO_PEAK
        values = outputs[name][0][kept].reshape(np.count_nonzero(kept), -1)
        if name.endswith("heatmap"):
            values = np.where(values == WAS_NAN, np.nan, values)
        rows[name] = flat[kept], values
    return rows


def _check_peaks(outputs: Outputs, spec: ModelSpec, owner: str) -> None:
    """Raises ExportError unless peaks fall, each is there once, and all are inside the map."""
    width, height = spec.feature_wh
    limits = {"class_ids": len(spec.class_names), "cells": width * height, "keypoint_cells": width * height}
    for name, limit in limits.items():
        if name in outputs and not ((outputs[name] >= 0) & (outputs[name] < limit)).all():
            raise ExportError(f"{owner} gives {name!r} outside 0..{limit - 1}")
    if (np.diff(outputs["heatmap"][0]) > 0).any():
        raise ExportError(f"{owner} gives peaks that do not come by falling score")
    for name, (places, _) in _rows_of_peaks(outputs, spec).items():
        if name.endswith("heatmap") and len(np.unique(places)) < len(places):
            raise ExportError(f"{owner} gives a peak of {name!r} twice")


def _shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Output -> its shape for one frame."""
    if spec.output == "peaks":
        return {name: (1, *shape) for name, shape in peak_shapes(spec).items()}
    width, height = spec.feature_wh
    return {head.name: (1, head.channels, height, width) for head in spec.heads}
