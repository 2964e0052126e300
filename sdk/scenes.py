"""Drawn scenes of people: exact boxes and poses anywhere, without a photograph or a download.

`MovingScene` is the built-in camera (`synthetic://`); `random_scene` gives independent pictures for training
and tests. Both draw with the same brush, and the boxes enclose exactly what was drawn::

    image, boxes_xyxy, keypoints = MovingScene((640, 480), num_people=3).frame(t_s=1.5)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .opencv import load_cv2

Image = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Rng = np.random.Generator

# Of a body of height 1, measured from the crown of the head.
_SHOULDER_Y, _HIP_Y, _THIGH, _SHIN, _UPPER_ARM, _FOREARM = 0.19, 0.50, 0.23, 0.22, 0.165, 0.15
_SUBPIXEL_BITS = 4
_BLEED_PX = 0.7  # that OpenCV's anti-aliased shapes reach beyond their outline, measured


@dataclass(frozen=True)
class Body:
    """How one person looks: colours (BGR), build and proportions."""

    skin: tuple[int, int, int]
    shirt: tuple[int, int, int]
    trousers: tuple[int, int, int]
    hair: tuple[int, int, int]
    shoulder: float
    hip: float
    limb: float
    head: float
    sleeve_long: bool


@dataclass(frozen=True)
class Pose:
    """Angles in radians from hanging straight down, left and right; `facing` in -1..1 turns the body sideways."""

    upper_arm: tuple[float, float]
    forearm: tuple[float, float]
    thigh: tuple[float, float]
    shin: tuple[float, float]
    lean: float
    facing: float
    back: bool = False


def random_body(rng: Rng) -> Body:
    skin = np.array([110, 150, 200]) * rng.uniform(0.35, 1.2)
    return Body(
        skin=_colour(skin),
        shirt=_colour(rng.uniform(10, 245, 3)),
        trousers=_colour(rng.uniform(10, 200, 3)),
        hair=_colour(np.array([30, 50, 70]) * rng.uniform(0.2, 2.5)),
        shoulder=rng.uniform(0.095, 0.125),
        hip=rng.uniform(0.06, 0.085),
        limb=rng.uniform(0.036, 0.055),
        head=rng.uniform(0.062, 0.075),
        sleeve_long=bool(rng.random() < 0.5),
    )


def random_pose(rng: Rng) -> Pose:
    """Standing, walking, waving or sitting, seen from any side."""
    sitting = rng.random() < 0.2
    thighs = rng.uniform(0.6, 1.5, 2) * rng.choice([-1, 1]) if sitting else rng.normal(0, 0.3, 2)
    shins = rng.normal(0, 0.2, 2) if sitting else thighs * rng.uniform(0, 1) + rng.normal(0, 0.15, 2)
    arms = rng.normal(0, 0.5, 2) + np.array([0.15, -0.15])
    raised = rng.random(2) < 0.15
    arms = np.where(raised, rng.uniform(1.2, 3.0, 2) * np.array([1, -1]), arms)
    forearms = arms + rng.normal(0, 0.7, 2)
    return Pose(
        upper_arm=(float(arms[0]), float(arms[1])),
        forearm=(float(forearms[0]), float(forearms[1])),
        thigh=(float(thighs[0]), float(thighs[1])),
        shin=(float(shins[0]), float(shins[1])),
        lean=float(rng.normal(0, 0.12)),
        facing=float(rng.uniform(-1, 1)),
        back=bool(rng.random() < 0.25),
    )


def walking_pose(phase_rad: float, facing: float) -> Pose:
    """A walker at a phase of the gait; `facing` is the direction of travel, -1 left to 1 right."""
    swing = float(np.sin(phase_rad)) * 0.55
    bend = 0.35 * float(np.cos(phase_rad))
    side = 1.0 if facing >= 0 else -1.0
    return Pose(
        upper_arm=(-swing * 0.8, swing * 0.8),
        forearm=(-swing * 0.8 + 0.5 * side, swing * 0.8 + 0.5 * side),
        thigh=(swing, -swing),
        shin=(swing - side * max(0.0, bend), -swing - side * max(0.0, -bend)),
        lean=0.05 * side,
        facing=facing,
    )


def joints_from_pose(pose: Pose, body: Body) -> Float32Array:
    """(17, 2) COCO keypoints of a body of height 1, x to the right, y down from the crown of the head."""
    width = np.sqrt(max(0.0, 1.0 - pose.facing**2)) * 0.8 + 0.2
    # Seen from the front, a person's left side is at the viewer's right.
    left = -width if pose.back else width
    up = np.array([np.sin(pose.lean), -np.cos(pose.lean)])
    hip_centre = np.array([0.0, _HIP_Y])
    shoulder_centre = hip_centre + up * (_HIP_Y - _SHOULDER_Y)
    head = shoulder_centre + up * 0.11
    points = np.zeros((17, 2))
    gaze = 0.0 if pose.back else pose.facing * body.head * 0.8
    points[0] = head + [gaze, 0.01]
    points[1], points[2] = head + [gaze + left * 0.025, -0.012], head + [gaze - left * 0.025, -0.012]
    points[3], points[4] = head + [left * 0.055 - gaze * 0.3, 0.0], head + [-left * 0.055 - gaze * 0.3, 0.0]
    for side, sign in ((0, 1.0), (1, -1.0)):
        shoulder = shoulder_centre + [sign * left * body.shoulder, 0.0]
        hip = hip_centre + [sign * left * body.hip, 0.0]
        elbow = shoulder + _hanging(pose.upper_arm[side], _UPPER_ARM)
        knee = hip + _hanging(pose.thigh[side], _THIGH)
        points[5 + side], points[7 + side], points[11 + side], points[13 + side] = shoulder, elbow, hip, knee
        points[9 + side] = elbow + _hanging(pose.forearm[side], _FOREARM)
        points[15 + side] = knee + _hanging(pose.shin[side], _SHIN)
    return points.astype(np.float32)


def draw_person(image: Image, joints: Float32Array, body: Body, height_px: float) -> Float32Array:
    """Draw one person in place.

    Args:
        image: (H, W, 3) uint8 BGR.
        joints: (17, 2) pixels in the image frame.
        body: colours and build.
        height_px: of the upright body, which sets the width of the limbs.

    Returns:
        (4,) float32 xyxy, enclosing what was drawn to about a pixel, not clipped to the image.
    """
    brush = _Brush(image)
    limb = body.limb * height_px
    skin_or_shirt = body.shirt if body.sleeve_long else body.skin
    head = (joints[3] + joints[4]) / 2
    radius = body.head * height_px
    for knee, ankle in ((13, 15), (14, 16)):
        brush.capsule(joints[knee - 2], joints[knee], limb * 1.25, body.trousers)
        brush.capsule(joints[knee], joints[ankle], limb, body.trousers)
        brush.capsule(joints[ankle] + [0, limb * 0.5], joints[ankle] + [limb * 0.4, limb * 0.7], limb * 0.9, body.hair)
    brush.capsule((joints[5] + joints[6]) / 2, head, limb * 0.9, body.skin)
    brush.torso(joints[[5, 6, 12, 11]], limb, body.shirt)
    brush.circle(head - [0, radius * 0.15], radius * 1.08, body.hair)
    if joints[5, 0] > joints[6, 0]:  # left at the viewer's right: seen from the front, with a face
        brush.circle(head + (joints[0] - head) * 0.3 + [0, radius * 0.12], radius * 0.9, body.skin)
        for eye in (1, 2):
            brush.circle(joints[eye], max(0.6, radius * 0.13), (20, 20, 20))
    for elbow, wrist in ((7, 9), (8, 10)):
        brush.capsule(joints[elbow - 2], joints[elbow], limb, body.shirt)
        brush.capsule(joints[elbow], joints[wrist], limb * 0.85, skin_or_shirt)
        brush.circle(joints[wrist], limb * 0.55, body.skin)
    return brush.extent_xyxy()


def random_background(rng: Rng, wh: tuple[int, int]) -> Image:
    """(H, W, 3) uint8 BGR: a gradient with soft noise and things that are not people."""
    cv2 = load_cv2()

    width, height = wh
    corners = rng.uniform(20, 235, (2, 2, 3)).astype(np.float32)
    image = cv2.resize(corners, wh, interpolation=cv2.INTER_LINEAR)
    coarse = rng.normal(0, 14, (max(2, height // 24), max(2, width // 24), 3)).astype(np.float32)
    picture = np.clip(image + cv2.resize(coarse, wh, interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(3, 10))):
        colour = _colour(rng.uniform(0, 255, 3))
        x, y = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        w, h = int(rng.uniform(0.03, 0.3) * width), int(rng.uniform(0.03, 0.35) * height)
        kind = rng.integers(3)
        if kind == 0:
            cv2.rectangle(picture, (x, y), (x + w, y + h), colour, -1)
        elif kind == 1:
            cv2.ellipse(picture, (x, y), (max(1, w // 2), max(1, h // 2)), 0, 0, 360, colour, -1, cv2.LINE_AA)
        else:
            cv2.line(picture, (x, y), (x + w, y - h), colour, max(1, w // 8), cv2.LINE_AA)
    return np.asarray(picture)


def random_scene(rng: Rng, wh: tuple[int, int], *, max_people: int = 5) -> tuple[Image, Float32Array, Float32Array]:
    """One independent picture.

    Returns:
        image (H, W, 3) uint8 BGR, boxes (N, 4) float32 xyxy and keypoints (N, 17, 3) float32 (x, y, visibility
        0 or 2), both in pixels of the image frame and clipped to it.
    """
    image = random_background(rng, wh)
    boxes, keypoints = [], []
    heights = np.sort(np.exp(rng.uniform(np.log(0.12), np.log(1.1), int(rng.integers(1, max_people + 1)))))
    for relative in heights:  # the nearest, hence tallest, is drawn last
        body, height_px = random_body(rng), relative * wh[1]
        origin = np.array([rng.uniform(0.05, 0.95) * wh[0], rng.uniform(-0.1, 1.05 - min(relative, 1.0)) * wh[1]])
        joints = (joints_from_pose(random_pose(rng), body) * height_px + origin).astype(np.float32)
        boxes.append(draw_person(image, joints, body, height_px))
        keypoints.append(joints)
    return image, *_clipped(boxes, keypoints, wh)


def sparse_scene(rng: Rng, wh: tuple[int, int], *, max_people: int = 3) -> tuple[Image, Float32Array, Float32Array]:
    """One independent picture that is easy to read: people large, whole, apart and seldom from the side.

    Returns:
        As `random_scene`.
    """
    image = random_background(rng, wh)
    boxes: list[Float32Array] = []
    keypoints = []
    for relative in np.sort(rng.uniform(0.35, 0.95, int(rng.integers(1, max_people + 1)))):
        body, pose = random_body(rng), random_pose(rng)
        joints = joints_from_pose(replace(pose, facing=0.8 * pose.facing), body)
        low, high = body_extent(joints, body)
        # Never larger than the picture, with the arms spread and all.
        height_px = min(float(relative) * wh[1], 0.98 * float(min(np.array(wh) / (high - low))))
        for _ in range(8):
            origin = rng.uniform(0, 1, 2) * (np.array(wh) - height_px * (high - low)) - height_px * low
            xyxy = np.concatenate([low, high]) * height_px + np.tile(origin, 2)
            if max([*overlap_shares(xyxy, boxes), 0.0]) <= 0.2:
                break
        else:
            continue  # no room
        joints = (joints * height_px + origin).astype(np.float32)
        boxes.append(draw_person(image, joints, body, height_px))
        keypoints.append(joints)
    return image, *_clipped(boxes, keypoints, wh)


def body_extent(joints: Float32Array, body: Body) -> tuple[Float32Array, Float32Array]:
    """Least and largest (x, y) that `draw_person` paints of a body of height 1 with these (17, 2) joints, or nearly."""
    head = (joints[3] + joints[4]) / 2
    reach = np.array([body.limb * 0.9, body.limb * 1.2])
    low = np.minimum(joints.min(axis=0) - reach, head - body.head * 1.25)
    return low, np.maximum(joints.max(axis=0) + reach, head + body.head * 1.1)


def overlap_shares(xyxy: npt.NDArray[Any], others: list[Float32Array]) -> list[float]:
    """What of the smaller of two boxes the other one covers, for each of the others."""
    shares = []
    for other in others:
        sides = np.clip(np.minimum(xyxy[2:], other[2:]) - np.maximum(xyxy[:2], other[:2]), 0, None)
        areas = [float(np.prod(box[2:] - box[:2])) for box in (xyxy, other)]
        shares.append(float(np.prod(sides)) / max(min(areas), 1e-6))
    return shares


class MovingScene:
    """People who walk through a room, for as long as one likes; the same seed gives the same film.

    Args:
        wh: size of the picture in pixels.
        num_people: how many walk at once.
        seed: chooses the room, the people and their ways.
    """

    def __init__(self, wh: tuple[int, int] = (640, 480), num_people: int = 3, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.wh = wh
        self._background = random_background(rng, wh)
        self._bodies = [random_body(rng) for _ in range(num_people)]
        self._heights_px = np.sort(rng.uniform(0.45, 0.8, num_people)) * wh[1]
        self._starts = rng.permutation(num_people) / max(1, num_people) + rng.uniform(0, 0.15, num_people)
        self._speeds = rng.uniform(0.05, 0.1, num_people) * rng.choice([-1.0, 1.0], num_people)
        self._floors = np.linspace(0.86, 0.97, num_people) * wh[1] if num_people else np.zeros(0)

    def frame(self, t_s: float) -> tuple[Image, Float32Array, Float32Array]:
        """The picture at `t_s` seconds.

        Returns:
            image (H, W, 3) uint8 BGR, boxes (N, 4) float32 xyxy and keypoints (N, 17, 3) float32 (x, y,
            visibility 0 or 2), both in pixels of the image frame and clipped to it.
        """
        image = self._background.copy()
        boxes, keypoints = [], []
        for i, body in enumerate(self._bodies):
            height_px = float(self._heights_px[i])
            # A walker who has left on one side comes back on the other.
            x = ((self._starts[i] + self._speeds[i] * t_s) % 1.2 - 0.1) * self.wh[0]
            pose = walking_pose(5.0 * t_s + 2.0 * i, float(np.sign(self._speeds[i])) * 0.75)
            joints = joints_from_pose(pose, body) * height_px + [x, self._floors[i] - height_px]
            joints = joints.astype(np.float32)
            boxes.append(draw_person(image, joints, body, height_px))
            keypoints.append(joints)
        return image, *_clipped(boxes, keypoints, self.wh)


class _Brush:
    """Draws with sub-pixel precision and remembers how far the paint went."""

    def __init__(self, image: Image) -> None:
        cv2 = load_cv2()

        self._cv2 = cv2
        self._image = image
        self._low = np.full(2, np.inf)
        self._high = np.full(2, -np.inf)

    def capsule(self, start: Any, end: Any, width: float, colour: tuple[int, int, int]) -> None:
        thickness = max(1, round(width))
        self._cv2.line(self._image, _fixed(start), _fixed(end), colour, thickness, self._cv2.LINE_AA, _SUBPIXEL_BITS)
        self._touch([start, end], thickness / 2)

    def circle(self, centre: Any, radius: float, colour: tuple[int, int, int]) -> None:
        fixed_radius = max(1, round(radius * (1 << _SUBPIXEL_BITS)))
        self._cv2.circle(self._image, _fixed(centre), fixed_radius, colour, -1, self._cv2.LINE_AA, _SUBPIXEL_BITS)
        self._touch([centre], radius)

    def torso(self, corners: Any, width: float, colour: tuple[int, int, int]) -> None:
        points = np.array([_fixed(corner) for corner in corners], np.int32)
        self._cv2.fillConvexPoly(self._image, self._cv2.convexHull(points), colour, self._cv2.LINE_AA, _SUBPIXEL_BITS)
        for a, b in ((0, 1), (1, 2), (2, 3), (3, 0)):
            self.capsule(corners[a], corners[b], width, colour)

    def extent_xyxy(self) -> Float32Array:
        return np.concatenate([self._low, self._high]).astype(np.float32)

    def _touch(self, points: Any, radius: float) -> None:
        reach = radius + _BLEED_PX
        self._low = np.minimum(self._low, np.min(points, axis=0) - reach)
        self._high = np.maximum(self._high, np.max(points, axis=0) + reach)


def fill_convex(image: Image, points: Any, colour: tuple[int, int, int]) -> None:
    """Fill the convex polygon of (N, 2) continuous pixels, in place and with sub-pixel precision."""
    cv2 = load_cv2()
    fixed = np.round((np.asarray(points, np.float64) - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillConvexPoly(image, fixed, colour, cv2.LINE_AA, _SUBPIXEL_BITS)


def _fixed(point: Any) -> tuple[int, int]:
    """Continuous coordinates to OpenCV's fixed-point pixel-centre ones."""
    x, y = np.round((np.asarray(point, dtype=np.float64) - 0.5) * (1 << _SUBPIXEL_BITS)).astype(int)
    return int(x), int(y)


def _hanging(angle_rad: float, length: float) -> npt.NDArray[np.float64]:
    return np.array([np.sin(angle_rad), np.cos(angle_rad)]) * length


def _colour(values: Any) -> tuple[int, int, int]:
    b, g, r = (int(v) for v in np.clip(values, 0, 255))
    return b, g, r


def _clipped(
    boxes: list[Float32Array], joints: list[Float32Array], wh: tuple[int, int]
) -> tuple[Float32Array, Float32Array]:
    """Only people who can be seen: 4 px at least, and not behind another; joints outside the picture are hidden."""
    if not boxes:
        return np.zeros((0, 4), np.float32), np.zeros((0, 17, 3), np.float32)
    xyxy = np.clip(np.stack(boxes), 0, np.array([*wh, *wh], np.float32))
    points = np.stack(joints)
    inside = np.all((points >= 0) & (points < np.array(wh)), axis=-1)
    keypoints = np.concatenate([points, 2.0 * inside[..., None]], axis=-1).astype(np.float32)
    keypoints[~inside] = 0
    seen = np.all(xyxy[:, 2:] - xyxy[:, :2] >= 4, axis=1) & ~_hidden(xyxy)
    return xyxy[seen], keypoints[seen]


def _hidden(xyxy: Float32Array) -> npt.NDArray[np.bool_]:
    """(N,) whether another, drawn later, covers at least 80 % of the box."""
    low = np.maximum(xyxy[:, None, :2], xyxy[None, :, :2])
    high = np.minimum(xyxy[:, None, 2:], xyxy[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=-1)  # (N, N)
    area = np.maximum((xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1), 1e-6)
    return np.asarray(np.triu(overlap / area[:, None] >= 0.8, k=1).any(axis=1))
