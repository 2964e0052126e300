"""The INT8 graph: what is in it, that its rewrites are exact, and that ONNX Runtime makes integer operators of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from calibration.errors import CalibrationError
from calibration.layout import copy_to_upsample, upsample_by_conv, widen_first_conv
from calibration.methods import Range
from calibration.placement import place
from calibration.qdq import insert_qdq, quantised_conv, scale_and_zero_point
from calibration.quantisation import quantise, shapes_of
from export.verification import drawn_frames
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.spec import ModelSpec

from .conftest import Calibrated, FloatModel
from .graphs import Network, frame_of, ranges_on, sqnr_db, values_of


def test_the_frame_goes_as_bytes_into_the_first_convolution(calibrated: Calibrated) -> None:
    graph = calibrated.proto.graph
    assert "Cast" not in {node.op_type for node in graph.node}
    first = next(node for node in graph.node if node.op_type == "Conv")
    assert first.input[0] == "Cast.dequantized"
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert (constants["Cast.scale"], constants["Cast.zero_point"]) == (1.0, 0)


def test_the_output_convolution_stays_in_float(calibrated: Calibrated) -> None:
    graph = calibrated.proto.graph
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    output_conv = next(node for node in graph.node if node.name == "outputs.Conv")
    assert constants[output_conv.input[1]] == onnx.TensorProto.FLOAT
    assert not {head + ".quantized" for head in calibrated.report.accuracy or {}} & set(constants)
    assert list(calibrated.report.float_layers) == ["outputs.Conv"]
    heads = {output.name for output in graph.output}
    assert not [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in heads]


def test_all_else_is_int8(calibrated: Calibrated) -> None:
    graph = calibrated.proto.graph
    float_convs = [
        node.name for node in graph.node if node.op_type == "Conv" and not node.input[1].endswith(".dequantized")
    ]
    assert float_convs == ["outputs.Conv"]
    assert "Relu" not in {node.op_type for node in graph.node}
    types = Counter(tensor.data_type for tensor in graph.initializer if tensor.name.endswith("weight.quantized"))
    assert set(types) == {onnx.TensorProto.INT8}


def test_onnx_runtime_fuses_everything_into_integer_operators(calibrated: Calibrated, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(calibrated.path), options, providers=["CPUExecutionProvider"])
    optimised = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    written = Counter(node.op_type for node in calibrated.proto.graph.node)
    assert optimised["QLinearConv"] == written["Conv"] - 1
    assert optimised["QLinearAdd"] == written["Add"]
    assert optimised["QLinearGlobalAveragePool"] == 1
    assert optimised["Conv"] == optimised["DequantizeLinear"] == 1  # of the heads
    assert "QuantizeLinear" not in optimised


def test_metadata_and_version(calibrated: Calibrated, float_model: FloatModel) -> None:
    spec = OnnxRuntimeBackend(calibrated.path).spec
    assert spec.precision == "int8"
    assert spec == ModelSpec.from_dict({**float_model.spec.to_dict(), "precision": "int8"})
    assert calibrated.proto.ir_version <= 10
    onnx.checker.check_model(calibrated.proto, full_check=True)


def test_the_heads_are_close_to_float(calibrated: Calibrated, float_model: FloatModel) -> None:
    reference, int8 = OnnxRuntimeBackend(float_model.path), OnnxRuntimeBackend(calibrated.path)
    for frame in drawn_frames(float_model.spec):
        expected, found = reference.infer({"frame": frame}), int8.infer({"frame": frame})
        for name, value in expected.items():
            noise = np.abs(found[name] - value).mean() / value.std()
            assert noise < 0.15, name  # of a network of random weights, which amplifies noise


def heads_of(proto: onnx.ModelProto, frame: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"frame": frame}))


def test_the_rewrites_change_no_value(float_model: FloatModel) -> None:
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(float_model.proto)
    shapes = shapes_of(float_model.proto)
    widen_first_conv(rewritten.graph, shapes)
    copy_to_upsample(rewritten.graph, shapes)
    onnx.checker.check_model(rewritten, full_check=True)
    operators = Counter(node.op_type for node in rewritten.graph.node)
    assert operators["Resize"] == 0 and operators["Gather"] == 6 and operators["Reshape"] == 2
    frame = drawn_frames(float_model.spec)[0]
    for expected, found in zip(heads_of(float_model.proto, frame), heads_of(rewritten, frame), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "wide"),
    [
        (3, 2, [1, 1, 1, 1], 2),
        (7, 2, [3, 3, 3, 3], 3),
        (3, 1, [1, 1, 1, 1], 3),
        (4, 4, [0, 0, 0, 0], 1),
        (3, 2, [0, 0, 1, 1], 2),
    ],
)
@pytest.mark.parametrize("relu", [True, False])
def test_any_first_convolution_of_a_fitting_width(
    kernel: int, stride: int, pads: list[int], wide: int, relu: bool
) -> None:
    proto = small_model(kernel, stride, pads, width=24, relu=relu)
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(proto)
    widen_first_conv(rewritten.graph, shapes_of(proto))
    conv = next(node for node in rewritten.graph.node if node.op_type == "Conv")
    weight = next(t for t in rewritten.graph.initializer if t.name == conv.input[1])
    assert list(weight.dims) == [4 // stride * 5, 12, kernel, wide]
    frame = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), np.uint8)
    np.testing.assert_allclose(heads_of(rewritten, frame)[0], heads_of(proto, frame)[0], rtol=1e-5, atol=1e-3)


def test_a_width_that_does_not_fit_is_left_alone() -> None:
    proto = small_model(3, 2, [1, 1, 1, 1], width=22, relu=True)
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(proto)
    widen_first_conv(rewritten.graph, shapes_of(proto))
    assert rewritten == proto


def small_model(kernel: int, stride: int, pads: list[int], *, width: int, relu: bool) -> onnx.ModelProto:
    """A frame through one convolution, perhaps a ReLU, and a negation that shows that what follows is unharmed."""
    helper, rng = onnx.helper, np.random.default_rng(1)
    weight = rng.normal(0, 1, (5, 3, kernel, kernel)).astype(np.float32)
    bias = rng.normal(0, 100, 5).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["frame"], ["t"], name="t", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["t"], ["c"], name="c", to=onnx.TensorProto.FLOAT),
        helper.make_node("Conv", ["c", "w", "b"], ["x"], name="x", strides=[stride, stride], pads=pads),
    ]
    if relu:
        nodes.append(helper.make_node("Relu", ["x"], ["r"], name="r"))
    nodes.append(helper.make_node("Neg", ["r" if relu else "x"], ["y"], name="y"))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("frame", onnx.TensorProto.UINT8, [1, 16, width, 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(bias, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_a_head_that_is_no_convolution_keeps_its_name_and_its_values() -> None:
    helper = onnx.helper
    nodes = [
        helper.make_node("Conv", ["frame", "w"], ["a"], name="a", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], name="r"),
        helper.make_node("Conv", ["r", "w2"], ["b"], name="b", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["b", "r"], ["sum"], name="sum"),
        helper.make_node("Sigmoid", ["sum"], ["score"], name="score"),
    ]
    rng = np.random.default_rng(0)
    weights = [
        onnx.numpy_helper.from_array(rng.normal(0, 0.3, (3, 3, 3, 3)).astype(np.float32), n) for n in ("w", "w2")
    ]
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for n in ("frame", "sum", "score")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    placement = place(graph)
    assert not placement.reasons and placement.int8 == {"a", "b", "sum"}
    bounds = {"frame": Range(-3, 3), "r": Range(0, 4), "b": Range(-4, 4), "sum": Range(-4, 6)}
    int8 = onnx.ModelProto()
    int8.CopyFrom(model)
    int8.graph.CopyFrom(insert_qdq(graph, placement, bounds))
    onnx.checker.check_model(int8, full_check=True)
    frame = np.random.default_rng(1).normal(0, 0.7, (1, 3, 8, 8)).astype(np.float32)
    for expected, found in zip(heads_of(model, frame), heads_of(int8, frame), strict=True):
        assert np.abs(expected - found).max() < 0.1


def test_a_missing_range_is_named(float_model: FloatModel) -> None:
    with pytest.raises(CalibrationError, match=r"have none for tensor 'stem\.0\.2\.Relu'.*Calibrate again"):
        quantise(float_model.proto, {})


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (0.0, 5.1, 0.02, 0),
        (-1.0, 4.1, 0.02, 50),
        (2.0, 5.1, 0.02, 0),  # zero is always inside
        (-5.1, -1.0, 0.02, 255),
        (0.0, 0.0, 1.0, 0),
        (2.55, 2.55, 0.01, 0),
    ],
)
def test_scales(low: float, high: float, scale: float, zero_point: int) -> None:
    found = scale_and_zero_point(Range(low, high))
    assert found[0] == pytest.approx(scale)
    assert found[1] == zero_point


def test_weights_have_a_scale_for_each_channel() -> None:
    weight = np.array([[[[1.0, -2.0]]], [[[0.1, 0.05]]], [[[0.0, 0.0]]]], np.float32)
    values, bias, scale = quantised_conv(weight, None, np.float32(0.1))
    assert values.reshape(3, 2).tolist() == [[64, -127], [127, 64], [0, 0]]
    np.testing.assert_allclose(scale, [2 / 127, 0.1 / 127, 1.0])
    assert bias is None


def test_the_bias_of_a_channel_that_is_nearly_off_survives() -> None:
    weight = np.array([[[[1.0]]], [[[1e-12]]], [[[0.0]]]], np.float32)
    bias = np.array([0.5, 0.5, -3.0], np.float32)
    _, steps, scale = quantised_conv(weight, bias, np.float32(0.01))
    assert steps is not None
    np.testing.assert_allclose(steps * scale.astype(np.float64) * 0.01, bias, rtol=1e-3)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("wh", [(8, 8), (24, 16)])
def test_a_transposed_convolution_is_a_convolution_to_corners(wh: tuple[int, int], relu: bool) -> None:
    network = Network(wh)
    x = network.up(network.conv(network.pixels, 5, "first"), 7, "up")
    x = network.relu(x, "up.Relu") if relu else x
    network.conv(network.layer("Add", x, x, name="twice"), 3, "heatmap")
    model = network.model("heatmap")
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    upsample_by_conv(rewritten.graph, shapes_of(model), ["up"])
    onnx.checker.check_model(rewritten, full_check=True)
    assert "ConvTranspose" not in {node.op_type for node in rewritten.graph.node}
    expected, found = values_of(model, frame_of(wh))["heatmap"], values_of(rewritten, frame_of(wh))["heatmap"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def upsampling_and_deformable() -> onnx.ModelProto:
    network = Network()
    x = network.relu(network.conv(network.pixels, 64, "first"), "first.Relu")
    x = network.relu(network.deform(x, 32, "deform"), "deform.Relu")
    x = network.relu(network.up(x, 32, "up"), "up.Relu")
    x = network.relu(network.deform(x, 16, "second deform"), "second deform.Relu")
    x = network.deform(x, 8, "third deform")  # what it reads comes from an operator in float
    network.conv(x, 3, "heatmap", kernel=1)
    return network.model("heatmap")


def test_onnx_runtime_has_integer_operators_for_upsampling_and_deformable_convolution(tmp_path: Path) -> None:
    model = upsampling_and_deformable()
    frame = frame_of()
    int8 = quantise(model, ranges_on(model, frame))
    onnx.checker.check_model(int8, full_check=True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(int8.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert optimised["QLinearConv"] == 2  # `first` and `up`
    assert optimised["MatMulIntegerToFloat"] == 3
    assert optimised["DeformConv"] == optimised["ConvTranspose"] == 0
    assert sqnr_db(values_of(model, frame)["heatmap"], values_of(int8, frame)["heatmap"]) > 25


def test_what_is_named_keeps_its_operator() -> None:
    model = upsampling_and_deformable()
    int8 = quantise(model, ranges_on(model, frame_of()), float_nodes=["up", "deform"])
    operators = Counter(node.op_type for node in int8.graph.node)
    assert operators["ConvTranspose"] == operators["DeformConv"] == 1
    assert sqnr_db(values_of(model, frame_of())["heatmap"], values_of(int8, frame_of())["heatmap"]) > 25


def test_what_is_moved_before_it_is_read_in_int8_is_quantised_before() -> None:
    network = Network()
    x = network.layer("Sigmoid", network.conv(network.pixels, 16, "first"), name="active")
    x = network.layer("MaxPool", x, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    network.conv(network.relu(network.conv(x, 16, "second"), "second.Relu"), 3, "heatmap")
    model = network.model("heatmap")
    int8 = quantise(model, ranges_on(model, frame_of()))
    pool = next(node for node in int8.graph.node if node.op_type == "MaxPool")
    assert pool.input[0] == "active.quantized"
