"""Deformable convolution from standard operators against ONNX's operator and against PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from calibration.deform_conv import DeformConvForm, lower_deform_convs
from calibration.errors import CalibrationError
from calibration.quantisation import shapes_of
from export.tracing import trace
from sdk.scenes import random_scene
from tests.builders import build_with_rtx
from tests.export.models import lively_model
from train.models.deform_conv import deform_conv

Array = npt.NDArray[Any]
LOWERED: list[DeformConvForm] = [form for form in get_args(DeformConvForm) if form != "operator"]
LAYER = "neck.0.DeformConv"


class Case:
    """One layer and what it reads."""

    def __init__(
        self,
        *,
        channels: int = 6,
        out_channels: int = 5,
        batch: int = 2,
        hw: tuple[int, int] = (7, 10),
        reach: float = 3.0,
        whole: bool = False,
        dtype: npt.DTypeLike = np.float32,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        offset = rng.uniform(-reach, reach, (batch, 18, *hw))
        weight = rng.normal(0, (9 * channels) ** -0.5, (out_channels, channels, 3, 3))
        self.feeds: dict[str, Array] = {
            "x": rng.normal(size=(batch, channels, *hw)).astype(dtype),
            "offset": (offset.round() if whole else offset).astype(dtype),
            "mask": rng.uniform(size=(batch, 9, *hw)).astype(dtype),
        }
        self.weight, self.bias = weight.astype(dtype), rng.normal(size=out_channels).astype(dtype)

    def model(self, form: DeformConvForm, *, opset: int = 19, batch: int | str = "batch") -> ModelProto:
        """The layer alone, of a symbolic batch."""
        nodes = [
            helper.make_node(
                "DeformConv",
                ["x", "neck.0.weight", "offset", "neck.0.bias", "mask"],
                [LAYER],
                name=LAYER,
                kernel_shape=[3, 3],
                pads=[1, 1, 1, 1],
            )
        ]
        constants = {"neck.0.weight": self.weight, "neck.0.bias": self.bias}
        hw = self.feeds["x"].shape[2:]
        element_type = helper.np_dtype_to_tensor_dtype(self.weight.dtype)
        values = {
            name: helper.make_tensor_value_info(name, element_type, [batch, channels, *hw])
            for name, channels in {"x": self.weight.shape[1], "offset": 18, "mask": 9, LAYER: len(self.bias)}.items()
        }
        initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
        graph = helper.make_graph(nodes, "layer", [values["x"], values["offset"], values["mask"]], [values[LAYER]])
        graph.initializer.extend(initializers)
        lower_deform_convs(graph, {"x": (0, self.weight.shape[1], *hw)}, form)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model

    def exact(self) -> Array:
        """What PyTorch says in float64."""
        arrays = (self.feeds["x"], self.feeds["offset"], self.feeds["mask"], self.weight, self.bias)
        result: Array = deform_conv(*(torch.from_numpy(array.astype(np.float64)) for array in arrays)).numpy()
        return result


@pytest.mark.parametrize("form", LOWERED)
@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 2),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    reach=st.sampled_from([0.0, 0.3, 3.0, 14.0, 1e6]),
    whole=st.booleans(),
)
def test_every_form_is_the_operator(
    form: DeformConvForm, seed: int, batch: int, height: int, width: int, reach: float, whole: bool
) -> None:
    """For all sizes, and offsets that hit cells exactly or lie outside the map, near and far."""
    case = Case(seed=seed, batch=batch, hw=(height, width), reach=reach, whole=whole)
    found = _run(case.model(form), case.feeds)
    assert found.dtype == np.float32
    assert _difference(found, _run(case.model("operator"), case.feeds)) < 1e-5
    assert _difference(found, case.exact()) < 1e-5


@pytest.mark.parametrize("form", LOWERED)
@pytest.mark.parametrize("hw", [(128, 128), (96, 160)])
def test_large_maps_of_noise_are_read_as_precisely(form: DeformConvForm, hw: tuple[int, int]) -> None:
    """The worst there is: values change from cell to cell, and the last places have the fewest digits left."""
    case = Case(hw=hw, batch=1, reach=14.0)
    exact = case.exact()
    found = _difference(_run(case.model(form), case.feeds), exact)
    assert found < 2 * _difference(_run(case.model("operator"), case.feeds), exact) < 2e-5


@pytest.mark.parametrize("form", LOWERED)
@pytest.mark.parametrize("hw", [(128, 128), (16, 24)])
def test_half_precision_costs_values_but_not_places(form: DeformConvForm, hw: tuple[int, int]) -> None:
    """Places in FP16 would be wrong by 0.02 of the largest value on the large map."""
    case = Case(hw=hw, batch=1, reach=3.0, dtype=np.float16)
    found = _run(case.model(form), case.feeds)
    assert found.dtype == np.float16
    assert _difference(found, case.exact()) < 1e-3


@pytest.mark.parametrize("form", LOWERED)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_one_graph_takes_every_batch(form: DeformConvForm, dtype: type) -> None:
    case = Case(batch=3, dtype=dtype)
    session = _session(case.model(form))
    together = session.run(None, case.feeds)[0]
    alone = [session.run(None, {name: array[[i]] for name, array in case.feeds.items()})[0] for i in range(3)]
    np.testing.assert_allclose(np.concatenate(alone), together, rtol=0, atol=1e-6 if dtype == np.float32 else 1e-2)


@pytest.mark.parametrize("form", LOWERED)
@pytest.mark.parametrize("opset", [17, 18, 19])
def test_it_means_the_same_in_every_opset_that_targets_have(form: DeformConvForm, opset: int) -> None:
    case = Case()
    assert _difference(_run(case.model(form, opset=opset), case.feeds), case.exact()) < 1e-5


@pytest.mark.parametrize("form", LOWERED)
def test_tensors_around_the_layer_keep_their_names(form: DeformConvForm) -> None:
    graph = Case().model(form).graph
    assert not any(node.op_type == "DeformConv" for node in graph.node)
    assert graph.node[-1].output == [LAYER]
    assert all(name.startswith(LAYER) for node in graph.node for name in (node.name, *node.output))
    read = {name for node in graph.node for name in node.input}
    assert {"x", "offset", "mask", "neck.0.bias", "neck.0.weight.taps"} <= read
    assert {tensor.name for tensor in graph.initializer} <= read  # the 3x3 kernel is gone


def test_grid_sample_is_called_once_a_layer_and_ends_in_a_1x1_convolution() -> None:
    nodes = Case().model("grid_sample").graph.node
    assert [node.op_type for node in nodes].count("GridSample") == 1
    assert nodes[-1].op_type == "Conv"


def test_the_operator_form_leaves_the_operator() -> None:
    assert [node.op_type for node in Case().model("operator").graph.node] == ["DeformConv"]


@pytest.mark.parametrize("form", LOWERED)
def test_layers_of_one_weight_keep_one_weight(form: DeformConvForm) -> None:
    case = Case(channels=4, out_channels=4)
    model = case.model("operator")
    graph = model.graph
    second = onnx.NodeProto.FromString(graph.node[0].SerializeToString())
    second.name, second.input[0], second.output[0] = "neck.1.DeformConv", LAYER, "out"
    graph.node.append(second)
    graph.output[0].name = "out"
    expected = _run(model, case.feeds)
    lower_deform_convs(graph, dict.fromkeys(("x", LAYER), case.feeds["x"].shape), form)
    assert _difference(_run(model, case.feeds), expected) < 1e-5
    assert [tensor.name for tensor in graph.initializer].count("neck.0.weight.taps") == 1


def _set_strides(graph: GraphProto) -> None:
    graph.node[0].attribute.append(helper.make_attribute("strides", [2, 2]))


def _drop_padding(graph: GraphProto) -> None:
    del graph.node[0].attribute[1]


def _drop_mask(graph: GraphProto) -> None:
    graph.node[0].input.pop()


def _calculate_weight(graph: GraphProto) -> None:
    graph.node.append(helper.make_node("Neg", ["neck.0.weight"], ["calculated"]))
    graph.node[0].input[1] = "calculated"


@pytest.mark.parametrize("form", LOWERED)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set_strides, r"5 inputs with .*'strides': \[2, 2\].*expected 5 inputs"),
        (_drop_padding, r"with \{'kernel_shape': \[3, 3\]\}, expected"),
        (_drop_mask, "4 inputs"),
        (_calculate_weight, "calculated, the weight of neck.0.DeformConv, is no constant"),
    ],
)
def test_other_deformable_convolutions_are_refused(form: DeformConvForm, change: Any, message: str) -> None:
    graph = Case().model("operator").graph
    change(graph)
    with pytest.raises(CalibrationError, match=message):
        lower_deform_convs(graph, {"x": (2, 6, 7, 10)}, form)


@pytest.mark.parametrize("form", LOWERED)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("batch", [1, "batch"])
def test_tensorrt_rtx_builds_a_layer(form: DeformConvForm, dtype: type, batch: int | str) -> None:
    case = Case(channels=32, out_channels=16, hw=(24, 32), dtype=dtype)
    ((shape, kind),) = build_with_rtx(case.model(form, opset=17, batch=batch)).outputs.values()
    assert (shape, kind) == ((-1 if batch == "batch" else 1, 16, 24, 32), np.dtype(dtype).name)


@pytest.mark.parametrize(
    "architecture", ["resdcn_18", pytest.param("dla_34", marks=pytest.mark.slow)], ids=("resdcn_18", "dla_34")
)
def test_whole_networks_are_the_same_in_every_form(architecture: str) -> None:
    model, spec = lively_model(architecture, size=(128, 96))
    canonical = trace(model, spec)
    frame = random_scene(np.random.default_rng(0), spec.input.wh)[0][None]
    expected = _session(canonical).run(None, {"frame": frame})
    for form in LOWERED:
        lowered = _lowered(canonical, form)
        for head, found, wanted in zip(
            spec.heads, _session(lowered).run(None, {"frame": frame}), expected, strict=True
        ):
            assert _difference(found, wanted) < 1e-4, (form, head.name)
        kept = {name for node in lowered.graph.node for name in node.output}
        assert {name for node in canonical.graph.node for name in node.output} <= kept
        assert build_with_rtx(_from_pixels(lowered)).plan


def _lowered(canonical: ModelProto, form: DeformConvForm) -> ModelProto:
    lowered = ModelProto.FromString(canonical.SerializeToString())
    lower_deform_convs(lowered.graph, shapes_of(canonical), form)
    onnx.checker.check_model(lowered, full_check=True)
    return lowered


def _from_pixels(model: ModelProto) -> ModelProto:
    """Without the transpose and the cast of the frame, in whose order targets differ."""
    graph = model.graph
    pixels = next(node for node in graph.node if node.op_type == "Cast").output[0]
    shape = shapes_of(model)[pixels]
    del graph.node[:2]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(pixels, TensorProto.FLOAT, shape))
    return model


def _session(model: ModelProto) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(model: ModelProto, feeds: Mapping[str, Array]) -> Array:
    out: Array = _session(model).run(None, dict(feeds))[0]
    return out


def _difference(found: Array, expected: Array) -> float:
    """In parts of the largest expected value."""
    assert found.shape == expected.shape
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())
