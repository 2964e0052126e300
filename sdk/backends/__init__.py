"""What runs a network: one protocol, one module a runtime, chosen by the file's suffix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from ..errors import BackendError, InputError
from ..peaks import peak_shapes
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
        path: a .onnx file, or a .engine file with its sidecar.
        threads: of the CPU for one frame; None lets the runtime choose. An engine runs on the GPU and needs none.

    Raises:
        InputError: there is no such file.
        BackendError: the suffix is unknown, or the file cannot be loaded.
        BackendUnavailable: the runtime is not installed, or an engine finds no GPU.
        EngineMismatch: an engine was built for another machine or version, or is damaged.
        SpecError: the model carries no usable ModelSpec.
    """
    if not path.is_file():
        raise InputError(f"there is no model file {path}")
    if path.suffix == ".onnx":
        from .onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(path, threads=threads)
    if path.suffix == ".engine":
        from .tensorrt import TensorRtBackend

        return TensorRtBackend(path, threads=threads)
    raise BackendError(f"{path} has an unknown suffix {path.suffix!r}; expected .onnx or .engine")


def output_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The outputs of a model by name, maps or peaks, with their shapes for one frame, which lack the batch axis."""
    if spec.output == "peaks":
        return peak_shapes(spec)
    width, height = spec.feature_wh
    return {str(head.name): (head.channels, height, width) for head in spec.heads}
