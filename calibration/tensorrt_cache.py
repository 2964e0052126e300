"""TensorRT's calibration cache, the text file from which versions up to 10 take INT8 ranges without Q/DQ.

::

    TRT-8502-EntropyCalibration2        what wrote it: TensorRT 8.5.2, and how it chose
    stem.0.2.Relu: 3d0c8f4a             tensor, and its step: a float32, big-endian, in hexadecimal digits

A step is a 127th of what the tensor reaches to. TensorRT's own caches are read as ranges for every target, and ours
are written for `trtexec --int8 --calib=FILE` and `centeredge export --calibration-cache FILE`::

    int8_model = quantise(model, model_ranges(model, read_cache(path)), target="tensorrt")
    write_cache(network_ranges(model.graph, ranges), path, tensorrt_version="10.3.0")

Reading and writing need no onnx, so that a Jetson can.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sdk.engine_files import version_tuple
from sdk.errors import ConfigError, InputError
from sdk.peaks import INDEX_OUTPUTS

from .errors import CalibrationError
from .methods import SIGNED_LEVELS, Range

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

_START = b"TRT-"
_HEADER = re.compile(r"TRT-[0-9]+-(\w+)")
_LINE = re.compile(r"(.+): ([0-9a-fA-F]{8})", re.DOTALL)  # names may have colons, spaces and brackets
# All three have a step for each tensor, and differ in how they chose it; LegacyCalibration's is not documented.
_READABLE = ("EntropyCalibration2", "EntropyCalibration", "MinMaxCalibration")
_LARGEST_STEP = 3.4028234663852886e38  # of float32
_SMALLEST_STEP = 2.0**-149
_PIXEL = Range(0.0, 255.0)
_KEEPING_VALUES = frozenset({"Cast", "Transpose", "Reshape"})
_POSITIVE = frozenset({"Relu", "Sigmoid"})
_JOINING = frozenset({"Add", "Concat"})
_KEEPING_SIGN = _JOINING | {"MaxPool", "AveragePool", "GlobalAveragePool", "Resize", "Transpose", "Reshape"}
# What TensorRT and its ONNX importer call tensors that have no name in the ONNX file.
_OF_TENSORRT = re.compile(r"\(Unnamed |.*ONNXTRT_")
_PEAKS = frozenset({"peaks", *INDEX_OUTPUTS})  # how names begin of what finds the peaks in a file for TensorRT
_FEW = 3  # names in a message


def read_cache(path: Path) -> dict[str, Range]:
    """The ranges of a calibration cache, symmetric, by tensor name.

    Raises:
        InputError: the file cannot be read, or is no calibration cache.
        CalibrationError: it was written by another kind of calibrator, or a line of it is damaged.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise InputError(f"{path} is no calibration cache of TensorRT: it is not text") from err
    header, *lines = text.split("\n")
    _check_header(header.strip(), path)
    ranges: dict[str, Range] = {}
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        name, amax = _parse(line.rstrip("\r"), f"{path}, line {number}")
        if name in ranges:
            raise CalibrationError(
                f"{path}, line {number} gives tensor {name!r} a second time, expected each once; the file was put "
                "together from two: take one of them"
            )
        ranges[name] = Range(-amax, amax, amax)
    if not ranges:
        raise CalibrationError(f"{path} is a calibration cache without a tensor; calibrate again")
    return ranges


def is_cache(path: Path) -> bool:
    """Whether a file starts as a calibration cache does; False where there is none."""
    try:
        with path.open("rb") as file:
            return file.read(len(_START)) == _START
    except OSError:
        return False


def write_cache(ranges: Mapping[str, Range], path: Path, *, tensorrt_version: str) -> None:
    """Write a calibration cache, whole or not at all.

    Args:
        ranges: by tensor name; `network_ranges` has those that a network wants.
        path: of the file.
        tensorrt_version: that is to read it, such as "8.5.2": others refuse it.

    Raises:
        CalibrationError: a range or a name that the format cannot hold.
        ConfigError: the version has no calibration caches, or the file cannot be written.
    """
    replace_file(path, cache_content(ranges, tensorrt_version=tensorrt_version))


def cache_content(ranges: Mapping[str, Range], *, tensorrt_version: str) -> bytes:
    """What `write_cache` writes."""
    header = f"TRT-{version_number(tensorrt_version)}-EntropyCalibration2"
    lines = [f"{_checked_name(name)}: {_step_text(name, bounds)}" for name, bounds in ranges.items()]
    return "".join(f"{line}\n" for line in (header, *lines)).encode()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as err:
        part.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {err.strerror}; choose a folder that exists and is writable") from err


def network_ranges(graph: GraphProto, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """What TensorRT is told about the tensors of a network, in the order of the graph.

    TensorRT runs a layer in INT8 where it knows the ranges of what goes in and what comes out, ReLUs not yet fused. So
    there are, besides those that were measured,

    - the pixels, 0 to 255,
    - what only a ReLU reads: it has the ReLU's, which clips all that is below, and
    - what is only cast or moved.

    What has no range stays in float: the output convolutions, what finds the peaks, where deformable convolutions
    sample, and the sampling itself.

    Args:
        graph: of the file that TensorRT is to build, without Q/DQ.
        ranges: of the activations, by tensor name.

    Raises:
        CalibrationError: the graph has Q/DQ, or none of the ranges is of one of its tensors.
    """
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        raise CalibrationError(
            "a file with Q/DQ has its ranges inside, and TensorRT takes no others; write the cache for the FP32 or "
            "FP16 file"
        )
    tensors = _tensor_names(graph)
    if not ranges.keys() & set(tensors):
        raise CalibrationError(_other_graph("the ranges", list(ranges), len(ranges)))
    known = {**dict.fromkeys((value.name for value in graph.input), _PIXEL), **ranges}
    for node in graph.node:
        if node.op_type in _KEEPING_VALUES and node.input[0] in known:
            known.setdefault(node.output[0], known[node.input[0]])
        elif node.op_type == "Relu" and node.output[0] in known:
            known.setdefault(node.input[0], known[node.output[0]])
    return {name: known[name] for name in tensors if name in known}


def model_ranges(model: ModelProto, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges of a cache as `quantise` takes them, for every target.

    A cache has symmetric ranges. What comes out of a ReLU, and what is made of that alone, starts at zero: ONNX
    Runtime's form relies on it and lets the quantiser do the clipping.

    Args:
        model: in float.
        ranges: that `read_cache` gave.

    Raises:
        CalibrationError: the cache is of another graph. That shows in the names alone: two checkpoints of one
            architecture have the same.
    """
    graph = model.graph
    _check_same_graph(graph, ranges)
    positive = _positive(graph)
    return {
        name: Range(0.0, ranges[name].amax, ranges[name].amax) if name in positive else ranges[name]
        for name in _tensor_names(graph)
        if name in ranges
    }


def _check_same_graph(graph: GraphProto, ranges: Mapping[str, Range]) -> None:
    from .placement import place  # needs onnx

    int8 = place(graph, "tensorrt").int8
    needed = dict.fromkeys(node.input[0] for node in graph.node if node.name in int8)
    missing = [name for name in needed if name not in ranges]
    strangers = _strangers(graph, ranges)
    if missing:
        raise CalibrationError(
            f"the cache has no range for {len(missing)} of the {len(needed)} tensors that INT8 convolutions read "
            f"({_few(missing)}): it was made from another graph; calibrate this one"
        )
    if strangers:
        raise CalibrationError(_other_graph("the cache", strangers, len(ranges)))


def _positive(graph: GraphProto) -> set[str]:
    """Tensors that cannot be negative."""
    positive: set[str] = set()
    for node in graph.node:
        sources = node.input if node.op_type in _JOINING else node.input[:1]
        if node.op_type in _POSITIVE or (node.op_type in _KEEPING_SIGN and positive.issuperset(sources)):
            positive.update(node.output)
    return positive


def _other_graph(what: str, strangers: Collection[str], total: int) -> str:
    return (
        f"{len(strangers)} of the {total} tensors in {what} are not in the model ({_few(strangers)}): it was made from "
        "another graph; calibrate this one"
    )


def _few(names: Iterable[str]) -> str:
    first, *others = map(repr, names)
    shown = [first, *others[: _FEW - 1]]
    return ", ".join(shown) + (", ..." if len(others) >= _FEW else "")


def _strangers(graph: GraphProto, ranges: Mapping[str, Range]) -> list[str]:
    """Names that neither the graph has, nor a form of it for another runtime, nor TensorRT made."""
    known = set(_tensor_names(graph))

    def is_known(name: str) -> bool:
        # Rewrites call what they add after the tensor that it belongs to: `heatmap.dense`.
        parts = name.split(".")
        prefixes = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        return bool(prefixes & {*known, *_PEAKS}) or _OF_TENSORRT.match(name) is not None

    return [name for name in ranges if not is_known(name)]


def _tensor_names(graph: GraphProto) -> list[str]:
    """What is calculated, and the inputs, each once, in the order of the graph."""
    inputs = [value.name for value in graph.input]
    return list(dict.fromkeys([*inputs, *(name for node in graph.node for name in node.output)]))


def _check_header(header: str, path: Path) -> None:
    match = _HEADER.fullmatch(header)
    if match is None:
        raise InputError(
            f"{path} is no calibration cache of TensorRT: line 1 is {header[:60]!r}, expected such as "
            "'TRT-8502-EntropyCalibration2'"
        )
    if match[1] not in _READABLE:
        raise CalibrationError(
            f"{path} is by {match[1]}, expected one of {', '.join(_READABLE)}; calibrate with one of these"
        )


def _parse(line: str, place: str) -> tuple[str, float]:
    """A tensor's name, and what it reaches to."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise CalibrationError(
            f"{place} is {line[:80]!r}, expected a tensor's name, a colon, a space and 8 hexadecimal digits; the file "
            "is damaged or cut short: take another copy, or calibrate again"
        )
    (step,) = struct.unpack(">f", bytes.fromhex(match[2]))
    if not 0.0 < step <= _LARGEST_STEP:  # neither is NaN
        raise CalibrationError(
            f"{place} gives tensor {match[1]!r} the step {step:g}, expected a number above zero; nothing of it was "
            "measured: remove the line, so that it stays in float, or calibrate again"
        )
    return match[1], step * SIGNED_LEVELS  # exact in the 53 bits of a float


def _step_text(name: str, bounds: Range) -> str:
    step = bounds.amax / SIGNED_LEVELS
    if not _SMALLEST_STEP <= step <= _LARGEST_STEP:
        raise CalibrationError(
            f"tensor {name!r} reaches to {bounds.amax:g}, expected a number above zero that float32 can hold; "
            "calibrate again on varied photographs"
        )
    return struct.pack(">f", step).hex()


def _checked_name(name: str) -> str:
    if not name or "\n" in name:
        raise CalibrationError(
            f"a calibration cache has one tensor a line and cannot hold the name {name!r}; rename it"
        )
    return name


def version_number(version: str) -> int:
    """As NvInferVersion.h has it: 8502 for 8.5.2, and 100300 for 10.3.0.

    Raises:
        ConfigError: that is no version, or one without calibration caches.
    """
    parts = version_tuple(version)
    if len(parts) < 3:
        raise ConfigError(f"the TensorRT version is {version!r}, expected three numbers, such as 8.5.2 or 10.3.0")
    if parts[0] > 10:
        raise ConfigError(
            f"TensorRT {version} has no calibration caches, 10 was the last; `--precision int8 --ranges FILE` puts the "
            "ranges into the .onnx"
        )
    major = 10_000 if parts[0] == 10 else 1_000
    return parts[0] * major + parts[1] * 100 + parts[2]
