from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.scenes3d import CAMERA_HEIGHT_M, random_street
from tests.helpers import Array

WH = (160, 128)


@given(st.integers(0, 10_000), st.booleans())
def test_boxes_and_3d_boxes_agree_through_the_camera(seed: int, people: bool) -> None:
    street = random_street(np.random.default_rng(seed), WH, people=people)
    assert street.image.shape == (128, 160, 3) and street.image.dtype == np.uint8
    assert street.boxes_xyxy.dtype == np.float32
    corners = street.boxes3d.corners_m()
    assert (corners[..., 2] > 0.5).all()  # all in front of the camera
    pixels = np.clip(street.camera.project(corners.astype(np.float64)), 0, WH)
    around = np.concatenate([pixels.min(axis=1), pixels.max(axis=1)], axis=1)
    cars = ~street.is_person
    np.testing.assert_allclose(street.boxes_xyxy[cars], around[cars], atol=0.01)
    # A person is drawn flat in the middle of the box, whose front reaches further.
    assert (street.boxes_xyxy[~cars][:, :2] >= around[~cars][:, :2] - 0.01).all()
    assert (street.boxes_xyxy[~cars][:, 2:] <= around[~cars][:, 2:] + 0.01).all()


@given(st.integers(0, 10_000))
def test_everything_stands_on_the_ground_the_nearest_last(seed: int) -> None:
    street = random_street(np.random.default_rng(seed), WH, people=True)
    bottom_m = street.boxes3d.center_m[:, 1] + street.boxes3d.size_hwl_m[:, 0] / 2
    tolerance_m = np.where(street.is_person, 0.1, 1e-4)  # a shoe is drawn to about a pixel
    assert np.all(np.abs(bottom_m - CAMERA_HEIGHT_M) <= tolerance_m)
    assert (np.diff(street.boxes3d.center_m[:, 2]) <= 0).all()
    assert (np.abs(street.boxes3d.yaw_rad) <= np.pi + 1e-6).all()


@given(st.integers(0, 10_000))
def test_people_have_poses_and_cars_have_none(seed: int) -> None:
    street = random_street(np.random.default_rng(seed), WH, people=True)
    seen = street.keypoints[..., 2] > 0
    np.testing.assert_array_equal(seen.any(axis=1), street.is_person)
    low, high = street.boxes_xyxy[:, None, :2] - 1.5, street.boxes_xyxy[:, None, 2:] + 1.5
    points = street.keypoints[..., :2]
    assert np.all(points >= low, axis=-1)[seen].all() and np.all(points <= high, axis=-1)[seen].all()


def test_the_same_seed_gives_the_same_street() -> None:
    first, second, other = (random_street(np.random.default_rng(seed), WH) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.boxes3d.center_m, second.boxes3d.center_m)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("wh", [(192, 192), (320, 96), (96, 160)])
def test_streets_of_any_shape_have_objects_that_can_be_seen(wh: tuple[int, int]) -> None:
    counts, yaws, focals = [], [], []
    for seed in range(30):
        street = random_street(np.random.default_rng(seed), wh)
        sides = street.boxes_xyxy[:, 2:] - street.boxes_xyxy[:, :2]
        assert (sides >= 4).all() and (street.boxes_xyxy >= 0).all() and (street.boxes_xyxy <= [*wh, *wh]).all()
        counts.append(len(sides))
        yaws += street.boxes3d.yaw_rad.tolist()
        focals.append(street.camera.focal_px)
    assert sum(counts) >= 30 and max(counts) <= 4
    assert np.ptp(yaws) > np.pi and np.ptp(focals) > 0.1 * wh[0]


def test_front_and_back_of_a_car_look_different() -> None:
    lamps = {True: 0, False: 0}
    for seed in range(60):
        street = random_street(np.random.default_rng(seed), (192, 192), max_objects=1)
        for box, center, yaw in zip(street.boxes_xyxy, street.boxes3d.center_m, street.boxes3d.yaw_rad, strict=True):
            heading = np.array([np.cos(yaw), -np.sin(yaw)])
            towards = float(heading @ center[[0, 2]]) < 0
            lamps[towards] += _count(street.image, box, (25, 25, 215))
    assert lamps[False] > 20 * max(1, lamps[True])  # tail lights are seen from behind


def _count(image: Array, box_xyxy: Array, colour: tuple[int, int, int]) -> int:
    left, top, right, bottom = (int(value) for value in box_xyxy)
    return int(np.all(image[top:bottom, left:right] == colour, axis=-1).sum())
