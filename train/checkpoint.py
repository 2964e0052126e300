"""Checkpoints: weights with the spec that explains them, written atomically.

::

    model, spec = load_checkpoint("runs/person-pose/best.pth")
"""

from __future__ import annotations

import os
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdk.errors import ConfigError, InputError, SpecError
from sdk.spec import ModelSpec

from .config import TrainConfig, config_from_dict, config_to_dict
from .models import build_model

FORMAT = 1
State = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        spec: of the model.
        config: of the run that trained it.
        weights: to evaluate and ship (the averaged ones, where the run averages).
        training: what a resume needs (step, raw weights, optimiser, best AP), or None in shipped files.
    """

    spec: ModelSpec
    config: TrainConfig
    weights: State
    training: dict[str, Any] | None = None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write under a temporary name and rename, so that a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    content = {
        "format": FORMAT,
        "spec": checkpoint.spec.to_json(),
        "config": config_to_dict(checkpoint.config),
        "weights": checkpoint.weights,
        "training": checkpoint.training,
    }
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # of a write that failed, on a full disk say


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ours; never executes code from the file.

    Raises:
        InputError: missing, not a checkpoint, or one that would execute code.
        SpecError: it has no spec.
    """
    path = Path(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as err:
        raise InputError(f"there is no checkpoint {path}") from err
    except pickle.UnpicklingError as err:
        raise InputError(
            f"{path} is damaged, or holds Python objects other than tensors, which could execute code; it is not loaded"
        ) from err
    except (OSError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError) as err:
        raise InputError(f"{path} is not a PyTorch checkpoint, or it is truncated") from err
    if not isinstance(data, dict) or "spec" not in data:
        raise SpecError(f"{path} has no ModelSpec; expected a checkpoint that `centeredge train` wrote")
    if data.get("format") != FORMAT:
        raise SpecError(f"{path} has checkpoint format {data.get('format')!r}, this version reads {FORMAT}")
    if missing := [key for key in ("config", "weights", "training") if key not in data]:
        raise SpecError(f"{path} has no {', '.join(missing)}; expected a checkpoint that `centeredge train` wrote")
    return Checkpoint(
        ModelSpec.from_json(data["spec"]), config_from_dict(data["config"]), data["weights"], data["training"]
    )


def load_checkpoint(
    path: str | Path, architecture: str | None = None, task: str | None = None
) -> tuple[nn.Module, ModelSpec]:
    """A trained model, in evaluation mode, and its spec.

    Args:
        path: a checkpoint of ours.
        architecture: only checked here: the file says which one it is.
        task: likewise.

    Raises:
        ConfigError: the file holds another architecture or task than asked for.
        InputError, SpecError: as `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint.config
    if architecture is not None and architecture != config.architecture:
        raise ConfigError(f"{path} holds a {config.architecture!r}, not a {architecture!r}; leave the option out")
    if task is not None and task not in checkpoint.spec.tasks:
        raise ConfigError(f"{path} does {', '.join(checkpoint.spec.tasks)}, not {task}; leave the option out")
    model = build_model(config.architecture, checkpoint.spec.heads)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as err:  # of hundreds of lines, one a tensor
        raise SpecError(
            f"the weights in {path} do not fit the {config.architecture} that its config names; the file is damaged, "
            "or the architecture has changed since"
        ) from err
    return model.eval(), checkpoint.spec


def init_from(model: nn.Module, path: str | Path) -> list[str]:
    """Start from another checkpoint's weights where name and shape agree.

    Returns:
        Names of the tensors of `model` that kept their fresh values.

    Raises:
        ConfigError: nothing fits.
    """
    weights = read_checkpoint(path).weights
    own = model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    if not fitting:
        raise ConfigError(f"no tensor of {path} fits this network; it was trained with another architecture")
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]
