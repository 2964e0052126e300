"""Photographs as files: what is in them by hash, and reading them one by one, once, with bad ones listed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sdk.errors import InputError, SourceError
from sdk.preprocessing import as_bgr
from sdk.sources.images import read_image

from .errors import CalibrationError
from .onnx_files import file_sha256

MIN_PHOTOGRAPHS = 2
MAX_UNREADABLE = 0.05  # share of the chosen photographs; above it, something is wrong with the folder

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Photograph:
    """A file that was used.

    Attributes:
        name: of the file.
        sha256: of its content.
        pixels_sha256: of its decoded pixels, which a copy in another container shares; empty where nobody took it.
    """

    name: str
    sha256: str
    pixels_sha256: str = ""


@dataclass(frozen=True)
class Unreadable:
    """A file that was left out, and why."""

    name: str
    reason: str


class PhotographReader:
    """Reads photographs in order, once; afterwards says which were used and which could not be read.

    Args:
        paths: of the files.

    Attributes:
        used: what has been read so far.
        readable: the paths of that.
        unreadable: what could not be read.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.used: list[Photograph] = []
        self.readable: list[Path] = []
        self.unreadable: list[Unreadable] = []

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[Image]:
        """(H, W, 3) uint8 BGR images.

        Raises:
            CalibrationError: more than 5 % cannot be read, or fewer than two can.
        """
        for path in self._paths:
            try:
                image = _read(path)
            except (SourceError, InputError) as err:
                self.unreadable.append(Unreadable(path.name, str(err)))
                check_readable(self.unreadable, len(self._paths))
                continue
            self.used.append(_identified(path, image))
            self.readable.append(path)
            yield image
        if len(self.used) < MIN_PHOTOGRAPHS:
            raise CalibrationError(
                f"{len(self.used)} of {len(self._paths)} photographs can be read, calibration needs at least "
                f"{MIN_PHOTOGRAPHS}{_first_reason(self.unreadable)}"
            )


def check_readable(unreadable: Sequence[Unreadable], total: int) -> None:
    """Raises CalibrationError where more than 5 % of `total` photographs cannot be read."""
    if len(unreadable) > MAX_UNREADABLE * total:
        raise CalibrationError(
            f"{len(unreadable)} of {total} photographs cannot be read, more than {MAX_UNREADABLE:.0%}"
            f"{_first_reason(unreadable)}"
        )


def identify(paths: Sequence[Path]) -> list[Photograph | Unreadable]:
    """What is in each file, by hash, or why it cannot be read; by all cores, in the order of the paths."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_identify, paths))


def _identify(path: Path) -> Photograph | Unreadable:
    try:
        return _identified(path, _read(path))
    except (SourceError, InputError) as err:
        return Unreadable(path.name, str(err))


def _identified(path: Path, image: Image) -> Photograph:
    pixels = hashlib.sha256(str(image.shape).encode())  # 2x8 and 4x4 pixels may have the same bytes
    pixels.update(image.data)
    return Photograph(path.name, file_sha256(path), pixels.hexdigest())


def _read(path: Path) -> Image:
    """An image that the preprocessing takes; SourceError or InputError for any other."""
    return as_bgr(read_image(path))


def _first_reason(unreadable: Sequence[Unreadable]) -> str:
    return f"; the first: {unreadable[0].reason}" if unreadable else ""
