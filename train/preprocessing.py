"""Normalisation in training: what the exported graph does inside."""

from __future__ import annotations

import torch
from torch import Tensor

from sdk.spec import ModelSpec


def normalised(images: Tensor, spec: ModelSpec) -> Tensor:
    """(B, 3, h, w) float32 network input of (B, h, w, 3) uint8 pixels in the spec's channel order."""
    x = images.permute(0, 3, 1, 2).float() / 255.0
    mean = torch.tensor(spec.input.mean, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(spec.input.std, device=x.device).view(1, 3, 1, 1)
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)
