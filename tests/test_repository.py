"""What the repository promises beside its code: no machine's paths, no large files, CI that does what a user does."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIMIT_MB = 32


def tracked_files() -> list[Path]:
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in result.stdout.splitlines() if (ROOT / name).is_file()]


def test_ci_calls_make_test_and_nothing_else() -> None:
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]


def test_no_photographs_and_no_large_files() -> None:
    for path in tracked_files():
        assert path.suffix.lower() not in {".jpg", ".jpeg", ".mp4", ".avi"}, path
        assert path.stat().st_size <= LIMIT_MB * 1_000_000, path


def test_no_path_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:home|work|root|tmp)/\w")
    for path in tracked_files():
        if path.suffix in {".py", ".md", ".toml", ".txt", ""} and path.name not in {"LICENSE", Path(__file__).name}:
            assert not pattern.search(path.read_text(errors="replace")), path
