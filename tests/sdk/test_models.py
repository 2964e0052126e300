"""The models that ship: they load, fit together, and find people in drawn scenes and in photographs."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

import sdk
from sdk.detector import MODELS_FOLDER, model_path
from sdk.engine_files import version_tuple
from sdk.metrics import evaluate_on_coco
from sdk.scenes import MovingScene
from tests.builders import build_with_rtx

ROOT = Path(__file__).parent.parent.parent
INT8_LIMIT_MB, LIMIT_MB = 12, 32


def test_the_default_is_the_int8_model() -> None:
    spec = sdk.Detector().spec
    assert (spec.name, spec.precision, spec.tasks) == ("person-pose", "int8", ("detection", "pose"))
    assert sdk.bundled_models() == (
        *("person-pose", "person-pose.int8"),
        *("person-pose.tensorrt", "person-pose.tensorrt.fp16", "person-pose.tensorrt.int8"),
    )


def test_int8_and_fp32_are_the_same_model() -> None:
    int8, fp32 = sdk.Detector("person-pose.int8").spec, sdk.Detector("person-pose").spec
    assert (int8.heads, int8.input, int8.class_names) == (fp32.heads, fp32.input, fp32.class_names)


@pytest.mark.parametrize("path", sorted(MODELS_FOLDER.glob("*.onnx")), ids=lambda path: path.name)
def test_files_are_small_enough_and_have_a_card(path: Path) -> None:
    limit_mb = INT8_LIMIT_MB if ".int8" in path.name else LIMIT_MB
    assert path.stat().st_size <= limit_mb * 1_000_000
    assert path.name in (ROOT / "docs" / "models.md").read_text()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_people_are_found_in_the_built_in_scene(seed: int) -> None:
    detector = sdk.Detector()
    scene = MovingScene((640, 480), seed=seed)
    found = [any_matches(detector, scene, t_s) for t_s in np.linspace(0, 12, 25)]
    assert np.mean(found) >= 0.8


def any_matches(detector: sdk.Detector, scene: MovingScene, t_s: float) -> bool:
    """Whether a detection at the model's own threshold covers a drawn person with an IoU of 0.5."""
    image, boxes, _ = scene.frame(t_s)
    return not len(boxes) or bool((iou(detector(image).xyxy, boxes) >= 0.5).any())


def iou(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    low = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a_xyxy, b_xyxy)]
    return overlap / (areas[0][:, None] + areas[1][None] - overlap)


def test_accuracy_on_photographs_has_not_dropped(photographs: Path) -> None:
    """The card's figures, on the first 100 photographs, less what a change of library version may cost."""
    annotations = photographs / "coco" / "annotations" / "person_keypoints_val.json"
    image_ids = {row["id"] for row in first_images(annotations, 100)}
    figures = {}
    for name in ("person-pose", "person-pose.int8", "person-pose.tensorrt.int8"):
        detector = sdk.Detector(name, score_threshold=0.0)
        figures[name] = evaluate_on_coco(detector, photographs / "coco" / "val", annotations, image_ids=image_ids)
    card = (ROOT / "docs" / "models.md").read_text()
    stated = re.search(r"first 100.*?box AP (\d\.\d+).*?keypoint AP (\d\.\d+)", card, re.S)
    assert stated is not None
    int8, fp32 = figures["person-pose.int8"], figures["person-pose"]
    assert int8["bbox"]["AP"] >= float(stated[1]) - 0.005
    assert int8["keypoints"]["AP"] >= float(stated[2]) - 0.005
    compared = [int8]
    if version_tuple(onnxruntime.__version__) >= (1, 31):  # older ones quantise a file typed FP16 inexactly, and say so
        compared.append(figures["person-pose.tensorrt.int8"])
    for signed in compared:
        assert signed["bbox"]["AP"] >= fp32["bbox"]["AP"] - 0.015


def test_the_tensorrt_form_finds_the_same_as_the_dense_one(photographs: Path) -> None:
    for name, tolerance_px, tolerance in (
        ("person-pose.tensorrt", 0.1, 1e-5),
        ("person-pose.tensorrt.fp16", 1.0, 0.01),
    ):
        dense, peaks = (sdk.Detector(model, score_threshold=0.35) for model in ("person-pose", name))
        for path in sorted((photographs / "coco" / "val").glob("*.jpg"))[:20]:
            image = cv2.imread(str(path))
            expected, found = dense(image), peaks(image)
            assert len(found) == len(expected), path.name
            assert np.allclose(found.xyxy, expected.xyxy, atol=tolerance_px)
            assert np.allclose(found.scores, expected.scores, atol=tolerance)


@pytest.mark.parametrize("path", sorted(MODELS_FOLDER.glob("*.tensorrt*.onnx")), ids=lambda path: path.name)
def test_the_tensorrt_forms_build(path: Path) -> None:
    assert build_with_rtx(path).plan


def first_images(annotations: Path, count: int) -> list[dict[str, int]]:
    from sdk.coco import read_coco

    return list(read_coco(annotations)["images"][:count])


def test_bundled_names_and_paths_lead_to_the_same_file() -> None:
    assert model_path("person-pose") == MODELS_FOLDER / "person-pose.onnx"
    assert model_path(str(MODELS_FOLDER / "person-pose.onnx")) == MODELS_FOLDER / "person-pose.onnx"
    with pytest.raises(sdk.InputError, match=r"there is no model file nobody; .* a bundled model: person-pose"):
        model_path("nobody")
