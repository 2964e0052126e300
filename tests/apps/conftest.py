"""Model files that find one object in the middle of whatever they are shown."""

from pathlib import Path

import numpy as np
import pytest

from sdk.spec import ONNX_METADATA_KEY, ModelSpec
from tests.fakes import FAKE_SPEC
from tests.helpers import Heads
from tests.sdk.test_decoding3d import spec_3d


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    heatmap = np.full((1, 1, 16, 16), -5.0, np.float32)
    heatmap[0, 0, 8, 8] = 2.0
    heads = {
        "heatmap": heatmap,
        "size": np.full((1, 2, 16, 16), 8.0, np.float32),
        "keypoint_offset": np.linspace(-4, 4, 34, dtype=np.float32)[None, :, None, None]
        * np.ones((1, 1, 16, 16), np.float32),
    }
    return _write_model(tmp_path_factory.mktemp("model") / "fake.onnx", FAKE_SPEC, heads)


@pytest.fixture(scope="session")
def model_3d_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One car, 10 m ahead of a camera of 64 px focal length in a frame of 64x64."""
    spec = spec_3d(focal_px=64.0).with_input_size(64, 64)
    at_cell = {"offset": [0, 0], "size": [6, 4], "depth": [-np.log(10)], "dimensions": [1.5, 1.6, 3.9]}
    at_cell |= {"rotation": [0, 1, 0, 1, 0, 0, 0, 1]}  # the first bin, and 0 in it
    grid = np.ones((1, 1, 16, 16))
    heads = {
        name: (np.array(values)[None, :, None, None] * grid).astype(np.float32) for name, values in at_cell.items()
    }
    heatmap = np.full((1, 2, 16, 16), -5.0, np.float32)
    heatmap[0, 0, 8, 8] = 2.0
    return _write_model(tmp_path_factory.mktemp("model") / "fake-3d.onnx", spec, {"heatmap": heatmap, **heads})


def _write_model(path: Path, spec: ModelSpec, heads: Heads) -> Path:
    """An ONNX file of the spec that answers these heads to every frame."""
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    nodes = [
        helper.make_node("Cast", ["frame"], ["float_frame"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float_frame"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        *(helper.make_node("Add", [f"{name}_constant", "zero"], [name]) for name in heads),
    ]
    constants = {f"{name}_constant": value for name, value in heads.items()} | {"nothing": np.float32(0)}
    graph = helper.make_graph(
        nodes,
        "fake",
        [helper.make_tensor_value_info("frame", onnx.TensorProto.UINT8, [1, spec.input.height, spec.input.width, 3])],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, v.shape) for n, v in heads.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {ONNX_METADATA_KEY: spec.to_json()})
    onnx.save(model, path)
    return path
