"""Accuracy and latency, of any number of models, measured alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from calibration.measurement import measure_accuracy, measure_latency, thread_counts
from calibration.sets import AnnotatedSet, open_annotated
from sdk.backends import Backend
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.detector import Detector, model_path
from sdk.errors import InputError
from sdk.metrics import BOX_FIGURES, evaluate_on_coco

from .conftest import Scenes

MODEL = model_path("person-pose")


class FakeBlindBackend:
    """A network that sees nothing, where the other one sees what it sees."""

    def __init__(self, backend: Backend) -> None:
        self.spec, self.inputs, self.outputs = backend.spec, backend.inputs, backend.outputs
        self.is_closed = False
        self._backend = backend

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {name: np.zeros_like(values) - 99 for name, values in self._backend.infer(feeds).items()}

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(scope="module")
def evaluation(scenes: Scenes) -> AnnotatedSet:
    return open_annotated(scenes.folder, scenes.annotations, OnnxRuntimeBackend(MODEL).spec)


def test_files_and_backends_are_measured_alike_by_class_and_size(evaluation: AnnotatedSet, scenes: Scenes) -> None:
    blind = FakeBlindBackend(OnnxRuntimeBackend(MODEL))
    calls: list[tuple[int, int]] = []
    figures = measure_accuracy(
        {"fp32": MODEL, "fp16": OnnxRuntimeBackend(MODEL), "int8": blind},
        evaluation,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert list(figures) == ["fp32", "fp16", "int8"]
    assert figures["fp32"] == figures["fp16"]
    with Detector(MODEL, score_threshold=0.0) as detector:
        assert figures["fp32"] == evaluate_on_coco(detector, scenes.folder, scenes.annotations)
    assert list(figures["int8"]["bbox"]) == list(BOX_FIGURES)
    assert figures["int8"]["per_class"] == {"person": {"AP": 0.0, "AP50": 0.0}}
    assert calls == [(done, 6) for done in range(1, 7)]
    assert not blind.is_closed  # it is the caller's


def test_only_the_photographs_of_the_set_count(evaluation: AnnotatedSet, scenes: Scenes) -> None:
    part = replace(evaluation, files={number: evaluation.files[number] for number in (2, 5)})
    with Detector(MODEL, score_threshold=0.0) as detector:
        expected = evaluate_on_coco(detector, scenes.folder, scenes.annotations, image_ids=(2, 5))
    assert measure_accuracy({"fp32": MODEL}, part) == {"fp32": expected}


def test_photographs_that_are_not_what_the_annotations_say(evaluation: AnnotatedSet, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "1.jpg"), np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(InputError, match=r"1\.jpg is 20x10 pixels, .*annotations\.json says 120x80"):
        measure_accuracy({"fp32": MODEL}, replace(evaluation, files={1: tmp_path / "1.jpg"}))
    with pytest.raises(InputError, match=r"cannot be used: the image .*gone\.jpg"):
        measure_accuracy({"fp32": MODEL}, replace(evaluation, files={1: tmp_path / "gone.jpg"}))


def test_latency_is_measured_for_each_with_one_thread_and_with_all() -> None:
    assert thread_counts()[0] == 1 and len(thread_counts()) <= 2
    for threads in thread_counts():
        latency_ms = measure_latency({"a": MODEL, "b": MODEL, "c": MODEL}, threads=threads, rounds=2)
        assert list(latency_ms) == ["a", "b", "c"]
        assert all(value > 0 for value in latency_ms.values())
