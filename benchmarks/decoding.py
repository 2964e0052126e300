"""Host decoding of an 80-class 128x128 map, in turns with a straightforward PyTorch port of the paper's.

The floor is one pass over the heatmap's 5.2 MB.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdk import decoding
from sdk.decoding import assemble, find_peaks
from sdk.geometry import input_to_feature, letterbox
from sdk.spec import HeadSpec, InputSpec, ModelSpec
from sdk.timing import medians_ms

SPEC = ModelSpec(
    name="coco-80",
    tasks=("detection",),
    input=InputSpec(512, 512),
    stride=4,
    heads=(HeadSpec("heatmap", 80, "sigmoid"), HeadSpec("offset", 2, "none"), HeadSpec("size", 2, "none")),
    class_names=tuple(f"class {i}" for i in range(80)),
)


def run() -> None:
    box = letterbox((1920, 1080), SPEC.input.wh)
    to_image = box.image_to_input.then(input_to_feature(SPEC.stride)).inverse()

    def ours(heads: dict[str, np.ndarray], threshold: float) -> object:
        candidates = find_peaks(heads, SPEC, score_threshold=threshold)
        return assemble(candidates, SPEC, to_image, image_wh=(1920, 1080))

    for cells in (50, 2000):
        heads = heads_with_survivors(cells)
        tensors = {name: torch.from_numpy(array) for name, array in heads.items()}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times = medians_ms(
                {
                    "ours": lambda heads=heads: ours(heads, 0.3),
                    "paper in PyTorch": lambda tensors=tensors: paper_decode(tensors),
                    "one pass": lambda heads=heads: heads["heatmap"].max(),
                }
            )
            print(f"{cells} cells above 0.3, {threads} threads: {shown(times)}")
            print(f"  ours / paper {times['ours'] / times['paper in PyTorch']:.4f}")
    heads = heads_with_survivors(50)
    noise = {**heads, "heatmap": np.random.default_rng(1).normal(-2.2, 0.3, heads["heatmap"].shape).astype(np.float32)}
    times = medians_ms(
        {"threshold 0": lambda: ours(heads, 0.0), "untrained model, threshold 0": lambda: ours(noise, 0.0)}
    )
    print(shown(times))
    crossover()


def crossover() -> None:
    """Where a maximum filter over all cells becomes cheaper than looking at the neighbours of those above."""
    logits = np.random.default_rng(0).normal(0, 1, (80, 128, 128)).astype(np.float32)
    for cells in (1000, 10_000, 20_000, 35_000):
        threshold = float(np.partition(logits.ravel(), -cells)[-cells])
        times = medians_ms(
            {
                "neighbours": lambda threshold=threshold: decoding._peak_indices(logits, threshold),
                "maximum filter": lambda threshold=threshold: decoding._dense_peak_indices(logits, threshold),
            }
        )
        print(f"{cells} cells above the threshold: {shown(times)}")


def heads_with_survivors(cells: int) -> dict[str, np.ndarray]:
    """Heads of which `cells` heatmap cells are above 0.3: objects of 5 cells in a plus, on smooth low ground."""
    rng = np.random.default_rng(0)
    heatmap = rng.normal(-6.0, 0.5, (1, 80, 128, 128)).astype(np.float32)
    for _ in range(cells // 5):
        c, y, x = rng.integers(80), rng.integers(1, 127), rng.integers(1, 127)
        heatmap[0, c, y, x] = rng.uniform(0.5, 3.0)
        for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            heatmap[0, c, y + dy, x + dx] = heatmap[0, c, y, x] - rng.uniform(0.1, 1.0)
    return {
        "heatmap": heatmap,
        "offset": rng.random((1, 2, 128, 128), dtype=np.float32),
        "size": rng.random((1, 2, 128, 128), dtype=np.float32) * 20,
    }


def paper_decode(heads: dict[str, Tensor], k: int = 100) -> Tensor:
    """Sec. 4 of the paper, step by step: 3x3 max-pooling, top K of each class, top K of all, gather; (B, K, 6)."""
    heat = torch.sigmoid(heads["heatmap"])
    batch, classes, _, width = heat.shape
    peaks = heat * (torch.nn.functional.max_pool2d(heat, 3, 1, 1) == heat)
    scores, cells = torch.topk(peaks.view(batch, classes, -1), k)  # (B, C, K)
    best, index = torch.topk(scores.view(batch, -1), k)  # (B, K)
    cell = cells.view(batch, -1).gather(1, index)
    values = {
        name: heads[name].flatten(2).gather(2, cell[:, None].expand(-1, 2, -1)).transpose(1, 2)
        for name in ("offset", "size")
    }
    centre = torch.stack([cell % width, cell // width], dim=2) + values["offset"]
    corners = torch.cat([centre - values["size"] / 2, centre + values["size"] / 2], dim=2)
    return torch.cat([corners, best[..., None], (index // k)[..., None]], dim=2)


def shown(times: dict[str, float]) -> str:
    return "  ".join(f"{name} {ms:.3f} ms" for name, ms in times.items())
