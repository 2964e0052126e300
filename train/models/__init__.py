"""The networks, by name. Each takes the heads of a ModelSpec and maps (B, 3, h, w) to {head: raw output}."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sdk.errors import ConfigError
from sdk.spec import HeadSpec

from .dla import dla_34, dlav0_34
from .edge import edge_m, edge_n, edge_s
from .hourglass import hourglass
from .imagenet import load_imagenet_backbone
from .layers import CenterNet
from .resnet import res_18, res_18_up, res_101, resdcn_18, resdcn_101

__all__ = ["ARCHITECTURES", "CenterNet", "build_model", "load_imagenet_backbone"]

ARCHITECTURES: dict[str, Callable[[Sequence[HeadSpec]], CenterNet]] = {
    "edge_n": edge_n,
    "edge_s": edge_s,
    "edge_m": edge_m,
    "res_18_up": res_18_up,
    "res_18": res_18,
    "res_101": res_101,
    "resdcn_18": resdcn_18,
    "resdcn_101": resdcn_101,
    "dla_34": dla_34,
    "dlav0_34": dlav0_34,
    "hourglass": hourglass,
}


def build_model(architecture: str, heads: Sequence[HeadSpec]) -> CenterNet:
    """A network with fresh weights.

    Raises:
        ConfigError: there is no architecture of that name.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"there is no architecture {architecture!r}; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture](heads)
