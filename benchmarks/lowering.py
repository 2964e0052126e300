"""Our ONNX file for ONNX Runtime in turns with a plain export of the same network, and with the forms for TensorRT.

The plain export is PyTorch's own, with one DeformConv operator a layer, the fastest form there is on a CPU, and
nothing rewritten: it takes a float image that somebody has normalised. Weights and offsets are random: only time is
compared.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn

from calibration.deform_conv import DeformConvForm, lower_deform_convs
from calibration.quantisation import shapes_of
from export.conversion import Form, convert
from export.tracing import trace
from sdk.backends.onnxruntime import INPUT_NAME, open_session
from sdk.scenes import random_scene
from sdk.timing import medians_ms
from train.models import build_model
from train.models.deform_conv import TAPS, DeformConv2d

from .decoding import SPEC, shown

ARCHITECTURES = ("resdcn_18", "dla_34")
PLAIN, OURS = "plain export", "ours"
BAR = 1.15  # ours / plain export
_FORMS: tuple[DeformConvForm, ...] = ("project_then_gather", "grid_sample")


def run() -> None:
    for architecture in ARCHITECTURES:
        with TemporaryDirectory() as folder:
            files = written(network(architecture), Path(folder))
            for threads in (1, 2):
                times = measured(files, threads)
                print(f"{architecture}, {SPEC.input.width}x{SPEC.input.height}, {threads} threads: {shown(times)}")
                ratios = {name: ms / times[PLAIN] for name, ms in times.items() if name != PLAIN}
                print(f"  of the {PLAIN}: " + "  ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()))
                print(f"  {OURS} is to be at most {BAR}: {'yes' if ratios[OURS] <= BAR else 'NO'}", flush=True)


def network(architecture: str) -> nn.Module:
    """A fresh network, but for blocks that do something and offsets of about a cell."""
    torch.manual_seed(0)
    model = build_model(architecture, SPEC.heads).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)  # a fresh block adds nothing to its shortcut, and has nothing to calibrate
        elif isinstance(layer, DeformConv2d):
            offsets = layer.conv_offset_mask
            nn.init.normal_(offsets.weight, std=(TAPS * offsets.in_channels) ** -0.5)
    return model


def written(model: nn.Module, folder: Path) -> dict[str, Path]:
    """Files of one network, by name."""
    canonical = trace(model, SPEC)
    models = {PLAIN: plain_export(model), OURS: convert(canonical, SPEC, Form("onnxruntime"))[0]}
    for form in _FORMS:
        models[form] = ModelProto.FromString(canonical.SerializeToString())
        lower_deform_convs(models[form].graph, shapes_of(canonical), form)
    files = {name: folder / f"{name}.onnx" for name in models}
    for name, file in files.items():
        file.write_bytes(models[name].SerializeToString())
    return files


def measured(files: dict[str, Path], threads: int) -> dict[str, float]:
    """Median milliseconds of a frame."""
    frame = random_scene(np.random.default_rng(0), SPEC.input.wh)[0][None]  # (1, h, w, 3)
    image = (frame.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    calls = {}
    for name, path in files.items():
        feeds: dict[str, Any] = {"image": image} if name == PLAIN else {INPUT_NAME: frame}
        calls[name] = partial(open_session(path, threads=threads).run, None, feeds)
    return medians_ms(calls, rounds=15, warm_up=2)


class PlainNetwork(nn.Module):
    """Raw heads for a normalised float image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(image)[head.name] for head in SPEC.heads)


class PlainDeformConv(nn.Module):
    """The operator, as ONNX defines it."""

    def __init__(self, layer: DeformConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        moves = self.layer.conv_offset_mask(x)
        result: Tensor = torch.onnx.ops.symbolic(
            "DeformConv",
            (x, self.layer.weight, moves[:, : 2 * TAPS], self.layer.bias, moves[:, 2 * TAPS :].sigmoid()),
            attrs={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
            dtype=x.dtype,
            shape=(x.shape[0], len(self.layer.bias), *x.shape[2:]),
        )
        return result


def plain_export(model: nn.Module) -> ModelProto:
    """What PyTorch's exporter makes of a network; the layers of `model` are replaced for good."""
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, DeformConv2d):
                setattr(parent, name, PlainDeformConv(layer))
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which nothing here needs
    image = torch.zeros(1, 3, SPEC.input.height, SPEC.input.width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            PlainNetwork(model).eval(),
            (image,),
            input_names=["image"],
            opset_version=19,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    plain: ModelProto = program.model_proto
    plain.ir_version = min(plain.ir_version, 10)
    return plain
