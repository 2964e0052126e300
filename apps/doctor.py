"""`centeredge doctor`: what this machine has, what of CenterEdge it runs, and what to install."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from sdk.capabilities import PRECISIONS, TARGETS, Capability, capabilities, to_do
from sdk.machine import Machine, OpenCv, Package, inspect_machine

_WIDTH = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `centeredge doctor`."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the findings as JSON; without FILE, or with -, to standard output in place of the report",
    )


def run(args: argparse.Namespace) -> int:
    """Look, and say what was found. 0 whatever it is: a finding is no failure."""
    machine = inspect_machine()
    text = json.dumps(findings(machine), indent=1)
    if args.json == "-":
        print(text)
        return 0
    if args.json is not None:
        Path(args.json).write_text(text + "\n")
    print(report(machine))
    return 0


def findings(machine: Machine) -> dict[str, Any]:
    """{"machine": its fields, "capabilities": [...], "to_do": [commands]}, for JSON."""
    document: dict[str, Any] = {
        "machine": asdict(machine),
        "capabilities": [asdict(capability) for capability in capabilities(machine)],
        "to_do": list(to_do(machine)),
    }
    document["machine"]["onnxruntime"]["has_deform_conv"] = machine.onnxruntime.has_deform_conv
    return document


def report(machine: Machine) -> str:
    """The same for people."""
    found = capabilities(machine)
    lines = [
        "This machine",
        *_rows(_about(machine)),
        "",
        "Packages",
        *_rows(_packages(machine)),
        "",
        "What runs here (by versions and drivers; no model was run)",
        *_rows([("", "".join(f"{name:8}" for name in PRECISIONS)), *_table(found)]),
        "",
        *_rows(_notes(found)),
    ]
    commands = to_do(machine)
    if commands:
        lines += ["", "To do", *(f"  {command}" for command in commands)]
    return "\n".join(line.rstrip() for line in lines)


def _rows(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Names in one column, what belongs to them in another, wrapped."""
    rows = list(rows)
    column = max(len(name) for name, _ in rows) + 4
    for name, text in rows:
        first, *more = textwrap.wrap(text, _WIDTH - column, break_long_words=False, drop_whitespace=False) or [""]
        yield f"  {name:{column - 2}}{first}"
        yield from (" " * column + line.lstrip() for line in more)


def _about(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "system", f"{machine.system}, {machine.arch}"
    jetson = machine.jetson
    if jetson is not None:
        yield "jetson", f"{jetson.model}, JetPack {jetson.jetpack or 'unknown'} (L4T {jetson.l4t or 'unknown'})"
    yield "python", machine.python
    flags = ", ".join(machine.cpu.flags) or "none that speed up INT8"
    yield "cpu", f"{machine.cpu.name or machine.arch}, {machine.cpu.cores} cores, instructions: {flags}"
    if machine.memory is not None:
        yield "memory", f"{machine.memory.total_mib} MiB, {machine.memory.available_mib} MiB available"
    for gpu in machine.gpus:
        memory = "shared memory" if gpu.memory_mib is None else f"{gpu.memory_mib} MiB"
        driver = f", driver {gpu.driver}" if gpu.driver else ""
        yield "gpu", f"{gpu.name}, compute capability {gpu.compute_capability or 'unknown'}, {memory}{driver}"
    if not machine.gpus:
        yield "gpu", f"none: {machine.no_gpu}"


def _packages(machine: Machine) -> Iterator[tuple[str, str]]:
    runtime = machine.onnxruntime
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in runtime.providers)
    deform_conv = "has DeformConv" if runtime.has_deform_conv else "no DeformConv"
    yield "numpy", _version(machine.numpy)
    yield "opencv", _version(machine.opencv, _built_with(machine.opencv))
    yield "onnxruntime", _version(runtime, f"{deform_conv}; providers {providers}")
    yield "tensorrt", _version(machine.tensorrt)
    yield "tensorrt_rtx", _version(machine.tensorrt_rtx)
    yield "cuda", _version(machine.cuda, machine.cuda.name)
    yield "trtexec", machine.trtexec or "not found"
    yield "onnx", _version(machine.onnx)
    yield "torch", _version(machine.torch)


def _version(package: Package, more: str = "") -> str:
    if not package.works:
        return (package.problem or "unknown").removeprefix("is ")
    return f"{package.version}, {more}" if more else str(package.version)


def _built_with(opencv: OpenCv) -> str:
    has = {"GStreamer": opencv.gstreamer, "FFMPEG": opencv.ffmpeg, f"windows ({opencv.gui})": opencv.gui is not None}
    return ", ".join(name if there else f"no {name.split(' ')[0]}" for name, there in has.items())


def _table(found: Iterable[Capability]) -> Iterator[tuple[str, str]]:
    status = {(capability.target, capability.precision): capability.status for capability in found}
    for target in TARGETS:
        yield target, "".join(f"{status[target, precision]:8}" for precision in PRECISIONS)


def _notes(found: Iterable[Capability]) -> Iterator[tuple[str, str]]:
    """One line for what several precisions of a target have in common."""
    for (target, note), group in groupby(found, key=lambda capability: (capability.target, capability.note)):
        precisions = [capability.precision for capability in group]
        yield target if len(precisions) == len(PRECISIONS) else f"{target} {' '.join(precisions)}", note
