"""From the statistics of an activation to the range that its steps cover.

A narrow range has fine steps and clips what lies outside; the methods differ in how they weigh the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .histogram import NUM_BINS, Histogram

_Floats = npt.NDArray[np.floating[Any]]

UNSIGNED_LEVELS = 255  # steps between the 256 values of an unsigned byte
SIGNED_LEVELS = 127  # steps on each side of zero of a signed byte
_KEPT_SHARE = 0.99999  # of the values, by `percentile`: all but one in 100 000
_MSE_SHARES = np.geomspace(0.1, 1.0, 150)  # of the largest value: 1.6 % from one to the next
_MSE_NEIGHBOURS = np.linspace(0.984, 1.016, 17)  # of the best of these: 0.2 %
_ENTROPY_BINS = 2048
_ENTROPY_LEVELS = 128
_ENTROPY_SMOOTHING = 1e-4  # what an empty bin counts as, so that a logarithm exists


@dataclass(frozen=True)
class Range:
    """What the steps of a quantised activation cover, in both forms, so that one calibration serves all targets.

    Attributes:
        low, high: the ends of the asymmetric form, unsigned bytes with a zero point (ONNX Runtime).
        amax: the end of the symmetric form, signed bytes from -amax to amax (TensorRT). Where it is not given, the
            one that holds low and high.
    """

    low: float
    high: float
    amax: float = math.nan

    def __post_init__(self) -> None:
        if math.isnan(self.amax):
            object.__setattr__(self, "amax", max(-self.low, self.high))


def minmax(histogram: Histogram) -> Range:
    """Everything that was seen; nothing is clipped."""
    return Range(histogram.low, histogram.high)


def percentile(histogram: Histogram, *, kept: float = _KEPT_SHARE) -> Range:
    """The share `kept` of all values; of the rest, half is cut at each end, or all of it from the absolute values."""
    tail = (1.0 - kept) / 2
    low, high = _quantiles(histogram.counts, histogram.edges, [tail, 1.0 - tail])
    (amax,) = _quantiles(_absolute_counts(histogram), histogram.edges[NUM_BINS:], [kept])
    seen = minmax(histogram)
    return Range(max(low, seen.low), min(high, seen.high), min(amax, seen.amax))


def mse(histogram: Histogram) -> Range:
    """The range of the smallest mean squared error: both ends together first, then each in turn."""
    values, counts = histogram.weighted_values()
    lowest, highest = min(histogram.low, 0.0), max(histogram.high, 0.0)

    def error(low: float, high: float) -> float:
        step, zero = unsigned_steps(low, high)
        return _squared_error(values, counts, step=step, first=-zero, last=UNSIGNED_LEVELS - zero)

    share = _search(1.0, lambda share: error(share * lowest, share * highest))
    low, high = share * lowest, share * highest
    if lowest < 0.0 < highest:
        for _ in range(2):
            high = _search(highest, lambda candidate: error(low, candidate))  # noqa: B023 - called at once
            low = -_search(-lowest, lambda candidate: error(-candidate, high))  # noqa: B023
    amax = _search(
        max(-lowest, highest),
        lambda candidate: _squared_error(
            values, counts, step=candidate / SIGNED_LEVELS, first=-SIGNED_LEVELS, last=SIGNED_LEVELS
        ),
    )
    return Range(low, high, amax)


def entropy(histogram: Histogram) -> Range:
    """The range that loses the least information: the smallest Kullback-Leibler divergence.

    Of the values clipped at -T and T from the same in 128 levels, over 2048 bins in which T is sought. The idea is
    that of TensorRT's calibrator (Migacz, "8-bit inference with TensorRT", GTC 2017), the details are those of ONNX
    Runtime's, down to the uneven rest of bins that no level has.
    """
    seen = minmax(histogram)
    edges = np.linspace(-seen.amax, seen.amax, _ENTROPY_BINS + 1)
    below = np.interp(edges, histogram.edges, np.concatenate([[0], np.cumsum(histogram.counts)]))
    counts = np.diff(below.round())
    middle = _ENTROPY_BINS // 2
    ends = np.arange(_ENTROPY_LEVELS // 2, middle + 1)  # in bins from the middle
    best = ends[np.argmin([_divergence(counts, middle - end, middle + end + 1) for end in ends])]
    low, high = edges[middle - best], edges[min(middle + best + 1, _ENTROPY_BINS)]
    return Range(max(float(low), seen.low), min(float(high), seen.high), min(float(high), seen.amax))


METHODS: dict[str, Callable[[Histogram], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}


def unsigned_steps(low: float, high: float) -> tuple[float, int]:
    """The step of 256 unsigned values from low to high, widened to hold zero, and which of them is zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / UNSIGNED_LEVELS
    return step, round(-low / step)


def _squared_error(values: _Floats, counts: npt.NDArray[np.int64], *, step: float, first: int, last: int) -> float:
    """Sum over all values of the squared distance to the nearest of the steps from `first` to `last`."""
    quantised = np.clip(np.round(values / step), first, last) * step
    return float(counts @ (values - quantised) ** 2)


def _absolute_counts(histogram: Histogram) -> npt.NDArray[np.int64]:
    """(NUM_BINS,) of absolute values."""
    counts: npt.NDArray[np.int64] = histogram.counts[:NUM_BINS][::-1] + histogram.counts[NUM_BINS:]
    return counts


def _quantiles(counts: npt.NDArray[np.int64], edges: _Floats, shares: list[float]) -> list[float]:
    """Values below which the given shares of all values lie, taken as even within a bin."""
    below = np.concatenate([[0], np.cumsum(counts)])
    return [float(value) for value in np.interp(np.multiply(shares, below[-1]), below, edges)]


def _search(largest: float, error: Callable[[float], float]) -> float:
    """What has the smallest error between a tenth of the largest value and that."""
    best = min(largest * _MSE_SHARES, key=error)
    return float(min(np.minimum(best * _MSE_NEIGHBOURS, largest), key=error))


def _divergence(counts: _Floats, start: int, end: int) -> float:
    """Kullback-Leibler divergence of a distribution clipped to some bins from the same in _ENTROPY_LEVELS levels."""
    kept = counts[start:end]
    clipped = kept.copy()
    clipped[0] += counts[:start].sum()
    clipped[-1] += counts[end:].sum()
    size = len(kept) // _ENTROPY_LEVELS  # bins a level; the rest of the division counts for the last one
    whole = size * _ENTROPY_LEVELS
    levels = kept[:whole].reshape(_ENTROPY_LEVELS, size).sum(axis=1)
    levels[-1] += kept[whole:].sum()
    filled = (clipped[:whole] > 0).reshape(_ENTROPY_LEVELS, size).sum(axis=1)
    quantised = np.zeros_like(clipped)
    quantised[:whole] = np.repeat(np.where(filled > 0, levels // np.maximum(filled, 1), 0.0), size)
    if not quantised.any():
        return np.inf
    p, q = _smoothed(clipped), _smoothed(quantised)
    return float(p @ np.log(p / q))


def _smoothed(counts: _Floats) -> _Floats:
    """A distribution without zeros: what empty bins are given is taken from the others."""
    empty = counts == 0
    num_empty = int(empty.sum())
    smoothed = counts - _ENTROPY_SMOOTHING * num_empty / (len(counts) - num_empty)
    smoothed[empty] = _ENTROPY_SMOOTHING
    distribution: _Floats = smoothed / smoothed.sum()
    return distribution
