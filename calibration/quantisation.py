"""From a float model and its ranges to the INT8 model.

::

    int8_model = quantise(model, ranges.tensors)
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from .layout import copy_to_upsample, widen_first_conv
from .methods import Range
from .placement import place_for_onnxruntime
from .qdq import insert_qdq


def quantise(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> onnx.ModelProto:
    """The INT8 form of a float model for ONNX Runtime.

    Raises:
        CalibrationError: an activation has no range.
    """
    int8 = onnx.ModelProto()
    int8.CopyFrom(model)
    shapes = shapes_of(model)
    widen_first_conv(int8.graph, shapes)
    copy_to_upsample(int8.graph, shapes)
    graph = insert_qdq(int8.graph, place_for_onnxruntime(int8.graph), ranges)
    int8.graph.CopyFrom(graph)
    return int8


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors whose shape is known, by name."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
