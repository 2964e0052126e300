"""The report as one HTML page that opens anywhere: nothing is loaded, and it reads without its script.

::

    Path("report.html").write_text(report_html(report, chooser.pictures()), encoding="utf-8")

All text goes through `_tag`, which escapes it: names of files and classes are the user's.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .layer_errors import LayerError
from .pictures import SamplePicture
from .report import PRECISIONS, ActivationHistogram, Report, difference_of, speed_text
from .report_style import SCRIPT, STYLE
from .sensitivity import Sensitivity

_KINDS = {"bbox": "Boxes", "keypoints": "Keypoints"}
_MAIN_FIGURES = {
    "AP": "AP",
    "AP50": "AP at overlap 0.50",
    "AP75": "AP at overlap 0.75",
    "APsmall": "AP, small objects",
    "APmedium": "AP, medium objects",
    "APlarge": "AP, large objects",
}
_MAX_DB = 60.0  # where the bars of the layers end
_CHART_WH = 240, 72  # of a histogram
_NUM_OPEN = 12  # histograms that are shown at once, and classes
_MISSING = "–"


class _Html(str):
    """Text that is HTML already."""


def report_html(report: Report, pictures: Sequence[SamplePicture] = ()) -> str:
    """The whole page.

    Args:
        report: what was measured.
        pictures: photographs with what each precision found, from `pictures.PictureChooser`.
    """
    *others, headline = report.headlines()
    titles = " and ".join(PRECISIONS[name] for name in report.reduced)
    body = [
        _tag(
            "header",
            _tag(
                "p", f"CenterEdge · {titles} beside {PRECISIONS[report.baseline]} · {report.output.name}", cls="kicker"
            ),
            _tag("h1", headline),
            *(_tag("p", other, cls="lead") for other in others),
            _facts(report),
            *(_tag("p", sentence) for sentence in report.sentences()),
        ),
        *_accuracy(report),
        _latency(report),
        *_pictures(pictures),
        *_layers(report),
        *_sensitivity(report.sensitivity),
        *_histograms(report.histograms),
        *_making(report),
    ]
    script_hash = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    style_hash = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{style_hash}'; script-src 'sha256-{script_hash}'"
    head = [
        _Html('<meta charset="utf-8">'),
        _Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        _Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        _Html('<meta name="color-scheme" content="light dark">'),
        _tag("title", f"{report.output.name}: {titles} report"),
        _tag("style", _Html(STYLE)),
    ]
    page = _tag("html", _tag("head", *head), _tag("body", *body, _tag("script", _Html(SCRIPT))), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _facts(report: Report) -> str:
    """The figures that a person looks for first, large."""
    reduced = report.precisions[-1]
    facts = []
    for kind, name in (("bbox", "box AP"), ("keypoints", "keypoint AP")):
        before, after = report.ap(report.baseline, kind), report.ap(reduced, kind)
        if before is not None and after is not None:
            facts.append(_fact(name, _number(after, 4), f"{_signed(after - before)} from {_number(before, 4)}"))
    before_ms, after_ms = (report.latency_ms.get(name) for name in (report.baseline, reduced))
    if before_ms is not None and after_ms is not None and report.runs_here:
        speed = speed_text(before_ms / after_ms)
        facts.append(_fact("a frame, 1 thread", f"{after_ms:.2f} ms", f"{speed} than {before_ms:.2f} ms"))
    before_size, after_size = (report.file_bytes.get(name) for name in (report.baseline, reduced))
    if before_size is not None and after_size is not None:
        facts.append(_fact("file", f"{after_size / 1e6:.2f} MB", f"instead of {before_size / 1e6:.2f} MB"))
    return _tag("dl", *facts, cls="facts")


def _fact(name: str, value: str, note: str) -> str:
    return _tag("div", _tag("dt", name), _tag("dd", value, cls="value"), _tag("dd", note, cls="note"))


def _accuracy(report: Report) -> Iterator[str]:
    if report.accuracy is None:
        return
    columns = _precision_columns(report)
    sections = []
    for kind, title in _KINDS.items():
        figures = (report.accuracy.get(report.baseline, {}).get(kind) or {}).keys()
        main = [name for name in _MAIN_FIGURES if name in figures]
        rows = [_figure_row(report, kind, name) for name in main]
        if rows:
            sections.append(_table(title, ["", *columns], rows))
        more = [_figure_row(report, kind, name) for name in figures if name not in main]
        if more:
            sections.append(_folded(f"{title}: recall", _table("", ["", *columns], more)))
    note = "0 to 1 by COCO's rules. Small objects are below 32 × 32 pixels, large ones above 96 × 96."
    yield _section("Accuracy", _tag("p", note, cls="hint"), *sections, *_classes(report, columns))


def _precision_columns(report: Report) -> list[str]:
    columns = [PRECISIONS[report.baseline]]
    for name in report.reduced:
        columns += [PRECISIONS[name], "difference"]
    return columns


def _figure_row(report: Report, kind: str, figure: str) -> list[str]:
    row: list[str] = [_MAIN_FIGURES.get(figure, figure), _number(report.ap(report.baseline, kind, figure), 4)]
    for name in report.reduced:
        row += [_number(report.ap(name, kind, figure), 4), _change(report.ap_difference(name, kind, figure))]
    return row


def _classes(report: Report, columns: Sequence[str]) -> Iterator[str]:
    assert report.accuracy is not None
    baseline = report.accuracy.get(report.baseline, {}).get("per_class", {})
    rows: list[list[str]] = []
    for title, figures in baseline.items():
        for figure in figures:
            row: list[str] = [title, figure, _number(figures[figure], 4)]
            for name in report.reduced:
                value = report.accuracy.get(name, {}).get("per_class", {}).get(title, {}).get(figure)
                row += [_number(value, 4), _change(difference_of(figures[figure], value))]
            rows.append(row)
    if len(baseline) > 1:
        table = _table("Each class", ["class", "", *columns], rows, texts=(0, 1))
        yield table if len(baseline) <= _NUM_OPEN else _folded(f"Each of the {len(baseline)} classes", table)


def _latency(report: Report) -> str:
    columns = ["", PRECISIONS[report.baseline]]
    for name in report.reduced:
        columns += [PRECISIONS[name], ""]
    rows: list[list[str]] = []
    for threads, latency_ms in report.latency_by_threads.items():
        before = latency_ms.get(report.baseline)
        row: list[str] = [f"ms a frame, {threads} thread{'s' if threads > 1 else ''}", _number(before, 2)]
        for name in report.reduced:
            after = latency_ms.get(name)
            row += [_number(after, 2), _compared(before, after)]
        rows.append(row)
    sizes = {name: size / 1e6 for name, size in report.file_bytes.items()}
    row = ["file, MB", _number(sizes.get(report.baseline), 2)]
    for name in report.reduced:
        row += [_number(sizes.get(name), 2), ""]
    rows.append(row)
    where = f" ({report.machine['CPU']})" if "CPU" in report.machine else ""
    note = f"Medians of one frame through the network alone, measured in turns on this machine{where}."
    if not report.runs_here:
        note += " They are ONNX Runtime's, which says nothing about TensorRT's."
    return _section("Speed and size", _tag("p", note, cls="hint"), _table("", columns, rows))


def _pictures(pictures: Sequence[SamplePicture]) -> Iterator[str]:
    if not pictures:
        return
    figures = []
    for picture in pictures:
        panels = []
        for name, jpeg in picture.jpegs.items():
            title = PRECISIONS[name]
            count = picture.num_objects[name]
            label = f"{title}: {count} object{'' if count == 1 else 's'}"
            source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
            image = _tag("img", src=source, alt=f"{label} in {picture.name}")
            panels.append(_tag("div", image, _tag("p", label)))
        figures.append(_tag("figure", _tag("div", *panels, cls="pair"), _tag("figcaption", picture.name)))
    note = "Where the answers differ most, of all photographs that accuracy was measured on: all others are more alike."
    yield _section("Side by side", _tag("p", note, cls="hint"), *figures)


def _layers(report: Report) -> Iterator[str]:
    parts = []
    if report.layers:
        in_bytes = [layer for layer in report.layers if layer.is_int8]
        worst = min(in_bytes or report.layers, key=lambda layer: layer.own_sqnr_db)
        note = (
            "Signal-to-noise ratio of each layer's result against FP32: 20 dB is an error of 10 %, 40 dB of 1 %. The "
            "bar has the errors of all layers before it too; the mark is the layer's own ratio, as if it were the only "
            f"one in INT8. {worst.node} adds the largest error of its own, at {_decibels(worst.own_sqnr_db)} dB."
        )
        columns = ["layer", "dB", "own dB", "", "in", "operator", "cosine", "max. error", "max. value"]
        rows = [_layer_row(layer) for layer in report.layers]
        parts += [_tag("p", note, cls="hint"), _table("", columns, rows, texts=(0, 3, 4, 5))]
    if report.float_layers:
        rows = [[name, reason] for name, reason in report.float_layers.items()]
        parts.append(_table("Layers that stay in float", ["layer", "why"], rows, texts=(0, 1)))
    if parts:
        yield _section("Where the error comes from", *parts)


def _layer_row(layer: LayerError) -> list[str]:
    return [
        layer.node,
        _decibels(layer.sqnr_db),
        _decibels(layer.own_sqnr_db),
        _bar(layer),
        "INT8" if layer.is_int8 else "float",
        layer.operator,
        _number(layer.cosine, 5),
        _general(layer.max_error),
        _general(layer.max_value),
    ]


def _bar(layer: LayerError) -> str:
    """A bar of the accumulated ratio and a mark for the layer's own."""
    length, mark = (100.0 * min(max(value, 0.0), _MAX_DB) / _MAX_DB for value in (layer.sqnr_db, layer.own_sqnr_db))
    return _tag(
        "svg",
        _tag("rect", cls="track", x="0", y="3", width="100", height="6"),
        _tag("rect", cls="bar", x="0", y="3", width=f"{length:.1f}", height="6"),
        _tag("rect", cls="mark", x=f"{min(mark, 98.8):.1f}", y="0", width="1.2", height="12"),
        cls="sqnr",
        viewBox="0 0 100 12",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def _sensitivity(found: Sensitivity | None) -> Iterator[str]:
    if found is None:
        return
    kinds = [kind for kind in _KINDS if found.accuracy and kind in found.accuracy["int8"]]
    columns = ["left in float", *(f"{_KINDS[kind]}: AP" for kind in kinds), "AP back", "dB", "ms more", "share of MACs"]
    exact, base = (dict((found.accuracy or {}).get(name, {})) for name in ("fp32", "int8"))
    rows: list[list[str]] = [
        ["nothing", *(_number(base.get(kind), 4) for kind in kinds), "", _share_decibels(found.head_error), "", ""]
    ]
    for entry in found.by_damage:
        accuracy = dict(entry.accuracy or {})
        rows.append(
            [
                entry.group.name,
                *(_number(accuracy.get(kind), 4) for kind in kinds),
                _change(entry.ap_gain),
                _share_decibels(entry.head_error),
                _MISSING if entry.cost_ms is None else _signed(entry.cost_ms, 2),
                f"{100.0 * entry.mac_share:.1f} %",
            ]
        )
    if kinds:
        rows.append(["everything", *(_number(exact.get(kind), 4) for kind in kinds), "", "", "", ""])
    note = (
        "What comes back when a part of the network stays in float, the others in INT8; first where most comes back a "
        "millisecond. dB is the signal-to-noise ratio of the heads."
    )
    yield _section("What each part costs", _tag("p", note, cls="hint"), _table("", columns, rows))


def _histograms(histograms: Sequence[ActivationHistogram]) -> Iterator[str]:
    if not histograms:
        return
    by_clipped = sorted(histograms, key=lambda histogram: histogram.clipped, reverse=True)
    note = (
        "How often each value was seen (bars, logarithmic) and the range that the steps cover (between the lines); "
        "what lies outside is clipped. Most clipped first."
    )
    first, rest = (
        [_chart(histogram) for histogram in part] for part in (by_clipped[:_NUM_OPEN], by_clipped[_NUM_OPEN:])
    )
    parts = [_tag("div", *first, cls="charts")]
    if rest:
        parts.append(_folded(f"{len(rest)} more activations", _tag("div", *rest, cls="charts")))
    yield _section("Ranges of the activations", _tag("p", note, cls="hint"), *parts)


def _chart(histogram: ActivationHistogram) -> str:
    width, height = _CHART_WH
    span = histogram.end - histogram.start or 1.0
    low, high = (width * (value - histogram.start) / span for value in (histogram.low, histogram.high))
    text = f"{_general(histogram.low)} to {_general(histogram.high)}, {100.0 * histogram.clipped:.2g} % clipped"
    chart = _tag(
        "svg",
        _tag("rect", cls="range", x=f"{low:.1f}", y="0", width=f"{max(0.0, high - low):.1f}", height=str(height)),
        _tag("path", cls="bars", d=_steps(histogram.counts, width, height)),
        *(_tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1="0", y2=str(height)) for x in (low, high)),
        viewBox=f"0 0 {width} {height}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{histogram.name}: {text}",
    )
    ends = _tag("p", _tag("span", _general(histogram.start)), _tag("span", _general(histogram.end)), cls="ends")
    return _tag("figure", chart, ends, _tag("figcaption", _tag("b", histogram.name), " ", text))


def _steps(counts: Sequence[int], width: float, height: float) -> str:
    """The outline of bars whose heights are the logarithms of counts."""
    top = math.log1p(max(counts))
    path = [f"M0 {height:g}"]
    for index, count in enumerate(counts, 1):
        y = height * (1.0 - math.log1p(count) / top) if top else height
        path.append(f"V{y:.1f}H{width * index / len(counts):.1f}")
    return "".join([*path, f"V{height:g}Z"])


def _making(report: Report) -> Iterator[str]:
    ranges = report.ranges
    rows: list[list[str]] = [["model", str(report.model)], ["output", str(report.output)], ["target", report.target]]
    if ranges is not None:
        rows += [["method", ranges.method], ["photographs", str(len(ranges.photographs))]]
    if report.seed is not None:
        rows.append(["seed", str(report.seed)])
    rows += [[name, _plain(value)] for name, value in (*report.options.items(), *report.machine.items())]
    rows += [[f"{PRECISIONS[name]} file, SHA-256", sha256] for name, sha256 in report.model_sha256.items()]
    rows += [[f"{PRECISIONS[name]} file, bytes", str(size)] for name, size in report.file_bytes.items()]
    parts = [_table("", ["", ""], rows, texts=(0, 1))]
    if ranges is not None:
        images: list[list[str]] = [[each.name, each.sha256] for each in ranges.photographs]
        title = f"The {len(images)} photographs that were calibrated on"
        parts.append(_folded(title, _table("", ["file", "SHA-256"], images, texts=(0, 1))))
        values: list[list[str]] = [
            [name, *(_general(value, 6) for value in (bounds.low, bounds.high, bounds.amax))]
            for name, bounds in ranges.tensors.items()
        ]
        columns = ["tensor", "low", "high", "symmetric"]
        parts.append(_folded(f"The ranges of {len(values)} activations", _table("", columns, values)))
    if report.unreadable:
        left_out: list[list[str]] = [[entry.name, entry.reason] for entry in report.unreadable]
        parts.append(
            _folded(f"{len(left_out)} that were left out", _table("", ["file", "why"], left_out, texts=(0, 1)))
        )
    yield _section("How it was made", *parts)


def _plain(value: Any) -> str:
    """An option as text."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _MISSING if value is None else str(value)


# --- figures


def _compared(before_ms: float | None, after_ms: float | None) -> str:
    return _MISSING if before_ms is None or after_ms is None else speed_text(before_ms / after_ms)


def _number(value: float | None, digits: int) -> str:
    return _MISSING if value is None else _minus(f"{value:.{digits}f}")


def _general(value: float, digits: int = 4) -> str:
    return _minus(f"{value:.{digits}g}")


def _signed(value: float, digits: int = 4) -> str:
    text = f"{value:+.{digits}f}"
    return _minus(text) if float(text) else text[1:]


def _change(difference: float | None) -> str:
    """A difference of accuracies, marked as good or bad beyond what is nothing."""
    if difference is None:
        return _MISSING
    text = _signed(difference)
    cls = "" if not float(f"{difference:.4f}") else ("better" if difference > 0 else "worse")
    return _tag("span", text, cls=cls) if cls else text


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _decibels(value: float) -> str:
    return "exact" if math.isinf(value) else _minus(f"{value:.1f}")


def _share_decibels(error: float) -> str:
    """Noise as a share of the signal, in decibels."""
    return "exact" if error <= 0.0 else _minus(f"{-10.0 * math.log10(error):.1f}")


# --- HTML


def _tag(name: str, *children: str, **attributes: str) -> _Html:
    """An element; children that are not _Html are text, and escaped, as attributes are. `cls` is the class."""
    names = {"cls": "class"}
    given = "".join(
        f' {names.get(key, key).replace("_", "-") if key not in _CAMEL else key}="{html.escape(value)}"'
        for key, value in attributes.items()
    )
    content = "".join(child if isinstance(child, _Html) else html.escape(child) for child in children)
    return _Html(f"<{name}{given}>" if name in _EMPTY else f"<{name}{given}>{content}</{name}>")


_EMPTY = frozenset({"img"})
_CAMEL = frozenset({"viewBox", "preserveAspectRatio"})


def _section(title: str, *children: str) -> _Html:
    return _tag("section", _tag("h2", title), *children)


def _folded(title: str, *children: str) -> _Html:
    return _tag("details", _tag("summary", title), *children)


def _table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Sequence[int] = (0,)
) -> _Html:
    """A table that scrolls by itself on a narrow screen; the columns `texts` are text, the others numbers."""
    kinds = ["text" if index in texts else "number" for index in range(len(columns))]
    head = _tag("tr", *(_tag("th", title, scope="col", cls=kind) for title, kind in zip(columns, kinds, strict=True)))
    body = [_tag("tr", *(_tag("td", cell, cls=kind) for cell, kind in zip(row, kinds, strict=True))) for row in rows]
    title = [_tag("caption", caption)] if caption else []
    return _tag("div", _tag("table", *title, _tag("thead", head), _tag("tbody", *body)), cls="scroll", tabindex="0")
