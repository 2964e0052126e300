"""Activations: which are looked at, that every image counts once, and that ranges survive a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from calibration.errors import CalibrationError
from calibration.methods import Range, percentile
from calibration.photographs import Photograph
from calibration.ranges import (
    Ranges,
    activation_names,
    collect_statistics,
    read_ranges,
    write_ranges,
)
from sdk.errors import InputError
from sdk.preprocessing import prepare
from sdk.sources.images import folder_images, read_image

from .conftest import FloatModel, Scenes


def stored_activations(model: FloatModel, images: list[np.ndarray], name: str) -> np.ndarray:
    """One activation over all images, calculated apart from the collector."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.stack([session.run(None, {"frame": prepare(image, model.spec).tensor})[0] for image in images])


def test_statistics_are_those_of_the_stored_activations(float_model: FloatModel, scenes: Scenes) -> None:
    images = [read_image(path) for path in folder_images(scenes.folder)]
    statistics = collect_statistics(float_model.proto, float_model.spec, images)
    for name in ("stem.0.2.Relu", "stages.1.0.conv2.Conv", "context.Add", "heatmap"):
        if name not in statistics:  # only a ReLU reads it
            assert name == "context.Add"
            continue
        values = stored_activations(float_model, images, name)
        histogram = statistics[name]
        assert histogram.counts.sum() == values.size
        assert histogram.low == pytest.approx(values.min(), rel=1e-4, abs=1e-5)
        assert histogram.high == pytest.approx(values.max(), rel=1e-4)
        bounds = percentile(histogram, kept=0.99)
        low, high = np.percentile(values, [0.5, 99.5])
        assert bounds.high == pytest.approx(high, rel=0.01)
        assert bounds.low == pytest.approx(low, rel=0.01, abs=1e-4)


def test_every_image_reaches_the_collector_once_in_order(float_model: FloatModel, scenes: Scenes) -> None:
    images = [read_image(path) for path in folder_images(scenes.folder)]
    given: list[int] = []

    def one_by_one() -> Iterator[np.ndarray]:
        for number, image in enumerate(images):
            given.append(number)
            yield image

    together = collect_statistics(float_model.proto, float_model.spec, one_by_one())
    assert given == list(range(len(images)))
    alone = [collect_statistics(float_model.proto, float_model.spec, [image]) for image in images]
    for name, histogram in together.items():
        assert histogram.counts.sum() == sum(single[name].counts.sum() for single in alone)
        assert histogram.high == max(single[name].high for single in alone)
        assert histogram.low == min(single[name].low for single in alone)


def test_what_only_a_relu_reads_has_no_range(float_model: FloatModel) -> None:
    names = activation_names(float_model.proto)
    assert "stem.0.2.Relu" in names and "stem.0.0.Conv" not in names
    assert "stages.0.0.conv2.Conv" in names  # an Add reads it
    assert {head.name for head in float_model.spec.heads} <= set(names)


def test_nan_is_refused_with_the_tensor_and_the_photograph(float_model: FloatModel, scenes: Scenes) -> None:
    damaged = onnx.ModelProto()
    damaged.CopyFrom(float_model.proto)
    for tensor in damaged.graph.initializer:
        if tensor.name == "stages.2.0.conv1.weight":
            weight = onnx.numpy_helper.to_array(tensor).copy()
            weight[0, 0, 0, 0] = np.nan
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    images = [read_image(path) for path in folder_images(scenes.folder)]
    with pytest.raises(CalibrationError, match=r"activation 'stages\.2\.0.*' holds NaN or infinity on photograph 1"):
        collect_statistics(damaged, float_model.spec, images)


def test_ranges_survive_their_file(tmp_path: Path) -> None:
    ranges = Ranges("mse", "abc", (Photograph("a.jpg", "12"),), {"x": Range(-0.1, 1 / 3), "y": Range(2.0, 2.0)})
    write_ranges(ranges, tmp_path / "ranges.json")
    assert read_ranges(tmp_path / "ranges.json") == ranges
    assert ranges.constant == ["y"]
    assert list(tmp_path.iterdir()) == [tmp_path / "ranges.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not JSON", "is not valid JSON"),
        ("[]", "holds no activation ranges"),
        (json.dumps({"format": 99}), "holds no activation ranges"),
        (json.dumps({"format": 1, "method": "minmax"}), "is damaged"),
    ],
)
def test_files_that_hold_no_ranges(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "ranges.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_ranges(tmp_path / "ranges.json")
