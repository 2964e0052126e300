"""From an ONNX file in TensorRT's form to an engine for the machine that this runs on.

::

    record = build_engine(Path("model.tensorrt.onnx"), Path("model.engine"), note=print)

One module serves TensorRT 8.6 to 11 and TensorRT-RTX. `_RULES` states where they differ; the rest is common to all. It
needs the runtime alone: neither torch nor onnx.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from calibration.errors import CalibrationError
from calibration.tensorrt_cache import read_cache
from sdk.backends.cuda import open_cuda
from sdk.backends.tensorrt import tensorrt_log
from sdk.capabilities import OLDEST_TENSORRT
from sdk.engine_files import (
    ANY_GPU,
    RUNTIME_NAMES,
    EngineHost,
    EngineRecord,
    HardwareCompatibility,
    Runtime,
    cache_folder,
    is_jetson,
    load_runtime,
    sidecar_path,
    this_host,
    version_tuple,
    write_engine,
)
from sdk.errors import BackendUnavailable, ConfigError, InputError
from sdk.onnx_metadata import BATCH_METADATA_KEY, TARGET_METADATA_KEY, external_paths, read_metadata, read_onnx_spec
from sdk.spec import ModelSpec, Precision

from .build_progress import BuildProgress
from .calibrator import EntropyCalibrator, entropy_calibrator, photograph_frames
from .errors import ExportError
from .weak_typing import hold_heads, inputs_of, layers_of, obey_types

Note = Callable[[str], None]

_RUNTIME_OF_TARGET: dict[str, Runtime] = {
    "tensorrt": "tensorrt",
    "tensorrt-8": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Rules:
    """How a major version differs from the others.

    Attributes:
        creation_flag: of the network; "" where there is nothing to choose.
        weak_typing: the graph's types are hints, and builder flags say what may be used instead.
        progress: a monitor is told what the builder does.
        timing_cache: measurements of layers can be kept for the next build.
        compatibility: engines can be built for other versions and GPUs.
    """

    creation_flag: str
    weak_typing: bool
    progress: bool
    timing_cache: bool
    compatibility: bool


# Sources: the Python API references of 8.6.1, 10.7 and 11.4, "Migrating from TensorRT 10.x to 11.x" (precision flags
# and EXPLICIT_BATCH are gone, every network is strongly typed), and TensorRT-RTX's "Timing Cache Migration" (it does
# nothing but ask for a GPU) and "CPU-Only AOT" (engines are portable by default). A major version that is not named
# follows the one before it.
_RULES: dict[Runtime, dict[int, _Rules]] = {
    "tensorrt": {
        8: _Rules("EXPLICIT_BATCH", weak_typing=True, progress=False, timing_cache=True, compatibility=True),
        10: _Rules("STRONGLY_TYPED", weak_typing=False, progress=True, timing_cache=True, compatibility=True),
        11: _Rules("", weak_typing=False, progress=True, timing_cache=True, compatibility=True),
    },
    "tensorrt_rtx": {
        1: _Rules("STRONGLY_TYPED", weak_typing=False, progress=True, timing_cache=False, compatibility=False),
    },
}
# DLA up to 10.7 is documented with precision flags, which a strongly typed network does not take; and its INT8 came
# from calibrators, not from Q/DQ. Nor does such a network take a calibrator.
_WEAK_RULES_10 = _Rules("", weak_typing=True, progress=True, timing_cache=True, compatibility=True)


@dataclass(frozen=True)
class EngineOptions:
    """What may be asked of a build.

    Raises:
        ConfigError: a value is outside its range, or two contradict each other.
    """

    workspace_mib: int | None = None  # memory that one layer may take for itself; None: all there is
    optimization_level: int | None = None  # 0 builds soonest, 5 searches longest; None: TensorRT's own, 3
    version_compatible: bool = False  # runs in later versions too; may be slower
    hardware_compatibility: HardwareCompatibility = "none"  # runs on other GPUs too; may be slower
    dla_core: int | None = None  # experimental: what it can of the network runs there, the rest on the GPU
    batch: tuple[int, int, int] | None = None  # least, usual and most frames in a call; None: what the file says
    timing_cache: Path | None = None  # None: beside the cached engines
    calibration_cache: Path | None = None  # INT8 ranges for a file without Q/DQ, up to TensorRT 10
    calibration_images: Path | None = None  # photographs to measure them on where that file is not there yet

    def __post_init__(self) -> None:
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ConfigError(f"--workspace is {self.workspace_mib} MiB, expected at least 1")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ConfigError(f"--optimization-level is {self.optimization_level}, expected 0 to 5")
        if self.hardware_compatibility not in get_args(HardwareCompatibility):
            levels = ", ".join(get_args(HardwareCompatibility))
            raise ConfigError(f"--hardware is {self.hardware_compatibility!r}, expected one of {levels}")
        if self.dla_core is not None and self.dla_core < 0:
            raise ConfigError(f"--dla-core is {self.dla_core}, expected 0 or 1")
        if self.batch is not None:
            _check_batch(self.batch)
            if self.dla_core is not None:
                raise ConfigError("--dla-core takes one fixed batch; leave --dynamic-batch out")
        if self.calibration_images is not None and self.calibration_cache is None:
            raise ConfigError("--calibration-images needs --calibration-cache FILE, where the ranges are kept")

    def command(self, onnx_path: Path, out: Path) -> str:
        """The command line that builds with these options."""
        words = ["centeredge", "export", str(onnx_path), str(out)]
        if self.workspace_mib is not None:
            words += ["--workspace", str(self.workspace_mib)]
        if self.optimization_level is not None:
            words += ["--optimization-level", str(self.optimization_level)]
        if self.version_compatible:
            words += ["--version-compatible"]
        if self.hardware_compatibility != "none":
            words += ["--hardware", self.hardware_compatibility]
        if self.dla_core is not None:
            words += ["--dla-core", str(self.dla_core)]
        if self.batch is not None:
            words += ["--dynamic-batch", ",".join(map(str, self.batch))]
        if self.calibration_cache is not None:
            words += ["--calibration-cache", str(self.calibration_cache)]
        if self.calibration_images is not None:
            words += ["--calibration-images", str(self.calibration_images)]
        return shlex.join(words)


def build_engine(
    onnx_path: Path,
    out: Path,
    options: EngineOptions | None = None,
    *,
    rebuild: str | None = None,
    note: Note = lambda text: None,
) -> EngineRecord:
    """Build an engine and its sidecar; both appear under their names only when they are complete.

    Args:
        onnx_path: a file that `centeredge export` wrote for the target tensorrt, tensorrt-8 or tensorrt-rtx.
        out: the .engine to write; `out.json` is written beside it.
        options: of the build.
        rebuild: the command that builds it again, for the sidecar; None: the one for `onnx_path`.
        note: is told what is being done; minutes can pass on a Jetson.

    Returns:
        What the sidecar says.

    Raises:
        InputError, SpecError: the file is not one of ours, or keeps weights outside its folder.
        ExportError: it has the form of another runtime, or TensorRT refuses it.
        ConfigError: an option that this runtime or machine does not have, or an output that cannot be written.
        CalibrationError: a calibration cache is damaged or of another model, or photographs cannot be read.
        BackendUnavailable: the runtime is not installed, is too old, or finds no GPU.
    """
    options = options or EngineOptions()
    source = _read_source(onnx_path)
    host = check_build(
        out, options, of=str(onnx_path), target=source.target, precision=source.spec.precision, batch=source.batch
    )
    note(f"building {out.name} with {_name(host)} for {host.gpu or 'any GPU'}")
    plan, batch = _Build(host, source, options, note).run()
    rebuild = rebuild or options.command(onnx_path, out)
    record = _record(source, host, options, plan=plan, batch=batch, rebuild=rebuild)
    try:
        write_engine(plan, record, out)
    except OSError as err:
        raise ConfigError(f"cannot write {out}: {err.strerror}") from err
    return record


def check_build(
    out: Path,
    options: EngineOptions,
    *,
    of: str,
    target: str,
    precision: Precision,
    batch: tuple[int, int, int] | None = None,
) -> EngineHost:
    """What can be known before the minutes that a build takes: whether this machine can, with these options.

    Args:
        out: the .engine to write.
        options: of the build.
        of: what the engine is made from, for messages.
        target, precision, batch: of the ONNX file.

    Returns:
        The machine that the engine is for.

    Raises:
        BackendUnavailable, ConfigError, InputError: as `build_engine`.
    """
    _check_writable(out)
    host = this_host(_RUNTIME_OF_TARGET[target])
    _check_host(host, of, target)
    _check_options(options, host, of, precision=precision, batch=batch)
    return host


@dataclass(frozen=True)
class _Source:
    """The ONNX file: `content` is what is hashed and parsed, `has_weights_beside` whether other files belong to it."""

    path: Path
    content: bytes
    spec: ModelSpec
    target: str
    batch: tuple[int, int, int] | None
    sha256: str
    has_weights_beside: bool

    @property
    def runtime(self) -> Runtime:
        return _RUNTIME_OF_TARGET[self.target]


def runtime_of(path: Path) -> Runtime:
    """The runtime that an ONNX file is for.

    Raises:
        InputError, ExportError: it is not an ONNX file, or for no TensorRT.
    """
    return _RUNTIME_OF_TARGET[_target_of(path)]


def onnx_sha256(path: Path) -> str:
    """What an ONNX file is, tensors in other files included.

    Raises:
        InputError: it cannot be read, or keeps tensors outside its folder.
    """
    return _sha256(_read(path), external_paths(path))


def _sha256(content: bytes, others: tuple[Path, ...]) -> str:
    digest = hashlib.sha256(content)
    for path in others:
        digest.update(_read(path))
    return digest.hexdigest()


def _read_source(path: Path) -> _Source:
    spec, target = read_onnx_spec(path), _target_of(path)
    text = read_metadata(path).get(BATCH_METADATA_KEY)
    content, others = _read(path), external_paths(path)
    return _Source(
        path=path,
        content=content,
        spec=spec,
        target=target,
        batch=None if text is None else _parse_batch(text, path),
        sha256=_sha256(content, others),
        has_weights_beside=bool(others),
    )


def _target_of(path: Path) -> str:
    target = read_metadata(path).get(TARGET_METADATA_KEY, "onnxruntime")
    if target not in _RUNTIME_OF_TARGET:
        other = path.with_name(f"{path.stem}.tensorrt.onnx")
        raise ExportError(
            f"{path} has the form of {target}, which TensorRT does not take; write TensorRT's form first: "
            f"`{shlex.join(['centeredge', 'export', str(path), str(other), '--target', 'tensorrt'])}`"
        )
    return target


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror}") from err


def _parse_batch(text: str, path: Path) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"{path} has the batch {text!r}, expected 'min,opt,max'; export it again")
    least, usual, most = map(int, parts)
    _check_batch((least, usual, most))
    return least, usual, most


def _check_batch(batch: tuple[int, int, int]) -> None:
    least, usual, most = batch
    if not 1 <= least <= usual <= most:
        raise ConfigError(f"the batch is {least},{usual},{most}, expected min,opt,max that rise from at least 1")


def _name(host: EngineHost) -> str:
    return f"{RUNTIME_NAMES[host.runtime]} {host.runtime_version}"


def _check_host(host: EngineHost, of: str, target: str) -> None:
    """Raises BackendUnavailable where this runtime cannot build this form."""
    version = version_tuple(host.runtime_version)
    if version < OLDEST_TENSORRT[target]:
        least = ".".join(map(str, OLDEST_TENSORRT[target]))
        remedy = "install a later one"
        if target == "tensorrt" and version >= OLDEST_TENSORRT["tensorrt-8"]:
            remedy = "export the model with `--target tensorrt-8` and build from that"
        raise BackendUnavailable(
            f"{of} is for {RUNTIME_NAMES[host.runtime]} {least} and later, this is {_name(host)}; {remedy}"
        )
    if host.runtime == "tensorrt" and host.gpu is None:
        raise BackendUnavailable(
            f"{_name(host)} builds engines on the GPU that is to run them, and no NVIDIA GPU answers here; run "
            "this command on the device (`centeredge doctor` says what it lacks), or use ONNX Runtime with the .onnx"
        )


def _check_options(
    options: EngineOptions, host: EngineHost, of: str, *, precision: Precision, batch: tuple[int, int, int] | None
) -> None:
    """Raises ConfigError for what this runtime, machine or file does not have."""
    wants_other_gpus = options.hardware_compatibility != "none"
    if (options.version_compatible or wants_other_gpus) and not _rules_of(host, options).compatibility:
        raise ConfigError(
            f"{_name(host)} has no compatibility options: its engines run on every GPU since Ampere, and only in "
            "the version that built them; leave --version-compatible and --hardware out"
        )
    if wants_other_gpus and is_jetson():
        raise ConfigError("--hardware is not supported on a Jetson; build the engine on each kind of board")
    if options.calibration_cache is not None:
        _check_calibration(options, host, of, precision)
    if options.dla_core is None:
        return
    if host.runtime == "tensorrt_rtx":
        raise ConfigError(f"{_name(host)} knows no DLA; leave --dla-core out")
    if precision == "fp32":
        raise ConfigError(
            "DLA computes in FP16 and INT8; export the model with --precision fp16, or leave --dla-core out"
        )
    if precision == "int8" and _rules_of(host, options).weak_typing:
        raise ConfigError(
            f"{_name(host)} does not take ranges from the file for INT8 on DLA; export with --precision fp16, and "
            "give them with --calibration-cache"
        )
    if batch is not None:
        raise ConfigError(f"DLA takes one fixed batch, {of} has a dynamic one; export it without --dynamic-batch")


def _check_calibration(options: EngineOptions, host: EngineHost, of: str, precision: Precision) -> None:
    """Raises ConfigError or InputError where ranges cannot be given beside the file."""
    assert options.calibration_cache is not None
    if not _rules_of(host, options).weak_typing:
        raise ConfigError(
            f"{_name(host)} takes INT8 ranges from the .onnx alone; leave --calibration-cache out and export with "
            "--precision int8 --ranges FILE"
        )
    if precision == "int8":
        raise ConfigError(
            f"{of} is INT8 with its own ranges; leave --calibration-cache out, or export with --precision fp16"
        )
    if not options.calibration_cache.exists() and options.calibration_images is None:
        raise InputError(
            f"there is no {options.calibration_cache}; `centeredge calibrate --write-cache FILE` writes it, or "
            "--calibration-images DIR measures the ranges here"
        )


def _rules_of(host: EngineHost, options: EngineOptions) -> _Rules:
    major = version_tuple(host.runtime_version)[0]
    known = _RULES[host.runtime]
    named = max((version for version in known if version <= major), default=min(known))
    needs_weak_typing = options.dla_core is not None or options.calibration_cache is not None
    if needs_weak_typing and host.runtime == "tensorrt" and named == 10:
        return _WEAK_RULES_10
    return known[named]


def _check_writable(out: Path) -> None:
    """Raises ConfigError where the engine cannot be written; to be known before minutes of work, not after."""
    if out.suffix != ".engine":
        raise ConfigError(f"{out} has the suffix {out.suffix!r}, expected .engine")
    for path in (out, sidecar_path(out)):
        if path.is_dir():
            raise ConfigError(f"cannot write {path}: it is a folder")
    trial = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        trial.touch()
        trial.unlink()
    except OSError as err:
        raise ConfigError(f"cannot write {out}: {err.strerror}; choose a folder that exists and is writable") from err


class _Build:
    """One run of the builder: from the file's bytes to a plan."""

    def __init__(self, host: EngineHost, source: _Source, options: EngineOptions, note: Note) -> None:
        self.host, self.source, self.options, self.note = host, source, options, note
        self.rules = _rules_of(host, options)
        self.trt = load_runtime(host.runtime)
        self.messages = tensorrt_log(self.trt)
        self.messages.errors.clear()

    def run(self) -> tuple[bytes, tuple[int, int, int]]:
        """The plan, and the batch sizes that it takes."""
        builder = self._create_builder()
        network = builder.create_network(self._creation_flags())
        parser = self._parse(network)
        config = builder.create_builder_config()
        self._configure(config)
        if self.rules.weak_typing:
            obey_types(self.trt, network, config, precision=self.source.spec.precision)
        batch = self._set_batch(builder, network, config)
        if self.options.dla_core is not None:
            self._use_dla(builder, network, config)
        calibrator = self._calibrator(network, config)
        timings = self._load_timings(config)
        monitor = self._monitor(config)
        plan = builder.build_serialized_network(network, config)
        del parser  # it owned the weights until here
        if calibrator is not None:
            calibrator.finish()
        if monitor is not None and monitor.failure is not None:
            raise monitor.failure
        if plan is None:
            raise ExportError(
                f"{_name(self.host)} cannot build {self.source.path.name}: {self.messages.last()}; if memory ran "
                "out, close other programs or lower --workspace; if not, export the model again"
            )
        if timings is not None:
            self._save_timings(config)
        return bytes(memoryview(plan)), batch

    def _create_builder(self) -> Any:
        if self.host.runtime == "tensorrt":
            self.trt.init_libnvinfer_plugins(self.messages, "")  # DeformConv is one of them
        try:
            return self.trt.Builder(self.messages)
        except Exception as err:  # of pybind, which says only that there is none
            raise BackendUnavailable(
                f"{_name(self.host)} does not start here: {self.messages.last() or err}; its version must fit the "
                "GPU's driver"
            ) from err

    def _creation_flags(self) -> int:
        flag = self.rules.creation_flag
        return 1 << int(getattr(self.trt.NetworkDefinitionCreationFlag, flag)) if flag else 0

    def _parse(self, network: Any) -> Any:
        """Fill the network from the bytes whose hash is recorded."""
        parser = self.trt.OnnxParser(network, self.messages)
        beside = (str(self.source.path),) if self.source.has_weights_beside else ()
        if not parser.parse(self.source.content, *beside):
            raise ExportError(
                f"{_name(self.host)} does not take {self.source.path.name}: {_parser_error(parser)}; export the "
                f"model again with `--target {self.source.target}`, or for ONNX Runtime, which runs it on the CPU"
            )
        return parser

    def _configure(self, config: Any) -> None:
        trt, options = self.trt, self.options
        # TF32 has ten bits of mantissa, as many as FP16; what the file says is FP32 is meant to be more exact.
        config.clear_flag(trt.BuilderFlag.TF32)
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatibility != "none":
            level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper(), None)
            if level is None:
                raise ConfigError(
                    f"{_name(self.host)} does not know --hardware {options.hardware_compatibility}; use ampere_plus"
                )
            config.hardware_compatibility_level = level
        if _is_for_turing(self.host):
            # TensorRT-RTX leaves it out unless it is asked for it alone.
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.SM75, 0)

    def _set_batch(self, builder: Any, network: Any, config: Any) -> tuple[int, int, int]:
        """Batch sizes by the input's shape; a symbolic batch gets a profile."""
        frame = network.get_input(0)
        first, *others = tuple(frame.shape)
        if first >= 0:
            if self.options.batch is not None:
                raise ConfigError(
                    f"{self.source.path} takes {first} frame(s) a call; --dynamic-batch needs a file that was exported "
                    "with it"
                )
            return first, first, first
        batch = self.options.batch or self.source.batch
        if batch is None:
            raise ConfigError(f"{self.source.path} takes any number of frames; say how many: --dynamic-batch 1,4,8")
        profile = builder.create_optimization_profile()
        profile.set_shape(frame.name, *((size, *others) for size in batch))
        config.add_optimization_profile(profile)
        if self.options.calibration_cache is not None:
            config.set_calibration_profile(profile)
        return batch

    def _use_dla(self, builder: Any, network: Any, config: Any) -> None:
        """Send to the DLA what it takes, and say what it does not."""
        trt, core = self.trt, self.options.dla_core
        if builder.num_DLA_cores <= core:
            raise ConfigError(f"--dla-core is {core}, this machine has {builder.num_DLA_cores} DLA core(s)")
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
        fallen = defaultdict(list)
        for layer in layers_of(network):
            if not config.can_run_on_DLA(layer):
                fallen[layer.type.name].append(layer.name)
        count = sum(map(len, fallen.values()))
        self.note(f"DLA core {core} (experimental): {network.num_layers - count} of {network.num_layers} layers fit")
        for kind, names in sorted(fallen.items()):
            self.note(f"  on the GPU instead, {kind}: {', '.join(names)}")

    def _calibrator(self, network: Any, config: Any) -> EntropyCalibrator | None:
        """Let TensorRT use INT8 where it knows ranges: those of the cache, or of photographs that it is shown."""
        path = self.options.calibration_cache
        if path is None:
            return None
        if path.exists():
            frames, cuda = None, None
            self._check_ranges(network, set(read_cache(path)))
        else:
            assert self.options.calibration_images is not None
            frames = photograph_frames(self.options.calibration_images, self.source.spec, note=self.note)
            cuda = open_cuda()
            self.note(f"measuring INT8 ranges on the photographs of {self.options.calibration_images}")
        calibrator = entropy_calibrator(self.trt, frames, path, cuda=cuda)
        config.set_flag(self.trt.BuilderFlag.INT8)
        config.set_flag(self.trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        hold_heads(self.trt, network, self.source.spec)
        config.int8_calibrator = calibrator
        return calibrator

    def _check_ranges(self, network: Any, known: set[str]) -> None:
        """Raises CalibrationError where a cache is of another model, and says which convolutions stay in float."""
        kinds = self.trt.LayerType
        convs = [layer for layer in layers_of(network) if layer.type in (kinds.CONVOLUTION, kinds.DECONVOLUTION)]
        without = [layer.name for layer in convs if inputs_of(layer)[0].name not in known]
        if 2 * len(without) > len(convs):
            raise CalibrationError(
                f"{self.options.calibration_cache} has no range for what {len(without)} of {len(convs)} convolutions "
                f"of {self.source.path.name} read, such as {without[0]}: it was made from another model; write one for "
                "this file"
            )
        if without:
            self.note(f"{len(without)} of {len(convs)} convolutions have no range and stay in float: {without}")

    def _monitor(self, config: Any) -> BuildProgress | None:
        if not self.rules.progress:
            return None
        monitor: BuildProgress = type("Progress", (BuildProgress, self.trt.IProgressMonitor), {})(self.note)
        config.progress_monitor = monitor
        return monitor

    def _load_timings(self, config: Any) -> Any:
        """The timing cache that the build will fill, or None."""
        if not self.rules.timing_cache:
            return None
        path = self._timings_path()
        try:
            content = path.read_bytes()
        except OSError:
            content = b""
        cache = config.create_timing_cache(content)
        if cache is None or not config.set_timing_cache(cache, False):
            self.note(f"{path} is of another version or GPU, or damaged; measuring afresh")
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        return cache

    def _save_timings(self, config: Any) -> None:
        path = self._timings_path()
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(bytes(memoryview(config.get_timing_cache().serialize())))
            os.replace(part, path)
        except OSError as err:
            self.note(f"the timings are not kept for the next build: cannot write {path}: {err.strerror}")

    def _timings_path(self) -> Path:
        return self.options.timing_cache or cache_folder() / f"{host_slug(self.host)}.timings"


def host_slug(host: EngineHost) -> str:
    """The runtime's version and the GPU, as part of a file name."""
    gpu = host.gpu
    parts = [host.runtime, host.runtime_version]
    parts += [ANY_GPU] if gpu is None else [gpu.name, gpu.compute_capability, str(gpu.multiprocessors)]
    text = "-".join(parts).lower()
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in text)


def _is_for_turing(host: EngineHost) -> bool:
    return host.runtime == "tensorrt_rtx" and host.gpu is not None and host.gpu.compute_capability == "7.5"


def _record(
    source: _Source, host: EngineHost, options: EngineOptions, *, plan: bytes, batch: tuple[int, int, int], rebuild: str
) -> EngineRecord:
    is_portable = host.runtime == "tensorrt_rtx" and not _is_for_turing(host)
    gpu = None if is_portable else host.gpu
    spec = source.spec if options.calibration_cache is None else replace(source.spec, precision="int8")
    return EngineRecord(
        spec=spec,
        runtime=host.runtime,
        runtime_version=host.runtime_version,
        gpu=gpu.name if gpu else ANY_GPU,
        compute_capability=gpu.compute_capability if gpu else "",
        multiprocessors=gpu.multiprocessors if gpu else 0,
        platform=host.platform,
        cuda=host.gpu.cuda if host.gpu else "",
        onnx=source.path.name,
        onnx_sha256=source.sha256,
        engine_sha256=hashlib.sha256(plan).hexdigest(),
        version_compatible=options.version_compatible,
        hardware_compatibility=options.hardware_compatibility,
        dla_core=options.dla_core,
        batch=batch,
        rebuild=rebuild,
    )


def _parser_error(parser: Any) -> str:
    """The first error in one line; the node's name is known since TensorRT 10, its number before."""
    if not parser.num_errors:
        return "the parser does not say why"
    error = parser.get_error(0)
    reason = " ".join(error.desc().split())[:300]
    if error.node() < 0:
        return reason
    if not hasattr(error, "node_operator"):
        return f"node number {error.node()}: {reason}"
    return f"node {error.node_name()!r}, operator {error.node_operator()}: {reason}"
