"""The calibrator for TensorRT 8 to 10, on fakes: what it gives, in which order, and what it keeps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from calibration.errors import CalibrationError
from calibration.methods import Range
from calibration.tensorrt_cache import read_cache, write_cache
from export.calibrator import entropy_calibrator, photograph_frames
from export.engine import EngineOptions, build_engine
from sdk.backends.cuda import Cuda, open_cuda
from sdk.engine_files import HostGpu, read_record
from sdk.errors import BackendError, BackendUnavailable, ConfigError, InputError, SourceError
from sdk.preprocessing import prepare
from sdk.scenes import random_scene
from sdk.sources.images import folder_images, read_image
from sdk.spec import Precision
from tests.export.fake_tensorrt import (
    FakeLayer,
    FakeTensor,
    FakeTensorRt,
    FakeTensorRt8,
    FakeTensorRt10,
    FakeTensorRt11,
    calibrate,
    small_onnx,
)
from tests.fakes_tensorrt import CUDA_PYTHON, PYCUDA, FakeDevice, install_cuda
from tests.helpers import tiny_spec

VERSIONS = [(FakeTensorRt8, "8.6.2"), (FakeTensorRt10, "10.3.0")]
Frame = npt.NDArray[np.uint8]
Install = Callable[[FakeTensorRt], FakeTensorRt]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ranges.cache"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """A GPU with CUDA's bindings."""
    device = FakeDevice()
    install_cuda(monkeypatch, device)
    return device


@pytest.fixture
def cuda(device: FakeDevice) -> Cuda:
    return open_cuda()


def numbered_frames(count: int, given: list[int]) -> Iterator[Frame]:
    for number in range(count):
        given.append(number)
        yield np.full((1, 64, 64, 3), number, np.uint8)


# --- The calibrator


@pytest.mark.parametrize(("fake", "version"), VERSIONS)
@pytest.mark.parametrize("binding", [CUDA_PYTHON, PYCUDA])
@pytest.mark.parametrize("integrated", [False, True])
def test_every_frame_is_given_once_in_order(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    fake: type[FakeTensorRt],
    version: str,
    binding: str,
    integrated: bool,
) -> None:
    device = FakeDevice(integrated=integrated and binding == CUDA_PYTHON)
    install_cuda(monkeypatch, device, binding)
    runtime, given = fake(version), []
    runtime.device = device
    calibrator = entropy_calibrator(runtime, numbered_frames(5, given), path, cuda=open_cuda())
    assert isinstance(calibrator, runtime.IInt8EntropyCalibrator2)
    calibrate(runtime, calibrator)
    assert given == [0, 1, 2, 3, 4]
    assert [sorted(set(frame.ravel().tolist())) for frame in runtime.frames] == [[0], [1], [2], [3], [4]]
    assert calibrator.get_batch(["frame"]) is None, "a second pass gets nothing twice"
    calibrator.finish()
    assert not device.held, "memory is freed"


def test_what_tensorrt_measured_is_kept_and_serves_the_next_build_alone(path: Path, device: FakeDevice) -> None:
    runtime = FakeTensorRt10("10.3.0")
    runtime.device = device
    first = entropy_calibrator(runtime, numbered_frames(3, []), path, cuda=open_cuda())
    calibrate(runtime, first)
    first.finish()
    assert path.read_bytes() == runtime.scales
    assert list(read_cache(path)) == ["frame", "(Unnamed Layer* 0) [Cast]_output"]

    again = FakeTensorRt10("10.3.0")
    second = entropy_calibrator(again, None, path)
    calibrate(again, second)
    second.finish()
    assert again.scales == runtime.scales and not again.frames


@pytest.mark.parametrize(("fake", "version"), VERSIONS)
@pytest.mark.parametrize("header", ["TRT-8502-EntropyCalibration2", "TRT-101602-MinMaxCalibration"])
def test_a_cache_of_another_version_is_given_as_one_of_this(
    path: Path, fake: type[FakeTensorRt], version: str, header: str
) -> None:
    content = f"{header}\nframe: 40008102\nstem.0.2.Relu: 3d0b7086\n"
    path.write_text(content)
    runtime = fake(version)
    calibrate(runtime, entropy_calibrator(runtime, None, path))
    assert runtime.scales.split(b"\n")[1:] == [b"frame: 40008102", b"stem.0.2.Relu: 3d0b7086", b""]
    assert path.read_text() == content, "the file is the user's"


def test_frames_are_not_looked_at_where_there_is_a_cache(path: Path, cuda: Cuda) -> None:
    path.write_text("TRT-8502-EntropyCalibration2\nframe: 40008102\n")
    given: list[int] = []
    runtime = FakeTensorRt8("8.6.2")
    calibrate(runtime, entropy_calibrator(runtime, numbered_frames(3, given), path, cuda=cuda))
    assert runtime.scales and not given


def test_an_error_among_the_frames_is_raised_at_the_end_and_nothing_is_kept(path: Path, device: FakeDevice) -> None:
    def frames() -> Iterator[Frame]:
        yield from numbered_frames(2, [])
        raise SourceError("the third is damaged")

    runtime = FakeTensorRt8("8.6.2")
    runtime.device = device
    calibrator = entropy_calibrator(runtime, frames(), path, cuda=open_cuda())
    calibrate(runtime, calibrator)
    assert len(runtime.frames) == 2, "TensorRT believes that there are no more"
    with pytest.raises(SourceError, match="the third is damaged"):
        calibrator.finish()
    assert not path.exists() and not device.held


@pytest.mark.parametrize("failing", ["cudaMalloc", "cudaMemcpyAsync"])
def test_an_error_of_cuda_is_raised_at_the_end(path: Path, device: FakeDevice, failing: str) -> None:
    device.failing = {failing}
    runtime = FakeTensorRt8("8.6.2")
    runtime.device = device
    calibrator = entropy_calibrator(runtime, numbered_frames(2, []), path, cuda=open_cuda())
    calibrate(runtime, calibrator)
    with pytest.raises(BackendError, match=failing):
        calibrator.finish()
    assert not path.exists() and not device.held


def test_a_cache_that_cannot_be_written_is_said_at_the_end(tmp_path: Path, device: FakeDevice) -> None:
    runtime = FakeTensorRt8("8.6.2")
    runtime.device = device
    path = tmp_path / "no folder" / "ranges.cache"
    calibrator = entropy_calibrator(runtime, numbered_frames(2, []), path, cuda=open_cuda())
    calibrate(runtime, calibrator)
    with pytest.raises(ConfigError, match=r"cannot write .*choose a folder"):
        calibrator.finish()


def test_a_cache_that_tensorrt_does_not_take_is_an_error(path: Path) -> None:
    path.write_text("TRT-8502-EntropyCalibration2\nframe: 40008102\n")
    calibrator = entropy_calibrator(FakeTensorRt8("8.6.2"), None, path)
    assert calibrator.get_batch(["frame"]) is None
    with pytest.raises(CalibrationError, match=r"does not take the ranges of .*ranges\.cache"):
        calibrator.finish()


def test_what_cannot_be_calibrated_is_refused_at_once(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"TensorRT 11\.4\.0 has no calibrators, .*--precision int8 --ranges"):
        entropy_calibrator(FakeTensorRt11("11.4.0"), None, path)
    with pytest.raises(InputError, match=r"cannot read .*ranges"):
        entropy_calibrator(FakeTensorRt8("8.6.2"), None, path)
    with pytest.raises(ConfigError, match="no CUDA"):
        entropy_calibrator(FakeTensorRt8("8.6.2"), numbered_frames(2, []), path)
    path.write_text("TRT-8502-EntropyCalibration2\nframe: 4000\n")
    with pytest.raises(CalibrationError, match="line 2"):
        entropy_calibrator(FakeTensorRt8("8.6.2"), None, path)


# --- Photographs


@pytest.fixture
def photographs_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(1, 12):
        assert cv2.imwrite(str(folder / f"{number}.png"), random_scene(np.random.default_rng(number), (90, 50))[0])
    return folder


def test_photographs_go_through_the_preprocessing_of_the_sdk_in_natural_order(photographs_folder: Path) -> None:
    spec = tiny_spec()
    frames = list(photograph_frames(photographs_folder, spec))
    paths = folder_images(photographs_folder)
    assert [path.name for path in paths[:3]] == ["1.png", "2.png", "3.png"] and len(frames) == 11
    for frame, path in zip(frames, paths, strict=True):
        np.testing.assert_array_equal(frame, prepare(read_image(path), spec).tensor)


def test_one_bad_photograph_of_many_is_named_and_left_out(photographs_folder: Path) -> None:
    for number in range(12, 26):
        (photographs_folder / f"{number}.png").write_bytes((photographs_folder / "1.png").read_bytes())
    (photographs_folder / "3.png").write_bytes(b"no picture")
    notes: list[str] = []
    assert len(list(photograph_frames(photographs_folder, tiny_spec(), note=notes.append))) == 24
    assert len(notes) == 1 and notes[0].startswith("3.png was left out")


# --- Engines


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: FakeDevice) -> Install:
    """Puts a version of TensorRT in place, on an Orin."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sdk.engine_files.find_gpu", lambda: HostGpu("Orin", "8.7", 8, "12.6"))

    def put(runtime: FakeTensorRt) -> FakeTensorRt:
        runtime.device = device
        monkeypatch.setitem(sys.modules, "tensorrt", runtime)
        return runtime

    return put


def small_cache(path: Path, *names: str) -> Path:
    ranges = {name: Range(-2.0, 2.0) for name in names or ("planes", "dequantised", "stem", "x")}
    write_cache(ranges, path, tensorrt_version="8.5.2")
    return path


@pytest.mark.parametrize(("fake", "version"), VERSIONS)
@pytest.mark.parametrize(("precision", "flags"), [("fp32", set()), ("fp16", {"FP16", "TF32"})])
def test_an_engine_takes_its_ranges_from_a_cache(
    install: Install,
    tmp_path: Path,
    path: Path,
    fake: type[FakeTensorRt],
    version: str,
    precision: Precision,
    flags: set[str],
) -> None:
    runtime = install(fake(version, half=precision == "fp16"))
    options = EngineOptions(calibration_cache=small_cache(path))
    out = tmp_path / "small.engine"
    record = build_engine(small_onnx(tmp_path, target="tensorrt-8", precision=precision), out, options)
    config = runtime.configs[0]
    assert config.flags - {"TF32"} == {"INT8", "OBEY_PRECISION_CONSTRAINTS"} | flags - {"TF32"}
    assert runtime.creation_flags in (0, 1), "weakly typed: EXPLICIT_BATCH at most"
    assert runtime.scales.split(b"\n")[1:] == path.read_bytes().split(b"\n")[1:]
    assert record == read_record(out) and record.precision == "int8"
    assert record.rebuild.endswith(f"--calibration-cache {path}")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_heads_peaks_and_sampling_positions_stay_in_float_whatever_has_ranges(
    install: Install, tmp_path: Path, path: Path, precision: Precision
) -> None:
    runtime = install(FakeTensorRt8("8.6.2"))
    types, kinds = runtime.DataType, runtime.LayerType
    low = types.HALF if precision == "fp16" else types.FLOAT

    def tensor(name: str, dtype: Any = low) -> FakeTensor:
        return FakeTensor(name, dtype)

    chain = [
        FakeLayer("up.conv_offset_mask.Conv", kinds.CONVOLUTION, [tensor("x")], [tensor("offsets")]),
        FakeLayer("up.DeformConv", kinds.CONVOLUTION, [tensor("offsets")], [tensor("up")]),
        FakeLayer("outputs.Conv", kinds.CONVOLUTION, [tensor("up")], [tensor("outputs.Conv")]),
        FakeLayer("outputs.Split", kinds.SLICE, [tensor("outputs.Conv")], [tensor("offset.dense")]),
        FakeLayer("peaks.TopK", kinds.TOPK, [tensor("offset.dense")], [tensor("best"), tensor("cells", types.INT32)]),
        FakeLayer("peaks.Cast", kinds.CAST, [tensor("best")], [tensor("peaks.Cast")]),
        FakeLayer("peaks.Split", kinds.SLICE, [tensor("peaks.Cast")], [tensor("offset")]),
    ]
    runtime.layers = {layer.name: layer for layer in chain}
    options = EngineOptions(calibration_cache=small_cache(path, "x", "offsets", "up", "outputs.Conv", "offset.dense"))
    build_engine(small_onnx(tmp_path, target="tensorrt-8", precision=precision), tmp_path / "small.engine", options)
    precisions = {name: layer.precision for name, layer in runtime.layers.items()}
    assert precisions == {
        "up.conv_offset_mask.Conv": low,
        "up.DeformConv": None,
        "outputs.Conv": low,
        "outputs.Split": low,
        "peaks.TopK": low,
        "peaks.Cast": None,
        "peaks.Split": low,
    }
    assert runtime.layers["peaks.TopK"].output_types == {0: low}, "indices stay whole numbers"


def test_an_engine_is_calibrated_on_photographs_once_and_then_from_the_cache(
    install: Install, tmp_path: Path, path: Path, photographs_folder: Path
) -> None:
    source = small_onnx(tmp_path, target="tensorrt-8", precision="fp16")
    options = EngineOptions(calibration_cache=path, calibration_images=photographs_folder)
    runtime = install(FakeTensorRt10("10.3.0", half=True))
    notes: list[str] = []
    record = build_engine(source, tmp_path / "small.engine", options, note=notes.append)
    expected = list(photograph_frames(photographs_folder, tiny_spec()))
    np.testing.assert_array_equal(np.stack(runtime.frames), np.stack(expected))
    assert path.read_bytes() == runtime.scales
    assert any("measuring INT8 ranges" in text for text in notes)
    assert record.rebuild.endswith(f"--calibration-cache {path} --calibration-images {photographs_folder}")

    small_cache(path)
    runtime = install(FakeTensorRt10("10.3.0", half=True))
    build_engine(source, tmp_path / "small.engine", options)
    assert not runtime.frames and runtime.scales


def test_a_failed_calibration_fails_the_build(install: Install, tmp_path: Path, path: Path) -> None:
    install(FakeTensorRt8("8.6.2"))
    folder = tmp_path / "bad"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(b"no picture")
    options = EngineOptions(calibration_cache=path, calibration_images=folder)
    with pytest.raises(CalibrationError, match="cannot be read"):
        build_engine(small_onnx(tmp_path, target="tensorrt-8"), tmp_path / "small.engine", options)
    assert not path.exists() and not list(tmp_path.glob("*engine*"))


def test_a_cache_of_another_model_is_refused_and_a_gap_is_named(install: Install, tmp_path: Path, path: Path) -> None:
    source, out = small_onnx(tmp_path, target="tensorrt-8"), tmp_path / "small.engine"
    install(FakeTensorRt8("8.6.2"))
    options = EngineOptions(calibration_cache=small_cache(path, "layer1.0.conv1.Conv"))
    with pytest.raises(
        CalibrationError, match=r"no range for what 3 of 3 convolutions .* such as stem: .*another model"
    ):
        build_engine(source, out, options)
    small_cache(path, "planes", "dequantised", "stem")
    notes: list[str] = []
    build_engine(source, out, options, note=notes.append)
    assert "1 of 3 convolutions have no range and stay in float: ['heatmap']" in notes


def test_int8_on_the_dla_comes_from_a_cache(install: Install, tmp_path: Path, path: Path) -> None:
    runtime = install(FakeTensorRt10("10.3.0", half=True))
    options = EngineOptions(dla_core=0, calibration_cache=small_cache(path))
    source = small_onnx(tmp_path, target="tensorrt", precision="fp16")
    record = build_engine(source, tmp_path / "small.engine", options)
    assert {"INT8", "FP16", "GPU_FALLBACK"} <= runtime.configs[0].flags and runtime.scales
    assert record.dla_core == 0 and record.precision == "int8"


def test_a_dynamic_batch_is_calibrated_with_its_profile(install: Install, tmp_path: Path, path: Path) -> None:
    runtime = install(FakeTensorRt10("10.3.0", batch=-1))
    options = EngineOptions(calibration_cache=small_cache(path))
    build_engine(small_onnx(tmp_path, target="tensorrt", batch="1,2,4"), tmp_path / "small.engine", options)
    assert runtime.configs[0].values["calibration_profile"] == runtime.configs[0].profiles[0]


def test_a_cache_where_none_is_taken_is_refused(install: Install, tmp_path: Path, path: Path) -> None:
    out = tmp_path / "small.engine"
    options = EngineOptions(calibration_cache=small_cache(path))
    install(FakeTensorRt11("11.4.1"))
    with pytest.raises(
        ConfigError, match=r"TensorRT 11\.4\.1 takes INT8 ranges from the \.onnx alone; .*--precision int8"
    ):
        build_engine(small_onnx(tmp_path, target="tensorrt"), out, options)
    install(FakeTensorRt10("10.3.0"))
    with pytest.raises(ConfigError, match="INT8 with its own ranges"):
        build_engine(small_onnx(tmp_path, target="tensorrt", precision="int8"), out, options)
    missing = EngineOptions(calibration_cache=tmp_path / "missing.cache")
    with pytest.raises(InputError, match=r"there is no .*missing\.cache; .*--calibration-images DIR"):
        build_engine(small_onnx(tmp_path, target="tensorrt"), out, missing)
    with pytest.raises(ConfigError, match="--calibration-images needs --calibration-cache"):
        EngineOptions(calibration_images=tmp_path)


def test_photographs_need_cuda(
    install: Install, tmp_path: Path, path: Path, photographs_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(FakeTensorRt8("8.6.2"))
    install_cuda(monkeypatch, None)
    options = EngineOptions(calibration_cache=path, calibration_images=photographs_folder)
    with pytest.raises(BackendUnavailable, match="cuda-python or pycuda"):
        build_engine(small_onnx(tmp_path, target="tensorrt-8"), tmp_path / "small.engine", options)


def test_tensorrt_rtx_takes_no_cache(tmp_path: Path, path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(ConfigError, match=r"TensorRT-RTX .* takes INT8 ranges from the \.onnx alone"):
        build_engine(
            small_onnx(tmp_path), tmp_path / "small.engine", EngineOptions(calibration_cache=small_cache(path))
        )
