from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sdk.backends import open_backend
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.detector import Detector
from sdk.errors import BackendError, HeadShapeError, InputError, SdkError, SpecError, SpecVersionError
from sdk.peaks import peak_shapes
from sdk.spec import ONNX_METADATA_KEY, ModelSpec
from tests.helpers import THREE_PEAKS, Heads, heads_with_peaks, tiny_spec

SPEC = tiny_spec()


def write_model(
    path: Path,
    heads: Heads,
    *,
    metadata: str | None = SPEC.to_json(),
    input_shape: Sequence[Any] = (1, 64, 64, 3),
    input_name: str = "frame",
    input_type: int = TensorProto.UINT8,
) -> Path:
    """A network that gives the same heads for every frame, plus the mean of the frame, which is 0 on black."""
    nodes = [
        helper.make_node("Cast", [input_name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], keepdims=0),
    ]
    outputs, constants = [], []
    for name, head in heads.items():
        constants.append(helper.make_tensor(f"{name}_constant", TensorProto.FLOAT, head.shape, head.ravel().tolist()))
        nodes.append(helper.make_node("Add", [f"{name}_constant", "mean"], [name]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, head.shape))
    frame = helper.make_tensor_value_info(input_name, input_type, input_shape)
    graph = helper.make_graph(nodes, "constant", [frame], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if metadata is not None:
        helper.set_model_props(model, {ONNX_METADATA_KEY: metadata})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx", heads_with_peaks(SPEC))


def test_a_file_needs_nothing_else(model: Path) -> None:
    with Detector(str(model), threads=1) as detector:
        assert detector.spec == SPEC
        detections = detector(np.zeros((640, 640, 3), np.uint8))
    assert [detections.class_names[i] for i in detections.class_ids] == ["cat", "dog", "dog"]
    np.testing.assert_allclose(detections.scores, [peak.score for peak in THREE_PEAKS], rtol=1e-5)
    np.testing.assert_allclose(detections.xyxy[0], [90, 110, 250, 190], atol=1e-2)


def test_outputs_of_two_runs_share_no_memory(model: Path) -> None:
    backend = open_backend(model, threads=1)
    assert backend.inputs == ("frame",) and backend.outputs == ("heatmap", "offset", "size")
    frame = np.zeros((1, 64, 64, 3), np.uint8)
    first, second = backend.infer({"frame": frame}), backend.infer({"frame": frame})
    for name, head in first.items():
        np.testing.assert_allclose(head, heads_with_peaks(SPEC)[name], rtol=1e-6)
        assert not np.shares_memory(head, second[name])


def test_a_wrong_frame_names_what_it_was_given(model: Path) -> None:
    backend = open_backend(model, threads=1)
    with pytest.raises(BackendError, match=r"ONNX Runtime failed on .*\(1, 32, 64, 3\), 'uint8'"):
        backend.infer({"frame": np.zeros((1, 32, 64, 3), np.uint8)})


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(SdkError, match=r"model\.onnx .*`centeredge export` wrote"):
        Detector(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_model(model: Path, share: float) -> None:
    content = model.read_bytes()
    model.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BackendError, match=r"model\.onnx is not a model that ONNX Runtime .* can load .*expected"):
        Detector(model)


def test_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no model file .*missing.onnx"):
        open_backend(tmp_path / "missing.onnx")


def test_a_model_without_spec(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", heads_with_peaks(SPEC), metadata=None)
    with pytest.raises(SpecError, match=r"model\.onnx has no ModelSpec .*use a file that `centeredge export` wrote"):
        Detector(path)


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ("{", SpecError, "not valid JSON"),
        ('{"spec_version": 99}', SpecVersionError, "version 99.*upgrade"),
        (SPEC.to_json().replace('"cat", ', ""), SpecError, "2 channels, its 1 classes"),
    ],
)
def test_a_model_with_an_unusable_spec(tmp_path: Path, metadata: str, error: type[SdkError], message: str) -> None:
    path = write_model(tmp_path / "model.onnx", heads_with_peaks(SPEC), metadata=metadata)
    with pytest.raises(error, match=message):
        Detector(path)


def _without(name: str) -> Heads:
    return {key: head for key, head in heads_with_peaks(SPEC).items() if key != name}


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (_without("size"), r"gives 'size' as None, its ModelSpec declares \(1, 2, 16, 16\).*export it again"),
        ({**_without("size"), "size": np.zeros((1, 3, 16, 16))}, r"gives 'size' as \[1, 3, 16, 16\]"),
        ({**_without("heatmap"), "heatmap": np.zeros((1, 80, 16, 16))}, "gives 'heatmap' as .*80"),
        ({**_without("heatmap"), "heatmap": np.zeros((1, 2, 8, 16))}, "come from different models"),
    ],
)
def test_outputs_that_disagree_with_the_spec(tmp_path: Path, heads: Heads, message: str) -> None:
    path = write_model(tmp_path / "model.onnx", heads)
    with pytest.raises(HeadShapeError, match=message):
        Detector(path)


PEAKS = replace(SPEC, output="peaks")


def _peak_outputs(**changes: tuple[int, ...]) -> Heads:
    """All rows at cell 0, with a score of 0.5."""
    return {name: np.zeros((1, *shape), np.float32) for name, shape in {**peak_shapes(PEAKS), **changes}.items()}


@pytest.mark.parametrize("batch", [1, "batch"])
def test_peaks_are_taken_for_peaks(tmp_path: Path, batch: int | str) -> None:
    path = write_model(
        tmp_path / "model.onnx", _peak_outputs(), metadata=PEAKS.to_json(), input_shape=(batch, 64, 64, 3)
    )
    detections = Detector(path, threads=1)(np.zeros((64, 64, 3), np.uint8))
    assert len(detections) == 100 and set(detections.scores) == {0.5}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({**heads_with_peaks(SPEC)}, r"gives 'heatmap' as \[1, 2, 16, 16\], its ModelSpec declares \(1, 100\)"),
        (_peak_outputs(cells=(50,)), r"gives 'cells' as \[1, 50\], its ModelSpec declares \(1, 100\).*export it again"),
        (_peak_outputs(size=(100, 4)), r"gives 'size' as \[1, 100, 4\], its ModelSpec declares \(1, 100, 2\)"),
        (_peak_outputs(offset=(2, 100)), "come from different models"),
    ],
)
def test_peaks_that_disagree_with_the_spec(tmp_path: Path, outputs: Heads, message: str) -> None:
    path = write_model(tmp_path / "model.onnx", outputs, metadata=PEAKS.to_json())
    with pytest.raises(HeadShapeError, match=message):
        Detector(path)


def test_peaks_are_not_taken_for_maps(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", _peak_outputs())
    with pytest.raises(HeadShapeError, match=r"gives 'heatmap' as \[1, 100\], its ModelSpec declares \(1, 2, 16, 16"):
        Detector(path)


def test_peaks_of_frames_of_any_size_are_refused(tmp_path: Path) -> None:
    """Their cells are counted in the rows of one size."""
    shape = (1, "height", "width", 3)
    path = write_model(tmp_path / "model.onnx", _peak_outputs(), metadata=PEAKS.to_json(), input_shape=shape)
    with pytest.raises(SpecError, match=r"its ModelSpec says one input 'frame' of uint8 \(1, 64, 64, 3\)"):
        Detector(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"input_shape": (1, 32, 32, 3)},
        {"input_shape": (1, 3, 64, 64)},
        {"input_name": "image"},
        {"input_type": TensorProto.FLOAT},
    ],
)
def test_an_input_that_disagrees_with_the_spec(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_model(tmp_path / "model.onnx", heads_with_peaks(SPEC), **changes)
    with pytest.raises(SpecError, match=r"its ModelSpec says one input 'frame' of uint8 \(1, 64, 64, 3\)"):
        Detector(path)


def test_a_model_without_inputs(tmp_path: Path) -> None:
    value = helper.make_tensor("value", TensorProto.FLOAT, (1,), [0.0])
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["heatmap"], value=value)],
        "constant",
        [],
        [helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, (1,))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {ONNX_METADATA_KEY: SPEC.to_json()})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(SpecError, match=r"takes \[\], its ModelSpec says one input"):
        OnnxRuntimeBackend(tmp_path / "model.onnx")


def test_the_spec_survives_the_file(model: Path) -> None:
    assert ModelSpec.from_json(OnnxRuntimeBackend(model).spec.to_json()) == SPEC
