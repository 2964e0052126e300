"""Drawn streets: cars, and people where wanted, on a ground plane before a pinhole camera, with exact 3D boxes.

::

    scene = random_street(np.random.default_rng(0), (256, 192))
    scene.image, scene.boxes_xyxy, scene.boxes3d, scene.camera
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .camera import CameraIntrinsics
from .geometry import wrapped
from .opencv import load_cv2
from .results import Boxes3D
from .scenes import (
    Body,
    Float32Array,
    Image,
    Rng,
    body_extent,
    draw_person,
    fill_convex,
    joints_from_pose,
    overlap_shares,
    random_body,
    random_pose,
)

CAMERA_HEIGHT_M = 1.65  # above the ground, level: KITTI's
# Means of KITTI's cars (height, width, length) with about half their spread, for networks that see few of them.
_CAR_HWL_M, _CAR_SPREAD_M = np.array([1.53, 1.63, 3.88]), np.array([0.07, 0.06, 0.22])
_NEAREST_CAR_M, _NEAREST_PERSON_M, _FARTHEST_FACTOR = 4.5, 2.5, 2.4
_MAX_OVERLAP, _MIN_VISIBLE = 0.25, 0.85
_TRIES = 8  # to place one object
_GLASS, _TYRE, _LAMP, _TAIL_LIGHT, _PLATE = (70, 50, 35), (25, 25, 25), (225, 250, 255), (25, 25, 215), (240, 240, 240)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Street:
    """A drawn picture and all that is true of it; N objects, the nearest last.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        boxes_xyxy: (N, 4) float32 pixels: of a car the box around the projected corners of its 3D box, of a person
            around what was drawn; clipped to the picture.
        is_person: (N,) bool; the others are cars.
        keypoints: (N, 17, 3) float32 x, y, visibility (0 or 2); all 0 for cars.
        boxes3d: metres, in the camera's frame.
        camera: the one that took it.
    """

    image: Image
    boxes_xyxy: Float32Array
    is_person: npt.NDArray[np.bool_]
    keypoints: Float32Array
    boxes3d: Boxes3D
    camera: CameraIntrinsics


@dataclass(frozen=True)
class _Car:
    """One car: centre, size and yaw as in `Boxes3D`, colour in BGR."""

    center_m: Array  # (3,)
    size_hwl_m: Array  # (3,)
    yaw_rad: float
    colour: Array  # (3,)


@dataclass(frozen=True)
class _Person:
    """One person as a flat figure at a depth: joints (17, 2) in pixels, and the way the body faces the camera."""

    joints: Float32Array
    body: Body
    height_px: float
    depth_m: float
    alpha_rad: float


@dataclass(frozen=True)
class _Placed:
    """What stands in the street: its outline in the picture (not clipped), and its 3D box (one row)."""

    thing: _Car | _Person
    xyxy: Float32Array
    box: Boxes3D


def random_street(rng: Rng, wh: tuple[int, int], *, people: bool = False, max_objects: int = 4) -> Street:
    """One independent picture of 1 to `max_objects` cars, and as many people among them where `people`.

    The camera is level, 1.65 m above the ground; focal length and principal point differ from picture to picture.
    Objects are apart on the ground, lie at least 85 % in the picture, and cover little of each other: the box, the
    depth and the yaw of each can be told from the picture.
    """
    camera = _random_camera(rng, wh)
    placed: list[_Placed] = []
    for _ in range(int(rng.integers(1, max_objects + 1))):
        _place(rng, camera, wh, people and bool(rng.random() < 0.5), placed)
    placed.sort(key=lambda item: -float(item.box.center_m[0, 2]))
    image = _background(rng, camera, wh)
    for item in placed:
        _draw_shadow(image, camera, item.box)
    keypoints = np.zeros((len(placed), 17, 3), np.float32)
    for row, item in enumerate(placed):
        if isinstance(item.thing, _Car):
            _draw_car(image, camera, item.thing)
        else:
            placed[row] = _draw_person(image, camera, item.thing)
            inside = ((item.thing.joints >= 0) & (item.thing.joints < np.array(wh))).all(axis=1)
            keypoints[row, inside] = np.column_stack([item.thing.joints, np.full(17, 2.0)])[inside]
    return Street(
        image,
        np.clip(np.reshape([item.xyxy for item in placed], (-1, 4)), 0, np.tile(wh, 2)).astype(np.float32),
        np.array([isinstance(item.thing, _Person) for item in placed], np.bool_),
        keypoints,
        _stacked([item.box for item in placed]),
        camera,
    )


def _random_camera(rng: Rng, wh: tuple[int, int]) -> CameraIntrinsics:
    width, height = wh
    focal = rng.uniform(0.7, 1.0) * width
    cx, cy = rng.uniform(0.42, 0.58) * width, rng.uniform(0.32, 0.5) * height
    return CameraIntrinsics(np.array([[focal, 0, cx, 0], [0, focal, cy, 0], [0, 0, 1, 0]]))


def _place(rng: Rng, camera: CameraIntrinsics, wh: tuple[int, int], is_person: bool, placed: list[_Placed]) -> None:
    """Add an object where there is room for it; in a crowded street, none."""
    # So near that the feet or wheels just show; the nearest corner of a car is half its length before the centre.
    least_m, reach_m = (_NEAREST_PERSON_M, 0.3) if is_person else (_NEAREST_CAR_M, 2.0)
    below_horizon = 0.95 * (wh[1] - camera.matrix[1, 2])
    nearest_m = max(least_m, camera.focal_px * CAMERA_HEIGHT_M / below_horizon + reach_m)
    for _ in range(_TRIES):
        depth_m = rng.uniform(nearest_m, _FARTHEST_FACTOR * nearest_m)
        foot = camera.project(np.array([0.0, CAMERA_HEIGHT_M, depth_m]))
        margin_px = min(0.3 * wh[0], 0.6 * camera.focal_px * reach_m / depth_m)
        foot[0] = rng.uniform(margin_px, wh[0] - margin_px)
        item = (_random_person if is_person else _random_car)(rng, camera, foot, depth_m)
        sides = np.minimum(item.xyxy[2:], wh) - np.maximum(item.xyxy[:2], 0)
        whole = sides.min() > 0 and sides.prod() >= _MIN_VISIBLE * (item.xyxy[2:] - item.xyxy[:2]).prod()
        if whole and all(_are_apart(item, other) for other in placed):
            placed.append(item)
            return


def _random_car(rng: Rng, camera: CameraIntrinsics, foot: Array, depth_m: float) -> _Placed:
    size_hwl_m = _CAR_HWL_M + _CAR_SPREAD_M * np.clip(rng.normal(size=3), -2, 2)
    center_m = camera.unproject(foot, np.array(depth_m)) - [0, size_hwl_m[0] / 2, 0]
    car = _Car(center_m, size_hwl_m, float(rng.uniform(-np.pi, np.pi)), rng.uniform(40, 230, 3))
    box = _one_box(car.center_m, car.size_hwl_m, car.yaw_rad)
    corners = camera.project(box.corners_m()[0])
    return _Placed(car, np.concatenate([corners.min(axis=0), corners.max(axis=0)]).astype(np.float32), box)


def _random_person(rng: Rng, camera: CameraIntrinsics, foot: Array, depth_m: float) -> _Placed:
    body, pose = random_body(rng), random_pose(rng)
    pose = replace(pose, facing=0.8 * pose.facing)  # from the very side, left and right cannot be told apart
    height_px = camera.focal_px * rng.uniform(1.6, 1.9) / depth_m
    joints = joints_from_pose(pose, body)
    low, high = body_extent(joints, body)
    origin = foot - height_px * np.array([(low[0] + high[0]) / 2, high[1]])
    towards = np.sqrt(1 - pose.facing**2) * (-1.0 if pose.back else 1.0)
    # Facing along x is a yaw of 0, towards the camera pi/2: the angle as seen, that is alpha.
    alpha_rad = float(np.arctan2(towards, pose.facing))
    person = _Person((joints * height_px + origin).astype(np.float32), body, height_px, depth_m, alpha_rad)
    return _with_box(person, np.concatenate([low, high]) * height_px + np.tile(origin, 2), camera)


def _with_box(person: _Person, xyxy: Array, camera: CameraIntrinsics) -> _Placed:
    """A person's 3D box is as high and broad as what was drawn (`xyxy`), and as deep as broad."""
    center_m = camera.unproject((xyxy[:2] + xyxy[2:]) / 2, np.array(person.depth_m))
    width_m, height_m = (xyxy[2:] - xyxy[:2]) * person.depth_m / camera.focal_px
    yaw_rad = float(wrapped(person.alpha_rad + np.arctan2(center_m[0], center_m[2])))
    return _Placed(person, xyxy.astype(np.float32), _one_box(center_m, np.array([height_m, width_m, width_m]), yaw_rad))


def _are_apart(item: _Placed, other: _Placed) -> bool:
    """On the ground, and mostly in the picture."""
    gap_m = float(np.hypot(*(item.box.center_m - other.box.center_m)[0, [0, 2]]))
    reach_m = sum(float(np.hypot(*box.size_hwl_m[0, 1:])) / 2 for box in (item.box, other.box))
    return gap_m > reach_m and overlap_shares(item.xyxy, [other.xyxy])[0] <= _MAX_OVERLAP


def _one_box(center_m: Array, size_hwl_m: Array, yaw_rad: float) -> Boxes3D:
    return Boxes3D(
        center_m[None].astype(np.float32), size_hwl_m[None].astype(np.float32), np.array([yaw_rad], np.float32)
    )


def _stacked(rows: Sequence[Boxes3D]) -> Boxes3D:
    return Boxes3D(
        np.reshape([row.center_m for row in rows], (-1, 3)).astype(np.float32),
        np.reshape([row.size_hwl_m for row in rows], (-1, 3)).astype(np.float32),
        np.reshape([row.yaw_rad for row in rows], -1).astype(np.float32),
    )


def _background(rng: Rng, camera: CameraIntrinsics, wh: tuple[int, int]) -> Image:
    """Sky over ground, parted at the horizon, with blocks that stand on it and lines that run to its middle."""
    cv2 = load_cv2()
    width, height = wh
    horizon = float(camera.matrix[1, 2])
    sky, ground = rng.uniform(150, 240, 3), rng.uniform(70, 130) + rng.uniform(-12, 12, 3)
    ramp = np.linspace(0.75, 1.15, height)[:, None]
    rows = np.where(np.arange(height)[:, None] + 0.5 < horizon, sky * (1.9 - ramp), ground * ramp)  # (H, 3)
    noise = np.clip(rng.normal(128, 6, (max(2, height // 8), max(2, width // 8))), 0, 255).astype(np.uint8)
    noise = cv2.merge([cv2.resize(noise, wh, interpolation=cv2.INTER_LINEAR)] * 3)
    smooth = np.repeat(np.clip(rows, 0, 255).astype(np.uint8)[:, None], width, axis=1)
    image: Image = cv2.addWeighted(smooth, 1.0, noise, 1.0, -128.0)
    for _ in range(int(rng.integers(2, 7))):
        left, block_width, block_height = rng.uniform(0, width), rng.uniform(0.05, 0.3) * width, rng.uniform(0.1, 0.9)
        corners = [(left, horizon), (left + block_width, horizon)]
        corners += [(x, horizon * (1 - block_height)) for x, _ in reversed(corners)]
        fill_convex(image, corners, _shade(rng.uniform(50, 200, 3), 1.0))
    for x_m in (-1.8, 1.8) if rng.random() < 0.7 else ():
        near_m, far_m, half_m = 2.0, 60.0, 0.08
        line = [(x_m - half_m, near_m), (x_m + half_m, near_m), (x_m + half_m, far_m), (x_m - half_m, far_m)]
        fill_convex(image, camera.project(np.array([(x, CAMERA_HEIGHT_M, z) for x, z in line])), (215, 220, 220))
    return image


def _draw_shadow(image: Image, camera: CameraIntrinsics, box: Boxes3D) -> None:
    corners = box.corners_m()[0, :4].astype(np.float64)
    outline = corners.mean(axis=0) + (corners - corners.mean(axis=0)) * 1.08
    outline[:, 1] = CAMERA_HEIGHT_M
    fill_convex(image, camera.project(outline), (35, 35, 35))


def _draw_person(image: Image, camera: CameraIntrinsics, person: _Person) -> _Placed:
    return _with_box(person, draw_person(image, person.joints, person.body, person.height_px), camera)


def _draw_car(image: Image, camera: CameraIntrinsics, car: _Car) -> None:
    """A cuboid with wheels, glass and lamps, so that front, back and sides look different."""
    corners = camera.project(_one_box(car.center_m, car.size_hwl_m, car.yaw_rad).corners_m()[0])
    hull = load_cv2().convexHull(corners.astype(np.float32))[:, 0]
    fill_convex(image, hull, _shade(car.colour, 0.6))  # no gaps between the faces
    height, width, length = car.size_hwl_m
    along, up, across = np.array([length, 0, 0]), np.array([0, -height, 0]), np.array([0, 0, width])
    rear_bottom = np.array([-length / 2, height / 2, -width / 2])
    cos, sin = np.cos(car.yaw_rad), np.sin(car.yaw_rad)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    faces = [  # origin, first and second edge, outward normal, brightness, painter
        (rear_bottom, along, up, -across, 0.8, _paint_side),
        (rear_bottom + across, along, up, across, 0.8, _paint_side),
        (rear_bottom + along, across, up, along, 1.0, _paint_front),
        (rear_bottom, across, up, -along, 1.0, _paint_rear),
        (rear_bottom + up, along, across, up, 1.2, _paint_roof),
    ]
    for origin, first, second, normal, brightness, painter in faces:
        middle = turn @ (origin + (first + second) / 2) + car.center_m
        if middle @ (turn @ normal) < 0:  # turned towards the camera, which is at 0
            face = _Face(image, camera, turn @ origin + car.center_m, turn @ first, turn @ second)
            face.fill([(0, 0), (1, 0), (1, 1), (0, 1)], _shade(car.colour, brightness))
            painter(face, car)


@dataclass(frozen=True)
class _Face:
    """A parallelogram in the camera frame; painted in (s, t), 0 to 1 along its two edges."""

    image: Image
    camera: CameraIntrinsics
    origin_m: Array
    first_m: Array
    second_m: Array

    def fill(self, points_st: Sequence[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        st = np.array(points_st)
        points_m = self.origin_m + st[:, :1] * self.first_m + st[:, 1:] * self.second_m
        fill_convex(self.image, self.camera.project(points_m), colour)


def _paint_side(face: _Face, car: _Car) -> None:
    """From the rear (s = 0) to the front: wheels, windows towards the rear, a bonnet of another shade."""
    face.fill([(0, 0), (1, 0), (1, 0.14), (0, 0.14)], _shade(car.colour, 0.4))
    face.fill([(0.74, 0.6), (1, 0.6), (1, 1), (0.66, 1)], _shade(car.colour, 1.25))
    face.fill([(0.08, 0.58), (0.7, 0.58), (0.6, 0.92), (0.14, 0.92)], _GLASS)
    height, _, length = car.size_hwl_m
    turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    for s in (0.19, 0.81):
        wheel = [(s + 0.34 / length * np.cos(a), max(0.0, 0.34 / height * (0.9 + np.sin(a)))) for a in turns]
        face.fill(wheel, _TYRE)


def _paint_front(face: _Face, car: _Car) -> None:
    face.fill([(0.08, 0.58), (0.92, 0.58), (0.82, 0.95), (0.18, 0.95)], _GLASS)
    face.fill([(0.3, 0.12), (0.7, 0.12), (0.7, 0.32), (0.3, 0.32)], _TYRE)
    for left in (0.04, 0.74):
        face.fill([(left, 0.3), (left + 0.22, 0.3), (left + 0.22, 0.48), (left, 0.48)], _LAMP)


def _paint_rear(face: _Face, car: _Car) -> None:
    face.fill([(0.16, 0.66), (0.84, 0.66), (0.8, 0.92), (0.2, 0.92)], _GLASS)
    face.fill([(0.36, 0.3), (0.64, 0.3), (0.64, 0.44), (0.36, 0.44)], _PLATE)
    for left in (0.0, 0.78):
        face.fill([(left, 0.38), (left + 0.22, 0.38), (left + 0.22, 0.6), (left, 0.6)], _TAIL_LIGHT)


def _paint_roof(face: _Face, car: _Car) -> None:
    face.fill([(0.66, 0.08), (0.76, 0.08), (0.76, 0.92), (0.66, 0.92)], _GLASS)


def _shade(colour: Array, brightness: float) -> tuple[int, int, int]:
    b, g, r = (int(value) for value in np.clip(colour * brightness, 0, 255))
    return b, g, r
