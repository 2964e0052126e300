"""ResNets with an upsampling path to stride 4 (paper, sec. 5, "ResNet").

The paper upsamples with three transposed convolutions (after Simple Baselines, arXiv:1804.06208), each behind a
deformable convolution in the `resdcn` networks. ONNX Runtime keeps transposed convolutions in float in an INT8
graph, so `res_18_up` has nearest upsampling and a 3x3 convolution instead: a form that deploys everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from sdk.spec import HeadSpec

from .deform_conv import DeformConv2d
from .layers import (
    BasicBlock,
    Bottleneck,
    CenterNet,
    SeparateHeads,
    bilinear_upsampling,
    conv_bn_relu,
    init_weights,
)

# The layers of the upsampling path, for the channels that come in and those after each of its three steps.
UpPath = Callable[[int, Sequence[int]], nn.Sequential]
HEAD_CHANNELS = 64  # of the official networks; the paper says 256


class ResNet(CenterNet):
    """A ResNet, three upsampling steps, and the paper's heads. Backbone layers are named as in torchvision.

    Args:
        heads: the outputs.
        block: residual block of the four stages.
        blocks: how many in each stage.
        up_path: makes the upsampling path.
        up_channels: of its three steps.
    """

    def __init__(
        self,
        heads: Sequence[HeadSpec],
        *,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        up_path: UpPath,
        up_channels: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        widths = [block.expansion * width for width in (64, 128, 256, 512)]
        self.layer1 = _stage(block, 64, widths[0], blocks[0], stride=1)
        self.layer2 = _stage(block, widths[0], widths[1], blocks[1], stride=2)
        self.layer3 = _stage(block, widths[1], widths[2], blocks[2], stride=2)
        self.layer4 = _stage(block, widths[2], widths[3], blocks[3], stride=2)
        init_weights(self)
        self.deconv_layers = up_path(widths[3], up_channels)
        self.heads = SeparateHeads(up_channels[-1], HEAD_CHANNELS, heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        heads: dict[str, Tensor] = self.heads(self.deconv_layers(x))
        return heads


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, out_channels: int, count: int, *, stride: int
) -> nn.Sequential:
    first = block(in_channels, out_channels, stride=stride)
    return nn.Sequential(first, *(block(out_channels, out_channels) for _ in range(count - 1)))


def transposed_path(channels: int, up_channels: Sequence[int]) -> nn.Sequential:
    """A transposed convolution each step."""
    path = nn.Sequential()
    for width in up_channels:
        path.append(nn.ConvTranspose2d(channels, width, 4, 2, padding=1, bias=False))
        path.extend([nn.BatchNorm2d(width), nn.ReLU(inplace=True)])
        channels = width
    return path


def deformable_path(channels: int, up_channels: Sequence[int]) -> nn.Sequential:
    """A deformable and a transposed convolution each step, the latter bilinear at first (paper, sec. 5)."""
    path = nn.Sequential()
    for width in up_channels:
        path.append(DeformConv2d(channels, width))
        path.extend([nn.BatchNorm2d(width), nn.ReLU(inplace=True)])
        path.append(bilinear_upsampling(width, 2, groups=1))
        path.extend([nn.BatchNorm2d(width), nn.ReLU(inplace=True)])
        channels = width
    return path


def nearest_path(channels: int, up_channels: Sequence[int]) -> nn.Sequential:
    """Nearest upsampling and a plain 3x3 convolution each step."""
    path = nn.Sequential()
    for width in up_channels:
        path.extend([nn.Upsample(scale_factor=2), conv_bn_relu(channels, width)])
        channels = width
    init_weights(path)
    return path


def res_18(heads: Sequence[HeadSpec]) -> ResNet:
    """ResNet-18 as in Simple Baselines, without deformable convolution."""
    return _res(heads, BasicBlock, (2, 2, 2, 2), transposed_path, (256, 256, 256))


def res_101(heads: Sequence[HeadSpec]) -> ResNet:
    """ResNet-101 as in Simple Baselines, without deformable convolution."""
    return _res(heads, Bottleneck, (3, 4, 23, 3), transposed_path, (256, 256, 256))


def resdcn_18(heads: Sequence[HeadSpec]) -> ResNet:
    """ResNet-18 of the paper."""
    return _res(heads, BasicBlock, (2, 2, 2, 2), deformable_path, (256, 128, 64))


def resdcn_101(heads: Sequence[HeadSpec]) -> ResNet:
    """ResNet-101 of the paper."""
    return _res(heads, Bottleneck, (3, 4, 23, 3), deformable_path, (256, 128, 64))


def res_18_up(heads: Sequence[HeadSpec]) -> ResNet:
    """ResNet-18 for deployment."""
    return _res(heads, BasicBlock, (2, 2, 2, 2), nearest_path, (256, 128, 64))


def _res(
    heads: Sequence[HeadSpec],
    block: type[BasicBlock] | type[Bottleneck],
    blocks: tuple[int, int, int, int],
    up_path: UpPath,
    up_channels: tuple[int, int, int],
) -> ResNet:
    return ResNet(heads, block=block, blocks=blocks, up_path=up_path, up_channels=up_channels)
