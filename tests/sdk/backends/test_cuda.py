from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sdk.backends.cuda import Cuda, CudaPython, PyCuda, open_cuda
from sdk.engine_files import find_gpu
from sdk.errors import BackendError, BackendUnavailable
from tests.fakes_tensorrt import (
    CUDA_PYTHON,
    OLD_CUDA_PYTHON,
    PYCUDA,
    Array,
    FakeCudaPython,
    FakeDevice,
    FakePycuda,
    install_cuda,
)

TENSORS = arrays.arrays(
    st.sampled_from([np.uint8, np.int32, np.float16, np.float32]),
    arrays.array_shapes(max_dims=4, max_side=5),
    elements=st.integers(0, 100),
)
BINDINGS = ("cuda-python", "cuda-python on a Jetson", "pycuda")


def binding_of(name: str) -> tuple[Cuda, FakeDevice]:
    device = FakeDevice(integrated=name.endswith("Jetson"))
    return (PyCuda(FakePycuda(device)) if name == "pycuda" else CudaPython(FakeCudaPython(device))), device


@pytest.fixture(params=BINDINGS)
def binding(request: pytest.FixtureRequest) -> tuple[Cuda, FakeDevice]:
    return binding_of(request.param)


@pytest.mark.parametrize("name", BINDINGS)
@given(TENSORS)
def test_what_goes_to_the_gpu_comes_back(name: str, tensor: Array) -> None:
    cuda, device = binding_of(name)
    with cuda.active():
        stream = cuda.create_stream()
        buffer = cuda.allocate(tensor.shape, tensor.dtype)
        assert buffer.host.shape == tensor.shape and buffer.host.dtype == tensor.dtype
        buffer.host[...] = tensor
        cuda.upload(buffer, stream)
        cuda.synchronize(stream)
        np.testing.assert_array_equal(device.array(buffer.address, tensor.dtype, tensor.shape), tensor)
        device.array(buffer.address, tensor.dtype, tensor.shape)[...] += 1
        cuda.download(buffer, stream)
        cuda.synchronize(stream)
        np.testing.assert_array_equal(buffer.host, tensor + 1)
        cuda.free(buffer)
        cuda.destroy_stream(stream)
        del stream
    assert not device.held


def test_a_jetson_copies_nothing() -> None:
    cuda, device = binding_of("cuda-python on a Jetson")
    with cuda.active():
        stream, buffer = cuda.create_stream(), cuda.allocate((4,), np.float32)
        cuda.upload(buffer, stream)
        cuda.download(buffer, stream)
    assert buffer.zero_copy and buffer.address == buffer.host.ctypes.data and device.copies == 0


def test_a_graph_repeats_what_was_recorded_on_what_the_buffers_hold_then() -> None:
    cuda, device = binding_of("cuda-python")
    with cuda.active():
        stream, buffer = cuda.create_stream(), cuda.allocate((4,), np.float32)
        on_gpu = device.array(buffer.address, np.float32, (4,))

        def double() -> None:
            cuda.upload(buffer, stream)
            device.enqueue(cuda.handle(stream), lambda: np.multiply(on_gpu, 2, out=on_gpu))
            cuda.download(buffer, stream)

        buffer.host.fill(1)
        graph = cuda.capture(stream, double)
        cuda.synchronize(stream)
        np.testing.assert_array_equal(buffer.host, np.ones(4))  # recorded, not run
        for value in (3, 5):
            buffer.host.fill(value)
            graph.launch()
            cuda.synchronize(stream)
            np.testing.assert_array_equal(buffer.host, np.full(4, 2 * value))
        graph.destroy()
    assert "graph" not in device.held.values()


def test_a_recording_that_fails_leaves_a_stream_that_works() -> None:
    cuda, _ = binding_of("cuda-python")
    with cuda.active():
        stream, buffer = cuda.create_stream(), cuda.allocate((4,), np.float32)
        with pytest.raises(ZeroDivisionError):
            cuda.capture(stream, lambda: 1 // 0 and None)
        cuda.upload(buffer, stream)
        cuda.synchronize(stream)


def test_a_graph_that_cannot_be_made_is_an_error_and_leaves_nothing() -> None:
    cuda, device = binding_of("cuda-python")
    device.failing.add("cudaGraphInstantiate")
    with cuda.active(), pytest.raises(BackendError, match="cudaGraphInstantiate failed: out of memory"):
        cuda.capture(cuda.create_stream(), lambda: None)
    assert "graph" not in device.held.values()


def test_pycuda_says_that_it_has_no_graphs() -> None:
    cuda, _ = binding_of("pycuda")
    with cuda.active(), pytest.raises(BackendError, match="pycuda has no CUDA graphs; cuda-python has"):
        cuda.capture(cuda.create_stream(), lambda: None)


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("cuda-python", "cudaHostAlloc", r"cudaHostAlloc failed: out of memory \(cudaErrorMemoryAllocation\)"),
        ("cuda-python", "cudaMalloc", r"cudaMalloc failed: out of memory"),
        ("cuda-python on a Jetson", "cudaHostGetDevicePointer", "cudaHostGetDevicePointer failed: out of memory"),
        ("pycuda", "pagelocked_empty", "allocating memory failed: .*out of memory"),
        ("pycuda", "mem_alloc", "allocating memory failed: .*out of memory"),
    ],
)
def test_memory_that_runs_out_is_named_and_half_a_buffer_is_freed(name: str, call: str, message: str) -> None:
    cuda, device = binding_of(name)
    device.failing.add(call)
    with cuda.active(), pytest.raises(BackendError, match=message):
        cuda.allocate((1024,), np.float32)
    assert not device.held


def test_any_thread_may_use_it(binding: tuple[Cuda, FakeDevice]) -> None:
    cuda, device = binding

    def use() -> None:
        with cuda.active():
            buffer = cuda.allocate((4,), np.float32)
            cuda.free(buffer)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(use).result()
    use()
    assert not device.held


@pytest.mark.parametrize("module", [CUDA_PYTHON, OLD_CUDA_PYTHON, PYCUDA])
def test_the_binding_that_is_installed_is_used(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install_cuda(monkeypatch, FakeDevice(), module)
    assert isinstance(open_cuda(), PyCuda if module == PYCUDA else CudaPython)


def test_cuda_python_goes_before_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    install_cuda(monkeypatch, FakeDevice(), PYCUDA)
    monkeypatch.setitem(sys.modules, OLD_CUDA_PYTHON, FakeCudaPython(FakeDevice()))
    assert isinstance(open_cuda(), CudaPython)


def test_without_a_binding_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    install_cuda(monkeypatch, None)
    with pytest.raises(BackendUnavailable, match=r"needs cuda-python or pycuda, .*`pip install 'cuda-python==13\.\*'`"):
        open_cuda()


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (12060, r"knows CUDA 12, this cuda-python is for CUDA 13: `pip install 'cuda-python==12\.\*'`"),
        (0, r"insufficient for CUDA runtime version \(cudaErrorInsufficientDriver\); no NVIDIA driver is loaded"),
    ],
)
def test_a_binding_that_is_too_new_for_the_driver(driver: int, message: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"CUDA finds no GPU that it can use: .*{message}"):
        CudaPython(FakeCudaPython(FakeDevice(), driver=driver, version=13050))


class FakeCudaPythonWithoutDriver:
    """cuda-python 12.2 where there is no driver: its calls raise."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cudaSet") and not name.endswith("Version"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            raise RuntimeError("Failed to dlopen libcuda.so.1")

        return call


def test_old_bindings_raise_without_a_driver() -> None:
    with pytest.raises(BackendUnavailable, match=r"dlopen libcuda.so.1; no NVIDIA driver is loaded"):
        CudaPython(FakeCudaPythonWithoutDriver())


def test_pycuda_without_a_gpu() -> None:
    device = FakeDevice()
    device.failing.add("init")
    with pytest.raises(BackendUnavailable, match="CUDA finds no GPU that it can use: init failed"):
        PyCuda(FakePycuda(device))


@pytest.mark.skipif(find_gpu() is not None, reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_told_so_by_whatever_is_installed() -> None:
    with pytest.raises(BackendUnavailable) as caught:
        open_cuda()
    assert "\n" not in str(caught.value)


def test_the_fake_does_nothing_that_cuda_python_does_not() -> None:
    runtime = pytest.importorskip(CUDA_PYTHON)
    assert FakeCudaPython(FakeDevice()).calls <= set(dir(runtime))
    for kind in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"):
        assert {name for name in dir(getattr(FakeCudaPython, kind)) if name.startswith("cuda")} <= set(
            dir(getattr(runtime, kind))
        )
