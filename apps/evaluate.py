"""`centeredge evaluate`: the accuracy of a model, or of results that some program wrote, on annotated photographs."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdk.augmented_detector import INPUT_MULTIPLE, PAPER_SCALES, AugmentedDetector
from sdk.backends import Backend, open_backend
from sdk.coco import read_coco, read_json
from sdk.detector import Detector, model_path
from sdk.errors import InputError
from sdk.metrics import DEFAULT_OKS_SIGMA, CocoResults, default_oks_sigmas, evaluate_on_coco
from sdk.onnx_metadata import MULTIPLE_METADATA_KEY, read_metadata
from sdk.spec import COCO_OKS_SIGMAS

_DIFFICULTIES = ("easy", "moderate", "hard")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `centeredge evaluate`."""
    parser.add_argument(
        "model",
        metavar="MODEL|RESULTS",
        help=".onnx, .pth, a bundled model; COCO results .json, or a folder of KITTI result files",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the photographs")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="COCO annotations of them")
    parser.add_argument("--kitti", type=Path, metavar="DIR", help="a KITTI folder, in place of the two")
    parser.add_argument("--split", metavar="NAME", help="of the KITTI folder; default: every labelled frame")
    parser.add_argument(
        "--kitti-iou",
        choices=["centernet", "standard"],
        default="centernet",
        help="IoU thresholds; default: %(default)s",
    )
    parser.add_argument("--flip", action="store_true", help="average with the outputs for the mirrored picture")
    parser.add_argument(
        "--scales",
        type=_scales,
        metavar="S,S,...",
        help=f"merge what is found at several sizes; the paper's: {','.join(f'{scale:g}' for scale in PAPER_SCALES)}",
    )
    parser.add_argument(
        "--resolution", choices=["fixed", "keep"], help="the model's input size (default), or that of each picture"
    )
    parser.add_argument(
        "--keypoints",
        choices=["matching", "regression"],
        help="joints snapped to detected ones (default), or as they are regressed",
    )
    parser.add_argument("--nms", action="store_true", help="soft-NMS after decoding, also at a single scale")
    parser.add_argument("--architecture", metavar="A", help="of a .pth that does not say it")
    parser.add_argument("--task", metavar="T", help="detection, pose or 3d, of a .pth that does not say it")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N photographs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")


def run(args: argparse.Namespace) -> int:
    """Print the figures, and write them where asked."""
    if contradiction := _contradiction(args):
        print(f"centeredge evaluate: {contradiction}", file=sys.stderr)
        return 2
    if args.kitti is not None:
        figures = _on_kitti(args)
        _print_kitti(figures)
    else:
        figures = _coco_results(args) if _holds_results(args.model) else _on_coco(args)
        _print_coco(figures)
    if args.json is not None:
        _write_json(args.json, figures)
    return 0


def _contradiction(args: argparse.Namespace) -> str | None:
    """What is wrong with the command line, if anything."""
    for_models = {**_augmentations(args), "architecture": args.architecture, "task": args.task, "images": args.images}
    given = [f"--{name}" for name, value in for_models.items() if value]
    if args.limit is not None and args.limit < 1:
        return f"--limit must be at least 1, got {args.limit}"
    if args.kitti is None:
        if args.annotations is None:
            return "--annotations FILE with --images DIR, or --kitti DIR, is required"
        if args.split is not None:
            return "--split names a part of a KITTI folder; give --kitti DIR too"
        if Path(args.model).is_dir():
            return f"{args.model} is a folder, as KITTI results are; give --kitti DIR"
    elif args.annotations is not None or args.images is not None:
        return "--kitti stands in place of --images and --annotations; leave one of them out"
    elif args.model.endswith(".json"):
        return f"{args.model} is COCO results; with --kitti, results are a folder of KITTI files"
    if _holds_results(args.model):
        options = [option for option in given if option != "--images"]
        return f"{', '.join(options)} is for models, and {args.model} holds results" if options else None
    if args.kitti is None and args.images is None:
        return "to evaluate a model, --images DIR is needed beside --annotations"
    if (args.architecture or args.task) and not args.model.endswith(".pth"):
        return f"--architecture and --task are for a .pth; {args.model} says them itself"
    return None


def _holds_results(model: str) -> bool:
    return model.endswith(".json") or Path(model).is_dir()


def _augmentations(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `AugmentedDetector` that were given."""
    names = ("flip", "scales", "resolution", "keypoints", "nms")
    return {name: value for name in names if (value := getattr(args, name))}


def _on_coco(args: argparse.Namespace) -> dict[str, Any]:
    with _open_detector(args) as detector:
        if detector.spec.keypoint_names and not detector.spec.oks_sigmas:
            _note_sigmas(default_oks_sigmas(detector.spec.keypoint_names))
        return evaluate_on_coco(
            detector, args.images, args.annotations, image_ids=_first_images(args), progress=_show_progress
        )


def _on_kitti(args: argparse.Namespace) -> dict[str, Any]:
    from sdk.kitti_metrics import evaluate_kitti_results, evaluate_on_kitti

    options = {"split": args.split, "iou": args.kitti_iou, "limit": args.limit}
    if _holds_results(args.model):
        return evaluate_kitti_results(Path(args.model), args.kitti, **options)
    with _open_detector(args) as detector:
        return evaluate_on_kitti(detector, args.kitti, **options, progress=_show_progress)


def _open_detector(args: argparse.Namespace) -> Detector | AugmentedDetector:
    """All peaks count, whatever the model's own threshold: average precision integrates over them."""
    backend, input_multiple = _open_backend(args)
    if options := _augmentations(args):
        return AugmentedDetector(backend, **options, score_threshold=0.0, input_multiple=input_multiple)
    return Detector(backend, score_threshold=0.0)


def _open_backend(args: argparse.Namespace) -> tuple[Backend, int]:
    """The model, and what the sides of its input are multiples of."""
    if not args.model.endswith(".pth"):
        path = model_path(args.model)
        metadata = read_metadata(path) if path.suffix == ".onnx" else {}
        return open_backend(path), int(metadata.get(MULTIPLE_METADATA_KEY, INPUT_MULTIPLE))
    from train.checkpoint import load_checkpoint
    from train.evaluate import TorchBackend

    network, spec = load_checkpoint(args.model, args.architecture, args.task)
    return TorchBackend(network, spec), int(getattr(network, "input_multiple", INPUT_MULTIPLE))


def _coco_results(args: argparse.Namespace) -> dict[str, Any]:
    rows = read_json(Path(args.model))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{args.model} is no COCO results file; expected a list of objects with image_id and bbox")
    data = read_coco(args.annotations)
    names = [category["name"] for category in data["categories"]]
    results = CocoResults(data, names, oks_sigmas=_sigmas_of_results(rows, data))
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


def _sigmas_of_results(rows: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> tuple[float, ...]:
    """OKS sigmas for results with keypoints: the annotations' categories say which keypoints these are."""
    if not rows or not all("keypoints" in row for row in rows):
        return ()
    schemas = [category["keypoints"] for category in data["categories"] if category.get("keypoints")]
    if not schemas and len(rows[0]["keypoints"]) == 3 * len(COCO_OKS_SIGMAS):
        return COCO_OKS_SIGMAS
    sigmas = default_oks_sigmas(schemas[0] if schemas else [""] * (len(rows[0]["keypoints"]) // 3))
    _note_sigmas(sigmas)
    return sigmas


def _note_sigmas(sigmas: Sequence[float]) -> None:
    if tuple(sigmas) != COCO_OKS_SIGMAS:
        print(
            f"no OKS sigmas are known for these {len(sigmas)} keypoints; each is {DEFAULT_OKS_SIGMA}", file=sys.stderr
        )


def _first_images(args: argparse.Namespace) -> set[int] | None:
    if args.limit is None:
        return None
    return {image["id"] for image in read_coco(args.annotations)["images"][: args.limit]}


def _show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty() or done == total:
        print(f"\r{done}/{total} photographs", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _print_coco(figures: dict[str, Any]) -> None:
    for kind in ("bbox", "keypoints"):
        if kind in figures:
            print(f"{kind:10}" + "  ".join(f"{name} {_number(value)}" for name, value in figures[kind].items()))
    if len(figures["per_class"]) > 1:
        for name, values in figures["per_class"].items():
            print(f"  {name:20}" + "  ".join(f"{key} {_number(value)}" for key, value in values.items()))


def _print_kitti(figures: Mapping[str, Mapping[str, Mapping[str, Sequence[float | None]]]]) -> None:
    """One line a class, metric and number of recall points."""
    print(" " * 22 + "".join(f"{name:>10}" for name in _DIFFICULTIES))
    for class_name, metrics in figures.items():
        for metric, by_recall in metrics.items():
            for recall, values in by_recall.items():
                cells = "".join(f"{'-' if value is None else f'{value:.2f}':>10}" for value in values)
                print(f"{class_name:12}{metric:5}{recall:5}{cells}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(json.dumps(figures, indent=1) + "\n")
        os.replace(temporary, path)
    except OSError as err:
        raise InputError(f"--json {path} cannot be written: {err.strerror}") from err


def _scales(text: str) -> tuple[float, ...]:
    """The numbers of `0.5,1,1.5`."""
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise argparse.ArgumentTypeError(f"{text!r} are no scales; expected positive numbers such as 0.5,1,1.5")
    return scales
