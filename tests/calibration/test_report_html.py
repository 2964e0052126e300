"""The page: whole, readable without anything else, and safe with any file name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from calibration.pictures import SamplePicture
from calibration.report import Report
from calibration.report_html import report_html

from .sample_report import HOSTILE, not_measured, sample_report, slower

_EMPTY = {"meta", "img"}
# Figures that the page shows in another form, or only as a drawing.
_DRAWN = {"counts", "start", "end", "clipped"}
_NOT_SHOWN = {
    "format",
    "pixels_sha256",
    "tensor",
    "nodes",
    "int8_is_faster_here",
    "speedup",
    "head_error",
    "error_removed",
}


def picture(name: str = HOSTILE) -> SamplePicture:
    jpeg = bytes(cv2.imencode(".jpg", np.full((40, 60, 3), 90, np.uint8))[1])
    return SamplePicture(name, {"fp32": jpeg, "int8": jpeg}, {"fp32": 3, "int8": 1})


class _Page(HTMLParser):
    """Reads a page; every element must be closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts).replace("\N{MINUS SIGN}", "-")


@pytest.mark.parametrize("report", [sample_report(), sample_report("fp32", "int8"), not_measured(), slower()])
def test_the_page_is_whole_and_loads_nothing(report: Report) -> None:
    text = report_html(report, [picture()])
    page = _Page(text)
    assert page.open == [] and text.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|//\w|url\(|@import", re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text))
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "a"}
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")


def test_names_are_text_and_never_markup() -> None:
    text = report_html(sample_report(), [picture()])
    page = _Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1 and "alert(" in page.text
    assert "<b>dog" not in text and "<b>dog</b>" in page.text
    assert any(HOSTILE in (attributes.get("alt") or "") for _, attributes in page.tags)


def test_what_matters_comes_first() -> None:
    page = _Page(report_html(sample_report(), []))
    start = [tag for tag, _ in page.tags].index("h1")
    assert "h2" not in [tag for tag, _ in page.tags[:start]]
    assert "INT8 costs 0.0013 box AP and 0.0006 keypoint AP, and is 2.78 times faster here." in page.texts
    assert (
        "INT8 costs 0.0013 box AP and 0.0006 keypoint AP, and is not faster here." in _Page(report_html(slower())).texts
    )
    assert "INT8 is not faster here." in _Page(report_html(slower())).texts


def test_what_was_not_measured_is_left_out() -> None:
    report = sample_report()
    assert report.accuracy is not None
    without_fp16 = {name: figures for name, figures in report.accuracy.items() if name != "fp16"}
    some = replace(report, accuracy=without_fp16, layers=(), histograms=(), sensitivity=None)
    page = _Page(report_html(some))
    assert "FP16 is not faster here." in page.texts and "Ranges of the activations" not in page.texts
    assert list(some.to_dict()["difference"]) == ["int8"]
    assert "Accuracy" not in _Page(report_html(not_measured())).texts


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values of JSON; a key of a mapping that names things, such as classes, is not told from a field."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name not in _NOT_SHOWN | _DRAWN:
                yield from _leaves(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each, key)
    elif value is not None:
        yield key, value


def _forms(value: Any) -> list[str]:
    """How the page may write a value."""
    if isinstance(value, bool):
        return ["yes" if value else "no", "INT8" if value else "float"]
    if isinstance(value, int):
        return [str(value)]
    if isinstance(value, float):
        digits = [f"{value:.{count}f}" for count in (1, 2, 4, 5)]
        return [*digits, f"{value:.4g}", f"{value:.6g}", f"{value:+.4f}", f"{value:+.2f}", f"{100 * value:.1f} %"]
    return [str(value)]


def test_all_figures_of_the_json_are_on_the_page() -> None:
    report = sample_report()
    text = _Page(report_html(report)).text
    words = set(re.split(r"[\s,;:()]+", text))
    leaves = list(_leaves(json.loads(json.dumps(report.to_dict()))))
    assert len(leaves) > 140
    for key, value in leaves:
        if isinstance(value, str):
            assert value in text, key
        else:
            assert any(form in words or f"\n{form}\n" in text for form in _forms(value)), (key, value)


def test_histograms_have_their_range_and_layers_their_bar() -> None:
    page = _Page(report_html(sample_report("fp32", "int8")))
    charts = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert [chart["aria-label"] for chart in charts if "stem.Relu: 0 to 6.125" in str(chart["aria-label"])]
    lines = [attributes for tag, attributes in page.tags if tag == "line"]
    assert len(lines) == 2 * len(charts) == 4
    bars = [attributes for tag, attributes in page.tags if tag == "rect" and attributes.get("class") == "bar"]
    assert [bar["width"] for bar in bars] == ["52.6", "46.9"]  # of 31.57 and 28.11 dB, where 60 fill the bar


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it_without_a_word(width: int, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium to open the page with")
    page = report_html(sample_report(), [picture("x" * 300 + ".jpg")])
    assert 'role="button"' in _shown_by(browser, page, width, tmp_path)  # its own script may run
    # And no other, so that the question is asked of a page that allows it.
    own_policy = re.search(r"script-src ('sha256-[^']+')", page)
    assert own_policy is not None
    question = "<script>onload = () => { document.body.dataset.width = document.documentElement.scrollWidth; "
    question += "document.querySelectorAll('th[role=button]')[0]?.click(); }</script></body>"
    asked = page.replace(own_policy.group(1), "'unsafe-inline'").replace("</body>", question)
    shown = _shown_by(browser, asked, width, tmp_path)
    scroll_width = re.search(r'data-width="(\d+)"', shown)
    # Chromium's windows may be no narrower than 500 pixels.
    assert scroll_width is not None and int(scroll_width.group(1)) <= max(width, 500)
    assert 'aria-sort="ascending"' in shown


def _shown_by(browser: str, page: str, width: int, folder: Path) -> str:
    """The page as the browser has it after its scripts; it must have nothing to complain about."""
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += ["--enable-logging=stderr", f"--window-size={width},900", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    return done.stdout
