from __future__ import annotations

import cv2
import numpy as np
import pytest

from sdk.camera import CameraIntrinsics
from sdk.detector import Detector
from sdk.geometry import input_to_feature
from sdk.results import Boxes3D
from tests.helpers import FakeBackend, heads_with_peaks, pose_spec, tiny_spec
from train.drawn import DrawnData
from train.sample_pictures import heatmap_overlay, sample_pictures, stacked, truth_of
from train.samples import COCO_KEYPOINTS, NO_KEYPOINTS, KeypointSchema, Sample, empty_boxes


class OneSample:
    """A grey picture of 128x96 with one dog."""

    class_names = ("cat", "dog")
    keypoints: KeypointSchema = NO_KEYPOINTS
    num_keypoints = 0

    def __init__(self, **changes: object) -> None:
        values = {
            "image": np.full((96, 128, 3), 90, np.uint8),
            "boxes_xyxy": np.array([[20, 30, 60, 80]], np.float32),
            "class_ids": np.array([1]),
            "keypoints": np.zeros((1, 0, 3), np.float32),
            "ignore_xyxy": empty_boxes(),
        }
        self._sample = Sample(**{**values, **changes})  # type: ignore[arg-type]

    def __len__(self) -> int:
        return 1

    def sample(self, index: int) -> Sample:
        return self._sample


def picture_of(source: OneSample, *, threshold: float = 0.3) -> np.ndarray:
    spec = tiny_spec()
    detector = Detector(FakeBackend(spec, heads_with_peaks(spec)), score_threshold=threshold)
    (picture,) = sample_pictures(detector, source, [0])
    return picture


def parts_of(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, found and heatmap."""
    width = (picture.shape[1] - 12) // 3
    return picture[:, :width], picture[:, width + 6 : 2 * width + 6], picture[:, 2 * width + 12 :]


def test_a_picture_shows_truth_found_and_heatmap() -> None:
    picture = picture_of(OneSample())
    assert picture.shape == (360, 3 * 480 + 2 * 6, 3) and picture.dtype == np.uint8
    truth, found, heatmap = parts_of(picture)
    empty = OneSample(boxes_xyxy=empty_boxes(), class_ids=np.zeros(0, int), keypoints=np.zeros((0, 0, 3), np.float32))
    nothing, nothing_found, _ = parts_of(picture_of(empty, threshold=1.0))
    box = np.s_[30 * 360 // 96 : 80 * 360 // 96, 20 * 480 // 128 : 60 * 480 // 128]
    assert (truth[box] != nothing[box]).any() and (found != nothing_found).any()
    assert (heatmap[60:] != 90).any()


def test_the_pictures_of_a_sample_are_not_changed() -> None:
    source = OneSample(ignore_xyxy=np.array([[0, 0, 50, 50]], np.float32))
    picture_of(source)
    assert (source.sample(0).image == 90).all()


def test_regions_where_nothing_counts_are_dark() -> None:
    region = np.array([[70, 40, 120, 90]], np.float32)
    truth = parts_of(picture_of(OneSample(ignore_xyxy=region)))[0]
    assert (truth[65 * 360 // 96, 95 * 480 // 128] == 45).all()


def test_the_heatmap_is_hot_where_the_object_is() -> None:
    spec = tiny_spec()
    heads = heads_with_peaks(spec)
    image = np.zeros((64, 64, 3), np.uint8)
    overlay = heatmap_overlay(image, heads["heatmap"][0], input_to_feature(4).inverse())
    assert overlay.shape == image.shape and overlay.dtype == np.uint8
    brightest = np.unravel_index(np.argmax(overlay.sum(axis=2)), (64, 64))
    # The best peak is in cell (3, 4): pixels 12 to 16 down, 16 to 20 across.
    assert 12 <= brightest[0] < 16 and 16 <= brightest[1] < 20
    assert overlay[60, 60].sum() < overlay[brightest].sum() / 4


def test_truth_has_the_form_of_detections() -> None:
    source = DrawnData(4, (96, 96), seed=0)
    sample = source.sample(0)
    spec = pose_spec(num_keypoints=len(COCO_KEYPOINTS))
    truth = truth_of(sample, spec)
    assert np.array_equal(truth.xyxy, sample.boxes_xyxy) and (truth.scores == 1).all()
    assert truth.keypoints is not None
    assert np.array_equal(truth.keypoints.scores > 0, sample.keypoints[..., 2] > 0)


def test_boxes_in_space_are_drawn_as_their_camera_sees_them() -> None:
    camera = CameraIntrinsics(np.array([[100.0, 0, 64], [0, 100, 48], [0, 0, 1]]))
    box = Boxes3D(
        np.array([[0, 0, 5]], np.float32), np.array([[1.5, 1.6, 1.8]], np.float32), np.array([0.4], np.float32)
    )
    behind = Boxes3D(box.center_m * -1, box.size_hwl_m, box.yaw_rad)
    unknown = Boxes3D(box.center_m * np.nan, box.size_hwl_m, box.yaw_rad)
    plain = parts_of(picture_of(OneSample()))[0]
    drawn = parts_of(picture_of(OneSample(boxes3d=box, camera=camera)))[0]
    y, x = np.nonzero((drawn != plain).any(axis=2))
    assert abs(x.mean() - 240) < 20 and abs(y.mean() - 180) < 20  # in the middle, where the camera looks
    for elsewhere in (behind, unknown):
        assert np.array_equal(parts_of(picture_of(OneSample(boxes3d=elsewhere, camera=camera)))[0], plain)


@pytest.mark.parametrize("widths", [(40,), (40, 90, 10)])
def test_pictures_of_any_width_make_one_file(widths: tuple[int, ...]) -> None:
    pictures = [np.full((30, width, 3), 100, np.uint8) for width in widths]
    image = cv2.imdecode(np.frombuffer(stacked(pictures), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None and image.shape == (36 * len(widths), max(widths), 3)
