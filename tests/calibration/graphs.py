"""Small graphs, written layer by layer, and what they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper

from calibration.collection import range_sources
from calibration.graph_writer import GraphWriter
from calibration.methods import Range

_OPSET = 19


class Network:
    """A graph from a uint8 frame on, with random weights; each tensor has the name of its layer.

    Args:
        wh: of the frame.
        seed: of the weights.
    """

    def __init__(self, wh: tuple[int, int] = (32, 32), *, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._write = GraphWriter("network")
        self._wh = wh
        self._channels: dict[str, int] = {}
        self._arrays: list[TensorProto] = []
        transposed = self.layer("Transpose", "frame", name="Transpose", perm=[0, 3, 1, 2])
        self.pixels = self.layer("Cast", transposed, name="Cast", to=TensorProto.FLOAT)
        self._channels[self.pixels] = 3

    def layer(self, operator: str, *inputs: str, name: str, channels: int | None = None, **attributes: Any) -> str:
        """Any operator; it has the channels of its first input unless `channels` says otherwise."""
        self._channels[name] = channels or self._channels.get(inputs[0], 0)
        return self._write(operator, *inputs, output=name, **attributes)

    def conv(self, x: str, channels: int, name: str, *, kernel: int | tuple[int, int] = 3, group: int = 1) -> str:
        """A convolution that keeps the size, with a bias."""
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        before = self._channels[x] // group
        # Pixels reach 255, activations about 1.
        scale = (before * height * width) ** -0.5 / (100 if x == self.pixels else 1)
        weight = self.array(f"{name}.weight", (channels, before, height, width), scale=scale)
        bias = self.array(f"{name}.bias", (channels,), scale=0.1)
        pads = [height // 2, width // 2, height // 2, width // 2]
        return self.layer("Conv", x, weight, bias, name=name, channels=channels, pads=pads, group=group)

    def up(self, x: str, channels: int, name: str, *, group: int = 1, kernel: int = 4) -> str:
        """A transposed convolution that doubles the size, with a bias."""
        weight = self.array(
            f"{name}.weight", (self._channels[x], channels // group, kernel, kernel), scale=0.5 * channels**-0.5
        )
        bias = self.array(f"{name}.bias", (channels,), scale=0.1)
        pads = [(kernel - 2) // 2] * 4
        return self.layer(
            "ConvTranspose", x, weight, bias, name=name, channels=channels, strides=[2, 2], pads=pads, group=group
        )

    def relu(self, x: str, name: str) -> str:
        return self.layer("Relu", x, name=name)

    def deform(self, x: str, channels: int, name: str) -> str:
        """A deformable convolution, with the one that says where it samples."""
        before = self._channels[x]
        where = self.conv(x, 27, f"{name}.conv_offset_mask.Conv")
        sizes = self.constant([18, 9])
        offsets, mask = self._write.several("Split", where, sizes, outputs=[f"{name}.offsets", f"{name}.mask"], axis=1)
        mask = self.layer("Sigmoid", mask, name=f"{name}.Sigmoid")
        weight = self.array(f"{name}.weight", (channels, before, 3, 3), scale=(9 * before) ** -0.5)
        bias = self.array(f"{name}.bias", (channels,), scale=0.1)
        inputs = [x, weight, offsets, bias, mask]
        return self.layer("DeformConv", *inputs, name=name, channels=channels, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def array(self, name: str, shape: Sequence[int], *, scale: float) -> str:
        values = self._rng.normal(0, scale, shape).astype(np.float32)
        self._arrays.append(numpy_helper.from_array(values, name))
        return name

    def constant(self, values: Sequence[float]) -> str:
        return self._write.constant(values)

    def model(self, *outputs: str) -> ModelProto:
        """The model with these outputs."""
        graph = helper.make_graph(
            self._write.nodes,
            "network",
            [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, self._wh[1], self._wh[0], 3])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [*self._arrays, *self._write.constants],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
        return model


def frame_of(wh: tuple[int, int] = (32, 32), *, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (1, wh[1], wh[0], 3), np.uint8)


def values_of(model: ModelProto, frame: npt.NDArray[np.uint8], *names: str) -> dict[str, npt.NDArray[np.float32]]:
    """What a model gives, and further tensors by name."""
    extended = ModelProto()
    extended.CopyFrom(model)
    given = [output.name for output in model.graph.output]
    wanted = [*given, *(name for name in names if name not in given)]
    extended.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in wanted[len(given) :]
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(extended.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(wanted, session.run(wanted, {"frame": frame}), strict=True))


def ranges_on(model: ModelProto, frame: npt.NDArray[np.uint8]) -> dict[str, Range]:
    """The ranges of all tensors that some target quantises, on one frame."""
    values = values_of(model, frame, *range_sources(model))
    return {name: Range(float(values[name].min()), float(values[name].max())) for name in range_sources(model)}


def sqnr_db(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    """Signal to quantisation noise, in decibels."""
    noise = float(np.square(found.astype(np.float64) - expected).sum())
    return 10 * float(np.log10(np.square(expected.astype(np.float64)).sum() / max(noise, 1e-30)))


def arrays_of(model: ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
