"""`centeredge benchmark`: how fast a model runs here, stage by stage, alone or in turns with another."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sdk.backends.onnxruntime import open_session
from sdk.detector import Detector, model_path
from sdk.errors import SpecError
from sdk.scenes import MovingScene
from sdk.timing import medians_ms

FRAME_WH = (1280, 720)
Run = Callable[[], object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `centeredge benchmark`."""
    parser.add_argument("model", metavar="MODEL", help="a model file, or the name of a bundled model")
    parser.add_argument("--against", metavar="OTHER", help="another one, or any .onnx file, which runs on random input")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")


def run(args: argparse.Namespace) -> int:
    """Print median milliseconds with 1 thread and with one a core."""
    figures = {f"{threads} threads": _measure(args, threads) for threads in sorted({1, os.cpu_count() or 1})}
    for threads, values in figures.items():
        print(threads)
        for name, ms in values.items():
            print(f"  {name:40} {ms:8.2f}" + (" ms" if not name.startswith("ratio") else " x"))
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _measure(args: argparse.Namespace, threads: int) -> dict[str, float]:
    name = args.model
    stages = _stages(name, threads)
    if args.against is None:
        return medians_ms(stages)
    total = f"{name} total"
    other = _whole(args.against, threads)
    figures = medians_ms({**stages, args.against: other})
    figures[f"ratio: {args.against} / {name}"] = figures[args.against] / figures[total]
    return figures


def _stages(model: str, threads: int) -> dict[str, Run]:
    detector = Detector(model, threads=threads)
    frame, _, _ = MovingScene(FRAME_WH).frame(1.0)
    prepared = detector.preprocess(frame)
    heads = detector.infer(prepared)
    return {
        f"{model} preprocess": lambda: detector.preprocess(frame),
        f"{model} inference": lambda: detector.infer(prepared),
        f"{model} decode": lambda: detector.decode(heads, prepared),
        f"{model} total": lambda: detector(frame),
    }


def _whole(model: str, threads: int) -> Run:
    """A model of ours on a frame, or any other ONNX file on random input of its own shape."""
    try:
        return _stages(model, threads)[f"{model} total"]
    except SpecError:
        session = open_session(model_path(model), threads=threads)
        feeds = {node.name: _random(node) for node in session.get_inputs()}
        return lambda: session.run(None, feeds)


def _random(node: Any) -> Any:
    shape = [side if isinstance(side, int) else 1 for side in node.shape]
    values = np.random.default_rng(0).random(shape)
    return (values * 255).astype(np.uint8) if node.type == "tensor(uint8)" else values.astype(np.float32)
