"""What runs a network: one protocol, one module a runtime, chosen by the file's suffix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from ..errors import BackendError, InputError
from ..spec import ModelSpec

Arrays = Mapping[str, npt.NDArray[Any]]


class Backend(Protocol):
    """Runs one network.

    Attributes:
        spec: of the model.
        inputs: names of the inputs.
        outputs: names of the outputs.
    """

    spec: ModelSpec
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def infer(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name, for inputs by name; the arrays belong to the caller."""
        ...

    def close(self) -> None: ...


def open_backend(path: Path, *, threads: int | None = None) -> Backend:
    """The backend for a model file, by its suffix.

    Args:
        path: a .onnx file.
        threads: of the CPU for one frame; None lets the runtime choose.

    Raises:
        InputError: there is no such file.
        BackendError: the suffix is unknown, or the file cannot be loaded.
        SpecError: the model carries no usable ModelSpec.
    """
    if not path.is_file():
        raise InputError(f"there is no model file {path}")
    if path.suffix == ".onnx":
        from .onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(path, threads=threads)
    if path.suffix == ".engine":
        raise BackendError(
            f"{path}: TensorRT engines are not supported by this version yet; use the .onnx file the engine came from"
        )
    raise BackendError(f"{path} has an unknown suffix {path.suffix!r}; expected .onnx")
