"""What the network should answer for a picture: heatmaps, and values at the cells of the objects.

Objects as Points (arXiv:1904.07850), sec. 3: every object is a Gaussian on its class's heatmap, and size and
offset are learnt at its centre only. All coordinates here are in the feature frame (cells).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdk.geometry import wrapped

from .samples import Sample

MIN_BOX_FOR_NEIGHBOURS = 3.0  # cells; a smaller object is supervised at its centre alone
MIN_OVERLAP = 0.7  # IoU that a box with its corners moved by the Gaussian's radius still has


@dataclass(frozen=True)
class Targets:
    """The targets of one picture (or of a batch: then heatmaps have a leading B, and rows name their picture).

    P rows are supervised cells of objects, J rows are labelled joints.

    Attributes:
        heatmap: (C, h, w) float32, Y of paper eq. 1; exactly 1 at centres.
        keypoint_heatmap: (K, h, w) float32, the same for joints.
        counted: (1, h, w) float32, 0 where no object found is counted as wrong.
        joints_counted: (1, h, w) float32, the same for joints: also 0 on people whose joints nobody labelled.
        picture: (P,) int64 which picture of the batch.
        cell_yx: (P, 2) int64.
        class_id: (P,) int64.
        box_xyxy: (P, 4) float32.
        weight: (P,) float32; the cells of an object sum to 1.
        keypoints: (P, K, 3) float32 x, y, labelled (0 or 1).
        depth: (P,) float32, metres that the depth head gives: z of the box's centre as `focal_px` would see it.
        dimensions_hwl_m: (P, 3) float32.
        alpha_rad: (P,) float32 in (-pi, pi], yaw as seen along the ray to the object.
        has_3d: (P,) float32, 1 where the three above are known; they are 0 elsewhere.
        joint_picture: (J,) int64.
        joint_cell_yx: (J, 2) int64.
        joint_offset: (J, 2) float32 x, y from the cell's corner.
    """

    heatmap: np.ndarray
    keypoint_heatmap: np.ndarray
    counted: np.ndarray
    joints_counted: np.ndarray
    picture: np.ndarray
    cell_yx: np.ndarray
    class_id: np.ndarray
    box_xyxy: np.ndarray
    weight: np.ndarray
    keypoints: np.ndarray
    depth: np.ndarray
    dimensions_hwl_m: np.ndarray
    alpha_rad: np.ndarray
    has_3d: np.ndarray
    joint_picture: np.ndarray
    joint_cell_yx: np.ndarray
    joint_offset: np.ndarray


def encode(
    sample: Sample,
    *,
    num_classes: int,
    stride: int,
    gaussian: str = "circle",
    positive_cells: int = 1,
    focal_px: float = 1.0,
    class_sizes: bool = False,
) -> Targets:
    """Targets of one picture of network size.

    Args:
        sample: with coordinates in input pixels.
        num_classes: C.
        stride: R of the paper.
        gaussian: "circle" of the paper's radius, or "ellipse" after the box's shape.
        positive_cells: supervise 1 cell, or 3x3 cells around the centre.
        focal_px: `ModelSpec.focal_px`, under which depths are learnt.
        class_sizes: objects of several classes may share a cell, as each class has its own size there.
    """
    height, width = (side // stride for side in sample.image.shape[:2])
    num_keypoints = sample.keypoints.shape[1]
    boxes = sample.boxes_xyxy / stride
    keypoints = np.concatenate([sample.keypoints[..., :2] / stride, sample.keypoints[..., 2:] > 0], axis=-1)
    heatmap = np.zeros((num_classes, height, width), np.float32)
    keypoint_heatmap = np.zeros((num_keypoints, height, width), np.float32)
    sizes = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    cells = np.minimum(centres.astype(np.int64), [width - 1, height - 1])
    for class_id, cell, size in zip(sample.class_ids, cells, sizes, strict=True):
        draw_gaussian(heatmap[class_id], cell, _sigma(size, gaussian))
    joints = _draw_joints(keypoint_heatmap, keypoints, sizes)
    layers = sample.class_ids if class_sizes else np.zeros_like(sample.class_ids)
    rows, row_cells, weights = _supervised_cells(layers, cells, sizes, (width, height), positive_cells)
    depth, dimensions, alpha, has_3d = _boxes_in_space(sample, focal_px)
    return Targets(
        heatmap=heatmap,
        keypoint_heatmap=keypoint_heatmap,
        counted=_counted(sample.ignore_xyxy / stride, heatmap),
        joints_counted=_counted(
            np.concatenate([sample.ignore_xyxy / stride, boxes[~keypoints[..., 2].any(axis=1)]]), keypoint_heatmap
        ),
        picture=np.zeros(len(rows), np.int64),
        cell_yx=row_cells,
        class_id=sample.class_ids[rows],
        box_xyxy=boxes[rows].astype(np.float32),
        weight=weights,
        keypoints=keypoints[rows].astype(np.float32),
        depth=depth[rows],
        dimensions_hwl_m=dimensions[rows],
        alpha_rad=alpha[rows],
        has_3d=has_3d[rows],
        joint_picture=np.zeros(len(joints), np.int64),
        joint_cell_yx=joints[:, 1::-1].astype(np.int64),
        joint_offset=(joints % 1.0).astype(np.float32),
    )


def gaussian_radius(size_wh: np.ndarray, min_overlap: float = MIN_OVERLAP) -> float:
    """The largest shift of both corners of a box that keeps an IoU of `min_overlap` (cells).

    Paper, sec. 3: "an object size-adaptive standard deviation", after CornerNet (arXiv:1808.01244), sec. 3.2.
    The three cases are both corners inside, both outside, and one of each; the smallest radius holds for all.

    >>> round(gaussian_radius(np.array([20.0, 20.0])), 3)
    1.633
    """
    width, height = float(size_wh[0]), float(size_wh[1])
    total, area = width + height, width * height
    # One corner in, one out: (w - r)(h - r) / (2wh - (w - r)(h - r)) = m.
    diagonal = _smaller_root(1.0, -total, area * (1 - min_overlap) / (1 + min_overlap))
    # Both inside: (w - 2r)(h - 2r) = m wh.
    inside = _smaller_root(4.0, -2 * total, area * (1 - min_overlap))
    # Both outside: wh = m (w + 2r)(h + 2r).
    b, c = 2 * min_overlap * total, (min_overlap - 1) * area
    outside = (-b + np.sqrt(b * b - 16 * min_overlap * c)) / (8 * min_overlap)
    return float(max(0.0, min(diagonal, inside, outside)))


def draw_gaussian(heatmap: np.ndarray, cell_xy: Sequence[int] | np.ndarray, sigma_xy: tuple[float, float]) -> None:
    """Draw exp(-dx^2 / 2 sx^2 - dy^2 / 2 sy^2) around a cell, keeping the larger value where two overlap."""
    height, width = heatmap.shape
    x, y = int(cell_xy[0]), int(cell_xy[1])
    reach_x, reach_y = int(3 * sigma_xy[0]), int(3 * sigma_xy[1])
    left, right = max(0, x - reach_x), min(width, x + reach_x + 1)
    top, bottom = max(0, y - reach_y), min(height, y + reach_y + 1)
    along_x = np.exp(-((np.arange(left, right) - x) ** 2) / (2 * sigma_xy[0] ** 2))
    along_y = np.exp(-((np.arange(top, bottom) - y) ** 2) / (2 * sigma_xy[1] ** 2))
    window = heatmap[top:bottom, left:right]
    np.maximum(window, along_y[:, None] * along_x, out=window, casting="same_kind")


def collate(parts: Sequence[Targets]) -> Targets:
    """The targets of a batch."""
    counts = [len(part.cell_yx) for part in parts]
    joint_counts = [len(part.joint_cell_yx) for part in parts]
    numbers = np.arange(len(parts))

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    def stacked(name: str) -> np.ndarray:
        return np.stack([getattr(part, name) for part in parts])

    return Targets(
        heatmap=stacked("heatmap"),
        keypoint_heatmap=stacked("keypoint_heatmap"),
        counted=stacked("counted"),
        joints_counted=stacked("joints_counted"),
        picture=np.repeat(numbers, counts),
        cell_yx=joined("cell_yx"),
        class_id=joined("class_id"),
        box_xyxy=joined("box_xyxy"),
        weight=joined("weight"),
        keypoints=joined("keypoints"),
        depth=joined("depth"),
        dimensions_hwl_m=joined("dimensions_hwl_m"),
        alpha_rad=joined("alpha_rad"),
        has_3d=joined("has_3d"),
        joint_picture=np.repeat(numbers, joint_counts),
        joint_cell_yx=joined("joint_cell_yx"),
        joint_offset=joined("joint_offset"),
    )


def _smaller_root(a: float, b: float, c: float) -> float:
    return float((-b - np.sqrt(max(0.0, b * b - 4 * a * c))) / (2 * a))


def _sigma(size_wh: np.ndarray, gaussian: str) -> tuple[float, float]:
    """Standard deviation in cells; a diameter is six of them, as in CornerNet."""
    if gaussian == "circle":
        # Sides are rounded up and the radius down, so that small objects do not vanish.
        sigma = (2 * int(gaussian_radius(np.ceil(size_wh))) + 1) / 6
        return sigma, sigma
    # TTFNet (arXiv:1909.00700), eq. 1: radius = 0.54 / 2 of each side.
    return (0.54 * float(size_wh[0]) + 1) / 6, (0.54 * float(size_wh[1]) + 1) / 6


def _draw_joints(keypoint_heatmap: np.ndarray, keypoints: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Draw the labelled joints; returns their (J, 3) x, y and type, in cells.

    The spread follows the person's size, as the tolerance of COCO's object keypoint similarity does.
    """
    _, height, width = keypoint_heatmap.shape
    found = []
    for person, size in zip(keypoints, sizes, strict=True):
        sigma = float(np.clip(0.06 * np.sqrt(size.prod()), 0.55, 3.0))
        for kind in np.flatnonzero(person[:, 2]):
            x, y = person[kind, :2]
            if 0 <= x < width and 0 <= y < height:
                draw_gaussian(keypoint_heatmap[kind], (int(x), int(y)), (sigma, sigma))
                found.append((x, y))
    return np.array(found, np.float64).reshape(-1, 2)


def _supervised_cells(
    layers: np.ndarray, cells: np.ndarray, sizes: np.ndarray, wh: tuple[int, int], positive_cells: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which object each supervised cell belongs to, the cells (y, x), and their weights.

    Where two objects of one layer claim a cell, its own centre goes first, then the smaller object.
    """
    owners: dict[tuple[int, int, int], int] = {}
    for row in np.argsort(-sizes.prod(axis=1), kind="stable"):
        if positive_cells == 3 and sizes[row].min() >= MIN_BOX_FOR_NEIGHBOURS:
            x, y = cells[row]
            for near_y in range(max(0, y - 1), min(wh[1], y + 2)):
                for near_x in range(max(0, x - 1), min(wh[0], x + 2)):
                    owners[int(layers[row]), near_y, near_x] = int(row)
    for row in np.argsort(-sizes.prod(axis=1), kind="stable"):
        owners[int(layers[row]), int(cells[row][1]), int(cells[row][0])] = int(row)
    rows = np.array(list(owners.values()), np.int64)
    counts = np.bincount(rows, minlength=len(cells))
    row_cells = np.array(list(owners), np.int64).reshape(-1, 3)[:, 1:]
    return rows, row_cells, (1.0 / np.maximum(counts[rows], 1)).astype(np.float32)


def _boxes_in_space(sample: Sample, focal_px: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(N,) depths, (N, 3) dimensions, (N,) alphas and (N,) whether they are known, all float32.

    Half as far away under half the focal length looks the same. So the depth head learns z / f, times a constant, and
    scaled pictures and other cameras agree with each other. Likewise the picture of an object does not show its yaw,
    but the yaw relative to the ray that sees it (Mousavian et al., arXiv:1612.00496, fig. 3).
    """
    count = len(sample.boxes_xyxy)
    if sample.boxes3d is None or sample.camera is None:
        none = np.zeros(count, np.float32)
        return none, np.zeros((count, 3), np.float32), none, none
    x, _, z = sample.boxes3d.center_m.T
    depth = z * (focal_px / sample.camera.focal_px)
    alpha = wrapped(sample.boxes3d.yaw_rad - np.arctan2(x, z))
    values = np.column_stack([depth, sample.boxes3d.size_hwl_m, alpha]).astype(np.float32)  # (N, 5)
    # An object behind the camera's plane has no depth that the head could give.
    known = np.isfinite(values).all(axis=1) & (depth > 0)
    values[~known] = 0.0
    return values[:, 0], values[:, 1:4], values[:, 4], known.astype(np.float32)


def _counted(ignored_xyxy: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """0 inside regions to ignore, except where an object's own Gaussian is."""
    counted = np.ones((1, *heatmap.shape[1:]), np.float32)
    for left, top, right, bottom in ignored_xyxy:
        counted[0, int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = 0
    if len(heatmap):
        counted[0][heatmap.max(axis=0) >= 0.5] = 1
    return counted
