from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from sdk.coco import read_coco
from sdk.detector import Detector
from sdk.errors import InputError
from sdk.metrics import (
    BOX_FIGURES,
    DEFAULT_OKS_SIGMA,
    KEYPOINT_FIGURES,
    CocoResults,
    default_oks_sigmas,
    evaluate_on_coco,
)
from sdk.spec import COCO_KEYPOINT_NAMES, COCO_OKS_SIGMAS
from tests.helpers import FakeBackend, Peak, coco_json, heads_with_peaks, make_detections, pose_spec, tiny_spec

BOX = [10.0, 10.0, 20.0, 30.0]  # x, y, w, h
XYXY = [10.0, 10.0, 30.0, 40.0]
PERFECT = {"AP": pytest.approx(1.0), "AP50": pytest.approx(1.0)}
ELSEWHERE = [40.0, 5.0, 60.0, 20.0]


def _figures(data: dict[str, Any], *images: Any, class_names: tuple[str, ...] = ("cat", "dog")) -> dict[str, Any]:
    """The figures of detections on images 1, 2, ..."""
    results = CocoResults(data, class_names)
    for image_id, detections in enumerate(images, 1):
        results.add(image_id, detections)
    return results.evaluate()


def test_perfect_detections_score_one() -> None:
    data = coco_json([{"bbox": BOX, "area": 600, "iscrowd": 0}, {"bbox": [40, 5, 20, 15], "category_id": 2}])
    figures = _figures(data, make_detections([XYXY, ELSEWHERE], class_ids=[0, 1]))
    assert list(figures["bbox"]) == list(BOX_FIGURES)
    assert [figures["bbox"][name] for name in ("AP", "AP50", "AP75", "AR100")] == pytest.approx([1.0] * 4)
    assert figures["per_class"] == {"cat": PERFECT, "dog": PERFECT}
    assert "keypoints" not in figures
    json.dumps(figures)


def test_no_detections_score_zero() -> None:
    figures = _figures(coco_json([{"bbox": BOX}]), make_detections([]))
    assert figures["bbox"]["AP"] == 0.0
    assert figures["per_class"]["cat"] == {"AP": 0.0, "AP50": 0.0}


def test_without_ground_truth_there_is_no_figure() -> None:
    figures = _figures(coco_json([]), make_detections([XYXY]))
    assert set(figures["bbox"].values()) == {None}
    assert figures["per_class"] == {"cat": {"AP": None, "AP50": None}, "dog": {"AP": None, "AP50": None}}
    assert _figures(coco_json([{"bbox": BOX}]))["bbox"]["AP"] is None  # no image was looked at
    small_only = _figures(coco_json([{"bbox": [0, 0, 10, 10]}]), make_detections([[0, 0, 10, 10]]))
    assert small_only["bbox"]["APsmall"] == pytest.approx(1.0) and small_only["bbox"]["APlarge"] is None


def test_localisation_counts() -> None:
    # IoU of 0.8: right at thresholds 0.5 to 0.8, wrong at 0.85, 0.9, 0.95.
    figures = _figures(coco_json([{"bbox": [0, 0, 20, 20]}]), make_detections([[0, 0, 20, 16]]))
    assert figures["bbox"]["AP"] == pytest.approx(0.7)
    assert figures["bbox"]["AP50"] == figures["bbox"]["AP75"] == pytest.approx(1.0)


def test_a_false_detection_costs_only_if_it_scores_higher() -> None:
    data = coco_json([{"bbox": BOX}])
    assert _figures(data, make_detections([XYXY, ELSEWHERE], [0.9, 0.5]))["bbox"]["AP"] == pytest.approx(1.0)
    assert _figures(data, make_detections([ELSEWHERE, XYXY], [0.9, 0.5]))["bbox"]["AP"] == pytest.approx(0.5)


def test_classes_are_matched_by_name_not_by_number() -> None:
    data = coco_json([{"bbox": BOX, "category_id": 18}])
    data["categories"] = [{"id": 3, "name": "bird"}, {"id": 18, "name": "dog"}]
    detections = make_detections([XYXY, ELSEWHERE], [0.6, 0.9], [1, 0], class_names=("cat", "dog"))
    figures = _figures(data, detections)
    assert figures["bbox"]["AP"] == pytest.approx(1.0)  # the cat is not annotated, so it counts neither way
    assert figures["per_class"] == {"dog": PERFECT}


def test_the_average_is_over_the_models_classes() -> None:
    data = coco_json([{"bbox": BOX}, {"bbox": BOX, "category_id": 2}])
    figures = _figures(data, make_detections([XYXY], class_names=("cat",)), class_names=("cat",))
    assert figures["bbox"]["AP"] == pytest.approx(1.0)  # nobody asked it for dogs


def test_no_common_class_is_an_error() -> None:
    with pytest.raises(InputError, match=r"none of the model's classes \(car\) is annotated; .* cat, dog"):
        CocoResults(coco_json([]), ("car",))


def test_crowds_are_neither_missed_nor_false() -> None:
    crowd = {"bbox": [35, 0, 29, 30], "iscrowd": 1}
    data = coco_json([{"bbox": BOX, "area": 600}, crowd])
    figures = _figures(data, make_detections([ELSEWHERE, [45, 5, 55, 20], XYXY], [0.9, 0.8, 0.7]))
    assert figures["bbox"]["AP"] == pytest.approx(1.0)


def test_only_images_that_were_added_count() -> None:
    data = coco_json([{"bbox": BOX}, {"bbox": BOX, "image_id": 2}], image_ids=(1, 2))
    assert _figures(data, make_detections([XYXY]))["bbox"]["AP"] == pytest.approx(1.0)
    both = _figures(data, make_detections([XYXY]), make_detections([]))
    assert both["bbox"]["AP"] == pytest.approx(0.5, abs=0.01)  # half of the objects were found


KEYPOINTS = np.column_stack([np.linspace(12, 28, 17), np.linspace(12, 38, 17)])


def _pose_data(**changes: Any) -> dict[str, Any]:
    visible = np.column_stack([KEYPOINTS, np.full(17, 2)]).ravel().tolist()
    annotation = {"bbox": BOX, "area": 2000, "iscrowd": 0, "keypoints": visible, "num_keypoints": 17, **changes}
    return coco_json([{k: v for k, v in annotation.items() if v is not None}], class_names=("person",))


def _pose_figures(data: dict[str, Any], keypoints_xy: Any) -> dict[str, Any]:
    results = CocoResults(data, ("person",), oks_sigmas=COCO_OKS_SIGMAS)
    results.add(1, make_detections([XYXY], class_names=("person",), keypoints_xy=keypoints_xy[None]))
    return results.evaluate()


def test_perfect_keypoints_score_one_and_worse_ones_less() -> None:
    figures = _pose_figures(_pose_data(), KEYPOINTS)
    assert list(figures["keypoints"]) == list(KEYPOINT_FIGURES)
    assert figures["keypoints"]["AP"] == pytest.approx(1.0)
    off = _pose_figures(_pose_data(), KEYPOINTS + 2.5)["keypoints"]["AP"]
    assert 0.0 < off < 1.0
    assert _pose_figures(_pose_data(), KEYPOINTS + 30)["keypoints"]["AP"] == 0.0


def test_oks_is_cocos() -> None:
    # One labelled keypoint, d away: OKS = exp(-d^2 / (2 area (2 sigma)^2)); AP counts the thresholds it reaches.
    visible = np.zeros((17, 3))
    visible[0] = [20, 20, 2]
    wanted_oks = 0.77
    distance = np.sqrt(-np.log(wanted_oks) * 2 * 2000 * (2 * COCO_OKS_SIGMAS[0]) ** 2)
    found = np.full((17, 2), 5.0)
    found[0] = [20 + distance, 20]
    figures = _pose_figures(_pose_data(keypoints=visible.ravel().tolist(), num_keypoints=1), found)
    assert figures["keypoints"]["AP"] == pytest.approx(0.6)  # 0.50, 0.55, ..., 0.75


def test_people_without_labelled_keypoints_do_not_count() -> None:
    nobody = _pose_data(keypoints=[0] * 51, num_keypoints=0)
    assert "keypoints" not in _pose_figures(nobody, KEYPOINTS)
    data = _pose_data()
    data["annotations"].append({"id": 2, "image_id": 1, "category_id": 1, "bbox": [40, 5, 20, 15]})  # no keypoints
    assert _pose_figures(data, KEYPOINTS)["keypoints"]["AP"] == pytest.approx(1.0)


def test_keypoints_of_ones_own_are_measured_with_default_sigmas() -> None:
    assert default_oks_sigmas(COCO_KEYPOINT_NAMES) == COCO_OKS_SIGMAS
    assert np.mean(COCO_OKS_SIGMAS) == pytest.approx(DEFAULT_OKS_SIGMA, abs=5e-4)
    data = coco_json(
        [{"bbox": BOX, "area": 600, "keypoints": [12, 12, 2, 20, 20, 2, 0, 0, 0]}], class_names=("person",)
    )
    # Both labelled keypoints are d off: OKS = exp(-d^2 / (2 area (2 sigma)^2)) is 0.77.
    distance = np.sqrt(-np.log(0.77) * 2 * 600 * (2 * DEFAULT_OKS_SIGMA) ** 2)
    found = np.array([[[12, 12 + distance], [20, 20 + distance], [0, 0]]])
    results = CocoResults.for_spec(data, pose_spec())
    results.add(1, make_detections([XYXY], class_names=("person",), keypoints_xy=found))
    assert results.evaluate()["keypoints"]["AP"] == pytest.approx(0.6)


def test_keypoints_of_another_schema_are_refused() -> None:
    spec = pose_spec()  # joint_0, joint_1, joint_2
    data = coco_json([{"bbox": BOX, "keypoints": [12, 12, 2] * 17}], class_names=("person",))
    with pytest.raises(InputError, match="annotation 1 has 51 keypoint values, expected x, y and visibility of the 3"):
        CocoResults.for_spec(data, spec)
    data = coco_json([{"bbox": BOX, "keypoints": [12, 12, 2] * 3}], class_names=("person",))
    data["categories"][0]["keypoints"] = ["joint_1", "joint_0", "joint_2"]
    with pytest.raises(InputError, match="are joint_1, joint_0, joint_2, and model 'tiny-pose' has them in the order"):
        CocoResults.for_spec(data, spec)
    others = coco_json(
        [{"bbox": BOX, "category_id": 2, "keypoints": [12, 12, 2] * 17}], class_names=("person", "horse")
    )
    CocoResults.for_spec(others, spec)  # horses are not what the model finds


@pytest.mark.parametrize("field", ["area", "iscrowd", "num_keypoints"])
def test_annotations_of_ones_own_may_lack_a_field(field: str) -> None:
    figures = _pose_figures(_pose_data(**{field: None}), KEYPOINTS)
    assert figures["bbox"]["AP"] == pytest.approx(1.0)
    assert figures["keypoints"]["AP"] == pytest.approx(1.0)


def test_results_in_cocos_form_give_the_same_figures() -> None:
    data = _pose_data()
    results = CocoResults(data, ("person",), oks_sigmas=COCO_OKS_SIGMAS)
    results.add(1, make_detections([XYXY], class_names=("person",), keypoints_xy=KEYPOINTS[None] + 2))
    again = CocoResults(data, ("person",), oks_sigmas=COCO_OKS_SIGMAS)
    again.add_rows(json.loads(json.dumps(results.rows)), [1])
    assert again.evaluate() == results.evaluate()


def test_results_of_keypoints_alone_get_the_box_around_them() -> None:
    data = _pose_data(bbox=[12, 12, 16, 26])
    results = CocoResults(data, ("person",), oks_sigmas=COCO_OKS_SIGMAS)
    points = np.column_stack([KEYPOINTS, np.ones(17)]).ravel().tolist()
    results.add_rows([{"image_id": 1, "category_id": 1, "keypoints": points, "score": 0.9}], [1])
    figures = results.evaluate()
    assert figures["bbox"]["AP"] == figures["keypoints"]["AP"] == pytest.approx(1.0)


def test_annotations_without_box_are_refused() -> None:
    with pytest.raises(InputError, match=r"annotation 7 has no bbox of four numbers \(x, y, w, h\)"):
        CocoResults(coco_json([{"id": 7, "segmentation": []}]), ("cat",))


def test_results_without_box_and_keypoints_are_refused() -> None:
    with pytest.raises(InputError, match=r"neither bbox nor keypoints: .*'image_id': 1"):
        CocoResults(_pose_data(), ("person",)).add_rows([{"image_id": 1, "category_id": 1, "score": 0.9}], [1])


def test_a_detector_is_run_over_a_folder(tmp_path: Path) -> None:
    # A dog in every picture; the letterboxed 64x48 picture starts 8 pixels down.
    data = coco_json([{"bbox": [24, 16, 16, 8], "category_id": 2, "image_id": i} for i in (1, 2)], image_ids=(1, 2))
    for i in (1, 2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((48, 64, 3), np.uint8))
    (tmp_path / "a.json").write_text(json.dumps(data))
    spec = tiny_spec()
    peak = Peak(1, (7, 8), 0.2, (0.0, 0.0), (4.0, 2.0))
    with Detector(FakeBackend(spec, heads_with_peaks(spec, [peak])), score_threshold=0.0) as detector:
        seen: list[tuple[int, int]] = []
        figures = evaluate_on_coco(
            detector, tmp_path, tmp_path / "a.json", progress=lambda done, total: seen.append((done, total))
        )
        assert figures["per_class"]["dog"]["AP"] == pytest.approx(1.0)
        assert seen == [(1, 2), (2, 2)]
        (tmp_path / "2.png").write_bytes(b"no picture")
        with pytest.raises(InputError, match=r"a.json names a photograph that cannot be used: .*2.png is damaged"):
            evaluate_on_coco(detector, tmp_path, tmp_path / "a.json")
        (tmp_path / "2.png").unlink()
        with pytest.raises(InputError, match=r"a.json names 1 photographs that are not in .* the first is 2.png"):
            evaluate_on_coco(detector, tmp_path, tmp_path / "a.json")
        assert evaluate_on_coco(detector, tmp_path, tmp_path / "a.json", image_ids={1})["bbox"]["AP"] is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*a.json: No such file"),
        ("{not json", "a.json is not valid JSON"),
        ("[]", "no COCO annotation file: it has no images, annotations, categories"),
        ('{"images": [], "categories": []}', "has no annotations"),
    ],
)
def test_an_unusable_annotation_file_says_why(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_coco(path)
