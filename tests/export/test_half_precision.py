"""Graphs typed FP16: which types they have, that they stay the model, and how exact they really are.

On a CPU, ONNX Runtime (1.31 on x86) calculates FP16 operators in FP32: it casts in front of each and behind it, and
drops the pairs that meet, at every level of optimisation, ORT_DISABLE_ALL too. What such a file gives is thus
nearly as exact as FP32, and says nothing of a GPU. What FP16 costs is measured on `rounded_like_half` of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.shape_inference import infer_shapes

from calibration.graph_writer import GraphWriter
from calibration.onnx_files import read_onnx
from export.errors import ExportError
from export.half_precision import rounded_like_half, to_half
from sdk.decoding import assemble, find_peaks
from sdk.detector import model_path
from sdk.preprocessing import prepare
from sdk.scenes import random_scene
from sdk.sources.images import folder_images, read_image
from sdk.spec import HeadSpec, InputSpec, ModelSpec
from tests.builders import build_with_rtx

Array = npt.NDArray[Any]
FLOAT, HALF, UINT8, INT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.INT8

# Of a head's largest value. Measured on networks of three kinds: at most 0.004, and 0.0006 in the mean.
MAX_DIFFERENCE, MAX_MEAN_DIFFERENCE = 1e-2, 1e-3

SPEC = ModelSpec(
    name="small",
    tasks=("detection",),
    input=InputSpec(width=16, height=12),
    stride=1,
    heads=(HeadSpec("heatmap", 2, "sigmoid"), HeadSpec("offset", 2, "none"), HeadSpec("size", 2, "none")),
    class_names=("car", "dog"),
)


@pytest.fixture(scope="module")
def shipped() -> tuple[ModelProto, ModelSpec]:
    return read_onnx(model_path("person-pose"))


# The types


def test_the_shipped_model_is_fp16_but_for_its_outputs_and_the_pooling(shipped: tuple[ModelProto, ModelSpec]) -> None:
    half = half_of(*shipped)
    types = types_of(half)
    assert types["frame"] == UINT8
    assert {types[head.name] for head in shipped[1].heads} == {FLOAT}
    fp32 = {node.name for node in half.graph.node if node.op_type != "Cast" and types[node.output[0]] == FLOAT}
    assert fp32 == {"context.pool.GlobalAveragePool", "outputs.Conv", "outputs.Split"}


def test_each_tensor_is_cast_once_where_it_crosses_a_border(shipped: tuple[ModelProto, ModelSpec]) -> None:
    casts = [node.input[0] for node in half_of(*shipped).graph.node if node.op_type == "Cast"]
    pooled = "context.pool.GlobalAveragePool"
    assert casts == ["Transpose", "stages.3.1.relu.Relu_2", pooled, "heads.trunk.2.Relu"]


def test_with_an_output_convolution_for_each_head_only_the_heatmap_stays_fp32() -> None:
    half = half_of(every_operator(), SPEC)
    types = types_of(half)
    fp32 = {node.op_type for node in half.graph.node if node.op_type != "Cast" and types[node.output[0]] == FLOAT}
    assert fp32 == {"Conv", "GlobalAveragePool"}
    assert types["heatmap.trunk"] == HALF
    assert types["heatmap"] == types["offset"] == types["size"] == FLOAT
    assert types["offset.float16"] == types["size.float16"] == HALF
    counts = Counter(node.op_type for node in half.graph.node)
    # Of the pixels, in and out of the pool, the trunk of the heatmap, and two outputs.
    assert counts["Cast"] == 6
    assert counts - Counter(Cast=5) == Counter(node.op_type for node in every_operator().graph.node)


def test_an_operator_that_a_runtime_calculates_coarsely_can_stay_fp32() -> None:
    half = half_of(every_operator(), SPEC, float_operators=("DeformConv",))
    types = types_of(half)
    deform_conv = next(node for node in half.graph.node if node.op_type == "DeformConv")
    assert {types[name] for name in (*deform_conv.input, *deform_conv.output)} == {FLOAT}
    assert types["offsets"] == types["stem"] == HALF
    assert_close(outputs_of(rounded_like_half(half)), outputs_of(every_operator()))


def test_tensors_and_constants_keep_their_names_and_values(shipped: tuple[ModelProto, ModelSpec]) -> None:
    """Ranges of activations, measured on the FP32 file, are found by name."""
    half = half_of(*shipped)
    assert names_of(shipped[0]) <= names_of(half)
    assert {tensor.name for tensor in shipped[0].graph.initializer} == {t.name for t in half.graph.initializer}
    tensors = [name for name in names_of(every_operator()) if name not in ("frame", "turned")]
    rounded = rounded_like_half(half_of(every_operator(), SPEC))
    assert_close(outputs_of(rounded, tensors), outputs_of(every_operator(), tensors))


def test_scales_of_resizing_stay_fp32(shipped: tuple[ModelProto, ModelSpec]) -> None:
    half = half_of(*shipped)
    resize = next(node for node in half.graph.node if node.op_type == "Resize")
    assert types_of(half)[resize.input[2]] == FLOAT


def test_a_constant_that_both_types_read_exists_in_both() -> None:
    model = every_operator()
    heatmap, size = (next(node for node in model.graph.node if node.output[0] == name) for name in ("heatmap", "size"))
    size.input[1] = heatmap.input[1]
    types = types_of(half_of(model, SPEC))
    assert types[heatmap.input[1]] == FLOAT
    assert types[f"{heatmap.input[1]}.float16"] == HALF


def test_a_float_input_is_cast_too() -> None:
    model = every_operator()
    del model.graph.node[:2]
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", FLOAT, (1, 3, 12, 16)))
    half = half_of(model, SPEC)
    assert half.graph.node[0].input == ["pixels"]
    assert half.graph.node[0].output == ["pixels.float16"]
    assert types_of(half)["pixels"] == FLOAT


# Weights that FP16 cannot hold


def test_a_weight_too_large_for_fp16_is_refused_by_name() -> None:
    model = every_operator()
    scale_constant(model, "joined.weight", 1e6)
    with pytest.raises(ExportError, match=r"constant 'joined.weight' holds .*FP16 ends at 65504; .*--precision fp32"):
        to_half(model.graph, SPEC)


def test_a_graph_that_is_fp16_already_is_refused() -> None:
    with pytest.raises(ExportError, match="typed FP16 already"):
        to_half(half_of(every_operator(), SPEC).graph, SPEC)


@given(exponent=st.integers(-12, 4))
def test_no_kernel_is_changed_by_more_than_rounding(exponent: int) -> None:
    """Small as a whole, it stays FP32, and so does its ReLU; else it loses the last bits and no more."""
    model = every_operator()
    before = scale_constant(model, "joined.weight", 10.0**exponent)
    half = half_of(model, SPEC)
    after = constant(half, "joined.weight").astype(np.float64)
    assert np.linalg.norm(after - before) <= 2.0**-10 * np.linalg.norm(before)
    types = types_of(half)
    assert types["joined.weight"] == types["joined"] == types["joined.relu"]
    assert (types["joined"] == HALF) == (exponent > -4)


def test_a_channel_that_is_nearly_off_does_not_keep_a_convolution_fp32() -> None:
    model = every_operator()
    weight = constant(model, "joined.weight").copy()
    weight[0] *= 1e-9
    set_constant(model, "joined.weight", weight)
    assert types_of(half_of(model, SPEC))["joined"] == HALF


# Quantised graphs


def test_the_scales_of_quantisers_have_the_type_of_the_float_side() -> None:
    half = half_of(quantised(), SPEC)
    types = types_of(half)
    for node in half.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert types[node.input[1]] == HALF
            assert types[node.input[2]] == INT8
    assert {types[name] for name in ("stem.quantized", "joined.weight.quantized")} == {INT8}
    assert constant(half, "joined.weight.scale").min() > 0  # of a channel that is off
    assert_close(outputs_of(rounded_like_half(half)), outputs_of(quantised()))


def test_a_quantised_kernel_too_small_for_fp16_stays_fp32() -> None:
    model = quantised()
    scale_constant(model, "joined.weight.scale", 1e-6)
    types = types_of(half_of(model, SPEC))
    assert types["joined"] == types["joined.weight.scale"] == types["joined.weight"] == FLOAT


# How exact it is


def test_onnx_runtime_leaves_the_rounding_out_and_the_emulation_does_not() -> None:
    half = half_of(two_convolutions(), SPEC)
    expected = dict(zip(names_of_outputs(half), ReferenceEvaluator(half).run(None, {"frame": frame()}), strict=True))
    found, rounded = outputs_of(half), outputs_of(rounded_like_half(half))
    for name in ("offset", "size"):
        assert np.array_equal(expected[name], expected[name].astype(np.float16))
        # Sums in another order are now and then rounded to the neighbour.
        assert np.mean(rounded[name] == expected[name]) > 0.95
        assert np.mean(found[name] == expected[name]) < 0.1


def test_the_emulation_overflows_as_fp16_does() -> None:
    model = two_convolutions()
    scale_constant(model, "offset.weight", 3e4)
    half = rounded_like_half(half_of(model, SPEC))
    assert np.isinf(outputs_of(half)["offset"]).any()
    assert np.isfinite(outputs_of(half)["size"]).all()


def test_the_shipped_model_on_drawn_scenes(shipped: tuple[ModelProto, ModelSpec]) -> None:
    rng = np.random.default_rng(3)
    check_on_images(*shipped, [random_scene(rng, (640, 480))[0] for _ in range(3)])


def test_the_shipped_model_on_photographs(shipped: tuple[ModelProto, ModelSpec], photographs: Path) -> None:
    check_on_images(*shipped, [read_image(path) for path in folder_images(photographs / "coco" / "val")[:12]])


@pytest.mark.parametrize("name", ["person-pose", "every operator", "quantised"])
def test_tensorrt_rtx_builds_it_strongly_typed(name: str, shipped: tuple[ModelProto, ModelSpec]) -> None:
    if name == "person-pose":
        half = half_of(*shipped)
    else:
        model = quantised() if name == "quantised" else every_operator(deformable=False)
        half = half_of(model, SPEC)
    cast_first(half)
    assert {kind for _, kind in build_with_rtx(half).outputs.values()} == {"float32"}


def check_on_images(model: ModelProto, spec: ModelSpec, images: Iterable[Array]) -> None:
    """Every head, and every person above the model's threshold."""
    exact, rounded = session_of(model), session_of(rounded_like_half(half_of(model, spec)))
    pairs: list[tuple[dict[str, Array], dict[str, Array]]] = []
    for image in images:
        prepared = prepare(image, spec)
        pair = [run(session, {"frame": prepared.tensor}) for session in (exact, rounded)]
        people, others = (
            assemble(
                find_peaks(heads, spec, score_threshold=threshold),
                spec,
                prepared.feature_to_image,
                image_wh=prepared.image_wh,
            )
            for heads, threshold in zip(pair, (spec.score_threshold, spec.score_threshold - 0.01), strict=True)
        )
        for box, score in zip(people.xyxy, people.scores, strict=True):
            same = np.abs(others.xyxy - box).max(axis=1) < 0.5  # pixels
            assert np.abs(others.scores[same] - score).min() < 0.01
        pairs.append((pair[0], pair[1]))
    for head in spec.heads:
        expected, found = (np.stack([pair[which][head.name] for pair in pairs]) for which in range(2))
        assert_close({head.name: found}, {head.name: expected})
        assert not np.array_equal(found, expected)


# Graphs


def every_operator(*, deformable: bool = True) -> ModelProto:
    """A network with each operator that ours have."""
    write, rng = GraphWriter("small"), np.random.default_rng(0)

    def weighted(name: str, source: str, shape: tuple[int, ...], operator: str = "Conv", **attributes: Any) -> str:
        fan_in, channels = (shape[0] * 4, shape[1]) if operator == "ConvTranspose" else (np.prod(shape[1:]), shape[0])
        weight, bias = rng.normal(size=shape) / np.sqrt(fan_in), rng.normal(size=channels)
        named(write, f"{name}.weight", weight)
        named(write, f"{name}.bias", bias)
        extra = attributes.pop("extra", ())
        inputs = [source, f"{name}.weight", *extra[:1], f"{name}.bias", *extra[1:]]
        return write(operator, *inputs, output=name, **attributes)

    turned = write("Transpose", "frame", output="turned", perm=[0, 3, 1, 2])
    pixels = write("Cast", turned, output="pixels", to=FLOAT)
    named(write, "mean", np.array([104.04, 113.985, 119.85]).reshape(1, 3, 1, 1))
    named(write, "stem.scale", np.full((1, 1, 1, 1), 1 / 64))
    centred = write("Mul", write("Sub", pixels, "mean", output="centred"), "stem.scale", output="scaled")
    stem = write("Relu", weighted("stem", centred, (8, 3, 3, 3), pads=[1] * 4), output="stem.relu")
    small = write("MaxPool", stem, output="small", kernel_shape=[2, 2], strides=[2, 2])
    wide = weighted("wide", small, (8, 8, 4, 4), "ConvTranspose", strides=[2, 2], pads=[1] * 4)
    scales = write.constant(np.array([1.0, 1.0, 2.0, 2.0]))
    near = write("Resize", small, "", scales, output="near", mode="nearest", nearest_mode="floor")
    both = write("Concat", wide, near, output="both", axis=1)
    joined = write("Relu", weighted("joined", both, (8, 16, 3, 3), pads=[1] * 4), output="joined.relu")
    average = write("GlobalAveragePool", joined, output="average")
    gate = write("Sigmoid", weighted("gate", average, (8, 8, 1, 1)), output="gate.sigmoid")
    trunk = write("Add", write("Mul", joined, gate, output="gated"), stem, output="sum")
    if deformable:
        moves = weighted("moves", trunk, (27, 8, 3, 3), pads=[1] * 4)
        write.several("Split", moves, write.constant([18, 9]), outputs=["offsets", "mask"], axis=1)
        mask = write("Sigmoid", "mask", output="mask.sigmoid")
        trunk = weighted(
            "bent", trunk, (8, 8, 3, 3), "DeformConv", extra=("offsets", mask), pads=[1] * 4, kernel_shape=[3, 3]
        )
    own = write("Relu", weighted("heatmap.conv", trunk, (8, 8, 3, 3), pads=[1] * 4), output="heatmap.trunk")
    weighted("heatmap", own, (2, 8, 1, 1))
    weighted("offset", trunk, (2, 8, 1, 1))
    weighted("size", trunk, (2, 8, 1, 1))
    return model_of(write)


def two_convolutions() -> ModelProto:
    """A network whose every value the reference evaluator gives soon, rounded as numpy rounds."""
    write, rng = GraphWriter("two"), np.random.default_rng(0)
    for name, shape in {
        "first": (8, 3, 3, 3),
        "heatmap": (2, 8, 1, 1),
        "offset": (2, 8, 1, 1),
        "size": (2, 8, 1, 1),
    }.items():
        named(write, f"{name}.weight", rng.normal(size=shape) / (100 if name == "first" else 3))
    pixels = write("Cast", write("Transpose", "frame", perm=[0, 3, 1, 2]), to=FLOAT)
    first = write("Relu", write("Conv", pixels, "first.weight", pads=[1] * 4))
    for head in SPEC.heads:
        write("Conv", first, f"{head.name}.weight", output=head.name)
    return model_of(write)


def quantised() -> ModelProto:
    """The same without deformable convolution, with a convolution in INT8 that has a channel that is off."""
    model = every_operator(deformable=False)
    weight = constant(model, "joined.weight").copy()
    weight[0] *= 1e-9
    scale = np.abs(weight).max(axis=(1, 2, 3)) / 127
    write = GraphWriter("quantised")
    named(write, "both.scale", np.array(0.05), np.float32)
    named(write, "both.zero_point", np.array(0), np.int8)
    write("QuantizeLinear", "both", "both.scale", "both.zero_point", output="stem.quantized")
    write("DequantizeLinear", "stem.quantized", "both.scale", "both.zero_point", output="both.dequantized")
    named(write, "joined.weight.quantized", np.round(weight / scale[:, None, None, None]), np.int8)
    named(write, "joined.weight.scale", scale)
    named(write, "joined.weight.zero_point", np.zeros(8), np.int8)
    parts = [f"joined.weight.{part}" for part in ("quantized", "scale", "zero_point")]
    write("DequantizeLinear", *parts, output="joined.weight", axis=0)
    conv = next(node for node in model.graph.node if node.output[0] == "joined")
    write("Conv", "both.dequantized", *conv.input[1:], output="joined", pads=[1] * 4)
    model.graph.initializer.remove(next(tensor for tensor in model.graph.initializer if tensor.name == "joined.weight"))
    write.replace(model.graph, conv)
    return model


def named(write: GraphWriter, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> None:
    write.constants.append(numpy_helper.from_array(np.asarray(value).astype(dtype), name))


def model_of(write: GraphWriter) -> ModelProto:
    frame = helper.make_tensor_value_info("frame", UINT8, (1, 12, 16, 3))
    outputs = [helper.make_tensor_value_info(head.name, FLOAT, (1, head.channels, 12, 16)) for head in SPEC.heads]
    graph = GraphProto(name="small", input=[frame], output=outputs)
    write.extend(graph)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def half_of(model: ModelProto, spec: ModelSpec, **options: Any) -> ModelProto:
    """Typed FP16, checked."""
    half = ModelProto.FromString(model.SerializeToString())
    to_half(half.graph, spec, **options)
    onnx.checker.check_model(half, full_check=True)
    return half


def types_of(model: ModelProto) -> dict[str, int]:
    """The element type of every tensor; the inference fails where an operator reads two."""
    graph = infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def names_of(model: ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output}


def names_of_outputs(model: ModelProto) -> list[str]:
    return [output.name for output in model.graph.output]


def constant(model: ModelProto, name: str) -> Array:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    value: Array = numpy_helper.to_array(tensor)
    return value


def set_constant(model: ModelProto, name: str, value: Array) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def scale_constant(model: ModelProto, name: str, factor: float) -> Array:
    scaled: Array = (constant(model, name) * factor).astype(np.float32)
    set_constant(model, name, scaled)
    return scaled


def cast_first(model: ModelProto) -> None:
    """TensorRT wants a Cast as the first that reads the frame."""
    transpose, cast = model.graph.node[:2]
    pixels = cast.output[0]
    cast.input[0], cast.output[0] = "frame", "frame.cast"
    transpose.input[0], transpose.output[0] = "frame.cast", pixels
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (cast, transpose, *model.graph.node[2:])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)


# Running them


def session_of(model: ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds)), strict=True))


def outputs_of(model: ModelProto, names: Iterable[str] = ()) -> dict[str, Array]:
    """The outputs of a model of this file, and further tensors by name."""
    watched = ModelProto.FromString(model.SerializeToString())
    known = names_of_outputs(model)
    watched.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in names if name not in known)
    return run(session_of(watched), {"frame": frame()})


def frame() -> Array:
    return np.random.default_rng(1).integers(0, 256, (1, 12, 16, 3), dtype=np.uint8)


def assert_close(found: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    for name, value in expected.items():
        difference = np.abs(found[name] - value) / np.abs(value).max()
        assert difference.max() < MAX_DIFFERENCE, name
        assert difference.mean() < MAX_MEAN_DIFFERENCE, name
