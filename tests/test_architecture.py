"""The layout of docs/architecture.md, enforced on every file by reading it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Each imports only what stands before it.
PACKAGES = ("sdk", "calibration", "train", "export", "apps")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _package(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def _files_of(*packages: str) -> list[Path]:
    return [path for path in FILES if _package(path) in packages]


def _imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Absolute names of the modules that a file imports; with `top_level`, only what runs at its import."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)
        elif not (top_level and _runs_later(node)):
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    yield from visit(ast.parse(path.read_text()))


def _runs_later(node: ast.AST) -> bool:
    """Whether the import of the module leaves this part of it out."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


def _roots(path: Path, *, top_level: bool = False) -> set[str]:
    return {name.split(".")[0] for name in _imports(path, top_level=top_level)}


def test_there_is_something_to_check() -> None:
    assert {_package(path) for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_each_package_imports_only_those_before_it(path: Path) -> None:
    package = _package(path)
    later = set(PACKAGES[PACKAGES.index(package) + 1 :])
    assert not _roots(path) & later, f"{_name(path)} must not import from {sorted(later)}"
    assert not _roots(path) & {"tests", "benchmarks"}


@pytest.mark.parametrize("path", _files_of("sdk", "calibration"), ids=_name)
def test_the_runtime_and_calibration_never_import_torch(path: Path) -> None:
    assert not _roots(path) & {"torch", "torchvision"}


@pytest.mark.parametrize("path", _files_of("sdk"), ids=_name)
def test_the_sdk_imports_numpy_and_the_standard_library_at_the_top(path: Path) -> None:
    others = _roots(path, top_level=True) - set(sys.stdlib_module_names) - {"numpy"}
    assert not others, f"{_name(path)}: import {sorted(others)} inside the functions that need it"


@pytest.mark.parametrize("path", _files_of("sdk", "calibration", "train", "export"), ids=_name)
def test_imports_are_relative_within_a_package(path: Path) -> None:
    package = _package(path)
    assert package not in _roots(path), f"{_name(path)}: write `from .module import name`"


def test_no_module_of_apps_bears_a_packages_name() -> None:
    # `python apps/camera_demo.py` puts apps/ first on the path: apps/train.py would hide the package `train`.
    assert not {path.stem for path in (ROOT / "apps").rglob("*.py")} & set(PACKAGES)


def test_no_module_is_named_like_its_package() -> None:
    for path in FILES:
        assert path.stem != _package(path), _name(path)


def test_modules_are_named_for_what_they_hold() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "common", "base", "core"}
    assert not [_name(path) for path in FILES if path.stem in vague]
