from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import ConfigError
from train.config import PRESETS, TrainConfig, config_from_dict, config_to_dict, depth_focal_px, override, preset
from train.models import ARCHITECTURES


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_sound(name: str) -> None:
    config = preset(name)
    assert config.architecture in ARCHITECTURES
    assert config_from_dict(config_to_dict(config)) == config


def test_the_defaults_are_the_papers() -> None:
    config = TrainConfig()
    assert (config.size_weight, config.offset_weight, config.optimizer) == (0.1, 1.0, "adam")
    assert (config.flip, config.scale_range, config.size) == (0.5, (0.6, 1.3), (512, 512))
    assert (config.gaussian, config.positive_cells, config.size_activation) == ("circle", 1, "none")
    assert config.learning_rate == pytest.approx(5e-4 * config.batch / 128)


@pytest.mark.parametrize(
    ("name", "batch", "rate", "epochs", "drops", "size"),
    [
        ("paper-detection", 128, 5e-4, 140, (90, 120), (512, 512)),
        ("paper-detection-hourglass", 29, 2.5e-4, 50, (40,), (512, 512)),
        ("paper-pose", 128, 5e-4, 320, (270, 300), (512, 512)),
        ("paper-kitti", 16, 1.25e-4, 70, (45, 60), (1280, 384)),
        ("paper-voc", 32, 1.25e-4, 70, (45, 60), (384, 384)),
    ],
)
def test_presets_have_the_papers_schedules(
    name: str, batch: int, rate: float, epochs: int, drops: tuple[int, ...], size: tuple[int, int]
) -> None:
    config = preset(name)
    assert (config.batch, config.learning_rate, config.epochs, config.size) == (batch, rate, epochs, size)
    assert [round(at * config.epochs) for at in config.drop_at] == list(drops)
    # No deviation of ours: circles, one cell an object, values in cells, nothing but Adam.
    assert (config.gaussian, config.positive_cells, config.giou_weight) == ("circle", 1, 0)
    assert (config.size_activation, config.keypoint_activation) == ("none", "none")
    assert (config.optimizer, config.schedule, config.mosaic, config.ema_decay) == ("adam", "step", 0, 0)


def test_boxes_in_space_are_trained_on_pictures_as_they_are() -> None:
    config = preset("paper-kitti")
    assert (config.crop, config.scale_range, config.flip, config.colour) == (False, (1, 1), 0, 0)
    assert (config.depth_weight, config.rotation_weight, config.dimensions_weight) == (1, 1, 1)


def test_depths_are_learnt_for_one_focal_length() -> None:
    assert depth_focal_px(replace(TrainConfig(), size=(640, 192))) == 640
    assert depth_focal_px(replace(TrainConfig(), focal_px=721.5)) == 721.5


def test_what_contradicts_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"crop=false shows whole pictures.*set mosaic=0 and scale_range=1,1"):
        override(TrainConfig(), {"crop": "false"})
    with pytest.raises(ConfigError, match="crop=false"):
        override(TrainConfig(), {"crop": "false", "scale_range": "1,1", "mosaic": "0.5"})
    with pytest.raises(
        ConfigError, match=r"mosaic=0.5 makes one picture of four cameras; for task pose\+3d it must be 0"
    ):
        override(TrainConfig(), {"task": "pose+3d", "mosaic": "0.5"})


def test_an_unknown_preset_names_the_known() -> None:
    with pytest.raises(
        ConfigError, match=r"no preset 'fast'; there are paper-detection, .*person-pose, .*synthetic-pose"
    ):
        preset("fast")


def test_text_becomes_values_of_the_fields_type() -> None:
    config = override(
        TrainConfig(),
        {
            "size": "320x192",
            "max_steps": "2000",
            "learning_rate": "2e-3",
            "architecture": "edge_n",
            "classes": "person,dog",
            "scale_range": "0.5,2",
            "small_size_until": "0.4:192x160,0.7:256x256",
            "positive_cells": "3",
        },
    )
    assert config.size == (320, 192)
    assert config.max_steps == 2000 and isinstance(config.max_steps, int)
    assert config.learning_rate == 2e-3
    assert config.classes == ("person", "dog")
    assert config.scale_range == (0.5, 2.0)
    assert config.small_size_until == ((0.4, 192, 160), (0.7, 256, 256))
    assert config.positive_cells == 3
    assert override(config, {"classes": "", "small_size_until": ""}).small_size_until == ()


@given(
    batch=st.integers(1, 512),
    rate=st.floats(1e-6, 1.0),
    seed=st.integers(0, 2**31),
    low=st.floats(0.1, 1.0),
    high=st.floats(1.0, 4.0),
)
def test_any_value_survives_its_text(batch: int, rate: float, seed: int, low: float, high: float) -> None:
    wanted = replace(TrainConfig(), batch=batch, learning_rate=rate, seed=seed, scale_range=(low, high))
    texts = {"batch": str(batch), "learning_rate": repr(rate), "seed": str(seed), "scale_range": f"{low!r},{high!r}"}
    assert override(TrainConfig(), texts) == wanted


def test_an_unknown_field_names_the_known() -> None:
    with pytest.raises(ConfigError, match=r"no training option 'lr'; there are .*learning_rate"):
        override(TrainConfig(), {"lr": "1"})
    with pytest.raises(ConfigError, match=r"unknown options \['lr'\]; it comes from another version"):
        config_from_dict({"lr": 1})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("batch", "many", "batch='many' is no value of this option; expected int"),
        ("batch", "1.5", "expected int"),
        ("learning_rate", "fast", "expected float"),
        ("size", "320", "size='320' is no value of this option; expected WxH"),
        ("size", "axb", "expected WxH"),
        ("small_size_until", "0.4", "expected 0.4:192x192,0.7:256x256"),
        ("size", "100x100", "100x100 must be a multiple of 32"),
        ("size", "0x32", "0x32 must be a multiple of 32"),
        ("small_size_until", "0.5:100x100", "100x100 must be a multiple of 32"),
        ("batch", "0", "batch=0 must be at least 1"),
        ("held_back", "0", "held_back=0 must be at least 1"),
        ("max_steps", "-1", "max_steps=-1 must not be negative"),
        ("workers", "-1", "must not be negative"),
        ("learning_rate", "0", "learning_rate=0.0 must be positive"),
        ("learning_rate", "nan", "must be positive"),
        ("gradient_clip", "0", "must be positive"),
        ("flip", "1.5", r"flip=1.5 is a probability; it lies in 0\.\.1"),
        ("ema_decay", "1", "ema_decay=1.0 must lie in"),
        ("decay_from", "1", "decay_from=1.0 must lie in"),
        ("scale_range", "1", "scale_range=.*expected the smallest and the largest"),
        ("scale_range", "0,1", "scale_range"),
        ("scale_range", "2,1", "scale_range"),
        ("optimizer", "rmsprop", "optimizer='rmsprop'; expected one of adam, adamw, sgd"),
        ("positive_cells", "2", "positive_cells=2; expected one of 1, 3"),
        ("gaussian", "square", "expected one of circle, ellipse"),
        ("task", "segmentation", "expected one of detection, pose, 3d"),
        ("task", "3d+pose", "expected one of detection, pose, 3d, pose"),
        ("size_loss", "l2", "expected one of l1, smooth_l1"),
        ("crop", "maybe", "crop='maybe' is no value of this option; expected bool"),
        ("focal_px", "-1", "must not be negative"),
    ],
)
def test_wrong_values_are_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(TrainConfig(), {name: text})


def test_every_field_can_be_set() -> None:
    config = preset("person-pose")
    for field in fields(TrainConfig):
        value = getattr(config, field.name)
        if field.name == "size":
            text = f"{value[0]}x{value[1]}"
        elif field.name == "small_size_until":
            text = ",".join(f"{until}:{width}x{height}" for until, width, height in value)
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert override(config, {field.name: text}) == config
