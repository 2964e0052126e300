"""Histograms that grow: nothing is lost, and the order of the values does not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.histogram import NUM_BINS, Histogram


def histogram_of(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch.astype(np.float32))
    return histogram


@given(st.lists(st.integers(-10_000, 10_000), min_size=1), st.floats(1e-3, 1e3))
def test_every_value_is_in_its_bin(values: list[int], factor: float) -> None:
    array = np.array(values, np.float32) * np.float32(factor)
    histogram = histogram_of(*np.array_split(array, min(3, len(array))))
    assert np.array_equal(histogram.counts, np.histogram(array, histogram.edges)[0])
    assert (histogram.low, histogram.high) == (array.min(), array.max())


def test_the_order_of_the_batches_does_not_matter() -> None:
    batches = [np.random.default_rng(i).normal(0, 10.0 ** (i - 3), (2, 3, 8, 8)) for i in range(6)]
    there, back = histogram_of(*batches), histogram_of(*reversed(batches))
    assert there.width == back.width
    assert np.array_equal(there.counts, back.counts)


@pytest.mark.parametrize("largest", [1.0, 4096.0, 0.3, 1e-20, 3e20])
def test_bins_are_fine_compared_with_the_largest_value(largest: float) -> None:
    histogram = histogram_of(np.array([0.0, -largest / 7, largest]))
    assert histogram.counts.sum() == 3
    assert NUM_BINS / 2 <= largest / histogram.width < NUM_BINS


def test_zeros_before_the_first_other_value() -> None:
    histogram = histogram_of(np.zeros(5), np.array([0.0, 7.5]))
    assert histogram.counts[NUM_BINS] == 6
    assert histogram.counts.sum() == 7
    assert histogram.high == 7.5


def test_memory_does_not_grow() -> None:
    histogram = histogram_of(*(np.random.default_rng(i).normal(0, 2.0**i, 100) for i in range(20)))
    assert histogram.counts.shape == (2 * NUM_BINS,)
    assert histogram.counts.sum() == 2000


def test_zeros_are_counted_apart() -> None:
    histogram = histogram_of(np.array([0.0, 0.0, 1e-6, 3.0]), np.array([0.0, -1.0]))
    assert histogram.zeros == 3
    values, counts = histogram.weighted_values()
    assert dict(zip(values.tolist(), counts.tolist(), strict=True))[0.0] == 3
    assert counts.sum() == 6
    assert np.abs(np.sort(np.repeat(values, counts)) - [-1.0, 0.0, 0.0, 0.0, 1e-6, 3.0]).max() <= histogram.width / 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_and_not_counted(bad: float) -> None:
    histogram = histogram_of(np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="NaN or infinity"):
        histogram.add(np.array([0.5, bad, 0.7], np.float32))
    assert (histogram.counts.sum(), histogram.low, histogram.high) == (2, 1.0, 2.0)
