"""Which operators of a graph run in INT8, and why the others stay in float.

::

    placement = place(model.graph, "tensorrt", float_nodes=["stages.0.0.conv1.Conv"])
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, helper, numpy_helper

from sdk.errors import ConfigError

from .config import Target

# Operators that calculate with quantised values in ONNX Runtime, each with a scale of its own for the result.
CALCULATING = frozenset({"Conv", "Add", "Concat", "GlobalAveragePool"})
# Operators that only move or compare values, so that the bytes can go through them as they are.
MOVING = frozenset({"MaxPool", "Resize", "Gather", "Transpose", "Reshape", "Slice"})
# Operators with weights: those that INT8 is for.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "DeformConv", "MatMul"})

# The transposed convolution that doubles a map.
_DOUBLING_KERNEL = (4, 4)
_DOUBLING = {
    "strides": [2, 2],
    "pads": [1, 1, 1, 1],
    "dilations": [1, 1],
    "output_padding": [0, 0],
    "group": 1,
}
_CONV_TRANSPOSE_DEFAULTS = {**_DOUBLING, "strides": [1, 1], "pads": [0, 0, 0, 0]}
_MIN_CHANNELS = 16
_CHANNEL_MULTIPLE = 8


@dataclass(frozen=True)
class Placement:
    """What runs in INT8.

    Attributes:
        int8: names of the operators that do.
        reasons: names of operators with weights that stay in float -> why, for people.
    """

    int8: frozenset[str]
    reasons: Mapping[str, str]


def place(graph: GraphProto, target: Target = "onnxruntime", *, float_nodes: Collection[str] = ()) -> Placement:
    """Everything that gains, by the rules of a target (`_RULES`).

    Args:
        graph: in float, with unique node names.
        target: whose rules count.
        float_nodes: names of nodes that stay in float whatever the rules say.

    Raises:
        ConfigError: there is no such target, or no such node.
    """
    unknown = set(float_nodes) - {node.name for node in graph.node}
    if unknown:
        raise ConfigError(f"the model has no node {min(unknown)!r} that could stay in float")
    if target not in _RULES:
        raise ConfigError(f"INT8 for target {target!r} is not known; there are {', '.join(get_args(Target))}")
    facts = _Facts(graph, frozenset(float_nodes))
    reasons: dict[str, str] = {}
    for node in graph.node:
        if _has_weights(node, facts):
            reason = next((text for text, holds in _RULES[target] if holds(node, facts)), None)
            if reason is not None:
                reasons[node.name] = reason
    int8 = {node.name for node in graph.node if _gains(node, target, facts) and node.name not in reasons}
    return Placement(frozenset(int8), reasons)


class _Facts:
    """What the rules ask about a graph."""

    def __init__(self, graph: GraphProto, float_nodes: frozenset[str]) -> None:
        self.float_nodes = float_nodes
        self.weights: dict[str, npt.NDArray[np.generic]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        self.producers: dict[str, NodeProto] = {name: node for node in graph.node for name in node.output}
        self.outputs = _before_splitting(graph, {output.name for output in graph.output})
        sampled = {name for node in graph.node if node.op_type == "DeformConv" for name in node.input[2:]}
        self.positions = _before_splitting(graph, sampled)


def _gains(node: NodeProto, target: Target, facts: _Facts) -> bool:
    """Whether a target calculates an operator in integers, weights known and all else calculated."""
    if node.name in facts.float_nodes:
        return False
    if node.op_type in WEIGHTED:
        return _has_weights(node, facts)
    # TensorRT fuses an addition with the convolution before it; nothing else there has steps of its own.
    return target == "onnxruntime" and node.op_type in CALCULATING and facts.weights.keys().isdisjoint(node.input)


def _has_weights(node: NodeProto, facts: _Facts) -> bool:
    """Whether weights are known beforehand; a MatMul may have none."""
    return node.op_type in WEIGHTED and node.input[1] in facts.weights


def _is_named(node: NodeProto, facts: _Facts) -> bool:
    return node.name in facts.float_nodes


def _gives_output(node: NodeProto, facts: _Facts) -> bool:
    return any(name in facts.outputs for name in node.output)


def _gives_positions(node: NodeProto, facts: _Facts) -> bool:
    return any(name in facts.positions for name in node.output)


def _cannot_be_conv(node: NodeProto, facts: _Facts) -> bool:
    """Whether a node is a ConvTranspose that `layout.upsample_by_conv` does not know."""
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    found = {key: found.get(key, default) for key, default in _CONV_TRANSPOSE_DEFAULTS.items()}
    doubles = facts.weights[node.input[1]].shape[2:] == _DOUBLING_KERNEL and found == _DOUBLING
    return node.op_type == "ConvTranspose" and not doubles


def _is_deformable(node: NodeProto, facts: _Facts) -> bool:
    return bool(node.op_type == "DeformConv")


def _has_many_products(node: NodeProto, facts: _Facts) -> bool:
    """Whether a deformable convolution as project-then-gather moves more bytes than INT8 saves (docs/benchmarks.md)."""
    out_channels, in_channels = facts.weights[node.input[1]].shape[:2]
    return _is_deformable(node, facts) and 2 * out_channels > in_channels


def _is_matmul(node: NodeProto, facts: _Facts) -> bool:
    return bool(node.op_type == "MatMul")


def _is_grouped_transposed(node: NodeProto, facts: _Facts) -> bool:
    return node.op_type == "ConvTranspose" and _groups(node) > 1


def _sees_one_cell(node: NodeProto, facts: _Facts) -> bool:
    source = facts.producers.get(node.input[0])
    return source is not None and source.op_type == "GlobalAveragePool"


def _is_narrow(node: NodeProto, facts: _Facts) -> bool:
    """Fewer than 16 channels in or out, unless both are multiples of 8 and the kernel is square."""
    first, second, *kernel = facts.weights[node.input[1]].shape
    # Weights are (O, I / groups, h, w), those of a ConvTranspose (I, O / groups, h, w).
    channels = (first, second * _groups(node))
    fits = all(number % _CHANNEL_MULTIPLE == 0 for number in channels) and len(set(kernel)) == 1
    return min(channels) < _MIN_CHANNELS and not fits


_Rule = tuple[str, Callable[[NodeProto, _Facts], bool]]

# Why an operator with weights stays in float; the first that holds is given.
_COMMON: tuple[_Rule, ...] = (
    ("it was named to stay in float", _is_named),
    ("it gives an output, which 256 steps would flatten", _gives_output),
    ("it says where a deformable convolution samples", _gives_positions),
)
_RULES: dict[Target, tuple[_Rule, ...]] = {
    "onnxruntime": (
        *_COMMON,
        (
            "ONNX Runtime has no integer ConvTranspose, and this one cannot be a convolution",
            _cannot_be_conv,
        ),
        ("ONNX Runtime's DeformConv in FP32 is faster than so many products in INT8", _has_many_products),
    ),
    # TensorRT's documents ("Explicit Quantization") and the placement of NVIDIA's ModelOpt.
    "tensorrt": (
        *_COMMON,
        ("TensorRT has DeformConv in FP32 and FP16 only", _is_deformable),
        ("TensorRT gains nothing from this MatMul in INT8", _is_matmul),
        ("a ConvTranspose of groups would have one scale for all of them", _is_grouped_transposed),
        ("it sees one cell, where nothing can be gained", _sees_one_cell),
        ("it has fewer than 16 channels in or out, which integer kernels do not fill", _is_narrow),
    ),
}


def _groups(node: NodeProto) -> int:
    groups: int = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "group"), 1)
    return groups


def _before_splitting(graph: GraphProto, tensors: set[str]) -> set[str]:
    """Tensors, and what they were before they were split, moved or squashed."""
    found = set(tensors)
    for node in reversed(graph.node):
        if node.op_type in (*MOVING, "Split", "Sigmoid") and not found.isdisjoint(node.output):
            found.add(node.input[0])
    return found
