"""A report with something in every field, as no single run would give it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.layer_errors import LayerError
from calibration.methods import Range
from calibration.photographs import Photograph, Unreadable
from calibration.ranges import Ranges
from calibration.report import Report, activation_histogram
from calibration.sensitivity import Accuracy, GroupSensitivity, LayerGroup, Sensitivity

HOSTILE = '<script>alert("1")</script>&\'.jpg'


def figures(ap: float) -> dict[str, Any]:
    """What `CocoResults.evaluate` gives."""
    sizes = {"APsmall": ap / 3, "APmedium": ap * 0.98, "APlarge": None}
    return {
        "bbox": {"AP": ap, "AP50": ap * 1.7, "AP75": ap * 0.9, **sizes, "AR100": ap + 0.11},
        "keypoints": {"AP": ap / 2, "AP50": ap * 0.8, "APmedium": ap / 4, "APlarge": ap / 1.9, "AR": ap / 1.7},
        "per_class": {"person": {"AP": ap * 1.01, "AP50": ap * 1.71}, "<b>dog</b>": {"AP": ap * 0.99, "AP50": None}},
    }


def sample_report(*precisions: str) -> Report:
    """Of some of fp32, fp16 and int8; all by default."""
    chosen = precisions or ("fp32", "fp16", "int8")

    def by_precision(**values: Any) -> dict[str, Any]:
        return {name: values[name] for name in chosen}

    return Report(
        model=Path("models") / "float.onnx",
        output=Path("models") / HOSTILE,
        file_bytes=by_precision(fp32=8805352, fp16=4412345, int8=2302461),
        latency_ms=by_precision(fp32=9.316, fp16=14.27, int8=3.348),
        latency_ms_by_threads={4: by_precision(fp32=4.17, fp16=6.29, int8=2.83)},
        accuracy=by_precision(fp32=figures(0.2054), fp16=figures(0.20541), int8=figures(0.2041)),
        num_evaluated=350,
        ranges=Ranges(
            "percentile",
            "c" * 64,
            (Photograph("1.jpg", "a1" * 32), Photograph(HOSTILE, "b2" * 32)),
            {"stem.Relu": Range(0.0, 6.125), "add": Range(-3.5, 4.25, 3.75)},
        ),
        unreadable=(Unreadable("broken.jpg", "broken.jpg is cut short"),),
        seed=17,
        choice=("2 photographs were chosen at random.",),
        notes=("3 photographs were calibrated on and are left out.",),
        options={"weight search": True, "left in float": ["stages.0"]},
        float_layers={"outputs.Conv": "it gives an output"},
        layers=(
            LayerError("stem.Conv", "stem.Relu", "Conv", True, 31.57, 31.62, 0.99966, 0.1543, 24.78),
            LayerError("outputs.Conv", "outputs.Conv", "Conv", False, 28.11, math.inf, 0.99921, 0.7127, 4.641),
        ),
        histograms=(histogram("stem.Relu", 0.0, 6.125), histogram("add", -3.5, 4.25)),
        sensitivity=sample_sensitivity(),
        model_sha256=by_precision(fp32="d3" * 32, fp16="e4" * 32, int8="f5" * 32),
        machine={"CPU": "Some CPU <2 cores>", "onnxruntime": "1.31.1"},
    )


def not_measured() -> Report:
    """Without all that needs photographs."""
    return Report(Path("a.onnx"), Path("b.onnx"), {"fp32": 100, "fp16": 50}, {"fp32": 2.0, "fp16": 3.0})


def slower() -> Report:
    return replace(sample_report("fp32", "int8"), latency_ms={"fp32": 1.0, "int8": 1.5})


def histogram(name: str, low: float, high: float) -> Any:
    values = np.random.default_rng(0).normal(1.0, 2.0, 10_000)
    counts, edges = np.histogram(values, 4096, (-16.0, 16.0))
    return activation_histogram(name, counts, edges, low=low, high=high)


def sample_sensitivity() -> Sensitivity:
    groups = (
        GroupSensitivity(
            LayerGroup("stages.0", frozenset({"a", "b"})),
            {"bbox": 0.2052, "keypoints": 0.1024},
            0.0011,
            0.011,
            0.002,
            0.31,
            0.223,
        ),
        GroupSensitivity(LayerGroup("heads", frozenset({"c"})), None, None, 0.013, 0.0, None, 0.104),
    )
    accuracy: dict[str, Accuracy] = {
        "fp32": {"bbox": 0.2054, "keypoints": 0.1027},
        "int8": {"bbox": 0.2041, "keypoints": 0.1021},
    }
    return Sensitivity(groups, accuracy, 0.013, {"fp32": 9.316, "int8": 3.348}, {"a": 5, "c": 1})
