"""The forms of deformable convolution, forward and forward with backward, in turns with a plain 3x3 convolution.

The layers are those of resdcn_18 and dla_34 for a 512x512 image: channels in, channels out, side of the map.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sdk.timing import medians_ms
from train.models.deform_conv import (
    TAPS,
    cells_and_shares,
    gather_then_project,
    grid_sample_taps,
    project_then_gather,
)

from .decoding import shown

LAYERS = ((512, 256, 16), (256, 128, 32), (128, 64, 64), (128, 128, 64), (64, 64, 128))
BATCHES = (1, 4)  # a frame; a step of training


def run() -> None:
    forms = {
        "project then gather": project_then_gather,
        "gather then project": gather_then_project,
        "grid_sample": grid_sample_taps,
        "gather by indexing": gather_by_indexing,
        "plain convolution": plain,
    }
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch in BATCHES:
            for channels, out_channels, side in LAYERS:
                arguments = layer_arguments(batch, channels, out_channels, side)
                print(f"{batch}x{channels} -> {out_channels} at {side}x{side}, {threads} threads")
                for passes, call in (("forward", forward), ("forward and backward", forward_backward)):
                    calls = {name: bound(call, form, arguments) for name, form in forms.items()}
                    print(f"  {passes}: {shown(medians_ms(calls, rounds=5, warm_up=1))}", flush=True)


def layer_arguments(batch: int, channels: int, out_channels: int, side: int) -> list[Tensor]:
    """Input, offsets of about 2 cells, mask, weight and bias."""
    torch.manual_seed(0)
    tensors = [
        torch.randn(batch, channels, side, side),
        2 * torch.randn(batch, 2 * TAPS, side, side),
        torch.rand(batch, TAPS, side, side),
        torch.randn(out_channels, channels, 3, 3) / channels**0.5,
        torch.randn(out_channels),
    ]
    return [tensor.requires_grad_() for tensor in tensors]


def bound(call: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: call(*arguments)


def forward(form: Callable[..., Tensor], arguments: list[Tensor]) -> Tensor:
    with torch.inference_mode():
        return form(*arguments)


def forward_backward(form: Callable[..., Tensor], arguments: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(form(*arguments).sum(), arguments, allow_unused=True)


def gather_by_indexing(x: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As `gather_then_project`, with the corners as rows of their own before they are summed."""
    batch, channels, height, width = x.shape
    cells, shares = cells_and_shares(offsets, mask)  # (B, h, w, 9, 4)
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)[cells.flatten(0, 3)]  # (B h w 9, 4, C)
    read = (rows * shares.flatten(0, 3).unsqueeze(-1)).sum(1).view(-1, TAPS * channels)
    out = F.linear(read, weight.flatten(2).transpose(1, 2).flatten(1), bias)
    return out.view(batch, height, width, -1).permute(0, 3, 1, 2)


def plain(x: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What a convolution that is not deformable costs."""
    return F.conv2d(x, weight, bias, padding=1)
