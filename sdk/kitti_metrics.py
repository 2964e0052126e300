"""Accuracy by KITTI's rules: 2D AP, AOS, bird's-eye-view AP and 3D AP, equal to the official evaluator's.

::

    figures = evaluate_on_kitti(detector, Path("kitti"), split="val")
    figures["Car"]["3d"]["R40"]      # [easy, moderate, hard], 0 to 100
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from .camera import CameraIntrinsics
from .errors import InputError
from .kitti import (
    UNKNOWN_ALPHA_RAD,
    UNKNOWN_LOCATION_M,
    KittiFolder,
    KittiObjects,
    kitti_from_detections,
    read_kitti_calib,
    read_kitti_labels,
    read_kitti_results,
)
from .kitti_matching import DIFFICULTIES, Candidates, FrameRows, recall_curves
from .kitti_overlap import METRICS, Metric
from .sources import read_image

if TYPE_CHECKING:
    from .augmented_detector import AugmentedDetector
    from .detector import Detector

KITTI_CLASSES = ("Car", "Pedestrian", "Cyclist")
IouRule = Literal["centernet", "standard"]
Averages = dict[str, list[float | None]]
KittiFigures = dict[str, dict[str, Averages]]
FloatArray = npt.NDArray[np.floating[Any]]

_IMAGE_IOU = {"Car": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
_SPACE_IOU: Mapping[str, Mapping[str, float]] = {
    "centernet": {"Car": 0.5, "Pedestrian": 0.25, "Cyclist": 0.25},
    "standard": _IMAGE_IOU,
}


def evaluate_on_kitti(
    detector: Detector | AugmentedDetector,
    folder: Path,
    *,
    split: str | None = None,
    iou: IouRule = "centernet",
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> KittiFigures:
    """Run a detector over the frames of a KITTI folder, each with its own camera, and measure it.

    Args:
        detector: should keep all peaks (score_threshold 0); its `intrinsics` are as before afterwards.
        folder: holds training/{image_2,label_2,calib} and ImageSets.
        split: a name in ImageSets; None takes every labelled frame.
        iou: see `evaluate_kitti`.
        limit: only the first frames.
        progress: called with frames done and all frames.

    Returns:
        See `evaluate_kitti`; for those of KITTI's classes that the model has.

    Raises:
        InputError: the folder lacks something, or the model has none of KITTI's classes.
    """
    classes = _classes_of(detector.spec.class_names)
    kitti = KittiFolder(folder)
    names = kitti.frame_names(split)[:limit]
    # Whatever is wrong with the folder is said before the detector has worked for an hour.
    truths = [read_kitti_labels(kitti.label_path(name)) for name in names]
    cameras = [CameraIntrinsics(read_kitti_calib(kitti.calib_path(name))) for name in names]
    images = [kitti.image_path(name) for name in names]
    results = []
    intrinsics = detector.intrinsics
    try:
        for done, (image, camera) in enumerate(zip(images, cameras, strict=True), 1):
            detector.intrinsics = camera
            results.append(kitti_from_detections(detector(read_image(image))))
            if progress is not None:
                progress(done, len(names))
    finally:
        detector.intrinsics = intrinsics
    return evaluate_kitti(truths, results, iou=iou, classes=classes)


def evaluate_kitti_results(
    results_folder: Path,
    folder: Path,
    *,
    split: str | None = None,
    iou: IouRule = "centernet",
    limit: int | None = None,
) -> KittiFigures:
    """Measure a folder of KITTI result files, one a frame, against the labels of a KITTI folder.

    Raises:
        InputError: a frame has no result file (one without detections is empty), or a file has a bad row.
    """
    kitti = KittiFolder(folder)
    names = kitti.frame_names(split)[:limit]
    paths = [results_folder / f"{name}.txt" for name in names]
    if missing := [path for path in paths if not path.is_file()]:
        raise InputError(
            f"{len(missing)} of {len(names)} frames have no result file, the first is {missing[0]}; "
            "a frame without detections has an empty file"
        )
    truths = [read_kitti_labels(kitti.label_path(name)) for name in names]
    return evaluate_kitti(truths, [read_kitti_results(path) for path in paths], iou=iou)


def evaluate_kitti(
    ground_truths: Sequence[KittiObjects],
    results: Sequence[KittiObjects],
    *,
    iou: IouRule = "centernet",
    classes: Sequence[str] = KITTI_CLASSES,
) -> KittiFigures:
    """KITTI's figures of detections in some frames.

    Args:
        ground_truths: the labels of each frame.
        results: the detections of each frame, in the same order.
        iou: the overlap that a detection needs. `centernet` is that of the paper's evaluator: 0.7, 0.5, 0.5 (car,
            pedestrian, cyclist) in the image, 0.5, 0.25, 0.25 in bird's-eye view and 3D; `standard` is KITTI's,
            0.7, 0.5, 0.5 throughout.
        classes: of `KITTI_CLASSES`, those to report.

    Returns:
        {class: {"2d" | "aos" | "bev" | "3d": {"R11" | "R40": [easy, moderate, hard]}}}, 0 to 100. None without
        ground truth, and for what the detections do not tell: AOS as soon as one has no alpha, bird's-eye view and
        3D where none has a location. As in the official evaluator, a recall position that there are too few objects
        to reach counts 0: perfect detections score 100 from 41 objects on.

    Raises:
        InputError: other numbers of frames, results without scores, or an unknown class or IoU rule.
    """
    if len(ground_truths) != len(results):
        raise InputError(f"there are {len(ground_truths)} frames of ground truth and {len(results)} of results")
    if any(frame.scores is None for frame in results):
        raise InputError("results need scores; these are read_kitti_labels', use read_kitti_results")
    if iou not in _SPACE_IOU:
        raise InputError(f"the IoU rule is {iou!r}, expected one of {', '.join(_SPACE_IOU)}")
    if unknown := [name for name in classes if name not in KITTI_CLASSES]:
        raise InputError(f"KITTI has no class {unknown[0]}; its classes are {', '.join(KITTI_CLASSES)}")
    truth, found = FrameRows.joined(ground_truths), FrameRows.joined(results)
    return {name: _evaluate_class(truth, found, name, iou) for name in classes}


def _classes_of(class_names: Sequence[str]) -> list[str]:
    """Those of KITTI's classes that a model has; letters' case does not matter, as in the official evaluator."""
    lower = {name.lower() for name in class_names}
    classes = [name for name in KITTI_CLASSES if name.lower() in lower]
    if not classes:
        raise InputError(
            f"the model has none of KITTI's classes ({', '.join(KITTI_CLASSES)}); it has {', '.join(class_names)}"
        )
    return classes


def _evaluate_class(truth: FrameRows, found: FrameRows, name: str, iou: IouRule) -> dict[str, Averages]:
    table: dict[str, Averages] = {metric: {"R11": [], "R40": []} for metric in ("2d", "aos", "bev", "3d")}
    has_alpha = not (found.objects.alpha_rad == UNKNOWN_ALPHA_RAD).any()
    for metric in METRICS:
        threshold = (_IMAGE_IOU if metric == "2d" else _SPACE_IOU[iou])[name]
        candidates = Candidates.between(truth, found, name, metric, threshold)
        is_told = _is_told(found, name, metric)
        for difficulty in DIFFICULTIES:
            curves = recall_curves(candidates, difficulty) if is_told else None
            _append(table[metric], None if curves is None else curves[0])
            if metric == "2d":
                _append(table["aos"], None if curves is None or not has_alpha else curves[1])
    return table


def _is_told(found: FrameRows, name: str, metric: Metric) -> bool:
    """Whether detections of a class, or all where there are none of it, have what a metric needs; so also if none."""
    has_it = {
        "2d": found.objects.xyxy[:, 0] >= 0,
        "bev": found.objects.location_m[:, 0] != UNKNOWN_LOCATION_M,
        "3d": found.objects.location_m[:, 1] != UNKNOWN_LOCATION_M,
    }[metric]
    is_class = found.types == name.lower()
    among = has_it[is_class] if is_class.any() else has_it
    return bool(among.any()) or not len(among)


def _append(averages: Averages, curve: FloatArray | None) -> None:
    """Add the means over 11 and over 40 recall positions; the latter leave out recall 0."""
    averages["R11"].append(None if curve is None else 100 * float(curve[::4].mean()))
    averages["R40"].append(None if curve is None else 100 * float(curve[1:].mean()))
