"""`centeredge evaluate`: the figures of results and of models, and what bad input is answered with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apps.cli import main
from tests.helpers import coco_json

BOXES = [[4.0, 4.0, 20.0, 30.0], [30.0, 10.0, 25.0, 20.0]]  # x, y, w, h


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    rows = [{"bbox": box, "category_id": i + 1} for i, box in enumerate(BOXES)]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(coco_json(rows)))
    return path


def write_results(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def perfect_rows() -> list[dict[str, Any]]:
    return [{"image_id": 1, "category_id": i + 1, "bbox": box, "score": 0.9} for i, box in enumerate(BOXES)]


def test_perfect_results_have_ap_1_by_class_too(tmp_path: Path, annotations: Path) -> None:
    results = write_results(tmp_path / "results.json", perfect_rows())
    out = tmp_path / "figures.json"
    assert main(["evaluate", str(results), "--annotations", str(annotations), "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["bbox"]["AP"] == pytest.approx(1.0)
    assert figures["bbox"]["APlarge"] is None  # no such ground truth
    assert set(figures["per_class"]) == {"cat", "dog"}
    assert figures["per_class"]["dog"] == pytest.approx({"AP": 1.0, "AP50": 1.0})


def test_a_missed_object_halves_the_mean_over_the_classes(
    tmp_path: Path, annotations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_results(tmp_path / "results.json", perfect_rows()[:1])
    assert main(["evaluate", str(results), "--annotations", str(annotations)]) == 0
    assert "AP 0.5000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.onnx", "--images", ".", "--annotations", "a.json"], "there is no model file missing.onnx"),
        (["missing.pth", "--images", ".", "--annotations", "a.json"], "there is no checkpoint missing.pth"),
        (["missing.json", "--annotations", "a.json"], "cannot read missing.json"),
        (["r.json", "--annotations", "a.json", "--kitti", "k"], "--kitti is not in this version"),
        (["r.json", "--annotations", "a.json", "--flip"], "--flip and --scales are not in this version"),
    ],
)
def test_failures_are_one_line_and_exit_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": 1}, "is no COCO results file"),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1]}], "has no category_id, score"),
        ([{"image_id": 9, "category_id": 1, "score": 1, "bbox": [0, 0, 1, 1]}], "has results for image 9"),
    ],
)
def test_malformed_results_say_what_is_wrong(
    rows: Any, message: str, tmp_path: Path, annotations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_results(tmp_path / "results.json", rows)
    assert main(["evaluate", str(results), "--annotations", str(annotations)]) == 1
    assert message in capsys.readouterr().err


def test_missing_annotations_are_bad_usage() -> None:
    assert main(["evaluate", "results.json"]) == 2


def test_an_unwritable_json_fails_and_leaves_nothing(
    tmp_path: Path, annotations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_results(tmp_path / "results.json", perfect_rows())
    out = tmp_path / "nowhere" / "figures.json"
    assert main(["evaluate", str(results), "--annotations", str(annotations), "--json", str(out)]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert not out.parent.exists()
