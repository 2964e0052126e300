"""The documentation is true: links lead somewhere, examples run, options exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from apps.cli import main
from train.config import PRESETS

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
EXAMPLES = [
    (page, number, code)
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = [t.partition("#")[0] for t in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in t]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize(("page", "number", "code"), EXAMPLES, ids=lambda value: getattr(value, "name", None))
def test_examples_run(page: Path, number: int, code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, f"example {number} of {page.name}: {result.stderr}"


def test_documented_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for page in PAGES for line in re.findall(r"^centeredge (\w+.*)$", page.read_text(), re.M)]
    assert lines
    for line in lines:
        command, options = line.split()[0], set(re.findall(r"(?<=\s)--[a-z-]+", line))
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        assert [option for option in options if option not in text] == [], line


def test_documented_presets_exist() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    assert set(re.findall(r"--preset (\S+)", text)) <= set(PRESETS)


def test_nothing_is_left_to_fill_in() -> None:
    assert [page.name for page in PAGES if re.search(r"@@|TODO|TBD", page.read_text())] == []


def test_the_version_is_that_of_the_changelog() -> None:
    import sdk

    versions = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == sdk.__version__
    assert f'version = "{sdk.__version__}"' in (ROOT / "pyproject.toml").read_text()
