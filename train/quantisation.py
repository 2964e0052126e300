"""Quantisation-aware fine-tuning: a network in training rounds as its INT8 file does, and learns to live with it.

Jacob et al. 2018 (arXiv:1712.05877), sec. 3: the forward pass rounds weights and activations to the steps that they
will have; the backward pass takes rounding for the identity, and gives nothing to what was clipped::

    fake_quantise(model, read_int8(Path("model.int8.onnx")))

The file that `centeredge calibrate` wrote says which layers run in INT8 and in which steps activations go. The steps of
weights follow the weights, channel by channel. So batch norms need not be folded: a frozen one multiplies each channel
by one number, its step by the same number, and changes no integer.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sdk.errors import BackendUnavailable, ConfigError

from .models import CenterNet
from .models.deform_conv import DeformConv2d

_WEIGHT_MAX = 127  # as calibration has it: -128 is not used
_PIXEL_MAX = 255.0
_WITH_WEIGHTS = (nn.Conv2d, nn.ConvTranspose2d, DeformConv2d)
_OPERATORS = ("Conv", "ConvTranspose", "MatMul")  # what those become in a file
# "stages.0.0.relu.Relu_2" is what the operator Relu gives when the layer stages.0.0.relu is called for the second time.
_TENSOR = re.compile(r"(?P<path>.+)\.[A-Za-z]+(?:_(?P<call>\d+))?")


@dataclass(frozen=True)
class Steps:
    """The values that a quantised activation can have: scale * (n - zero_point) for lowest <= n <= highest."""

    scale: float
    zero_point: int
    lowest: int
    highest: int

    def round(self, x: Tensor) -> Tensor:
        """The nearest of these values; the gradient passes where `x` lies between them, and is 0 beyond."""
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.lowest, self.highest)


@dataclass(frozen=True)
class Int8Layer:
    """A layer that runs in INT8.

    Attributes:
        node: its name in the file.
        steps: of what it reads.
        num_weights: in the file.
        num_scales: of its weights.
    """

    node: str
    steps: Steps
    num_weights: int
    num_scales: int


@dataclass(frozen=True)
class Int8Network:
    """What an INT8 file says about where values are rounded.

    Attributes:
        path: of the file.
        layers: that run in INT8.
        tensors: names of the tensors that nobody reads before they are rounded -> their steps.
        std: of the pixels, as the file's spec has it.
    """

    path: Path
    layers: tuple[Int8Layer, ...]
    tensors: Mapping[str, Steps]
    std: tuple[float, ...]


def read_int8(path: Path) -> Int8Network:
    """Where an INT8 file rounds, for ONNX Runtime or TensorRT, with dense heads or peaks.

    Raises:
        ConfigError: nothing in it runs in INT8.
        InputError, SpecError: it is no .onnx of ours.
        BackendUnavailable: the package onnx is not installed.
    """
    try:
        from calibration.onnx_files import read_onnx
    except ImportError as err:
        raise BackendUnavailable(
            f"fake_quantise reads {path} with the package onnx, which is not installed; "
            "pip install 'centeredge[calibration]'"
        ) from err
    model, spec = read_onnx(path)
    file = _File(model.graph)
    layers = tuple(file.int8_layers())
    if not layers:
        raise ConfigError(f"{path} has nothing in INT8; fake_quantise takes the file that `centeredge calibrate` wrote")
    return Int8Network(path, layers, file.rounded_tensors(), spec.input.std)


class _File:
    """The graph of an INT8 file."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self._nodes = list(graph.node)
        self._arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output}
        self._outputs = {output.name for output in graph.output}

    def int8_layers(self) -> list[Int8Layer]:
        """Operators that read dequantised activations and dequantised constants."""
        layers = []
        for node in self._nodes:
            if node.op_type not in _OPERATORS:
                continue
            activation, weight = (self._producers.get(name) for name in node.input[:2])
            if activation is None or weight is None or activation.op_type != "DequantizeLinear":
                continue
            if weight.op_type == "DequantizeLinear" and weight.input[0] in self._arrays:
                sizes = [self._arrays[name].size for name in weight.input[:2]]
                layers.append(Int8Layer(node.name, self._steps(activation), sizes[0], sizes[1]))
        return layers

    def rounded_tensors(self) -> dict[str, Steps]:
        quantisers, read_exactly = {}, set(self._outputs)
        for node in self._nodes:
            if node.op_type == "QuantizeLinear":
                quantisers[node.input[0]] = self._steps(node)
            else:
                read_exactly.update(node.input)
        return {name: steps for name, steps in quantisers.items() if name not in read_exactly}

    def _steps(self, node: Any) -> Steps:
        """Of a QuantizeLinear or DequantizeLinear."""
        scale, zero_point = (self._arrays[name] for name in node.input[1:3])
        limits = torch.iinfo(torch.uint8 if zero_point.dtype == "uint8" else torch.int8)
        return Steps(float(scale), int(zero_point), int(limits.min), int(limits.max))


def fake_quantise(model: CenterNet, int8: Int8Network) -> None:
    """Let a network round as an INT8 file of it does, in place; names, weights and layers stay.

    What is rounded: weights and inputs of the layers that run in INT8, and what layers give, where the file rounds
    that for everyone, as for additions. Batch norms must be frozen.

    Args:
        model: in float32.
        int8: from `read_int8`.

    Raises:
        ConfigError: the file is of another network.
    """
    modules = dict(model.named_modules())
    calls, norms = _traced(model)
    sources = {norm: source for source, norm in norms.items()}
    for layer in int8.layers:
        module = _module_of(layer, modules, sources, int8.path)
        reads_pixels = isinstance(module, nn.Conv2d) and module.in_channels == 3
        hooks = _Int8Hooks(layer, module, std=int8.std if reads_pixels else None)
        module.register_forward_pre_hook(hooks.before)
        module.register_forward_hook(hooks.after)
    results: dict[nn.Module, dict[int, Steps]] = defaultdict(dict)
    for name, steps in int8.tensors.items():
        match = _TENSOR.fullmatch(name)
        module = modules.get(match["path"]) if match else None
        if match and isinstance(module, _WITH_WEIGHTS):
            results[norms.get(module, module)][1] = steps
        elif match and module is not None and not list(module.children()):
            results[module][int(match["call"] or 1)] = steps
    for module, steps_of_call in results.items():
        module.register_forward_hook(_ResultHook(steps_of_call, calls[module]))


class _Int8Hooks:
    """Rounds what a layer reads, and its weights while it calculates.

    Args:
        layer: what the file says.
        module: the layer.
        std: of the pixels, where it reads them: the file counts in pixels, the network in pixel / 255 / std.
    """

    def __init__(self, layer: Int8Layer, module: Any, *, std: tuple[float, ...] | None) -> None:
        self._steps = layer.steps
        self._shape, self._shared = _groups(module, layer.num_scales)
        self._pixels: Tensor | None = None
        if std is not None:
            self._pixels = _PIXEL_MAX * torch.tensor(std, device=module.weight.device).view(1, -1, 1, 1)

    def before(self, module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        x, weight, pixels = inputs[0], module.weight, self._pixels
        if pixels is None:
            x, weight = self._steps.round(x), self._in_steps(weight)
        else:
            x, weight = self._steps.round(x * pixels) / pixels, self._in_steps(weight / pixels) * pixels
        # Hides the parameter from `forward` without taking it from the module: nothing else sees a change.
        module.__dict__["weight"] = weight
        return (x,)

    def after(self, module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del module.__dict__["weight"]

    def _in_steps(self, weight: Tensor) -> Tensor:
        """Weights in steps of which the largest of each group is 127; to the gradient it is the same."""
        groups = weight.reshape(self._shape)
        largest = groups.detach().abs().amax(self._shared, keepdim=True)
        scale = torch.where(largest > 0, largest, 1.0) / _WEIGHT_MAX
        error = (groups / scale).round() * scale - groups
        return (groups + error.detach()).view_as(weight)


class _ResultHook:
    """Rounds what a layer gives, in those calls of each forward pass where the file does.

    Args:
        steps: by number of the call, from 1.
        calls: of the layer in one forward pass; a block calls its ReLU twice.
    """

    def __init__(self, steps: Mapping[int, Steps], calls: int) -> None:
        self._steps, self._calls = steps, calls
        self._call = 0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        self._call = self._call % self._calls + 1
        return self._steps[self._call].round(output) if self._call in self._steps else output


def _groups(module: nn.Module, num_scales: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape for a layer's weights in which those of one scale fill whole axes, and these axes."""
    assert isinstance(module, _WITH_WEIGHTS)
    shape = tuple(module.weight.shape)
    if isinstance(module, nn.ConvTranspose2d):  # (I, O, h, w)
        if num_scales == shape[1]:
            return shape, (0, 2, 3)
        # ONNX Runtime calculates each of the four outputs around a corner with a quarter of the kernel.
        return (*shape[:2], shape[2] // 2, 2, shape[3] // 2, 2), (0, 2, 4)
    # A deformable convolution has a scale for each output and tap.
    return shape, (1,) if isinstance(module, DeformConv2d) else (1, 2, 3)


def _module_of(
    layer: Int8Layer, modules: Mapping[str, nn.Module], sources: Mapping[nn.Module, nn.Module], path: Path
) -> Any:
    """The layer of the network that a node of the file came from; some nodes bear the name of the batch norm behind."""
    name = layer.node
    while name:
        name = name.rpartition(".")[0]
        module = modules.get(name)
        module = sources.get(module, module) if module is not None else None
        if not isinstance(module, _WITH_WEIGHTS):
            continue
        # The first layer of a file may be several times as wide, to read pixels side by side.
        if module.weight.shape[1] != 3 and module.weight.numel() != layer.num_weights:
            raise ConfigError(
                f"{path} is of another network: {layer.node} has {layer.num_weights} weights there, and "
                f"{module.weight.numel()} here; calibrate an export of the checkpoint that you start from"
            )
        return module
    raise ConfigError(
        f"{path} is of another network, which has a layer {layer.node} that this one lacks; calibrate an export of the "
        "checkpoint that you start from"
    )


@torch.no_grad()
def _traced(model: CenterNet) -> tuple[Counter[nn.Module], dict[nn.Module, nn.Module]]:
    """How often a forward pass calls each layer, and the batch norm behind each layer that has one."""
    calls: Counter[nn.Module] = Counter()
    norms: dict[nn.Module, nn.Module] = {}
    results: list[tuple[Tensor, nn.Module]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        if isinstance(module, _WITH_WEIGHTS):
            results.append((output, module))
        elif isinstance(module, _BatchNorm):
            norms.update((source, module) for tensor, source in results if tensor is inputs[0])

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    was_training = model.training
    side = max(64, model.input_multiple)
    try:
        model.eval()(torch.zeros(1, 3, side, side, device=next(model.parameters()).device))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return calls, norms
