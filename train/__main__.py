"""`centeredge train`: from a data set to a checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from sdk.errors import SdkError

from .config import PRESETS, override, preset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--data", required=True, help="a COCO, KITTI or PASCAL VOC folder, or 'synthetic'")
    parser.add_argument("--out", type=Path, help="folder for last.pth, best.pth and TensorBoard")
    parser.add_argument(
        "--check-data", action="store_true", help="train nothing; list every problem of the data, and what is in it"
    )
    parser.add_argument("--resume", action="store_true", help="continue from OUT/last.pth, where there is one")
    parser.add_argument("--init", type=Path, help="start from this checkpoint's weights")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="field=value", help="change a field of the preset"
    )


def run(args: argparse.Namespace) -> int:
    assignments = {}
    for text in args.set:
        name, equals, value = text.partition("=")
        if not equals:
            print(f"centeredge train: --set takes field=value, got {text!r}", file=sys.stderr)
            return 2
        assignments[name] = value
    if args.check_data:
        from .check_data import print_report

        return print_report(args.data, override(preset(args.preset), assignments) if args.preset else None)
    if not args.preset or not args.out:
        print("centeredge train: --preset and --out are needed, except for --check-data", file=sys.stderr)
        return 2
    config = override(preset(args.preset), assignments)
    from .data import open_data
    from .loop import train

    train(config, open_data(args.data, config), args.out, resume=args.resume, init=args.init)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # All is written. While Python shuts down, gloo's threads at times abort a process that has done its work, and
        # torchrun would call that a failure.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="centeredge train", description=__doc__)
    add_arguments(parser)
    try:
        sys.exit(run(parser.parse_args()))
    except SdkError as err:
        sys.exit(f"centeredge train: {err}")
