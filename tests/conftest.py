"""What all tests share: the photographs, where there are any, and short property tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent

# The same examples in every run: a test that fails does so for a change, not by chance.
settings.register_profile("short", deadline=None, max_examples=40, database=None, derandomize=True)
settings.load_profile("short")


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of real data, `CENTEREDGE_DATA`; tests that need it are skipped without it."""
    folder = Path(os.environ.get("CENTEREDGE_DATA", ROOT / ".." / "shared" / "data")).resolve()
    if not (folder / "coco" / "annotations").is_dir():
        pytest.skip(f"there are no photographs in {folder}; set CENTEREDGE_DATA to the folder that holds coco/")
    return folder
