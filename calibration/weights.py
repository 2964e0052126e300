"""Weights in signed bytes: one scale a channel, and a bias that takes back what rounding shifts on average.

::

    scale = weight_scales(weight, axis=0, search=True)
    steps = in_steps(weight, scale, axis=0)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import GraphProto, NodeProto, helper, numpy_helper

from sdk.backends.onnxruntime import INPUT_NAME
from sdk.preprocessing import prepare
from sdk.spec import ModelSpec

from .placement import Placement

_Floats = npt.NDArray[np.float32]
ScaleRounding = Callable[[_Floats], _Floats]

WEIGHT_MAX = 127  # -128 is not used, so that a weight and its negative are equally exact
_CLIP_RATIOS = np.linspace(0.5, 1.0, 51)  # of the largest weight of a channel
CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}  # of the output channels in the weights


def weight_scales(
    weight: _Floats, axis: int, *, search: bool, rounding: ScaleRounding = lambda scale: scale
) -> _Floats:
    """The step of each output channel.

    Args:
        weight: of a convolution.
        axis: of its output channels.
        search: for the smallest squared error over all weights of a channel, some clipped; else nothing is clipped.
        rounding: to scales that a file can hold.

    Returns:
        (O,) positive.
    """
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)  # (O, n)
    largest = np.abs(rows).max(axis=1) / WEIGHT_MAX
    full = rounding(np.where(largest > 0, largest, 1.0).astype(np.float32))
    if not search:
        return full
    best, least = full, _squared_errors(rows, full)
    for ratio in _CLIP_RATIOS[:-1]:
        scale = rounding((full * ratio).astype(np.float32))
        error = _squared_errors(rows, scale)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def in_steps(weight: _Floats, scale: _Floats, axis: int) -> npt.NDArray[np.int8]:
    """Weights in whole steps of their channel's scale, from -127 to 127."""
    steps = np.round(weight / _along(scale, axis, weight.ndim))
    return np.clip(steps, -WEIGHT_MAX, WEIGHT_MAX).astype(np.int8)


def channel_means(
    model: onnx.ModelProto, spec: ModelSpec, images: Iterable[npt.NDArray[np.uint8]]
) -> dict[str, npt.NDArray[np.float64]]:
    """The mean of each channel of what convolutions read, over whole maps and all images.

    Args:
        model: in float.
        spec: of the model.
        images: (H, W, 3) uint8 BGR; a few dozen are enough for a mean.

    Returns:
        Tensor name -> (C,).
    """
    calculated = {name for node in model.graph.node for name in node.output}
    names = [node.input[0] for node in model.graph.node if node.op_type in CHANNEL_AXIS]
    names = sorted(calculated.intersection(names))
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    del extended.graph.output[:]
    extended.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    network = onnxruntime.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])
    sums = {name: np.zeros(1) for name in names}
    count = 0
    for image in images:
        count += 1
        values = network.run(names, {INPUT_NAME: prepare(image, spec).tensor})
        for name, value in zip(names, values, strict=True):
            sums[name] = sums[name] + value.mean(axis=(0, 2, 3), dtype=np.float64)
    return {name: total / max(count, 1) for name, total in sums.items()}


def correct_biases(
    graph: GraphProto,
    placement: Placement,
    means: Mapping[str, npt.NDArray[np.float64]],
    *,
    search: bool,
    rounding: ScaleRounding = lambda scale: scale,
) -> None:
    """Take the mean shift that rounded weights will cause from the biases of INT8 convolutions, in place.

    Nagel et al. 2019 (arXiv:1906.04721), sec. 4.2: E[y'] = E[y] + (W' - W) E[x]. Padding, which is zero and not the
    mean, is not counted.

    Args:
        graph: in float.
        placement: which convolutions will run in INT8.
        means: of their inputs' channels, from `channel_means`; what has none is left as it is.
        search, rounding: as the weights will be quantised.
    """
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.name not in placement.int8 or node.op_type not in ("Conv", "ConvTranspose"):
            continue
        if node.input[0] not in means:
            continue
        weight, axis = arrays[node.input[1]], CHANNEL_AXIS[node.op_type]
        scale = weight_scales(weight, axis, search=search, rounding=rounding)
        change = in_steps(weight, scale, axis) * _along(scale, axis, weight.ndim) - weight
        shift = _mean_output(node, change, means[node.input[0]])
        bias = arrays[node.input[2]] if len(node.input) > 2 else np.zeros(len(shift), np.float32)
        corrected = (bias - shift).astype(np.float32)
        name = f"{node.name}.bias.corrected"
        graph.initializer.append(numpy_helper.from_array(corrected, name))
        node.input[:] = [*node.input[:2], name]


def _mean_output(node: NodeProto, weight: _Floats, means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What a convolution gives on average, (O,), for inputs of these (I,) means."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    groups = attributes.get("group", 1)
    taps = weight.sum(axis=(2, 3), dtype=np.float64)
    taps = taps.reshape(groups, -1, taps.shape[1])
    if node.op_type == "ConvTranspose":
        # (groups, I / groups, O / groups); and each output cell sees one in `stride` rows and columns of the kernel.
        taps = taps.swapaxes(1, 2) / np.prod(attributes.get("strides", [1, 1]))
    outputs: npt.NDArray[np.float64] = (taps @ means.reshape(groups, -1, 1)).ravel()
    return outputs


def _squared_errors(rows: _Floats, scale: _Floats) -> npt.NDArray[np.float64]:
    """Of each of (O, n) weights in steps of (O,) scales, summed."""
    steps = np.clip(np.round(rows / scale[:, None]), -WEIGHT_MAX, WEIGHT_MAX)
    errors = steps * scale[:, None] - rows
    summed: npt.NDArray[np.float64] = np.square(errors, dtype=np.float64).sum(axis=1)
    return summed


def _along(scale: _Floats, axis: int, ndim: int) -> _Floats:
    """Scales in a shape that meets the channels of a weight."""
    shape = np.ones(ndim, int)
    shape[axis] = -1
    return scale.reshape(shape)
