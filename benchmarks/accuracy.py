"""AP of the shipped models on COCO `val`, through the same code as `centeredge evaluate`."""

from __future__ import annotations

import os
from pathlib import Path

from sdk.detector import Detector
from sdk.metrics import evaluate_on_coco


def run() -> None:
    data = Path(os.environ.get("CENTEREDGE_DATA", "../shared/data")) / "coco"
    annotations = data / "annotations" / "person_keypoints_val.json"
    if not annotations.is_file():
        print(f"skipped: no COCO photographs in {data}; set CENTEREDGE_DATA")
        return
    for name in ("person-pose", "person-pose.int8"):
        figures = evaluate_on_coco(Detector(name, score_threshold=0.0), data / "val", annotations)
        box, keypoints = figures["bbox"], figures["keypoints"]
        print(
            f"{name:18} box AP {box['AP']:.4f} AP50 {box['AP50']:.4f} "
            f"small {box['APsmall']:.3f} medium {box['APmedium']:.3f} large {box['APlarge']:.3f}   "
            f"keypoint AP {keypoints['AP']:.4f} AP50 {keypoints['AP50']:.4f}"
        )
