"""Test-time augmentation: what an equivariant network finds does not change, and what is merged is known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.augmented_detector import AugmentedDetector
from sdk.backends import open_backend
from sdk.detector import Detector
from sdk.errors import ConfigError
from sdk.results import Detections
from sdk.spec import ONNX_METADATA_KEY, HeadSpec, InputSpec, ModelSpec
from tests.helpers import FakeBackend, Heads, Peak, empty_heads, heads_with_peaks, logit, pose_spec, tiny_spec

PAIRS = ((1, 2),)
SPECS = [
    pose_spec(input=InputSpec(96, 64), keypoint_flip_pairs=PAIRS),
    pose_spec(
        input=InputSpec(96, 64),
        keypoint_flip_pairs=PAIRS,
        heads=(
            HeadSpec("heatmap", 1, "sigmoid"),
            HeadSpec("offset", 2, "none"),
            HeadSpec("size", 2, "exp"),
            HeadSpec("keypoint_offset", 6, "box"),
            HeadSpec("keypoint_heatmap", 3, "sigmoid"),
            HeadSpec("keypoint_heatmap_offset", 2, "none"),
        ),
    ),
]
IMAGE = np.zeros((64, 96, 3), np.uint8)


class AnySizeBackend:
    """A fake network that takes frames of any size: `heads_of` answers for the frame and the spec at its size."""

    inputs = ("frame",)

    def __init__(self, spec: ModelSpec, heads_of: Any, **attributes: Any) -> None:
        self.spec = spec
        self.outputs = tuple(head.name for head in spec.heads)
        self.sizes: list[tuple[int, int]] = []
        self._heads_of = heads_of
        self.__dict__.update(attributes)

    def infer(self, feeds: Any) -> Heads:
        frame = feeds["frame"]
        height, width = frame.shape[1:3]
        self.sizes.append((width, height))
        heads: Heads = self._heads_of(frame, self.spec.with_input_size(width, height))
        return heads

    def close(self) -> None: ...


def sees_dots(frame: Any, spec: ModelSpec) -> Heads:
    """A network that is equivariant by construction: it finds the white pixels of the frame and calls the one in the
    middle joint 0, the one farthest left joint 1, farthest right joint 2; the person is around joint 0."""
    rows, columns = np.nonzero(frame[0, :, :, 0] > 127)
    points = np.stack([columns, rows], axis=1)[np.argsort(columns)] + 0.5  # centres of pixels, in continuous pixels
    points = points[[1, 0, 2]] / spec.stride  # (3, 2) feature
    size = points.max(axis=0) - points.min(axis=0) + 2
    heads = empty_heads(spec)
    x, y = points[0].astype(int)
    heads["heatmap"][0, 0, y, x] = logit(0.8)
    heads["offset"][0, :, y, x] = points[0] - (x, y)
    exp = spec.head("size").activation == "exp"
    heads["size"][0, :, y, x] = np.log(size) if exp else size
    box = size if spec.head("keypoint_offset").activation == "box" else 1.0
    heads["keypoint_offset"][0, :, y, x] = ((points - (x, y)) / box).ravel()
    for joint, (joint_x, joint_y) in enumerate(points.astype(int)):
        heads["keypoint_heatmap"][0, joint, joint_y, joint_x] = logit(0.7)
        heads["keypoint_heatmap_offset"][0, :, joint_y, joint_x] = points[joint] - (joint_x, joint_y)
    return heads


def dotted(*points_xy: tuple[int, int], wh: tuple[int, int] = (96, 64)) -> Any:
    image = np.zeros((wh[1], wh[0], 3), np.uint8)
    for x, y in points_xy:
        image[y, x] = 255
    return image


def assert_equal(a: Detections, b: Detections, *, atol: float) -> None:
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
    np.testing.assert_array_equal(a.class_ids, b.class_ids)
    np.testing.assert_allclose(a.xyxy, b.xyxy, atol=atol)
    assert (a.keypoints is None) == (b.keypoints is None)
    if a.keypoints is not None and b.keypoints is not None:
        np.testing.assert_allclose(a.keypoints.xy, b.keypoints.xy, atol=atol)
        np.testing.assert_allclose(a.keypoints.scores, b.keypoints.scores, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=["cells", "exp-and-box"])
@pytest.mark.parametrize("keypoints", ["matching", "regression"])
@given(
    x=st.integers(20, 70),
    y=st.integers(10, 50),
    left=st.integers(4, 18),
    right=st.integers(4, 18),
    up=st.integers(-8, 8),
)
def test_flip_changes_nothing_for_an_equivariant_network(
    spec: ModelSpec, keypoints: Any, x: int, y: int, left: int, right: int, up: int
) -> None:
    image = dotted((x, y), (x - left, y - up), (x + right, y + up))
    backend = AnySizeBackend(spec, sees_dots)
    plain = AugmentedDetector(backend, keypoints=keypoints, score_threshold=0.3)(image)
    flipped = AugmentedDetector(backend, keypoints=keypoints, score_threshold=0.3, flip=True)(image)
    assert len(plain) == 1
    assert_equal(flipped, plain, atol=1e-3)
    assert plain.keypoints is not None
    wanted = np.array([(x, y), (x - left, y - up), (x + right, y + up)]) + 0.5
    np.testing.assert_allclose(flipped.keypoints.xy[0], wanted, atol=1e-3)  # type: ignore[union-attr]


def test_imported_models_count_cells_from_0_so_a_mirrored_offset_changes_its_sign_alone() -> None:
    spec = replace(pose_spec(keypoint_flip_pairs=PAIRS, joints=False), decoding="centernet")
    offsets = np.array([[0.5, 1.0], [2.0, 3.0], [-4.0, 5.0]], np.float32)
    mirrored = np.array([[-0.5, 1.0], [4.0, 5.0], [-2.0, 3.0]], np.float32)
    width = spec.feature_wh[0]

    def heads_of(frame: Any, spec: ModelSpec) -> Heads:
        is_mirrored = frame[0, 0, -1, 0] > 0
        x = width - 1 - 5 if is_mirrored else 5
        heads = heads_with_peaks(spec, [Peak(0, (6, x), 0.9, (0.25, 0.5), (6.0, 6.0))])
        heads["keypoint_offset"][0, :, 6, x] = (mirrored if is_mirrored else offsets).ravel()
        return heads

    image = np.zeros((64, 64, 3), np.uint8)
    image[0, 0] = 255
    backend = AnySizeBackend(spec, heads_of)
    plain, flipped = (AugmentedDetector(backend, flip=flip, score_threshold=0.5)(image) for flip in (False, True))
    assert len(plain) == 1
    assert_equal(flipped, plain, atol=1e-4)


def test_flip_averages_scores_and_sizes_and_takes_the_offset_from_the_frame_itself() -> None:
    spec = tiny_spec(
        heads=(HeadSpec("heatmap", 2, "sigmoid"), HeadSpec("offset", 2, "none"), HeadSpec("size", 2, "exp"))
    )

    def heads_of(frame: Any, spec: ModelSpec) -> Heads:
        if frame[0, 0, 0, 0] > 0:  # the frame itself
            peak = Peak(1, (8, 3), 0.9, (0.25, 0.5), (math.log(4), math.log(4)))
        else:
            peak = Peak(1, (8, 12), 0.5, (0.9, 0.9), (math.log(2), math.log(6)))
        return heads_with_peaks(spec, [peak])

    image = np.zeros((64, 64, 3), np.uint8)
    image[0, 0] = 255
    found = AugmentedDetector(AnySizeBackend(spec, heads_of), flip=True, score_threshold=0.1)(image)
    np.testing.assert_allclose(found.scores, [0.7], rtol=1e-5)
    np.testing.assert_allclose(
        found.xyxy, [[13 - 6, 34 - 10, 13 + 6, 34 + 10]], rtol=1e-5
    )  # 3 x 5 cells around 3.25, 8.5


@given(a=st.floats(-60, 60), b=st.floats(-60, 60))
def test_the_mean_score_keeps_what_is_close_to_0_and_to_1(a: float, b: float) -> None:
    spec = tiny_spec()

    def heads_of(frame: Any, spec: ModelSpec) -> Heads:
        heads = empty_heads(spec, score=1e-30)
        heads["heatmap"][0, 0, 4, 4 if frame[0, 0, 0, 0] else 11] = a if frame[0, 0, 0, 0] else b
        return heads

    image = np.zeros((64, 64, 3), np.uint8)
    image[0, 0] = 255
    score = float(AugmentedDetector(AnySizeBackend(spec, heads_of), flip=True)(image).scores[0])
    a, b = float(np.float32(a)), float(np.float32(b))
    assert score == pytest.approx((1 / (1 + math.exp(-a)) + 1 / (1 + math.exp(-b))) / 2, rel=1e-4)


@pytest.mark.parametrize("wh", [(96, 64), (50, 70), (333, 200)])
def test_without_options_it_is_the_plain_detector(wh: tuple[int, int]) -> None:
    for spec in (tiny_spec(), SPECS[1]):
        backend = FakeBackend(spec, heads_of_noise(spec))
        image = np.random.default_rng(0).integers(0, 256, (wh[1], wh[0], 3), np.uint8)
        plain = Detector(backend, score_threshold=0.0)(image)
        augmented = AugmentedDetector(backend, scales=(1.0,))(image)
        assert len(plain) > 5
        assert_equal(augmented, plain, atol=0)


def heads_of_noise(spec: ModelSpec) -> Heads:
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=head.shape).astype(np.float32) for name, head in empty_heads(spec).items()}


def finds_the_white_box(frame: Any, spec: ModelSpec) -> Heads:
    """A network that finds a cat where the frame is white, whatever the frame's size."""
    rows, columns = np.nonzero(frame[0, :, :, 0] > 127)
    low = np.array([columns.min(), rows.min()]) / spec.stride
    high = np.array([columns.max() + 1, rows.max() + 1]) / spec.stride
    centre = (low + high) / 2
    x, y = centre.astype(int)
    size = high - low
    return heads_with_peaks(spec, [Peak(0, (y, x), 0.9, tuple(centre - (x, y)), tuple(size))])


def test_scales_run_the_network_at_several_sizes_and_merge_what_they_find() -> None:
    image = np.zeros((120, 200, 3), np.uint8)
    image[20:80, 40:120] = 255
    backend = AnySizeBackend(tiny_spec(input=InputSpec(128, 128)), finds_the_white_box)
    found = AugmentedDetector(backend, scales=(0.5, 1.0, 1.6), score_threshold=0.3)(image)
    assert backend.sizes == [(64, 64), (128, 128), (224, 224)]  # 204.8, up to the next multiple of 32
    assert found.scores[0] == pytest.approx(0.9)
    assert len(found) == 1  # the other two are 0.9 exp(-2) and less
    np.testing.assert_allclose(found.xyxy, [[40, 20, 120, 80]], atol=3.2)


def test_keep_takes_the_frame_pixel_by_pixel() -> None:
    image = np.zeros((121, 203, 3), np.uint8)
    image[20:81, 40:123] = 255
    backend = AnySizeBackend(tiny_spec(), finds_the_white_box)
    found = AugmentedDetector(backend, resolution="keep", score_threshold=0.3)(image)
    assert backend.sizes == [(224, 128)]
    np.testing.assert_allclose(found.xyxy, [[40, 20, 123, 81]], atol=1e-3)
    AugmentedDetector(backend, resolution="keep", scales=(0.5, 1.0), input_multiple=128)(image)
    assert backend.sizes[1:] == [(128, 128), (256, 128)]
    AugmentedDetector(backend, resolution="keep")(np.full((64, 96, 3), 255, np.uint8))
    assert backend.sizes[-1] == (128, 96)  # also a whole multiple is padded, as in the official code


def test_keep_at_a_scale_gives_pixels_of_the_frame() -> None:
    image = np.zeros((120, 200, 3), np.uint8)
    image[20:80, 40:120] = 255
    backend = AnySizeBackend(tiny_spec(), finds_the_white_box)
    for scale in (0.5, 2.0):
        found = AugmentedDetector(backend, resolution="keep", scales=(scale,), score_threshold=0.3)(image)
        np.testing.assert_allclose(found.xyxy, [[40, 20, 120, 80]], atol=1e-3)


def test_nms_lowers_the_worse_of_two_boxes_at_a_single_scale() -> None:
    spec = tiny_spec()
    peaks = [Peak(0, (8, 6), 0.9, (0.5, 0.5), (8, 8)), Peak(0, (8, 8), 0.8, (0.5, 0.5), (8, 8))]
    backend = FakeBackend(spec, heads_with_peaks(spec, peaks))
    image = np.zeros((64, 64, 3), np.uint8)
    plain = AugmentedDetector(backend, score_threshold=0.1)(image)
    np.testing.assert_allclose(plain.scores, [0.9, 0.8], rtol=1e-5)
    nms = AugmentedDetector(backend, score_threshold=0.1, nms=True)(image)
    np.testing.assert_allclose(nms.scores, [0.9, 0.8 * math.exp(-((48 / 80) ** 2) / 0.5)], rtol=1e-5)
    assert len(AugmentedDetector(backend, score_threshold=0.6, nms=True)(image)) == 1


def test_boxes_of_imported_models_are_measured_with_their_last_pixel() -> None:
    spec = replace(tiny_spec(), decoding="centernet")
    peaks = [Peak(0, (8, 6), 0.9, (0.5, 0.5), (8, 8)), Peak(0, (8, 8), 0.8, (0.5, 0.5), (8, 8))]
    backend = FakeBackend(spec, heads_with_peaks(spec, peaks))
    found = AugmentedDetector(backend, score_threshold=0.1, nms=True)(np.zeros((64, 64, 3), np.uint8))
    iou = 25 * 33 / (2 * 33 * 33 - 25 * 33)
    np.testing.assert_allclose(found.scores, [0.9, 0.8 * math.exp(-(iou**2) / 0.5)], rtol=1e-5)


def test_regression_leaves_joints_where_they_were_regressed() -> None:
    spec = pose_spec()
    heads = heads_with_peaks(spec, [Peak(0, (8, 8), 0.9, (0.0, 0.0), (8, 8))])
    heads["keypoint_heatmap"][0, 1, 6, 10] = logit(0.7)
    backend, image = FakeBackend(spec, heads), np.zeros((64, 64, 3), np.uint8)
    matched = AugmentedDetector(backend, keypoints="matching", score_threshold=0.3)(image).keypoints
    regressed = AugmentedDetector(backend, keypoints="regression", score_threshold=0.3)(image).keypoints
    assert matched is not None and regressed is not None
    np.testing.assert_allclose(matched.xy[0, 1], [40, 24], atol=1e-4)
    np.testing.assert_allclose(regressed.xy[0, 1], [32, 32], atol=1e-4)
    assert regressed.scores.tolist() == [[0.0, 0.0, 0.0]]


def _spec_3d() -> ModelSpec:
    heads = (
        *tiny_spec().heads,
        HeadSpec("depth", 1, "inverse_sigmoid"),
        HeadSpec("rotation", 8, "none"),
        HeadSpec("dimensions", 3, "none"),
    )
    return tiny_spec(heads=heads, tasks=("detection", "3d"))


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (_spec_3d(), {"flip": True}, "finds 3D boxes, for which there is no flip"),
        (tiny_spec(output="peaks"), {"flip": True}, "gives peaks, and these options need the maps"),
        (tiny_spec(), {"scales": (0.5, 1.0)}, r"any size, and 'tiny' was exported for 64x64 alone; evaluate the \.pth"),
        (tiny_spec(), {"resolution": "keep"}, "any size"),
        (tiny_spec(), {"scales": ()}, r"scales are \(\), expected positive numbers"),
        (tiny_spec(), {"scales": (1.0, -1.0)}, "expected positive numbers"),
        (tiny_spec(), {"resolution": "kept"}, "resolution is 'kept', expected one of fixed, keep"),
        (tiny_spec(), {"keypoints": "jd"}, "keypoints is 'jd', expected one of matching, regression"),
    ],
)
def test_what_a_model_does_not_allow_is_refused(spec: ModelSpec, options: dict[str, Any], message: str) -> None:
    backend = AnySizeBackend(spec, None, any_size=False)
    with pytest.raises(ConfigError, match=message):
        AugmentedDetector(backend, **options)


def test_a_model_of_one_size_can_be_flipped() -> None:
    spec = tiny_spec()
    backend = AnySizeBackend(spec, lambda frame, spec: heads_with_peaks(spec), any_size=False)
    assert len(AugmentedDetector(backend, flip=True, scales=(1.0,))(IMAGE)) > 0
    assert backend.sizes == [(64, 64)] * 2


def write_free_size_model(path: Path, spec: ModelSpec) -> Path:
    """An ONNX file whose height and width are symbolic: a cat wherever a 4x4 block of the frame is white."""
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    # The brightness of a cell, 0 to 255, as three heads: channel c is scale[c] * brightness + shift[c].
    heads = {"heatmap": ([0.1, 0.0], [-10.0, -10.0]), "offset": ([0, 0], [0.5, 0.5]), "size": ([0, 0], [1, 1])}
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], to=floats),
        helper.make_node("Transpose", ["float"], ["image"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["image"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]),
    ]
    constants = []
    for name, (scale, shift) in heads.items():
        weight = np.zeros((2, 3, 1, 1), np.float32)
        weight[:, 0, 0, 0] = scale
        constants.append(onnx.numpy_helper.from_array(weight, f"{name}_weight"))
        constants.append(onnx.numpy_helper.from_array(np.array(shift, np.float32), f"{name}_bias"))
        nodes.append(helper.make_node("Conv", ["cells", f"{name}_weight", f"{name}_bias"], [name]))
    frame = helper.make_tensor_value_info("frame", onnx.TensorProto.UINT8, [1, "height", "width", 3])
    outputs = [helper.make_tensor_value_info(name, floats, [1, 2, "rows", "columns"]) for name in heads]
    graph = helper.make_graph(nodes, "free", [frame], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {ONNX_METADATA_KEY: spec.to_json()})
    onnx.save(model, path)
    return path


def test_an_onnx_file_of_symbolic_size_takes_scales(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    image = np.zeros((100, 160, 3), np.uint8)
    image[40:44, 80:84] = 255
    path = write_free_size_model(tmp_path / "free.onnx", tiny_spec())
    with AugmentedDetector(
        open_backend(path, threads=1), flip=True, resolution="keep", scales=(1.0, 2.0), score_threshold=0.5
    ) as detector:
        found = detector(image)
    centres = (found.xyxy[:, :2] + found.xyxy[:, 2:]) / 2
    np.testing.assert_allclose(centres.mean(axis=0), [82, 42], atol=2.1)
    with Detector(path, score_threshold=0.5) as plain:  # at its own size it is a model like any other
        assert len(plain(np.full((64, 64, 3), 255, np.uint8))) == 100
