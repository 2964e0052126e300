from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sdk.errors import ConfigError
from tests.train.test_targets import make_sample
from train.batches import Batch, TrainingBatches, batch_loader, input_size
from train.config import TrainConfig
from train.drawn import DrawnData, drawn_sample
from train.samples import NO_KEYPOINTS, Sample

CONFIG = replace(
    TrainConfig(), task="pose", classes=("person",), size=(64, 64), batch=3, max_steps=10, mosaic=0.3, drawn_scenes=0.2
)
SOURCE = DrawnData(7, (80, 60), seed=5)


def _batches(config: TrainConfig = CONFIG, *, total_steps: int = 10) -> TrainingBatches:
    return TrainingBatches(SOURCE, config, total_steps=total_steps, stride=4)


def _assert_equal(a: Batch, b: Batch) -> None:
    assert torch.equal(a.images, b.images)
    for field in fields(a.targets):
        assert torch.equal(getattr(a.targets, field.name), getattr(b.targets, field.name)), field.name


def test_a_batch_has_the_documented_shapes() -> None:
    batch = _batches()[0]
    assert batch.images.shape == (3, 64, 64, 3) and batch.images.dtype == torch.uint8
    assert batch.targets.heatmap.shape == (3, 1, 16, 16) and batch.targets.heatmap.dtype == torch.float32
    assert batch.targets.keypoint_heatmap.shape == (3, 17, 16, 16)
    assert len(batch.targets.picture) == len(batch.targets.cell_yx) == len(batch.targets.weight)
    assert batch.targets.picture.max() < 3
    assert len(_batches()) == 10


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_seed_and_step_decide_the_batch(workers: int) -> None:
    expected = [_batches()[step] for step in range(5)]
    loaded = list(batch_loader(_batches(), range(5), workers))
    assert len(loaded) == 5
    for a, b in zip(expected, loaded, strict=True):
        _assert_equal(a, b)


def test_a_resume_goes_on_where_it_stopped() -> None:
    whole = list(batch_loader(_batches(), range(6), 0))
    resumed = list(batch_loader(_batches(), range(4, 6), 0))
    for a, b in zip(whole[4:], resumed, strict=True):
        _assert_equal(a, b)


def test_another_seed_or_step_gives_another_batch() -> None:
    first = _batches()[2].images
    assert not torch.equal(first, _batches()[3].images)
    assert not torch.equal(first, _batches(replace(CONFIG, seed=1))[2].images)


class NumberedSource:
    """Pictures whose shade says which they are."""

    class_names = ("cat", "person")
    keypoints = NO_KEYPOINTS
    num_keypoints = 0

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def sample(self, index: int) -> Sample:
        sample = make_sample([[8, 8, 40, 40]])
        return replace(sample, image=np.full((64, 64, 3), 10 + index, np.uint8))


PLAIN = replace(TrainConfig(), size=(64, 64), batch=4, flip=0, scale_range=(1, 1), colour=0)


def test_every_picture_comes_once_an_epoch_in_a_new_order() -> None:
    batches = TrainingBatches(NumberedSource(10), PLAIN, total_steps=10, stride=4)
    shown = [int(image[32, 32, 0]) - 10 for step in range(5) for image in batches[step].images]
    assert sorted(shown[:10]) == sorted(shown[10:]) == list(range(10))
    assert shown[:10] != shown[10:]


@given(batch=st.integers(1, 9), world=st.integers(1, 4), accumulate=st.integers(1, 3), step=st.integers(0, 4))
def test_processes_and_passes_share_the_pictures_of_a_step(batch: int, world: int, accumulate: int, step: int) -> None:
    assume(world * accumulate <= batch)
    config = replace(PLAIN, size=(32, 32), batch=batch, flip=0.5, colour=0.4, scale_range=(0.5, 1.5))
    source = NumberedSource(10)
    whole = TrainingBatches(source, config, total_steps=5, stride=4)[step]
    shared = [
        TrainingBatches(source, replace(config, accumulate=accumulate), total_steps=5, stride=4, rank=rank, world=world)
        for rank in range(world)
    ]
    parts = [ranked[step * accumulate + number] for ranked in shared for number in range(accumulate)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.targets.heatmap for part in parts]), whole.targets.heatmap)
    assert torch.equal(torch.cat([part.targets.box_xyxy for part in parts]), whole.targets.box_xyxy)
    assert [position for part in parts for position in part.positions] == list(whole.positions)
    sizes = [len(part.images) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert {part.step for part in parts} == {step} and {len(ranked) for ranked in shared} == {5 * accumulate}


def test_a_batch_says_which_samples_it_shows() -> None:
    batches = TrainingBatches(NumberedSource(10), PLAIN, total_steps=10, stride=4)
    for step in (0, 3):
        shown = [int(image[32, 32, 0]) - 10 for image in batches[step].images]
        assert batches.indices(batches[step]) == shown


def test_more_parts_than_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch=4 cannot be shared by 3 processes with accumulate=2; set batch to 6"):
        TrainingBatches(NumberedSource(4), replace(PLAIN, accumulate=2), total_steps=2, stride=4, world=3)


def test_mosaic_ends_with_the_progress_asked_for() -> None:
    config = replace(PLAIN, mosaic=1.0, mosaic_until=0.5)
    batches = TrainingBatches(NumberedSource(10), config, total_steps=10, stride=4)
    shades = [len(np.unique(batches[step].images[0].numpy())) for step in range(10)]
    assert all(count > 1 for count in shades[:5]) and shades[5:] == [1] * 5


def test_small_pictures_come_first() -> None:
    config = replace(PLAIN, small_size_until=((0.2, 32, 32), (0.5, 32, 64)))
    batches = TrainingBatches(NumberedSource(4), config, total_steps=10, stride=4)
    sizes = [tuple(batches[step].images.shape[1:3]) for step in (0, 1, 2, 4, 5, 9)]
    assert sizes == [(32, 32), (32, 32), (64, 32), (64, 32), (64, 64), (64, 64)]
    assert input_size(config, 1.0) == (64, 64)


def test_drawn_people_join_photographs_as_the_class_person() -> None:
    config = replace(PLAIN, drawn_scenes=1.0)
    batch = TrainingBatches(NumberedSource(4), config, total_steps=2, stride=4)[0]
    assert batch.targets.keypoints.shape[1] == 0  # of a task without keypoints
    assert batch.targets.heatmap[:, 1].max() == 1 and batch.targets.heatmap[:, 0].max() == 0
    mixed = TrainingBatches(NumberedSource(4), replace(config, drawn_scenes=0.5, mosaic=0.5), total_steps=4, stride=4)
    assert [len(mixed[step].images) for step in range(4)] == [4] * 4


def test_drawn_people_need_the_class_person() -> None:
    source = NumberedSource(4)
    source.class_names = ("cat", "dog")
    with pytest.raises(ConfigError, match=r"drawn_scenes=0.5 draws people, but the classes are cat, dog; set drawn_"):
        TrainingBatches(source, replace(PLAIN, drawn_scenes=0.5), total_steps=2, stride=4)


def test_drawn_data_is_a_function_of_seed_and_index() -> None:
    again = DrawnData(7, (80, 60), seed=5)
    np.testing.assert_array_equal(SOURCE.sample(3).image, again.sample(3).image)
    assert not np.array_equal(SOURCE.sample(3).image, SOURCE.sample(4).image)
    assert not np.array_equal(SOURCE.sample(3).image, DrawnData(7, (80, 60), seed=6).sample(3).image)
    sample = drawn_sample(np.random.default_rng(0), (80, 60), class_id=2, num_keypoints=0)
    assert set(sample.class_ids) == {2} and sample.keypoints.shape[1:] == (0, 3)


def test_workers_do_not_hang_where_opencv_had_threads_before() -> None:
    code = """
import cv2, numpy as np
from train.batches import TrainingBatches, batch_loader
from train.drawn import DrawnData
from train.config import override, preset
cv2.setNumThreads(2)
cv2.GaussianBlur(np.zeros((1000, 1000, 3), np.uint8), (0, 0), 3)
config = override(preset("synthetic-pose"), {"max_steps": "2", "size": "64x64", "batch": "2"})
batches = TrainingBatches(DrawnData(8, (64, 64), 0), config, total_steps=2, stride=4)
print(len(list(batch_loader(batches, range(2), 1))))
"""
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=root)
    assert result.stdout.strip() == "2", result.stderr
