from __future__ import annotations

from dataclasses import replace

import pytest

from sdk.errors import ConfigError
from sdk.spec import ModelSpec
from train.config import TASKS, TrainConfig
from train.samples import COCO_KEYPOINTS, NO_KEYPOINTS, KeypointSchema
from train.specs import spec_from_config

HEADS = {
    "pose": {"keypoint_offset": 34, "keypoint_heatmap": 17, "keypoint_heatmap_offset": 2},
    "3d": {"depth": 1, "rotation": 8, "dimensions": 3},
}


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_its_heads_on_one_backbone(task: str) -> None:
    spec = spec_from_config(replace(TrainConfig(), task=task), ("a", "b"), COCO_KEYPOINTS, trained_on="nothing")
    expected = {"heatmap": 2, "offset": 2, "size": 2}
    for part in task.split("+"):
        expected |= HEADS.get(part, {})
    assert {head.name: head.channels for head in spec.heads} == expected
    assert set(spec.tasks) == {"detection", *task.split("+")}
    assert spec.keypoint_names == (COCO_KEYPOINTS.names if "pose" in task else ())
    assert spec.focal_px == (512.0 if "3d" in task else None)
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_keypoints_are_those_of_the_data() -> None:
    hands = KeypointSchema(("wrist", "left_tip", "right_tip"), ((1, 2),), ((0, 1), (0, 2)), (0.05, 0.06, 0.06))
    spec = spec_from_config(replace(TrainConfig(), task="pose"), ("hand",), hands, trained_on="")
    assert spec.head("keypoint_heatmap").channels == 3 and spec.head("keypoint_offset").channels == 6
    assert (spec.keypoint_names, spec.keypoint_flip_pairs) == (hands.names, hands.flip_pairs)
    assert (spec.skeleton, spec.oks_sigmas) == (hands.skeleton, hands.oks_sigmas)


def test_poses_need_keypoints() -> None:
    with pytest.raises(ConfigError, match="task pose needs keypoints, and the data has none; set task=detection"):
        spec_from_config(replace(TrainConfig(), task="pose"), ("person",), NO_KEYPOINTS, trained_on="")


def test_depths_are_learnt_for_the_focal_length_of_the_config() -> None:
    config = replace(TrainConfig(), task="3d", size=(1280, 384))
    assert spec_from_config(config, ("Car",), trained_on="").focal_px == 1280
    assert spec_from_config(replace(config, focal_px=738.9), ("Car",), trained_on="").focal_px == 738.9
