"""Activation ranges: measured on photographs through the float model, kept in a JSON file, used again.

::

    ranges = collect_ranges(model, spec, PhotographReader(paths), method="percentile")
    write_ranges(ranges, Path("ranges.json"))
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from sdk.backends.onnxruntime import INPUT_NAME
from sdk.coco import read_json
from sdk.errors import InputError
from sdk.preprocessing import prepare
from sdk.spec import ModelSpec

from .errors import CalibrationError
from .histogram import Histogram
from .methods import Range, choose_range
from .onnx_files import replacing
from .photographs import Photograph

FORMAT = 1


@dataclass(frozen=True)
class Ranges:
    """The ranges of a model's activations, and where they come from.

    Attributes:
        method: that chose them.
        weights_sha256: of the model, the same for all its exports.
        photographs: that they were measured on.
        tensors: tensor name -> range.
    """

    method: str
    weights_sha256: str
    photographs: tuple[Photograph, ...]
    tensors: dict[str, Range]

    @property
    def constant(self) -> list[str]:
        """Tensors that had one value everywhere: parts of the network that do nothing."""
        return [name for name, bounds in self.tensors.items() if bounds.low == bounds.high]


def collect_statistics(
    model: onnx.ModelProto, spec: ModelSpec, images: Iterable[npt.NDArray[np.uint8]]
) -> dict[str, Histogram]:
    """Histograms of all activations over all images, in constant memory.

    Args:
        model: in float.
        spec: of the model.
        images: (H, W, 3) uint8 BGR; each goes through the SDK's own preprocessing.

    Raises:
        CalibrationError: an activation holds NaN or infinity.
    """
    names = activation_names(model)
    session = _session_with_outputs(model, names)
    histograms = {name: Histogram() for name in names}
    for number, image in enumerate(images, 1):
        values = session.run(names, {INPUT_NAME: prepare(image, spec).tensor})
        for name, value in zip(names, values, strict=True):
            if not np.isfinite(value.sum()):
                raise CalibrationError(
                    f"activation {name!r} holds NaN or infinity on photograph {number}; the weights are damaged or "
                    "training diverged. Export from a sound checkpoint"
                )
            histograms[name].add(value)
    return histograms


def ranges_from_statistics(statistics: dict[str, Histogram], method: str) -> dict[str, Range]:
    """The range of each tensor by one of `methods.METHODS`."""
    return {name: choose_range(histogram, method) for name, histogram in statistics.items()}


def activation_names(model: onnx.ModelProto) -> list[str]:
    """Float tensors between operators, in the order of the graph, whose range some INT8 form may want.

    What only a ReLU reads is left out: no form quantises between an operator and its ReLU.
    """
    readers: dict[str, list[str]] = {output.name: ["output"] for output in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    is_float = {
        value.name: value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        for value in (*inferred.value_info, *inferred.output)
    }
    names = [name for node in model.graph.node for name in node.output]
    return [name for name in names if is_float.get(name) and set(readers[name]) != {"Relu"}]


def write_ranges(ranges: Ranges, path: Path) -> None:
    """Write ranges as JSON, whole or not at all."""
    data = {
        "format": FORMAT,
        "method": ranges.method,
        "weights_sha256": ranges.weights_sha256,
        "images": [asdict(photograph) for photograph in ranges.photographs],
        "tensors": {name: asdict(bounds) for name, bounds in ranges.tensors.items()},
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n")


def read_ranges(path: Path) -> Ranges:
    """Read what `write_ranges` wrote.

    Raises:
        InputError: the file is missing or holds something else.
    """
    data: Any = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path} holds no activation ranges; expected a file that `centeredge calibrate` wrote")
    try:
        return Ranges(
            data["method"],
            data["weights_sha256"],
            tuple(Photograph(**entry) for entry in data["images"]),
            {name: Range(**bounds) for name, bounds in data["tensors"].items()},
        )
    except (KeyError, TypeError, AttributeError) as err:
        raise InputError(f"{path} is damaged ({err}); delete it and calibrate again") from err


def _session_with_outputs(model: onnx.ModelProto, names: list[str]) -> onnxruntime.InferenceSession:
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    known = {output.name for output in extended.graph.output}
    extended.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])
