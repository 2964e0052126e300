from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sdk.scenes import (
    MovingScene,
    body_extent,
    draw_person,
    joints_from_pose,
    random_body,
    random_pose,
    random_scene,
    sparse_scene,
)
from tests.helpers import Array


def _paint(joints: Array, seed: int, height_px: float, wh: tuple[int, int]) -> tuple[Array, Array]:
    """How opaque the person is at each pixel (0 to 1), and the box."""
    body = random_body(np.random.default_rng(seed))
    black, white = (np.full((wh[1], wh[0], 3), shade, np.uint8) for shade in (0, 255))
    box = draw_person(black, joints, body, height_px)
    draw_person(white, joints, body, height_px)
    return 1 - (white.astype(np.float64) - black).mean(axis=2) / 255, box


def _extent(mask: Array) -> Array:
    rows, columns = np.nonzero(mask)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize("seed", range(12))
def test_a_box_encloses_what_was_drawn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height_px = float(np.exp(rng.uniform(np.log(16), np.log(200))))
    joints = joints_from_pose(random_pose(rng), random_body(rng)) * height_px + rng.uniform(100, 101, 2)
    opacity, box = _paint(joints.astype(np.float32), seed, height_px, (360, 360))
    solid, faint = _extent(opacity >= 0.5), _extent(opacity >= 0.1)
    assert (box[:2] <= solid[:2] + 1).all() and (box[2:] >= solid[2:] - 1).all()  # nothing sticks out
    assert (box[:2] >= faint[:2] - 1).all() and (box[2:] <= faint[2:] + 1).all()  # and no side stands off
    assert ((joints >= box[:2] - 1.5) & (joints <= box[2:] + 1.5)).all()


def test_the_same_seed_gives_the_same_film() -> None:
    first, second, other = MovingScene((160, 120), seed=3), MovingScene((160, 120), seed=3), MovingScene((160, 120))
    for t_s in (0.0, 1.7, 100.0):
        for a, b in zip(first.frame(t_s), second.frame(t_s), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.frame(0.0)[0], other.frame(0.0)[0])
    assert not np.array_equal(first.frame(0.0)[0], first.frame(0.5)[0])


def test_a_film_shows_walkers_inside_the_picture() -> None:
    scene = MovingScene((320, 240), num_people=3, seed=1)
    seen = 0
    for t_s in np.linspace(0, 30, 16):
        image, boxes, keypoints = scene.frame(float(t_s))
        assert image.shape == (240, 320, 3) and image.dtype == np.uint8
        _check_annotations(boxes, keypoints, (320, 240))
        seen += len(boxes)
    assert seen >= 30  # three walkers, now and then one hidden or outside


def test_people_are_where_the_picture_differs_from_the_empty_room() -> None:
    room, people = MovingScene((320, 240), num_people=0, seed=5), MovingScene((320, 240), num_people=2, seed=5)
    assert room.frame(0.0)[1].shape == (0, 4) and room.frame(0.0)[2].shape == (0, 17, 3)
    image, boxes, _ = people.frame(2.0)
    changed = (image != room.frame(2.0)[0]).any(axis=2)
    inside = np.zeros_like(changed)
    for left, top, right, bottom in boxes:
        inside[int(max(0, top - 2)) : int(bottom + 3), int(max(0, left - 2)) : int(right + 3)] = True
        if left > 0 and right < 320:  # not cut by the border
            assert changed[int(top) : int(bottom), int(left) : int(right)].mean() > 0.15
    assert not (changed & ~inside).any()


def test_random_scenes_differ_and_are_annotated() -> None:
    scenes = [random_scene(np.random.default_rng(seed), (160, 120)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(scenes[0][0], scenes[1][0])
    assert not np.array_equal(scenes[0][0], scenes[2][0])
    rng = np.random.default_rng(7)
    counts = []
    for _ in range(15):
        image, boxes, keypoints = random_scene(rng, (160, 120), max_people=4)
        assert image.shape == (120, 160, 3)
        _check_annotations(boxes, keypoints, (160, 120))
        counts.append(len(boxes))
    assert max(counts) <= 4 and sum(counts) > 15


@pytest.mark.parametrize("wh", [(160, 120), (96, 160)])
def test_sparse_scenes_show_people_large_whole_and_apart(wh: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    counts = []
    for _ in range(25):
        image, boxes, keypoints = sparse_scene(rng, wh)
        assert image.shape == (wh[1], wh[0], 3)
        _check_annotations(boxes, keypoints, wh)
        assert (keypoints[..., 2] == 2).all()  # nobody is cut
        assert ((boxes[:, 3] - boxes[:, 1]) > 0.2 * wh[1]).all()
        counts.append(len(boxes))
    assert min(counts) >= 1 and max(counts) <= 3 and sum(counts) > 25


@pytest.mark.parametrize("seed", range(12))
def test_where_a_body_will_be_painted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    body = random_body(rng)
    joints = joints_from_pose(random_pose(rng), body)
    low, high = body_extent(joints, body)
    image = np.zeros((400, 400, 3), np.uint8)
    box = draw_person(image, (joints * 200 + 120).astype(np.float32), body, 200.0)
    np.testing.assert_allclose(box, np.concatenate([low, high]) * 200 + 120, atol=6)


def test_who_turns_the_back_shows_no_face() -> None:
    body = random_body(np.random.default_rng(1))
    pose = replace(random_pose(np.random.default_rng(1)), facing=0.3)
    shows_skin = []
    for back in (False, True):
        image = np.zeros((240, 240, 3), np.uint8)
        joints = joints_from_pose(replace(pose, back=back), body) * 200 + [120, 20]
        draw_person(image, joints.astype(np.float32), body, 200.0)
        x, y = joints[0].astype(int)
        around = image[y - 3 : y + 3, x - 3 : x + 3].reshape(-1, 3).tolist()
        shows_skin.append(list(body.skin) in around)
    assert shows_skin == [True, False]


def _check_annotations(boxes: Array, keypoints: Array, wh: tuple[int, int]) -> None:
    """Boxes within the picture and not empty, visible joints in their box and in the picture."""
    assert boxes.dtype == keypoints.dtype == np.float32
    assert keypoints.shape == (len(boxes), 17, 3)
    assert (boxes >= 0).all() and (boxes <= [*wh, *wh]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 4).all()
    visible = keypoints[..., 2] == 2
    assert set(np.unique(keypoints[..., 2])) <= {0.0, 2.0}
    inside = (keypoints[..., :2] >= boxes[:, None, :2] - 1.5) & (keypoints[..., :2] <= boxes[:, None, 2:] + 1.5)
    assert np.all(inside, axis=-1, keepdims=True)[visible].all()
    assert (keypoints[~visible] == 0).all()
