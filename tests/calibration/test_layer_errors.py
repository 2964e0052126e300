"""Errors layer by layer: against the same calculation in NumPy, for both targets, and what cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.config import Target, WeightOptions
from calibration.errors import CalibrationError
from calibration.layer_errors import LayerError, layer_errors
from calibration.methods import Range
from calibration.placement import place
from calibration.quantisation import quantise

from .conftest import FloatModel

Array = npt.NDArray[Any]
_SIDE = 16


def _model(nodes: Sequence[onnx.NodeProto], weights: dict[str, Array], channels: int, side: int) -> onnx.ModelProto:
    """A graph from `frame`, uint8 channels last, to `y`."""
    start = [
        helper.make_node("Transpose", ["frame"], ["Transpose"], name="Transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["Transpose"], ["Cast"], name="Cast", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        [*start, *nodes],
        "small",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, _SIDE, _SIDE, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, side, side])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def two_convs() -> onnx.ModelProto:
    """Two convolutions 1x1, the first with a ReLU, and a sum with what came before them."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(0, 0.05, (16, 3, 1, 1)), "w2": rng.normal(0, 0.3, (16, 16, 1, 1))}
    nodes = [
        helper.make_node("Conv", ["Cast", "w1"], ["first"], name="first"),
        helper.make_node("Relu", ["first"], ["relu"], name="relu"),
        helper.make_node("Conv", ["relu", "w2"], ["second"], name="second"),
        helper.make_node("Add", ["second", "relu"], ["sum"], name="sum"),
        helper.make_node("Neg", ["sum"], ["y"], name="y"),
    ]
    return _model(nodes, weights, 16, _SIDE)


def upsampling() -> onnx.ModelProto:
    """A transposed convolution that doubles the map, between two others."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(0, 0.01, (16, 3, 3, 3)),
        "w2": rng.normal(0, 0.2, (16, 24, 4, 4)),
        "w3": rng.normal(0, 0.1, (16, 24, 3, 3)),
        "w4": rng.normal(0, 0.2, (2, 16, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["Cast", "w1"], ["a"], name="a", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["a.Relu"], name="a.Relu"),
        helper.make_node("ConvTranspose", ["a.Relu", "w2"], ["b"], name="b", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b"], ["b.Relu"], name="b.Relu"),
        helper.make_node("Conv", ["b.Relu", "w3"], ["c"], name="c", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "w4"], ["y"], name="y"),
    ]
    return _model(nodes, weights, 2, _SIDE)


def frames(count: int = 3, *, side: int = _SIDE) -> list[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, (1, side, side, 3), np.uint8) for _ in range(count)]


def activations(model: onnx.ModelProto, frame: Array) -> dict[str, Array]:
    """All tensors of a float graph."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output]
    del extended.graph.output[:]
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(extended.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(None, {"frame": frame}), strict=True))


def observed(model: onnx.ModelProto, seen: Sequence[Array]) -> dict[str, Range]:
    """Ranges that hold all that was seen."""
    values = [activations(model, frame) for frame in seen]
    return {name: Range(*_limits([value[name] for value in values])) for name in values[0]}


def _limits(arrays: Sequence[Array]) -> tuple[float, float]:
    return min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)


def by_node(rows: list[LayerError]) -> dict[str, LayerError]:
    assert len({row.node for row in rows}) == len(rows)
    return {row.node: row for row in rows}


def rounded(values: Array, bounds: Range) -> Array:
    low, high = min(bounds.low, 0.0), max(bounds.high, 0.0)
    step = (high - low) / 255
    zero = np.round(-low / step)
    result: Array = (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step
    return result


def rounded_weight(weight: Array) -> Array:
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    result: Array = np.round(weight / step) * step
    return result


def decibels(exact: Array, found: Array) -> float:
    return float(10 * np.log10((exact**2).sum() / ((exact - found) ** 2).sum()))


def test_the_figures_are_those_of_the_same_calculation_by_hand() -> None:
    model, (frame, *_) = two_convs(), frames(1)
    ranges = observed(model, [frame])
    ranges["relu"] = Range(0.0, 0.6 * ranges["relu"].high)  # clips, so that errors accumulate
    w1, w2 = (numpy_helper.to_array(tensor)[:, :, 0, 0].astype(float) for tensor in model.graph.initializer)
    x = frame[0].reshape(-1, 3).T.astype(float)
    relu = np.maximum(w1 @ x, 0)
    second = w2 @ relu
    int8_relu = rounded(np.maximum(rounded_weight(w1) @ x, 0), ranges["relu"])
    int8_second = rounded(rounded_weight(w2) @ int8_relu, ranges["second"])
    own_second = rounded(rounded_weight(w2) @ rounded(relu, ranges["relu"]), ranges["second"])
    int8 = quantise(model, ranges, weights=WeightOptions(search=False))
    rows = by_node(layer_errors(model, int8, [frame]))
    assert rows["first"].sqnr_db == pytest.approx(decibels(relu, int8_relu), abs=0.05)
    assert rows["first"].own_sqnr_db == pytest.approx(rows["first"].sqnr_db)
    assert rows["second"].sqnr_db == pytest.approx(decibels(second, int8_second), abs=0.05)
    assert rows["second"].own_sqnr_db == pytest.approx(decibels(second, own_second), abs=0.05)
    cosine = (second * int8_second).sum() / np.sqrt((second**2).sum() * (int8_second**2).sum())
    assert rows["second"].cosine == pytest.approx(cosine, abs=1e-5)
    assert rows["second"].max_error == pytest.approx(np.abs(second - int8_second).max(), rel=0.02)
    assert rows["second"].max_value == pytest.approx(np.abs(second).max(), rel=1e-5)


def test_errors_accumulate_and_their_source_is_told_from_what_follows() -> None:
    model, seen = two_convs(), frames()
    ranges = observed(model, seen)
    good = by_node(layer_errors(model, quantise(model, ranges), seen))
    second = ranges["second"]
    bad_ranges = {**ranges, "second": Range(0.1 * second.low, 0.1 * second.high)}
    bad = by_node(layer_errors(model, quantise(model, bad_ranges), seen))
    assert bad["first"] == good["first"]
    assert bad["second"].own_sqnr_db < 10 < 35 < good["second"].own_sqnr_db
    assert bad["sum"].sqnr_db < good["sum"].sqnr_db - 10
    assert good["first"].tensor == "relu" and good["first"].operator == "Conv"


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("make", [two_convs, upsampling])
def test_every_layer_is_compared_in_both_forms(make: Any, target: Target) -> None:
    model, seen = make(), frames()
    ranges = observed(model, seen)
    rows = layer_errors(model, quantise(model, ranges, target=target), iter(seen))
    layers = [node.name for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "Add")]
    assert [row.node for row in rows if row.operator != "output"] == layers
    assert [row.node for row in rows if row.operator == "output"] == ([] if "y" in layers else ["y"])
    assert all(row.own_sqnr_db > 30 and row.cosine > 0.99 for row in rows)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_a_whole_network(float_model: FloatModel, target: Target) -> None:
    seen = frames(2, side=64)
    ranges = observed(float_model.proto, seen)
    rows = by_node(layer_errors(float_model.proto, quantise(float_model.proto, ranges, target=target), seen))
    convs = {node.name for node in float_model.proto.graph.node if node.op_type == "Conv"}
    assert convs <= rows.keys()
    assert {output.name for output in float_model.proto.graph.output} <= rows.keys()
    in_float = {name for name in convs if not rows[name].is_int8}
    assert "outputs.Conv" in in_float and in_float == set(place(float_model.proto.graph, target).reasons)
    assert min(row.own_sqnr_db for row in rows.values()) > 20
    assert rows["stages.0.0.conv1.Conv"].tensor == "stages.0.0.relu.Relu"


def test_a_model_has_no_error_beside_itself() -> None:
    for row in layer_errors(two_convs(), two_convs(), frames(1)):
        assert (row.sqnr_db, row.own_sqnr_db, row.max_error) == (math.inf, math.inf, 0.0)
        assert row.cosine == pytest.approx(1.0)
        assert not row.is_int8


def test_sums_of_frames_are_those_of_all_together() -> None:
    model, seen = two_convs(), frames(4)
    int8 = quantise(model, observed(model, seen))
    whole = by_node(layer_errors(model, int8, seen))["second"]
    noise = [10 ** (-by_node(layer_errors(model, int8, [frame]))["second"].sqnr_db / 10) for frame in seen]
    power = [float((activations(model, frame)["second"] ** 2).sum()) for frame in seen]
    assert 10 ** (-whole.sqnr_db / 10) == pytest.approx(np.average(noise, weights=power), rel=1e-3)


def test_what_cannot_be_compared_is_refused() -> None:
    model, seen = two_convs(), frames(1)
    int8 = quantise(model, observed(model, seen))
    with pytest.raises(CalibrationError, match="no frames"):
        layer_errors(model, int8, [])
    with pytest.raises(CalibrationError, match=r"no layer in common.*Quantise this one"):
        layer_errors(upsampling(), int8, seen)
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    weight = broken.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(np.full((16, 3, 1, 1), np.nan, np.float32), weight.name))
    with pytest.raises(CalibrationError, match=r"layer 'first' holds NaN.*Export from a sound checkpoint"):
        layer_errors(broken, int8, seen)
