"""How far a build of TensorRT is: its progress monitor, in a line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_PAUSE_S = 2.0  # between two lines


class BuildProgress:
    """Tells now and then how far the builder is; what goes wrong in telling ends the build.

    TensorRT calls it from threads of its own, through which no exception may pass.

    Attributes:
        failure: what was raised, an interrupt by the user included.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self.failure: BaseException | None = None
        self._note = note
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[int, int]] = {}
        self._next_s = 0.0

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        with self._lock:
            self._phases[phase_name] = (0, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        try:
            with self._lock:
                if phase_name in self._phases:
                    self._phases[phase_name] = (step + 1, self._phases[phase_name][1])
                self._tell()
        except BaseException as err:
            self.failure = err
        return self.failure is None

    def phase_finish(self, phase_name: str) -> None:
        with self._lock:
            self._phases.pop(phase_name, None)

    def _tell(self) -> None:
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + _PAUSE_S
        self._note(", ".join(f"{name} {done}/{steps}" for name, (done, steps) in self._phases.items()))
