"""Which operators run in INT8 for each runtime, and what is said of the others."""

from __future__ import annotations

import pytest

from calibration.placement import place
from sdk.errors import ConfigError

from .graphs import Network


def channels_of_all_kinds() -> Network:
    network = Network()
    x = network.relu(network.conv(network.pixels, 32, "first"), "first.Relu")
    x = network.relu(network.conv(x, 8, "to eight"), "to eight.Relu")
    x = network.relu(network.conv(x, 8, "eight, not square", kernel=(1, 3)), "n.Relu")
    x = network.relu(network.conv(x, 12, "to twelve"), "to twelve.Relu")
    x = network.relu(network.conv(x, 32, "from twelve"), "from twelve.Relu")
    x = network.conv(x, 32, "depthwise", group=32)
    network.conv(x, 3, "heatmap", kernel=1)
    return network


def test_narrow_convolutions_and_outputs_stay_in_float_for_tensorrt() -> None:
    placement = place(channels_of_all_kinds().model("heatmap").graph, "tensorrt")
    assert placement.int8 == {"to eight", "depthwise"}
    narrow = "it has fewer than 16 channels in or out, which integer kernels do not fill"
    assert placement.reasons == {
        **dict.fromkeys(["first", "eight, not square", "to twelve", "from twelve"], narrow),
        "heatmap": "it gives an output, which 256 steps would flatten",
    }


def test_onnx_runtime_takes_all_but_the_outputs() -> None:
    placement = place(channels_of_all_kinds().model("heatmap").graph)
    assert list(placement.reasons) == ["heatmap"]
    assert placement.int8 == {"first", "to eight", "eight, not square", "to twelve", "from twelve", "depthwise"}


def upsampling() -> Network:
    network = Network()
    x = network.relu(network.conv(network.pixels, 16, "first"), "first.Relu")
    x = network.up(x, 16, "up")
    x = network.up(x, 16, "depthwise up", group=16)
    x = network.up(x, 16, "small up", kernel=2)
    network.conv(x, 2, "offset", kernel=1)
    return network


def test_transposed_convolutions() -> None:
    graph = upsampling().model("offset").graph
    assert place(graph, "tensorrt").int8 == {"up", "small up"}
    assert "one scale for all" in place(graph, "tensorrt").reasons["depthwise up"]
    placement = place(graph, "onnxruntime")
    assert placement.int8 == {"first", "up"}
    assert "cannot be a convolution" in placement.reasons["depthwise up"]
    assert "cannot be a convolution" in placement.reasons["small up"]


def test_an_upsampled_output_stays_in_float() -> None:
    for target in ("onnxruntime", "tensorrt"):
        assert "gives an output" in place(upsampling().model("up").graph, target).reasons["up"]


def test_a_deformable_convolution_is_int8_where_its_products_are_few() -> None:
    network = Network()
    x = network.relu(network.conv(network.pixels, 32, "first"), "first.Relu")
    x = network.deform(x, 16, "to half")
    x = network.deform(x, 16, "to as many")
    network.conv(x, 2, "offset", kernel=1)
    graph = network.model("offset").graph
    onnxruntime = place(graph, "onnxruntime")
    assert onnxruntime.int8 == {"first", "to half"}
    assert "faster than so many products" in onnxruntime.reasons["to as many"]
    tensorrt = place(graph, "tensorrt")
    assert tensorrt.int8 == set()
    assert "FP32 and FP16 only" in tensorrt.reasons["to half"]
    for reasons in (onnxruntime.reasons, tensorrt.reasons):
        assert reasons["to half.conv_offset_mask.Conv"] == "it says where a deformable convolution samples"


def test_outputs_are_found_behind_a_split_and_a_sigmoid() -> None:
    network = Network()
    x = network.conv(network.pixels, 16, "first")
    network.layer("Sigmoid", network.conv(x, 16, "scores"), name="score")
    network.layer("Split", network.conv(x, 16, "all"), name="half", axis=1, num_outputs=1)
    for target in ("onnxruntime", "tensorrt"):
        assert {"scores", "all"} <= place(network.model("score", "half").graph, target).reasons.keys()


def test_one_cell_is_not_worth_it_for_tensorrt() -> None:
    network = Network()
    x = network.conv(network.pixels, 16, "first")
    mean = network.layer("GlobalAveragePool", x, name="mean")
    x = network.layer("Add", x, network.conv(mean, 16, "context", kernel=1), name="sum")
    network.conv(x, 2, "offset", kernel=1)
    graph = network.model("offset").graph
    assert "one cell" in place(graph, "tensorrt").reasons["context"]
    assert place(graph).int8 == {"first", "mean", "context", "sum"}


def test_named_nodes_stay_in_float() -> None:
    graph = channels_of_all_kinds().model("heatmap").graph
    for target in ("onnxruntime", "tensorrt"):
        placement = place(graph, target, float_nodes=["to eight", "heatmap"])
        assert "to eight" not in placement.int8
        assert placement.reasons["to eight"] == placement.reasons["heatmap"] == "it was named to stay in float"


def test_unknown_names_are_refused() -> None:
    graph = channels_of_all_kinds().model("heatmap").graph
    with pytest.raises(ConfigError, match="no node 'third' that could stay in float"):
        place(graph, float_nodes=["third"])
    with pytest.raises(ConfigError, match="'openvino' is not known; there are onnxruntime, tensorrt"):
        place(graph, "openvino")  # type: ignore[arg-type]
