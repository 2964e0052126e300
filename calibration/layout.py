"""Rewrites of a float graph that change no value, for the sake of the INT8 graph that it becomes.

ONNX Runtime calculates integer convolutions channels last, as frames come, and cancels transposes that meet. These
rewrites say the same in the form that is cheapest there (docs/benchmarks.md)::

    upsample_by_conv(graph, shapes, names)
    widen_first_conv(graph, shapes)
    copy_to_upsample(graph, shapes)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, helper, numpy_helper

Shapes = Mapping[str, tuple[int, ...]]
_Step = tuple[str, Sequence[str], dict[str, Any]]  # operator, further inputs, attributes

_TO_CHANNELS_LAST: _Step = ("Transpose", (), {"perm": [0, 2, 3, 1]})
_TO_CHANNELS_FIRST: _Step = ("Transpose", (), {"perm": [0, 3, 1, 2]})
_PIXELS = 4  # that are read as one
_CONV_DEFAULTS = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1]}


def upsample_by_conv(graph: GraphProto, shapes: Shapes, names: Collection[str]) -> None:
    """Transposed convolutions 4x4 of stride 2 as 2x2 convolutions to four times the channels, in place.

    ONNX Runtime has integer kernels for the latter only. Each of the 2x2 outputs around the corner of four cells is a
    sum over these four cells, with its own quarter of the kernel; so a 2x2 convolution gives all of them as channels,
    for each corner, those on the border included. Laid side by side they are the map with a border of one.

    The convolution and its ReLU come before the laying out, so that they keep their names and their ranges.

    Args:
        graph: of the model.
        shapes: of its tensors, by name.
        names: of the nodes, none of which gives an output of the graph; others are left alone.
    """
    arrays = _arrays(graph)
    for node in [node for node in graph.node if node.op_type == "ConvTranspose" and node.name in names]:
        _upsample_by_conv(graph, node, arrays, shapes)
    del graph.value_info[:]  # the shapes of what keeps its name are others now


def _upsample_by_conv(
    graph: GraphProto, node: NodeProto, arrays: Mapping[str, npt.NDArray[Any]], shapes: Shapes
) -> None:
    weight = arrays[node.input[1]]  # (I, O, 4, 4)
    in_channels, out_channels = weight.shape[:2]
    # Rows 2 and 0 of the kernel give the upper of the two outputs at a corner, rows 3 and 1 the lower; so the columns.
    pieces = weight.reshape(in_channels, out_channels, 2, 2, 2, 2)[:, :, ::-1, :, ::-1, :]
    kernel = pieces.transpose(3, 5, 1, 0, 2, 4).reshape(4 * out_channels, in_channels, 2, 2)
    inputs = [node.input[0], _add_constant(graph, f"{node.name}.corners", np.ascontiguousarray(kernel))]
    if len(node.input) > 2:
        inputs.append(_add_constant(graph, f"{node.name}.corner_biases", np.tile(arrays[node.input[2]], 4)))
    conv = helper.make_node("Conv", inputs, [node.output[0]], name=node.name, pads=[1, 1, 1, 1], kernel_shape=[2, 2])
    relu = _relu_behind(graph, node)
    last = relu or conv
    layout = _lay_out(graph, node.name, source=last.output[0], corners=shapes[node.output[0]])
    rewritten: list[NodeProto] = []
    for other in graph.node:
        if other.name not in (node.name, last.name):
            other.input[:] = [layout[-1].output[0] if name == last.output[0] else name for name in other.input]
        rewritten.append(conv if other.name == node.name else other)
        if other.name == last.name:
            rewritten += layout
    _replace_nodes(graph, rewritten)


def _relu_behind(graph: GraphProto, node: NodeProto) -> NodeProto | None:
    """The ReLU that alone reads what a node gives."""
    readers = [other for other in graph.node if node.output[0] in other.input]
    return readers[0] if [reader.op_type for reader in readers] == ["Relu"] else None


def _lay_out(graph: GraphProto, name: str, *, source: str, corners: tuple[int, ...]) -> list[NodeProto]:
    """From (1, 4 O, h + 1, w + 1) corners to the (1, O, 2 h, 2 w) map of the given shape."""
    _, channels, height, width = corners
    rows, columns = height // 2 + 1, width // 2 + 1
    split = _add_constant(graph, f"{name}.split", np.array([1, rows, columns, 2, 2, channels]))
    whole = _add_constant(graph, f"{name}.whole", np.array([1, 2 * rows, 2 * columns, channels]))
    bounds = [
        _add_constant(graph, f"{name}.{key}", np.array(value))
        for key, value in (("first", [1, 1]), ("end", [2 * rows - 1, 2 * columns - 1]), ("axes", [1, 2]))
    ]
    steps: list[_Step] = [
        _TO_CHANNELS_LAST,
        ("Reshape", [split], {}),
        ("Transpose", [], {"perm": [0, 1, 3, 2, 4, 5]}),
        ("Reshape", [whole], {}),
        ("Slice", bounds, {}),
        _TO_CHANNELS_FIRST,
    ]
    return _chain(steps, source=source, target=f"{name}.laid_out", name=name)


def copy_to_upsample(graph: GraphProto, shapes: Shapes) -> None:
    """Nearest upsampling as a copy of columns, then of rows, in place.

    Channels last, both copy contiguous bytes; ONNX Runtime's Resize goes value by value.

    Args:
        graph: of the model.
        shapes: of its tensors, by name.
    """
    arrays = _arrays(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        factors = _nearest_factors(node, arrays)
        if factors is None:
            nodes.append(node)
            continue
        height, width = shapes[node.input[0]][2:]
        columns = _add_constant(graph, f"{node.name}.columns", np.repeat(np.arange(width), factors[1]))
        rows = _add_constant(graph, f"{node.name}.rows", np.repeat(np.arange(height), factors[0]))
        copies: list[_Step] = [("Gather", [columns], {"axis": 2}), ("Gather", [rows], {"axis": 1})]
        steps = [_TO_CHANNELS_LAST, *copies, _TO_CHANNELS_FIRST]
        nodes += _chain(steps, source=node.input[0], target=node.output[0], name=node.name)
    _replace_nodes(graph, nodes)


def widen_first_conv(graph: GraphProto, shapes: Shapes) -> None:
    """Let the first convolution read four neighbouring pixels as one of 12 channels, in place.

    The fast integer kernels want input channels in fours and output channels in sixteens; three channels take a
    path of less than half the speed. Frames come channels last, so that four pixels are 12 contiguous bytes, and
    nothing has to be moved. The convolution gives the outputs of those pixels side by side as channels, its weights
    spread accordingly; where a pixel does not count for an output, the weight is zero.

    Does nothing where the graph does not start with Transpose, Cast and Conv, or the sizes do not fit.

    Args:
        graph: of the model.
        shapes: of its tensors, by name.
    """
    start = _start(graph)
    if start is None:
        return
    transpose, conv, wide = start[0], start[2], start[-1].output[0]
    attributes = {**_CONV_DEFAULTS, **_attributes(conv)}
    frame = transpose.input[0]
    (_, height, width, _), (_, channels, out_height, out_width) = shapes[frame], shapes[wide]
    stride = attributes["strides"][1]
    if width % _PIXELS or _PIXELS % stride or out_width * stride != width or max(attributes["dilations"]) > 1:
        return
    pixels = _add_constant(graph, "wide.frame", np.array([1, height, width // _PIXELS, _PIXELS * 3]))
    maps = _add_constant(graph, "wide.maps", np.array([1, out_height, out_width, channels]))
    reshape = helper.make_node("Reshape", [frame, pixels], ["wide.Reshape"], name="wide.Reshape")
    transpose.input[0] = "wide.Reshape"
    _widen(graph, conv, attributes)
    # The wide maps keep their names, and so their ranges; what is narrow again gets new ones.
    steps: list[_Step] = [_TO_CHANNELS_LAST, ("Reshape", [maps], {}), _TO_CHANNELS_FIRST]
    back = _chain(steps, source=wide, target="narrow", name="narrow")
    rest = [node for node in graph.node if node not in start]
    for node in rest:
        node.input[:] = ["narrow" if name == wide else name for name in node.input]
    _replace_nodes(graph, [reshape, *start, *back, *rest])


def _start(graph: GraphProto) -> list[NodeProto] | None:
    """Transpose, Cast, Conv and, if it alone reads that, ReLU: what a graph starts with, if it does."""
    start: list[NodeProto] = []
    tensor = graph.input[0].name
    for operator in ("Transpose", "Cast", "Conv", "Relu"):
        readers = [node for node in graph.node if tensor in node.input]
        if len(readers) != 1 or readers[0].op_type != operator:
            break
        start += readers
        tensor = readers[0].output[0]
    is_output = tensor in {output.name for output in graph.output}
    return start if len(start) >= 3 and not is_output else None


def _widen(graph: GraphProto, conv: NodeProto, attributes: Mapping[str, Any]) -> None:
    """Make a convolution of 3 channels one of 3 * _PIXELS, that gives several outputs at once."""
    arrays = _arrays(graph)
    stride, pads = attributes["strides"], attributes["pads"]
    weight, first, last = _spread(arrays[conv.input[1]], stride=stride[1], pad=pads[1])
    conv.input[1] = _add_constant(graph, f"{conv.input[1]}.wide", weight)
    if len(conv.input) > 2:
        bias = np.tile(arrays[conv.input[2]], _PIXELS // stride[1])
        conv.input[2] = _add_constant(graph, f"{conv.input[2]}.wide", bias)
    changed = {
        "kernel_shape": weight.shape[2:],
        "strides": [stride[0], 1],
        "pads": [pads[0], -first, pads[2], last],
    }
    del conv.attribute[:]
    conv.attribute.extend(helper.make_attribute(name, value) for name, value in {**attributes, **changed}.items())


def _spread(weight: npt.NDArray[np.float32], *, stride: int, pad: int) -> tuple[npt.NDArray[np.float32], int, int]:
    """Weights (O, 3, h, w) for single pixels as weights (n O, 12, h, groups) for groups of four.

    Returns:
        The weights, and the first and last group that they read, counted from the one that they stand on.
    """
    out_channels, in_channels, height, width = weight.shape
    side_by_side = _PIXELS // stride
    first, last = -pad // _PIXELS, ((side_by_side - 1) * stride + width - 1 - pad) // _PIXELS
    wide = np.zeros((side_by_side, out_channels, _PIXELS, in_channels, height, last - first + 1), np.float32)
    for output in range(side_by_side):
        for column in range(width):
            group, pixel = divmod(output * stride + column - pad, _PIXELS)
            wide[output, :, pixel, :, :, group - first] = weight[..., column]
    shape = (side_by_side * out_channels, _PIXELS * in_channels, height, last - first + 1)
    return wide.reshape(shape), first, last


def _nearest_factors(node: NodeProto, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[int, int] | None:
    """By how much a node repeats rows and columns; None where it does anything else."""
    if node.op_type != "Resize" or len(node.input) < 3 or node.input[2] not in arrays:
        return None
    attributes = _attributes(node)
    modes = [attributes.get(name) for name in ("mode", "coordinate_transformation_mode", "nearest_mode")]
    scales = arrays[node.input[2]]
    if modes != [b"nearest", b"asymmetric", b"floor"] or len(scales) != 4 or (scales != scales.round()).any():
        return None
    return (int(scales[2]), int(scales[3])) if scales[0] == scales[1] == 1 else None


def _chain(steps: Sequence[_Step], *, source: str, target: str, name: str) -> list[NodeProto]:
    """Nodes that take `source` to `target`, one after the other."""
    nodes = []
    for number, (operator, inputs, attributes) in enumerate(steps, 1):
        result = target if number == len(steps) else f"{name}.{number}"
        nodes.append(
            helper.make_node(operator, [source, *inputs], [result], name=f"{name}.{operator}_{number}", **attributes)
        )
        source = result
    return nodes


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _arrays(graph: GraphProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _add_constant(graph: GraphProto, name: str, array: npt.NDArray[Any]) -> str:
    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def _replace_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
