"""`centeredge calibrate`: from a float model to an INT8 one, and what that costs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `centeredge calibrate`."""
    from .config import DEFAULT_METHOD, METHOD_NAMES, TARGETS, CalibrationConfig

    default = CalibrationConfig
    parser.add_argument("model", metavar="MODEL", type=Path, help="a float .onnx that `centeredge export` wrote")
    parser.add_argument("out", metavar="OUT", type=Path, help="the INT8 .onnx to write")
    parser.add_argument("--images", type=Path, metavar="DIR", help="photographs like those that the camera will see")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="COCO file of DIR: measure accuracy on what is left of it"
    )
    parser.add_argument("--eval-images", type=Path, metavar="DIR", help="photographs to measure accuracy on")
    parser.add_argument("--eval-annotations", type=Path, metavar="FILE", help="COCO file of --eval-images")
    parser.add_argument("--num", type=int, default=default.num, metavar="N", help="photographs; default: %(default)s")
    parser.add_argument("--method", choices=METHOD_NAMES, help=f"how ranges are chosen; default: {DEFAULT_METHOD}")
    parser.add_argument("--target", choices=TARGETS, default=default.target, help="default: %(default)s")
    parser.add_argument(
        "--ranges", type=Path, metavar="FILE", help="activation ranges: used if FILE exists, written if not"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Calibrate, and print what it cost and gained."""
    from .config import CalibrationConfig
    from .onnx_files import check_writable, replacing
    from .pipeline import calibrate

    config = CalibrationConfig(
        images=args.images,
        annotations=args.annotations,
        eval_images=args.eval_images,
        eval_annotations=args.eval_annotations,
        num=args.num,
        method=args.method,
        target=args.target,
        ranges=args.ranges,
    )
    if args.json is not None:
        check_writable(args.json)
    report = calibrate(args.model, args.out, config, note=_note)
    if args.json is not None:
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    print(report.to_text())
    return 0


def _note(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="centeredge calibrate", description=__doc__)
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
