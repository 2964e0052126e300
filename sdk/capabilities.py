"""What a machine can run: each export target in each precision, and what to do about the rest.

::

    for capability in capabilities(inspect_machine()):
        print(capability.target, capability.precision, capability.status, capability.note)

Told from versions, chips and drivers, by NVIDIA's and ONNX Runtime's documents (docs/deployment.md); no model is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .engine_files import version_tuple
from .machine import Machine
from .spec import Precision

Status = Literal["yes", "partly", "no"]

# The names of export/targets.py.
TARGETS = ("onnxruntime", "tensorrt", "tensorrt-8", "tensorrt-rtx")
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_OLDEST_ONNXRUNTIME = (1, 18)
# By target; engines for tensorrt-8 run on 8.5 too, whose Python module is for Python 3.8 alone.
OLDEST_TENSORRT: dict[str, tuple[int, ...]] = {"tensorrt": (10, 1), "tensorrt-8": (8, 6), "tensorrt-rtx": (1,)}
_OLDEST_WITH_UINT8 = (8, 5)
_NEWEST_TENSORRT_MAJOR = 11
_BROKEN_TENSORRT = (10, 2, 0)
_TURING = (7, 5)  # what TensorRT 10.5 and later ask for at least
_TENSORRT_WITHOUT_VOLTA = (10, 5)
_JETPACK_OF_TENSORRT_11 = (7, 2, 2)
_FIRST_CUDA_13_DRIVER = 580
_RTX_CAPABILITIES = ("7.5", "8.6", "8.9", "12.0", "12.1")
_PYTHON_OF_JETPACK = {6: "3.10", 7: "3.12"}
_X86 = ("x86_64", "AMD64")
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


@dataclass(frozen=True)
class Capability:
    """Whether one target runs in one precision.

    Attributes:
        target, precision: as `centeredge export --target --precision` has them.
        status: "yes"; "partly": some way is left, which the note says; or "no".
        note: how it runs, or why it does not.
        todo: a command that helps, or None.
    """

    target: str
    precision: Precision
    status: Status
    note: str
    todo: str | None = None


# What the functions below agree on: status, note, todo.
_Finding = tuple[Status, str, str | None]


def capabilities(machine: Machine) -> tuple[Capability, ...]:
    """Every target in every precision, in the order of TARGETS and PRECISIONS."""
    return tuple(
        Capability(target, precision, *_finding(machine, target, precision))
        for target in TARGETS
        for precision in PRECISIONS
    )


def to_do(machine: Machine) -> tuple[str, ...]:
    """Commands that make more of this machine, the most useful first, none twice."""
    commands = [_opencv_command(machine), *(capability.todo for capability in capabilities(machine))]
    return tuple(dict.fromkeys(command for command in commands if command is not None))


def _finding(machine: Machine, target: str, precision: Precision) -> _Finding:
    if not machine.opencv.works:
        return "no", f"frames are scaled with OpenCV, which {machine.opencv.problem}", _opencv_command(machine)
    if target == "onnxruntime":
        return _onnxruntime(machine, precision)
    if target == "tensorrt-rtx":
        return _tensorrt_rtx(machine, precision)
    return _tensorrt(machine, target, precision)


def _opencv_command(machine: Machine) -> str | None:
    opencv = machine.opencv
    of_system = machine.jetson is not None and machine.jetson.jetpack_major in _PYTHON_OF_JETPACK
    if of_system and "numpy" in (opencv.problem or "") and version_tuple(machine.numpy.version) >= (2,):
        return "pip install 'numpy<2'"  # the system's cv2 was built for NumPy 1
    if not opencv.works:
        return "sudo apt install python3-opencv" if of_system else f"pip install {_extra(machine, 'opencv-python')}"
    if of_system and not opencv.gstreamer:  # a wheel from PyPI hides the system's, which drives CSI cameras
        return "pip uninstall opencv-python opencv-python-headless && sudo apt install python3-opencv"
    return None


def _extra(machine: Machine, package: str) -> str:
    """What brings a package: the extra, except on a Jetson, where it would hide the system's OpenCV."""
    return package if machine.jetson else "'centeredge[cpu]'"


# --- ONNX Runtime


def _onnxruntime(machine: Machine, precision: Precision) -> _Finding:
    runtime = machine.onnxruntime
    if not runtime.works:
        return "no", f"onnxruntime {runtime.problem}", f"pip install {_extra(machine, 'onnxruntime')}"
    if version_tuple(runtime.version) < _OLDEST_ONNXRUNTIME:
        return "no", f"onnxruntime {runtime.version} is older than 1.18", "pip install --upgrade onnxruntime"
    note = {"fp32": "on the CPU", "fp16": "on the CPU, at FP32's speed", "int8": _int8_on_cpu(machine)}[precision]
    if not runtime.has_deform_conv:
        note += f"; no DeformConv (onnxruntime 1.25 has it, this is {runtime.version})"
        if precision == "fp32":
            note += ": export networks with deformable convolution with --target tensorrt-8, which runs here too"
    return "yes", note, None


def _int8_on_cpu(machine: Machine) -> str:
    fast = [flag for flag in machine.cpu.flags if flag in _DOT_PRODUCTS]
    if fast:
        return f"on the CPU, with INT8 instructions ({', '.join(fast)})"
    if machine.arch in _X86:
        return (
            "on the CPU, without VNNI: less gain, and 16-bit sums may overflow; measure it with `centeredge evaluate`"
        )
    return "on the CPU, without INT8 instructions: measure with `centeredge benchmark` whether it gains"


# --- TensorRT


def _tensorrt(machine: Machine, target: str, precision: Precision) -> _Finding:
    for rule in (_old_jetpack, _no_gpu, _no_tensorrt, _tensorrt_version, _no_cuda):
        finding = rule(machine, target)
        if finding is not None:
            return finding
    note = f"TensorRT {machine.tensorrt.version} on {machine.gpus[0].name}"
    if target == "tensorrt-8" and version_tuple(machine.tensorrt.version) >= OLDEST_TENSORRT["tensorrt"]:
        note += "; --target tensorrt has the better form for it"
    if precision == "int8":
        note += "; needs ranges from `centeredge calibrate`"
    return "yes", note, None


def _old_jetpack(machine: Machine, target: str) -> _Finding | None:
    """JetPack 4 and 5: their TensorRT has a Python module for a Python that CenterEdge does not run on."""
    jetson = machine.jetson
    if jetson is None or jetson.jetpack_major not in (4, 5):
        return None
    has = f"JetPack {jetson.jetpack} has TensorRT {jetson.jetpack_tensorrt}"
    if version_tuple(jetson.jetpack_tensorrt) < _OLDEST_WITH_UINT8:
        return "no", f"{has}, which has neither uint8 inputs nor GridSample (8.5 has)", None
    if target == "tensorrt":
        return "no", f"{has}; use --target tensorrt-8", None
    tool = machine.trtexec or "trtexec (not found; `sudo apt install libnvinfer-bin`)"
    note = f"{has} for Python 3.8: not from the SDK, but by {tool} or from C++ (docs/jetson.md)"
    return "partly", note, None


def _no_gpu(machine: Machine, target: str) -> _Finding | None:
    if machine.gpus:
        return None
    return "no", f"engines are built and run where the GPU is; none here: {machine.no_gpu}", None


def _no_tensorrt(machine: Machine, target: str) -> _Finding | None:
    if machine.tensorrt.works:
        return None
    problem = f"the module tensorrt {machine.tensorrt.problem}"
    jetson = machine.jetson
    if jetson is None:
        return "no", problem, "pip install tensorrt-cu12" if _is_cuda_12(machine) else "pip install tensorrt"
    brings = f"{problem}; JetPack {jetson.jetpack or '(unknown)'} brings it, pip does not"
    python = _PYTHON_OF_JETPACK.get(jetson.jetpack_major or 0)
    if python is not None and not machine.python.startswith(f"{python}."):
        brings += f", for Python {python}, and this is {machine.python}"
        return "no", brings, "make clean && make PYTHON=/usr/bin/python3 demo"
    return "no", brings, "sudo apt install nvidia-jetpack && python3 -m venv --system-site-packages .venv"


def _tensorrt_version(machine: Machine, target: str) -> _Finding | None:
    text = machine.tensorrt.version
    version = version_tuple(text)
    if not version:
        return "partly", f"TensorRT says {text!r} of its version: untried", None
    jetson = machine.jetson
    if jetson and version[0] >= 11 and version_tuple(jetson.jetpack) < _JETPACK_OF_TENSORRT_11:
        note = f"TensorRT {text} is not for JetPack {jetson.jetpack}, which brings {jetson.jetpack_tensorrt}"
        return "no", note, "pip uninstall tensorrt tensorrt-cu12 tensorrt-cu13"
    if version[:3] == _BROKEN_TENSORRT:
        return "no", "TensorRT 10.2.0 does not start: its package misses a library", "pip install 'tensorrt>=10.3'"
    oldest = OLDEST_TENSORRT[target]
    if version < oldest:
        wanted = ".".join(map(str, oldest))
        other = "; use --target tensorrt-8" if version >= OLDEST_TENSORRT["tensorrt-8"] else ""
        return "no", f"TensorRT {text} is older than {wanted}{other}", None
    capability = machine.gpus[0].compute_capability
    if version >= _TENSORRT_WITHOUT_VOLTA and capability and version_tuple(capability) < _TURING:
        note = f"{machine.gpus[0].name} has compute capability {capability}; TensorRT {text} asks for 7.5"
        return "no", note, "pip install 'tensorrt<10.5'"
    if version[0] > _NEWEST_TENSORRT_MAJOR:
        return "partly", f"TensorRT {text} is newer than this version of CenterEdge knows: untried", None
    return None


def _no_cuda(machine: Machine, target: str) -> _Finding | None:
    if machine.cuda.works:
        return None
    note = f"engines can be built, not run: {machine.cuda.name} {machine.cuda.problem}"
    return "partly", note, _cuda_command(machine)


def _cuda_command(machine: Machine) -> str:
    return "pip install 'cuda-python==12.*'" if _is_cuda_12(machine) else "pip install 'cuda-python==13.*'"


def _is_cuda_12(machine: Machine) -> bool:
    """JetPack 6, and drivers before 580: they do not know CUDA 13, which pip brings."""
    if machine.jetson is not None:
        return machine.jetson.jetpack_major == 6
    return bool(machine.gpus) and 0 < (*version_tuple(machine.gpus[0].driver), 0)[0] < _FIRST_CUDA_13_DRIVER


# --- TensorRT-RTX


def _tensorrt_rtx(machine: Machine, precision: Precision) -> _Finding:
    if machine.arch not in _X86:
        return "no", f"TensorRT-RTX is for PCs (x86-64), this is {machine.arch}; use --target tensorrt", None
    package = machine.tensorrt_rtx
    if not machine.gpus:
        if package.works:
            return (
                "partly",
                f"TensorRT-RTX {package.version} builds engines here, which run on a PC with an RTX GPU",
                None,
            )
        return "no", f"no GPU: {machine.no_gpu}", None
    gpu = machine.gpus[0]
    if gpu.compute_capability not in _RTX_CAPABILITIES:
        known = ", ".join(_RTX_CAPABILITIES)
        note = f"{gpu.name} has compute capability {gpu.compute_capability}; TensorRT-RTX is for {known}"
        return "no", f"{note}; use --target tensorrt", None
    if not package.works:
        return "no", f"the module tensorrt_rtx {package.problem}", "pip install tensorrt-rtx"
    if precision == "int8":
        return "partly", "builds; its documents promise no INT8 convolution, and none was tried", None
    without_cuda = _no_cuda(machine, "tensorrt-rtx")
    if without_cuda is not None:
        return without_cuda
    return "yes", f"TensorRT-RTX {package.version} on {gpu.name}", None
