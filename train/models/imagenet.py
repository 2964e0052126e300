"""Backbones that start from ImageNet: weights from a file that the user has; nothing is downloaded."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from sdk.errors import ConfigError, SpecError

from ..torch_files import read_torch_file
from .dla import DlaNet
from .layers import CenterNet
from .resnet import ResNet

logger = logging.getLogger(__name__)

# Of the pixels over 255 on which such weights were trained, blue first, as ours are.
IMAGENET_MEAN_BGR, IMAGENET_STD_BGR = (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)


def load_imagenet_backbone(model: CenterNet, path: str | Path) -> tuple[list[str], list[str]]:
    """Copy the weights of a classifier into the backbone of `model`.

    Such classifiers take red, green, blue; the first kernel is turned around, so that this one takes blue, green, red.
    It wants pixels normalised by IMAGENET_MEAN_BGR and IMAGENET_STD_BGR.

    Args:
        model: a ResNet or a DLA-34.
        path: a state dict in torchvision's layout of that ResNet, or the official layout of DLA-34.

    Returns:
        Names of the backbone's tensors that the file has not and that stay fresh, and of the file's tensors that
        the backbone has no use for (a classifier, say). Both are logged.

    Raises:
        InputError: as `read_torch_file`.
        ConfigError: this network has no backbone that is trained on ImageNet, or the file holds something else.
        SpecError: a tensor has another shape, of a network of another depth.
    """
    backbone = _backbone(model)
    content = read_torch_file(path)
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    state = {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    taken = [name for name in backbone if name in state]
    if not taken:
        raise ConfigError(f"{path} holds no backbone of this network; expected tensors such as {next(iter(backbone))}")
    for name in taken:
        if state[name].shape != backbone[name].shape:
            raise SpecError(
                f"{name} in {path} is {tuple(state[name].shape)}, this network's is {tuple(backbone[name].shape)}; "
                "the file is of another network"
            )
    for name in taken:
        reads_pixels = state[name].ndim == 4 and state[name].shape[1] == 3
        # Entries of a state dict share the memory of the network's tensors.
        backbone[name].copy_(state[name].flip(1) if reads_pixels else state[name])
    # Files from before 2018 have no count of batches, and nothing reads it.
    missing = [name for name in backbone if name not in state and not name.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in backbone]
    logger.info("%s: %d tensors taken, left out %s", path, len(taken), ", ".join(extra) or "none")
    if missing:
        logger.warning("%s lacks %s; they start fresh", path, ", ".join(missing))
    return missing, extra


def _backbone(model: CenterNet) -> dict[str, Tensor]:
    """Tensors of the backbone under the names of the classifier that it was."""
    if isinstance(model, DlaNet):
        return dict(model.base.state_dict())
    if isinstance(model, ResNet):
        parts = ("deconv_layers.", "heads.")
        return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(parts)}
    raise ConfigError(f"{type(model).__name__} has no backbone that ImageNet weights fit; leave the option out")
