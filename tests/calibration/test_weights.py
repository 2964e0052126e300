"""Weights as integers: the best scale of each channel, and biases that take back the mean shift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto

from calibration.config import Target, WeightOptions
from calibration.placement import Placement
from calibration.quantisation import quantise
from calibration.weights import (
    CHANNEL_AXIS,
    channel_means,
    correct_biases,
    in_steps,
    weight_scales,
)
from sdk.errors import ConfigError
from sdk.preprocessing import prepare

from .conftest import FloatModel
from .graphs import Network, arrays_of, frame_of, ranges_on, values_of


def heavy_tailed(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


def rounding_errors(weight: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    """Squared, of each output channel."""
    rows = np.moveaxis(weight, axis, 0)
    steps = np.moveaxis(in_steps(weight, scale, axis), axis, 0)
    errors = steps * scale.reshape(-1, *[1] * (weight.ndim - 1)) - rows
    return np.asarray(np.square(errors).reshape(len(rows), -1).sum(axis=1))


@given(seed=st.integers(0, 1000), axis=st.integers(0, 1))
def test_the_search_finds_a_scale_that_is_at_least_as_good(seed: int, axis: int) -> None:
    weight = heavy_tailed((6, 5, 3, 3), seed)
    full, best = (weight_scales(weight, axis, search=search) for search in (False, True))
    assert full.shape == best.shape == (weight.shape[axis],)
    assert (rounding_errors(weight, best, axis) <= rounding_errors(weight, full, axis)).all()
    assert (best <= full).all() and (best >= full / 2).all()


def test_the_search_clips_an_outlier_that_costs_all_others_their_steps() -> None:
    weight = np.random.default_rng(0).uniform(-1, 1, (1, 200_000, 1, 1)).astype(np.float32)
    weight[0, 0] = 1.3  # to clip it costs 0.09; steps smaller by a quarter save 0.7 elsewhere
    full, best = (weight_scales(weight, 0, search=search)[0] for search in (False, True))
    assert full == pytest.approx(1.3 / 127)
    assert best == pytest.approx(1.0 / 127, rel=0.03)


@given(seed=st.integers(0, 1000))
def test_without_clipping_no_weight_is_off_by_more_than_half_a_step(seed: int) -> None:
    weight = heavy_tailed((4, 3, 3, 3), seed)
    scale = weight_scales(weight, 0, search=False)
    steps = in_steps(weight, scale, 0)
    assert steps.dtype == np.int8 and np.abs(steps.astype(int)).max() == 127
    assert (np.abs(steps * scale.reshape(-1, 1, 1, 1) - weight) <= 0.501 * scale.reshape(-1, 1, 1, 1)).all()


@pytest.mark.parametrize("search", [True, False])
def test_a_channel_that_is_off(search: bool) -> None:
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[1] = 0.5
    scale = weight_scales(weight, 0, search=search)
    assert np.isfinite(scale).all() and (scale > 0).all()
    assert in_steps(weight, scale, 0).reshape(2, 3).tolist() == [[0, 0, 0], [127, 127, 127]]


def constant_network() -> ModelProto:
    """Channels that are constant, so that their mean is all that there is: a convolution, and an upsampling one."""
    network = Network((16, 16))
    x = network.layer("Mul", network.pixels, network.array("zero", (1,), scale=0.0), name="black", channels=3)
    x = network.layer("Add", x, network.array("colour", (1, 3, 1, 1), scale=1.0), name="one colour")
    x = network.conv(x, 16, "widen", kernel=1)
    x = network.relu(x, "widen.Relu")
    network.conv(x, 16, "conv")
    network.up(x, 16, "up")
    return network.model("conv", "up")


def test_bias_correction_takes_back_the_shift_of_a_constant_input() -> None:
    model, frame = constant_network(), frame_of((16, 16))
    int8 = frozenset({"conv", "up"})
    values = values_of(model, frame, "widen.Relu")
    means = {"widen.Relu": values["widen.Relu"].mean(axis=(0, 2, 3), dtype=np.float64)}
    compensated = ModelProto()
    compensated.CopyFrom(model)
    correct_biases(compensated.graph, Placement(int8, {}), means, search=False)
    shifted, corrected = (with_rounded_weights(float_model, int8) for float_model in (model, compensated))
    for name in ("conv", "up"):
        inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # padding is not corrected for
        expected = values[name][inner].mean(axis=(0, 2, 3))
        before = np.abs(values_of(shifted, frame)[name][inner].mean(axis=(0, 2, 3)) - expected).max()
        after = np.abs(values_of(corrected, frame)[name][inner].mean(axis=(0, 2, 3)) - expected).max()
        assert after < 1e-5 < before


def with_rounded_weights(model: ModelProto, names: frozenset[str]) -> ModelProto:
    rounded = ModelProto()
    rounded.CopyFrom(model)
    arrays = arrays_of(model)
    for node in rounded.graph.node:
        if node.name not in names:
            continue
        axis = CHANNEL_AXIS[node.op_type]
        weight = arrays[node.input[1]]
        scale = weight_scales(weight, axis, search=False)
        shape = [-1 if dimension == axis else 1 for dimension in range(4)]
        values = in_steps(weight, scale, axis) * scale.reshape(shape)
        tensor = next(tensor for tensor in rounded.graph.initializer if tensor.name == node.input[1])
        tensor.raw_data = values.astype(np.float32).tobytes()
    return rounded


def test_channel_means_are_those_of_all_images(float_model: FloatModel) -> None:
    images = [np.full((48, 64, 3), grey, np.uint8) for grey in (40, 90, 200)]
    means = channel_means(float_model.proto, float_model.spec, iter(images))
    name = "stem.0.2.Relu"
    values = [
        values_of(float_model.proto, prepare(image, float_model.spec).tensor, name)[name].mean(axis=(0, 2, 3))
        for image in images
    ]
    np.testing.assert_allclose(means[name], np.mean(values, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_bias_correction_changes_biases_and_nothing_else(target: Target) -> None:
    network = Network()
    x = network.relu(network.conv(network.pixels, 16, "first"), "first.Relu")
    x = network.relu(network.conv(x, 16, "second"), "second.Relu")
    network.conv(x, 2, "offset", kernel=1)
    model = network.model("offset")
    ranges = ranges_on(model, frame_of())
    plain, corrected = (
        arrays_of(
            quantise(
                model,
                ranges,
                target=target,
                weights=WeightOptions(bias_correction=correction),
                means={"first.Relu": np.ones(16)},
            )
        )
        for correction in (False, True)
    )
    changed = set(plain.keys() ^ corrected.keys())
    changed |= {name for name in plain.keys() & corrected.keys() if not np.array_equal(plain[name], corrected[name])}
    assert changed and all(name.startswith("second.bias") for name in changed)


def test_bias_correction_needs_means() -> None:
    with pytest.raises(ConfigError, match=r"channel_means.* gives them"):
        quantise(constant_network(), {}, weights=WeightOptions(bias_correction=True))
