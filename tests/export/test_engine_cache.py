"""Engines that are built once: found again, rebuilt where they do not fit, and safe against company."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.engine_cache import bundled_engine, cached_engine, engine_or_none
from sdk.engine_files import HostGpu, check_integrity, read_record, sidecar_path
from sdk.errors import BackendUnavailable
from tests.export.fake_tensorrt import FakeTensorRt10, small_onnx
from tests.fakes_tensorrt import FakeDevice, install_cuda

ORIN_NANO = HostGpu("Orin", "8.7", 8, "12.6")
AGX_ORIN = HostGpu("Orin", "8.7", 16, "12.6")


class FakeSlowTensorRt(FakeTensorRt10):
    """A version whose builds take a while."""

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        time.sleep(0.2)
        return super().Builder(logger)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "centeredge" / "engines"


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    install_cuda(monkeypatch, FakeDevice())


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[HostGpu | None], None]:
    """Says which GPU the driver reports."""

    def put(gpu: HostGpu | None) -> None:
        for module in ("sdk.engine_files", "export.engine_cache"):
            monkeypatch.setattr(f"{module}.find_gpu", lambda: gpu)

    return put


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, gpu: Callable[[HostGpu | None], None]) -> FakeTensorRt10:
    """TensorRT 10.3 on an Orin Nano."""
    gpu(ORIN_NANO)
    runtime = FakeTensorRt10("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", runtime)
    return runtime


@pytest.fixture
def onnx_path(tmp_path: Path) -> Path:
    return small_onnx(tmp_path, target="tensorrt")


def test_an_engine_is_built_once(runtime: FakeTensorRt10, onnx_path: Path, cache: Path) -> None:
    notes: list[str] = []
    first = cached_engine(onnx_path, note=notes.append)
    assert first.parent == cache and first.name.startswith("small-") and "10.3.0-orin-8.7-8" in first.name
    assert "building the engine of small.onnx once for this machine; this can take minutes" in notes
    notes.clear()
    assert cached_engine(onnx_path, note=notes.append) == first
    assert len(runtime.configs) == 1 and notes == []


def test_with_the_real_builder_a_second_run_finds_the_engine(
    tmp_path: Path, gpu: Callable[[HostGpu | None], None]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    gpu(HostGpu("NVIDIA GeForce RTX 4090", "8.9", 128, "13.0"))
    path = small_onnx(tmp_path)
    engine = cached_engine(path)
    written_ns = engine.stat().st_mtime_ns
    assert cached_engine(path) == engine and engine.stat().st_mtime_ns == written_ns
    check_integrity(engine, read_record(engine))


@pytest.mark.parametrize("damage", ["plan", "sidecar", "no sidecar"])
def test_a_damaged_engine_is_built_again(runtime: FakeTensorRt10, onnx_path: Path, damage: str) -> None:
    engine = cached_engine(onnx_path)
    if damage == "plan":
        engine.write_bytes(b"cut")
    elif damage == "sidecar":
        sidecar_path(engine).write_text("{}")
    else:
        sidecar_path(engine).unlink()
    notes: list[str] = []
    assert cached_engine(onnx_path, note=notes.append) == engine
    check_integrity(engine, read_record(engine))
    assert len(runtime.configs) == 2 and any("is built again" in text for text in notes)


def test_another_gpu_version_or_model_gets_an_engine_of_its_own(
    runtime: FakeTensorRt10, onnx_path: Path, gpu: Callable[[HostGpu | None], None]
) -> None:
    engines = {cached_engine(onnx_path)}
    gpu(AGX_ORIN)
    engines.add(cached_engine(onnx_path))
    runtime.__version__ = "10.16.0"
    engines.add(cached_engine(onnx_path))
    small_onnx(onnx_path.parent, target="tensorrt", precision="fp16")
    engines.add(cached_engine(onnx_path))
    assert len(engines) == len(runtime.configs) == 4


@pytest.mark.skipif(os.name == "nt", reason="Windows has no flock: both build, and the last to finish stays")
def test_two_at_once_build_once(onnx_path: Path, runtime: FakeTensorRt10, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = FakeSlowTensorRt("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", slow)
    found: list[Path] = []
    notes: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(cached_engine(onnx_path, note=notes.append))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(found) == 3 and len(set(found)) == 1 and len(slow.configs) == 1
    assert any("another process is building" in text for text in notes)


def test_a_failed_build_falls_back_with_a_notice(runtime: FakeTensorRt10, onnx_path: Path, cache: Path) -> None:
    runtime.plan = None
    notes: list[str] = []
    assert engine_or_none(onnx_path, note=notes.append) is None
    assert notes[-1].startswith("running on the CPU, without TensorRT: TensorRT 10.3.0 cannot build small.onnx")
    assert not list(cache.glob("*.engine*"))


def test_an_unwritable_cache_falls_back_with_a_notice(runtime: FakeTensorRt10, onnx_path: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    notes: list[str] = []
    assert engine_or_none(onnx_path, note=notes.append) is None
    assert "set XDG_CACHE_HOME" in notes[-1]


def test_without_a_gpu_nothing_is_built_and_nothing_said(
    runtime: FakeTensorRt10, onnx_path: Path, gpu: Callable[[HostGpu | None], None]
) -> None:
    gpu(None)
    notes: list[str] = []
    assert engine_or_none(onnx_path, note=notes.append) is None
    assert notes == [] and runtime.configs == []


def test_a_gpu_without_tensorrt_is_told_what_is_missing(
    onnx_path: Path, gpu: Callable[[HostGpu | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(ORIN_NANO)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable):
        cached_engine(onnx_path)
    notes: list[str] = []
    assert engine_or_none(onnx_path, note=notes.append) is None
    assert "system-site-packages" in notes[-1]


def test_what_could_not_be_run_is_not_built(
    runtime: FakeTensorRt10, onnx_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_cuda(monkeypatch, None)
    notes: list[str] = []
    assert engine_or_none(onnx_path, note=notes.append) is None
    assert "pip install 'cuda-python" in notes[-1] and runtime.configs == []


def test_a_missing_bundled_file_falls_back_with_a_notice(
    runtime: FakeTensorRt10, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("export.engine_cache.BUNDLED_ONNX", tmp_path / "not there.onnx")
    notes: list[str] = []
    assert bundled_engine(note=notes.append) is None
    assert "not there.onnx" in notes[-1]
