"""`centeredge export`: from a checkpoint, or the FP32 file that came from it, to a file for another runtime."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sdk.engine_files import ANY_GPU, RUNTIME_NAMES, HardwareCompatibility
from sdk.errors import ConfigError
from sdk.spec import Precision

from .targets import TARGETS

if TYPE_CHECKING:
    from calibration.ranges import Ranges

    from .conversion import Form
    from .engine import EngineOptions
    from .pipeline import Source

_ENGINE_OPTIONS = (
    *("workspace", "optimization_level", "timing_cache", "version_compatible", "hardware", "dla_core"),
    *("calibration_cache", "calibration_images"),
)

_FORM_OPTIONS = ("size", "target", "precision", "ranges", "int8_float", "any_size", "images")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `centeredge export`."""
    parser.add_argument(
        "source", metavar="CHECKPOINT|MODEL.onnx", type=Path, help="a .pth, or an .onnx that came from one"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the .onnx or .engine file to write")
    parser.add_argument("--size", type=_size, metavar="WxH", help="input size in pixels; default: that of the source")
    parser.add_argument("--architecture", metavar="A", help="of a checkpoint that does not say it")
    parser.add_argument("--task", metavar="T", help="detection, pose or 3d, of a checkpoint that does not say it")
    parser.add_argument(
        "--target", choices=tuple(TARGETS), help="runtime to export for; default: onnxruntime, or tensorrt for .engine"
    )
    parser.add_argument("--precision", choices=get_args(Precision), help="default: fp32")
    parser.add_argument("--ranges", type=Path, metavar="FILE", help="activation ranges for --precision int8")
    parser.add_argument(
        "--int8-float", choices=("fp32", "fp16"), help="type of what INT8 leaves; default: what the target likes"
    )
    parser.add_argument(
        "--dynamic-batch", type=_batch, metavar="MIN,OPT,MAX", help="frames a call; default: one, which is fastest"
    )
    parser.add_argument(
        "--any-size", action="store_true", help="a dense file for frames of every size, as --flip and --scales need"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="photographs to verify on; default: drawn scenes")
    engine = parser.add_argument_group("for .engine files")
    engine.add_argument("--workspace", type=int, metavar="MIB", help="most memory that one layer may use")
    engine.add_argument("--optimization-level", type=int, metavar="0..5", help="0 builds soonest, 5 searches longest")
    engine.add_argument("--timing-cache", type=Path, metavar="FILE", help="measurements to use again and to add to")
    engine.add_argument("--version-compatible", action="store_true", help="run with later versions of TensorRT too")
    engine.add_argument(
        "--hardware", choices=get_args(HardwareCompatibility), help="other GPUs to run on; default: none"
    )
    engine.add_argument(
        "--calibration-cache", type=Path, metavar="FILE", help="INT8 ranges for a file without Q/DQ, up to TensorRT 10"
    )
    engine.add_argument(
        "--calibration-images", type=Path, metavar="DIR", help="photographs to measure them on where FILE is not there"
    )
    engine.add_argument("--dla-core", type=int, metavar="N", help="run what can run there on a DLA (experimental)")


def run(args: argparse.Namespace) -> int:
    """Export, and print how close the result is."""
    _check(args)
    if args.out.suffix == ".engine":
        return _write_engine(args)
    from calibration.onnx_files import check_writable

    from .pipeline import export_model

    form = _form(args, default_target="onnxruntime")
    check_writable(args.out)
    source = _source(args)
    report = export_model(source, args.out, form, ranges=_ranges(args, source), photographs=args.images)
    print(f"{args.out}: {form.target}, {form.precision.upper()}, {args.out.stat().st_size / 1e6:.1f} MB")
    print(report.text())
    return 0


def _write_engine(args: argparse.Namespace) -> int:
    """From a file in TensorRT's form as it is; from anything else through such a file."""
    from .engine import build_engine, check_build
    from .engine_export import export_engine, has_engine_form

    options = _engine_options(args)
    if has_engine_form(args.source):
        if given := _given(args, *_FORM_OPTIONS):
            raise ConfigError(
                f"{args.source} has its final form, which {', '.join(given)} cannot change; build from it without, or "
                "export from the checkpoint or its FP32 file"
            )
        record = build_engine(args.source, args.out, options, note=_note)
    else:
        form = _form(args, default_target="tensorrt")
        # Before the seconds that a checkpoint takes to load.
        check_build(
            args.out,
            options,
            of=f"--target {form.target}",
            target=form.target,
            precision=form.precision,
            batch=form.batch,
        )
        source, rebuild = _source(args), _rebuild_command(args, options)
        ranges = _ranges(args, source)
        record, _ = export_engine(
            source, args.out, form, options, rebuild=rebuild, ranges=ranges, photographs=args.images, note=_note
        )
    gpu = "any GPU" if record.gpu == ANY_GPU else record.gpu
    name = RUNTIME_NAMES[record.runtime]
    print(f"{args.out}: {name} {record.runtime_version}, {record.precision.upper()}, for {gpu}")
    return 0


def _rebuild_command(args: argparse.Namespace, options: EngineOptions) -> str:
    """What does all of it again; where the process got its arguments from does not matter."""
    words = [] if args.size is None else ["--size", "{}x{}".format(*args.size)]
    for name in ("target", "precision", "ranges", "int8_float", "architecture", "task"):
        if (value := getattr(args, name)) is not None:
            words += [_flag(name), str(value)]
    return shlex.join([*shlex.split(options.command(args.source, args.out)), *words])


def _given(args: argparse.Namespace, *names: str) -> list[str]:
    """Those of these options that were given, as they are typed; 0 is given too."""
    return [_flag(name) for name in names if getattr(args, name) is not None and getattr(args, name) is not False]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError for what contradicts itself."""
    if args.out.suffix not in (".onnx", ".engine"):
        raise ConfigError(f"{args.out} has the suffix {args.out.suffix!r}; expected .onnx or .engine")
    if args.out.suffix == ".onnx" and (given := _given(args, *_ENGINE_OPTIONS)):
        raise ConfigError(f"for .engine files alone: {', '.join(given)}; {args.out} is none, so leave that out")
    if args.out.suffix == ".engine" and args.target == "onnxruntime":
        raise ConfigError("--target onnxruntime has no engines; name a .onnx, or another target")
    if args.ranges is not None and args.precision != "int8":
        raise ConfigError(f"--ranges is for --precision int8, not {args.precision or 'fp32'}; leave one of them out")
    if args.precision == "int8" and args.ranges is None:
        raise ConfigError(
            "--precision int8 needs --ranges FILE, the activation ranges that `centeredge calibrate` measures"
        )
    if args.source.suffix == ".onnx" and (args.architecture or args.task):
        raise ConfigError(f"--architecture and --task are for checkpoints; {args.source} says both itself")
    if args.out.exists() and args.source.exists() and args.out.samefile(args.source):
        raise ConfigError(f"{args.out} would replace its source; name another output")


def _form(args: argparse.Namespace, *, default_target: str) -> Form:
    from .conversion import Form

    form = Form(
        target=args.target or default_target,
        precision=args.precision or "fp32",
        wh=args.size,
        any_size=args.any_size,
        batch=args.dynamic_batch,
        int8_float=args.int8_float,
    )
    form.check()
    return form


def _source(args: argparse.Namespace) -> Source:
    if args.source.suffix == ".onnx":
        from .pipeline import onnx_source

        return onnx_source(args.source)
    from .onnx_export import checkpoint_source

    return checkpoint_source(args.source, architecture=args.architecture, task=args.task)


def _ranges(args: argparse.Namespace, source: Source) -> Ranges | None:
    if args.ranges is None:
        return None
    from calibration.ranges import open_ranges

    return open_ranges(args.ranges, source.model)


def _engine_options(args: argparse.Namespace) -> EngineOptions:
    from .engine import EngineOptions

    return EngineOptions(
        workspace_mib=args.workspace,
        optimization_level=args.optimization_level,
        version_compatible=args.version_compatible,
        hardware_compatibility=args.hardware or "none",
        dla_core=args.dla_core,
        batch=args.dynamic_batch,
        timing_cache=args.timing_cache,
        calibration_cache=args.calibration_cache,
        calibration_images=args.calibration_images,
    )


def _size(text: str) -> tuple[int, int]:
    """Width and height of `640x480`."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected WxH in pixels, such as 320x320")
    return int(width), int(height)


def _batch(text: str) -> tuple[int, int, int]:
    """Three numbers of `1,4,8`."""
    parts = [int(part) for part in text.split(",") if part.isdecimal()]
    if len(parts) != 3 or text.count(",") != 2 or not 1 <= parts[0] <= parts[1] <= parts[2]:
        raise argparse.ArgumentTypeError(f"{text!r} is no batch; expected MIN,OPT,MAX that rise, such as 1,4,8")
    return parts[0], parts[1], parts[2]


def _note(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="centeredge export", description=__doc__)
    add_arguments(parser)
    sys.exit(run(parser.parse_args()))
