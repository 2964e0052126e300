"""Accuracy by COCO's rules: box AP and keypoint AP, through pycocotools.

::

    results = CocoResults.for_spec(ground_truth, spec)
    for image_id, image in photographs:
        results.add(image_id, detector(image))
    figures = results.evaluate()      # {"bbox": {"AP": .., "AP50": ..}, "keypoints": {..}, "per_class": {..}}
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .coco import check_annotation, check_photographs, check_size, read_coco
from .errors import BackendUnavailable, InputError, SourceError
from .geometry import xyxy_to_xywh
from .results import Detections
from .sources import read_image
from .spec import COCO_KEYPOINT_NAMES, COCO_OKS_SIGMAS, ModelSpec

BOX_FIGURES = (
    "AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge", "AR1", "AR10", "AR100", "ARsmall", "ARmedium", "ARlarge",
)  # fmt: skip
KEYPOINT_FIGURES = ("AP", "AP50", "AP75", "APmedium", "APlarge", "AR", "AR50", "AR75", "ARmedium", "ARlarge")
Figures = dict[str, float | None]
# Of keypoints that nobody has measured the annotators' spread of: the mean of COCO's 17.
DEFAULT_OKS_SIGMA = 0.067


class FindsObjects(Protocol):
    """What can be evaluated: `Detector`, `AugmentedDetector`, or anything else that knows its spec."""

    @property
    def spec(self) -> ModelSpec: ...

    def __call__(self, image: npt.NDArray[Any], /) -> Detections:
        """What is in a (H, W, 3) uint8 BGR image, in its pixels."""
        ...


class CocoResults:
    """Collects detections and compares them with a COCO ground truth.

    Args:
        ground_truth: a COCO annotation file, or its parsed content.
        class_names: the model's classes; matched with the categories by name.
        oks_sigmas: of the model's keypoints; empty for a model without.

    Raises:
        InputError: no usable annotation file, none of the classes is in it, or an annotation has another number of
            keypoints.
    """

    def __init__(
        self, ground_truth: Path | Mapping[str, Any], class_names: Sequence[str], *, oks_sigmas: Sequence[float] = ()
    ) -> None:
        data = read_coco(ground_truth) if isinstance(ground_truth, Path) else ground_truth
        categories = {category["name"]: category["id"] for category in data["categories"]}
        self._category_ids = {i: categories[name] for i, name in enumerate(class_names) if name in categories}
        if not self._category_ids:
            raise InputError(
                f"none of the model's classes ({', '.join(class_names)}) is annotated; the annotations have "
                f"{', '.join(categories)}"
            )
        self._class_names = tuple(class_names)
        self._sigmas = np.array(oks_sigmas)
        evaluated = set(self._category_ids.values())
        for row in data["annotations"]:
            _check_num_keypoints(row, len(oks_sigmas) if row["category_id"] in evaluated else 0)
        self._data = {**data, "annotations": _completed(data["annotations"], len(oks_sigmas))}
        self._rows: list[dict[str, Any]] = []
        self._image_ids: list[int] = []

    @classmethod
    def for_spec(cls, ground_truth: Path | Mapping[str, Any], spec: ModelSpec) -> CocoResults:
        """For a model; where its spec has keypoints and no sigmas, those of `default_oks_sigmas` count.

        Raises:
            InputError: as the constructor, or the annotations have the model's keypoints in another order.
        """
        data = read_coco(ground_truth) if isinstance(ground_truth, Path) else ground_truth
        for category in data["categories"]:
            names = tuple(category.get("keypoints") or ())
            if names != spec.keypoint_names and sorted(names) == sorted(spec.keypoint_names):
                raise InputError(
                    f"the keypoints of category {category['name']!r} are {', '.join(names)}, and model {spec.name!r} "
                    f"has them in the order {', '.join(spec.keypoint_names)}; put the annotations into that order"
                )
        sigmas = spec.oks_sigmas or default_oks_sigmas(spec.keypoint_names)
        return cls(data, spec.class_names, oks_sigmas=sigmas)

    def add(self, image_id: int, detections: Detections) -> None:
        """The detections of one image, in its pixels."""
        self._image_ids.append(image_id)
        boxes_xywh = xyxy_to_xywh(detections.xyxy)
        for row in range(len(detections)):
            category = self._category_ids.get(int(detections.class_ids[row]))
            if category is None:
                continue
            result: dict[str, Any] = {
                "image_id": image_id,
                "category_id": category,
                "bbox": boxes_xywh[row].tolist(),
                "score": float(detections.scores[row]),
            }
            if detections.keypoints is not None:
                points = np.column_stack([detections.keypoints.xy[row], np.ones(detections.keypoints.xy.shape[1])])
                result["keypoints"] = points.ravel().tolist()
            self._rows.append(result)

    def add_rows(self, rows: Sequence[Mapping[str, Any]], image_ids: Iterable[int]) -> None:
        """Results that are already in COCO's form, and the images that they are about.

        Raises:
            InputError: a row has neither `bbox` nor `keypoints`, or another number of keypoints.
        """
        for row in rows:
            if "bbox" not in row and "keypoints" not in row:
                raise InputError(f"a result has neither bbox nor keypoints: {dict(row)!s:.120}")
            values = len(row.get("keypoints", ()))
            if len(self._sigmas) and values not in (0, 3 * len(self._sigmas)):
                raise InputError(
                    f"a result has {values} keypoint values, expected x, y and visibility of {len(self._sigmas)} "
                    f"keypoints: {dict(row)!s:.120}"
                )
        self._rows.extend(dict(row) for row in rows)
        self._image_ids.extend(image_ids)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """COCO's results format, ready for json.dump."""
        return self._rows

    def evaluate(self) -> dict[str, Any]:
        """The figures over the images that were added; 0 to 1, None where there is no ground truth.

        Returns:
            {"bbox": {figure: value}, "keypoints": {figure: value} for pose models with labelled ground truth,
            "per_class": {class name: {"AP": .., "AP50": ..}}}
        """
        coco_eval = self._run("bbox")
        out: dict[str, Any] = {"bbox": _summary(coco_eval, BOX_FIGURES), "per_class": self._per_class(coco_eval)}
        labelled = any(row["num_keypoints"] for row in self._data["annotations"])
        if len(self._sigmas) and labelled:
            out["keypoints"] = _summary(self._run("keypoints"), KEYPOINT_FIGURES)
        return out

    def _run(self, kind: str) -> Any:
        coco_class, eval_class = _import_pycocotools()
        truth, results = coco_class(), coco_class()
        truth.dataset = {**self._data, "annotations": [dict(row) for row in self._data["annotations"]]}
        results.dataset = {
            "images": self._data["images"],
            "categories": self._data["categories"],
            "annotations": _numbered(self._rows, kind),
        }
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress there
            truth.createIndex()
            results.createIndex()
            coco_eval = eval_class(truth, results, kind)
            coco_eval.params.imgIds = sorted(set(self._image_ids))
            coco_eval.params.catIds = sorted(self._category_ids.values())
            if kind == "keypoints":
                coco_eval.params.kpt_oks_sigmas = self._sigmas
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()
        return coco_eval

    def _per_class(self, coco_eval: Any) -> dict[str, Figures]:
        precision = coco_eval.eval["precision"]  # (IoU, recall, class, area, max detections)
        names = {category: self._class_names[i] for i, category in self._category_ids.items()}
        figures = {}
        for column, category in enumerate(coco_eval.params.catIds):
            values = precision[:, :, column, 0, -1]
            figures[names[category]] = {"AP": _mean(values), "AP50": _mean(values[0])}
        return figures


def default_oks_sigmas(keypoint_names: Sequence[str]) -> tuple[float, ...]:
    """Sigmas of keypoints by their names: COCO's for COCO's 17, otherwise `DEFAULT_OKS_SIGMA` for each.

    >>> default_oks_sigmas(["front", "back"])
    (0.067, 0.067)
    """
    if tuple(keypoint_names) == COCO_KEYPOINT_NAMES:
        return COCO_OKS_SIGMAS
    return (DEFAULT_OKS_SIGMA,) * len(keypoint_names)


def evaluate_on_coco(
    detector: FindsObjects,
    images: Path,
    annotations: Path,
    *,
    image_ids: Collection[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run a detector over annotated photographs and give its figures, as `CocoResults.evaluate` does.

    Args:
        detector: its score threshold should be 0, so that all its peaks count.
        images: folder of the photographs.
        annotations: COCO file; with keypoints, where a pose model's are to be measured.
        image_ids: only these photographs; None takes all.
        progress: called with (done, total) after each photograph.

    Raises:
        InputError: the annotations are not usable, or a photograph is missing or cannot be decoded.
    """
    data = read_coco(annotations)
    results = CocoResults.for_spec(data, detector.spec)
    rows = [row for row in data["images"] if image_ids is None or row["id"] in image_ids]
    check_photographs(annotations, images, rows)
    by_id = {row["id"]: row for row in rows}
    for annotation in data["annotations"]:
        if annotation["image_id"] in by_id:
            check_annotation(annotations, annotation, by_id[annotation["image_id"]])
    for done, row in enumerate(rows, 1):
        try:
            image = read_image(images / row["file_name"])
        except SourceError as err:
            raise InputError(f"{annotations} names a photograph that cannot be used: {err}") from err
        check_size(annotations, row, image)
        results.add(row["id"], detector(image))
        if progress is not None:
            progress(done, len(rows))
    return results.evaluate()


def _numbered(rows: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """What COCO.loadRes adds to results: ids and areas, and boxes around keypoints that come without."""
    numbered = []
    for number, row in enumerate(rows, 1):
        if kind == "keypoints" and "keypoints" not in row:
            continue
        box = row["bbox"] if kind == "bbox" and "bbox" in row else _box_xywh_around(row["keypoints"])
        numbered.append({**row, "bbox": box, "id": number, "area": box[2] * box[3], "iscrowd": 0})
    return numbered


def _box_xywh_around(keypoints: Sequence[float]) -> list[float]:
    points = np.reshape(keypoints, (-1, 3))[:, :2]
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _check_num_keypoints(row: Mapping[str, Any], expected: int) -> None:
    values = len(row.get("keypoints") or ())
    if expected and values not in (0, 3 * expected):
        raise InputError(
            f"annotation {row.get('id')} has {values} keypoint values, expected x, y and visibility of the {expected} "
            "keypoints that are evaluated; for the boxes alone, use annotations without keypoints"
        )


def _completed(annotations: Sequence[Mapping[str, Any]], num_keypoints: int) -> list[dict[str, Any]]:
    """A user's own annotations may lack fields that pycocotools needs."""
    completed = []
    for row in annotations:
        if len(row.get("bbox", ())) != 4:
            raise InputError(f"annotation {row.get('id')} has no bbox of four numbers (x, y, w, h): {dict(row)!s:.120}")
        keypoints = row.get("keypoints") or [0] * (3 * num_keypoints)
        defaults = {
            "iscrowd": 0,
            "area": row["bbox"][2] * row["bbox"][3],
            "num_keypoints": sum(visibility > 0 for visibility in keypoints[2::3]),
        }
        completed.append({**defaults, **row, "keypoints": keypoints})
    return completed


def _summary(coco_eval: Any, names: Sequence[str]) -> Figures:
    return {name: _figure(value) for name, value in zip(names, coco_eval.stats, strict=True)}


def _figure(value: float) -> float | None:
    return None if value < 0 else float(value)


def _mean(values: Any) -> float | None:
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else None


def _import_pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as err:
        raise BackendUnavailable(
            "measuring accuracy needs pycocotools; `pip install 'centeredge[calibration]'`"
        ) from err
    return COCO, COCOeval
