"""Time of KITTI's evaluator on as many frames as the usual validation half has, all classes, metrics and difficulties.

The frames are drawn: about 7 labelled objects, most of them found once or several times, and 30 to 100 detections.
"""

from __future__ import annotations

import resource
import time

import numpy as np

from sdk.kitti import KittiObjects
from sdk.kitti_metrics import KITTI_CLASSES, evaluate_kitti

NUM_FRAMES = 3769
KINDS = ("Car", "Van", "Pedestrian", "Person_sitting", "Cyclist", "Truck", "DontCare")
SHARES = (0.5, 0.06, 0.08, 0.01, 0.04, 0.03, 0.28)  # about those of KITTI's labels


def run() -> None:
    rng = np.random.default_rng(0)
    truths = [drawn_objects(rng, int(rng.poisson(7))) for _ in range(NUM_FRAMES)]
    results = [drawn_results(rng, truth) for truth in truths]
    before_s = time.perf_counter()
    figures = evaluate_kitti(truths, results)
    seconds = time.perf_counter() - before_s
    print(
        f"{NUM_FRAMES} frames, {sum(map(len, truths))} labelled objects, {sum(map(len, results))} detections: "
        f"{seconds:.1f} s, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB"
    )
    for name, table in figures.items():
        print(f"  {name:11}" + "  ".join(f"{metric} {rows['R40'][1]:.2f}" for metric, rows in table.items()))


def drawn_objects(rng: np.random.Generator, rows: int) -> KittiObjects:
    """Labelled objects, anywhere."""
    types = tuple(str(kind) for kind in rng.choice(KINDS, rows, p=SHARES))
    x1, y1 = rng.uniform(0, 1100, rows), rng.uniform(150, 220, rows)
    w, h = rng.uniform(20, 200, rows), rng.uniform(15, 120, rows)
    return KittiObjects(
        types=types,
        truncated=np.where(rng.random(rows) < 0.1, rng.random(rows), 0.0),
        occluded=rng.integers(0, 4, rows),
        alpha_rad=rng.uniform(-np.pi, np.pi, rows),
        xyxy=np.column_stack([x1, y1, x1 + w, y1 + h]),
        size_hwl_m=rng.uniform((1.4, 0.6, 0.8), (2.0, 1.8, 4.5), (rows, 3)),
        location_m=rng.uniform((-20, 1.4, 5), (20, 2.0, 60), (rows, 3)),
        yaw_rad=rng.uniform(-np.pi, np.pi, rows),
    )


def drawn_results(rng: np.random.Generator, truth: KittiObjects) -> KittiObjects:
    """Detections of one frame: rows of the labels, some twice, moved a little; the rest anywhere, with low scores."""
    rows = int(rng.integers(30, 101))
    near = np.flatnonzero(rng.random(len(truth)) < 0.9)
    near = np.concatenate([near, rng.permutation(near)[: len(near) // 2]])[:rows]
    other = drawn_objects(rng, rows - len(near))
    types = (*(truth.types[i] for i in near), *other.types)

    def mixed(name: str, deviation: float) -> np.ndarray:
        close = getattr(truth, name)[near]
        return np.concatenate([close + rng.normal(0, deviation, close.shape), getattr(other, name)])

    return KittiObjects(
        types=tuple(kind if kind in KITTI_CLASSES else "Car" for kind in types),
        truncated=np.full(rows, -1.0),
        occluded=np.full(rows, -1),
        alpha_rad=mixed("alpha_rad", 0.2),
        xyxy=np.sort(mixed("xyxy", 3.0).reshape(rows, 2, 2), axis=1).reshape(rows, 4),
        size_hwl_m=np.abs(mixed("size_hwl_m", 0.1)),
        location_m=mixed("location_m", 0.3),
        yaw_rad=mixed("yaw_rad", 0.2),
        scores=np.concatenate([rng.beta(5, 2, len(near)), rng.beta(1, 6, rows - len(near))]),
    )
