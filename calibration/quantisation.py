"""From a float model and its ranges to the INT8 model.

::

    int8_model = quantise(model, ranges.tensors)
    int8_model = quantise(model, ranges.tensors, target="tensorrt", float_nodes=["stem.1.0.Conv"])
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx

from sdk.errors import ConfigError

from .config import Target, WeightOptions
from .deform_conv import lower_deform_convs
from .layout import copy_to_upsample, upsample_by_conv, widen_first_conv
from .methods import Range
from .placement import Placement, place
from .qdq import insert_qdq
from .qdq_tensorrt import insert_symmetric_qdq, round_to_half
from .weights import correct_biases

Means = Mapping[str, npt.NDArray[np.float64]]
_DEFAULT_WEIGHTS = WeightOptions()


def quantise(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    *,
    target: Target = "onnxruntime",
    float_nodes: Collection[str] = (),
    weights: WeightOptions = _DEFAULT_WEIGHTS,
    means: Means | None = None,
) -> onnx.ModelProto:
    """The INT8 form of a float model.

    Args:
        model: FP32, dense heads, for ONNX Runtime, of the size that is wanted; it is not changed.
        ranges: of the activations, by tensor name.
        target: "onnxruntime": unsigned activations with zero points. "tensorrt": signed without, typed FP32, scales
            that FP16 can hold, so that the FP16-typed form of the file has the same integers.
        float_nodes: names of nodes that stay in float whatever the rules of the target say.
        weights: how these become integers.
        means: of the channels that convolutions read, for bias correction (`weights.channel_means`).

    Raises:
        CalibrationError: an activation has no range.
        ConfigError: there is no such target or node, or bias correction is asked for without means.
    """
    if weights.bias_correction and means is None:
        raise ConfigError("bias correction needs the channels' means; `calibration.weights.channel_means` gives them")
    placement = place(model.graph, target, float_nodes=float_nodes)
    int8 = onnx.ModelProto()
    int8.CopyFrom(model)
    if target == "onnxruntime":
        placement = _in_integer_operators(int8, placement)
    if means is not None and weights.bias_correction:
        rounding = round_to_half if target == "tensorrt" else np.float32
        correct_biases(int8.graph, placement, means, search=weights.search, rounding=rounding)
    if target == "tensorrt":
        graph = insert_symmetric_qdq(int8.graph, placement, ranges, search=weights.search)
    else:
        shapes = shapes_of(int8)
        widen_first_conv(int8.graph, shapes)
        copy_to_upsample(int8.graph, shapes)
        graph = insert_qdq(int8.graph, placement, ranges, search=weights.search)
    int8.graph.CopyFrom(graph)
    return int8


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors whose shape is known, by name."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def _in_integer_operators(model: onnx.ModelProto, placement: Placement) -> Placement:
    """Express what ONNX Runtime has no integer kernels for by what it has kernels for, in place.

    Returns:
        The placement with the names of the operators that are new.
    """
    upsample_by_conv(model.graph, shapes_of(model), placement.int8)
    deformable = {node.name for node in model.graph.node if node.op_type == "DeformConv"} & placement.int8
    lower_deform_convs(model.graph, shapes_of(model), "project_then_gather", names=deformable)
    return replace(placement, int8=placement.int8 - deformable | {f"{name}.MatMul" for name in deformable})
