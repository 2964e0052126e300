"""What a training run does: one frozen dataclass, presets that say why they differ.

Unknown names and wrong types raise; nothing is guessed::

    config = override(preset("person-pose"), {"max_steps": "2000", "size": "320x320"})
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from sdk.errors import ConfigError

# A network does one task, or several on one backbone (paper, fig. 4): joined by "+".
TASKS = ("detection", "pose", "3d", "pose+3d")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the result of a run, besides the data.

    The defaults are the paper's (sec. 5) as far as one machine can have them.
    """

    name: str = "model"  # of the ModelSpec
    task: str = "detection"  # one of TASKS
    architecture: str = "res_18"  # a name in train.models.ARCHITECTURES
    classes: tuple[str, ...] = ()  # of the data set; empty: all of them
    size: tuple[int, int] = (512, 512)  # (w, h) of the network input, pixels
    small_size_until: tuple[tuple[float, int, int], ...] = ()  # (progress, w, h): a smaller input until then
    batch: int = 32  # pictures of one optimiser step, over all processes and accumulated passes
    accumulate: int = 1  # passes that make one step, where a batch does not fit in memory
    epochs: int = 140  # passes over the data; max_steps, where given, goes before
    max_steps: int = 0  # 0: as many as the epochs need
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"  # sgd: momentum 0.9
    learning_rate: float = 1.25e-4  # the paper's 5e-4 for a batch of 128, in proportion
    weight_decay: float = 0.0
    schedule: Literal["step", "linear"] = "step"
    drop_at: tuple[float, ...] = (90 / 140, 120 / 140)  # step schedule: progress at which the rate drops tenfold
    decay_from: float = 0.3  # linear schedule: progress from which the rate falls to zero
    warmup_steps: int = 0
    gradient_clip: float = 35.0  # largest norm of a step's gradient
    ema_decay: float = 0.9992  # of the averaged weights that are evaluated and shipped; 0: none
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the network in training; losses are always fp32
    freeze_batch_norm: bool = False  # keep its running statistics and use them
    compile: bool = False  # torch.compile
    backbone: str = ""  # file of ImageNet weights to start the backbone from
    fake_quantise: str = ""  # an INT8 .onnx of this network: train with its rounding (train.quantisation)
    # Augmentation
    flip: float = 0.5  # probability
    crop: bool = True  # scale and place pictures at random; False: whole and centred, as the detector letterboxes them
    scale_range: tuple[float, float] = (0.6, 1.3)  # of the letterboxed size
    colour: float = 0.4  # strength of brightness, contrast and saturation changes
    mosaic: float = 0.0  # probability of four pictures in one
    mosaic_until: float = 0.85  # progress from which on there is none
    drawn_scenes: float = 0.0  # share of drawn pictures of people among the photographs
    # Targets
    gaussian: Literal["circle", "ellipse"] = "circle"  # the paper's radius, or one that follows the box's shape
    positive_cells: Literal[1, 3] = 1  # supervise size and offset on the centre, or on 3x3 cells around it
    class_sizes: bool = False  # a size for each class at a cell: objects of two classes may share a centre
    size_activation: Literal["none", "exp"] = "none"  # the size head gives cells, or their logarithm
    keypoint_activation: Literal["none", "box"] = "none"  # keypoints in cells, or in units of the box
    focal_px: float = 0.0  # depths are learnt as this focal length (input pixels) would see them; 0: the input's width
    # Weights of the losses (paper, eq. 4)
    offset_weight: float = 1.0
    size_weight: float = 0.1
    size_loss: Literal["l1", "smooth_l1"] = "l1"  # the paper's ablation
    giou_weight: float = 0.0  # generalised IoU of the decoded box (arXiv:1902.09630)
    keypoint_weight: float = 1.0
    keypoint_heatmap_weight: float = 1.0
    depth_weight: float = 1.0
    rotation_weight: float = 1.0
    dimensions_weight: float = 1.0
    # Running
    seed: int = 0
    workers: int = 1  # processes that prepare batches; 0: none
    device: str = "cpu"
    cache_images_mb: int = 4096  # decoded photographs kept in memory, if all of them fit
    evaluate_every: int = 1000  # steps; on a slice of the training data
    pictures_every: int = 1000  # steps; sample pictures with truth and prediction for TensorBoard
    held_back: int = 64  # photographs of `train` that are not trained on and choose best.pth
    checkpoint_every: int = 250  # steps

    def __post_init__(self) -> None:
        _check(self)


def person_pose() -> TrainConfig:
    """The shipped model: people and their poses, from scratch, on two CPU cores."""
    return replace(
        TrainConfig(),
        name="person-pose",
        task="pose",
        architecture="edge_s",
        classes=("person",),
        size=(320, 320),
        # Small pictures first: most of what is to be learnt does not need the pixels, and costs a third.
        small_size_until=((0.22, 192, 192), (0.425, 256, 256)),
        batch=16,  # small batches: more steps for the same pictures
        max_steps=40000,
        optimizer="adamw",
        learning_rate=2e-3,
        weight_decay=0.05,
        schedule="linear",
        warmup_steps=300,
        gradient_clip=10.0,
        precision="bf16",
        scale_range=(0.5, 1.6),
        mosaic=0.35,
        drawn_scenes=0.05,
        # A person is tall: a circle would call cells above the head as good as the centre.
        gaussian="ellipse",
        # From scratch, one cell an object is too little to learn localisation in hours.
        positive_cells=3,
        size_activation="exp",
        keypoint_activation="box",
        size_weight=1.0,
        giou_weight=2.0,
        keypoint_weight=6.0,
    )


def paper_detection() -> TrainConfig:
    """Table 1: ResNet-18 on COCO; DLA-34 and ResNet-101 with `architecture=dla_34` or `resdcn_101`."""
    return replace(
        TrainConfig(),
        name="paper-detection",
        architecture="resdcn_18",  # "we ... add one 3x3 deformable convolutional layer before each up-convolution"
        size=(512, 512),
        batch=128,  # on 8 GPUs; a smaller machine reaches it with accumulate
        learning_rate=5e-4,
        epochs=140,
        drop_at=(90 / 140, 120 / 140),  # "dropped 10x at 90 and 120 epochs"; the best DLA-34 trains for 230 epochs
        # The paper has neither a limit of the gradient nor averaged weights.
        gradient_clip=math.inf,
        ema_decay=0.0,
    )


def paper_detection_hourglass() -> TrainConfig:
    """Table 1: Hourglass-104 on COCO; the paper starts it from ExtremeNet's weights (--init)."""
    return replace(
        paper_detection(),
        name="paper-detection-hourglass",
        architecture="hourglass",
        batch=29,  # on 5 GPUs, 4 on the first and 5 or 6 on each of the others
        learning_rate=2.5e-4,
        epochs=50,
        drop_at=(40 / 50,),
    )


def paper_pose() -> TrainConfig:
    """Table 5: DLA-34 on COCO's people; start it with --init from a `paper-detection` run of the same architecture."""
    return replace(
        paper_detection(),
        name="paper-pose",
        task="pose",
        architecture="dla_34",
        classes=("person",),
        epochs=320,  # "DLA-34 converges in 320 epochs"; Hourglass-104 in 150
        drop_at=(270 / 320, 300 / 320),  # 50 and 20 epochs before the end, as in detection
    )


def paper_kitti() -> TrainConfig:
    """Table 4: DLA-34 on KITTI's 3D boxes."""
    return replace(
        paper_detection(),
        name="paper-kitti",
        task="3d",
        architecture="dla_34",
        classes=("Pedestrian", "Car", "Cyclist"),
        size=(1280, 384),  # "keep the original image resolution and pad to 1280x384"
        batch=16,  # as many of these pictures as 8 GPUs of that time held
        learning_rate=1.25e-4,
        epochs=70,
        drop_at=(45 / 70, 60 / 70),
        # "We use no augmentation to train the 3D estimation branch."
        flip=0.0,
        crop=False,
        scale_range=(1.0, 1.0),
        colour=0.0,
    )


def paper_voc() -> TrainConfig:
    """The supplement: ResNet-18 on PASCAL VOC at 384x384; also at 512x512, ResNet-101 and DLA-34."""
    return replace(
        paper_detection(),
        name="paper-voc",
        size=(384, 384),
        batch=32,  # one GPU; the rate of COCO's 128 pictures in proportion
        learning_rate=1.25e-4,
        epochs=70,
        drop_at=(45 / 70, 60 / 70),
    )


def kitti_edge() -> TrainConfig:
    """3D boxes for a small machine, trained on a CPU; start it with --init train/weights/person-pose.pth."""
    return replace(
        person_pose(),
        name="kitti-edge",
        task="3d",
        classes=("Pedestrian", "Car", "Cyclist"),
        size=(640, 192),  # half of the paper's, which keeps KITTI's shape
        small_size_until=(),
        batch=8,
        max_steps=1500,
        learning_rate=1e-3,
        ema_decay=0.995,  # the usual average would still remember the first steps of so short a run
        evaluate_every=500,
        held_back=8,  # of few frames
        # Depths are learnt relative to the focal length, so that flip is exact, and so would scale and crop be;
        # but the paper's figures are without, and the camera of a car always looks the same way.
        crop=False,
        scale_range=(1.0, 1.0),
        mosaic=0.0,
        drawn_scenes=0.0,
    )


def synthetic_detection() -> TrainConfig:
    """A short run on drawn scenes, to see the whole path work without any data."""
    return replace(
        person_pose(),
        name="synthetic-detection",
        task="detection",
        architecture="edge_n",
        classes=(),
        size=(192, 192),
        small_size_until=(),
        max_steps=600,
        mosaic=0.0,
        drawn_scenes=0.0,  # the data is drawn already
        warmup_steps=50,
        ema_decay=0.99,
        evaluate_every=300,
        held_back=32,
    )


def synthetic_pose() -> TrainConfig:
    """The same for people and their joints."""
    return replace(
        synthetic_detection(),
        name="synthetic-pose",
        task="pose",
        classes=("person",),
        size=(256, 256),  # joints are a matter of pixels
        # Boxes come within hundreds of steps, exact joints take thousands; so small batches, many steps.
        batch=8,
        max_steps=5000,
        learning_rate=3e-3,
        evaluate_every=1000,
        held_back=64,
        # The pictures are drawn without end; none of them has to be made into several.
        crop=False,
        scale_range=(1.0, 1.0),
    )


def synthetic_3d() -> TrainConfig:
    """The same for boxes in space, seen by a known camera."""
    return replace(
        synthetic_detection(),
        name="synthetic-3d",
        task="3d",
        size=(256, 160),
        batch=8,  # as above: orientations take thousands of steps
        max_steps=3000,
        evaluate_every=1000,
        held_back=64,  # KITTI's rule counts recalls that fewer than 41 objects cannot reach as 0
        crop=False,
        scale_range=(1.0, 1.0),
    )


def synthetic_multitask() -> TrainConfig:
    """Joints and boxes in space on one backbone (paper, fig. 4)."""
    return replace(synthetic_3d(), name="synthetic-multitask", task="pose+3d", max_steps=4000)


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "paper-detection": paper_detection,
    "paper-detection-hourglass": paper_detection_hourglass,
    "paper-pose": paper_pose,
    "paper-kitti": paper_kitti,
    "paper-voc": paper_voc,
    "person-pose": person_pose,
    "kitti-edge": kitti_edge,
    "synthetic-detection": synthetic_detection,
    "synthetic-pose": synthetic_pose,
    "synthetic-3d": synthetic_3d,
    "synthetic-multitask": synthetic_multitask,
}


def preset(name: str) -> TrainConfig:
    """The preset of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()


def override(config: TrainConfig, assignments: Mapping[str, str]) -> TrainConfig:
    """A config with some fields replaced by what their text says, e.g. {"size": "320x320"}.

    Raises:
        ConfigError: a field that does not exist, or a text that is no value of its type.
    """
    known = {field.name for field in fields(TrainConfig)}
    values: dict[str, Any] = {}
    for name, text in assignments.items():
        if name not in known:
            raise ConfigError(f"there is no training option {name!r}; there are {', '.join(sorted(known))}")
        values[name] = _parsed(name, text, getattr(config, name))
    return replace(config, **values)


def depth_focal_px(config: TrainConfig) -> float:
    """The focal length, in input pixels, under which depths are learnt; `ModelSpec.focal_px`.

    Unless the config says otherwise it is the input's width: a camera that sees 53 degrees across.
    """
    return config.focal_px or float(config.size[0])


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    return asdict(config)


def config_from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Read back what `config_to_dict` gave, from a checkpoint."""
    known = {field.name for field in fields(TrainConfig)}
    if unknown := sorted(set(values) - known):
        raise ConfigError(f"the checkpoint's config has unknown options {unknown}; it comes from another version")
    return TrainConfig(**dict(values))


def _parsed(name: str, text: str, current: Any) -> Any:
    try:
        if name == "size":
            width, height = text.lower().split("x")
            return int(width), int(height)
        if name == "small_size_until":
            return tuple(_stage(part) for part in text.split(",") if part)
        if name == "classes":
            return tuple(part for part in text.split(",") if part)
        if isinstance(current, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(current, tuple):
            return tuple(float(part) for part in text.split(",") if part)
        return type(current)(text)
    except (ValueError, KeyError) as err:
        wanted = {"size": "WxH", "small_size_until": "0.4:192x192,0.7:256x256"}.get(name, type(current).__name__)
        raise ConfigError(f"{name}={text!r} is no value of this option; expected {wanted}") from err


def _stage(text: str) -> tuple[float, int, int]:
    progress, size = text.split(":")
    width, height = size.lower().split("x")
    return float(progress), int(width), int(height)


def _check(config: TrainConfig) -> None:
    _check_choices(config)
    _check_ranges(config)
    for width, height in [config.size, *((w, h) for _, w, h in config.small_size_until)]:
        if width % 32 or height % 32 or width < 32 or height < 32:
            raise ConfigError(f"size {width}x{height} must be a multiple of 32, the networks' coarsest stride")
    _check_sizes(config)
    _check_3d(config)
    _check_rounding(config)


def _check_rounding(config: TrainConfig) -> None:
    if config.fake_quantise and config.precision != "fp32":
        raise ConfigError(
            f"precision={config.precision} rounds about as coarsely as INT8, which fake_quantise is to show; "
            "set precision=fp32"
        )
    if config.fake_quantise and config.compile:
        raise ConfigError("compile=true and fake_quantise do not go together; set compile=false")


def _check_sizes(config: TrainConfig) -> None:
    if config.class_sizes and config.task != "detection":
        raise ConfigError(f"class_sizes gives boxes alone several sizes; task {config.task} needs one an object")


def _check_3d(config: TrainConfig) -> None:
    """What contradicts itself where pictures have cameras."""
    if not config.crop and (config.mosaic or config.scale_range != (1.0, 1.0)):
        raise ConfigError(
            f"crop=false shows whole pictures as they are, which contradicts mosaic={config.mosaic} and "
            f"scale_range={config.scale_range}; set mosaic=0 and scale_range=1,1, or crop=true"
        )
    if "3d" in config.task and config.mosaic:
        raise ConfigError(
            f"mosaic={config.mosaic} makes one picture of four cameras; for task {config.task} it must be 0"
        )


def _check_ranges(config: TrainConfig) -> None:
    for name in ("batch", "accumulate", "epochs", "evaluate_every", "pictures_every", "checkpoint_every", "held_back"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)} must be at least 1")
    for name in ("max_steps", "warmup_steps", "workers", "weight_decay", "focal_px"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name}={getattr(config, name)} must not be negative")
    for name in ("learning_rate", "gradient_clip"):
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name}={getattr(config, name)} must be positive")
    for name in ("flip", "mosaic", "drawn_scenes"):
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise ConfigError(f"{name}={getattr(config, name)} is a probability; it lies in 0..1")
    for name in ("ema_decay", "decay_from"):
        if not 0.0 <= getattr(config, name) < 1.0:
            raise ConfigError(f"{name}={getattr(config, name)} must lie in 0..1, below 1")
    if len(config.scale_range) != 2 or not 0.0 < config.scale_range[0] <= config.scale_range[1]:
        raise ConfigError(f"scale_range={config.scale_range}; expected the smallest and the largest scale, above 0")


def _check_choices(config: TrainConfig) -> None:
    choices = {
        "optimizer": ("adam", "adamw", "sgd"),
        "schedule": ("step", "linear"),
        "precision": ("fp32", "bf16", "fp16"),
        "gaussian": ("circle", "ellipse"),
        "positive_cells": (1, 3),
        "size_activation": ("none", "exp"),
        "keypoint_activation": ("none", "box"),
        "size_loss": ("l1", "smooth_l1"),
        "task": TASKS,
    }
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ConfigError(f"{name}={getattr(config, name)!r}; expected one of {', '.join(map(str, allowed))}")
