"""The ModelSpec of a model that is about to be trained."""

from __future__ import annotations

from sdk.spec import (
    COCO_FLIP_PAIRS,
    COCO_KEYPOINT_NAMES,
    COCO_OKS_SIGMAS,
    COCO_SKELETON,
    HeadSpec,
    InputSpec,
    ModelSpec,
)

from .config import TrainConfig

STRIDE = 4  # R of the paper (sec. 3), of every network here


def spec_from_config(config: TrainConfig, class_names: tuple[str, ...], *, trained_on: str) -> ModelSpec:
    """Heads and activations as the config asks; mean 0, so that the scale folds into the first convolution."""
    pose = config.task == "pose"
    heads = [
        HeadSpec("heatmap", len(class_names), "sigmoid"),
        HeadSpec("offset", 2, "none"),
        HeadSpec("size", 2, config.size_activation),
    ]
    if pose:
        keypoints = len(COCO_KEYPOINT_NAMES)
        heads += [
            HeadSpec("keypoint_offset", 2 * keypoints, config.keypoint_activation),
            HeadSpec("keypoint_heatmap", keypoints, "sigmoid"),
            HeadSpec("keypoint_heatmap_offset", 2, "none"),
        ]
    return ModelSpec(
        name=config.name,
        tasks=("detection", "pose") if pose else ("detection",),
        input=InputSpec(width=config.size[0], height=config.size[1]),
        stride=STRIDE,
        heads=tuple(heads),
        class_names=class_names,
        keypoint_names=COCO_KEYPOINT_NAMES if pose else (),
        keypoint_flip_pairs=COCO_FLIP_PAIRS if pose else (),
        skeleton=COCO_SKELETON if pose else (),
        oks_sigmas=COCO_OKS_SIGMAS if pose else (),
        trained_on=trained_on,
    )
