"""Deformable convolution against a literal loop over its definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from train.models.deform_conv import (
    DeformConv2d,
    deform_conv,
    gather_then_project,
    grid_sample_taps,
    project_then_gather,
)

Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
FORMS: list[Form] = [deform_conv, project_then_gather, gather_then_project, grid_sample_taps]


def _literal(x: Tensor, offsets: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Cell by cell, tap by tap, corner by corner, in float64."""
    x, offsets, mask, weight, bias = (tensor.detach().double() for tensor in (x, offsets, mask, weight, bias))
    batch, _, height, width = x.shape
    out = bias.view(1, -1, 1, 1).repeat(batch, 1, height, width)
    for b, i, j, tap in product(range(batch), range(height), range(width), range(9)):
        y = i + tap // 3 - 1 + float(offsets[b, 2 * tap, i, j])
        z = j + tap % 3 - 1 + float(offsets[b, 2 * tap + 1, i, j])
        for v, u in product((math.floor(y), math.floor(y) + 1), (math.floor(z), math.floor(z) + 1)):
            if 0 <= v < height and 0 <= u < width:
                share = (1 - abs(y - v)) * (1 - abs(z - u)) * mask[b, tap, i, j]
                out[b, :, i, j] += share * (weight[:, :, tap // 3, tap % 3] @ x[b, :, v, u])
    return out


def _arguments(
    *, channels: int = 5, out_channels: int = 4, batch: int = 2, hw: tuple[int, int] = (5, 6), reach: float = 3.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    height, width = hw
    return (
        torch.randn(batch, channels, height, width),
        reach * torch.randn(batch, 18, height, width),
        torch.rand(batch, 9, height, width),
        torch.randn(out_channels, channels, 3, 3),
        torch.randn(out_channels),
    )


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("channels", "out_channels"), [(5, 4), (3, 3), (2, 6)])
def test_it_equals_a_literal_loop(form: Form, channels: int, out_channels: int) -> None:
    torch.manual_seed(0)
    arguments = _arguments(channels=channels, out_channels=out_channels)
    found = form(*arguments)
    assert found.shape == (2, out_channels, 5, 6) and found.dtype == torch.float32
    assert _difference(found, _literal(*arguments)) < 1e-5


@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 3),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    reach=st.sampled_from([0.0, 0.3, 2.0, 50.0]),
    whole=st.booleans(),
)
def test_all_forms_are_one(seed: int, batch: int, height: int, width: int, reach: float, whole: bool) -> None:
    """For all sizes, and offsets that hit cells exactly or lie far outside."""
    torch.manual_seed(seed)
    x, offsets, mask, weight, bias = _arguments(batch=batch, hw=(height, width), reach=reach)
    offsets = offsets.round() if whole else offsets
    arguments = [tensor.double() for tensor in (x, offsets, mask, weight, bias)]
    first, *others = (form(*arguments) for form in FORMS)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_without_offsets_it_is_a_convolution(form: Form) -> None:
    torch.manual_seed(0)
    x, offsets, mask, weight, bias = _arguments()
    expected = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    found = form(x, torch.zeros_like(offsets), torch.ones_like(mask), weight, bias)
    assert _difference(found, expected) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_everything_are_right(form: Form) -> None:
    torch.manual_seed(0)
    x, offsets, mask, weight, bias = _arguments(channels=3, out_channels=2, batch=1, hw=(3, 4), reach=1.5)
    # Between cells: on a cell the derivative by the offset jumps, and finite differences see both sides.
    offsets = offsets.floor() + 0.1 + 0.8 * torch.rand_like(offsets)
    arguments = tuple(tensor.double().requires_grad_() for tensor in (x, offsets, mask, weight, bias))
    assert torch.autograd.gradcheck(form, arguments)


def test_gradients_equal_those_of_pytorchs_own_sampling() -> None:
    torch.manual_seed(0)
    arguments = [tensor.requires_grad_() for tensor in _arguments(channels=8, out_channels=8, hw=(9, 7))]
    pull = torch.randn(2, 8, 9, 7)
    expected = torch.autograd.grad((grid_sample_taps(*arguments) * pull).sum(), arguments)
    for form in (project_then_gather, gather_then_project):
        found = torch.autograd.grad((form(*arguments) * pull).sum(), arguments)
        assert all(_difference(one, other) < 1e-5 for one, other in zip(found, expected, strict=True))


def _layer(channels: int = 6, out_channels: int = 4) -> DeformConv2d:
    """One with offsets of a few cells."""
    torch.manual_seed(0)
    layer = DeformConv2d(channels, out_channels)
    torch.nn.init.normal_(layer.conv_offset_mask.weight, std=0.2)
    return layer


def test_the_layer_reads_its_27_channels_as_the_official_one() -> None:
    layer = _layer()
    assert {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()} == {
        "weight": (4, 6, 3, 3),
        "bias": (4,),
        "conv_offset_mask.weight": (27, 6, 3, 3),
        "conv_offset_mask.bias": (27,),
    }
    x = torch.randn(1, 6, 5, 4)
    first, second, third = layer.conv_offset_mask(x).chunk(3, dim=1)
    expected = _literal(x, torch.cat([first, second], dim=1), torch.sigmoid(third), layer.weight, layer.bias)
    assert _difference(layer(x), expected) < 1e-5


def test_a_fresh_layer_is_half_a_convolution() -> None:
    layer = DeformConv2d(6, 4)
    x = torch.randn(2, 6, 5, 5)
    torch.testing.assert_close(layer(x), 0.5 * torch.nn.functional.conv2d(x, layer.weight, padding=1))


@pytest.mark.parametrize("out_channels", [4, 8])
def test_channels_last_gives_the_same(out_channels: int) -> None:
    layer = _layer(8, out_channels)
    x = torch.randn(2, 8, 7, 9)
    expected = layer(x)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert _difference(layer(x.contiguous(memory_format=torch.channels_last)), expected) < 1e-5


@pytest.mark.parametrize("out_channels", [4, 8])
def test_under_autocast_it_samples_in_float32(out_channels: int) -> None:
    layer = _layer(8, out_channels)
    x = torch.randn(2, 8, 16, 16, requires_grad=True)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    assert _difference(found, expected) < 0.1
    found.float().square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e30, 1e30])
def test_a_network_that_diverged_does_not_read_outside_the_map(value: float) -> None:
    x, offsets, mask, weight, bias = _arguments()
    offsets[0, 0, 0, 0] = value
    found = deform_conv(x, offsets, mask, weight, bias)
    assert torch.isfinite(found[1]).all()
    assert math.isfinite(value) or not torch.isfinite(found[0, :, 0, 0]).any()
    assert not math.isfinite(value) or torch.isfinite(found).all()
