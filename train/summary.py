"""What a run has done: its history, and at the end a picture of the curves, a JSON file and a table.

::

    history = History()
    history.add_losses(50, {"heatmap": 2.5, "size": 0.8})
    history.add_figures(1000, {"AP": 0.12})
    write_summary(out, history, facts)      # out/summary.png, out/summary.json
    print(figures_table(history))
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Point = tuple[int, float]  # step, value

_PANEL_WH = (760, 460)
_MARGIN = (78, 44, 190, 52)  # left, top, right (for the legend), bottom
_INK: Colour = (50, 50, 50)
_GRID: Colour = (226, 226, 226)
# BGR, told apart by most colour-blind eyes (after Okabe and Ito), dark enough for white paper.
_COLOURS: tuple[Colour, ...] = (
    (40, 40, 40), (178, 114, 0), (0, 94, 213), (115, 158, 0), (167, 121, 204),
    (0, 159, 230), (200, 160, 60), (90, 90, 170), (140, 140, 40), (150, 150, 150),
)  # fmt: skip


@dataclass
class History:
    """What was measured so far; it travels in last.pth, so that a resumed run has all of it.

    Attributes:
        losses: (step, mean of each weighted loss term since the entry before).
        figures: (step, figures on the held-back pictures).
        best_step: at which best.pth was written; -1 before.
        seconds: of training steps, waiting included; evaluation and checkpoints are not.
        waited_s: seconds of them in which a step waited for its batch.
        steps: that these seconds belong to.
    """

    losses: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    figures: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    best_step: int = -1
    seconds: float = 0.0
    waited_s: float = 0.0
    steps: int = 0

    def add_losses(self, step: int, means: Mapping[str, float]) -> None:
        self.losses.append((step, dict(means)))

    def add_figures(self, step: int, figures: Mapping[str, float]) -> None:
        self.figures.append((step, dict(figures)))

    @property
    def last_figures(self) -> dict[str, float]:
        """Of the last evaluation; empty before the first."""
        return dict(self.figures[-1][1]) if self.figures else {}

    @property
    def best_figures(self) -> dict[str, float]:
        """Of the weights in best.pth; empty before the first."""
        return next((dict(figures) for step, figures in reversed(self.figures) if step == self.best_step), {})

    @property
    def share_waiting(self) -> float:
        """Of the time of training steps, the share that was spent waiting for data."""
        return self.waited_s / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> History:
        return cls(**values)


def write_summary(out: Path, history: History, facts: Mapping[str, Any]) -> None:
    """Write out/summary.png and out/summary.json.

    Args:
        out: folder of the run.
        history: of the run.
        facts: what else the JSON file says: config, data, versions.
    """
    encoded = cv2.imencode(".png", draw_curves(history))[1]
    write_whole(out / "summary.png", encoded.tobytes())
    summary = {
        "best": {"step": history.best_step, "figures": history.best_figures},
        "last": {"step": history.figures[-1][0] if history.figures else 0, "figures": history.last_figures},
        "minutes": round(history.seconds / 60, 2),
        "steps_per_second": round(history.steps / history.seconds, 3) if history.seconds else None,
        "share_waiting_for_data": round(history.share_waiting, 4),
        **facts,
    }
    text = json.dumps(_finite(summary), indent=2, allow_nan=False)
    write_whole(out / "summary.json", text.encode() + b"\n")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def figures_table(history: History) -> str:
    """The best and the last figures side by side, a line each; empty without figures."""
    if not history.figures:
        return ""
    rows = [("best", history.best_step, history.best_figures), ("last", history.figures[-1][0], history.last_figures)]
    names = list(history.last_figures)
    widths = [max(7, len(name)) for name in names]
    lines = ["      " + f"{'step':>8}" + "".join(f"  {name:>{w}}" for name, w in zip(names, widths, strict=True))]
    for label, step, figures in rows:
        values = (
            f"  {figures[name]:>{w}.3f}" if name in figures else " " * (w + 2)
            for name, w in zip(names, widths, strict=True)
        )
        lines.append(f"{label:<6}{step:>8}" + "".join(values))
    return "\n".join(lines)


def draw_curves(history: History) -> Image:
    """Loss terms (logarithmic) beside the figures on held-back pictures, over steps: (H, W, 3) uint8 BGR."""
    losses = _series(history.losses)
    if losses:
        total = [(step, sum(terms.values())) for step, terms in history.losses]
        losses = {"total": total, **losses}
    left = _plot(losses, "training loss, weighted terms", logarithmic=True)
    right = _plot(_series(history.figures), "held-back pictures", logarithmic=False)
    return np.hstack([left, right])


def _series(rows: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, list[Point]]:
    out: dict[str, list[Point]] = {}
    for step, values in rows:
        for name, value in values.items():
            out.setdefault(name, []).append((step, value))
    return out


@dataclass(frozen=True)
class _Axes:
    """From step and value to pixels of a panel."""

    last_step: int
    low: float
    high: float
    logarithmic: bool

    def xy(self, step: float, value: float) -> tuple[int, int]:
        left, top, right, bottom = _MARGIN
        width, height = _PANEL_WH[0] - left - right, _PANEL_WH[1] - top - bottom
        low, high = self.scaled(self.low), self.scaled(self.high)
        share = (self.scaled(min(max(value, self.low), self.high)) - low) / (high - low)
        return round(left + width * step / self.last_step), round(top + height * (1 - share))

    def scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def _plot(series: Mapping[str, Sequence[Point]], title: str, *, logarithmic: bool) -> Image:
    panel: Image = np.full((_PANEL_WH[1], _PANEL_WH[0], 3), 255, np.uint8)
    _text(panel, title, (_MARGIN[0], _MARGIN[1] - 16), scale=0.55)
    points = [point for curve in series.values() for point in curve if math.isfinite(point[1])]
    if not points:
        _text(panel, "nothing was measured", (_MARGIN[0] + 20, _PANEL_WH[1] // 2))
        return panel
    axes = _axes(points, logarithmic=logarithmic)
    _draw_grid(panel, axes)
    for number, (name, curve) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        _draw_curve(panel, axes, [point for point in curve if math.isfinite(point[1])], colour)
        y = _MARGIN[1] + 12 + 22 * number
        x = _PANEL_WH[0] - _MARGIN[2] + 14
        cv2.line(panel, (x, y), (x + 20, y), colour, 2, cv2.LINE_AA)
        _text(panel, name, (x + 26, y + 4), scale=0.38)
    return panel


def _axes(points: Sequence[Point], *, logarithmic: bool) -> _Axes:
    """Limits that hold every point; from zero where the scale is linear."""
    last_step = max(1, max(step for step, _ in points))
    values = [value for _, value in points]
    if not logarithmic:
        return _Axes(last_step, 0.0, max(1.05 * max(values), 1e-3), logarithmic=False)
    # A loss that is exactly 0 has no logarithm; it is drawn on the floor.
    positive = [value for value in values if value > 0] or [1.0]
    low, high = max(min(positive), 1e-4 * max(positive)), max(positive)
    return _Axes(last_step, 0.8 * low, 1.25 * high, logarithmic=True)


def _draw_grid(panel: Image, axes: _Axes) -> None:
    bottom_left, top_right = axes.xy(0, axes.low), axes.xy(axes.last_step, axes.high)
    for step in _linear_ticks(0, axes.last_step):
        x = axes.xy(step, axes.low)[0]
        cv2.line(panel, (x, bottom_left[1]), (x, top_right[1]), _GRID, 1)
        _text(panel, f"{step:g}" if step < 10_000 else f"{step / 1000:g}k", (x, bottom_left[1] + 18), align=0.5)
    ticks = _logarithmic_ticks if axes.logarithmic else _linear_ticks
    for value in ticks(axes.low, axes.high):
        y = axes.xy(0, value)[1]
        cv2.line(panel, (bottom_left[0], y), (top_right[0], y), _GRID, 1)
        _text(panel, f"{value:g}", (bottom_left[0] - 8, y + 4), align=1.0)
    cv2.rectangle(panel, (bottom_left[0], top_right[1]), (top_right[0], bottom_left[1]), _INK, 1)
    _text(panel, "step", ((bottom_left[0] + top_right[0]) // 2, _PANEL_WH[1] - 12), align=0.5)


def _draw_curve(panel: Image, axes: _Axes, curve: Sequence[Point], colour: Colour) -> None:
    pixels = [axes.xy(step, value) for step, value in curve]
    for a, b in pairwise(pixels):
        cv2.line(panel, a, b, colour, 1, cv2.LINE_AA)
    if len(pixels) <= 40:  # so few that each is worth a dot; one alone would not be seen
        for pixel in pixels:
            cv2.circle(panel, pixel, 2, colour, cv2.FILLED, cv2.LINE_AA)


def _linear_ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(power * factor for factor in (1, 2, 5) if power * factor <= rough)
    return [round(step * i, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 1e3 else (1,)
    values = [float(f"{factor}e{power}") for power in powers for factor in factors]
    return [value for value in values if low <= value <= high]


def _text(panel: Image, text: str, origin: tuple[int, int], *, scale: float = 0.4, align: float = 0.0) -> None:
    """Text on a line; `align` says which part of it (0 the start, 1 the end) stands at the origin."""
    width = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0]
    corner = (round(origin[0] - align * width), origin[1])
    cv2.putText(panel, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, 1, cv2.LINE_AA)


def _finite(value: Any) -> Any:
    """The same without infinities, which JSON does not have: `gradient_clip=inf` becomes "inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
