"""What a reduced precision cost and gained, as JSON and as a few lines of text; report_html.py has it as a page.

::

    report = Report(model=..., output=..., latency_ms=measure_latency(models), accuracy=measure_accuracy(...), ...)
    print(report.to_text())
    json.dump(report.to_dict(), file)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .layer_errors import LayerError
from .photographs import Unreadable
from .pictures import SamplePicture
from .ranges import Ranges
from .sensitivity import Sensitivity

FORMAT = 1
# Labels of what is compared, from the most exact on, and how a person calls them.
PRECISIONS = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}
_BARS = 96  # of a histogram
_NO_AP = 0.00005  # what four digits do not show
_KINDS = {"bbox": "box AP", "keypoints": "keypoint AP"}
_PACKAGES = ("centeredge", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class ActivationHistogram:
    """How often which values of an activation were seen, in few bars, and the range that was chosen.

    Attributes:
        name: of the tensor.
        counts: of each bar.
        start, end: where the first bar begins and the last one ends; all bars have the same width.
        low, high: the chosen range.
        clipped: share of the values that lie outside it.
    """

    name: str
    counts: tuple[int, ...]
    start: float
    end: float
    low: float
    high: float
    clipped: float


@dataclass(frozen=True)
class Report:
    """Everything about one model of reduced precision, and the float model that it came from.

    Mappings by precision have the keys of PRECISIONS, in any combination; the first of them in that order is what the
    others are compared with.

    Attributes:
        model, output: the float file and the file of reduced precision.
        file_bytes: by precision, size of the file.
        latency_ms: by precision, median of one frame, one thread, on this machine.
        accuracy: by precision, COCO figures as `CocoResults.evaluate` gives them; None where nothing was annotated.
        num_evaluated: photographs that the accuracy was measured on.
        ranges: of the activations, with their method and photographs; None where nothing was calibrated (FP16).
        unreadable: photographs that were left out.
        target: runtime that the output is for.
        latency_ms_by_threads: the same as latency_ms with other numbers of threads.
        seed: that the photographs were chosen with; None where that is not known.
        choice: sentences about how the photographs to calibrate on were chosen.
        notes: further sentences, e.g. on the photographs that the accuracy was measured on.
        options: name -> value of what else decided the output: weight search, layers kept in float, ...
        float_layers: operator that stays in float -> why.
        layers: from `layer_errors`.
        histograms: from `activation_histogram`.
        sensitivity: what each group of layers in float would change, if that was measured.
        model_sha256: by precision, of the file.
        machine: name -> value of what the figures depend on: CPU, versions, ...
        budget: of `--max-ap-drop`, and what holding it took; None where none was given.
        pictures: for the page; not in the JSON.
    """

    model: Path
    output: Path
    file_bytes: Mapping[str, int]
    latency_ms: Mapping[str, float]
    accuracy: Mapping[str, Mapping[str, Any]] | None = None
    num_evaluated: int = 0
    ranges: Ranges | None = None
    unreadable: tuple[Unreadable, ...] = ()
    target: str = "onnxruntime"
    latency_ms_by_threads: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    seed: int | None = None
    choice: Sequence[str] = ()
    notes: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    float_layers: Mapping[str, str] = field(default_factory=dict)
    layers: Sequence[LayerError] = ()
    histograms: Sequence[ActivationHistogram] = ()
    sensitivity: Sensitivity | None = None
    model_sha256: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    budget: Mapping[str, Any] | None = None
    pictures: Sequence[SamplePicture] = ()

    @property
    def precisions(self) -> tuple[str, ...]:
        """What is compared, from the most exact on."""
        return tuple(label for label in PRECISIONS if label in self.latency_ms or label in (self.accuracy or {}))

    @property
    def baseline(self) -> str:
        """What the others are compared with."""
        return self.precisions[0]

    @property
    def reduced(self) -> tuple[str, ...]:
        """What is compared with the baseline."""
        return self.precisions[1:]

    @property
    def runs_here(self) -> bool:
        """Whether the latency here says something about the output's own runtime."""
        return self.target == "onnxruntime"

    @property
    def _timed(self) -> tuple[str, ...]:
        """Reduced precisions whose latency can be compared."""
        return tuple(name for name in self.reduced if {name, self.baseline} <= self.latency_ms.keys())

    @property
    def latency_by_threads(self) -> dict[int, Mapping[str, float]]:
        """Number of threads -> precision -> milliseconds."""
        return dict(sorted({1: self.latency_ms, **self.latency_ms_by_threads}.items()))

    @property
    def speedup(self) -> float:
        """How many times faster the most reduced precision is than the baseline, here, with one thread."""
        return self.speedup_of(self.precisions[-1])

    def speedup_of(self, precision: str, *, threads: int = 1) -> float:
        """How many times faster a precision is than the baseline, here."""
        latency_ms = self.latency_by_threads[threads]
        return latency_ms[self.baseline] / latency_ms[precision]

    def is_faster(self, precision: str) -> bool:
        """Whether a precision is faster than the baseline, here, with one thread."""
        return self.speedup_of(precision) > 1.0

    def ap(self, precision: str, kind: str, figure: str = "AP") -> float | None:
        """A figure of "bbox" or "keypoints", 0 to 1; None where it was not measured or nothing is annotated."""
        value: float | None = ((self.accuracy or {}).get(precision) or {}).get(kind, {}).get(figure)
        return value

    def ap_difference(self, precision: str, kind: str, figure: str = "AP") -> float | None:
        """By how much a figure is larger than that of the baseline."""
        return difference_of(self.ap(self.baseline, kind, figure), self.ap(precision, kind, figure))

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON. Keys stay what they are as long as `format` does; new ones may come.

        `latency_ms` is with one thread, `latency` with each number of threads. `difference` is that of each figure of
        `accuracy` to the baseline. In `layers`, null decibels are those of a layer without any error. Figures of
        accuracy are 0 to 1, and null where there is no ground truth.
        """
        return {
            "format": FORMAT,
            "model": str(self.model),
            "output": str(self.output),
            "model_sha256": dict(self.model_sha256),
            "file_bytes": dict(self.file_bytes),
            "target": self.target,
            "options": dict(self.options),
            **self._latency_dict(),
            "accuracy": None if self.accuracy is None else {name: dict(each) for name, each in self.accuracy.items()},
            "difference": None if self.accuracy is None else self._differences(),
            "num_evaluated": self.num_evaluated,
            **self._calibration_dict(),
            "float_layers": dict(self.float_layers),
            "layers": [{key: _finite(value) for key, value in asdict(layer).items()} for layer in self.layers],
            "histograms": [asdict(histogram) for histogram in self.histograms],
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_dict(),
            "budget": self.budget,
            "notes": list(self.notes),
            "machine": dict(self.machine),
        }

    def _latency_dict(self) -> dict[str, Any]:
        return {
            "latency_ms": dict(self.latency_ms),
            "latency": [{"threads": threads, "ms": dict(ms)} for threads, ms in self.latency_by_threads.items()],
            "speedup": {name: self.speedup_of(name) for name in self._timed},
            "int8_is_faster_here": self.is_faster("int8") if "int8" in self._timed else None,
        }

    def _calibration_dict(self) -> dict[str, Any]:
        ranges = self.ranges
        return {
            "method": ranges.method if ranges else None,
            "seed": self.seed,
            "choice": list(self.choice),
            "images": [asdict(photograph) for photograph in ranges.photographs] if ranges else [],
            "unreadable": [asdict(entry) for entry in self.unreadable],
            "ranges": {name: asdict(bounds) for name, bounds in ranges.tensors.items()} if ranges else {},
        }

    def _differences(self) -> dict[str, Any]:
        accuracy = self.accuracy or {}
        return {
            name: self._difference(accuracy[name]) for name in self.reduced if {name, self.baseline} <= accuracy.keys()
        }

    def _difference(self, after: Mapping[str, Any]) -> dict[str, Any]:
        """Each figure less that of the baseline."""
        assert self.accuracy is not None
        before = self.accuracy[self.baseline]
        found: dict[str, Any] = {
            kind: {figure: difference_of(before[kind].get(figure), value) for figure, value in after[kind].items()}
            for kind in _KINDS
            if kind in after and kind in before
        }
        found["per_class"] = {
            name: {
                figure: difference_of(before["per_class"].get(name, {}).get(figure), value)
                for figure, value in row.items()
            }
            for name, row in after.get("per_class", {}).items()
        }
        return found

    def to_text(self) -> str:
        """A table and the sentences that go with it."""
        header = "".join(
            f" {PRECISIONS[name]:>10}" + (f" {'difference':>12}" if name != self.baseline else "")
            for name in self.precisions
        )
        rows = [f"{'':<14}{header}"]
        rows += self._row("box AP", {name: self.ap(name, "bbox") for name in self.precisions})
        rows += self._row("box AP50", {name: self.ap(name, "bbox", "AP50") for name in self.precisions})
        rows += self._row("keypoint AP", {name: self.ap(name, "keypoints") for name in self.precisions})
        speed = {name: speed_text(self.speedup_of(name)) if self.runs_here else "" for name in self._timed}
        rows += self._row("latency, ms", self.latency_ms, digits=2, differences=speed)
        megabytes = {name: size / 1e6 for name, size in self.file_bytes.items()}
        rows += self._row("file, MB", megabytes, digits=2, differences=dict.fromkeys(self.reduced, ""))
        return "\n".join([*(row.rstrip() for row in rows), *self.sentences()])

    def _row(
        self,
        title: str,
        values: Mapping[str, float | None],
        *,
        digits: int = 4,
        differences: Mapping[str, str] | None = None,
    ) -> list[str]:
        """A line of the table; none where nothing was measured. By default, differences are those of the values."""
        base = values.get(self.baseline)
        if base is None:
            return []
        text = f"{title:<14}"
        for name in self.precisions:
            value = values.get(name)
            text += f" {'' if value is None else f'{value:.{digits}f}':>10}"
            if name == self.baseline:
                continue
            if differences is not None:
                text += f" {differences.get(name, ''):>12}"
            else:
                text += f" {'' if value is None else f'{value - base:+.{digits}f}':>12}"
        return [text]

    def sentences(self) -> list[str]:
        """What a person must know to read the figures."""
        return [*self._about_ranges(), *self._about_figures(), *self.choice, *self.notes, *self._left_out()]

    def headlines(self) -> list[str]:
        """What matters first: for each reduced precision what it costs and gains."""
        return [f"{PRECISIONS[name]} {self._headline(name)}." for name in self.reduced]

    def _headline(self, precision: str) -> str:
        changes = list(self._changes(precision))
        cost = " and ".join(changes)
        if precision not in self._timed or not self.runs_here:
            return cost or "was not measured"
        faster = f"{self.speedup_of(precision):.2f} times" if self.is_faster(precision) else "not"
        joint = ", and " if len(changes) > 1 else " and " if changes else ""
        return f"{cost}{joint}is {faster} faster here"

    def _changes(self, precision: str) -> Iterator[str]:
        verb = ""
        for kind, title in _KINDS.items():
            difference = self.ap_difference(precision, kind)
            if difference is not None:
                last, verb = verb, "gains" if difference >= _NO_AP else "costs"
                amount = f"{abs(difference):.4f}" if abs(difference) >= _NO_AP else "no"
                yield f"{amount} {title}" if verb == last else f"{verb} {amount} {title}"

    def _about_ranges(self) -> Iterator[str]:
        threads = "latency with 1 thread."
        if self.ranges is None:
            yield threads.capitalize()
        elif not self.ranges.photographs:
            yield f"Ranges by {self.ranges.method}, from a file that does not say on which photographs; {threads}"
        else:
            yield f"Ranges by {self.ranges.method} from {len(self.ranges.photographs)} photographs; {threads}"

    def _about_figures(self) -> Iterator[str]:
        if self.accuracy is None:
            yield "Accuracy was not measured; --eval-images and --eval-annotations, or --annotations, do it."
        else:
            unseen = " that were not calibrated on" if self.ranges and self.ranges.photographs else ""
            yield f"Accuracy on {self.num_evaluated} photographs{unseen}."
        if not self.runs_here:
            yield (
                "All is measured with ONNX Runtime on this CPU, and the output is for TensorRT: its accuracy there is "
                "about this; its speed is another, which `centeredge benchmark` measures on the device."
            )
        for name in self._timed:
            if self.runs_here and not self.is_faster(name):
                yield f"{PRECISIONS[name]} is not faster here."

    def _left_out(self) -> Iterator[str]:
        yield from (f"Left out: {entry.reason}" for entry in self.unreadable)


def activation_histogram(
    name: str, counts: npt.NDArray[Any], edges: npt.NDArray[Any], *, low: float, high: float
) -> ActivationHistogram:
    """A histogram in few bars, over all that was seen and all of the range.

    Args:
        name: of the tensor.
        counts: (N,), not all zero.
        edges: (N + 1,), rising.
        low, high: the chosen range; of signed bytes without a zero point, -amax and amax.
    """
    filled = np.flatnonzero(counts)
    start, end = min(float(edges[filled[0]]), low), max(float(edges[filled[-1] + 1]), high)
    below = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
    bars = np.diff(np.interp(np.linspace(start, end, _BARS + 1), edges, below))
    outside = below[-1] - float(np.diff(np.interp([low, high], edges, below))[0])
    return ActivationHistogram(
        name,
        tuple(int(count) for count in np.ceil(bars - 1e-6)),  # a bar that has any is not empty
        start,
        end,
        low,
        high,
        float(np.clip(outside / below[-1], 0.0, 1.0)),
    )


def package_versions() -> dict[str, str]:
    """Versions of the packages that the figures depend on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # run from a copy of the repository, or a build under another name
    return found


def speed_text(speedup: float) -> str:
    """How a speed compares.

    >>> speed_text(2.0), speed_text(0.8)
    ('2.00x faster', '1.25x slower')
    """
    return f"{speedup:.2f}x faster" if speedup >= 1.0 else f"{1.0 / speedup:.2f}x slower"


def difference_of(before: float | None, after: float | None) -> float | None:
    """By how much a figure became larger; None where one of the two is."""
    return None if before is None or after is None else after - before


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
