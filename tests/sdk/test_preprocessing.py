from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import InputError
from sdk.preprocessing import as_bgr, prepare
from sdk.spec import InputSpec
from tests.helpers import Array, tiny_spec

SPEC = tiny_spec()


def _image(height: int, width: int, *channels: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)


def test_an_image_of_input_size_is_taken_as_it_is() -> None:
    image = _image(64, 64, 3)
    prepared = prepare(image, SPEC)
    np.testing.assert_array_equal(prepared.tensor[0], image)
    assert prepared.tensor.shape == (1, 64, 64, 3) and prepared.tensor.dtype == np.uint8
    assert prepared.image_wh == (64, 64)
    np.testing.assert_allclose(prepared.feature_to_image.apply(np.array([[16.0, 2.5]])), [[64.0, 10.0]])


def test_a_wide_image_is_centred_on_black() -> None:
    prepared = prepare(np.full((40, 80, 3), 200, np.uint8), SPEC)
    np.testing.assert_array_equal(prepared.tensor[0, :16], 0)
    np.testing.assert_array_equal(prepared.tensor[0, 16:48], 200)
    np.testing.assert_array_equal(prepared.tensor[0, 48:], 0)
    # The picture's corners, in feature cells, go back to its corners.
    corners = prepared.feature_to_image.apply(np.array([[0.0, 4.0], [16.0, 12.0]]))
    np.testing.assert_allclose(corners, [[0, 0], [80, 40]])


def test_channel_order_of_the_model() -> None:
    image = _image(64, 64, 3)
    rgb = tiny_spec(input=InputSpec(64, 64, channel_order="rgb"))
    np.testing.assert_array_equal(prepare(image, rgb).tensor[0], image[..., ::-1])


@pytest.mark.parametrize(
    ("fit", "image_wh", "input_wh"),
    [
        ("longest_side", (80, 40), (64, 64)),
        ("longest_side", (40, 90), (64, 32)),
        ("width", (1242, 375), (1280, 384)),
        ("width", (40, 90), (64, 64)),
    ],
)
def test_official_models_see_the_official_warp(fit: str, image_wh: tuple[int, int], input_wh: tuple[int, int]) -> None:
    image = _image(image_wh[1], image_wh[0], 3)
    prepared = prepare(image, tiny_spec(input=InputSpec(*input_wh, fit=fit)))  # type: ignore[arg-type]
    # Three points of the image and where they go: the centre, half a side above it, and the same to the left.
    side = max(image_wh) if fit == "longest_side" else image_wh[0]
    steps = np.array([[0, 0], [0, -0.5], [-0.5, 0]])
    source = np.array(image_wh) / 2 + steps * side
    target = np.array(input_wh) / 2 + steps * input_wh[0]
    matrix = cv2.getAffineTransform(source.astype(np.float32), target.astype(np.float32))
    expected = cv2.warpAffine(image, matrix, input_wh, flags=cv2.INTER_LINEAR)
    difference = np.abs(prepared.tensor[0].astype(int) - expected)
    assert difference.max() <= 8 and (difference > 0).mean() < 0.01  # the matrix above is no better than float32
    np.testing.assert_allclose(prepared.feature_to_image.apply(target / 4), source, atol=1e-4)
    assert prepared.image_wh == image_wh


def test_an_official_fit_cuts_what_does_not_fit() -> None:
    image = np.full((90, 40, 3), 200, np.uint8)
    wide = prepare(image, tiny_spec(input=InputSpec(64, 64, fit="width")))
    assert (wide.tensor == 200).mean() > 0.95
    top, bottom = wide.feature_to_image.apply(np.array([[0.0, 0.0], [16.0, 16.0]]))
    np.testing.assert_allclose([top, bottom], [[0, 25], [40, 65]])


@given(height=st.integers(1, 200), width=st.integers(1, 200))
def test_a_mark_lands_where_the_affine_says(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    # A quarter of the picture is white: its inner corner can be seen at any scale.
    image[: height // 2, : width // 2] = 255
    prepared = prepare(image, SPEC)
    feature_corner = prepared.feature_to_image.inverse().apply(np.array([width // 2, height // 2], np.float64))
    start = prepared.feature_to_image.inverse().apply(np.zeros(2))
    white = prepared.tensor[0, :, :, 0].astype(np.float64) / 255
    expected = np.prod((feature_corner - start) * SPEC.stride)  # white area in input pixels
    assert abs(white.sum() - expected) <= 0.05 * expected + 64


def test_gray_is_repeated_and_alpha_dropped() -> None:
    gray = _image(20, 30)
    np.testing.assert_array_equal(as_bgr(gray), np.repeat(gray[..., None], 3, axis=2))
    np.testing.assert_array_equal(as_bgr(gray[..., None]), np.repeat(gray[..., None], 3, axis=2))
    bgra = _image(20, 30, 4)
    np.testing.assert_array_equal(as_bgr(bgra), bgra[..., :3])


@pytest.mark.parametrize("image", [_image(1, 1, 3), _image(1, 500, 3), _image(500, 1, 3), _image(1, 1)])
def test_the_smallest_and_thinnest_images(image: Array) -> None:
    prepared = prepare(image, SPEC)
    assert prepared.tensor.shape == (1, 64, 64, 3)
    assert prepared.tensor.any()
    corners = prepared.feature_to_image.inverse().apply(np.array([[0, 0], prepared.image_wh], np.float64)) * 4
    assert (corners >= 0).all() and (corners <= 64).all() and (corners[1] - corners[0] >= 1 - 1e-9).all()


def test_a_large_image() -> None:
    image = np.zeros((8000, 8000, 3), np.uint8)
    image[4000:] = 255
    tensor = prepare(image, SPEC).tensor[0]
    assert tensor[:32].max() == 0 and tensor[32:].min() == 255


def test_shrinking_is_close_to_averaging_all_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (1080, 1920, 3), dtype=np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 1.2)  # detail of about three pixels, the finest that a lens gives
    spec = SPEC.with_input_size(320, 180)
    averaged = cv2.resize(image, (320, 180), interpolation=cv2.INTER_AREA).astype(int)
    bilinear = cv2.resize(image, (320, 180), interpolation=cv2.INTER_LINEAR).astype(int)
    error = np.abs(prepare(image, spec).tensor[0] - averaged).mean()
    assert error < 2.0 < np.abs(bilinear - averaged).mean()


@pytest.mark.parametrize(
    "view",
    [
        lambda image: image[::2, ::3],
        lambda image: image[:, ::-1],
        lambda image: image[..., ::-1],
        lambda image: image.transpose(1, 0, 2),
        lambda image: np.asfortranarray(image),
        lambda image: np.frombuffer(image.tobytes(), np.uint8).reshape(image.shape),  # read-only
    ],
)
def test_any_memory_layout(view: Any) -> None:
    image = view(_image(90, 120, 3))
    np.testing.assert_array_equal(prepare(image, SPEC).tensor, prepare(image.copy(order="C"), SPEC).tensor)


@pytest.mark.parametrize("shape", [(64, 64, 3), (50, 90, 3), (50, 90), (50, 90, 4), (300, 300, 3)])
def test_the_callers_array_is_neither_changed_nor_kept(shape: tuple[int, ...]) -> None:
    image = _image(*shape)
    before = image.copy()
    prepared = prepare(image, SPEC)
    prepared.tensor[:] = 7
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            _image(4, 4, 3).astype(np.float32) / 255,
            r"got an image of float32, expected .*uint8 BGR.*astype\(np.uint8\)",
        ),
        (_image(4, 4, 3).astype(np.float64), "float64"),
        (_image(4, 4, 3).astype(np.uint16), "uint16"),
        (_image(4, 4, 3) > 100, "bool"),
        (np.zeros((0, 0, 3), np.uint8), r"empty image of shape \(0, 0, 3\)"),
        (np.zeros((10, 0, 3), np.uint8), "empty"),
        (np.zeros((10, 0), np.uint8), "empty"),
        (_image(4, 4, 2), r"shape \(4, 4, 2\), expected a NumPy array \(H, W, 3\)"),
        (_image(4, 4, 5), "shape"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"shape \(1, 4, 4, 3\)"),
        (np.zeros(12, np.uint8), "shape"),
        (np.zeros((), np.uint8), "shape"),
        (np.zeros((1, 40000, 3), np.uint8), "at most 32767 pixels"),
        (None, r"got NoneType, expected a NumPy array .*cv2.imread"),
        ("photo.jpg", "got str"),
        ([[0, 0], [0, 0]], "got list"),
    ],
)
def test_anything_else_is_refused(image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(image, SPEC)
    with pytest.raises(ValueError):  # an InputError is one, for callers who do not know ours
        prepare(image, SPEC)


def test_a_photograph_from_a_file(tmp_path: Any) -> None:
    path = str(tmp_path / "photo.png")
    image = _image(30, 60, 3)
    assert cv2.imwrite(path, image)
    np.testing.assert_array_equal(prepare(cv2.imread(path), SPEC).tensor, prepare(image, SPEC).tensor)
