"""Where the results of `centeredge run` go: a video or pictures, JSON lines, a window."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from sdk.camera import CameraIntrinsics
from sdk.drawing import draw, draw_status
from sdk.errors import ConfigError
from sdk.opencv import load_cv2
from sdk.results import FrameResult
from sdk.sources import IMAGE_SUFFIXES, Source
from sdk.spec import ModelSpec
from sdk.video import Sink, open_sink

Image = npt.NDArray[np.uint8]

_TITLE = "CenterEdge"
_ESCAPE = 27
_FALLBACK_FPS = 30.0  # of a video made from pictures, or from a camera that does not tell
_STATUS_EVERY_S = 5.0


class Outputs:
    """All that the arguments ask for; without a window, a line of status now and then."""

    def __init__(
        self,
        args: argparse.Namespace,
        spec: ModelSpec,
        source: Source,
        stack: ExitStack,
        *,
        intrinsics: CameraIntrinsics | None = None,
    ) -> None:
        _check_overwriting(args)
        self._spec = spec
        self._intrinsics = intrinsics
        self._is_single = source.num_frames == 1
        self._sink = stack.enter_context(_open_sink(args, source)) if args.output else None
        self._lines = stack.enter_context(JsonLines(args.json)) if args.json else None
        self._window = stack.enter_context(Window()) if _wants_window(args) else None
        self._status_due_s = time.monotonic() + _STATUS_EVERY_S

    def show(self, result: FrameResult, status: str) -> bool:
        """Put out one result; False when the user wants no more."""
        if self._lines is not None and not self._lines.write(result):
            return False
        if self._sink is None and self._window is None:
            return self._show_status(status)
        picture = draw(
            result.frame.image,
            result.detections,
            skeleton=self._spec.skeleton,
            keypoint_names=self._spec.keypoint_names,
            intrinsics=self._intrinsics,
        )
        if self._sink is not None:
            # A dropped frame is made up for by showing its successor longer: the video keeps its speed.
            self._sink.write(picture, name=_output_name(self._sink, result), repeat=1 + result.dropped)
        if self._window is None:
            return self._show_status(status)
        return self._window.show(draw_status(picture, status), waits=self._is_single)

    def _show_status(self, status: str) -> bool:
        if time.monotonic() >= self._status_due_s:
            self._status_due_s += _STATUS_EVERY_S
            note(status)
        return True


class JsonLines:
    """A file of JSON lines, each flushed as it is written."""

    def __init__(self, path: str) -> None:
        self._closes = path != "-"
        try:
            self._file: TextIO = open(path, "w", encoding="utf-8") if self._closes else sys.stdout  # noqa: SIM115
        except OSError as err:
            raise ConfigError(f"--json {path} cannot be written: {err.strerror}") from err

    def write(self, result: FrameResult) -> bool:
        """Write one line; False when the program that reads standard output has left."""
        try:
            self._file.write(json.dumps(result.to_dict()) + "\n")
            self._file.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())  # for the flush at exit
            return False
        return True

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._closes:
            self._file.close()


class Window:
    """A window on the screen."""

    def __init__(self) -> None:
        self._cv2 = load_cv2()
        self._cv2.namedWindow(_TITLE, self._cv2.WINDOW_NORMAL | self._cv2.WINDOW_KEEPRATIO)

    def show(self, picture: Image, *, waits: bool) -> bool:
        """Show a picture, until a key is pressed if it `waits`; False on q, Esc or a closed window."""
        self._cv2.imshow(_TITLE, picture)
        key = self._cv2.waitKey(0 if waits else 1) & 0xFF
        is_visible = self._cv2.getWindowProperty(_TITLE, self._cv2.WND_PROP_VISIBLE) >= 1
        return is_visible and key not in (ord("q"), _ESCAPE)

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._cv2.destroyAllWindows()


def _open_sink(args: argparse.Namespace, source: Source) -> Sink:
    known = [count for count in (source.num_frames, args.max_frames) if count is not None]
    return open_sink(args.output, fps=source.fps or _FALLBACK_FPS, wh=source.wh, num_frames=min(known, default=None))


def _check_overwriting(args: argparse.Namespace) -> None:
    names = [name for name in (args.input, args.output, args.json, args.intrinsics) if name not in (None, "-")]
    for first, second in combinations(names, 2):
        if _is_same_file(first, second):
            raise ConfigError(f"{first} and {second} are the same file; name another output")


def _is_same_file(first: str, second: str) -> bool:
    if os.path.exists(first) and os.path.exists(second):
        return os.path.samefile(first, second)
    return os.path.abspath(first) == os.path.abspath(second)


def _output_name(sink: Sink, result: FrameResult) -> str:
    """What a picture is called in a folder: as its image file; frames of a video are numbered by the sink."""
    path = Path(result.frame.source)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return ""
    if _is_same_file(str(sink.path / path.name), str(path)):
        raise ConfigError(f"{path} would be overwritten; name another folder than {sink.path}")
    return path.name


def _wants_window(args: argparse.Namespace) -> bool:
    if args.headless:
        return False
    is_unix = sys.platform not in ("win32", "darwin")
    if is_unix and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        note("there is no display, so no window; Ctrl-C ends")
        return False
    # In a process of its own: where the display cannot be reached, OpenCV ends the whole process.
    probe = [sys.executable, "-c", "import cv2; cv2.namedWindow('probe'); cv2.destroyAllWindows()"]
    if subprocess.run(probe, capture_output=True).returncode:
        note("this OpenCV cannot open a window on this display, so there is none; Ctrl-C ends")
        return False
    return True


def note(text: str) -> None:
    """Tell the user, on stderr: standard output may carry JSON."""
    print(text, file=sys.stderr)
