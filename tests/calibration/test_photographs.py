"""What becomes of good and bad photographs, and what tells one from another."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.errors import CalibrationError
from calibration.photographs import Photograph, PhotographReader, Unreadable, identify
from sdk.sources.images import folder_images, read_image

from .conftest import NUM_SCENES, Scenes


def test_each_is_read_once_in_order_and_hashed(scenes: Scenes) -> None:
    paths = folder_images(scenes.folder)
    reader = PhotographReader(paths)
    images = list(reader)
    assert len(images) == len(reader) == NUM_SCENES
    assert all(np.array_equal(image, read_image(path)) for image, path in zip(images, paths, strict=True))
    assert [(p.name, p.sha256) for p in reader.used] == [
        (path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths
    ]
    assert identify(paths) == reader.used


def test_equal_pixels_are_known_in_another_container(scenes: Scenes, tmp_path: Path) -> None:
    copy = tmp_path / "copy.bmp"
    cv2.imwrite(str(copy), read_image(scenes.folder / "1.jpg"))
    first, second = identify([scenes.folder / "1.jpg", copy])
    assert isinstance(first, Photograph) and isinstance(second, Photograph)
    assert first.sha256 != second.sha256 and first.pixels_sha256 == second.pixels_sha256


def test_equal_bytes_of_another_shape_are_other_pixels(tmp_path: Path) -> None:
    for name, shape in (("wide.png", (2, 8, 3)), ("square.png", (4, 4, 3))):
        cv2.imwrite(str(tmp_path / name), np.full(shape, 7, np.uint8))
    wide, square = identify([tmp_path / "wide.png", tmp_path / "square.png"])
    assert isinstance(wide, Photograph) and isinstance(square, Photograph)
    assert wide.pixels_sha256 != square.pixels_sha256


def test_what_cannot_be_read_is_said_with_the_reason(scenes: Scenes, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    found = identify([tmp_path / "empty.jpg", scenes.folder / "1.jpg", tmp_path / "gone.jpg"])
    assert isinstance(found[0], Unreadable) and "is empty" in found[0].reason
    assert isinstance(found[1], Photograph)
    assert isinstance(found[2], Unreadable) and "cannot be read" in found[2].reason


def many(scenes: Scenes, folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    for number in range(count):
        shutil.copy(scenes.folder / "2.png", folder / f"{number}.png")
    return folder_images(folder)


def test_a_bad_one_among_many_is_left_out_and_listed(scenes: Scenes, tmp_path: Path) -> None:
    paths = many(scenes, tmp_path / "images", 20)
    paths[7].write_bytes(b"")
    reader = PhotographReader(paths)
    assert len(list(reader)) == 19
    assert [entry.name for entry in reader.unreadable] == ["7.png"]
    assert "is empty" in reader.unreadable[0].reason


def test_one_that_is_too_large_for_the_network_is_left_out_too(scenes: Scenes, tmp_path: Path) -> None:
    paths = many(scenes, tmp_path / "images", 20)
    cv2.imwrite(str(paths[3]), np.zeros((1, 40000, 3), np.uint8))
    reader = PhotographReader(paths)
    assert len(list(reader)) == 19
    assert "at most 32767 pixels" in reader.unreadable[0].reason


def test_too_many_bad_ones_are_refused_with_the_first_reason(scenes: Scenes, tmp_path: Path) -> None:
    paths = many(scenes, tmp_path / "images", 20)
    for index in (7, 9):
        paths[index].write_bytes(b"no image")
    with pytest.raises(
        CalibrationError, match=r"2 of 20 photographs cannot be read, more than 5%; the first: .*7\.png"
    ):
        list(PhotographReader(paths))


def test_one_photograph_is_too_few(scenes: Scenes, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="1 of 1 photographs can be read, calibration needs at least 2"):
        list(PhotographReader(many(scenes, tmp_path / "images", 1)))
