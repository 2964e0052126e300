"""From any source to an engine: what becomes of it where a GPU could run it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.conversion import Form
from export.engine import EngineOptions
from export.engine_export import export_engine
from export.errors import ExportError
from export.pipeline import export_model, onnx_source
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.engine_files import HostGpu, check_integrity, read_record, sidecar_path
from sdk.errors import BackendError, BackendUnavailable, ConfigError, EngineMismatch

from .conftest import Exported

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: it exists for x86-64 alone")
FORM = Form("tensorrt-rtx")
GPU = HostGpu("NVIDIA GeForce RTX 4090", "8.9", 128, "13.0")


class FakeEngineBackend(OnnxRuntimeBackend):
    """An engine that answers as its ONNX file does, with the boxes moved by `moved` cells."""

    moved = 0.0
    closed = 0

    def infer(self, feeds: Any) -> dict[str, Any]:
        outputs = super().infer(feeds)
        return {**outputs, "offset": outputs["offset"] + np.float32(self.moved)}

    def close(self) -> None:
        FakeEngineBackend.closed += 1


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Any], None]:
    """Says what opening an engine gives, or raises, on a machine with a GPU."""

    def put(answer: Any) -> None:
        def open_backend(path: Path) -> Any:
            check_integrity(path, read_record(path))  # there is an engine to be opened
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr("export.engine_export.open_backend", open_backend)

    for module in ("sdk.engine_files", "export.engine_export"):
        monkeypatch.setattr(f"{module}.find_gpu", lambda: GPU)
    return put


@pytest.fixture
def engine_backend(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> FakeEngineBackend:
    path = tmp_path_factory.mktemp("form") / "model.onnx"
    export_model(onnx_source(exported.path), path, FORM)
    return FakeEngineBackend(path)


def export(exported: Exported, out: Path, notes: list[str], *, form: Form = FORM) -> int:
    """How many comparisons were made."""
    options = EngineOptions(batch=form.batch)
    source = onnx_source(exported.path)
    _, report = export_engine(source, out, form, options, rebuild="again", note=notes.append)
    return len(report.parts)


def test_an_engine_that_runs_here_is_compared_too(
    exported: Exported, tmp_path: Path, opens: Callable[[Any], None], engine_backend: FakeEngineBackend
) -> None:
    opens(engine_backend)
    notes: list[str] = []
    closed = FakeEngineBackend.closed
    assert export(exported, tmp_path / "a.engine", notes) == 3
    assert notes[-1].startswith("TensorRT-RTX (peaks, FP32) against its FP32 file")
    assert FakeEngineBackend.closed == closed + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.engine", "a.engine.json"]
    check_integrity(tmp_path / "a.engine", read_record(tmp_path / "a.engine"))


@pytest.mark.parametrize("failure", ["differs", "does not load"])
def test_an_engine_that_is_wrong_does_not_replace_the_one_that_was_there(
    exported: Exported, tmp_path: Path, opens: Callable[[Any], None], engine_backend: FakeEngineBackend, failure: str
) -> None:
    before = tmp_path / "a.engine", sidecar_path(tmp_path / "a.engine")
    for path in before:
        path.write_text("the old one")
    engine_backend.moved = 0.5
    opens(engine_backend if failure == "differs" else BackendError("cannot load it"))
    with pytest.raises((ExportError, BackendError), match=r"offset by|cannot load it"):
        export(exported, tmp_path / "a.engine", [])
    assert sorted(tmp_path.iterdir()) == sorted(before)
    assert all(path.read_text() == "the old one" for path in before)


@pytest.mark.parametrize(
    ("answer", "batch", "reason"),
    [
        (BackendUnavailable("running an engine needs cuda-python"), None, "running an engine needs cuda-python"),
        (EngineMismatch("the engine does not fit this machine"), None, "does not fit this machine"),
        (None, (2, 3, 4), "it takes 2 to 4 frames a call, and the SDK gives it one"),
    ],
)
def test_an_engine_that_cannot_be_compared_here_is_kept(
    exported: Exported,
    tmp_path: Path,
    opens: Callable[[Any], None],
    answer: Exception | None,
    batch: tuple[int, int, int] | None,
    reason: str,
) -> None:
    opens(answer)
    notes: list[str] = []
    assert export(exported, tmp_path / "a.engine", notes, form=Form("tensorrt-rtx", batch=batch)) == 2
    assert notes[-1].startswith("the engine was built and not run: ") and reason in notes[-1]
    assert read_record(tmp_path / "a.engine").batch == (batch or (1, 1, 1))


def test_what_cannot_be_built_is_said_before_anything_is_done(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    notes: list[str] = []
    with pytest.raises(BackendUnavailable, match="TensorRT cannot be imported"):
        export(exported, tmp_path / "a.engine", notes, form=Form("tensorrt"))
    with pytest.raises(ConfigError, match="cannot write"):
        export(exported, tmp_path / "nowhere" / "a.engine", notes)
    assert notes == [] and list(tmp_path.iterdir()) == []
