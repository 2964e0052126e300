"""Resident memory of `centeredge run` over 5 000 frames of the drawn scene."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

FRAMES = 5000


def run() -> None:
    command = [sys.executable, "-m", "apps.cli", "run", "synthetic://", "--headless", "--max-frames", str(FRAMES)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    samples_mb = []
    while process.poll() is None:
        try:
            samples_mb.append(psutil.Process(process.pid).memory_info().rss / 1e6)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.25)
    _, errors = process.communicate()
    warm = samples_mb[len(samples_mb) // 5 :]
    print(errors.strip().splitlines()[-1])
    print(f"resident: after a fifth {warm[0]:.0f} MB, at the end {warm[-1]:.0f} MB, most {max(warm):.0f} MB")
