"""From what the heads say at a peak to a metric box in front of the camera.

Objects as Points (arXiv:1904.07850), sec. 4.1: depth, dimensions and orientation are read at the centre of the 2D box,
the orientation in two bins after Mousavian et al. (arXiv:1612.00496). docs/3d.md has the equations; users call
`assemble`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .camera import CameraIntrinsics
from .geometry import Affine, wrapped
from .results import Boxes3D
from .spec import ModelSpec

FloatArray = npt.NDArray[np.floating[Any]]

_MAX_ROUNDS = 12  # of Newton's method; most boxes need four
_PRECISE_M = 1e-5  # a step at which there is nothing left to gain
_NEAREST_M = 0.1  # corners nearer than this, or behind the camera, are seen as if they were here
_LARGEST_M = 1000.0  # of a dimension: a broken model stays finite


def locate(
    values: Mapping[str, npt.NDArray[np.float32]],
    boxes_xyxy: FloatArray,
    spec: ModelSpec,
    camera: CameraIntrinsics,
    feature_to_image: Affine,
    *,
    image_wh: tuple[int, int],
) -> Boxes3D:
    """The 3D boxes of N objects.

    Args:
        values: raw `depth` (N, 1), `dimensions` (N, 3) and `rotation` (N, 8).
        boxes_xyxy: (N, 4) decoded 2D boxes in image pixels, not clipped.
        spec: of a 3D model; official models (`decoding` "centernet") are read as the official code does.
        camera: of the image.
        feature_to_image: from feature cells to image pixels; scale and shift.
        image_wh: what lies outside it is not seen.
    """
    values_64 = {name: values[name].astype(np.float64) for name in ("depth", "dimensions", "rotation")}
    size_hwl = values_64["dimensions"]
    if spec.head("dimensions").activation == "exp":
        size_hwl = np.exp(np.minimum(size_hwl, np.log(_LARGEST_M)))
    depth = _depth(values_64["depth"][:, 0])
    if spec.decoding == "centernet":
        center, yaw = _place_as_official(depth, values_64["rotation"], boxes_xyxy, camera)
    else:
        size_hwl = np.clip(size_hwl, 0.0, _LARGEST_M)
        if spec.focal_px is not None:
            # Half as far away under half the focal length looks the same: the head speaks of `focal_px`.
            focal_px = camera.moved(feature_to_image.inverse()).focal_px * spec.stride  # of the network's input
            depth = depth * (focal_px / spec.focal_px)
        alpha = wrapped(_alpha(values_64["rotation"], _is_first_bin(values_64["rotation"])))
        edges = boxes_xyxy.reshape(-1, 2, 2)
        cell_wh = np.abs(np.diag(feature_to_image.matrix))
        weights = _weights_of_edges(edges, cell_wh, image_wh)
        center, yaw = _place(np.maximum(depth, 0.0), size_hwl, alpha, edges, weights, camera)
    return Boxes3D(center.astype(np.float32), size_hwl.astype(np.float32), yaw.astype(np.float32))


def _depth(raw: FloatArray) -> FloatArray:
    """(N,) d = 1 / sigmoid(x) - 1 (paper, sec. 4.1), with the official code's 1e-6 against a division by 0."""
    sigmoid = 1.0 / (1.0 + np.exp(-np.clip(raw, -80.0, 80.0)))
    return np.asarray(1.0 / (sigmoid + 1e-6) - 1.0)


def _is_first_bin(rotation: FloatArray) -> npt.NDArray[np.bool_]:
    """(N,) whether the softmax of the first bin gives "inside" the larger probability: it grows with the margin."""
    return np.asarray(rotation[:, 1] - rotation[:, 0] > rotation[:, 5] - rotation[:, 4])


def _alpha(rotation: FloatArray, is_first: npt.NDArray[np.bool_]) -> FloatArray:
    """(N,) angle at which the camera sees the object: bin centre, -pi/2 or pi/2, plus the angle within the bin.

    Each bin has four channels: the logits of outside and inside, sine and cosine.
    """
    first = np.arctan2(rotation[:, 2], rotation[:, 3]) - np.pi / 2
    second = np.arctan2(rotation[:, 6], rotation[:, 7]) + np.pi / 2
    return np.where(is_first, first, second)


def _place_as_official(
    depth: FloatArray, rotation: FloatArray, boxes_xyxy: FloatArray, camera: CameraIntrinsics
) -> tuple[FloatArray, FloatArray]:
    """(N, 3) centres and (N,) yaws of an official model.

    The centre of the 2D box counts as the picture of the 3D centre, and the depth includes the last entry of KITTI's P.
    The bin is chosen by the raw logits of "inside", and the ray leaves out P's last column.
    """
    p = camera.projection
    points = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    center = camera.unproject(points, depth - p[2, 3])
    yaw = _alpha(rotation, rotation[:, 1] > rotation[:, 5]) + np.arctan2(points[:, 0] - p[0, 2], p[0, 0])
    yaw = np.where(yaw > np.pi, yaw - 2 * np.pi, yaw)
    return center, np.where(yaw < -np.pi, yaw + 2 * np.pi, yaw)


def _weights_of_edges(edges: FloatArray, cell_wh: FloatArray, image_wh: tuple[int, int]) -> FloatArray:
    """(N, 2, 2) how much each edge of a 2D box (N, 2: near and far, 2: x and y) says of where the object is.

    An edge within a cell of the image's border is taken to be cut there, and says nothing while the opposite one does.
    """
    borders = np.array([[0, 0], image_wh])
    is_free = np.abs(edges - borders) > cell_wh
    is_free |= ~is_free.any(axis=1, keepdims=True)
    return np.asarray(is_free / is_free.sum(axis=1, keepdims=True))


def _place(
    depth: FloatArray,
    size_hwl: FloatArray,
    alpha: FloatArray,
    edges: FloatArray,
    weights: FloatArray,
    camera: CameraIntrinsics,
) -> tuple[FloatArray, FloatArray]:
    """(N, 3) centres and (N,) yaws of the boxes whose picture has the edges (N, 2, 2) of the detected 2D box.

    The centre of the 2D box is not the picture of the 3D centre: near corners spread further than far ones. So find
    the x, y at which the 2D box around the projected corners has the detected centre, or the one edge that is not
    cut by the border. By Newton's method: a corner at depth Z moves by f / Z pixels a metre. The yaw follows x, for
    the network sees alpha, the yaw relative to the ray.
    """
    p = camera.projection
    focal = np.diag(p)[:2]  # fx, fy
    middle = edges.mean(axis=1)
    center = camera.unproject(middle, depth)
    # The ray of `middle` meets the box, so the box's centre can be no further away from it than this.
    reach = np.linalg.norm(size_hwl, axis=1)[:, None] / 2 * (1 + np.abs((middle - p[:2, 2]) / focal))
    lowest, highest = center[:, :2] - reach, center[:, :2] + reach
    yaw = alpha + np.arctan2(center[:, 0], center[:, 2])
    for _ in range(_MAX_ROUNDS):
        corners = Boxes3D(center, size_hwl, yaw).corners_m()  # (N, 8, 3)
        seen_z = np.maximum(corners @ p[2, :3] + p[2, 3], _NEAREST_M)  # (N, 8)
        pixels = (corners @ p[:2, :3].T + p[:2, 3]) / seen_z[..., None]  # (N, 8, 2)
        corner_of_edge = np.stack([pixels.argmin(axis=1), pixels.argmax(axis=1)], axis=1)  # (N, 2, 2)
        missing = edges - np.take_along_axis(pixels, corner_of_edge, axis=1)
        px_per_m = focal / np.take_along_axis(seen_z[..., None], corner_of_edge, axis=1)
        step = (weights * missing).sum(axis=1) / (weights * px_per_m).sum(axis=1)
        center[:, :2] = np.clip(center[:, :2] + step, lowest, highest)
        yaw = alpha + np.arctan2(center[:, 0], center[:, 2])
        if np.abs(step).max(initial=0.0) < _PRECISE_M:
            break
    return center, wrapped(yaw)
