"""The pictures of a data set: decoded when asked for, or all of them kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from sdk.errors import InputError

# Bytes by which a whole file ends, and that a truncated one lacks; OpenCV decodes it all the same, with grey.
_PNG_SIGNATURE, _PNG_END = b"\x89PNG", b"IEND"
_JPEG_SIGNATURE, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


class Pictures:
    """Files to be decoded to (H, W, 3) uint8 BGR, by number.

    Args:
        paths: of the pictures.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._kept: dict[int, npt.NDArray[np.uint8]] = {}

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """Picture `index`; not to be changed, it may be the one that is kept.

        Raises:
            InputError: it cannot be decoded.
        """
        if index in self._kept:
            return self._kept[index]
        image = cv2.imread(str(self.paths[index]), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(
                f"{self.paths[index]} is not a picture that can be decoded; "
                "remove it from the annotations (--check-data lists all such)"
            )
        return np.asarray(image, np.uint8)

    def keep(self, num_bytes: int, limit_mb: int) -> bool:
        """Decode all once and for all, if their `num_bytes` fit into `limit_mb`; says whether they do.

        Before workers are forked, so that they share them.
        """
        fits = num_bytes <= limit_mb * 1_000_000
        if fits:
            self._kept = {index: self.image(index) for index in range(len(self.paths))}
        return fits


def decode_whole(path: Path) -> tuple[npt.NDArray[np.uint8] | None, str]:
    """A picture and an empty text, or None and what is wrong with the file; finds truncated files too."""
    try:
        content = path.read_bytes()
    except OSError as err:
        return None, f"cannot be read ({err.strerror})"
    if not content:
        return None, "is an empty file"
    if content.startswith(_PNG_SIGNATURE) and _PNG_END not in content[-64:]:
        return None, "is truncated: a PNG without its end"
    if content.startswith(_JPEG_SIGNATURE) and content.rfind(_JPEG_END) < content.rfind(_JPEG_SCAN):
        return None, "is truncated: a JPEG without its end"
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return None, "is not a picture that can be decoded"
    return np.asarray(image, np.uint8), ""
