"""`centeredge export`, as a user calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.cli import main
from sdk.backends.onnxruntime import OnnxRuntimeBackend


def test_a_checkpoint_becomes_a_file_with_a_table_that_proves_it(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    assert main(["export", str(checkpoint), str(out), "--size", "96x64", "--task", "pose"]) == 0
    captured = capsys.readouterr()
    assert OnnxRuntimeBackend(out).spec.input.wh == (96, 64)
    assert "synthetic-pose, 96x64, FP32" in captured.out
    assert all(head in captured.out for head in ("heatmap", "keypoint_offset", "max difference"))
    assert captured.err == ""
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "tensorrt"], "--target tensorrt is not supported by this version yet"),
        (["--precision", "fp16"], "--precision fp16 is not supported by this version yet; use fp32"),
        (["--precision", "int8", "--ranges", "ranges.json"], "give the result to `centeredge calibrate`"),
        (["--ranges", "ranges.json"], "--ranges is for --precision int8, not fp32"),
        (["--size", "90x64"], "size 90x64 does not fit: 90 is no multiple of 32"),
        (["--architecture", "res_18"], "holds a 'edge_n', not a 'res_18'"),
        (["--task", "3d"], "does detection, pose, not 3d"),
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
    ("out", "message"),
    [
        ("model.engine", "a .engine is not supported by this version yet"),
        ("model.pt", "has the suffix '.pt'; expected .onnx"),
        ("nowhere/model.onnx", "No such file or directory; choose a folder that exists"),
        (".", "has the suffix ''"),
    ],
)
def test_outputs_that_cannot_be(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, message: str
) -> None:
    assert main(["export", str(checkpoint), str(tmp_path / out)]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no checkpoint"),
        (b"", "is not a PyTorch checkpoint, or it is truncated"),
        (b"no checkpoint at all", ""),
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


def test_an_exported_model_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")]) == 1
    assert "is exported already" in capsys.readouterr().err


def test_a_size_that_is_none_is_bad_usage(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["export", str(checkpoint), "model.onnx", "--size", "320"])
    assert exit_info.value.code == 2
    assert "expected WxH in pixels" in capsys.readouterr().err
