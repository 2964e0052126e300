"""The report: the figures in any combination of precisions, its sentences, and histograms in few bars."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.report import Report, activation_histogram, package_versions
from calibration.report_html import report_html

from .sample_report import figures, not_measured, sample_report, slower


def as_json(report: Report) -> dict[str, object]:
    data: dict[str, object] = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    return data


@pytest.mark.parametrize("precisions", [("fp32", "int8"), ("fp32", "fp16"), ("fp32", "fp16", "int8"), ("fp16", "int8")])
def test_any_combination_of_precisions(precisions: tuple[str, ...]) -> None:
    report = sample_report(*precisions)
    assert (report.precisions, report.baseline, report.reduced) == (precisions, precisions[0], precisions[1:])
    data = as_json(report)
    assert list(data["difference"]) == list(precisions[1:])  # type: ignore[call-overload]
    assert data["speedup"] == {
        name: pytest.approx(report.latency_ms[precisions[0]] / report.latency_ms[name]) for name in precisions[1:]
    }
    titles = report.to_text().splitlines()[0].split()
    assert titles[0] == precisions[0].upper() and titles[1::2] == [name.upper() for name in precisions[1:]]
    assert len(report.headlines()) == len(precisions) - 1


def test_the_json_has_everything_and_keeps_its_keys() -> None:
    data = as_json(sample_report())
    assert list(data) == [
        *("format", "model", "output", "model_sha256", "file_bytes", "target", "options"),
        *("latency_ms", "latency", "speedup", "int8_is_faster_here"),
        *("accuracy", "difference", "num_evaluated"),
        *("method", "seed", "choice", "images", "unreadable", "ranges"),
        *("float_layers", "layers", "histograms", "sensitivity", "budget", "notes", "machine"),
    ]
    assert list(as_json(not_measured())) == list(data)
    assert data["latency"] == [
        {"threads": 1, "ms": {"fp32": 9.316, "fp16": 14.27, "int8": 3.348}},
        {"threads": 4, "ms": {"fp32": 4.17, "fp16": 6.29, "int8": 2.83}},
    ]
    layers = data["layers"]
    assert isinstance(layers, list) and layers[1]["own_sqnr_db"] is None and layers[0]["own_sqnr_db"] == 31.62


def test_differences_by_figure_and_by_class() -> None:
    difference = sample_report("fp32", "int8").to_dict()["difference"]["int8"]
    assert difference["bbox"]["AP"] == pytest.approx(0.2041 - 0.2054)
    assert difference["bbox"]["APlarge"] is None  # nothing of that size is annotated
    assert difference["per_class"]["person"]["AP50"] == pytest.approx(1.71 * (0.2041 - 0.2054))
    assert difference["per_class"]["<b>dog</b>"]["AP50"] is None


def test_what_matters_comes_first() -> None:
    fp16, int8 = sample_report().headlines()
    assert int8 == "INT8 costs 0.0013 box AP and 0.0006 keypoint AP, and is 2.78 times faster here."
    assert fp16 == "FP16 costs no box AP and no keypoint AP, and is not faster here."
    report = sample_report("fp32", "int8")
    better = replace(report, accuracy={"fp32": figures(0.2054), "int8": figures(0.2074)})
    assert better.headlines() == ["INT8 gains 0.0020 box AP and 0.0010 keypoint AP, and is 2.78 times faster here."]
    assert replace(report, accuracy=None).headlines() == ["INT8 is 2.78 times faster here."]
    assert not_measured().headlines() == ["FP16 is not faster here."]


def test_the_text_is_a_table_and_what_must_be_known() -> None:
    lines = sample_report("fp32", "int8").to_text().splitlines()
    assert lines[:6] == [
        "                     FP32       INT8   difference",
        "box AP             0.2054     0.2041      -0.0013",
        "box AP50           0.3492     0.3470      -0.0022",
        "keypoint AP        0.1027     0.1021      -0.0006",
        "latency, ms          9.32       3.35 2.78x faster",
        "file, MB             8.81       2.30",
    ]
    assert lines[6:8] == [
        "Ranges by percentile from 2 photographs; latency with 1 thread.",
        "Accuracy on 350 photographs that were not calibrated on.",
    ]
    assert "Left out: broken.jpg is cut short" in lines


def test_a_slower_model_is_said_to_be_slower() -> None:
    text = slower().to_text()
    assert "INT8 is not faster here." in text and "1.50x slower" in text
    assert slower().to_dict()["int8_is_faster_here"] is False
    assert "is not faster" not in sample_report("fp32", "int8").to_text()


def test_what_was_not_measured_is_not_claimed() -> None:
    text = not_measured().to_text()
    assert "Accuracy was not measured" in text and "AP" not in text.splitlines()[1] and "calibrated" not in text


def test_speed_here_says_nothing_about_tensorrt() -> None:
    report = replace(slower(), target="tensorrt")
    text = report.to_text()
    assert "the output is for TensorRT" in text and "its speed is another" in text
    assert "slower" not in text and "not faster" not in text
    assert report.headlines() == ["INT8 costs 0.0013 box AP and 0.0006 keypoint AP."]
    page = report_html(report)
    assert "<dt>a frame" not in page and "which says nothing about TensorRT" in page


def test_a_cache_does_not_say_which_photographs_it_is_of() -> None:
    report = sample_report("fp32", "int8")
    assert report.ranges is not None
    text = replace(report, ranges=replace(report.ranges, method="TensorRT's calibrator", photographs=())).to_text()
    assert "Ranges by TensorRT's calibrator, from a file that does not say on which photographs" in text
    assert "Accuracy on 350 photographs." in text and "not calibrated on" not in text


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=50),
    st.floats(-120, 0),
    st.floats(0.01, 120),
)
def test_bars_hold_what_was_seen_and_the_range(values: list[float], low: float, high: float) -> None:
    counts, edges = np.histogram(values, 512, (-128.0, 128.0))
    found = activation_histogram("x", counts, edges, low=low, high=high)
    width = 256 / 512
    assert found.start <= min(low, min(values)) and found.end >= max(high, max(values))
    assert sum(found.counts) >= len(values) and min(found.counts) >= 0
    certainly_outside = sum(value < low - width or value > high + width for value in values) / len(values)
    perhaps_outside = sum(value < low + width or value > high - width for value in values) / len(values)
    assert certainly_outside - 1e-9 <= found.clipped <= perhaps_outside + 1e-9


def test_versions_of_what_the_figures_depend_on() -> None:
    assert {"onnx", "onnxruntime", "numpy"} <= package_versions().keys()


def test_a_layer_without_error_is_null_in_json() -> None:
    report = sample_report()
    exact = replace(report.layers[0], sqnr_db=math.inf)
    layers = as_json(replace(report, layers=(exact,)))["layers"]
    assert isinstance(layers, list) and layers[0]["sqnr_db"] is None
