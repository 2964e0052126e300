"""Writes a float graph as an INT8 one for TensorRT: pairs of QuantizeLinear and DequantizeLinear where it fuses them.

::

    graph = insert_symmetric_qdq(graph, place(graph, "tensorrt"), ranges)

All is signed and without zero points. A pair stands on the input of each INT8 convolution, and nothing between a
convolution and its ReLU or its addition, so that TensorRT makes one kernel of

    Q -> DQ -> Conv -> (Add with the shortcut) -> ReLU -> Q

("Explicit Quantization" in TensorRT's documents.) Biases stay in float. What is only moved keeps its scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .graph_writer import GraphWriter
from .methods import Range
from .placement import Placement
from .qdq import range_of
from .weights import CHANNEL_AXIS, in_steps, weight_scales

_STEPS = 127
# Operators whose inputs and output have one scale, with the number of inputs that are activations where not all are.
_ONE_SCALE: dict[str, int | None] = {"MaxPool": 1, "Resize": 1, "Concat": None}
_HALF_LIMITS = (float(np.finfo(np.float16).smallest_normal), float(np.finfo(np.float16).max))


def insert_symmetric_qdq(
    graph: GraphProto, placement: Placement, ranges: Mapping[str, Range], *, search: bool = False
) -> GraphProto:
    """The INT8 form of a float graph for TensorRT, typed FP32.

    Args:
        graph: with unique node names; it is not changed.
        placement: which nodes run in INT8.
        ranges: of the activations, by tensor name.
        search: for the best scale of each channel's weights.

    Raises:
        CalibrationError: an activation that is to be quantised has no range.
    """
    work = GraphProto()
    work.CopyFrom(graph)
    reads = _int8_reads(work, placement)
    tensors = set().union(*reads.values())
    scales = _scales(work, tensors, ranges)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in work.initializer}
    nodes: list[NodeProto] = []
    constants: list[TensorProto] = []
    for node in work.node:
        pairs = GraphWriter("")
        if node.name in placement.int8:
            _quantise_weight(pairs, node, weights[node.input[1]], search=search)
        node.input[:] = [f"{name}.dequantized" if name in reads.get(node.name, ()) else name for name in node.input]
        nodes += [*pairs.nodes, node]
        constants += pairs.constants
        for name in tensors.intersection(node.output):
            written = _pair(name, scales[name])
            nodes += written.nodes
            constants += written.constants
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in work.initializer if tensor.name in read]
    return helper.make_graph(nodes, work.name, work.input, work.output, [*kept, *constants])


def scale_in_half(amax: float) -> np.float32:
    """The step of signed bytes that reach to `amax`, as FP16 can hold it, so that files of both types agree.

    >>> scale_in_half(12.7)
    np.float32(0.099975586)
    """
    scale: np.float32 = round_to_half(np.array([amax / _STEPS if amax > 0 else 1.0], np.float32))[0]
    return scale


def round_to_half(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scales that are normal numbers of FP16."""
    return np.clip(scale, *_HALF_LIMITS).astype(np.float16).astype(np.float32)


def with_float_weights(graph: GraphProto) -> None:
    """Let the runtime quantise the weights, in place: a pair on float constants, for importers without INT8 constants.

    TensorRT 8 has none. The constants are whole steps already, so that the same integers come out.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        tensor = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if tensor is not None:
            axis = helper.get_node_attr_value(node, "axis")
            steps, scale = numpy_helper.to_array(tensor), numpy_helper.to_array(constants[node.input[1]])
            shape = [-1 if dimension == axis else 1 for dimension in range(steps.ndim)]
            name = node.input[0].replace(".quantized", ".rounded")
            tensor.CopyFrom(numpy_helper.from_array(steps * scale.reshape(shape), name))
            inputs, output = [name, *node.input[1:]], node.input[0]
            nodes.append(helper.make_node("QuantizeLinear", inputs, [output], name=f"{output}.Q", axis=axis))
        nodes.append(NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(nodes)


def _int8_reads(graph: GraphProto, placement: Placement) -> dict[str, set[str]]:
    """Node name -> tensors that it reads through a pair."""
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    constants = {tensor.name for tensor in graph.initializer}
    reads: dict[str, set[str]] = {}
    quantised: set[str] = set()
    for node in reversed(graph.node):
        if node.name in placement.int8:
            names = {node.input[0]}
        elif node.op_type in _ONE_SCALE and node.output[0] in quantised:
            names = set(_activations(node))
        elif node.op_type == "Add" and not quantised.isdisjoint(_with_relu(node.output[0], readers)):
            names = set(node.input) - constants - _fused_branch(node, producers, readers)
        else:
            continue
        reads[node.name] = names
        quantised |= names
    return reads


def _with_relu(tensor: str, readers: Mapping[str, list[NodeProto]]) -> list[str]:
    """A tensor, and the same behind a ReLU."""
    return [tensor, *(node.output[0] for node in readers.get(tensor, ()) if node.op_type == "Relu")]


def _fused_branch(
    add: NodeProto, producers: Mapping[str, NodeProto], readers: Mapping[str, list[NodeProto]]
) -> set[str]:
    """The input of an addition that comes out of the convolution that it is fused with: the last one before it."""
    convs = [
        name
        for name, node in producers.items()  # in the order of the graph
        if name in add.input and node.op_type in ("Conv", "ConvTranspose") and len(readers[name]) == 1
    ]
    return set(convs[-1:])


def _activations(node: NodeProto) -> list[str]:
    return list(node.input[: _ONE_SCALE[node.op_type]])


def _scales(graph: GraphProto, tensors: set[str], ranges: Mapping[str, Range]) -> dict[str, np.float32]:
    """The step of each tensor; tensors that meet in a Concat or are only moved have one, which holds them all."""
    group = {name: {name} for name in tensors}
    for node in graph.node:
        if node.op_type in _ONE_SCALE and node.output[0] in tensors:
            joined = set().union(*(group[name] for name in (node.output[0], *_activations(node))))
            group.update(dict.fromkeys(joined, joined))
    amax = {node_output: range_of(ranges, node_output).amax for node_output in _in_order(graph, tensors)}
    return {name: scale_in_half(max(amax[other] for other in group[name])) for name in tensors}


def _in_order(graph: GraphProto, tensors: set[str]) -> Iterator[str]:
    return (name for node in graph.node for name in node.output if name in tensors)


def _pair(name: str, scale: np.float32) -> GraphWriter:
    write = GraphWriter(name)
    step, zero = f"{name}.scale", f"{name}.zero_point"
    write.constants += [numpy_helper.from_array(np.array(scale), step), _zero_points(zero, ())]
    write("QuantizeLinear", name, step, zero, output=f"{name}.quantized")
    write("DequantizeLinear", f"{name}.quantized", step, zero, output=f"{name}.dequantized")
    return write


def _quantise_weight(write: GraphWriter, node: NodeProto, weight: npt.NDArray[np.float32], *, search: bool) -> None:
    """Let a convolution read its weights as integers; a ConvTranspose has its output channels on axis 1."""
    axis = CHANNEL_AXIS[node.op_type]
    scale = weight_scales(weight, axis, search=search, rounding=round_to_half)
    prefix = f"{node.name}.weight"
    parts = [f"{prefix}.{part}" for part in ("quantized", "scale", "zero_point")]
    write.constants += [
        numpy_helper.from_array(in_steps(weight, scale, axis), parts[0]),
        numpy_helper.from_array(scale, parts[1]),
        _zero_points(parts[2], scale.shape),
    ]
    node.input[1] = write("DequantizeLinear", *parts, output=f"{prefix}.dequantized", axis=axis)


def _zero_points(name: str, shape: tuple[int, ...]) -> TensorProto:
    return numpy_helper.from_array(np.zeros(shape, np.int8), name)
