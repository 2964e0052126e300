"""The command line, `centeredge COMMAND ...`: one line of error, exit code 0, 1 (failed) or 2 (bad usage)."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from sdk import __version__
from sdk.errors import SdkError
from sdk.sources import redact

_INTERRUPTED = 130  # as shells report Ctrl-C


@dataclass(frozen=True)
class _Command:
    module: str  # has add_arguments(parser) and run(args) -> int
    help: str
    extras: str  # of the distribution, which bring what it imports


_COMMANDS = {
    "run": _Command("apps.camera_demo", "find objects in a camera, a video or pictures", "cpu"),
    "train": _Command("train.__main__", "train a model", "cpu,train"),
    "evaluate": _Command("apps.evaluate", "measure a model's accuracy on a data set", "cpu,calibration"),
    "export": _Command("export.__main__", "turn a checkpoint into ONNX or an engine", "cpu,export"),
    "calibrate": _Command("apps.calibrate", "turn an ONNX model into INT8 or FP16", "cpu,calibration"),
    "benchmark": _Command("apps.benchmark", "measure a model's speed", "cpu"),
    "doctor": _Command("apps.doctor", "say what this machine can run, and what to install", "cpu"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code.

    Args:
        argv: the command and its arguments; None takes those of the process.

    Raises:
        SystemExit: with 2 on bad usage, 0 after --help.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        args = _parser(arguments).parse_args(arguments)
        return int(args.run(args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as err:
        if "--debug" in arguments:
            traceback.print_exc()
        else:
            print(f"centeredge {arguments[0]}: {_one_line(err, arguments[0])}", file=sys.stderr)
        return 1


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the arguments of the one command that is asked for: the others stay unimported."""
    parser = argparse.ArgumentParser(
        prog="centeredge",
        description="Objects, 3D boxes and human poses on the machine that carries the camera.",
    )
    parser.add_argument("--version", action="version", version=f"centeredge {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        subparser = commands.add_parser(name, help=command.help, description=command.help)
        if arguments[:1] == [name]:
            module = importlib.import_module(command.module)
            module.add_arguments(subparser)
            subparser.add_argument("--debug", action="store_true", help="show the traceback of an error")
            subparser.set_defaults(run=module.run)
    return parser


def _one_line(err: Exception, command: str) -> str:
    if isinstance(err, SdkError):
        text = str(err)
    elif isinstance(err, ModuleNotFoundError) and err.name and err.name.partition(".")[0] not in _own_packages():
        text = f"needs the package {err.name!r}, which is not installed; {_pip_line(command, err.name)}"
    elif isinstance(err, OSError) and err.filename:
        text = f"{err.filename}: {err.strerror}"
    else:
        text = f"{type(err).__name__}: {err}; --debug shows where"
    return " ".join(redact(text).split())


def _own_packages() -> set[str]:
    return {command.module.partition(".")[0] for command in _COMMANDS.values()} | {"sdk"}


def _pip_line(command: str, package: str) -> str:
    extras = _COMMANDS[command].extras
    if package == "torch" and "train" not in extras and "export" not in extras:
        extras = "cpu,train"
    return f"install it with: pip install 'centeredge[{extras}]'"


if __name__ == "__main__":
    sys.exit(main())
