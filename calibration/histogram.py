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
        width: of a bin.
    """

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf
        self.counts = np.zeros(2 * NUM_BINS, np.int64)
        self.width = 0.0

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count values, which must be finite."""
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._make_room(max(-low, high))
        edge = NUM_BINS * self.width
        # OpenCV counts three times as fast as NumPy, and with widths that are powers of two as exactly.
        counts = load_cv2().calcHist([values.reshape(1, -1)], [0], None, [2 * NUM_BINS], [-edge, edge])
        self.counts += counts.ravel().astype(np.int64)

    @property
    def edges(self) -> npt.NDArray[np.floating[Any]]:
        """(2 * NUM_BINS + 1,) where the bins begin and end."""
        return np.arange(-NUM_BINS, NUM_BINS + 1) * self.width

    @property
    def centres(self) -> npt.NDArray[np.floating[Any]]:
        """(2 * NUM_BINS,) middles of the bins."""
        return (np.arange(-NUM_BINS, NUM_BINS) + 0.5) * self.width

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
