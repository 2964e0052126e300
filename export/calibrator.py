"""INT8 without Q/DQ: how TensorRT 8 to 10 are given ranges, or photographs to measure them on, also for the DLA.

TensorRT 11 has only Q/DQ. Up to 10, a calibrator hands over a cache of ranges (calibration/tensorrt_cache.py); where
there is none, TensorRT runs the float network on photographs, chooses the ranges by entropy, and the cache is kept::

    calibrator = entropy_calibrator(trt, photograph_frames(folder, spec), Path("ranges.cache"), cuda=open_cuda())
    config.int8_calibrator = calibrator
    plan = builder.build_serialized_network(network, config)
    calibrator.finish()

Sources: "IInt8EntropyCalibrator2" in the Python API references of 8.6 and 10.7, which the DLA asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from calibration.errors import CalibrationError
from calibration.tensorrt_cache import cache_content, read_cache, replace_file
from sdk.backends.cuda import Buffer, Cuda
from sdk.errors import BackendError, ConfigError
from sdk.preprocessing import prepare
from sdk.sources.images import folder_images
from sdk.spec import ModelSpec

Note = Callable[[str], None]
Frame = npt.NDArray[np.uint8]
_T = TypeVar("_T")


def entropy_calibrator(
    trt: Any, frames: Iterable[Frame] | None, cache_path: Path, *, cuda: Cuda | None = None
) -> EntropyCalibrator:
    """A calibrator for a builder's configuration; the caller keeps it until the engine is built.

    Args:
        trt: the module `tensorrt`, 8 to 10.
        frames: (1, h, w, 3) uint8 as the network takes them, each given to TensorRT once, in order; None where there
            is a cache.
        cache_path: is read if it is there, whichever version wrote it, and written if not.
        cuda: to copy frames with.

    Raises:
        ConfigError: this TensorRT has no calibrators.
        InputError, CalibrationError: the cache is not there, and neither are frames; or it is damaged.
    """
    if not hasattr(trt, "IInt8EntropyCalibrator2"):
        raise ConfigError(
            f"TensorRT {trt.__version__} has no calibrators, 10 was the last; put the ranges into the file: "
            "`centeredge export MODEL.onnx OUT.engine --precision int8 --ranges FILE`"
        )
    cache = None
    if frames is None or cache_path.exists():
        # TensorRT refuses a cache of another version for its first line alone, so it gets one of its own.
        cache = cache_content(read_cache(cache_path), tensorrt_version=trt.__version__)
    elif cuda is None:
        raise ConfigError("frames are copied to the GPU, and there is no CUDA to do it with; give `cuda`, or a cache")
    kind = type("EntropyCalibrator2", (EntropyCalibrator, trt.IInt8EntropyCalibrator2), {})
    calibrator: EntropyCalibrator = kind(frames, cache_path, cache=cache, cuda=cuda)
    return calibrator


def photograph_frames(folder: Path, spec: ModelSpec, *, note: Note = lambda text: None) -> Iterator[Frame]:
    """The photographs of a folder as the network takes them, by exactly the SDK's preprocessing, in natural order.

    Raises:
        SourceOpenError: the folder is not there, or holds no image.
        CalibrationError: more than 5 % cannot be read, or fewer than two can.
    """
    from calibration.photographs import PhotographReader  # needs onnx, which a Jetson with a cache does without

    reader = PhotographReader(folder_images(folder))
    for image in reader:
        yield prepare(image, spec).tensor
    for photograph in reader.unreadable:
        note(f"{photograph.name} was left out of the calibration: {photograph.reason}")


class EntropyCalibrator:
    """What TensorRT calls while it builds.

    No exception may leave a callback: some bindings end the process, others print it, take it for the end of the
    photographs and calibrate on those before it. So the first is kept, and raised by `finish`.
    """

    def __init__(
        self, frames: Iterable[Frame] | None, cache_path: Path, *, cache: bytes | None, cuda: Cuda | None
    ) -> None:
        super().__init__()  # of TensorRT's class; without it the builder crashes
        self._frames = iter(frames or ())
        self._cache_path = cache_path
        self._cache = cache
        self._cuda = cuda
        self._stream: Any = None
        self._buffer: Buffer | None = None
        self._failure: BaseException | None = None

    def get_batch_size(self) -> int:
        return 1

    def get_batch(self, names: list[str]) -> list[int] | None:
        """Addresses of the next frame on the GPU, one an input; None when there are no more."""
        return self._guarded(lambda: self._next_frame(names))

    def read_calibration_cache(self) -> bytes | None:
        return self._cache

    def write_calibration_cache(self, cache: Any) -> None:
        """Keep what TensorRT measured; what it was given needs no copy."""
        if self._cache is None:
            self._guarded(lambda: replace_file(self._cache_path, bytes(memoryview(cache))))

    def finish(self) -> None:
        """Free the GPU's memory, and raise what went wrong in a callback."""
        if self._cuda is not None and self._stream is not None:
            with self._cuda.active():
                if self._buffer is not None:
                    self._cuda.free(self._buffer)
                self._cuda.destroy_stream(self._stream)
        self._buffer = self._stream = None
        if self._failure is not None:
            raise self._failure

    def _next_frame(self, names: list[str]) -> list[int] | None:
        if self._cache is not None:
            raise CalibrationError(
                f"TensorRT does not take the ranges of {self._cache_path} and asks for photographs; calibrate again, "
                "for this very model"
            )
        if len(names) != 1:
            raise BackendError(f"TensorRT asks for the inputs {names}, expected one; use a file that we exported")
        frame = next(self._frames, None)
        if frame is None or self._cuda is None:
            return None
        with self._cuda.active():
            if self._buffer is None:
                self._stream = self._cuda.create_stream()
                self._buffer = self._cuda.allocate(frame.shape, frame.dtype)
            self._buffer.host[...] = frame
            self._cuda.upload(self._buffer, self._stream)
            self._cuda.synchronize(self._stream)
        return [self._buffer.address]

    def _guarded(self, work: Callable[[], _T]) -> _T | None:
        """The result of `work`; None once anything went wrong."""
        if self._failure is None:
            try:
                return work()
            except BaseException as err:
                self._failure = err
        return None
