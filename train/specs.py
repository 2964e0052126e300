"""The ModelSpec of a model that is about to be trained."""

from __future__ import annotations

from sdk.errors import ConfigError
from sdk.spec import HeadSpec, InputSpec, ModelSpec, Task

from .config import TrainConfig, depth_focal_px
from .samples import NO_KEYPOINTS, KeypointSchema

STRIDE = 4  # R of the paper (sec. 3), of every network here


def spec_from_config(
    config: TrainConfig,
    class_names: tuple[str, ...],
    keypoints: KeypointSchema = NO_KEYPOINTS,
    *,
    trained_on: str,
) -> ModelSpec:
    """Heads and activations as the config asks; mean 0, so that the scale folds into the first convolution.

    A run that starts from weights takes over the mean and std that they were learnt with.

    Args:
        config: of the run.
        class_names: of the data.
        keypoints: of the data; used where the task has poses.
        trained_on: a line about the data.

    Raises:
        ConfigError: the task has poses, and the data no keypoints.
    """
    pose, in_space = "pose" in config.task, "3d" in config.task
    if pose and not len(keypoints):
        raise ConfigError(f"task {config.task} needs keypoints, and the data has none; set task=detection or task=3d")
    tasks: list[Task] = ["detection"]
    heads = [
        HeadSpec("heatmap", len(class_names), "sigmoid"),
        HeadSpec("offset", 2, "none"),
        HeadSpec("size", 2 * len(class_names) if config.class_sizes else 2, config.size_activation),
    ]
    if pose:
        tasks.append("pose")
        heads += [
            HeadSpec("keypoint_offset", 2 * len(keypoints), config.keypoint_activation),
            HeadSpec("keypoint_heatmap", len(keypoints), "sigmoid"),
            HeadSpec("keypoint_heatmap_offset", 2, "none"),
        ]
    if in_space:
        tasks.append("3d")
        heads += [
            HeadSpec("depth", 1, "inverse_sigmoid"),
            HeadSpec("rotation", 8, "none"),
            HeadSpec("dimensions", 3, "none"),
        ]
    schema = keypoints if pose else NO_KEYPOINTS
    return ModelSpec(
        name=config.name,
        tasks=tuple(tasks),
        input=InputSpec(width=config.size[0], height=config.size[1]),
        stride=STRIDE,
        heads=tuple(heads),
        class_names=class_names,
        keypoint_names=schema.names,
        keypoint_flip_pairs=schema.flip_pairs,
        skeleton=schema.skeleton,
        oks_sigmas=schema.oks_sigmas,
        focal_px=depth_focal_px(config) if in_space else None,
        trained_on=trained_on,
    )
