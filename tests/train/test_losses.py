from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from sdk.camera import CameraIntrinsics
from sdk.results import Boxes3D
from tests.train.test_targets import make_sample
from train.batches import TensorTargets
from train.config import TrainConfig
from train.losses import (
    Losses,
    decoded_depth,
    focal_loss,
    generalised_iou,
    loss_counts,
    losses,
    orientation_loss,
    stacked_losses,
)
from train.targets import collate, encode


def literal_focal_loss(logits: Any, target: Any, counted: Any) -> float:
    """Paper, eq. 1, cell by cell, with alpha 2 and beta 4."""
    total, num_objects = 0.0, 0
    for index in np.ndindex(*target.shape):
        predicted = 1 / (1 + np.exp(-float(logits[index])))  # Y hat
        wanted = float(target[index])  # Y
        if wanted == 1:
            num_objects += 1
            total += (1 - predicted) ** 2 * np.log(predicted)
        elif counted[index[0], 0, index[2], index[3]]:
            total += (1 - wanted) ** 4 * predicted**2 * np.log(1 - predicted)
    return -total / max(1, num_objects)


@given(seed=st.integers(0, 1000), num_objects=st.integers(0, 4))
def test_the_focal_loss_is_equation_1(seed: int, num_objects: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (2, 3, 4, 5))
    target = rng.uniform(0, 0.999, (2, 3, 4, 5))
    target.ravel()[rng.choice(target.size, num_objects, replace=False)] = 1
    counted = (rng.random((2, 1, 4, 5)) > 0.2).astype(np.float64)
    loss = focal_loss(*(torch.from_numpy(array.astype(np.float32)) for array in (logits, target, counted)))
    assert float(loss) == pytest.approx(
        literal_focal_loss(logits.astype(np.float32), target.astype(np.float32), counted), rel=1e-4
    )


def test_the_focal_loss_without_objects_is_that_of_the_negatives() -> None:
    quiet, loud = torch.full((1, 1, 4, 4), -10.0), torch.full((1, 1, 4, 4), 3.0)
    zeros, ones = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    assert float(focal_loss(quiet, zeros, ones)) < 1e-6
    assert float(focal_loss(loud, zeros, ones)) > 10
    assert float(focal_loss(loud, zeros, torch.zeros_like(ones))) == 0.0


def test_the_focal_loss_is_finite_for_extreme_outputs() -> None:
    logits = torch.tensor([[[[-1000.0, 1000.0], [1000.0, -1000.0]]]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]), torch.ones(1, 1, 2, 2))
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss) and logits.grad is not None and torch.isfinite(logits.grad).all()


def test_an_ignored_region_gets_no_gradient_but_its_objects_do() -> None:
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    target = torch.zeros(1, 1, 4, 4)
    target[0, 0, 1, 1] = 1
    counted = torch.ones(1, 1, 4, 4)
    counted[0, 0, :2] = 0
    focal_loss(logits, target, counted).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    gradient = logits.grad[0, 0]
    assert gradient[1, 1] < 0  # to be raised
    assert (gradient[2:] > 0).all()  # to be lowered
    assert gradient[0].abs().max() == 0 and gradient[1, 2] == 0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
        ([0, 0, 2, 2], [0, 0, 2, 1], 0.5),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7 - 2 / 9),  # the hull of 9 has 2 of neither
        ([0, 0, 1, 1], [1, 0, 2, 1], 0.0),  # they touch
        ([0, 0, 1, 1], [9, 0, 10, 1], -0.8),
    ],
)
def test_generalised_iou(a: list[float], b: list[float], expected: float) -> None:
    boxes = torch.tensor([a, b], dtype=torch.float32)
    assert generalised_iou(boxes, boxes.flip(0)).tolist() == pytest.approx([expected, expected], abs=1e-6)


def _values(terms: Losses) -> dict[str, float]:
    return {name: float(term.detach()) for name, term in terms.items()}


def _targets(*samples: Any, **options: Any) -> TensorTargets:
    parts = [encode(sample, num_classes=1, stride=4, **options) for sample in samples]
    return TensorTargets.from_arrays(collate(parts))


POSE = replace(TrainConfig(), task="pose", giou_weight=2.0, size_activation="exp", keypoint_activation="box")
VARIANTS = [
    TrainConfig(),
    replace(TrainConfig(), task="pose"),
    POSE,
    replace(POSE, positive_cells=3, gaussian="ellipse"),
    replace(TrainConfig(), task="3d"),
    replace(POSE, task="pose+3d", positive_cells=3, size_loss="smooth_l1"),
]


def perfect_rotation(alpha_rad: float) -> Tensor:
    """The eight raw values of an angle, bin by bin as the official code writes them (facts: bins overlap)."""
    first = alpha_rad < np.pi / 6 or alpha_rad > 5 * np.pi / 6
    second = alpha_rad > -np.pi / 6 or alpha_rad < -5 * np.pi / 6
    values: list[float] = []
    for inside, residual in ((first, alpha_rad + np.pi / 2), (second, alpha_rad - np.pi / 2)):
        values += [-20.0, 20.0] if inside else [20.0, -20.0]
        values += [float(np.sin(residual)), float(np.cos(residual))]
    return torch.tensor(values)


def perfect_heads(targets: TensorTargets, config: TrainConfig) -> dict[str, Tensor]:
    """Raw outputs that say exactly what the targets say."""
    pictures, _, height, width = targets.heatmap.shape
    num_keypoints = targets.keypoints.shape[1]
    heads = {
        "heatmap": torch.where(targets.heatmap == 1, 30.0, -30.0),
        "offset": torch.zeros(pictures, 2, height, width),
        "size": torch.zeros(pictures, 2, height, width),
    }
    if "pose" in config.task:
        heads["keypoint_offset"] = torch.zeros(pictures, 2 * num_keypoints, height, width)
        heads["keypoint_heatmap"] = torch.where(targets.keypoint_heatmap == 1, 30.0, -30.0)
        heads["keypoint_heatmap_offset"] = torch.zeros(pictures, 2, height, width)
    if "3d" in config.task:
        heads |= {
            name: torch.zeros(pictures, channels, height, width)
            for name, channels in (("depth", 1), ("rotation", 8), ("dimensions", 3))
        }
    for row, (picture, (y, x)) in enumerate(zip(targets.picture.tolist(), targets.cell_yx.tolist(), strict=True)):
        if "3d" in config.task:
            heads["depth"][picture, 0, y, x] = torch.logit(1 / (targets.depth[row] + 1) - 1e-6)
            heads["rotation"][picture, :, y, x] = perfect_rotation(float(targets.alpha_rad[row]))
            heads["dimensions"][picture, :, y, x] = targets.dimensions_hwl_m[row]
        box = targets.box_xyxy[row]
        size, cell = box[2:] - box[:2], torch.tensor([x, y])
        heads["offset"][picture, :, y, x] = (box[:2] + box[2:]) / 2 - cell
        heads["size"][picture, :, y, x] = size.log() if config.size_activation == "exp" else size
        if "pose" in config.task:
            offsets = targets.keypoints[row, :, :2] - cell
            unit = size if config.keypoint_activation == "box" else 1.0
            heads["keypoint_offset"][picture, :, y, x] = (offsets / unit).flatten()
    if "pose" in config.task:
        for row, (picture, (y, x)) in enumerate(
            zip(targets.joint_picture.tolist(), targets.joint_cell_yx.tolist(), strict=True)
        ):
            heads["keypoint_heatmap_offset"][picture, :, y, x] = targets.joint_offset[row]
    return heads


def _scene(config: TrainConfig) -> TensorTargets:
    joints = [[[10, 21, 2], [30, 31, 1], [0, 0, 0]], [[50, 51, 2], [60, 42, 2], [45, 61, 2]]]
    first = make_sample([[4, 4, 40, 60], [42, 40, 62, 63]], keypoints=joints)
    second = make_sample([[7, 9, 57, 30]], keypoints=np.zeros((1, 3, 3)))
    # The second object of the first picture has no place in space.
    boxes3d = Boxes3D(
        np.array([[-1, 0.2, 6], [np.nan] * 3], np.float32),
        np.array([[1.5, 1.6, 4], [np.nan] * 3], np.float32),
        np.array([0.1, np.nan], np.float32),
    )
    first = replace(first, boxes3d=boxes3d, camera=CameraIntrinsics(np.array([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]])))
    options = {"gaussian": config.gaussian, "positive_cells": config.positive_cells, "focal_px": 64.0}
    return _targets(first, second, **options)


@pytest.mark.parametrize("config", VARIANTS)
def test_a_perfect_answer_costs_nothing(config: TrainConfig) -> None:
    targets = _scene(config)
    terms = _values(losses(perfect_heads(targets, config), targets, config))
    assert terms == dict.fromkeys(terms, pytest.approx(0.0, abs=1e-4))
    assert ("giou" in terms) == (config.giou_weight > 0)
    assert ("keypoint_offset" in terms) == ("pose" in config.task)
    assert ({"depth", "rotation", "dimensions"} <= set(terms)) == ("3d" in config.task)


@pytest.mark.parametrize("config", VARIANTS)
def test_every_term_teaches_the_heads_that_it_is_about(config: TrainConfig) -> None:
    targets = _scene(config)
    heads = {name: (head + 0.3).requires_grad_() for name, head in perfect_heads(targets, config).items()}
    heads["heatmap"] = torch.zeros_like(heads["heatmap"], requires_grad=True)
    terms = losses(heads, targets, config)
    assert all(value > 0 for value in _values(terms).values()), terms
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    for name, head in heads.items():
        assert head.grad is not None and torch.isfinite(head.grad).all()
        assert head.grad.abs().sum() > 0, name
    # Sizes are learnt at the objects' cells alone.
    assert heads["size"].grad is not None
    learnt = set(map(tuple, torch.nonzero(heads["size"].grad.abs().sum(dim=1)).tolist()))
    assert learnt == {(p, *yx) for p, yx in zip(targets.picture.tolist(), targets.cell_yx.tolist(), strict=True)}


def test_size_and_offset_are_equations_2_to_4() -> None:
    config = TrainConfig()  # lambda_size 0.1, lambda_off 1
    targets = _scene(config)
    heads = perfect_heads(targets, config)
    generator = torch.Generator().manual_seed(0)
    noisy = {name: head + torch.randn(head.shape, generator=generator) for name, head in heads.items()}
    size_sum = offset_sum = 0.0
    for picture, (y, x) in zip(targets.picture.tolist(), targets.cell_yx.tolist(), strict=True):
        size_sum += float((noisy["size"] - heads["size"])[picture, :, y, x].abs().sum())
        offset_sum += float((noisy["offset"] - heads["offset"])[picture, :, y, x].abs().sum())
    terms = losses(noisy, targets, config)
    assert float(terms["size"]) == pytest.approx(0.1 * size_sum / 3, rel=1e-5)  # N = 3 objects
    assert float(terms["offset"]) == pytest.approx(offset_sum / 3, rel=1e-5)


def test_smooth_l1_is_the_papers_ablation() -> None:
    targets = _scene(TrainConfig())
    heads = perfect_heads(targets, TrainConfig())
    for error, expected in ((0.5, 0.5 * 0.5**2), (3.0, 3.0 - 0.5)):
        wrong = {**heads, "size": heads["size"] + error}
        smooth = losses(wrong, targets, replace(TrainConfig(), size_loss="smooth_l1"))
        assert float(smooth["size"]) == pytest.approx(0.1 * 2 * expected, rel=1e-5)
        assert float(losses(wrong, targets, TrainConfig())["size"]) == pytest.approx(0.1 * 2 * error, rel=1e-5)


@given(alpha=st.floats(-np.pi, np.pi), seed=st.integers(0, 1000))
def test_the_orientation_loss_is_two_bins_of_cross_entropy_and_l1(alpha: float, seed: int) -> None:
    raw = np.random.default_rng(seed).normal(0, 2, 8)
    expected = 0.0
    bins = (
        (alpha < np.pi / 6 or alpha > 5 * np.pi / 6, np.pi / 2),
        (alpha > -np.pi / 6 or alpha < -5 * np.pi / 6, -np.pi / 2),
    )
    for (inside, shift), (out_logit, in_logit, sine, cosine) in zip(bins, raw.reshape(2, 4), strict=True):
        expected += np.log(1 + np.exp(out_logit - in_logit if inside else in_logit - out_logit))
        if inside:
            expected += abs(sine - np.sin(alpha + shift)) + abs(cosine - np.cos(alpha + shift))
    # At a border between two bins either answer is right.
    assume(min(abs(abs(alpha) - np.pi / 6), abs(abs(alpha) - 5 * np.pi / 6)) > 1e-4)
    loss = orientation_loss(torch.tensor(raw[None], dtype=torch.float32), torch.tensor([alpha], dtype=torch.float32))
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_depth_and_dimensions_are_l1_in_metres_over_the_objects_that_have_them() -> None:
    config = replace(TrainConfig(), task="3d", depth_weight=2.0, dimensions_weight=3.0)
    targets = _scene(config)
    heads = perfect_heads(targets, config)
    known = targets.has_3d == 1
    assert known.sum() == 1 and float(targets.depth[known]) == pytest.approx(6 * 64 / 60, rel=1e-6)
    deeper = torch.logit(1 / (targets.depth[known] + 1.5 + 1) - 1e-6)
    picture, (y, x) = targets.picture[known], targets.cell_yx[known][0].tolist()
    heads["depth"][picture, 0, y, x] = deeper
    terms = losses({**heads, "dimensions": heads["dimensions"] + 0.25}, targets, config)
    assert float(terms["depth"]) == pytest.approx(2 * 1.5, rel=1e-4)
    assert float(terms["dimensions"]) == pytest.approx(3 * 3 * 0.25, rel=1e-4)
    assert float(decoded_depth(torch.tensor(-200.0))) < 1.1e6


@pytest.mark.parametrize("config", VARIANTS)
def test_parts_of_a_batch_add_up_to_the_whole(config: TrainConfig) -> None:
    whole, parts = _scene(config), _pictures(_scene(config))
    heads = {
        name: (head.clamp(-1, 1) + 0.2 * torch.randn(head.shape, generator=torch.Generator().manual_seed(0)))
        for name, head in perfect_heads(whole, config).items()
    }
    expected = losses(heads, whole, config)
    counts = torch.stack([loss_counts(part) for part in parts]).sum(dim=0)
    torch.testing.assert_close(counts, loss_counts(whole))
    terms = [
        losses({name: head[i : i + 1] for name, head in heads.items()}, part, config, counts)
        for i, part in enumerate(parts)
    ]
    for name, value in expected.items():
        assert float(sum(each[name] for each in terms)) == pytest.approx(float(value), rel=1e-5)


def _pictures(batch: TensorTargets) -> list[TensorTargets]:
    """The targets of each picture of a batch."""
    per_picture = ("heatmap", "keypoint_heatmap", "counted", "joints_counted")
    out = []
    for number in range(len(batch.heatmap)):
        values = {}
        for field in fields(batch):
            value = getattr(batch, field.name)
            of_joints = field.name.startswith("joint_")
            rows = (batch.joint_picture if of_joints else batch.picture) == number
            values[field.name] = value[number : number + 1] if field.name in per_picture else value[rows]
        values["picture"] = values["picture"] * 0
        values["joint_picture"] = values["joint_picture"] * 0
        out.append(TensorTargets(**values))
    return out


def test_stacks_are_averaged() -> None:
    config = replace(TrainConfig(), task="pose+3d")
    targets = _scene(config)
    perfect = perfect_heads(targets, config)
    wrong = {name: head * 0.5 + 0.1 for name, head in perfect.items()}
    single, both = losses(wrong, targets, config), stacked_losses([perfect, wrong], targets, config)
    assert set(both) == set(single)
    for name, value in single.items():
        assert float(both[name]) == pytest.approx(float(value) / 2, rel=1e-3, abs=1e-5)
    torch.testing.assert_close(stacked_losses([wrong], targets, config), single)


def test_nine_cells_weigh_as_much_as_one() -> None:
    for config in (POSE, replace(POSE, positive_cells=3)):
        targets = _scene(config)
        heads = perfect_heads(targets, config)
        terms = losses({**heads, "size": heads["size"] + 0.5, "offset": heads["offset"] - 0.25}, targets, config)
        assert float(terms["size"]) == pytest.approx(0.1 * 2 * 0.5, rel=1e-4)
        assert float(terms["offset"]) == pytest.approx(2 * 0.25, rel=1e-4)


def test_unlabelled_keypoints_teach_nothing() -> None:
    config = replace(TrainConfig(), task="pose")
    targets = _scene(config)
    heads = perfect_heads(targets, config)
    # The first person's third joint, and all of the person in the second picture, are not labelled.
    (y, x) = targets.cell_yx[targets.picture == 1][0].tolist()
    wrong = heads["keypoint_offset"].clone()
    wrong[1, :, y, x] += 100
    terms = losses({**heads, "keypoint_offset": wrong}, targets, config)
    assert float(terms["keypoint_offset"]) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("config", VARIANTS)
def test_a_batch_without_objects(config: TrainConfig) -> None:
    empty = make_sample(np.zeros((0, 4)), keypoints=np.zeros((0, 17, 3)))
    targets = _targets(empty, empty, positive_cells=config.positive_cells)
    heads = {
        name: (head + 1).to(memory_format=torch.channels_last).requires_grad_()
        for name, head in perfect_heads(targets, config).items()
    }
    terms = losses(heads, targets, config)
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(term) for term in terms.values())
    assert max(_values(terms).values()) < 1e-3


def test_half_precision_outputs_are_summed_in_full() -> None:
    targets = _scene(POSE)
    heads = {name: head + 0.1 for name, head in perfect_heads(targets, POSE).items()}
    full = losses(heads, targets, POSE)
    half = losses({name: head.bfloat16() for name, head in heads.items()}, targets, POSE)
    for name, term in half.items():
        assert term.dtype == torch.float32
        assert float(term) == pytest.approx(float(full[name]), rel=0.1, abs=0.02)
