"""Accuracy is never measured on what was calibrated on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from calibration.errors import CalibrationError
from calibration.overlap import identified, set_aside, without_calibrated
from calibration.photographs import Photograph
from calibration.sets import AnnotatedSet, list_photographs, open_annotated
from sdk.sources.images import read_image
from tests.fakes import FAKE_SPEC

from .conftest import Scenes


@pytest.fixture
def evaluation(scenes: Scenes) -> AnnotatedSet:
    return open_annotated(scenes.folder, scenes.annotations, FAKE_SPEC)


def disguised(scenes: Scenes, folder: Path) -> tuple[Photograph, ...]:
    """Photograph 1 under the name of another, and 2 in another container under another name."""
    shutil.copy(scenes.folder / "1.jpg", folder / "6.jpg")
    cv2.imwrite(str(folder / "other.bmp"), read_image(scenes.folder / "2.png"))
    return identified(list_photographs(folder))


def test_sets_that_share_nothing_are_left_alone(evaluation: AnnotatedSet, other_scenes: Scenes) -> None:
    unseen = without_calibrated(evaluation, identified(list_photographs(other_scenes.folder)))
    assert unseen == evaluation


def test_what_is_shared_is_found_by_content_and_refused(
    evaluation: AnnotatedSet, scenes: Scenes, tmp_path: Path
) -> None:
    with pytest.raises(
        CalibrationError, match=r"2 of the 6 evaluation photographs were calibrated on, the first 1\.jpg; .*--force"
    ):
        without_calibrated(evaluation, disguised(scenes, tmp_path))


def test_with_force_what_is_shared_is_left_out(evaluation: AnnotatedSet, scenes: Scenes, tmp_path: Path) -> None:
    unseen = without_calibrated(evaluation, disguised(scenes, tmp_path), force=True)
    assert sorted(unseen.files) == [3, 4, 5, 6]
    assert unseen.calibrated_on == ("1.jpg", "2.png")


def test_with_force_something_must_be_left(evaluation: AnnotatedSet) -> None:
    with pytest.raises(CalibrationError, match="all 6 evaluation photographs were calibrated on"):
        without_calibrated(evaluation, identified(list(evaluation.files.values())), force=True)


def test_ranges_that_know_no_pixels_are_compared_by_file(evaluation: AnnotatedSet, scenes: Scenes) -> None:
    (photograph,) = identified([scenes.folder / "3.jpg"])
    unseen = without_calibrated(evaluation, [replace(photograph, pixels_sha256="")], force=True)
    assert unseen.calibrated_on == ("3.jpg",)


def test_what_is_set_aside_is_the_rest_and_at_most_500(evaluation: AnnotatedSet) -> None:
    pool, aside = set_aside(evaluation, 4)
    assert len(pool.files) == 4 and len(aside.files) == 2
    assert sorted([*pool.files, *aside.files]) == list(evaluation.files)
    many = replace(evaluation, files={number: Path(f"{number}.jpg") for number in range(1000)})
    pool, aside = set_aside(many, 100, seed=1)
    assert (len(pool.files), len(aside.files)) == (500, 500)
    assert aside == set_aside(many, 100, seed=1)[1] != set_aside(many, 100, seed=2)[1]
    with pytest.raises(CalibrationError, match=r"all 6 annotated photographs would be calibrated on.*lower --num"):
        set_aside(evaluation, 6)


def test_unreadable_ones_are_left_out_and_refused_above_5_percent(
    evaluation: AnnotatedSet, scenes: Scenes, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    good = dict.fromkeys(range(19), scenes.folder / "1.jpg")
    rest = without_calibrated(replace(evaluation, files={**good, 19: bad}), ())
    assert rest.files == good
    assert [entry.name for entry in rest.unreadable] == ["bad.jpg"]
    with pytest.raises(CalibrationError, match="2 of 21 photographs cannot be read, more than 5%"):
        without_calibrated(replace(evaluation, files={**good, 19: bad, 20: bad}), ())
