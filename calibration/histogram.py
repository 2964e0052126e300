"""Statistics of a tensor over any number of images, in constant memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sdk.opencv import load_cv2

NUM_BINS = 4096  # on each side of zero: at least eight for each of the 255 steps of a byte
_SMALLEST_WIDTH = 2.0**-100


class Histogram:
    """Counts values in bins of equal width, which doubles whenever a value falls outside.

    Widths are powers of two and bins start at zero, so that two neighbours join exactly: the same values give the
    same counts in whatever order they come.

    Attributes:
        low, high: the smallest and the largest value.
        counts: (2 * NUM_BINS,), the first half of negative values.
        zeros: how many values were exactly zero, as half of them are behind a ReLU; they lie in bin NUM_BINS.
        width: of a bin.
    """

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf
        self.counts = np.zeros(2 * NUM_BINS, np.int64)
        self.zeros = 0
        self.width = 0.0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count values.

        Raises:
            ValueError: one of them is NaN or infinite; none was counted.
        """
        low, high = finite_limits(values)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._make_room(max(-low, high))
        bins = values.reshape(1, -1) * np.float32(1.0 / self.width)  # exact: a power of two
        np.floor(bins, out=bins)
        bins += NUM_BINS
        # OpenCV counts small whole numbers three times as fast as NumPy does, and as floats.
        cv2 = load_cv2()
        counts = cv2.calcHist([bins.astype(np.uint16)], [0], None, [2 * NUM_BINS], [0, 2 * NUM_BINS])
        self.counts += counts.ravel().astype(np.int64)
        self.zeros += values.size - cv2.countNonZero(values.reshape(1, -1))

    @property
    def edges(self) -> npt.NDArray[np.floating[Any]]:
        """(2 * NUM_BINS + 1,) where the bins begin and end."""
        return np.arange(-NUM_BINS, NUM_BINS + 1) * self.width

    def weighted_values(self) -> tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.int64]]:
        """(N,) values that stand for all that were counted, and (N,) how many each stands for; zero for itself."""
        others = self.counts.copy()
        others[NUM_BINS] -= self.zeros
        filled = np.flatnonzero(others)
        values = (filled - NUM_BINS + 0.5) * self.width  # the middles of the bins
        return np.append(values, 0.0), np.append(others[filled], self.zeros)

    def _make_room(self, largest: float) -> None:
        if not self.counts.any():
            self.width = (
                max(2.0 ** math.floor(math.log2(largest / NUM_BINS)), _SMALLEST_WIDTH) if largest else _SMALLEST_WIDTH
            )
        while largest >= NUM_BINS * self.width:
            joined = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            self.counts[NUM_BINS // 2 : -NUM_BINS // 2] = joined
            self.width *= 2.0


def finite_limits(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    """The smallest and the largest value.

    Raises:
        ValueError: one of them is NaN or infinite.
    """
    with np.errstate(invalid="ignore"):
        low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("NaN or infinity")
    return low, high
