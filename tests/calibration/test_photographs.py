"""Which photographs are calibrated on, and what becomes of bad ones."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from calibration.errors import CalibrationError
from calibration.photographs import PhotographReader, choose_photographs
from sdk.errors import SourceError
from sdk.sources.images import read_image

from .conftest import NUM_SCENES, Scenes


def test_the_same_seed_chooses_the_same_photographs(scenes: Scenes) -> None:
    first = choose_photographs(scenes.folder, 3, seed=5)
    assert first == choose_photographs(scenes.folder, 3, seed=5)
    assert len(set(first)) == 3
    assert any(choose_photographs(scenes.folder, 3, seed=seed) != first for seed in range(5))


def test_more_than_there_are_means_all(scenes: Scenes) -> None:
    assert [path.stem for path in choose_photographs(scenes.folder, 100)] == ["1", "2", "3", "4", "5", "6"]


def test_each_is_read_once_in_order_and_hashed(scenes: Scenes) -> None:
    paths = choose_photographs(scenes.folder, 100)
    reader = PhotographReader(paths)
    images = list(reader)
    assert len(images) == len(reader) == NUM_SCENES
    assert all(np.array_equal(image, read_image(path)) for image, path in zip(images, paths, strict=True))
    assert [(p.name, p.sha256) for p in reader.used] == [
        (path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths
    ]


def many(scenes: Scenes, folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        shutil.copy(scenes.folder / "2.png", folder / f"{number}.png")
    return folder


def test_a_bad_one_among_many_is_left_out_and_listed(scenes: Scenes, tmp_path: Path) -> None:
    folder = many(scenes, tmp_path / "images", 20)
    (folder / "7.png").write_bytes(b"")
    reader = PhotographReader(choose_photographs(folder, 100))
    assert len(list(reader)) == 19
    assert [entry.name for entry in reader.unreadable] == ["7.png"]
    assert "is empty" in reader.unreadable[0].reason


def test_too_many_bad_ones_are_refused_with_the_first_reason(scenes: Scenes, tmp_path: Path) -> None:
    folder = many(scenes, tmp_path / "images", 20)
    for name in ("7.png", "9.png"):
        (folder / name).write_bytes(b"no image")
    with pytest.raises(
        CalibrationError, match=r"2 of 20 photographs cannot be read, more than 5%; the first: .*7\.png"
    ):
        list(PhotographReader(choose_photographs(folder, 100)))


def test_one_photograph_is_too_few(scenes: Scenes, tmp_path: Path) -> None:
    folder = many(scenes, tmp_path / "images", 1)
    with pytest.raises(CalibrationError, match="has 1 photograph; calibration needs at least 2"):
        choose_photographs(folder, 100)


def test_a_folder_without_images_or_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no image"):
        choose_photographs(tmp_path, 100)
    with pytest.raises(CalibrationError, match="there is no folder"):
        choose_photographs(tmp_path / "nowhere", 100)
