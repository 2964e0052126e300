"""Accuracy of weights in training: the SDK's detector and metrics on a PyTorch backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdk.backends import Arrays
from sdk.detector import Detector
from sdk.errors import BackendError
from sdk.kitti import (
    UNKNOWN_ALPHA_RAD,
    UNKNOWN_LOCATION_M,
    UNKNOWN_SIZE_M,
    UNKNOWN_YAW_RAD,
    KittiObjects,
    kitti_from_detections,
)
from sdk.kitti_metrics import KITTI_CLASSES, evaluate_kitti
from sdk.metrics import CocoResults
from sdk.results import Detections
from sdk.spec import ModelSpec

from .coco import CocoData
from .models.layers import CenterNet
from .preprocessing import normalised
from .samples import Sample, SampleSource

Found = dict[int, Detections]  # by index of the sample


class TorchBackend:
    """A PyTorch model as an `sdk.backends.Backend`, so that one detector serves both.

    Inputs may have any size that the network takes: give the spec of that size (`ModelSpec.with_input_size`).

    Args:
        model: is put into evaluation mode.
        spec: of the model.
        device: to run on.
    """

    inputs: tuple[str, ...] = ("frame",)

    def __init__(self, model: nn.Module, spec: ModelSpec, *, device: str = "cpu") -> None:
        self.spec = spec
        self.outputs: tuple[str, ...] = tuple(head.name for head in spec.heads)
        self._device = torch.device(device)
        self._model = model.to(self._device).eval()

    @torch.inference_mode()
    def infer(self, feeds: Arrays) -> dict[str, np.ndarray]:
        """Raw outputs for `frame`, (B, h, w, 3) uint8.

        Raises:
            BackendError: the network does not take pictures of that size.
        """
        height, width = feeds["frame"].shape[1:3]
        multiple = self._model.input_multiple if isinstance(self._model, CenterNet) else 1
        if width % multiple or height % multiple:
            raise BackendError(f"the input is {width}x{height}; this network takes multiples of {multiple} pixels")
        images = torch.from_numpy(np.ascontiguousarray(feeds["frame"])).to(self._device)
        with torch.autocast(self._device.type, enabled=False):  # whatever the training around it does
            heads: dict[str, Tensor] = self._model(normalised(images, self.spec))
        return {name: head.float().cpu().contiguous().numpy() for name, head in heads.items()}

    def close(self) -> None:
        """Nothing is held but memory."""


def evaluate_detector(
    detector: Detector,
    samples: SampleSource,
    spec: ModelSpec,
    *,
    rank: int = 0,
    world: int = 1,
    gather: Callable[[Found], list[Found]] = lambda found: [found],
) -> dict[str, float]:
    """Accuracy of a detector on samples, in any number of processes; each returns the figures of all samples.

    Args:
        detector: of score threshold 0.
        samples: with their truth.
        spec: of the model.
        rank: of this process, which looks at the samples rank, rank + world, ...
        world: number of processes.
        gather: gives every process what all of them found, e.g. by torch.distributed.all_gather_object.

    Returns:
        See `figures_of`.
    """
    found = detect_samples(detector, samples, range(rank, len(samples), world))
    return figures_of(samples, {index: row for part in gather(found) for index, row in part.items()}, spec)


def detect_samples(detector: Detector, samples: SampleSource, indices: Iterable[int]) -> Found:
    """What a detector finds in some samples, by index; each is looked at with its own camera."""
    found: Found = {}
    for index in indices:
        sample = samples.sample(index)
        detector.intrinsics = sample.camera
        found[index] = detector(sample.image)
    return found


def figures_of(samples: SampleSource, found: Mapping[int, Detections], spec: ModelSpec) -> dict[str, float]:
    """Accuracy of detections, 0 to 1, and 0 where there is no ground truth.

    Returns:
        Box AP and AP50; for poses keypoint_AP; for boxes in space AP3D: KITTI's 3D AP over 40 recalls, the mean of
        those of its classes that the model has and the samples show.
    """
    truth = samples.ground_truth() if isinstance(samples, CocoData) else ground_truth(samples, spec)
    results = CocoResults.for_spec(truth, spec)
    for index in range(len(samples)):
        results.add(index + 1, found[index])
    figures = results.evaluate()
    out = {"AP": figures["bbox"]["AP"] or 0.0, "AP50": figures["bbox"]["AP50"] or 0.0}
    if "keypoints" in figures:
        out["keypoint_AP"] = figures["keypoints"]["AP"] or 0.0
    classes = [name for name in KITTI_CLASSES if name in spec.class_names]
    if "3d" in spec.tasks and classes:
        out["AP3D"] = _ap_in_space(samples, found, spec, classes)
    return out


def _ap_in_space(
    samples: SampleSource, found: Mapping[int, Detections], spec: ModelSpec, classes: Sequence[str]
) -> float:
    """The mean over classes; all objects count as fully visible, for samples do not say how hidden they are."""
    truths = [kitti_objects(samples.sample(index), spec.class_names) for index in range(len(samples))]
    results = [kitti_from_detections(found[index]) for index in range(len(samples))]
    figures = evaluate_kitti(truths, results, classes=classes)
    moderate = [figures[name]["3d"]["R40"][1] for name in classes]  # easy leaves out what is below 40 px
    values = [value / 100 for value in moderate if value is not None]
    return float(np.mean(values)) if values else 0.0


def kitti_objects(sample: Sample, class_names: Sequence[str]) -> KittiObjects:
    """The truth of a sample as KITTI writes it: boxes without a place in space, and regions to ignore, as DontCare."""
    known = np.zeros(len(sample.boxes_xyxy), np.bool_)
    if sample.boxes3d is not None:
        known[:] = np.isfinite(sample.boxes3d.center_m).all(axis=1)
    scores = np.ones(len(known), np.float32)
    everything = Detections(sample.boxes_xyxy, scores, sample.class_ids, tuple(class_names), boxes3d=sample.boxes3d)
    rows = kitti_from_detections(everything[known])
    ignored = np.concatenate([sample.boxes_xyxy[~known], sample.ignore_xyxy]).astype(np.float64)
    more = len(ignored)
    return KittiObjects(
        types=(*rows.types, *("DontCare" for _ in range(more))),
        truncated=np.concatenate([np.zeros(len(rows)), np.full(more, -1.0)]),
        occluded=np.concatenate([np.zeros(len(rows), np.int64), np.full(more, -1)]),
        alpha_rad=np.concatenate([rows.alpha_rad, np.full(more, UNKNOWN_ALPHA_RAD)]),
        xyxy=np.concatenate([rows.xyxy, ignored]),
        size_hwl_m=np.concatenate([rows.size_hwl_m, np.full((more, 3), UNKNOWN_SIZE_M)]),
        location_m=np.concatenate([rows.location_m, np.full((more, 3), UNKNOWN_LOCATION_M)]),
        yaw_rad=np.concatenate([rows.yaw_rad, np.full(more, UNKNOWN_YAW_RAD)]),
        scores=None,
    )


def ground_truth(samples: SampleSource, spec: ModelSpec) -> dict[str, Any]:
    """Samples as a COCO annotation file's content, for data without; image ids count from 1, areas are boxes'."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(len(samples)):
        sample = samples.sample(index)
        height, width = sample.image.shape[:2]
        images.append({"id": index + 1, "width": width, "height": height})
        for row, (left, top, right, bottom) in enumerate(sample.boxes_xyxy.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": int(sample.class_ids[row]) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    "keypoints": sample.keypoints[row].ravel().tolist(),
                    "num_keypoints": int((sample.keypoints[row, :, 2] > 0).sum()),
                }
            )
        for left, top, right, bottom in sample.ignore_xyxy.tolist():
            # A crowd of every class: nobody knows which of them is there.
            annotations += [
                {
                    "id": len(annotations) + category_id,
                    "image_id": index + 1,
                    "category_id": category_id,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 1,
                    "keypoints": [0.0] * (3 * spec.num_keypoints),
                    "num_keypoints": 0,
                }
                for category_id in range(1, len(spec.class_names) + 1)
            ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(spec.class_names)]
    return {"images": images, "annotations": annotations, "categories": categories}
