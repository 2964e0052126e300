from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sdk.decoding import JOINT_THRESHOLD, Candidates, assemble, find_peaks
from sdk.errors import BackendError, HeadShapeError
from sdk.geometry import Affine, input_to_feature, letterbox
from sdk.results import Detections
from sdk.spec import HeadSpec, InputSpec, ModelSpec
from tests.helpers import Array, Heads, Peak, empty_heads, heads_with_peaks, logit, pose_spec, tiny_spec
from train.samples import Sample, empty_boxes
from train.targets import Targets, encode

IDENTITY = Affine(np.array([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]]), "feature", "image")  # of a 64x64 image
Row = tuple[float, int, int, int]  # score, class, y, x


def heatmap_spec(shape: tuple[int, int, int], *, max_detections: int = 100) -> ModelSpec:
    """A model whose heatmap has the shape (C, h, w)."""
    classes, height, width = shape
    return tiny_spec(
        input=InputSpec(4 * width, 4 * height),
        heads=(HeadSpec("heatmap", classes, "sigmoid"), HeadSpec("size", 2, "none")),
        class_names=tuple(f"class {i}" for i in range(classes)),
        max_detections=max_detections,
    )


def literal_peaks(logits: Array, max_detections: int, threshold: float) -> list[Row]:
    """The paper, sec. 4, in loops: 3x3 maximum, top K of each class, top K of these."""
    classes, height, width = logits.shape
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    found: list[Row] = []
    for c in range(classes):
        of_class: list[Row] = []
        for y in range(height):
            for x in range(width):
                highest = scores[c, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max()
                if scores[c, y, x] == highest and scores[c, y, x] >= threshold:
                    of_class.append((float(scores[c, y, x]), c, y, x))
        found += sorted(of_class, key=lambda row: (-row[0], row[2], row[3]))[:max_detections]
    return sorted(found, key=lambda row: (-row[0], *row[1:]))[:max_detections]


def rows_of(candidates: Candidates) -> list[Row]:
    return [
        (float(score), int(c), int(y), int(x))
        for score, c, (y, x) in zip(candidates.scores, candidates.class_ids, candidates.cells_yx, strict=True)
    ]


def check_against_the_paper(logits: Array, max_detections: int, threshold: float) -> None:
    spec = heatmap_spec(logits.shape, max_detections=max_detections)
    heads = {"heatmap": logits[None], "size": np.ones((1, 2, *logits.shape[1:]), np.float32)}
    found = rows_of(find_peaks(heads, spec, score_threshold=threshold))
    expected = literal_peaks(logits, max_detections, threshold)
    assert [row[1:] for row in found] == [row[1:] for row in expected]
    np.testing.assert_allclose([row[0] for row in found], [row[0] for row in expected], rtol=1e-5)


shapes = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))
thresholds = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0])


@given(
    logits=shapes.flatmap(lambda shape: hnp.arrays(np.int32, shape, elements=st.integers(-8000, 8000))).map(
        lambda thousandths: thousandths.astype(np.float32) / 1000  # apart enough for their scores to differ
    ),
    max_detections=st.integers(1, 12),
    threshold=thresholds,
)
def test_peaks_are_the_papers(logits: Array, max_detections: int, threshold: float) -> None:
    check_against_the_paper(logits, max_detections, threshold)


@given(
    logits=shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=st.sampled_from([-4.0, 0.0, 1.0]))),
    max_detections=st.integers(1, 12),
    threshold=thresholds,
)
def test_plateaus_and_ties_are_the_papers(logits: Array, max_detections: int, threshold: float) -> None:
    # 0.0 is a score of exactly 0.5, which is one of the thresholds.
    check_against_the_paper(logits, max_detections, threshold)


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.5, 0.97])
def test_large_maps_are_the_papers_at_any_threshold(threshold: float, levels: int) -> None:
    # 20 480 cells: at threshold 0 all of them are looked at by the filter for dense maps.
    logits = np.random.default_rng(levels).normal(0, 2, (80, 16, 16)).astype(np.float32)
    if levels:
        logits = np.round(logits * levels) / np.float32(levels)
    check_against_the_paper(logits, 100, threshold)


@pytest.mark.parametrize("threshold", [0.0, 0.02])
def test_many_equal_cells_come_in_reading_order(threshold: float) -> None:
    flat = np.zeros((80, 16, 17), np.float32)
    found = rows_of(
        find_peaks(
            {"heatmap": flat, "size": np.zeros((2, 16, 17), np.float32)},
            heatmap_spec((80, 16, 17), max_detections=40),
            score_threshold=threshold,
        )
    )
    assert found == [(0.5, 0, i // 17, i % 17) for i in range(40)]


def test_border_cells_can_be_peaks() -> None:
    corners = [(0, 0), (0, 15), (15, 0), (15, 15), (7, 0), (0, 7)]
    spec = tiny_spec()
    heads = heads_with_peaks(spec, [Peak(1, cell, 0.9 - 0.1 * i) for i, cell in enumerate(corners)])
    assert [row[2:] for row in rows_of(find_peaks(heads, spec, score_threshold=0.1))] == corners


@pytest.mark.parametrize("spec", [tiny_spec(), pose_spec()])
def test_an_empty_scene_has_no_detections(spec: ModelSpec) -> None:
    detections = decode(empty_heads(spec), spec, score_threshold=0.3)
    assert len(detections) == 0 and detections.class_names == spec.class_names
    assert detections.xyxy.shape == (0, 4)
    assert (detections.keypoints is not None) == spec.has_head("keypoint_offset")
    assert detections.to_json() == "[]"


def decode(heads: Heads, spec: ModelSpec, *, score_threshold: float = 0.3, limit: float = 0.0) -> Detections:
    candidates = find_peaks(heads, spec, score_threshold=score_threshold)
    return assemble(candidates, spec, IDENTITY, image_wh=(64, 64), score_threshold=limit)


def test_known_peaks_give_known_boxes() -> None:
    spec = tiny_spec()
    detections = decode(heads_with_peaks(spec), spec)
    np.testing.assert_allclose(detections.scores, [0.9, 0.6, 0.4], rtol=1e-6)
    np.testing.assert_array_equal(detections.class_ids, [0, 1, 1])
    # Cell (4, 3) plus offset (0.25, 0.75), sizes 4 and 2 cells, 4 pixels a cell.
    np.testing.assert_allclose(detections.xyxy[0], [9.0, 11.0, 25.0, 19.0], atol=1e-4)
    np.testing.assert_allclose(detections.xyxy[1], [44.0, 32.0, 56.0, 52.0], atol=1e-4)
    assert detections.xyxy.dtype == detections.scores.dtype == np.float32
    assert detections.class_ids.dtype == np.int64


def test_both_thresholds_leave_out_the_same() -> None:
    spec = tiny_spec()
    heads = heads_with_peaks(spec)
    early, late = decode(heads, spec, score_threshold=0.5), decode(heads, spec, score_threshold=0.0, limit=0.5)
    np.testing.assert_array_equal(early.xyxy, late.xyxy)
    np.testing.assert_array_equal(early.scores, late.scores)
    assert len(decode(heads, spec, score_threshold=0.0)) == spec.max_detections


def test_without_an_offset_head_the_centre_is_the_middle_of_the_cell() -> None:
    spec = tiny_spec()
    without = replace(spec, heads=tuple(head for head in spec.heads if head.name != "offset"))
    box = decode(heads_with_peaks(spec, [Peak(0, (5, 5), 0.9, (0.1, 0.1), (2, 2))]), without).xyxy[0]
    np.testing.assert_allclose(box, [18, 18, 26, 26])


def test_size_as_a_logarithm() -> None:
    spec = tiny_spec()
    logarithmic = replace(spec, heads=(*spec.heads[:2], HeadSpec("size", 2, "exp")))
    heads = heads_with_peaks(spec, [Peak(0, (8, 8), 0.9)])
    heads["size"] = np.log(np.maximum(heads["size"], 1e-6))
    np.testing.assert_allclose(decode(heads, logarithmic).xyxy, [[26, 30, 42, 38]], atol=1e-4)
    heads["size"][:] = 1e30  # a broken model, but finite
    np.testing.assert_array_equal(decode(heads, logarithmic).xyxy, [[0, 0, 64, 64]])


def test_boxes_are_clipped_to_the_image_and_never_inside_out() -> None:
    spec = tiny_spec()
    peaks = [
        Peak(0, (0, 0), 0.9, (0.0, 0.0), (6, 6)),
        Peak(0, (15, 15), 0.8, (1.0, 1.0), (100, 100)),
        Peak(0, (8, 8), 0.7, (0.5, 0.5), (-3, 2)),
    ]
    detections = decode(heads_with_peaks(spec, peaks), spec)
    np.testing.assert_allclose(detections.xyxy[:2], [[0, 0, 12, 12], [0, 0, 64, 64]])
    assert (detections.xyxy[:, 2:] >= detections.xyxy[:, :2]).all()


def test_heads_may_lack_the_batch_axis_or_be_half_precision_or_views() -> None:
    spec = tiny_spec()
    heads = heads_with_peaks(spec)
    expected = decode(heads, spec)
    forms = [
        {name: head[0] for name, head in heads.items()},
        {name: np.asfortranarray(head) for name, head in heads.items()},
        {name: np.repeat(head, 2, axis=3)[..., ::2] for name, head in heads.items()},
    ]
    for form in forms:
        np.testing.assert_array_equal(decode(form, spec).xyxy, expected.xyxy)
    half = decode({name: head.astype(np.float16) for name, head in heads.items()}, spec)
    np.testing.assert_allclose(half.xyxy, expected.xyxy, atol=0.1)


def test_the_heads_are_not_changed() -> None:
    spec = pose_spec()
    heads = random_pose_heads(spec, 0)
    before = {name: head.copy() for name, head in heads.items()}
    decode(heads, spec, score_threshold=0.0)
    for name, head in heads.items():
        np.testing.assert_array_equal(head, before[name])


# Round trip with the targets that the network is trained on


@st.composite
def separate_boxes(draw: st.DrawFn) -> Array:
    """(N, 4) boxes in a 200x100 image, with centres that do not fall into neighbouring cells."""
    boxes: list[list[float]] = []
    taken: set[tuple[int, int]] = set()
    for _ in range(draw(st.integers(0, 6))):
        x, y = draw(st.floats(10, 190, width=32)), draw(st.floats(10, 90, width=32))
        # The 200x100 image is 16x8 cells of the letterboxed input.
        cell = (int(x * 16 / 200), int(y * 16 / 200))
        if any(abs(cell[0] - a) <= 1 and abs(cell[1] - b) <= 1 for a, b in taken):
            continue
        taken.add(cell)
        w, h = draw(st.floats(4, 2 * min(x, 200 - x))), draw(st.floats(4, 2 * min(y, 100 - y)))
        boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return np.array(boxes, np.float64).reshape(-1, 4)


@pytest.mark.parametrize(("gaussian", "activation"), [("circle", "none"), ("ellipse", "exp")])
@given(boxes=separate_boxes())
def test_encoded_boxes_are_decoded(gaussian: str, activation: str, boxes: Array) -> None:
    spec = tiny_spec(heads=(*tiny_spec().heads[:2], HeadSpec("size", 2, activation)))  # type: ignore[arg-type]
    image_to_input = letterbox((200, 100), spec.input.wh).image_to_input
    classes = np.arange(len(boxes)) % 2
    sample = Sample(
        np.zeros((64, 64, 3), np.uint8),
        image_to_input.apply(boxes.reshape(-1, 2, 2)).reshape(-1, 4),
        classes,
        np.zeros((len(boxes), 0, 3), np.float32),
        empty_boxes(),
    )
    targets = encode(sample, num_classes=2, stride=4, gaussian=gaussian)
    back = image_to_input.then(input_to_feature(4)).inverse()
    candidates = find_peaks(heads_from_targets(targets, spec), spec, score_threshold=0.99)
    detections = assemble(candidates, spec, back, image_wh=(200, 100))
    assert len(detections) == len(boxes)
    for box, class_id in zip(boxes, classes, strict=True):
        errors = np.abs(detections.xyxy[detections.class_ids == class_id] - box).max(axis=1)
        assert errors.min() < 1e-3


def heads_from_targets(targets: Targets, spec: ModelSpec) -> Heads:
    """What a perfect network answers."""
    heads = empty_heads(spec)
    heads["heatmap"][0] = logit(np.clip(targets.heatmap * 0.999, 1e-4, None))
    for (y, x), box in zip(targets.cell_yx, targets.box_xyxy, strict=True):
        size = box[2:] - box[:2]
        heads["offset"][0, :, y, x] = (box[:2] + box[2:]) / 2 - (x, y)
        heads["size"][0, :, y, x] = np.log(size) if spec.head("size").activation == "exp" else size
    if spec.has_head("keypoint_offset"):
        for (y, x), box, keypoints in zip(targets.cell_yx, targets.box_xyxy, targets.keypoints, strict=True):
            unit = box[2:] - box[:2] if spec.head("keypoint_offset").activation == "box" else 1.0
            heads["keypoint_offset"][0, :, y, x] = ((keypoints[:, :2] - (x, y)) / unit).ravel()
    if spec.has_head("keypoint_heatmap"):
        heads["keypoint_heatmap"][0] = logit(np.clip(targets.keypoint_heatmap * 0.999, 1e-4, None))
        for (y, x), offset in zip(targets.joint_cell_yx, targets.joint_offset, strict=True):
            heads["keypoint_heatmap_offset"][0, :, y, x] = offset
    return heads


@pytest.mark.parametrize("activation", ["none", "box"])
@pytest.mark.parametrize("seed", range(5))
def test_encoded_poses_are_decoded(activation: str, seed: int) -> None:
    spec = pose_spec()
    spec = replace(spec, heads=(*spec.heads[:3], HeadSpec("keypoint_offset", 6, activation), *spec.heads[4:]))  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    boxes = np.array([[2, 2, 30, 62], [34, 2, 62, 62]], np.float64)
    keypoints = np.full((2, 3, 3), 2.0)
    for person, joints in zip(boxes, keypoints, strict=True):
        joints[:, 0], joints[:, 1] = rng.uniform(person[0], person[2], 3), rng.uniform(person[1], person[3], 3)
    keypoints[1, 2, 2] = 0  # not labelled
    targets = encode(
        Sample(np.zeros((64, 64, 3), np.uint8), boxes, np.zeros(2, np.int64), keypoints, empty_boxes()),
        num_classes=1,
        stride=4,
    )
    detections = decode(heads_from_targets(targets, spec), spec, score_threshold=0.99)
    assert len(detections) == 2 and detections.keypoints is not None
    for person, box in zip(detections, detections.xyxy, strict=True):
        row = int(np.abs(boxes - box).max(axis=1).argmin())
        labelled = keypoints[row, :, 2] > 0
        assert person.keypoints is not None
        np.testing.assert_allclose(person.keypoints.xy[0], keypoints[row, :, :2], atol=2e-3)
        np.testing.assert_allclose(person.keypoints.scores[0, labelled], 0.999, atol=1e-3)
        assert (person.keypoints.scores[0, ~labelled] == 0).all()


# Joints, sec. 4.2


def random_pose_heads(spec: ModelSpec, seed: int) -> Heads:
    rng = np.random.default_rng(seed)
    heads = empty_heads(spec)
    heads["heatmap"][:] = rng.normal(-1, 2, heads["heatmap"].shape)
    heads["offset"][:] = rng.uniform(0, 1, heads["offset"].shape)
    heads["size"][:] = rng.uniform(1, 9, heads["size"].shape)
    heads["keypoint_offset"][:] = rng.normal(0, 2, heads["keypoint_offset"].shape)
    if spec.has_head("keypoint_heatmap"):
        heads["keypoint_heatmap"][:] = rng.normal(-3, 2, heads["keypoint_heatmap"].shape)
        heads["keypoint_heatmap_offset"][:] = rng.uniform(0, 1, heads["keypoint_heatmap_offset"].shape)
    return heads


def literal_joints(heads: Heads, spec: ModelSpec, box: Array, cell_yx: tuple[int, int]) -> tuple[Array, Array]:
    """Sec. 4.2 in loops, for one object in the feature frame: (K, 2) joints and (K,) scores."""
    y, x = cell_yx
    points, scores = np.zeros((spec.num_keypoints, 2)), np.zeros(spec.num_keypoints)
    for kind in range(spec.num_keypoints):
        regressed = np.array([x, y]) + heads["keypoint_offset"][0, 2 * kind : 2 * kind + 2, y, x]
        points[kind] = regressed
        nearest = np.inf
        maps = heads["keypoint_heatmap"][0, kind : kind + 1]
        for score, _, joint_y, joint_x in literal_peaks(maps, spec.max_joint_candidates, JOINT_THRESHOLD):
            joint = np.array([joint_x, joint_y]) + heads["keypoint_heatmap_offset"][0, :, joint_y, joint_x]
            inside = box[0] <= joint[0] <= box[2] and box[1] <= joint[1] <= box[3]
            distance = float(((joint - regressed) ** 2).sum())
            if inside and distance < nearest:
                nearest, points[kind], scores[kind] = distance, joint, score
    return points, scores


@pytest.mark.parametrize("max_joint_candidates", [100, 3])
@pytest.mark.parametrize("seed", range(4))
def test_joints_are_matched_as_in_the_paper(seed: int, max_joint_candidates: int) -> None:
    spec = pose_spec(num_keypoints=4, max_detections=20, max_joint_candidates=max_joint_candidates)
    heads = random_pose_heads(spec, seed)
    candidates = find_peaks(heads, spec, score_threshold=0.0)
    to_cells = Affine(np.eye(2, 3), "feature", "image")
    detections = assemble(candidates, spec, to_cells, image_wh=(16, 16))
    assert detections.keypoints is not None and len(detections) == 20
    snapped = 0
    for row, (y, x) in enumerate(candidates.cells_yx):
        centre = np.array([x, y]) + heads["offset"][0, :, y, x]
        size = heads["size"][0, :, y, x]
        box = np.concatenate([centre - size / 2, centre + size / 2])
        points, scores = literal_joints(heads, spec, box, (int(y), int(x)))
        np.testing.assert_allclose(detections.keypoints.xy[row], points, atol=1e-4)
        np.testing.assert_allclose(detections.keypoints.scores[row], scores, atol=1e-5)
        snapped += int((scores > 0).sum())
    assert 0 < snapped < 80  # both cases occurred


def _one_person(joint_cells_yx: list[tuple[int, int]], scores: list[float]) -> tuple[ModelSpec, Heads]:
    """A person in cells 4 to 12 whose only joint is regressed to cell (8, 8), with detected joints around."""
    spec = pose_spec(num_keypoints=1)
    heads = heads_with_peaks(spec, [Peak(0, (8, 8), 0.9, (0.0, 0.0), (8, 8))])
    for (y, x), score in zip(joint_cells_yx, scores, strict=True):
        heads["keypoint_heatmap"][0, 0, y, x] = logit(score)
    return spec, heads


@pytest.mark.parametrize(
    ("cells_yx", "scores", "expected_xy", "expected_score"),
    [
        ([], [], (32, 32), 0.0),  # nothing detected: the regressed joint
        ([(8, 10), (8, 5)], [0.3, 0.9], (40, 32), 0.3),  # the closest one, not the best
        ([(8, 13)], [0.9], (32, 32), 0.0),  # outside the box
        ([(8, 9), (8, 13)], [0.05, 0.9], (32, 32), 0.0),  # 0.1 is not reached
        ([(8, 12)], [0.9], (48, 32), 0.9),  # on the border of the box is inside
        ([(8, 6), (8, 10)], [0.4, 0.8], (40, 32), 0.8),  # equally close: the better one
        ([(8, 6), (8, 10)], [0.8, 0.4], (24, 32), 0.8),
    ],
)
def test_a_joint_snaps_to_the_closest_detection_in_the_box(
    cells_yx: list[tuple[int, int]], scores: list[float], expected_xy: tuple[int, int], expected_score: float
) -> None:
    spec, heads = _one_person(cells_yx, scores)
    keypoints = decode(heads, spec).keypoints
    assert keypoints is not None
    np.testing.assert_allclose(keypoints.xy[0, 0], expected_xy, atol=1e-4)
    assert keypoints.scores[0, 0] == pytest.approx(expected_score, abs=1e-6)


def official_joints(heads: Heads, spec: ModelSpec, box: Array, cell_yx: tuple[int, int]) -> tuple[Array, Array]:
    """The official code in loops, for one object in the feature frame; scores 0 where it falls back."""
    y, x = cell_yx
    points, scores = np.zeros((spec.num_keypoints, 2)), np.zeros(spec.num_keypoints)
    for kind in range(spec.num_keypoints):
        regressed = np.array([x, y]) + heads["keypoint_offset"][0, 2 * kind : 2 * kind + 2, y, x]
        distances, joints, joint_scores = [], [], []
        # All of the top K; those without a score to speak of are moved out of the way.
        for score, _, joint_y, joint_x in literal_peaks(heads["keypoint_heatmap"][0, kind : kind + 1], 100, 0.0):
            joint = np.array([joint_x, joint_y]) + heads["keypoint_heatmap_offset"][0, :, joint_y, joint_x]
            joints.append(joint if score > 0.1 else np.array([-10000.0, -10000.0]))
            joint_scores.append(score if score > 0.1 else -1.0)
            distances.append(float(np.sqrt(((joints[-1] - regressed) ** 2).sum())))
        nearest = int(np.argmin(distances))
        joint, score = joints[nearest], joint_scores[nearest]
        outside = joint[0] < box[0] or joint[0] > box[2] or joint[1] < box[1] or joint[1] > box[3]
        longer = max(box[3] - box[1], box[2] - box[0])
        refused = outside or score < 0.1 or distances[nearest] > 0.3 * longer
        points[kind], scores[kind] = (regressed, 0.0) if refused else (joint, score)
    return points, scores


@pytest.mark.parametrize("seed", range(4))
def test_joints_of_an_official_model_are_matched_as_in_the_official_code(seed: int) -> None:
    spec = pose_spec(num_keypoints=4, max_detections=20, decoding="centernet")
    heads = random_pose_heads(spec, seed)
    candidates = find_peaks(heads, spec)
    detections = assemble(candidates, spec, Affine(np.eye(2, 3), "feature", "image"), image_wh=(16, 16))
    as_in_the_paper = assemble(
        candidates, replace(spec, decoding="paper"), Affine(np.eye(2, 3), "feature", "image"), image_wh=(16, 16)
    )
    assert detections.keypoints is not None and as_in_the_paper.keypoints is not None
    for row, (y, x) in enumerate(candidates.cells_yx):
        centre = np.array([x, y]) + heads["offset"][0, :, y, x]
        size = heads["size"][0, :, y, x]
        box = np.concatenate([centre - size / 2, centre + size / 2])
        points, scores = official_joints(heads, spec, box, (int(y), int(x)))
        np.testing.assert_allclose(detections.keypoints.xy[row], points, atol=1e-4)
        np.testing.assert_allclose(detections.keypoints.scores[row], scores, atol=1e-5)
    snapped = detections.keypoints.scores > 0
    assert snapped.any() and not snapped.all()
    assert (detections.keypoints.xy != as_in_the_paper.keypoints.xy).any(), "the two differ, or nothing is tested"


def test_a_model_without_joint_heatmaps_gives_the_regressed_joints() -> None:
    spec = pose_spec(joints=False)
    heads = heads_with_peaks(spec, [Peak(0, (8, 8), 0.9)])
    heads["keypoint_offset"][0, :, 8, 8] = [1, 2, -1, -2, 0, 0]
    keypoints = decode(heads, spec).keypoints
    assert keypoints is not None
    np.testing.assert_allclose(keypoints.xy[0], [[36, 40], [28, 24], [32, 32]])
    np.testing.assert_array_equal(keypoints.scores, np.zeros((1, 3)))


# Heads that are not what the spec says


def test_a_missing_head_is_named() -> None:
    heads = heads_with_peaks(tiny_spec())
    del heads["size"]
    with pytest.raises(HeadShapeError, match="gave no 'size', which spec 'tiny' declares; it gave heatmap, offset"):
        find_peaks(heads, tiny_spec())


@pytest.mark.parametrize(
    ("name", "shape"),
    [("heatmap", (1, 80, 16, 16)), ("size", (1, 2, 8, 16)), ("offset", (2, 2, 16, 16)), ("heatmap", (16, 16))],
)
def test_another_shape_is_named(name: str, shape: tuple[int, ...]) -> None:
    heads = {**heads_with_peaks(tiny_spec()), name: np.zeros(shape, np.float32)}
    with pytest.raises(HeadShapeError, match=rf"{name} has shape \({shape[0]}, .* spec 'tiny' declares \(1, 2, 16, 16"):
        find_peaks(heads, tiny_spec())


@pytest.mark.parametrize("name", ["heatmap", "offset", "size", "keypoint_offset", "keypoint_heatmap"])
@pytest.mark.parametrize("everywhere", [True, False])
def test_nan_is_an_error_not_a_detection(name: str, everywhere: bool) -> None:
    spec = pose_spec()
    heads = heads_with_peaks(spec, [Peak(0, (8, 8), 0.9)])
    heads[name][(slice(None),) if everywhere else (0, 0, 8, 8)] = np.nan
    with pytest.raises(BackendError, match=rf"{name} of model 'tiny-pose' holds NaN.* sound checkpoint"):
        decode(heads, spec)


def test_infinite_sizes_are_an_error_and_infinite_scores_are_not() -> None:
    spec = tiny_spec()
    heads = heads_with_peaks(spec, [Peak(0, (8, 8), 0.9)])
    heads["heatmap"][:] = -np.inf
    assert len(decode(heads, spec)) == 0
    heads["heatmap"][0, 0, 8, 8] = np.inf
    assert decode(heads, spec).scores[0] == 1.0
    heads["size"][0, 0, 8, 8] = np.inf
    with pytest.raises(BackendError, match="size of model 'tiny' holds NaN or infinity"):
        decode(heads, spec)
