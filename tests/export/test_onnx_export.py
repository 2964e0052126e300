"""What is in an exported file, and that it is the model."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from calibration.onnx_files import metadata_of
from export.errors import ExportError
from export.onnx_export import export_onnx
from export.tracing import weights_sha256
from export.verification import compare, drawn_frames
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.errors import ConfigError
from sdk.spec import ModelSpec
from train.evaluate import TorchBackend

from .conftest import Exported
from .models import lively_model


def test_every_head_equals_the_pytorch_model(exported: Exported) -> None:
    for part in exported.report.parts:
        assert [head.name for head in part.heads] == [head.name for head in exported.spec.heads]
        assert all(head.max < 1e-5 for head in part.heads)
        assert all(head.largest > 0.1 for head in part.heads)  # nothing equals nothing all too easily


def test_the_proof_is_at_the_size_that_was_asked_for_and_at_another(exported: Exported) -> None:
    titles = [part.title for part in exported.report.parts]
    assert ["64x64" in title for title in titles] == [True, False]
    assert "32x32" in titles[1]


def test_it_takes_a_uint8_frame_and_gives_dense_heads_in_the_order_of_the_spec(exported: Exported) -> None:
    frame = exported.onnx.graph.input
    assert [value.name for value in frame] == ["frame"]
    assert frame[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert _shape(frame[0]) == (1, 64, 64, 3)
    outputs = {value.name: _shape(value) for value in exported.onnx.graph.output}
    assert list(outputs.items()) == [(head.name, (1, head.channels, 16, 16)) for head in exported.spec.heads]


def test_the_spec_is_inside_and_the_runtime_needs_nothing_else(exported: Exported) -> None:
    assert OnnxRuntimeBackend(exported.path).spec == exported.spec


def test_the_file_is_one_that_old_runtimes_read(exported: Exported) -> None:
    assert exported.onnx.ir_version <= 10
    assert [(entry.domain, entry.version) for entry in exported.onnx.opset_import] == [("", 18)]
    assert not any(tensor.external_data for tensor in exported.onnx.graph.initializer)
    onnx.checker.check_model(exported.onnx, full_check=True)


def test_the_graph_is_as_small_as_it_gets(exported: Exported) -> None:
    operators = Counter(node.op_type for node in exported.onnx.graph.node)
    assert set(operators) == {"Transpose", "Cast", "Conv", "Relu", "Add", "GlobalAveragePool", "Resize", "Split"}
    num_convs = sum(isinstance(layer, nn.Conv2d) for layer in exported.model.modules())
    assert operators["Conv"] == num_convs - len(exported.spec.heads) + 1  # the outputs are one
    assert operators["Transpose"] == operators["Cast"] == operators["Split"] == operators["GlobalAveragePool"] == 1


def test_tensors_are_called_after_layers(exported: Exported) -> None:
    names = [name for node in exported.onnx.graph.node for name in node.output]
    assert {"stem.0.0.Conv", "stages.1.0.conv2.Conv", "context.pool.GlobalAveragePool"} <= set(names)
    assert len({node.name for node in exported.onnx.graph.node}) == len(exported.onnx.graph.node)


def test_the_file_says_nothing_about_the_machine_that_wrote_it(exported: Exported) -> None:
    content = exported.path.read_bytes()
    assert b".py" not in content
    assert str(Path(__file__).parent.parent.parent).encode() not in content


def test_the_model_is_not_changed(exported: Exported) -> None:
    for name, tensor in exported.model.state_dict().items():
        assert torch.equal(tensor, exported.weights[name])
    assert isinstance(exported.model.get_submodule("context.pool"), nn.AdaptiveAvgPool2d)


def test_mean_and_std_are_in_the_graph_also_at_the_borders(tmp_path: Path) -> None:
    model, spec = lively_model()
    spec = replace(spec, input=replace(spec.input, mean=(0.4, 0.45, 0.5), std=(0.2, 0.25, 0.3)))
    report = export_onnx(model, spec, tmp_path / "model.onnx")
    assert all(head.max < 1e-5 for part in report.parts for head in part.heads)
    assert any(node.op_type == "Sub" for node in onnx.load(tmp_path / "model.onnx").graph.node)


def test_another_size_and_shape_than_the_model_was_trained_at(exported: Exported, tmp_path: Path) -> None:
    spec = exported.spec.with_input_size(96, 64)
    path = tmp_path / "model.onnx"
    export_onnx(exported.model, spec, path)
    backend = OnnxRuntimeBackend(path)
    assert backend.spec.input.wh == (96, 64)
    heads = backend.infer({"frame": np.zeros((1, 64, 96, 3), np.uint8)})
    assert heads["heatmap"].shape == (1, 1, 16, 24)
    assert metadata_of(onnx.load(path)) | {"centeredge.spec": ""} == metadata_of(exported.onnx) | {
        "centeredge.spec": ""
    }


def test_the_weights_have_a_fingerprint(exported: Exported) -> None:
    assert metadata_of(exported.onnx)["centeredge.weights"] == weights_sha256(exported.model)
    assert weights_sha256(lively_model(seed=1)[0]) != weights_sha256(exported.model)


def test_the_exporter_is_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    export_onnx(*lively_model(), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class ChangesAtExport(nn.Module):
    """A model whose export is wrong."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({head.name: nn.Conv2d(3, head.channels, 3, 4, padding=1) for head in spec.heads})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        error = 0.01 if torch.onnx.is_in_onnx_export() else 0.0
        return {name: head(x) + error for name, head in self.heads.items()}


class ReadsTheImageOnce(ChangesAtExport):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.first = self.heads["heatmap"]
        trunk = self.first(x)
        error = 0.01 if torch.onnx.is_in_onnx_export() else 0.0
        return {name: trunk.repeat(1, head.out_channels, 1, 1) + error for name, head in self.heads.items()}


def test_a_file_that_is_not_the_model_is_not_written(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("what was there before")
    with pytest.raises(ExportError, match=r"against PyTorch.* differs: heatmap by .* nothing was"):
        export_onnx(ReadsTheImageOnce(exported.spec).eval(), exported.spec, path)
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]


def test_the_scale_needs_one_convolution_to_go_to(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="6 convolutions read the image, expected one"):
        export_onnx(ChangesAtExport(exported.spec).eval(), exported.spec, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_size_that_does_not_fit_names_those_that_do(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"size 64x100 does not fit: 100 is no multiple of 32.*96 and 128"):
        export_onnx(exported.model, exported.spec.with_input_size(64, 100), tmp_path / "model.onnx")


def test_a_folder_that_does_not_exist_is_said_before_the_work(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*model\.onnx: No such file or directory"):
        export_onnx(exported.model, exported.spec, tmp_path / "nowhere" / "model.onnx")


def test_drawn_frames_are_the_same_each_time(exported: Exported) -> None:
    first, second = drawn_frames(exported.spec), drawn_frames(exported.spec)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[0].shape == (1, 64, 64, 3) and first[0].std() > 10


def test_a_model_equals_itself(exported: Exported) -> None:
    backend = TorchBackend(exported.model, exported.spec)
    assert all(head.max == 0.0 for head in compare(backend, backend, drawn_frames(exported.spec)).heads)


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
