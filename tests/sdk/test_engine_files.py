"""Engines as files: the sidecar, the hash, and which machine an engine fits."""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.engine_files import (
    ANY_GPU,
    EngineHost,
    EngineRecord,
    HostGpu,
    cache_folder,
    check_fits,
    check_integrity,
    find_gpu,
    load_runtime,
    read_record,
    sidecar_path,
    version_tuple,
    write_engine,
)
from sdk.errors import BackendUnavailable, EngineMismatch, InputError, SpecError
from tests.helpers import pose_spec

PLAN = b"a plan"
ORIN_NANO = HostGpu("Orin", "8.7", 8, "12.6")
AGX_ORIN = HostGpu("Orin", "8.7", 16, "12.6")
RTX_4090 = HostGpu("NVIDIA GeForce RTX 4090", "8.9", 128, "13.0")
RTX_2080 = HostGpu("NVIDIA GeForce RTX 2080", "7.5", 46, "13.0")
JETSON = EngineHost("tensorrt", "10.3.0", "linux-aarch64", ORIN_NANO)
DESKTOP = EngineHost("tensorrt", "10.3.0", "linux-x86_64", RTX_4090)
RTX_DESKTOP = EngineHost("tensorrt_rtx", "1.7.1", "linux-x86_64", RTX_4090)


def record(**changes: Any) -> EngineRecord:
    """Of an engine that was built on JETSON."""
    values = EngineRecord(
        spec=pose_spec(output="peaks", precision="fp16"),
        runtime="tensorrt",
        runtime_version="10.3.0",
        gpu="Orin",
        compute_capability="8.7",
        multiprocessors=8,
        platform="linux-aarch64",
        cuda="12.6",
        onnx="model.onnx",
        onnx_sha256="0" * 64,
        engine_sha256=hashlib.sha256(PLAN).hexdigest(),
        version_compatible=False,
        hardware_compatibility="none",
        dla_core=None,
        batch=(1, 1, 1),
        rebuild="centeredge export model.onnx model.engine",
    )
    return replace(values, **changes)


def desktop_record(**changes: Any) -> EngineRecord:
    values = {"gpu": RTX_4090.name, "compute_capability": "8.9", "multiprocessors": 128, "platform": "linux-x86_64"}
    return record(**{**values, **changes})


def rtx_record(**changes: Any) -> EngineRecord:
    values = {"runtime": "tensorrt_rtx", "runtime_version": "1.7.1", "gpu": ANY_GPU, "compute_capability": ""}
    return desktop_record(**{**values, "multiprocessors": 0, **changes})


def test_the_sidecar_says_what_the_engine_is(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    write_engine(PLAN, record(), engine)
    assert engine.read_bytes() == PLAN, "trtexec loads the plan as it is"
    data = json.loads((tmp_path / "model.engine.json").read_text())
    assert data["spec"]["name"] == "tiny-pose"
    assert data["runtime_version"] == "10.3.0" and data["precision"] == "fp16" and data["platform"] == "linux-aarch64"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.engine", "model.engine.json"]


@given(
    version=st.text(max_size=10),
    gpu=st.text(max_size=20),
    dla_core=st.none() | st.integers(0, 1),
    batch=st.lists(st.integers(1, 64), min_size=3, max_size=3).map(sorted).map(tuple),
    is_compatible=st.booleans(),
    level=st.sampled_from(["none", "ampere_plus", "same_compute_capability"]),
)
def test_a_record_comes_back_as_it_was(
    version: str, gpu: str, dla_core: int | None, batch: tuple[int, int, int], is_compatible: bool, level: Any
) -> None:
    written = record(
        runtime_version=version,
        gpu=gpu,
        dla_core=dla_core,
        batch=batch,
        version_compatible=is_compatible,
        hardware_compatibility=level,
    )
    assert EngineRecord.from_json(written.to_json()) == written


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("runtime", "onnxruntime"),
        ("engine_sha256", "xyz"),
        ("onnx_sha256", 3),
        ("version_compatible", "yes"),
        ("hardware_compatibility", "everything"),
        ("dla_core", -1),
        ("batch", [3, 2, 1]),
        ("batch", 1),
        ("precision", "fp32"),
        ("record_version", 2),
        ("multiprocessors", True),
        ("spec", {}),
        ("surprise", 1),
    ],
)
def test_a_damaged_sidecar_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    engine = tmp_path / "model.engine"
    write_engine(PLAN, record(), engine)
    data = json.loads(sidecar_path(engine).read_text())
    sidecar_path(engine).write_text(json.dumps({**data, field: value}))
    with pytest.raises(SpecError, match=r"model\.engine\.json: .*centeredge export"):
        read_record(engine)


@given(content=st.binary(max_size=100))
def test_any_other_content_of_the_sidecar_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    engine = tmp_path_factory.getbasetemp() / "model.engine"
    engine.write_bytes(PLAN)
    sidecar_path(engine).write_bytes(content)
    with pytest.raises((SpecError, InputError)):
        read_record(engine)


def test_an_engine_without_sidecar_is_refused_with_what_to_do(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    with pytest.raises(InputError, match="there is no engine"):
        read_record(engine)
    engine.write_bytes(PLAN)
    with pytest.raises(InputError, match=r"no model\.engine\.json beside it.*centeredge export MODEL\.onnx"):
        read_record(engine)


def test_the_checked_bytes_are_returned(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    write_engine(PLAN, record(), engine)
    assert check_integrity(engine, read_record(engine)) == PLAN


@given(position=st.integers(0, len(PLAN) - 1), flip=st.integers(1, 255))
def test_one_changed_byte_is_noticed(tmp_path_factory: pytest.TempPathFactory, position: int, flip: int) -> None:
    engine = tmp_path_factory.getbasetemp() / "changed.engine"
    plan = bytearray(PLAN)
    plan[position] ^= flip
    write_engine(bytes(plan), record(), engine)
    with pytest.raises(EngineMismatch, match=r"damaged.*`centeredge export model\.onnx model\.engine`"):
        check_integrity(engine, read_record(engine))


def test_an_interruption_between_the_two_files_leaves_no_pair_that_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "model.engine"
    write_engine(PLAN, record(), engine)
    new = b"a new plan"
    sidecar_path(engine).unlink()
    sidecar_path(engine).mkdir()  # the disk takes the plan and not its record
    with pytest.raises(OSError):
        write_engine(new, record(engine_sha256=hashlib.sha256(new).hexdigest()), engine)
    sidecar_path(engine).rmdir()
    sidecar_path(engine).write_text(record().to_json())
    with pytest.raises(EngineMismatch):
        check_integrity(engine, read_record(engine))
    assert not list(tmp_path.glob(".*.part"))


FITTING = [
    (record(), JETSON),
    (desktop_record(), DESKTOP),
    (record(version_compatible=True), replace(JETSON, runtime_version="10.16.0")),
    (record(version_compatible=True), replace(JETSON, runtime_version="11.4.1")),
    (record(version_compatible=True, runtime_version="8.6.2"), JETSON),
    (desktop_record(hardware_compatibility="ampere_plus"), replace(DESKTOP, gpu=HostGpu("A100", "8.0", 108, "13.0"))),
    (
        desktop_record(hardware_compatibility="same_compute_capability"),
        replace(DESKTOP, gpu=replace(RTX_4090, name="NVIDIA GeForce RTX 4060", multiprocessors=24)),
    ),
    (rtx_record(), RTX_DESKTOP),
    (rtx_record(), replace(RTX_DESKTOP, platform="windows-amd64")),
    (rtx_record(gpu=RTX_2080.name, compute_capability="7.5"), replace(RTX_DESKTOP, gpu=RTX_2080)),
]
NOT_FITTING = [
    (record(), replace(JETSON, runtime_version="10.3.1"), "built by TensorRT 10.3.0, this is 10.3.1"),
    (record(), replace(JETSON, gpu=AGX_ORIN), "8 multiprocessors.*this is Orin .*16 multiprocessors"),
    (record(), replace(JETSON, gpu=None), "needs an NVIDIA GPU"),
    (record(), replace(DESKTOP, gpu=ORIN_NANO), "built for linux-aarch64, this is linux-x86_64"),
    (record(), RTX_DESKTOP, "needs TensorRT, this is TensorRT-RTX"),
    (record(version_compatible=True), replace(JETSON, runtime_version="10.2.9"), "built by TensorRT 10.3.0"),
    (
        record(version_compatible=True, runtime_version="8.6.2"),
        replace(JETSON, runtime_version="11.4.1"),
        "built by TensorRT 8.6.2",
    ),
    (desktop_record(hardware_compatibility="ampere_plus"), replace(DESKTOP, gpu=RTX_2080), "8.0 and later"),
    (
        desktop_record(hardware_compatibility="same_compute_capability"),
        replace(DESKTOP, gpu=HostGpu("A100", "8.0", 108, "13.0")),
        "compute capability 8.9",
    ),
    (rtx_record(), replace(RTX_DESKTOP, runtime_version="1.8.0"), "built by TensorRT-RTX 1.7.1"),
    (rtx_record(), replace(RTX_DESKTOP, gpu=RTX_2080), "8.0 and later"),
    (rtx_record(gpu=RTX_2080.name, compute_capability="7.5"), RTX_DESKTOP, "compute capability 7.5"),
]


@pytest.mark.parametrize(("built", "machine"), FITTING)
def test_an_engine_fits(built: EngineRecord, machine: EngineHost) -> None:
    check_fits(built, machine)


@pytest.mark.parametrize(("built", "machine", "reason"), NOT_FITTING)
def test_an_engine_that_does_not_fit_says_why_and_how_to_rebuild(
    built: EngineRecord, machine: EngineHost, reason: str
) -> None:
    with pytest.raises(EngineMismatch, match=reason) as caught:
        check_fits(built, machine)
    assert "`centeredge export model.onnx model.engine`" in str(caught.value) and "\n" not in str(caught.value)


def test_a_runtime_that_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match=r"system-site-packages.*pip install tensorrt"):
        load_runtime("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendUnavailable, match="pip install tensorrt-rtx"):
        load_runtime("tensorrt_rtx")


class FakeCudaDriver:
    """The library of the CUDA driver, for a machine that has none."""

    def __init__(self, *, initialised: int = 0) -> None:
        self._initialised = initialised

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self._initialised

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = b"Orin"
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12060
        return 0

    def cuDeviceGetAttribute(self, value: Any, number: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 7, 16: 8}[number]
        return 0


def test_the_driver_is_asked_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeCudaDriver())
    assert find_gpu() == ORIN_NANO
    monkeypatch.setattr(ctypes, "CDLL", lambda name: FakeCudaDriver(initialised=100))
    assert find_gpu() is None


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("10.3.0", (10, 3, 0)),
        ("11.4.0.106", (11, 4, 0, 106)),
        ("8.6.2-1+cuda", (8, 6, 2)),
        ("1.31.1+cu13", (1, 31, 1)),
        ("10.3.0.post1", (10, 3, 0)),
        ("unknown", ()),
        ("", ()),
        (None, ()),
    ],
)
def test_versions_are_compared_by_their_numbers(text: str | None, numbers: tuple[int, ...]) -> None:
    assert version_tuple(text) == numbers


def test_the_cache_folder_follows_the_users_wish(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "centeredge" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "centeredge" / "engines"
