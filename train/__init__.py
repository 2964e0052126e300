"""CenterEdge's training half, in PyTorch: networks, data, losses, the loop, and its checkpoints.

::

    model, spec = train.load_checkpoint("best.pth")     # ours, or an official CenterNet .pth
    heads = model(x)                                    # (B, 3, h, w) float32, normalised -> {head name: raw output}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import load_checkpoint

__all__ = ["load_checkpoint"]


def __getattr__(name: str) -> Any:
    """PyTorch is imported when it is needed, not when a configuration is read."""
    if name == "load_checkpoint":
        from .checkpoint import load_checkpoint

        return load_checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
