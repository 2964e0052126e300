"""The shipped model against its own FP32 form and against YOLO26n end-to-end, in one run.

YOLO26n comes from ultralytics' own export (random weights: only time is compared), made in an environment of its own
by benchmarks/yolo26n.py and quantised with ONNX Runtime by the same recipe (U8 activations, S8 weights per channel).
Both sides include the decoding: in the graph there, on the host here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sdk.backends.onnxruntime import open_session
from sdk.detector import Detector
from sdk.scenes import random_background, random_scene
from sdk.timing import medians_ms

from . import yolo26n


def run() -> None:
    int8, fp32 = "person-pose.int8", "person-pose"
    spec = Detector(int8).spec
    rng = np.random.default_rng(0)
    frame = random_scene(rng, spec.input.wh)[0]
    try:
        yolo: dict[str, Path] = yolo26n.models(spec.input.wh)
    except yolo26n.Unavailable as err:
        print(f"without YOLO26n: {err}")
        yolo = {}
    for threads in (1, 2):
        functions: dict[str, Any] = {}
        for name in (int8, fp32):
            detector = Detector(name, threads=threads)
            functions[name] = lambda detector=detector: detector(frame)
        for name, path in yolo.items():
            session = open_session(path, threads=threads)
            images = random_background(rng, spec.input.wh).transpose(2, 0, 1)[None].astype(np.float32) / 255
            functions[name] = lambda session=session, images=images: session.run(None, {"images": images})
        times = medians_ms(functions, rounds=200, warm_up=20)
        print(
            f"{threads} threads, {spec.input.width}x{spec.input.height}: "
            + "  ".join(f"{n} {t:.2f} ms" for n, t in times.items())
        )
        for name, ms in times.items():
            if name != int8:
                print(f"  {int8} is {ms / times[int8]:.2f} times faster than {name}")
