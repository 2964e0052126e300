"""Every network, task, target and precision: a legal file that is the network, and that a real builder takes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from calibration.collection import collect_statistics
from calibration.onnx_files import weights_sha256_of
from calibration.ranges import Ranges, ranges_from_statistics
from export.conversion import Form
from export.onnx_export import model_source
from export.pipeline import Source, export_model
from export.targets import TARGETS
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.scenes import random_scene
from sdk.spec import Precision
from tests.builders import build_with_rtx
from train.models import ARCHITECTURES

from .models import lively_model

TASKS = ("detection", "pose", "3d")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
QUICK = {("edge_n", task) for task in TASKS} | {("resdcn_18", "pose")}
SIZES = {"hourglass": (128, 128), "resdcn_18": (96, 64)}

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
INTEGERS = {TensorProto.INT32, TensorProto.INT64}
# What the ONNX importer of TensorRT 8.5 takes, of the operators that we use: onnx-tensorrt, branch release/8.5-GA,
# docs/operators.md. INT64 is cast to INT32 there, so no more than indices may have it.
TENSORRT_8 = {
    "Add": FLOATS | INTEGERS,
    "Cast": FLOATS | INTEGERS | {TensorProto.UINT8},  # bytes may enter a network since 8.5, through Cast
    "Clip": FLOATS,
    "Concat": FLOATS | INTEGERS,
    "Conv": FLOATS,
    "ConvTranspose": FLOATS,
    "DequantizeLinear": FLOATS | {TensorProto.INT8},
    "Div": FLOATS | INTEGERS,
    "Expand": FLOATS | INTEGERS,
    "Floor": FLOATS,
    "Gather": FLOATS | INTEGERS,
    "GatherElements": FLOATS | INTEGERS,
    "GlobalAveragePool": FLOATS,
    "Greater": FLOATS | INTEGERS,
    "GridSample": FLOATS,
    "IsNaN": FLOATS,
    "MatMul": FLOATS,
    "MaxPool": FLOATS,
    "Mod": FLOATS | INTEGERS,
    "Mul": FLOATS | INTEGERS,
    "QuantizeLinear": FLOATS | {TensorProto.INT8},
    "ReduceSum": FLOATS | INTEGERS,
    "Relu": FLOATS,
    "Reshape": FLOATS | INTEGERS,
    "Resize": FLOATS,
    "Sigmoid": FLOATS,
    "Slice": FLOATS | INTEGERS,
    "Split": FLOATS | INTEGERS,
    "Squeeze": FLOATS | INTEGERS,
    "Sub": FLOATS | INTEGERS,
    "TopK": FLOATS | INTEGERS,  # the integer is K
    "Transpose": FLOATS | INTEGERS,
    "Unsqueeze": FLOATS | INTEGERS,
    "Where": FLOATS | INTEGERS | {TensorProto.BOOL},
}
# DeformConv: branch release/10.1-GA. TensorRT-RTX has it not.
OPERATORS = {
    "tensorrt": {**TENSORRT_8, "DeformConv": FLOATS},
    "tensorrt-8": TENSORRT_8,
    "tensorrt-rtx": TENSORRT_8,
}
MAX_OPSET = {"onnxruntime": 20, "tensorrt": 20, "tensorrt-8": 17, "tensorrt-rtx": 20}
MAX_TOP_K = 3839


@lru_cache(maxsize=1)
def source_of(architecture: str, task: str) -> Source:
    """The source of all files of a network; the tests come network by network."""
    return model_source(*lively_model(architecture, task=task, size=SIZES.get(architecture, (64, 64))))


def cases() -> list[Any]:
    return [
        pytest.param(architecture, task, marks=() if (architecture, task) in QUICK else pytest.mark.slow)
        for architecture in ARCHITECTURES
        for task in TASKS
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("architecture", "task"), cases())
def test_every_network_goes_to_every_target(
    architecture: str, task: str, target: str, precision: Precision, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    report = export_model(source_of(architecture, task), path, Form(target, precision=precision))
    if precision == "fp32":
        limit = 1e-5 if architecture.startswith("edge") else 1e-3
        assert all(head.max < limit for part in report.parts for head in part.heads)
        assert all(row.max < 0.1 for part in report.parts for row in part.boxes if row.name == "box corner")
    assert all(part.num_boxes > 0 for part in report.parts)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    spec = OnnxRuntimeBackend(path).spec
    assert (spec.precision, spec.output) == (precision, TARGETS[target].output)
    assert model.opset_import[0].version <= MAX_OPSET[target]
    if target in OPERATORS:
        check_operators(model, target)
    if target == "tensorrt-rtx" or (target == "tensorrt-8" and precision == "fp32"):
        assert build_with_rtx(path).plan


def check_operators(model: ModelProto, target: str) -> None:
    """Only operators that the target's importer knows, in types that it takes."""
    types = types_of(model)
    for node in model.graph.node:
        assert node.domain == "" and node.op_type in OPERATORS[target], f"{node.name}: {node.op_type}"
        found = {types[name] for name in node.input if name}
        assert found <= OPERATORS[target][node.op_type], f"{node.name}: {node.op_type} of {found}"
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "TopK":
            assert constants[node.input[1]] <= MAX_TOP_K  # and it is a constant
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not np.any(constants[node.input[2]])
    inputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    assert inputs == {"frame": TensorProto.UINT8}
    assert [node.op_type for node in model.graph.node if "frame" in node.input] == ["Cast"]
    outputs = {value.type.tensor_type.elem_type for value in model.graph.output}
    assert outputs <= {TensorProto.FLOAT, TensorProto.INT32}


def types_of(model: ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


@pytest.mark.parametrize(
    ("target", "int8_float"), [("tensorrt-rtx", "fp16"), ("tensorrt-rtx", "fp32"), ("tensorrt-8", None)]
)
@pytest.mark.parametrize(("architecture", "task"), cases())
def test_every_network_goes_to_tensorrt_in_int8(
    architecture: str, task: str, target: str, int8_float: Any, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    source = source_of(architecture, task)
    form = Form(target, precision="int8", int8_float=int8_float)
    export_model(source, path, form, ranges=ranges_of(architecture, task))
    model = onnx.load(path)
    check_operators(model, target)
    convs = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    num_int8 = sum(producers.get(conv.input[0]) == "DequantizeLinear" for conv in convs)
    assert num_int8 > 0.4 * len(convs)
    assert OnnxRuntimeBackend(path).spec.precision == "int8"
    assert build_with_rtx(path).plan


@lru_cache(maxsize=1)
def ranges_of(architecture: str, task: str) -> Ranges:
    source = source_of(architecture, task)
    scenes = [random_scene(np.random.default_rng(seed), (128, 96))[0] for seed in range(2)]
    statistics = collect_statistics(source.model, source.spec, scenes, total=len(scenes))
    tensors = ranges_from_statistics(source.model, statistics, "minmax")
    return Ranges("minmax", weights_sha256_of(source.model), (), tensors)
