"""Layers shared by the networks: convolution with batch norm, residual blocks, heads."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from sdk.spec import HeadSpec

# A heatmap starts at this score everywhere, so that the many empty cells do not drown the first steps
# (RetinaNet, arXiv:1708.02002, sec. 3.3; CenterNet uses the same 0.1).
PRIOR_SCORE = 0.1


def conv_bn_relu(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution that folds with its batch norm into one at export."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (ResNet, arXiv:1512.03385, fig. 2)."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.relu(self.bn2(self.conv2(out)) + shortcut)
        return result


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


def upsample_nearest(x: Tensor) -> Tensor:
    out: Tensor = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    return out
