"""Which operators of a graph run in INT8, and which stay in float."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import GraphProto, NodeProto

# Operators that calculate with quantised values in ONNX Runtime, each with a scale of its own for the result.
CALCULATING = frozenset({"Conv", "Add", "Concat", "GlobalAveragePool"})
# Operators that only move or compare values, so that the bytes can go through them as they are.
MOVING = frozenset({"MaxPool", "Resize", "Gather", "Transpose", "Reshape"})


@dataclass(frozen=True)
class Placement:
    """The operators that run in INT8, by node name, and the convolutions that stay in float."""

    int8: frozenset[str]
    float_convs: tuple[str, ...]


def place_for_onnxruntime(graph: GraphProto) -> Placement:
    """Everything that gains, except the output convolutions.

    Those stay in float for two reasons. A heatmap in 256 steps has plateaus where it had peaks. And ONNX Runtime
    calculates a few channels in INT8 no faster than in float (docs/benchmarks.md).
    """
    last = _output_convs(graph)
    constants = {tensor.name for tensor in graph.initializer}
    int8 = {node.name for node in graph.node if _can_be_int8(node, constants) and node.name not in last}
    return Placement(frozenset(int8), tuple(sorted(last)))


def _can_be_int8(node: NodeProto, constants: set[str]) -> bool:
    """Whether an operator is one of CALCULATING, with weights that are known and all else calculated."""
    if node.op_type == "Conv":
        return constants.issuperset(node.input[1:])
    return node.op_type in CALCULATING and constants.isdisjoint(node.input)


def _output_convs(graph: GraphProto) -> set[str]:
    """Names of the convolutions whose result is an output, as a whole or split."""
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        if node.op_type == "Split" and outputs.intersection(node.output):
            outputs.add(node.input[0])
    return {node.name for node in graph.node if node.op_type == "Conv" and node.output[0] in outputs}
