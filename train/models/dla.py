"""DLA-34 (Deep Layer Aggregation, arXiv:1707.06484) with its upsampling path to stride 4 (paper, sec. 5, "DLA").

The backbone merges blocks in trees ("hierarchical aggregation"). The upsampling path brings coarser maps to
finer ones step by step and merges them there ("iterative aggregation"); in `dla_34` every one of its
convolutions is deformable, in `dlav0_34` none is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sdk.spec import HeadSpec

from .deform_conv import DeformConv2d
from .layers import CenterNet, SeparateHeads, bilinear_upsampling, conv_bn_relu, init_weights

CHANNELS = (16, 32, 64, 128, 256, 512)  # of the maps at strides 1, 2, 4, ... 32
FIRST_LEVEL = 2  # index of stride 4
HEAD_CHANNELS = 256


class Block(nn.Module):
    """Two 3x3 convolutions, and a shortcut that the tree computes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.relu(self.bn2(self.conv2(out)) + shortcut)
        return result


class Root(nn.Module):
    """Merges the maps of a tree into one."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: list[Tensor]) -> Tensor:
        out: Tensor = self.relu(self.bn(self.conv(torch.cat(maps, dim=1))))
        return out


class Tree(nn.Module):
    """Two blocks in a row, merged by a root together with what came before.

    Args:
        in_channels, out_channels: of the map that comes in and of all maps inside.
        stride: of the first block.
        more_channels: of all maps that `forward` is given beside `x`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, more_channels: int = 0) -> None:
        super().__init__()
        self.downsample = nn.MaxPool2d(stride) if stride > 1 else nn.Identity()
        self.project = _projection(in_channels, out_channels) if in_channels != out_channels else nn.Identity()
        self.tree1 = Block(in_channels, out_channels, stride)
        self.tree2 = Block(out_channels, out_channels, 1)
        self.root = Root(2 * out_channels + more_channels, out_channels)

    def forward(self, x: Tensor, more: Sequence[Tensor] = ()) -> Tensor:
        first = self.tree1(x, self.project(self.downsample(x)))
        second = self.tree2(first, first)
        out: Tensor = self.root([second, first, *more])
        return out


class LevelTree(Tree):
    """A tree whose root also sees the map that came in, at the tree's own stride."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, stride=2, more_channels=in_channels)

    def forward(self, x: Tensor, more: Sequence[Tensor] = ()) -> Tensor:
        return super().forward(x, [self.downsample(x), *more])


class DoubleTree(nn.Module):
    """Two trees in a row; the root of the second also sees what came in and the first tree's map.

    `project` has no influence on the output. Official checkpoints hold it, so it is kept, but not trained.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.downsample = nn.MaxPool2d(2)
        self.project = _projection(in_channels, out_channels).requires_grad_(False)
        self.tree1 = Tree(in_channels, out_channels, stride=2)
        self.tree2 = Tree(out_channels, out_channels, stride=1, more_channels=in_channels + out_channels)

    def forward(self, x: Tensor) -> Tensor:
        first = self.tree1(x)
        out: Tensor = self.tree2(first, [self.downsample(x), first])
        return out


def _projection(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))


class Dla34(nn.Module):
    """The backbone; its layers are named as in the official ImageNet weights.

    `fc`, the classifier of ImageNet, has no influence on the maps. Official checkpoints hold it, so it is kept, but
    not trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = conv_bn_relu(3, CHANNELS[0], kernel=7)
        self.level0 = conv_bn_relu(CHANNELS[0], CHANNELS[0])
        self.level1 = conv_bn_relu(CHANNELS[0], CHANNELS[1], stride=2)
        self.level2 = Tree(CHANNELS[1], CHANNELS[2], stride=2)
        self.level3 = DoubleTree(CHANNELS[2], CHANNELS[3])
        self.level4 = DoubleTree(CHANNELS[3], CHANNELS[4])
        self.level5 = LevelTree(CHANNELS[4], CHANNELS[5])
        self.fc = nn.Conv2d(CHANNELS[5], 1000, 1).requires_grad_(False)
        init_weights(self)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps at strides 1, 2, 4, ... 32."""
        x = self.base_layer(x)
        maps = []
        for level in (self.level0, self.level1, self.level2, self.level3, self.level4, self.level5):
            x = level(x)
            maps.append(x)
        return maps


class Aggregation(nn.Module):
    """Brings maps one after the other to the finest one's size and merges each with all before it.

    Args:
        out_channels: of the finest map, and of all results.
        channels: of the coarser maps, the finest of them first.
        factors: how much coarser each is than the finest map.
        deformable: a deformable convolution before each upsampling and one on the sum after it; or a 1x1
            convolution, and a plain 3x3 one on the two maps side by side.
    """

    def __init__(self, out_channels: int, channels: Sequence[int], factors: Sequence[int], *, deformable: bool) -> None:
        super().__init__()
        self.deformable = deformable
        self.project = nn.ModuleList()
        self.up = nn.ModuleList()
        self.node = nn.ModuleList()
        for width, factor in zip(channels, factors, strict=True):
            self.up.append(bilinear_upsampling(out_channels, factor, groups=out_channels))
            if deformable:
                self.project.append(_deform_bn_relu(width, out_channels))
                self.node.append(_deform_bn_relu(out_channels, out_channels))
            else:
                self.project.append(conv_bn_relu(width, out_channels, kernel=1))
                self.node.append(conv_bn_relu(2 * out_channels, out_channels))
        if not deformable:
            init_weights(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """What each coarser map became, all of the finest one's size, for maps from fine to coarse."""
        merged = maps[0]
        out = []
        for project, up, node, coarse in zip(self.project, self.up, self.node, maps[1:], strict=True):
            fine = up(project(coarse))
            merged = node(fine + merged if self.deformable else torch.cat([merged, fine], dim=1))
            out.append(merged)
        return out


def _deform_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = DeformConv2d(in_channels, out_channels)
    activation = nn.Sequential(nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))
    return nn.Sequential(OrderedDict(conv=conv, actf=activation))


class DlaUp(nn.Module):
    """The upsampling path: each step brings all maps that are coarser than one to that one's size."""

    def __init__(self, *, deformable: bool) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        widths = CHANNELS[FIRST_LEVEL:]
        for step in range(1, len(widths)):
            out_channels, next_coarser = widths[-step - 1], widths[-step]
            # The step before has left all coarser maps with the width and size of the finest of them.
            self.steps.append(Aggregation(out_channels, [next_coarser] * step, [2] * step, deformable=deformable))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The last result of each step, at strides 4, 8, 16, and the coarsest map, for maps at strides 4 to 32."""
        maps = list(maps)
        out = [maps[-1]]
        for step, aggregation in enumerate(self.steps, start=1):
            maps[-step:] = aggregation(maps[-step - 1 :])
            out.insert(0, maps[-1])
        return out


class DlaNet(CenterNet):
    """DLA-34, the upsampling path, and the paper's heads."""

    def __init__(self, heads: Sequence[HeadSpec], *, deformable: bool) -> None:
        super().__init__()
        first, *coarser = CHANNELS[FIRST_LEVEL:-1]
        self.base = Dla34()
        self.dla_up = DlaUp(deformable=deformable)
        # Official dla_34 merges the results of all steps once more.
        self.ida_up = Aggregation(first, coarser, [2, 4], deformable=True) if deformable else None
        self.heads = SeparateHeads(first, HEAD_CHANNELS, heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.dla_up(self.base(x)[FIRST_LEVEL:])
        features = maps[0] if self.ida_up is None else self.ida_up(maps[:-1])[-1]
        heads: dict[str, Tensor] = self.heads(features)
        return heads


def dla_34(heads: Sequence[HeadSpec]) -> DlaNet:
    """DLA-34 of the paper: deformable convolution at every upsampling layer."""
    return DlaNet(heads, deformable=True)


def dlav0_34(heads: Sequence[HeadSpec]) -> DlaNet:
    """DLA-34 without deformable convolution."""
    return DlaNet(heads, deformable=False)
