"""ONNX Runtime, on every machine; the default."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ..engine_files import version_tuple
from ..errors import BackendError, BackendUnavailable, HeadShapeError, InputError, SpecError
from ..onnx_metadata import TARGET_METADATA_KEY, read_metadata
from ..spec import ONNX_METADATA_KEY, ModelSpec
from . import Arrays, output_shapes

INPUT_NAME = "frame"
# 1.23.2 loses half of the AP of an INT8 file typed FP16, 1.31.1 none; what lies between was not tried.
_GOOD_HALF_QUANTISERS = (1, 31)
_logger = logging.getLogger(__name__)


class OnnxRuntimeBackend:
    """Runs a .onnx file that carries a ModelSpec on the CPU.

    The input is `frame`, (1, h, w, 3) uint8; the outputs are the heads by name, or the peaks in them
    (`sdk.peaks.peak_shapes`). The first dimension of all may be symbolic.

    Args:
        path: the file.
        threads: of the CPU for one frame; None is one a core.

    Attributes:
        any_size: whether the file takes frames of other sizes than its spec's: its height and width are symbolic.

    Raises:
        BackendUnavailable: onnxruntime is not installed.
        BackendError: the file is not a model that ONNX Runtime can load.
        SpecError: it has no ModelSpec, or its inputs and outputs contradict it.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        self._session = open_session(path, threads=threads, fuse_quantisers=not _is_for_tensorrt(path))
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.spec = _read_spec(metadata, path)
        _warn_of_half_quantisers(metadata, self.spec, path)
        self.inputs = tuple(node.name for node in self._session.get_inputs())
        self.outputs = tuple(node.name for node in self._session.get_outputs())
        self._check(path)

    def infer(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Run one batch.

        Raises:
            BackendError: the runtime refused the input or failed.
        """
        try:
            outputs = self._session.run(None, dict(feeds))
        except Exception as err:
            shapes = {name: (array.shape, str(array.dtype)) for name, array in feeds.items()}
            raise BackendError(f"ONNX Runtime failed on {shapes}: {str(err).strip().splitlines()[0]}") from err
        return dict(zip(self.outputs, outputs, strict=True))

    def close(self) -> None:
        """Nothing is held but memory, which goes with the object."""

    def _check(self, path: Path) -> None:
        width, height = self.spec.input.wh
        got = [(node.name, node.type, node.shape) for node in self._session.get_inputs()]
        sides = got[0][2][1:3] if got else []
        self.any_size = len(sides) == 2 and not any(isinstance(side, int) for side in sides)
        wanted = [*sides, 3] if self.any_size and self.spec.output == "dense" else [height, width, 3]
        if [(*node[:2], node[2][1:]) for node in got] != [(INPUT_NAME, "tensor(uint8)", wanted)]:
            raise SpecError(
                f"{path} takes {got}, its ModelSpec says one input {INPUT_NAME!r} of uint8 (1, {height}, {width}, 3); "
                "export it again"
            )
        shapes = {node.name: node.shape for node in self._session.get_outputs()}
        for name, declared in output_shapes(self.spec).items():
            shape = shapes.get(name)
            fixed = 1 if self.any_size else len(declared)  # the channels alone, where the size is free
            if shape is None or len(shape) != 1 + len(declared) or shape[1 : 1 + fixed] != [*declared[:fixed]]:
                raise HeadShapeError(
                    f"{path} gives {name!r} as {shape}, its ModelSpec declares {(1, *declared)}. "
                    "The file and its metadata come from different models; export it again"
                )


def _is_for_tensorrt(path: Path) -> bool:
    try:
        return _names_tensorrt(read_metadata(path))
    except InputError:
        return False  # ONNX Runtime says what is wrong with it


def _names_tensorrt(metadata: Mapping[str, str]) -> bool:
    return metadata.get(TARGET_METADATA_KEY, "onnxruntime") != "onnxruntime"


def _warn_of_half_quantisers(metadata: dict[str, str], spec: ModelSpec, path: Path) -> None:
    version = _import_onnxruntime().__version__
    if spec.precision == "int8" and _names_tensorrt(metadata) and version_tuple(version) < _GOOD_HALF_QUANTISERS:
        _logger.warning(
            "%s is an INT8 file for TensorRT; where it is typed FP16, ONNX Runtime %s quantises it inexactly, and half "
            "of the accuracy is lost: use the INT8 file for ONNX Runtime",
            path,
            version,
        )


def open_session(path: Path, *, threads: int | None = None, fuse_quantisers: bool = True) -> Any:
    """An onnxruntime.InferenceSession on the CPU, for any .onnx file.

    Args:
        path: the file.
        threads: of the CPU for one frame; None is one a core.
        fuse_quantisers: whether INT8 operators take the place of float ones between quantisers. Version 1.31 makes
            invalid ones of quantisers typed FP16, as files for TensorRT have them.

    Raises:
        BackendUnavailable: onnxruntime is not installed.
        BackendError: the file is not a model that ONNX Runtime can load.
    """
    runtime = _import_onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    # Spinning threads would take the core that captures and prepares the next frame; a call alone pays for that
    # (docs/benchmarks.md).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not fuse_quantisers:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # ONNX Runtime's exceptions share no base class of its own
        reason = str(err).strip().splitlines()[0][:200]
        remedy = "expected a file that `centeredge export` wrote"
        if "DeformConv" in reason:
            remedy = (
                "deformable convolution as an operator needs ONNX Runtime 1.25 or later, and so Python 3.11; "
                "`centeredge export --target tensorrt-8` writes a file without it, which runs here"
            )
        raise BackendError(
            f"{path} is not a model that ONNX Runtime {runtime.__version__} can load ({reason}); {remedy}"
        ) from err


def _read_spec(metadata: dict[str, str], path: Path) -> ModelSpec:
    if ONNX_METADATA_KEY not in metadata:
        raise SpecError(
            f"{path} has no ModelSpec (ONNX metadata {ONNX_METADATA_KEY!r}), so its classes and input are unknown; "
            "use a file that `centeredge export` wrote"
        )
    try:
        return ModelSpec.from_json(metadata[ONNX_METADATA_KEY])
    except SpecError as err:
        raise type(err)(f"{path}: {err}") from err


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as err:
        raise BackendUnavailable(
            "running a .onnx model needs onnxruntime, which is not installed; "
            "`pip install 'centeredge[cpu]'`, or on a Jetson `pip install onnxruntime` beside the system's OpenCV"
        ) from err
    return onnxruntime
