"""What each runtime gets: one row a target.

Sources: TensorRT's and onnx-tensorrt's documents by version (docs/export.md names them), and measurements on a CPU
(docs/benchmarks.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sdk.spec import OutputForm

if TYPE_CHECKING:  # needs onnx, and the command line's help does not
    from calibration.deform_conv import DeformConvForm


@dataclass(frozen=True)
class Target:
    """The form of a graph for one runtime.

    Attributes:
        runtime: what runs the file, for people.
        opset: of ONNX, for networks without deformable convolution.
        deform_conv_opset: for networks with it.
        output: dense heads, or the peaks alone.
        deform_conv: the form of a deformable convolution.
        cast_first: whether Cast must be the first operator that reads the uint8 frame, before the transpose.
        int8_float: type of what an INT8 file does not quantise.
        int8_opset: of INT8 files, at least; FP16 beside INT8 exists since 19.
    """

    runtime: str
    opset: int
    deform_conv_opset: int
    output: OutputForm
    deform_conv: DeformConvForm
    cast_first: bool
    int8_float: Literal["fp32", "fp16"]
    int8_opset: int


TARGETS = {
    # Transposing bytes costs a fifth of transposing floats; the host reads the few cells above the threshold.
    "onnxruntime": Target(
        "ONNX Runtime 1.18 and later, 1.25 for deformable convolution",
        opset=18, deform_conv_opset=19, output="dense", deform_conv="operator", cast_first=False,
        int8_float="fp32", int8_opset=18,
    ),
    # The importers of 10.1 and later know DeformConv. What is not INT8 is FP16 only if the file says so.
    "tensorrt": Target(
        "TensorRT 10.1 to 11",
        opset=18, deform_conv_opset=19, output="peaks", deform_conv="operator", cast_first=True,
        int8_float="fp16", int8_opset=19,
    ),
    # Importers up to 8.6 end at opset 17. Weakly typed: builder flags say what else may be FP16.
    "tensorrt-8": Target(
        "TensorRT 8.5 and later",
        opset=17, deform_conv_opset=17, output="peaks", deform_conv="grid_sample", cast_first=True,
        int8_float="fp32", int8_opset=17,
    ),
    # Has no plugins, and so no DeformConv.
    "tensorrt-rtx": Target(
        "TensorRT-RTX 1.x",
        opset=18, deform_conv_opset=18, output="peaks", deform_conv="grid_sample", cast_first=True,
        int8_float="fp16", int8_opset=19,
    ),
}  # fmt: skip
