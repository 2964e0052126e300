"""Hourglass-104: two stacked hourglasses, as CornerNet has them (paper, sec. 5, "Hourglass"; arXiv:1808.01244)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from sdk.spec import HeadSpec

from .layers import BasicBlock, CenterNet, SeparateHeads, conv_bn_relu, init_weights, upsample_nearest

CHANNELS = (256, 256, 384, 384, 384, 512)  # at strides 4, 8, ... 128
BLOCKS = (2, 2, 2, 2, 2, 4)  # residual blocks of each part there
NUM_STACKS = 2


class Hourglass(nn.Module):
    """Down and up again by a factor of two, with a further hourglass in between, beside a path that stays."""

    def __init__(self, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        here, inside = channels[:2]
        self.beside = _blocks([here] * (blocks[0] + 1))
        self.down = _blocks([here] + [inside] * blocks[0], stride=2)
        self.inner = Hourglass(channels[1:], blocks[1:]) if len(channels) > 2 else _blocks([inside] * (blocks[1] + 1))
        self.up = _blocks([inside] * blocks[0] + [here])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.beside(x) + upsample_nearest(self.up(self.inner(self.down(x))))
        return out


def _blocks(widths: Sequence[int], *, stride: int = 1) -> nn.Sequential:
    """Residual blocks from each width to the next; the first has the stride."""
    path = nn.Sequential()
    for index in range(len(widths) - 1):
        path.append(BasicBlock(widths[index], widths[index + 1], stride=stride if index == 0 else 1))
    return path


class StackedHourglass(CenterNet):
    """Hourglasses one after the other, each with heads of its own; training takes the loss on all of them."""

    input_multiple = 128

    def __init__(self, heads: Sequence[HeadSpec]) -> None:
        super().__init__()
        width = CHANNELS[0]
        between = range(NUM_STACKS - 1)
        self.pre = nn.Sequential(conv_bn_relu(3, 128, kernel=7, stride=2), BasicBlock(128, width, stride=2))
        self.hourglasses = nn.ModuleList([Hourglass(CHANNELS, BLOCKS) for _ in range(NUM_STACKS)])
        self.outputs = nn.ModuleList([conv_bn_relu(width, width) for _ in range(NUM_STACKS)])
        # The next stack sees what the one before it saw, and what that made of it.
        self.from_input = nn.ModuleList([_conv_bn(width) for _ in between])
        self.from_output = nn.ModuleList([_conv_bn(width) for _ in between])
        self.merged = nn.ModuleList([BasicBlock(width, width) for _ in between])
        self.relu = nn.ReLU(inplace=True)
        init_weights(self)
        self.heads = nn.ModuleList([SeparateHeads(width, width, heads) for _ in range(NUM_STACKS)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        *_, features = self._features(x)
        heads: dict[str, Tensor] = self.heads[-1](features)
        return heads

    def forward_stacks(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [heads(features) for heads, features in zip(self.heads, self._features(x), strict=True)]

    def _features(self, x: Tensor) -> Iterator[Tensor]:
        """What the heads of each stack read, (B, 256, h/4, w/4)."""
        x = self.pre(x)
        for stack in range(NUM_STACKS):
            features = self.outputs[stack](self.hourglasses[stack](x))
            yield features
            if stack < NUM_STACKS - 1:
                x = self.relu(self.from_input[stack](x) + self.from_output[stack](features))
                x = self.merged[stack](x)


def _conv_bn(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))


def hourglass(heads: Sequence[HeadSpec]) -> StackedHourglass:
    """Hourglass-104 of the paper."""
    return StackedHourglass(heads)
