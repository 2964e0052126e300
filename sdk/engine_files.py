"""TensorRT engines as files: the plan `x.engine`, and beside it `x.engine.json`, which says what it is.

::

    record = read_record(path)
    check_fits(record, this_host(record.runtime))
    plan = check_integrity(path, record)  # only then is anything deserialised

The plan stays a plain plan, which trtexec loads. Engines are native code: whoever can write both files can run what he
likes, so take engines from nowhere but your own builds. The hash guards against damage and mixed-up files.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from platform import machine, system
from typing import Any, Literal, get_args

from .errors import BackendUnavailable, EngineMismatch, InputError, SpecError
from .spec import ModelSpec

RECORD_VERSION = 1
Runtime = Literal["tensorrt", "tensorrt_rtx"]
HardwareCompatibility = Literal["none", "same_compute_capability", "ampere_plus"]
RUNTIME_NAMES: dict[Runtime, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
ANY_GPU = "any"


@dataclass(frozen=True)
class HostGpu:
    """An NVIDIA GPU as its driver names it, to be compared with the one that an engine was built on.

    `multiprocessors` tells apart boards of one name: every Jetson Orin is an "Orin". `cuda` is the version that the
    driver supports.
    """

    name: str
    compute_capability: str
    multiprocessors: int
    cuda: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability}, {self.multiprocessors} multiprocessors)"


@dataclass(frozen=True)
class EngineHost:
    """What an engine must fit: the runtime's version, the operating system and processor, the GPU if there is one.

    `sdk.machine` has all that can be said of a machine, for people.
    """

    runtime: Runtime
    runtime_version: str
    platform: str
    gpu: HostGpu | None


@dataclass(frozen=True)
class EngineRecord:
    """The sidecar of an engine; JSON in and out.

    Attributes:
        spec: of the model.
        runtime, runtime_version: that built it, and that it needs.
        gpu: its name, or "any" for an engine that was built for no particular one.
        compute_capability, multiprocessors: of that GPU; "" and 0 for any.
        platform: operating system and processor, such as linux-aarch64.
        cuda: version that the driver supported at the build; "" without a GPU.
        onnx, onnx_sha256: name and content of the file it was built from, external tensors included.
        engine_sha256: of the plan.
        version_compatible, hardware_compatibility: what it was built to tolerate.
        dla_core: that runs what it can of the network; None is the GPU alone.
        batch: smallest, most usual and largest number of frames in one call.
        rebuild: the command that builds it again.
    """

    spec: ModelSpec
    runtime: Runtime
    runtime_version: str
    gpu: str
    compute_capability: str
    multiprocessors: int
    platform: str
    cuda: str
    onnx: str
    onnx_sha256: str
    engine_sha256: str
    version_compatible: bool
    hardware_compatibility: HardwareCompatibility
    dla_core: int | None
    batch: tuple[int, int, int]
    rebuild: str

    @property
    def precision(self) -> str:
        return self.spec.precision

    def to_json(self) -> str:
        values = {**asdict(self), "spec": self.spec.to_dict(), "precision": self.precision}
        return json.dumps({"record_version": RECORD_VERSION, **values}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> EngineRecord:
        """Read a record back.

        Raises:
            SpecError: not JSON, a missing or unknown field, or a value of the wrong kind.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise SpecError(f"is not valid JSON ({err})") from err
        if not isinstance(values, dict) or values.pop("record_version", None) != RECORD_VERSION:
            raise SpecError(f"is no record of version {RECORD_VERSION}, the one that this CenterEdge reads")
        precision = values.pop("precision", None)
        if wrong := sorted(set(values) ^ {field.name for field in fields(cls)}):
            raise SpecError(f"has missing or unknown fields {wrong}")
        for name, is_right in _FIELD_CHECKS.items():
            if not is_right(values[name]):
                raise SpecError(f"has {name} = {values[name]!r}")
        spec = ModelSpec.from_dict(values.pop("spec"))
        if precision != spec.precision:
            raise SpecError(f"has precision {precision!r}, its ModelSpec says {spec.precision!r}")
        return cls(spec=spec, batch=tuple(values.pop("batch")), **values)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_batch(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_count, value)) and value == sorted(value)


_FIELD_CHECKS = {
    "runtime": lambda value: value in get_args(Runtime),
    "runtime_version": _is_text,
    "gpu": _is_text,
    "compute_capability": _is_text,
    "multiprocessors": _is_count,
    "platform": _is_text,
    "cuda": _is_text,
    "onnx": _is_text,
    "onnx_sha256": _is_sha256,
    "engine_sha256": _is_sha256,
    "version_compatible": lambda value: isinstance(value, bool),
    "hardware_compatibility": lambda value: value in get_args(HardwareCompatibility),
    "dla_core": lambda value: value is None or _is_count(value),
    "batch": _is_batch,
    "rebuild": _is_text,
}


def sidecar_path(engine_path: Path) -> Path:
    """`x.engine.json` for `x.engine`."""
    return engine_path.with_name(engine_path.name + ".json")


def write_engine(plan: bytes | memoryview, record: EngineRecord, engine_path: Path) -> None:
    """Put a plan and its record under their names, each whole; an interruption leaves no pair that would be loaded.

    Raises:
        OSError: the folder or the disk does not take them.
    """
    part = engine_path.with_name(f".{engine_path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(plan)
        sidecar_path(part).write_text(record.to_json(), encoding="utf-8")
        move_engine(part, engine_path)
    finally:
        for path in (part, sidecar_path(part)):
            path.unlink(missing_ok=True)


def move_engine(engine_path: Path, new_path: Path) -> None:
    """Give an engine and its record another name on the same disk, in place of what has it.

    Raises:
        OSError: the folder does not take them.
    """
    # Between these two the new plan stands beside the old record, whose hash does not match it.
    os.replace(engine_path, new_path)
    os.replace(sidecar_path(engine_path), sidecar_path(new_path))


def read_record(engine_path: Path) -> EngineRecord:
    """The record of an engine.

    Raises:
        InputError: there is no engine, or no sidecar beside it.
        SpecError: the sidecar is damaged.
    """
    if not engine_path.is_file():
        raise InputError(f"there is no engine {engine_path}")
    sidecar = sidecar_path(engine_path)
    try:
        text = sidecar.read_text(encoding="utf-8")
    except FileNotFoundError as err:
        raise InputError(
            f"{engine_path} has no {sidecar.name} beside it, which says what the engine is and holds its hash; copy "
            f"both files together, or build the engine with `centeredge export MODEL.onnx {engine_path}`"
        ) from err
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"cannot read {sidecar}: {getattr(err, 'strerror', err)}") from err
    try:
        return EngineRecord.from_json(text)
    except SpecError as err:
        raise type(err)(
            f"{sidecar}: {err}; build the engine again with `centeredge export MODEL.onnx {engine_path}`"
        ) from err


def check_integrity(engine_path: Path, record: EngineRecord) -> bytes:
    """The plan, once it is known to be the one that the record describes.

    Returns:
        The very bytes that were checked: deserialise these, and do not read the file a second time.

    Raises:
        InputError: the file cannot be read.
        EngineMismatch: it is another plan, or a damaged one.
    """
    try:
        plan = engine_path.read_bytes()
    except OSError as err:
        raise InputError(f"cannot read {engine_path}: {err.strerror}") from err
    digest = hashlib.sha256(plan).hexdigest()
    if digest != record.engine_sha256:
        raise EngineMismatch(
            f"{engine_path} is damaged or not the engine of its sidecar: its sha256 is {digest[:12]}..., the sidecar "
            f"says {record.engine_sha256[:12]}...; build it again: `{record.rebuild}`"
        )
    return plan


def check_fits(record: EngineRecord, host: EngineHost) -> None:
    """Raises EngineMismatch, with the reason and the command that rebuilds, where an engine cannot run here.

    The rules are TensorRT's ("Engine Compatibility") and TensorRT-RTX's ("CPU-Only AOT").
    """
    reason = _misfit(record, host)
    if reason:
        raise EngineMismatch(f"the engine does not fit this machine: {reason}; build it here: `{record.rebuild}`")


def _misfit(record: EngineRecord, host: EngineHost) -> str:
    """Why the engine cannot run on the machine; empty if it can."""
    name = RUNTIME_NAMES[record.runtime]
    if record.runtime != host.runtime:
        return f"it needs {name}, this is {RUNTIME_NAMES[host.runtime]}"
    if not _fits_version(record, host.runtime_version):
        return f"it was built by {name} {record.runtime_version}, this is {host.runtime_version}"
    if not _fits_platform(record, host.platform):
        return f"it was built for {record.platform}, this is {host.platform}"
    if host.gpu is None:
        return "it needs an NVIDIA GPU, and this machine has none whose driver answers"
    if not _fits_gpu(record, host.gpu):
        return f"it was built for {_built_for(record)}, this is {host.gpu}"
    return ""


def _fits_version(record: EngineRecord, version: str) -> bool:
    if not record.version_compatible or record.runtime == "tensorrt_rtx":
        return version == record.runtime_version
    here, there = version_tuple(version), version_tuple(record.runtime_version)
    # Forward only: 8.6 to 10, and 10 to 11; nobody promises 8.6 to 11.
    return here >= there and (here < (11,) or there >= (10,))


def _fits_platform(record: EngineRecord, platform: str) -> bool:
    # A TensorRT-RTX engine holds no machine code of the host: it goes from Linux to Windows and back.
    return record.runtime == "tensorrt_rtx" or platform == record.platform


def _fits_gpu(record: EngineRecord, gpu: HostGpu) -> bool:
    if record.gpu == ANY_GPU or record.hardware_compatibility == "ampere_plus":
        return version_tuple(gpu.compute_capability) >= (8, 0)
    if record.hardware_compatibility == "same_compute_capability" or record.runtime == "tensorrt_rtx":
        return gpu.compute_capability == record.compute_capability
    built_for = record.gpu, record.compute_capability, record.multiprocessors
    return built_for == (gpu.name, gpu.compute_capability, gpu.multiprocessors)


def _built_for(record: EngineRecord) -> str:
    if record.gpu == ANY_GPU or record.hardware_compatibility == "ampere_plus":
        return "GPUs of compute capability 8.0 and later"
    if record.hardware_compatibility == "same_compute_capability" or record.runtime == "tensorrt_rtx":
        return f"GPUs of compute capability {record.compute_capability}"
    return str(HostGpu(record.gpu, record.compute_capability, record.multiprocessors, record.cuda))


def version_tuple(version: str | None) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing.

    >>> version_tuple("10.3.0.post1") > version_tuple("8.6.2")
    True
    """
    match = re.match(r"\d+(?:\.\d+)*", version or "")
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def load_runtime(runtime: Runtime) -> Any:
    """The Python module of a runtime.

    Raises:
        BackendUnavailable: it is not installed, with what to do about it.
    """
    try:
        return importlib.import_module(runtime)
    except (ImportError, OSError) as err:
        missing = f"{RUNTIME_NAMES[runtime]} cannot be imported ({str(err).splitlines()[0]})"
        if runtime == "tensorrt_rtx":
            remedy = "`pip install tensorrt-rtx`; it runs on x86-64 desktops with an RTX GPU"
        else:
            remedy = (
                "on a Jetson JetPack brings it: create the environment with `python3 -m venv --system-site-packages`; "
                "on a desktop `pip install tensorrt`"
            )
        raise BackendUnavailable(f"{missing}; {remedy}") from err


def this_host(runtime: Runtime) -> EngineHost:
    """The machine as this runtime sees it.

    Raises:
        BackendUnavailable: the runtime is not installed.
    """
    return EngineHost(runtime, str(load_runtime(runtime).__version__), this_platform(), find_gpu())


def this_platform() -> str:
    """Operating system and processor, such as linux-aarch64."""
    return f"{system()}-{machine()}".lower()


def is_jetson() -> bool:
    """Whether this is a Jetson; the device tree says so in a container too."""
    tree = Path("/proc/device-tree/compatible")
    return tree.is_file() and b"nvidia,tegra" in tree.read_bytes()


def cache_folder() -> Path:
    """Where engines and timings are kept between runs: $XDG_CACHE_HOME/centeredge/engines, or ~/.cache/..."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "centeredge" / "engines"


def find_gpu() -> HostGpu | None:
    """The first GPU that CUDA shows (CUDA_VISIBLE_DEVICES counts), asked of its driver; None if there is none."""
    driver = _load_driver()
    device = ctypes.c_int()
    if driver is None or driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, len(name), device)
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    # CUdevice_attribute: 75 and 76 are the compute capability, 16 the number of multiprocessors.
    return HostGpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{attribute(75)}.{attribute(76)}",
        multiprocessors=attribute(16),
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _load_driver() -> Any:
    """The CUDA driver's library, or None: it is asked directly, so that no CUDA package is needed to look."""
    try:
        return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
