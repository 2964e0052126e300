"""What this machine has: system, Jetson, CPU, memory, GPUs, and the packages that run models.

::

    machine = inspect_machine()
    machine.jetson, machine.gpus, machine.tensorrt.version

It looks and never fails: what is missing or broken is a finding with its reason. Packages are imported in processes of
their own, because one that is broken may crash or hang.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .engine_files import version_tuple
from .errors import SdkError

_TIMEOUT_S = 60.0  # the first import of a large package from a slow SD card takes tens of seconds
_REAPING_S = 2.0
_DEFORM_CONV_SINCE = (1, 25)  # of onnxruntime, on CPUs

_TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # where JetPack and NVIDIA's Debian packages put it

# Instructions that speed up INT8 or FP16: VNNI and AMX on x86; dot products, half precision and INT8 matrices on ARM.
_FLAGS_OF_INTEREST = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_fp16", "amx_int8"),
    *("asimd", "asimddp", "asimdhp", "i8mm"),
)

# From which release of Jetson Linux (L4T) on, which JetPack that is, and the TensorRT in it (JetPack archive).
_JETPACKS: tuple[tuple[tuple[int, int, int], str, str], ...] = (
    ((32, 1, 0), "4", "8.2 or older"),
    ((34, 1, 0), "5.0 DP", "8.4"),
    ((35, 1, 0), "5.0.2", "8.4"),
    ((35, 2, 1), "5.1", "8.5.2"),
    ((35, 3, 1), "5.1.1", "8.5.2"),
    ((35, 4, 1), "5.1.2", "8.5.2"),
    ((35, 5, 0), "5.1.3", "8.5.2"),
    ((35, 6, 0), "5.1.4", "8.5.2"),
    ((35, 6, 1), "5.1.5", "8.5.2"),
    ((36, 2, 0), "6.0 DP", "8.6.2"),
    ((36, 3, 0), "6.0", "8.6.2"),
    ((36, 4, 0), "6.1", "10.3"),
    ((36, 4, 3), "6.2", "10.3"),
    ((36, 4, 4), "6.2.1", "10.3"),
    ((36, 4, 7), "6.2.1", "10.3"),
    ((36, 5, 0), "6.2.2", "10.3"),
    ((38, 2, 0), "7.0", "10.13"),
    ((38, 4, 0), "7.1", "10.13"),
    ((39, 2, 0), "7.2", "10.16"),
    ((39, 2, 1), "7.2.1", "10.16"),
)

# The chip in the device tree: the name of its GPU, and its compute capability as CUDA counts it.
_CHIPS = {
    "tegra210": ("Jetson Nano or TX1", "5.3"),
    "tegra186": ("Jetson TX2", "6.2"),
    "tegra194": ("Xavier", "7.2"),
    "tegra234": ("Orin", "8.7"),
    "tegra264": ("Thor", "11.0"),
}


@dataclass(frozen=True)
class Jetson:
    """A Jetson module: board, chip ("tegra234"), L4T ("36.4.3"), JetPack ("6.2") and that JetPack's TensorRT."""

    model: str
    chip: str | None
    l4t: str | None
    jetpack: str | None
    jetpack_tensorrt: str | None

    @property
    def jetpack_major(self) -> int | None:
        return int(self.jetpack.split(".")[0].split()[0]) if self.jetpack else None


@dataclass(frozen=True)
class Cpu:
    """Name, logical cores, and those of its instruction sets that matter for INT8 and FP16."""

    name: str | None
    cores: int
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Memory:
    """Of the machine, in MiB; on a Jetson the GPU shares it."""

    total_mib: int
    available_mib: int


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU. `memory_mib` is its own; None where it shares the machine's."""

    name: str
    compute_capability: str | None
    driver: str | None = None
    memory_mib: int | None = None


@dataclass(frozen=True)
class Package:
    """A Python package: its version, or why it cannot be used."""

    name: str
    version: str | None = None
    problem: str | None = None

    @property
    def works(self) -> bool:
        return self.version is not None and self.problem is None


@dataclass(frozen=True)
class OnnxRuntime(Package):
    """ONNX Runtime and its execution providers."""

    providers: tuple[str, ...] = ()

    @property
    def has_deform_conv(self) -> bool:
        return self.works and version_tuple(self.version)[:2] >= _DEFORM_CONV_SINCE


@dataclass(frozen=True)
class OpenCv(Package):
    """OpenCV and what it was built with; `gui` is what draws windows, such as GTK3."""

    gstreamer: bool = False
    ffmpeg: bool = False
    gui: str | None = None


@dataclass(frozen=True)
class Machine:
    """All that `centeredge doctor` looks at. `no_gpu` says why `gpus` is empty; `trtexec` is the path of that tool."""

    system: str
    arch: str
    python: str
    jetson: Jetson | None
    cpu: Cpu
    memory: Memory | None
    gpus: tuple[Gpu, ...]
    no_gpu: str | None
    trtexec: str | None
    numpy: Package
    opencv: OpenCv
    onnxruntime: OnnxRuntime
    tensorrt: Package
    tensorrt_rtx: Package
    cuda: Package
    onnx: Package
    torch: Package


class CommandFailed(SdkError):
    """A command could not be run, crashed, hung or said no; the message is the reason, in one line."""


_NOT_STARTED = "there is no such program"

RunCommand = Callable[[Sequence[str]], str]


def run_command(command: Sequence[str], *, timeout_s: float = _TIMEOUT_S) -> str:
    """What a command writes to its standard output.

    Raises:
        CommandFailed: it is not installed, takes too long, crashes, or its exit code is not 0.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as err:
        raise CommandFailed(_NOT_STARTED) from err
    except OSError as err:
        raise CommandFailed(f"cannot be started: {err.strerror}") from err
    try:
        out, error = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as err:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # what hangs in a driver cannot even be killed
            process.communicate(timeout=_REAPING_S)
        raise CommandFailed(f"no answer within {timeout_s:g} s") from err
    if process.returncode:
        raise CommandFailed(_why(process.returncode, error or out))
    return out


def inspect_machine(*, root: Path = Path("/"), run: RunCommand = run_command) -> Machine:
    """Look at this machine; takes a second or two, because packages are imported in processes of their own.

    Args:
        root: the folder that holds etc/, proc/ and usr/.
        run: runs commands, as `run_command` does.
    """
    jetson = _jetson(root)
    probes: dict[str, Callable[[], Any]] = {
        "python": lambda: _about_python(run),
        "opencv": lambda: _opencv(run),
        "onnxruntime": lambda: _onnxruntime(run),
        "tensorrt": lambda: _package("tensorrt", _VERSION_CODE.format(module="tensorrt"), run),
        "tensorrt_rtx": lambda: _package("tensorrt_rtx", _VERSION_CODE.format(module="tensorrt_rtx"), run),
        "cuda": lambda: _cuda(run),
        "gpus": lambda: _gpus(jetson, run),
    }
    with ThreadPoolExecutor(len(probes)) as pool:  # each waits for a process; one that hangs delays no other
        found = dict(zip(probes, pool.map(lambda probe: probe(), probes.values()), strict=True))
    python, arch, versions = found.pop("python")
    gpus, no_gpu = found.pop("gpus")
    return Machine(
        system=_system(root),
        arch=arch,
        python=python,
        jetson=jetson,
        cpu=_cpu(root),
        memory=_memory(root),
        gpus=gpus,
        no_gpu=no_gpu,
        trtexec=_TRTEXEC if (root / _TRTEXEC.lstrip("/")).exists() else None,
        **versions,
        **found,
    )


def _why(returncode: int, text: str) -> str:
    if returncode < 0:
        try:
            return f"crashed with {signal.Signals(-returncode).name}"
        except ValueError:
            return f"crashed with signal {-returncode}"
    lines = text.strip().splitlines()
    return lines[-1].strip()[:300] if lines else f"exit code {returncode}"


# --- the system, from its files


def _read(path: Path) -> str:
    """The text of a file, "" where it cannot be read; device-tree files end in a zero byte."""
    try:
        return path.read_text(errors="replace").rstrip("\0\n")
    except OSError:
        return ""


def _system(root: Path) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read(root / "etc/os-release"), re.M)
    return match.group(1) if match else f"{platform.system()} {platform.release()}"


def _jetson(root: Path) -> Jetson | None:
    """From L4T's release file and the device tree; in a container either may be missing."""
    release = re.search(r"R(\d+).*?REVISION:\s*(\d+(?:\.\d+)*)", _read(root / "etc/nv_tegra_release"))
    chips = re.findall(r"nvidia,(tegra\d+)", _read(root / "proc/device-tree/compatible"))
    if release is None and not chips:
        return None
    l4t = f"{release.group(1)}.{release.group(2)}" if release else None
    jetpack, tensorrt = _jetpack(l4t)
    model = _read(root / "proc/device-tree/model") or "unknown Jetson"
    return Jetson(model, chips[0] if chips else None, l4t, jetpack, tensorrt)


def _jetpack(l4t: str | None) -> tuple[str | None, str | None]:
    """JetPack and its TensorRT; a release that is not in the table is that of the one before it, "or later"."""
    parts = (*version_tuple(l4t), 0, 0, 0)[:3]
    older = [row for row in _JETPACKS if row[0][0] == parts[0] and row[0] <= parts]
    if not older:
        return None, None
    since, jetpack, tensorrt = older[-1]
    return (jetpack if since == parts or jetpack == "4" else f"{jetpack} or later"), tensorrt


def _cpu(root: Path) -> Cpu:
    text = _read(root / "proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    has = set(flags.group(1).split()) if flags else set()
    cores = len(re.findall(r"^processor\s*:", text, re.M)) or os.cpu_count() or 1
    return Cpu(name.group(1).strip() if name else None, cores, tuple(f for f in _FLAGS_OF_INTEREST if f in has))


def _memory(root: Path) -> Memory | None:
    kib = dict(re.findall(r"^(MemTotal|MemAvailable):\s*(\d+) kB", _read(root / "proc/meminfo"), re.M))
    return Memory(int(kib["MemTotal"]) // 1024, int(kib["MemAvailable"]) // 1024) if len(kib) == 2 else None


# --- GPUs


def _gpus(jetson: Jetson | None, run: RunCommand) -> tuple[tuple[Gpu, ...], str | None]:
    if jetson is not None:  # nvidia-smi is missing there or knows little
        if jetson.chip is None:
            return (), "the device tree is not to be seen (in a container, run it with --runtime nvidia)"
        name, capability = _CHIPS.get(jetson.chip, (jetson.chip, None))
        return (Gpu(name, capability),), None
    try:
        rows = _nvidia_smi("name,driver_version,memory.total,compute_cap", run)
    except CommandFailed as first:
        if str(first) == _NOT_STARTED:
            return (), "nvidia-smi is not installed: there is no NVIDIA GPU, or no driver for it"
        try:  # drivers before 510 do not know compute_cap
            rows = _nvidia_smi("name,driver_version,memory.total", run)
        except CommandFailed as second:
            return (), f"nvidia-smi failed: {second}"
    gpus = tuple(
        Gpu(name, capability[0] if capability else None, driver, int(mib) if mib.isdecimal() else None)
        for name, driver, mib, *capability in rows
    )
    return gpus, None if gpus else "nvidia-smi lists none"


def _nvidia_smi(fields: str, run: RunCommand) -> list[list[str]]:
    out = run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
    rows = [[value.strip() for value in line.split(",")] for line in out.strip().splitlines()]
    return [row for row in rows if len(row) == len(fields.split(","))]


# --- packages

# Not from the folder that this was started in: a file there may bear a package's name.
_PROBE_CODE = """
import json, sys
sys.path[:] = [folder for folder in sys.path if folder]
{code}
print()
print(json.dumps(answer))
"""

_VERSION_CODE = "import {module}; answer = dict(version={module}.__version__)"

_ONNXRUNTIME_CODE = """
import onnxruntime
answer = dict(version=onnxruntime.__version__, providers=onnxruntime.get_available_providers())
"""

_OPENCV_CODE = """
import cv2
answer = dict(version=cv2.__version__, build=cv2.getBuildInformation())
"""

_CUDA_PYTHON_CODE = """
from importlib.metadata import version
try:
    from cuda.bindings import driver
except ModuleNotFoundError:
    from cuda import cuda
for name in ("cuda-bindings", "cuda-python"):
    try:
        answer = dict(version=version(name))
        break
    except Exception:
        answer = dict(version="unknown")
"""

_PYCUDA_CODE = """
import pycuda, pycuda.driver
answer = dict(version=pycuda.VERSION_TEXT)
"""

# Their import takes seconds and is not needed to know them.
_READ_FROM_METADATA = ("numpy", "onnx", "torch")

_PYTHON_CODE = f"""
import platform
from importlib.metadata import PackageNotFoundError, version
answer = dict(python=platform.python_version(), arch=platform.machine(), versions=dict())
for name in {_READ_FROM_METADATA!r}:
    try:
        answer["versions"][name] = version(name)
    except PackageNotFoundError:
        pass
"""


def _ask(code: str, run: RunCommand) -> dict[str, Any]:
    """What Python code answers in a process of its own.

    Raises:
        CommandFailed: it crashed, hung, or raised; the message is the last line of the traceback.
    """
    out = run([sys.executable, "-c", _PROBE_CODE.format(code=code)])
    try:
        answer = json.loads(out.strip().splitlines()[-1])  # packages may greet on stdout before it
    except (IndexError, ValueError) as err:
        raise CommandFailed(f"answered {out[-100:]!r}") from err
    return dict(answer)


def _about_python(run: RunCommand) -> tuple[str, str, dict[str, Package]]:
    try:
        answer = _ask(_PYTHON_CODE, run)
    except CommandFailed as err:
        broken = {name: Package(name, problem=f"cannot be looked for: {err}") for name in _READ_FROM_METADATA}
        return platform.python_version(), platform.machine(), broken
    found = {
        name: Package(name, version) if (version := answer["versions"].get(name)) else Package(name, problem=_ABSENT)
        for name in _READ_FROM_METADATA
    }
    return answer["python"], answer["arch"], found


_ABSENT = "is not installed"


def _problem(module: str, err: CommandFailed) -> str:
    return _ABSENT if str(err).endswith(f"No module named '{module}'") else f"cannot be imported: {err}"


def _package(module: str, code: str, run: RunCommand) -> Package:
    try:
        return Package(module, str(_ask(code, run)["version"]))
    except CommandFailed as err:
        return Package(module, problem=_problem(module, err))


def _cuda(run: RunCommand) -> Package:
    """cuda-python or pycuda, whichever can be imported."""
    cuda_python = _package("cuda", _CUDA_PYTHON_CODE, run)
    if cuda_python.works:
        return Package("cuda-python", cuda_python.version)
    pycuda = _package("pycuda", _PYCUDA_CODE, run)
    if pycuda.works:
        return pycuda
    if cuda_python.problem == pycuda.problem == _ABSENT:
        return Package("cuda-python or pycuda", problem=_ABSENT)
    return pycuda if cuda_python.problem == _ABSENT else Package("cuda-python", problem=cuda_python.problem)


def _onnxruntime(run: RunCommand) -> OnnxRuntime:
    try:
        answer = _ask(_ONNXRUNTIME_CODE, run)
    except CommandFailed as err:
        return OnnxRuntime("onnxruntime", problem=_problem("onnxruntime", err))
    return OnnxRuntime("onnxruntime", answer["version"], providers=tuple(answer["providers"]))


def _opencv(run: RunCommand) -> OpenCv:
    try:
        answer = _ask(_OPENCV_CODE, run)
    except CommandFailed as err:
        return OpenCv("cv2", problem=_problem("cv2", err))
    build = answer["build"]
    return OpenCv(
        "cv2",
        answer["version"],
        gstreamer=_built_with("GStreamer", build),
        ffmpeg=_built_with("FFMPEG", build),
        gui=_gui(build),
    )


def _built_with(feature: str, build: str) -> bool:
    return re.search(rf"^\s*{re.escape(feature)}:\s+YES", build, re.M) is not None


def _gui(build: str) -> str | None:
    """GUI: GTK3, QT5, WIN32UI, COCOA or NONE; OpenCV before 4.5.2 has it in the lines below."""
    line = re.search(r"^\s*GUI:[ \t]*(\S*)", build, re.M)
    if line is None or line.group(1) == "NONE":
        return None
    if line.group(1):
        return line.group(1)
    return next((name for name in ("GTK+", "QT", "Win32 UI", "Cocoa") if _built_with(name, build)), None)
