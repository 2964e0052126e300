"""Stand-ins for the versions of TensorRT that cannot be installed here, and a small file for them to take."""

from __future__ import annotations

import enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from sdk.onnx_metadata import BATCH_METADATA_KEY, TARGET_METADATA_KEY
from sdk.spec import ONNX_METADATA_KEY, Precision
from tests.fakes_tensorrt import FakeDevice
from tests.helpers import tiny_spec


def small_onnx(
    folder: Path,
    *,
    target: str = "tensorrt-rtx",
    precision: Precision = "fp32",
    batch: str | None = None,
    operator: str = "Relu",
    weights_in: str | None = None,
) -> Path:
    """A network in TensorRT's form: uint8 frame, Cast, Transpose, a convolution in the precision, heads in FP32.

    `weights_in` names a file for the weights, or for what is said to be them.
    """
    spec = tiny_spec(precision=precision)
    size = "N" if batch else 1
    dtype = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["frame"], ["cast"], to=dtype, name="cast"),
        helper.make_node("Transpose", ["cast"], ["planes"], perm=[0, 3, 1, 2], name="transpose"),
        helper.make_node("Conv", ["planes", "stem.weight"], ["stem"], strides=[4, 4], name="stem"),
        helper.make_node(operator, ["stem"], ["active"], name="active"),
        helper.make_node("Cast", ["active"], ["features"], to=TensorProto.FLOAT, name="features"),
    ]
    random = np.random.default_rng(0)
    stem = random.normal(size=(8, 3, 4, 4)).astype(np.float16 if precision == "fp16" else np.float32)
    weights = [numpy_helper.from_array(stem, "stem.weight")]
    for head in spec.heads:
        nodes.append(helper.make_node("Conv", ["features", f"{head.name}.weight"], [head.name], name=head.name))
        array = random.normal(size=(head.channels, 8, 1, 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(array, f"{head.name}.weight"))
    if weights_in is not None:
        _move(weights[0], folder, weights_in)
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, [size, 64, 64, 3])],
        [helper.make_tensor_value_info(h.name, TensorProto.FLOAT, [size, h.channels, 16, 16]) for h in spec.heads],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    metadata = {ONNX_METADATA_KEY: spec.to_json(), TARGET_METADATA_KEY: target}
    helper.set_model_props(model, {**metadata, **({BATCH_METADATA_KEY: batch} if batch else {})})
    path = folder / "small.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _move(tensor: TensorProto, folder: Path, location: str) -> None:
    """Put a tensor's values where they do not belong, unless the place is absurd."""
    if not location.startswith(("/", "..")) and not (folder / location).exists():
        (folder / location).write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


class FakeFlag8(enum.IntEnum):
    FP16, INT8, GPU_FALLBACK, TF32, OBEY_PRECISION_CONSTRAINTS, VERSION_COMPATIBLE = range(6)


class FakeFlag11(enum.IntEnum):
    GPU_FALLBACK, TF32, VERSION_COMPATIBLE = 2, 3, 5


class FakeTensor:
    def __init__(self, name: str, dtype: Any, shape: tuple[int, ...] = (1, 64, 64, 3)) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape


class FakeLayer:
    """A layer; what it is pinned to is kept."""

    def __init__(self, name: str, kind: Any, inputs: list[Any], outputs: list[FakeTensor]) -> None:
        self.name, self.type, self.precision = name, kind, None
        self._inputs, self._outputs = inputs, outputs
        self.num_inputs, self.num_outputs = len(inputs), len(outputs)
        self.output_types: dict[int, Any] = {}

    def get_input(self, index: int) -> Any:
        return self._inputs[index]

    def get_output(self, index: int) -> FakeTensor:
        return self._outputs[index]

    def set_output_type(self, index: int, dtype: Any) -> None:
        self.output_types[index] = dtype


class FakeNetwork:
    """What the parser is said to have found."""

    def __init__(self, layers: list[FakeLayer], batch: int) -> None:
        self._layers, self.num_layers = layers, len(layers)
        self._frame = FakeTensor("frame", None, (batch, 64, 64, 3))

    def get_layer(self, index: int) -> FakeLayer:
        return self._layers[index]

    def get_input(self, index: int) -> FakeTensor:
        return self._frame


class FakeTimings:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"measured;"


class FakeConfig:
    """A builder configuration that has the attributes of its version and no others."""

    def __init__(self, *, progress: bool, calibrators: bool) -> None:
        self._known = {"builder_optimization_level", "hardware_compatibility_level", "default_device_type", "DLA_core"}
        self._known |= {"progress_monitor"} if progress else set()
        self._known |= {"int8_calibrator"} if calibrators else set()
        self.flags: set[str] = {"TF32"}
        self.limits: dict[str, int] = {}
        self.profiles: list[Any] = []
        self.values: dict[str, Any] = {}
        self.timings = FakeTimings(b"")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_known", "flags", "limits", "profiles", "values", "timings"):
            object.__setattr__(self, name, value)
        elif name in self._known:
            self.values[name] = value
        else:
            raise AttributeError(name)

    def set_flag(self, flag: enum.Enum) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: enum.Enum) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.limits[pool] = size

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return 0

    def set_calibration_profile(self, profile: Any) -> bool:
        self.values["calibration_profile"] = profile.shapes
        return True

    def create_timing_cache(self, content: bytes) -> FakeTimings | None:
        return None if content.startswith(b"damaged") else FakeTimings(content)

    def set_timing_cache(self, timings: FakeTimings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.timings = timings
        return not timings.content.startswith(b"other")

    def get_timing_cache(self) -> FakeTimings:
        return self.timings

    def can_run_on_DLA(self, layer: FakeLayer) -> bool:  # noqa: N802
        return bool(layer.type.name == "CONVOLUTION")


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = shapes


class FakeTensorRt(ModuleType):
    """The module `tensorrt` in one of its versions: it records what is asked of it, and "builds".

    Attributes:
        creation_flags: of the network.
        configs: one for each build.
        layers: those of the network, for the tests to look at.
        calibrators: whether this version has them.
        device: the GPU, from which a calibrator's frames are read.
        frames: that were read, in order.
        scales: of the tensors, from the calibrator.
    """

    flags: type[enum.IntEnum] = FakeFlag8
    creation: tuple[tuple[str, int], ...] = ()
    progress = True
    calibrators = True
    levels: tuple[str, ...] = ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")

    def __init__(self, version: str, *, half: bool = False, batch: int = 1, plan: bytes | None = b"plan") -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.plan, self.batch = plan, batch
        self.BuilderFlag = self.flags
        self.NetworkDefinitionCreationFlag = enum.IntEnum("Creation", list(self.creation))
        self.DataType = enum.Enum("DataType", "FLOAT HALF INT32")
        self.LayerType = enum.Enum(
            "LayerType", "CONVOLUTION DECONVOLUTION CAST CONSTANT SHAPE QUANTIZE DEQUANTIZE SLICE TOPK"
        )
        self.DeviceType = enum.Enum("DeviceType", "GPU DLA")
        self.HardwareCompatibilityLevel = enum.Enum("Level", list(self.levels))
        self.MemoryPoolType = enum.Enum("Pool", "WORKSPACE")
        self.ILogger = type("ILogger", (), {})
        if self.progress:
            self.IProgressMonitor = type("IProgressMonitor", (), {})
        if self.calibrators:
            self.IInt8EntropyCalibrator2 = type("IInt8EntropyCalibrator2", (), {})
        self.creation_flags: int | None = None
        self.configs: list[FakeConfig] = []
        self.layers = self._make_layers(half=half)
        self.content = b""
        self.plugins_ready = False
        self.device: FakeDevice | None = None
        self.frames: list[npt.NDArray[np.uint8]] = []
        self.scales = b""

    def _make_layers(self, *, half: bool) -> dict[str, FakeLayer]:
        kinds, types = self.LayerType, self.DataType
        low = types.HALF if half else types.FLOAT
        dequantised = FakeTensor("dequantised", types.FLOAT)
        made = [
            FakeLayer("cast", kinds.CAST, [], [FakeTensor("cast", low)]),
            FakeLayer("stem", kinds.CONVOLUTION, [FakeTensor("planes", low), None], [FakeTensor("stem", low)]),
            FakeLayer("dequantise", kinds.DEQUANTIZE, [], [dequantised]),
            FakeLayer("quantised", kinds.CONVOLUTION, [dequantised], [FakeTensor("quantised", types.FLOAT)]),
            FakeLayer("heatmap", kinds.CONVOLUTION, [FakeTensor("x", low)], [FakeTensor("heatmap", types.FLOAT)]),
            FakeLayer(
                "topk",
                kinds.TOPK,
                [FakeTensor("heatmap", types.FLOAT)],
                [FakeTensor("values", types.FLOAT), FakeTensor("cells", types.INT32)],
            ),
        ]
        return {layer.name: layer for layer in made}

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        self.plugins_ready = True
        return True

    def Builder(self, logger: Any) -> FakeBuilder:  # noqa: N802
        assert self.plugins_ready
        return FakeBuilder(self, logger)

    def OnnxParser(self, network: FakeNetwork, logger: Any) -> FakeParser:  # noqa: N802
        return FakeParser(self)


class FakeBuilder:
    num_DLA_cores = 2  # noqa: N815

    def __init__(self, runtime: FakeTensorRt, logger: Any) -> None:
        self._runtime, self._logger = runtime, logger

    def create_network(self, flags: int) -> FakeNetwork:
        self._runtime.creation_flags = flags
        return FakeNetwork(list(self._runtime.layers.values()), self._runtime.batch)

    def create_builder_config(self) -> FakeConfig:
        self._runtime.configs.append(FakeConfig(progress=self._runtime.progress, calibrators=self._runtime.calibrators))
        return self._runtime.configs[-1]

    def create_optimization_profile(self) -> FakeProfile:
        return FakeProfile()

    def build_serialized_network(self, network: FakeNetwork, config: FakeConfig) -> bytes | None:
        if self._runtime.plan is None:
            self._logger.log(1, "Error Code 2:\nOutOfMemory")
        if "int8_calibrator" in config.values:
            calibrate(self._runtime, config.values["int8_calibrator"])
            if not self._runtime.scales:
                self._logger.log(1, "Calibration failure occurred with no scaling factors detected.")
                return None
        return self._runtime.plan


def calibrate(runtime: FakeTensorRt, calibrator: Any) -> None:
    """As TensorRT does: it takes a cache of its own version, and asks for frames where there is none.

    In its bindings an exception would be taken for the end of the frames, or end the process.
    """
    assert calibrator.get_batch_size() == 1
    runtime.scales = _accepted(runtime, calibrator.read_calibration_cache())
    if runtime.scales:
        calibrator.write_calibration_cache(memoryview(runtime.scales))  # some versions do, though nothing is new
        return
    while addresses := calibrator.get_batch(["frame"]):
        assert runtime.device is not None
        runtime.frames.append(runtime.device.array(addresses[0], np.uint8, (1, 64, 64, 3)).copy())
    if runtime.frames:
        runtime.scales = f"{_header(runtime)}\nframe: 40008102\n(Unnamed Layer* 0) [Cast]_output: 40008102\n".encode()
        calibrator.write_calibration_cache(memoryview(runtime.scales))


def _accepted(runtime: FakeTensorRt, cache: Any) -> bytes:
    content = b"" if cache is None else bytes(memoryview(cache))
    return content if content.startswith(_header(runtime).encode() + b"\n") else b""


def _header(runtime: FakeTensorRt) -> str:
    major, minor, patch = map(int, runtime.__version__.split(".")[:3])
    return f"TRT-{major * (10_000 if major >= 10 else 1_000) + minor * 100 + patch}-EntropyCalibration2"


class FakeParser:
    num_errors = 0

    def __init__(self, runtime: FakeTensorRt) -> None:
        self._runtime = runtime

    def parse(self, content: bytes, path: str | None = None) -> bool:
        self._runtime.content = content
        return True


class FakeTensorRt8(FakeTensorRt):
    """8.6, as JetPack 6.0 has it: EXPLICIT_BATCH is asked for, typing is weak."""

    creation = (("EXPLICIT_BATCH", 0),)
    progress = False
    levels = ("NONE", "AMPERE_PLUS")


class FakeTensorRt10(FakeTensorRt):
    """10.3, as JetPack 6.2 has it: STRONGLY_TYPED is new, the flags of weak typing are still there."""

    creation = (("EXPLICIT_BATCH", 0), ("STRONGLY_TYPED", 1))


class FakeTensorRt11(FakeTensorRt):
    """11: every network is strongly typed, and what said otherwise is gone."""

    flags = FakeFlag11
    creation = (("STRONGLY_TYPED", 1),)
    calibrators = False
