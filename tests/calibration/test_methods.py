"""Ranges from histograms agree with the same calculated from the stored values, in both forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.quantization.calibrate import HistogramCollector

from calibration.histogram import Histogram
from calibration.methods import METHODS, Range, entropy, minmax, mse, percentile, unsigned_steps

RNG = np.random.default_rng(0)
SIGNED = RNG.normal(0.3, 1.0, 300_000).astype(np.float32)
RELU = np.maximum(RNG.standard_t(4, 300_000), 0).astype(np.float32)  # heavy tail, half of it zeros


def histogram_of(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in np.array_split(values, 7):
        histogram.add(batch)
    return histogram


def test_without_an_end_of_its_own_the_symmetric_form_holds_both() -> None:
    assert Range(-1.0, 0.5) == Range(-1.0, 0.5, 1.0)
    assert Range(0.0, 2.0).amax == 2.0
    assert Range(-1.0, 2.0, 1.5).amax == 1.5


@given(st.floats(-100, 100), st.floats(1e-3, 100))
def test_zero_is_one_of_the_unsigned_steps(low: float, span: float) -> None:
    step, zero = unsigned_steps(low, low + span)
    assert 0 <= zero <= 255
    assert -zero * step <= max(low, 0.0) + step / 2
    assert (255 - zero) * step >= low + span - step


@pytest.mark.parametrize("values", [SIGNED, RELU], ids=["signed", "relu"])
def test_minmax_is_exact(values: np.ndarray) -> None:
    assert minmax(histogram_of(values)) == Range(float(values.min()), float(values.max()), float(np.abs(values).max()))


@pytest.mark.parametrize("values", [SIGNED, RELU], ids=["signed", "relu"])
def test_percentile_is_that_of_all_values(values: np.ndarray) -> None:
    low, high = np.percentile(values, [0.05, 99.95])
    bounds = percentile(histogram_of(values), kept=0.999)
    assert bounds.high == pytest.approx(high, rel=0.01)
    assert bounds.low == pytest.approx(low, rel=0.01, abs=1e-3)
    assert bounds.amax == pytest.approx(np.percentile(np.abs(values), 99.9), rel=0.01)


def unsigned_error(values: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / 255
    zero = round(-low / step)
    quantised = np.clip(np.round(values.astype(np.float64) / step), -zero, 255 - zero) * step
    return float(((values - quantised) ** 2).mean())


def signed_error(values: np.ndarray, amax: float) -> float:
    step = amax / 127
    quantised = np.clip(np.round(values.astype(np.float64) / step), -127, 127) * step
    return float(((values - quantised) ** 2).mean())


@pytest.mark.parametrize("values", [np.maximum(SIGNED, 0), np.abs(RNG.laplace(0, 1, 100_000)).astype(np.float32)])
def test_mse_finds_the_range_that_a_search_over_all_values_finds(values: np.ndarray) -> None:
    candidates = np.geomspace(0.3, 1.0, 241) * values.max()
    bounds = mse(histogram_of(values))
    assert bounds.low == 0.0
    assert bounds.high == pytest.approx(min(candidates, key=lambda end: unsigned_error(values, 0.0, end)), rel=0.01)
    assert bounds.amax == pytest.approx(min(candidates, key=lambda end: signed_error(values, end)), rel=0.01)
    assert bounds.amax < bounds.high < values.max()


def test_mse_is_the_least_also_where_many_ranges_are_nearly_as_good() -> None:
    candidates = np.geomspace(0.3, 1.0, 121) * RELU.max()
    bounds = mse(histogram_of(RELU))
    assert unsigned_error(RELU, 0.0, bounds.high) <= 1.002 * min(unsigned_error(RELU, 0.0, end) for end in candidates)
    assert signed_error(RELU, bounds.amax) <= 1.002 * min(signed_error(RELU, end) for end in candidates)


def test_mse_of_both_ends_is_as_small_as_a_search_over_all_pairs_makes_it() -> None:
    values = SIGNED[:30_000]
    shares = np.linspace(0.5, 1.0, 26)
    lows, highs = shares * values.min(), shares * values.max()
    least = min(unsigned_error(values, low, high) for low in lows for high in highs)
    bounds = mse(histogram_of(values))
    assert unsigned_error(values, bounds.low, bounds.high) <= 1.01 * least
    assert signed_error(values, bounds.amax) <= 1.01 * min(signed_error(values, end) for end in highs)


def test_mse_cuts_both_ends_where_that_pays() -> None:
    values = np.concatenate([SIGNED, np.array([-40.0, 60.0], np.float32)])
    bounds = mse(histogram_of(values))
    assert unsigned_error(values, bounds.low, bounds.high) < 0.7 * unsigned_error(values, -40.0, 60.0)
    assert -40.0 < bounds.low < SIGNED.min() and SIGNED.max() < bounds.high < 60.0


@pytest.mark.parametrize("values", [RELU, RNG.normal(0, 1, 300_000).astype(np.float32) ** 3], ids=["relu", "signed"])
def test_entropy_is_that_of_onnx_runtimes_calibrator(values: np.ndarray) -> None:
    collector = HistogramCollector("entropy", False, 2048, 128, None, None)
    collector.collect({"values": [values]})
    low, high = collector.compute_collection_result()["values"][:2]
    bounds = entropy(histogram_of(values))
    assert bounds.high == pytest.approx(float(high), rel=0.01)
    assert bounds.low == pytest.approx(float(low), rel=0.01, abs=1e-6)
    assert bounds.amax < 0.9 * np.abs(values).max()


@pytest.mark.parametrize("method", METHODS)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, unique=True), st.floats(1e-3, 1e3))
def test_every_range_lies_within_what_was_seen(method: str, values: list[float], factor: float) -> None:
    array = (np.array(values) * factor).astype(np.float32)
    if array.min() == array.max():
        return
    bounds = METHODS[method](histogram_of_one(array))
    low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
    assert all(map(math.isfinite, (bounds.low, bounds.high, bounds.amax)))
    assert low <= bounds.low <= bounds.high <= high
    assert 0.0 < bounds.amax <= max(-low, high)


def histogram_of_one(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram
