"""A detector on a moving source: capture in one thread, the network and the caller in the other.

::

    with sdk.Stream(detector, "rtsp://camera/1", policy="latest") as stream:
        for result in stream:
            result.detections, result.age_ms, result.dropped
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from .errors import ConfigError, SourceTimeout
from .results import Detections, Frame, FrameResult
from .sources import Source, open_source

Policy = Literal["latest", "all"]

_LIVE_TIMEOUT_S = 10.0
_JOIN_TIMEOUT_S = 2.0
# One frame in the network and one or two waiting: more adds latency and no throughput.
_CAPACITY: dict[Policy, int] = {"latest": 1, "all": 2}

logger = logging.getLogger(__name__)


class StagedDetector(Protocol):
    """A detector in three stages. `preprocess` runs in another thread than the rest, on another frame."""

    def preprocess(self, image: npt.NDArray[np.uint8], /) -> Any: ...

    def infer(self, prepared: Any, /) -> Mapping[str, npt.NDArray[Any]]: ...

    def decode(self, heads: Any, prepared: Any, /) -> Detections: ...


class Stream:
    """Runs a detector over a source; a context manager and an iterator of `FrameResult`.

    A worker thread captures and preprocesses; the network, the decoding and the code of the loop run in the
    caller's thread, so that nothing of the caller's needs a lock. An error in the worker is raised in the
    loop, after the frames before it. Leaving the with-block, in whatever way, ends the worker.

    Args:
        detector: an `sdk.Detector`, or anything with its three stages.
        source: what `open_source` takes, or an open Source, which stays the caller's to close.
        policy: "all" gives every frame, and the source waits; "latest" gives the newest, and counts the
            dropped ones in `FrameResult.dropped`. A file with "latest" plays at its frame rate, as a camera
            would. None: latest for live sources, all for files.
        timeout_s: the longest wait for a frame; None: 10 s for live sources, for ever otherwise.

    Raises:
        SourceOpenError: the source cannot be opened.
        ConfigError: there is no such policy.
    """

    def __init__(
        self,
        detector: StagedDetector,
        source: str | int | os.PathLike[str] | Source,
        *,
        policy: Policy | None = None,
        timeout_s: float | None = None,
    ) -> None:
        if policy is not None and policy not in get_args(Policy):
            raise ConfigError(f"policy is {policy!r}, expected one of {', '.join(get_args(Policy))}")
        self._detector = detector
        self._owns_source = isinstance(source, (str, int, os.PathLike))
        self.source = open_source(source) if isinstance(source, (str, int, os.PathLike)) else source
        is_live = self.source.is_live
        self.policy: Policy = policy or ("latest" if is_live else "all")
        self._timeout_s = _LIVE_TIMEOUT_S if timeout_s is None and is_live else timeout_s
        self._buffer = _Buffer(_CAPACITY[self.policy], drops=self.policy == "latest")
        self._worker = threading.Thread(target=self._work, name="centeredge-capture", daemon=True)

    def __enter__(self) -> Stream:
        self._worker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[FrameResult]:
        return self

    def __next__(self) -> FrameResult:
        if self._worker.ident is None:
            raise ConfigError("the stream is not running; open it with `with sdk.Stream(...) as stream:`")
        try:
            taken = self._buffer.get(self._timeout_s)
        except TimeoutError:
            raise SourceTimeout(
                f"{self.source.name} delivered no frame for {self._timeout_s:g} s; check the camera or network"
            ) from None
        if taken is None:
            raise self._buffer.take_error() or StopIteration
        return self._detect(*taken)

    def close(self) -> None:
        """End the worker, and close the source if the stream opened it; more than once is fine."""
        self._buffer.close()
        if self._owns_source:
            self.source.close()
        if self._worker.ident is None:
            return
        self._worker.join(_JOIN_TIMEOUT_S)
        if self._worker.is_alive():
            logger.warning("%s is still waiting for a frame; its thread ends with that", self.source.name)

    def _detect(self, prepared: _PreparedFrame, dropped: int) -> FrameResult:
        start = time.perf_counter()
        heads = self._detector.infer(prepared.input)
        inferred = time.perf_counter()
        detections = self._detector.decode(heads, prepared.input)
        decoded = time.perf_counter()
        ms = {
            "preprocess": prepared.preprocess_ms,
            "inference": (inferred - start) * 1e3,
            "decode": (decoded - inferred) * 1e3,
        }
        age_ms = (time.monotonic_ns() - prepared.frame.capture_ns) / 1e6
        return FrameResult(prepared.frame, detections, ms, age_ms=age_ms, dropped=dropped)

    def _work(self) -> None:
        try:
            for frame in self._frames():
                start = time.perf_counter()
                network_input = self._detector.preprocess(frame.image)
                preprocess_ms = (time.perf_counter() - start) * 1e3
                if not self._buffer.put(_PreparedFrame(frame, network_input, preprocess_ms)):
                    return
        except BaseException as err:  # the caller's thread raises it
            self._buffer.finish(err)
        else:
            self._buffer.finish()

    def _frames(self) -> Iterator[Frame]:
        if self.policy == "all" or self.source.is_live or not self.source.fps:
            yield from self.source
            return
        start_s = None
        for frame in self.source:
            due_s = frame.index / self.source.fps
            start_s = time.monotonic() - due_s if start_s is None else start_s
            if self._buffer.wait_closed(start_s + due_s - time.monotonic()):
                return
            yield replace(frame, capture_ns=time.monotonic_ns())


@dataclass(frozen=True)
class _PreparedFrame:
    frame: Frame
    input: Any  # what the detector's preprocess gave
    preprocess_ms: float


class _Buffer:
    """Hands frames from one thread to another; closing it wakes both.

    Args:
        capacity: how many frames may wait.
        drops: a full buffer lets its oldest frame go; otherwise `put` waits.
    """

    def __init__(self, capacity: int, *, drops: bool) -> None:
        self._capacity = capacity
        self._drops = drops
        self._items: deque[_PreparedFrame] = deque()
        self._dropped = 0
        self._error: BaseException | None = None
        self._is_finished = False
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, item: _PreparedFrame) -> bool:
        """Add a frame; False if nobody wants it any more."""
        with self._changed:
            if self._drops and len(self._items) == self._capacity:
                self._items.popleft()
                self._dropped += 1
            self._changed.wait_for(lambda: self._is_closed or len(self._items) < self._capacity)
            if self._is_closed:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self, timeout_s: float | None) -> tuple[_PreparedFrame, int] | None:
        """The oldest frame and how many were dropped since the last call; None at the end.

        Raises:
            TimeoutError: nothing came in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._is_finished, timeout_s):
                raise TimeoutError
            if not self._items:
                return None
            item = self._items.popleft()
            dropped, self._dropped = self._dropped, 0
            self._changed.notify_all()
            return item, dropped

    def take_error(self) -> BaseException | None:
        """What ended the other thread, the first time that it is asked for."""
        with self._changed:
            error, self._error = self._error, None
            return error

    def finish(self, error: BaseException | None = None) -> None:
        """No more frames will come; those that wait are still delivered, then the error."""
        with self._changed:
            if not self._is_closed:
                self._error = error
            self._is_finished = True
            self._changed.notify_all()

    def close(self) -> None:
        """Forget what waits; both sides return at once from now on."""
        with self._changed:
            self._items.clear()
            self._error = None
            self._is_closed = self._is_finished = True
            self._changed.notify_all()

    def wait_closed(self, seconds: float) -> bool:
        """Sleep, but not longer than the buffer is open; whether it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed, max(0.0, seconds))
            return self._is_closed
