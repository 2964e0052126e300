"""Proof that two forms of a model are one: the same frames through both, head by head.

::

    differences = compare_heads(TorchBackend(model, spec), OnnxRuntimeBackend(path), drawn_frames(spec))
    check(differences)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sdk.backends import Backend
from sdk.preprocessing import prepare
from sdk.scenes import random_scene
from sdk.spec import ModelSpec

from .errors import ExportError

# Of the largest value of a head. Two float32 implementations of one network differ by about 1e-6.
MAX_DIFFERENCE = 1e-4
_SCENE_WH = (640, 480)


@dataclass(frozen=True)
class HeadDifference:
    """How far one head of two backends is apart, in parts of the reference's largest absolute value.

    Attributes:
        name: of the head.
        largest: the reference's largest absolute value.
        max: largest absolute difference, divided by it.
        mean: mean absolute difference, divided by it.
    """

    name: str
    largest: float
    max: float
    mean: float


def drawn_frames(spec: ModelSpec, *, count: int = 3) -> list[npt.NDArray[np.uint8]]:
    """Frames (1, h, w, 3) uint8 of drawn people, letterboxed as the SDK does it; the same each time."""
    rng = np.random.default_rng(0)
    return [prepare(random_scene(rng, _SCENE_WH)[0], spec).tensor for _ in range(count)]


def compare_heads(
    reference: Backend, candidate: Backend, frames: Sequence[npt.NDArray[np.uint8]]
) -> list[HeadDifference]:
    """How far two backends are apart, over all frames."""
    pairs: dict[str, list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]] = {}
    for frame in frames:
        expected = reference.infer({reference.inputs[0]: frame})
        found = candidate.infer({candidate.inputs[0]: frame})
        for name, value in expected.items():
            pairs.setdefault(name, []).append((value, found[name]))
    return [_difference(name, *map(np.stack, zip(*arrays, strict=True))) for name, arrays in pairs.items()]


def check(differences: Sequence[HeadDifference], *, limit: float = MAX_DIFFERENCE) -> None:
    """Raises ExportError where a head is further apart than `limit`, or holds NaN."""
    worst = [head for head in differences if not head.max <= limit]  # also catches NaN
    if worst:
        listed = ", ".join(f"{head.name} {head.max:.1e}" for head in worst)
        raise ExportError(
            f"the exported model differs from the PyTorch one by more than {limit:.0e} of a head's largest value: "
            f"{listed}; nothing was written"
        )


def difference_table(differences: Sequence[HeadDifference]) -> str:
    """The differences as lines of text."""
    rows = [f"{'head':<24} {'largest value':>13} {'max difference':>14} {'mean':>8}"]
    rows += [f"{head.name:<24} {head.largest:>13.3g} {head.max:>14.1e} {head.mean:>8.1e}" for head in differences]
    return "\n".join(rows)


def _difference(name: str, expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> HeadDifference:
    largest = float(np.abs(expected).max())
    difference = np.abs(found - expected) / max(largest, np.finfo(np.float32).tiny)
    return HeadDifference(name, largest, float(difference.max()), float(difference.mean()))
