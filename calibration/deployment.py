"""What the packages after this one know of a runtime, and a calibration needs: the last steps to its file.

::

    deployment = Deployment(finish=partial(finish, form=form), rounded=rounded_like_half, half=...)
    report = calibrate(model_path, out, config, deployment=deployment)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnx import ModelProto

from sdk.spec import ModelSpec

Finish = Callable[[ModelProto, ModelSpec], tuple[ModelProto, ModelSpec]]


def _as_it_is(model: ModelProto, spec: ModelSpec) -> tuple[ModelProto, ModelSpec]:
    return model, spec


def _exactly(model: ModelProto) -> ModelProto:
    return model


@dataclass(frozen=True)
class Deployment:
    """From a graph with dense heads, typed FP32, to the file of a runtime.

    Attributes:
        finish: gives the file for the INT8 graph.
        half: gives the FP16 file for the float graph; None where FP16 is no alternative.
        rounded: of a file's graph, one that rounds in ONNX Runtime on a CPU as the file does in its runtime.
    """

    finish: Finish = _as_it_is
    half: Finish | None = None
    rounded: Callable[[ModelProto], ModelProto] = _exactly


AS_IT_IS = Deployment()
