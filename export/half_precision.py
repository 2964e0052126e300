"""From an FP32 graph to one that is typed FP16, as strongly typed runtimes want it.

::

    to_half(model.graph, spec)

TensorRT 11 calculates each operator in the types of the file, and nothing else; so the file says what is FP16. All is,
except these, which stay FP32:

==============================  =======================================================================================
operator                        why
==============================  =======================================================================================
convolutions that give          FP16 logits have plateaus where FP32 logits have one peak, and each cell of a plateau
heatmaps                        is another detection. One convolution that gives all heads stays FP32 as a whole.
GlobalAveragePool               the average fits into FP16; the sum, which may pass 65504, need not.
convolutions whose weights are  below 6.1e-5 FP16 has fewer bits than 11, below 6e-8 none. What counts is the error of
too small for FP16              the whole kernel: a channel that is nearly off has small weights, and no effect.
what the caller names           operators that a runtime calculates more coarsely than FP16 demands.
==============================  =======================================================================================

A ReLU or Split has the type of what it reads. The frame stays uint8 and every output float32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes

from sdk.spec import ModelSpec

from .errors import ExportError

_Array = npt.NDArray[Any]

HALF_MAX = 65504.0
_HALF: int = TensorProto.FLOAT16
_FLOAT: int = TensorProto.FLOAT
_SUFFIX = {_HALF: ".float16", _FLOAT: ".float32"}

_HEATMAPS = frozenset({"heatmap", "keypoint_heatmap"})
_FLOAT_OPERATORS = frozenset({"GlobalAveragePool"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "DeformConv"})
_QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_OF_THE_TYPE_READ = frozenset({"Relu", "Split", "QuantizeLinear"})
_NEVER_HALF = {"Resize": (1, 2)}  # inputs: the region and the scales, float32 whatever is resized
# Rounding changes a number by at most 2**-11 of it, and so a kernel, unless weights are too small for all 11 bits.
_MAX_KERNEL_CHANGE = 2.0**-10
# What gives exactly what it was given needs no rounding of its own.
_MOVING = frozenset({"Relu", "MaxPool", "Concat", "Split", "Transpose", "Reshape", "Identity", "Gather", "Slice"})


def to_half(graph: GraphProto, spec: ModelSpec, *, float_operators: Collection[str] = ()) -> None:
    """Type a graph FP16, in place.

    Tensors and constants keep their names; what crosses a border between the types is cast once there, and the copy
    is called `NAME.float32` or `NAME.float16`. The scale of a quantiser has the type of its float side, which ONNX
    allows from opset 19 on.

    Args:
        graph: typed FP32, with dense heads as outputs.
        spec: of the model.
        float_operators: operators that stay FP32 beside those above. TensorRT's DeformConv is one to name: typed
            FP16, it also adds up in FP16 and rounds the positions that it reads at
            (TensorRT, plugin/modulatedDeformConvPlugin).

    Raises:
        ExportError: the graph is typed FP16 already, or a constant is too large for FP16.
    """
    if any(tensor.data_type == _HALF for tensor in graph.initializer):
        raise ExportError("the graph is typed FP16 already; convert the FP32 file that `centeredge export` wrote")
    typed = _TypedGraph(graph, _fp32_nodes(graph, spec, float_operators))
    nodes, constants = list(typed.nodes()), list(typed.constants())
    for items in (graph.node, graph.initializer, graph.value_info):
        del items[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)


def rounded_like_half(model: ModelProto) -> ModelProto:
    """An FP32-typed graph that rounds wherever one typed FP16 does, for ONNX Runtime on a CPU.

    There ONNX Runtime has no kernels for FP16: it calculates in FP32 and leaves out what it need not round, at every
    level of optimisation, so that such a file looks as exact as the FP32 one. A pair of casts that stands in the file
    is kept. What a GPU rounds once, after convolution, addition and ReLU in one, is rounded after each here.
    """
    halves = _half_tensors(model)
    rounded = ModelProto()
    rounded.CopyFrom(model)
    for tensor in rounded.graph.initializer:
        if tensor.data_type == _HALF:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for items in (rounded.graph.node, rounded.graph.value_info):
        del items[:]
    rounded.graph.node.extend(part for node in model.graph.node for part in _rounding(node, halves))
    return rounded


def _fp32_nodes(graph: GraphProto, spec: ModelSpec, float_operators: Collection[str]) -> set[str]:
    """The nodes that stay FP32, each by its first output."""
    producers = {name: node for node in graph.node for name in node.output}
    operators = _FLOAT_OPERATORS.union(float_operators)
    chosen = {node.output[0] for node in graph.node if node.op_type in operators}
    for head in spec.heads:
        if head.name in _HEATMAPS:
            chosen |= _back_to_convolution(producers[head.name], producers)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _CONVOLUTIONS and _is_too_small(_kernel(node.input[1], constants, producers)):
            chosen.add(node.output[0])
    return chosen


def _back_to_convolution(node: NodeProto, producers: Mapping[str, NodeProto]) -> set[str]:
    """A node and those before it, up to the convolution."""
    chosen = {node.output[0]}
    if node.op_type not in _CONVOLUTIONS:
        for name in node.input:
            chosen |= _back_to_convolution(producers[name], producers) if name in producers else set()
    return chosen


def _kernel(
    name: str, constants: Mapping[str, _Array], producers: Mapping[str, NodeProto]
) -> tuple[_Array, _Array] | None:
    """A kernel as it is and as FP16 has it; None where it is no constant."""
    if name in constants:
        return constants[name], _half(constants[name])
    node = producers.get(name)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    steps, scale = constants[node.input[0]].astype(np.float32), constants[node.input[1]]
    shape = np.ones(steps.ndim, int)
    if scale.ndim:
        shape[_attribute(node, "axis", 1)] = -1
    return steps * scale.reshape(shape), steps * _half_scale(scale).astype(np.float32).reshape(shape)


def _is_too_small(kernel: tuple[_Array, _Array] | None) -> bool:
    """Whether FP16 changes a kernel by more than rounding to 11 bits does; what is too large is no concern here."""
    if kernel is None or np.abs(kernel[0]).max() > HALF_MAX:
        return False
    change = np.linalg.norm((kernel[1].astype(np.float32) - kernel[0]).ravel())
    return bool(change > _MAX_KERNEL_CHANGE * np.linalg.norm(kernel[0].ravel()))


class _TypedGraph:
    """The parts of a graph with a type each, FP16 or FP32."""

    def __init__(self, graph: GraphProto, fp32: Collection[str]) -> None:
        self._graph = graph
        self._fp32 = fp32
        self._producers = {name: node for node in graph.node for name in node.output}
        self._constants = {tensor.name for tensor in graph.initializer if tensor.data_type == _FLOAT}
        self._inputs = {value.name for value in graph.input if value.type.tensor_type.elem_type == _FLOAT}
        self._outputs = {value.name for value in graph.output}
        self._scales = {node.input[1] for node in graph.node if node.op_type in _QUANTISERS}
        self._floats = self._float_tensors()
        self._wanted = self._wanted_types()

    def nodes(self) -> Iterator[NodeProto]:
        """In order; each Cast stands behind what it casts."""
        for name in self._inputs:
            yield from self._casts(name)
        for original in self._graph.node:
            node, node_type = _copy(original), self._type_of(original)
            node.input[:] = [
                self._name(name, node_type) if self._is_typed(node, index) else name
                for index, name in enumerate(node.input)
            ]
            node.output[:] = [self._name(name, node_type) if name in self._floats else name for name in node.output]
            if node.op_type == "Cast" and original.output[0] in self._floats:
                _cast_to(node, node_type)
            yield node
            for name in original.output:
                yield from self._casts(name)

    def constants(self) -> Iterator[TensorProto]:
        """In each type in which they are read."""
        for tensor in self._graph.initializer:
            if tensor.name not in self._constants or _HALF not in self._wanted[tensor.name]:
                yield tensor
                continue
            if _FLOAT in self._wanted[tensor.name]:
                yield tensor
            array = numpy_helper.to_array(tensor)
            if (largest := np.abs(array).max(initial=0.0)) > HALF_MAX:
                raise ExportError(
                    f"constant {tensor.name!r} holds {largest:.3g}, and FP16 ends at {HALF_MAX:.0f}; "
                    "export this model with --precision fp32"
                )
            half = _half_scale(array) if tensor.name in self._scales else _half(array)
            yield numpy_helper.from_array(half, self._name(tensor.name, _HALF))

    def _casts(self, name: str) -> Iterator[NodeProto]:
        """To the types in which a tensor is wanted but is not given."""
        if name in self._floats:
            home = self._home(name)
            for other in self._wanted[name] - {home}:
                yield _cast(self._name(name, home), self._name(name, other), other)

    def _float_tensors(self) -> set[str]:
        floats = self._constants | self._inputs
        for node in self._graph.node:
            gives_float = _attribute(node, "to", _FLOAT) == _FLOAT and node.op_type != "QuantizeLinear"
            reads_float = not floats.isdisjoint(node.input[:1]) or node.op_type in ("Cast", "DequantizeLinear")
            if gives_float and reads_float:
                floats.update(node.output)
        return floats

    def _wanted_types(self) -> dict[str, set[int]]:
        wanted: dict[str, set[int]] = {name: set() for name in self._floats}
        for node in self._graph.node:
            for index, name in enumerate(node.input):
                if name in self._floats:
                    wanted[name].add(self._type_of(node) if self._is_typed(node, index) else _FLOAT)
        for name in self._outputs & self._floats:
            wanted[name].add(_FLOAT)
        return wanted

    def _type_of(self, node: NodeProto) -> int:
        if node.output[0] in self._fp32:
            return _FLOAT
        if node.op_type in _OF_THE_TYPE_READ:
            return self._home(node.input[0])
        if node.op_type in ("Cast", "DequantizeLinear"):  # comes from integers: whatever is wanted of it
            readers = [other for other in self._graph.node if node.output[0] in other.input]
            types = {self._type_of(other) for other in readers if other.op_type not in _OF_THE_TYPE_READ}
            return _HALF if _HALF in types else _FLOAT
        return _HALF

    def _home(self, name: str) -> int:
        """The type in which a tensor is given."""
        if name in self._producers:
            return self._type_of(self._producers[name])
        return _FLOAT if name in self._inputs or _FLOAT in self._wanted[name] else _HALF

    def _name(self, name: str, in_type: int) -> str:
        own_type = _FLOAT if name in self._outputs else self._home(name)
        return name if in_type == own_type else name + _SUFFIX[in_type]

    def _is_typed(self, node: NodeProto, index: int) -> bool:
        """Whether an input of a node has the node's type."""
        return node.input[index] in self._floats and index not in _NEVER_HALF.get(node.op_type, ())


def _half_tensors(model: ModelProto) -> set[str]:
    graph = infer_shapes(model, strict_mode=True).graph
    return {value.name for value in graph.value_info if value.type.tensor_type.elem_type == _HALF}


def _rounding(node: NodeProto, halves: Collection[str]) -> Iterator[NodeProto]:
    """The node in FP32, with casts to FP16 and back behind it where it rounds."""
    exact = _copy(node)
    if node.op_type == "Cast" and node.output[0] in halves:
        _cast_to(exact, _FLOAT)
    rounds = node.output[0] in halves and node.op_type not in _MOVING
    if rounds:
        exact.output[:] = [f"{name}.exact" for name in node.output]
    yield exact
    for name in node.output if rounds else ():
        yield _cast(f"{name}.exact", f"{name}.rounded", _HALF)
        yield _cast(f"{name}.rounded", name, _FLOAT)


def _half(array: _Array) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def _half_scale(scale: _Array) -> npt.NDArray[np.float16]:
    """Never zero, which TensorRT refuses: the scale of a channel that is off."""
    smallest: np.float16 = np.finfo(np.float16).smallest_subnormal
    return np.maximum(_half(scale), smallest)


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{source}.Cast{_SUFFIX[to]}", to=to)


def _cast_to(node: NodeProto, to: int) -> None:
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("to", to))


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
