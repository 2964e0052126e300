from __future__ import annotations

import gc
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdk import engine_files
from sdk.backends import output_shapes
from sdk.backends.tensorrt import TensorRtBackend
from sdk.detector import Detector
from sdk.engine_files import HostGpu, find_gpu, sidecar_path, this_host
from sdk.errors import BackendError, BackendUnavailable, EngineMismatch, HeadShapeError, InputError, SdkError, SpecError
from sdk.peaks import INDEX_OUTPUTS, NO_PEAK
from sdk.spec import ModelSpec
from tests.fakes_tensorrt import (
    CUDA_PYTHON,
    PYCUDA,
    FakeContext,
    FakeDevice,
    FakeEngine,
    FakeNetwork,
    FakeSeverity,
    FakeTensorRt,
    install_cuda,
    install_tensorrt,
    write_fake_engine,
)
from tests.helpers import THREE_PEAKS, Array, Heads, heads_with_peaks, pose_spec, tiny_spec

SPEC = tiny_spec()
PEAKS_SPEC = replace(SPEC, output="peaks")
BLACK = np.zeros((1, 64, 64, 3), np.uint8)


def peaks_of(heads: Heads, spec: ModelSpec) -> Heads:
    """The peaks form of heads with three peaks; the rows after them are no peaks."""
    outputs: Heads = {
        name: np.zeros((1, *shape), np.int32 if name in INDEX_OUTPUTS else np.float32)
        for name, shape in output_shapes(spec).items()
    }
    outputs["heatmap"].fill(NO_PEAK)
    for row, peak in enumerate(THREE_PEAKS):
        y, x = peak.cell_yx
        outputs["heatmap"][0, row] = heads["heatmap"][0, peak.class_id, y, x]
        outputs["class_ids"][0, row], outputs["cells"][0, row] = peak.class_id, y * spec.feature_wh[0] + x
        for name in ("offset", "size"):
            outputs[name][0, row] = heads[name][0, :, y, x]
    return outputs


def network_of(spec: ModelSpec, *, batch: int = 1, batches: range = range(1, 2)) -> FakeNetwork:
    """It finds the three peaks; the offsets grow by the frame's first byte, so that frames differ."""
    heads = heads_with_peaks(spec)
    answer = peaks_of(heads, spec) if spec.output == "peaks" else heads

    def compute(inputs: dict[str, Array]) -> dict[str, Array]:
        return {**answer, "offset": answer["offset"] + inputs["frame"][0, 0, 0, 0]}

    kinds = {np.dtype(np.float32): "FLOAT", np.dtype(np.int32): "INT32"}
    return FakeNetwork(
        inputs={"frame": ("UINT8", (batch, spec.input.height, spec.input.width, 3))},
        outputs={name: (kinds[array.dtype], (batch, *array.shape[1:])) for name, array in answer.items()},
        compute=compute,
        batches=batches,
    )


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    device = FakeDevice()
    install_cuda(monkeypatch, device)
    return device


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, device: FakeDevice) -> FakeTensorRt:
    return install_tensorrt(monkeypatch, device, network_of(SPEC))


@pytest.fixture
def engine(tmp_path: Path, trt: FakeTensorRt) -> Path:
    write_fake_engine(tmp_path / "model.engine", SPEC)
    return tmp_path / "model.engine"


@pytest.mark.parametrize("spec", [SPEC, PEAKS_SPEC], ids=["maps", "peaks"])
def test_a_detector_runs_an_engine_that_gives(spec: ModelSpec, tmp_path: Path, engine: Path, trt: FakeTensorRt) -> None:
    trt.network = network_of(spec)
    write_fake_engine(engine, spec)
    with Detector(engine) as detector:
        assert detector.spec == spec
        detections = detector(np.zeros((640, 640, 3), np.uint8))
    assert [detections.class_names[i] for i in detections.class_ids] == ["cat", "dog", "dog"]
    np.testing.assert_allclose(detections.scores, [peak.score for peak in THREE_PEAKS], rtol=1e-5)
    np.testing.assert_allclose(detections.xyxy[0], [90, 110, 250, 190], atol=1e-2)


@pytest.mark.parametrize("binding", [CUDA_PYTHON, PYCUDA])
@pytest.mark.parametrize("integrated", [False, True])
def test_every_frame_has_an_answer_of_its_own(
    binding: str, integrated: bool, engine: Path, trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt.device = FakeDevice(integrated=integrated and binding == CUDA_PYTHON)
    install_cuda(monkeypatch, trt.device, binding)
    backend = TensorRtBackend(engine, threads=4)
    assert backend.inputs == ("frame",) and backend.outputs == ("heatmap", "offset", "size")
    assert not backend.any_size
    answers = [backend.infer({"frame": BLACK + value}) for value in (0, 7, 9)]
    for value, answer in zip((0, 7, 9), answers, strict=True):
        np.testing.assert_allclose(answer["offset"], heads_with_peaks(SPEC)["offset"] + value)
        np.testing.assert_array_equal(answer["heatmap"], heads_with_peaks(SPEC)["heatmap"])
    backend.close()
    assert not np.shares_memory(answers[0]["offset"], answers[1]["offset"])
    np.testing.assert_allclose(answers[2]["offset"], heads_with_peaks(SPEC)["offset"] + 9)  # memory that stays


def test_frames_are_replayed_as_a_graph(engine: Path, trt: FakeTensorRt) -> None:
    backend = TensorRtBackend(engine)
    copies = trt.device.copies
    for _ in range(3):
        backend.infer({"frame": BLACK})
    assert trt.device.launches == 3 and trt.device.copies == copies


def test_an_engine_that_cannot_be_recorded_runs_all_the_same(
    engine: Path, trt: FakeTensorRt, caplog: pytest.LogCaptureFixture
) -> None:
    trt.is_capturable = False
    caplog.set_level(logging.INFO)
    backend = TensorRtBackend(engine)
    assert f"{engine} runs without a CUDA graph" in caplog.text
    np.testing.assert_array_equal(backend.infer({"frame": BLACK + 3})["offset"], heads_with_peaks(SPEC)["offset"] + 3)
    assert trt.device.launches == 0


def test_a_frame_of_any_memory_layout(engine: Path) -> None:
    frame = np.asfortranarray(np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), np.uint8))
    answer = TensorRtBackend(engine).infer({"frame": frame})
    np.testing.assert_allclose(answer["offset"], heads_with_peaks(SPEC)["offset"] + frame[0, 0, 0, 0])


@pytest.mark.parametrize("binding", [CUDA_PYTHON, PYCUDA])
def test_another_thread_may_call_it(
    binding: str, engine: Path, trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_cuda(monkeypatch, trt.device, binding)
    with ThreadPoolExecutor(1) as pool:
        backend = TensorRtBackend(engine)
        answer = pool.submit(backend.infer, {"frame": BLACK}).result()
        pool.submit(backend.close).result()
    np.testing.assert_array_equal(answer["size"], heads_with_peaks(SPEC)["size"])


@pytest.mark.parametrize("binding", [CUDA_PYTHON, PYCUDA])
def test_closing_frees_everything_and_may_be_done_twice(
    binding: str, engine: Path, trt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_cuda(monkeypatch, trt.device, binding)
    backend = TensorRtBackend(engine)
    assert {"host", "device", "stream"} <= set(trt.device.held.values())
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match=r"model\.engine was closed; open it again"):
        backend.infer({"frame": BLACK})
    assert not {"host", "device", "graph"} & set(trt.device.held.values())
    del backend
    gc.collect()
    assert not trt.device.held


def test_what_is_never_closed_is_freed_with_the_object(engine: Path, trt: FakeTensorRt) -> None:
    detector = Detector(engine)
    detector(BLACK[0])
    del detector
    gc.collect()
    assert not trt.device.held


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"takes the inputs \['frame'\], got \[\]"),
        ({"image": BLACK}, r"takes the inputs \['frame'\], got \['image'\]"),
        ({"frame": BLACK, "mask": BLACK}, r"takes the inputs \['frame'\], got \['frame', 'mask'\]"),
        ({"frame": BLACK[:, :32]}, r"takes 'frame' as uint8 \(1, 64, 64, 3\), got uint8 \(1, 32, 64, 3\)"),
        ({"frame": BLACK[0]}, r"takes 'frame' as uint8 \(1, 64, 64, 3\), got uint8 \(64, 64, 3\)"),
        ({"frame": BLACK.astype(np.float32)}, r"takes 'frame' as uint8 \(1, 64, 64, 3\), got float32"),
    ],
)
def test_a_wrong_frame_is_named_with_what_was_expected(engine: Path, feeds: dict[str, Array], message: str) -> None:
    backend = TensorRtBackend(engine)
    with pytest.raises(BackendError, match=rf"model\.engine {message}"):
        backend.infer(feeds)
    backend.infer({"frame": BLACK})


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_damaged_engine_never_reaches_tensorrt(share: float, tmp_path: Path, trt: FakeTensorRt) -> None:
    path, plan = tmp_path / "model.engine", bytes(1000)
    write_fake_engine(path, SPEC, plan=plan)
    path.write_bytes(plan[: int(share * 1000)] + b"x" + plan[int(share * 1000) + 1 :])
    with pytest.raises(EngineMismatch, match=r"sha256 .* `centeredge export model\.onnx model\.engine`"):
        Detector(path)
    assert not trt.deserialised and not trt.device.held


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime_version": "8.6.2"}, r"built by TensorRT 8\.6\.2, this is 10\.3\.0"),
        ({"gpu": "NVIDIA GeForce RTX 4090", "compute_capability": "8.9"}, r"built for NVIDIA GeForce RTX 4090"),
        ({"multiprocessors": 16}, r"16 multiprocessors\), this is Orin .*8 multiprocessors"),
        ({"platform": "linux-riscv64"}, r"built for linux-riscv64, this is"),
    ],
)
def test_an_engine_of_another_machine_never_reaches_tensorrt(
    changes: dict[str, Any], message: str, engine: Path, trt: FakeTensorRt
) -> None:
    write_fake_engine(engine, SPEC, **changes)
    with pytest.raises(EngineMismatch, match=rf"{message}.*build it here: `centeredge export"):
        Detector(engine)
    assert not trt.deserialised


def test_an_engine_without_its_sidecar(engine: Path, trt: FakeTensorRt) -> None:
    sidecar_path(engine).unlink()
    with pytest.raises(InputError, match=r"model\.engine has no model\.engine\.json beside it"):
        Detector(engine)
    assert not trt.deserialised


def test_a_machine_without_a_gpu(engine: Path, monkeypatch: pytest.MonkeyPatch, device: FakeDevice) -> None:
    install_tensorrt(monkeypatch, device, network_of(SPEC), gpu=None)
    with pytest.raises(
        BackendUnavailable, match=r"model\.engine needs an NVIDIA GPU, and this machine has none .*onnx"
    ):
        Detector(engine)


def test_a_machine_without_tensorrt(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match=r"TensorRT cannot be imported .*JetPack .*`pip install tensorrt`"):
        Detector(engine)


def test_a_machine_without_a_cuda_binding(engine: Path, monkeypatch: pytest.MonkeyPatch, trt: FakeTensorRt) -> None:
    install_cuda(monkeypatch, None)
    with pytest.raises(BackendUnavailable, match="needs cuda-python or pycuda"):
        Detector(engine)
    assert not trt.deserialised


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("deserialize_cuda_engine", r"TensorRT 10\.3\.0 cannot load it; build it again: `centeredge export"),
        ("create_execution_context", "made no execution context"),
        ("set_tensor_address", r"refused the memory for 'frame' of uint8 \(1, 64, 64, 3\)"),
        ("execute_async_v3", "the run failed"),
    ],
)
def test_what_tensorrt_refuses_is_said_in_its_words(method: str, message: str, engine: Path, trt: FakeTensorRt) -> None:
    trt.failing.add(method)
    with pytest.raises(
        BackendError, match=rf"model\.engine: .*{message}.*\(TensorRT: IRuntime::{method}: Error Code 2"
    ):
        Detector(engine)
    gc.collect()
    assert not trt.device.held


@pytest.mark.parametrize(
    "call", ["cudaStreamCreateWithFlags", "cudaHostAlloc", "cudaMalloc", "cudaMemcpyAsync", "cudaStreamSynchronize"]
)
def test_what_cuda_refuses_on_opening_leaves_nothing_behind(call: str, engine: Path, trt: FakeTensorRt) -> None:
    trt.device.failing.add(call)
    with pytest.raises(BackendError, match=f"{call} failed: out of memory"):
        Detector(engine)
    gc.collect()
    assert not trt.device.held


def test_a_run_that_fails_is_an_error_and_the_next_one_may_work(engine: Path, trt: FakeTensorRt) -> None:
    backend = TensorRtBackend(engine)
    trt.device.failing.add("cudaGraphLaunch")
    with pytest.raises(BackendError, match="cudaGraphLaunch failed: out of memory"):
        backend.infer({"frame": BLACK})
    trt.device.failing.clear()
    backend.infer({"frame": BLACK})


def test_closing_after_cuda_has_given_up_warns_and_does_not_raise(
    engine: Path, trt: FakeTensorRt, caplog: pytest.LogCaptureFixture
) -> None:
    backend = TensorRtBackend(engine)
    trt.device.failing.update({"cudaFree", "cudaFreeHost"})
    backend.close()
    assert "could not be freed: cudaFree failed" in caplog.text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"inputs": {"frame": ("UINT8", (1, 32, 32, 3))}},
            SpecError,
            r"takes 'frame' of uint8 \(1, 32, 32, 3\), its ModelSpec says 'frame' of uint8 \(1, 64, 64, 3\)",
        ),
        ({"inputs": {"frame": ("FLOAT", (1, 64, 64, 3))}}, SpecError, "takes 'frame' of float32"),
        ({"inputs": {"images": ("UINT8", (1, 64, 64, 3))}}, SpecError, "takes 'images'"),
        ({"inputs": {}}, SpecError, "takes nothing"),
        ({"inputs": {"frame": ("FP8", (1, 64, 64, 3))}}, BackendError, "'frame' is of type FP8, expected one of FLOAT"),
        (
            {"outputs": {"heatmap": ("FLOAT", (1, 80, 16, 16))}},
            HeadShapeError,
            r"gives 'heatmap' as \(1, 80, 16, 16\), its ModelSpec declares \(1, 2, 16, 16\).*build it again",
        ),
        ({"outputs": {}}, HeadShapeError, "gives 'heatmap' as None"),
    ],
)
def test_an_engine_that_disagrees_with_its_sidecar(
    change: dict[str, Any], error: type[SdkError], message: str, engine: Path, trt: FakeTensorRt
) -> None:
    trt.network = replace(trt.network, **change)
    with pytest.raises(error, match=message):
        Detector(engine)
    gc.collect()
    assert not trt.device.held


def test_peaks_and_maps_are_not_taken_for_each_other(engine: Path) -> None:
    write_fake_engine(engine, PEAKS_SPEC)
    with pytest.raises(HeadShapeError, match=r"gives 'heatmap' as \(1, 2, 16, 16\), its ModelSpec declares \(1, 100\)"):
        Detector(engine)


def test_a_dynamic_batch_becomes_one(engine: Path, trt: FakeTensorRt) -> None:
    trt.network = network_of(SPEC, batch=-1, batches=range(1, 9))
    write_fake_engine(engine, SPEC, batch=(1, 4, 8))
    answer = TensorRtBackend(engine).infer({"frame": BLACK + 2})
    np.testing.assert_allclose(answer["offset"], heads_with_peaks(SPEC)["offset"] + 2)


def test_a_dynamic_batch_that_does_not_begin_at_one(engine: Path, trt: FakeTensorRt) -> None:
    trt.network = network_of(SPEC, batch=-1, batches=range(2, 9))
    write_fake_engine(engine, SPEC, batch=(2, 4, 8))
    with pytest.raises(BackendError, match=r"takes 2 to 8 frames at once, .*--dynamic-batch 1"):
        Detector(engine)


def test_a_pose_engine_has_its_joints_checked_too(engine: Path, trt: FakeTensorRt) -> None:
    write_fake_engine(engine, replace(pose_spec(), output="peaks"))
    trt.network = network_of(replace(SPEC, output="peaks", class_names=("person", "other")))
    with pytest.raises(HeadShapeError, match="keypoint_"):
        Detector(engine)


@pytest.mark.parametrize(
    ("changes", "attribute", "value"),
    [
        ({"version_compatible": True}, "engine_host_code_allowed", True),
        ({}, "engine_host_code_allowed", False),
        ({"dla_core": 1}, "DLA_core", 1),
        ({}, "DLA_core", -1),
    ],
)
def test_the_runtime_is_told_what_the_engine_needs(
    changes: dict[str, Any], attribute: str, value: Any, engine: Path, trt: FakeTensorRt
) -> None:
    write_fake_engine(engine, SPEC, **changes)
    TensorRtBackend(engine)
    assert getattr(trt.runtimes[0], attribute) == value


def test_warnings_of_tensorrt_go_to_logging(engine: Path, trt: FakeTensorRt, caplog: pytest.LogCaptureFixture) -> None:
    TensorRtBackend(engine)
    assert not caplog.records
    trt.logger.log(trt.ILogger.Severity.WARNING, "lazy loading\n is not enabled")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "lazy loading is not enabled")
    ]


def write_real_engine(path: Path) -> None:
    """An engine that TensorRT-RTX builds on the CPU: heads that are constant but for the frame's mean."""
    onnx = pytest.importorskip("onnx")
    rtx = pytest.importorskip("tensorrt_rtx")
    from tests.sdk.backends.test_onnxruntime import write_model

    model = onnx.load(write_model(path.with_suffix(".onnx"), heads_with_peaks(SPEC)))
    builder = rtx.Builder(rtx.Logger(rtx.Logger.ERROR))
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, rtx.Logger(rtx.Logger.ERROR))
    assert parser.parse(model.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    plan = bytes(builder.build_serialized_network(network, builder.create_builder_config()))
    write_fake_engine(
        path,
        SPEC,
        plan=plan,
        runtime="tensorrt_rtx",
        runtime_version=this_host("tensorrt_rtx").runtime_version,
        gpu=engine_files.ANY_GPU,
        compute_capability="",
        multiprocessors=0,
        cuda="",
    )


@pytest.mark.skipif(find_gpu() is not None, reason="this machine has a GPU")
def test_a_real_engine_is_refused_in_one_line_where_there_is_no_gpu(tmp_path: Path) -> None:
    write_real_engine(tmp_path / "model.engine")
    with pytest.raises(BackendUnavailable, match=r"model\.engine needs an NVIDIA GPU, .*run the \.onnx file here$"):
        Detector(tmp_path / "model.engine")


@pytest.mark.skipif(find_gpu() is not None, reason="this machine has a GPU")
def test_a_real_runtime_that_cannot_load_an_engine_says_why(
    tmp_path: Path, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_real_engine(tmp_path / "model.engine")
    monkeypatch.setattr(engine_files, "find_gpu", lambda: HostGpu("NVIDIA RTX A2000", "8.6", 26, "13.0"))
    with pytest.raises(BackendError, match=r"TensorRT-RTX .* cannot load it; build it again: .*\(TensorRT: .*[Cc]uda"):
        Detector(tmp_path / "model.engine")
    assert not device.held


def test_the_fakes_do_nothing_that_tensorrt_does_not() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    for fake, real in ((FakeEngine, rtx.ICudaEngine), (FakeContext, rtx.IExecutionContext)):
        assert {name for name in vars(fake) if not name.startswith("_")} <= set(dir(real))
    assert {"deserialize_cuda_engine", "engine_host_code_allowed", "DLA_core"} <= set(dir(rtx.Runtime))
    assert [level.name for level in FakeSeverity] == list(rtx.ILogger.Severity.__members__)
    assert all(int(rtx.ILogger.Severity.__members__[level.name]) == level for level in FakeSeverity)
