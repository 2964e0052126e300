from __future__ import annotations

import doctest

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sdk.geometry
from sdk.geometry import (
    Affine,
    centred_affine,
    input_to_feature,
    letterbox,
    wrapped,
    xywh_to_xyxy,
    xyxy_to_xywh,
)

numbers = st.floats(-1000, 1000)
scales = st.floats(0.1, 10)
sides = st.integers(1, 8000)


@st.composite
def affines(draw: st.DrawFn) -> Affine:
    """Invertible maps with scale, mirroring and some shear."""
    x_scale = draw(scales) * draw(st.sampled_from([1, -1]))
    shear = draw(st.floats(-0.05, 0.05))
    return Affine(np.array([[x_scale, shear, draw(numbers)], [shear, draw(scales), draw(numbers)]]), "image", "input")


@given(affine=affines(), point=st.tuples(numbers, numbers))
def test_inverse_undoes_the_map(affine: Affine, point: tuple[float, float]) -> None:
    back = affine.inverse()
    assert (back.source, back.target) == ("input", "image")
    np.testing.assert_allclose(back.apply(affine.apply(np.array(point))), point, atol=1e-6)


@given(first=affines(), second=affines(), point=st.tuples(numbers, numbers))
def test_then_is_one_after_the_other(first: Affine, second: Affine, point: tuple[float, float]) -> None:
    after = Affine(second.matrix, "input", "feature")
    both = first.then(after)
    assert (both.source, both.target) == ("image", "feature")
    one_by_one = after.apply(first.apply(np.array(point)))
    np.testing.assert_allclose(both.apply(np.array(point)), one_by_one, rtol=1e-9, atol=1e-9)


def test_then_refuses_frames_that_do_not_meet() -> None:
    image_to_input = letterbox((10, 10), (64, 64)).image_to_input
    with pytest.raises(ValueError, match="a map to 'input' cannot be followed by one from 'image'"):
        image_to_input.then(image_to_input)


def test_apply_takes_any_leading_shape() -> None:
    affine = Affine(np.array([[2.0, 0.0, 1.0], [0.0, 3.0, -1.0]]), "image", "input")
    assert affine.apply(np.zeros((0, 2))).shape == (0, 2)
    np.testing.assert_array_equal(affine.apply(np.ones((2, 5, 2))), np.broadcast_to([3.0, 2.0], (2, 5, 2)))


@given(image_w=sides, image_h=sides, input_w=st.integers(1, 640), input_h=st.integers(1, 640))
def test_letterbox_is_exact(image_w: int, image_h: int, input_w: int, input_h: int) -> None:
    box = letterbox((image_w, image_h), (input_w, input_h))
    width, height = box.resized_wh
    # The picture's corners lie where the resized pixels lie.
    corners = box.image_to_input.apply(np.array([[0, 0], [image_w, image_h]]))
    np.testing.assert_allclose(corners, [[box.left, box.top], [box.left + width, box.top + height]], atol=1e-9)
    # It fits, it fills one side, and it is in the middle.
    assert 1 <= width <= input_w and 1 <= height <= input_h
    assert width == input_w or height == input_h
    assert abs((input_w - width) - 2 * box.left) <= 1 and abs((input_h - height) - 2 * box.top) <= 1
    # The aspect ratio is kept to half a pixel (or the one pixel that is always left).
    scale = min(input_w / image_w, input_h / image_h)
    assert abs(width - max(1, image_w * scale)) <= 0.5 and abs(height - max(1, image_h * scale)) <= 0.5


@given(image_w=sides, image_h=sides, input_w=sides, input_h=sides, side=sides, point=st.tuples(numbers, numbers))
def test_centred_affine_keeps_the_centre_and_one_scale(
    image_w: int, image_h: int, input_w: int, input_h: int, side: int, point: tuple[float, float]
) -> None:
    affine = centred_affine((image_w, image_h), (input_w, input_h), side)
    from_centre = affine.apply(np.array(point)) - np.array([input_w, input_h]) / 2
    expected = (np.array(point) - np.array([image_w, image_h]) / 2) * input_w / side
    np.testing.assert_allclose(from_centre, expected, rtol=1e-9, atol=1e-6)


@given(angle=st.floats(-100, 100))
def test_a_wrapped_angle_is_the_same_angle(angle: float) -> None:
    result = float(wrapped(np.array(angle)))
    assert -np.pi < result <= np.pi
    np.testing.assert_allclose([np.cos(result), np.sin(result)], [np.cos(angle), np.sin(angle)], atol=1e-9)


def test_input_to_feature_divides_by_the_stride() -> None:
    np.testing.assert_array_equal(input_to_feature(4).apply(np.array([[0.0, 0.0], [64.0, 10.0]])), [[0, 0], [16, 2.5]])


@pytest.mark.parametrize("mirrored", [False, True])
def test_index_matrix_moves_pixels_as_apply_moves_points(mirrored: bool) -> None:
    rng = np.random.default_rng(0)
    scale, shift = 2.0, (6.0, -3.0)
    x = [-scale, 0.0, shift[0] + scale * 20] if mirrored else [scale, 0.0, shift[0]]
    affine = Affine(np.array([x, [0.0, scale, shift[1]]]), "image", "input")
    for _ in range(10):
        # A black picture with one white pixel, whose centre is at (column + 0.5, row + 0.5).
        column, row = rng.integers(4, 16, 2)
        image = np.zeros((20, 20), np.float32)
        image[row, column] = 1.0
        warped = cv2.warpAffine(image, affine.index_matrix, (64, 48), flags=cv2.INTER_LINEAR)
        rows, columns = np.mgrid[:48, :64] + 0.5
        centre = [(warped * columns).sum() / warped.sum(), (warped * rows).sum() / warped.sum()]
        np.testing.assert_allclose(centre, affine.apply(np.array([column + 0.5, row + 0.5])), atol=1e-3)


def test_index_matrix_of_a_scale_is_cv2_resize() -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.float32)
    scale = Affine(np.array([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), "image", "input")
    warped = cv2.warpAffine(
        image, scale.index_matrix, (60, 40), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    np.testing.assert_allclose(warped, cv2.resize(image, (60, 40), interpolation=cv2.INTER_LINEAR), atol=0.1)


@given(boxes=st.lists(st.tuples(numbers, numbers, scales, scales), max_size=5))
def test_box_forms_are_inverse(boxes: list[tuple[float, float, float, float]]) -> None:
    xywh = np.array(boxes, np.float64).reshape(-1, 4)
    xyxy = xywh_to_xyxy(xywh)
    np.testing.assert_allclose(xyxy_to_xywh(xyxy), xywh, atol=1e-9)
    assert (xyxy[:, 2:] >= xyxy[:, :2]).all()


def test_examples_in_the_documentation() -> None:
    result = doctest.testmod(sdk.geometry)
    assert result.attempted > 0 and result.failed == 0
