"""A graph that finds the peaks itself gives what the host finds in the maps, to the bit, in real ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

import sdk
from calibration.onnx_files import read_onnx, weights_sha256_of, write_onnx
from export.errors import ExportError
from export.peaks import MAX_TOP_K, end_in_peaks
from sdk.camera import CameraIntrinsics
from sdk.decoding import assemble, find_peaks
from sdk.detector import Detector, model_path
from sdk.errors import BackendError
from sdk.geometry import Affine
from sdk.peaks import INDEX_OUTPUTS, candidates_from_peaks, peak_shapes
from sdk.results import Detections
from sdk.scenes import random_scene
from sdk.spec import HeadSpec, InputSpec, ModelSpec
from tests.builders import build_with_rtx
from tests.helpers import Array, Heads, pose_spec, tiny_spec
from tests.sdk.test_decoding3d import spec_3d
from tests.sdk.test_peaks import assert_same_candidates

TO_IMAGE = Affine(np.array([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]]), "feature", "image")
CAMERA = CameraIntrinsics(np.array([[500.0, 0.0, 320.0], [0.0, 500.0, 96.0], [0.0, 0.0, 1.0]]))


def dense_model(spec: ModelSpec, *, opset: int = 17, batch: int | str = 1) -> ModelProto:
    """A graph that gives the dense heads which it is fed, `fed_NAME` as `NAME`."""
    width, height = spec.feature_wh
    inputs, outputs, nodes = [], [], []
    for head in spec.heads:
        shape = [batch, head.channels, height, width]
        inputs.append(helper.make_tensor_value_info(f"fed_{head.name}", TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(head.name, TensorProto.FLOAT, shape))
        nodes.append(helper.make_node("Identity", [f"fed_{head.name}"], [head.name], name=f"{head.name}.Identity"))
    graph = helper.make_graph(nodes, "dense", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def peaks_model(spec: ModelSpec, *, opset: int = 17, batch: int | str = 1) -> tuple[ModelProto, ModelSpec]:
    model = dense_model(spec, opset=opset, batch=batch)
    spec = end_in_peaks(model.graph, spec)
    onnx.checker.check_model(model, full_check=True)
    return model, spec


@cache
def _session(spec: ModelSpec, batch: int | str) -> tuple[Any, ModelSpec]:
    model, spec = peaks_model(spec, batch=batch)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]), spec


def peaks_in_graph(heads: Heads, spec: ModelSpec, *, batch: int | str = 1) -> tuple[Heads, ModelSpec]:
    """What the graph gives for dense heads, and its spec."""
    session, spec = _session(spec, batch)
    names = [node.name for node in session.get_outputs()]
    found = session.run(names, {f"fed_{name}": head for name, head in heads.items()})
    return dict(zip(names, found, strict=True)), spec


def assert_same_detections(found: Detections, expected: Detections) -> None:
    pairs = [(getattr(found, name), getattr(expected, name)) for name in ("xyxy", "scores", "class_ids")]
    for part, names in (("keypoints", ("xy", "scores")), ("boxes3d", ("center_m", "size_hwl_m", "yaw_rad"))):
        one, other = getattr(found, part), getattr(expected, part)
        assert (one is None) == (other is None)
        if one is not None:
            pairs += [(getattr(one, name), getattr(other, name)) for name in names]
    for one, other in pairs:
        np.testing.assert_array_equal(one, other, strict=True)


def check_equal(heads: Heads, spec: ModelSpec) -> int:
    """Both halves of both ways, at several thresholds; the number of candidates that were compared."""
    outputs, peaks_spec = peaks_in_graph(heads, spec)
    assert {name: array.shape for name, array in outputs.items()} == {
        name: (1, *shape) for name, shape in peak_shapes(spec).items()
    }
    total = 0
    for threshold in (0.0, 0.3, 0.5):
        on_host = find_peaks(heads, spec, score_threshold=threshold)
        in_graph = candidates_from_peaks(outputs, peaks_spec, score_threshold=threshold)
        assert_same_candidates(in_graph, on_host)
        found, expected = (
            assemble(candidates, spec, TO_IMAGE, image_wh=(640, 192), camera=CAMERA)
            for candidates in (in_graph, on_host)
        )
        assert_same_detections(found, expected)
        total += len(on_host)
    return total


SPECS = {
    "two classes": tiny_spec(),
    "wide": tiny_spec(input=InputSpec(96, 32), max_detections=7),
    "many classes": tiny_spec(
        heads=(HeadSpec("heatmap", 20, "sigmoid"), HeadSpec("offset", 2, "none"), HeadSpec("size", 2, "exp")),
        class_names=tuple(f"class {i}" for i in range(20)),
        max_detections=30,
    ),
    "a size for each class": tiny_spec(
        heads=(HeadSpec("heatmap", 5, "sigmoid"), HeadSpec("size", 10, "none")),
        class_names=tuple("abcde"),
        max_detections=2000,  # more than there are cells
    ),
    "one class, size alone": tiny_spec(
        heads=(HeadSpec("heatmap", 1, "sigmoid"), HeadSpec("size", 2, "none")), class_names=("cat",)
    ),
    "pose": pose_spec(num_keypoints=5, max_detections=20),
    "pose, few joint candidates": pose_spec(max_joint_candidates=4),
    "pose without joint heatmap": pose_spec(joints=False),
    "pose without joint offset": pose_spec(heads=pose_spec().heads[:-1], decoding="centernet"),
    "3d": spec_3d(),
}


def _saturated(rng: np.random.Generator, maps: Array) -> Array:
    """Plateaus at +30 and -30, where the sigmoid in float32 tells nothing apart, and some others."""
    levels = rng.choice([-30.0, 30.0, 30.0, 0.0], (*maps.shape[:2], -(-maps.shape[2] // 3), -(-maps.shape[3] // 3)))
    return np.repeat(np.repeat(levels, 3, axis=2), 3, axis=3)[:, :, : maps.shape[2], : maps.shape[3]]


def _at_borders(rng: np.random.Generator, maps: Array) -> Array:
    maps = np.full_like(maps, -8.0)
    maps[:, :, [0, -1], rng.integers(0, maps.shape[3], 2)] = rng.normal(1, 2, (*maps.shape[:2], 2))
    maps[:, :, rng.integers(0, maps.shape[2], 2), [0, -1]] = 2.0
    maps[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] = 1.0
    return maps


def _smooth(rng: np.random.Generator, maps: Array) -> Array:
    noise = rng.normal(0, 12, maps.shape).astype(np.float32)
    return np.stack([[cv2.GaussianBlur(channel, (0, 0), 1.5) for channel in image] for image in noise])


KINDS = {
    "random": lambda rng, maps: rng.normal(-1, 3, maps.shape),
    "smooth": _smooth,
    "saturated": _saturated,
    "ties": lambda rng, maps: rng.integers(-2, 3, maps.shape),
    "empty": lambda rng, maps: np.full_like(maps, -7.0),
    "borders": _at_borders,
}


def drawn_heads(spec: ModelSpec, kind: str, seed: int, *, images: int = 1) -> Heads:
    rng = np.random.default_rng(seed)
    width, height = spec.feature_wh
    heads: Heads = {}
    for head in spec.heads:
        maps = np.zeros((images, head.channels, height, width), np.float32)
        drawn = KINDS[kind](rng, maps) if head.activation == "sigmoid" else rng.normal(1, 2, maps.shape)
        heads[str(head.name)] = np.asarray(drawn, np.float32)
    return heads


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=list(SPECS))
def test_graph_and_host_find_the_same(spec: ModelSpec, kind: str) -> None:
    """10 models, 6 kinds of maps, 4 of each: 240 maps."""
    compared = sum(check_equal(drawn_heads(spec, kind, seed), spec) for seed in range(4))
    assert compared > 0


@given(
    levels=st.lists(st.sampled_from([-30.0, -1.0, 0.0, 2.5, 30.0]), min_size=1, max_size=5), seed=st.integers(0, 10**6)
)
def test_any_mixture_of_plateaus(levels: list[float], seed: int) -> None:
    spec = SPECS["pose"]
    rng = np.random.default_rng(seed)
    heads = drawn_heads(spec, "random", seed)
    for name in ("heatmap", "keypoint_heatmap"):
        heads[name] = rng.choice(levels, heads[name].shape).astype(np.float32)
    check_equal(heads, spec)


def test_infinite_scores() -> None:
    spec = tiny_spec()
    heads = drawn_heads(spec, "random", 0)
    heads["heatmap"][0, 0, 3, 3:5] = np.inf
    heads["heatmap"][0, 1, 8, :] = -np.inf
    check_equal(heads, spec)
    # The host takes cells of -infinity for peaks with a score of 0; the graph has none.
    heads["heatmap"][:] = -np.inf
    outputs, peaks_spec = peaks_in_graph(heads, spec)
    assert len(candidates_from_peaks(outputs, peaks_spec)) == 0


@pytest.mark.parametrize("name", ["heatmap", "keypoint_heatmap"])
@pytest.mark.parametrize("cells", [1, 10, 256])
def test_nan_in_a_heatmap_is_an_error_wherever_it_is(name: str, cells: int) -> None:
    """Sorting alone would lose it: to ONNX Runtime's TopK nothing is greater than NaN, nor NaN than anything."""
    spec = SPECS["pose"]
    for seed in range(5):
        heads = drawn_heads(spec, "random", seed)
        heads[name][0, -1].flat[np.random.default_rng(seed).permutation(256)[:cells]] = np.nan
        outputs, peaks_spec = peaks_in_graph(heads, spec)
        with pytest.raises(BackendError, match=f"{name} of model 'tiny-pose' holds NaN"):
            candidates_from_peaks(outputs, peaks_spec)


def test_nan_in_another_head_is_an_error_at_a_peak_alone() -> None:
    spec = SPECS["pose"]
    heads = drawn_heads(spec, "borders", 0)
    heads["size"][0, 0, 7:9, 7:9] = np.nan
    assert check_equal(heads, spec) > 0
    heads["size"][:] = np.nan
    outputs, peaks_spec = peaks_in_graph(heads, spec)
    with pytest.raises(BackendError, match="size of model 'tiny-pose' holds NaN"):
        candidates_from_peaks(outputs, peaks_spec)


@pytest.mark.parametrize("name", ["many classes", "pose", "3d"])
@pytest.mark.parametrize("kind", ["smooth", "ties"])
def test_two_images_are_two_single_images(name: str, kind: str) -> None:
    spec = SPECS[name]
    heads = drawn_heads(spec, kind, 0, images=2)
    together, _ = peaks_in_graph(heads, spec, batch="batch")
    for image in range(2):
        for batch in ("batch", 1):
            alone, _ = peaks_in_graph({key: head[image : image + 1] for key, head in heads.items()}, spec, batch=batch)
            for output, array in together.items():
                np.testing.assert_array_equal(array[image : image + 1], alone[output], err_msg=output, strict=True)


def test_the_graph_says_what_it_gives() -> None:
    model, spec = peaks_model(SPECS["pose"], batch="batch")
    assert spec == replace(SPECS["pose"], output="peaks")
    for output in model.graph.output:
        kind = output.type.tensor_type
        batch, *shape = (dimension.dim_param or dimension.dim_value for dimension in kind.shape.dim)
        assert (batch, tuple(shape)) == ("batch", peak_shapes(spec)[output.name])
        assert kind.elem_type == (TensorProto.INT32 if output.name in INDEX_OUTPUTS else TensorProto.FLOAT)
    assert [output.name for output in model.graph.output] == [*peak_shapes(spec)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            tiny_spec(max_detections=MAX_TOP_K + 1, input=InputSpec(512, 512)),
            "max_detections of model 'tiny' asks for 3840 peaks, and TensorRT sorts at most 3839; lower it, or export "
            "with --target onnxruntime",
        ),
        (
            pose_spec(max_joint_candidates=5000, input=InputSpec(512, 512)),
            "max_joint_candidates of model 'tiny-pose' asks for 5000 peaks",
        ),
        (tiny_spec(output="peaks"), "model 'tiny' gives peaks already, expected dense heads"),
    ],
)
def test_what_cannot_be_made_is_refused(spec: ModelSpec, message: str) -> None:
    model = dense_model(spec)
    before = model.SerializeToString()
    with pytest.raises(ExportError, match=message):
        end_in_peaks(model.graph, spec)
    assert model.SerializeToString() == before


def test_the_limit_itself_is_allowed() -> None:
    spec = tiny_spec(max_detections=MAX_TOP_K, input=InputSpec(256, 256))
    assert check_equal(drawn_heads(spec, "random", 0), spec) > 500
    # As many as the two classes have cells: fewer than are asked for.
    assert peak_shapes(tiny_spec(max_detections=9999))["heatmap"] == (512,)
    peaks_model(tiny_spec(max_detections=9999))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (tiny_spec(input=InputSpec(128, 64)), r"'heatmap' as \[1, 2, 16, 32\], expected float32 \[batch, 2, 16, 16\]"),
        (tiny_spec(heads=(tiny_spec().heads[0], tiny_spec().heads[2])), "gives 'offset' as None"),
    ],
)
def test_a_graph_that_disagrees_with_the_spec_is_refused(other: ModelSpec, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        end_in_peaks(dense_model(other).graph, tiny_spec())


@pytest.mark.parametrize("batch", [1, "batch"])
@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("name", ["many classes", "one class, size alone", "pose", "3d"])
def test_tensorrt_takes_the_graph(name: str, opset: int, batch: int | str) -> None:
    """Parsing and building need no GPU with TensorRT-RTX; it shows that operators and types are legal."""
    model, _ = peaks_model(SPECS[name], opset=opset, batch=batch)
    outputs = build_with_rtx(model).outputs
    assert {output: shape[1:] for output, (shape, _) in outputs.items()} == peak_shapes(SPECS[name])
    for output, (_, kind) in outputs.items():
        assert kind == ("int32" if output in INDEX_OUTPUTS else "float32")


# The model that ships


@pytest.fixture(scope="module")
def person_peaks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """person-pose, rewritten."""
    model, spec = read_onnx(model_path("person-pose"))
    weights = weights_sha256_of(model)
    path = tmp_path_factory.mktemp("peaks") / "person-pose.onnx"
    write_onnx(model, path, spec=end_in_peaks(model.graph, spec), weights_sha256=weights)
    return path


def check_on_images(path: Path, images: Iterable[Array]) -> int:
    """The rewritten model and the one that ships find the same; the number of people at the default threshold."""
    people = 0
    with Detector("person-pose", threads=1) as dense, Detector(path, threads=1) as peaks:
        for image in images:
            prepared = dense.preprocess(image)
            maps, rows = dense.infer(prepared), peaks.infer(prepared)
            for threshold in (0.0, dense.spec.score_threshold):
                dense.score_threshold = peaks.score_threshold = threshold
                expected = dense.decode(maps, prepared)
                assert_same_detections(peaks.decode(rows, prepared), expected)
            people += len(expected)
            dense.score_threshold = dense.spec.score_threshold
    return people


def test_the_shipped_model_finds_the_same_in_drawn_scenes(person_peaks: Path) -> None:
    rng = np.random.default_rng(0)
    assert check_on_images(person_peaks, (random_scene(rng, (400, 300))[0] for _ in range(12))) > 5


def _photographs(folder: Path) -> list[Path]:
    return sorted((folder / "coco" / "val").glob("*.jpg"))


def test_the_shipped_model_finds_the_same_in_photographs(person_peaks: Path, photographs: Path) -> None:
    assert check_on_images(person_peaks, (cv2.imread(str(path)) for path in _photographs(photographs)[:40])) > 40


@pytest.mark.slow
def test_the_shipped_model_finds_the_same_in_all_photographs(person_peaks: Path, photographs: Path) -> None:
    paths = _photographs(photographs)
    assert check_on_images(person_peaks, (cv2.imread(str(path)) for path in paths)) > len(paths)


def test_a_detector_takes_the_rewritten_file(person_peaks: Path) -> None:
    detector = sdk.Detector(person_peaks)
    assert detector.spec.output == "peaks"
    image, _, _ = random_scene(np.random.default_rng(1), (640, 480))
    assert detector(image).to_json() == sdk.Detector("person-pose")(image).to_json()
