"""The real parser and builder of TensorRT-RTX, which need no GPU, as proof that a graph is legal and well typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdk.onnx_metadata import BATCH_METADATA_KEY, read_metadata


def build_with_rtx(path: Path) -> bytes:
    """The engine of an ONNX file; fails with the parser's own words. Skips where TensorRT-RTX is not installed."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: it exists for x86-64 alone")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(path.read_bytes())
    assert parsed, [parser.get_error(index).desc() for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    if batch := read_metadata(path).get(BATCH_METADATA_KEY):
        profile = builder.create_optimization_profile()
        shape = tuple(network.get_input(0).shape)[1:]
        profile.set_shape(network.get_input(0).name, *((int(count), *shape) for count in batch.split(",")))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, "TensorRT-RTX parsed the graph and could not build it"
    return bytes(plan)
