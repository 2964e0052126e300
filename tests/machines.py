"""Machines that are not here: the files and the answers that tell `inspect_machine` about them.

Written after what such machines are documented to say and what their owners have published; none was at hand.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sdk.machine import CommandFailed, Machine, inspect_machine

GTK_BUILD = """
  GUI:                           GTK3
    GTK+:                        YES (ver 3.24.33)
  Video I/O:
    FFMPEG:                      YES
      avcodec:                   YES (58.134.100)
    GStreamer:                   YES (1.20.3)
"""
OLD_GTK_BUILD = (
    "  GUI: \n    GTK+:                        YES (ver 3.24.20)\n    GStreamer:    YES (1.16.2)\n    FFMPEG:   YES\n"
)
WHEEL_BUILD = "  GUI:                           QT5\n    FFMPEG:                      YES\n    GStreamer:    NO\n"
HEADLESS_BUILD = "  GUI:                           NONE\n    FFMPEG:                      YES\n    GStreamer:    NO\n"


@dataclass(frozen=True)
class FakeMachine:
    """What a machine would say.

    Attributes:
        files: path below the root -> text.
        answers: module -> what its import answers, or why it fails; modules that are missing are not installed.
        smi: what nvidia-smi prints, or why it fails; None: there is none.
    """

    files: Mapping[str, str]
    python: str = "3.11.9"
    arch: str = "x86_64"
    versions: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[str, Mapping[str, object] | str] = field(default_factory=dict)
    smi: str | CommandFailed | None = None

    def inspect(self) -> Machine:
        with tempfile.TemporaryDirectory() as folder:
            for name, text in self.files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return inspect_machine(root=Path(folder), run=self.run)

    def run(self, command: Sequence[str]) -> str:
        if command[0] == "nvidia-smi":
            return self._smi()
        code = command[-1]
        if "platform" in code:
            return json.dumps({"python": self.python, "arch": self.arch, "versions": dict(self.versions)})
        modules = ("tensorrt_rtx", "tensorrt", "onnxruntime", "cv2", "pycuda", "cuda")
        module = next(name for name in modules if f"import {name}" in code or f"from {name}" in code)
        answer = self.answers.get(module, f"ModuleNotFoundError: No module named '{module}'")
        if isinstance(answer, str):
            raise CommandFailed(answer)
        return "a greeting of the package\n" + json.dumps(dict(answer)) + "\n"

    def _smi(self) -> str:
        if self.smi is None:
            raise CommandFailed("there is no such program")
        if isinstance(self.smi, CommandFailed):
            raise self.smi
        return self.smi


def jetson_files(
    release: str, model: str, chip: str, *, system: str, cores: int = 6, features: str = "fp asimd asimdhp asimddp"
) -> dict[str, str]:
    """Files of a Jetson; `release` as "R36 (release), REVISION: 4.3"."""
    return {
        "etc/nv_tegra_release": f"# {release}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n",
        "etc/os-release": f'NAME="Ubuntu"\nPRETTY_NAME="{system}"\n',
        "proc/device-tree/model": f"{model}\0",
        "proc/device-tree/compatible": f"nvidia,p3768-0000+p3767-0005\0nvidia,{chip}\0",
        "proc/cpuinfo": "".join(f"processor\t: {core}\nFeatures\t: {features}\n\n" for core in range(cores)),
        "proc/meminfo": "MemTotal:        7802704 kB\nMemFree:  5000000 kB\nMemAvailable:    5401116 kB\n",
        "usr/src/tensorrt/bin/trtexec": "",
    }


def pc_files(*, flags: str = "fpu avx2 avx_vnni", cores: int = 8) -> dict[str, str]:
    """Files of a PC."""
    cpu = f"model name\t: Some CPU\nflags\t\t: {flags}\n\n"
    return {
        "etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.2 LTS"\n',
        "proc/cpuinfo": "".join(f"processor\t: {core}\n{cpu}" for core in range(cores)),
        "proc/meminfo": "MemTotal:       32768000 kB\nMemAvailable:   20480000 kB\n",
    }


_CPU_RUNTIME = {"version": "1.23.2", "providers": ["AzureExecutionProvider", "CPUExecutionProvider"]}
_NEW_RUNTIME = {**_CPU_RUNTIME, "version": "1.31.1"}

JETPACK_6_ORIN = FakeMachine(
    jetson_files(
        "R36 (release), REVISION: 4.3",
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "tegra234",
        system="Ubuntu 22.04.5 LTS",
    ),
    python="3.10.12",
    arch="aarch64",
    versions={"numpy": "1.26.4"},
    answers={
        "cv2": {"version": "4.8.0", "build": GTK_BUILD},
        "onnxruntime": _CPU_RUNTIME,
        "tensorrt": {"version": "10.3.0"},
        "cuda": {"version": "12.9.10"},
    },
)
JETPACK_5_XAVIER = FakeMachine(
    jetson_files(
        "R35 (release), REVISION: 4.1",
        "NVIDIA Jetson Xavier NX Developer Kit",
        "tegra194",
        system="Ubuntu 20.04.6 LTS",
        features="fp asimd asimdhp",
    ),
    python="3.10.14",  # not the system's, which is 3.8
    arch="aarch64",
    versions={"numpy": "2.2.6"},
    answers={"cv2": {"version": "4.12.0", "build": WHEEL_BUILD}, "onnxruntime": _CPU_RUNTIME},
)
PC_WITH_GPU = FakeMachine(
    pc_files(),
    python="3.12.3",
    versions={"numpy": "2.4.6", "onnx": "1.23.2", "torch": "2.13.0"},
    answers={
        "cv2": {"version": "5.0.0", "build": WHEEL_BUILD},
        "onnxruntime": _NEW_RUNTIME,
        "tensorrt": {"version": "11.4.0.106"},
        "tensorrt_rtx": {"version": "1.7.1.116"},
        "pycuda": {"version": "2026.1"},
    },
    smi="NVIDIA GeForce RTX 4090, 580.65.06, 24564, 8.9\n",
)
LAPTOP = FakeMachine(
    pc_files(flags="fpu avx2", cores=4),
    versions={"numpy": "2.4.6"},
    answers={"cv2": {"version": "4.11.0", "build": HEADLESS_BUILD}, "onnxruntime": _NEW_RUNTIME},
)
