"""Runs photographs through the float model and counts the values of its activations, in one pass.

::

    part = part_file(out, model, paths)
    statistics = collect_statistics(model, spec, PhotographReader(paths), total=len(paths), part=part)

Time and memory: each measured activation is copied out of ONNX Runtime once, looked at, and forgotten. Counting
costs less than the network itself, because it is shared by all cores and no tensor is counted twice.
"""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from sdk.backends.onnxruntime import INPUT_NAME
from sdk.preprocessing import prepare
from sdk.spec import ModelSpec

from .errors import CalibrationError
from .histogram import Histogram, finite_limits
from .onnx_files import file_sha256, replacing
from .placement import CALCULATING, MOVING

Statistics = dict[str, Histogram]  # by tensor name
Note = Callable[[str], None]

# Operators that some target calculates in INT8, with the number of inputs that are activations where not all are.
_QUANTISABLE = CALCULATING | {"ConvTranspose", "DeformConv", "MatMul", "AveragePool", "Relu"}
_NUM_ACTIVATIONS = {"Conv": 1, "ConvTranspose": 1, "DeformConv": 1}
_MOVING_VALUES = MOVING | {"Split", "Slice"}
_PAUSE_S = 10.0  # between two lines of progress, at each of which the statistics are saved


def collect_statistics(
    model: onnx.ModelProto,
    spec: ModelSpec,
    images: Iterable[npt.NDArray[np.uint8]],
    *,
    total: int,
    part: PartFile | None = None,
    note: Note = lambda text: None,
    pause_s: float = _PAUSE_S,
) -> Statistics:
    """Histograms of all activations that some target quantises, over all images, in constant memory.

    Args:
        model: in float.
        spec: of the model.
        images: (H, W, 3) uint8 BGR; each goes through the SDK's own preprocessing, once, in order.
        total: number of images, to say how long it will take.
        part: keeps the statistics so far; if the last run was interrupted, its images are not counted again.
        note: is told of the progress.
        pause_s: seconds between two lines of progress.

    Raises:
        CalibrationError: an activation holds NaN or infinity, or has one value everywhere.
    """
    names = [name for name, source in range_sources(model).items() if name == source]
    done, statistics = (part.read() if part else None) or (0, {name: Histogram() for name in names})
    if done:
        note(f"going on after {done} photographs that were measured before the interruption")
    network = _session_with_outputs(model, names)
    names += [output.name for output in model.graph.output]
    progress = _Progress(total, done)
    with ThreadPoolExecutor(os.cpu_count()) as pool, part.under_way() if part else nullcontext():
        for number, image in enumerate(images, 1):
            if number <= done:
                continue  # read again, which is quick, but counted before
            values = network.run(names, {INPUT_NAME: prepare(image, spec).tensor})
            list(pool.map(_count, names, values, map(statistics.get, names), repeat(number)))
            if progress.seconds_since_line >= pause_s:
                note(progress.line(number))
                if part is not None:
                    part.write(number, statistics)
        _check_varied(statistics)
    return statistics


def range_sources(model: onnx.ModelProto) -> dict[str, str]:
    """Float tensors whose range some target may want, in the order of the graph, each with the one to measure for it.

    That is the tensor itself, or, for an operator that only moves values, the one that it moves. Left out are

    - what only a ReLU reads: no target quantises between an operator and its ReLU,
    - what ends in the outputs, or says where a deformable convolution samples: that stays in float, and
    - the pixels, which are bytes already.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    activations = _activations(graph)
    wanted = activations & _quantisable(graph) - _only_read_by_relus(graph) - _staying_in_float(graph)
    sources: dict[str, str] = {}
    for node in graph.node:
        for name in node.output:
            if node.op_type in _MOVING_VALUES and node.input[0] in sources:
                sources[name] = sources[node.input[0]]
            elif name in wanted:
                sources[name] = name
    return sources


@dataclass(frozen=True)
class PartFile:
    """Keeps the statistics of a calibration that is under way, so that it can be interrupted.

    Attributes:
        path: of the file, an .npz.
        identity: of the model and the photographs; statistics of others are ignored.
    """

    path: Path
    identity: str

    def write(self, done: int, statistics: Statistics) -> None:
        """Keep the statistics of the first `done` images."""
        histograms = list(statistics.values())
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                identity=self.identity,
                done=done,
                names=list(statistics),
                counts=np.stack([histogram.counts for histogram in histograms]),
                zeros=np.array([histogram.zeros for histogram in histograms]),
                limits=np.array([(histogram.low, histogram.high, histogram.width) for histogram in histograms]),
            )

    def read(self) -> tuple[int, Statistics] | None:
        """What `write` kept, if it is there, whole, and of the same model and photographs."""
        try:
            with self.path.open("rb") as file, np.load(file) as data:
                if data["identity"] != self.identity:
                    return None
                arrays = {key: data[key] for key in ("names", "counts", "zeros", "limits")}
                done = int(data["done"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        statistics: Statistics = {}
        for name, counts, zeros, limits in zip(*arrays.values(), strict=True):
            histogram = statistics[str(name)] = Histogram()
            histogram.counts, histogram.zeros = counts, int(zeros)
            histogram.low, histogram.high, histogram.width = limits.tolist()
        return done, statistics

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """The file outlives an interruption of the block; where that is done or cannot be done, it goes."""
        try:
            yield
        except CalibrationError:
            self.path.unlink(missing_ok=True)
            raise
        self.path.unlink(missing_ok=True)


def part_file(out: Path, model: onnx.ModelProto, photographs: Sequence[Path]) -> PartFile:
    """The PartFile beside `out` for this model, byte for byte, and these photographs, by content and in this order."""
    digest = hashlib.sha256(model.SerializeToString(deterministic=True))
    for photograph in photographs:
        content = file_sha256(photograph) if os.access(photograph, os.R_OK) else "unreadable"
        digest.update(f"\n{photograph.name} {content}".encode())
    return PartFile(out.with_name(f".{out.name}.part"), digest.hexdigest())


class _Progress:
    """Says how far it is, and for how long yet."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done = total, done
        self._start = self._last = time.monotonic()

    @property
    def seconds_since_line(self) -> float:
        return time.monotonic() - self._last

    def line(self, number: int) -> str:
        self._last = time.monotonic()
        left_s = (self._last - self._start) / (number - self._done) * (self._total - number)
        return f"measured {number} of {self._total} photographs, about {left_s:.0f} s left"


def _count(name: str, values: npt.NDArray[np.float32], histogram: Histogram | None, number: int) -> None:
    """Add the values to their histogram; what has none, the outputs, is only checked."""
    try:
        histogram.add(values) if histogram else finite_limits(values)
    except ValueError as err:
        raise CalibrationError(
            f"activation {name!r} holds NaN or infinity on photograph {number}; the weights are damaged or "
            "training diverged. Export from a sound checkpoint"
        ) from err


def _check_varied(statistics: Statistics) -> None:
    for name, histogram in statistics.items():
        if histogram.low == histogram.high:
            raise CalibrationError(
                f"activation {name!r} is {histogram.low:g} everywhere on all photographs, so that it has no range. "
                "Either the photographs are all alike and blank: look at them; or this part of the network does "
                "nothing: train it further, or export from another checkpoint"
            )


def _activations(graph: onnx.GraphProto) -> set[str]:
    """Float tensors that are calculated from the frame."""
    pixels = {value.name for value in graph.input}
    from_frame = set(pixels)
    for node in graph.node:
        if node.op_type != "Shape" and not from_frame.isdisjoint(node.input):
            from_frame.update(node.output)
        if node.op_type in (*MOVING, "Cast") and node.input[0] in pixels:
            pixels.update(node.output)
    floats = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    return (from_frame - pixels) & floats


def _quantisable(graph: onnx.GraphProto) -> set[str]:
    """What goes into and comes out of _QUANTISABLE operators, before it is moved too."""
    wanted: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in _QUANTISABLE:
            wanted.update([*node.input[: _NUM_ACTIVATIONS.get(node.op_type)], *node.output])
        elif node.op_type in _MOVING_VALUES and not wanted.isdisjoint(node.output):
            wanted.add(node.input[0])
    return wanted


def _only_read_by_relus(graph: onnx.GraphProto) -> set[str]:
    readers: dict[str, set[str]] = {output.name: {"output"} for output in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    return {name for name, operators in readers.items() if operators == {"Relu"}}


def _staying_in_float(graph: onnx.GraphProto) -> set[str]:
    """The outputs and the positions of deformable convolutions, also before they are split, moved or squashed."""
    last = {output.name for output in graph.output}
    read_by_others: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type == "DeformConv":
            last.update(node.input[2:])
            read_by_others.add(node.input[0])
        elif node.op_type in (*_MOVING_VALUES, "Sigmoid", "Concat") and last.issuperset(node.output):
            last.update(node.input)
        else:
            read_by_others.update(node.input)
    return last - read_by_others


def _session_with_outputs(model: onnx.ModelProto, names: list[str]) -> onnxruntime.InferenceSession:
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    extended.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Its threads would go on spinning on the cores that count.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])
