"""Ranges: by every method for every tensor, and that they survive a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration.collection import collect_statistics, range_sources
from calibration.methods import METHODS, Range
from calibration.photographs import Photograph
from calibration.ranges import Ranges, ranges_from_statistics, read_ranges, write_ranges
from sdk.errors import InputError
from sdk.sources.images import folder_images, read_image

from .conftest import FloatModel, Scenes


def test_every_tensor_has_a_range_and_what_is_moved_that_of_its_source(float_model: FloatModel, scenes: Scenes) -> None:
    images = [read_image(path) for path in folder_images(scenes.folder)]
    statistics = collect_statistics(float_model.proto, float_model.spec, images, total=len(images))
    sources = range_sources(float_model.proto)
    for method in METHODS:
        tensors = ranges_from_statistics(float_model.proto, statistics, method)
        assert tensors == {name: METHODS[method](statistics[source]) for name, source in sources.items()}


def test_ranges_survive_their_file(tmp_path: Path) -> None:
    ranges = Ranges("mse", "abc", (Photograph("a.jpg", "12"),), {"x": Range(-0.1, 1 / 3, 0.25)})
    write_ranges(ranges, tmp_path / "ranges.json")
    assert read_ranges(tmp_path / "ranges.json") == ranges
    assert list(tmp_path.iterdir()) == [tmp_path / "ranges.json"]


def test_files_of_the_first_version_are_read(tmp_path: Path) -> None:
    data = {"format": 1, "method": "minmax", "weights_sha256": "abc", "images": []}
    (tmp_path / "ranges.json").write_text(json.dumps({**data, "tensors": {"x": {"low": -3.0, "high": 2.0}}}))
    assert read_ranges(tmp_path / "ranges.json").tensors == {"x": Range(-3.0, 2.0, 3.0)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not JSON", "is not valid JSON"),
        ("[]", "holds no activation ranges"),
        (json.dumps({"format": 99}), "holds no activation ranges"),
        (json.dumps({"format": 1, "method": "minmax"}), "is damaged"),
    ],
)
def test_files_that_hold_no_ranges(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "ranges.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_ranges(tmp_path / "ranges.json")
