"""`centeredge calibrate`, as a user calls it, and the report."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from apps.cli import main
from calibration.config import CalibrationConfig
from calibration.onnx_files import write_onnx
from calibration.pipeline import calibrate
from export.conversion import Form
from export.onnx_export import export_onnx
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.detector import Detector
from sdk.errors import ConfigError
from sdk.sources.images import read_image
from tests.export.models import lively_model

from .conftest import NUM_SCENES, Calibrated, FloatModel, Scenes, write_scenes

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: object) -> int:
    return main(["calibrate", *map(str, arguments)])


def test_the_report_has_what_a_person_asks(calibrated: Calibrated, scenes: Scenes) -> None:
    report = calibrated.report
    data = json.loads(json.dumps(report.to_dict()))
    assert data["method"] == "minmax"
    assert [{key: row[key] for key in ("name", "sha256")} for row in data["images"]] == [
        {"name": f"{i}.{'jpg' if i % 2 else 'png'}", "sha256": _sha256(scenes.folder, i)}
        for i in range(1, NUM_SCENES + 1)
    ]
    assert set(data["accuracy"]["fp32"]) == set(data["accuracy"]["int8"]) == {"bbox", "keypoints", "per_class"}
    assert data["num_evaluated"] == NUM_SCENES
    assert data["ranges"]["stem.0.2.Relu"]["low"] == 0.0 < data["ranges"]["stem.0.2.Relu"]["high"]
    assert data["file_bytes"]["int8"] < 0.5 * data["file_bytes"]["fp32"]
    assert data["latency_ms"]["int8"] > 0 and data["int8_is_faster_here"] == (report.speedup > 1)
    text = report.to_text()
    assert all(name in text for name in ("box AP", "keypoint AP", "latency, ms", "file, MB"))
    assert "x faster" in text or "x slower" in text


def test_a_slower_int8_is_said_to_be_slower(calibrated: Calibrated) -> None:
    slower = replace(calibrated.report, latency_ms={"fp32": 1.0, "int8": 1.5})
    assert "INT8 is not faster here." in slower.to_text()
    assert "INT8 is not faster here." not in replace(slower, latency_ms={"fp32": 2.0, "int8": 1.5}).to_text()


def test_the_int8_model_runs_as_any_other(calibrated: Calibrated, scenes: Scenes) -> None:
    detector = Detector(calibrated.path, score_threshold=0.0)
    assert len(detector(read_image(scenes.folder / "1.jpg"))) > 0


def test_the_command_calibrates_and_says_what_it_does(
    float_model: FloatModel, scenes: Scenes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "model.onnx", tmp_path / "report.json"
    arguments = ["--images", scenes.folder, "--annotations", scenes.annotations, "--num", 4, "--method", "percentile"]
    assert run(float_model.path, out, *arguments, "--json", report) == 0
    captured = capsys.readouterr()
    assert "measuring activations on 4 photographs" in captured.err
    assert "Accuracy on 2 photographs that were not calibrated on." in captured.out
    assert OnnxRuntimeBackend(out).spec.precision == "int8"
    data = json.loads(report.read_text())
    assert (data["num_evaluated"], len(data["images"]), data["method"]) == (2, 4, "percentile")
    assert data["output"] == str(out)
    assert sorted(tmp_path.iterdir()) == [out, report]


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_no_pytorch_is_needed(calibrated: Calibrated, float_model: FloatModel, tmp_path: Path, target: str) -> None:
    out = tmp_path / "model.onnx"
    arguments = [str(float_model.path), str(out), "--ranges", str(calibrated.ranges), "--target", target]
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from apps.cli import main; sys.exit(main(['calibrate', *{arguments!r}]))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    assert OnnxRuntimeBackend(out).spec.precision == "int8"


def test_ranges_are_used_again_and_give_the_same_model(
    calibrated: Calibrated, float_model: FloatModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    assert run(float_model.path, out, "--ranges", calibrated.ranges) == 0
    assert out.read_bytes() == calibrated.path.read_bytes()
    captured = capsys.readouterr()
    assert f"using the ranges of {calibrated.ranges}, by minmax from 6 photographs" in captured.err
    assert "Accuracy was not measured" in captured.out


def test_ranges_of_one_size_serve_another(calibrated: Calibrated, tmp_path: Path) -> None:
    model, spec = lively_model()
    export_onnx(model, spec.with_input_size(96, 64), tmp_path / "wide.onnx")
    assert run(tmp_path / "wide.onnx", tmp_path / "wide.int8.onnx", "--ranges", calibrated.ranges) == 0
    assert OnnxRuntimeBackend(tmp_path / "wide.int8.onnx").spec.input.wh == (96, 64)


def failure(capsys: pytest.CaptureFixture[str], out: Path, *arguments: object) -> str:
    """The line of error of a call that must fail and leave nothing."""
    before = sorted(out.parent.iterdir())
    assert run(*arguments) == 1
    assert sorted(out.parent.iterdir()) == before
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("centeredge calibrate: ")
    return error


def test_options_that_contradict_or_are_not_there_yet(
    calibrated: Calibrated,
    float_model: FloatModel,
    scenes: Scenes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "model.onnx"
    images = ["--images", scenes.folder]
    for arguments, message in (
        ([], "--images is missing"),
        ([*images, "--num", 1], "--num 1 is too few"),
        ([*images, "--max-ap-drop", "0.01"], "--max-ap-drop needs annotated photographs"),
        ([*images, "--annotations", scenes.annotations, "--max-ap-drop", 2], "--max-ap-drop 2.0 is no loss of AP"),
        ([*images, "--write-cache", tmp_path / "cache", "--tensorrt-version", "11.0.0"], "has no calibration caches"),
        (["--ranges", calibrated.ranges, *images, "--bias-correction"], "--bias-correction measures on photographs"),
        (["--precision", "fp16", "--equalise"], "--equalise is for --precision int8"),
        (["--precision", "fp16", "--int8-float", "fp16", "--target", "tensorrt"], "--int8-float is for"),
        ([*images, "--json", out], "--json and OUT are both"),
        ([*images, "--precision", "fp16", "--method", "mse"], "--method is for --precision int8"),
        ([*images, "--int8-float", "fp16"], "has no FP16 beside INT8"),
        ([*images, "--eval-images", scenes.folder], "--eval-images and --eval-annotations go together"),
        (["--ranges", calibrated.ranges, "--method", "mse"], "holds ranges by minmax, not mse"),
        (["--images", tmp_path / "nowhere"], "there is no folder"),
        (
            [*images, "--eval-images", scenes.folder, "--eval-annotations", scenes.annotations],
            "6 of the 6 evaluation photographs were calibrated on, the first 1.jpg",
        ),
        ([*images, "--annotations", scenes.annotations], "all 6 annotated photographs would be calibrated on"),
        ([*images, "--annotations", tmp_path / "none.json"], "cannot read"),
    ):
        assert message in failure(capsys, out, float_model.path, out, *arguments)
    nowhere = tmp_path / "nowhere" / "model.onnx"
    assert "choose a folder that exists" in failure(capsys, out, float_model.path, nowhere, *images)
    for option in ("--json", "--ranges"):
        error = failure(capsys, out, float_model.path, out, *images, option, tmp_path / "nowhere" / "file.json")
        assert "file.json: No such file or directory" in error
    assert "OUT and MODEL are both" in failure(capsys, out, float_model.path, float_model.path, *images)
    with pytest.raises(ConfigError, match="would replace the float model"):
        calibrate(float_model.path, float_model.path, CalibrationConfig(images=scenes.folder))


def test_unreadable_photographs_are_left_out_and_listed(
    float_model: FloatModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = write_scenes(tmp_path, seed=3, count=24)
    broken, out = many.folder / "1.jpg", tmp_path / "out.onnx"
    broken.write_bytes(broken.read_bytes()[:300])
    arguments = ["--images", many.folder, "--method", "auto", "--bias-correction"]
    assert run(float_model.path, out, *arguments) == 0
    text = capsys.readouterr().out
    assert "by auto from 23 photographs" in text and f"Left out: the image {broken} is cut short" in text


def test_a_budget_that_holds_still_says_what_each_part_costs(
    calibrated: Calibrated, float_model: FloatModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_scenes(tmp_path, seed=4)
    arguments = ["--ranges", calibrated.ranges, "--eval-images", other.folder, "--eval-annotations", other.annotations]
    for target in ("onnxruntime", "tensorrt"):
        report = tmp_path / f"{target}.json"
        wanted = ["--max-ap-drop", "0.9", "--sensitivity", "--target", target, "--json", report]
        assert run(float_model.path, tmp_path / f"{target}.onnx", *arguments, *wanted) == 0
        data = json.loads(report.read_text())
        assert data["budget"]["holds"] and data["sensitivity"]["groups"]
        # Both are of the file, as inexact as in its own runtime.
        assert data["budget"]["accuracy"]["final"]["bbox"] == data["accuracy"]["int8"]["bbox"]["AP"]
        assert "left in float" in capsys.readouterr().out


def test_models_that_cannot_be_calibrated(
    calibrated: Calibrated, float_model: FloatModel, scenes: Scenes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bad = tmp_path / "out.onnx", tmp_path / "bad.onnx"

    def error(model: Path) -> str:
        return failure(capsys, out, model, out, "--images", scenes.folder)

    assert "is quantised already" in error(calibrated.path)
    assert "cannot read" in error(tmp_path / "nowhere.onnx")
    for content in (b"", b"no model", float_model.path.read_bytes()[:5000]):
        bad.write_bytes(content)
        assert "is not an ONNX file" in error(bad)
    export_onnx(*lively_model(), bad, Form(any_size=True))
    assert "takes frames of any size" in error(bad)
    without_spec = onnx.load(float_model.path)
    del without_spec.metadata_props[:]
    onnx.save(without_spec, bad)
    assert "has no ModelSpec" in error(bad)
    half = replace(float_model.spec, precision="fp16")
    write_onnx(onnx.load(float_model.path), bad, spec=half, weights_sha256="")
    assert "calibration starts from an FP32 model" in error(bad)


def test_ranges_of_other_weights_are_refused(
    calibrated: Calibrated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = tmp_path / "other.onnx", tmp_path / "out.onnx"
    export_onnx(*lively_model(seed=3), other)
    error = failure(capsys, out, other, out, "--ranges", calibrated.ranges)
    assert "was measured on a model with other weights" in error


def test_annotations_of_other_things(
    float_model: FloatModel, scenes: Scenes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, annotations = tmp_path / "out.onnx", tmp_path / "annotations.json"
    data = json.loads(scenes.annotations.read_text())

    def error() -> str:
        annotations.write_text(json.dumps(data))
        return failure(capsys, out, float_model.path, out, "--images", scenes.folder, "--annotations", annotations)

    data["categories"][0]["name"] = "cat"
    assert "none of the model's classes (person) is annotated" in error()
    data["categories"][0]["name"] = "person"
    data["images"][2]["file_name"] = "gone.png"
    assert "names 1 photographs that are not in" in error()


def test_photographs_if_there_are_any(float_model: FloatModel, photographs: Path, tmp_path: Path) -> None:
    coco = photographs / "coco"
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((coco / "train").iterdir())[:5]:
        shutil.copy(path, few)
    assert run(float_model.path, tmp_path / "model.onnx", "--images", few) == 0
    assert OnnxRuntimeBackend(tmp_path / "model.onnx").spec.precision == "int8"


def _sha256(folder: Path, number: int) -> str:
    return hashlib.sha256((folder / f"{number}.{'jpg' if number % 2 else 'png'}").read_bytes()).hexdigest()
