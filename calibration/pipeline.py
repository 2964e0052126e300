"""The whole way: a float model and photographs in, an INT8 model and a report out.

::

    report = calibrate(Path("model.onnx"), Path("model.int8.onnx"), CalibrationConfig(images=Path("photographs")))
    print(report.to_text())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx

from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.errors import ConfigError
from sdk.spec import ModelSpec

from .config import DEFAULT_METHOD, CalibrationConfig
from .errors import CalibrationError
from .measurement import Evaluation, check_unseen, held_back, measure_accuracy, measure_latency, open_evaluation
from .onnx_files import check_writable, read_onnx, replacing, weights_sha256_of, write_onnx
from .photographs import PhotographReader, Unreadable, choose_photographs
from .placement import place_for_onnxruntime
from .quantisation import quantise
from .ranges import Ranges, collect_statistics, ranges_from_statistics, read_ranges, write_ranges
from .report import Report

Note = Callable[[str], None]


def calibrate(model_path: Path, out: Path, config: CalibrationConfig, *, note: Note = lambda text: None) -> Report:
    """Write the INT8 form of a float model, and measure what it costs.

    The file appears under its name only when all is done.

    Args:
        model_path: a .onnx that `centeredge export` wrote.
        out: the .onnx to write.
        config: what to calibrate and measure on.
        note: is told what is being done.

    Raises:
        CalibrationError: the model or the photographs cannot be calibrated on.
        ConfigError: an output cannot be written, or options contradict the ranges.
        InputError, SpecError, BackendError: a file is not what was expected.
    """
    model, spec = _float_model(model_path)
    if out.exists() and out.samefile(model_path):
        raise ConfigError(f"{out} would replace the float model; name another output")
    if config.ranges is not None and not config.has_ranges:
        check_writable(config.ranges)
    evaluation = _evaluation(config, spec)
    with replacing(out) as temporary:
        ranges, unreadable = _ranges(model, spec, config, note)
        evaluation = _unseen(evaluation, ranges, config)
        int8 = quantise(model, ranges.tensors)
        int8_spec = replace(spec, precision="int8")
        write_onnx(int8, temporary, spec=int8_spec, weights_sha256=ranges.weights_sha256)
        report = _measured(model_path, temporary, evaluation, ranges, note)
    return replace(
        report, output=out, unreadable=unreadable, float_convs=place_for_onnxruntime(model.graph).float_convs
    )


def _float_model(path: Path) -> tuple[onnx.ModelProto, ModelSpec]:
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
    return model, spec


def _evaluation(config: CalibrationConfig, spec: ModelSpec) -> Evaluation | None:
    if config.eval_images is not None and config.eval_annotations is not None:
        return open_evaluation(config.eval_images, config.eval_annotations, spec)
    if config.images is not None and config.annotations is not None:
        return open_evaluation(config.images, config.annotations, spec)
    return None


def _unseen(evaluation: Evaluation | None, ranges: Ranges, config: CalibrationConfig) -> Evaluation | None:
    """What accuracy is measured on: never on photographs that were calibrated on."""
    if evaluation is None:
        return None
    if config.eval_images is None:
        return held_back(evaluation, ranges.photographs, seed=config.seed)
    check_unseen(evaluation, ranges.photographs)
    return evaluation


def _ranges(
    model: onnx.ModelProto, spec: ModelSpec, config: CalibrationConfig, note: Note
) -> tuple[Ranges, tuple[Unreadable, ...]]:
    if config.ranges is not None and config.has_ranges:
        return _known_ranges(config.ranges, model, config, note), ()
    assert config.images is not None
    method = config.method or DEFAULT_METHOD
    reader = PhotographReader(choose_photographs(config.images, config.num, seed=config.seed))
    note(f"measuring activations on {len(reader)} photographs of {config.images}")
    statistics = collect_statistics(model, spec, reader)
    tensors = ranges_from_statistics(statistics, method)
    ranges = Ranges(method, weights_sha256_of(model), tuple(reader.used), tensors)
    if config.ranges is not None:
        write_ranges(ranges, config.ranges)
    return ranges, tuple(reader.unreadable)


def _known_ranges(path: Path, model: onnx.ModelProto, config: CalibrationConfig, note: Note) -> Ranges:
    ranges = read_ranges(path)
    if ranges.weights_sha256 != weights_sha256_of(model):
        raise CalibrationError(
            f"{path} was measured on a model with other weights; delete it, or name another --ranges file, and "
            "calibrate again"
        )
    if config.method is not None and config.method != ranges.method:
        raise ConfigError(
            f"{path} holds ranges by {ranges.method}, not {config.method}; leave --method out or delete it"
        )
    note(f"using the ranges of {path}, by {ranges.method} from {len(ranges.photographs)} photographs")
    return ranges


def _measured(model_path: Path, int8_path: Path, evaluation: Evaluation | None, ranges: Ranges, note: Note) -> Report:
    models = {"fp32": model_path, "int8": int8_path}
    note("measuring latency")
    latency_ms = measure_latency(models)
    accuracy = None
    if evaluation is not None:
        note(f"measuring accuracy on {len(evaluation.files)} photographs")
        accuracy = measure_accuracy(models, evaluation)
    return Report(
        model=model_path,
        output=int8_path,
        ranges=ranges,
        unreadable=(),
        float_convs=(),
        file_bytes={name: path.stat().st_size for name, path in models.items()},
        latency_ms=latency_ms,
        accuracy=accuracy,
        num_evaluated=len(evaluation.files) if evaluation else 0,
    )
