"""The whole way: a source, the form that is wanted, and a file that has been proven equal to the source.

A source is a checkpoint (`export.onnx_export.checkpoint_source`, needs PyTorch) or the FP32 file for ONNX Runtime
that came from it (`onnx_source`, does not)::

    report = export_model(onnx_source(Path("model.onnx")), Path("model.tensorrt.onnx"), Form("tensorrt"))
    print(report.text())
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from calibration.onnx_files import open_model, read_onnx, replacing, weights_sha256_of, write_onnx
from calibration.ranges import Ranges
from sdk.backends import Backend
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.spec import ModelSpec

from .conversion import Form, at_size, check_canonical, convert, input_multiple_of
from .half_precision import rounded_like_half
from .verification import Comparison, Report, check_batch, drawn_frames, photograph_frames, verify


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        model: its canonical graph: FP32, dense heads, for ONNX Runtime.
        spec: of the model.
        name: of the file it came from.
        kind: what runs the reference, for the report.
        reference: the model that every export must equal, for a spec that differs in its input size alone.
    """

    model: ModelProto
    spec: ModelSpec
    name: str
    kind: str
    reference: Callable[[ModelSpec], Backend]


def onnx_source(path: Path) -> Source:
    """An FP32 file for ONNX Runtime as the source of other forms.

    Raises:
        InputError, SpecError: the file is not one of ours.
        ExportError: it has another form already.
    """
    model, spec = read_onnx(path)
    check_canonical(model, spec)

    def reference(sized_spec: ModelSpec) -> Backend:
        return open_model(*at_size(model, spec, sized_spec.input.wh))

    return Source(model, spec, path.name, "its FP32 file", reference)


def export_model(
    source: Source, out: Path, form: Form, *, ranges: Ranges | None = None, photographs: Path | None = None
) -> Report:
    """Write a file in the form that is wanted; it appears under its name only when it has been verified.

    Args:
        source: of the model.
        out: the .onnx to write.
        form: that is wanted.
        ranges: of the activations, for int8.
        photographs: a folder of pictures to verify on; None: drawn scenes.

    Raises:
        ExportError: the form does not fit the model, or the file does not equal the source.
        CalibrationError: a range is missing.
        ConfigError: the wishes contradict each other, or the file cannot be written.
    """
    with replacing(out) as temporary:
        asked = _written(source, temporary, form, ranges, photographs)
        return Report((asked, _at_another_size(source, temporary, form, ranges, photographs)))


def _written(source: Source, path: Path, form: Form, ranges: Ranges | None, photographs: Path | None) -> Comparison:
    model, spec = _converted(source, form, ranges)
    write_onnx(model, path, spec=spec, weights_sha256=weights_sha256_of(source.model))
    backend = OnnxRuntimeBackend(path)
    if form.batch is not None:
        check_batch(backend, drawn_frames(spec, count=max(form.batch[0], min(form.batch[2], 2))))
    return verified(source, _honest(backend, model, spec), spec, photographs)


def _at_another_size(
    source: Source, path: Path, form: Form, ranges: Ranges | None, photographs: Path | None
) -> Comparison:
    """The proof that no size is frozen: the same form, one step smaller or larger than what was asked for."""
    multiple = input_multiple_of(source.model)
    width, height = (
        side - multiple if side > multiple else side + multiple for side in form.wh or source.spec.input.wh
    )
    model, spec = _converted(source, replace(form, wh=(width, height)), ranges)
    backend = OnnxRuntimeBackend(path) if form.any_size else open_model(model, spec)
    return verified(source, _honest(backend, model, spec), spec, photographs, count=1)


def _converted(source: Source, form: Form, ranges: Ranges | None) -> tuple[ModelProto, ModelSpec]:
    return convert(source.model, source.spec, form, ranges=None if ranges is None else ranges.tensors)


def _honest(backend: Backend, model: ModelProto, spec: ModelSpec) -> Backend:
    """ONNX Runtime as exact as the runtime that the file is for: on a CPU it rounds less than FP16 does."""
    return open_model(rounded_like_half(model), spec) if spec.precision == "fp16" else backend


def verified(
    source: Source,
    backend: Backend,
    spec: ModelSpec,
    photographs: Path | None,
    *,
    count: int | None = None,
    runs_as: str = "ONNX Runtime",
) -> Comparison:
    """The proof that a backend is the source.

    Raises:
        ExportError: it is not.
    """
    return verify(
        source.reference(replace(spec, output="dense", precision="fp32")),
        backend,
        _frames(spec, photographs)[:count],
        names=(source.kind, runs_as),
        scenes="drawn scenes" if photographs is None else f"photographs of {photographs.name}",
    )


def _frames(spec: ModelSpec, photographs: Path | None) -> list[npt.NDArray[np.uint8]]:
    return drawn_frames(spec) if photographs is None else photograph_frames(photographs, spec)
