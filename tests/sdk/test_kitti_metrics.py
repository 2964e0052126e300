from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdk.camera import CameraIntrinsics
from sdk.errors import InputError
from sdk.kitti import KittiFolder, KittiObjects, kitti_from_detections, read_kitti_labels, write_kitti_results
from sdk.kitti_metrics import KITTI_CLASSES, IouRule, evaluate_kitti, evaluate_kitti_results, evaluate_on_kitti
from sdk.kitti_overlap import rotated_intersections
from sdk.results import Detections
from sdk.spec import HeadSpec
from tests.helpers import tiny_spec

METRICS = ("2d", "aos", "bev", "3d")
Row = dict[str, Any]

# Builders: objects as dicts, easy cars unless they say otherwise


def _row(x: float = 100.0, **changes: Any) -> Row:
    row = {
        "type": "Car", "truncated": 0.0, "occluded": 0, "alpha_rad": 0.5, "xyxy": (x, 100.0, x + 60.0, 150.0),
        "size_hwl_m": (1.5, 1.6, 4.0), "location_m": (x / 10, 1.6, 20.0), "yaw_rad": 0.3, "score": 0.9,
    }  # fmt: skip
    return {**row, **changes}


def _objects(rows: Sequence[Row], *, scored: bool) -> KittiObjects:
    def column(name: str, *shape: int) -> Any:
        return np.array([row[name] for row in rows], np.float64).reshape(len(rows), *shape)

    return KittiObjects(
        tuple(row["type"] for row in rows),
        column("truncated"),
        column("occluded").astype(np.int64),
        column("alpha_rad"),
        column("xyxy", 4),
        column("size_hwl_m", 3),
        column("location_m", 3),
        column("yaw_rad"),
        column("score") if scored else None,
    )


def _figures(
    truths: Sequence[Sequence[Row]], results: Sequence[Sequence[Row]], *, iou: IouRule = "centernet"
) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    return evaluate_kitti(
        [_objects(rows, scored=False) for rows in truths], [_objects(rows, scored=True) for rows in results], iou=iou
    )


def _easy(truths: Sequence[Sequence[Row]], results: Sequence[Sequence[Row]], metric: str, **how: Any) -> float | None:
    return _figures(truths, results, **how)["Car"][metric]["R11"][0]


# Figures worked out by hand


def test_perfect_detections_score_100_from_41_objects_on() -> None:
    frames = [[_row(x) for x in range(0, 700, 100)] for _ in range(6)]
    figures = _figures(frames, frames)
    for metric in METRICS:
        assert figures["Car"][metric] == {"R11": [pytest.approx(100.0)] * 3, "R40": [pytest.approx(100.0)] * 3}
    json.dumps(figures)


def test_27_perfect_easy_cyclists_score_as_in_the_official_evaluator() -> None:
    frames = [[_row(x, type="Cyclist") for x in range(0, 900, 100)] for _ in range(3)]
    cyclist = _figures(frames, frames)["Cyclist"]
    for metric in METRICS:  # 27 thresholds are recall positions 0 to 26: 7 of the 11, 26 of the 40
        assert cyclist[metric]["R11"] == [pytest.approx(700 / 11)] * 3
        assert cyclist[metric]["R40"] == [pytest.approx(65.0)] * 3


def test_without_ground_truth_there_is_no_figure() -> None:
    occluded = [_row(occluded=1)]
    figures = _figures([occluded], [occluded])
    assert figures["Car"]["2d"]["R11"] == [None, pytest.approx(100 / 11), pytest.approx(100 / 11)]
    assert figures["Pedestrian"] == {metric: {"R11": [None] * 3, "R40": [None] * 3} for metric in METRICS}
    assert _figures([], []) == {
        name: {metric: {"R11": [None] * 3, "R40": [None] * 3} for metric in METRICS} for name in KITTI_CLASSES
    }


def test_a_detector_that_finds_nothing_scores_zero() -> None:
    figures = _figures([[_row()]], [[]])
    assert all(figures["Car"][metric]["R11"] == [0.0] * 3 for metric in METRICS)


def test_difficulties_are_about_height_occlusion_and_truncation() -> None:
    low = _row(xyxy=(100.0, 100.0, 160.0, 130.0))
    for row, wanted in (
        (low, [None, 1, 1]),
        (_row(occluded=2), [None, None, 1]),
        (_row(occluded=3), [None] * 3),
        (_row(truncated=0.2), [None, 1, 1]),
        (_row(truncated=0.4), [None, None, 1]),
        (_row(truncated=0.6), [None] * 3),
    ):
        expected = [None if found is None else pytest.approx(100 / 11) for found in wanted]
        assert _figures([[row]], [[row]])["Car"]["2d"]["R11"] == expected


def test_a_false_detection_counts_from_its_score_on() -> None:
    truth, high, low = [_row(0)], _row(300, score=0.95), _row(300, score=0.1)
    assert _easy([truth], [[_row(0), low]], "2d") == pytest.approx(100 / 11)
    assert _easy([truth], [[_row(0), high]], "2d") == pytest.approx(50 / 11)
    assert _easy([truth], [[_row(0), high]], "aos") == pytest.approx(50 / 11)
    duplicate = _row(0, score=0.95, xyxy=(0.0, 100.0, 58.0, 150.0))
    assert _easy([truth], [[_row(0), duplicate]], "2d") == pytest.approx(100 / 11)  # at 0.95 it is right
    assert _easy([truth] * 2, [[_row(0)], [_row(0), high]], "2d") == pytest.approx(200 / 3 / 11)


def test_neighbouring_classes_and_dont_care_regions_count_neither_way() -> None:
    car, false = _row(0), _row(300, score=0.95)
    for kind, neighbour, wanted in (("Car", "Van", 100), ("Car", "Truck", 50), ("Pedestrian", "Person_sitting", 100)):
        truth = [{**car, "type": kind}, _row(300, type=neighbour)]
        found = [{**car, "type": kind}, {**false, "type": kind}]
        assert _figures([truth], [found])[kind]["2d"]["R11"][0] == pytest.approx(wanted / 11)
    unknown = {"size_hwl_m": (-1,) * 3, "location_m": (-1000,) * 3, "yaw_rad": -10, "alpha_rad": -10}
    region = _row(type="DontCare", truncated=-1, occluded=-1, xyxy=(290.0, 90.0, 400.0, 160.0), **unknown)
    figures = _figures([[car, region]], [[car, false]])
    assert figures["Car"]["2d"]["R11"][0] == pytest.approx(100 / 11)
    assert figures["Car"]["3d"]["R11"][0] == pytest.approx(50 / 11)  # the region has no place in space


def test_low_detections_count_neither_way() -> None:
    low = _row(300, score=0.95, xyxy=(300.0, 100.0, 360.0, 130.0))
    assert _figures([[_row(0)]], [[_row(0), low]])["Car"]["2d"]["R11"] == pytest.approx([100 / 11, 50 / 11, 50 / 11])
    # A low detection of another class takes the object, whose own detection is low too, away from it.
    truth = [_row(0, xyxy=(0.0, 100.0, 60.0, 141.0))]
    bicycle = _row(0, type="Cyclist", score=0.95, xyxy=(0.0, 100.0, 60.0, 138.0))
    assert _easy([truth], [truth], "2d") == pytest.approx(100 / 11)
    assert _easy([truth], [[bicycle, *truth]], "2d") == 0.0


def test_a_detection_that_is_high_enough_goes_before_a_low_one() -> None:
    truth = [_row(0, xyxy=(0.0, 100.0, 60.0, 141.0)), _row(300)]
    high = _row(0, score=0.9, xyxy=(0.0, 100.0, 60.0, 152.0))
    low = _row(0, score=0.8, xyxy=(0.0, 100.0, 60.0, 139.5))  # overlaps more
    figures = _figures([truth], [[low, high, _row(300, score=0.5)]])
    assert figures["Car"]["2d"]["R40"][0] == pytest.approx(100 / 40)  # both right at 0.5, recall position 1


def test_an_object_takes_the_detection_that_overlaps_it_most() -> None:
    truth = [_row(0), _row(14)]
    found = [_row(7, score=0.8), _row(0, score=0.9)]  # the first one would do for both objects
    assert _figures([truth], [found])["Car"]["2d"]["R40"][0] == pytest.approx(100 / 40)


def test_the_overlap_must_exceed_the_threshold() -> None:
    truth = _row(type="Pedestrian", xyxy=(0.0, 100.0, 60.0, 200.0))
    for bottom, wanted in ((150.0, 0.0), (150.1, 100 / 11)):  # IoU 0.5 and a little more
        found = {**truth, "xyxy": (0.0, 100.0, 60.0, bottom)}
        assert _figures([[truth]], [[found]])["Pedestrian"]["2d"]["R11"][0] == pytest.approx(wanted)


def test_the_lowest_true_positive_is_always_a_threshold() -> None:
    frames = [[_row(x) for x in range(0, 1000, 100)] for _ in range(10)]
    found = [*frames[:6], frames[6][:1], [], [], []]
    # 61 of 100 reach recall positions 0 to 24 (0.6); 0.61 is nearer to that than to 0.625, yet fills position 25.
    assert _figures(frames, found)["Car"]["2d"]["R40"][0] == pytest.approx(100 * 25 / 40)


def test_orientation_weighs_true_positives() -> None:
    for turn, similarity in ((0.0, 1.0), (math.pi / 2, 0.5), (math.pi, 0.0)):
        figures = _figures([[_row()]], [[_row(alpha_rad=0.5 + turn)]])["Car"]
        assert figures["aos"]["R11"][0] == pytest.approx(100 * similarity / 11, abs=1e-9)
        assert figures["2d"]["R11"][0] == pytest.approx(100 / 11)


def test_the_iou_rules_differ_in_space() -> None:
    # Moved by a quarter of the length, the boxes share 3/5 of their union; with 2/3 of the height, 0.4.
    moved = _row(0, location_m=(1.0, 1.6, 20.0), yaw_rad=0.0)
    truth = [[_row(0, yaw_rad=0.0)]]
    assert [_easy(truth, [[moved]], metric, iou="standard") for metric in ("bev", "3d")] == [0.0, 0.0]
    assert _easy(truth, [[moved]], "bev") == _easy(truth, [[moved]], "3d") == pytest.approx(100 / 11)
    lower = {**moved, "size_hwl_m": (1.0, 1.6, 4.0)}
    assert _easy(truth, [[lower]], "bev") == pytest.approx(100 / 11) and _easy(truth, [[lower]], "3d") == 0.0


def test_what_detections_do_not_tell_is_not_measured() -> None:
    unknown = {"size_hwl_m": (-1,) * 3, "location_m": (-1000,) * 3, "yaw_rad": -10, "alpha_rad": -10}
    truth = [_row(0), _row(300, type="Cyclist")]
    figures = _figures([truth], [[_row(0, **unknown)]])
    for name in ("Car", "Cyclist"):
        assert [figures[name][metric]["R11"][0] for metric in ("aos", "bev", "3d")] == [None] * 3
    assert figures["Car"]["2d"]["R11"][0] == pytest.approx(100 / 11) and figures["Cyclist"]["2d"]["R11"][0] == 0.0
    mixed = _figures([truth], [[_row(0), _row(300, type="Cyclist", **unknown)]])
    assert mixed["Car"]["aos"]["R11"][0] is None  # a single unknown alpha forbids it for all, as officially
    assert mixed["Car"]["3d"]["R11"][0] == pytest.approx(100 / 11) and mixed["Cyclist"]["3d"]["R11"][0] is None


def test_letters_case_does_not_matter() -> None:
    assert _easy([[_row(type="CAR")]], [[_row(type="car")]], "3d") == pytest.approx(100 / 11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"results": []}, "1 frames of ground truth and 0 of results"),
        ({"results": [_objects([_row()], scored=False)]}, "results need scores"),
        ({"iou": "loose"}, "IoU rule is 'loose', expected one of centernet, standard"),
        ({"classes": ("Car", "Tram")}, "no class Tram"),
    ],
)
def test_misuse_is_explained(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"results": [_objects([_row()], scored=True)], "iou": "standard", **change}
    with pytest.raises(InputError, match=message):
        evaluate_kitti([_objects([_row()], scored=False)], **arguments)


# Against the rules written out as loops


def _clipped_polygon(polygon: list[tuple[float, float]], edge: tuple[tuple[float, float], tuple[float, float]]) -> Any:
    """The part of a polygon to the left of a directed edge (Sutherland and Hodgman)."""
    (ax, ay), (bx, by) = edge

    def side(point: tuple[float, float]) -> float:
        return (bx - ax) * (point[1] - ay) - (by - ay) * (point[0] - ax)

    inside: list[tuple[float, float]] = []
    for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if side(p) >= 0:
            inside.append(p)
        if (side(p) >= 0) != (side(q) >= 0):
            t = side(p) / (side(p) - side(q))
            inside.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
    return inside


def _polygon(box: Sequence[float]) -> list[tuple[float, float]]:
    """Corners of (x, z, length, width, yaw), anticlockwise with z up."""
    x, z, length, width, yaw = box
    cos, sin = math.cos(yaw), math.sin(yaw)
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    ahead = [(sx * length / 2, sz * width / 2) for sx, sz in corners]
    return [(x + cos * a + sin * b, z - sin * a + cos * b) for a, b in ahead]


def _shared_area(a: Sequence[float], b: Sequence[float]) -> float:
    polygon, border = _polygon(a), _polygon(b)
    for edge in zip(border, border[1:] + border[:1], strict=True):
        polygon = _clipped_polygon(polygon, edge)
    return sum(p[0] * q[1] - p[1] * q[0] for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True)) / 2


def _overlap(found: Row, truth: Row, metric: str, *, of_found: bool = False) -> float:
    if metric == "2d":
        a, b = found["xyxy"], truth["xyxy"]
        wh = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
        shared = wh[0] * wh[1]
        own, other = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    else:
        boxes = [
            (row["location_m"][0], row["location_m"][2], row["size_hwl_m"][2], row["size_hwl_m"][1], row["yaw_rad"])
            for row in (found, truth)
        ]
        shared = _shared_area(*boxes)
        own, other = (box[2] * box[3] for box in boxes)
        if metric == "3d":
            bottoms = [row["location_m"][1] for row in (found, truth)]
            heights = [row["size_hwl_m"][0] for row in (found, truth)]
            tops = [bottom - height for bottom, height in zip(bottoms, heights, strict=True)]
            shared *= max(0.0, min(bottoms) - max(tops))
            own, other = own * heights[0], other * heights[1]
    if not shared:
        return 0.0
    return shared / own if of_found else shared / (own + other - shared)


def _roles(truths: list[Row], found: list[Row], name: str, level: int) -> tuple[list[int], list[int]]:
    """For each object: 0 counts, 1 is ignored, -1 is not looked at."""
    height, occluded, truncated = [(40, 0, 0.15), (25, 1, 0.3), (25, 2, 0.5)][level]
    neighbour = {"car": "van", "pedestrian": "person_sitting"}.get(name)
    truth_roles = []
    for row in truths:
        high = row["xyxy"][3] - row["xyxy"][1] >= height
        hidden = not high or row["occluded"] > occluded or row["truncated"] > truncated
        kind = row["type"].lower()
        truth_roles.append(int(hidden) if kind == name else 1 if kind == neighbour else -1)
    found_roles = []
    for row in found:
        high = row["xyxy"][3] - row["xyxy"][1] >= height
        found_roles.append(1 if not high else 0 if row["type"].lower() == name else -1)
    return truth_roles, found_roles


def _count(
    truths: list[Row], found: list[Row], name: str, level: int, metric: str, needed: float, threshold: float | None
) -> tuple[list[float], int, float]:
    """Scores of the true positives, false positives and orientation similarity of one frame."""
    truth_roles, found_roles = _roles(truths, found, name, level)
    taken = [role == -1 or (threshold is not None and row["score"] < threshold)
             for row, role in zip(found, found_roles, strict=True)]  # fmt: skip
    scores, similarity = [], 0.0
    for truth, role in zip(truths, truth_roles, strict=True):
        free = [i for i in range(len(found)) if not taken[i] and role != -1]
        candidates = [i for i in free if _overlap(found[i], truth, metric) > needed]
        if not candidates:
            continue
        if threshold is None:
            best = max(candidates, key=lambda i: found[i]["score"])
        else:
            proper = [i for i in candidates if found_roles[i] == 0]
            best = max(proper, key=lambda i: _overlap(found[i], truth, metric)) if proper else candidates[0]
        taken[best] = True
        if role == 0 and found_roles[best] == 0:
            scores.append(found[best]["score"])
            similarity += (1 + math.cos(truth["alpha_rad"] - found[best]["alpha_rad"])) / 2
    regions = [row for row in truths if row["type"] == "DontCare"]
    false = [row for row, used, role in zip(found, taken, found_roles, strict=True) if not used and role == 0]
    false = [row for row in false if not any(_overlap(row, dc, metric, of_found=True) > needed for dc in regions)]
    return scores, len(false), similarity


def _literal_curves(
    frames: list[tuple[list[Row], list[Row]]], name: str, level: int, metric: str, needed: float
) -> tuple[list[float], list[float]] | None:
    num_truth = sum(_roles(*frame, name, level)[0].count(0) for frame in frames)
    if not num_truth:
        return None
    counts = [_count(*frame, name, level, metric, needed, None) for frame in frames]
    scores = sorted((score for frame_scores, _, _ in counts for score in frame_scores), reverse=True)
    precisions, similarities, recall = [0.0] * 41, [0.0] * 41, 0
    for i, score in enumerate(scores):
        is_nearer_after = (i + 2) / num_truth - recall / 40 < recall / 40 - (i + 1) / num_truth
        if is_nearer_after and i < len(scores) - 1:
            continue
        counts = [_count(*frame, name, level, metric, needed, score) for frame in frames]
        true, false = sum(len(scores) for scores, _, _ in counts), sum(false for _, false, _ in counts)
        precisions[recall] = true / max(1, true + false)
        similarities[recall] = sum(similarity for _, _, similarity in counts) / max(1, true + false)
        recall += 1
    return [max(precisions[i:]) for i in range(41)], [max(similarities[i:]) for i in range(41)]


def _scene(rng: np.random.Generator, num_truth: int) -> tuple[list[Row], list[Row]]:
    """Crowded objects of all kinds and detections near them, on grids coarse enough that scores and boxes tie."""
    kinds = ["Car", "Car", "Van", "Pedestrian", "Person_sitting", "Cyclist", "Misc", "DontCare"]

    def drawn(kind: str) -> Row:
        x, y, w, h = rng.choice([0, 10, 50]), rng.choice([0, 5]), rng.choice([30, 40]), rng.choice([24, 30, 39, 45])
        size = tuple(rng.choice([1.5, 1.8, 2.5], 3))
        place = tuple(rng.choice([0.0, 0.4, 1.5], 3))
        return {
            "type": kind, "truncated": rng.choice([0.0, 0.2, 0.6]), "occluded": rng.integers(0, 4),
            "alpha_rad": rng.uniform(-3, 3), "xyxy": (x, y, x + w, y + h), "size_hwl_m": size, "location_m": place,
            "yaw_rad": rng.choice([0.0, 0.3, 1.2]), "score": round(rng.random(), 1),
        }  # fmt: skip

    truths = [drawn(kind) for kind in rng.choice(kinds, num_truth)]
    copies = [{**row, "score": round(rng.random(), 1)} for row in truths if row["type"] in KITTI_CLASSES]
    found = copies + [drawn(kind) for kind in rng.choice(KITTI_CLASSES, rng.integers(0, 2 * num_truth + 1))]
    return truths, [found[i] for i in rng.permutation(len(found))]


@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1), num_frames=st.integers(1, 6))
def test_the_figures_are_those_of_the_rules_written_out(seed: int, num_frames: int) -> None:
    rng = np.random.default_rng(seed)
    frames = [_scene(rng, int(rng.integers(0, 6))) for _ in range(num_frames)]
    figures = _figures([truth for truth, _ in frames], [found for _, found in frames])
    for name, in_image, in_space in (("Car", 0.7, 0.5), ("Pedestrian", 0.5, 0.25), ("Cyclist", 0.5, 0.25)):
        for metric in ("2d", "bev", "3d"):
            for level in range(3):
                needed = in_image if metric == "2d" else in_space
                curves = _literal_curves(frames, name.lower(), level, metric, needed)
                for row, curve in ((metric, 0), ("aos", 1))[: 2 if metric == "2d" else 1]:
                    got = figures[name][row]["R11"][level], figures[name][row]["R40"][level]
                    if curves is None:
                        assert got == (None, None)
                        continue
                    values = curves[curve]
                    wanted = 100 * sum(values[::4]) / 11, 100 * sum(values[1:]) / 40
                    assert got == pytest.approx(wanted, abs=1e-9), (name, row, level)


_BOXES = st.tuples(
    st.floats(-3, 3), st.floats(-3, 3), st.floats(0.1, 5), st.floats(0.1, 5), st.floats(-math.pi, math.pi)
)


@given(boxes=st.lists(st.tuples(_BOXES, _BOXES), min_size=1, max_size=8))
def test_rotated_overlap_is_that_of_clipped_polygons(boxes: list[tuple[Sequence[float], Sequence[float]]]) -> None:
    pairs = np.array(boxes)  # (P, 2, 5)
    areas = rotated_intersections(pairs[:, 0], pairs[:, 1])
    np.testing.assert_allclose(areas, [_shared_area(a, b) for a, b in boxes], atol=1e-9)
    np.testing.assert_allclose(areas, rotated_intersections(pairs[:, 1], pairs[:, 0]), atol=1e-9)


@given(box=_BOXES, quarter=st.integers(-4, 4), shrink=st.floats(0.1, 1))
def test_boxes_along_each_other_overlap_exactly(box: Sequence[float], quarter: int, shrink: float) -> None:
    one = np.array([box])
    area = one[0, 2] * one[0, 3]
    turned = one + [0, 0, 0, 0, quarter * math.pi / 2]
    if quarter % 2:
        turned[0, [2, 3]] = turned[0, [3, 2]]
    assert rotated_intersections(one, turned)[0] == pytest.approx(area, abs=1e-9)
    assert rotated_intersections(one, one * [1, 1, shrink, shrink, 1])[0] == pytest.approx(area * shrink**2, abs=1e-9)
    beside = one + [box[2] * math.cos(box[4]), -box[2] * math.sin(box[4]), 0, 0, 0]
    assert rotated_intersections(one, beside)[0] == pytest.approx(0, abs=1e-9)


# Folders and detectors


def _write_labels(path: Path, rows: Sequence[Row]) -> None:
    lines = []
    for row in rows:
        values = [row["truncated"], row["occluded"], row["alpha_rad"], *row["xyxy"], *row["size_hwl_m"]]
        lines.append(" ".join([row["type"], *map(str, values), *map(str, row["location_m"]), str(row["yaw_rad"])]))
    path.write_text("\n".join(lines))


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    """Three frames with two cars each; the second one's camera has another focal length."""
    root = tmp_path / "kitti"
    for folder in ("training/image_2", "training/label_2", "training/calib", "ImageSets"):
        (root / folder).mkdir(parents=True)
    for i in range(3):
        assert cv2.imwrite(str(root / "training" / "image_2" / f"00000{i}.png"), np.full((160, 400, 3), i, np.uint8))
        _write_labels(root / "training" / "label_2" / f"00000{i}.txt", [_row(10.0 * i), _row(200.0)])
        focal = 700 + 10 * i
        (root / "training" / "calib" / f"00000{i}.txt").write_text(f"P2: {focal} 0 200 0 0 {focal} 80 0 0 0 1 0\n")
    (root / "ImageSets" / "val.txt").write_text("000002\n")
    return root


class FakeDetector:
    """Answers with the labels of the frame, which it knows by the pixels' value; notes the cameras that it is given."""

    def __init__(self, root: Path, class_names: tuple[str, ...] = ("Pedestrian", "Car")) -> None:
        heads = (HeadSpec("heatmap", len(class_names), "sigmoid"), HeadSpec("size", 2, "none"))
        self.spec = tiny_spec(class_names=class_names, heads=heads)
        self.intrinsics: CameraIntrinsics | None = None
        self.focal_lengths: list[float] = []
        self._root = root

    def __call__(self, image: np.ndarray) -> Detections:
        assert self.intrinsics is not None
        self.focal_lengths.append(self.intrinsics.focal_px)
        labels = read_kitti_labels(KittiFolder(self._root).label_path(f"{image[0, 0, 0]:06d}"))
        ids = np.array([self.spec.class_names.index(kind) for kind in labels.types])
        xyxy, scores = labels.xyxy.astype(np.float32), np.ones(len(labels), np.float32)
        return Detections(xyxy, scores, ids, self.spec.class_names, boxes3d=labels.boxes3d())


def test_a_detector_is_measured_with_each_frames_camera(kitti: Path) -> None:
    detector: Any = FakeDetector(kitti)
    done: list[tuple[int, int]] = []
    figures = evaluate_on_kitti(detector, kitti, progress=lambda i, n: done.append((i, n)))
    assert list(figures) == ["Car", "Pedestrian"]  # those that the model has
    assert figures["Car"]["3d"]["R11"] == [pytest.approx(200 / 11)] * 3  # six objects: recall positions 0 to 5
    assert figures["Pedestrian"]["3d"]["R11"] == [None] * 3
    assert detector.focal_lengths == [700.0, 710.0, 720.0] and detector.intrinsics is None
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_a_split_and_a_limit_choose_frames(kitti: Path) -> None:
    detector: Any = FakeDetector(kitti)
    evaluate_on_kitti(detector, kitti, split="val")
    evaluate_on_kitti(detector, kitti, limit=1, iou="standard")
    assert detector.focal_lengths == [720.0, 700.0]


def test_what_is_missing_is_said_before_the_first_frame(kitti: Path) -> None:
    detector: Any = FakeDetector(kitti)
    (kitti / "training" / "calib" / "000002.txt").unlink()
    with pytest.raises(InputError, match=r"cannot read .*000002\.txt"):
        evaluate_on_kitti(detector, kitti)
    (kitti / "training" / "image_2" / "000001.png").unlink()
    with pytest.raises(InputError, match="frame 000001 has no picture"):
        evaluate_on_kitti(detector, kitti, limit=2)
    assert not detector.focal_lengths
    with pytest.raises(InputError, match=r"none of KITTI's classes .* it has cat, dog"):
        evaluate_on_kitti(FakeDetector(kitti, ("cat", "dog")), kitti)  # type: ignore[arg-type]


def test_result_files_score_as_the_detections_did(kitti: Path, tmp_path: Path) -> None:
    detector: Any = FakeDetector(kitti, KITTI_CLASSES[::-1])
    detector.intrinsics = CameraIntrinsics(np.eye(3))
    results = tmp_path / "results"
    results.mkdir()
    for name in KittiFolder(kitti).frame_names():
        image = np.full((1, 1, 3), int(name), np.uint8)
        write_kitti_results(results / f"{name}.txt", kitti_from_detections(detector(image)))
    assert evaluate_kitti_results(results, kitti) == evaluate_on_kitti(detector, kitti)
    (results / "000001.txt").unlink()
    with pytest.raises(InputError, match=r"1 of 3 frames have no result file, the first is .*000001\.txt"):
        evaluate_kitti_results(results, kitti)
    assert list(evaluate_kitti_results(results, kitti, split="val")) == list(KITTI_CLASSES)


def test_the_labels_of_real_frames_are_perfect_results(photographs: Path) -> None:
    root = photographs / "kitti" / "object"
    if not root.is_dir():
        pytest.skip(f"there are no KITTI frames in {root}")
    folder = KittiFolder(root)
    truths = [read_kitti_labels(folder.label_path(name)) for name in folder.frame_names()]
    rows = [[i for i, kind in enumerate(truth.types) if kind in KITTI_CLASSES] for truth in truths]
    results = [_perfect(truth, kept) for truth, kept in zip(truths, rows, strict=True)]
    figures = evaluate_kitti(truths, results)
    for metric in METRICS:
        assert figures["Car"][metric]["R40"] == [pytest.approx(100)] * 3
        for name in ("Pedestrian", "Cyclist"):  # fewer than 41, so that only part of the recall positions is reached
            assert all(0 < value <= 100 for value in figures[name][metric]["R40"] if value is not None)


def _perfect(truth: KittiObjects, rows: list[int]) -> KittiObjects:
    columns = ("truncated", "occluded", "alpha_rad", "xyxy", "size_hwl_m", "location_m", "yaw_rad")
    arrays = [getattr(truth, name)[rows] for name in columns]
    return KittiObjects(tuple(truth.types[i] for i in rows), *arrays, np.ones(len(rows)))
