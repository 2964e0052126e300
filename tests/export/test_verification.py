"""The proof holds for what is equal, and names what is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from calibration.onnx_files import write_onnx
from export.errors import ExportError
from export.half_precision import to_half
from export.peaks import end_in_peaks
from export.tracing import trace
from export.verification import (
    LIMITS,
    Comparison,
    Report,
    check_batch,
    compare,
    drawn_frames,
    photograph_frames,
    verify,
)
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.decoding import find_peaks
from sdk.detector import model_path
from sdk.errors import InputError
from sdk.peaks import NO_PEAK, WAS_NAN, peak_shapes
from sdk.spec import HeadSpec, ModelSpec
from tests.helpers import Heads, logit, pose_spec, tiny_spec
from train.checkpoint import load_checkpoint
from train.evaluate import TorchBackend

from .conftest import Exported
from .models import lively_model

Array = npt.NDArray[Any]
Change = Callable[[Heads], None]


class FakeNetwork:
    """Stands for a network: smooth random heads of objects and joints, other ones for each frame.

    Args:
        spec: of the network; with output "peaks" it gives the peaks of the same heads.
        change: made to what it would answer, in place.
        logits: of the heatmaps, in place of random ones.
    """

    inputs = ("frame",)

    def __init__(self, spec: ModelSpec, change: Change = lambda outputs: None, *, logits: Array | None = None) -> None:
        self.spec = spec
        self.outputs = tuple(peak_shapes(spec) if spec.output == "peaks" else (head.name for head in spec.heads))
        self._change = change
        self._logits = logits

    def infer(self, feeds: Any) -> Heads:
        answers = [self._answer(frame) for frame in feeds["frame"]]
        outputs = {name: np.concatenate([answer[name] for answer in answers]) for name in self.outputs}
        self._change(outputs)
        return outputs

    def close(self) -> None:
        pass

    def _answer(self, frame: Array) -> Heads:
        rng = np.random.default_rng(int(frame.sum()))
        width, height = self.spec.feature_wh
        heads: Heads = {}
        for head in self.spec.heads:
            maps = rng.normal(size=(head.channels, height, width))
            if head.name.endswith("heatmap"):
                maps = 8 * np.stack([cv2.GaussianBlur(channel, (0, 0), 0.8) for channel in maps]) - 2
            heads[head.name] = (maps if head.name != "size" else maps + 3)[None].astype(np.float32)
        if self._logits is not None:
            heads["heatmap"] = self._logits.copy()
        return peaks_of(heads, self.spec) if self.spec.output == "peaks" else heads


def peaks_of(heads: Heads, spec: ModelSpec) -> Heads:
    """The peaks form of dense heads (1, C, h, w), made by the decoder of the host."""
    found = find_peaks(heads, spec)
    outputs: Heads = {name: np.zeros((1, *shape), np.float32) for name, shape in peak_shapes(spec).items()}
    for name in ("class_ids", "cells", "keypoint_cells"):
        if name in outputs:
            outputs[name] = outputs[name].astype(np.int32)
    count, (y, x) = len(found), found.cells_yx.T
    outputs["heatmap"][:] = NO_PEAK
    outputs["heatmap"][0, :count] = heads["heatmap"][0, found.class_ids, y, x]
    outputs["class_ids"][0, :count] = found.class_ids
    outputs["cells"][0, :count] = y * spec.feature_wh[0] + x
    for name, values in found.values.items():
        outputs[name][0, :count] = values
    if "keypoint_heatmap" in outputs:
        outputs["keypoint_heatmap"][:] = NO_PEAK
        for joint in range(spec.num_keypoints):
            y, x = found.joint_cells_yx[found.joint_ids == joint].T
            outputs["keypoint_heatmap"][0, joint, : len(y)] = heads["keypoint_heatmap"][0, joint, y, x]
            outputs["keypoint_cells"][0, joint, : len(y)] = y * spec.feature_wh[0] + x
            outputs["keypoint_heatmap_offset"][0, joint, : len(y)] = heads["keypoint_heatmap_offset"][0, :, y, x]
    return outputs


POSE = pose_spec(max_detections=30, max_joint_candidates=20)
PEAKS = replace(POSE, output="peaks")
SPACE = tiny_spec(
    tasks=("detection", "3d"),
    heads=(
        *tiny_spec().heads,
        HeadSpec("depth", 1, "inverse_sigmoid"),
        HeadSpec("rotation", 8, "none"),
        HeadSpec("dimensions", 3, "none"),
    ),
)
FRAMES = drawn_frames(POSE)


def prove(change: Change = lambda outputs: None, spec: ModelSpec = POSE, **options: Any) -> Comparison:
    """The comparison of a network with one that answers the same but for a change."""
    reference = FakeNetwork(replace(spec, output="dense", precision="fp32"))
    return verify(reference, FakeNetwork(spec, change), FRAMES, **options)


# What is equal


@pytest.mark.parametrize(
    "spec",
    [POSE, PEAKS, tiny_spec(), SPACE, replace(SPACE, output="peaks")],
    ids=["pose", "pose peaks", "detection", "3d", "3d peaks"],
)
def test_a_network_equals_itself(spec: ModelSpec) -> None:
    comparison = prove(spec=spec)
    assert [head.name for head in comparison.heads if head.max == 0.0] == [head.name for head in spec.heads]
    assert comparison.num_boxes > 10 and not comparison.lone and not comparison.failures()
    assert all(row.max == 0.0 and row.count >= comparison.num_boxes for row in comparison.boxes)


def test_what_is_compared_after_decoding_follows_from_the_task() -> None:
    assert [row.label for row in prove().boxes] == ["box corner, px", "score", "keypoint, px"]
    assert [row.label for row in prove(spec=SPACE).boxes][2:] == ["3D centre, m", "3D centre / distance"]


def test_an_exported_file_equals_the_pytorch_model(exported: Exported) -> None:
    backend = TorchBackend(exported.model, exported.spec)
    comparison = verify(backend, OnnxRuntimeBackend(exported.path), drawn_frames(exported.spec))
    assert max(head.max for head in comparison.heads) < 1e-5
    assert max(row.max for row in comparison.boxes) < 1e-2 and comparison.num_boxes > 10
    assert comparison.title == "ONNX Runtime (dense, FP32) against PyTorch, drawn scenes (3), 64x64"


def test_a_file_that_ends_in_peaks_equals_the_pytorch_model(exported: Exported, tmp_path: Path) -> None:
    model = copy_of(exported.onnx)
    spec = end_in_peaks(model.graph, exported.spec)
    candidate = written(model, spec, tmp_path)
    dense = OnnxRuntimeBackend(exported.path)
    frames = drawn_frames(exported.spec)
    comparison = verify(TorchBackend(exported.model, exported.spec), candidate, frames)
    assert [head.name for head in comparison.heads] == [head.name for head in exported.spec.heads]
    assert comparison.num_boxes > 10
    # Against the same operators in the same runtime there is no difference at all, and no tie.
    same = verify(dense, candidate, frames, names=("dense", "peaks"))
    assert all(row.max == 0.0 for row in same.boxes) and not same.lone


def test_the_best_are_compared_where_hardly_any_box_is_above_the_threshold() -> None:
    usual, empty = prove(), prove(spec=replace(POSE, score_threshold=0.999))
    assert "score 0.3 or more" in usual.text() and usual.num_boxes > 10
    assert "the best of each frame" in empty.text()
    assert 40 < empty.num_boxes <= 3 * 20


# What differs


def add(name: str, value: float, place: Any = ...) -> Change:
    def change(outputs: Heads) -> None:
        outputs[name][place] += value

    return change


@pytest.mark.parametrize("spec", [POSE, PEAKS], ids=["dense", "peaks"])
@pytest.mark.parametrize("name", [head.name for head in POSE.heads])
def test_a_head_that_is_off_is_named(spec: ModelSpec, name: str) -> None:
    with pytest.raises(ExportError, match=rf"64x64 differs: {name} by \d.* \(limit 1e-04\).*; nothing was written$"):
        prove(add(name, 0.01), spec)


@pytest.mark.parametrize("spec", [POSE, PEAKS], ids=["dense", "peaks"])
def test_heads_that_change_places_are_named(spec: ModelSpec) -> None:
    def swap(outputs: Heads) -> None:
        outputs["offset"], outputs["size"] = outputs["size"], outputs["offset"]

    with pytest.raises(ExportError, match=r"offset by .* size by .* box corner by up to [\d.]+ px \(limit 0.1 px\)"):
        prove(swap, spec)


@pytest.mark.parametrize(("share", "holds"), [(0.9, True), (1.1, False)])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_head_may_be_off_by_its_limit_and_no_further(precision: Any, share: float, holds: bool) -> None:
    limits = replace(LIMITS[precision], corner_px=99.0)
    largest = next(head.largest for head in prove().heads if head.name == "offset")
    spec = replace(POSE, precision=precision)
    change = add("offset", share * limits.head * largest, (0, 1, 3, 4))
    if holds:
        assert prove(change, spec, limits=limits).heads[1].max == pytest.approx(share * limits.head, rel=1e-2)
    else:
        with pytest.raises(ExportError, match=r"differs: offset by [^;]*; nothing was written"):
            prove(change, spec, limits=limits)


@pytest.mark.parametrize(("offset_px", "holds"), [(0.09, True), (0.11, False)])
def test_boxes_may_be_off_by_a_tenth_of_a_pixel_and_no_further(offset_px: float, holds: bool) -> None:
    limits = replace(LIMITS["fp32"], head=1.0)
    change = add("offset", offset_px / POSE.stride)
    if holds:
        assert prove(change, tiny_spec(), limits=limits).boxes[0].max == pytest.approx(offset_px, rel=1e-2)
    else:
        with pytest.raises(ExportError, match=r"differs: box corner by up to 0\.11 px \(limit 0\.1 px\); nothing"):
            prove(change, tiny_spec(), limits=limits)


def test_one_keypoint_may_jump_and_many_may_not() -> None:
    spec, logits = pose_spec(joints=False), one_peak(1.0)

    def moved(*columns: int) -> Comparison:
        change = add("keypoint_offset", 3.0, (0, slice(2), 1, columns))  # of joint 0, in objects of row 1
        networks = FakeNetwork(spec, logits=logits), FakeNetwork(spec, change, logits=logits)
        return compare(*networks, FRAMES[:1], limits=replace(LIMITS["fp32"], head=10.0))

    one, two = moved(3), moved(3, 5)
    assert not one.failures() and "1 of 51 values of keypoint are beyond the limit; 1 may be" in one.text()
    assert two.failures() == ["keypoint by up to 17 px for 2 of 51 (limit 0.1 px)"]


def test_a_3d_box_in_another_place_is_named() -> None:
    with pytest.raises(ExportError, match=r"3D centre / distance by up to"):
        prove(add("depth", 0.1), SPACE, limits=replace(LIMITS["fp32"], head=1.0))


@pytest.mark.parametrize("spec", [POSE, PEAKS], ids=["dense", "peaks"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_nan_fails_in_every_precision(spec: ModelSpec, precision: Any) -> None:
    def spoil(outputs: Heads) -> None:
        outputs["size"].reshape(-1)[0] = np.nan
        outputs["keypoint_heatmap"].reshape(-1)[0] = np.inf
        outputs["heatmap"].reshape(-1)[0] = WAS_NAN if spec.output == "peaks" else np.nan

    with pytest.raises(ExportError, match="NaN or infinity in heatmap, size, keypoint_heatmap; nothing was written"):
        prove(spoil, replace(spec, precision=precision))


def test_a_missing_output_is_named() -> None:
    def without(name: str) -> Change:
        def change(outputs: Heads) -> None:
            del outputs[name]

        return change

    with pytest.raises(ExportError, match="ONNX Runtime gives no 'size', which its spec declares; it gives heatmap,"):
        prove(without("size"))
    with pytest.raises(ExportError, match="gives no 'cells', which its spec declares; it gives heatmap,"):
        prove(without("cells"), PEAKS)


def test_another_shape_is_named() -> None:
    def crop(outputs: Heads) -> None:
        outputs["size"] = outputs["size"][..., :-1]

    with pytest.raises(ExportError, match=r"gives 'size' as \(1, 2, 16, 15\); its spec declares \(1, 2, 16, 16\)"):
        prove(crop)


def test_another_spec_is_named_but_not_the_form_that_was_asked_for() -> None:
    other = replace(POSE, name="other", class_names=("dog",))
    with pytest.raises(ExportError, match="the file's spec has another name, class_names; nothing was written"):
        verify(FakeNetwork(POSE), FakeNetwork(other), FRAMES)
    of_free_size = FakeNetwork(replace(POSE, precision="fp16").with_input_size(128, 64))
    of_free_size._answer = FakeNetwork(POSE)._answer  # type: ignore[method-assign]
    assert not compare(FakeNetwork(POSE), of_free_size, FRAMES).failures()


def test_frames_must_be_there_and_fit() -> None:
    with pytest.raises(InputError, match="got no frames"):
        verify(FakeNetwork(POSE), FakeNetwork(POSE), [])
    with pytest.raises(InputError, match=r"got a frame of shape \(1, 32, 64, 3\), the model takes \(1, 64, 64, 3\)"):
        verify(FakeNetwork(POSE), FakeNetwork(POSE), [FRAMES[0][:, :32]])


# Boxes on one side


def one_peak(value: float, *, neighbour: float = -9.0) -> Array:
    """A heatmap with 16 sure peaks, and one of that value at row 7, column 8, 34 x 30 px."""
    logits = np.full((1, 1, 16, 16), -9.0, np.float32)
    logits[0, 0, 1, 1::2] = logits[0, 0, 14, 1::2] = 3.0
    logits[0, 0, 7, 8], logits[0, 0, 7, 9] = value, neighbour
    return logits


def with_heatmaps(reference: Array, candidate: Array, spec: ModelSpec = POSE, **options: Any) -> Comparison:
    return compare(FakeNetwork(POSE, logits=reference), FakeNetwork(spec, logits=candidate), FRAMES[:1], **options)


T = LIMITS["fp32"].head * 9.0  # what raw values may differ by
AT_THRESHOLD = float(logit(POSE.score_threshold))


@pytest.mark.parametrize("spec", [POSE, PEAKS], ids=["dense", "peaks"])
@pytest.mark.parametrize(
    ("reference", "candidate", "reason"),
    [
        (one_peak(AT_THRESHOLD + 0.4 * T), one_peak(AT_THRESHOLD - 0.4 * T), "at the threshold"),
        (one_peak(AT_THRESHOLD - 0.4 * T), one_peak(AT_THRESHOLD + 0.4 * T), "at the threshold"),
        (one_peak(1.0, neighbour=1.0 - 0.4 * T), one_peak(1.0, neighbour=1.0 + 0.4 * T), "as high as a neighbour"),
        (one_peak(1.0), one_peak(-9.0), ""),
        (one_peak(-9.0), one_peak(1.0), ""),
        (one_peak(1.0, neighbour=0.9), one_peak(1.0, neighbour=1.1), ""),
    ],
    ids=["lost at the threshold", "won at the threshold", "tie", "lost", "won", "moved"],
)
def test_a_box_on_one_side_needs_a_reason(reference: Array, candidate: Array, reason: str, spec: ModelSpec) -> None:
    comparison = with_heatmaps(reference, candidate, spec)
    assert comparison.lone and {box.reason for box in comparison.lone} == {reason}
    assert all(box.xy in ((34.0, 30.0), (38.0, 30.0)) for box in comparison.lone)
    if reason:
        assert not comparison.failures()
        assert re.search(rf"\d box(es)? on one side alone: \d {reason}\.\nAll within", comparison.text())
    else:
        failures = "; ".join(comparison.failures())
        assert re.search(
            r"box(es)? on one side alone, such as person 0\.\d+ at \(3\d, 30\) px in (PyTorch|ONNX)", failures
        )


def test_a_file_that_leaves_out_peaks_is_caught_though_all_it_gives_is_right() -> None:
    def drop(outputs: Heads) -> None:
        for name in ("heatmap", "class_ids", "cells", "offset", "size", "keypoint_offset"):
            outputs[name][0, 4:-1] = outputs[name][0, 5:]

    with pytest.raises(
        ExportError, match=r"differs: 3 boxes on one side alone, such as person 0\.\d+ at .* in PyTorch"
    ):
        prove(drop, PEAKS)


def test_at_the_last_place_equals_may_change() -> None:
    spec = replace(POSE, max_detections=5)
    reference, candidate = one_peak(-9.0), one_peak(-9.0)
    reference[0, 0, 1, 11:], candidate[0, 0, 1, :5] = 3.0 - T / 2, 3.0 - T / 2
    reference[0, 0, 1, 12::2], candidate[0, 0, 1, 0:6:2] = -9.0, -9.0
    networks = [FakeNetwork(spec, logits=logits) for logits in (reference, candidate)]
    comparison = compare(*networks, FRAMES[:1])
    assert {box.reason for box in comparison.lone} == {"at the last place"} and not comparison.failures()


@given(
    seed=st.integers(0, 10_000),
    digits=st.integers(0, 3),
    share=st.floats(0.0, 0.99),
    max_detections=st.integers(1, 40),
    threshold=st.sampled_from([0.0, 0.1, 0.5]),
    output=st.sampled_from(["dense", "peaks"]),
)
def test_what_the_limits_allow_never_fails_for_a_box_on_one_side(
    seed: int, digits: int, share: float, max_detections: int, threshold: float, output: Any
) -> None:
    rng = np.random.default_rng(seed)
    spec = tiny_spec(max_detections=max_detections, score_threshold=threshold)
    # Rounded values make plateaus and ties.
    logits = rng.normal(0, 2, (1, 2, 16, 16)).round(digits).astype(np.float32)
    limits = replace(LIMITS["fp16"], score=1.0)
    noise = share * limits.head * np.abs(logits).max() * rng.uniform(-1, 1, logits.shape)
    other = (logits + noise).astype(np.float32)
    candidate = FakeNetwork(replace(spec, output=output), logits=other)
    comparison = compare(FakeNetwork(spec, logits=logits), candidate, FRAMES[:1], limits=limits)
    assert not comparison.failures()


# Peaks that are none


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add("cells", 1, (0, 3)), r"differs: (heatmap|offset) by "),
        (add("cells", 256, (0, 3)), r"gives 'cells' outside 0\.\.255"),
        (add("class_ids", -1, (0, 3)), r"gives 'class_ids' outside 0\.\.0"),
        (add("keypoint_cells", 1), r"keypoint_heatmap by "),
        (lambda outputs: outputs["heatmap"].sort(), "gives peaks that do not come by falling score"),
    ],
)
def test_a_file_whose_peaks_are_wrong_is_refused(change: Change, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        prove(change, PEAKS)


def test_a_peak_that_comes_twice_is_refused() -> None:
    def repeat(outputs: Heads) -> None:
        for values in outputs.values():
            values[0, 1] = values[0, 0]

    with pytest.raises(ExportError, match=r"gives a peak of 'heatmap' twice"):
        prove(repeat, PEAKS)


# Broken files


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def written(model: onnx.ModelProto, spec: ModelSpec, folder: Path) -> OnnxRuntimeBackend:
    path = folder / "candidate.onnx"
    write_onnx(model, path, spec=spec, weights_sha256="")
    return OnnxRuntimeBackend(path)


def one_weight_changed(graph: onnx.GraphProto) -> None:
    tensor = next(tensor for tensor in graph.initializer if len(tensor.dims) == 4)
    weights = numpy_helper.to_array(tensor).copy()
    weights[0, 0, 1, 1] += 0.1 * np.abs(weights).max()
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))


def heads_swapped(graph: onnx.GraphProto) -> None:
    other = {"offset": "size", "size": "offset"}
    for node in graph.node:
        node.output[:] = [other.get(name, name) for name in node.output]


def offset_shifted(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.output[:] = [f"{name}.whole" if name == "offset" else name for name in node.output]
    graph.initializer.append(helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]))
    graph.node.append(helper.make_node("Add", ["offset.whole", "half"], ["offset"]))


FAULTS = [
    (one_weight_changed, "heatmap by"),
    (heads_swapped, "offset by .* size by"),
    (offset_shifted, r"differs: offset by [^;]*; box corner by up to 2 px"),
]


@pytest.mark.parametrize("output", ["dense", "peaks"])
@pytest.mark.parametrize(("fault", "named"), FAULTS)
def test_a_broken_copy_is_caught(
    exported: Exported, tmp_path: Path, fault: Callable[[onnx.GraphProto], None], named: str, output: str
) -> None:
    model, spec = copy_of(exported.onnx), exported.spec
    fault(model.graph)
    if output == "peaks":
        spec = end_in_peaks(model.graph, spec)
    with pytest.raises(ExportError, match=named):
        verify(OnnxRuntimeBackend(exported.path), written(model, spec, tmp_path), drawn_frames(exported.spec))


@pytest.mark.slow
def test_a_larger_network_at_another_size(tmp_path: Path) -> None:
    model, spec = lively_model("res_18_up")
    spec = spec.with_input_size(128, 64)
    graph, frames, reference = trace(model, spec), drawn_frames(spec), TorchBackend(model, spec)
    comparison = verify(reference, written(graph, spec, tmp_path), frames)
    assert max(head.max for head in comparison.heads) < 1e-5 and comparison.num_boxes > 10
    half = replace(spec, precision="fp16")
    to_half(graph.graph, spec)
    assert verify(reference, written(graph, half, tmp_path), frames).heads[0].max > 1e-6
    for fault, named in FAULTS[1:]:
        broken = copy_of(graph)
        fault(broken.graph)
        with pytest.raises(ExportError, match=named.replace("differs: ", "")):
            verify(reference, written(broken, half, tmp_path), frames)


# Batches


@pytest.mark.parametrize("spec", [POSE, PEAKS, SPACE], ids=["dense", "peaks", "3d"])
def test_a_batch_equals_its_frames(spec: ModelSpec) -> None:
    assert all(head.max == 0.0 for head in check_batch(FakeNetwork(spec), FRAMES))


@pytest.mark.parametrize(
    ("spec", "message"), [(POSE, r"heatmap by \d"), (PEAKS, "heatmap has .* other peaks in frame")]
)
def test_a_batch_that_mixes_its_frames_is_caught(spec: ModelSpec, message: str) -> None:
    def first_alone(outputs: Heads) -> None:
        for values in outputs.values():
            values[:] = values[:1]

    with pytest.raises(ExportError, match=rf"3 frames in one call give something else than one by one: {message}"):
        check_batch(FakeNetwork(spec, first_alone), FRAMES)


def test_a_batch_that_gives_one_answer_is_caught() -> None:
    def first_alone(outputs: Heads) -> None:
        outputs.update({name: values[:1] for name, values in outputs.items()})

    with pytest.raises(ExportError, match=r"frame 1 of a batch of 3 gives 'heatmap' as \(0, 1, 16, 16\)"):
        check_batch(FakeNetwork(POSE, first_alone), FRAMES)


# Frames


def test_photographs_are_spread_over_the_folder_and_bad_ones_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(10):
        assert cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((40, 80, 3), 20 * index, np.uint8))
    frames = photograph_frames(tmp_path, POSE, count=4)
    assert [int(frame.max()) for frame in frames] == [0, 60, 120, 180]
    assert all(frame.shape == (1, 64, 64, 3) for frame in frames)
    (tmp_path / "3.png").write_bytes(b"no picture")
    assert len(photograph_frames(tmp_path, POSE, count=4)) == 3
    assert "3.png" in caplog.text
    assert len(photograph_frames(tmp_path, POSE, count=99)) == 9


def test_folders_without_photographs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*nowhere; --images takes a folder of photographs"):
        photograph_frames(tmp_path / "nowhere", POSE)
    with pytest.raises(InputError, match="holds no image"):
        photograph_frames(tmp_path, POSE)
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"no photograph of .* can be read, 1 were tried; .*a\.jpg is empty"):
        photograph_frames(tmp_path, POSE)


# The report


def test_the_report_reads_as_two_tables(exported: Exported) -> None:
    backend = OnnxRuntimeBackend(exported.path)
    part = verify(backend, backend, drawn_frames(exported.spec), names=("the FP32 file", "itself"), scenes="scenes")
    lines = part.text().splitlines()
    assert lines[0] == "itself (dense, FP32) against the FP32 file, scenes (3), 64x64"
    assert lines[2].split()[:4] == ["heatmap", "0.0e+00", "0.0e+00", "1e-04"]
    assert lines[-1] == "All within the limits."
    assert len({len(line) for line in lines[1 : 2 + len(exported.spec.heads)]}) == 1
    assert Report((part, part)).text() == f"{part.text()}\n\n{part.text()}"


def test_int8_is_reported_and_not_judged() -> None:
    comparison = prove(add("offset", 0.5), replace(POSE, precision="int8"))
    text = comparison.text()
    assert "(dense, INT8)" in text and "All within" not in text
    assert text.endswith("No limits: accuracy says what this costs.")
    assert comparison.boxes[0].max == pytest.approx(2.0, rel=1e-2)


# The shipped model


def test_the_shipped_model_is_the_checkpoint_on_photographs(photographs: Path) -> None:
    model, spec = load_checkpoint(Path(__file__).parents[2] / "train" / "weights" / "person-pose.pth")
    frames = photograph_frames(photographs / "coco" / "val", spec)
    shipped = OnnxRuntimeBackend(model_path("person-pose"))
    comparison = verify(TorchBackend(model, spec), shipped, frames, scenes="photographs")
    assert max(head.max for head in comparison.heads) < 1e-5 and comparison.num_boxes >= 10
    int8 = OnnxRuntimeBackend(model_path("person-pose.int8"))
    assert [head.name for head in compare(shipped, int8, frames[:1]).heads] == [head.name for head in spec.heads]
    with pytest.raises(ExportError, match="differs: heatmap by"):
        verify(shipped, int8, frames, limits=LIMITS["fp32"])
