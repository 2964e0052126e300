"""`centeredge evaluate`: the accuracy of a model, or of results that some program wrote, on annotated photographs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from sdk.coco import read_coco, read_json
from sdk.detector import Detector
from sdk.errors import ConfigError, InputError
from sdk.metrics import CocoResults, evaluate_on_coco
from sdk.spec import COCO_OKS_SIGMAS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `centeredge evaluate`."""
    parser.add_argument("model", metavar="MODEL|RESULTS", help=".onnx, .pth, a bundled model, or COCO results .json")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the photographs")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="COCO annotations of them")
    parser.add_argument("--kitti", type=Path, metavar="DIR", help="a KITTI folder (not in this version)")
    parser.add_argument("--split", metavar="NAME", help="of the KITTI folder")
    parser.add_argument("--kitti-iou", choices=["centernet", "standard"], default="centernet", help="IoU thresholds")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture (not in this version)")
    parser.add_argument("--scales", metavar="S,S,...", help="several sizes (not in this version)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N photographs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")


def run(args: argparse.Namespace) -> int:
    """Print the figures, and write them where asked."""
    if args.kitti or args.split:
        raise ConfigError("--kitti is not in this version; evaluate on COCO with --images and --annotations")
    if args.flip or args.scales:
        raise ConfigError("--flip and --scales are not in this version; leave them out")
    if args.annotations is None:
        print("centeredge evaluate: --annotations FILE is required", file=sys.stderr)
        return 2
    if args.limit is not None and args.limit < 1:
        print(f"centeredge evaluate: --limit must be at least 1, got {args.limit}", file=sys.stderr)
        return 2
    figures = _evaluate_results(args) if args.model.endswith(".json") else _evaluate_model(args)
    _print(figures)
    if args.json is not None:
        _write_json(args.json, figures)
    return 0


def _evaluate_model(args: argparse.Namespace) -> dict[str, Any]:
    if args.images is None:
        raise ConfigError("to evaluate a model, --images DIR is needed beside --annotations")
    with _open_detector(args.model) as detector:
        return evaluate_on_coco(
            detector, args.images, args.annotations, image_ids=_first_images(args), progress=_show_progress
        )


def _open_detector(model: str) -> Detector:
    """All peaks count, whatever the model's own threshold: average precision integrates over them."""
    if not model.endswith(".pth"):
        return Detector(model, score_threshold=0.0)
    from train.checkpoint import load_checkpoint
    from train.evaluate import TorchBackend

    network, spec = load_checkpoint(model)
    return Detector(TorchBackend(network, spec), score_threshold=0.0)


def _evaluate_results(args: argparse.Namespace) -> dict[str, Any]:
    rows = read_json(Path(args.model))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{args.model} is no COCO results file; expected a list of objects with image_id and bbox")
    data = read_coco(args.annotations)
    has_keypoints = bool(rows) and all("keypoints" in row for row in rows)
    results = CocoResults(
        data, [c["name"] for c in data["categories"]], oks_sigmas=COCO_OKS_SIGMAS if has_keypoints else ()
    )
    known = {image["id"] for image in data["images"]}
    wanted = _first_images(args) or known
    for row in rows:
        if missing := [key for key in ("image_id", "category_id", "score") if key not in row]:
            raise InputError(f"a row of {args.model} has no {', '.join(missing)}: {str(row)[:120]}")
        if row["image_id"] not in known:
            raise InputError(
                f"{args.model} has results for image {row['image_id']}, which is not in {args.annotations}"
            )
    results.add_rows([row for row in rows if row["image_id"] in wanted], wanted)
    return results.evaluate()


def _first_images(args: argparse.Namespace) -> set[int] | None:
    if args.limit is None:
        return None
    return {image["id"] for image in read_coco(args.annotations)["images"][: args.limit]}


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total:
        print(f"\r{done}/{total} photographs", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _print(figures: dict[str, Any]) -> None:
    for kind in ("bbox", "keypoints"):
        if kind in figures:
            print(f"{kind:10}" + "  ".join(f"{name} {_number(value)}" for name, value in figures[kind].items()))
    if len(figures["per_class"]) > 1:
        for name, values in figures["per_class"].items():
            print(f"  {name:20}" + "  ".join(f"{key} {_number(value)}" for key, value in values.items()))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(json.dumps(figures, indent=1) + "\n")
        os.replace(temporary, path)
    except OSError as err:
        raise InputError(f"--json {path} cannot be written: {err.strerror}") from err
