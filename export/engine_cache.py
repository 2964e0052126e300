"""Engines that are built once on a machine and found again by every later run.

::

    engine = engine_or_none(MODELS_FOLDER / "person-pose.tensorrt.fp16.onnx", note=print)
    detector = sdk.Detector(engine or "person-pose.int8")
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdk.backends.cuda import open_cuda
from sdk.detector import MODELS_FOLDER
from sdk.engine_files import (
    EngineHost,
    cache_folder,
    check_fits,
    check_integrity,
    find_gpu,
    read_record,
    this_host,
)
from sdk.errors import ConfigError, SdkError

from .engine import EngineOptions, Note, build_engine, host_slug, onnx_sha256, runtime_of

BUNDLED_ONNX = MODELS_FOLDER / "person-pose.tensorrt.fp16.onnx"


def bundled_engine(*, note: Note = lambda text: None) -> Path | None:
    """The engine of the model that ships, for this machine; None where ONNX Runtime must do, as `engine_or_none`."""
    return engine_or_none(BUNDLED_ONNX, note=note)


def engine_or_none(onnx_path: Path, *, note: Note = lambda text: None) -> Path | None:
    """As `cached_engine`, but None where TensorRT cannot be used.

    Without an NVIDIA GPU that is as it should be, and nothing is said. With one, the reason is noted.
    """
    if find_gpu() is None:
        return None
    try:
        open_cuda()  # what would run the engine, before the minutes that it takes to build
        return cached_engine(onnx_path, note=note)
    except SdkError as err:
        note(f"running on the CPU, without TensorRT: {err}")
        return None


def cached_engine(onnx_path: Path, *, note: Note = lambda text: None) -> Path:
    """The engine of an ONNX file for this machine: from the cache if it is there and sound, built if not.

    Two processes that ask at once build it once: the second waits for the first.

    Raises:
        As `build_engine`.
    """
    host = this_host(runtime_of(onnx_path))
    digest = onnx_sha256(onnx_path)
    path = _folder() / f"{onnx_path.stem}-{digest[:12]}-{host_slug(host)}.engine"
    with _lock(path.with_suffix(".lock"), note):
        if not _is_sound(path, digest, host, note):
            note(f"building the engine of {onnx_path.name} once for this machine; this can take minutes")
            build_engine(onnx_path, path, EngineOptions(), note=note)
    return path


def _folder() -> Path:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(
            f"cannot keep engines in {folder}: {err.strerror}; set XDG_CACHE_HOME to a writable folder"
        ) from err
    return folder


def _is_sound(path: Path, onnx_digest: str, host: EngineHost, note: Note) -> bool:
    """Whether the cached engine is there, whole, of this file and for this machine."""
    if not path.exists():
        return False
    try:
        record = read_record(path)
        check_fits(record, host)
        check_integrity(path, record)
    except SdkError as err:
        note(f"the cached engine cannot be used and is built again: {err}")
        return False
    return record.onnx_sha256 == onnx_digest


@contextmanager
def _lock(path: Path, note: Note) -> Iterator[None]:
    """Held by one process at a time, and freed by the system when it ends in whatever way."""
    if os.name == "nt":
        yield  # without the lock both build, and the last to finish stays
        return
    import fcntl

    try:
        file = path.open("w")
    except OSError as err:
        raise ConfigError(f"cannot write {path}: {err.strerror}; set XDG_CACHE_HOME to a writable folder") from err
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note("another process is building this engine; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
