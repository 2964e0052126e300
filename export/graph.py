"""From the graph that PyTorch's exporter leaves to the one that is shipped: smaller, with names that say something."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

NETWORK_PREFIX = "network"  # of ExportedNetwork.network, which is no part of a layer's name
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"


def tidy(model: ModelProto) -> None:
    """Name tensors after layers, join the output convolutions, drop what only debugging wants; in place."""
    graph = model.graph
    del graph.value_info[:]
    _name_after_layers(graph)
    _fold_norms(graph)
    _join_output_convs(graph)
    _drop_unused(graph)
    _drop_notes(model)


def _name_after_layers(graph: GraphProto) -> None:
    """Call each tensor by the layer and operator that give it, e.g. `stages.0.0.conv1.Conv`.

    Counters, as the exporter has them, would change with every operator that a target expresses differently.
    """
    seen: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    constants = {tensor.name for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        path = _layer(node, constants)
        name = f"{path}.{node.op_type}".removeprefix(".")
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}_{seen[name]}"
        renamed.update((text, node.name) for text in node.output[:1] if text not in outputs)
        if node.op_type == "Conv":
            renamed.update(zip(node.input[1:], (f"{path}.weight", f"{path}.bias"), strict=False))
        elif node.op_type == "DeformConv":
            renamed[node.input[1]] = f"{path}.weight"
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]


def _layer(node: NodeProto, constants: set[str]) -> str:
    """Path of the layer that a node comes from; empty for what stands in no layer of its own."""
    if node.op_type == "Conv" and node.input[1] in constants:  # a folded batch norm has left its own path
        path = node.input[1].removesuffix(".weight")
    else:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        path = ast.literal_eval(notes.get(_SCOPES_KEY, "['', '']"))[-2]
    return str(path).removeprefix(NETWORK_PREFIX).removeprefix(".")


def _fold_norms(graph: GraphProto) -> None:
    """Put each batch norm into the deformable convolution before it; the exporter does so for the others."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layers = {node.output[0]: node for node in graph.node if node.op_type == "DeformConv"}
    num_readers = Counter(name for node in graph.node for name in node.input)
    renamed: dict[str, str] = {}
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        layer = layers.get(norm.input[0])
        if layer is None or num_readers[norm.input[0]] > 1:
            continue
        scale, shift, mean, variance = (arrays[name].astype(np.float64) for name in norm.input[1:])
        epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        weight = arrays[layer.input[1]] * factor.reshape(-1, 1, 1, 1)
        bias = (arrays[layer.input[3]] - mean) * factor + shift
        path = layer.name.removesuffix(".DeformConv")
        # Names of their own: layers whose biases are equal share one constant.
        for place, name, array in ((1, f"{path}.folded_weight", weight), (3, f"{path}.folded_bias", bias)):
            layer.input[place] = name
            graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
        renamed[norm.output[0]] = layer.output[0]
        graph.node.remove(norm)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _join_output_convs(graph: GraphProto) -> None:
    """Let convolutions that read one tensor and give outputs be one convolution and a Split.

    Convolutions of one or two channels leave most of a vector unit idle, and each reads its input anew.
    """
    outputs = {output.name for output in graph.output}
    groups: dict[tuple[str, bytes], list[NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "Conv" and node.output[0] in outputs and _group_count(node) == 1:
            shape = b"".join(sorted(attribute.SerializeToString() for attribute in node.attribute))
            groups.setdefault((node.input[0], shape), []).append(node)
    for number, convs in enumerate(group for group in groups.values() if len(group) > 1):
        _join(graph, convs, name="outputs" if number == 0 else f"outputs_{number + 1}")


def _join(graph: GraphProto, convs: Sequence[NodeProto], *, name: str) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights = [numpy_helper.to_array(constants[conv.input[1]]) for conv in convs]
    biases = [
        numpy_helper.to_array(constants[conv.input[2]]) if len(conv.input) > 2 else np.zeros(len(weight), np.float32)
        for conv, weight in zip(convs, weights, strict=True)
    ]
    channels = np.array([len(weight) for weight in weights], np.int64)
    for suffix, array in (
        ("weight", np.concatenate(weights)),
        ("bias", np.concatenate(biases)),
        ("channels", channels),
    ):
        graph.initializer.append(numpy_helper.from_array(array, f"{name}.{suffix}"))
    joined = NodeProto()
    joined.CopyFrom(convs[0])
    joined.name = f"{name}.Conv"
    joined.input[:] = [convs[0].input[0], f"{name}.weight", f"{name}.bias"]
    joined.output[:] = [f"{name}.Conv"]
    split = helper.make_node(
        "Split", [f"{name}.Conv", f"{name}.channels"], [conv.output[0] for conv in convs], name=f"{name}.Split", axis=1
    )
    for conv in convs:
        graph.node.remove(conv)
    graph.node.extend([joined, split])


def _group_count(conv: NodeProto) -> int:
    return next((attribute.i for attribute in conv.attribute if attribute.name == "group"), 1)


def _drop_unused(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _drop_notes(model: ModelProto) -> None:
    """The exporter notes stack traces, with paths of the machine, at every node."""
    graph = model.graph
    model.doc_string = graph.doc_string = ""
    graph.name = "centeredge"
    for items in (graph.node, graph.input, graph.output, graph.initializer):
        for item in items:
            item.doc_string = ""
            del item.metadata_props[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "centeredge", ""
