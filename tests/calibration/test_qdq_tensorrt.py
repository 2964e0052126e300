"""The INT8 graph for TensorRT: where quantisers stand, that both float types hold the same integers, that it builds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, helper

from calibration.errors import CalibrationError
from calibration.onnx_files import metadata_of
from calibration.placement import place
from calibration.qdq_tensorrt import round_to_half, scale_in_half, with_float_weights
from calibration.quantisation import quantise
from export.conversion import Form, at_size, convert
from export.tracing import trace
from sdk.spec import ONNX_METADATA_KEY, ModelSpec
from tests.builders import build_with_rtx
from tests.export.models import lively_model

from .conftest import FloatModel
from .graphs import Network, arrays_of, frame_of, ranges_on, sqnr_db, values_of

SMALLEST_NORMAL = 2.0**-14


class Int8Graph:
    """A graph and who gives and reads its tensors."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.arrays = arrays_of(model)
        self.nodes = {node.name: node for node in model.graph.node}
        self.producers = {name: node for node in model.graph.node for name in node.output}

    def readers(self, name: str) -> list[NodeProto]:
        return [node for node in self.model.graph.node if name in node.input]

    def scale_of(self, name: str) -> float:
        """Of a tensor that is quantised."""
        return float(self.arrays[f"{name}.scale"])

    def is_quantised(self, node: str, index: int) -> bool:
        """Whether a node reads its input through a pair."""
        producer = self.producers.get(self.nodes[node].input[index])
        return producer is not None and producer.op_type == "DequantizeLinear"

    def pairs(self) -> Iterator[tuple[NodeProto, NodeProto]]:
        """Of activations."""
        for node in self.model.graph.node:
            if node.op_type == "QuantizeLinear":
                (dequantise,) = self.readers(node.output[0])
                yield node, dequantise


def int8_of(network: Network, *outputs: str, **options: Any) -> Int8Graph:
    model = network.model(*outputs)
    int8 = quantise(model, ranges_on(model, frame_of()), target="tensorrt", **options)
    onnx.checker.check_model(int8, full_check=True)
    return Int8Graph(int8)


def residual() -> Network:
    """A stem, a block with a projected shortcut, a block with a plain one, and a head."""
    network = Network()
    x = network.relu(network.conv(network.pixels, 16, "stem"), "stem.Relu")
    x = network.layer("MaxPool", x, name="pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    shortcut = network.conv(x, 32, "projection", kernel=1)
    y = network.relu(network.conv(x, 32, "conv1"), "conv1.Relu")
    x = network.relu(network.layer("Add", network.conv(y, 32, "conv2"), shortcut, name="sum1"), "sum1.Relu")
    y = network.relu(network.conv(x, 32, "conv3"), "conv3.Relu")
    x = network.relu(network.layer("Add", x, network.conv(y, 32, "conv4"), name="sum2"), "sum2.Relu")
    network.conv(network.relu(network.conv(x, 16, "trunk"), "trunk.Relu"), 2, "heatmap", kernel=1)
    return network


def test_quantisers_stand_where_tensorrt_fuses_them() -> None:
    graph = int8_of(residual(), "heatmap")
    quantised = {quantise.input[0] for quantise, _ in graph.pairs()}
    # Inputs of convolutions and shortcuts; not `conv2` nor `conv4`, which are fused with their additions.
    assert quantised == {
        "stem.Relu", "pool", "conv1.Relu", "projection", "sum1.Relu", "conv3.Relu", "sum2.Relu"
    }  # fmt: skip
    assert not graph.is_quantised("sum1", 0) and graph.is_quantised("sum1", 1)
    assert graph.is_quantised("sum2", 0) and not graph.is_quantised("sum2", 1)
    assert not graph.is_quantised("stem", 0) and not graph.is_quantised("heatmap", 0)


def test_nothing_stands_between_a_convolution_and_its_relu() -> None:
    graph = int8_of(residual(), "heatmap")
    for node in graph.model.graph.node:
        if node.op_type == "Relu":
            assert graph.producers[node.input[0]].op_type in ("Conv", "Add")


def test_a_tensor_has_one_pair_for_all_its_readers() -> None:
    graph = int8_of(residual(), "heatmap")
    sources = [quantise.input[0] for quantise, _ in graph.pairs()]
    assert len(sources) == len(set(sources))
    assert {node.name for node in graph.readers("sum1.Relu.dequantized")} == {"conv3", "sum2"}


def test_an_addition_without_a_convolution_of_its_own_is_quantised_on_both_sides() -> None:
    network = Network()
    x = network.relu(network.conv(network.pixels, 16, "first"), "first.Relu")
    up = network.layer("Add", network.relu(network.conv(x, 16, "second"), "second.Relu"), x, name="sum")
    network.conv(network.conv(up, 16, "third"), 2, "heatmap", kernel=1)
    graph = int8_of(network, "heatmap")
    assert graph.is_quantised("sum", 0) and graph.is_quantised("sum", 1)


def test_an_addition_that_nothing_int8_reads_stays_as_it_is() -> None:
    network = Network()
    x = network.relu(network.conv(network.pixels, 16, "first"), "first.Relu")
    x = network.layer("Add", network.conv(x, 16, "second"), x, name="sum")
    network.conv(x, 2, "heatmap", kernel=1)
    graph = int8_of(network, "heatmap")
    assert graph.is_quantised("second", 0) and not graph.is_quantised("sum", 1)


def test_all_is_signed_and_symmetric_and_biases_stay_in_float() -> None:
    graph = int8_of(residual(), "heatmap")
    points = {name: array for name, array in graph.arrays.items() if name.endswith(".zero_point")}
    assert points and all(array.dtype == np.int8 and not array.any() for array in points.values())
    assert {array.dtype for name, array in graph.arrays.items() if name.endswith(".bias")} == {np.dtype(np.float32)}
    steps = [array for name, array in graph.arrays.items() if name.endswith(".quantized")]
    assert len(steps) == 6 and all(array.dtype == np.int8 and array.min() >= -127 for array in steps)


def test_weights_have_a_scale_for_each_output_channel() -> None:
    network = Network()
    x = network.relu(network.conv(network.pixels, 16, "first"), "first.Relu")
    x = network.relu(network.up(network.conv(x, 24, "conv"), 32, "up"), "up.Relu")
    network.conv(x, 2, "heatmap", kernel=1)
    graph = int8_of(network, "heatmap")
    for name, axis, channels in (("conv", 0, 24), ("up", 1, 32)):
        dequantise = graph.producers[graph.nodes[name].input[1]]
        assert helper.get_node_attr_value(dequantise, "axis") == axis
        assert graph.arrays[f"{name}.weight.scale"].shape == (channels,)
        assert graph.arrays[f"{name}.weight.quantized"].shape[axis] == channels


def concatenating() -> Network:
    """Maps of very different ranges, one of them pooled, one upsampled, meet in one convolution."""
    network = Network()
    x = network.relu(network.conv(network.pixels, 16, "first"), "first.Relu")
    small = network.layer("MaxPool", x, name="pool", kernel_shape=[2, 2], strides=[2, 2])
    large = network.layer("Mul", small, network.array("factor", (1,), scale=100.0), name="large")
    scales = network.constant([1.0, 1.0, 2.0, 2.0])
    up = network.layer("Resize", large, "", scales, name="up", mode="nearest")
    x = network.layer("Concat", x, up, name="both", axis=1, channels=32)
    network.conv(network.conv(x, 16, "root"), 2, "heatmap", kernel=1)
    return network


def test_what_meets_in_a_concat_or_is_only_moved_has_one_scale() -> None:
    graph = int8_of(concatenating(), "heatmap")
    assert {quantise.input[0] for quantise, _ in graph.pairs()} == {"first.Relu", "large", "up", "both"}
    largest = max(abs(bounds) for bounds in ranges_of_concatenating())
    scales = {graph.scale_of(name) for name in ("first.Relu", "large", "up", "both")}
    assert scales == {float(scale_in_half(largest))}
    assert graph.is_quantised("both", 0) and graph.is_quantised("both", 1) and graph.is_quantised("up", 0)
    # `pool` feeds nothing in INT8, so that it stays as it is.
    assert not graph.is_quantised("pool", 0)


def ranges_of_concatenating() -> list[float]:
    ranges = ranges_on(concatenating().model("heatmap"), frame_of())
    return [end for name in ("first.Relu", "large") for end in (ranges[name].low, ranges[name].high)]


def test_named_nodes_stay_in_float() -> None:
    graph = int8_of(residual(), "heatmap", float_nodes=["conv3", "trunk"])
    assert not graph.is_quantised("conv3", 0) and not graph.is_quantised("trunk", 0)
    assert graph.nodes["conv3"].input[1] == "conv3.weight"
    # The second sum is read in float now, so that its shortcut is not quantised either.
    assert not graph.is_quantised("sum2", 0)


def test_a_missing_range_is_named() -> None:
    model = residual().model("heatmap")
    ranges = ranges_on(model, frame_of())
    del ranges["projection"]
    with pytest.raises(CalibrationError, match=r"have none for tensor 'projection'.*Calibrate again"):
        quantise(model, ranges, target="tensorrt")


def test_the_model_is_not_changed() -> None:
    model = residual().model("heatmap")
    before = model.SerializeToString(deterministic=True)
    quantise(model, ranges_on(model, frame_of()), target="tensorrt")
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("network", [residual, concatenating])
def test_it_is_close_to_float(network: Any) -> None:
    model = network().model("heatmap")
    frame = frame_of()
    int8 = quantise(model, ranges_on(model, frame), target="tensorrt")
    assert sqnr_db(values_of(model, frame)["heatmap"], values_of(int8, frame)["heatmap"]) > 25


@given(amax=st.floats(0.0, 1e6, allow_nan=False))
def test_scales_are_normal_numbers_of_fp16(amax: float) -> None:
    scale = scale_in_half(amax)
    assert scale.dtype == np.float32 and scale == np.float16(scale) and scale >= SMALLEST_NORMAL
    if amax >= SMALLEST_NORMAL * 127:
        assert abs(float(scale) * 127 - amax) <= 2**-11 * amax


def test_scales_beyond_fp16_are_its_limits() -> None:
    assert round_to_half(np.array([1e-9, 1e9], np.float32)).tolist() == [SMALLEST_NORMAL, 65504.0]


def test_a_channel_that_is_nearly_off_has_a_scale_that_fp16_holds() -> None:
    network = Network()
    x = network.relu(network.conv(network.pixels, 16, "first"), "first.Relu")
    network.conv(network.conv(x, 16, "second"), 2, "heatmap", kernel=1)
    model = network.model("heatmap")
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "second.weight")
    weight = onnx.numpy_helper.to_array(tensor).copy()
    weight[3], weight[4] = 0.0, weight[4] * 1e-7
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    arrays = arrays_of(quantise(model, ranges_on(model, frame_of()), target="tensorrt"))
    scale = arrays["second.weight.scale"]
    assert (scale == scale.astype(np.float16)).all() and (scale >= SMALLEST_NORMAL).all()
    assert not arrays["second.weight.quantized"][3:5].any()


def test_float_weights_for_importers_without_int8_constants_give_the_same() -> None:
    int8 = int8_of(residual(), "heatmap").model
    floats = ModelProto()
    floats.CopyFrom(int8)
    with_float_weights(floats.graph)
    onnx.checker.check_model(floats, full_check=True)
    assert not any(array.dtype == np.int8 and array.ndim > 1 for array in arrays_of(floats).values())
    np.testing.assert_array_equal(
        values_of(floats, frame_of())["heatmap"], values_of(int8, frame_of())["heatmap"], strict=True
    )


@dataclass(frozen=True)
class Real:
    """A network of `train`, with random weights, at a size other than the traced one."""

    model: ModelProto
    spec: ModelSpec
    wh: tuple[int, int]

    @property
    def sized(self) -> ModelProto:
        return at_size(self.model, self.spec, self.wh)[0]

    def int8_file(self, float_type: Any) -> ModelProto:
        """As `centeredge export` writes it."""
        form = Form("tensorrt-rtx", "int8", wh=self.wh, int8_float=float_type)
        return convert(self.model, self.spec, form, ranges=ranges_on(self.sized, frame_of(self.wh)))[0]


@pytest.fixture(
    scope="module",
    params=[
        "edge_n",
        pytest.param("resdcn_18", marks=pytest.mark.slow),
        pytest.param("dlav0_34", marks=pytest.mark.slow),
    ],
)
def real(request: pytest.FixtureRequest, float_model: FloatModel) -> Real:
    if request.param == "edge_n":
        return Real(float_model.proto, float_model.spec, (64, 96))
    model = trace(*lively_model(request.param, task="detection"))
    return Real(model, ModelSpec.from_json(metadata_of(model)[ONNX_METADATA_KEY]), (96, 64))


def test_every_weight_is_int8_or_there_is_a_reason(real: Real) -> None:
    placement = place(real.model.graph, "tensorrt")
    weighted = {node.name for node in real.model.graph.node if node.op_type in ("Conv", "ConvTranspose", "DeformConv")}
    assert placement.int8 | placement.reasons.keys() == weighted
    assert placement.int8.isdisjoint(placement.reasons)
    assert len(placement.int8) > len(weighted) / 2


def test_real_networks_keep_the_rules_and_are_close_to_float(real: Real) -> None:
    frame = frame_of(real.wh)
    graph = Int8Graph(quantise(real.sized, ranges_on(real.sized, frame), target="tensorrt"))
    for quantise_node, _ in graph.pairs():
        producer = graph.producers[quantise_node.input[0]]
        readers = {node.op_type for node in graph.readers(producer.output[0])}
        assert producer.op_type not in ("Conv", "ConvTranspose") or "Relu" not in readers
    for name in place(real.model.graph, "tensorrt").int8:
        assert graph.is_quantised(name, 0) and graph.is_quantised(name, 1)
    for node in graph.model.graph.node:
        sources = [name.removesuffix(".dequantized") for name in node.input if name.endswith(".dequantized")]
        if node.op_type in ("Concat", "MaxPool", "Resize") and sources:
            moved = [name for name in (*sources, *node.output) if f"{name}.scale" in graph.arrays]
            assert len({graph.scale_of(name) for name in moved}) == 1, node.name
        if node.op_type == "DeformConv":
            assert not sources
    assert [output.name for output in graph.model.graph.output] == [head.name for head in real.spec.heads]
    for name, expected in values_of(real.sized, frame).items():
        assert sqnr_db(expected, values_of(graph.model, frame)[name]) > 15, name  # random weights amplify noise


def test_fp32_and_fp16_typed_files_hold_the_same_integers_and_scales(real: Real) -> None:
    full, half = (arrays_of(real.int8_file(float_type)) for float_type in ("fp32", "fp16"))
    integers = {name: array for name, array in full.items() if array.dtype == np.int8}
    scales = {name: array for name, array in full.items() if name.endswith(".scale")}
    assert integers and scales
    for name, array in {**integers, **scales}.items():
        np.testing.assert_array_equal(half[name].astype(array.dtype), array, err_msg=name)
    assert any(half[name].dtype == np.float16 for name in scales)


@pytest.mark.parametrize("float_type", ["fp32", "fp16"])
def test_tensorrt_rtx_builds_it(real: Real, float_type: str) -> None:
    outputs = build_with_rtx(real.int8_file(float_type)).outputs
    assert {kind for _, kind in outputs.values()} == {"float32", "int32"}  # values, and where the peaks are


def test_tensorrt_rtx_builds_transposed_convolutions_and_float_weights() -> None:
    network = Network()
    x = network.relu(network.conv(network.layer("Identity", network.pixels, name="x"), 16, "first"), "first.Relu")
    x = network.relu(network.up(x, 32, "up"), "up.Relu")
    network.conv(network.conv(x, 16, "second"), 2, "heatmap", kernel=1)
    int8 = int8_of(network, "heatmap").model
    with_float_weights(int8.graph)
    cast_first(int8)
    assert build_with_rtx(int8).plan


def cast_first(model: ModelProto) -> None:
    """Swap Transpose and Cast, as `export.conversion` does."""
    transpose, cast = model.graph.node[:2]
    cast.input[0], cast.output[0] = "frame", "Cast.first"
    transpose.input[0], transpose.output[0] = "Cast.first", "Cast"
    first = NodeProto.FromString(cast.SerializeToString())
    cast.CopyFrom(transpose)
    model.graph.node[0].CopyFrom(first)
    del model.graph.value_info[:]
