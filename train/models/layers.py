"""What the networks share: their common face, convolution with batch norm, residual blocks, upsampling, heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sdk.spec import HeadSpec

# A heatmap starts at this score everywhere, so that the many empty cells do not drown the first steps
# (RetinaNet, arXiv:1708.02002, sec. 3.3; CenterNet uses the same 0.1).
PRIOR_SCORE = 0.1


class CenterNet(nn.Module):
    """What every network is: images in, raw heads out.

    Attributes:
        stride: input pixels a feature cell, R of the paper (sec. 3).
        input_multiple: both sides of the input are multiples of it, so that the coarsest map comes out whole.
    """

    stride = 4
    input_multiple = 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Raw outputs of all heads for (B, 3, h, w) normalised images; maps are (B, C, h/4, w/4)."""
        raise NotImplementedError

    def forward_stacks(self, x: Tensor) -> list[dict[str, Tensor]]:
        """The same of each stack, the last one last: what a loss is taken on. Most networks have one stack."""
        return [self.forward(x)]


def conv_bn_relu(in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution that folds with its batch norm into one at export."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet, arXiv:1512.03385, fig. 2)."""

    expansion = 1

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.relu(self.bn2(self.conv2(out)) + shortcut)
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (ResNet, fig. 5); the stride is the 3x3's, as torchvision has it."""

    expansion = 4

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        width = out_channels // self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        result: Tensor = self.relu(self.bn3(self.conv3(out)) + shortcut)
        return result


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class SharedTrunkHeads(nn.Module):
    """One 3x3 trunk for all heads, then one 1x1 convolution a head.

    A deviation from the paper for light networks: six separate 3x3 heads cost a light network most of
    what INT8 would gain it.
    """

    def __init__(self, in_channels: int, trunk_channels: int, heads: Sequence[HeadSpec]) -> None:
        super().__init__()
        self.trunk = conv_bn_relu(in_channels, trunk_channels)
        self.outputs = nn.ModuleDict({head.name: _output_conv(trunk_channels, head) for head in heads})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        trunk = self.trunk(features)
        return {name: output(trunk) for name, output in self.outputs.items()}


class SeparateHeads(nn.Module):
    """The paper's heads: for each a 3x3 convolution, ReLU, and a 1x1 convolution (paper, sec. 5)."""

    def __init__(self, in_channels: int, head_channels: int, heads: Sequence[HeadSpec]) -> None:
        super().__init__()
        self.outputs = nn.ModuleDict(
            {
                head.name: nn.Sequential(
                    nn.Conv2d(in_channels, head_channels, 3, padding=1),
                    nn.ReLU(inplace=True),
                    _output_conv(head_channels, head),
                )
                for head in heads
            }
        )

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {name: output(features) for name, output in self.outputs.items()}


def _output_conv(in_channels: int, head: HeadSpec) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, head.channels, 1)
    nn.init.normal_(conv.weight, std=0.001)
    assert conv.bias is not None
    prior = -math.log((1 - PRIOR_SCORE) / PRIOR_SCORE) if head.activation == "sigmoid" else 0.0
    nn.init.constant_(conv.bias, prior)
    return conv


def init_weights(module: nn.Module) -> None:
    """He initialisation for convolutions, identity for batch norms; a block starts as its shortcut."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, BasicBlock):
            nn.init.zeros_(layer.bn2.weight)
        elif isinstance(layer, Bottleneck):
            nn.init.zeros_(layer.bn3.weight)


def bilinear_upsampling(channels: int, factor: int, *, groups: int) -> nn.ConvTranspose2d:
    """A transposed convolution that starts as bilinear upsampling by a whole `factor`, channel by channel."""
    up = nn.ConvTranspose2d(channels, channels, 2 * factor, factor, padding=factor // 2, groups=groups, bias=False)
    place = (torch.arange(2 * factor) + 0.5) / factor - 1  # of each weight, in cells from the centre
    triangle = 1 - place.abs()
    kernel = torch.outer(triangle, triangle)
    same = torch.eye(channels) if groups == 1 else torch.ones(channels, 1)
    with torch.no_grad():
        up.weight.copy_(same[:, :, None, None] * kernel)
    return up


def upsample_nearest(x: Tensor) -> Tensor:
    out: Tensor = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    return out
