"""Checkpoints of the official CenterNet: their names, their layouts, and the ModelSpec that they come without.

This is the one place that knows the official names of heads and tasks.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdk.errors import ConfigError, SpecError
from sdk.spec import (
    COCO_FLIP_PAIRS,
    COCO_KEYPOINT_NAMES,
    COCO_OKS_SIGMAS,
    COCO_SKELETON,
    HeadName,
    HeadSpec,
    InputSpec,
    ModelSpec,
    Task,
)

from .models import ARCHITECTURES, CenterNet, build_model

logger = logging.getLogger(__name__)
State = dict[str, Tensor]

OFFICIAL_TASKS: dict[str, Task] = {"ctdet": "detection", "multi_pose": "pose", "ddd": "3d"}
OFFICIAL_HEADS: dict[HeadName, str] = {
    "heatmap": "hm",
    "offset": "reg",
    "size": "wh",
    "keypoint_offset": "hps",
    "keypoint_heatmap": "hm_hp",
    "keypoint_heatmap_offset": "hp_offset",
    "depth": "dep",
    "rotation": "rot",
    "dimensions": "dim",
}
# Models without these heads exist (an option of the official code); the others a task cannot do without.
_OPTIONAL_HEADS: tuple[HeadName, ...] = ("offset", "keypoint_heatmap", "keypoint_heatmap_offset")

# On BGR pixels over 255. KITTI's are ImageNet's, in RGB order though the pixels are BGR: so they were trained.
COCO_MEAN, COCO_STD = (0.40789654, 0.44719302, 0.47026115), (0.28863828, 0.27408164, 0.27809835)
KITTI_MEAN, KITTI_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

KITTI_CLASS_NAMES = ("Pedestrian", "Car", "Cyclist")
COCO_CLASS_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
_KNOWN_CLASSES = {
    ("detection", len(COCO_CLASS_NAMES)): COCO_CLASS_NAMES,
    ("pose", 1): ("person",),
    ("3d", len(KITTI_CLASS_NAMES)): KITTI_CLASS_NAMES,
}


def task_named(name: str) -> Task:
    """A task by our name or the official one.

    Raises:
        ConfigError: there is none of that name.
    """
    for official, ours in OFFICIAL_TASKS.items():
        if name in (official, ours):
            return ours
    ours_and_official = ", ".join(f"{ours} ({official})" for official, ours in OFFICIAL_TASKS.items())
    raise ConfigError(f"there is no task {name!r}; there are {ours_and_official}")


def official_state(content: Any) -> State | None:
    """The tensors of an official checkpoint by name, whether wrapped or bare; None where this is no such thing."""
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        return None
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        return None
    return {name.removeprefix("module."): value for name, value in state.items()}


def import_official(
    state: State, path: str | Path, architecture: str | None = None, task: str | None = None
) -> tuple[CenterNet, ModelSpec]:
    """The network of an official checkpoint, in evaluation mode, and the spec that it should have come with.

    Args:
        state: from `official_state`.
        path: where it was, for messages and the model's name.
        architecture: by name; needed only where the tensors do not say.
        task: ours or official; likewise.

    Raises:
        ConfigError: the tensors do not say which architecture this is, or contradict the arguments.
        SpecError: tensors are missing or have another shape.
    """
    architecture = _architecture_of(state, path, architecture)
    task = _task_of(state, path, task)
    spec = _spec(state, Path(path), architecture, task)
    model = build_model(architecture, spec.heads)
    weights = own_names(model, state)
    _check(state, weights, model.state_dict(), path, architecture)
    model.load_state_dict(weights)
    return model.eval(), spec


def own_names(model: CenterNet, state: State) -> State:
    """Those tensors of an official state that `model` has, under our names.

    Batch norms of the oldest files count no batches; the count is not used, so it starts at 0.
    """
    found: State = {}
    for name in model.state_dict():
        if (tensor := state.get(official_name(name))) is not None:
            found[name] = tensor
        elif name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(0)
    return found


def official_name(name: str) -> str:
    """What the official code calls the tensor that we call `name`."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _official_head(match: re.Match[str]) -> str:
    heads = {str(ours): official for ours, official in OFFICIAL_HEADS.items()}
    stack, name, layer = match.groups()
    if stack is None:
        return f"{heads[name]}.{layer}."
    return f"{heads[name]}.{stack}.0.conv." if layer == "0" else f"{heads[name]}.{stack}.1."


def _official_aggregation(match: re.Match[str]) -> str:
    """Official layers are numbered with the maps that they read, of which the finest, 0, needs none."""
    where, layer, index = match.groups()
    return f"{where}.{'proj' if layer == 'project' else layer}_{int(index) + 1}."


# Applied in turn. ResNets and the backbone of DLA have the official names already.
_RENAMES: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]] = (
    (r"^heads\.(?:(\d)\.)?outputs\.(\w+)\.(\d)\.", _official_head),
    (r"^dla_up\.steps\.(\d)\.", r"dla_up.ida_\1."),
    (r"^(dla_up\.ida_\d|ida_up)\.(project|up|node)\.(\d)\.", _official_aggregation),
    (r"^pre\.0\.0\.", "pre.0.conv."),
    (r"^pre\.0\.1\.", "pre.0.bn."),
    (r"^outputs\.(\d)\.0\.", r"cnvs.\1.conv."),
    (r"^outputs\.(\d)\.1\.", r"cnvs.\1.bn."),
    (r"^from_input\.", "inters_."),
    (r"^from_output\.", "cnvs_."),
    (r"^merged\.", "inters."),
    (r"^hourglasses\.(\d)\.((?:inner\.)*)beside\.", r"hourglasses.\1.\2up1."),
    (r"^hourglasses\.(\d)\.((?:inner\.)*)down\.", r"hourglasses.\1.\2low1."),
    (r"^hourglasses\.(\d)\.((?:inner\.)*)up\.", r"hourglasses.\1.\2low3."),
    (r"^(pre|hourglasses)\.(.*)downsample\.", r"\1.\2skip."),
    (r"\binner\.", "low2."),
    (r"^hourglasses\.", "kps."),
)


def _architecture_of(state: State, path: str | Path, wanted: str | None) -> str:
    if wanted is not None and wanted not in ARCHITECTURES:
        raise ConfigError(f"there is no architecture {wanted!r}; there are {', '.join(ARCHITECTURES)}")
    found = _detected_architecture(state)
    if found is None and wanted is None:
        raise ConfigError(
            f"the tensors of {path} do not say which network they are of ({', '.join(list(state)[:3])}, ...); "
            "pass the architecture, such as dla_34"
        )
    if wanted is not None and found not in (None, wanted):
        raise ConfigError(f"{path} holds a {found!r}, not a {wanted!r}; leave the option out")
    architecture = wanted or found
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"{path} holds a {architecture!r}, which is not among {', '.join(ARCHITECTURES)}")
    return architecture


def _detected_architecture(state: State) -> str | None:
    """By tensors that only one of the networks has; of a ResNet by its blocks."""
    if any(name.startswith("kps.") for name in state):
        return "hourglass"
    if any(name.startswith("dla_up.") for name in state):
        return "dla_34" if any(name.startswith("ida_up.") for name in state) else "dlav0_34"
    if "layer1.0.conv1.weight" in state and any(name.startswith("deconv_layers.") for name in state):
        kind = "resdcn" if "deconv_layers.0.conv_offset_mask.weight" in state else "res"
        bottleneck = "layer1.0.conv3.weight" in state
        blocks = len({name.split(".")[1] for name in state if name.startswith("layer3.")})
        depths = {(False, 2): 18, (False, 6): 34, (True, 6): 50, (True, 23): 101, (True, 36): 152}
        return f"{kind}_{depths[bottleneck, blocks]}" if (bottleneck, blocks) in depths else None
    return None


def _task_of(state: State, path: str | Path, wanted: str | None) -> Task:
    found: Task = "pose" if _has_head(state, "keypoint_offset") else "3d" if _has_head(state, "depth") else "detection"
    if wanted is not None and task_named(wanted) != found:
        raise ConfigError(f"{path} does {found}, not {task_named(wanted)}; leave the option out")
    return found


def _has_head(state: State, head: HeadName) -> bool:
    return any(name.startswith(f"{OFFICIAL_HEADS[head]}.") for name in state)


def _spec(state: State, path: Path, architecture: str, task: Task) -> ModelSpec:
    classes = _num_outputs(state, path, architecture, "heatmap")
    keypoints = _num_outputs(state, path, architecture, "keypoint_offset") // 2 if task == "pose" else 0
    coco = keypoints == len(COCO_KEYPOINT_NAMES)
    names = _KNOWN_CLASSES.get((task, classes), tuple(f"class_{index}" for index in range(classes)))
    return ModelSpec(
        name=path.stem,
        tasks=("detection",) if task == "detection" else ("detection", task),
        input=_input(task),
        stride=4,
        heads=tuple(head for head in _heads(task, classes, keypoints) if _is_there(state, head)),
        class_names=names,
        keypoint_names=COCO_KEYPOINT_NAMES if coco else tuple(f"keypoint_{index}" for index in range(keypoints)),
        keypoint_flip_pairs=COCO_FLIP_PAIRS if coco else (),
        skeleton=COCO_SKELETON if coco else (),
        oks_sigmas=COCO_OKS_SIGMAS if coco else (),
        decoding="centernet",
        score_threshold=0.2 if task == "3d" else 0.3,
        trained_on=f"imported from {path.name}",
    )


def official_input(state: State, path: str | Path) -> InputSpec:
    """The input of the network that an official state is of."""
    return _input(_task_of(state, path, None))


def _input(task: Task) -> InputSpec:
    """How the official code brings a picture to the network: one warp, black outside."""
    if task == "3d":
        return InputSpec(1280, 384, KITTI_MEAN, KITTI_STD, fit="width")
    return InputSpec(512, 512, COCO_MEAN, COCO_STD, fit="longest_side")


def _heads(task: Task, classes: int, keypoints: int) -> list[HeadSpec]:
    heads = [HeadSpec("heatmap", classes, "sigmoid"), HeadSpec("offset", 2, "none"), HeadSpec("size", 2, "none")]
    if task == "pose":
        heads += [
            HeadSpec("keypoint_offset", 2 * keypoints, "none"),
            HeadSpec("keypoint_heatmap", keypoints, "sigmoid"),
            HeadSpec("keypoint_heatmap_offset", 2, "none"),
        ]
    if task == "3d":
        heads += [
            HeadSpec("depth", 1, "inverse_sigmoid"),
            HeadSpec("rotation", 8, "none"),
            HeadSpec("dimensions", 3, "none"),
        ]
    return heads


def _is_there(state: State, head: HeadSpec) -> bool:
    return head.name not in _OPTIONAL_HEADS or _has_head(state, head.name)


def _num_outputs(state: State, path: Path, architecture: str, head: HeadName) -> int:
    prefix = "heads.0." if architecture == "hourglass" else "heads."
    name = official_name(f"{prefix}outputs.{head}.2.bias")
    if name not in state:
        raise SpecError(f"{path} has no tensor {name}; it is no CenterNet, or it was cut")
    return state[name].numel()


def _check(state: State, weights: State, own: State, path: str | Path, architecture: str) -> None:
    """Raises SpecError naming what is missing or misshapen; what is more than needed is only logged."""
    missing = [official_name(name) for name in own if name not in weights]
    misshapen = [
        f"{official_name(name)} is {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
        for name, tensor in weights.items()
        if tensor.shape != own[name].shape
    ]
    problems = [_listed("missing", missing), _listed("misshapen", misshapen)]
    if text := "; ".join(problem for problem in problems if problem):
        raise SpecError(f"{path} does not fit {architecture}: {text}")
    extra = sorted(set(state) - {official_name(name) for name in own})
    if extra:
        logger.warning("%s: left out, as %s has no use for it: %s", path, architecture, _listed("extra", extra))


def _listed(what: str, items: list[str], most: int = 5) -> str:
    """ "3 missing (a, b, c)"; nothing where there is none."""
    if not items:
        return ""
    return f"{len(items)} {what} ({', '.join(items[:most])}{', ...' if len(items) > most else ''})"
