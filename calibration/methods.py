"""From the statistics of an activation to the range that its 255 steps cover.

A narrow range has fine steps and clips what lies outside; the methods differ in how they weigh the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .histogram import NUM_BINS, Histogram

_LEVELS = 255
_KEPT_SHARE = 0.99999  # of the values, by `percentile`: all but one in 100 000
_MSE_CANDIDATES = np.linspace(0.2, 1.0, 81)  # shares of the largest value
_ENTROPY_LEVELS = 128  # of absolute values, as TensorRT's calibrator has them
_ENTROPY_STRIDE = 16  # bins between two candidates


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value that a quantised activation can have."""

    low: float
    high: float


def choose_range(histogram: Histogram, method: str) -> Range:
    """The range of a tensor by one of METHODS; that of a constant is the constant."""
    if histogram.low == histogram.high:
        return minmax(histogram)
    return METHODS[method](histogram)


def minmax(histogram: Histogram) -> Range:
    """Everything that was seen; nothing is clipped."""
    return Range(histogram.low, histogram.high)


def percentile(histogram: Histogram, *, kept: float = _KEPT_SHARE) -> Range:
    """The share `kept` of all values; of the rest, half is cut at each end."""
    tail = (1.0 - kept) / 2
    low, high = _quantiles(histogram, [tail, 1.0 - tail])
    return Range(*np.clip([low, high], histogram.low, histogram.high).tolist())


def mse(histogram: Histogram) -> Range:
    """The range of the smallest mean squared error, found for each end in turn."""
    filled = histogram.counts > 0
    values, counts = histogram.centres[filled], histogram.counts[filled]
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    for _ in range(2):
        highs = _MSE_CANDIDATES * max(histogram.high, 0.0)
        high = min(highs, key=lambda candidate: _squared_error(values, counts, low, candidate))
        lows = _MSE_CANDIDATES * min(histogram.low, 0.0)
        low = min(lows, key=lambda candidate: _squared_error(values, counts, candidate, high))
    return Range(float(low), float(high))


def entropy(histogram: Histogram) -> Range:
    """The range whose quantised distribution of absolute values loses the least information (TensorRT's method)."""
    negative, positive = histogram.counts[:NUM_BINS][::-1], histogram.counts[NUM_BINS:]
    counts = (negative + positive).astype(np.float64)
    counts[0] = counts[1]  # the zeros behind a ReLU would outweigh everything else
    last = int(np.flatnonzero(counts)[-1]) + 1
    ends = range(_ENTROPY_LEVELS, max(last, _ENTROPY_LEVELS) + _ENTROPY_STRIDE, _ENTROPY_STRIDE)
    best = min(ends, key=lambda end: _divergence(counts, end)) * histogram.width
    return Range(max(-best, histogram.low), min(best, histogram.high))


METHODS: dict[str, Callable[[Histogram], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def _quantiles(histogram: Histogram, shares: list[float]) -> list[float]:
    """Values below which the given shares of all values lie, taken as even within a bin."""
    below = np.concatenate([[0], np.cumsum(histogram.counts)])
    return [float(value) for value in np.interp(np.multiply(shares, below[-1]), below, histogram.edges)]


def _squared_error(
    values: npt.NDArray[np.floating[Any]], counts: npt.NDArray[np.int64], low: float, high: float
) -> float:
    """Sum over all values of the squared distance to the nearest of the steps from `low` to `high`."""
    step = (high - low) / _LEVELS
    if step == 0.0:
        return np.inf
    zero = np.round(-low / step)
    quantised = np.clip(np.round(values / step), -zero, _LEVELS - zero) * step
    return float((counts * (values - quantised) ** 2).sum())


def _divergence(counts: npt.NDArray[np.floating[Any]], end: int) -> float:
    """Kullback-Leibler divergence of a distribution clipped at bin `end` from its quantised form."""
    kept = counts[:end]
    clipped = kept.copy()
    clipped[-1] += counts[end:].sum()
    level = np.minimum(np.arange(end) * _ENTROPY_LEVELS // end, _ENTROPY_LEVELS - 1)
    filled = clipped > 0
    sums = np.bincount(level, kept, _ENTROPY_LEVELS)
    sizes = np.bincount(level, filled, _ENTROPY_LEVELS)
    quantised = np.where(filled, (sums / np.maximum(sizes, 1))[level], 0.0)
    p, q = clipped / clipped.sum(), quantised / max(quantised.sum(), 1e-12)
    both = (p > 0) & (q > 0)
    missing = p[(p > 0) & (q == 0)].sum()  # of what lies in bins that the quantised form leaves empty
    return float((p[both] * np.log(p[both] / q[both])).sum() + missing * np.log(1e12))
