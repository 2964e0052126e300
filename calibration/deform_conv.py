"""Deformable convolutions from standard operators, for runtimes without ONNX's DeformConv.

::

    lower_deform_convs(model.graph, shapes, "grid_sample")

One sum, in the forms of train/models/deform_conv.py (DCNv2, arXiv:1811.11168, eq. 1)::

    out[o, p] = bias[o] + sum over taps k, channels c:  weight[o, c, k] * mask[k, p] * x[c, p + tap k + offset[k, p]]

In an FP16-typed graph, positions are in FP32 nevertheless: FP16 would move them by up to a twentieth of a cell.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .errors import CalibrationError
from .graph_writer import GraphWriter

# `operator`: ONNX's DeformConv. `grid_sample`: one GridSample of all nine taps, then a 1x1 convolution.
# `project_then_gather`: a 1x1 convolution to nine times the channels, then 36 rows a cell are gathered and summed.
DeformConvForm = Literal["operator", "grid_sample", "project_then_gather"]

_TAPS = 9
_CORNERS = 4
# What train/models/deform_conv.py has; ONNX's operator can do more.
_ATTRIBUTES = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
_DEFAULTS = {"strides": [1, 1], "dilations": [1, 1], "group": 1, "offset_group": 1}
_WHOLE_IN_FLOAT32 = 2**24  # larger whole numbers have gaps


@dataclass(frozen=True)
class _Layer:
    """A DeformConv node.

    Attributes:
        x: (B, C, h, w), of the type of the weight, as are all others.
        offsets: (B, 18, h, w), (dy, dx) of each tap in turn, in cells.
        mask: (B, 9, h, w).
        bias: (O,).
        out: (B, O, h, w).
        weight: (O, C, 3, 3).
        kernel: name of the weight in the form of what takes the place of the node.
        hw: of the map.
    """

    x: str
    offsets: str
    mask: str
    bias: str
    out: str
    weight: npt.NDArray[Any]
    kernel: str
    hw: tuple[int, int]

    @property
    def is_half(self) -> bool:
        return bool(self.weight.dtype == np.float16)


def lower_deform_convs(
    graph: GraphProto,
    shapes: Mapping[str, tuple[int, ...]],
    form: DeformConvForm,
    *,
    names: Collection[str] | None = None,
) -> None:
    """Replace DeformConv nodes by the operators of a form, in place.

    The node's inputs and its output keep their names. Its weight becomes that of a 1x1 convolution or of a product,
    named `<weight>.taps`. In the form of project-then-gather, that product is a MatMul named `<node>.MatMul`.

    Args:
        graph: of opset 16 to 19; 20 renamed GridSample's bilinear mode.
        shapes: of its tensors, by name; those (B, C, h, w) that deformable convolutions read are needed. Their batch
            size is not used and may be symbolic in the graph.
        form: `operator` changes nothing.
        names: of the nodes; None: all.

    Raises:
        CalibrationError: a node is no 3x3 DeformConv of stride 1 with a constant weight, a bias and a mask.
    """
    if form == "operator":
        return
    lower = {"grid_sample": _grid_sample, "project_then_gather": _project_then_gather}[form]
    nodes = [
        NodeProto.FromString(node.SerializeToString())
        for node in graph.node
        if node.op_type == "DeformConv" and (names is None or node.name in names)
    ]
    for node in nodes:
        layer = _layer(graph, node, shapes)
        write = GraphWriter(prefix=node.name)
        kernel = lower(write, layer)
        write.replace(graph, node)
        if all(tensor.name != layer.kernel for tensor in graph.initializer):  # equal weights are one constant
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(kernel), layer.kernel))
    _drop_unused(graph, {node.input[1] for node in nodes})


def _grid_sample(write: GraphWriter, layer: _Layer) -> npt.NDArray[Any]:
    """All nine taps under each other in one GridSample, times the mask, then a 1x1 convolution of 9 C channels.

    TensorRT samples only where map and grid have one type; so a map in FP16 is sampled in FP32.

    Returns:
        The kernel of the convolution, (O, 9 C, 1, 1).
    """
    (height, width), (out_channels, channels) = layer.hw, layer.weight.shape[:2]
    x = write("Cast", layer.x, to=TensorProto.FLOAT) if layer.is_half else layer.x
    read = write(
        "GridSample", x, _grid(write, layer), mode="bilinear", padding_mode="zeros", align_corners=0
    )  # (B, C, 9 h, w)
    if layer.is_half:
        read = write("Cast", read, to=TensorProto.FLOAT16)
    mask = write("Reshape", layer.mask, write.constant([0, 1, _TAPS * height, width]))
    shares = write("Mul", read, mask)
    stacked = write("Reshape", shares, write.constant([0, channels * _TAPS, height, width]))
    write("Conv", stacked, layer.kernel, layer.bias, output=layer.out, kernel_shape=[1, 1])
    return layer.weight.reshape(out_channels, channels * _TAPS, 1, 1)


def _grid(write: GraphWriter, layer: _Layer) -> str:
    """Where the taps read, x and y from -1 to 1, (B, 9 h, w, 2) FP32.

    -1 is the outer edge of the first cell and 1 that of the last. Counted between their centres, as `align_corners`
    has it, a map of one row would have no scale, and the scale of common sizes would be no power of two, which alone
    costs no precision. Cells are counted from the middle of the map, as -1 to 1 is: there, floats are densest.
    """
    height, width = layer.hw
    tall = [0, _TAPS * height, width, 1]
    middle = ((height - 1) / 2, (width - 1) / 2)
    y, x = (
        write("Reshape", write("Div", cells, write.constant(size / 2)), write.constant(tall))
        for cells, size in zip(_positions(write, layer, origin_yx=middle), layer.hw, strict=True)
    )
    return write("Concat", x, y, axis=3)


def _project_then_gather(write: GraphWriter, layer: _Layer) -> npt.NDArray[Any]:
    """Every cell times the whole kernel first; then 36 rows a cell, nine taps of four corners, are summed.

    Returns:
        The kernel, (C, 9 O).
    """
    (height, width), (out_channels, channels) = layer.hw, layer.weight.shape[:2]
    cells = height * width
    last = write("Transpose", layer.x, perm=[0, 2, 3, 1])  # (B, h, w, C)
    products = write("MatMul", last, layer.kernel)  # (B, h, w, 9 O)
    rows = write("Reshape", products, write.constant([0, cells * _TAPS, out_channels]))
    numbers, shares = _rows_and_shares(write, layer)
    read = write("GatherND", rows, numbers, batch_dims=1)  # (B, 36 h w, O)
    read = write("Reshape", read, write.constant([0, cells, _CORNERS * _TAPS, out_channels]))
    sums = write("Reshape", write("MatMul", shares, read), write.constant([0, height, width, out_channels]))
    write("Transpose", write("Add", sums, layer.bias), perm=[0, 3, 1, 2], output=layer.out)
    by_tap = layer.weight.reshape(out_channels, channels, _TAPS).transpose(1, 2, 0)  # (C, 9, O)
    kernel: npt.NDArray[Any] = by_tap.reshape(channels, _TAPS * out_channels)
    return kernel


def _rows_and_shares(write: GraphWriter, layer: _Layer) -> tuple[str, str]:
    """Which rows, counted cell by cell and tap by tap, lie around each position, and their shares of it.

    Returns:
        Numbers of rows, (B, 36 h w, 1) int64, and shares, (B, h w, 1, 36), mask included, zero outside the map.
    """
    height, width = layer.hw
    cells = height * width
    if cells * _TAPS > _WHOLE_IN_FLOAT32:
        raise CalibrationError(
            f"a map of {width}x{height} cells is too large for {_TAPS} rows a cell; export a smaller size"
        )
    mask = write("Cast", layer.mask, to=TensorProto.FLOAT) if layer.is_half else layer.mask
    (y, y_share), (x, x_share) = (
        _neighbours(write, position, size, axis=axis)
        for position, size, axis in zip(_positions(write, layer), layer.hw, (2, 1), strict=True)
    )
    first = write("Mul", y, write.constant(float(_TAPS * width)))
    tap = write.constant(np.arange(_TAPS).reshape(_TAPS, 1, 1), np.float32)
    numbers = write("Add", first, write("Add", write("Mul", x, write.constant(float(_TAPS))), tap))
    mask = write("Unsqueeze", mask, write.constant([1, 2]))
    shares = write("Mul", write("Mul", y_share, mask), x_share)  # both (B, 2, 2, 9, h, w)
    by_cell = write.constant([0, _CORNERS * _TAPS, cells])
    numbers, shares = (
        write("Transpose", write("Reshape", value, by_cell), perm=[0, 2, 1]) for value in (numbers, shares)
    )
    if layer.is_half:
        shares = write("Cast", shares, to=TensorProto.FLOAT16)
    numbers = write("Reshape", numbers, write.constant([0, cells * _CORNERS * _TAPS, 1]))
    shares = write("Reshape", shares, write.constant([0, cells, 1, _CORNERS * _TAPS]))
    return write("Cast", numbers, to=TensorProto.INT64), shares


def _neighbours(write: GraphWriter, position: str, size: int, *, axis: int) -> tuple[str, str]:
    """The cells before and after a position, 0 where the map has none, and the share of each, in FP32.

    A position that is not finite has a share that is not either, so that it stays visible in the output.

    Returns:
        Each (B, 2, 1, 9, h, w), or (B, 1, 2, 9, h, w) where `axis`, the one of size 1, is 1.
    """
    position = write("Unsqueeze", position, write.constant([1, 2]))  # (B, 1, 1, 9, h, w)
    steps = np.arange(2, dtype=np.float32).reshape((2, 1, 1, 1, 1) if axis == 2 else (1, 2, 1, 1, 1))
    cell = write("Add", write("Floor", position), write.constant(steps))
    not_before = write("GreaterOrEqual", cell, write.constant(0.0))
    inside = write("And", not_before, write("Less", cell, write.constant(float(size))))
    share = write("Sub", write.constant(1.0), write("Abs", write("Sub", position, cell)))
    share = write("Mul", share, write("Cast", inside, to=TensorProto.FLOAT))
    return write("Where", inside, cell, write.constant(0.0)), share


def _positions(write: GraphWriter, layer: _Layer, *, origin_yx: tuple[float, float] = (0, 0)) -> tuple[str, str]:
    """Where each tap reads, y and x in cells from an origin, each (B, 9, h, w) FP32."""
    height, width = layer.hw
    offsets = write("Cast", layer.offsets, to=TensorProto.FLOAT) if layer.is_half else layer.offsets
    tap_y, tap_x = (tap.reshape(_TAPS, 1, 1) - 1 for tap in np.divmod(np.arange(_TAPS), 3))
    own_y, own_x = tap_y + np.arange(height).reshape(-1, 1), tap_x + np.arange(width)  # (9, h, 1), (9, 1, w)
    positions = []
    for first, own in enumerate((own_y - origin_yx[0], own_x - origin_yx[1])):
        bounds = [write.constant([number]) for number in (first, 2 * _TAPS, 1, 2)]  # start, end, axis, step
        positions.append(write("Add", write("Slice", offsets, *bounds), write.constant(own, np.float32)))
    return positions[0], positions[1]


def _layer(graph: GraphProto, node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> _Layer:
    found = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs = [name for name in node.input if name]
    if {**_DEFAULTS, **found} != {**_DEFAULTS, **_ATTRIBUTES} or len(inputs) != 5:
        raise CalibrationError(
            f"{node.name} is a DeformConv of {len(inputs)} inputs with {found}, expected 5 inputs with {_ATTRIBUTES}; "
            "use a file that `centeredge export` wrote"
        )
    x, weight, offsets, bias, mask = inputs
    constant = next((tensor for tensor in graph.initializer if tensor.name == weight), None)
    if constant is None:
        raise CalibrationError(f"{weight}, the weight of {node.name}, is no constant; use a file without INT8 there")
    height, width = shapes[x][2:]
    array = numpy_helper.to_array(constant)
    return _Layer(x, offsets, mask, bias, node.output[0], array, f"{weight}.taps", (height, width))


def _drop_unused(graph: GraphProto, weights: set[str]) -> None:
    unused = weights.difference(name for node in graph.node for name in node.input)
    kept = [tensor for tensor in graph.initializer if tensor.name not in unused]
    del graph.initializer[:]
    graph.initializer.extend(kept)
