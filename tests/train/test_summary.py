from __future__ import annotations

import json
import math
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.summary import History, draw_curves, figures_table, write_summary, write_whole

FINITE = st.floats(1e-9, 1e9)


def make_history() -> History:
    history = History(best_step=200, seconds=120.0, waited_s=6.0, steps=300)
    for step in range(50, 301, 50):
        history.add_losses(step, {"heatmap": 300 / step, "size": 100 / step})
    for step, ap in ((100, 0.1), (200, 0.3), (300, 0.2)):
        history.add_figures(step, {"AP": ap, "AP50": 2 * ap})
    return history


def test_the_best_figures_are_those_of_the_best_step() -> None:
    history = make_history()
    assert history.best_figures == {"AP": 0.3, "AP50": 0.6}
    assert history.last_figures == {"AP": 0.2, "AP50": 0.4}
    assert history.share_waiting == 0.05
    assert History().best_figures == History().last_figures == {} and History().share_waiting == 0.0


def test_a_history_survives_a_checkpoint() -> None:
    history = make_history()
    assert History.from_dict(history.to_dict()) == history


def test_the_table_has_a_line_for_the_best_and_one_for_the_last() -> None:
    header, best, last = figures_table(make_history()).splitlines()
    assert header.split() == ["step", "AP", "AP50"]
    assert best.split() == ["best", "200", "0.300", "0.600"]
    assert last.split() == ["last", "300", "0.200", "0.400"]
    assert figures_table(History()) == ""


def test_the_summary_is_strict_json(tmp_path: Path) -> None:
    write_summary(tmp_path, make_history(), {"config": {"gradient_clip": math.inf, "size": (64, 32)}, "data": "drawn"})
    assert sorted(os.listdir(tmp_path)) == ["summary.json", "summary.png"]
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["best"] == {"step": 200, "figures": {"AP": 0.3, "AP50": 0.6}}
    assert summary["last"] == {"step": 300, "figures": {"AP": 0.2, "AP50": 0.4}}
    assert summary["minutes"] == 2.0 and summary["steps_per_second"] == 2.5
    assert summary["share_waiting_for_data"] == 0.05
    assert summary["config"] == {"gradient_clip": "inf", "size": [64, 32]} and summary["data"] == "drawn"


def test_the_curves_are_a_picture_with_a_line_for_each_name() -> None:
    empty, full = draw_curves(History()), draw_curves(make_history())
    assert full.shape == empty.shape and full.dtype == np.uint8
    for colour in ((178, 114, 0), (0, 94, 213)):  # of the second and the third curve
        assert (full == colour).all(axis=2).any() and not (empty == colour).all(axis=2).any()


def test_a_falling_loss_falls_in_the_picture() -> None:
    history = History()
    for step in range(10, 101, 10):
        history.add_losses(step, {"heatmap": 100.0 / step})
    picture = draw_curves(history)
    # Blue, of `heatmap`; drawn over the total, which is the same. The legend is right of the plot.
    y, x = np.nonzero((picture[:, :560] == (178, 114, 0)).all(axis=2))
    left, right = y[x < x.min() + 20].mean(), y[x > x.max() - 20].mean()
    assert left < right - 100


@given(
    st.lists(st.tuples(st.integers(1, 10**7), st.one_of(FINITE, st.just(0.0), st.just(math.nan))), min_size=1),
    st.lists(st.tuples(st.integers(1, 10**7), st.floats(0, 1)), max_size=5),
)
def test_any_history_can_be_drawn(losses: list[tuple[int, float]], figures: list[tuple[int, float]]) -> None:
    history = History()
    for step, value in sorted(losses, key=lambda row: row[0]):
        history.add_losses(step, {"heatmap": value})
    for step, value in sorted(figures):
        history.add_figures(step, {"AP": value})
    assert draw_curves(history).shape == draw_curves(History()).shape


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "pictures.jpg"
    write_whole(target, b"first")
    write_whole(target, b"second")
    assert target.read_bytes() == b"second"
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "pictures.jpg", b"")
    assert os.listdir(tmp_path) == ["pictures.jpg"]


def test_the_picture_of_the_curves_can_be_read(tmp_path: Path) -> None:
    write_summary(tmp_path, make_history(), {})
    assert np.array_equal(cv2.imread(str(tmp_path / "summary.png")), draw_curves(make_history()))
