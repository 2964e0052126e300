"""Networks for the edge: plain 3x3 convolutions and ReLU, a form that INT8 likes on every runtime.

Two stride-2 convolutions bring the image to stride 4 at once (work at stride 2 is slow everywhere),
residual stages follow at strides 4 to 32, the coarsest map gets a global context, and an additive top-down
path with nearest upsampling leads back to stride 4 (Feature Pyramid Networks, arXiv:1612.03144).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from sdk.spec import HeadSpec

from .layers import BasicBlock, CenterNet, SharedTrunkHeads, conv_bn_relu, init_weights, upsample_nearest


class EdgeNet(CenterNet):
    """A light CenterNet of output stride 4.

    Args:
        heads: the outputs.
        channels: of the stages at strides 4, 8, 16 and 32.
        blocks: residual blocks in each of them.
        stem_channels: of the first convolution, at stride 2.
        trunk_channels: of the one trunk that all heads share.
    """

    def __init__(
        self,
        heads: Sequence[HeadSpec],
        *,
        channels: tuple[int, int, int, int],
        blocks: tuple[int, int, int, int],
        stem_channels: int,
        trunk_channels: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_bn_relu(3, stem_channels, stride=2), conv_bn_relu(stem_channels, channels[0], stride=2)
        )
        self.stages = nn.ModuleList()
        before = channels[0]
        for index, (width, count) in enumerate(zip(channels, blocks, strict=True)):
            first = BasicBlock(before, width, stride=1 if index == 0 else 2)
            self.stages.append(nn.Sequential(first, *(BasicBlock(width, width) for _ in range(count - 1))))
            before = width
        self.context = GlobalContext(channels[3])
        self.laterals = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(coarse, fine, 1, bias=False), nn.BatchNorm2d(fine))
                for fine, coarse in pairwise(channels)
            ]
        )
        self.smooth = nn.ModuleList([conv_bn_relu(width, width) for width in channels[1:3]])
        self.heads = SharedTrunkHeads(channels[0], trunk_channels, heads)
        init_weights(self.stem)
        for part in (self.stages, self.context, self.laterals, self.smooth, self.heads.trunk):
            init_weights(part)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Raw outputs of all heads for (B, 3, h, w) normalised images; maps are (B, C, h/4, w/4)."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x = self.context(maps[3])
        x = self.smooth[1](maps[2] + upsample_nearest(self.laterals[2](x)))
        x = self.smooth[0](maps[1] + upsample_nearest(self.laterals[1](x)))
        x = maps[0] + upsample_nearest(self.laterals[0](x))
        heads: dict[str, Tensor] = self.heads(x)
        return heads


class GlobalContext(nn.Module):
    """Adds to every cell what the average of all cells says."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.project = nn.Conv2d(channels, channels, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(x + self.project(self.pool(x)))
        return out


def edge_n(heads: Sequence[HeadSpec]) -> EdgeNet:
    """The smallest, for small boards and quick tests."""
    return EdgeNet(heads, channels=(24, 48, 80, 128), blocks=(1, 1, 1, 1), stem_channels=16, trunk_channels=32)


def edge_s(heads: Sequence[HeadSpec]) -> EdgeNet:
    """The shipped size."""
    return EdgeNet(heads, channels=(32, 64, 128, 192), blocks=(1, 2, 2, 2), stem_channels=24, trunk_channels=48)


def edge_m(heads: Sequence[HeadSpec]) -> EdgeNet:
    """The largest, for boards with a GPU."""
    return EdgeNet(heads, channels=(48, 96, 192, 288), blocks=(2, 2, 3, 2), stem_channels=32, trunk_channels=64)
