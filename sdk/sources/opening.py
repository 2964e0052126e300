"""From a name to the source that it stands for."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from ..errors import SourceError, SourceOpenError
from .images import IMAGE_SUFFIXES, ImageSource, folder_images, glob_images
from .live import open_camera, open_network
from .source import Source, redact
from .synthetic import SyntheticSource
from .videos import VIDEO_SUFFIXES, VideoFileSource

_EXPECTED = (
    "expected an image, a video, a folder of images, a glob, a camera (0 or /dev/video0), rtsp://... or synthetic://"
)


def open_source(uri: str | int | os.PathLike[str]) -> Source:
    """Open a source of frames.

    Args:
        uri: an image file, a video file, a folder of images or a glob (both in natural order of their
            names: 2 before 10), a camera (0, "0" or "/dev/video0"), "rtsp://...", or a drawn scene:
            "synthetic://?width=640&height=480&people=3&seed=0". The scene has no end unless `frames=N`
            is given, and comes as fast as it is read unless `fps=30` paces it.

    Raises:
        SourceOpenError: it does not exist, cannot be opened or holds no picture.
    """
    text = os.fspath(uri) if isinstance(uri, os.PathLike) else str(uri).strip()
    if re.fullmatch(r"-?\d+", text) or text.startswith("/dev/"):
        return open_camera(text)
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", text):
        return _open_url(text, scheme.group(1).lower())
    try:
        return _open_path(text)
    except OSError as err:
        raise SourceOpenError(f"{text!r} cannot be opened: {err.strerror}") from err


def _open_url(url: str, scheme: str) -> Source:
    if scheme == "synthetic":
        return SyntheticSource(url)
    if scheme in ("rtsp", "rtsps"):
        return open_network(url)
    raise SourceOpenError(f"{redact(url)}: a source of kind {scheme}:// is not known; {_EXPECTED}")


def _open_path(text: str) -> Source:
    path = Path(text).expanduser()
    try:
        if text and path.is_dir():
            return ImageSource(folder_images(path), name=text)
        if text and path.is_file():
            return _open_file(path, name=text)
        if glob.has_magic(text):
            return ImageSource(glob_images(text), name=text)
    except SourceOpenError:
        raise
    except SourceError as err:  # the first image cannot be read
        raise SourceOpenError(str(err)) from err
    raise SourceOpenError(f"{text!r} does not exist; {_EXPECTED}")


def _open_file(path: Path, *, name: str) -> Source:
    path.open("rb").close()  # says which right is missing, which OpenCV does not
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return VideoFileSource(path, name=name)
    if suffix in IMAGE_SUFFIXES:
        return ImageSource([path], name=name)
    raise SourceOpenError(
        f"{path} has the suffix {suffix!r}; expected an image ({' '.join(IMAGE_SUFFIXES)}) "
        f"or a video ({' '.join(VIDEO_SUFFIXES)})"
    )
