from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.errors import SdkError, SpecError, SpecVersionError
from sdk.spec import (
    COCO_FLIP_PAIRS,
    COCO_KEYPOINT_NAMES,
    COCO_OKS_SIGMAS,
    COCO_SKELETON,
    HeadSpec,
    InputSpec,
    ModelSpec,
)
from tests.helpers import pose_spec, tiny_spec


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    stride = draw(st.sampled_from([1, 2, 4, 8]))
    cells = st.integers(1, 64)
    class_names = draw(st.lists(st.text(min_size=1), min_size=1, max_size=5).map(tuple))
    keypoints = draw(st.lists(st.text(), max_size=4).map(tuple))
    heads = [
        HeadSpec("heatmap", len(class_names), "sigmoid"),
        HeadSpec("size", 2, draw(st.sampled_from(["none", "exp"]))),
    ]
    if draw(st.booleans()):
        heads.append(HeadSpec("offset", 2, "none"))
    if keypoints:
        heads.append(HeadSpec("keypoint_offset", 2 * len(keypoints), draw(st.sampled_from(["none", "box"]))))
    decoding = draw(st.sampled_from(["paper", "centernet"]))
    focal_px = None
    if draw(st.booleans()):
        heads += [
            HeadSpec("depth", 1, "inverse_sigmoid"),
            HeadSpec("rotation", 8, "none"),
            HeadSpec("dimensions", 3, draw(st.sampled_from(["none", "exp"]))),
        ]
        focal_px = draw(st.none() | st.floats(1, 5000)) if decoding == "paper" else None
    index = st.integers(0, max(0, len(keypoints) - 1))
    pairs = st.lists(st.tuples(index, index), max_size=3).map(tuple) if keypoints else st.just(())
    number = st.floats(allow_nan=False, allow_infinity=False)
    positive = st.floats(min_value=1e-3, max_value=1e3)
    return ModelSpec(
        name=draw(st.text(min_size=1)),
        tasks=("detection", "pose") if keypoints else ("detection",),
        input=InputSpec(
            stride * draw(cells),
            stride * draw(cells),
            draw(st.tuples(number, number, number)),
            draw(st.tuples(positive, positive, positive)),
            draw(st.sampled_from(["bgr", "rgb"])),
            draw(st.sampled_from(["letterbox", "longest_side", "width"])),
        ),
        stride=stride,
        heads=tuple(heads),
        class_names=class_names,
        output=draw(st.sampled_from(["dense", "peaks"])),
        keypoint_names=keypoints,
        keypoint_flip_pairs=draw(pairs),
        skeleton=draw(pairs),
        oks_sigmas=tuple(draw(positive) for _ in keypoints),
        max_detections=draw(st.integers(1, 500)),
        decoding=decoding,
        focal_px=focal_px,
        score_threshold=draw(st.floats(0, 1)),
        precision=draw(st.sampled_from(["fp32", "fp16", "int8"])),
        trained_on=draw(st.text()),
    )


@given(spec=specs())
def test_json_round_trip(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_json_is_plain_and_versioned() -> None:
    data = json.loads(tiny_spec().to_json())
    assert data["spec_version"] == 1
    assert data["class_names"] == ["cat", "dog"]
    assert data["input"]["width"] == 64


def test_a_spec_from_before_there_were_focal_lengths_still_loads() -> None:
    data = json.loads(tiny_spec().to_json())
    del data["focal_px"]
    spec = ModelSpec.from_dict(data)
    assert spec == tiny_spec() and spec.focal_px is None


def test_sizes_and_heads_are_found_by_name() -> None:
    spec = tiny_spec(input=InputSpec(128, 64))
    assert spec.input.wh == (128, 64)
    assert spec.feature_wh == (32, 16)
    assert spec.head("size").channels == 2
    assert spec.has_head("offset") and not spec.has_head("depth")
    assert spec.with_input_size(320, 192).feature_wh == (80, 48)
    with pytest.raises(SpecError, match=r"no head 'depth'; it has heatmap, offset, size"):
        spec.head("depth")


def test_is_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        tiny_spec().name = "other"  # type: ignore[misc]


def test_coco_constants_agree_with_each_other() -> None:
    assert len(COCO_KEYPOINT_NAMES) == len(COCO_OKS_SIGMAS) == 17
    for left, right in COCO_FLIP_PAIRS:
        assert COCO_KEYPOINT_NAMES[left].replace("left", "right") == COCO_KEYPOINT_NAMES[right]
        assert COCO_OKS_SIGMAS[left] == COCO_OKS_SIGMAS[right]
    assert {i for bone in COCO_SKELETON for i in bone} == set(range(17))


def _as_dict(**changes: Any) -> dict[str, Any]:
    return {**json.loads(tiny_spec().to_json()), **changes}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", SpecError, r"not valid JSON .* export the model again"),
        ("[1]", SpecError, "JSON object, got list"),
        (json.dumps(_as_dict(spec_version=99)), SpecVersionError, r"version 99, .* reads version 1; upgrade"),
        ("{}", SpecVersionError, "version None"),
        (json.dumps(_as_dict(colour="red")), SpecError, r"unknown fields \['colour'\]; known are"),
        (json.dumps(_as_dict(heads=[{"name": "heatmap"}])), SpecError, "incomplete or malformed"),
        (json.dumps(_as_dict(heads=7)), SpecError, "incomplete or malformed"),
        (json.dumps(_as_dict(input="64x64")), SpecError, "incomplete or malformed"),
        (json.dumps(_as_dict(input={"width": 64})), SpecError, "incomplete or malformed .*height"),
        (json.dumps({"spec_version": 1, "name": "x"}), SpecError, "incomplete or malformed"),
        (json.dumps(_as_dict(score_threshold="high")), SpecError, "incomplete or malformed"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, error: type[SdkError], message: str) -> None:
    with pytest.raises(error, match=message):
        ModelSpec.from_json(text)


_HEADS = tiny_spec().heads
_HEADS_3D = (*_HEADS, HeadSpec("depth", 1, "inverse_sigmoid"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"input": InputSpec(63, 64)}, "63x64 is no multiple of the stride 4"),
        ({"input": InputSpec(0, 64)}, "at least 1, got 0"),
        ({"stride": 4.0}, "at least 1, got 4.0"),
        ({"max_detections": 0}, "at least 1, got 0"),
        ({"input": InputSpec(64, 64, std=(1.0, 0.0, 1.0))}, "std must be positive"),
        ({"input": InputSpec(64, 64, channel_order="gbr")}, "'gbr', expected one of bgr, rgb"),
        ({"tasks": ("segmentation",)}, "task is 'segmentation', expected one of detection, pose, 3d"),
        ({"tasks": ()}, "no task"),
        ({"tasks": ("pose",)}, "task 'pose' needs .*'keypoint_offset'"),
        ({"output": "sparse"}, "'sparse', expected one of dense, peaks"),
        ({"score_threshold": 1.5}, r"0\.\.1, got 1.5"),
        ({"class_names": ()}, "declares no classes"),
        ({"class_names": ("cat",)}, "head 'heatmap' of 'tiny' has 2 channels, its 1 classes .* ask for 1"),
        ({"heads": _HEADS[:2]}, "no 'size' head"),
        ({"heads": (*_HEADS, _HEADS[1])}, "names a head twice"),
        ({"heads": (*_HEADS, HeadSpec("hm", 1, "none"))}, "head is 'hm', expected one of heatmap"),  # type: ignore[arg-type]
        ({"heads": (_HEADS[0], replace(_HEADS[2], activation="sigmoid"))}, "activation of size is 'sigmoid'"),
        ({"heads": (*_HEADS, HeadSpec("keypoint_offset", 34, "none"))}, "0 keypoints ask for 0"),
        (
            {"input": InputSpec(64, 64, fit="stretch")},
            "fit is 'stretch', expected one of letterbox, longest_side, width",
        ),
        ({"focal_px": 700.0}, "focal_px is 700.0, but model 'tiny' has no 'depth' head"),
        ({"focal_px": 0.0, "heads": _HEADS_3D}, "focal_px must be a positive number of pixels, got 0.0"),
        ({"focal_px": float("nan"), "heads": _HEADS_3D}, "focal_px must be a positive"),
        ({"focal_px": float("inf"), "heads": _HEADS_3D}, "focal_px must be a positive"),
        ({"focal_px": 700.0, "heads": _HEADS_3D, "decoding": "centernet"}, "focal_px is for decoding 'paper'"),
        ({"tasks": ("3d",)}, "task '3d' needs the heads .*'depth', 'rotation', 'dimensions'"),
        ({"skeleton": ((0, 1),)}, r"bone \(0, 1\) names a keypoint"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        tiny_spec(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"oks_sigmas": (0.1,)}, "1 OKS sigmas for 3 keypoints"),
        ({"keypoint_flip_pairs": ((0, 3),)}, r"flip pair \(0, 3\) names a keypoint outside 0\.\.2"),
        ({"skeleton": ((0, 1, 2),)}, "bone"),
    ],
)
def test_contradicting_keypoints_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        pose_spec(**changes)
