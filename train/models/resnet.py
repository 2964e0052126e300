"""ResNet-18 with an upsampling path to stride 4 (paper, sec. 5, "ResNet"), in a form that deploys everywhere.

The paper upsamples with three transposed convolutions (after Simple Baselines, arXiv:1804.06208). ONNX Runtime
keeps those in float in an INT8 graph, so each is a nearest upsampling and a 3x3 convolution here.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sdk.spec import HeadSpec

from .layers import BasicBlock, SeparateHeads, conv_bn_relu, init_weights, upsample_nearest


class ResNetUp(nn.Module):
    """A ResNet of basic blocks, three upsampling steps, and the paper's heads.

    Args:
        heads: the outputs.
        blocks: residual blocks in the four stages.
        up_channels: of the three upsampling steps.
        head_channels: of the 3x3 convolution in front of each output.
    """

    stride = 4

    def __init__(
        self,
        heads: Sequence[HeadSpec],
        *,
        blocks: tuple[int, int, int, int],
        up_channels: tuple[int, int, int],
        head_channels: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )
        self.stages = nn.Sequential()
        before = 64
        for index, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True)):
            stages = [BasicBlock(before, width, stride=1 if index == 0 else 2)]
            stages += [BasicBlock(width, width) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(*stages))
            before = width
        self.up = nn.ModuleList()
        for width in up_channels:
            self.up.append(conv_bn_relu(before, width))
            before = width
        for part in (self.stem, self.stages, self.up):
            init_weights(part)
        self.heads = SeparateHeads(before, head_channels, heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Raw outputs of all heads for (B, 3, h, w) normalised images; maps are (B, C, h/4, w/4)."""
        x = self.stages(self.stem(x))
        for conv in self.up:
            x = conv(upsample_nearest(x))
        heads: dict[str, Tensor] = self.heads(x)
        return heads


def res_18(heads: Sequence[HeadSpec]) -> ResNetUp:
    """ResNet-18; 64 channels in the heads, as the official code has it."""
    return ResNetUp(heads, blocks=(2, 2, 2, 2), up_channels=(256, 128, 64), head_channels=64)
