"""From a PyTorch model to the canonical graph: uint8 frame in, raw dense heads out, FP32, no size inside.

::

    graph = trace(model, spec)
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from torch import nn

from calibration.onnx_files import WEIGHTS_METADATA_KEY
from sdk.backends.onnxruntime import INPUT_NAME
from sdk.onnx_metadata import MULTIPLE_METADATA_KEY, TARGET_METADATA_KEY
from sdk.spec import ONNX_METADATA_KEY, ModelSpec
from train.models.deform_conv import DeformConv2d

from .conversion import check_size, set_metadata
from .errors import ExportError
from .graph import tidy
from .network import ExportedNetwork
from .targets import TARGETS

_CANONICAL = "onnxruntime"
_EXPORTER_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def trace(model: nn.Module, spec: ModelSpec) -> onnx.ModelProto:
    """The canonical graph of a model, with its metadata.

    Args:
        model: in evaluation mode; it is not changed.
        spec: of the model; its input size is the size that is traced.

    Raises:
        ExportError: the size does not fit the network, or the model cannot be expressed in ONNX.
    """
    multiple = input_multiple(model)
    check_size(spec.input.wh, multiple)
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
    graph = program.model_proto
    tidy(graph)
    metadata = {
        ONNX_METADATA_KEY: spec.to_json(),
        WEIGHTS_METADATA_KEY: weights_sha256(model),
        TARGET_METADATA_KEY: _CANONICAL,
        MULTIPLE_METADATA_KEY: str(multiple),
    }
    set_metadata(graph, metadata)
    return graph


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


def _opset_of(model: nn.Module) -> int:
    target = TARGETS[_CANONICAL]
    has_deform_conv = any(isinstance(layer, DeformConv2d) for layer in model.modules())
    return target.deform_conv_opset if has_deform_conv else target.opset


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
