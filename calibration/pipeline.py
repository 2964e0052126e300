"""The whole way: a float model and photographs in, an INT8 or FP16 model and a report out.

::

    report = calibrate(Path("model.onnx"), Path("model.int8.onnx"), CalibrationConfig(images=Path("photographs")))
    print(report.to_text())
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, helper

from sdk.backends import Backend
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.errors import ConfigError
from sdk.machine import inspect_machine
from sdk.sources.images import read_image
from sdk.spec import ModelSpec

from .budget import hold_budget
from .collection import Statistics, collect_statistics, part_file
from .config import DEFAULT_METHOD, CalibrationConfig
from .deployment import AS_IT_IS, Deployment
from .equalisation import equalise
from .errors import CalibrationError
from .layer_errors import layer_errors
from .measurement import measure_accuracy, measure_latency, thread_counts
from .onnx_files import (
    WEIGHTS_METADATA_KEY,
    check_writable,
    file_sha256,
    metadata_of,
    open_model,
    read_onnx,
    replacing,
    weights_sha256_of,
    write_onnx,
)
from .overlap import identified, set_aside, without_calibrated
from .photographs import PhotographReader, Unreadable
from .pictures import PictureChooser
from .placement import place
from .quantisation import Means, quantise
from .ranges import Ranges, open_ranges, ranges_from_statistics, write_ranges
from .reconstruction import sample_frames
from .report import ActivationHistogram, Report, activation_histogram, package_versions
from .sensitivity import (
    QuantiseExcept,
    Sensitivity,
    accuracy_on,
    ap_noise,
    latency_here,
    layer_groups,
    sensitivity,
)
from .sets import AnnotatedSet, CalibrationSet, choose_at_random, choose_balanced, list_photographs, open_annotated
from .tensorrt_cache import is_cache, network_ranges, write_cache
from .weights import channel_means

Note = Callable[[str], None]
Frames = list[npt.NDArray[np.uint8]]
_NUM_MEANS = 50  # photographs for bias correction


@dataclass(frozen=True)
class _Job:
    """What is asked: the float model and its file, the file to write, and how."""

    model: ModelProto
    spec: ModelSpec
    path: Path
    out: Path
    config: CalibrationConfig
    deployment: Deployment
    note: Note
    means: Means | None = None  # of channels, for bias correction

    def quantised(self, ranges: Ranges, float_nodes: Collection[str] = ()) -> ModelProto:
        """The dense INT8 graph, with some nodes in float."""
        config = self.config
        return quantise(
            self.model,
            ranges.tensors,
            target=config.target,
            float_nodes={*config.keep_float, *float_nodes},
            weights=config.weights,
            means=self.means,
        )

    def half(self) -> tuple[ModelProto, ModelSpec] | None:
        """The FP16 file, where there is a way to it."""
        if self.deployment.half is None:
            return None
        return self.deployment.half(self.model, replace(self.spec, precision="fp16"))

    def deployed(self, model: ModelProto) -> Backend:
        """The float graph, or an INT8 form of it, as inexact as in its own runtime."""
        if model is self.model:
            return open_model(model, self.spec)
        return self.rounded(*self.deployment.finish(model, replace(self.spec, precision="int8")))

    def rounded(self, file: ModelProto, spec: ModelSpec) -> Backend:
        """A file, as inexact as in its own runtime."""
        return open_model(self.deployment.rounded(file), spec)


@dataclass(frozen=True)
class _Sets:
    """Photographs: to calibrate on, None where that is done; to measure accuracy on, None where none is annotated."""

    chosen: CalibrationSet | None
    evaluation: AnnotatedSet | None


@dataclass(frozen=True)
class _Measured:
    """Ranges, with what they were taken from; no statistics where they were read from a file."""

    ranges: Ranges
    statistics: Statistics | None = None
    files: tuple[Path, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()


def calibrate(
    model_path: Path,
    out: Path,
    config: CalibrationConfig,
    *,
    deployment: Deployment = AS_IT_IS,
    note: Note = lambda text: None,
) -> Report:
    """Write the INT8 or FP16 form of a float model, and measure what it costs.

    The file appears under its name only when all is done.

    Args:
        model_path: a .onnx that `centeredge export` wrote for ONNX Runtime, FP32.
        out: the .onnx to write.
        config: what to calibrate and measure on.
        deployment: the last steps to the file of the target.
        note: is told what is being done.

    Raises:
        CalibrationError: the model or the photographs cannot be calibrated on.
        ConfigError: an output cannot be written, or options contradict the ranges.
        InputError, SpecError, BackendError: a file is not what was expected.
    """
    model, spec = _float_model(model_path)
    if config.equalise:
        model = _equalised(model)
    _check_outputs(model_path, out, config)
    sets = _open_sets(config, spec)
    job = _Job(model, spec, model_path, out, config, deployment, note)
    with replacing(out) as temporary:
        write = _write_half if config.precision == "fp16" else _write_int8
        report = write(job, sets, temporary)
    return replace(report, output=out)


def _float_model(path: Path) -> tuple[ModelProto, ModelSpec]:
    model, spec = read_onnx(path)
    operators = {node.op_type for node in model.graph.node}
    if spec.precision == "int8" or operators & {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"}:
        raise CalibrationError(f"{path} is quantised already; calibrate the float model that it came from")
    if spec.precision != "fp32" or spec.output != "dense":
        raise CalibrationError(
            f"{path} is {spec.precision} with {spec.output} outputs; calibration starts from an FP32 model with dense "
            "heads: `centeredge export CHECKPOINT OUT.onnx`"
        )
    OnnxRuntimeBackend(path).close()  # says what contradicts the spec
    shape = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    if shape[0] != 1 or 0 in shape:
        raise CalibrationError(
            f"{path} takes frames of any size or several at once, and an INT8 file is for one of one size; "
            "`centeredge export` gives such a file without --any-size and --dynamic-batch"
        )
    return model, spec


def _equalised(model: ModelProto) -> ModelProto:
    """The same function with other weights, which the ranges must not be taken for those of the model itself."""
    even = equalise(model)
    digest = hashlib.sha256(f"{weights_sha256_of(model)} equalised".encode()).hexdigest()
    helper.set_model_props(even, {**metadata_of(even), WEIGHTS_METADATA_KEY: digest})
    return even


def _check_outputs(model_path: Path, out: Path, config: CalibrationConfig) -> None:
    if out.exists() and out.samefile(model_path):
        raise ConfigError(f"{out} would replace the float model; name another output")
    if config.ranges is not None and not config.has_ranges:
        check_writable(config.ranges)
    if config.write_cache is not None:
        check_writable(config.write_cache)


def _open_sets(config: CalibrationConfig, spec: ModelSpec) -> _Sets:
    """Chooses the photographs; the two sets share none, or this is said now and not after the work.

    Raises:
        CalibrationError: there are too few, or evaluation photographs are among those that were calibrated on.
    """
    pool = evaluation = None
    calibrates = config.precision == "int8" and not config.has_ranges
    if config.images is not None and config.annotations is not None:
        pool = open_annotated(config.images, config.annotations, spec)
    if config.eval_images is not None and config.eval_annotations is not None:
        evaluation = open_annotated(config.eval_images, config.eval_annotations, spec)
    elif pool is not None:
        pool, evaluation = set_aside(pool, config.num if calibrates else 0, seed=config.seed)
    if not calibrates:
        return _Sets(None, evaluation)
    assert config.images is not None
    if pool is None:
        chosen = choose_at_random(list_photographs(config.images), config.num, seed=config.seed)
    else:
        chosen = choose_balanced(pool, spec.class_names, config.num, seed=config.seed)
    if evaluation is not None:
        evaluation = without_calibrated(evaluation, identified(chosen.paths), force=_may_leave_out(config))
    return _Sets(chosen, evaluation)


def _may_leave_out(config: CalibrationConfig) -> bool:
    """Whether photographs that were calibrated on are quietly no part of the evaluation set."""
    return config.force or config.eval_images is None


def _write_int8(job: _Job, sets: _Sets, path: Path) -> Report:
    config, note = job.config, job.note
    measured = _ranges(job, sets.chosen)
    ranges, evaluation = measured.ranges, sets.evaluation
    if evaluation is not None and sets.chosen is None:
        evaluation = without_calibrated(evaluation, ranges.photographs, force=_may_leave_out(config))
    frames = _frames(measured.files or tuple(evaluation.files.values() if evaluation else ()), job.spec)
    if config.weights.bias_correction:
        note("measuring the means of channels")
        means = channel_means(job.model, job.spec, (read_image(path) for path in measured.files[:_NUM_MEANS]))
        job = replace(job, means=means)
    layers = _chosen_layers(job, partial(job.quantised, ranges), evaluation, frames)
    int8 = job.quantised(ranges, layers.float_nodes)
    float_nodes = {*config.keep_float, *layers.float_nodes}
    file, spec = job.deployment.finish(int8, replace(job.spec, precision="int8"))
    write_onnx(file, path, spec=spec, weights_sha256=ranges.weights_sha256)
    if config.write_cache is not None:
        written = network_ranges(job.model.graph, ranges.tensors)
        write_cache(written, config.write_cache, tensorrt_version=config.tensorrt_version)
    models = _models(job, path, file, spec)
    report = _report(job, models, {"fp32": job.path, "int8": path}, layers.evaluation)
    note("measuring the error of each layer")
    return replace(
        report,
        ranges=ranges,
        unreadable=measured.unreadable,
        choice=sets.chosen.sentences() if sets.chosen else (),
        notes=(*report.notes, *layers.sentences),
        options=_options(config, layers),
        float_layers=place(job.model.graph, config.target, float_nodes=float_nodes).reasons,
        layers=layer_errors(job.model, int8, frames),
        histograms=_histograms(measured, config),
        sensitivity=layers.sensitivity,
        budget=layers.budget,
    )


def _models(job: _Job, path: Path, file: ModelProto, spec: ModelSpec) -> dict[str, Path | Backend]:
    """What accuracy is compared of: for TensorRT FP16 too, the alternative there, and both as inexact as there."""
    if job.config.target == "onnxruntime":
        return {"fp32": job.path, "int8": path}
    half = job.half()
    fp16 = {"fp16": job.rounded(*half)} if half else {}
    return {"fp32": job.path, **fp16, "int8": job.rounded(file, spec)}


def _write_half(job: _Job, sets: _Sets, path: Path) -> Report:
    half = job.half()
    if half is None:
        raise ConfigError("there is no way to FP16 here; use `centeredge export --precision fp16`")
    file, spec = half
    evaluation = without_calibrated(sets.evaluation, ()) if sets.evaluation else None
    write_onnx(file, path, spec=spec, weights_sha256=weights_sha256_of(job.model))
    models: dict[str, Path | Backend] = {"fp32": job.path, "fp16": job.rounded(file, spec)}
    return _report(job, models, {"fp32": job.path, "fp16": path}, evaluation)


def _ranges(job: _Job, chosen: CalibrationSet | None) -> _Measured:
    config, note = job.config, job.note
    if chosen is None:
        assert config.ranges is not None
        return _Measured(_known_ranges(config.ranges, job.model, config, note))
    method = config.method or DEFAULT_METHOD
    for sentence in chosen.sentences():
        note(sentence)
    reader = PhotographReader(chosen.paths)
    part = part_file(config.ranges or job.out, job.model, chosen.paths)
    note(f"measuring activations on {len(reader)} photographs of {config.images}")
    statistics = collect_statistics(job.model, job.spec, reader, total=len(reader), part=part, note=note)
    frames = sample_frames(reader.readable, job.spec)
    tensors = ranges_from_statistics(job.model, statistics, method, frames=frames)
    ranges = Ranges(method, weights_sha256_of(job.model), tuple(reader.used), tensors)
    if config.ranges is not None:
        write_ranges(ranges, config.ranges)
    return _Measured(ranges, statistics, tuple(reader.readable), tuple(reader.unreadable))


def _known_ranges(path: Path, model: ModelProto, config: CalibrationConfig, note: Note) -> Ranges:
    ranges = open_ranges(path, model)
    if config.method is not None and config.method != ranges.method:
        raise ConfigError(
            f"{path} holds ranges by {ranges.method}, not {config.method}; leave --method out or delete it"
        )
    source = "" if is_cache(path) else f" from {len(ranges.photographs)} photographs"
    note(f"using the ranges of {path}, by {ranges.method}{source}")
    return ranges


def _frames(files: Sequence[Path], spec: ModelSpec) -> Frames:
    """A few of the photographs as the network takes them; noise where there are none."""
    if files:
        return list(sample_frames(files, spec))
    width, height = spec.input.wh
    return [np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)]


@dataclass(frozen=True)
class _Layers:
    """What stays in float, what is to be said about it, and the photographs that took no part in choosing it."""

    evaluation: AnnotatedSet | None
    float_nodes: Collection[str] = ()
    sentences: Sequence[str] = ()
    sensitivity: Sensitivity | None = None
    budget: Mapping[str, Any] | None = None


def _chosen_layers(
    job: _Job, quantise_except: QuantiseExcept, evaluation: AnnotatedSet | None, frames: Frames
) -> _Layers:
    config, graph = job.config, job.model.graph
    int8 = place(graph, config.target, float_nodes=config.keep_float).int8
    # What ONNX Runtime takes for a TensorRT file says nothing about TensorRT.
    latency = latency_here if config.target == "onnxruntime" else None
    groups = layer_groups(graph, int8, results_quantised=config.target == "onnxruntime")
    layers = _Layers(evaluation)
    if config.max_ap_drop is not None:
        budget = hold_budget(
            job.model,
            quantise_except,
            groups,
            evaluation,
            max_ap_drop=config.max_ap_drop,
            frames=frames,
            deployed=job.deployed,
            latency=latency,
            seed=config.seed,
            note=job.note,
        )
        layers = _Layers(
            budget.evaluation, budget.float_nodes, budget.sentences(), budget.sensitivity, budget.to_dict()
        )
    if not config.sensitivity or layers.sensitivity is not None:
        return layers
    found = sensitivity(
        job.model,
        quantise_except,
        groups,
        frames=frames,
        evaluate=accuracy_on(evaluation, deployed=job.deployed) if evaluation else None,
        noise_ap=ap_noise(evaluation) if evaluation else 0.0,
        latency=latency,
        note=job.note,
    )
    return replace(layers, sensitivity=found)


def _report(
    job: _Job, models: Mapping[str, Path | Backend], files: Mapping[str, Path], evaluation: AnnotatedSet | None
) -> Report:
    """What can be measured of any model of reduced precision."""
    job.note("measuring latency")
    latency_ms = {threads: measure_latency(files, threads=threads) for threads in thread_counts()}
    accuracy, pictures = None, PictureChooser(job.spec)
    if evaluation is not None:
        job.note(f"measuring accuracy on {len(evaluation.files)} photographs")
        accuracy = measure_accuracy(models, evaluation, seen=pictures.add)
    cpu = inspect_machine().cpu
    *_, output = files.values()
    return Report(
        model=job.path,
        output=output,
        file_bytes={label: path.stat().st_size for label, path in files.items()},
        latency_ms=latency_ms[1],
        latency_ms_by_threads={threads: row for threads, row in latency_ms.items() if threads > 1},
        accuracy=accuracy,
        num_evaluated=len(evaluation.files) if evaluation else 0,
        target=job.config.target,
        seed=job.config.seed,
        notes=_notes(evaluation, job.config),
        model_sha256={label: file_sha256(path) for label, path in files.items()},
        machine={"CPU": cpu.name or "unknown", "cores": str(cpu.cores), **package_versions()},
        pictures=pictures.pictures() if evaluation else (),
    )


def _notes(evaluation: AnnotatedSet | None, config: CalibrationConfig) -> tuple[str, ...]:
    notes = []
    if evaluation is not None and config.force and evaluation.calibrated_on:
        notes.append(
            f"WARNING: {len(evaluation.calibrated_on)} evaluation photographs were calibrated on, and left out."
        )
    if evaluation is not None and evaluation.unreadable:
        names = ", ".join(entry.name for entry in evaluation.unreadable)
        notes.append(f"Not evaluated, because they cannot be read: {names}.")
    if config.precision == "fp16":
        notes.append("FP16 is calculated with each rounding of the file; its latency here is that of FP32 and casts.")
    return tuple(notes)


def _options(config: CalibrationConfig, layers: _Layers) -> dict[str, Any]:
    return {
        "weight search": config.weights.search,
        "bias correction": config.weights.bias_correction,
        "cross-layer equalisation": config.equalise,
        "left in float": sorted({*config.keep_float, *layers.float_nodes}),
    }


def _histograms(measured: _Measured, config: CalibrationConfig) -> list[ActivationHistogram]:
    """What was counted, with the range that was chosen; none where the ranges were read from a file."""
    rows = []
    for name, histogram in (measured.statistics or {}).items():
        bounds = measured.ranges.tensors[name]
        low, high = bounds.low, bounds.high
        if config.target == "tensorrt":
            low, high = -bounds.amax, bounds.amax
        rows.append(
            activation_histogram(name, histogram.counts, histogram.edges, low=min(low, 0.0), high=max(high, 0.0))
        )
    return rows
