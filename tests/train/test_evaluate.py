from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdk.camera import CameraIntrinsics
from sdk.decoding import assemble, find_peaks
from sdk.detector import Detector
from sdk.errors import BackendError
from sdk.geometry import input_to_feature
from sdk.results import Boxes3D, Detections, Keypoints
from sdk.spec import ModelSpec
from tests.helpers import Array
from tests.train.test_losses import perfect_heads
from tests.train.test_targets import make_sample, sample_in_space
from train.batches import TensorTargets
from train.config import TrainConfig
from train.drawn import DrawnStreets
from train.evaluate import TorchBackend, detect_samples, evaluate_detector, figures_of, kitti_objects
from train.models import build_model
from train.samples import Sample
from train.specs import spec_from_config
from train.targets import collate, encode

CONFIG = replace(TrainConfig(), task="3d", architecture="edge_n", size=(128, 96))


class Streets:
    """Drawn streets, kept."""

    def __init__(self, count: int, *, people: bool = False) -> None:
        drawn = DrawnStreets(count, (256, 160), seed=0, people=people)
        self.class_names, self.keypoints, self.num_keypoints = drawn.class_names, drawn.keypoints, drawn.num_keypoints
        self._samples = [drawn.sample(index) for index in range(count)]

    def __len__(self) -> int:
        return len(self._samples)

    def sample(self, index: int) -> Sample:
        return self._samples[index]


def _spec(samples: Streets, config: TrainConfig = CONFIG) -> ModelSpec:
    return spec_from_config(config, samples.class_names, samples.keypoints, trained_on="")


def truth_as_detections(sample: Sample, spec: ModelSpec) -> Detections:
    scores = np.linspace(0.9, 0.5, len(sample.boxes_xyxy)).astype(np.float32)
    keypoints = Keypoints(sample.keypoints[..., :2], sample.keypoints[..., 2]) if spec.num_keypoints else None
    return Detections(
        sample.boxes_xyxy, scores, sample.class_ids, spec.class_names, keypoints=keypoints, boxes3d=sample.boxes3d
    )


@pytest.mark.parametrize("task", ["3d", "pose+3d"])
def test_the_truth_scores_one_in_every_figure(task: str) -> None:
    samples = Streets(60, people=task == "pose+3d")  # more than the 41 cars that KITTI's 40 recalls need
    spec = _spec(samples, replace(CONFIG, task=task))
    found = {index: truth_as_detections(samples.sample(index), spec) for index in range(len(samples))}
    expected = {"AP", "AP50", "AP3D"} | ({"keypoint_AP"} if task == "pose+3d" else set())
    figures = figures_of(samples, found, spec)
    assert figures == dict.fromkeys(expected, pytest.approx(1.0, abs=1e-6))
    # A metre up is another 3D box, and the same 2D box.
    raised = figures_of(samples, {index: _raised(row) for index, row in found.items()}, spec)
    assert raised["AP"] == figures["AP"] and raised["AP3D"] < 0.01


def _raised(detections: Detections) -> Detections:
    boxes = detections.boxes3d
    assert boxes is not None
    up = boxes.center_m - np.array([0, 1, 0], np.float32)
    return replace(detections, boxes3d=Boxes3D(up, boxes.size_hwl_m, boxes.yaw_rad))


def test_classes_that_kitti_does_not_have_get_no_figure_in_space() -> None:
    samples = Streets(4)
    samples.class_names = ("lorry",)
    spec = _spec(samples)
    found = {index: truth_as_detections(samples.sample(index), spec) for index in range(len(samples))}
    assert set(figures_of(samples, found, spec)) == {"AP", "AP50"}


def test_objects_without_a_place_and_regions_to_ignore_are_dont_care() -> None:
    sample = replace(sample_in_space(0), ignore_xyxy=np.array([[1, 2, 3, 4]], np.float32))
    assert sample.boxes3d is not None
    sample.boxes3d.center_m[1] = np.nan
    objects = kitti_objects(sample, ("Car",))
    assert objects.types == ("Car", "Car", "DontCare", "DontCare")
    np.testing.assert_allclose(objects.xyxy[2:], [sample.boxes_xyxy[1], [1, 2, 3, 4]], atol=1e-4)
    # KITTI counts from the bottom of a box.
    bottom = sample.boxes3d.center_m[0] + [0, sample.boxes3d.size_hwl_m[0, 0] / 2, 0]
    np.testing.assert_allclose(objects.location_m[0], bottom, atol=1e-3)
    assert objects.scores is None
    assert kitti_objects(replace(sample, boxes3d=None), ("Car",)).types == ("DontCare",) * 4
    assert kitti_objects(make_sample(np.zeros((0, 4))), ("Car",)).types == ()


def test_each_process_looks_at_its_share_and_all_know_the_figures() -> None:
    samples = Streets(5)
    spec = _spec(samples)
    torch.manual_seed(0)
    detector = Detector(TorchBackend(build_model(CONFIG.architecture, spec.heads), spec), score_threshold=0.0)
    shares: list[dict[int, Detections]] = []
    alone = evaluate_detector(detector, samples, spec, gather=lambda found: [shares.append(found) or found])
    assert sorted(shares.pop()) == [0, 1, 2, 3, 4]
    for rank in range(2):  # what each has found, before the meeting
        with pytest.raises(KeyError):  # the other's pictures
            evaluate_detector(
                detector, samples, spec, rank=rank, world=2, gather=lambda found: [shares.append(found) or found]
            )
    assert [sorted(share) for share in shares] == [[0, 2, 4], [1, 3]]
    both = [
        evaluate_detector(detector, samples, spec, rank=rank, world=2, gather=lambda found: shares) for rank in range(2)
    ]
    assert both == [alone, alone]


def test_each_sample_is_seen_with_its_own_camera() -> None:
    samples = Streets(3)
    spec = _spec(samples)
    seen: list[CameraIntrinsics | None] = []

    class Watching:
        """Stands in for a Detector, and notes the camera of each picture."""

        def __init__(self) -> None:
            self.spec, self.intrinsics = spec, None

        def __call__(self, image: Array) -> Detections:
            seen.append(self.intrinsics)
            return truth_as_detections(make_sample(np.zeros((0, 4))), spec)

    assert sorted(detect_samples(Watching(), samples, [2, 0])) == [0, 2]  # type: ignore[arg-type]
    assert seen == [samples.sample(2).camera, samples.sample(0).camera]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_encoded_is_decoded_again(seed: int) -> None:
    """Targets as a perfect network's answer, through the SDK's decoder, are the boxes in space that they came from."""
    config = replace(CONFIG, size=(256, 192))
    sample = DrawnStreets(8, config.size, seed=3).sample(seed)
    spec = spec_from_config(config, ("Car",), trained_on="")
    assert sample.camera is not None and sample.boxes3d is not None and spec.focal_px is not None
    encoded = encode(sample, num_classes=1, stride=4, focal_px=spec.focal_px)
    targets = TensorTargets.from_arrays(collate([encoded]))
    heads = {name: head.numpy() for name, head in perfect_heads(targets, config).items()}
    candidates = find_peaks(heads, spec, score_threshold=0.5)
    found = assemble(candidates, spec, input_to_feature(4).inverse(), image_wh=config.size, camera=sample.camera)
    assert found.boxes3d is not None and len(found) == len(targets.cell_yx)
    for box, center, size, yaw in zip(
        found.xyxy, found.boxes3d.center_m, found.boxes3d.size_hwl_m, found.boxes3d.yaw_rad, strict=True
    ):
        row = int(np.abs(sample.boxes_xyxy - box).sum(axis=1).argmin())
        truth: Boxes3D = sample.boxes3d[row]
        np.testing.assert_allclose(box, sample.boxes_xyxy[row], atol=1e-2)
        np.testing.assert_allclose(size, truth.size_hwl_m[0], rtol=1e-4)
        np.testing.assert_allclose(center, truth.center_m[0], atol=0.05)
        assert np.cos(yaw - truth.yaw_rad[0]) > 0.9999


@pytest.mark.parametrize("wh", [(128, 96), (160, 64)])
def test_the_network_takes_pictures_of_any_size_that_it_can(wh: tuple[int, int]) -> None:
    samples = Streets(1)
    spec = _spec(samples).with_input_size(*wh)
    backend = TorchBackend(build_model("edge_n", spec.heads), spec)
    heads = backend.infer({"frame": np.zeros((1, wh[1], wh[0], 3), np.uint8)})
    assert {head.shape[2:] for head in heads.values()} == {(wh[1] // 4, wh[0] // 4)}
    assert all(head.dtype == np.float32 for head in heads.values())
    with pytest.raises(BackendError, match="the input is 100x96; this network takes multiples of 32 pixels"):
        backend.infer({"frame": np.zeros((1, 96, 100, 3), np.uint8)})


def test_evaluation_is_in_full_precision_within_autocast() -> None:
    spec = _spec(Streets(1))
    torch.manual_seed(0)
    backend = TorchBackend(build_model("edge_n", spec.heads), spec)
    frame = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3)).astype(np.uint8)
    expected = backend.infer({"frame": frame})
    with torch.autocast("cpu", torch.bfloat16):
        got = backend.infer({"frame": frame})
    for name, head in expected.items():
        np.testing.assert_array_equal(got[name], head)
