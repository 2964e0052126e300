"""What a calibration takes, beside running the same photographs through the FP32 model; and what INT8 gains there.

Each method runs in a process of its own, so that the most memory it held is known. The time of the FP32 model is taken
in the same process, before and after, with as many threads.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from calibration.collection import collect_statistics
from calibration.methods import METHODS
from calibration.onnx_files import read_onnx
from calibration.photographs import PhotographReader
from calibration.quantisation import quantise
from calibration.ranges import ranges_from_statistics
from calibration.reconstruction import sample_frames
from calibration.sets import choose_at_random, list_photographs
from export.tracing import trace
from sdk.backends.onnxruntime import INPUT_NAME, open_session
from sdk.detector import MODELS_FOLDER
from sdk.preprocessing import prepare
from sdk.scenes import random_scene
from sdk.sources.images import read_image
from sdk.timing import medians_ms

from .decoding import SPEC, shown
from .lowering import ARCHITECTURES, network

NUM = 500
TIME_BAR, MEMORY_BAR_MB = 2.5, 1500


def run() -> None:
    folder = Path(os.environ.get("CENTEREDGE_DATA", "../shared/data")) / "coco" / "train"
    if folder.is_dir():
        for method in (*METHODS, "auto"):
            subprocess.run([sys.executable, "-m", "benchmarks.calibration", str(folder), method], check=True)
    else:
        print(f"skipped: no photographs in {folder}; set CENTEREDGE_DATA")
    for architecture in ARCHITECTURES:
        for threads in (1, 2):
            compare_latency(architecture, threads)


def time_calibration(folder: Path, method: str) -> None:
    """Time and memory of a calibration, and of the FP32 model on the same photographs."""
    model_path = MODELS_FOLDER / "person-pose.onnx"
    model, spec = read_onnx(model_path)
    paths = choose_at_random(list_photographs(folder), NUM).paths
    session = open_session(model_path)

    def run_float() -> float:
        start = time.perf_counter()
        for path in paths:
            session.run(None, {INPUT_NAME: prepare(read_image(path), spec).tensor})
        return time.perf_counter() - start

    before_s = run_float()
    start = time.perf_counter()
    statistics = collect_statistics(model, spec, PhotographReader(paths), total=len(paths))
    ranges_from_statistics(model, statistics, method, frames=sample_frames(paths, spec))
    calibration_s = time.perf_counter() - start
    float_s = (before_s + run_float()) / 2
    most_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    fits = calibration_s <= TIME_BAR * float_s and most_mb <= MEMORY_BAR_MB
    print(
        f"{method:<10} {NUM} photographs: {calibration_s:.1f} s, FP32 alone {float_s:.1f} s, "
        f"{calibration_s / float_s:.2f} times; most memory {most_mb:.0f} MB; "
        f"within {TIME_BAR} times and {MEMORY_BAR_MB} MB: {'yes' if fits else 'NO'}",
        flush=True,
    )


def compare_latency(architecture: str, threads: int) -> None:
    """FP32 against U8S8 of a network with random weights, ranges from two drawn scenes."""
    model = trace(network(architecture), SPEC)
    scenes = [random_scene(np.random.default_rng(seed), SPEC.input.wh)[0] for seed in range(2)]
    statistics = collect_statistics(model, SPEC, scenes, total=len(scenes))
    int8 = quantise(model, ranges_from_statistics(model, statistics, "minmax"))
    with TemporaryDirectory() as folder:
        calls = {}
        for name, file in (("FP32", model), ("INT8", int8)):
            path = Path(folder) / f"{name}.onnx"
            path.write_bytes(file.SerializeToString())
            session = open_session(path, threads=threads)
            calls[name] = partial(session.run, None, {INPUT_NAME: scenes[0][None]})
        times = medians_ms(calls, rounds=15, warm_up=2)
    ratio = times["INT8"] / times["FP32"]
    print(f"{architecture}, 512x512, {threads} threads: {shown(times)}; INT8 / FP32 {ratio:.3f}", flush=True)


if __name__ == "__main__":
    time_calibration(Path(sys.argv[1]), sys.argv[2])
