"""Where the error of an INT8 model comes from: what comes back when a part of the network stays in float.

::

    quantise_except = partial(int8_form, model, ranges)  # names of nodes that stay in float -> INT8 model
    groups = layer_groups(model.graph, placement.int8)
    found = sensitivity(model, quantise_except, groups, frames=frames, evaluate=accuracy_on(evaluation))
    print(found.to_text())

Accuracy is measured on annotated photographs, never on those that were calibrated on. Where there are none, the
error of the heads on a few frames takes its place: it says where the error is, not what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from sdk.backends import Backend, open_backend
from sdk.backends.onnxruntime import INPUT_NAME
from sdk.timing import medians_ms

from .errors import CalibrationError
from .measurement import measure_accuracy
from .placement import MOVING
from .sets import AnnotatedSet

Accuracy = Mapping[str, float]  # "bbox", and "keypoints" where the model has some -> AP, 0 to 1
QuantiseExcept = Callable[[Collection[str]], onnx.ModelProto]  # nodes that stay in float -> INT8 model
Evaluate = Callable[[onnx.ModelProto], Accuracy]
Latency = Callable[[Sequence[onnx.ModelProto]], list[float]]  # milliseconds of each, measured in turns
Deployed = Callable[[onnx.ModelProto], Backend]  # a dense graph, as inexact as in its own runtime
Note = Callable[[str], None]
_Frames = Sequence[npt.NDArray[np.uint8]]
_Path = tuple[str, ...]  # of a layer, step by step
_Paths = Mapping[str, _Path]  # of nodes, by name

KINDS = {"bbox": "box AP", "keypoints": "keypoint AP"}
MAX_GROUPS = 16  # each costs one evaluation
_BLOCK = 4  # operators of a residual block: two or three convolutions and the sum; it is not taken apart
# What differences of AP vary by on one photograph; on n of them, by this over the square root of n. Measured on the
# shipped model: 0.004 between its groups on 60 photographs.
_NOISE_AP = 0.03
_NOISE_MS = 0.01  # share of the whole time that cannot be told from nothing
_ROUNDS = 25


@dataclass(frozen=True)
class LayerGroup:
    """A part of a network.

    Attributes:
        name: the path that its layers share, e.g. `stages.1`.
        nodes: that go to float together.
    """

    name: str
    nodes: frozenset[str]


@dataclass(frozen=True)
class GroupSensitivity:
    """What one group in float changes, all others in INT8.

    Attributes:
        group: see there.
        accuracy: with the group in float; None where nothing was annotated.
        ap_gain: AP that comes back, of the kind of AP that loses most; None as above.
        head_error: noise of the heads with the group in float, as a share of their variance.
        error_removed: by how much that is less than with everything in INT8.
        cost_ms: milliseconds more for a frame, negative where float is faster; None where it was not measured.
        mac_share: of the network's multiply-accumulates.
    """

    group: LayerGroup
    accuracy: Accuracy | None
    ap_gain: float | None
    head_error: float
    error_removed: float
    cost_ms: float | None
    mac_share: float


@dataclass(frozen=True)
class Sensitivity:
    """All groups, in the order of the network, and the figures that they are compared with.

    Attributes:
        groups: one entry each.
        accuracy: "fp32" and "int8" -> AP; None where nothing was annotated.
        head_error: of the whole INT8 model, as in GroupSensitivity.
        latency_ms: "fp32" and "int8" -> a frame; None where it was not measured.
        macs: node -> its multiply-accumulates.
        noise_ap: differences of AP below it say nothing.
    """

    groups: tuple[GroupSensitivity, ...]
    accuracy: dict[str, Accuracy] | None
    head_error: float
    latency_ms: dict[str, float] | None
    macs: Mapping[str, int] = field(repr=False)
    noise_ap: float = 0.0

    @property
    def ap_drop(self) -> float | None:
        """AP that INT8 costs; None where nothing was annotated."""
        return ap_drop(self.accuracy["fp32"], self.accuracy["int8"]) if self.accuracy else None

    @property
    def by_damage(self) -> list[GroupSensitivity]:
        """The groups by falling damage per millisecond, or per multiply-accumulate where no time was measured.

        Damage is AP as far as it is more than noise; among groups below that, the error of the heads.
        """
        return sorted(self.groups, key=self._priority, reverse=True)

    def mac_share(self, nodes: Collection[str]) -> float:
        """Share of the network's multiply-accumulates that some nodes have."""
        return sum(self.macs.get(name, 0) for name in nodes) / max(1, sum(self.macs.values()))

    def _priority(self, entry: GroupSensitivity) -> tuple[float, float]:
        cost = max(entry.mac_share, _NOISE_MS)
        if entry.cost_ms is not None and self.latency_ms is not None:
            cost = max(entry.cost_ms, _NOISE_MS * self.latency_ms["int8"])
        gain = entry.ap_gain or 0.0
        return (gain / cost if gain > self.noise_ap else 0.0), entry.error_removed / cost

    def to_dict(self) -> dict[str, Any]:
        return {
            "accuracy": {name: dict(figures) for name, figures in self.accuracy.items()} if self.accuracy else None,
            "noise_ap": self.noise_ap,
            "head_error": self.head_error,
            "latency_ms": self.latency_ms,
            "groups": [
                {
                    "name": entry.group.name,
                    "nodes": sorted(entry.group.nodes),
                    "accuracy": dict(entry.accuracy) if entry.accuracy is not None else None,
                    "ap_gain": entry.ap_gain,
                    "head_error": entry.head_error,
                    "error_removed": entry.error_removed,
                    "cost_ms": entry.cost_ms,
                    "mac_share": entry.mac_share,
                }
                for entry in self.groups
            ],
        }

    def to_text(self) -> str:
        """A table: INT8 as it is, then with each group in float."""
        kinds = [kind for kind in KINDS if self.accuracy and kind in self.accuracy["fp32"]]
        width = max(14, *(len(entry.group.name) for entry in self.groups)) + 1
        timed = ["ms more"] if self.latency_ms else []
        titles = [*(KINDS[kind] for kind in kinds), *(["AP back"] if kinds else []), "SNR, dB", *timed, "MACs"]
        base = [*(_figure(self.accuracy["int8"], kind) for kind in kinds), ""] if self.accuracy else []
        rows = [["left in float", *titles], ["nothing", *base, _decibels(self.head_error)]]
        for entry in self.groups:
            figures = [_figure(entry.accuracy, kind) for kind in kinds] if entry.accuracy is not None else []
            gain = [f"{entry.ap_gain:+.4f}"] if entry.ap_gain is not None else []
            cost = [f"{entry.cost_ms:+.2f}"] if entry.cost_ms is not None else []
            rows.append(
                [entry.group.name, *figures, *gain, _decibels(entry.head_error), *cost, f"{entry.mac_share:.1%}"]
            )
        if self.accuracy:
            rows.append(["FP32", *(_figure(self.accuracy["fp32"], kind) for kind in kinds)])
        lines = [(f"{row[0]:<{width}}" + "".join(f"{text:>12}" for text in row[1:])).rstrip() for row in rows]
        if self.noise_ap:
            lines.append(f"So few photographs cannot tell differences below {self.noise_ap:.4f} AP from chance.")
        return "\n".join(lines)


def layer_groups(graph: onnx.GraphProto, int8: Collection[str], *, results_quantised: bool = True) -> list[LayerGroup]:
    """The INT8 operators of a float graph by parts of the network, about 6 to 16, in the order of the graph.

    Parts follow from the layers' paths: the largest is taken apart, as long as it is more than a residual block and
    there are not too many. An operator outside all layers, such as the sum of two branches, belongs to what reads it.

    Args:
        graph: with nodes named after layers, e.g. `stages.0.0.conv1.Conv`.
        int8: names of the nodes that run in INT8.
        results_quantised: where operators give quantised results (ONNX Runtime), a group can only read exact values
            if what gives them stays in float too; so these operators are part of the group, and groups overlap.
            Where only what operators read is quantised (TensorRT), False.

    Raises:
        CalibrationError: nothing runs in INT8.
    """
    paths = {name: path for name, path in _layer_paths(graph).items() if name in int8}
    if not paths:
        raise CalibrationError("no operator of the model would run in INT8; there is nothing to choose from")
    parts = [(".".join(prefix), frozenset(names)) for prefix, names in _parts(paths).items()]
    sources = _sources(graph, int8) if results_quantised else {}
    return [LayerGroup(name, nodes.union(*(sources.get(node, ()) for node in nodes))) for name, nodes in parts]


def sensitivity(
    model: onnx.ModelProto,
    quantise_except: QuantiseExcept,
    groups: Sequence[LayerGroup],
    *,
    frames: _Frames,
    evaluate: Evaluate | None = None,
    noise_ap: float = 0.0,
    latency: Latency | None = None,
    note: Note = lambda text: None,
) -> Sensitivity:
    """Leave each group in float in turn, and measure what that brings and costs.

    Args:
        model: in float, dense.
        quantise_except: gives its INT8 form with some nodes in float.
        groups: from `layer_groups`.
        frames: (1, h, w, 3) uint8, as the network takes them; a few, for the error of the heads.
        evaluate: gives the accuracy of a model on annotated photographs, e.g. `accuracy_on(evaluation)`.
        noise_ap: of what it gives, e.g. `ap_noise(evaluation)`.
        latency: e.g. `latency_here`; None where the target does not run here.
        note: is told of each group.
    """
    error_of, macs = _head_error(model, frames), multiply_accumulates(model)
    int8 = quantise_except(())
    accuracy = {"fp32": evaluate(model), "int8": evaluate(int8)} if evaluate else None
    base_error = error_of(int8)
    entries = []
    for number, group in enumerate(groups, 1):
        note(f"leaving group {number} of {len(groups)} in float: {group.name}")
        variant = quantise_except(group.nodes)
        found = evaluate(variant) if evaluate else None
        error = error_of(variant)
        entries.append(
            GroupSensitivity(
                group,
                found,
                None if accuracy is None or found is None else _gain(accuracy, found),
                error,
                base_error - error,
                _difference_ms(latency, int8, variant),
                sum(macs.get(name, 0) for name in group.nodes) / max(1, sum(macs.values())),
            )
        )
    latency_ms = dict(zip(("fp32", "int8"), latency([model, int8]), strict=True)) if latency else None
    return Sensitivity(tuple(entries), accuracy, base_error, latency_ms, macs, noise_ap)


def ap_drop(reference: Accuracy, found: Accuracy) -> float:
    """AP that is lost, of the kind that loses most.

    >>> round(ap_drop({"bbox": 0.5, "keypoints": 0.4}, {"bbox": 0.499, "keypoints": 0.39}), 6)
    0.01
    """
    return max(reference[kind] - found[kind] for kind in reference)


def accuracy_on(evaluation: AnnotatedSet, *, deployed: Deployed | None = None) -> Evaluate:
    """Measures box AP, and keypoint AP where the model has keypoints, as `centeredge evaluate` does.

    Args:
        evaluation: annotated photographs.
        deployed: opens what is to be measured; by default, the graph itself in ONNX Runtime.

    Raises:
        CalibrationError: when called, if the photographs show nothing that the model finds.
    """

    def evaluate(model: onnx.ModelProto) -> Accuracy:
        with closing(deployed(model) if deployed else _opened(model)) as backend:
            figures = measure_accuracy({"model": backend}, evaluation)["model"]
        found = {kind: figures[kind]["AP"] for kind in KINDS if figures.get(kind, {}).get("AP") is not None}
        if not found:
            raise CalibrationError(
                f"none of the model's objects is annotated on the {len(evaluation.files)} photographs, so that there "
                "is no accuracy; name more of them with --eval-images and --eval-annotations"
            )
        return found

    return evaluate


def ap_noise(evaluation: AnnotatedSet) -> float:
    """What AP varies by, from one model to another as good, on so many photographs."""
    return _NOISE_AP / math.sqrt(max(1, len(evaluation.files)))


def latency_here(models: Sequence[onnx.ModelProto], *, threads: int = 1, rounds: int = _ROUNDS) -> list[float]:
    """Median milliseconds of one frame through each network in ONNX Runtime, in turns."""
    rng = np.random.default_rng(0)
    functions: dict[str, Callable[[], object]] = {}
    for index, model in enumerate(models):
        session = _session(model, threads=threads)
        frame = rng.integers(0, 256, session.get_inputs()[0].shape, np.uint8)
        functions[str(index)] = partial(session.run, None, {INPUT_NAME: frame})
    return list(medians_ms(functions, rounds=rounds).values())


def multiply_accumulates(model: onnx.ModelProto) -> dict[str, int]:
    """Multiplications of each convolution for one frame, by node name."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values}
    weights = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    counts = {}
    for node in graph.node:
        if node.op_type in ("Conv", "DeformConv", "ConvTranspose") and node.input[1] in weights:
            # Each weight meets each cell of the result once; of what is read, in a transposed convolution.
            cells = shapes.get(node.input[0] if node.op_type == "ConvTranspose" else node.output[0], [])[2:]
            counts[node.name] = weights[node.input[1]] * math.prod(max(1, side) for side in cells)
    return counts


def _layer_paths(graph: onnx.GraphProto) -> dict[str, _Path]:
    """Node name -> the path of its layer; for a node outside all layers, that of the first that reads it."""
    paths: dict[str, _Path] = {}
    of_readers: dict[str, _Path] = {}
    for node in reversed(graph.node):
        path = tuple(node.name.split(".")[:-1])
        paths[node.name] = path or of_readers.get(node.output[0], ("other",))
        of_readers.update((name, paths[node.name]) for name in node.input)
    return {node.name: paths[node.name] for node in graph.node}


def _parts(paths: _Paths) -> dict[_Path, list[str]]:
    """Prefix -> names of the nodes below it, in the order of the graph."""
    order = {name: index for index, name in enumerate(paths)}
    parts = _split(paths, list(paths), depth=1)
    while True:
        for prefix in sorted(parts, key=lambda prefix: len(parts[prefix]), reverse=True):
            pieces = _taken_apart(paths, parts[prefix])
            if len(parts[prefix]) > _BLOCK and 1 < len(pieces) <= MAX_GROUPS + 1 - len(parts):
                del parts[prefix]
                parts = dict(sorted({**parts, **pieces}.items(), key=lambda part: order[part[1][0]]))
                break
        else:
            return parts


def _taken_apart(paths: _Paths, names: Sequence[str]) -> dict[_Path, list[str]]:
    """By the first step at which the paths differ; whole if they never do."""
    pieces = _split(paths, names, depth=1)
    for depth in range(2, 1 + max(len(paths[name]) for name in names)):
        if len(pieces) > 1:
            break
        pieces = _split(paths, names, depth=depth)
    return pieces


def _split(paths: _Paths, names: Sequence[str], *, depth: int) -> dict[_Path, list[str]]:
    parts: dict[_Path, list[str]] = {}
    for name in names:
        parts.setdefault(paths[name][:depth], []).append(name)
    return parts


def _sources(graph: onnx.GraphProto, int8: Collection[str]) -> dict[str, set[str]]:
    """INT8 node -> those whose results it reads, as they are or through what moves them."""
    givers: dict[str, set[str]] = {}  # tensor -> INT8 nodes that it comes from
    sources: dict[str, set[str]] = {}
    for node in graph.node:
        read = set().union(*(givers.get(name, set()) for name in node.input))
        if node.name in int8:
            sources[node.name] = read
            read = {node.name}
        elif node.op_type not in MOVING and node.op_type != "Relu":
            continue
        givers.update((name, read) for name in node.output)
    return sources


def _gain(accuracy: Mapping[str, Accuracy], found: Accuracy) -> float:
    return ap_drop(accuracy["fp32"], accuracy["int8"]) - ap_drop(accuracy["fp32"], found)


def _difference_ms(latency: Latency | None, int8: onnx.ModelProto, variant: onnx.ModelProto) -> float | None:
    """Two at a time: side by side, and without holding all variants in memory."""
    if latency is None:
        return None
    before, after = latency([int8, variant])
    return after - before


def _opened(model: onnx.ModelProto) -> Backend:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return open_backend(path)


def _head_error(model: onnx.ModelProto, frames: _Frames) -> Callable[[onnx.ModelProto], float]:
    """Measures a model's heads against those of the float model: noise power over variance, mean over the heads.

    Each cell counts as much as the float model sees an object's centre or joint there: what is said of the
    background is never read.
    """
    names = [output.name for output in model.graph.output]
    references = _heads(model, names, frames)
    heatmaps = [name for name in names if name in ("heatmap", "keypoint_heatmap")]
    weights = [1.0 / (1.0 + np.exp(-np.concatenate([heads[n] for n in heatmaps], 1))) for heads in references]
    weights = [values.max(axis=1, keepdims=True) for values in weights]  # (1, 1, h, w)

    def error_of(other: onnx.ModelProto) -> float:
        found = _heads(other, names, frames)
        shares = []
        for name in names:
            values = [heads[name] for heads in references]
            total = sum(float(weight.sum()) * value.shape[1] for weight, value in zip(weights, values, strict=True))
            mean = sum(float((w * v).sum()) for w, v in zip(weights, values, strict=True)) / total
            power = sum(float((w * (v - mean) ** 2).sum()) for w, v in zip(weights, values, strict=True))
            noise = sum(
                float((w * (v - heads[name]) ** 2).sum()) for w, v, heads in zip(weights, values, found, strict=True)
            )
            shares.append(noise / max(power, 1e-30))
        return float(np.mean(shares))

    return error_of


def _heads(model: onnx.ModelProto, names: list[str], frames: _Frames) -> list[dict[str, npt.NDArray[np.float64]]]:
    session = _session(model)
    rows = (session.run(names, {INPUT_NAME: frame}) for frame in frames)
    return [{name: array.astype(np.float64) for name, array in zip(names, row, strict=True)} for row in rows]


def _session(model: onnx.ModelProto, *, threads: int = 0) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _figure(accuracy: Accuracy, kind: str) -> str:
    return f"{accuracy[kind]:.4f}"


def _decibels(error: float) -> str:
    return "exact" if error <= 0.0 else f"{-10.0 * math.log10(error):.1f}"
