"""Activations: which are looked at, that every image counts once, in order, also after an interruption."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import HistogramCollector

from calibration.collection import PartFile, Statistics, collect_statistics, part_file, range_sources
from calibration.errors import CalibrationError
from calibration.histogram import Histogram
from calibration.methods import entropy, mse, percentile
from calibration.onnx_files import read_onnx
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.preprocessing import prepare
from sdk.sources.images import folder_images, read_image

from .conftest import FloatModel, Scenes
from .test_methods import signed_error, unsigned_error

Images = list[np.ndarray]


@pytest.fixture(scope="module")
def images(scenes: Scenes) -> Images:
    return [read_image(path) for path in folder_images(scenes.folder)]


@pytest.fixture(scope="module")
def stored(float_model: FloatModel, images: Images) -> dict[str, np.ndarray]:
    """The values of all measured activations over all images, calculated apart from the collector."""
    names = [name for name, source in range_sources(float_model.proto).items() if name == source]
    proto = onnx.ModelProto()
    proto.CopyFrom(float_model.proto)
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    values = [session.run(names, {"frame": prepare(image, float_model.spec).tensor}) for image in images]
    return {name: np.concatenate([row[index].ravel() for row in values]) for index, name in enumerate(names)}


@pytest.fixture(scope="module")
def statistics(float_model: FloatModel, images: Images) -> Statistics:
    return collect_statistics(float_model.proto, float_model.spec, images, total=len(images))


def same(a: Histogram, b: Histogram) -> bool:
    parts = [(h.low, h.high, h.width, h.zeros, h.counts.tolist()) for h in (a, b)]
    return parts[0] == parts[1]


def test_statistics_are_those_of_the_stored_activations(statistics: Statistics, stored: dict[str, np.ndarray]) -> None:
    assert list(statistics) == list(stored)
    for name, values in stored.items():
        histogram = statistics[name]
        assert histogram.counts.sum() == values.size
        assert histogram.zeros == pytest.approx((values == 0).sum(), rel=0.01)
        assert histogram.low == pytest.approx(values.min(), rel=1e-4, abs=1e-5)
        assert histogram.high == pytest.approx(values.max(), rel=1e-4)


@pytest.mark.parametrize("name", ["stem.0.2.Relu", "stages.1.0.conv2.Conv", "heads.trunk.2.Relu"])
def test_ranges_are_those_of_the_stored_activations(
    statistics: Statistics, stored: dict[str, np.ndarray], name: str
) -> None:
    values = stored[name]
    kept = percentile(statistics[name], kept=0.999)
    assert kept.high == pytest.approx(np.percentile(values, 99.95), rel=0.01)
    assert kept.amax == pytest.approx(np.percentile(np.abs(values), 99.9), rel=0.01)

    least = mse(statistics[name])
    ends = np.geomspace(0.3, 1.0, 121)
    assert least.amax == pytest.approx(
        min(ends * np.abs(values).max(), key=lambda end: signed_error(values, end)), rel=0.01
    )
    highs = np.append(ends * values.max(), least.high)
    assert unsigned_error(values, least.low, least.high) <= 1.005 * min(
        unsigned_error(values, low, high)
        for low in np.unique(np.append(ends[::8] * min(values.min(), 0.0), least.low))
        for high in highs[::4]
        if high > low
    )


@pytest.mark.parametrize("name", ["stem.0.2.Relu", "stages.0.0.relu.Relu"])
def test_entropy_is_that_of_onnx_runtimes_calibrator(
    statistics: Statistics, stored: dict[str, np.ndarray], name: str
) -> None:
    collector = HistogramCollector("entropy", False, 2048, 128, None, None)
    collector.collect({name: [stored[name]]})
    low, high = collector.compute_collection_result()[name][:2]
    bounds = entropy(statistics[name])
    assert bounds.high == pytest.approx(float(high), rel=0.01)
    assert bounds.low == pytest.approx(float(low), rel=0.01, abs=1e-4)


def numbered(images: Sequence[np.ndarray], given: list[int], *, fail_at: int | None = None) -> Iterator[np.ndarray]:
    for number, image in enumerate(images):
        if number == fail_at:
            raise KeyboardInterrupt
        given.append(number)
        yield image


def test_every_image_reaches_the_collector_once_in_order(float_model: FloatModel, images: Images) -> None:
    given: list[int] = []
    together = collect_statistics(float_model.proto, float_model.spec, numbered(images, given), total=len(images))
    assert given == list(range(len(images)))
    alone = [collect_statistics(float_model.proto, float_model.spec, [image], total=1) for image in images]
    for name, histogram in together.items():
        assert histogram.counts.sum() == sum(single[name].counts.sum() for single in alone)
        assert histogram.zeros == sum(single[name].zeros for single in alone)
        assert histogram.high == max(single[name].high for single in alone)
        assert histogram.low == min(single[name].low for single in alone)


def part_of(float_model: FloatModel, scenes: Scenes, folder: Path) -> PartFile:
    return part_file(folder / "model.onnx", float_model.proto, folder_images(scenes.folder))


def test_an_interrupted_calibration_goes_on_and_gives_the_same(
    float_model: FloatModel, scenes: Scenes, images: Images, statistics: Statistics, tmp_path: Path
) -> None:
    model, spec = float_model.proto, float_model.spec
    notes: list[str] = []
    options: dict[str, Any] = {"total": len(images), "note": notes.append, "pause_s": 0.0}
    part = part_of(float_model, scenes, tmp_path)
    given: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        collect_statistics(model, spec, numbered(images, given, fail_at=4), part=part, **options)
    assert notes[-1].startswith(f"measured 4 of {len(images)} photographs, about ")
    assert list(tmp_path.iterdir()) == [part.path]
    kept = part.read()
    assert kept is not None and kept[0] == 4

    notes.clear()
    resumed = collect_statistics(model, spec, numbered(images, given), part=part, **options)
    assert notes[0] == "going on after 4 photographs that were measured before the interruption"
    assert [note.split()[1] for note in notes[1:]] == ["5", "6"]  # no image twice
    assert list(resumed) == list(statistics)
    assert all(same(resumed[name], statistics[name]) for name in statistics)
    assert not list(tmp_path.iterdir())


def test_statistics_of_other_models_or_photographs_are_not_gone_on_with(
    float_model: FloatModel, scenes: Scenes, other_scenes: Scenes, statistics: Statistics, tmp_path: Path
) -> None:
    part = part_of(float_model, scenes, tmp_path)
    part.write(3, statistics)
    assert part.read() is not None
    other_model = onnx.ModelProto()
    other_model.CopyFrom(float_model.proto)
    other_model.graph.initializer[0].raw_data = other_model.graph.initializer[0].raw_data[::-1]
    paths = folder_images(scenes.folder)
    for other in (
        part_of(float_model, other_scenes, tmp_path),
        part_file(tmp_path / "model.onnx", float_model.proto, paths[::-1]),
        part_file(tmp_path / "model.onnx", float_model.proto, paths[1:]),
        part_file(tmp_path / "model.onnx", other_model, paths),
    ):
        assert other.path == part.path
        assert other.read() is None
    part.path.write_bytes(part.path.read_bytes()[:1000])
    assert part.read() is None


def test_what_only_a_relu_reads_and_outputs_have_no_range(float_model: FloatModel) -> None:
    sources = range_sources(float_model.proto)
    assert "stem.0.2.Relu" in sources and "stem.0.0.Conv" not in sources
    assert "stages.0.0.conv2.Conv" in sources  # an Add reads it
    assert not {"outputs.Conv", "Cast", *(head.name for head in float_model.spec.heads)} & set(sources)


def test_what_is_only_moved_has_the_range_of_its_source(float_model: FloatModel) -> None:
    sources = range_sources(float_model.proto)
    resizes = [node for node in float_model.proto.graph.node if node.op_type == "Resize"]
    assert resizes
    assert all(sources[node.output[0]] == node.input[0] for node in resizes)


def test_positions_of_deformable_convolutions_have_no_range() -> None:
    nodes = [
        helper.make_node("Cast", ["frame"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["pixels", "w3"], ["features"]),
        helper.make_node("Conv", ["features", "w27"], ["positions"]),
        helper.make_node("Split", ["positions", "sizes"], ["offset", "mask_logits"], axis=1),
        helper.make_node("Sigmoid", ["mask_logits"], ["mask"]),
        helper.make_node("DeformConv", ["features", "w", "offset", "bias", "mask"], ["deformed"]),
        helper.make_node("Relu", ["deformed"], ["relu"]),
        helper.make_node("Conv", ["relu", "w1"], ["heatmap"]),
    ]
    shapes = {"w3": (2, 3, 1, 1), "w27": (27, 2, 1, 1), "w": (2, 2, 3, 3), "bias": (2,), "w1": (1, 2, 1, 1)}
    constants = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()]
    constants.append(numpy_helper.from_array(np.array([18, 9]), "sizes"))
    graph = helper.make_graph(
        nodes,
        "deformable",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, None)],
        constants,
        value_info=[helper.make_tensor_value_info("deformed", TensorProto.FLOAT, [1, 2, 6, 6])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    assert set(range_sources(model)) == {"features", "relu"}


def with_weight(float_model: FloatModel, name: str, value: float, *, everywhere: bool) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(float_model.proto)
    tensor = next(tensor for tensor in changed.graph.initializer if tensor.name == name)
    weight = numpy_helper.to_array(tensor).copy()
    weight[...] = value if everywhere else weight
    weight.flat[0] = value
    tensor.CopyFrom(numpy_helper.from_array(weight, name))
    return changed


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("weight", "activation"), [("stages.2.0.conv1.weight", r"stages\.2\.0.*"), ("outputs.weight", "heatmap")]
)
def test_nan_is_refused_with_the_tensor_and_the_photograph(
    float_model: FloatModel, images: Images, value: float, weight: str, activation: str
) -> None:
    damaged = with_weight(float_model, weight, value, everywhere=False)
    with pytest.raises(CalibrationError, match=rf"activation '{activation}' holds NaN or infinity on photograph 1"):
        collect_statistics(damaged, float_model.spec, images, total=len(images))


def test_a_constant_activation_is_refused_with_what_to_do(
    float_model: FloatModel, images: Images, tmp_path: Path
) -> None:
    dead = with_weight(float_model, "stages.2.0.conv1.weight", 0.0, everywhere=True)
    bias = "stages.2.0.conv1.bias"
    dead_bias = next(tensor for tensor in dead.graph.initializer if tensor.name == bias)
    dead_bias.CopyFrom(numpy_helper.from_array(-np.ones(dead_bias.dims, np.float32), bias))
    part = PartFile(tmp_path / "part", "of this run")
    with pytest.raises(
        CalibrationError, match=r"activation 'stages\.2\.0\.relu\.Relu' is 0 everywhere .* look at them"
    ):
        collect_statistics(dead, float_model.spec, images, total=len(images), part=part, pause_s=0.0)
    assert list(tmp_path.iterdir()) == []  # going on would end here again


@pytest.mark.slow
def test_calibrating_takes_at_most_two_and_a_half_times_the_model(photographs: Path) -> None:
    path = Path(__file__).parents[2] / "sdk" / "models" / "person-pose.onnx"
    model, spec = read_onnx(path)
    images = [read_image(file) for file in folder_images(photographs / "coco" / "train")[:60]]
    backend = OnnxRuntimeBackend(path)
    ratios = []
    for _ in range(3):
        start = time.process_time()
        for image in images:
            backend.infer({"frame": prepare(image, spec).tensor})
        middle = time.process_time()
        collect_statistics(model, spec, images, total=len(images))
        ratios.append((time.process_time() - middle) / (middle - start))
    assert min(ratios) < 2.5
