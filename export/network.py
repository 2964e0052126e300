"""The network as it is exported: a uint8 frame goes in, and each operator has the form that runtimes like."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sdk.spec import ModelSpec
from train.models.deform_conv import TAPS, DeformConv2d

from .errors import ExportError

_PIXEL_MAX = 255.0


class ExportedNetwork(nn.Module):
    """From the letterboxed frame to the raw heads, in the order of the spec.

    The normalisation `(pixel / 255 - mean) / std` is inside. Its scale is folded into the first convolution. The
    mean is not: where a convolution pads with zeros, a folded mean would turn the border into another colour.

    Args:
        model: in evaluation mode; it is copied, not changed.
        spec: of the model.

    Raises:
        ExportError: not exactly one convolution reads the image.
    """

    mean: Tensor

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.network = copy.deepcopy(model).cpu().float().eval()
        # Channels-last weights, as training has them, would be exported with transposes.
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._names = [head.name for head in spec.heads]
        self._has_mean = any(spec.input.mean)
        self.register_buffer("mean", _PIXEL_MAX * torch.tensor(spec.input.mean).view(1, 3, 1, 1))
        _fold_scale(self.network, spec)
        _use_onnx_operators(self.network)

    def forward(self, frame: Tensor) -> tuple[Tensor, ...]:
        """Raw heads, each (1, C, h/stride, w/stride), for (1, h, w, 3) uint8 pixels."""
        x = frame.permute(0, 3, 1, 2).float()
        if self._has_mean:
            x = x - self.mean
        heads = self.network(x)
        return tuple(heads[name] for name in self._names)


class GlobalAveragePool(nn.Module):
    """The average over all cells as one ONNX operator, which has an INT8 form; PyTorch's own export has none."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], 1, 1)
        out: Tensor = torch.onnx.ops.symbolic("GlobalAveragePool", (x,), dtype=x.dtype, shape=shape)
        return out


class DeformConv(nn.Module):
    """A deformable convolution as one ONNX operator, which ONNX Runtime has on CPUs; TensorRT has none.

    Args:
        layer: the layer of the network.
    """

    def __init__(self, layer: DeformConv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.conv_offset_mask = layer.weight, layer.bias, layer.conv_offset_mask

    def forward(self, x: Tensor) -> Tensor:
        offsets, mask = self.conv_offset_mask(x).split([2 * TAPS, TAPS], dim=1)
        out: Tensor = torch.onnx.ops.symbolic(
            "DeformConv",
            (x, self.weight, offsets, self.bias, torch.sigmoid(mask)),
            attrs={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
            dtype=x.dtype,
            shape=(x.shape[0], self.weight.shape[0], *x.shape[2:]),
        )
        return out


def _fold_scale(network: nn.Module, spec: ModelSpec) -> None:
    """Make the first convolution take `pixel - 255 mean` in place of `(pixel / 255 - mean) / std`."""
    scale = 1.0 / (_PIXEL_MAX * torch.tensor(spec.input.std, dtype=torch.float64))  # (3,)
    conv = _first_conv(network, spec)
    with torch.no_grad():
        conv.weight.copy_(conv.weight.double() * scale.view(1, 3, 1, 1))


@torch.inference_mode()
def _first_conv(network: nn.Module, spec: ModelSpec) -> nn.Conv2d:
    """The convolution that reads the image."""
    image = torch.zeros(1, 3, spec.input.height, spec.input.width)
    reading: list[nn.Conv2d] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(layer, nn.Conv2d) and inputs[0] is image:
            reading.append(layer)

    hooks = [layer.register_forward_pre_hook(note) for layer in network.modules()]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    if len(reading) != 1:
        raise ExportError(f"{len(reading)} convolutions read the image, expected one to fold the scale of pixels into")
    return reading[0]


def _use_onnx_operators(network: nn.Module) -> None:
    """Replace the layers whose export by PyTorch is roundabout."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
                setattr(parent, name, GlobalAveragePool())
            elif isinstance(layer, DeformConv2d):
                setattr(parent, name, DeformConv(layer))
