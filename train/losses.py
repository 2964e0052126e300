"""The paper's losses: equations 1 to 4 and those of sections 4.1 and 4.2, on the heads' raw outputs.

L = L_k + size_weight L_size + offset_weight L_off (eq. 4), the same two forms again for joints (sec. 4.2), and an L1
or a two-bin orientation loss for each property of a box in space (sec. 4.1).

Every term is a sum over the pictures divided by a count of the whole batch (the paper's N). Where one step is computed
in parts, by several processes or in several passes, the counts come from all of them, and the parts' losses add up to
that of the whole batch::

    counts = sum(loss_counts(part.targets) for part in parts)        # and summed over the processes
    for part in parts:
        terms = losses(model(part.images), part.targets, config, counts)
        (world * total(terms)).backward()                            # DistributedDataParallel divides by `world`
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import TensorTargets
from .config import TrainConfig

FOCAL_ALPHA, FOCAL_BETA = 2, 4  # paper, eq. 1
# The bins of an orientation: their middles, and how far they reach (paper's supplement: [-7 pi/6, pi/6] and
# [-pi/6, 7 pi/6]).
BIN_MIDDLES_RAD = (-math.pi / 2, math.pi / 2)
BIN_REACH_RAD = 2 * math.pi / 3
DEPTH_EPSILON = 1e-6  # d = 1 / (sigmoid + epsilon) - 1: the farthest depth is a million metres
Losses = dict[str, Tensor]


def loss_counts(targets: TensorTargets) -> Tensor:
    """(6,) float32, what the losses are divided by: peaks, objects, labelled joints, peaks and
    offsets of joints, boxes in space."""
    labelled = targets.keypoints[..., 2] * targets.weight[:, None]  # (P, K)
    return torch.stack(
        [
            (targets.heatmap == 1).sum(),
            targets.weight.sum(),
            labelled.sum(),
            (targets.keypoint_heatmap == 1).sum(),
            torch.tensor(len(targets.joint_picture), device=targets.weight.device),
            (targets.has_3d * targets.weight).sum(),
        ]
    ).float()


def losses(
    heads: dict[str, Tensor], targets: TensorTargets, config: TrainConfig, counts: Tensor | None = None
) -> Losses:
    """Every term of eq. 4, weighted; their sum is what is minimised.

    Args:
        heads: raw outputs (B, C, h, w).
        targets: of the same batch.
        config: weights, and the activations of the size and keypoint heads.
        counts: of the whole batch that these pictures are a part of, from `loss_counts`; None: they are all of it.
    """
    counts = loss_counts(targets) if counts is None else counts
    peaks, objects, labelled, joint_peaks, joints, boxes3d = counts.clamp(min=1.0).unbind()
    out: Losses = {"heatmap": focal_loss(heads["heatmap"], targets.heatmap, targets.counted, peaks)}
    cells = _gather(heads, targets.picture, targets.cell_yx)
    out |= _box_losses(cells, targets, config, objects)
    if "keypoint_offset" in cells:
        regression = _joint_regression(cells["keypoint_offset"], targets, config)
        out["keypoint_offset"] = config.keypoint_weight * regression / labelled
    if "keypoint_heatmap" in heads:
        focal = focal_loss(heads["keypoint_heatmap"], targets.keypoint_heatmap, targets.joints_counted, joint_peaks)
        out["keypoint_heatmap"] = config.keypoint_heatmap_weight * focal
    if "keypoint_heatmap_offset" in heads:
        y, x = targets.joint_cell_yx.unbind(dim=1)
        found = heads["keypoint_heatmap_offset"][targets.joint_picture, :, y, x].float()  # (J, 2)
        error = (found - targets.joint_offset).abs().sum()
        out["keypoint_heatmap_offset"] = config.offset_weight * error / joints
    if "depth" in cells:
        out |= _space_losses(cells, targets, config, boxes3d)
    return out


def stacked_losses(
    stacks: Sequence[dict[str, Tensor]], targets: TensorTargets, config: TrainConfig, counts: Tensor | None = None
) -> Losses:
    """The mean of `losses` over the stacks of an hourglass network, each of which is to give the whole answer."""
    counts = loss_counts(targets) if counts is None else counts
    terms = [losses(heads, targets, config, counts) for heads in stacks]
    return {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}


def focal_loss(logits: Tensor, target: Tensor, counted: Tensor, num_objects: Tensor | None = None) -> Tensor:
    """Penalty-reduced pixel-wise logistic regression with focal loss (paper, eq. 1).

    Args:
        logits: (B, C, h, w) before the sigmoid.
        target: (B, C, h, w) in 0..1, exactly 1 at object centres.
        counted: (B, 1, h, w) 0 where negatives are not counted.
        num_objects: N, at least 1; None: of these pictures.
    """
    logits = logits.float()
    positive = target == 1
    # At a centre (1 - Y) is 0, so the dense sum has the negatives alone.
    negative_weight = (1 - target).pow(FOCAL_BETA) * counted
    score = torch.sigmoid(logits)
    negatives = (negative_weight * score * score * F.softplus(logits)).sum()
    at_centres = logits[positive]
    positives = ((1 - torch.sigmoid(at_centres)).pow(FOCAL_ALPHA) * F.softplus(-at_centres)).sum()
    return (positives + negatives) / (positive.sum().clamp(min=1) if num_objects is None else num_objects)


def generalised_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """(P,) generalised IoU of (P, 4) boxes row by row (arXiv:1902.09630)."""
    overlap = (torch.minimum(a_xyxy[:, 2:], b_xyxy[:, 2:]) - torch.maximum(a_xyxy[:, :2], b_xyxy[:, :2])).clamp(min=0)
    hull = torch.maximum(a_xyxy[:, 2:], b_xyxy[:, 2:]) - torch.minimum(a_xyxy[:, :2], b_xyxy[:, :2])
    intersection, hull_area = overlap.prod(dim=1), hull.prod(dim=1).clamp(min=1e-6)
    union = (
        (a_xyxy[:, 2:] - a_xyxy[:, :2]).prod(dim=1) + (b_xyxy[:, 2:] - b_xyxy[:, :2]).prod(dim=1) - intersection
    ).clamp(min=1e-6)
    return intersection / union - (hull_area - union) / hull_area


def decoded_depth(raw: Tensor) -> Tensor:
    """d = 1 / sigmoid(x) - 1 (paper, sec. 4.1), with the decoder's small constant that keeps it finite."""
    return 1.0 / (torch.sigmoid(raw) + DEPTH_EPSILON) - 1.0


def orientation_loss(raw: Tensor, alpha_rad: Tensor) -> Tensor:
    """(P,) loss of two-bin orientations (paper, sec. 4.1 and supplement; Mousavian et al., arXiv:1612.00496).

    Each bin says whether the angle lies in it (cross-entropy), and in bins where it does the sine and cosine of the
    angle from the bin's middle are learnt (L1). The bins overlap, so an angle lies in one or in both.

    Args:
        raw: (P, 8), for each bin two logits (out, in), sine and cosine.
        alpha_rad: (P,).
    """
    total = torch.zeros_like(alpha_rad)
    for values, middle in zip((raw[:, :4], raw[:, 4:]), BIN_MIDDLES_RAD, strict=True):
        residual = alpha_rad - middle
        # The cosine says how far an angle is, whichever way round it is counted.
        inside = torch.cos(residual) > math.cos(BIN_REACH_RAD)
        wanted = torch.stack([residual.sin(), residual.cos()], dim=1)  # (P, 2)
        angle = (values[:, 2:] - wanted).abs().sum(dim=1)
        total = total + F.cross_entropy(values[:, :2], inside.long(), reduction="none") + inside * angle
    return total


def _box_losses(cells: dict[str, Tensor], targets: TensorTargets, config: TrainConfig, objects: Tensor) -> Losses:
    """Offset, size and overlap: the sum over an object's values, the mean over its cells and over objects."""
    origin = targets.cell_yx.flip(1).float()  # (P, 2) x, y
    size = targets.box_xyxy[:, 2:] - targets.box_xyxy[:, :2]
    centre = (targets.box_xyxy[:, 2:] + targets.box_xyxy[:, :2]) / 2

    def mean(errors: Tensor) -> Tensor:  # (P, n)
        return (errors.sum(dim=1) * targets.weight).sum() / objects

    found_size = cells["size"]
    if config.class_sizes:  # (P, 2C)
        found_size = found_size.reshape(len(found_size), -1, 2)[
            torch.arange(len(found_size), device=found_size.device), targets.class_id
        ]
    wanted_size = size.clamp(min=1e-3).log() if config.size_activation == "exp" else size
    size_error = (
        F.smooth_l1_loss(found_size, wanted_size, reduction="none")
        if config.size_loss == "smooth_l1"
        else (found_size - wanted_size).abs()  # eq. 3
    )
    out = {"size": config.size_weight * mean(size_error)}
    if "offset" in cells:
        out["offset"] = config.offset_weight * mean((cells["offset"] - (centre - origin)).abs())  # eq. 2
    if config.giou_weight:
        decoded = found_size.clamp(max=8).exp() if config.size_activation == "exp" else found_size.clamp(min=1e-3)
        middle = origin + cells.get("offset", torch.full_like(origin, 0.5))
        boxes = torch.cat([middle - decoded / 2, middle + decoded / 2], dim=1)
        out["giou"] = config.giou_weight * mean(1 - generalised_iou(boxes, targets.box_xyxy)[:, None])
    return out


def _joint_regression(raw: Tensor, targets: TensorTargets, config: TrainConfig) -> Tensor:
    """The summed L1 of joints as offsets from the object's cell; (P, 2K) to a number (paper, sec. 4.2)."""
    labelled = targets.keypoints[..., 2]  # (P, K)
    offset = targets.keypoints[..., :2] - targets.cell_yx.flip(1).float()[:, None]  # (P, K, 2)
    if config.keypoint_activation == "box":
        size = targets.box_xyxy[:, 2:] - targets.box_xyxy[:, :2]
        offset = offset / size.clamp(min=1.0)[:, None]
    errors = (raw.reshape(len(raw), raw.shape[1] // 2, 2) - offset).abs().sum(dim=2) * labelled  # (P, K)
    return (errors * targets.weight[:, None]).sum()


def _space_losses(cells: dict[str, Tensor], targets: TensorTargets, config: TrainConfig, boxes3d: Tensor) -> Losses:
    """Depth, dimensions and orientation, each a mean over the objects that have them (paper, sec. 4.1)."""
    weight = targets.weight * targets.has_3d

    def mean(errors: Tensor) -> Tensor:  # (P,)
        return (errors * weight).sum() / boxes3d

    # "using an L1 loss in the original depth domain, after the sigmoidal transformation"
    depth = (decoded_depth(cells["depth"][:, 0]) - targets.depth).abs()
    dimensions = (cells["dimensions"] - targets.dimensions_hwl_m).abs().sum(dim=1)
    return {
        "depth": config.depth_weight * mean(depth),
        "dimensions": config.dimensions_weight * mean(dimensions),
        "rotation": config.rotation_weight * mean(orientation_loss(cells["rotation"], targets.alpha_rad)),
    }


def _gather(heads: dict[str, Tensor], picture: Tensor, cell_yx: Tensor) -> dict[str, Tensor]:
    """(P, C) float32 values of the regression heads at the supervised cells."""
    return {
        name: head[picture, :, cell_yx[:, 0], cell_yx[:, 1]].float()
        for name, head in heads.items()
        if "heatmap" not in name
    }
