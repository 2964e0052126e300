"""`centeredge evaluate`: the figures of results and of models, and what bad input is answered with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from apps.cli import main
from sdk.spec import COCO_KEYPOINT_NAMES, ONNX_METADATA_KEY
from tests.fakes import FAKE_SPEC
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["r.json"], "--annotations FILE with --images DIR, or --kitti DIR, is required"),
        (["r.json", "--annotations", "a.json", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["r.json", "--annotations", "a.json", "--flip"], "--flip is for models, and r.json holds results"),
        (["r.json", "--annotations", "a.json", "--nms", "--task", "pose"], "--nms, --task is for models"),
        (["m.onnx", "--annotations", "a.json"], "to evaluate a model, --images DIR is needed"),
        (["m.onnx", "--annotations", "a.json", "--images", ".", "--kitti", "k"], "leave one of them out"),
        (["m.onnx", "--annotations", "a.json", "--images", ".", "--split", "val"], "give --kitti DIR too"),
        (["m.onnx", "--annotations", "a.json", "--images", ".", "--task", "pose"], "are for a .pth"),
        (["r.json", "--kitti", "k"], "with --kitti, results are a folder"),
        ([".", "--annotations", "a.json"], ". is a folder, as KITTI results are; give --kitti DIR"),
    ],
)
def test_what_contradicts_itself_is_bad_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize("scales", ["", "a", "1,0", "0.5,-1", "inf", "1;2"])
def test_scales_are_positive_numbers(scales: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["evaluate", "m.onnx", "--scales", scales])
    assert exit_info.value.code == 2
    assert "expected positive numbers such as 0.5,1,1.5" in capsys.readouterr().err


def test_an_unwritable_json_fails_and_leaves_nothing(
    tmp_path: Path, annotations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write_results(tmp_path / "results.json", perfect_rows())
    out = tmp_path / "nowhere" / "figures.json"
    assert main(["evaluate", str(results), "--annotations", str(annotations), "--json", str(out)]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert not out.parent.exists()


@pytest.fixture
def photographs(tmp_path: Path) -> list[str]:
    """Two photographs with a person each, as arguments."""
    schema = list(COCO_KEYPOINT_NAMES)
    points = np.column_stack([np.linspace(10, 40, 17), np.linspace(5, 40, 17), np.full(17, 2)]).ravel().tolist()
    rows = [{"bbox": [8, 4, 36, 40], "image_id": i, "keypoints": points} for i in (1, 2)]
    data = coco_json(rows, image_ids=(1, 2), class_names=("person",))
    data["categories"][0]["keypoints"] = schema
    rng = np.random.default_rng(0)
    for image in data["images"]:
        cv2.imwrite(str(tmp_path / image["file_name"]), rng.integers(0, 256, (48, 64, 3), np.uint8))
    (tmp_path / "a.json").write_text(json.dumps(data))
    return ["--images", str(tmp_path), "--annotations", str(tmp_path / "a.json")]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("torch")
    from tests.export.models import write_checkpoint

    return str(write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model.pth"))


def evaluate(*arguments: str, out: Path) -> dict[str, Any]:
    assert main(["evaluate", *arguments, "--json", str(out)]) == 0
    figures: dict[str, Any] = json.loads(out.read_text())
    return figures


@pytest.mark.parametrize(
    "options",
    [
        ["--flip"],
        ["--flip", "--scales", "0.5,1"],
        ["--resolution", "keep", "--keypoints", "regression"],
        ["--nms", "--architecture", "edge_n", "--task", "pose"],
    ],
    ids=lambda options: "".join(options),
)
def test_a_checkpoint_takes_every_option(
    checkpoint: str, photographs: list[str], options: list[str], tmp_path: Path
) -> None:
    figures = evaluate(checkpoint, *photographs, *options, out=tmp_path / "figures.json")
    assert set(figures) == {"bbox", "keypoints", "per_class"}
    assert figures["bbox"]["AP"] is not None and figures["keypoints"]["AP"] is not None


def test_options_that_change_nothing_give_the_same_figures(
    checkpoint: str, photographs: list[str], tmp_path: Path
) -> None:
    plain = evaluate(checkpoint, *photographs, out=tmp_path / "plain.json")
    same = ["--scales", "1", "--resolution", "fixed", "--keypoints", "matching"]
    assert evaluate(checkpoint, *photographs, *same, out=tmp_path / "same.json") == plain


def test_a_checkpoint_of_another_architecture_is_refused(
    checkpoint: str, photographs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", checkpoint, *photographs, "--architecture", "res_18"]) == 1
    assert "holds a 'edge_n', not a 'res_18'" in capsys.readouterr().err


def test_a_model_of_one_size_can_be_flipped_and_not_scaled(
    model_path: Path, photographs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(str(model_path), *photographs, "--flip", "--nms", out=tmp_path / "figures.json")
    capsys.readouterr()
    for options in (["--scales", "0.5,1"], ["--resolution", "keep"]):
        assert main(["evaluate", str(model_path), *photographs, *options]) == 1
        error = capsys.readouterr().err.strip()
        assert "was exported for 64x64 alone; evaluate the .pth it was exported from" in error
        assert "\n" not in error


def test_keypoints_of_ones_own_get_default_sigmas_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = coco_json([{"bbox": [4, 4, 20, 30], "keypoints": [5, 5, 2, 20, 30, 2]}], class_names=("car",))
    data["categories"][0]["keypoints"] = ["front", "back"]
    (tmp_path / "a.json").write_text(json.dumps(data))
    row = {"image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 30], "score": 0.9, "keypoints": [5, 5, 1, 20, 30, 1]}
    results = write_results(tmp_path / "r.json", [row])
    figures = evaluate(str(results), "--annotations", str(tmp_path / "a.json"), out=tmp_path / "f.json")
    assert figures["keypoints"]["AP"] == pytest.approx(1.0)
    assert "no OKS sigmas are known for these 2 keypoints; each is 0.067" in capsys.readouterr().err
    write_results(results, [{**row, "keypoints": [5, 5, 1]}])
    assert main(["evaluate", str(results), "--annotations", str(tmp_path / "a.json")]) == 1
    assert "has 3 keypoint values, expected x, y and visibility of 2 keypoints" in capsys.readouterr().err


CAR = "Car 0.00 0 0.10 {x} 10 {right} 60 1.5 1.6 4.0 {z} 1.6 20.0 0.1"


def write_kitti(folder: Path) -> tuple[Path, Path]:
    """A KITTI folder of three frames, and a folder of results that find every car."""
    training, results = folder / "kitti" / "training", folder / "results"
    for path in (training / "label_2", training / "image_2", training / "calib", results):
        path.mkdir(parents=True)
    (folder / "kitti" / "ImageSets").mkdir()
    (folder / "kitti" / "ImageSets" / "val.txt").write_text("000001\n")
    for frame in range(3):
        name = f"{frame:06d}"
        rows = [CAR.format(x=10 + 60 * i, right=60 + 60 * i, z=6 * i - 10) for i in range(3)]
        (training / "label_2" / f"{name}.txt").write_text("\n".join(rows) + "\n")
        (results / f"{name}.txt").write_text("\n".join(f"{row} 0.{9 - i}" for i, row in enumerate(rows)) + "\n")
        (training / "calib" / f"{name}.txt").write_text("P2: 700 0 320 0 0 700 100 0 0 0 1 0\n")
        cv2.imwrite(str(training / "image_2" / f"{name}.png"), np.zeros((120, 240, 3), np.uint8))
    return folder / "kitti", results


@pytest.mark.parametrize("options", [[], ["--split", "val"], ["--limit", "1", "--kitti-iou", "standard"]])
def test_kitti_results_give_kittis_table(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kitti, results = write_kitti(tmp_path)
    figures = evaluate(str(results), "--kitti", str(kitti), *options, out=tmp_path / "figures.json")
    assert set(figures["Car"]) == {"2d", "aos", "bev", "3d"}
    assert {len(values) for by_recall in figures["Car"].values() for values in by_recall.values()} == {3}
    assert figures["Pedestrian"]["2d"]["R40"] == [None, None, None]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["easy", "moderate", "hard"]
    assert ["Car", "3d", "R40", *(f"{value:.2f}" for value in figures["Car"]["3d"]["R40"])] in lines
    assert ["Pedestrian", "2d", "R11", "-", "-", "-"] in lines


@pytest.fixture
def car_model(model_path: Path, tmp_path: Path) -> Path:
    """The model of `model_path` under another class name."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(model_path)
    spec = replace(FAKE_SPEC, class_names=("Car",))
    onnx.helper.set_model_props(model, {ONNX_METADATA_KEY: spec.to_json()})
    onnx.save(model, tmp_path / "car.onnx")
    return tmp_path / "car.onnx"


@pytest.mark.parametrize("options", [[], ["--flip"]], ids=["plain", "flip"])
def test_a_model_is_run_over_kitti(options: list[str], car_model: Path, tmp_path: Path) -> None:
    kitti, _ = write_kitti(tmp_path)
    figures = evaluate(str(car_model), "--kitti", str(kitti), *options, out=tmp_path / "figures.json")
    assert list(figures) == ["Car"]
    assert figures["Car"]["2d"]["R40"][0] is not None


def test_a_model_without_kittis_classes_is_refused(
    model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kitti, _ = write_kitti(tmp_path)
    assert main(["evaluate", str(model_path), "--kitti", str(kitti)]) == 1
    assert "none of KITTI's classes" in capsys.readouterr().err
