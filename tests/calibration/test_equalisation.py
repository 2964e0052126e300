"""Cross-layer equalisation changes weights, and no value that leaves the network."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from calibration.equalisation import equalise
from export.verification import drawn_frames

from .conftest import FloatModel
from .graphs import Network, arrays_of, frame_of, values_of


def uneven_chain(*, activation: bool = True) -> ModelProto:
    """Three convolutions in a row; the channels of the first are a thousandfold apart."""
    network = Network()
    x = network.conv(network.pixels, 16, "first")
    x = network.relu(x, "first.Relu") if activation else x
    x = network.relu(network.conv(x, 16, "second"), "second.Relu")
    network.conv(x, 2, "offset", kernel=1)
    model = network.model("offset")
    scale_channels(model, np.geomspace(1e-3, 1.0, 16).astype(np.float32))
    return model


def scale_channels(model: ModelProto, factors: np.ndarray) -> None:
    for tensor in model.graph.initializer:
        if tensor.name in ("first.weight", "first.bias"):
            values = onnx.numpy_helper.to_array(tensor)
            shaped = factors.reshape(-1, *[1] * (values.ndim - 1))
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * shaped, tensor.name))


@pytest.mark.parametrize("activation", [True, False])
def test_outputs_are_equal_bit_by_bit(activation: bool) -> None:
    model = uneven_chain(activation=activation)
    equalised = equalise(model)
    for seed in range(3):
        frame = frame_of(seed=seed)
        expected, found = values_of(model, frame)["offset"], values_of(equalised, frame)["offset"]
        np.testing.assert_array_equal(found, expected)


def test_the_real_networks_outputs_are_equal_bit_by_bit(float_model: FloatModel) -> None:
    equalised = equalise(float_model.proto)
    assert arrays_differ(float_model.proto, equalised)
    for frame in drawn_frames(float_model.spec):
        expected, found = values_of(float_model.proto, frame), values_of(equalised, frame)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)


def test_both_sides_of_a_channel_become_alike() -> None:
    model = uneven_chain()
    before, after = arrays_of(model), arrays_of(equalise(model))

    def unevenness(arrays: dict[str, np.ndarray]) -> float:
        first = np.abs(arrays["first.weight"]).max(axis=(1, 2, 3))
        second = np.abs(arrays["second.weight"]).max(axis=(0, 2, 3))
        return float(np.abs(np.log2(first / second)).max())

    assert unevenness(before) > 8
    assert unevenness(after) <= 1.01  # to the nearest power of two


def test_the_model_itself_is_not_changed_and_a_second_time_changes_nothing() -> None:
    model = uneven_chain()
    copy = model.SerializeToString(deterministic=True)
    once = equalise(model)
    assert model.SerializeToString(deterministic=True) == copy
    assert not arrays_differ(once, equalise(once))


@pytest.mark.parametrize("case", ["read twice", "also an output", "groups", "one weight for two"])
def test_what_others_read_is_left_alone(case: str) -> None:
    network = Network()
    x = network.conv(network.pixels, 16, "first")
    x = network.relu(x, "first.Relu")
    group = 16 if case == "groups" else 1
    y = network.conv(x, 16, "second", group=group)
    outputs = ["sum"]
    if case == "read twice":
        y = network.layer("Add", x, y, name="sum")
    elif case == "one weight for two":
        network.layer("Conv", y, "second.weight", name="sum", pads=[1, 1, 1, 1])
    else:
        network.layer("Neg", y, name="sum")
    if case == "also an output":
        outputs.append("first.Relu")
    model = network.model(*outputs)
    assert not arrays_differ(model, equalise(model))


def arrays_differ(one: ModelProto, other: ModelProto) -> bool:
    arrays = arrays_of(other)
    return any(not np.array_equal(array, arrays[name]) for name, array in arrays_of(one).items())
