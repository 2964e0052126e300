"""Accuracy of weights in training: the SDK's detector and metrics on a PyTorch backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sdk.backends import Arrays
from sdk.detector import Detector
from sdk.metrics import CocoResults
from sdk.spec import ModelSpec

from .coco import CocoData
from .config import TrainConfig
from .models import build_model
from .preprocessing import normalised
from .samples import SampleSource


class TorchBackend:
    """A PyTorch model as an `sdk.backends.Backend`, so that one detector serves both.

    Args:
        model: in evaluation mode.
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
        """Raw outputs for `frame`, (B, h, w, 3) uint8."""
        images = torch.from_numpy(np.ascontiguousarray(feeds["frame"])).to(self._device)
        heads: dict[str, Tensor] = self._model(normalised(images, self.spec))
        return {name: head.float().cpu().contiguous().numpy() for name, head in heads.items()}

    def close(self) -> None:
        """Nothing is held but memory."""


def evaluate_weights(
    weights: dict[str, Tensor], spec: ModelSpec, config: TrainConfig, samples: SampleSource
) -> dict[str, float]:
    """Box AP and AP50, and for poses keypoint AP, of weights on samples; 0 where there is no ground truth."""
    model = build_model(config.architecture, spec.heads)
    model.load_state_dict(weights)
    detector = Detector(TorchBackend(model, spec, device=config.device), score_threshold=0.0)
    truth = samples.ground_truth() if isinstance(samples, CocoData) else ground_truth(samples, spec)
    results = CocoResults.for_spec(truth, spec)
    for index in range(len(samples)):
        results.add(index + 1, detector(samples.sample(index).image))
    figures = results.evaluate()
    out = {"AP": figures["bbox"]["AP"] or 0.0, "AP50": figures["bbox"]["AP50"] or 0.0}
    if "keypoints" in figures:
        out["keypoint_AP"] = figures["keypoints"]["AP"] or 0.0
    return out


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
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 1,
                    "keypoints": [0.0] * (3 * spec.num_keypoints),
                    "num_keypoints": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(spec.class_names)]
    return {"images": images, "annotations": annotations, "categories": categories}
