from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdk.camera import CameraIntrinsics
from sdk.detector import Detector, bundled_models
from sdk.errors import BackendError, HeadShapeError, InputError
from tests.helpers import FakeBackend, Heads, Peak, empty_heads, heads_with_peaks, logit, pose_spec, tiny_spec
from tests.sdk.test_decoding3d import spec_3d

SPEC = tiny_spec()


def _detector(peaks: list[Peak], **options: Any) -> Detector:
    return Detector(FakeBackend(SPEC, heads_with_peaks(SPEC, peaks)), **options)


@pytest.mark.parametrize(
    ("image_wh", "expected"),
    [
        # An object in input pixels 16..48 x 24..40 of the 64x64 input.
        ((64, 64), [16, 24, 48, 40]),
        ((640, 640), [160, 240, 480, 400]),
        ((1280, 640), [320, 160, 960, 480]),  # scaled by 1/20, 16 black rows above
        ((320, 640), [0, 240, 320, 400]),  # scaled by 1/10, 16 black columns at the left; touches both sides
        ((100, 50), [25, 12.5, 75, 37.5]),
    ],
)
def test_boxes_are_in_pixels_of_the_callers_image(image_wh: tuple[int, int], expected: list[float]) -> None:
    detector = _detector([Peak(1, (8, 8), 0.9, (0.0, 0.0), (8, 4))])
    detections = detector(np.zeros((image_wh[1], image_wh[0], 3), np.uint8))
    np.testing.assert_allclose(detections.xyxy, [expected], atol=1e-3)
    assert detections.class_names[detections.class_ids[0]] == "dog"


def test_keypoints_are_in_pixels_of_the_callers_image() -> None:
    spec = pose_spec()
    heads = heads_with_peaks(spec, [Peak(0, (8, 8), 0.9, (0.0, 0.0), (8, 8))])
    heads["keypoint_heatmap"][0, 1, 6, 10] = logit(0.7)
    detections = Detector(FakeBackend(spec, heads))(np.zeros((640, 1280, 3), np.uint8))
    assert detections.keypoints is not None
    np.testing.assert_allclose(detections.keypoints.xy[0], [[640, 320], [800, 160], [640, 320]], atol=1e-3)
    np.testing.assert_allclose(detections.keypoints.scores[0], [0, 0.7, 0], atol=1e-6)


def test_boxes_in_space_once_the_camera_is_known() -> None:
    spec = spec_3d(focal_px=320.0)
    heads = heads_with_peaks(spec, [Peak(0, (24, 80), 0.9, (0.0, 0.0), (16, 8))])
    heads["depth"][:] = logit(1 / 11)  # 10 m
    heads["dimensions"][:] = np.array([1.5, 1.6, 3.9])[:, None, None]
    heads["rotation"][0, [1, 3]] = 1.0  # the first bin, and 0 in it: alpha is -90 degrees, straight away
    detector = Detector(FakeBackend(spec, heads))
    image = np.zeros((384, 1280, 3), np.uint8)
    assert detector.intrinsics is None and detector(image).boxes3d is None
    # Twice the model's focal length in a frame of twice its size is the same view.
    detector.intrinsics = CameraIntrinsics(np.array([[640, 0, 640], [0, 640, 192], [0, 0, 1]]))
    boxes = detector(image).boxes3d
    assert boxes is not None
    np.testing.assert_allclose(boxes.center_m, [[0, 0, 10]], atol=1e-3)
    np.testing.assert_allclose(boxes.size_hwl_m, [[1.5, 1.6, 3.9]])
    np.testing.assert_allclose(boxes.yaw_rad, [-np.pi / 2], atol=1e-4)
    given = Detector(FakeBackend(spec, heads), intrinsics=detector.intrinsics)(image)
    assert given.to_json() == detector(image).to_json() and '"box3d": {"center_m"' in given.to_json()


def test_intrinsics_do_no_harm_to_a_model_without_3d() -> None:
    camera = CameraIntrinsics(np.array([[640, 0, 640], [0, 640, 192], [0, 0, 1]]))
    detections = _detector([Peak(1, (8, 8), 0.9)], intrinsics=camera)(np.zeros((64, 64, 3), np.uint8))
    assert len(detections) == 1 and detections.boxes3d is None


def test_the_network_sees_the_letterboxed_frame() -> None:
    def heads_of_frame(frame: Any) -> Heads:
        # A network that finds a cat in the middle of whatever is white.
        rows, columns = np.nonzero(frame[0, :, :, 0] > 127)
        cell = (int(rows.mean() + 0.5) // 4, int(columns.mean() + 0.5) // 4)
        return heads_with_peaks(SPEC, [Peak(0, cell, 0.9, (0.5, 0.5), (1, 1))])

    image = np.zeros((240, 480, 3), np.uint8)
    image[90:150, 330:390] = 255  # around (360, 120)
    box = Detector(FakeBackend(SPEC, heads_of_frame))(image).xyxy[0]
    assert abs((box[0] + box[2]) / 2 - 360) < 20 and abs((box[1] + box[3]) / 2 - 120) < 20


def test_score_threshold() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    peaks = [Peak(0, (3, 3), 0.8), Peak(0, (10, 3), 0.35), Peak(1, (10, 10), 0.2)]
    assert len(_detector(peaks)(image)) == 2  # the model's own: 0.3
    detector = _detector(peaks, score_threshold=0.5)
    assert len(detector(image)) == 1
    detector.score_threshold = 0.1
    assert len(detector(image)) == 3
    everything = _detector(peaks, score_threshold=0.0)(image)
    assert len(everything) == SPEC.max_detections
    assert (np.diff(everything.scores) <= 0).all()
    assert len(_detector(peaks, score_threshold=1.0)(image)) == 0


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match=r"score_threshold is .*, expected a number in 0\.\.1"):
        _detector([], score_threshold=threshold)


def test_arrays_belong_to_the_caller() -> None:
    spec = pose_spec()
    heads = heads_with_peaks(spec, [Peak(0, (8, 8), 0.9)])
    detector = Detector(FakeBackend(spec, heads))  # it gives the same arrays each time, as a runtime may
    image = np.zeros((100, 120, 3), np.uint8)
    first, second = detector(image), detector(image)
    assert first.keypoints is not None and second.keypoints is not None
    kept = second.to_json()
    for array in (first.xyxy, first.scores, first.class_ids, first.keypoints.xy, first.keypoints.scores):
        assert array.flags.writeable and not any(np.shares_memory(array, head) for head in heads.values())
        array[:] = 77
    assert second.to_json() == kept
    assert detector(image).to_json() == kept
    assert not image.any()


def test_an_empty_scene() -> None:
    spec = pose_spec()
    detections = Detector(FakeBackend(spec, empty_heads(spec)))(np.zeros((48, 64, 3), np.uint8))
    assert len(detections) == 0 and detections.keypoints is not None and len(detections.keypoints) == 0


def test_the_three_stages_are_the_whole() -> None:
    detector = _detector([Peak(1, (8, 8), 0.9)])
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8)
    prepared = detector.preprocess(image)
    staged = detector.decode(detector.infer(prepared), prepared)
    assert staged.to_json() == detector(image).to_json()


def test_leaving_the_with_block_closes_the_backend() -> None:
    backend = FakeBackend(SPEC, empty_heads(SPEC))
    with Detector(backend) as detector:
        detector.warm_up()
        assert not backend.closed
    assert backend.closed


def test_a_backend_that_breaks_its_word() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    broken = Detector(FakeBackend(SPEC, {"heatmap": np.zeros((1, 2, 16, 16), np.float32)}))
    with pytest.raises(HeadShapeError, match="the model gave no 'offset'"):
        broken(image)
    nan = Detector(FakeBackend(SPEC, {**empty_heads(SPEC), "heatmap": np.full((1, 2, 16, 16), np.nan, np.float32)}))
    with pytest.raises(BackendError, match="NaN"):
        nan(image)


@pytest.mark.parametrize("image", [None, "photo.jpg", np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_image_is_refused(image: Any) -> None:
    with pytest.raises(InputError, match="expected a NumPy array"):
        _detector([])(image)


@pytest.mark.parametrize("name", ["no-such-model", "no/such/model.onnx", Path("missing.onnx"), ""])
def test_an_unknown_model_names_the_bundled_ones(name: str | Path) -> None:
    with pytest.raises(
        InputError, match=r"there is no model file .*path to a \.onnx or \.engine file .* bundled model: "
    ) as caught:
        Detector(name)
    assert all(bundled in str(caught.value) for bundled in bundled_models())


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no model file"):
        Detector(tmp_path)


def test_a_file_of_another_runtime(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"data")
    with pytest.raises(BackendError, match=r"unknown suffix '\.tflite'; expected \.onnx or \.engine"):
        Detector(path)
