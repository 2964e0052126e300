"""The networks, by name. Each takes the heads of a ModelSpec and maps (B, 3, h, w) to {head: raw output}."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from sdk.errors import ConfigError
from sdk.spec import HeadSpec

from .edge import edge_m, edge_n, edge_s
from .resnet import res_18

ARCHITECTURES: dict[str, Callable[[Sequence[HeadSpec]], nn.Module]] = {
    "edge_n": edge_n,
    "edge_s": edge_s,
    "edge_m": edge_m,
    "res_18": res_18,
}


def build_model(architecture: str, heads: Sequence[HeadSpec]) -> nn.Module:
    """A network with fresh weights.

    Raises:
        ConfigError: there is no architecture of that name.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"there is no architecture {architecture!r}; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture](heads)
