"""Video files, read with OpenCV."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from ..errors import SourceError, SourceOpenError
from ..opencv import load_cv2
from .source import Image, Source

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts",
    ".wmv", ".flv", ".ogv", ".3gp", ".gif", ".h264", ".h265", ".hevc", ".mjpg", ".mjpeg", ".y4m",
)  # fmt: skip

logger = logging.getLogger(__name__)


class VideoFileSource(Source):
    """A video file. One that is cut short gives the frames that can be decoded, and a warning."""

    def __init__(self, path: Path, *, name: str) -> None:
        cv2 = load_cv2()
        self._capture = cv2.VideoCapture(str(path))
        decoded, self._first = self._capture.read()
        if not decoded:
            self._capture.release()
            raise SourceOpenError(_problem(path))
        height, width = self._first.shape[:2]
        super().__init__(
            name,
            (width, height),
            fps=positive(self._capture.get(cv2.CAP_PROP_FPS)),
            num_frames=int(positive(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)) or 0) or None,
        )

    def _grab(self) -> bool:
        if self._first is not None or self._capture.grab():
            return True
        if self._capture.isOpened():
            self._warn_if_short()
            self._release()
        return False

    def _retrieve(self) -> tuple[Image, str]:
        image, self._first = self._first, None
        if image is None:
            decoded, image = self._capture.retrieve()
            if not decoded:
                raise SourceError(f"frame {self._next_index} of {self.name} cannot be decoded; is it damaged?")
        return image, self.name

    def _warn_if_short(self) -> None:
        missing = (self.num_frames or 0) - self._next_index
        if missing > max(2, 0.01 * self._next_index):  # sound files miscount by a frame or two
            logger.warning(
                "%s ended early: got %d of the %d frames that it announces; it is cut short or damaged",
                self.name,
                self._next_index,
                self.num_frames,
            )

    def _release(self) -> None:
        self._capture.release()


def positive(value: float) -> float | None:
    """A property that OpenCV reports, None where it reports nothing sensible."""
    return value if math.isfinite(value) and value > 0 else None


def _problem(path: Path) -> str:
    size = path.stat().st_size
    if size == 0:
        return f"the video {path} is empty (0 bytes); copy it again"
    return (
        f"no frame of the video {path} ({size} bytes) can be decoded: it is damaged, cut short, no video, or "
        "in a format that this OpenCV does not read; try to play it, or convert it with ffmpeg"
    )
