"""Proof that an exported file is the model it came from: the same frames through both, value by value, box by box.

::

    comparison = verify(TorchBackend(model, spec), OnnxRuntimeBackend(path), drawn_frames(spec))
    print(comparison.text())

The file may end in dense heads or in peaks. `verify` raises ExportError where it is not the model.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdk.backends import Backend
from sdk.decoding import find_peaks
from sdk.errors import InputError, SourceError
from sdk.preprocessing import prepare
from sdk.scenes import random_scene
from sdk.sources.images import folder_images, read_image
from sdk.spec import ModelSpec, Precision

from .differences import (
    Choice,
    HeadDifference,
    LoneBox,
    Outputs,
    Pair,
    boxes_of_cells,
    check_outputs,
    head_difference,
    same_cells,
    same_rows,
)
from .errors import ExportError

Frames = Sequence[npt.NDArray[np.uint8]]
Answers = Sequence[tuple[Outputs, Outputs]]  # of the model and the file, one pair a frame

# Of the largest value of a head. Two float32 implementations of one network differ by about 1e-6.
MAX_DIFFERENCE = 1e-4
_SCENE_WH = (640, 480)
# Where fewer boxes are above the threshold, as in an untrained network, the best of each frame are compared instead.
_FEW_BOXES = 10
_NUM_BEST = 20
# What a batch may change, for a runtime may choose other kernels for it: raw values, in parts of a head's largest, and
# the share of the peaks that stay, for at ties some come and go.
_BATCH_LIMITS: dict[Precision, float] = {"fp32": MAX_DIFFERENCE, "fp16": 2e-2, "int8": 1e-1}
_MIN_SAME_PEAKS = 0.9
_NOTHING_WRITTEN = "nothing was written"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How far a file may be from the model.

    Attributes:
        head: raw values, in parts of the head's largest absolute value.
        score: of boxes.
        corner_px: corners of boxes, pixels of the input.
        keypoint_px: keypoints, pixels of the input.
        center: centres of 3D boxes, in parts of their distance.
        jumps: share of keypoints, and of 3D centres, that may be further apart, but one in any case. Both are places
            that decoding chooses, among the joints that were found and between two bins of the angle; where two are
            almost equally good, any difference decides.
    """

    head: float
    score: float
    corner_px: float
    keypoint_px: float
    center: float
    jumps: float


_ANY = float("inf")
LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(head=MAX_DIFFERENCE, score=1e-3, corner_px=0.1, keypoint_px=0.1, center=1e-3, jumps=0.01),
    # At least four times what the shipped pose model shows on 350 photographs: 5e-3 of a head, 0.19 px of a box.
    # Where a deformable convolution reads far away, a few cells change more than all others: 0.037 was seen.
    "fp16": Limits(head=5e-2, score=1e-2, corner_px=1.0, keypoint_px=1.0, center=2e-2, jumps=0.05),
    # What INT8 costs is accuracy, which `centeredge calibrate` measures. Here it is shown, and fails on NaN alone.
    "int8": Limits(head=_ANY, score=_ANY, corner_px=_ANY, keypoint_px=_ANY, center=_ANY, jumps=1.0),
}


@dataclass(frozen=True)
class BoxDifference:
    """How far one property of the boxes that both sides found is apart.

    Attributes:
        name: of the property.
        unit: of the differences; empty for none.
        count: how many were compared.
        max, median: of the differences; 0 where there were none.
        limit: for each of them.
        num_beyond: how many are above it.
        may_be_beyond: how many may be.
    """

    name: str
    unit: str
    count: int
    max: float
    median: float
    limit: float
    num_beyond: int
    may_be_beyond: int

    @property
    def label(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        how_many = f" for {self.num_beyond} of {self.count}" if self.may_be_beyond else ""
        return f"{self.name} by up to {self.max:.2g}{unit}{how_many} (limit {self.limit:g}{unit})"


@dataclass(frozen=True)
class Comparison:
    """One file against one model, at one size.

    Attributes:
        title: who was compared, on what.
        limits: that apply.
        heads: value by value.
        choice: which boxes were compared.
        num_boxes: that both sides found.
        boxes: property by property.
        lone: boxes that one side found and the other did not.
    """

    title: str
    limits: Limits
    heads: tuple[HeadDifference, ...]
    choice: Choice
    num_boxes: int
    boxes: tuple[BoxDifference, ...]
    lone: tuple[LoneBox, ...]

    def failures(self) -> list[str]:
        """What does not hold, one clause each; empty where the file is the model."""
        failures = [
            f"{head.name} by {head.max:.1e} of its largest value (limit {self.limits.head:.0e})"
            for head in self.heads
            if not head.max <= self.limits.head
        ]
        failures += [str(row) for row in self.boxes if row.num_beyond > row.may_be_beyond]
        unexplained = [box for box in self.lone if not box.reason]
        if unexplained and np.isfinite(self.limits.head):
            failures.append(f"{_counted(len(unexplained))} on one side alone, such as {unexplained[0]}")
        return failures

    def text(self) -> str:
        """Two tables, and the sentences that go with them."""
        which = f"score {self.choice.threshold:g} or more" if self.choice.threshold else "the best of each frame"
        rows = [
            self.title,
            _row("raw values, in parts of the head's largest", "max", "mean", "limit", "largest value"),
            *map(self._head_row, self.heads),
            _row(f"{_counted(self.num_boxes)} on both sides, {which}", "max", "median", "limit"),
            *(_row(f"  {row.label}", *_short(row.max, row.median, row.limit)) for row in self.boxes),
        ]
        rows += [
            f"{row.num_beyond} of {row.count} values of {row.name} are beyond the limit; {row.may_be_beyond} may be, "
            "where two choices are almost equally good."
            for row in self.boxes
            if row.num_beyond
        ]
        if self.lone:
            reasons = Counter(box.reason or "for no such reason" for box in self.lone)
            listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            rows.append(f"{_counted(len(self.lone))} on one side alone: {listed}.")
        return "\n".join([*rows, self._verdict()])

    def _head_row(self, head: HeadDifference) -> str:
        limit = f"{self.limits.head:.0e}" if self.limits.head < _ANY else "-"
        return _row(f"  {head.name}", f"{head.max:.1e}", f"{head.mean:.1e}", limit, f"{head.largest:.3g}")

    def _verdict(self) -> str:
        if failures := self.failures():
            return f"It differs: {'; '.join(failures)}."
        return "All within the limits." if self.limits.head < _ANY else "No limits: accuracy says what this costs."


@dataclass(frozen=True)
class Report:
    """The whole proof: one comparison a size, or a runtime."""

    parts: tuple[Comparison, ...]

    def text(self) -> str:
        return "\n\n".join(part.text() for part in self.parts)


def drawn_frames(spec: ModelSpec, *, count: int = 3) -> list[npt.NDArray[np.uint8]]:
    """Frames (1, h, w, 3) uint8 of drawn people, letterboxed as the SDK does it; the same each time."""
    rng = np.random.default_rng(0)
    return [prepare(random_scene(rng, _SCENE_WH)[0], spec).tensor for _ in range(count)]


def photograph_frames(folder: Path, spec: ModelSpec, *, count: int = 8) -> list[npt.NDArray[np.uint8]]:
    """Frames (1, h, w, 3) uint8 of up to `count` photographs, spread over a folder, fitted to the input as in the SDK.

    Files that cannot be read are logged and left out.

    Raises:
        InputError: there is no such folder, or no photograph in it that can be read.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; --images takes a folder of photographs")
    try:
        paths = folder_images(folder)
    except SourceError as err:
        raise InputError(str(err)) from err
    frames, reasons = [], []
    for index in np.unique(np.linspace(0, len(paths) - 1, count).round().astype(np.int64)):
        try:
            frames.append(prepare(read_image(paths[index]), spec).tensor)
        except SourceError as err:
            _log.warning("left out of the verification: %s", err)
            reasons.append(str(err))
    if not frames:
        raise InputError(f"no photograph of {folder} can be read, {len(reasons)} were tried; the first: {reasons[0]}")
    return frames


def verify(
    reference: Backend,
    candidate: Backend,
    frames: Frames,
    *,
    limits: Limits | None = None,
    names: tuple[str, str] = ("PyTorch", "ONNX Runtime"),
    scenes: str = "drawn scenes",
) -> Comparison:
    """The proof that a file is the model; see `compare`.

    Raises:
        ExportError: it is not: a value, a box or the spec differs, or an output is missing, misshapen or not finite.
        InputError: there are no frames, or they do not fit.
    """
    comparison = compare(reference, candidate, frames, limits=limits, names=names, scenes=scenes)
    if failures := comparison.failures():
        raise ExportError(f"{comparison.title} differs: {'; '.join(failures)}; {_NOTHING_WRITTEN}")
    return comparison


def compare(
    reference: Backend,
    candidate: Backend,
    frames: Frames,
    *,
    limits: Limits | None = None,
    names: tuple[str, str] = ("PyTorch", "ONNX Runtime"),
    scenes: str = "drawn scenes",
) -> Comparison:
    """How far a file is from the model.

    Raw values are compared cell by cell, those of a file with peaks at its peaks. Then both are decoded, and boxes of
    the same class and cell are compared in the input frame: those above the model's score threshold, or, where hardly
    any are, the best 20 of each frame. A 3D model looks through a nominal camera.

    A difference within the limits can still make a box come or go. One that a single side has needs one of three
    reasons, in the model's heatmap, whose raw values may differ by t:
    - at the threshold: its value is within t of the threshold's;
    - as high as a neighbour: it is within 2t of the highest of the 8, so the two may change places;
    - at the last place: the other side gave as many boxes as it may, and its last is within 2t or better.
    Below the threshold, or a neighbour, by more than that there is none.

    Args:
        reference: the model, with dense heads.
        candidate: the file, with dense heads or peaks.
        frames: (1, h, w, 3) uint8, of the reference's input size.
        limits: None takes those of the candidate's precision.
        names: of reference and candidate, for the report.
        scenes: what the frames are, for the report.

    Raises:
        ExportError: the two have different specs, or an output is missing, misshapen or not finite.
        InputError: there are no frames, or they do not fit.
    """
    _check_frames(frames, reference.spec)
    spec = replace(reference.spec, output=candidate.spec.output)
    limits = limits or LIMITS[candidate.spec.precision]
    width, height = spec.input.wh
    form = f"{spec.output}, {candidate.spec.precision.upper()}"
    title = f"{names[1]} ({form}) against {names[0]}, {scenes} ({len(frames)}), {width}x{height}"
    _check_specs(reference.spec, candidate.spec, title)
    answers = _answers(reference, candidate, frames, names)
    heads = _head_differences(answers, spec)
    if damaged := [head.name for head in heads if not np.isfinite(head.max)]:
        raise ExportError(f"{title}: NaN or infinity in {', '.join(damaged)}; {_NOTHING_WRITTEN}")
    choice = _choice(answers, spec)
    heatmap = next(head for head in heads if head.name == "heatmap")
    tolerance = (limits.head if limits.head < _ANY else heatmap.max) * heatmap.largest
    found = [boxes_of_cells(*answer, spec, choice, tolerance=tolerance, sides=names) for answer in answers]
    properties = {name: np.concatenate([rows[name] for rows, _ in found]) for name in found[0][0]}
    boxes = _box_differences(properties, limits)
    lone = tuple(box for _, boxes_of_frame in found for box in boxes_of_frame)
    return Comparison(title, limits, tuple(heads), choice, len(properties["score"]), boxes, lone)


def check_batch(backend: Backend, frames: Frames) -> list[HeadDifference]:
    """Proof that several frames in one call give what they give one by one.

    Args:
        backend: takes a batch of that many frames.
        frames: (1, h, w, 3) uint8, no two of them alike.

    Returns:
        How far each head is apart.

    Raises:
        ExportError: they give something else.
        InputError: there are no frames, or they do not fit.
    """
    spec, limit = backend.spec, _BATCH_LIMITS[backend.spec.precision]
    _check_frames(frames, spec)
    together = backend.infer({backend.inputs[0]: np.concatenate(list(frames))})
    pairs: dict[str, list[Pair]] = {}
    wrong = []
    for index, frame in enumerate(frames):
        alone = backend.infer({backend.inputs[0]: frame})
        row = {name: values[index : index + 1] for name, values in together.items()}
        check_outputs(alone, spec, "one frame")
        check_outputs(row, spec, f"frame {index} of a batch of {len(frames)}")
        for name, expected, found, same in same_rows(alone, row, spec):
            pairs.setdefault(name, []).append((expected, found))
            if same < _MIN_SAME_PEAKS:
                wrong.append(f"{name} has {1 - same:.0%} other peaks in frame {index}")
    differences = [
        head_difference(name, rows, largest=max(_largest(expected) for expected, _ in rows))
        for name, rows in pairs.items()
    ]
    wrong += [f"{head.name} by {head.max:.1e} of its largest value" for head in differences if not head.max <= limit]
    if wrong:
        raise ExportError(
            f"{len(frames)} frames in one call give something else than one by one: {'; '.join(wrong)} "
            f"(limit {limit:.0e}); {_NOTHING_WRITTEN}"
        )
    return differences


def _check_frames(frames: Frames, spec: ModelSpec) -> None:
    width, height = spec.input.wh
    if wrong := [frame.shape for frame in frames if frame.shape != (1, height, width, 3)]:
        raise InputError(f"got a frame of shape {wrong[0]}, the model takes (1, {height}, {width}, 3)")
    if not len(frames):
        raise InputError("got no frames; expected at least one to compare on")


def _check_specs(reference: ModelSpec, candidate: ModelSpec, title: str) -> None:
    """Raises ExportError where more differs than what an export may choose: form of output, precision and size."""
    same_form = replace(
        candidate.with_input_size(*reference.input.wh), output=reference.output, precision=reference.precision
    )
    names = [field.name for field in fields(ModelSpec)]
    if different := [name for name in names if getattr(reference, name) != getattr(same_form, name)]:
        raise ExportError(f"{title}: the file's spec has another {', '.join(different)}; {_NOTHING_WRITTEN}")


def _answers(reference: Backend, candidate: Backend, frames: Frames, names: tuple[str, str]) -> Answers:
    answers = []
    for frame in frames:
        both = [side.infer({side.inputs[0]: frame}) for side in (reference, candidate)]
        check_outputs(both[0], reference.spec, names[0])
        check_outputs(both[1], replace(reference.spec, output=candidate.spec.output), names[1])
        answers.append((both[0], both[1]))
    return answers


def _head_differences(answers: Answers, spec: ModelSpec) -> list[HeadDifference]:
    pairs: dict[str, list[Pair]] = {}
    largest: dict[str, float] = {}
    for heads, found in answers:
        for name, expected, values in same_cells(heads, found, spec):
            pairs.setdefault(name, []).append((expected, values))
            largest[name] = max(largest.get(name, 0.0), _largest(heads[name]))
    return [head_difference(name, rows, largest=largest[name]) for name, rows in pairs.items()]


def _choice(answers: Answers, spec: ModelSpec) -> Choice:
    """The boxes that a user would see; of a network that shows hardly any, the best."""
    seen = sum(len(find_peaks(heads, spec, score_threshold=spec.score_threshold)) for heads, _ in answers)
    if seen < _FEW_BOXES:
        return Choice(0.0, min(_NUM_BEST, spec.max_detections))
    return Choice(spec.score_threshold, spec.max_detections)


def _box_differences(properties: Mapping[str, npt.NDArray[Any]], limits: Limits) -> tuple[BoxDifference, ...]:
    table: Iterable[tuple[str, str, float, float]] = (
        ("box corner", "px", limits.corner_px, 0.0),
        ("score", "", limits.score, 0.0),
        ("keypoint", "px", limits.keypoint_px, limits.jumps),
        ("3D centre", "m", _ANY, 0.0),
        ("3D centre / distance", "", limits.center, limits.jumps),
    )
    rows = []
    for name, unit, limit, jumps in table:
        values = properties.get(name)
        if values is None:
            continue
        median = float(np.median(values)) if len(values) else 0.0
        may_be_beyond = max(int(jumps * len(values)), 1) if jumps else 0
        num_beyond = int((values > limit).sum())
        largest = float(values.max(initial=0.0))
        rows.append(BoxDifference(name, unit, len(values), largest, median, limit, num_beyond, may_be_beyond))
    return tuple(rows)


def _largest(values: npt.NDArray[Any]) -> float:
    return float(np.abs(values).max(initial=0.0))


def _counted(number: int) -> str:
    return f"{number} box" if number == 1 else f"{number} boxes"


def _row(name: str, *columns: str) -> str:
    widths = (9, 9, 9, 15)
    return f"{name:<44}" + "".join(f"{text:>{width}}" for text, width in zip(columns, widths, strict=False))


def _short(*values: float) -> list[str]:
    """Two digits are all that a difference has to say; no limit is a dash."""
    return [f"{value:.2g}" if value < _ANY else "-" for value in values]
