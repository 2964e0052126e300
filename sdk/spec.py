"""The one contract: what a model takes, what it gives, and how to read it.

A `ModelSpec` travels inside every artefact (checkpoint, ONNX metadata, engine sidecar), so that nobody
has to remember a mean, a class name or a size::

    spec = ModelSpec.from_json(text)
    spec.input.wh, spec.head("heatmap").channels
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast, get_args

from .errors import SpecError, SpecVersionError

SPEC_VERSION = 1
ONNX_METADATA_KEY = "centeredge.spec"

Task = Literal["detection", "pose", "3d"]
HeadName = Literal[
    "heatmap",
    "offset",
    "size",
    "keypoint_offset",
    "keypoint_heatmap",
    "keypoint_heatmap_offset",
    "depth",
    "rotation",
    "dimensions",
]
# What turns a raw output into its meaning. `sigmoid`: a score. `none`: already in feature cells.
# `exp`: the raw output is a logarithm (of a size in feature cells). `box`: the raw output is in units of
# the object's own width and height. `inverse_sigmoid`: depth as 1 / sigmoid(x) - 1 (paper, sec. 4.1).
Activation = Literal["none", "sigmoid", "exp", "box", "inverse_sigmoid"]
OutputForm = Literal["dense", "peaks"]
Fit = Literal["letterbox", "longest_side", "width"]
Decoding = Literal["paper", "centernet"]
Precision = Literal["fp32", "fp16", "int8"]

_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "heatmap": ("sigmoid",),
    "offset": ("none",),
    "size": ("none", "exp"),
    "keypoint_offset": ("none", "box"),
    "keypoint_heatmap": ("sigmoid",),
    "keypoint_heatmap_offset": ("none",),
    "depth": ("inverse_sigmoid",),
    "rotation": ("none",),
    "dimensions": ("none", "exp"),
}
_HEADS_OF_TASK: dict[Task, tuple[HeadName, ...]] = {
    "detection": (),
    "pose": ("keypoint_offset",),
    "3d": ("depth", "rotation", "dimensions"),
}


@dataclass(frozen=True)
class InputSpec:
    """The frame that the network takes.

    The network sees `(pixel / 255 - mean) / std`, channel by channel in `channel_order`; that happens
    inside the exported graph. `fit` says how a frame of another shape is brought to `width` x `height`:
    `letterbox` scales it as a whole and centres it on black. The other two are the official code's: one warp
    around the centre that brings the `longest_side`, or the `width`, of the frame to the input's width; what
    goes beyond the input's height is cut.
    """

    width: int
    height: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_order: Literal["bgr", "rgb"] = "bgr"
    fit: Fit = "letterbox"

    @property
    def wh(self) -> tuple[int, int]:
        return self.width, self.height


@dataclass(frozen=True)
class HeadSpec:
    """One output of the network: its name, channels, and the activation that gives it meaning."""

    name: HeadName
    channels: int
    activation: Activation


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to run a model and to read its outputs; immutable, JSON in and out.

    `focal_px` is the focal length, in input pixels, with which the depth head sees the world: a depth of d means
    d * f / focal_px metres under a focal length of f. None takes depths as they are.

    Raises:
        SpecError: on construction, when a field contradicts another.
    """

    name: str
    tasks: tuple[Task, ...]
    input: InputSpec
    stride: int
    heads: tuple[HeadSpec, ...]
    class_names: tuple[str, ...]
    output: OutputForm = "dense"
    keypoint_names: tuple[str, ...] = ()
    keypoint_flip_pairs: tuple[tuple[int, int], ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    oks_sigmas: tuple[float, ...] = ()
    max_detections: int = 100
    max_joint_candidates: int = 100
    decoding: Decoding = "paper"
    focal_px: float | None = None
    score_threshold: float = 0.3
    precision: Precision = "fp32"
    trained_on: str = ""

    def __post_init__(self) -> None:
        self._check_sizes()
        self._check_heads()
        self._check_tasks()
        self._check_depth()
        self._check_keypoints()

    def head(self, name: HeadName) -> HeadSpec:
        """The head of that name.

        Raises:
            SpecError: the model has no such head.
        """
        for head in self.heads:
            if head.name == name:
                return head
        raise SpecError(f"model {self.name!r} has no head {name!r}; it has {', '.join(h.name for h in self.heads)}")

    def has_head(self, name: HeadName) -> bool:
        return any(head.name == name for head in self.heads)

    @property
    def feature_wh(self) -> tuple[int, int]:
        """Width and height of the output maps, in feature cells."""
        return self.input.width // self.stride, self.input.height // self.stride

    @property
    def num_keypoints(self) -> int:
        return len(self.keypoint_names)

    def with_input_size(self, width: int, height: int) -> ModelSpec:
        """The same model for frames of another size (pixels)."""
        return replace(self, input=replace(self.input, width=width, height=height))

    def to_dict(self) -> dict[str, Any]:
        return {"spec_version": SPEC_VERSION, **asdict(self)}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read a spec back.

        Raises:
            SpecError: not JSON, a missing or unknown field, or fields that contradict each other.
            SpecVersionError: written by a newer version of CenterEdge.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as err:
            raise SpecError(f"the ModelSpec is not valid JSON ({err}); export the model again") from err
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelSpec:
        """As `from_json`, from the parsed object."""
        if not isinstance(data, Mapping):
            raise SpecError(f"a ModelSpec is a JSON object, got {type(data).__name__}")
        values = dict(data)
        version = values.pop("spec_version", None)
        if version != SPEC_VERSION:
            raise SpecVersionError(
                f"the ModelSpec has version {version!r}, this CenterEdge reads version {SPEC_VERSION}; "
                "upgrade CenterEdge or export the model again"
            )
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise SpecError(f"the ModelSpec has unknown fields {unknown}; known are {sorted(known)}")
        try:
            values["input"] = InputSpec(**_tuples(dict(values["input"])))
            values["heads"] = tuple(HeadSpec(**head) for head in values["heads"])
            return cls(**_tuples(values))
        except (KeyError, TypeError, ValueError) as err:
            raise SpecError(f"the ModelSpec is incomplete or malformed ({err})") from err

    def _check_sizes(self) -> None:
        if not self.name:
            raise SpecError("a ModelSpec needs a name")
        width, height = self.input.wh
        for value in (width, height, self.stride, self.max_detections, self.max_joint_candidates):
            if not isinstance(value, int) or value < 1:
                raise SpecError(f"sizes, stride and maxima must be integers of at least 1, got {value!r}")
        if width % self.stride or height % self.stride:
            raise SpecError(f"input {width}x{height} is no multiple of the stride {self.stride}")
        if len(self.input.mean) != 3 or len(self.input.std) != 3 or min(self.input.std) <= 0:
            raise SpecError("mean and std take three numbers each, and std must be positive")
        _check_choice("channel_order", self.input.channel_order, ("bgr", "rgb"))
        _check_choice("fit", self.input.fit, get_args(Fit))
        _check_choice("output", self.output, get_args(OutputForm))
        _check_choice("decoding", self.decoding, get_args(Decoding))
        _check_choice("precision", self.precision, get_args(Precision))
        if not 0.0 <= self.score_threshold <= 1.0:
            raise SpecError(f"score_threshold must lie in 0..1, got {self.score_threshold}")

    def _check_heads(self) -> None:
        if not self.class_names:
            raise SpecError(f"model {self.name!r} declares no classes")
        names = [head.name for head in self.heads]
        if len(set(names)) != len(names):
            raise SpecError(f"model {self.name!r} names a head twice: {names}")
        for required in ("heatmap", "size"):
            if required not in names:
                raise SpecError(f"model {self.name!r} has no {required!r} head; every CenterNet has one")
        keypoints = len(self.keypoint_names)
        channels = {
            "heatmap": len(self.class_names),
            "offset": 2,
            "size": 2,
            "keypoint_offset": 2 * keypoints,
            "keypoint_heatmap": keypoints,
            "keypoint_heatmap_offset": 2,
            "depth": 1,
            "rotation": 8,
            "dimensions": 3,
        }
        for head in self.heads:
            _check_choice("head", head.name, get_args(HeadName))
            _check_choice(f"activation of {head.name}", head.activation, _ACTIVATIONS[head.name])
            allowed = {channels[head.name]}
            if head.name == "size" and self.tasks == ("detection",):
                allowed.add(2 * len(self.class_names))  # a size for each class
            if head.channels not in allowed:
                raise SpecError(
                    f"head {head.name!r} of {self.name!r} has {head.channels} channels, its {len(self.class_names)} "
                    f"classes and {keypoints} keypoints ask for {channels[head.name]}"
                )

    def _check_tasks(self) -> None:
        if not self.tasks:
            raise SpecError(f"model {self.name!r} declares no task; expected some of {', '.join(get_args(Task))}")
        for task in self.tasks:
            _check_choice("task", task, get_args(Task))
            if missing := [name for name in _HEADS_OF_TASK[task] if not self.has_head(name)]:
                raise SpecError(f"task {task!r} needs the heads {missing}, which model {self.name!r} has not")

    def _check_depth(self) -> None:
        if self.focal_px is None:
            return
        if not 0.0 < self.focal_px < math.inf:
            raise SpecError(f"focal_px must be a positive number of pixels, got {self.focal_px}")
        if not self.has_head("depth"):
            raise SpecError(f"focal_px is {self.focal_px}, but model {self.name!r} has no 'depth' head")
        if self.decoding == "centernet":
            raise SpecError("focal_px is for decoding 'paper'; the official models take depths as they are")

    def _check_keypoints(self) -> None:
        count = len(self.keypoint_names)
        if self.oks_sigmas and len(self.oks_sigmas) != count:
            raise SpecError(f"{len(self.oks_sigmas)} OKS sigmas for {count} keypoints")
        for label, pairs in (("flip pair", self.keypoint_flip_pairs), ("bone", self.skeleton)):
            for pair in pairs:
                if len(pair) != 2 or not all(0 <= index < count for index in pair):
                    raise SpecError(f"{label} {pair} names a keypoint outside 0..{count - 1}")


def _check_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SpecError(f"{what} is {value!r}, expected one of {', '.join(allowed)}")


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists where the dataclasses hold tuples; nested pairs too."""

    def convert(value: Any) -> Any:
        return tuple(convert(item) for item in value) if isinstance(value, list) else value

    return {key: convert(value) for key, value in values.items()}


COCO_KEYPOINT_NAMES = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
COCO_FLIP_PAIRS = cast(tuple[tuple[int, int], ...], tuple((i, i + 1) for i in range(1, 17, 2)))
COCO_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
    (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip
# Per-keypoint constants of COCO's object keypoint similarity, from pycocotools' Params.
COCO_OKS_SIGMAS = (
    0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072,
    0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089,
)  # fmt: skip
