"""What each runtime gets: one row a target.

Sources: TensorRT's and onnx-tensorrt's documents by version (docs/export.md names them), and measurements on a CPU
(docs/benchmarks.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdk.spec import OutputForm

# `operator`: ONNX's DeformConv. `grid_sample`: one GridSample of all nine taps, then a 1x1 convolution.
# `project_then_gather`: a 1x1 convolution to nine times the channels, then 36 rows a cell are gathered and summed.
DeformConvForm = Literal["operator", "grid_sample", "project_then_gather"]


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
    """

    runtime: str
    opset: int
    deform_conv_opset: int
    output: OutputForm
    deform_conv: DeformConvForm
    cast_first: bool


TARGETS = {
    # Transposing bytes costs a fifth of transposing floats; the host reads the few cells above the threshold.
    "onnxruntime": Target("ONNX Runtime 1.18 and later", 18, 19, "dense", "operator", cast_first=False),
    # The importer of 10.1 and later knows DeformConv, up to opset 19 in all its versions.
    "tensorrt": Target("TensorRT 10.1 to 11", 18, 19, "peaks", "operator", cast_first=True),
    "tensorrt-8": Target("TensorRT 8.5 and later", 17, 17, "peaks", "grid_sample", cast_first=True),
    "tensorrt-rtx": Target("TensorRT-RTX 1.x", 18, 18, "peaks", "grid_sample", cast_first=True),
}
