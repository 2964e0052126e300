"""Time of `import sdk` in a fresh interpreter, and of an interpreter that imports NumPy alone (the floor)."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median


def run() -> None:
    for statement in ("pass", "import numpy", "import sdk"):
        print(f"{statement:15} {seconds(statement):.3f} s")


def seconds(statement: str, rounds: int = 7) -> float:
    """Median seconds of a process that runs one statement."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        times.append(time.perf_counter() - start)
    return median(times)
