"""Cross-layer equalisation: a float rewrite that evens out the channels between two convolutions.

::

    equalised = equalise(model)  # before its ranges are measured, which are others afterwards

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019, arXiv:1906.04721),
sec. 4.1: ReLU(s x) = s ReLU(x) for s > 0, so that a channel may be made smaller by one convolution and larger by the
next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, NodeProto, numpy_helper

_SWEEPS = 20  # until the scales of a chain of convolutions have settled; most have after a few
_MAX_LOG2 = 8  # a channel that is off needs no more


@dataclass(frozen=True)
class _Pair:
    """Two convolutions with nothing but a ReLU between them: the names of their weights and of the first bias."""

    first: str
    bias: str | None
    second: str


def equalise(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with evened channels; it gives the same values bit by bit, because all factors are powers of two."""
    equalised = onnx.ModelProto()
    equalised.CopyFrom(model)
    graph = equalised.graph
    weights = {
        tensor.name: numpy_helper.to_array(tensor).copy()
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    pairs = _pairs(graph)
    for _ in range(_SWEEPS):
        changed = [_even_out(pair, weights) for pair in pairs]
        if not any(changed):
            break
    for tensor in graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return equalised


def _even_out(pair: _Pair, weights: dict[str, npt.NDArray[np.float32]]) -> bool:
    """Give both convolutions about the same largest weight in each channel; whether anything changed."""
    r1 = np.abs(weights[pair.first]).max(axis=(1, 2, 3))
    r2 = np.abs(weights[pair.second]).max(axis=(0, 2, 3))
    both = (r1 > 0) & (r2 > 0)
    # Eq. 11: s = sqrt(r1 r2) / r2, so that r1 / s = r2 s.
    log2 = np.where(both, np.log2(np.where(both, r1, 1.0) / np.where(both, r2, 1.0)) / 2, 0.0)
    s = np.exp2(np.clip(np.round(log2), -_MAX_LOG2, _MAX_LOG2)).astype(np.float32)
    weights[pair.first] /= s[:, None, None, None]
    if pair.bias is not None:
        weights[pair.bias] /= s
    weights[pair.second] *= s[None, :, None, None]
    return bool((s != 1.0).any())


def _pairs(graph: GraphProto) -> list[_Pair]:
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}
    constants = {tensor.name for tensor in graph.initializer}
    pairs = []
    for first in graph.node:
        if not _is_plain_conv(first, constants, readers):
            continue
        tensor = first.output[0]
        following = _only_reader(tensor, readers, outputs)
        if following is not None and following.op_type == "Relu":
            following = _only_reader(following.output[0], readers, outputs)
        if following is not None and _is_plain_conv(following, constants, readers):
            pairs.append(_Pair(first.input[1], first.input[2] if len(first.input) > 2 else None, following.input[1]))
    return pairs


def _only_reader(tensor: str, readers: dict[str, list[NodeProto]], outputs: set[str]) -> NodeProto | None:
    found = readers.get(tensor, [])
    return found[0] if len(found) == 1 and tensor not in outputs else None


def _is_plain_conv(node: NodeProto, constants: set[str], readers: dict[str, list[NodeProto]]) -> bool:
    """A convolution without groups, with constants that it alone reads."""
    grouped = any(attribute.name == "group" and attribute.i != 1 for attribute in node.attribute)
    own = all(name in constants and len(readers[name]) == 1 for name in node.input[1:])
    return node.op_type == "Conv" and own and not grouped
