"""A float model, photographs to calibrate it on, and what came of it, each made once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from calibration.config import CalibrationConfig
from calibration.onnx_files import read_onnx
from calibration.pipeline import calibrate
from calibration.report import Report
from export.onnx_export import export_onnx
from sdk.scenes import random_scene
from sdk.spec import COCO_KEYPOINT_NAMES, ModelSpec
from tests.export.models import lively_model

NUM_SCENES = 6


@dataclass(frozen=True)
class FloatModel:
    path: Path
    proto: onnx.ModelProto
    spec: ModelSpec


@dataclass(frozen=True)
class Scenes:
    """Drawn scenes in the place of photographs, with their annotations."""

    folder: Path
    annotations: Path


@dataclass(frozen=True)
class Calibrated:
    path: Path
    proto: onnx.ModelProto
    ranges: Path
    report: Report


@pytest.fixture(scope="session")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    export_onnx(*lively_model(), path)
    return FloatModel(path, *read_onnx(path))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return write_scenes(tmp_path_factory.mktemp("scenes"), seed=1)


@pytest.fixture(scope="session")
def other_scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    return write_scenes(tmp_path_factory.mktemp("other"), seed=2)


@pytest.fixture(scope="session")
def calibrated(
    float_model: FloatModel, scenes: Scenes, other_scenes: Scenes, tmp_path_factory: pytest.TempPathFactory
) -> Calibrated:
    folder = tmp_path_factory.mktemp("int8")
    config = CalibrationConfig(
        images=scenes.folder,
        eval_images=other_scenes.folder,
        eval_annotations=other_scenes.annotations,
        ranges=folder / "ranges.json",
    )
    report = calibrate(float_model.path, folder / "model.onnx", config)
    return Calibrated(folder / "model.onnx", onnx.load(folder / "model.onnx"), folder / "ranges.json", report)


def write_scenes(folder: Path, *, seed: int, count: int = NUM_SCENES) -> Scenes:
    """PNG and JPEG files of drawn people, and a COCO annotation file beside them."""
    rng = np.random.default_rng(seed)
    images: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    (folder / "images").mkdir()
    for number in range(1, count + 1):
        name = f"{number}.{'jpg' if number % 2 else 'png'}"
        picture, boxes, keypoints = random_scene(rng, (120, 80))
        assert cv2.imwrite(str(folder / "images" / name), picture)
        images.append({"id": number, "file_name": name, "width": 120, "height": 80})
        for (left, top, right, bottom), joints in zip(boxes.tolist(), keypoints, strict=True):
            people.append(
                {
                    "id": len(people) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    "keypoints": joints.ravel().tolist(),
                    "num_keypoints": int((joints[:, 2] > 0).sum()),
                }
            )
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO_KEYPOINT_NAMES)}]
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps({"images": images, "annotations": people, "categories": categories}))
    return Scenes(folder / "images", annotations)
