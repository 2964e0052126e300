"""Modulated deformable convolution (DCNv2, arXiv:1811.11168), 3x3, stride 1, padding 1, in plain PyTorch.

Each of the nine taps of the kernel reads the map not at its own cell but `offsets` away from it, bilinearly
between cells and zero outside the map, and what it reads is multiplied by `mask` (eq. 1 there).

One sum, in three forms that differ in speed alone (`python -m benchmarks deformable`)::

    out[o, p] = bias[o] + sum over taps k, channels c:  weight[o, c, k] * mask[k, p] * x[c, p + tap k + offset[k, p]]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = 9


class DeformConv2d(nn.Module):
    """A deformable convolution that learns its own offsets and mask from its input.

    `conv_offset_mask` gives 27 channels: 9 pairs (dy, dx) in cells, then the 9 logits of the mask. It starts at
    zero, so that a fresh layer is half a plain 3x3 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.conv_offset_mask = nn.Conv2d(in_channels, 3 * TAPS, 3, padding=1)
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv_offset_mask.weight)
        assert self.conv_offset_mask.bias is not None
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, O, h, w) for (B, C, h, w)."""
        offsets, mask = self.conv_offset_mask(x).split([2 * TAPS, TAPS], dim=1)
        return deform_conv(x, offsets, torch.sigmoid(mask), self.weight, self.bias)


def deform_conv(x: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The fastest form for these channels, measured forward and backward (docs/benchmarks.md).

    Args:
        x: (B, C, h, w).
        offsets: (B, 18, h, w), (dy, dx) of each tap in turn, in cells.
        mask: (B, 9, h, w).
        weight: (O, C, 3, 3).
        bias: (O,).

    Returns:
        (B, O, h, w).
    """
    out_channels, in_channels = weight.shape[:2]
    form = project_then_gather if out_channels < in_channels else gather_then_project
    return form(x, offsets, mask, weight, bias)


def project_then_gather(x: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Every cell times the whole kernel first, then 36 rows a pixel (9 taps, 4 corners) are summed.

    The products are needed anyway; so the sum over taps and corners is over O channels, not C, and nothing of
    9 C channels is ever written. Arguments as of `deform_conv`.
    """
    batch, channels, height, width = x.shape
    kernel = weight.flatten(2).permute(2, 0, 1).reshape(-1, channels)  # (9 O, C), tap by tap
    rows = F.linear(_rows(x), kernel).view(-1, weight.shape[0])  # (B h w 9, O)
    cells, weights = cells_and_shares(offsets, mask)  # (B, h, w, 9, 4)
    indices = cells * TAPS + torch.arange(TAPS, device=x.device, dtype=cells.dtype).view(TAPS, 1)
    out = _weighted_sums(rows, indices.view(-1, 4 * TAPS), weights.view(-1, 4 * TAPS))  # (B h w, O)
    return _map(out + bias.to(out.dtype), batch, height, width)


def gather_then_project(x: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What the taps read is gathered first, 4 corners each, and then multiplied with the kernel."""
    batch, channels, height, width = x.shape
    cells, weights = cells_and_shares(offsets, mask)  # (B, h, w, 9, 4)
    read = _weighted_sums(_rows(x).view(-1, channels), cells.view(-1, 4), weights.view(-1, 4))  # (B h w 9, C)
    kernel = weight.flatten(2).transpose(1, 2).reshape(weight.shape[0], -1)  # (O, 9 C)
    out = F.linear(read.view(-1, TAPS * channels), kernel, bias)
    return _map(out, batch, height, width)


def grid_sample_taps(x: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's own bilinear sampling, all nine taps under each other in one call."""
    batch, channels, height, width = x.shape
    cell_y, cell_x = _positions(offsets)  # (B, h, w, 9)
    # PyTorch counts from -1 at the outer edge of the first cell to 1 at that of the last.
    grid = torch.stack([(2 * cell_x + 1) / width - 1, (2 * cell_y + 1) / height - 1], dim=-1)
    grid = grid.permute(0, 3, 1, 2, 4).reshape(batch, TAPS * height, width, 2)
    read = F.grid_sample(x.to(grid.dtype), grid, padding_mode="zeros", align_corners=False)  # (B, C, 9 h, w)
    read = read.view(batch, channels, TAPS, height, width) * mask.to(grid.dtype).unsqueeze(1)
    out = torch.einsum("ock,bckp->bop", weight.flatten(2).to(read.dtype), read.flatten(3))
    return (out + bias.to(out.dtype).view(-1, 1)).view(batch, -1, height, width)


def _positions(offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Where each tap reads, y and x in cells, (B, h, w, 9); at least in float32, as 8 bits are too few for a place."""
    height, width = offsets.shape[2:]
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    moves = offsets.to(dtype).permute(0, 2, 3, 1)  # (B, h, w, 18)
    taps = torch.arange(TAPS, device=offsets.device)
    y = torch.arange(height, device=offsets.device).view(-1, 1, 1) + taps // 3 - 1
    x = torch.arange(width, device=offsets.device).view(-1, 1) + taps % 3 - 1
    return y + moves[..., 0::2], x + moves[..., 1::2]


def cells_and_shares(offsets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The four cells around each position and their shares of it.

    Returns:
        Numbers of the cells among all B h w, and weights, mask included, zero outside the map; (B, h, w, 9, 4).
    """
    batch, _, height, width = offsets.shape
    y, x = _positions(offsets)
    (top, bottom), (top_share, bottom_share) = _neighbours(y, height)
    (left, right), (left_share, right_share) = _neighbours(x, width)
    mask = mask.permute(0, 2, 3, 1)  # (B, h, w, 9)
    top_share, bottom_share = top_share * mask, bottom_share * mask
    first = height * width * torch.arange(batch, device=x.device, dtype=torch.int32).view(-1, 1, 1, 1)
    top, bottom = first + top * width, first + bottom * width
    cells = torch.stack([top + left, top + right, bottom + left, bottom + right], dim=-1)
    weights = [top_share * left_share, top_share * right_share, bottom_share * left_share, bottom_share * right_share]
    return cells, torch.stack(weights, dim=-1)


def _neighbours(position: Tensor, size: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The cells below and above, moved into 0..size-1, and the share of each, 0 where it had to be moved."""
    floor = position.detach().floor()
    above = position - floor
    shares = (1 - above) * _inside(floor, size), above * _inside(floor + 1, size)
    cell = floor.int()  # of a position that is not finite: whatever, and the output is not finite either
    return (cell.clamp(0, size - 1), (cell + 1).clamp(0, size - 1)), shares


def _inside(cell: Tensor, size: int) -> Tensor:
    return (cell >= 0) & (cell < size)


def _weighted_sums(rows: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """(N, C) sums of `rows` (M, C) at `indices` (N, n), times `weights` (N, n), in the precision of the weights."""
    return F.embedding_bag(indices, rows.to(weights.dtype), per_sample_weights=weights, mode="sum")


def _rows(x: Tensor) -> Tensor:
    """(B, h, w, C): one row a cell; no copy where `x` is channels-last."""
    return x.permute(0, 2, 3, 1).contiguous()


def _map(rows: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Back to (B, C, h, w)."""
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)
