"""A model file that finds one person in the middle of whatever it is shown."""

from pathlib import Path

import numpy as np
import pytest

from sdk.spec import ONNX_METADATA_KEY
from tests.fakes import FAKE_SPEC


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    heatmap = np.full((1, 1, 16, 16), -5.0, np.float32)
    heatmap[0, 0, 8, 8] = 2.0
    heads = {
        "heatmap": heatmap,
        "size": np.full((1, 2, 16, 16), 8.0, np.float32),
        "keypoint_offset": np.linspace(-4, 4, 34, dtype=np.float32)[None, :, None, None]
        * np.ones((1, 1, 16, 16), np.float32),
    }
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
        [helper.make_tensor_value_info("frame", onnx.TensorProto.UINT8, [1, 64, 64, 3])],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, v.shape) for n, v in heads.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {ONNX_METADATA_KEY: FAKE_SPEC.to_json()})
    path = tmp_path_factory.mktemp("model") / "fake.onnx"
    onnx.save(model, path)
    return path
