"""Which photographs are shown, and how small they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.pictures import PictureChooser, difference
from sdk.results import Detections, Keypoints
from tests.helpers import tiny_spec


def found(*rows: tuple[float, float, float]) -> Detections:
    """Objects of 20 x 20 pixels: left, top and score."""
    xyxy = np.array([(left, top, left + 20, top + 20) for left, top, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for *_, score in rows], np.float32)
    return Detections(xyxy, scores, np.zeros(len(rows), np.int64), ("cat", "dog"))


def test_difference_counts_what_only_one_has() -> None:
    both = found((0, 0, 0.9), (50, 0, 0.5))
    assert difference(both, both) == 0.0
    assert difference(both, found((0, 0, 0.9))) == pytest.approx(0.5)
    assert difference(found((0, 0, 0.9)), both) == pytest.approx(0.5)
    assert difference(both, found((0, 0, 0.8), (50, 0, 0.5))) == pytest.approx(0.1)
    assert difference(found((0, 0, 0.9)), found((2, 0, 0.9))) == pytest.approx(1 - 360 / 440)
    assert difference(found(), found()) == 0.0


def test_difference_sees_keypoints_and_classes() -> None:
    one = found((0, 0, 0.9))
    other_class = Detections(one.xyxy, one.scores, np.ones(1, np.int64), one.class_names)
    assert difference(one, other_class) == pytest.approx(1.8)

    def with_point(x: float) -> Detections:
        points = Keypoints(np.array([[[x, 5.0]]], np.float32), np.ones((1, 1), np.float32))
        return Detections(one.xyxy, one.scores, one.class_ids, one.class_names, points)

    assert difference(with_point(5), with_point(5 + 20 * 2**0.5)) == pytest.approx(1.0, abs=1e-5)


_ROWS = st.lists(st.tuples(st.floats(0, 80), st.floats(0, 80), st.floats(0.01, 1)), max_size=4)


@given(_ROWS)
def test_an_answer_does_not_differ_from_itself(rows: list[tuple[float, float, float]]) -> None:
    rows = sorted(rows, key=lambda row: -row[2])
    apart = [row for index, row in enumerate(rows) if all(abs(row[0] - r[0]) > 8 for r in rows[:index])]
    assert difference(found(*apart), found(*apart)) == pytest.approx(0.0, abs=1e-5)


def write_image(path: Path, wh: tuple[int, int]) -> Path:
    rng = np.random.default_rng(0)
    cv2.imwrite(str(path), rng.integers(0, 256, (wh[1], wh[0], 3), np.uint8))
    return path


def decoded(jpeg: bytes) -> npt.NDArray[Any]:
    return np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))


def test_the_most_different_are_kept_and_small(tmp_path: Path) -> None:
    chooser = PictureChooser(tiny_spec(score_threshold=0.3), count=2)
    scores = {"a.png": 0.9, "b.png": 0.45, "c.png": 0.6, "d.png": 0.89, "low.png": 0.9}
    for name, score in scores.items():
        path = write_image(tmp_path / name, (1500, 900))
        other = found((0, 0, score)) if name != "low.png" else found((0, 0, 0.9), (600, 400, 0.29))
        chooser.add(path, {"fp32": found((0, 0, 0.9)), "int8": other})
    pictures = chooser.pictures()
    assert [picture.name for picture in pictures] == ["b.png", "c.png"]
    for picture in pictures:
        assert list(picture.jpegs) == ["fp32", "int8"] and picture.num_objects == {"fp32": 1, "int8": 1}
        for jpeg in picture.jpegs.values():
            assert decoded(jpeg).shape == (384, 640, 3) and len(jpeg) <= 150_000


def test_boxes_are_drawn_where_they_are_in_the_smaller_picture(tmp_path: Path) -> None:
    path = tmp_path / "black.png"
    cv2.imwrite(str(path), np.zeros((800, 1280, 3), np.uint8))
    chooser = PictureChooser(tiny_spec())
    box = Detections(
        np.array([[640, 400, 1000, 700]], np.float32),
        np.array([0.9], np.float32),
        np.zeros(1, np.int64),
        ("cat", "dog"),
    )
    chooser.add(path, {"fp32": found(), "int8": box})
    (picture,) = chooser.pictures()
    plain, drawn = map(decoded, picture.jpegs.values())
    assert plain.max() < 10
    rows, columns = np.nonzero(drawn[200:].max(axis=2) > 100)
    assert (columns.min(), columns.max(), rows.max() + 200) == pytest.approx((320, 500, 350), abs=4)
    assert picture.num_objects == {"fp32": 0, "int8": 1}
