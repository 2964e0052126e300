"""The drawn scene as a source, for machines without a camera."""

from __future__ import annotations

import time
from urllib.parse import parse_qsl, urlsplit

from ..errors import SourceOpenError
from ..scenes import MovingScene
from .source import Image, Source

_DEFAULT_FPS = 30.0
_DEFAULTS = {"width": 640, "height": 480, "people": 3, "seed": 0}
_LIMITS = {
    "width": (32, 8192),
    "height": (32, 8192),
    "people": (0, 50),
    "seed": (0, 2**31 - 1),
    "fps": (0.1, 1000),
    "frames": (1, 2**31 - 1),
}


class SyntheticSource(Source):
    """`synthetic://?width=640&height=480&people=3&seed=0&fps=30&frames=100`.

    Without `frames` it has no end; without `fps` it comes as fast as it is read, 30 frames of it being a
    second of the scene.
    """

    def __init__(self, url: str) -> None:
        options = _options(url)
        wh = int(options["width"]), int(options["height"])
        self._is_paced = "fps" in options
        self._frame_s = 1.0 / options.get("fps", _DEFAULT_FPS)
        self._start_s: float | None = None
        self._scene = MovingScene(wh, num_people=int(options["people"]), seed=int(options["seed"]))
        num_frames = int(options["frames"]) if "frames" in options else None
        super().__init__(url, wh, fps=1.0 / self._frame_s, num_frames=num_frames)

    def _grab(self) -> bool:
        if self.num_frames is not None and self._next_index >= self.num_frames:
            return False
        if self._is_paced:
            self._wait_until_due()
        return True

    def _retrieve(self) -> tuple[Image, str]:
        image, _, _ = self._scene.frame(self._next_index * self._frame_s)
        return image, self.name

    def _wait_until_due(self) -> None:
        now_s = time.monotonic()
        if self._start_s is None:
            self._start_s = now_s
        self._closed.wait(max(0.0, self._start_s + self._next_index * self._frame_s - now_s))


def _options(url: str) -> dict[str, float]:
    options: dict[str, float] = dict(_DEFAULTS)
    for name, text in parse_qsl(urlsplit(url).query, keep_blank_values=True):
        if name not in _LIMITS:
            raise SourceOpenError(f"{url}: there is no option {name!r}; known are {', '.join(_LIMITS)}")
        least, most = _LIMITS[name]
        try:
            options[name] = float(text) if name == "fps" else int(text)
        except ValueError:
            raise SourceOpenError(f"{url}: {name} is {text!r}, expected a number") from None
        if not least <= options[name] <= most:
            raise SourceOpenError(f"{url}: {name} is {text}, expected {least} to {most}")
    return options
