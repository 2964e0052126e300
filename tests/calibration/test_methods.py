"""Ranges from histograms agree with the same calculated from the stored values."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.histogram import Histogram
from calibration.methods import METHODS, Range, choose_range, entropy, minmax, mse, percentile

RNG = np.random.default_rng(0)
SIGNED = RNG.normal(0.3, 1.0, 300_000).astype(np.float32)
RELU = np.maximum(RNG.standard_t(4, 300_000), 0).astype(np.float32)  # heavy tail, half of it zeros


def histogram_of(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in np.array_split(values, 7):
        histogram.add(batch)
    return histogram


@pytest.mark.parametrize("values", [SIGNED, RELU], ids=["signed", "relu"])
def test_minmax_is_exact(values: np.ndarray) -> None:
    assert minmax(histogram_of(values)) == Range(float(values.min()), float(values.max()))


@pytest.mark.parametrize("values", [SIGNED, RELU], ids=["signed", "relu"])
def test_percentile_is_that_of_all_values(values: np.ndarray) -> None:
    low, high = np.percentile(values, [0.05, 99.95])
    bounds = percentile(histogram_of(values), kept=0.999)
    assert bounds.high == pytest.approx(high, rel=0.01)
    assert bounds.low == pytest.approx(low, rel=0.01, abs=1e-3)


def squared_error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    zero = round(-low / step)
    quantised = np.clip(np.round(values.astype(np.float64) / step), -zero, 255 - zero) * step
    return float(((values - quantised) ** 2).mean())


def test_mse_finds_the_range_that_a_search_over_all_values_finds() -> None:
    candidates = np.linspace(0.2, 1.0, 81) * RELU.max()
    best = min(candidates, key=lambda high: squared_error(RELU, 0.0, high))
    bounds = mse(histogram_of(RELU))
    assert bounds.low == 0.0
    assert bounds.high == pytest.approx(best, rel=0.01)
    assert bounds.high < 0.9 * RELU.max()


def test_mse_cuts_both_ends_where_that_pays() -> None:
    values = np.concatenate([SIGNED, np.float32([-40.0, 60.0])])
    bounds = mse(histogram_of(values))
    assert squared_error(values, bounds.low, bounds.high) < 0.7 * squared_error(values, -40.0, 60.0)
    assert -40.0 < bounds.low < SIGNED.min() and SIGNED.max() < bounds.high < 60.0


@pytest.mark.parametrize("values", [SIGNED, RELU], ids=["signed", "relu"])
def test_entropy_keeps_most_and_cuts_outliers(values: np.ndarray) -> None:
    bounds = entropy(histogram_of(np.concatenate([values, np.float32([300.0])])))
    kept = np.mean((values >= bounds.low) & (values <= bounds.high))
    assert kept > 0.97
    assert bounds.high < 100.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 2.5, -1.0])
def test_a_constant_has_a_range_that_holds_it(method: str, value: float) -> None:
    assert choose_range(histogram_of(np.full(1000, value, np.float32)), method) == Range(value, value)
