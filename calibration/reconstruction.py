"""`auto`: for each activation the range that harms least what is calculated from it, where objects are.

The squared error of an activation itself says too little. Rounding errors have either sign and cancel in the sums of
the next convolution, while clipped values are all too small, and add up; and most cells show background, while large
activations, those that a narrow range clips, belong to objects. So the error is measured in the results of the
operators that read the activation, relative to their size, each cell weighed by the heatmap of the float model. (The
results of a layer are also the measure by which AdaRound, arXiv:2004.10568, rounds weights.)

One graph holds it all: beside each reader of an activation stand copies of it that read the activation quantised and
dequantised with the range of each of CANDIDATES::

    chosen = choose_by_error(model, statistics, sample_frames(paths, spec))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from sdk.backends.onnxruntime import INPUT_NAME
from sdk.preprocessing import prepare
from sdk.sources.images import read_image
from sdk.spec import ModelSpec

from .collection import Statistics
from .errors import CalibrationError
from .graph_writer import GraphWriter
from .methods import METHODS, SIGNED_LEVELS, Range, unsigned_steps

# Methods to choose from. Entropy, which cuts off too much behind a ReLU, would take as long as all of this.
CANDIDATES = ("minmax", "percentile", "mse")
_NUM_FRAMES = 6  # each costs seven times the network
_FORMS = ("unsigned", "signed")  # of the quantised bytes
_MIN_OPSET = 18
_Frames = Iterable[npt.NDArray[np.uint8]]


def sample_frames(paths: Sequence[Path], spec: ModelSpec) -> Iterator[npt.NDArray[np.uint8]]:
    """A few of the photographs, spread evenly, as the network takes them: (1, h, w, 3)."""
    chosen = np.linspace(0, len(paths) - 1, min(_NUM_FRAMES, len(paths))).astype(int)
    return (prepare(read_image(paths[index]), spec).tensor for index in chosen)


def choose_by_error(model: onnx.ModelProto, statistics: Statistics, frames: _Frames) -> dict[str, Range]:
    """The best range of each tensor, chosen for the asymmetric and for the symmetric form apart.

    Args:
        model: in float, with a head `heatmap`.
        statistics: of its activations.
        frames: (1, h, w, 3) uint8, as the network takes them.

    Raises:
        CalibrationError: the model is of too low an opset to write the error into its graph.
    """
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    if opset < _MIN_OPSET:
        raise CalibrationError(
            f"the model has opset {opset}, and --method auto needs {_MIN_OPSET}; calibrate the form that `centeredge "
            "export --target onnxruntime` writes: its ranges serve all targets"
        )
    candidates = {name: [METHODS[method](histogram) for method in CANDIDATES] for name, histogram in statistics.items()}
    errors = _errors(model, candidates, frames)
    chosen = {}
    for name, ranges in candidates.items():
        unsigned, signed = (ranges[int(np.argmin(errors[name, form]))] for form in _FORMS)
        chosen[name] = Range(unsigned.low, unsigned.high, signed.amax)
    return chosen


def _errors(
    model: onnx.ModelProto, candidates: dict[str, list[Range]], frames: _Frames
) -> dict[tuple[str, str], npt.NDArray[np.float64]]:
    """(tensor, form) -> (candidates,) errors, summed over the tensor's readers."""
    write = GraphWriter("auto")
    importance = write("ReduceMax", write("Sigmoid", "heatmap"), write.constant([1]))  # (1, 1, h, w)
    maps = _names_of_maps(model)
    measured: dict[tuple[str, str], list[list[str]]] = {}
    for name, ranges in candidates.items():
        readers = [node for node in model.graph.node if name in node.input and node.output[0] in maps]
        weights = [_resized_as(write, importance, node.output[0]) for node in readers]
        for form in _FORMS:
            quantised = [_quantised(write, name, bounds, form) for bounds in ranges]
            measured[name, form] = [
                _compared(write, node, name, quantised, weight) for node, weight in zip(readers, weights, strict=True)
            ]
    names = [name for rows in measured.values() for row in rows for name in row]
    sums = _evaluated(model, write, names, frames)
    return {
        key: np.sum([_relative(np.array([sums[name] for name in row])) for row in rows], axis=0)
        for key, rows in measured.items()
    }


def _relative(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(candidates,) mean over the frames of squared errors (candidates + 1, frames) over the last, the result's square.

    Frame by frame, so that one with large activations counts no more than others.
    """
    mean: npt.NDArray[np.float64] = (sums[:-1] / np.maximum(sums[-1], 1e-30)).mean(axis=1)
    return mean


def _names_of_maps(model: onnx.ModelProto) -> set[str]:
    """Tensors (1, C, h, w)."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {value.name for value in (*graph.value_info, *graph.output) if len(value.type.tensor_type.shape.dim) == 4}


def _quantised(write: GraphWriter, name: str, bounds: Range, form: str) -> str:
    """A tensor as it is after quantisation and back."""
    if form == "unsigned":
        step, zero = unsigned_steps(bounds.low, bounds.high)
        parameters = [write.constant(step, np.float32), write.constant(zero, np.uint8)]
    else:
        parameters = [write.constant(bounds.amax / SIGNED_LEVELS, np.float32), write.constant(0, np.int8)]
    return write("DequantizeLinear", write("QuantizeLinear", name, *parameters), *parameters)


def _resized_as(write: GraphWriter, importance: str, result: str) -> str:
    """The (1, 1, h, w) map of importance at the size of a (1, C, h', w') result."""
    sizes = write("Concat", write.constant([1, 1]), write("Shape", result, start=2), axis=0)
    return write("Resize", importance, "", "", sizes, mode="linear", antialias=1)


def _compared(write: GraphWriter, reader: onnx.NodeProto, name: str, quantised: list[str], weights: str) -> list[str]:
    """Squared errors of a reader's result for each quantised input; last the result's own square."""
    attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in reader.attribute}
    result = reader.output[0]
    sums = []
    for replacement in quantised:
        inputs = [replacement if text == name else text for text in reader.input]
        outputs = [f"{replacement}.{output}" for output in reader.output]
        write.several(reader.op_type, *inputs, outputs=outputs, **attributes)
        sums.append(_weighted_square(write, write("Sub", result, outputs[0]), weights))
    return [*sums, _weighted_square(write, result, weights)]


def _weighted_square(write: GraphWriter, values: str, weights: str) -> str:
    return write("ReduceSum", write("Mul", write("Mul", values, values), weights), keepdims=0)


def _evaluated(
    model: onnx.ModelProto, write: GraphWriter, names: list[str], frames: _Frames
) -> dict[str, npt.NDArray[np.float64]]:
    """(frames,) of each of the scalars that were written beside the model."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    write.extend(extended.graph)
    del extended.graph.output[:]
    extended.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")  # the errors are to be those of the definition
    network = onnxruntime.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = np.array([network.run(names, {INPUT_NAME: frame}) for frame in frames], np.float64)
    return dict(zip(names, values.T, strict=True))
