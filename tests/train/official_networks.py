"""The official networks as literal functions of a state dict with the official names: what ours are compared with.

Everything is written out from the layouts in `official_layouts/` and the official definitions, in float64, and
shares nothing with train/models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]
LAYOUTS = Path(__file__).parent / "official_layouts"


def read_layout(name: str) -> dict[str, Any]:
    """architecture, task, heads {official name: channels}, num_parameters, tensors {official name: shape}."""
    layout: dict[str, Any] = json.loads((LAYOUTS / f"{name}.json").read_text())
    return layout


def random_state(tensors: dict[str, list[int]], seed: int = 0) -> State:
    """Values with which signals neither vanish nor explode, and every tensor matters."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in tensors.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            state[name] = 0.7 + 0.6 * torch.rand(shape, generator=generator)
        elif len(shape) == 1:
            state[name] = 0.1 * torch.randn(shape, generator=generator)
        elif "conv_offset_mask" in name:
            state[name] = torch.randn(shape, generator=generator) * (0.3 / (shape[1] * 9)) ** 0.5
        else:
            fan_in = shape[1] * shape[2] * shape[3]
            state[name] = torch.randn(shape, generator=generator) * (1.5 / fan_in) ** 0.5
    return state


def official_forward(architecture: str, state: State, heads: dict[str, int], x: Tensor) -> dict[str, Tensor]:
    """Raw outputs of the last stack by official head name, in float64."""
    network = _Network({name: value.double() for name, value in state.items() if value.is_floating_point()})
    if architecture == "hourglass":
        return network.hourglass(x.double(), heads)
    if architecture.startswith("dla"):
        features = network.dla(x.double(), deformable=architecture == "dla_34")
    else:
        features = network.resnet(x.double(), deformable=architecture.startswith("resdcn"))
    return {head: network.conv(network.conv(features, f"{head}.0").relu(), f"{head}.2") for head in heads}


class _Network:
    def __init__(self, state: State) -> None:
        self.state = state

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.state)

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, padding=weight.shape[2] // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, var = self.state[f"{name}.running_mean"], self.state[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def dcn(self, x: Tensor, name: str) -> Tensor:
        """By PyTorch's bilinear sampling, tap by tap."""
        height, width = x.shape[2:]
        first, second, third = self.conv(x, f"{name}.conv_offset_mask").chunk(3, dim=1)
        offsets, mask = torch.cat([first, second], dim=1), third.sigmoid()
        out = self.state[f"{name}.bias"].view(1, -1, 1, 1)
        for tap in range(9):
            y = torch.arange(height).view(-1, 1) + tap // 3 - 1 + offsets[:, 2 * tap]
            z = torch.arange(width) + tap % 3 - 1 + offsets[:, 2 * tap + 1]
            grid = torch.stack([2 * z / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
            read = F.grid_sample(x, grid, align_corners=True) * mask[:, tap : tap + 1]
            out = out + F.conv2d(read, self.state[f"{name}.weight"][:, :, tap // 3, tap % 3, None, None])
        return out

    def block(self, x: Tensor, name: str, stride: int, shortcut: Tensor) -> Tensor:
        if f"{name}.conv3.weight" in self.state:
            out = self.norm(self.conv(x, f"{name}.conv1"), f"{name}.bn1").relu()
            out = self.norm(self.conv(out, f"{name}.conv2", stride), f"{name}.bn2").relu()
            return (self.norm(self.conv(out, f"{name}.conv3"), f"{name}.bn3") + shortcut).relu()
        out = self.norm(self.conv(x, f"{name}.conv1", stride), f"{name}.bn1").relu()
        return (self.norm(self.conv(out, f"{name}.conv2"), f"{name}.bn2") + shortcut).relu()

    def resnet(self, x: Tensor, *, deformable: bool) -> Tensor:
        x = F.max_pool2d(self.norm(self.conv(x, "conv1", 2), "bn1").relu(), 3, 2, 1)
        for stage in range(1, 5):
            index = 0
            while self.has(name := f"layer{stage}.{index}."):
                stride = 2 if stage > 1 and index == 0 else 1
                shortcut = x
                if self.has(f"{name}downsample"):
                    shortcut = self.norm(self.conv(x, f"{name}downsample.0", stride), f"{name}downsample.1")
                x = self.block(x, name[:-1], stride, shortcut)
                index += 1
        index = 0
        for _ in range(3):
            if deformable:
                x = self.norm(self.dcn(x, f"deconv_layers.{index}"), f"deconv_layers.{index + 1}").relu()
                index += 3
            x = F.conv_transpose2d(x, self.state[f"deconv_layers.{index}.weight"], stride=2, padding=1)
            x = self.norm(x, f"deconv_layers.{index + 1}").relu()
            index += 3
        return x

    def tree(self, x: Tensor, name: str, levels: int, stride: int, level_root: bool, children: list[Tensor]) -> Tensor:
        bottom = F.max_pool2d(x, stride) if stride > 1 else x
        if level_root:
            children = [*children, bottom]
        if levels == 2:
            first = self.tree(x, f"{name}.tree1", 1, stride, False, [])
            return self.tree(first, f"{name}.tree2", 1, 1, False, [*children, first])
        shortcut = bottom
        if self.has(f"{name}.project"):
            shortcut = self.norm(self.conv(bottom, f"{name}.project.0"), f"{name}.project.1")
        first = self.block(x, f"{name}.tree1", stride, shortcut)
        second = self.block(first, f"{name}.tree2", 1, first)
        return self.norm(
            self.conv(torch.cat([second, first, *children], 1), f"{name}.root.conv"), f"{name}.root.bn"
        ).relu()

    def dla(self, x: Tensor, *, deformable: bool) -> Tensor:
        x = self.norm(self.conv(x, "base.base_layer.0"), "base.base_layer.1").relu()
        x = self.norm(self.conv(x, "base.level0.0"), "base.level0.1").relu()
        x = self.norm(self.conv(x, "base.level1.0", 2), "base.level1.1").relu()
        maps = []
        for level, levels in ((2, 1), (3, 2), (4, 2), (5, 1)):
            x = self.tree(x, f"base.level{level}", levels, 2, level > 2, [])
            maps.append(x)
        collected = [maps[3]]
        for step in range(3):
            start = 2 - step
            self.ida(maps, f"dla_up.ida_{step}", start, 4, deformable)
            collected.insert(0, maps[3])
        if not deformable:
            return collected[0]
        last = collected[:3]
        self.ida(last, "ida_up", 0, 3, deformable)
        return last[2]

    def ida(self, maps: list[Tensor], name: str, start: int, end: int, deformable: bool) -> None:
        for index in range(start + 1, end):
            number = index - start
            fine = self._project(maps[index], f"{name}.proj_{number}", deformable)
            kernel = self.state[f"{name}.up_{number}.weight"]
            factor = kernel.shape[2] // 2
            fine = F.conv_transpose2d(fine, kernel, stride=factor, padding=factor // 2, groups=kernel.shape[0])
            both = fine + maps[index - 1] if deformable else torch.cat([maps[index - 1], fine], 1)
            maps[index] = self._project(both, f"{name}.node_{number}", deformable)

    def _project(self, x: Tensor, name: str, deformable: bool) -> Tensor:
        if deformable:
            return self.norm(self.dcn(x, f"{name}.conv"), f"{name}.actf.0").relu()
        return self.norm(self.conv(x, f"{name}.0"), f"{name}.1").relu()

    def residual(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        shortcut = x
        if self.has(f"{name}.skip"):
            shortcut = self.norm(self.conv(x, f"{name}.skip.0", stride), f"{name}.skip.1")
        return self.block(x, name, stride, shortcut)

    def residuals(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        index = 0
        while self.has(f"{name}.{index}."):
            x = self.residual(x, f"{name}.{index}", stride if index == 0 else 1)
            index += 1
        return x

    def keypoint_module(self, x: Tensor, name: str, depth: int) -> Tensor:
        low = self.residuals(x, f"{name}.low1", 2)
        low = self.keypoint_module(low, f"{name}.low2", depth - 1) if depth > 1 else self.residuals(low, f"{name}.low2")
        low = self.residuals(low, f"{name}.low3")
        return self.residuals(x, f"{name}.up1") + F.interpolate(low, scale_factor=2.0)

    def hourglass(self, x: Tensor, heads: dict[str, int]) -> dict[str, Tensor]:
        x = self.residual(self.norm(self.conv(x, "pre.0.conv", 2), "pre.0.bn").relu(), "pre.1", 2)
        first = self.keypoint_module(x, "kps.0", 5)
        first = self.norm(self.conv(first, "cnvs.0.conv"), "cnvs.0.bn").relu()
        seen = self.norm(self.conv(x, "inters_.0.0"), "inters_.0.1")
        x = (seen + self.norm(self.conv(first, "cnvs_.0.0"), "cnvs_.0.1")).relu()
        x = self.keypoint_module(self.residual(x, "inters.0"), "kps.1", 5)
        x = self.norm(self.conv(x, "cnvs.1.conv"), "cnvs.1.bn").relu()
        return {head: self.conv(self.conv(x, f"{head}.1.0.conv").relu(), f"{head}.1.1") for head in heads}
