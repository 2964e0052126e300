"""ONNX files: read and checked, or written whole or not at all.

::

    model, spec = read_onnx(path)
    with replacing(out) as temporary:
        write_onnx(model, spec, temporary)
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.errors import ConfigError, InputError, SpecError
from sdk.onnx_metadata import external_paths
from sdk.spec import ONNX_METADATA_KEY, ModelSpec

# What a graph was made from: every export of one checkpoint carries the same value, whatever its target or
# size, so that ranges measured on one can be used for another.
WEIGHTS_METADATA_KEY = "centeredge.weights"
# ONNX Runtime 1.23, the last one for Python 3.10, reads no newer file format.
MAX_IR_VERSION = 10


def read_onnx(path: Path) -> tuple[onnx.ModelProto, ModelSpec]:
    """A model and its spec.

    Raises:
        InputError: the file is missing, not ONNX, or keeps weights in files outside its folder.
        SpecError: it has no ModelSpec.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror}") from err
    except Exception as err:  # of protobuf, which says what the bytes are not
        raise InputError(f"{path} is not an ONNX file, or it is cut short") from err
    if not model.graph.node or not model.graph.output:
        raise InputError(f"{path} is not an ONNX file: it holds no graph")
    _load_external_weights(model, path)
    metadata = metadata_of(model)
    if ONNX_METADATA_KEY not in metadata:
        raise SpecError(f"{path} has no ModelSpec; use a file that `centeredge export` wrote")
    return model, ModelSpec.from_json(metadata[ONNX_METADATA_KEY])


def _load_external_weights(model: onnx.ModelProto, path: Path) -> None:
    """Weights in other files are read where those lie in the folder of the .onnx; elsewhere they could be anything."""
    if external_paths(path):
        onnx.load_external_data_for_model(model, str(path.resolve().parent))


def write_onnx(model: onnx.ModelProto, path: Path, *, spec: ModelSpec, weights_sha256: str) -> None:
    """Check a model and write it with its spec, weights included."""
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    metadata = {**metadata_of(model), ONNX_METADATA_KEY: spec.to_json(), WEIGHTS_METADATA_KEY: weights_sha256}
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def open_model(model: onnx.ModelProto, spec: ModelSpec) -> OnnxRuntimeBackend:
    """A model in memory, as ONNX Runtime runs it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(model, path, spec=spec, weights_sha256=weights_sha256_of(model))
        return OnnxRuntimeBackend(path)


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def weights_sha256_of(model: onnx.ModelProto) -> str:
    """What the graph was made from; for a file that does not say so, its own content."""
    known = metadata_of(model).get(WEIGHTS_METADATA_KEY)
    return known or hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_writable(path: Path) -> None:
    """Raises ConfigError where a file cannot be written; to be known before long work, not after."""
    if path.is_dir():
        raise ConfigError(f"cannot write {path}: it is a folder")
    temporary = _temporary(path)
    try:
        temporary.touch()
        temporary.unlink()
    except OSError as err:
        raise ConfigError(f"cannot write {path}: {err.strerror}; choose a folder that exists and is writable") from err


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, which becomes `path` if the block succeeds and vanishes if not.

    Raises:
        ConfigError: nothing can be written there.
    """
    check_writable(path)
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
