"""Writes a float graph as an INT8 one: QuantizeLinear and DequantizeLinear (Q/DQ) around what runs in INT8.

The form is that of ONNX Runtime: activations unsigned with a zero point, weights signed, one scale a channel.
A runtime fuses `DQ -> operator -> Q` into one integer operator::

    graph = insert_qdq(graph, place(graph, "onnxruntime"), ranges)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, helper, numpy_helper

from .errors import CalibrationError
from .methods import Range
from .placement import MOVING, WEIGHTED, Placement
from .weights import CHANNEL_AXIS, in_steps, weight_scales

_LEVELS = 255
_BIAS_MAX = 2**30  # leaves room in 32 bits for the products


@dataclass(frozen=True)
class _Bytes:
    """A quantised tensor: the names of its bytes, its scale and its zero point, and the scale's value."""

    name: str
    scale_name: str
    zero_point_name: str
    scale: np.float32


def insert_qdq(
    graph: GraphProto, placement: Placement, ranges: Mapping[str, Range], *, search: bool = False
) -> GraphProto:
    """The INT8 form of a float graph.

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
    _absorb_relus(work, placement)
    return _Writer(work, placement, ranges, search=search).write()


def scale_and_zero_point(bounds: Range) -> tuple[np.float32, np.uint8]:
    """What maps `low..high`, widened to hold zero, onto 0..255; zero is exact, so that padding is.

    >>> scale_and_zero_point(Range(-1.0, 4.1))
    (np.float32(0.02), np.uint8(50))
    """
    low, high = min(bounds.low, 0.0), max(bounds.high, 0.0)
    scale = np.float32((high - low) / _LEVELS)
    if scale == 0.0:
        return np.float32(1.0), np.uint8(0)
    return scale, np.uint8(np.clip(np.round(-low / scale), 0, _LEVELS))


def range_of(ranges: Mapping[str, Range], name: str) -> Range:
    """The range of a tensor; raises CalibrationError where there is none."""
    if name not in ranges:
        raise CalibrationError(
            f"the ranges have none for tensor {name!r}; they were measured on another graph. Calibrate again"
        )
    return ranges[name]


def quantised_conv(
    weight: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32] | None,
    input_scale: np.float32,
    *,
    axis: int = 0,
    search: bool = False,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int32] | None, npt.NDArray[np.float32]]:
    """The parameters of a convolution in integers.

    Returns:
        The weights in steps of their channel's scale; the (O,) bias in steps of that scale times `input_scale`, in
        which ONNX Runtime adds; and the (O,) scales.
    """
    scale = weight_scales(weight, axis, search=search)
    if bias is not None:
        # A channel that is nearly off has weights, and so steps, in which its bias would be too many.
        scale = np.maximum(scale, np.abs(bias) / (float(input_scale) * _BIAS_MAX)).astype(np.float32)
    steps = None if bias is None else np.round(bias / (scale.astype(np.float64) * input_scale)).astype(np.int32)
    return in_steps(weight, scale, axis), steps, scale


def _absorb_relus(graph: GraphProto, placement: Placement) -> None:
    """Drop each ReLU behind an INT8 operator: the quantiser, whose range starts at zero, clips as it does."""
    producers = {name: node for node in graph.node for name in node.output}
    num_readers: dict[str, int] = {output.name: 1 for output in graph.output}
    for node in graph.node:
        for name in node.input:
            num_readers[name] = num_readers.get(name, 0) + 1
    for relu in [node for node in graph.node if node.op_type == "Relu"]:
        source = producers.get(relu.input[0])
        if source is not None and source.name in placement.int8 and num_readers[relu.input[0]] == 1:
            source.output[0] = relu.output[0]
            graph.node.remove(relu)


def _read_as_bytes(graph: GraphProto, placement: Placement) -> set[str]:
    """Tensors that INT8 operators read, and what those were before they were moved."""
    wanted: set[str] = set()
    for node in reversed(graph.node):
        if node.name in placement.int8:
            wanted.update(node.input[:1] if node.op_type in WEIGHTED else node.input)
        elif node.op_type in MOVING and node.output[0] in wanted:
            wanted.add(node.input[0])
    return wanted


class _Writer:
    """Goes through a graph once and writes its INT8 form."""

    def __init__(self, graph: GraphProto, placement: Placement, ranges: Mapping[str, Range], *, search: bool) -> None:
        self._graph = graph
        self._search = search
        self._int8 = placement.int8
        self._ranges = ranges
        self._weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._wanted = _read_as_bytes(graph, placement)
        self._pixels = {value.name for value in graph.input}  # tensors of uint8 pixels
        self._casts: dict[str, str] = {}  # float pixels -> uint8 pixels
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, npt.NDArray[Any]] = {}
        self._bytes: dict[str, _Bytes] = {}  # by the name of the float tensor
        self._dequantised: set[str] = set()

    def write(self) -> GraphProto:
        for node in self._graph.node:
            if node.name in self._int8:
                self._write_int8(node)
            elif node.op_type in MOVING and (node.input[0] in self._bytes or node.output[0] in self._wanted):
                self._write_moving(node)
            else:
                self._write_float(node)
                self._follow_pixels(node)
        for output in self._graph.output:
            self._restore_output(output.name)
        return self._finished()

    def _write_int8(self, node: NodeProto) -> None:
        written = _copy(node)
        activations = range(1) if node.op_type in WEIGHTED else range(len(node.input))
        for index in activations:
            written.input[index] = self._as_int8_input(node.input[index])
        if node.op_type in WEIGHTED:
            self._quantise_parameters(written, self._bytes[node.input[0]].scale)
        self._nodes.append(written)
        if node.op_type != "MatMul":  # ONNX Runtime's integer MatMul gives floats at no cost
            self._quantise(node.output[0])

    def _write_moving(self, node: NodeProto) -> None:
        """Move the bytes themselves; they keep their meaning."""
        source = self._as_bytes(node.input[0])
        moved = f"{node.output[0]}.quantized"
        written = _copy(node)
        written.input[0], written.output[0] = source.name, moved
        self._nodes.append(written)
        self._bytes[node.output[0]] = _Bytes(moved, source.scale_name, source.zero_point_name, source.scale)

    def _write_float(self, node: NodeProto) -> None:
        written = _copy(node)
        written.input[:] = [self._as_float(name) for name in node.input]
        self._nodes.append(written)

    def _follow_pixels(self, node: NodeProto) -> None:
        if node.input[0] in self._pixels and node.op_type in MOVING:
            self._pixels.add(node.output[0])
        elif node.input[0] in self._pixels and node.op_type == "Cast":
            self._casts[node.output[0]] = node.input[0]

    def _as_float(self, name: str) -> str:
        """The tensor to read in place of float tensor `name`."""
        if name not in self._bytes:
            return name
        dequantised = f"{name}.dequantized"
        if name not in self._dequantised:
            self._dequantised.add(name)
            self._dequantise(name, dequantised)
        return dequantised

    def _as_int8_input(self, name: str) -> str:
        self._as_bytes(name)
        return self._as_float(name)

    def _as_bytes(self, name: str) -> _Bytes:
        if name in self._casts and name not in self._bytes:
            # Pixels are whole numbers from 0 to 255: they are their own quantised form, and nothing is lost.
            self._bytes[name] = self._with_constants(name, self._casts[name], np.float32(1.0), np.uint8(0))
        elif name not in self._bytes:
            self._quantise(name)
        return self._bytes[name]

    def _quantise(self, name: str) -> None:
        bounds = range_of(self._ranges, name)
        quantised = self._with_constants(name, f"{name}.quantized", *scale_and_zero_point(bounds))
        self._bytes[name] = quantised
        inputs = [name, quantised.scale_name, quantised.zero_point_name]
        self._nodes.append(helper.make_node("QuantizeLinear", inputs, [quantised.name], name=f"{name}.Q"))

    def _with_constants(self, name: str, bytes_name: str, scale: np.float32, zero_point: np.uint8) -> _Bytes:
        quantised = _Bytes(bytes_name, f"{name}.scale", f"{name}.zero_point", scale)
        self._constants[quantised.scale_name] = np.array(scale)
        self._constants[quantised.zero_point_name] = np.array(zero_point)
        return quantised

    def _dequantise(self, name: str, result: str) -> None:
        quantised = self._bytes[name]
        inputs = [quantised.name, quantised.scale_name, quantised.zero_point_name]
        self._nodes.append(helper.make_node("DequantizeLinear", inputs, [result], name=f"{result}.DQ"))

    def _quantise_parameters(self, node: NodeProto, input_scale: np.float32) -> None:
        float_bias = self._weights[node.input[2]] if len(node.input) > 2 else None
        axis = CHANNEL_AXIS[node.op_type]
        weight, bias, scale = quantised_conv(
            self._weights[node.input[1]], float_bias, input_scale, axis=axis, search=self._search
        )
        node.input[1] = self._parameter(f"{node.name}.weight", weight, scale, axis=axis)
        if bias is not None:
            node.input[2] = self._parameter(f"{node.name}.bias", bias, scale * input_scale)

    def _parameter(self, name: str, values: npt.NDArray[Any], scale: npt.NDArray[np.float32], *, axis: int = 0) -> str:
        parts = {"quantized": values, "scale": scale, "zero_point": np.zeros(len(scale), values.dtype)}
        inputs = [f"{name}.{part}" for part in parts]
        self._constants.update(zip(inputs, parts.values(), strict=True))
        node = helper.make_node("DequantizeLinear", inputs, [f"{name}.dequantized"], name=f"{name}.DQ", axis=axis)
        self._nodes.append(node)
        return f"{name}.dequantized"

    def _restore_output(self, name: str) -> None:
        """An output of the graph that was quantised is given in float, under its own name."""
        if name not in self._bytes:
            return
        for node in self._nodes:
            node.output[:] = [f"{name}.exact" if text == name else text for text in node.output]
            node.input[:] = [f"{name}.exact" if text == name else text for text in node.input]
        self._dequantise(name, name)

    def _finished(self) -> GraphProto:
        used = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        kept += [numpy_helper.from_array(array, name) for name, array in self._constants.items()]
        written = {name for node in self._nodes for name in node.input} | {output.name for output in self._graph.output}
        # What was read through a cast is read directly now.
        nodes = [node for node in self._nodes if any(name in written for name in node.output)]
        return helper.make_graph(nodes, self._graph.name, self._graph.input, self._graph.output, kept)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
