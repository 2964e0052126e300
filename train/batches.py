"""Batches by step number: the same seed and step give the same batch, on any number of workers, after any resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sdk.errors import ConfigError
from sdk.scenes import random_scene
from sdk.spec import COCO_KEYPOINT_NAMES

from .augment import Augmentation
from .config import TrainConfig
from .samples import Sample, SampleSource, empty_boxes
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
    box_xyxy: Tensor
    weight: Tensor
    keypoints: Tensor
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
    """Images (B, h, w, 3) uint8 BGR of network size, and their targets."""

    images: Tensor
    targets: TensorTargets


class TrainingBatches(Dataset[Batch]):
    """The batches of a run, by step.

    Args:
        source: annotated photographs.
        config: of the run.
        total_steps: of the run; sizes and mosaic depend on the progress.
        flip_pairs: keypoints that change places when mirrored.
        stride: of the network.

    Raises:
        ConfigError: drawn scenes of people are asked for, but people are no class of the source.
    """

    def __init__(
        self,
        source: SampleSource,
        config: TrainConfig,
        *,
        total_steps: int,
        flip_pairs: tuple[tuple[int, int], ...],
        stride: int,
    ) -> None:
        if config.drawn_scenes and "person" not in source.class_names:
            raise ConfigError(
                f"drawn_scenes={config.drawn_scenes} draws people, but the classes are "
                f"{', '.join(source.class_names)}; set drawn_scenes=0, or add the class person"
            )
        self._source = source
        self._config = config
        self._total_steps = total_steps
        self._flip_pairs = flip_pairs
        self._stride = stride

    def __len__(self) -> int:
        return self._total_steps

    def __getitem__(self, step: int) -> Batch:
        config, progress = self._config, step / self._total_steps
        augmentation = Augmentation(
            flip=config.flip,
            scale_range=config.scale_range,
            colour=config.colour,
            mosaic=config.mosaic if progress < config.mosaic_until else 0.0,
            flip_pairs=self._flip_pairs,
        )
        input_wh = input_size(config, progress)
        images, targets = [], []
        for slot in range(config.batch):
            position = step * config.batch + slot
            rng = np.random.default_rng((config.seed, position))
            sample = augmentation.apply(self._drawer(position, rng), input_wh, rng)
            images.append(sample.image)
            targets.append(
                encode(
                    sample,
                    num_classes=len(self._source.class_names),
                    stride=self._stride,
                    gaussian=config.gaussian,
                    positive_cells=config.positive_cells,
                )
            )
        return Batch(torch.from_numpy(np.stack(images)), TensorTargets.from_arrays(collate(targets)))

    def _drawer(self, position: int, rng: np.random.Generator) -> _Drawer:
        return _Drawer(self._source, position, rng, self._config)


class _Drawer:
    """Gives the sample of a position first, then random others (for mosaic); now and then a drawn scene."""

    def __init__(self, source: SampleSource, position: int, rng: np.random.Generator, config: TrainConfig) -> None:
        self._source, self._rng, self._config = source, rng, config
        epoch, place = divmod(position, len(source))
        self._next: int | None = int(np.random.default_rng((config.seed, 1, epoch)).permutation(len(source))[place])

    def __call__(self) -> Sample:
        if self._rng.random() < self._config.drawn_scenes:
            width = int(self._rng.integers(240, 480))
            height = int(width * self._rng.uniform(0.6, 1.2))
            person = self._source.class_names.index("person")
            return drawn_sample(self._rng, (width, height), class_id=person, num_keypoints=self._source.num_keypoints)
        index = self._next if self._next is not None else int(self._rng.integers(len(self._source)))
        self._next = None
        return self._source.sample(index)


class DrawnData:
    """An endless data set of drawn people, counted as `length` pictures; every index is another picture."""

    class_names: tuple[str, ...] = ("person",)
    num_keypoints = len(COCO_KEYPOINT_NAMES)

    def __init__(self, length: int, wh: tuple[int, int], seed: int) -> None:
        self._length, self._wh, self._seed = length, wh, seed

    def __len__(self) -> int:
        return self._length

    def sample(self, index: int) -> Sample:
        return drawn_sample(np.random.default_rng((self._seed, 2, index)), self._wh)


def drawn_sample(
    rng: np.random.Generator, wh: tuple[int, int], *, class_id: int = 0, num_keypoints: int = len(COCO_KEYPOINT_NAMES)
) -> Sample:
    """A drawn picture of people of class `class_id`; `num_keypoints` is COCO's 17, or 0."""
    image, boxes, keypoints = random_scene(rng, wh)
    return Sample(image, boxes, np.full(len(boxes), class_id), keypoints[:, :num_keypoints], empty_boxes())


def input_size(config: TrainConfig, progress: float) -> tuple[int, int]:
    """(w, h) of the network input at that progress (0 to 1)."""
    for until, width, height in config.small_size_until:
        if progress < until:
            return width, height
    return config.size


def batch_loader(batches: TrainingBatches, steps: Sequence[int], workers: int) -> DataLoader[Batch]:
    """The batches of the given steps, in order, prepared ahead by worker processes."""
    if workers:
        # A forked worker has none of OpenCV's threads, and would wait for them for ever; and one worker is one core.
        cv2.setNumThreads(1)
    return DataLoader(
        batches,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
