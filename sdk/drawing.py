"""Pictures of what was found: boxes in the image and in space, labels and skeletons.

::

    picture = draw(frame.image, detections, skeleton=spec.skeleton, keypoint_names=spec.keypoint_names)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .camera import CameraIntrinsics
from .opencv import load_cv2
from .preprocessing import as_bgr
from .results import Boxes3D, Detections, Keypoints

Image = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

# BGR, told apart by most colour-blind eyes (after Okabe and Ito).
_PALETTE: tuple[Colour, ...] = (
    (115, 200, 40), (230, 160, 60), (60, 190, 250), (180, 120, 220), (70, 110, 240),
    (220, 220, 90), (150, 230, 230), (240, 140, 160), (110, 170, 130), (200, 200, 200),
)  # fmt: skip
_LEFT: Colour = (60, 170, 255)
_RIGHT: Colour = (255, 170, 60)
_MIDDLE: Colour = (235, 235, 235)
_DARK: Colour = (25, 25, 25)
_SUBPIXEL_BITS = 4  # OpenCV draws at sixteenths of a pixel
# Corners of a box in space, in the order of `Boxes3D.corners_m`.
_BOX_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
_FRONT_CROSS = ((0, 5), (1, 4))
_NEAREST_M = 0.1  # what is nearer to the camera is not drawn
_FURTHEST_PX = 1e6  # from the image's corner: OpenCV's integers end somewhere


def draw(
    image: Image,
    detections: Detections,
    *,
    skeleton: Sequence[tuple[int, int]] = (),
    keypoint_names: Sequence[str] = (),
    min_keypoint_score: float = 0.1,
    intrinsics: CameraIntrinsics | None = None,
) -> Image:
    """A copy of the image with boxes, classes, scores, keypoints and bones drawn in.

    Boxes are coloured by track, or by class without tracks. Keypoints and bones have one colour for the
    left side of the body, one for the right, where the names tell the sides. With intrinsics, boxes in space take
    the place of those in the image: their edges, and a cross on the front.

    Args:
        image: (H, W, 3) uint8 BGR, or what `as_bgr` converts to it; it is not changed.
        detections: in pixels of that image.
        skeleton: pairs of keypoints that a bone joins.
        keypoint_names: "left_..." and "right_..." give the colours.
        min_keypoint_score: keypoints below it are left out, and the bones that end there.
        intrinsics: of the camera that took the image.

    Raises:
        InputError: the image is none.
    """
    canvas: Image = as_bgr(image).copy()
    weakest_first = range(len(detections) - 1, -1, -1)
    for row in weakest_first:
        if intrinsics is None or detections.boxes3d is None:
            _draw_box(canvas, detections, row)
        else:
            _draw_box3d(canvas, detections.boxes3d[row], intrinsics, _colour(detections, row))
        _draw_label(canvas, detections, row)
    if detections.keypoints is not None:
        for row in weakest_first:
            person = detections.keypoints[row]
            _draw_pose(canvas, person, skeleton, keypoint_names, min_keypoint_score)
    return canvas


def draw_status(image: Image, text: str) -> Image:
    """A copy of the image with a line of text at the top left, on a darkened strip."""
    cv2 = load_cv2()
    canvas: Image = as_bgr(image).copy()
    scale, thickness = _font(canvas)
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    margin = max(3, height // 2)
    strip = canvas[: height + baseline + 2 * margin, : width + 2 * margin]
    strip[:] = strip // 3
    _put_text(canvas, text, (margin, margin + height), (255, 255, 255))
    return canvas


def _draw_box(canvas: Image, detections: Detections, row: int) -> None:
    if not np.isfinite(detections.xyxy[row]).all():
        return
    x1, y1, x2, y2 = _whole_pixels(canvas, detections.xyxy[row])
    width = _line_width(canvas)
    cv2 = load_cv2()
    cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), _colour(detections, row), width, cv2.LINE_AA)


def _draw_box3d(canvas: Image, box: Boxes3D, camera: CameraIntrinsics, colour: Colour) -> None:
    """One box in space, of N = 1: what of its edges and of the cross on its front lies before the camera."""
    cv2 = load_cv2()
    corners = box.corners_m()[0].astype(np.float64)
    if not np.isfinite(corners).all():
        return
    for a, b in (*_BOX_EDGES, *_FRONT_CROSS):
        ends = _before_camera(corners[[a, b]], camera)
        if ends is None:
            continue
        # From continuous coordinates to OpenCV's, where pixel centres are whole numbers.
        points = np.clip(camera.project(ends) - 0.5, -_FURTHEST_PX, _FURTHEST_PX) * 2**_SUBPIXEL_BITS
        fixed = _integers(np.round(points[0])), _integers(np.round(points[1]))
        cv2.line(canvas, *fixed, colour, _line_width(canvas), cv2.LINE_AA, _SUBPIXEL_BITS)


def _before_camera(ends: npt.NDArray[Any], camera: CameraIntrinsics) -> npt.NDArray[Any] | None:
    """The part (2, 3) of a line in space that the camera can see; None if that is nothing."""
    distance = ends[:, 2] + camera.projection[2, 3] - _NEAREST_M
    if (distance <= 0).all():
        return None
    if (distance >= 0).all():
        return ends
    share = distance[0] / (distance[0] - distance[1])  # where the line crosses the nearest plane
    crossing = ends[0] + share * (ends[1] - ends[0])
    return np.array([crossing if distance[i] < 0 else ends[i] for i in (0, 1)])


def _colour(detections: Detections, row: int) -> Colour:
    number = detections.class_ids if detections.track_ids is None else detections.track_ids
    return _PALETTE[int(number[row]) % len(_PALETTE)]


def _draw_label(canvas: Image, detections: Detections, row: int) -> None:
    """Class and score on a filled strip above the box's corner, or below where the image ends."""
    if not np.isfinite(detections.xyxy[row]).all():
        return
    text = f"{detections.class_names[int(detections.class_ids[row])]} {detections.scores[row]:.2f}"
    if detections.track_ids is not None:
        text = f"#{int(detections.track_ids[row])} {text}"
    corner = _whole_pixels(canvas, detections.xyxy[row])[:2]
    colour = _colour(detections, row)
    cv2 = load_cv2()
    scale, thickness = _font(canvas)
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
    strip_height = height + baseline + 2
    half_line = _line_width(canvas) // 2
    left = max(0, min(corner[0] - half_line, canvas.shape[1] - width - 4))
    top = corner[1] - strip_height if corner[1] >= strip_height else corner[1] + half_line
    cv2.rectangle(canvas, (left, top), (left + width + 3, top + strip_height - 1), colour, cv2.FILLED)
    brightness = 0.114 * colour[0] + 0.587 * colour[1] + 0.299 * colour[2]
    _put_text(canvas, text, (left + 2, top + height + 1), _DARK if brightness > 110 else (255, 255, 255))


def _draw_pose(
    canvas: Image,
    person: Keypoints,
    skeleton: Sequence[tuple[int, int]],
    names: Sequence[str],
    min_score: float,
) -> None:
    """One person, of N = 1: bones with a dark rim first, then the joints."""
    cv2 = load_cv2()
    is_seen = (person.scores[0] >= min_score) & np.isfinite(person.xy[0]).all(axis=1)
    # From continuous coordinates to OpenCV's, where pixel centres are whole numbers.
    points = np.round((_near(canvas, person.xy[0]) - 0.5) * 2**_SUBPIXEL_BITS)
    sides = [_side_colour(names[i] if i < len(names) else "") for i in range(len(points))]
    width = _line_width(canvas)
    for a, b in skeleton:
        if is_seen[a] and is_seen[b]:
            ends = _integers(points[a]), _integers(points[b])
            colour = sides[a] if sides[a] == sides[b] else _MIDDLE
            cv2.line(canvas, *ends, _DARK, width + 2, cv2.LINE_AA, _SUBPIXEL_BITS)
            cv2.line(canvas, *ends, colour, width, cv2.LINE_AA, _SUBPIXEL_BITS)
    for index in np.flatnonzero(is_seen):
        centre = _integers(points[index])
        radius = int((width + 0.5) * 2**_SUBPIXEL_BITS)
        cv2.circle(canvas, centre, radius + 2**_SUBPIXEL_BITS, _DARK, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL_BITS)
        cv2.circle(canvas, centre, radius, sides[index], cv2.FILLED, cv2.LINE_AA, _SUBPIXEL_BITS)


def _side_colour(name: str) -> Colour:
    return _LEFT if name.startswith("left") else _RIGHT if name.startswith("right") else _MIDDLE


def _near(canvas: Image, points: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Points (..., 2) no further out than twice the image: OpenCV cannot draw at any distance."""
    size = np.array([canvas.shape[1], canvas.shape[0]])
    near: npt.NDArray[Any] = np.clip(np.nan_to_num(points), -size, 2 * size)
    return near


def _whole_pixels(canvas: Image, xyxy: npt.NDArray[Any]) -> list[int]:
    return [int(value) for value in np.round(_near(canvas, xyxy.reshape(2, 2))).flat]


def _integers(point: npt.NDArray[Any]) -> tuple[int, int]:
    return int(point[0]), int(point[1])


def _line_width(canvas: Image) -> int:
    return max(1, int(min(canvas.shape[:2]) / 270 + 0.5))


def _font(canvas: Image) -> tuple[float, int]:
    scale = float(np.clip(min(canvas.shape[:2]) / 900, 0.35, 2.0))
    return scale, max(1, round(1.6 * scale))


def _put_text(canvas: Image, text: str, origin: tuple[int, int], colour: Colour) -> None:
    cv2 = load_cv2()
    scale, thickness = _font(canvas)
    cv2.putText(canvas, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
