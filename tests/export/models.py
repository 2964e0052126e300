"""Models that behave as trained ones do, without training: every layer has an effect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from sdk.spec import ModelSpec
from train.checkpoint import Checkpoint, save_checkpoint
from train.config import TrainConfig, preset
from train.models import build_model
from train.samples import COCO_KEYPOINTS
from train.specs import spec_from_config

_PRESETS = {"detection": "synthetic-detection", "pose": "synthetic-pose", "3d": "synthetic-3d"}
_CLASSES = {"detection": ("car", "dog", "person"), "pose": ("person",), "3d": ("Car", "Cyclist", "Pedestrian")}


def task_config(task: str, architecture: str = "edge_n", size: tuple[int, int] = (64, 64)) -> TrainConfig:
    return replace(preset(_PRESETS[task]), architecture=architecture, size=size)


def pose_config(architecture: str = "edge_n", size: tuple[int, int] = (64, 64)) -> TrainConfig:
    return task_config("pose", architecture, size)


def lively_model(
    architecture: str = "edge_n", *, task: str = "pose", size: tuple[int, int] = (64, 64), seed: int = 0
) -> tuple[nn.Module, ModelSpec]:
    """A network whose batch norms, outputs and offsets are far from their fresh values, and its spec."""
    spec = spec_from_config(task_config(task, architecture, size), _CLASSES[task], COCO_KEYPOINTS, trained_on="nothing")
    # A hundred layers in a row that all gain a little would leave FP16's range.
    gains = (0.3, 0.7) if architecture == "hourglass" else (0.5, 1.2)
    torch.manual_seed(seed)
    model = build_model(architecture, spec.heads).eval()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            nn.init.uniform_(layer.weight, *gains)
            nn.init.normal_(layer.bias, std=0.2)
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
        elif isinstance(layer, nn.Conv2d) and ".outputs." in f".{name}":
            nn.init.normal_(layer.weight, std=0.1 if layer.kernel_size == (1, 1) else 0.03)
        elif isinstance(layer, nn.Conv2d) and name.endswith("conv_offset_mask"):
            nn.init.normal_(layer.weight, std=(9 * layer.in_channels) ** -0.5)
    _scale_outputs(model, spec)
    return model, spec


@torch.inference_mode()
def _scale_outputs(model: nn.Module, spec: ModelSpec) -> None:
    """Give every head values like a trained one's: e to the power of a size is a size."""
    heads = model(torch.rand(1, 3, spec.input.height, spec.input.width))
    for name, layer in model.named_modules():
        head = next((head.name for head in spec.heads if name.endswith((f".{head.name}", f".{head.name}.2"))), None)
        if head is not None and isinstance(layer, nn.Conv2d):
            layer.weight *= 0.7 / heads[head].std()


def write_checkpoint(path: Path, *, architecture: str = "edge_n") -> Path:
    model, spec = lively_model(architecture)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_checkpoint(path, Checkpoint(spec, pose_config(architecture), weights))
    return path
