"""From any source to an engine, and the proof that the engine answers as ONNX Runtime does.

::

    record, comparison = export_engine(onnx_source(path), Path("model.engine"), Form("tensorrt"), EngineOptions())
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from sdk.backends import Backend, open_backend
from sdk.engine_files import RUNTIME_NAMES, EngineRecord, find_gpu, move_engine
from sdk.errors import BackendUnavailable, EngineMismatch
from sdk.onnx_metadata import TARGET_METADATA_KEY, read_metadata

from .engine import EngineOptions, Note, build_engine, check_build

if TYPE_CHECKING:
    from calibration.ranges import Ranges

    from .conversion import Form
    from .pipeline import Source
    from .verification import Report

_CANONICAL = "onnxruntime"


def has_engine_form(path: Path) -> bool:
    """Whether an engine can be built from a file as it is.

    Raises:
        InputError: it is no ONNX file.
    """
    return path.suffix == ".onnx" and read_metadata(path).get(TARGET_METADATA_KEY, _CANONICAL) != _CANONICAL


def export_engine(
    source: Source,
    out: Path,
    form: Form,
    options: EngineOptions,
    *,
    rebuild: str,
    ranges: Ranges | None = None,
    photographs: Path | None = None,
    note: Note = lambda text: None,
) -> tuple[EngineRecord, Report]:
    """Write the ONNX file in the form that is wanted, verify it, and build the engine from it.

    Where a GPU is there to run it, the engine is compared with the source too; it appears under its name only then.

    Args:
        source, form, ranges, photographs: as of `export_model`.
        out: the .engine to write; the ONNX file in between is not kept.
        options: of the build.
        rebuild: the command that does all this again, for the sidecar.
        note: is told what is being done.

    Raises:
        As `export_model` and `build_engine`.
    """
    from .pipeline import export_model, verified
    from .verification import Report

    check_build(
        out, options, of=f"--target {form.target}", target=form.target, precision=form.precision, batch=form.batch
    )
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        onnx_path = Path(folder) / f"{Path(source.name).stem}.{form.target}.onnx"
        report = export_model(source, onnx_path, form, ranges=ranges, photographs=photographs)
        note(report.text())
        engine = Path(folder) / out.name
        record = build_engine(onnx_path, engine, options, rebuild=rebuild, note=note)
        backend = _opened(engine, record, note)
        if backend is not None:
            with closing(backend):
                runs_as = RUNTIME_NAMES[record.runtime]
                comparison = verified(source, backend, backend.spec, photographs, runs_as=runs_as)
            note(comparison.text())
            report = Report((*report.parts, comparison))
        move_engine(engine, out)
    return record, report


def _opened(engine: Path, record: EngineRecord, note: Note) -> Backend | None:
    """The engine, to be compared; None where this machine builds engines but cannot run this one frame by frame."""
    least, _, most = record.batch
    if find_gpu() is None:
        reason = "no GPU answers here"
    elif least > 1:
        reason = f"it takes {least} to {most} frames a call, and the SDK gives it one"
    else:
        try:
            return open_backend(engine)
        except (BackendUnavailable, EngineMismatch) as err:  # no CUDA binding, or built for other GPUs than this one
            reason = str(err)
    note(f"the engine was built and not run: {reason}")
    return None
