from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import train.targets
from sdk.camera import CameraIntrinsics
from sdk.decoding import assemble, find_peaks
from sdk.geometry import input_to_feature
from sdk.results import Boxes3D
from sdk.spec import HeadSpec
from tests.helpers import Array, empty_heads, tiny_spec
from train.samples import Sample, empty_boxes
from train.targets import MIN_OVERLAP, Targets, collate, draw_gaussian, encode, gaussian_radius


def make_sample(
    boxes: Any, *, class_ids: Any = None, keypoints: Any = None, ignore: Any = None, wh: tuple[int, int] = (64, 64)
) -> Sample:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Sample(
        np.zeros((wh[1], wh[0], 3), np.uint8),
        boxes,
        np.zeros(len(boxes), np.int64) if class_ids is None else np.array(class_ids),
        np.zeros((len(boxes), 0, 3), np.float32) if keypoints is None else np.array(keypoints, np.float32),
        empty_boxes() if ignore is None else np.array(ignore, np.float32),
    )


KITTI_LIKE = CameraIntrinsics(np.array([[70.0, 0, 61, 4.5], [0, 72, 38, 0.2], [0, 0, 1, 0.003]]))


def sample_in_space(seed: int, *, count: int = 3, camera: CameraIntrinsics = KITTI_LIKE) -> Sample:
    """A black picture of 120x80 with boxes in space, all in front of the camera; 2D boxes are their hulls."""
    rng = np.random.default_rng(seed)
    centre = np.column_stack([rng.uniform(-6, 6, count), rng.uniform(-1, 1, count), rng.uniform(8, 30, count)])
    boxes3d = Boxes3D(
        centre.astype(np.float32),
        rng.uniform([1.2, 1.4, 3], [2.0, 2.0, 5], (count, 3)).astype(np.float32),
        rng.uniform(-np.pi, np.pi, count).astype(np.float32),
    )
    return replace(make_sample(hulls(boxes3d, camera), wh=(120, 80)), boxes3d=boxes3d, camera=camera)


def hulls(boxes3d: Boxes3D, camera: CameraIntrinsics) -> Array:
    """(N, 4) boxes around the projected corners."""
    pixels = camera.project(boxes3d.corners_m())
    return np.concatenate([pixels.min(axis=1), pixels.max(axis=1)], axis=1).astype(np.float32)


def _iou(a: Array, b: Array) -> float:
    overlap = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(overlap / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - overlap))


sides = st.floats(0.5, 200)


@given(width=sides, height=sides, share=st.floats(0, 1))
def test_a_shift_within_the_radius_keeps_the_overlap(width: float, height: float, share: float) -> None:
    r = gaussian_radius(np.array([width, height])) * share
    box = np.array([0, 0, width, height])
    both_outwards, both_inwards = [-r, -r, r, r], [r, r, -r, -r]
    one_in_one_out = [r, r, r, r]
    for shift in (both_outwards, both_inwards, one_in_one_out):
        assert _iou(box, box + shift) >= MIN_OVERLAP - 1e-6


@given(width=sides, height=sides)
def test_the_radius_is_the_largest_that_does(width: float, height: float) -> None:
    r = gaussian_radius(np.array([width, height])) * 1.001
    box = np.array([0, 0, width, height])
    worst = min(_iou(box, box + shift) for shift in ([-r, -r, r, r], [r, r, -r, -r], [r, r, r, r]))
    assert worst < MIN_OVERLAP


@given(
    width=st.floats(0.1, 60),
    height=st.floats(0.1, 60),
    x=st.floats(0, 63.9),
    y=st.floats(0, 63.9),
    gaussian=st.sampled_from(["circle", "ellipse"]),
)
def test_the_peak_is_exactly_one_at_the_centre_alone(
    width: float, height: float, x: float, y: float, gaussian: str
) -> None:
    box = np.clip([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 0, 64)
    targets = encode(make_sample([box]), num_classes=1, stride=4, gaussian=gaussian)
    centre = (np.float32(box[:2]) + np.float32(box[2:])) / 2 / 4
    rows, columns = np.nonzero(targets.heatmap[0] == 1.0)
    assert list(zip(rows, columns, strict=True)) == [(int(centre[1]), int(centre[0]))]
    assert targets.heatmap.min() >= 0.0


def test_a_gaussian_is_what_it_says() -> None:
    heatmap = np.zeros((21, 31), np.float32)
    draw_gaussian(heatmap, (15, 10), (2.0, 1.0))
    for y in range(21):
        for x in range(31):
            inside = abs(x - 15) <= 6 and abs(y - 10) <= 3
            expected = np.exp(-((x - 15) ** 2) / 8 - (y - 10) ** 2 / 2) if inside else 0.0
            assert heatmap[y, x] == pytest.approx(expected, abs=1e-6)


def test_where_gaussians_overlap_the_larger_value_stays() -> None:
    alone = [encode(make_sample([box]), num_classes=1, stride=4).heatmap for box in ([0, 0, 40, 40], [12, 12, 52, 52])]
    both = encode(make_sample([[0, 0, 40, 40], [12, 12, 52, 52]]), num_classes=1, stride=4)
    np.testing.assert_array_equal(both.heatmap, np.maximum(*alone))


def test_circles_follow_the_radius_and_ellipses_the_box() -> None:
    tall = make_sample([[28, 4, 36, 60]])
    circle = encode(tall, num_classes=1, stride=4).heatmap[0] > 0
    ellipse = encode(tall, num_classes=1, stride=4, gaussian="ellipse").heatmap[0] > 0
    assert np.ptp(np.nonzero(circle)[0]) == np.ptp(np.nonzero(circle)[1])
    assert np.ptp(np.nonzero(ellipse)[0]) >= 3 * np.ptp(np.nonzero(ellipse)[1])
    assert np.ptp(np.nonzero(ellipse)[1]) > 0


def test_classes_have_their_own_heatmaps() -> None:
    targets = encode(make_sample([[0, 0, 16, 16], [40, 40, 56, 56]], class_ids=[2, 0]), num_classes=3, stride=4)
    assert targets.heatmap.shape == (3, 16, 16)
    assert targets.heatmap[2, 2, 2] == 1 and targets.heatmap[0, 12, 12] == 1
    assert not targets.heatmap[1].any()


def test_one_positive_cell_an_object() -> None:
    targets = encode(make_sample([[4, 8, 24, 20], [40, 40, 43, 43]]), num_classes=1, stride=4)
    np.testing.assert_array_equal(sorted(targets.cell_yx.tolist()), [[3, 3], [10, 10]])
    assert targets.weight.tolist() == [1.0, 1.0]
    row = targets.cell_yx.tolist().index([3, 3])
    np.testing.assert_allclose(targets.box_xyxy[row], [1, 2, 6, 5])


def test_nine_positive_cells_of_weight_one_in_all() -> None:
    # One large box, one below 3 cells that stays with its centre, and one in the corner.
    boxes = [[16, 16, 48, 48], [52, 4, 60, 12], [-8, 52, 12, 72]]
    targets = encode(make_sample(boxes), num_classes=1, stride=4, positive_cells=3)
    for box, count in zip(boxes, (9, 1, 4), strict=True):
        of_object = (targets.box_xyxy == np.array(box) / 4).all(axis=1)
        assert of_object.sum() == count
        assert targets.weight[of_object].sum() == pytest.approx(1.0)


def test_a_cell_that_two_objects_claim() -> None:
    # The centres are neighbours: each keeps its own; in between, the smaller object has the cell.
    large, small = [0, 0, 60, 60], [24, 24, 44, 44]  # centres in cells (7, 7) and (8, 8)
    targets = encode(make_sample([large, small]), num_classes=1, stride=4, positive_cells=3)
    owner = {tuple(cell): box[2] for cell, box in zip(targets.cell_yx.tolist(), targets.box_xyxy, strict=True)}
    assert len(owner) == len(targets.cell_yx)  # no cell twice
    assert owner[7, 7] == 15 and owner[8, 8] == 11
    assert owner[7, 8] == owner[8, 7] == 11 and owner[6, 6] == 15


def test_joints_have_heatmaps_and_offsets() -> None:
    keypoints = [[[10, 21, 2], [30, 31, 1], [0, 0, 0]]]  # seen, hidden, not labelled
    targets = encode(make_sample([[4, 4, 60, 60]], keypoints=keypoints), num_classes=1, stride=4)
    assert targets.keypoint_heatmap.shape == (3, 16, 16)
    assert targets.keypoint_heatmap[0, 5, 2] == 1 and targets.keypoint_heatmap[1, 7, 7] == 1
    assert not targets.keypoint_heatmap[2].any()
    np.testing.assert_array_equal(targets.joint_cell_yx, [[5, 2], [7, 7]])
    np.testing.assert_allclose(targets.joint_offset, [[0.5, 0.25], [0.5, 0.75]])
    np.testing.assert_allclose(targets.keypoints[0], [[2.5, 5.25, 1], [7.5, 7.75, 1], [0, 0, 0]])


def test_ignored_regions_are_not_counted_except_where_an_object_is() -> None:
    targets = encode(make_sample([[20, 20, 28, 28]], ignore=[[0, 0, 32, 32]]), num_classes=1, stride=4)
    assert targets.counted.shape == (1, 16, 16)
    assert targets.counted[0, 0, 0] == 0 and targets.counted[0, 7, 7] == 0
    assert targets.counted[0, 6, 6] == 1  # the object's centre
    assert (targets.counted[0, 8:] == 1).all() and (targets.counted[0, :, 8:] == 1).all()


def test_joints_of_people_without_labels_are_not_counted() -> None:
    keypoints = np.zeros((2, 3, 3))
    keypoints[0, :] = [8, 8, 2]
    targets = encode(make_sample([[0, 0, 16, 16], [32, 32, 64, 64]], keypoints=keypoints), num_classes=1, stride=4)
    assert (targets.joints_counted[0, :8, :8] == 1).all()
    assert (targets.joints_counted[0, 8:, 8:] == 0).all()
    assert (targets.counted == 1).all()


@pytest.mark.parametrize("positive_cells", [1, 3])
def test_a_picture_without_objects(positive_cells: int) -> None:
    sample = make_sample(np.zeros((0, 4)), keypoints=np.zeros((0, 17, 3)))
    targets = encode(sample, num_classes=2, stride=4, positive_cells=positive_cells)
    assert not targets.heatmap.any() and targets.keypoint_heatmap.shape == (17, 16, 16)
    assert targets.box_xyxy.shape == (0, 4) and targets.keypoints.shape == (0, 17, 3)
    assert targets.joint_offset.shape == (0, 2)


@given(seed=st.integers(0, 1000), positive_cells=st.sampled_from([1, 3]), focal=st.floats(50, 2000))
def test_boxes_in_space_become_depth_dimensions_and_alpha(seed: int, positive_cells: int, focal: float) -> None:
    sample = sample_in_space(seed)
    targets = encode(sample, num_classes=1, stride=4, positive_cells=positive_cells, focal_px=focal)
    assert sample.boxes3d is not None and (targets.has_3d == 1).all()
    for row in range(len(targets.cell_yx)):
        owner = np.abs(sample.boxes_xyxy / 4 - targets.box_xyxy[row]).sum(axis=1).argmin()
        x, _, z = sample.boxes3d.center_m[owner].astype(float)
        # What the decoder will do: metres under this picture's focal length, and yaw along this object's ray.
        assert targets.depth[row] * KITTI_LIKE.focal_px / focal == pytest.approx(z, rel=1e-5)
        yaw = targets.alpha_rad[row] + np.arctan2(x, z)
        assert np.cos(yaw - sample.boxes3d.yaw_rad[owner]) == pytest.approx(1, abs=1e-5)
        np.testing.assert_array_equal(targets.dimensions_hwl_m[row], sample.boxes3d.size_hwl_m[owner])
    assert (np.abs(targets.alpha_rad) <= np.float32(np.pi)).all()


def test_a_picture_scaled_with_its_camera_has_the_same_depths() -> None:
    sample = sample_in_space(0)
    double = CameraIntrinsics(np.diag([2.0, 2.0, 1.0]) @ KITTI_LIKE.matrix)
    large = replace(sample, image=np.zeros((160, 240, 3), np.uint8), boxes_xyxy=sample.boxes_xyxy * 2, camera=double)
    depths = [encode(each, num_classes=1, stride=4, focal_px=100.0).depth for each in (sample, large)]
    np.testing.assert_allclose(np.sort(depths[1]), np.sort(depths[0]) / 2, rtol=1e-5)


def test_objects_without_a_place_in_space_are_marked() -> None:
    sample = sample_in_space(1)
    assert sample.boxes3d is not None
    sample.boxes3d.center_m[0] = np.nan
    sample.boxes3d.yaw_rad[1] = np.nan
    targets = encode(sample, num_classes=1, stride=4, focal_px=100.0)
    assert sorted(targets.has_3d) == [0, 0, 1] and len(targets.box_xyxy) == 3
    assert np.isfinite(targets.depth).all() and np.isfinite(targets.alpha_rad).all()
    assert not targets.dimensions_hwl_m[targets.has_3d == 0].any()
    for lacking in (replace(sample, camera=None), replace(sample, boxes3d=None)):
        assert not encode(lacking, num_classes=1, stride=4).has_3d.any()


def test_a_batch_remembers_the_picture_of_each_row() -> None:
    parts = [
        encode(make_sample(boxes, keypoints=np.full((len(boxes), 1, 3), 9.0)), num_classes=1, stride=4)
        for boxes in ([[0, 0, 20, 20]], np.zeros((0, 4)), [[4, 4, 24, 24], [30, 30, 60, 60]])
    ]
    batch: Targets = collate(parts)
    assert batch.heatmap.shape == (3, 1, 16, 16) and batch.counted.shape == (3, 1, 16, 16)
    assert batch.picture.tolist() == [0, 2, 2] and batch.joint_picture.tolist() == [0, 2, 2]
    np.testing.assert_array_equal(batch.box_xyxy[1:], parts[2].box_xyxy)


def test_examples_in_the_documentation() -> None:
    result = doctest.testmod(train.targets)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("class_sizes", [False, True])
def test_with_a_size_for_each_class_two_classes_may_share_a_centre(class_sizes: bool) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    boxes = np.array([[10, 12, 50, 44], [24, 20, 36, 36]], np.float32)  # both around (30, 28)
    sample = Sample(image, boxes, np.array([0, 1]), np.zeros((2, 0, 3), np.float32), empty_boxes())
    targets = encode(sample, num_classes=2, stride=4, class_sizes=class_sizes)
    spec = tiny_spec(
        heads=(
            HeadSpec("heatmap", 2, "sigmoid"),
            HeadSpec("offset", 2, "none"),
            HeadSpec("size", 4 if class_sizes else 2, "none"),
        )
    )
    heads = empty_heads(spec)
    heads["heatmap"][0] = np.where(targets.heatmap == 1, 5.0, -5.0)
    for (y, x), class_id, box in zip(targets.cell_yx, targets.class_id, targets.box_xyxy, strict=True):
        channel = 2 * class_id if class_sizes else 0
        heads["size"][0, channel : channel + 2, y, x] = box[2:] - box[:2]
        heads["offset"][0, :, y, x] = (box[:2] + box[2:]) / 2 - [x, y]
    found = find_peaks(heads, spec, score_threshold=0.5)
    detections = assemble(found, spec, input_to_feature(4).inverse(), image_wh=(64, 64))
    assert len(detections) == 2
    right = [np.allclose(detections.xyxy[detections.class_ids == i][0], boxes[i], atol=1e-4) for i in range(2)]
    assert all(right) == class_sizes
