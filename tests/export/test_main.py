"""`centeredge export`, as a user calls it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from apps.cli import main
from calibration.methods import Range
from calibration.ranges import Ranges, write_ranges
from sdk.backends import open_backend
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.detector import Detector
from sdk.engine_files import read_record
from sdk.errors import BackendError
from sdk.onnx_metadata import read_metadata

from .conftest import Exported

ROOT = Path(__file__).parent.parent.parent


def test_a_checkpoint_becomes_a_file_with_a_report_that_proves_it(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    assert main(["export", str(checkpoint), str(out), "--size", "96x64", "--task", "pose"]) == 0
    captured = capsys.readouterr()
    assert OnnxRuntimeBackend(out).spec.input.wh == (96, 64)
    assert "onnxruntime, FP32" in captured.out
    assert "against PyTorch, drawn scenes (3), 96x64" in captured.out
    assert "64x32" in captured.out  # and at a size that nobody asked for
    assert all(head in captured.out for head in ("heatmap", "keypoint_offset", "box corner"))
    assert captured.out.count("All within the limits.") == 2
    assert captured.err == ""
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-8", "tensorrt-rtx"])
def test_the_form_of_every_target_runs_in_the_sdk_and_finds_the_same(
    exported: Exported, tmp_path: Path, target: str
) -> None:
    out = tmp_path / "model.onnx"
    assert main(["export", str(exported.path), str(out), "--target", target]) == 0
    assert read_metadata(out)["centeredge.target"] == target
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    expected = Detector(exported.path, score_threshold=0.0)(image)
    found = Detector(out, score_threshold=0.0)(image)
    assert np.array_equal(found.class_ids, expected.class_ids)
    assert np.allclose(found.scores, expected.scores, atol=1e-5)
    assert np.allclose(found.xyxy, expected.xyxy, atol=1e-2)


def test_from_an_onnx_file_no_pytorch_is_needed(exported: Exported, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from apps.cli import main\n"
        f"sys.exit(main(['export', {str(exported.path)!r}, {str(out)!r}, '--target', 'tensorrt', "
        "'--precision', 'fp16', '--size', '96x64']))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    spec = OnnxRuntimeBackend(out).spec
    assert (spec.input.wh, spec.precision, spec.output) == ((96, 64), "fp16", "peaks")


def test_a_dynamic_batch(exported: Exported, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    arguments = ["export", str(exported.path), str(out), "--target", "tensorrt", "--dynamic-batch", "1,2,4"]
    assert main(arguments) == 0
    assert read_metadata(out)["centeredge.batch"] == "1,2,4"
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    assert OnnxRuntimeBackend(out).infer({"frame": frames})["size"].shape == (3, 100, 2)


def test_a_file_for_every_size(exported: Exported, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    assert main(["export", str(exported.path), str(out), "--any-size"]) == 0
    backend = OnnxRuntimeBackend(out)
    assert backend.any_size
    assert backend.infer({"frame": np.zeros((1, 32, 160, 3), np.uint8)})["heatmap"].shape == (1, 1, 8, 40)


def test_photographs_of_ones_own_to_verify_on(
    exported: Exported, tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = photographs / "coco" / "val"
    out = tmp_path / "model.onnx"
    assert main(["export", str(exported.path), str(out), "--target", "tensorrt-8", "--images", str(images)]) == 0
    assert "photographs of val (8), 64x64" in capsys.readouterr().out


def test_int8_with_ranges(exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [name for node in exported.onnx.graph.node for name in node.output] + ["frame"]
    digest = read_metadata(exported.path)["centeredge.weights"]
    ranges = tmp_path / "ranges.json"
    write_ranges(Ranges("minmax", digest, (), {name: Range(-8.0, 8.0) for name in names}), ranges)
    for target in ("onnxruntime", "tensorrt", "tensorrt-8"):
        out = tmp_path / f"{target}.onnx"
        arguments = ["--target", target, "--precision", "int8", "--ranges", str(ranges)]
        assert main(["export", str(exported.path), str(out), *arguments]) == 0
        assert OnnxRuntimeBackend(out).spec.precision == "int8"
        assert any(node.op_type == "QuantizeLinear" for node in onnx.load(out).graph.node)
        assert "No limits: accuracy says what this costs." in capsys.readouterr().out


@pytest.mark.parametrize("through_onnx", [True, False])
def test_an_engine_from_a_checkpoint_or_from_its_file(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], through_onnx: bool
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: it exists for x86-64 alone")
    source, out = checkpoint, tmp_path / "model.engine"
    form = ["--target", "tensorrt-rtx", "--precision", "fp16"]
    if through_onnx:
        source = tmp_path / "model.onnx"
        assert main(["export", str(checkpoint), str(source), *form]) == 0
        form = []
    assert main(["export", str(source), str(out), *form]) == 0
    record = read_record(out)
    assert (record.runtime, record.precision, record.spec.output) == ("tensorrt_rtx", "fp16", "peaks")
    assert shlex.split(record.rebuild)[:4] == ["centeredge", "export", str(source), str(out)]
    assert shlex.split(record.rebuild)[4:] == form
    assert "TensorRT-RTX" in capsys.readouterr().out
    with pytest.raises(BackendError, match=r"GPU|BackendUnavailable"):  # it is native code for one, and there is none
        open_backend(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "--precision int8 needs --ranges FILE"),
        (["--ranges", "ranges.json"], "--ranges is for --precision int8, not fp32"),
        (["--precision", "int8", "--ranges", "nowhere.json"], "nowhere.json"),
        (["--size", "90x64"], "size 90x64 does not fit: 90 is no multiple of 32"),
        (["--architecture", "res_18"], "holds a 'edge_n', not a 'res_18'"),
        (["--task", "3d"], "does detection, pose, not 3d"),
        (["--any-size", "--target", "tensorrt"], "--any-size is for --target onnxruntime"),
        (["--workspace", "512"], "for .engine files alone: --workspace"),
        (["--dla-core", "0", "--optimization-level", "0"], "for .engine files alone: --optimization-level, --dla-core"),
        (["--size", "99999968x64"], "99999968x64 is too large"),
        (["--images", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_1(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["export", str(checkpoint), str(tmp_path / "model.onnx"), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("centeredge export: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "arguments", "message"),
    [
        ("model.engine", ["--target", "onnxruntime"], "--target onnxruntime has no engines"),
        ("model.engine", ["--workspace", "0"], "expected at least 1"),
        ("model.pt", [], "has the suffix '.pt'; expected .onnx or .engine"),
        ("nowhere/model.onnx", [], "No such file or directory; choose a folder that exists"),
        (".", [], "has the suffix ''"),
    ],
)
def test_outputs_that_cannot_be(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    out: str,
    arguments: list[str],
    message: str,
) -> None:
    assert main(["export", str(checkpoint), str(tmp_path / out), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no checkpoint"),
        (b"", "is not a PyTorch checkpoint, or it is truncated"),
        (b"no checkpoint at all", "is damaged, or holds Python objects"),
    ],
)
def test_files_that_are_no_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
) -> None:
    path = tmp_path / "model.pth"
    if content is not None:
        path.write_bytes(content)
    assert main(["export", str(path), str(tmp_path / "model.onnx")]) == 1
    error = capsys.readouterr().err
    assert message in error and "model.pth" in error
    assert not (tmp_path / "model.onnx").exists()


def test_files_that_are_no_sources(exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    final, out = tmp_path / "final.onnx", str(tmp_path / "out.onnx")
    assert main(["export", str(tmp_path / "a.onnx"), out]) == 1
    assert "cannot read" in capsys.readouterr().err
    assert main(["export", str(exported.path), str(final), "--target", "tensorrt"]) == 0
    for arguments, message in [
        ([str(final), out], "other forms are made from the checkpoint"),
        ([str(final), str(tmp_path / "a.engine"), "--precision", "fp16"], "has its final form, which --precision"),
        ([str(final), str(tmp_path / "a.engine"), "--any-size", "--images", "x"], "which --any-size, --images cannot"),
        ([str(exported.path), out, "--task", "pose"], "--architecture and --task are for checkpoints"),
        ([str(exported.path), str(exported.path)], "would replace its source"),
    ]:
        assert main(["export", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [final]


def test_weights_in_other_files(exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside = tmp_path / "inside" / "model.onnx"
    inside.parent.mkdir()
    onnx.save_model(onnx.load(exported.path), inside, save_as_external_data=True, location="weights", size_threshold=0)
    assert main(["export", str(inside), str(tmp_path / "out.onnx"), "--target", "tensorrt"]) == 0

    model = onnx.load(inside, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../inside/weights"
    outside = tmp_path / "elsewhere" / "model.onnx"
    outside.parent.mkdir()
    outside.write_bytes(model.SerializeToString())
    capsys.readouterr()
    assert main(["export", str(outside), str(tmp_path / "no.onnx"), "--target", "tensorrt"]) == 1
    assert "keeps weights in '../inside/weights', outside its folder, which is refused" in capsys.readouterr().err
    assert not (tmp_path / "no.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "320"], "expected WxH in pixels"),
        (["--dynamic-batch", "4,2,1"], "expected MIN,OPT,MAX that rise"),
        (["--dynamic-batch", "1,2"], "expected MIN,OPT,MAX that rise"),
        (["--target", "tpu"], "invalid choice"),
    ],
)
def test_values_that_are_none_are_bad_usage(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["export", str(checkpoint), "model.onnx", *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
