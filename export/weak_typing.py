"""What a weakly typed builder, TensorRT 8 or a calibrating 10, has to be told of the types that stand in the graph.

::

    obey_types(trt, network, config, precision="fp16")
"""

from __future__ import annotations

from typing import Any

from sdk.spec import ModelSpec


def obey_types(trt: Any, network: Any, config: Any, *, precision: str) -> None:
    """Make a weakly typed network compute in the types of the graph, as a strongly typed one does by itself.

    FP16 is allowed where the graph has it at all; then every layer that gives FP32 is held to it, for the peaks of a
    heatmap in FP16 run together. What reads a DequantizeLinear is left alone: that pair says INT8.
    """
    if precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
    layers = layers_of(network)
    if not any(tensor.dtype == trt.DataType.HALF for layer in layers for tensor in outputs_of(layer)):
        return
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    kinds = trt.LayerType
    fixed = {kinds.CAST, kinds.CONSTANT, kinds.SHAPE, kinds.QUANTIZE, kinds.DEQUANTIZE}
    dequantised = {tensor.name for layer in layers if layer.type == kinds.DEQUANTIZE for tensor in outputs_of(layer)}
    for layer in layers:
        if layer.type in fixed or dequantised & {tensor.name for tensor in inputs_of(layer)}:
            continue
        for index, tensor in enumerate(outputs_of(layer)):
            if tensor.dtype == trt.DataType.FLOAT:
                layer.precision = trt.DataType.FLOAT
                layer.set_output_type(index, trt.DataType.FLOAT)


def hold_heads(trt: Any, network: Any, spec: ModelSpec) -> None:
    """Keep the output convolutions, what finds the peaks, and where deformable convolutions sample in float.

    A cache of ours has no ranges for these, but TensorRT's own calibrator measures everything.
    """
    layers = layers_of(network)
    names = {str(head.name) for head in spec.heads}
    held = names | {f"{name}.dense" for name in names}
    for layer in reversed(layers):  # from a head back to the convolution that was split
        if layer.type == trt.LayerType.SLICE and held.intersection(tensor.name for tensor in outputs_of(layer)):
            held.update(tensor.name for tensor in inputs_of(layer))
    for layer in layers:
        given = {tensor.name for tensor in outputs_of(layer)}
        if held.isdisjoint(given | {tensor.name for tensor in inputs_of(layer)}):
            if not layer.name.endswith("conv_offset_mask.Conv"):
                continue
        else:
            held |= given
        _pin(trt, layer)


def _pin(trt: Any, layer: Any) -> None:
    """Hold a layer to the floating type that the graph gives it."""
    kinds, floats = trt.LayerType, (trt.DataType.FLOAT, trt.DataType.HALF)
    if layer.type in (kinds.CAST, kinds.CONSTANT, kinds.SHAPE):
        return
    for index, tensor in enumerate(outputs_of(layer)):
        if tensor.dtype in floats:
            layer.precision = tensor.dtype
            layer.set_output_type(index, tensor.dtype)


def layers_of(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def outputs_of(layer: Any) -> list[Any]:
    return [layer.get_output(index) for index in range(layer.num_outputs)]


def inputs_of(layer: Any) -> list[Any]:
    """Those that are there: an optional one may be left out."""
    tensors = [layer.get_input(index) for index in range(layer.num_inputs)]
    return [tensor for tensor in tensors if tensor is not None]
