from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.geometry import letterbox
from sdk.preprocessing import prepare
from tests.helpers import Array
from tests.train.test_targets import hulls, make_sample, sample_in_space
from train.augment import Augmentation, jitter_colour
from train.config import TrainConfig
from train.samples import Sample
from train.specs import spec_from_config
from train.targets import encode

PLAIN = Augmentation(flip=0.0, scale_range=(1.0, 1.0), colour=0.0, mosaic=0.0, flip_pairs=((1, 2),))
# Marks of three colours: blue for the first keypoint, green and red for a left and a right one.
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]])


def marked_sample(seed: int, wh: tuple[int, int]) -> Sample:
    """A gray picture with a coloured disc at each of three keypoints and a white box around the object."""
    rng = np.random.default_rng(seed)
    width, height = wh
    image = np.full((height, width, 3), 60, np.uint8)
    low = rng.uniform(0.1, 0.3, 2) * wh
    high = rng.uniform(0.7, 0.9, 2) * wh
    left, top, right, bottom = (round(v) for v in (*low, *high))
    image[top:bottom, left:right] = 255
    keypoints = np.full((1, 3, 3), 2.0)
    for kind, fraction in enumerate(((0.25, 0.3), (0.5, 0.7), (0.75, 0.4))):
        x, y = left + fraction[0] * (right - left), top + fraction[1] * (bottom - top)
        keypoints[0, kind, :2] = x, y
        rows, columns = np.mgrid[:height, :width] + 0.5
        image[(rows - y) ** 2 + (columns - x) ** 2 <= (0.06 * width) ** 2] = COLOURS[kind]
    return replace(make_sample([[left, top, right, bottom]], keypoints=keypoints, wh=wh), image=image)


def centroid(mask: Array) -> Array:
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5])


def of_colour(image: Array, colour: Array) -> Array:
    return np.abs(image.astype(int) - colour).max(axis=2) < 100


def drawing(*samples: Sample) -> Callable[[], Sample]:
    queue = list(samples)
    return lambda: queue.pop(0)


@given(seed=st.integers(0, 10_000), flip=st.booleans(), scale=st.floats(0.6, 1.0))
def test_boxes_and_keypoints_follow_the_pixels(seed: int, flip: bool, scale: float) -> None:
    sample = marked_sample(seed, (100, 80))
    augmentation = replace(PLAIN, flip=float(flip), scale_range=(scale, scale))
    out = augmentation.apply(drawing(sample), (128, 96), np.random.default_rng(seed))
    assert out.image.shape == (96, 128, 3) and out.image.dtype == np.uint8
    bright = out.image.max(axis=2) > 160
    rows, columns = np.nonzero(bright)
    painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(out.boxes_xyxy[0], painted, atol=1.5)
    for kind in range(3):
        # A mirrored left eye is a right eye: keypoint 1 is where the picture now shows what was keypoint 2.
        colour = COLOURS[{1: 2, 2: 1}.get(kind, kind) if flip else kind]
        np.testing.assert_allclose(out.keypoints[0, kind, :2], centroid(of_colour(out.image, colour)), atol=1.0)
        assert out.keypoints[0, kind, 2] == 2


def test_without_augmentation_the_picture_fills_the_input() -> None:
    sample = marked_sample(0, (100, 80))
    out = PLAIN.apply(drawing(sample), (100, 80), np.random.default_rng(0))
    np.testing.assert_array_equal(out.image, sample.image)
    np.testing.assert_allclose(out.boxes_xyxy, sample.boxes_xyxy, atol=1e-4)
    np.testing.assert_allclose(out.keypoints, sample.keypoints, atol=1e-4)


def test_the_same_generator_gives_the_same_picture() -> None:
    strong = Augmentation(flip=0.5, scale_range=(0.5, 1.6), colour=0.4, mosaic=0.5, flip_pairs=((1, 2),))
    for seed in range(6):
        samples = [marked_sample(i, (90, 70)) for i in range(4)]
        outs = [strong.apply(drawing(*samples), (96, 64), np.random.default_rng(seed)) for _ in range(2)]
        np.testing.assert_array_equal(outs[0].image, outs[1].image)
        np.testing.assert_array_equal(outs[0].boxes_xyxy, outs[1].boxes_xyxy)


def test_the_sample_is_not_changed() -> None:
    strong = Augmentation(flip=1.0, scale_range=(0.5, 1.6), colour=0.4, mosaic=0.0, flip_pairs=((1, 2),))
    sample, same = marked_sample(0, (96, 64)), marked_sample(0, (96, 64))
    strong.apply(drawing(sample), (96, 64), np.random.default_rng(0))
    for name in ("image", "boxes_xyxy", "keypoints", "class_ids"):
        np.testing.assert_array_equal(getattr(sample, name), getattr(same, name))


@given(seed=st.integers(0, 10_000))
def test_what_remains_lies_in_the_picture(seed: int) -> None:
    strong = Augmentation(flip=0.5, scale_range=(0.4, 3.0), colour=0.4, mosaic=0.5, flip_pairs=((1, 2),))
    samples = [marked_sample(seed + i, (90, 70)) for i in range(4)]
    out = strong.apply(drawing(*samples), (96, 64), np.random.default_rng(seed))
    for boxes in (out.boxes_xyxy, out.ignore_xyxy):
        assert (boxes >= -1e-3).all() and (boxes <= np.array([96, 64, 96, 64]) + 1e-3).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(out.boxes_xyxy) == len(out.class_ids) == len(out.keypoints)
    labelled = out.keypoints[out.keypoints[..., 2] > 0]
    assert (labelled[:, :2] >= 0).all() and (labelled[:, :2] <= [96, 64]).all()
    for box, keypoints in zip(out.boxes_xyxy, out.keypoints, strict=True):
        inside = keypoints[keypoints[:, 2] > 0, :2]
        assert (inside >= box[:2] - 1).all() and (inside <= box[2:] + 1).all()


@given(seed=st.integers(0, 10_000), flip=st.booleans(), crop=st.booleans())
def test_the_camera_still_projects_boxes_in_space_onto_their_boxes(seed: int, flip: bool, crop: bool) -> None:
    sample = sample_in_space(seed, count=4)
    scales = (0.5, 2.5) if crop else (1.0, 1.0)
    augmentation = replace(PLAIN, flip=float(flip), crop=crop, scale_range=scales, flip_pairs=())
    out = augmentation.apply(drawing(sample), (160, 96), np.random.default_rng(seed))
    assert out.boxes3d is not None and out.camera is not None and sample.boxes3d is not None
    assert len(out.boxes3d) == len(out.boxes_xyxy)
    assert out.camera.matrix[0, 0] > 0 and out.camera.matrix[1, 1] > 0
    whole = hulls(out.boxes3d, out.camera)
    np.testing.assert_allclose(np.clip(whole, 0, [160, 96, 160, 96]), out.boxes_xyxy, atol=2e-3)
    # Sizes and distances are what they were: nothing but the camera is changed, or left and right.
    kept = {tuple(size) for size in out.boxes3d.size_hwl_m.tolist()}
    assert kept <= {tuple(size) for size in sample.boxes3d.size_hwl_m.tolist()}
    assert set(out.boxes3d.center_m[:, 2].tolist()) <= set(sample.boxes3d.center_m[:, 2].tolist())
    assert (np.abs(out.boxes3d.yaw_rad) <= np.float32(np.pi)).all()


def test_mirrored_twice_is_the_same_world() -> None:
    sample = sample_in_space(5)
    mirror = replace(PLAIN, flip=1.0, crop=False, flip_pairs=())
    once = mirror.apply(drawing(sample), (120, 80), np.random.default_rng(0))
    twice = mirror.apply(drawing(once), (120, 80), np.random.default_rng(0))
    assert sample.camera is not None and twice.camera is not None and twice.boxes3d is not None
    assert sample.boxes3d is not None and once.boxes3d is not None
    np.testing.assert_allclose(twice.camera.matrix, sample.camera.matrix, atol=1e-9)
    rows = [int(np.abs(sample.boxes3d.center_m - centre).sum(axis=1).argmin()) for centre in twice.boxes3d.center_m]
    np.testing.assert_allclose(twice.boxes3d.yaw_rad, sample.boxes3d.yaw_rad[rows], atol=1e-5)
    # Seen from behind a mirror, what faced us still faces us: alpha becomes pi - alpha.
    before, after = (encode(each, num_classes=1, stride=4).alpha_rad for each in (sample, once))
    assert sorted(np.sin(before)) == pytest.approx(sorted(np.sin(after)), abs=1e-5)
    assert sorted(np.cos(before)) == pytest.approx(sorted(-np.cos(after)), abs=1e-5)


@pytest.mark.parametrize("wh", [(100, 80), (75, 120), (63, 63)])
def test_without_crop_the_picture_is_where_the_detector_puts_it(wh: tuple[int, int]) -> None:
    sample = marked_sample(0, wh)
    out = replace(PLAIN, crop=False).apply(drawing(sample), (128, 96), np.random.default_rng(0))
    expected = letterbox(wh, (128, 96)).image_to_input.apply(sample.boxes_xyxy.reshape(2, 2)).reshape(1, 4)
    np.testing.assert_allclose(out.boxes_xyxy, expected, atol=1e-4)
    spec = spec_from_config(replace(TrainConfig(), size=(128, 96)), ("person",), trained_on="")
    prepared = prepare(sample.image, spec).tensor[0]
    assert np.abs(out.image.astype(int) - prepared).mean() < 1.0


def test_a_mosaic_has_no_camera() -> None:
    out = replace(PLAIN, mosaic=1.0).apply(
        drawing(*(sample_in_space(seed) for seed in range(4))), (128, 96), np.random.default_rng(0)
    )
    assert out.boxes3d is None and out.camera is None


def test_what_is_cut_too_much_is_ignored_and_what_is_gone_is_gone() -> None:
    # Enlarged twice, the picture shows one quarter or so of itself.
    twice = replace(PLAIN, scale_range=(2.0, 2.0))
    seen = {"kept": 0, "ignored": 0, "gone": 0}
    for seed in range(40):
        # An object in the upper left corner.
        sample = make_sample([[0, 0, 20, 20]], keypoints=np.full((1, 1, 3), 2.0), wh=(64, 64))
        out = twice.apply(drawing(sample), (64, 64), np.random.default_rng(seed))
        seen["kept"] += len(out.boxes_xyxy)
        seen["ignored"] += len(out.ignore_xyxy)
        seen["gone"] += 1 - len(out.boxes_xyxy) - len(out.ignore_xyxy)
        for box in out.boxes_xyxy:
            assert (box[2:] - box[:2]).prod() >= 0.25 * 40 * 40 - 1
        for box in out.ignore_xyxy:
            assert (box[2:] - box[:2]).prod() <= 0.25 * 40 * 40 + 1
    assert min(seen.values()) > 0, seen


def test_regions_to_ignore_move_with_the_picture() -> None:
    sample = replace(marked_sample(0, (64, 64)), ignore_xyxy=np.array([[4, 8, 20, 30]], np.float32))
    out = replace(PLAIN, flip=1.0).apply(drawing(sample), (128, 128), np.random.default_rng(0))
    np.testing.assert_allclose(out.ignore_xyxy, [[88, 16, 120, 60]], atol=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_a_mosaic_keeps_four_pictures_apart(seed: int) -> None:
    mosaic = replace(PLAIN, mosaic=1.0)
    samples = []
    for index in range(4):
        sample = marked_sample(index, (90, 70))
        shade = np.full_like(sample.image, 60 * (index + 1))
        samples.append(replace(sample, image=shade, class_ids=np.array([index])))
    out = mosaic.apply(drawing(*samples), (128, 96), np.random.default_rng(seed))
    assert out.image.shape == (96, 128, 3)
    quarters = {int(shade) for shade in np.unique(out.image)}
    assert quarters == {60, 120, 180, 240}  # every quarter is full: no black between them
    for box, class_id in zip(out.boxes_xyxy, out.class_ids, strict=True):
        left, top, right, bottom = np.round(box).astype(int)
        assert (out.image[top:bottom, left:right] == 60 * (class_id + 1)).all()


@pytest.mark.parametrize("seed", range(5))
def test_colour_changes_colours_alone(seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    before = image.copy()
    out = jitter_colour(image, 0.4, np.random.default_rng(seed))
    assert out.shape == image.shape and out.dtype == np.uint8
    assert not np.array_equal(out, image)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(jitter_colour(image, 0.0, np.random.default_rng(seed)), image)
    # Equal colours stay equal: it is a table, not noise.
    flat: Any = jitter_colour(np.full((8, 8, 3), (10, 100, 200), np.uint8), 0.4, np.random.default_rng(seed))
    assert (flat == flat[0, 0]).all()
