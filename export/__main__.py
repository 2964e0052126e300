"""`centeredge export`: from a checkpoint to a file that runs without PyTorch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sdk.errors import ConfigError

TARGETS = ("onnxruntime", "tensorrt", "tensorrt-8", "tensorrt-rtx")
PRECISIONS = ("fp32", "fp16", "int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `centeredge export`."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a .pth that `centeredge train` wrote")
    parser.add_argument("out", metavar="OUT", type=Path, help="the .onnx file to write")
    parser.add_argument(
        "--size", type=_size, metavar="WxH", help="input size in pixels; default: that of the checkpoint"
    )
    parser.add_argument("--architecture", metavar="A", help="of a checkpoint that does not say it")
    parser.add_argument("--task", metavar="T", help="detection, pose or 3d, of a checkpoint that does not say it")
    parser.add_argument(
        "--target", choices=TARGETS, default="onnxruntime", help="runtime to export for; default: %(default)s"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="default: %(default)s")
    parser.add_argument("--ranges", type=Path, metavar="FILE", help="activation ranges for --precision int8")


def run(args: argparse.Namespace) -> int:
    """Export, and print how close the result is."""
    _check(args)
    from train.checkpoint import load_checkpoint

    from .onnx_export import check_size, export_onnx, input_multiple
    from .verification import difference_table

    model, spec = load_checkpoint(args.checkpoint, args.architecture, args.task)
    if args.size is not None:
        check_size(args.size, input_multiple(model))
        spec = spec.with_input_size(*args.size)
    differences = export_onnx(model, spec, args.out)
    width, height = spec.input.wh
    print(f"{args.out}: {spec.name}, {width}x{height}, FP32, {args.out.stat().st_size / 1e6:.1f} MB")
    print("ONNX Runtime against PyTorch on drawn scenes, in parts of each head's largest value:")
    print(difference_table(differences))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError for what contradicts itself, and for what this version does not do."""
    if args.ranges is not None and args.precision != "int8":
        raise ConfigError(f"--ranges is for --precision int8, not {args.precision}; leave one of them out")
    if args.out.suffix not in (".onnx", ".engine"):
        raise ConfigError(f"{args.out} has the suffix {args.out.suffix!r}; expected .onnx")
    if args.out.suffix == ".engine" or args.target != "onnxruntime":
        what = "a .engine" if args.out.suffix == ".engine" else f"--target {args.target}"
        raise ConfigError(
            f"{what} is not supported by this version yet; use a .onnx and --target onnxruntime, which run everywhere"
        )
    if args.precision == "int8":
        raise ConfigError(
            "--precision int8 is not supported by this version yet; export FP32 and give the result to "
            "`centeredge calibrate`"
        )
    if args.precision != "fp32":
        raise ConfigError(f"--precision {args.precision} is not supported by this version yet; use fp32")
    if args.checkpoint.suffix == ".onnx":
        raise ConfigError(
            f"{args.checkpoint} is exported already, and this version exports checkpoints only; name a .pth"
        )


def _size(text: str) -> tuple[int, int]:
    """Width and height of `640x480`."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected WxH in pixels, such as 320x320")
    return int(width), int(height)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="centeredge export", description=__doc__)
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
