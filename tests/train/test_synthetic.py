"""The smallest network learns every task from scratch on drawn scenes, in minutes: the whole chain at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.config import preset
from train.data import open_data
from train.loop import train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("synthetic-pose", {"AP50": 0.9, "keypoint_AP": 0.7}),
        ("synthetic-3d", {"AP50": 0.9, "AP3D": 0.5}),
    ],
)
def test_drawn_scenes_are_learnt_from_scratch(name: str, least: dict[str, float], tmp_path: Path) -> None:
    config = preset(name)
    assert config.architecture == "edge_n"
    figures = train(config, open_data("synthetic", config), tmp_path)
    assert all(figures[figure] > bar for figure, bar in least.items()), figures
