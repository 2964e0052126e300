"""The real parser and builder of TensorRT-RTX, which need no GPU, as proof that a graph is legal and well typed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from onnx import ModelProto

Shape = tuple[int, ...]  # -1 for what is symbolic


@dataclass(frozen=True)
class Built:
    """What TensorRT-RTX made of a graph: the engine, and the shape and NumPy's name of the type of each output."""

    plan: bytes
    outputs: dict[str, tuple[Shape, str]]


def build_with_rtx(model: Path | ModelProto) -> Built:
    """The engine of an ONNX graph, strongly typed; fails with the parser's own words.

    A symbolic batch gets a profile for 1, 2 and 4 frames. Skips where TensorRT-RTX is not installed.
    """
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: it exists for x86-64 alone")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(model.read_bytes() if isinstance(model, Path) else model.SerializeToString())
    assert parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for value in (network.get_input(index) for index in range(network.num_inputs)):
        batch, *rest = value.shape
        profile.set_shape(value.name, *((size, *rest) for size in ((1, 2, 4) if batch == -1 else (batch,) * 3)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, "TensorRT-RTX parsed the graph and could not build it"
    types = {value.name: (tuple(value.shape), trt.nptype(value.dtype).__name__) for value in outputs}
    return Built(bytes(plan), types)
