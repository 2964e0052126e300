"""CUDA as far as one network needs it: a stream, buffers on both sides, and graphs.

Two bindings do: `cuda-python` for CUDA 12 or 13, and `pycuda`. Both work on the primary context of the first GPU, the
one that TensorRT and PyTorch use too; CUDA_VISIBLE_DEVICES makes another GPU the first::

    cuda = open_cuda()
    with cuda.active():
        stream = cuda.create_stream()
        buffer = cuda.allocate((1, 100), np.float32)
"""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import BackendError, BackendUnavailable

_INSTALL = (
    "`pip install 'cuda-python==13.*'` (12.* where `nvidia-smi` says CUDA 12, and on JetPack 6), "
    "or `pip install pycuda`, which compiles where the CUDA toolkit is, as on a Jetson"
)


@dataclass(frozen=True)
class Buffer:
    """One tensor's memory.

    Attributes:
        host: page-locked; the CPU writes and reads it.
        address: where the GPU has the tensor.
        zero_copy: whether that is the same memory, so that nothing is copied.
        allocation: the binding's own object for the GPU's side.
    """

    host: npt.NDArray[Any]
    address: int
    zero_copy: bool = False
    allocation: Any = None


@dataclass(frozen=True)
class Graph:
    """Work that a stream recorded, to be started as a whole, on the same buffers."""

    launch: Callable[[], None]
    destroy: Callable[[], None]


class Cuda(Protocol):
    """What the backend asks of a binding; every function but `active` is called inside `active`.

    All raise BackendError, naming the call that failed and what CUDA said.
    """

    def active(self) -> AbstractContextManager[None]:
        """While it lasts, this thread works on the GPU's primary context."""
        ...

    def create_stream(self) -> Any: ...

    def handle(self, stream: Any) -> int:
        """The stream as TensorRT takes it."""
        ...

    def synchronize(self, stream: Any) -> None:
        """Wait for all that the stream was given."""
        ...

    def destroy_stream(self, stream: Any) -> None: ...

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Buffer: ...

    def free(self, buffer: Buffer) -> None: ...

    def upload(self, buffer: Buffer, stream: Any) -> None:
        """Queue the copy to the GPU."""
        ...

    def download(self, buffer: Buffer, stream: Any) -> None:
        """Queue the copy from the GPU."""
        ...

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        """Record what `work` queues, without running it."""
        ...


def open_cuda() -> Cuda:
    """The binding that is installed, on the first GPU.

    Raises:
        BackendUnavailable: no binding is installed, or it finds no GPU that it can use.
    """
    reasons = []
    for load, binding in ((_import_cuda_python, CudaPython), (_import_pycuda, PyCuda)):
        try:
            module = load()
        except ImportError as err:
            reasons.append(str(err))
            continue
        return binding(module)
    raise BackendUnavailable(
        f"running an engine needs cuda-python or pycuda, and neither can be imported ({'; '.join(reasons)}); {_INSTALL}"
    )


class CudaPython:
    """`cuda-python`, by NVIDIA.

    Its runtime API works on the primary context by itself. On an integrated GPU the buffers are mapped into the GPU's
    address space, and nothing is copied.

    Args:
        runtime: the module `cuda.bindings.runtime`, or `cuda.cudart` before 12.6; the calls are the same in 12 and 13.

    Raises:
        BackendUnavailable: there is no GPU that it can use.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        try:
            with self.active():
                attribute = runtime.cudaDeviceAttr.cudaDevAttrIntegrated
                self._zero_copy = bool(self._call("cudaDeviceGetAttribute", attribute, 0))
        except BackendError as err:
            raise BackendUnavailable(f"CUDA finds no GPU that it can use: {err}{self._advice()}") from err

    @contextmanager
    def active(self) -> Iterator[None]:
        self._call("cudaSetDevice", 0)
        yield

    def create_stream(self) -> Any:
        # One that waits for no other: TensorRT warns of the default stream.
        return self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)

    def handle(self, stream: Any) -> int:
        return int(stream)

    def synchronize(self, stream: Any) -> None:
        self._call("cudaStreamSynchronize", stream)

    def destroy_stream(self, stream: Any) -> None:
        self._call("cudaStreamDestroy", stream)

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Buffer:
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        flags = self._runtime.cudaHostAllocMapped if self._zero_copy else self._runtime.cudaHostAllocDefault
        start = int(self._call("cudaHostAlloc", num_bytes, flags))
        memory = (ctypes.c_uint8 * num_bytes).from_address(start)
        host = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
        try:
            if self._zero_copy:
                return Buffer(host, int(self._call("cudaHostGetDevicePointer", start, 0)), zero_copy=True)
            return Buffer(host, int(self._call("cudaMalloc", num_bytes)))
        except BackendError:
            self._call("cudaFreeHost", start)
            raise

    def free(self, buffer: Buffer) -> None:
        if not buffer.zero_copy:
            self._call("cudaFree", buffer.address)
        self._call("cudaFreeHost", buffer.host.ctypes.data)

    def upload(self, buffer: Buffer, stream: Any) -> None:
        if not buffer.zero_copy:
            kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
            host = buffer.host
            self._call("cudaMemcpyAsync", buffer.address, host.ctypes.data, host.nbytes, kind, stream)

    def download(self, buffer: Buffer, stream: Any) -> None:
        if not buffer.zero_copy:
            kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
            host = buffer.host
            self._call("cudaMemcpyAsync", host.ctypes.data, buffer.address, host.nbytes, kind, stream)

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        # Thread-local: what other threads allocate meanwhile does not spoil the recording.
        self._call(
            "cudaStreamBeginCapture", stream, self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        )
        try:
            work()
        except BaseException:
            self._runtime.cudaStreamEndCapture(stream)  # the stream must leave the recording, whatever it says of it
            self._runtime.cudaGetLastError()
            raise
        recorded = self._call("cudaStreamEndCapture", stream)
        try:
            graph = self._call("cudaGraphInstantiate", recorded, 0)
        finally:
            self._call("cudaGraphDestroy", recorded)
        return Graph(
            launch=lambda: self._call("cudaGraphLaunch", graph, stream),
            destroy=lambda: self._call("cudaGraphExecDestroy", graph),
        )

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime; its result where it has one."""
        try:
            error, *results = getattr(self._runtime, name)(*arguments)
        except RuntimeError as err:  # before 12.6 a missing driver raises instead of being answered
            raise BackendError(f"{name} failed: {err}") from err
        if error != self._runtime.cudaError_t.cudaSuccess:
            raise BackendError(f"{name} failed: {self._text(error)}")
        return results[0] if results else None

    def _text(self, error: Any) -> str:
        try:
            text = self._runtime.cudaGetErrorString(error)[1].decode()
        except RuntimeError:
            text = "no text"
        return f"{text} ({getattr(error, 'name', error)})"

    def _advice(self) -> str:
        """What to install, where the binding is too new for the driver."""
        try:
            driver, runtime = self._call("cudaDriverGetVersion"), self._call("cudaRuntimeGetVersion")
        except BackendError:
            driver, runtime = 0, 0
        if driver == 0:
            return "; no NVIDIA driver is loaded"
        if driver // 1000 >= runtime // 1000:
            return ""
        had, wanted = driver // 1000, runtime // 1000
        install = f"`pip install 'cuda-python=={had}.*'`"
        return f"; the driver knows CUDA {had}, this cuda-python is for CUDA {wanted}: {install}"


class PyCuda:
    """`pycuda`, by Andreas Klöckner; it has no CUDA graphs.

    Args:
        driver: the module `pycuda.driver`.

    Raises:
        BackendUnavailable: there is no GPU that it can use.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        try:
            driver.init()
            # One object for all: pycuda takes a second one for the same context as another context.
            self._context = driver.Device(0).retain_primary_context()
        except driver.Error as err:
            raise BackendUnavailable(f"CUDA finds no GPU that it can use: {err}") from err

    @contextmanager
    def active(self) -> Iterator[None]:
        with self._translated("pushing the context"):
            self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def create_stream(self) -> Any:
        with self._translated("creating a stream"):
            return self._driver.Stream()

    def handle(self, stream: Any) -> int:
        return int(stream.handle)

    def synchronize(self, stream: Any) -> None:
        with self._translated("waiting for the stream"):
            stream.synchronize()

    def destroy_stream(self, stream: Any) -> None:
        """pycuda destroys it with the object."""

    def allocate(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Buffer:
        with self._translated("allocating memory"):
            host = self._driver.pagelocked_empty(shape, dtype)
            allocation = self._driver.mem_alloc(host.nbytes)
        return Buffer(host, int(allocation), allocation=allocation)

    def free(self, buffer: Buffer) -> None:
        with self._translated("freeing memory"):
            buffer.allocation.free()
            base: Any = buffer.host.base
            base.free()

    def upload(self, buffer: Buffer, stream: Any) -> None:
        with self._translated("copying to the GPU"):
            self._driver.memcpy_htod_async(buffer.allocation, buffer.host, stream)

    def download(self, buffer: Buffer, stream: Any) -> None:
        with self._translated("copying from the GPU"):
            self._driver.memcpy_dtoh_async(buffer.host, buffer.allocation, stream)

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        raise BackendError("pycuda has no CUDA graphs; cuda-python has")

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as err:
            raise BackendError(f"{what} failed: {err}") from err


def _import_cuda_python() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return importlib.import_module("cuda.cudart")  # before 12.6


def _import_pycuda() -> Any:
    return importlib.import_module("pycuda.driver")
