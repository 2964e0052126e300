"""Image files: one, a folder or a glob."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import SourceError, SourceOpenError
from ..opencv import load_cv2
from .source import Image, Source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class ImageSource(Source):
    """Image files, one after the other; each frame's `source` is its file."""

    def __init__(self, paths: list[Path], *, name: str) -> None:
        self._paths = paths
        self._first: Image | None = read_image(paths[0])
        height, width = self._first.shape[:2]
        super().__init__(name, (width, height), num_frames=len(paths))

    def _grab(self) -> bool:
        return self._next_index < len(self._paths)

    def _retrieve(self) -> tuple[Image, str]:
        path = self._paths[self._next_index]
        image, self._first = self._first, None
        return (read_image(path) if image is None else image), str(path)


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read an image file as (H, W, 3) uint8 BGR, turned upright as its EXIF data say.

    Raises:
        SourceError: the file is missing, empty, cut short or no image; its name is in the message.
    """
    cv2 = load_cv2()
    try:
        data = Path(path).read_bytes()
    except OSError as err:
        raise SourceError(f"the image {path} cannot be read: {err.strerror}") from err
    if not data:
        raise SourceError(f"the image {path} is empty (0 bytes); copy it again")
    if _is_cut_short(data):
        raise SourceError(f"the image {path} is cut short after {len(data)} bytes; copy it again")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as err:
        raise SourceError(f"OpenCV cannot decode the image {path}: {err.err}") from err
    if image is None:
        raise SourceError(f"{path} is damaged or no image ({len(data)} bytes); expected JPEG, PNG, BMP, WebP or TIFF")
    return np.asarray(image, dtype=np.uint8)


def folder_images(folder: Path) -> list[Path]:
    """The image files of a folder, in natural order; without its subfolders."""
    paths = _images(folder.iterdir())
    if not paths:
        raise SourceOpenError(
            f"the folder {folder} holds no image; expected files ending in {' '.join(IMAGE_SUFFIXES)}"
        )
    return paths


def glob_images(pattern: str) -> list[Path]:
    """The image files that a glob matches, in natural order."""
    matches = [Path(match) for match in glob.glob(os.path.expanduser(pattern), recursive=True)]
    paths = _images(matches)
    if not paths:
        found = f"matches {len(matches)} files, none of them an image" if matches else "matches no file"
        raise SourceOpenError(f"the glob {pattern!r} {found}; expected files ending in {' '.join(IMAGE_SUFFIXES)}")
    return paths


def _images(paths: Iterable[Path]) -> list[Path]:
    images = (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted((p for p in images if not p.name.startswith(".") and p.is_file()), key=_natural_key)


def _natural_key(path: Path) -> list[str | int]:
    """Sorts 2 before 10: every second part is a number."""
    parts = re.split(r"(\d+)", str(path))
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _is_cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end; decoders fill the rest of a JPEG with grey and say nothing."""
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data
    if not data.startswith(b"\xff\xd8"):
        return False
    position = 2
    while position + 4 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0xD9:
            return False  # damaged in another way, or the end
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:  # compressed data follow, up to the next true marker
            following = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]").search(data, position)
            position = len(data) if following is None else following.start()
    return data[position : position + 2] != b"\xff\xd9"
