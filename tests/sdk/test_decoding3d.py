from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sdk.camera import CameraIntrinsics
from sdk.decoding import assemble, find_peaks
from sdk.errors import BackendError
from sdk.geometry import Affine, centred_affine, input_to_feature, letterbox
from sdk.results import Detections
from sdk.spec import HeadSpec, InputSpec, ModelSpec
from tests.helpers import Array, Heads, Peak, empty_heads, heads_with_peaks, logit, tiny_spec

IMAGE_WH = (1242, 375)
KITTI_P = np.array([[707.0, 0.0, 604.0, 45.8], [0.0, 707.0, 180.5, -0.35], [0.0, 0.0, 1.0, 0.005]])
LETTERBOX = letterbox(IMAGE_WH, (640, 192)).image_to_input


def spec_3d(*, dimensions: str = "none", **changes: Any) -> ModelSpec:
    """640x192 pixels, cars and people in space."""
    values: dict[str, Any] = {
        "name": "tiny-3d",
        "tasks": ("detection", "3d"),
        "input": InputSpec(640, 192),
        "heads": (
            *tiny_spec().heads,
            HeadSpec("depth", 1, "inverse_sigmoid"),
            HeadSpec("rotation", 8, "none"),
            HeadSpec("dimensions", 3, dimensions),  # type: ignore[arg-type]
        ),
        "class_names": ("car", "pedestrian"),
        "focal_px": 500.0,
    }
    return tiny_spec(**{**values, **changes})


@dataclass(frozen=True)
class World:
    """What is there: boxes, the camera, and how its picture is fitted."""

    center_m: Array
    size_hwl_m: Array
    yaw_rad: Array
    camera: CameraIntrinsics
    image_to_input: Affine

    def xyxy(self, *, clipped: bool) -> Array:
        """(N, 4) 2D boxes around the projected corners, in image pixels."""
        pixels = self.camera.project(_corners(self.center_m, self.size_hwl_m, self.yaw_rad))
        boxes = np.concatenate([pixels.min(axis=1), pixels.max(axis=1)], axis=1)
        return np.clip(boxes, 0, [*IMAGE_WH, *IMAGE_WH]) if clipped else boxes


def _corners(center: Array, size_hwl: Array, yaw: Array) -> Array:
    """(N, 8, 3), in loops."""
    corners = np.zeros((len(center), 8, 3))
    for i, (c, (h, w, length), a) in enumerate(zip(center, size_hwl, yaw, strict=True)):
        turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
        signs = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
        corners[i] = [c + turn @ (np.array(s) / 2 * [length, h, w]) for s in signs]
    return corners


def heads_of(world: World, spec: ModelSpec, boxes_xyxy: Array) -> Heads:
    """What a perfect network of ours answers."""
    heads = empty_heads(spec)
    to_feature = world.image_to_input.then(input_to_feature(spec.stride))
    focal_px = world.camera.moved(world.image_to_input).focal_px
    for i, box in enumerate(to_feature.apply(boxes_xyxy.reshape(-1, 2, 2)).reshape(-1, 4)):
        centre, size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        cell = x, y = np.floor(centre).astype(int)
        depth = world.center_m[i, 2] * (1.0 if spec.focal_px is None else spec.focal_px / focal_px)
        alpha = world.yaw_rad[i] - np.arctan2(world.center_m[i, 0], world.center_m[i, 2])
        dimensions = world.size_hwl_m[i]
        heads["heatmap"][0, i % 2, y, x] = logit(0.9 - 0.1 * i)
        heads["offset"][0, :, y, x] = centre - cell
        heads["size"][0, :, y, x] = size
        heads["depth"][0, 0, y, x] = logit(1 / (1 + depth) - 1e-6)
        is_exp = spec.head("dimensions").activation == "exp"
        heads["dimensions"][0, :, y, x] = np.log(dimensions) if is_exp else dimensions
        heads["rotation"][0, :, y, x] = rotation_of(alpha)
    return heads


def can_be_told_apart(world: World, spec: ModelSpec, boxes_xyxy: Array) -> bool:
    """Whether the centres lie in the network's input, and no two of them in neighbouring cells."""
    to_feature = world.image_to_input.then(input_to_feature(spec.stride))
    cells = np.floor(to_feature.apply(boxes_xyxy.reshape(-1, 2, 2)).mean(axis=1))
    inside = ((cells >= 0) & (cells < spec.feature_wh)).all()
    return bool(inside) and all(np.abs(a - b).max() > 1 for a, b in combinations(cells, 2))


def rotation_of(alpha: float) -> Array:
    """The eight channels of an angle; its bin is the one around its centre, -pi/2 or pi/2."""
    is_first = np.sin(alpha) < 0
    first, second = alpha + np.pi / 2, alpha - np.pi / 2
    # The logits of one bin have another level than those of the other: only margins count.
    first_logits, second_logits = ([5.0, 7.0], [0.0, -1.0]) if is_first else ([9.0, 8.0], [-3.0, -2.0])
    return np.array(
        [*first_logits, 3 * np.sin(first), 3 * np.cos(first), *second_logits, np.sin(second), np.cos(second)]
    )


def decode(heads: Heads, spec: ModelSpec, world: World) -> Detections:
    candidates = find_peaks(heads, spec, score_threshold=0.3)
    back = world.image_to_input.then(input_to_feature(spec.stride)).inverse()
    return assemble(candidates, spec, back, image_wh=IMAGE_WH, camera=world.camera)


def assert_found(detections: Detections, world: World, *, atol: float = 1e-3) -> None:
    boxes = detections.boxes3d
    assert boxes is not None and len(detections) == len(world.center_m)
    np.testing.assert_allclose(boxes.center_m, world.center_m, atol=atol)
    np.testing.assert_allclose(boxes.size_hwl_m, world.size_hwl_m, atol=atol)
    error = (boxes.yaw_rad - world.yaw_rad + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(error, 0, atol=atol)
    np.testing.assert_allclose(detections.xyxy, world.xyxy(clipped=True), atol=2e-3)
    assert boxes.center_m.dtype == boxes.size_hwl_m.dtype == boxes.yaw_rad.dtype == np.float32
    assert (np.abs(boxes.yaw_rad) <= np.float32(np.pi)).all()


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Up to three objects in view of some camera; corners nearer than 2.5 m take more rounds than there are."""
    focal, cx, cy = draw(st.floats(300, 1500)), draw(st.floats(500, 740)), draw(st.floats(120, 250))
    shift = draw(st.sampled_from([(0.0, 0.0, 0.0), (45.8, -0.35, 0.005), (-380.0, 2.0, 0.003)]))
    camera = CameraIntrinsics(
        np.array(
            [[focal, 0, cx, shift[0]], [0, focal * draw(st.floats(0.95, 1.05)), cy, shift[1]], [0, 0, 1, shift[2]]]
        )
    )
    count = draw(st.integers(1, 3))
    size = np.array([draw(st.tuples(st.floats(1, 3), st.floats(0.4, 2.5), st.floats(0.4, 6))) for _ in range(count)])
    nearest = np.hypot(size[:, 1], size[:, 2]) / 2 + 2.5
    z = np.array([draw(st.floats(0, 60)) for _ in range(count)]) + nearest
    pixels = np.array([draw(st.tuples(st.floats(60, 1180), st.floats(20, 355))) for _ in range(count)])
    yaw = np.array([draw(st.floats(-np.pi, np.pi)) for _ in range(count)])
    image_to_input = LETTERBOX
    if draw(st.booleans()):  # a crop, enlarged or made smaller, not quite alike in both directions
        scale, left, top = draw(st.floats(0.5, 0.7)), draw(st.floats(0, 100)), draw(st.floats(0, 40))
        linear = np.diag([scale, scale * draw(st.floats(0.98, 1.02))])
        image_to_input = Affine(np.column_stack([linear, linear @ [-left, -top]]), "image", "input")
    return World(camera.unproject(pixels, z), size, yaw, camera, image_to_input)


@pytest.mark.parametrize("clipped", [False, True])
@given(world=worlds(), dimensions=st.sampled_from(["none", "exp"]), focal_px=st.sampled_from([None, 400.0, 900.0]))
def test_encoded_boxes_are_decoded(clipped: bool, world: World, dimensions: str, focal_px: float | None) -> None:
    boxes = world.xyxy(clipped=clipped)
    if clipped:
        # Of a box that the border cuts on both sides nobody can say where it is in between.
        whole = world.xyxy(clipped=False)
        near_border = np.abs(np.clip(whole, 0, [*IMAGE_WH, *IMAGE_WH]) - [0, 0, *IMAGE_WH]) < 9
        assume(not (near_border[:, :2] & near_border[:, 2:]).any())
    spec = spec_3d(dimensions=dimensions, focal_px=focal_px)
    assume(can_be_told_apart(world, spec, boxes))
    assert_found(decode(heads_of(world, spec, boxes), spec, world), world, atol=5e-3)


def test_any_camera_and_any_fit_give_the_same_metres() -> None:
    # The same scene under two lenses, and letterboxed to two sizes: what the network sees differs, the world does not.
    size, yaw, center = np.array([[1.5, 1.6, 3.9]]), np.array([0.7]), np.array([[2.0, 1.1, 18.0]])
    for focal in (500.0, 900.0):
        camera = CameraIntrinsics(np.array([[focal, 0, 621], [0, focal, 187], [0, 0, 1]]))
        for wh in ((640, 192), (320, 320)):
            spec = spec_3d().with_input_size(*wh)
            world = World(center, size, yaw, camera, letterbox(IMAGE_WH, wh).image_to_input)
            assert_found(decode(heads_of(world, spec, world.xyxy(clipped=True)), spec, world), world)


def test_depth_follows_the_focal_length_of_the_frame() -> None:
    spec = spec_3d(focal_px=500.0)
    heads = heads_with_peaks(spec, [Peak(0, (24, 80), 0.9, (0.5, 0.5), (8, 8))])
    heads["depth"][:] = logit(1 / 11)  # 10 m under 500 px
    depths = []
    for focal_px in (500.0, 1000.0):
        candidates = find_peaks(heads, spec, score_threshold=0.3)
        camera = CameraIntrinsics(np.array([[focal_px, 0, 320], [0, focal_px, 96], [0, 0, 1]]))
        back = input_to_feature(4).inverse()
        as_image = Affine(back.matrix * 2, "feature", "image")  # the frame has 1280x384 pixels
        found = assemble(candidates, spec, as_image, image_wh=(1280, 384), camera=camera)
        assert found.boxes3d is not None
        depths.append(float(found.boxes3d.center_m[0, 2]))
    np.testing.assert_allclose(depths, [5.0, 10.0], rtol=1e-3)


@pytest.mark.parametrize("alpha", np.linspace(-np.pi, np.pi, 25))
def test_every_angle_has_a_bin(alpha: float) -> None:
    yaw = np.array([alpha + np.arctan2(0.5, 20.0)])
    world = World(np.array([[0.5, 1.0, 20.0]]), np.array([[1.5, 1.6, 3.9]]), yaw, CameraIntrinsics(KITTI_P), LETTERBOX)
    assert_found(decode(heads_of(world, spec_3d(), world.xyxy(clipped=True)), spec_3d(), world), world)


def test_the_boxes_of_kitti_are_placed_by_their_boxes_in_the_image(photographs: Path) -> None:
    folder = photographs / "kitti" / "object" / "training"
    errors, is_cut = [], []
    for path in sorted((folder / "label_2").glob("*.txt"))[::3]:
        camera = CameraIntrinsics.from_file(folder / "calib" / path.name)
        for line in path.read_text().splitlines():
            kind, *numbers = line.split()
            truncated, _, _, *box_and_space = map(float, numbers)
            if kind not in ("Car", "Pedestrian", "Cyclist"):
                continue
            xyxy, (h, w, length), (x, y, z), yaw = np.split(np.array(box_and_space), [4, 7, 10])
            center = np.array([[x, y - h / 2, z]])
            world = World(center, np.array([[h, w, length]]), yaw, camera, LETTERBOX)
            boxes = decode(heads_of(world, spec_3d(), xyxy[None]), spec_3d(), world).boxes3d
            assert boxes is not None
            errors.append(np.linalg.norm(boxes.center_m - center))
            is_cut.append(truncated > 0.05)
    assert len(errors) > 100
    # What is left is the labels' own: boxes in whole pixels, and objects that are no boxes.
    assert np.median(errors) < 0.03 and np.quantile(errors, 0.9) < 0.1
    assert np.median(np.array(errors)[is_cut]) < 0.05


@pytest.mark.parametrize("spec", [spec_3d(), spec_3d(decoding="centernet", focal_px=None), tiny_spec()])
def test_boxes_in_space_need_a_3d_model_and_a_camera(spec: ModelSpec) -> None:
    heads = heads_with_peaks(spec, [Peak(0, (8, 8), 0.9)])
    candidates = find_peaks(heads, spec, score_threshold=0.3)
    back = input_to_feature(4).inverse()
    as_image = Affine(back.matrix, "feature", "image")
    assert assemble(candidates, spec, as_image, image_wh=(640, 192)).boxes3d is None
    found = assemble(candidates, spec, as_image, image_wh=(640, 192), camera=CameraIntrinsics(KITTI_P))
    assert (found.boxes3d is not None) == ("3d" in spec.tasks) and len(found) == 1


@pytest.mark.parametrize("decoding", ["paper", "centernet"])
def test_an_empty_scene(decoding: str) -> None:
    spec = spec_3d(decoding=decoding, focal_px=None)
    world = World(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), CameraIntrinsics(KITTI_P), LETTERBOX)
    boxes = decode(empty_heads(spec), spec, world).boxes3d
    assert boxes is not None and boxes.corners_m().shape == (0, 8, 3)


@pytest.mark.parametrize("decoding", ["paper", "centernet"])
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1.0, 100.0, 1e30]))
def test_an_untrained_network_gives_finite_boxes(decoding: str, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    spec = spec_3d(decoding=decoding, focal_px=None, dimensions=str(rng.choice(["none", "exp"])))
    spec = spec.with_input_size(64, 64)
    heads = {name: rng.normal(0, scale, head.shape).astype(np.float32) for name, head in empty_heads(spec).items()}
    candidates = find_peaks(heads, spec)
    back = letterbox(IMAGE_WH, (64, 64)).image_to_input.then(input_to_feature(4)).inverse()
    boxes = assemble(candidates, spec, back, image_wh=IMAGE_WH, camera=CameraIntrinsics(KITTI_P)).boxes3d
    assert boxes is not None and len(boxes) > 0
    for array in (boxes.center_m, boxes.size_hwl_m, boxes.yaw_rad):
        assert np.isfinite(array).all()
    if decoding == "paper":
        assert (boxes.size_hwl_m >= 0).all() and (boxes.center_m[:, 2] >= 0).all()


@pytest.mark.parametrize("name", ["depth", "rotation", "dimensions"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_an_error_not_a_box(name: str, value: float) -> None:
    spec = spec_3d()
    heads = heads_with_peaks(spec, [Peak(0, (8, 8), 0.9)])
    heads[name][0, 0, 8, 9] = value  # where nothing is found it does no harm
    find_peaks(heads, spec, score_threshold=0.3)
    heads[name][0, 0, 8, 8] = value
    with pytest.raises(BackendError, match=f"{name} of model 'tiny-3d' holds NaN or infinity"):
        find_peaks(heads, spec, score_threshold=0.3)


# The official code, in loops


def official_rows(heads: Heads, spec: ModelSpec, cells_yx: Array, image_wh: tuple[int, int]) -> list[tuple[Array, ...]]:
    """For each cell the 2D box, the bottom centre, h, w, l and the yaw, as the official code has them."""
    p = KITTI_P
    width, height = image_wh
    out_w, out_h = spec.feature_wh
    scale = width / out_w
    rows = []
    for y, x in cells_yx:
        raw = {name: head[0, :, y, x].astype(np.float64) for name, head in heads.items()}
        # transform_preds, of the centre as of width and height
        u = (x + raw["offset"][0] - out_w / 2) * scale + width / 2
        v = (y + raw["offset"][1] - out_h / 2) * scale + height / 2
        w = (raw["size"][0] - out_w / 2) * scale + width / 2
        h = (raw["size"][1] - out_h / 2) * scale + height / 2
        depth = 1 / (1 / (1 + np.exp(-raw["depth"][0])) + 1e-6) - 1
        rot = raw["rotation"]
        alpha = np.arctan2(rot[2], rot[3]) - np.pi / 2 if rot[1] > rot[5] else np.arctan2(rot[6], rot[7]) + np.pi / 2
        z = depth - p[2, 3]
        location = [(u * depth - p[0, 3] - p[0, 2] * z) / p[0, 0], (v * depth - p[1, 3] - p[1, 2] * z) / p[1, 1], z]
        location[1] += raw["dimensions"][0] / 2
        yaw = alpha + np.arctan2(u - p[0, 2], p[0, 0])
        if yaw > np.pi:
            yaw -= 2 * np.pi
        if yaw < -np.pi:
            yaw += 2 * np.pi
        box = np.array([u - w / 2, v - h / 2, u + w / 2, v + h / 2])
        rows.append((box, np.array(location), raw["dimensions"], np.array(yaw)))
    return rows


@pytest.mark.parametrize("image_wh", [(1242, 375), (1224, 370)])
def test_an_official_model_gives_the_official_numbers(image_wh: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    spec = spec_3d(decoding="centernet", focal_px=None, input=InputSpec(1280, 384, fit="width"), max_detections=60)
    heads = {name: rng.normal(0, 1.5, head.shape).astype(np.float32) for name, head in empty_heads(spec).items()}
    heads["size"] = np.abs(heads["size"]) * 20
    heads["depth"] -= 3.0
    candidates = find_peaks(heads, spec)
    back = centred_affine(image_wh, (1280, 384), image_wh[0]).then(input_to_feature(4)).inverse()
    found = assemble(candidates, spec, back, image_wh=image_wh, camera=CameraIntrinsics(KITTI_P))
    assert found.boxes3d is not None and len(found) == 60
    bottom = found.boxes3d.center_m.astype(np.float64)
    bottom[:, 1] += found.boxes3d.size_hwl_m[:, 0] / 2
    yaws = found.boxes3d.yaw_rad
    assert (yaws > np.pi / 2).any() and (yaws < -np.pi / 2).any()
    for i, (box, location, size, yaw) in enumerate(official_rows(heads, spec, candidates.cells_yx, image_wh)):
        np.testing.assert_allclose(found.xyxy[i], np.clip(box, 0, [*image_wh, *image_wh]), atol=1e-3)
        np.testing.assert_allclose(bottom[i], location, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.boxes3d.size_hwl_m[i], size, atol=1e-6)
        np.testing.assert_allclose(yaws[i], yaw, atol=1e-5)
