"""Lets a graph find the peaks itself, so that K rows leave the accelerator instead of the maps.

Objects as Points (arXiv:1904.07850), sec. 4, "From points to bounding boxes": 3x3 max-pooling, then the best 100 of
each class and the best 100 of these, with what the other heads say there. All shapes are fixed, so that the whole
network can be captured as one CUDA graph::

    spec = end_in_peaks(model.graph, spec)

The operators are those that TensorRT 8.5 takes (onnx-tensorrt, release/8.5-GA, docs/operators.md). Its TopK promises no
order among equal values; sdk/peaks.py says what that means.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import GraphProto, TensorProto, helper

from calibration.graph_writer import GraphWriter
from sdk.peaks import INDEX_OUTPUTS, NO_PEAK, WAS_NAN, heads_at_peaks, peak_limits, peak_shapes
from sdk.spec import ModelSpec

from .errors import ExportError

MAX_TOP_K = 3839  # NvInfer.h: "K must be less than or equal to 3840"; the importer of 10.x: less than


def end_in_peaks(graph: GraphProto, spec: ModelSpec) -> ModelSpec:
    """Replace the raw dense heads by what `sdk.peaks.peak_shapes` lists; in place.

    Args:
        graph: gives float32 heads (B, C, h, w) by name, at the size of the spec; B may be symbolic.
        spec: of the graph.

    Returns:
        The spec of the graph as it is now.

    Raises:
        ExportError: the graph does not give these heads, or more peaks are asked for than TensorRT can sort.
    """
    _check_limits(spec)
    batch = _checked_batch(graph, spec)
    dense = _rename_heads(graph, spec)
    write = GraphWriter("peaks")
    _write_objects(write, dense, spec)
    if spec.has_head("keypoint_heatmap"):
        _write_joints(write, dense, spec)
    write.extend(graph)
    del graph.output[:]
    for name, shape in peak_shapes(spec).items():
        element = TensorProto.INT32 if name in INDEX_OUTPUTS else TensorProto.FLOAT
        graph.output.append(helper.make_tensor_value_info(name, element, [batch, *shape]))
    return replace(spec, output="peaks")


def _write_objects(write: GraphWriter, dense: dict[str, str], spec: ModelSpec) -> None:
    per_class, total = peak_limits(spec)
    ranked = _ranked(write, dense["heatmap"], spec.head("heatmap").channels)  # (B, C, cells)
    best, cells = _top(write, ranked, per_class, axis=2, output="peaks.best_of_class")  # (B, C, per_class)
    class_major = write.constant([0, -1])
    best, cells = write("Reshape", best, class_major), write("Reshape", cells, class_major)
    _, places = _top(write, best, total, axis=1, output="heatmap")  # (B, K)
    write("Div", places, write.constant(per_class, np.int32), output="class_ids")
    write("GatherElements", cells, places, axis=1, output="cells")
    heads = heads_at_peaks(spec)
    channels = [head.channels for head in heads]
    joined = write("Concat", *(dense[head.name] for head in heads), axis=1)
    values = _at_cells(write, joined, "cells", sum(channels))  # (B, K, all channels)
    write.several("Split", values, write.constant(channels), outputs=[head.name for head in heads], axis=2)


def _write_joints(write: GraphWriter, dense: dict[str, str], spec: ModelSpec) -> None:
    num_joints, limit = peak_shapes(spec)["keypoint_heatmap"]
    ranked = _ranked(write, dense["keypoint_heatmap"], num_joints)  # (B, J, cells)
    _top(write, ranked, limit, axis=2, output="keypoint_heatmap", index_output="keypoint_cells")
    if spec.has_head("keypoint_heatmap_offset"):
        offsets = _at_cells(write, dense["keypoint_heatmap_offset"], "keypoint_cells", 2)  # (B, J * M, 2)
        shape = write.constant([0, num_joints, limit, 2])
        write("Reshape", offsets, shape, output="keypoint_heatmap_offset")


def _ranked(write: GraphWriter, heatmap: str, channels: int) -> str:
    """(B, C, cells): the raw value of each peak, and the marks of sdk/peaks.py for all other cells.

    Raw values, not scores: the sigmoid would make one plateau of all that is close to 0 or 1.
    """
    highest = write("MaxPool", heatmap, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    is_lower = write("Greater", highest, heatmap)
    peaks = write("Where", is_lower, write.constant(NO_PEAK), heatmap)
    peaks = write("Where", write("IsNaN", heatmap), write.constant(WAS_NAN), peaks)
    return write("Reshape", peaks, write.constant([0, channels, -1]))


def _top(
    write: GraphWriter, values: str, limit: int, *, axis: int, output: str, index_output: str | None = None
) -> tuple[str, str]:
    """The largest values, falling, and their int32 indices; TensorRT 8 has no other integers."""
    best, places = write.several(
        "TopK", values, write.constant([limit]), outputs=[output, f"{output}.places"], axis=axis
    )
    return best, write("Cast", places, to=TensorProto.INT32, output=index_output)


def _at_cells(write: GraphWriter, maps: str, cells: str, channels: int) -> str:
    """(B, N, C) of maps (B, C, h, w) and of cells with N values an image."""
    flat = write("Reshape", maps, write.constant([0, channels, -1]))
    of_each_channel = write(
        "Expand", write("Reshape", cells, write.constant([0, 1, -1])), write.constant([1, channels, 1])
    )
    return write("Transpose", write("GatherElements", flat, of_each_channel, axis=2), perm=[0, 2, 1])


def _check_limits(spec: ModelSpec) -> None:
    if spec.output != "dense":
        raise ExportError(f"model {spec.name!r} gives {spec.output} already, expected dense heads")
    shapes = peak_shapes(spec)
    counts = {"max_detections": max(peak_limits(spec))}
    if "keypoint_heatmap" in shapes:
        counts["max_joint_candidates"] = shapes["keypoint_heatmap"][1]
    for field, count in counts.items():
        if count > MAX_TOP_K:
            raise ExportError(
                f"{field} of model {spec.name!r} asks for {count} peaks, and TensorRT sorts at most {MAX_TOP_K}; "
                "lower it, or export with --target onnxruntime"
            )


def _checked_batch(graph: GraphProto, spec: ModelSpec) -> int | str:
    """The batch dimension, once the dense heads are known to be there."""
    width, height = spec.feature_wh
    outputs = {output.name: output.type.tensor_type for output in graph.output}
    batch: int | str = 1
    for head in spec.heads:
        kind = outputs.get(head.name)
        shape = [dimension.dim_param or dimension.dim_value for dimension in kind.shape.dim] if kind else None
        wanted = [head.channels, height, width]
        if kind is None or shape is None or kind.elem_type != TensorProto.FLOAT or shape[1:] != wanted:
            raise ExportError(
                f"the graph gives {head.name!r} as {shape}, expected float32 [batch, {head.channels}, {height}, "
                f"{width}]; peaks are found in the dense heads of one size"
            )
        batch = shape[0]
    return batch


def _rename_heads(graph: GraphProto, spec: ModelSpec) -> dict[str, str]:
    """Free the names of the heads for the peaks; what the heads are called now, by head."""
    renamed: dict[str, str] = {str(head.name): f"{head.name}.dense" for head in spec.heads}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)
    return renamed
