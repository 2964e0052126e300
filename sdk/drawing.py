"""Pictures of what was found: boxes, labels and skeletons.

::

    picture = draw(frame.image, detections, skeleton=spec.skeleton, keypoint_names=spec.keypoint_names)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .opencv import load_cv2
from .preprocessing import as_bgr
from .results import Detections, Keypoints

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


def draw(
    image: Image,
    detections: Detections,
    *,
    skeleton: Sequence[tuple[int, int]] = (),
    keypoint_names: Sequence[str] = (),
    min_keypoint_score: float = 0.1,
) -> Image:
    """A copy of the image with boxes, classes, scores, keypoints and bones drawn in.

    Boxes are coloured by track, or by class without tracks. Keypoints and bones have one colour for the
    left side of the body, one for the right, where the names tell the sides.

    Args:
        image: (H, W, 3) uint8 BGR, or what `as_bgr` converts to it; it is not changed.
        detections: in pixels of that image.
        skeleton: pairs of keypoints that a bone joins.
        keypoint_names: "left_..." and "right_..." give the colours.
        min_keypoint_score: keypoints below it are left out, and the bones that end there.

    Raises:
        InputError: the image is none.
    """
    canvas: Image = as_bgr(image).copy()
    weakest_first = range(len(detections) - 1, -1, -1)
    for row in weakest_first:
        _draw_box(canvas, detections, row)
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
    cv2 = load_cv2()
    if not np.isfinite(detections.xyxy[row]).all():
        return
    class_id = int(detections.class_ids[row])
    track_id = None if detections.track_ids is None else int(detections.track_ids[row])
    colour = _PALETTE[(class_id if track_id is None else track_id) % len(_PALETTE)]
    x1, y1, x2, y2 = (int(value) for value in np.round(_near(canvas, detections.xyxy[row].reshape(2, 2))).flat)
    cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour, _line_width(canvas), cv2.LINE_AA)
    label = f"{detections.class_names[class_id]} {detections.scores[row]:.2f}"
    _draw_label(canvas, label if track_id is None else f"#{track_id} {label}", (x1, y1), colour)


def _draw_label(canvas: Image, text: str, corner: tuple[int, int], colour: Colour) -> None:
    """Text on a filled strip above the corner, or below where the image ends."""
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
