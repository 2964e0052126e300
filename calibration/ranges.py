"""Activation ranges: measured on photographs through the float model, kept in a JSON file, used again.

::

    statistics = collect_statistics(model, spec, reader, total=len(reader))
    tensors = ranges_from_statistics(model, statistics, "percentile")
    write_ranges(Ranges("percentile", weights_sha256_of(model), tuple(reader.used), tensors), Path("ranges.json"))
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

from sdk.coco import read_json
from sdk.errors import InputError

from .collection import Statistics, range_sources
from .errors import CalibrationError
from .methods import METHODS, Range
from .onnx_files import replacing, weights_sha256_of
from .photographs import Photograph
from .reconstruction import choose_by_error
from .tensorrt_cache import is_cache, model_ranges, read_cache

FORMAT = 2
_READABLE = (1, 2)  # 1 had no amax: it follows from low and high


@dataclass(frozen=True)
class Ranges:
    """The ranges of a model's activations, and where they come from.

    Attributes:
        method: that chose them.
        weights_sha256: of the model, the same for all its exports.
        photographs: that they were measured on; none where a calibration cache does not say it.
        tensors: tensor name -> range.
    """

    method: str
    weights_sha256: str
    photographs: tuple[Photograph, ...]
    tensors: dict[str, Range]


def ranges_from_statistics(
    model: onnx.ModelProto, statistics: Statistics, method: str, *, frames: Iterable[npt.NDArray[np.uint8]] = ()
) -> dict[str, Range]:
    """The range of each tensor; what is only moved has that of its source.

    Args:
        model: in float.
        statistics: of its activations.
        method: one of `methods.METHODS`, or "auto".
        frames: (1, h, w, 3), on which "auto" measures the error of each method.
    """
    if method == "auto":
        chosen = choose_by_error(model, statistics, frames)
    else:
        chosen = {name: METHODS[method](histogram) for name, histogram in statistics.items()}
    return {name: chosen[source] for name, source in range_sources(model).items()}


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


def open_ranges(path: Path, model: onnx.ModelProto) -> Ranges:
    """The ranges of a file, of ours or a calibration cache of TensorRT; a cache does not say which weights it is of.

    Raises:
        InputError, CalibrationError: the file is damaged, or is of another model.
    """
    if is_cache(path):
        return Ranges("TensorRT's calibrator", weights_sha256_of(model), (), model_ranges(model, read_cache(path)))
    ranges = read_ranges(path)
    if ranges.weights_sha256 != weights_sha256_of(model):
        raise CalibrationError(
            f"{path} was measured on a model with other weights; delete it, or name another --ranges file, and "
            "calibrate again"
        )
    return ranges


def read_ranges(path: Path) -> Ranges:
    """Read what `write_ranges` wrote.

    Raises:
        InputError: the file is missing or holds something else.
    """
    data: Any = read_json(path)
    if not isinstance(data, dict) or data.get("format") not in _READABLE:
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
