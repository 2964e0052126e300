"""Accuracy is never measured on what was calibrated on: shared photographs are found by what is in them.

::

    chosen = choose_balanced(open_annotated(images, annotations, spec), spec.class_names, 500)
    evaluation = without_calibrated(open_annotated(eval_images, eval_annotations, spec), identified(chosen.paths))

Where there is no other set to measure accuracy on, some photographs are set aside before any is chosen::

    pool, aside = set_aside(open_annotated(images, annotations, spec), 500)
    chosen = choose_balanced(pool, spec.class_names, 500)
    evaluation = without_calibrated(aside, identified(chosen.paths), force=True)
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .errors import CalibrationError
from .photographs import Photograph, Unreadable, check_readable, identify
from .sets import AnnotatedSet

_MAX_SET_ASIDE = 500
_ANY_OTHER = "name others with --eval-images and --eval-annotations"


def identified(paths: Sequence[Path]) -> tuple[Photograph, ...]:
    """What is in those files that can be read, before they are calibrated on."""
    return tuple(entry for entry in identify(paths) if isinstance(entry, Photograph))


def set_aside(annotated: AnnotatedSet, num: int, *, seed: int = 0) -> tuple[AnnotatedSet, AnnotatedSet]:
    """What to choose `num` photographs to calibrate on from, and what to measure accuracy on: at most 500, at random.

    They are set aside first, because what a balanced choice leaves over lacks the rare classes.

    Raises:
        CalibrationError: there are no more than `num`.
    """
    ids = list(annotated.files)
    count = min(_MAX_SET_ASIDE, len(ids) - num)
    if count < 1:
        raise CalibrationError(
            f"all {len(ids)} annotated photographs would be calibrated on, so that none is left to measure accuracy; "
            f"lower --num, or {_ANY_OTHER}"
        )
    aside = {ids[index] for index in np.random.default_rng(seed).permutation(len(ids))[:count]}
    pool = {image_id: path for image_id, path in annotated.files.items() if image_id not in aside}
    rest = {image_id: path for image_id, path in annotated.files.items() if image_id in aside}
    return replace(annotated, files=pool), replace(annotated, files=rest, copies=())


def without_calibrated(
    evaluation: AnnotatedSet, calibrated_on: Collection[Photograph], *, force: bool = False
) -> AnnotatedSet:
    """An evaluation set that shares nothing with the calibration set; compared by content, not by name.

    Args:
        evaluation: annotated photographs.
        calibrated_on: what is compared with, byte for byte and pixel for pixel.
        force: leave those out that are shared, rather than refuse the set.

    Raises:
        CalibrationError: photographs were calibrated on, accuracy on which would say too much (all of them, with
            `force`); or more than 5 % cannot be read.
    """
    total = len(evaluation.files)
    unseen = _unseen(evaluation, calibrated_on)
    check_readable(unseen.unreadable, total)
    seen = unseen.calibrated_on
    if seen and not force:
        raise CalibrationError(
            f"{len(seen)} of the {total} evaluation photographs were calibrated on, the first {seen[0]}; {_ANY_OTHER}, "
            "or leave the shared ones out with --force"
        )
    if not unseen.files:
        raise CalibrationError(
            f"all {total} evaluation photographs were calibrated on, so that none is left to measure accuracy; "
            f"{_ANY_OTHER}"
        )
    return unseen


def _unseen(evaluation: AnnotatedSet, calibrated_on: Collection[Photograph]) -> AnnotatedSet:
    """Those that can be read and were not calibrated on."""
    contents = {photograph.sha256 for photograph in calibrated_on}
    pixels = {photograph.pixels_sha256 for photograph in calibrated_on}
    files: dict[int, Path] = {}
    seen: list[str] = []
    unreadable: list[Unreadable] = []
    photographs = identify(list(evaluation.files.values()))
    for (image_id, path), photograph in zip(evaluation.files.items(), photographs, strict=True):
        if isinstance(photograph, Unreadable):
            unreadable.append(photograph)
        elif photograph.sha256 in contents or photograph.pixels_sha256 in pixels:
            seen.append(path.name)
        else:
            files[image_id] = path
    return replace(evaluation, files=files, calibrated_on=tuple(seen), unreadable=tuple(unreadable))
