"""Batches by number: the same seed and step give the same pictures, on any number of workers, after any resume.

One optimiser step has `config.batch` pictures, in slots 0 to batch - 1. Several processes, and several passes in
each (`config.accumulate`), share these slots without changing what is in them::

    batches = TrainingBatches(source, config, total_steps=1000, stride=4, rank=rank, world=world)
    parts = [batches[step * config.accumulate + number] for number in range(config.accumulate)]

`train.losses` says how the parts' losses add up to that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sdk.errors import ConfigError

from .augment import Augmentation
from .config import TrainConfig, depth_focal_px
from .drawn import drawn_sample
from .samples import Sample, SampleSource
from .targets import Targets, collate, encode


@dataclass(frozen=True)
class TensorTargets:
    """`train.targets.Targets` of a batch as tensors; the same fields and shapes."""

    heatmap: Tensor
    keypoint_heatmap: Tensor
    counted: Tensor
    joints_counted: Tensor
    picture: Tensor
    cell_yx: Tensor
    class_id: Tensor
    box_xyxy: Tensor
    weight: Tensor
    keypoints: Tensor
    depth: Tensor
    dimensions_hwl_m: Tensor
    alpha_rad: Tensor
    has_3d: Tensor
    joint_picture: Tensor
    joint_cell_yx: Tensor
    joint_offset: Tensor

    @classmethod
    def from_arrays(cls, targets: Targets) -> TensorTargets:
        return cls(**{field.name: torch.from_numpy(getattr(targets, field.name)) for field in fields(cls)})

    def to(self, device: torch.device) -> TensorTargets:
        return TensorTargets(
            **{field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)}
        )


@dataclass(frozen=True)
class Batch:
    """Some pictures of one step, and their targets.

    Attributes:
        images: (B, h, w, 3) uint8 BGR of network size.
        targets: of these pictures.
        step: of the optimiser.
        positions: (B) of the pictures in the run; `TrainingBatches.indices` says which samples they are.
    """

    images: Tensor
    targets: TensorTargets
    step: int
    positions: range


class TrainingBatches(Dataset[Batch]):
    """The batches of one process of a run. Item `step * config.accumulate + pass` is what it computes in that pass.

    The parts of all processes and passes together are the batch of one process with one pass, slot by slot;
    where the batch cannot be divided evenly, some parts have a picture more.

    Args:
        source: annotated photographs.
        config: of the run; `batch` counts the pictures of all processes and passes.
        total_steps: of the run; sizes and mosaic depend on the progress.
        stride: of the network.
        rank: of this process.
        world: number of processes.

    Raises:
        ConfigError: drawn scenes of people are asked for, but people are no class of the source; or there are
            fewer pictures in a batch than parts.
    """

    def __init__(
        self,
        source: SampleSource,
        config: TrainConfig,
        *,
        total_steps: int,
        stride: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if config.drawn_scenes and "person" not in source.class_names:
            raise ConfigError(
                f"drawn_scenes={config.drawn_scenes} draws people, but the classes are "
                f"{', '.join(source.class_names)}; set drawn_scenes=0, or add the class person"
            )
        if config.batch < world * config.accumulate:
            raise ConfigError(
                f"batch={config.batch} cannot be shared by {world} processes with accumulate={config.accumulate}; "
                f"set batch to {world * config.accumulate} or more"
            )
        self._source = source
        self._config = config
        self._total_steps = total_steps
        self._stride = stride
        self._rank, self._world = rank, world

    def __len__(self) -> int:
        return self._total_steps * self._config.accumulate

    def __getitem__(self, item: int) -> Batch:
        config = self._config
        step, number = divmod(item, config.accumulate)
        part, parts = self._rank * config.accumulate + number, self._world * config.accumulate
        start = step * config.batch
        positions = range(start + part * config.batch // parts, start + (part + 1) * config.batch // parts)
        progress = step / self._total_steps
        augmentation = self._augmentation(progress)
        images, targets = [], []
        for position in positions:
            rng = np.random.default_rng((config.seed, position))
            sample = augmentation.apply(self._drawer(position, rng), input_size(config, progress), rng)
            images.append(sample.image)
            targets.append(self._encoded(sample))
        arrays = TensorTargets.from_arrays(collate(targets))
        return Batch(torch.from_numpy(np.stack(images)), arrays, step, positions)

    def indices(self, batch: Batch) -> list[int]:
        """The samples of the source that a batch's pictures were drawn for, to name them in a message."""
        return [_index_at(self._source, position, self._config.seed) for position in batch.positions]

    def _augmentation(self, progress: float) -> Augmentation:
        config = self._config
        return Augmentation(
            flip=config.flip,
            crop=config.crop,
            scale_range=config.scale_range,
            colour=config.colour,
            mosaic=config.mosaic if progress < config.mosaic_until else 0.0,
            flip_pairs=self._source.keypoints.flip_pairs,
        )

    def _encoded(self, sample: Sample) -> Targets:
        return encode(
            sample,
            num_classes=len(self._source.class_names),
            stride=self._stride,
            gaussian=self._config.gaussian,
            positive_cells=self._config.positive_cells,
            class_sizes=self._config.class_sizes,
            focal_px=depth_focal_px(self._config),
        )

    def _drawer(self, position: int, rng: np.random.Generator) -> _Drawer:
        return _Drawer(self._source, position, rng, self._config)


class _Drawer:
    """Gives the sample of a position first, then random others (for mosaic); now and then a drawn scene."""

    def __init__(self, source: SampleSource, position: int, rng: np.random.Generator, config: TrainConfig) -> None:
        self._source, self._rng, self._config = source, rng, config
        self._next: int | None = _index_at(source, position, config.seed)

    def __call__(self) -> Sample:
        if self._rng.random() < self._config.drawn_scenes:
            width = int(self._rng.integers(240, 480))
            height = int(width * self._rng.uniform(0.6, 1.2))
            person = self._source.class_names.index("person")
            return drawn_sample(self._rng, (width, height), class_id=person, num_keypoints=self._source.num_keypoints)
        index = self._next if self._next is not None else int(self._rng.integers(len(self._source)))
        self._next = None
        return self._source.sample(index)


def _index_at(source: SampleSource, position: int, seed: int) -> int:
    """Which sample comes at that position: every epoch is a permutation of all."""
    epoch, place = divmod(position, len(source))
    return int(_permutation(len(source), seed, epoch)[place])


@lru_cache(maxsize=2)  # a step may end an epoch and begin the next
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, 1, epoch)).permutation(length)


def input_size(config: TrainConfig, progress: float) -> tuple[int, int]:
    """(w, h) of the network input at that progress (0 to 1)."""
    for until, width, height in config.small_size_until:
        if progress < until:
            return width, height
    return config.size


def batch_loader(batches: TrainingBatches, items: Sequence[int], workers: int) -> DataLoader[Batch]:
    """The given items of the batches, in order, prepared ahead by worker processes."""
    if workers:
        # A forked worker has none of OpenCV's threads, and would wait for them for ever; and one worker is one core.
        cv2.setNumThreads(1)
    return DataLoader(
        batches,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
