"""Where pictures go: a video, an image, a folder of images. Each appears under its name only when complete.

::

    with open_sink("out.mp4", fps=30.0, wh=(640, 480)) as sink:
        sink.write(picture)
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .opencv import load_cv2
from .sources import IMAGE_SUFFIXES

Image = npt.NDArray[np.uint8]
Self = TypeVar("Self", bound="Sink")

# Tried in this order; pip's OpenCV has no H.264 encoder of its own (avc1).
_CODECS = {".mp4": ("mp4v", "avc1"), ".avi": ("MJPG", "XVID")}

logger = logging.getLogger(__name__)


class Sink(ABC):
    """Takes pictures; a context manager that keeps what was written, or discards it after an exception.

    Until it is closed, the output has a temporary, hidden name beside its own.

    Raises:
        InputError: on construction, if the place cannot be written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        self.num_frames = 0
        self._is_open = True
        hidden = f".{self.path.stem}.{secrets.token_hex(4)}.partial{self.path.suffix}"
        self._partial = Path(os.path.abspath(self.path)).with_name(hidden)
        try:
            self._create()
        except OSError as err:
            raise self._cannot_write(err) from err

    def write(self, image: Image, *, name: str = "", repeat: int = 1) -> None:
        """Add a picture.

        Args:
            image: (H, W, 3) uint8 BGR.
            name: what it is called in a folder; other sinks need none.
            repeat: how often it stands in a video, to make up for dropped frames.

        Raises:
            InputError: the sink cannot take it: another shape, one image too many, or a full disk.
        """
        if not self._is_open:
            raise InputError(f"{self.path} was written to after it had been closed")
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(f"{self.path} takes (H, W, 3) uint8 pictures, got {image.dtype} {image.shape}")
        try:
            self._write(image, name, repeat)
        except OSError as err:
            raise self._cannot_write(err) from err
        self.num_frames += 1

    def close(self) -> None:
        """Finish: from now on the output stands under its name.

        Raises:
            InputError: it cannot be finished; nothing is left behind.
        """
        if not self._is_open:
            return
        if not self.num_frames:
            logger.warning("no frame was written, so there is no %s", self.path)
            self.discard()
            return
        try:
            self._finish()
            self._is_open = False
        except OSError as err:
            raise self._cannot_write(err) from err
        finally:
            self.discard()

    def discard(self) -> None:
        """Leave nothing behind, unless it is finished."""
        if self._is_open:
            self._is_open = False
            self._remove()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.discard()

    def _create(self) -> None:
        """Make the temporary output; shows that the place can be written to."""
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder; expected the name of a file")
        self._partial.touch(exist_ok=False)

    @abstractmethod
    def _write(self, image: Image, name: str, repeat: int) -> None: ...

    def _finish(self) -> None:
        os.replace(self._partial, self.path)

    def _remove(self) -> None:
        self._partial.unlink(missing_ok=True)

    def _cannot_write(self, err: OSError) -> InputError:
        return InputError(f"{self.path} cannot be written: {err.strerror or err}")


def open_sink(path: str | os.PathLike[str], *, fps: float, wh: tuple[int, int], num_frames: int | None = None) -> Sink:
    """The sink that fits a path: .mp4 or .avi, an image, or a folder (no suffix, or one that exists).

    Args:
        path: where the output will stand; the folder above must exist.
        fps: pictures a second, for a video.
        wh: width and height of the pictures in pixels, for a video.
        num_frames: how many pictures will come, if that is known.

    Raises:
        InputError: an unknown suffix, a place that cannot be written to, or one image for many pictures.
    """
    target = Path(path).expanduser()
    suffix = target.suffix.lower()
    if target.is_dir() or not suffix:
        return FolderSink(target)
    if suffix in _CODECS:
        return VideoSink(target, fps, wh)
    if suffix in IMAGE_SUFFIXES and (num_frames or 1) > 1:
        raise InputError(f"{target} is one image, for {num_frames} pictures; write a video or a folder instead")
    if suffix in IMAGE_SUFFIXES:
        return ImageSink(target)
    raise InputError(
        f"{target} has the suffix {suffix!r}; expected a video ({' '.join(_CODECS)}), an image "
        f"({' '.join(IMAGE_SUFFIXES)}), or a folder (no suffix)"
    )


class VideoSink(Sink):
    """A video file, .mp4 or .avi.

    Args:
        path: where the video will stand.
        fps: frames a second.
        wh: width and height of every frame in pixels; codecs drop an odd last row or column.

    Raises:
        InputError: a suffix, rate or size that no video has, or a place that cannot be written to.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float, wh: tuple[int, int]) -> None:
        codecs = _CODECS.get(Path(path).suffix.lower())
        if codecs is None:
            raise InputError(f"{path} has the suffix {Path(path).suffix!r}; expected {' or '.join(_CODECS)}")
        if not (math.isfinite(fps) and fps > 0):
            raise InputError(f"{path}: a video needs a frame rate above 0, got {fps}")
        if min(wh) < 2:
            raise InputError(f"{path}: a video needs at least 2x2 pixels, got {wh[0]}x{wh[1]}")
        super().__init__(path)
        self.wh = wh
        self._writer = _video_writer(self._partial, codecs, fps, wh)
        if not self._writer.isOpened():
            self.discard()
            raise InputError(
                f"this OpenCV cannot write {path} ({wh[0]}x{wh[1]} at {fps:g} fps, {' or '.join(codecs)}); "
                f"try {' or '.join(set(_CODECS) - {self.path.suffix.lower()})}, or a folder"
            )

    def _write(self, image: Image, name: str, repeat: int) -> None:
        height, width = image.shape[:2]
        if (width, height) != self.wh:
            raise InputError(
                f"picture {self.num_frames} is {width}x{height}, the video {self.path} is "
                f"{self.wh[0]}x{self.wh[1]}; write pictures of several sizes to a folder"
            )
        for _ in range(repeat):
            self._writer.write(image)

    def _finish(self) -> None:
        self._writer.release()
        # The writer reports no error; a video without its index, as on a full disk, does not open.
        if not load_cv2().VideoCapture(str(self._partial)).isOpened():
            raise InputError(f"{self.path} cannot be finished; is the disk full?")
        super()._finish()

    def _remove(self) -> None:
        self._writer.release()
        super()._remove()


class ImageSink(Sink):
    """One image file."""

    def _write(self, image: Image, name: str, repeat: int) -> None:
        if self.num_frames:
            raise InputError(f"{self.path} is one image and got a second; write a video or a folder instead")
        self._partial.write_bytes(_encode(image, self.path))


class FolderSink(Sink):
    """A folder of images; in one that exists, images of the same names are replaced."""

    def _create(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; expected a folder, or a name with a suffix")
        if self.path.is_dir() and not os.access(self.path, os.W_OK):
            raise InputError(f"the folder {self.path} cannot be written to")
        self._partial.mkdir()

    def _write(self, image: Image, name: str, repeat: int) -> None:
        file = self._partial / (name or f"frame_{self.num_frames:06d}.jpg")
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            file = file.with_name(file.name + ".jpg")
        if file.exists():  # images of one name, from two folders
            file = file.with_stem(f"{file.stem}_{self.num_frames:06d}")
        file.write_bytes(_encode(image, file))

    def _finish(self) -> None:
        if not self.path.is_dir():
            os.replace(self._partial, self.path)
            return
        for file in sorted(self._partial.iterdir()):
            os.replace(file, self.path / file.name)
        self._partial.rmdir()

    def _remove(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)


def _video_writer(path: Path, codecs: tuple[str, ...], fps: float, wh: tuple[int, int]) -> Any:
    """The first cv2.VideoWriter that opens, or the last that does not."""
    cv2 = load_cv2()
    for codec in codecs:
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, wh)
        if writer.isOpened():
            break
    return writer


def _encode(image: Image, path: Path) -> bytes:
    cv2 = load_cv2()
    done, encoded = cv2.imencode(path.suffix, image)
    if not done:
        raise InputError(f"OpenCV cannot encode {path}")
    return bytes(encoded)
