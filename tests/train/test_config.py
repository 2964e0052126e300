from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import ConfigError
from train.config import PRESETS, TrainConfig, config_from_dict, config_to_dict, override, preset
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


def test_an_unknown_preset_names_the_known() -> None:
    with pytest.raises(ConfigError, match="no preset 'fast'; there are paper-detection, person-pose, synthetic-pose"):
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
        ("optimizer", "sgd", "optimizer='sgd'; expected one of adam, adamw"),
        ("positive_cells", "2", "positive_cells=2; expected one of 1, 3"),
        ("gaussian", "square", "expected one of circle, ellipse"),
        ("task", "segmentation", "expected one of detection, pose, 3d"),
        ("task", "3d", "3D boxes comes in a later version"),
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
