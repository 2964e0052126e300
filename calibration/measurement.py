"""What INT8 costs and gains: accuracy and latency of both models, measured alike.

::

    evaluation = open_evaluation(folder, annotations, spec)
    figures = measure_accuracy({"fp32": float_path, "int8": int8_path}, evaluation)
    latencies_ms = measure_latency({"fp32": float_path, "int8": int8_path})
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sdk.backends.onnxruntime import INPUT_NAME, OnnxRuntimeBackend
from sdk.coco import check_photographs, read_coco
from sdk.detector import Detector
from sdk.metrics import CocoResults
from sdk.sources.images import read_image
from sdk.spec import ModelSpec

from .errors import CalibrationError
from .onnx_files import file_sha256
from .photographs import Photograph

_WARM_UP, _ROUNDS = 5, 60
# Photographs of the calibration folder that accuracy is measured on, where no others are named.
_MAX_HELD_BACK = 500


@dataclass(frozen=True)
class Evaluation:
    """Annotated photographs.

    Attributes:
        truth: content of the COCO annotation file.
        files: image id -> file, of those that count.
    """

    truth: Mapping[str, Any]
    files: Mapping[int, Path]


def open_evaluation(images: Path, annotations: Path, spec: ModelSpec) -> Evaluation:
    """All photographs of an annotation file.

    Raises:
        InputError: the file is none of COCO's, names a photograph that is missing, or none of the model's classes.
    """
    truth = read_coco(annotations)
    CocoResults.for_spec(truth, spec)  # says so now if the classes do not fit
    check_photographs(annotations, images, truth["images"])
    return Evaluation(truth, {row["id"]: images / Path(row["file_name"]).name for row in truth["images"]})


def check_unseen(evaluation: Evaluation, calibrated_on: tuple[Photograph, ...]) -> None:
    """Raises CalibrationError where photographs were calibrated on: accuracy on them would say too much."""
    known = {photograph.sha256 for photograph in calibrated_on}
    seen = [path.name for path in evaluation.files.values() if file_sha256(path) in known]
    if seen:
        raise CalibrationError(
            f"{len(seen)} of the {len(evaluation.files)} evaluation photographs were calibrated on, the first "
            f"{seen[0]}; name others with --eval-images and --eval-annotations"
        )


def held_back(evaluation: Evaluation, calibrated_on: tuple[Photograph, ...], *, seed: int) -> Evaluation:
    """Those photographs that were not calibrated on; at most 500, chosen by the seed.

    Raises:
        CalibrationError: there are none.
    """
    known = {photograph.sha256 for photograph in calibrated_on}
    names = {photograph.name for photograph in calibrated_on}
    unseen = [item for item in evaluation.files.items() if item[1].name not in names]
    order = np.random.default_rng(seed).permutation(len(unseen))[:_MAX_HELD_BACK]
    files = dict(unseen[index] for index in sorted(order))
    files = {image_id: path for image_id, path in files.items() if file_sha256(path) not in known}
    if not files:
        raise CalibrationError(
            "all annotated photographs were calibrated on, so that none is left to measure accuracy; lower --num, or "
            "name others with --eval-images and --eval-annotations"
        )
    return Evaluation(evaluation.truth, files)


def measure_accuracy(models: Mapping[str, Path], evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """COCO figures of each model, all peaks counted, as `sdk.metrics.CocoResults.evaluate` gives them."""
    detectors = {name: Detector(path, score_threshold=0.0) for name, path in models.items()}
    results = {name: CocoResults.for_spec(evaluation.truth, detector.spec) for name, detector in detectors.items()}
    for image_id, path in evaluation.files.items():
        image = read_image(path)
        for name, detector in detectors.items():
            results[name].add(image_id, detector(image))
    return {name: result.evaluate() for name, result in results.items()}


def measure_latency(models: Mapping[str, Path], *, threads: int = 1) -> dict[str, float]:
    """Median milliseconds of one frame through each network, taken in turns so that all meet the same conditions."""
    backends = {name: OnnxRuntimeBackend(path, threads=threads) for name, path in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    rng = np.random.default_rng(0)
    for _ in range(_WARM_UP + _ROUNDS):
        for name, backend in backends.items():
            width, height = backend.spec.input.wh
            frame = rng.integers(0, 256, (1, height, width, 3), np.uint8)
            start = time.perf_counter()
            backend.infer({INPUT_NAME: frame})
            times[name].append(1000.0 * (time.perf_counter() - start))
    return {name: median(values[_WARM_UP:]) for name, values in times.items()}
