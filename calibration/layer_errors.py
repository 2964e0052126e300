"""Where the error of an INT8 model comes from: the result of each layer beside that of the float model.

::

    for layer in layer_errors(float_model, int8_model, sample_frames(paths, spec)):
        print(f"{layer.node:<30} {layer.sqnr_db:6.1f} dB")

Both graphs run on the same frames, and tensors bear the same names in both. A third graph is the INT8 one with each
quantiser fed from the float graph, so that no layer sees the errors of those before it. Only sums are kept, so that the
number of frames takes time and no memory.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from sdk.backends.onnxruntime import INPUT_NAME

from .errors import CalibrationError
from .quantisation import shapes_of

# Operators whose results tell something; the others move values, or are part of these.
_LAYERS = frozenset(
    {"Conv", "ConvTranspose", "DeformConv", "MatMul", "Gemm", "Add", "Concat", "AveragePool", "GlobalAveragePool"}
)
_WITH_WEIGHTS = frozenset({"Conv", "ConvTranspose"})
_LAYING_OUT = frozenset({"Transpose", "Reshape", "Slice"})
_TINY = 1e-30
_Values = Mapping[str, npt.NDArray[Any]]  # by tensor name


@dataclass(frozen=True)
class LayerError:
    """How far one layer's result is from float, over all frames.

    Attributes:
        node: of the float graph, as `float_nodes` of `quantise` names it; for a head that is split off, the head.
        tensor: the result that was compared, behind the layer's own ReLU.
        operator: ONNX operator; "output" for a head that is split off.
        is_int8: whether it calculates with bytes.
        sqnr_db: signal-to-quantisation-noise ratio, 10 log10(sum x^2 / sum (x - x')^2), with the errors of all layers
            before it; infinite where there is no error. 20 dB is an error of 10 %, 40 dB of 1 %.
        own_sqnr_db: the same where all layers before it are exact, as if it were the only one in INT8.
        cosine: similarity of the two results, 1 where they differ by no more than a factor.
        max_error: the largest |x - x'|.
        max_value: the largest |x|.
    """

    node: str
    tensor: str
    operator: str
    is_int8: bool
    sqnr_db: float
    own_sqnr_db: float
    cosine: float
    max_error: float
    max_value: float


@dataclass(frozen=True)
class _Layer:
    node: str
    tensor: str
    operator: str
    is_int8: bool


def layer_errors(
    float_model: onnx.ModelProto, int8_model: onnx.ModelProto, frames: Iterable[npt.NDArray[np.uint8]]
) -> list[LayerError]:
    """Compare each layer, in the order of the float graph.

    The INT8 graph runs with ONNX Runtime's own integer kernels, whose errors are those that count on this machine.

    Args:
        float_model: that was quantised, with dense heads.
        int8_model: what came of it, with unsigned or signed activations, in float or half precision around them.
        frames: (1, h, w, 3) uint8, as the network takes them; a handful says enough.

    Raises:
        CalibrationError: the models do not belong together, a value is not finite, or there are no frames.
    """
    placed = _placed_results(float_model, int8_model)
    layers = _layers(float_model, int8_model, placed.keys())
    compared = {layer.tensor for layer in layers}
    placed = {name: place for name, place in placed.items() if name in compared or place.quantiser is not None}
    exact_of = _Network(float_model, {name: name for name in placed})
    measured, outputs = _with_results_exposed(int8_model, placed)
    found_of = _Network(measured, outputs)
    alone_of = _Network(_with_exact_inputs(measured, placed), outputs)
    sums = {tensor: (_Sums(), _Sums()) for tensor in compared}
    num_frames = 0
    for frame in frames:
        num_frames += 1
        exact = exact_of({INPUT_NAME: frame})
        found = found_of({INPUT_NAME: frame})
        alone = alone_of({INPUT_NAME: frame, **_exact_inputs(exact, found, placed)})
        for tensor, (accumulated, own) in sums.items():
            accumulated.add(exact[tensor], found[tensor])
            own.add(exact[tensor], alone[tensor])
    if not num_frames:
        raise CalibrationError("there are no frames to compare the layers on; give at least one")
    return [_error(layer, *sums[layer.tensor]) for layer in layers]


@dataclass(frozen=True)
class _Placed:
    """Where a result of the float graph is in the INT8 one: its tensor there, and the quantiser if that has bytes."""

    tensor: str
    quantiser: onnx.NodeProto | None


class _Sums:
    """What is kept of a result and its INT8 form."""

    def __init__(self) -> None:
        self.signal = self.found = self.product = self.noise = 0.0
        self.max_error = self.max_value = 0.0

    def add(self, exact: npt.NDArray[Any], found: npt.NDArray[Any]) -> None:
        x, y = exact.ravel().astype(np.float32, copy=False), found.ravel().astype(np.float32)
        self.signal += float(x @ x)
        self.found += float(y @ y)
        self.product += float(x @ y)
        self.max_value = max(self.max_value, float(np.abs(x).max()))
        np.subtract(x, y, out=y)
        self.noise += float(y @ y)
        self.max_error = max(self.max_error, float(np.abs(y).max()))

    @property
    def sqnr_db(self) -> float:
        return 10.0 * math.log10(max(self.signal, _TINY) / self.noise) if self.noise else math.inf

    @property
    def cosine(self) -> float:
        lengths = math.sqrt(self.signal * self.found)
        return min(1.0, self.product / lengths) if lengths else float(self.signal == self.found)


def _error(layer: _Layer, accumulated: _Sums, own: _Sums) -> LayerError:
    if not math.isfinite(accumulated.signal + accumulated.noise + own.noise):
        raise CalibrationError(
            f"the result of layer {layer.node!r} holds NaN or infinity; the weights are damaged or training diverged. "
            "Export from a sound checkpoint"
        )
    return LayerError(
        layer.node,
        layer.tensor,
        layer.operator,
        layer.is_int8,
        sqnr_db=accumulated.sqnr_db,
        own_sqnr_db=own.sqnr_db,
        cosine=accumulated.cosine,
        max_error=accumulated.max_error,
        max_value=accumulated.max_value,
    )


def _placed_results(float_model: onnx.ModelProto, int8_model: onnx.ModelProto) -> dict[str, _Placed]:
    """The float tensors of the float graph that the INT8 graph has too, of the same shape."""
    shapes, int8_shapes = _float_shapes(float_model), shapes_of(int8_model)
    quantisers = _quantisers(int8_model.graph)
    there = {name for node in int8_model.graph.node for name in node.output}
    placed = {}
    for name, shape in shapes.items():
        quantiser = quantisers.get(name)
        start = quantiser.output[0] if quantiser is not None else name
        tensor = _laid_out(int8_model.graph, start, shape, int8_shapes) if start in there else None
        if tensor is not None:
            placed[name] = _Placed(tensor, quantiser)
    return placed


def _float_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Of what some target may quantise, or what is an output: the results of layers and of the moves between them."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    shapes = shapes_of(model)
    return {name: shapes[name] for node in graph.node for name in node.output if name in floats}


def _quantisers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Float tensor -> the QuantizeLinear of it; those of weights are left out."""
    constants = {tensor.name for tensor in graph.initializer}
    return {
        node.output[0].removesuffix(".quantized"): node
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    }


def _laid_out(
    graph: onnx.GraphProto, tensor: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    """A tensor, or what is made of it by moves alone and has the shape.

    ONNX Runtime's form of some convolutions gives pixels side by side as channels, and lays them out afterwards
    (layout.py): what ends there is the result as the float graph has it. None: there is nothing of that shape.
    """
    if shapes.get(tensor) == shape:
        return tensor
    while True:
        readers = [node for node in graph.node if tensor in node.input]
        if len(readers) != 1 or readers[0].op_type not in _LAYING_OUT:
            return None
        tensor = readers[0].output[0]
        is_channels_first = readers[0].op_type == "Transpose" and _permutation(readers[0]) == [0, 3, 1, 2]
        if is_channels_first and shapes.get(tensor) == shape:
            return tensor


def _permutation(transpose: onnx.NodeProto) -> list[int]:
    return list(onnx.helper.get_node_attr_value(transpose, "perm"))


def _layers(float_model: onnx.ModelProto, int8_model: onnx.ModelProto, common: Collection[str]) -> list[_Layer]:
    """Layers of the float graph, and its outputs, whose results are among the common tensors."""
    in_bytes = _calculating_with_bytes(int8_model.graph)
    layers = []
    for node in float_model.graph.node:
        tensor = _behind_relu(float_model.graph, node.output[0])
        if node.op_type in _LAYERS and tensor in common:
            # A deformable convolution becomes several operators, the product with its weights under that name.
            is_int8 = not in_bytes.isdisjoint((node.name, f"{node.name}.MatMul"))
            layers.append(_Layer(node.name, tensor, node.op_type, is_int8))
    known = {layer.tensor for layer in layers}
    if not known:
        raise CalibrationError(
            "the two models have no layer in common; the INT8 one was made from another graph, or for another input "
            "size. Quantise this one"
        )
    for output in float_model.graph.output:
        if output.name in common and output.name not in known:
            layers.append(_Layer(output.name, output.name, "output", is_int8=False))
    return layers


def _calculating_with_bytes(graph: onnx.GraphProto) -> set[str]:
    """Nodes that read bytes, and have weights of bytes if they have any."""
    dequantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return {
        node.name
        for node in graph.node
        if dequantised.issuperset(node.input[:2])
        or (node.op_type not in _WITH_WEIGHTS and not dequantised.isdisjoint(node.input))
    }


def _behind_relu(graph: onnx.GraphProto, name: str) -> str:
    """A tensor, or what its ReLU makes of it if nothing else reads it: both targets quantise only that."""
    readers = [node for node in graph.node if name in node.input]
    is_output = name in {output.name for output in graph.output}
    return readers[0].output[0] if len(readers) == 1 and readers[0].op_type == "Relu" and not is_output else name


def _with_results_exposed(
    model: onnx.ModelProto, placed: Mapping[str, _Placed]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The INT8 graph with outputs for the results: float tensor -> name of its output.

    What has bytes is given with the error of its rounding, by a DequantizeLinear of its own, so that the integer
    operators stay as they are.
    """
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    outputs = {}
    for name, place in placed.items():
        outputs[name] = place.tensor
        if place.quantiser is not None:
            outputs[name] = f"{name}.measured"
            inputs = [place.tensor, *place.quantiser.input[1:]]
            node = onnx.helper.make_node("DequantizeLinear", inputs, [outputs[name]], name=outputs[name])
            extended.graph.node.append(node)
    return extended, outputs


def _with_exact_inputs(measured: onnx.ModelProto, placed: Mapping[str, _Placed]) -> onnx.ModelProto:
    """The graph of `_with_results_exposed`, with all that is quantised given as inputs "NAME.given"."""
    cut = onnx.ModelProto()
    cut.CopyFrom(measured)
    given_bytes = {place.tensor: f"{name}.given.quantized" for name, place in placed.items() if place.quantiser}
    for node in cut.graph.node:
        if not node.output[0].endswith(".measured"):
            node.input[:] = [given_bytes.get(name, name) for name in node.input]
    types = {tensor.name: tensor.data_type for tensor in cut.graph.initializer}
    for name, place in placed.items():
        if place.quantiser is not None:
            inputs = [f"{name}.given", *place.quantiser.input[1:]]
            node = onnx.helper.make_node("QuantizeLinear", inputs, [given_bytes[place.tensor]], name=f"{name}.given.Q")
            cut.graph.node.insert(0, node)
            cut.graph.input.append(onnx.helper.make_tensor_value_info(inputs[0], types[inputs[1]], None))
    return cut


def _exact_inputs(exact: _Values, found: _Values, placed: Mapping[str, _Placed]) -> dict[str, npt.NDArray[Any]]:
    quantised = (name for name, place in placed.items() if place.quantiser is not None)
    return {f"{name}.given": exact[name].astype(found[name].dtype, copy=False) for name in quantised}


class _Network:
    """A graph that gives chosen tensors under chosen names.

    Args:
        model: with that.
        outputs: name for the caller -> tensor.
    """

    def __init__(self, model: onnx.ModelProto, outputs: Mapping[str, str]) -> None:
        extended = onnx.ModelProto()
        extended.CopyFrom(model)
        del extended.graph.output[:]
        extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs.values())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = extended.SerializeToString()
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._outputs = list(outputs.values())
        self._names = list(outputs)

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        return dict(zip(self._names, self._session.run(self._outputs, dict(inputs)), strict=True))
