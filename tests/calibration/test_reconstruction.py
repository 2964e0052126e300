"""`auto`: the choice that a hand-made network must lead to, and that all tensors get one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.collection import Statistics, collect_statistics
from calibration.errors import CalibrationError
from calibration.histogram import Histogram
from calibration.methods import METHODS
from calibration.ranges import ranges_from_statistics
from calibration.reconstruction import CANDIDATES, choose_by_error, sample_frames
from sdk.sources.images import folder_images, read_image

from .conftest import FloatModel, Scenes


def two_cell_model() -> onnx.ModelProto:
    """Two cells of one value `x` each, which a convolution reads; values above 100 look like an object."""
    nodes = [
        helper.make_node("Cast", ["frame"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["x", "tenth", "threshold"], ["heatmap"]),
    ]
    constants = {"tenth": np.full((1, 1, 1, 1), 0.1, np.float32), "threshold": np.array([-10.0], np.float32)}
    graph = helper.make_graph(
        nodes,
        "two_cells",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, 1, 1, 2])],
        [helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, [1, 1, 1, 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def long_tailed() -> Statistics:
    """Nearly everything is small, so that all methods but minmax cut off what is at 200."""
    histogram = Histogram()
    histogram.add(np.random.default_rng(0).exponential(1.0, 2_000_000).astype(np.float32))
    histogram.add(np.array([200.0, 0.0], np.float32))
    return {"x": histogram}


def test_a_range_that_cuts_objects_off_is_not_chosen() -> None:
    statistics = long_tailed()
    chosen = choose_by_error(two_cell_model(), statistics, [np.array([[[[3, 200]]]], np.uint8)])["x"]
    assert chosen == METHODS["minmax"](statistics["x"])


def test_where_nothing_is_cut_off_the_finest_steps_are_chosen() -> None:
    statistics = long_tailed()
    chosen = choose_by_error(two_cell_model(), statistics, [np.array([[[[3, 5]]]], np.uint8)])["x"]
    assert chosen.high < 100 and chosen.amax < 100


def test_every_range_is_that_of_one_of_the_methods(float_model: FloatModel, scenes: Scenes) -> None:
    paths = folder_images(scenes.folder)
    images = [read_image(path) for path in paths]
    statistics = collect_statistics(float_model.proto, float_model.spec, images, total=len(images))
    frames = list(sample_frames(paths, float_model.spec))
    assert {frame.shape for frame in frames} == {(1, 64, 64, 3)}
    tensors = ranges_from_statistics(float_model.proto, statistics, "auto", frames=frames)
    of_methods = [ranges_from_statistics(float_model.proto, statistics, method) for method in CANDIDATES]
    for name, bounds in tensors.items():
        assert (bounds.low, bounds.high) in {(known[name].low, known[name].high) for known in of_methods}
        assert bounds.amax in {known[name].amax for known in of_methods}
    assert len({tuple(bounds == known[name] for known in of_methods) for name, bounds in tensors.items()}) > 1


def test_a_model_of_too_low_an_opset(float_model: FloatModel) -> None:
    old = onnx.ModelProto()
    old.CopyFrom(float_model.proto)
    old.opset_import[0].version = 17
    with pytest.raises(CalibrationError, match="the model has opset 17, and --method auto needs 18"):
        choose_by_error(old, {}, [])
