"""What a precision costs and gains: accuracy and latency of several models, measured alike.

::

    figures = measure_accuracy({"fp32": float_path, "int8": int8_path}, evaluation)
    for threads in thread_counts():
        latencies_ms = measure_latency({"fp32": float_path, "int8": int8_path}, threads=threads)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from sdk.backends import Backend, open_backend
from sdk.coco import check_size
from sdk.detector import Detector
from sdk.errors import InputError, SourceError
from sdk.metrics import CocoResults
from sdk.results import Detections
from sdk.sources.images import read_image
from sdk.timing import medians_ms

from .sets import AnnotatedSet

ROUNDS = 60


def measure_accuracy(
    models: Mapping[str, Path | Backend],
    evaluation: AnnotatedSet,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    seen: Callable[[Path, Mapping[str, Detections]], None] = lambda path, found: None,
) -> dict[str, dict[str, Any]]:
    """COCO figures of each model, all peaks counted: over all, by size and by class, as `CocoResults` gives them.

    Args:
        models: label -> a .onnx or .engine file, or a `Backend`, which is left open. An FP16 file rounds nothing in
            ONNX Runtime on a CPU, which calculates it in FP32: for that, give the backend of a graph that does.
        evaluation: annotated photographs; each is read once, for all models.
        progress: called with (done, total) after each photograph.
        seen: called with each photograph and what each model found in it.

    Raises:
        InputError: a photograph cannot be read, has another size than its annotations, or none of a model's classes
            is annotated.
        BackendError, SpecError: a model cannot be used.
    """
    rows = {row["id"]: row for row in evaluation.truth["images"]}
    with ExitStack() as opened:
        detectors = {}
        for label, model in models.items():
            detectors[label] = Detector(model, score_threshold=0.0)
            if isinstance(model, Path):
                opened.enter_context(detectors[label])
        results = {label: CocoResults.for_spec(evaluation.truth, each.spec) for label, each in detectors.items()}
        for done, (image_id, path) in enumerate(evaluation.files.items(), 1):
            try:
                image = read_image(path)
            except SourceError as err:
                raise InputError(f"a photograph to measure accuracy on cannot be used: {err}") from err
            check_size(evaluation.annotations, rows[image_id], image)
            found = {label: detector(image) for label, detector in detectors.items()}
            for label, detections in found.items():
                results[label].add(image_id, detections)
            seen(path, found)
            progress(done, len(evaluation.files))
    return {label: result.evaluate() for label, result in results.items()}


def measure_latency(models: Mapping[str, Path], *, threads: int = 1, rounds: int = ROUNDS) -> dict[str, float]:
    """Median milliseconds of one frame through each network, taken in turns so that all meet the same conditions.

    Args:
        models: label -> a .onnx or .engine file.
        threads: of the CPU.
        rounds: frames that are counted.
    """
    with ExitStack() as opened:
        calls = {}
        for label, path in models.items():
            backend = open_backend(path, threads=threads)
            opened.callback(backend.close)
            calls[label] = _one_frame(backend)
        return medians_ms(calls, rounds=rounds)


def thread_counts() -> tuple[int, ...]:
    """What latency is measured with: 1 thread, and as many as there are cores."""
    return tuple(sorted({1, os.cpu_count() or 1}))


def _one_frame(backend: Backend) -> Callable[[], object]:
    width, height = backend.spec.input.wh
    feeds = {backend.inputs[0]: np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)}
    return lambda: backend.infer(feeds)
