"""From any source to an engine, and the proof that the engine answers as ONNX Runtime does.

::

    record, comparison = export_engine(onnx_source(path), Path("model.engine"), Form("tensorrt"), EngineOptions())
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sdk.backends import open_backend
from sdk.engine_files import EngineRecord, find_gpu, sidecar_path
from sdk.onnx_metadata import TARGET_METADATA_KEY, read_metadata

from .engine import EngineOptions, Note, build_engine

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

    Where a GPU is there to run it, the engine is compared with the source too, and is removed if it differs.

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

    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / f"{Path(source.name).stem}.{form.target}.onnx"
        report = export_model(source, onnx_path, form, ranges=ranges, photographs=photographs)
        note(report.text())
        record = build_engine(onnx_path, out, options, rebuild=rebuild, note=note)
    if find_gpu() is None:
        note("no GPU answers here, so the engine was built and not run")
        return record, report
    try:
        backend = open_backend(out)
        try:
            engine = verified(source, backend, backend.spec, photographs, runs_as=record.runtime)
        finally:
            backend.close()
    except Exception:
        out.unlink()
        sidecar_path(out).unlink()
        raise
    note(engine.text())
    return record, Report((*report.parts, engine))
