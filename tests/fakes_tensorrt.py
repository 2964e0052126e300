"""A GPU, its CUDA bindings and TensorRT, for machines without them; what is queued runs when it is waited for."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import math
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sdk import engine_files
from sdk.engine_files import EngineRecord, HostGpu, this_platform, write_engine
from sdk.spec import ModelSpec

Array = npt.NDArray[Any]
Operation = Callable[[], Any]

CUDA_PYTHON, OLD_CUDA_PYTHON, PYCUDA = "cuda.bindings.runtime", "cuda.cudart", "pycuda.driver"
FAKE_GPU = HostGpu("Orin", "8.7", 8, "12.6")
FAKE_VERSION = "10.3.0"
PLAN = b"a plan"


class FakeDevice:
    """A GPU: memory at true addresses, streams that do nothing before they are waited for, graphs.

    Args:
        integrated: it shares the memory of the CPU.

    Attributes:
        failing: names of the calls of a binding that fail.
        held: what is allocated: "host" and "device" memory by address, "stream" and "graph" by handle.
        copies, launches: how many were queued.
    """

    def __init__(self, *, integrated: bool = False) -> None:
        self.integrated = integrated
        self.failing: set[str] = set()
        self.held: dict[int, str] = {}
        self.copies = self.launches = 0
        self._memory: dict[int, Any] = {}
        self._queues: dict[int, list[Operation]] = {}
        self._recordings: dict[int, list[Operation]] = {}
        self._graphs: dict[int, list[Operation]] = {}
        self._handles = itertools.count(1)

    def allocate(self, kind: str, num_bytes: int) -> int:
        memory = (ctypes.c_uint8 * num_bytes)()
        start = ctypes.addressof(memory)
        ctypes.memset(start, 0xCD, num_bytes)
        self._memory[start], self.held[start] = memory, kind
        return start

    def free(self, kind: str, start: int) -> None:
        assert self.held.pop(start, None) == kind, f"{start} is no {kind} memory"
        del self._memory[start]

    def array(self, address: int, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Array:
        """A tensor in the GPU's memory; other addresses are illegal."""
        assert self.held.get(address) in (("host",) if self.integrated else ("device",)), f"illegal address {address}"
        return np.ctypeslib.as_array(self._memory[address]).view(dtype).reshape(shape)

    def copy(self, destination: int, source: int, num_bytes: int, stream: int) -> None:
        assert {self.held[destination], self.held[source]} == {"host", "device"}
        assert num_bytes == len(self._memory[destination]) == len(self._memory[source])
        self.copies += 1
        self.enqueue(stream, lambda: ctypes.memmove(destination, source, num_bytes))

    def create_stream(self) -> int:
        handle = next(self._handles)
        self._queues[handle], self.held[handle] = [], "stream"
        return handle

    def destroy(self, handle: int) -> None:
        del self.held[handle]

    def is_recording(self, stream: int) -> bool:
        return stream in self._recordings

    def enqueue(self, stream: int, operation: Operation) -> None:
        assert self.held.get(stream) == "stream"
        self._recordings.get(stream, self._queues[stream]).append(operation)

    def synchronize(self, stream: int) -> None:
        assert self.held.get(stream) == "stream" and not self.is_recording(stream)
        while self._queues[stream]:
            self._queues[stream].pop(0)()

    def begin_recording(self, stream: int) -> None:
        self._recordings[stream] = []

    def end_recording(self, stream: int) -> list[Operation]:
        return self._recordings.pop(stream)

    def instantiate(self, recorded: list[Operation]) -> int:
        handle = next(self._handles)
        self._graphs[handle], self.held[handle] = recorded, "graph"
        return handle

    def launch(self, graph: int, stream: int) -> None:
        assert self.held.get(graph) == "graph"
        self.launches += 1
        for operation in self._graphs[graph]:
            self.enqueue(stream, operation)


FakeCudaError = IntEnum(
    "FakeCudaError", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2, "cudaErrorInsufficientDriver": 35}
)


class FakeCudaPython:
    """The module `cuda.bindings.runtime`: every call answers with an error and its results."""

    cudaError_t = FakeCudaError  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaHostAllocDefault, cudaHostAllocMapped = 0, 2  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrIntegrated=18)  # noqa: N815

    def __init__(self, device: FakeDevice, *, driver: int = 12060, version: int = 12060) -> None:
        self._device = device
        self._is_too_new = version // 1000 > driver // 1000
        self._calls: dict[str, Callable[..., Any]] = {
            "cudaDriverGetVersion": lambda: driver,
            "cudaRuntimeGetVersion": lambda: version,
            "cudaSetDevice": lambda index: None,
            "cudaDeviceGetAttribute": lambda attribute, index: int(device.integrated),
            "cudaGetLastError": lambda: None,
            "cudaStreamCreateWithFlags": lambda flags: device.create_stream(),
            "cudaStreamSynchronize": device.synchronize,
            "cudaStreamDestroy": device.destroy,
            "cudaHostAlloc": lambda num_bytes, flags: device.allocate("host", num_bytes),
            "cudaHostGetDevicePointer": lambda start, flags: start,
            "cudaMalloc": lambda num_bytes: device.allocate("device", num_bytes),
            "cudaFree": lambda start: device.free("device", start),
            "cudaFreeHost": lambda start: device.free("host", start),
            "cudaMemcpyAsync": lambda to, source, count, kind, stream: device.copy(to, source, count, stream),
            "cudaStreamBeginCapture": lambda stream, mode: device.begin_recording(stream),
            "cudaStreamEndCapture": device.end_recording,
            "cudaGraphInstantiate": lambda recorded, flags: device.instantiate(recorded),
            "cudaGraphDestroy": lambda recorded: None,
            "cudaGraphLaunch": device.launch,
            "cudaGraphExecDestroy": device.destroy,
        }

    @property
    def calls(self) -> set[str]:
        return set(self._calls)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self._calls:
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            if self._is_too_new and not name.endswith("Version"):
                return FakeCudaError.cudaErrorInsufficientDriver, None
            if name in self._device.failing:
                return FakeCudaError.cudaErrorMemoryAllocation, None
            result = self._calls[name](*arguments)
            return (FakeCudaError.cudaSuccess,) if result is None else (FakeCudaError.cudaSuccess, result)

        return call

    def cudaGetErrorString(self, error: FakeCudaError) -> tuple[Any, bytes]:  # noqa: N802
        texts = {2: b"out of memory", 35: b"CUDA driver version is insufficient for CUDA runtime version"}
        return FakeCudaError.cudaSuccess, texts[error]


class FakePycudaError(Exception):
    pass


class FakePycuda:
    """The module `pycuda.driver`: it refuses a thread on which no context was pushed."""

    Error = FakePycudaError

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._thread = threading.local()

    def init(self) -> None:
        self._fail_where_told("init")

    def Device(self, index: int) -> Any:  # noqa: N802
        context = SimpleNamespace(push=lambda: self._push(1), pop=lambda: self._push(-1))
        return SimpleNamespace(retain_primary_context=lambda: context)

    def Stream(self) -> Any:  # noqa: N802
        self.check("Stream")
        return FakePycudaStream(self, self._device)

    def pagelocked_empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        self.check("pagelocked_empty")
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        start = self._device.allocate("host", num_bytes)
        methods = {"free": lambda memory: memory.finalizer()}
        memory = type("PagelockedHostAllocation", (ctypes.c_uint8 * num_bytes,), methods).from_address(start)
        memory.finalizer = weakref.finalize(memory, self._device.free, "host", start)
        return np.ndarray(shape, dtype, buffer=memory)

    def mem_alloc(self, num_bytes: int) -> Any:
        self.check("mem_alloc")
        return FakeDeviceAllocation(self._device, self._device.allocate("device", num_bytes))

    def memcpy_htod_async(self, to: Any, source: Array, stream: Any) -> None:
        self.check("memcpy_htod_async")
        self._device.copy(int(to), source.ctypes.data, source.nbytes, stream.handle)

    def memcpy_dtoh_async(self, to: Array, source: Any, stream: Any) -> None:
        self.check("memcpy_dtoh_async")
        self._device.copy(to.ctypes.data, int(source), to.nbytes, stream.handle)

    def _push(self, change: int) -> None:
        self._thread.depth = getattr(self._thread, "depth", 0) + change

    def check(self, name: str) -> None:
        if not getattr(self._thread, "depth", 0):
            raise FakePycudaError("invalid device context - no currently active context?")
        self._fail_where_told(name)

    def _fail_where_told(self, name: str) -> None:
        if name in self._device.failing:
            raise FakePycudaError(f"{name} failed: out of memory")


class FakePycudaStream:
    """It is destroyed with the object."""

    def __init__(self, driver: FakePycuda, device: FakeDevice) -> None:
        self._driver, self._device = driver, device
        self.handle = device.create_stream()
        weakref.finalize(self, device.destroy, self.handle)

    def synchronize(self) -> None:
        self._driver.check("synchronize")
        self._device.synchronize(self.handle)


class FakeDeviceAllocation:
    def __init__(self, device: FakeDevice, start: int) -> None:
        self._device, self._start = device, start

    def __int__(self) -> int:
        return self._start

    def free(self) -> None:
        self._device.free("device", self._start)


class FakeSeverity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class FakeLogger:
    Severity = FakeSeverity


@dataclass
class FakeNetwork:
    """What a plan holds.

    Attributes:
        inputs, outputs: type and shape by name; a first dimension of -1 is a dynamic batch.
        compute: outputs by name, for inputs by name.
        batches: numbers of frames that the profile of a dynamic batch allows.
    """

    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[str, tuple[int, ...]]]
    compute: Callable[[dict[str, Array]], dict[str, Array]]
    batches: range = range(1, 2)

    @property
    def tensors(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        return {**self.inputs, **self.outputs}


@dataclass(eq=False)
class FakeTensorRt:
    """The module `tensorrt`, which knows one plan.

    Attributes:
        failing: names of the methods that fail as TensorRT does: they log an error and give None or False.
        deserialised: the plans that were given to it.
        runtimes: that were made.
    """

    device: FakeDevice
    network: FakeNetwork
    failing: set[str] = field(default_factory=set)
    is_capturable: bool = True
    deserialised: list[bytes] = field(default_factory=list)
    runtimes: list[Any] = field(default_factory=list)
    __version__: str = FAKE_VERSION
    __name__: str = "tensorrt"

    ILogger = FakeLogger
    TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        return True

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        self.logger = logger
        runtime = SimpleNamespace(
            engine_host_code_allowed=False, DLA_core=-1, deserialize_cuda_engine=self._deserialise
        )
        self.runtimes.append(runtime)
        return runtime

    def works(self, method: str) -> bool:
        if method not in self.failing:
            return True
        self.logger.log(FakeSeverity.ERROR, f"IRuntime::{method}: Error Code 2: OutOfMemory")
        return False

    def _deserialise(self, plan: bytes) -> Any:
        self.deserialised.append(plan)
        self.logger.log(FakeSeverity.INFO, "Loaded engine size: 0 MiB")
        return FakeEngine(self) if self.works("deserialize_cuda_engine") else None


class FakeEngine:
    def __init__(self, trt: FakeTensorRt) -> None:
        self._trt = trt
        self._names = list(trt.network.tensors)
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._trt.TensorIOMode.INPUT if name in self._trt.network.inputs else self._trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._trt.network.tensors[name][1]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self._trt.network.tensors[name][0])

    def create_execution_context(self) -> Any:
        return FakeContext(self._trt) if self._trt.works("create_execution_context") else None


class FakeContext:
    """Runs the network on the stream; the first run must not be recorded, as TensorRT's."""

    def __init__(self, trt: FakeTensorRt) -> None:
        self._trt = trt
        self._addresses: dict[str, int] = {}
        self._batch = -1
        self._has_run = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._batch = shape[0]
        return shape[0] in self._trt.network.batches

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        first, *others = self._trt.network.tensors[name][1]
        return (self._batch if first == -1 else first, *others)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return self._trt.works("set_tensor_address")

    def is_stream_capturable(self, stream: int) -> bool:
        return self._trt.is_capturable

    def execute_async_v3(self, stream: int) -> bool:
        assert self._has_run or not self._trt.device.is_recording(stream), "the first run must not be recorded"
        self._has_run = True
        self._trt.device.enqueue(stream, self._run)
        return self._trt.works("execute_async_v3")

    def _run(self) -> None:
        network = self._trt.network
        outputs = network.compute({name: self._tensor(name).copy() for name in network.inputs})
        for name, values in outputs.items():
            self._tensor(name)[...] = values

    def _tensor(self, name: str) -> Array:
        kind = {"FLOAT": np.float32, "HALF": np.float16, "UINT8": np.uint8, "INT32": np.int32}
        dtype = kind[self._trt.network.tensors[name][0]]
        return self._trt.device.array(self._addresses[name], dtype, self.get_tensor_shape(name))


def install_cuda(monkeypatch: pytest.MonkeyPatch, device: FakeDevice | None, binding: str = CUDA_PYTHON) -> None:
    """Make `binding` the one that is installed, or none of them without a device."""
    for name in (CUDA_PYTHON, OLD_CUDA_PYTHON, PYCUDA):
        monkeypatch.setitem(sys.modules, name, None)
    if device is not None:
        module = FakePycuda(device) if binding == PYCUDA else FakeCudaPython(device)
        monkeypatch.setitem(sys.modules, binding, module)


def install_tensorrt(
    monkeypatch: pytest.MonkeyPatch, device: FakeDevice, network: FakeNetwork, *, gpu: HostGpu | None = FAKE_GPU
) -> FakeTensorRt:
    """A machine with TensorRT, whose driver shows this GPU."""
    trt = FakeTensorRt(device, network)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(engine_files, "find_gpu", lambda: gpu)
    return trt


def write_fake_engine(path: Path, spec: ModelSpec, *, plan: bytes = PLAN, **changes: Any) -> EngineRecord:
    """An engine file with its sidecar, as if it had been built on the fake machine."""
    values: dict[str, Any] = {
        "spec": spec,
        "runtime": "tensorrt",
        "runtime_version": FAKE_VERSION,
        "gpu": FAKE_GPU.name,
        "compute_capability": FAKE_GPU.compute_capability,
        "multiprocessors": FAKE_GPU.multiprocessors,
        "platform": this_platform(),
        "cuda": FAKE_GPU.cuda,
        "onnx": "model.onnx",
        "onnx_sha256": "0" * 64,
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
        "version_compatible": False,
        "hardware_compatibility": "none",
        "dla_core": None,
        "batch": (1, 1, 1),
        "rebuild": f"centeredge export model.onnx {path.name}",
    }
    record = EngineRecord(**{**values, **changes})
    write_engine(plan, record, path)
    return record
