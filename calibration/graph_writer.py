"""Writes a piece of an ONNX graph, operator by operator, as one reads it.

::

    write = GraphWriter("peaks")
    highest = write("MaxPool", "heatmap", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    flat = write("Reshape", highest, write.constant([0, 1, -1]))
    write.extend(graph)
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper


class GraphWriter:
    """Collects nodes and constants; nothing changes a graph before `extend`.

    Args:
        prefix: of the names of all nodes, tensors and constants that are written.

    Attributes:
        nodes: in the order in which they were written.
        constants: as they are needed.
    """

    def __init__(self, prefix: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._prefix = prefix
        self._seen: Counter[str] = Counter()

    def __call__(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """One operator with one output; the name of that output."""
        return self.several(operator, *inputs, outputs=[output or self._name(operator)], **attributes)[0]

    def several(self, operator: str, *inputs: str, outputs: list[str], **attributes: Any) -> list[str]:
        """One operator with several outputs, by name."""
        node = helper.make_node(operator, list(inputs), outputs, name=outputs[0], **attributes)
        self.nodes.append(node)
        return outputs

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> str:
        """A constant; whole numbers are int64 and others float32, unless `dtype` says otherwise."""
        array = np.asarray(value, dtype)
        if dtype is None:
            array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
        name = self._name("constant")
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def extend(self, graph: GraphProto) -> None:
        """Put what was written at the end of a graph."""
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.constants)

    def replace(self, graph: GraphProto, node: NodeProto) -> None:
        """Put what was written in the place of a node of the graph."""
        place = next(index for index, other in enumerate(graph.node) if other is node or other.name == node.name)
        nodes = [*graph.node[:place], *self.nodes, *graph.node[place + 1 :]]
        copies = [NodeProto.FromString(other.SerializeToString()) for other in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        graph.initializer.extend(self.constants)

    def _name(self, operator: str) -> str:
        self._seen[operator] += 1
        count = self._seen[operator]
        return f"{self._prefix}.{operator}" if count == 1 else f"{self._prefix}.{operator}_{count}"
