"""`centeredge calibrate`: from a float model to an INT8 or FP16 one, and what that costs."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from calibration.config import CalibrationConfig
    from calibration.deployment import Deployment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `centeredge calibrate`."""
    from calibration.config import DEFAULT_METHOD, METHOD_NAMES, TARGETS, CalibrationConfig, WeightOptions

    default = CalibrationConfig
    parser.add_argument("model", metavar="MODEL", type=Path, help="an FP32 .onnx that `centeredge export` wrote")
    parser.add_argument("out", metavar="OUT", type=Path, help="the .onnx to write")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR|LIST.txt",
        help="photographs like those that the camera will see: a folder, or a list with one path a line",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO file of --images: balances the classes; without --eval-images, accuracy is measured on up to 500 "
        "photographs that are set aside",
    )
    parser.add_argument("--eval-images", type=Path, metavar="DIR|LIST.txt", help="photographs to measure accuracy on")
    parser.add_argument("--eval-annotations", type=Path, metavar="FILE", help="COCO file of --eval-images")
    parser.add_argument("--num", type=int, default=default.num, metavar="N", help="photographs; default: %(default)s")
    parser.add_argument("--method", choices=METHOD_NAMES, help=f"how ranges are chosen; default: {DEFAULT_METHOD}")
    parser.add_argument("--target", choices=TARGETS, default=default.target, help="default: %(default)s")
    parser.add_argument("--precision", choices=("int8", "fp16"), default="int8", help="default: %(default)s")
    parser.add_argument(
        "--int8-float", choices=("fp32", "fp16"), help="type of what --target tensorrt leaves in float; default: fp16"
    )
    parser.add_argument(
        "--ranges",
        type=Path,
        metavar="FILE",
        help="activation ranges: used if FILE exists, be it ours or a calibration cache of TensorRT; written if not",
    )
    parser.add_argument(
        "--max-ap-drop", type=float, metavar="AP", help="layers go back to float until no more AP is lost, say 0.005"
    )
    parser.add_argument(
        "--sensitivity", action="store_true", help="measure what each part of the network in float would change"
    )
    parser.add_argument(
        "--keep-float", type=_names, default=(), metavar="LAYER,...", help="layers that stay in float, by their names"
    )
    parser.add_argument(
        "--weight-search",
        action=argparse.BooleanOptionalAction,
        default=WeightOptions().search,
        help="steps of weights by least squared error, not by the largest weight",
    )
    parser.add_argument(
        "--bias-correction", action="store_true", help="take back the mean shift that rounded weights cause"
    )
    parser.add_argument(
        "--equalise", action="store_true", help="even out the channels of neighbouring convolutions before calibrating"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="measure accuracy although evaluation photographs were calibrated on: those are left out, and counted",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="chooses the photographs; default: 0")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write the report as a page, for offline too")
    parser.add_argument(
        "--write-cache", type=Path, metavar="FILE", help="write the ranges as a calibration cache of TensorRT up to 10"
    )
    parser.add_argument(
        "--tensorrt-version", default=default.tensorrt_version, metavar="V", help="of --write-cache; default: 10.3.0"
    )


def run(args: argparse.Namespace) -> int:
    """Calibrate, and print what it cost and gained."""
    from calibration.errors import CalibrationError
    from calibration.onnx_files import check_writable, replacing
    from calibration.pipeline import calibrate
    from calibration.report_html import report_html

    config, deployment = _config(args), _deployment(args)
    for path in (args.json, args.report):
        if path is not None:
            check_writable(path)
    _check_files_differ(args)
    report = calibrate(args.model, args.out, config, deployment=deployment, note=_note)
    if args.json is not None:
        with replacing(args.json) as temporary:
            temporary.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    if args.report is not None:
        with replacing(args.report) as temporary:
            temporary.write_text(report_html(report, report.pictures), encoding="utf-8")
    print(report.to_text())
    if report.sensitivity is not None:
        print(report.sensitivity.to_text())
    if report.budget is not None and not report.budget["holds"]:
        raise CalibrationError(
            f"the budget of {args.max_ap_drop} AP does not hold; {args.out} is the model that comes closest"
        )
    return 0


def _check_files_differ(args: argparse.Namespace) -> None:
    from sdk.errors import ConfigError

    named: dict[Path, str] = {args.model.resolve(): "MODEL"}
    for option in ("out", "ranges", "json", "report", "write_cache"):
        path, title = getattr(args, option), "OUT" if option == "out" else f"--{option.replace('_', '-')}"
        if path is not None and named.setdefault(path.resolve(), title) != title:
            raise ConfigError(f"{title} and {named[path.resolve()]} are both {path}; each needs a file of its own")


def _config(args: argparse.Namespace) -> CalibrationConfig:
    from calibration.config import CalibrationConfig, WeightOptions

    return CalibrationConfig(
        images=args.images,
        annotations=args.annotations,
        eval_images=args.eval_images,
        eval_annotations=args.eval_annotations,
        num=args.num,
        method=args.method,
        target=args.target,
        precision=args.precision,
        ranges=args.ranges,
        weights=WeightOptions(search=args.weight_search, bias_correction=args.bias_correction),
        equalise=args.equalise,
        keep_float=args.keep_float,
        max_ap_drop=args.max_ap_drop,
        sensitivity=args.sensitivity,
        force=args.force,
        write_cache=args.write_cache,
        tensorrt_version=args.tensorrt_version,
        seed=args.seed,
    )


def _deployment(args: argparse.Namespace) -> Deployment:
    """The last steps to the file of the target, which `export` knows."""
    from calibration.deployment import Deployment
    from export.conversion import Form, finish
    from export.half_precision import rounded_like_half

    half = partial(finish, form=Form(args.target, precision="fp16"))
    form = Form(args.target, precision=args.precision, int8_float=args.int8_float)
    form.check()
    if args.target == "onnxruntime":
        return Deployment(half=half, rounded=rounded_like_half)
    return Deployment(partial(finish, form=form), half=half, rounded=rounded_like_half)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _note(text: str) -> None:
    print(text, file=sys.stderr)
