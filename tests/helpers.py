"""Builders shared by the tests: small specs, heads whose answer is known, and files as users have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from sdk.results import Detections, Keypoints
from sdk.spec import HeadSpec, InputSpec, ModelSpec

Array = npt.NDArray[Any]
Heads = dict[str, Array]


def tiny_spec(**changes: Any) -> ModelSpec:
    """64x64 pixels, 16x16 cells, classes cat and dog; the sizes are in cells."""
    values: dict[str, Any] = {
        "name": "tiny",
        "tasks": ("detection",),
        "input": InputSpec(64, 64),
        "stride": 4,
        "heads": (HeadSpec("heatmap", 2, "sigmoid"), HeadSpec("offset", 2, "none"), HeadSpec("size", 2, "none")),
        "class_names": ("cat", "dog"),
    }
    return ModelSpec(**{**values, **changes})


def pose_spec(*, num_keypoints: int = 3, joints: bool = True, **changes: Any) -> ModelSpec:
    """64x64 pixels, people with a few keypoints; with `joints`, also the heatmap of joints and its offset."""
    heads = [
        HeadSpec("heatmap", 1, "sigmoid"),
        HeadSpec("offset", 2, "none"),
        HeadSpec("size", 2, "none"),
        HeadSpec("keypoint_offset", 2 * num_keypoints, "none"),
    ]
    if joints:
        heads += [
            HeadSpec("keypoint_heatmap", num_keypoints, "sigmoid"),
            HeadSpec("keypoint_heatmap_offset", 2, "none"),
        ]
    values: dict[str, Any] = {
        "tasks": ("detection", "pose"),
        "name": "tiny-pose",
        "heads": tuple(heads),
        "class_names": ("person",),
        "keypoint_names": tuple(f"joint_{i}" for i in range(num_keypoints)),
    }
    return tiny_spec(**{**values, **changes})


@dataclass(frozen=True)
class Peak:
    """An object in the feature frame: class, cell, score, offset (x, y), and width and height in cells."""

    class_id: int
    cell_yx: tuple[int, int]
    score: float
    offset_xy: tuple[float, float] = (0.5, 0.5)
    size_wh: tuple[float, float] = (4.0, 2.0)


THREE_PEAKS = (
    Peak(0, (3, 4), 0.9, (0.25, 0.75), (4.0, 2.0)),
    Peak(1, (10, 12), 0.6, (0.5, 0.5), (3.0, 5.0)),
    Peak(1, (14, 2), 0.4, (0.0, 0.9), (2.0, 2.0)),
)


def empty_heads(spec: ModelSpec, *, score: float = 0.001) -> Heads:
    """Heads (1, C, h, w) that find nothing: heatmaps at a low score, everything else 0."""
    width, height = spec.feature_wh
    return {
        head.name: np.full(
            (1, head.channels, height, width), logit(score) if head.activation == "sigmoid" else 0.0, np.float32
        )
        for head in spec.heads
    }


def heads_with_peaks(spec: ModelSpec, peaks: Sequence[Peak] = THREE_PEAKS) -> Heads:
    """Heads that hold exactly these objects; their size head is linear."""
    heads = empty_heads(spec)
    for peak in peaks:
        y, x = peak.cell_yx
        heads["heatmap"][0, peak.class_id, y, x] = logit(peak.score)
        heads["offset"][0, :, y, x] = peak.offset_xy
        heads["size"][0, :, y, x] = peak.size_wh
    return heads


def logit(score: Any) -> Any:
    return np.log(score) - np.log1p(-np.asarray(score, np.float64))


class FakeBackend:
    """A backend without a network: it answers what `heads` gives for the letterboxed frame.

    Args:
        spec: of the model it stands for.
        heads: the answer, or a function of the (1, h, w, 3) uint8 input.
    """

    inputs = ("frame",)

    def __init__(self, spec: ModelSpec, heads: Heads | Callable[[Array], Heads]) -> None:
        self.spec = spec
        self.outputs = tuple(head.name for head in spec.heads)
        self.closed = False
        self._heads = heads

    def infer(self, feeds: Mapping[str, Array]) -> Heads:
        frame = feeds["frame"]
        assert frame.dtype == np.uint8 and frame.shape == (1, self.spec.input.height, self.spec.input.width, 3)
        return self._heads(frame) if callable(self._heads) else self._heads

    def close(self) -> None:
        self.closed = True


def make_detections(
    xyxy: Sequence[Sequence[float]],
    scores: Sequence[float] | None = None,
    class_ids: Sequence[int] | None = None,
    *,
    class_names: tuple[str, ...] = ("cat", "dog"),
    keypoints_xy: Array | None = None,
) -> Detections:
    """Detections from plain lists; scores fall from 0.9, classes are 0, unless they are given."""
    count = len(xyxy)
    keypoints = None
    if keypoints_xy is not None:
        keypoints = Keypoints(keypoints_xy.astype(np.float32), np.ones(keypoints_xy.shape[:2], np.float32))
    return Detections(
        np.array(xyxy, np.float32).reshape(count, 4),
        np.array(0.9 - 0.01 * np.arange(count) if scores is None else scores, np.float32),
        np.array(np.zeros(count) if class_ids is None else class_ids, np.int64),
        class_names,
        keypoints,
    )


def coco_json(
    annotations: Sequence[Mapping[str, Any]],
    *,
    image_ids: Sequence[int] = (1,),
    class_names: Sequence[str] = ("cat", "dog"),
    wh: tuple[int, int] = (64, 48),
) -> dict[str, Any]:
    """A COCO annotation file's content; annotations get an id, image 1 and category 1 unless they say otherwise."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": wh[0], "height": wh[1]} for i in image_ids],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, **row} for i, row in enumerate(annotations, 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(class_names, 1)],
    }


def write_coco_folder(folder: Path, data: Mapping[str, Any], *, kind: str = "instances") -> tuple[Path, Path]:
    """A COCO folder with its `train` split; returns the photographs' folder and the annotation file."""
    images, annotations = folder / "train", folder / "annotations" / f"{kind}_train.json"
    images.mkdir(parents=True)
    annotations.parent.mkdir()
    for image in data["images"]:
        picture = np.full((image["height"], image["width"], 3), 40 + image["id"], np.uint8)
        assert cv2.imwrite(str(images / image["file_name"]), picture)
    annotations.write_text(json.dumps(data))
    return images, annotations
