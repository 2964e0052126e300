from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from sdk.decoding import Candidates, find_peaks
from sdk.detector import Detector
from sdk.errors import BackendError, HeadShapeError
from sdk.peaks import INDEX_OUTPUTS, NO_PEAK, WAS_NAN, candidates_from_peaks, peak_shapes
from sdk.spec import HeadSpec, InputSpec, ModelSpec
from tests.helpers import THREE_PEAKS, Array, FakeBackend, Heads, Peak, heads_with_peaks, logit, pose_spec, tiny_spec


def peaks_of(heads: Heads, spec: ModelSpec) -> Heads:
    """What a graph gives that finds the peaks itself: all that the host finds, in rows of a fixed number."""
    found = find_peaks(heads, spec)
    out: Heads = {}
    for name, shape in peak_shapes(spec).items():
        out[name] = np.zeros((1, *shape), np.int32 if name in INDEX_OUTPUTS else np.float32)
        if name.endswith("heatmap"):
            out[name][:] = NO_PEAK
    (y, x), count = found.cells_yx.T, len(found)
    out["heatmap"][0, :count] = heads["heatmap"][0, found.class_ids, y, x]
    out["class_ids"][0, :count], out["cells"][0, :count] = found.class_ids, y * spec.feature_wh[0] + x
    for name, values in found.values.items():
        out[name][0, :count] = values
    for kind in range(spec.num_keypoints if "keypoint_heatmap" in out else 0):
        mine = found.joint_ids == kind
        (y, x), count = found.joint_cells_yx[mine].T, int(mine.sum())
        out["keypoint_heatmap"][0, kind, :count] = heads["keypoint_heatmap"][0, kind, y, x]
        out["keypoint_cells"][0, kind, :count] = y * spec.feature_wh[0] + x
        out["keypoint_heatmap_offset"][0, kind, :count] = found.joint_offsets[mine]
    return out


def pose_heads(spec: ModelSpec) -> Heads:
    """A person with two joints detected and a third one below the threshold of joints."""
    heads = heads_with_peaks(spec, [Peak(0, (8, 8), 0.9, (0.0, 0.0), (8, 8)), Peak(0, (2, 12), 0.4)])
    for kind, y, x, score in ((0, 7, 9, 0.8), (1, 6, 6, 0.5), (1, 10, 10, 0.7), (2, 8, 8, 0.05)):
        heads["keypoint_heatmap"][0, kind, y, x] = logit(score)
    return heads


def assert_same_candidates(found: Candidates, expected: Candidates) -> None:
    for field in fields(Candidates):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "values":
            assert list(a) == list(b)
            a, b = [*a.values()], [*b.values()]
        else:
            a, b = [a], [b]
        for mine, theirs in zip(a, b, strict=True):
            assert mine.dtype == theirs.dtype, field.name
            np.testing.assert_array_equal(mine, theirs, strict=True, err_msg=field.name)


def test_the_outputs_and_their_shapes() -> None:
    assert peak_shapes(tiny_spec()) == {
        "heatmap": (100,),
        "class_ids": (100,),
        "cells": (100,),
        "offset": (100, 2),
        "size": (100, 2),
    }
    pose = peak_shapes(pose_spec(max_detections=10, max_joint_candidates=20))
    assert [*pose] == [
        *("heatmap", "class_ids", "cells", "offset", "size", "keypoint_offset"),
        *("keypoint_heatmap", "keypoint_cells", "keypoint_heatmap_offset"),
    ]
    assert pose["keypoint_offset"] == (10, 6)
    assert pose["keypoint_heatmap"] == pose["keypoint_cells"] == (3, 20)
    assert pose["keypoint_heatmap_offset"] == (3, 20, 2)


def test_there_are_no_more_rows_than_cells() -> None:
    small = InputSpec(16, 8)  # 4x2 cells
    assert peak_shapes(tiny_spec(input=small))["heatmap"] == (16,)  # of two classes
    assert peak_shapes(tiny_spec(input=small, max_detections=9))["size"] == (9, 2)
    assert peak_shapes(pose_spec(input=small))["keypoint_cells"] == (3, 8)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.95])
def test_peaks_are_read_as_if_the_host_had_found_them(threshold: float) -> None:
    for spec, heads in ((tiny_spec(), heads_with_peaks(tiny_spec())), (pose_spec(), pose_heads(pose_spec()))):
        outputs = peaks_of(heads, spec)
        expected = find_peaks(heads, spec, score_threshold=threshold)
        assert_same_candidates(candidates_from_peaks(outputs, spec, score_threshold=threshold), expected)
        for form in (
            {name: array[0] for name, array in outputs.items()},
            {name: array.astype(np.int64) if name in INDEX_OUTPUTS else array for name, array in outputs.items()},
        ):
            assert_same_candidates(candidates_from_peaks(form, spec, score_threshold=threshold), expected)


def test_rows_without_a_peak_are_left_out() -> None:
    spec = pose_spec()
    outputs = peaks_of(pose_heads(spec), spec)
    outputs["heatmap"][0, 1:] = NO_PEAK
    outputs["size"][0, 1:] = np.nan  # what stands there means nothing
    assert len(candidates_from_peaks(outputs, spec)) == 1
    outputs["heatmap"][:] = NO_PEAK
    nothing = candidates_from_peaks(outputs, spec)
    assert len(nothing) == len(nothing.joint_scores) == 0
    assert nothing.cells_yx.shape == (0, 2) and nothing.values["keypoint_offset"].shape == (0, 6)


def test_equals_in_any_order_are_put_in_reading_order() -> None:
    """TensorRT's TopK promises no order among equals."""
    spec = pose_spec(num_keypoints=2, max_detections=30, max_joint_candidates=20)
    rng = np.random.default_rng(0)
    heads = pose_heads(pose_spec())
    for head in spec.heads:
        heads[head.name] = rng.integers(-2, 3, (1, head.channels, 16, 16)).astype(np.float32)
    outputs = peaks_of(heads, spec)
    expected = candidates_from_peaks(outputs, spec)
    assert_same_candidates(expected, find_peaks(heads, spec))
    joint_outputs = ("keypoint_heatmap", "keypoint_cells", "keypoint_heatmap_offset")
    for _ in range(5):
        rows = np.lexsort((rng.random(30), -outputs["heatmap"][0]))
        shuffled = {name: outputs[name].copy() if name in joint_outputs else outputs[name][:, rows] for name in outputs}
        for kind in range(2):
            rows = np.lexsort((rng.random(20), -outputs["keypoint_heatmap"][0, kind]))
            for name in joint_outputs:
                shuffled[name][0, kind] = outputs[name][0, kind, rows]
        assert_same_candidates(candidates_from_peaks(shuffled, spec), expected)


def test_a_detector_reads_peaks_as_it_reads_maps() -> None:
    spec = pose_spec()
    heads = pose_heads(spec)
    outputs = peaks_of(heads, spec)
    image = np.zeros((100, 200, 3), np.uint8)
    for threshold in (None, 0.0, 0.5):
        dense = Detector(FakeBackend(spec, heads), score_threshold=threshold)(image)
        peaks = Detector(FakeBackend(replace(spec, output="peaks"), outputs), score_threshold=threshold)(image)
        assert len(dense) and peaks.to_json() == dense.to_json()


def test_the_outputs_are_not_changed_and_arrays_belong_to_the_caller() -> None:
    spec = pose_spec()
    outputs = peaks_of(pose_heads(spec), spec)
    before = {name: array.copy() for name, array in outputs.items()}
    found = candidates_from_peaks(outputs, spec)
    for array in (found.scores, found.class_ids, found.cells_yx, found.joint_scores, *found.values.values()):
        array[:] = 77
    for name, array in outputs.items():
        np.testing.assert_array_equal(array, before[name])


# Outputs that are not what the spec says


def test_a_missing_output_is_named() -> None:
    outputs = peaks_of(heads_with_peaks(tiny_spec()), tiny_spec())
    del outputs["cells"]
    with pytest.raises(HeadShapeError, match="gave no 'cells', which the peaks form of spec 'tiny' has; it gave heat"):
        candidates_from_peaks(outputs, tiny_spec())


@pytest.mark.parametrize(
    ("name", "shape"), [("heatmap", (1, 50)), ("class_ids", (2, 100)), ("size", (1, 100, 4)), ("offset", (100,))]
)
def test_another_shape_is_named(name: str, shape: tuple[int, ...]) -> None:
    outputs = {**peaks_of(heads_with_peaks(tiny_spec()), tiny_spec()), name: np.zeros(shape, np.float32)}
    with pytest.raises(HeadShapeError, match=rf"{name} has shape \({shape[0]}, ?.* spec 'tiny' has \(1, 100.*again"):
        candidates_from_peaks(outputs, tiny_spec())


def test_dense_heads_are_not_taken_for_peaks() -> None:
    with pytest.raises(HeadShapeError, match=r"heatmap has shape \(1, 2, 16, 16\), the peaks form"):
        candidates_from_peaks(heads_with_peaks(tiny_spec()), tiny_spec())


def _nan(array: Array) -> Array:
    return np.full_like(array, np.nan)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("heatmap", _nan),
        ("heatmap", lambda array: np.where(np.arange(array.size) == 0, np.float32(WAS_NAN), array)),
        ("offset", _nan),
        ("size", lambda array: np.full_like(array, np.inf)),
        ("keypoint_offset", _nan),
        ("keypoint_heatmap", _nan),
        ("keypoint_heatmap", lambda array: np.full_like(array, WAS_NAN)),
        ("keypoint_heatmap_offset", _nan),
    ],
)
def test_nan_is_an_error_not_a_detection(name: str, damage: Callable[[Array], Array]) -> None:
    spec = pose_spec()
    outputs = peaks_of(pose_heads(spec), spec)
    outputs[name] = damage(outputs[name]).astype(np.float32)
    with pytest.raises(BackendError, match=rf"{name} of model 'tiny-pose' holds NaN.* sound checkpoint"):
        candidates_from_peaks(outputs, spec)


def test_infinite_scores_are_no_error() -> None:
    spec = tiny_spec()
    outputs = peaks_of(heads_with_peaks(spec, THREE_PEAKS), spec)
    outputs["heatmap"][0, 0] = np.inf
    outputs["heatmap"][0, 3:] = -np.inf
    assert candidates_from_peaks(outputs, spec).scores.tolist() == pytest.approx([1.0, 0.6, 0.4])


@pytest.mark.parametrize("channels", [2, 6])
def test_a_size_for_each_class(channels: int) -> None:
    spec: Any = tiny_spec(
        heads=(HeadSpec("heatmap", 3, "sigmoid"), HeadSpec("size", channels, "none")), class_names=("a", "b", "c")
    )
    heads = {"heatmap": np.full((1, 3, 16, 16), -9, np.float32), "size": np.zeros((1, channels, 16, 16), np.float32)}
    heads["heatmap"][0, 2, 5, 6] = 2.0
    heads["size"][0, :, 5, 6] = np.arange(channels)
    found = candidates_from_peaks(peaks_of(heads, spec), spec, score_threshold=0.5)
    assert found.values["size"].tolist() == [list(range(channels))]
