"""OpenCV, loaded when it is first needed: `import sdk` works without it."""

from __future__ import annotations

import os
from typing import Any

from .errors import BackendUnavailable


def load_cv2() -> Any:
    """The cv2 module, with its own messages on stderr switched off.

    What goes wrong is said in our errors. `OPENCV_LOG_LEVEL=INFO` in the environment brings OpenCV's
    messages back, `OPENCV_FFMPEG_LOGLEVEL=32` FFmpeg's.

    Raises:
        BackendUnavailable: OpenCV is not installed.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when the first video is opened
    try:
        import cv2
    except ImportError as err:
        raise BackendUnavailable(
            f"OpenCV cannot be imported ({err}); install it with `pip install 'centeredge[cpu]'`, or on "
            "JetPack use the system's: `sudo apt install python3-opencv` and an environment made with "
            "--system-site-packages"
        ) from err
    if "OPENCV_LOG_LEVEL" not in os.environ and hasattr(cv2.utils, "logging"):
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
