"""The photographs that a model is calibrated on: chosen once, read one by one, bad ones listed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sdk.errors import SourceError
from sdk.sources.images import folder_images, read_image

from .errors import CalibrationError

MIN_PHOTOGRAPHS = 2
MAX_UNREADABLE = 0.05  # share of the chosen photographs; above it, something is wrong with the folder


@dataclass(frozen=True)
class Photograph:
    """A file that was used: its name and the SHA-256 of its content."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Unreadable:
    """A file that was left out, and why."""

    name: str
    reason: str


def choose_photographs(folder: Path, count: int, *, seed: int = 0) -> list[Path]:
    """`count` image files of a folder, or all if there are fewer, in natural order; the same seed, the same files.

    Raises:
        CalibrationError: the folder does not exist or has fewer than two images.
    """
    if not folder.is_dir():
        raise CalibrationError(f"there is no folder {folder}; --images takes a folder of photographs")
    paths = folder_images(folder)
    if len(paths) < MIN_PHOTOGRAPHS:
        raise CalibrationError(f"{folder} has {len(paths)} photograph; calibration needs at least {MIN_PHOTOGRAPHS}")
    chosen = np.random.default_rng(seed).permutation(len(paths))[:count]
    return [paths[index] for index in sorted(chosen)]


class PhotographReader:
    """Reads photographs in order, once; afterwards says which were used and which could not be read.

    Args:
        paths: of the files.

    Attributes:
        used: what has been read so far.
        unreadable: what could not be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.used: list[Photograph] = []
        self.unreadable: list[Unreadable] = []

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        """(H, W, 3) uint8 BGR images.

        Raises:
            CalibrationError: more than 5 % cannot be read, or fewer than two can.
        """
        for path in self._paths:
            image = self._read(path)
            if image is not None:
                yield image
        if len(self.used) < MIN_PHOTOGRAPHS:
            raise CalibrationError(
                f"{len(self.used)} of {len(self._paths)} photographs can be read, calibration needs at least "
                f"{MIN_PHOTOGRAPHS}{self._first_reason()}"
            )

    def _read(self, path: Path) -> npt.NDArray[np.uint8] | None:
        try:
            image: npt.NDArray[np.uint8] = read_image(path)
        except SourceError as err:
            self.unreadable.append(Unreadable(path.name, str(err)))
            if len(self.unreadable) > MAX_UNREADABLE * len(self._paths):
                raise CalibrationError(
                    f"{len(self.unreadable)} of {len(self._paths)} photographs cannot be read, more than "
                    f"{MAX_UNREADABLE:.0%}{self._first_reason()}"
                ) from err
            return None
        self.used.append(Photograph(path.name, hashlib.sha256(path.read_bytes()).hexdigest()))
        return image

    def _first_reason(self) -> str:
        return f"; the first: {self.unreadable[0].reason}" if self.unreadable else ""
