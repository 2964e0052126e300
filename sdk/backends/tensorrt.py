"""TensorRT, on a Jetson or a desktop with an NVIDIA GPU; TensorRT-RTX in the same way."""

from __future__ import annotations

import functools
import logging
import weakref
from collections import deque
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine_files import (
    RUNTIME_NAMES,
    EngineRecord,
    check_fits,
    check_integrity,
    load_runtime,
    read_record,
    this_host,
)
from ..errors import BackendError, BackendUnavailable, HeadShapeError, SpecError
from . import Arrays, output_shapes
from .cuda import Buffer, Cuda, Graph, open_cuda
from .onnxruntime import INPUT_NAME

_logger = logging.getLogger(__name__)

# By name, because TensorRT's own table needs types that some versions of NumPy lack.
_NUMPY_TYPES: dict[str, type[np.generic]] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class _Tensor:
    """An input or output of an engine, for a batch of one."""

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name!r} of {self.dtype} {self.shape}"


class TensorRtBackend:
    """Runs a .engine file, with its sidecar .engine.json beside it, on the first GPU.

    The input is `frame`, (1, h, w, 3) uint8; the outputs are the heads by name, or the peaks in them. An engine of
    dynamic batch runs with a batch of one. Engines are code: the hash is checked before TensorRT sees the file. One
    frame is run on opening, and the work recorded as a CUDA graph where the CUDA binding and the engine allow it. Any
    thread may call it, but only one at a time.

    Args:
        path: the engine.
        threads: not used; the work is done on the GPU.

    Attributes:
        any_size: no engine takes frames of other sizes than its spec's.

    Raises:
        InputError: there is no engine, or no sidecar.
        EngineMismatch: it is damaged, or was built for another machine or version; says how to build it again.
        BackendUnavailable: TensorRT or a CUDA binding is not installed, or there is no GPU.
        BackendError: TensorRT or CUDA failed.
        SpecError: the sidecar is damaged, or the engine's inputs and outputs contradict it.
    """

    any_size = False

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        record = read_record(path)
        plan = check_integrity(path, record)
        trt, self._cuda = _open_runtime(record, path)
        self._path = path
        self.spec = record.spec
        held = ExitStack()
        # A finalizer, because it also frees what a program forgot to close.
        self._free = weakref.finalize(self, _release, self._cuda, held)
        try:
            with self._cuda.active():
                self._engine = held.enter_context(closing(_Engine(plan, trt, record, path)))
                _check_against_spec(self._engine.tensors, record, path)
                self.inputs = tuple(tensor.name for tensor in self._engine.tensors if tensor.is_input)
                self.outputs = tuple(tensor.name for tensor in self._engine.tensors if not tensor.is_input)
                self._stream = self._cuda.create_stream()
                held.callback(self._cuda.destroy_stream, self._stream)
                self._buffers = {tensor.name: self._allocate(tensor, held) for tensor in self._engine.tensors}
                self._graph = self._record(held)
        except BaseException:
            self.close()
            raise

    def infer(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one frame.

        Raises:
            BackendError: an input is missing or not what the engine takes, the run failed, or the backend is closed.
        """
        if not self._free.alive:
            raise BackendError(f"{self._path} was closed; open it again")
        self._check_feeds(feeds)
        with self._cuda.active():
            for name in self.inputs:
                np.copyto(self._buffers[name].host, feeds[name])
            if self._graph is None:
                self._enqueue()
            else:
                self._graph.launch()
            self._cuda.synchronize(self._stream)
            return {name: self._buffers[name].host.copy() for name in self.outputs}

    def close(self) -> None:
        """Free the engine and its memory on both sides; nothing happens the second time."""
        self._free()

    def _allocate(self, tensor: _Tensor, held: ExitStack) -> Buffer:
        buffer = self._cuda.allocate(tensor.shape, tensor.dtype)
        held.callback(self._cuda.free, buffer)
        self._engine.bind(tensor, buffer.address)
        return buffer

    def _record(self, held: ExitStack) -> Graph | None:
        """The work on one frame, to be started as a whole: launching each layer takes longer than a small one runs."""
        self._enqueue()  # the first run loads kernels and sets up memory, which cannot be recorded
        self._cuda.synchronize(self._stream)
        try:
            self._engine.check_recordable(self._cuda.handle(self._stream))
            graph = self._cuda.capture(self._stream, self._enqueue)
        except BackendError as err:
            _logger.info("%s runs without a CUDA graph: %s", self._path, err)
            return None
        held.callback(graph.destroy)
        return graph

    def _enqueue(self) -> None:
        """Queue the copies and the network."""
        for name in self.inputs:
            self._cuda.upload(self._buffers[name], self._stream)
        self._engine.enqueue(self._cuda.handle(self._stream))
        for name in self.outputs:
            self._cuda.download(self._buffers[name], self._stream)

    def _check_feeds(self, feeds: Arrays) -> None:
        if set(feeds) != set(self.inputs):
            raise BackendError(f"{self._path} takes the inputs {sorted(self.inputs)}, got {sorted(feeds)}")
        for name, array in feeds.items():
            host = self._buffers[name].host
            if (array.shape, array.dtype) != (host.shape, host.dtype):
                raise BackendError(
                    f"{self._path} takes {name!r} as {host.dtype} {host.shape}, got {array.dtype} {array.shape}"
                )


class _Engine:
    """TensorRT's side: the plan deserialised, and one execution context of a batch of one.

    Attributes:
        tensors: inputs and outputs, in the engine's order.
    """

    def __init__(self, plan: bytes, trt: Any, record: EngineRecord, path: Path) -> None:
        self._trt, self._record, self._path = trt, record, path
        self._log = tensorrt_log(trt)
        self._log.errors.clear()
        self._engine = self._deserialise(plan)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure("TensorRT made no execution context; is enough memory free?")
        self._set_batch()
        self.tensors = self._describe()

    def bind(self, tensor: _Tensor, address: int) -> None:
        """Say where a tensor lies on the GPU."""
        if not self._context.set_tensor_address(tensor.name, address):
            raise self._failure(f"TensorRT refused the memory for {tensor}")

    def enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise self._failure("the run failed")

    def check_recordable(self, stream: int) -> None:
        """Raises BackendError where TensorRT-RTX says that it will allocate or compile during a run."""
        if hasattr(self._context, "is_stream_capturable") and not self._context.is_stream_capturable(stream):
            raise self._failure("the engine cannot be recorded")

    def close(self) -> None:
        self._context = self._engine = None

    def _deserialise(self, plan: bytes) -> Any:
        trt = self._trt
        trt.init_libnvinfer_plugins(self._log, "")  # deformable convolution is one
        runtime = trt.Runtime(self._log)
        if self._record.version_compatible:
            runtime.engine_host_code_allowed = True  # such a plan brings the runtime of its own version
        if self._record.dla_core is not None:
            runtime.DLA_core = self._record.dla_core
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failure(
                f"{RUNTIME_NAMES[self._record.runtime]} {trt.__version__} cannot load it; build it again: "
                f"`{self._record.rebuild}`"
            )
        return engine

    def _names(self) -> list[str]:
        return [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]

    def _is_input(self, name: str) -> bool:
        return bool(self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT)

    def _set_batch(self) -> None:
        """A dynamic batch becomes one."""
        for name in filter(self._is_input, self._names()):
            shape = tuple(self._engine.get_tensor_shape(name))
            if shape[:1] == (-1,) and not self._context.set_input_shape(name, (1, *shape[1:])):
                least, _, most = self._record.batch
                raise self._failure(
                    f"it takes {least} to {most} frames at once, and the SDK gives it one; build it with "
                    "--dynamic-batch 1,..."
                )

    def _describe(self) -> tuple[_Tensor, ...]:
        return tuple(
            _Tensor(name, self._is_input(name), self._dtype(name), tuple(self._context.get_tensor_shape(name)))
            for name in self._names()
        )

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _NUMPY_TYPES:
            raise self._failure(f"{name!r} is of type {kind}, expected one of {', '.join(_NUMPY_TYPES)}")
        return np.dtype(_NUMPY_TYPES[kind])

    def _failure(self, what: str) -> BackendError:
        said = f" (TensorRT: {self._log.last()})" if self._log.errors else ""
        self._log.errors.clear()
        return BackendError(f"{self._path}: {what}{said}")


class TensorRtLog:
    """What TensorRT says: warnings go on to `logging`, the last errors into our own."""

    def __init__(self) -> None:
        super().__init__()  # of TensorRT's ILogger, which crashes where this is left out
        self.errors: deque[str] = deque(maxlen=20)

    def log(self, severity: Any, message: str) -> None:
        message = " ".join(message.split())
        if int(severity) <= 1:  # 0 is an internal error, 1 an error, 2 a warning
            self.errors.append(message[:300])
        _logger.log(logging.WARNING if int(severity) == 2 else logging.DEBUG, "%s", message)

    def last(self) -> str:
        return self.errors[-1] if self.errors else ""


@functools.cache
def tensorrt_log(trt: Any) -> TensorRtLog:
    """The logger for the module `tensorrt` or `tensorrt_rtx`.

    One for the whole process: TensorRT keeps the first that it meets, and warns of every other.
    """
    log: TensorRtLog = type("Log", (TensorRtLog, trt.ILogger), {})()
    return log


def _open_runtime(record: EngineRecord, path: Path) -> tuple[Any, Cuda]:
    """TensorRT and CUDA, once it is known that the engine fits this machine."""
    host = this_host(record.runtime)
    if host.gpu is None:
        raise BackendUnavailable(
            f"{path} needs an NVIDIA GPU, and this machine has none whose driver answers; run the .onnx file here"
        )
    check_fits(record, host)
    return load_runtime(record.runtime), open_cuda()


def _check_against_spec(tensors: tuple[_Tensor, ...], record: EngineRecord, path: Path) -> None:
    """The engine's tensors are those of its spec; an output may be more than that."""
    width, height = record.spec.input.wh
    frame = _Tensor(INPUT_NAME, True, np.dtype(np.uint8), (1, height, width, 3))
    inputs = [tensor for tensor in tensors if tensor.is_input]
    if inputs != [frame]:
        got = ", ".join(map(str, inputs)) or "nothing"
        raise SpecError(f"{path} takes {got}, its ModelSpec says {frame}; build it again: `{record.rebuild}`")
    shapes = {tensor.name: tensor.shape for tensor in tensors if not tensor.is_input}
    for name, declared in output_shapes(record.spec).items():
        if shapes.get(name) != (1, *declared):
            raise HeadShapeError(
                f"{path} gives {name!r} as {shapes.get(name)}, its ModelSpec declares {(1, *declared)}. The engine and "
                f"its sidecar come from different models; build it again: `{record.rebuild}`"
            )


def _release(cuda: Cuda, held: ExitStack) -> None:
    try:
        with cuda.active():
            held.close()
    except BackendError as err:  # after a failed run CUDA refuses everything, and the first error has been raised
        _logger.warning("the engine's memory could not be freed: %s", err)
