"""From a PyTorch model to an ONNX file that has been proven equal to it.

::

    differences = export_onnx(model, spec, Path("model.onnx"))
"""

from __future__ import annotations

import copy
import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from calibration.onnx_files import replacing, write_onnx
from sdk.backends.onnxruntime import INPUT_NAME, OnnxRuntimeBackend
from sdk.spec import ModelSpec
from train.evaluate import TorchBackend
from train.models.deform_conv import DeformConv2d

from .errors import ExportError
from .graph import tidy
from .network import ExportedNetwork
from .verification import HeadDifference, check, compare_heads, drawn_frames

# ONNX Runtime quantises up to 20, and the exporter is at home in 18.
OPSET = 18
DEFORM_CONV_OPSET = 19  # the first with the operator
_EXPORTER_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def export_onnx(model: nn.Module, spec: ModelSpec, path: Path) -> list[HeadDifference]:
    """Write a model for ONNX Runtime: uint8 frame in, raw dense heads out, the spec inside.

    The file appears under its name only after its heads have been compared with the PyTorch model's.

    Args:
        model: in evaluation mode; it is not changed.
        spec: of the model; its input size is the size that is exported.
        path: of the file to write, .onnx.

    Returns:
        How far the file's heads are from the model's, on drawn scenes.

    Raises:
        ExportError: the size does not fit the network, the model cannot be expressed in ONNX, or the heads
            differ.
        ConfigError: the file cannot be written.
    """
    check_size(spec.input.wh, input_multiple(model))
    with replacing(path) as temporary:
        graph = _traced(model, spec)
        tidy(graph)
        write_onnx(graph, temporary, spec=spec, weights_sha256=weights_sha256(model))
        reference = TorchBackend(copy.deepcopy(model), spec)
        differences = compare_heads(reference, OnnxRuntimeBackend(temporary), drawn_frames(spec))
        check(differences)
    return differences


def weights_sha256(model: nn.Module) -> str:
    """What tells a trained model from every other: names, shapes and values of its tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def input_multiple(model: nn.Module) -> int:
    """What the sides of the input must be multiples of."""
    return int(getattr(model, "input_multiple", 32))


def check_size(wh: tuple[int, int], multiple: int) -> None:
    """Raises ExportError where the network's coarsest map would not come out whole."""
    for side in wh:
        if side % multiple:
            below = max(side // multiple, 1) * multiple
            raise ExportError(
                f"size {wh[0]}x{wh[1]} does not fit: {side} is no multiple of {multiple}, the network's "
                f"coarsest stride; the nearest are {below} and {below + multiple}"
            )


def _traced(model: nn.Module, spec: ModelSpec) -> onnx.ModelProto:
    frame = torch.zeros(1, spec.input.height, spec.input.width, 3, dtype=torch.uint8)
    network = ExportedNetwork(model, spec).eval()
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                network,
                (frame,),
                input_names=[INPUT_NAME],
                output_names=[head.name for head in spec.heads],
                opset_version=_opset_of(model),
                dynamo=True,
                verbose=False,
            )
        except Exception as err:  # the exporter's errors share no base class
            reason = str(err).strip().splitlines()[0]
            raise ExportError(f"PyTorch cannot express this model in ONNX: {reason}") from err
    assert program is not None
    return program.model_proto


def _opset_of(model: nn.Module) -> int:
    return DEFORM_CONV_OPSET if any(isinstance(layer, DeformConv2d) for layer in model.modules()) else OPSET


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's progress and its warnings about PyTorch's own code; errors stay."""
    loggers = [logging.getLogger(name) for name in _EXPORTER_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
