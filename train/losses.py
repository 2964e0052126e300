"""The paper's losses: equations 1 to 4, on the heads' raw outputs.

L = L_k + size_weight L_size + offset_weight L_off (eq. 4), and the same two forms again for joints (sec. 4.2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import TensorTargets
from .config import TrainConfig

FOCAL_ALPHA, FOCAL_BETA = 2, 4  # paper, eq. 1
Losses = dict[str, Tensor]


def losses(heads: dict[str, Tensor], targets: TensorTargets, config: TrainConfig) -> Losses:
    """Every term of eq. 4, weighted; their sum is what is minimised.

    Args:
        heads: raw outputs (B, C, h, w).
        targets: of the same batch.
        config: weights, and the activations of the size and keypoint heads.
    """
    out: Losses = {"heatmap": focal_loss(heads["heatmap"], targets.heatmap, targets.counted)}
    num_objects = targets.weight.sum().clamp(min=1.0)
    cells = _gather(heads, targets.picture, targets.cell_yx)
    origin = targets.cell_yx.flip(1).float()  # (P, 2) x, y
    size = targets.box_xyxy[:, 2:] - targets.box_xyxy[:, :2]
    centre = (targets.box_xyxy[:, 2:] + targets.box_xyxy[:, :2]) / 2

    def mean(errors: Tensor) -> Tensor:
        """Sum over an object's values, mean over its cells, mean over objects: (P, n) to a number."""
        return (errors.sum(dim=1) * targets.weight).sum() / num_objects

    wanted_size = size.clamp(min=1e-3).log() if config.size_activation == "exp" else size
    out["size"] = config.size_weight * mean((cells["size"] - wanted_size).abs())  # eq. 3
    out["offset"] = config.offset_weight * mean((cells["offset"] - (centre - origin)).abs())  # eq. 2
    if config.giou_weight:
        decoded = cells["size"].clamp(max=8).exp() if config.size_activation == "exp" else cells["size"].clamp(min=1e-3)
        middle = origin + cells["offset"]
        boxes = torch.cat([middle - decoded / 2, middle + decoded / 2], dim=1)
        out["giou"] = config.giou_weight * mean(1 - generalised_iou(boxes, targets.box_xyxy)[:, None])
    if "keypoint_offset" in heads:
        out |= _keypoint_losses(heads, cells["keypoint_offset"], origin, size, targets, config)
    return out


def focal_loss(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Penalty-reduced pixel-wise logistic regression with focal loss (paper, eq. 1).

    Args:
        logits: (B, C, h, w) before the sigmoid.
        target: (B, C, h, w) in 0..1, exactly 1 at object centres.
        counted: (B, 1, h, w) 0 where negatives are not counted.

    Returns:
        The loss over the number of objects in the batch (at least 1).
    """
    logits = logits.float()
    positive = target == 1
    # At a centre (1 - Y) is 0, so the dense sum has the negatives alone.
    negative_weight = (1 - target).pow(FOCAL_BETA) * counted
    score = torch.sigmoid(logits)
    negatives = (negative_weight * score * score * F.softplus(logits)).sum()
    at_centres = logits[positive]
    positives = ((1 - torch.sigmoid(at_centres)).pow(FOCAL_ALPHA) * F.softplus(-at_centres)).sum()
    return (positives + negatives) / positive.sum().clamp(min=1)


def generalised_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """(P,) generalised IoU of (P, 4) boxes row by row (arXiv:1902.09630)."""
    overlap = (torch.minimum(a_xyxy[:, 2:], b_xyxy[:, 2:]) - torch.maximum(a_xyxy[:, :2], b_xyxy[:, :2])).clamp(min=0)
    hull = torch.maximum(a_xyxy[:, 2:], b_xyxy[:, 2:]) - torch.minimum(a_xyxy[:, :2], b_xyxy[:, :2])
    intersection, hull_area = overlap.prod(dim=1), hull.prod(dim=1).clamp(min=1e-6)
    union = (
        (a_xyxy[:, 2:] - a_xyxy[:, :2]).prod(dim=1) + (b_xyxy[:, 2:] - b_xyxy[:, :2]).prod(dim=1) - intersection
    ).clamp(min=1e-6)
    return intersection / union - (hull_area - union) / hull_area


def _keypoint_losses(
    heads: dict[str, Tensor],
    raw: Tensor,
    origin: Tensor,
    size: Tensor,
    targets: TensorTargets,
    config: TrainConfig,
) -> Losses:
    labelled = targets.keypoints[..., 2]  # (P, K)
    offset = targets.keypoints[..., :2] - origin[:, None]  # (P, K, 2)
    if config.keypoint_activation == "box":
        offset = offset / size.clamp(min=1.0)[:, None]
    errors = (raw.reshape(len(raw), raw.shape[1] // 2, 2) - offset).abs().sum(dim=2) * labelled  # (P, K)
    count = (labelled * targets.weight[:, None]).sum().clamp(min=1.0)
    regression = (errors * targets.weight[:, None]).sum() / count
    joints = heads["keypoint_heatmap_offset"][
        targets.joint_picture, :, targets.joint_cell_yx[:, 0], targets.joint_cell_yx[:, 1]
    ].float()
    joint_offset = (joints - targets.joint_offset).abs().sum() / max(1, len(targets.joint_picture))
    focal = focal_loss(heads["keypoint_heatmap"], targets.keypoint_heatmap, targets.joints_counted)
    return {
        "keypoint_offset": config.keypoint_weight * regression,
        "keypoint_heatmap": config.keypoint_heatmap_weight * focal,
        "keypoint_heatmap_offset": config.offset_weight * joint_offset,
    }


def _gather(heads: dict[str, Tensor], picture: Tensor, cell_yx: Tensor) -> dict[str, Tensor]:
    """(P, C) float32 values of the regression heads at the supervised cells."""
    return {
        name: heads[name][picture, :, cell_yx[:, 0], cell_yx[:, 1]].float()
        for name in ("offset", "size", "keypoint_offset")
        if name in heads
    }
