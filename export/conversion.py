"""From the graph that PyTorch's exporter gave to the form that each runtime likes; needs no PyTorch.

One graph comes out of a checkpoint: the `onnxruntime` form, FP32, dense heads. Every other file is that graph,
rewritten, so that its tensors keep their names, and ranges measured once serve every target::

    converted, spec = convert(model, spec, Form("tensorrt", precision="fp16", wh=(512, 320)))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from calibration.deform_conv import lower_deform_convs
from calibration.methods import Range
from calibration.onnx_files import metadata_of
from calibration.qdq_tensorrt import with_float_weights
from calibration.quantisation import quantise, shapes_of
from sdk.errors import ConfigError
from sdk.onnx_metadata import BATCH_METADATA_KEY, MULTIPLE_METADATA_KEY, TARGET_METADATA_KEY
from sdk.spec import ModelSpec, Precision

from .errors import ExportError
from .half_precision import to_half
from .peaks import end_in_peaks
from .targets import TARGETS, Target

_DEFAULT_MULTIPLE = 32
_MAX_PIXELS = 8192 * 4096  # gigabytes of activations; what is larger is a slip
_CANONICAL = "onnxruntime"
# Attributes with their only value in older opsets, which do not know them.
_NEW_ATTRIBUTES = {"Resize": {"antialias", "keep_aspect_ratio_policy", "axes"}, "Cast": {"saturate"}}


Batch = tuple[int, int, int]  # frames in a call: the least, as many as it shall be fast for, the most


@dataclass(frozen=True)
class Form:
    """What is asked of a file.

    Attributes:
        target: a name in TARGETS.
        precision: fp16 is typed in the graph; int8 needs ranges.
        wh: input size in pixels; None keeps the model's.
        any_size: the file takes frames of every size that fits the network.
        batch: a symbolic batch; None is one frame.
        int8_float: type of what an INT8 file does not quantise; None is what the target likes.
    """

    target: str = _CANONICAL
    precision: Precision = "fp32"
    wh: tuple[int, int] | None = None
    any_size: bool = False
    batch: Batch | None = None
    int8_float: Literal["fp32", "fp16"] | None = None

    def check(self) -> None:
        """Raises ConfigError where one wish contradicts another."""
        if self.int8_float is not None and self.precision != "int8":
            raise ConfigError(f"--int8-float is for --precision int8, not {self.precision}; leave it out")
        if self.int8_float == "fp16" and TARGETS[self.target].int8_opset < 19:
            raise ConfigError(f"{self.target} has no FP16 beside INT8 in a file; leave --int8-float out")
        if self.any_size and self.target != _CANONICAL:
            raise ConfigError(f"--any-size is for --target {_CANONICAL}; a file for {self.target} has one size, --size")
        if self.any_size and self.precision == "int8":
            raise ConfigError("--any-size is for fp32 and fp16: an INT8 file for ONNX Runtime has one size, --size")
        if self.batch is not None and self.target == _CANONICAL and self.precision == "int8":
            raise ConfigError(
                "--dynamic-batch is for fp32 and fp16 with --target onnxruntime: its INT8 file takes one frame"
            )


def convert(
    model: ModelProto, spec: ModelSpec, form: Form, *, ranges: Mapping[str, Range] | None = None
) -> tuple[ModelProto, ModelSpec]:
    """The canonical graph in another form.

    Args:
        model: FP32, dense heads, for ONNX Runtime, as `trace` and `centeredge export` give it; it is not changed.
        spec: of the model.
        form: what is wanted.
        ranges: of the activations by tensor name, for int8.

    Raises:
        ExportError: the model is not canonical, the size does not fit it, or the target cannot have it.
        ConfigError: the wishes contradict each other.
    """
    form.check()
    check_canonical(model, spec)
    sized, spec = at_size(model, spec, form.wh or spec.input.wh)
    if form.precision == "int8":
        if ranges is None:
            raise ConfigError("int8 needs activation ranges; `centeredge calibrate` measures them")
        sized = quantise(sized, ranges, target=quantisation_of(form.target))
    return _finish(sized, spec, form)


def quantisation_of(target: str) -> Literal["onnxruntime", "tensorrt"]:
    """Whose rules say what of a graph runs in INT8."""
    return "onnxruntime" if target == _CANONICAL else "tensorrt"


def finish(model: ModelProto, spec: ModelSpec, form: Form) -> tuple[ModelProto, ModelSpec]:
    """The rest of the way, for a canonical graph of the right size, or what `quantise` made of it."""
    converted = ModelProto()
    converted.CopyFrom(model)
    return _finish(converted, spec, form)


def _finish(converted: ModelProto, spec: ModelSpec, form: Form) -> tuple[ModelProto, ModelSpec]:
    """In place: Hourglass-104 is 760 MB, and each copy counts."""
    target, graph = TARGETS[form.target], converted.graph
    has_deform_conv = any(node.op_type == "DeformConv" for node in graph.node)
    if target.cast_first:
        _cast_first(graph)
    if _float_type(target, form) == "fp16":
        # TensorRT's own DeformConv would also count cells and add up in FP16.
        to_half(graph, spec, float_operators=("DeformConv",) if target.deform_conv == "operator" else ())
    if form.precision == "int8" and form.target == "tensorrt-8":
        with_float_weights(graph)  # its importer takes no INT8 constants
    lower_deform_convs(graph, shapes_of(converted), target.deform_conv)
    if target.output == "peaks":
        spec = end_in_peaks(graph, spec)
    _set_opset(converted, _opset(target, form, has_deform_conv))
    _set_dimensions(graph, form)
    _drop_unused(graph)
    _set_metadata(converted, form)
    return converted, replace(spec, precision=form.precision)


def check_canonical(model: ModelProto, spec: ModelSpec) -> None:
    """Raises ExportError unless other forms can be made from the model."""
    target = target_of(model)
    if target != _CANONICAL or spec.precision != "fp32" or spec.output != "dense":
        raise ExportError(
            f"{spec.name} is in {spec.precision.upper()} for {target} with {spec.output} outputs; other forms are made "
            "from the checkpoint, or from the file that `centeredge export CHECKPOINT OUT.onnx` gives"
        )


def target_of(model: ModelProto) -> str:
    """The target that a file was made for."""
    return metadata_of(model).get(TARGET_METADATA_KEY, _CANONICAL)


def input_multiple_of(model: ModelProto) -> int:
    """What the sides of the input must be multiples of."""
    return int(metadata_of(model).get(MULTIPLE_METADATA_KEY, _DEFAULT_MULTIPLE))


def check_size(wh: tuple[int, int], multiple: int) -> None:
    """Raises ExportError where the network's coarsest map would not come out whole, or memory would not do."""
    if wh[0] * wh[1] > _MAX_PIXELS:
        raise ExportError(
            f"size {wh[0]}x{wh[1]} is too large; expected at most {_MAX_PIXELS} pixels, such as 8192x4096"
        )
    for side in wh:
        if side % multiple:
            below = max(side // multiple, 1) * multiple
            raise ExportError(
                f"size {wh[0]}x{wh[1]} does not fit: {side} is no multiple of {multiple}, the network's "
                f"coarsest stride; the nearest are {below} and {below + multiple}"
            )


def at_size(model: ModelProto, spec: ModelSpec, wh: tuple[int, int]) -> tuple[ModelProto, ModelSpec]:
    """A canonical graph for frames of another size: no operator in it knows the size.

    Raises:
        ExportError: the size does not fit the network.
    """
    check_size(wh, input_multiple_of(model))
    spec = spec.with_input_size(*wh)
    sized = ModelProto()
    sized.CopyFrom(model)
    graph = sized.graph
    del graph.value_info[:]
    _set_shape(graph.input[0], [1, wh[1], wh[0], 3])
    cells_w, cells_h = spec.feature_wh
    for output in graph.output:
        _set_shape(output, [1, spec.head(output.name).channels, cells_h, cells_w])
    return sized, spec


def _cast_first(graph: GraphProto) -> None:
    """Cast the frame and then transpose it; TensorRT takes bytes in no other order."""
    frame = graph.input[0].name
    transpose = next(node for node in graph.node if node.input[0] == frame)
    if transpose.op_type == "Cast":
        return
    cast = next(node for node in graph.node if node.input[0] == transpose.output[0])
    if (transpose.op_type, cast.op_type) != ("Transpose", "Cast"):
        raise ExportError(f"the frame goes to {transpose.op_type} and {cast.op_type}, expected Transpose and Cast")
    pixels = cast.output[0]  # keeps its name, and so its range
    cast.input[0], cast.output[0] = frame, f"{frame}.{cast.op_type}"
    transpose.input[0], transpose.output[0] = cast.output[0], pixels
    first, second = NodeProto(), NodeProto()
    first.CopyFrom(cast)
    second.CopyFrom(transpose)
    rest = [NodeProto.FromString(node.SerializeToString()) for node in graph.node if node not in (cast, transpose)]
    del graph.node[:]
    graph.node.extend([first, second, *rest])


def _float_type(target: Target, form: Form) -> Precision:
    """Of what is not INT8."""
    return form.int8_float or target.int8_float if form.precision == "int8" else form.precision


def _opset(target: Target, form: Form, has_deform_conv: bool) -> int:
    opset = target.deform_conv_opset if has_deform_conv else target.opset
    return max(opset, target.int8_opset) if form.precision == "int8" else opset


def _set_opset(model: ModelProto, opset: int) -> None:
    """Say which opset the graph is in; the operators of ours mean the same in all of them."""
    for node in model.graph.node:
        kept = [
            attribute for attribute in node.attribute if attribute.name not in _NEW_ATTRIBUTES.get(node.op_type, set())
        ]
        del node.attribute[:]
        node.attribute.extend(kept)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    model.ir_version = helper.find_min_ir_version_for(list(model.opset_import))


def _set_dimensions(graph: GraphProto, form: Form) -> None:
    """Make the batch or the size symbolic, where that was asked for."""
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        shape: list[int | str] = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        if form.batch is not None:
            shape[0] = "batch"
        if form.any_size:
            is_frame = value.name == graph.input[0].name
            place = slice(1, 3) if is_frame else slice(2, 4)
            shape[place] = ["height", "width"] if is_frame else ["rows", "columns"]
        _set_shape(value, shape)


def _set_shape(value: onnx.ValueInfoProto, shape: list[int] | list[int | str]) -> None:
    element_type = value.type.tensor_type.elem_type or TensorProto.FLOAT
    value.CopyFrom(helper.make_tensor_value_info(value.name, element_type, shape))


def _drop_unused(graph: GraphProto) -> None:
    """Nodes and constants that lead to no output."""
    wanted = {output.name for output in graph.output}
    kept_nodes: list[NodeProto] = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept_nodes.insert(0, node)
    kept_constants = [tensor for tensor in graph.initializer if tensor.name in wanted]
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in kept_nodes]
    constants = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept_constants]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)


def _set_metadata(model: ModelProto, form: Form) -> None:
    metadata = {**metadata_of(model), TARGET_METADATA_KEY: form.target}
    if form.batch is not None:
        metadata[BATCH_METADATA_KEY] = ",".join(map(str, form.batch))
    set_metadata(model, metadata)


def set_metadata(model: ModelProto, metadata: Mapping[str, str]) -> None:
    """Let the model carry exactly these entries."""
    del model.metadata_props[:]
    helper.set_model_props(model, dict(metadata))
