"""From a checkpoint to an ONNX file that has been proven equal to it.

::

    report = export_onnx(model, spec, Path("model.onnx"))
    report = export_model(checkpoint_source(Path("best.pth")), Path("model.onnx"), Form("tensorrt", precision="fp16"))
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from calibration.onnx_files import check_writable
from sdk.backends import Backend
from sdk.spec import ModelSpec
from train.checkpoint import load_checkpoint
from train.evaluate import TorchBackend

from .conversion import Form
from .pipeline import Source, export_model
from .tracing import trace
from .verification import Report


def export_onnx(model: nn.Module, spec: ModelSpec, path: Path, form: Form | None = None) -> Report:
    """Write a model as ONNX, by default for ONNX Runtime: uint8 frame in, raw dense heads out, the spec inside.

    The file appears under its name only after it has been compared with the PyTorch model.

    Args:
        model: in evaluation mode; it is not changed.
        spec: of the model; its input size is the size that is exported.
        path: of the file to write, .onnx.
        form: that is wanted; None: FP32 for ONNX Runtime.

    Returns:
        How far the file is from the model, on drawn scenes.

    Raises:
        ExportError: the size does not fit the network, the model cannot be expressed in ONNX, or the heads
            differ.
        ConfigError: the file cannot be written.
    """
    check_writable(path)
    return export_model(model_source(model, spec), path, form or Form())


def model_source(model: nn.Module, spec: ModelSpec, *, name: str = "model") -> Source:
    """A PyTorch model, in evaluation mode, as a source.

    Raises:
        ExportError: its size does not fit the network, or it cannot be expressed in ONNX.
    """

    def reference(sized_spec: ModelSpec) -> Backend:
        return TorchBackend(model, sized_spec)

    return Source(trace(model, spec), spec, name, "PyTorch", reference)


def checkpoint_source(path: Path, *, architecture: str | None = None, task: str | None = None) -> Source:
    """A checkpoint, ours or official, as a source.

    Raises:
        As `train.checkpoint.load_checkpoint` and `model_source`.
    """
    model, spec = load_checkpoint(path, architecture, task)
    return model_source(model, spec, name=path.name)
