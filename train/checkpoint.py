"""Checkpoints: weights with the spec that explains them, written atomically; and those of the official CenterNet.

::

    model, spec = load_checkpoint("runs/person-pose/best.pth")
    model, spec = load_checkpoint("ctdet_coco_dla_2x.pth")
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sdk.errors import ConfigError, SpecError
from sdk.spec import InputSpec, ModelSpec

from .config import TrainConfig, config_from_dict, config_to_dict
from .models import CenterNet, build_model
from .official import import_official, official_input, official_state, own_names, task_named
from .torch_files import read_torch_file, write_torch_file

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
    """Write a checkpoint whole or not at all.

    Raises:
        InputError: it cannot be written, on a full disk say; the file that was there before stays.
    """
    content = {
        "format": FORMAT,
        "spec": checkpoint.spec.to_json(),
        "config": config_to_dict(checkpoint.config),
        "weights": checkpoint.weights,
        "training": checkpoint.training,
    }
    write_torch_file(path, content)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ours; never executes code from the file.

    Raises:
        InputError: missing, not a checkpoint, or one that would execute code.
        SpecError: it has no spec.
    """
    data = read_torch_file(path)
    if not _is_ours(data):
        raise SpecError(f"{path} has no ModelSpec; expected a checkpoint that `centeredge train` wrote")
    return _checkpoint(data, path)


def load_checkpoint(
    path: str | Path, architecture: str | None = None, task: str | None = None
) -> tuple[CenterNet, ModelSpec]:
    """A trained model, in evaluation mode, and its spec.

    Args:
        path: a checkpoint of ours, or an official CenterNet .pth.
        architecture: needed only where an official file does not say which one it is; otherwise only checked.
        task: likewise; our name or the official one.

    Raises:
        ConfigError: the file holds another architecture or task than asked for, or does not say which.
        InputError: as `read_checkpoint`.
        SpecError: tensors are missing or have another shape, or this is no checkpoint of a CenterNet.
    """
    data = read_torch_file(path)
    if _is_ours(data):
        return _load_ours(_checkpoint(data, path), path, architecture, task)
    state = official_state(data)
    if state is None:
        raise SpecError(
            f"{path} has no ModelSpec and no state dict; expected a checkpoint that `centeredge train` wrote, or an "
            "official CenterNet checkpoint"
        )
    return import_official(state, path, architecture, task)


def init_from(model: CenterNet, path: str | Path) -> list[str]:
    """Start from another checkpoint's weights, ours or official, where name and shape agree.

    Returns:
        Names of the tensors of `model` that kept their fresh values.

    Raises:
        ConfigError: nothing fits.
    """
    data = read_torch_file(path)
    official = None if _is_ours(data) else official_state(data)
    weights = read_checkpoint(path).weights if official is None else own_names(model, official)
    own = model.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and value.shape == own[name].shape}
    if not any(own[name].is_floating_point() for name in fitting):
        raise ConfigError(f"no tensor of {path} fits this network; it was trained with another architecture")
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def normalisation_of(path: str | Path) -> InputSpec:
    """The input, with the mean and std, that a checkpoint's weights were learnt with; ours or official."""
    data = read_torch_file(path)
    official = None if _is_ours(data) else official_state(data)
    return read_checkpoint(path).spec.input if official is None else official_input(official, path)


def _is_ours(data: Any) -> bool:
    return isinstance(data, dict) and "spec" in data


def _checkpoint(data: dict[str, Any], path: str | Path) -> Checkpoint:
    if data.get("format") != FORMAT:
        raise SpecError(f"{path} has checkpoint format {data.get('format')!r}, this version reads {FORMAT}")
    if missing := [key for key in ("config", "weights", "training") if key not in data]:
        raise SpecError(f"{path} has no {', '.join(missing)}; expected a checkpoint that `centeredge train` wrote")
    return Checkpoint(
        ModelSpec.from_json(data["spec"]), config_from_dict(data["config"]), data["weights"], data["training"]
    )


def _load_ours(
    checkpoint: Checkpoint, path: str | Path, architecture: str | None, task: str | None
) -> tuple[CenterNet, ModelSpec]:
    config, spec = checkpoint.config, checkpoint.spec
    if architecture is not None and architecture != config.architecture:
        raise ConfigError(f"{path} holds a {config.architecture!r}, not a {architecture!r}; leave the option out")
    if task is not None and task_named(task) not in spec.tasks:
        raise ConfigError(f"{path} does {', '.join(spec.tasks)}, not {task_named(task)}; leave the option out")
    model = build_model(config.architecture, spec.heads)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as err:  # of hundreds of lines, one a tensor
        raise SpecError(
            f"the weights in {path} do not fit the {config.architecture} that its config names; the file is damaged, "
            "or the architecture has changed since"
        ) from err
    return model.eval(), spec
