"""How long a training step waits for its batch: the smallest network, whose steps are the shortest.

Photographs of COCO `train` with the augmentation of the shipped model, 16 a batch, prepared by one worker process
while the step before is computed. Beside it the same without a worker, where a step waits for all of the preparation.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from train.batches import batch_loader
from train.config import TrainConfig, person_pose
from train.data import TrainData, open_data
from train.loop import Trainer

STEPS, WARM_UP, ROUNDS = 100, 15, 3


def run() -> None:
    folder = Path(os.environ.get("CENTEREDGE_DATA", "../shared/data")) / "coco"
    if not (folder / "annotations").is_dir():
        print(f"skipped: there are no photographs in {folder}; set CENTEREDGE_DATA to the folder that holds coco/")
        return
    config = replace(person_pose(), architecture="edge_n", small_size_until=(), batch=16, max_steps=10_000)
    data = open_data(str(folder), config)
    print(f"{config.architecture}, batch {config.batch}, {torch.get_num_threads()} threads of {os.cpu_count()} cores")
    with TemporaryDirectory() as out:
        for size in ((192, 192), (320, 320)):
            for workers in (1, 0):
                figures = [
                    measured(replace(config, size=size, workers=workers), data, Path(out)) for _ in range(ROUNDS)
                ]
                step_ms, wait_ms, share = (median(column) for column in zip(*figures, strict=True))
                print(
                    f"{size[0]}x{size[1]}, workers={workers}: step {step_ms:.1f} ms, of these waiting {wait_ms:.2f} ms "
                    f"(medians), waiting of all time {share:.1%}"
                )


def measured(config: TrainConfig, data: TrainData, out: Path) -> tuple[float, float, float]:
    """Median milliseconds of a step with its waiting, of the waiting alone, and the share of waiting in all time."""
    trainer = Trainer(config, data, out)
    loader = iter(batch_loader(trainer.batches, range(WARM_UP + STEPS), config.workers))
    steps_s, waits_s = [], []
    for _ in range(WARM_UP + STEPS):
        asked = time.perf_counter()
        batch = next(loader)
        waits_s.append(time.perf_counter() - asked)
        trainer.train_step([batch])
        steps_s.append(time.perf_counter() - asked)
    steps_s, waits_s = steps_s[WARM_UP:], waits_s[WARM_UP:]
    return 1e3 * median(steps_s), 1e3 * median(waits_s), sum(waits_s) / sum(steps_s)
