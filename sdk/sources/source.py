"""What every source of frames has in common."""

from __future__ import annotations

import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import SourceEnded, SourceError
from ..results import Frame

Image = npt.NDArray[np.uint8]
Self = TypeVar("Self", bound="Source")

_CLOSE_TIMEOUT_S = 1.0


class Source(ABC):
    """A sequence of frames; a context manager and an iterator of `Frame`.

    One thread reads at a time; `close` may be called from any other, also while a read is under way.

    Attributes:
        name: the source as it was given, without passwords.
        wh: width and height of the first frame in pixels; images of a folder may differ.
        is_live: whether frames are lost when nobody reads them.
        fps: frames a second, None where that has no meaning.
        num_frames: how many there will be, None if that is unknown or without end.
    """

    def __init__(
        self,
        name: str,
        wh: tuple[int, int],
        *,
        is_live: bool = False,
        fps: float | None = None,
        num_frames: int | None = None,
    ) -> None:
        self.name = name
        self.wh = wh
        self.is_live = is_live
        self.fps = fps
        self.num_frames = num_frames
        self._next_index = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def read(self) -> Frame | None:
        """The next frame, or None at the end.

        Raises:
            SourceError: the frame cannot be read, or a live source stopped delivering.
            SourceEnded: the source has been closed.
        """
        with self._lock:
            if self._closed.is_set():
                raise SourceEnded(f"{self.name} was read after it had been closed")
            try:
                return self._read()
            finally:
                if self._closed.is_set():  # close() gave up waiting for this read
                    self._release()

    def close(self) -> None:
        """Stop and let go of the device or file; more than once is fine."""
        self._closed.set()
        if self._lock.acquire(timeout=_CLOSE_TIMEOUT_S):
            try:
                self._release()
            finally:
                self._lock.release()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self.read()) is not None:
            yield frame

    def _read(self) -> Frame | None:
        if not self._grab():
            return None
        capture_ns = time.monotonic_ns()
        image, name = self._retrieve()
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise SourceError(
                f"{name} delivered an image of shape {image.shape} and type {image.dtype}, expected (H, W, 3) and uint8"
            )
        frame = Frame(np.ascontiguousarray(image), self._next_index, name, capture_ns)
        self._next_index += 1
        return frame

    @abstractmethod
    def _grab(self) -> bool:
        """Take the next picture, as fast as possible; False at the end."""

    @abstractmethod
    def _retrieve(self) -> tuple[Image, str]:
        """Decode the picture taken last: (H, W, 3) uint8 BGR, and where it came from."""

    def _release(self) -> None:  # noqa: B027 (most sources hold nothing)
        """Let go of what is held; may be called again, but never during a read."""


def redact(text: str) -> str:
    """The text with the passwords of its URLs replaced by `***`.

    >>> redact("rtsp://user:secret@host:554/live")
    'rtsp://user:***@host:554/live'
    """
    # Up to the last "@": a raw "/" or "@" in a password is against the rules and happens. "host:554/a@b"
    # holds no password.
    text = re.sub(r"(://[^/:@\s]*):(?!\d+/)\S*@", r"\1:***@", text)
    return re.sub(r"(?i)((?:pass|passwd|password|pwd|token)=)[^&\s]*", r"\1***", text)
