"""Timing of alternatives side by side: in turns, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


def interleaved_ms(
    functions: Mapping[str, Callable[[], object]], *, rounds: int = 50, warm_up: int = 5
) -> dict[str, list[float]]:
    """Milliseconds of each call of each function, called in turns.

    Args:
        functions: name -> what to time.
        rounds: calls of each that are counted.
        warm_up: calls of each before that.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(warm_up + rounds):
        for name, function in functions.items():
            start_ns = time.perf_counter_ns()
            function()
            if round_number >= warm_up:
                times[name].append((time.perf_counter_ns() - start_ns) / 1e6)
    return times


def medians_ms(
    functions: Mapping[str, Callable[[], object]], *, rounds: int = 50, warm_up: int = 5
) -> dict[str, float]:
    """The median of `interleaved_ms` for each function."""
    return {name: median(values) for name, values in interleaved_ms(functions, rounds=rounds, warm_up=warm_up).items()}
