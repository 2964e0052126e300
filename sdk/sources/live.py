"""Cameras and network streams, read with OpenCV."""

from __future__ import annotations

import glob
import os
import re
from typing import Any

from ..errors import SourceError, SourceOpenError
from ..opencv import load_cv2
from .source import Image, Source, redact
from .videos import positive

_NETWORK_TIMEOUT_S = 10.0


class LiveSource(Source):
    """What OpenCV has opened and delivers live.

    The first picture is thrown away: it proves that there are pictures, and is old when the second is read.

    Args:
        capture: a cv2.VideoCapture, which this object owns from now on.
        name: without passwords.
        advice: what to look at when no picture comes.
    """

    def __init__(self, capture: Any, name: str, *, advice: str) -> None:
        self._capture = capture
        is_open = capture.isOpened()
        decoded, image = capture.read() if is_open else (False, None)
        if not decoded or image is None:
            capture.release()
            problem = "is open but delivers no picture" if is_open else "cannot be opened"
            raise SourceOpenError(f"{name} {problem}; {advice}")
        height, width = image.shape[:2]
        fps = positive(capture.get(load_cv2().CAP_PROP_FPS))
        super().__init__(name, (width, height), is_live=True, fps=fps)

    def _grab(self) -> bool:
        if not self._capture.grab():
            raise SourceError(
                f"{self.name} stopped delivering after {self._next_index} frames; check the cable or network"
            )
        return True

    def _retrieve(self) -> tuple[Image, str]:
        decoded, image = self._capture.retrieve()
        if not decoded:
            raise SourceError(f"frame {self._next_index} of {self.name} cannot be decoded")
        return image, self.name

    def _release(self) -> None:
        self._capture.release()


def open_camera(device: str) -> LiveSource:
    """Open a camera of this machine: "0", "/dev/video0", or a link to a device."""
    number = re.fullmatch(r"(?:/dev/video)?(\d+)", os.path.realpath(device) if "/" in device else device)
    if number is None:
        raise SourceOpenError(f"{device!r} is no camera; expected a number from 0, or a device such as /dev/video0")
    present = ", ".join(sorted(glob.glob("/dev/video*"))) or "none"
    return LiveSource(
        load_cv2().VideoCapture(int(number.group(1))),
        device if "/" in device else f"camera {device}",
        advice=f"is it plugged in, in use by another program, or closed to this user? Camera devices here: {present}",
    )


def open_network(url: str) -> LiveSource:
    """Open an RTSP stream."""
    cv2 = load_cv2()
    timeout_ms = int(_NETWORK_TIMEOUT_S * 1e3)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms]
    return LiveSource(
        cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits),
        redact(url),
        advice="check the address, the user and the password, and whether this machine reaches the camera",
    )
