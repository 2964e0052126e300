"""The optimiser and the learning-rate schedule."""

from __future__ import annotations

import torch
from torch import nn

from .config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a run; biases and batch norms are not decayed."""
    convolutions = [p for p in model.parameters() if p.ndim == 4]
    vectors = [p for p in model.parameters() if p.ndim != 4]
    if config.optimizer == "adam":
        return torch.optim.Adam([*convolutions, *vectors], lr=config.learning_rate)
    groups = [
        {"params": convolutions, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The rate at a step: warm-up, then the paper's drops, or a straight line to zero."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = step / max(1, total_steps)
    if config.schedule == "step":
        factor = 0.1 ** sum(progress >= at for at in config.drop_at)
    else:
        factor = min(1.0, (1.0 - progress) / (1.0 - config.decay_from))
    return config.learning_rate * warmup * factor
