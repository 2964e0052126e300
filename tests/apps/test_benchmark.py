"""`centeredge benchmark`: stages of a model, and another one in turns with it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from apps.cli import main


def test_stages_and_total_of_the_bundled_model(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    assert main(["benchmark", "person-pose.int8", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())["1 threads"]
    assert set(figures) == {f"person-pose.int8 {stage}" for stage in ("preprocess", "inference", "decode", "total")}
    assert figures["person-pose.int8 total"] > figures["person-pose.int8 preprocess"] > 0


def test_against_a_foreign_model_gives_the_ratio(tmp_path: Path) -> None:
    other = tmp_path / "other.onnx"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["images"], ["out"])],
        "foreign",
        [value("images", TensorProto.FLOAT, (1, 3, 8, 8))],
        [value("out", TensorProto.FLOAT, (1, 3, 8, 8))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), other)
    out = tmp_path / "figures.json"
    assert main(["benchmark", "person-pose.int8", "--against", str(other), "--json", str(out)]) == 0
    figures = json.loads(out.read_text())["1 threads"]
    assert figures[f"ratio: {other} / person-pose.int8"] < 1


def test_a_missing_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "nothing.onnx"]) == 1
    assert "there is no model file nothing.onnx" in capsys.readouterr().err
