"""Building engines: for real with TensorRT-RTX, which needs no GPU; the other versions are stood in for by fakes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from export.engine import EngineOptions, build_engine
from export.errors import ExportError
from sdk.engine_files import HostGpu, check_integrity, read_record
from sdk.errors import BackendUnavailable, ConfigError, InputError, SpecError
from sdk.spec import ModelSpec, Precision
from tests.conftest import ROOT
from tests.export.fake_tensorrt import FakeTensorRt, FakeTensorRt8, FakeTensorRt10, FakeTensorRt11, small_onnx
from tests.helpers import tiny_spec

ORIN = HostGpu("Orin", "8.7", 8, "12.6")
RTX_2080 = HostGpu("NVIDIA GeForce RTX 2080", "7.5", 46, "13.0")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "centeredge" / "engines"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[HostGpu | None], None]:
    """Says which GPU the driver reports."""
    return lambda gpu: monkeypatch.setattr("sdk.engine_files.find_gpu", lambda: gpu)


# --- TensorRT-RTX, for real


@pytest.fixture(scope="session")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_and_its_sidecar_are_built_without_a_gpu(
    rtx: Any, tmp_path: Path, gpu: Callable[[HostGpu | None], None], precision: Precision
) -> None:
    gpu(None)
    path, out, notes = small_onnx(tmp_path, precision=precision), tmp_path / "small.engine", []
    record = build_engine(path, out, note=notes.append)

    assert read_record(out) == record
    assert check_integrity(out, record) == out.read_bytes()
    assert record.spec == tiny_spec(precision=precision)
    assert (record.runtime, record.runtime_version) == ("tensorrt_rtx", rtx.__version__)
    assert (record.gpu, record.compute_capability, record.batch) == ("any", "", (1, 1, 1))
    assert record.onnx_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record.rebuild == f"centeredge export {path} {out}"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["small.engine", "small.engine.json", "small.onnx"]
    assert any("TensorRT-RTX" in text for text in notes) and any("/" in text for text in notes[1:]), "no progress"


def test_a_turing_gpu_gets_an_engine_of_its_own(
    rtx: Any, tmp_path: Path, gpu: Callable[[HostGpu | None], None]
) -> None:
    gpu(RTX_2080)
    record = build_engine(small_onnx(tmp_path), tmp_path / "small.engine")
    assert (record.gpu, record.compute_capability) == (RTX_2080.name, "7.5")


@pytest.mark.parametrize(("wish", "batch"), [(None, (1, 2, 4)), ((2, 2, 8), (2, 2, 8))])
def test_a_dynamic_batch_comes_from_the_file_or_from_the_user(
    rtx: Any, tmp_path: Path, wish: tuple[int, int, int] | None, batch: tuple[int, int, int]
) -> None:
    path = small_onnx(tmp_path, batch="1,2,4")
    record = build_engine(path, tmp_path / "small.engine", EngineOptions(batch=wish))
    assert record.batch == batch
    assert ("--dynamic-batch 2,2,8" in record.rebuild) == (wish is not None)


def test_what_the_parser_refuses_is_said_in_one_line(rtx: Any, tmp_path: Path) -> None:
    path = small_onnx(tmp_path, operator="NoSuchOperator")
    with pytest.raises(ExportError, match=r"node 'active', operator NoSuchOperator: .*--target tensorrt-rtx") as caught:
        build_engine(path, tmp_path / "small.engine")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*engine*"))


def test_a_failed_build_leaves_the_old_engine(rtx: Any, tmp_path: Path) -> None:
    out = tmp_path / "small.engine"
    record = build_engine(small_onnx(tmp_path), out)
    with pytest.raises(ExportError):
        build_engine(small_onnx(tmp_path, operator="NoSuchOperator"), out)
    assert read_record(out) == record
    check_integrity(out, record)


def test_an_interrupt_ends_the_build(rtx: Any, tmp_path: Path) -> None:
    def note(text: str) -> None:
        if "/" in text.rsplit(" ", 1)[-1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(small_onnx(tmp_path), tmp_path / "small.engine", note=note)
    assert not list(tmp_path.glob("*engine*"))


def test_weights_in_a_file_beside_are_taken_and_belong_to_the_hash(rtx: Any, tmp_path: Path) -> None:
    path = small_onnx(tmp_path, weights_in="weights.bin")
    record = build_engine(path, tmp_path / "small.engine")
    weights = (tmp_path / "weights.bin").read_bytes()
    assert record.onnx_sha256 == hashlib.sha256(path.read_bytes() + weights).hexdigest()


@pytest.mark.parametrize("options", [EngineOptions(version_compatible=True), EngineOptions(dla_core=0)])
def test_options_that_tensorrt_rtx_lacks_are_refused(rtx: Any, tmp_path: Path, options: EngineOptions) -> None:
    with pytest.raises(ConfigError, match=r"TensorRT-RTX .* (has no|knows no)"):
        build_engine(small_onnx(tmp_path), tmp_path / "small.engine", options)


def test_no_timing_cache_where_it_does_nothing(rtx: Any, tmp_path: Path, cache: Path) -> None:
    build_engine(small_onnx(tmp_path), tmp_path / "small.engine")
    assert not cache.exists()


# --- What is refused before any runtime is asked


@pytest.mark.parametrize("location", ["/etc/hostname", "../weights.bin", "sub/../../weights.bin", "link.bin"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(b"secret")
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    path = small_onnx(folder, weights_in="weights.bin")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="outside its folder, which is refused"):
        build_engine(path, tmp_path / "small.engine")


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    path = small_onnx(tmp_path, weights_in="weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(InputError, match=r"'weights\.bin', which is not there"):
        build_engine(path, tmp_path / "small.engine")


def test_the_form_of_another_runtime_is_refused_with_the_command_that_makes_the_right_one(tmp_path: Path) -> None:
    path = small_onnx(tmp_path, target="onnxruntime")
    with pytest.raises(ExportError, match=r"`centeredge export .*small\.onnx .*\.tensorrt\.onnx --target tensorrt`"):
        build_engine(path, tmp_path / "small.engine")


def test_a_file_that_is_no_model_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(b"no protobuf at all")
    with pytest.raises(InputError, match="not an ONNX file"):
        build_engine(path, tmp_path / "small.engine")
    path.write_bytes(helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString())
    with pytest.raises(SpecError, match="no ModelSpec"):
        build_engine(path, tmp_path / "small.engine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workspace_mib": 0}, "--workspace is 0 MiB"),
        ({"optimization_level": 6}, "expected 0 to 5"),
        ({"hardware_compatibility": "all"}, "--hardware is 'all'"),
        ({"dla_core": -1}, "--dla-core is -1"),
        ({"batch": (4, 2, 1)}, "the batch is 4,2,1"),
        ({"batch": (0, 1, 1)}, "the batch is 0,1,1"),
        ({"dla_core": 0, "batch": (1, 2, 4)}, "one fixed batch"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineOptions(**changes)


def test_the_rebuild_command_has_every_option(tmp_path: Path) -> None:
    options = EngineOptions(
        workspace_mib=512,
        optimization_level=5,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
        batch=(1, 2, 4),
    )
    assert options.command(Path("a model.onnx"), Path("m.engine")) == (
        "centeredge export 'a model.onnx' m.engine --workspace 512 --optimization-level 5 --version-compatible "
        "--hardware ampere_plus --dynamic-batch 1,2,4"
    )


def test_neither_torch_nor_onnx_is_needed() -> None:
    script = (
        "import sys; sys.modules.update(torch=None, onnx=None, onnxruntime=None, tensorrt=None)\n"
        "import export.engine, export.engine_cache"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


# --- TensorRT 8.6, 10 and 11, which cannot be installed here


@pytest.fixture
def install(
    monkeypatch: pytest.MonkeyPatch, gpu: Callable[[HostGpu | None], None]
) -> Callable[[FakeTensorRt], FakeTensorRt]:
    """Puts a version of TensorRT in place, on an Orin."""
    gpu(ORIN)

    def put(runtime: FakeTensorRt) -> FakeTensorRt:
        monkeypatch.setitem(sys.modules, "tensorrt", runtime)
        return runtime

    return put


Install = Callable[[FakeTensorRt], FakeTensorRt]


def test_8_takes_explicit_batch_and_says_by_flags_what_the_graph_says_by_types(
    install: Install, tmp_path: Path
) -> None:
    runtime = install(FakeTensorRt8("8.6.2", half=True))
    path = small_onnx(tmp_path, target="tensorrt-8", precision="fp16")
    record = build_engine(path, tmp_path / "small.engine")

    assert runtime.creation_flags == 1 << 0
    assert runtime.configs[0].flags == {"FP16", "OBEY_PRECISION_CONSTRAINTS"}
    types = runtime.DataType
    pinned = {name for name, layer in runtime.layers.items() if layer.precision == types.FLOAT}
    assert pinned == {"heatmap", "topk"}, "FP32 in the graph, and neither a cast nor INT8"
    assert runtime.layers["topk"].output_types == {0: types.FLOAT}, "indices stay whole numbers"
    assert runtime.content == path.read_bytes()
    assert (record.runtime_version, record.gpu, record.multiprocessors) == ("8.6.2", "Orin", 8)


def test_8_allows_int8_for_a_quantised_graph_and_no_fp16_that_it_does_not_have(
    install: Install, tmp_path: Path
) -> None:
    runtime = install(FakeTensorRt8("8.6.2"))
    build_engine(small_onnx(tmp_path, target="tensorrt-8", precision="int8"), tmp_path / "small.engine")
    assert runtime.configs[0].flags == {"INT8"}
    assert all(layer.precision is None for layer in runtime.layers.values())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("fake", "version", "creation_flags"), [(FakeTensorRt10, "10.3.0", 1 << 1), (FakeTensorRt11, "11.4.0.106", 0)]
)
def test_10_and_11_take_types_from_the_graph_alone(
    install: Install,
    tmp_path: Path,
    fake: type[FakeTensorRt],
    version: str,
    creation_flags: int,
    precision: Precision,
) -> None:
    runtime = install(fake(version, half=precision == "fp16"))
    build_engine(small_onnx(tmp_path, target="tensorrt", precision=precision), tmp_path / "small.engine")
    assert runtime.creation_flags == creation_flags
    assert runtime.configs[0].flags == set(), "FP32 means FP32, in islands too"
    assert "progress_monitor" in runtime.configs[0].values
    assert all(layer.precision is None for layer in runtime.layers.values())


@pytest.mark.parametrize("runtime", [FakeTensorRt8("8.6.2"), FakeTensorRt10("10.3.0"), FakeTensorRt11("11.4.0")])
def test_options_reach_the_builder_and_the_record(install: Install, tmp_path: Path, runtime: FakeTensorRt) -> None:
    install(runtime)
    options = EngineOptions(
        workspace_mib=512, optimization_level=2, version_compatible=True, hardware_compatibility="ampere_plus"
    )
    record = build_engine(small_onnx(tmp_path, target="tensorrt-8"), tmp_path / "small.engine", options)
    config = runtime.configs[0]
    assert config.limits == {runtime.MemoryPoolType.WORKSPACE: 512 << 20}
    assert config.values["builder_optimization_level"] == 2
    assert config.values["hardware_compatibility_level"] == runtime.HardwareCompatibilityLevel.AMPERE_PLUS
    assert "VERSION_COMPATIBLE" in config.flags
    assert record.version_compatible and record.hardware_compatibility == "ampere_plus"


def test_a_level_that_the_version_does_not_know_is_refused(install: Install, tmp_path: Path) -> None:
    install(FakeTensorRt8("8.6.2"))
    options = EngineOptions(hardware_compatibility="same_compute_capability")
    with pytest.raises(ConfigError, match=r"TensorRT 8\.6\.2 does not know --hardware same_compute_capability"):
        build_engine(small_onnx(tmp_path, target="tensorrt-8"), tmp_path / "small.engine", options)


def test_a_jetson_has_no_hardware_compatibility(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(FakeTensorRt10("10.3.0"))
    monkeypatch.setattr("export.engine.is_jetson", lambda: True)
    options = EngineOptions(hardware_compatibility="ampere_plus")
    with pytest.raises(ConfigError, match="not supported on a Jetson"):
        build_engine(small_onnx(tmp_path, target="tensorrt"), tmp_path / "small.engine", options)


def test_a_symbolic_batch_gets_a_profile(install: Install, tmp_path: Path) -> None:
    runtime = install(FakeTensorRt10("10.3.0", batch=-1))
    build_engine(small_onnx(tmp_path, target="tensorrt", batch="1,2,4"), tmp_path / "small.engine")
    assert runtime.configs[0].profiles == [{"frame": ((1, 64, 64, 3), (2, 64, 64, 3), (4, 64, 64, 3))}]


def test_a_batch_is_asked_of_the_right_files_only(install: Install, tmp_path: Path) -> None:
    install(FakeTensorRt10("10.3.0"))
    with pytest.raises(ConfigError, match="exported with it"):
        build_engine(small_onnx(tmp_path, target="tensorrt"), tmp_path / "a.engine", EngineOptions(batch=(1, 2, 4)))
    install(FakeTensorRt10("10.3.0", batch=-1))
    with pytest.raises(ConfigError, match="say how many"):
        build_engine(small_onnx(tmp_path, target="tensorrt"), tmp_path / "a.engine")


def test_timings_are_kept_for_the_next_build(install: Install, tmp_path: Path, cache: Path) -> None:
    runtime = install(FakeTensorRt10("10.3.0"))
    path = small_onnx(tmp_path, target="tensorrt")
    for _ in range(2):
        build_engine(path, tmp_path / "small.engine")
    timings = cache / "tensorrt-10.3.0-orin-8.7-8.timings"
    assert timings.read_bytes() == b"measured;measured;"
    for content in (b"damaged", b"other GPU"):
        timings.write_bytes(content)
        notes: list[str] = []
        build_engine(path, tmp_path / "small.engine", note=notes.append)
        assert timings.read_bytes() == b"measured;" and any("measuring afresh" in text for text in notes)
    own = EngineOptions(timing_cache=tmp_path / "own.timings")
    build_engine(path, tmp_path / "small.engine", own)
    assert own.timing_cache is not None and own.timing_cache.read_bytes() == b"measured;"
    assert len(runtime.configs) == 5


def test_timings_that_cannot_be_kept_are_no_failure(install: Install, tmp_path: Path, cache: Path) -> None:
    install(FakeTensorRt10("10.3.0"))
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    notes: list[str] = []
    build_engine(small_onnx(tmp_path, target="tensorrt"), tmp_path / "small.engine", note=notes.append)
    assert any("the timings are not kept" in text for text in notes)


@pytest.mark.parametrize(
    ("runtime", "creation_flags", "flags"),
    [
        (FakeTensorRt8("8.6.2", half=True), 1 << 0, {"FP16", "OBEY_PRECISION_CONSTRAINTS"}),
        (FakeTensorRt10("10.3.0", half=True), 0, {"FP16", "OBEY_PRECISION_CONSTRAINTS"}),
        (FakeTensorRt11("11.4.1", half=True), 0, set()),
    ],
)
def test_dla_takes_what_it_can_and_names_what_it_cannot(
    install: Install, tmp_path: Path, runtime: FakeTensorRt, creation_flags: int, flags: set[str]
) -> None:
    install(runtime)
    notes: list[str] = []
    path = small_onnx(tmp_path, target="tensorrt-8", precision="fp16")
    record = build_engine(path, tmp_path / "small.engine", EngineOptions(dla_core=1), note=notes.append)
    config = runtime.configs[0]
    assert runtime.creation_flags == creation_flags
    assert config.flags == {"GPU_FALLBACK", *flags}
    assert config.values["DLA_core"] == 1 and config.values["default_device_type"] == runtime.DeviceType.DLA
    assert "DLA core 1 (experimental): 3 of 6 layers fit" in notes
    assert "  on the GPU instead, TOPK: topk" in notes
    assert record.dla_core == 1 and "--dla-core 1" in record.rebuild


def test_dla_refuses_what_it_cannot_do(install: Install, tmp_path: Path) -> None:
    def build(precision: Precision, *, core: int = 0, batch: str | None = None) -> None:
        path = small_onnx(tmp_path, target="tensorrt", precision=precision, batch=batch)
        build_engine(path, tmp_path / "small.engine", EngineOptions(dla_core=core))

    install(FakeTensorRt10("10.3.0", half=True))
    with pytest.raises(ConfigError, match="computes in FP16 and INT8"):
        build("fp32")
    with pytest.raises(ConfigError, match="does not take ranges from the file"):
        build("int8")
    with pytest.raises(ConfigError, match="one fixed batch"):
        build("fp16", batch="1,2,4")
    with pytest.raises(ConfigError, match=r"--dla-core is 2, this machine has 2"):
        build("fp16", core=2)


def test_a_build_that_fails_says_why_in_one_line(install: Install, tmp_path: Path) -> None:
    install(FakeTensorRt10("10.3.0", plan=None))
    with pytest.raises(ExportError, match=r"cannot build small\.onnx: Error Code 2: OutOfMemory; if memory"):
        build_engine(small_onnx(tmp_path, target="tensorrt"), tmp_path / "small.engine")
    assert not list(tmp_path.glob("*engine*"))


@pytest.mark.parametrize(
    ("runtime", "target", "message"),
    [
        (FakeTensorRt8("8.6.2"), "tensorrt", r"10\.1 and later, this is TensorRT 8\.6\.2; .*--target tensorrt-8"),
        (FakeTensorRt8("8.5.2"), "tensorrt-8", r"8\.6 and later, this is TensorRT 8\.5\.2"),
    ],
)
def test_a_version_that_is_too_old_is_refused(
    install: Install, tmp_path: Path, runtime: FakeTensorRt, target: str, message: str
) -> None:
    install(runtime)
    with pytest.raises(BackendUnavailable, match=message):
        build_engine(small_onnx(tmp_path, target=target), tmp_path / "small.engine")


def test_standard_tensorrt_needs_a_gpu(install: Install, tmp_path: Path, gpu: Callable[[HostGpu | None], None]) -> None:
    install(FakeTensorRt11("11.4.0"))
    gpu(None)
    with pytest.raises(BackendUnavailable, match="no NVIDIA GPU answers here"):
        build_engine(small_onnx(tmp_path, target="tensorrt"), tmp_path / "small.engine")


def test_a_missing_tensorrt_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match="system-site-packages"):
        build_engine(small_onnx(tmp_path, target="tensorrt"), tmp_path / "small.engine")


def test_an_output_that_cannot_be_written_is_refused_before_the_work(install: Install, tmp_path: Path) -> None:
    runtime = install(FakeTensorRt10("10.3.0"))
    path = small_onnx(tmp_path, target="tensorrt")
    (tmp_path / "folder.engine").mkdir()
    for out, message in [
        (tmp_path / "missing" / "small.engine", "choose a folder"),
        (tmp_path / "small.plan", r"expected \.engine"),
        (tmp_path / "folder.engine", "it is a folder"),
    ]:
        with pytest.raises(ConfigError, match=message):
            build_engine(path, out)
    assert not runtime.configs


def test_the_sidecar_holds_the_whole_spec(install: Install, tmp_path: Path) -> None:
    install(FakeTensorRt10("10.3.0"))
    build_engine(small_onnx(tmp_path, target="tensorrt"), tmp_path / "small.engine")
    data = json.loads((tmp_path / "small.engine.json").read_text())
    assert ModelSpec.from_dict(data["spec"]) == replace(tiny_spec(), precision="fp32")
