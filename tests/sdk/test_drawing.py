import numpy as np
import pytest

from sdk.camera import CameraIntrinsics
from sdk.drawing import draw, draw_status
from sdk.errors import InputError
from sdk.results import Boxes3D, Detections, Keypoints
from sdk.spec import COCO_KEYPOINT_NAMES, COCO_SKELETON

GRAY = np.full((480, 640, 3), 128, np.uint8)


def _people(xyxy, *, keypoints=None, track_ids=None, class_ids=None):
    count = len(xyxy)
    return Detections(
        np.array(xyxy, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.5, count, dtype=np.float32),
        np.zeros(count, np.int64) if class_ids is None else np.array(class_ids),
        ("person", "car"),
        keypoints,
        track_ids=None if track_ids is None else np.array(track_ids),
    )


def _pose(xy, score=0.9):
    points = np.zeros((1, 17, 2), np.float32)
    scores = np.zeros((1, 17), np.float32)
    for index, point in xy.items():
        points[0, index], scores[0, index] = point, score
    return Keypoints(points, scores)


def _changed(picture):
    return (picture != GRAY).any(axis=2)


def test_the_callers_image_is_not_changed():
    image = GRAY.copy()
    detections = _people([[100, 100, 300, 400]], keypoints=_pose({5: (150, 200), 7: (150, 300)}))
    pictures = draw(image, detections, skeleton=COCO_SKELETON), draw_status(image, "30 fps")
    np.testing.assert_array_equal(image, GRAY)
    for picture in pictures:
        assert picture.shape == GRAY.shape and picture.dtype == np.uint8
        assert _changed(picture).any()


def test_nothing_found_draws_nothing():
    np.testing.assert_array_equal(draw(GRAY, _people([])), GRAY)


def test_a_box_is_drawn_along_its_edges():
    changed = _changed(draw(GRAY, _people([[100, 150, 300, 400]])))
    assert changed[200, 100] and changed[200, 299] and changed[399, 200] and changed[150, 290]
    assert not changed[160:390, 110:290].any(), "the inside stays visible"
    assert changed[135:148, 100:180].mean() > 0.9, "the label stands above the box"
    assert not changed[:, 310:].any() and not changed[410:].any()


def test_a_label_stays_inside_the_image():
    top_right = _changed(draw(GRAY, _people([[600, 0, 640, 100]])))
    assert top_right[5:15, 560:640].mean() > 0.9


def test_classes_and_tracks_have_colours_of_their_own():
    boxes = [[50, 100, 150, 400], [250, 100, 350, 400]]

    def colours(detections):
        picture = draw(GRAY, detections)
        return tuple(picture[250, 50]), tuple(picture[250, 250])

    first, second = colours(_people(boxes))
    assert first == second
    first, second = colours(_people(boxes, class_ids=[0, 1]))
    assert first != second
    first, second = colours(_people(boxes, track_ids=[3, 8]))
    assert first != second


def test_bones_are_drawn_where_both_ends_are_seen_and_differ_left_from_right():
    keypoints = _pose({5: (200, 100), 7: (200, 300), 6: (300, 100), 8: (300, 300)})
    keypoints.scores[0, 13] = 0.9  # a knee at (0, 0) without its hip: no bone
    picture = draw(
        GRAY,
        _people([[100, 50, 400, 450]], keypoints=keypoints),
        skeleton=COCO_SKELETON,
        keypoint_names=COCO_KEYPOINT_NAMES,
    )
    left, right = tuple(picture[200, 200]), tuple(picture[200, 300])
    assert left != right and (128, 128, 128) not in (left, right)
    assert not _changed(picture)[60:90, 20:90].any()


def test_keypoints_of_low_score_are_left_out():
    detections = _people([[0, 0, 640, 480]], keypoints=_pose({0: (320, 240)}, score=0.2))
    assert _changed(draw(GRAY, detections))[240, 320]
    assert not _changed(draw(GRAY, detections, min_keypoint_score=0.3))[240, 320]


def test_lines_grow_with_the_image():
    def width(height):
        image = np.zeros((height, height, 3), np.uint8)
        picture = draw(image, _people([[height * 0.4, height * 0.4, height * 0.9, height * 0.9]]))
        return int((picture[int(height * 0.7), : int(height * 0.5)] != 0).any(axis=1).sum())

    assert width(200) < width(1080) < width(3000)


CAMERA = CameraIntrinsics(np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]]))


def _car(center, *, yaw=0.0, size_hwl=(2.0, 2.0, 4.0)):
    """A car whose 2D box, which would show, covers the whole picture."""
    detections = _people([[0, 0, 640, 480]])
    detections.boxes3d = Boxes3D(*(np.array([value], np.float32) for value in (center, size_hwl, yaw)))
    return detections


def test_a_box_in_space_is_drawn_along_its_edges_with_a_cross_on_its_front():
    # It stands a metre lower than the camera and faces it (yaw 90 degrees): its front is 8 m away, so 125 px wide.
    changed = _changed(draw(GRAY, _car((0, 1, 10), yaw=np.pi / 2), intrinsics=CAMERA))
    for x, y in ((258, 302), (382, 302), (320, 365), (278, 282), (362, 282), (320, 323)):  # of the front, of the back
        assert changed[y - 2 : y + 3, x - 2 : x + 3].any()
    assert not changed[375:].any() and not changed[:, 400:].any(), "the box in the image is not drawn"
    away = _changed(draw(GRAY, _car((0, 1, 10), yaw=-np.pi / 2), intrinsics=CAMERA))
    for picture, y, empty_y in ((changed, 302, 282), (away, 282, 302)):
        assert picture[y - 2 : y + 3, 318:323].any() and not picture[empty_y - 2 : empty_y + 3, 318:323].any()


def test_without_intrinsics_a_box_in_space_is_not_drawn():
    np.testing.assert_array_equal(draw(GRAY, _car((0, 1, 10))), draw(GRAY, _people([[0, 0, 640, 480]])))


def test_a_box_in_space_that_reaches_behind_the_camera_is_cut_there():
    # Beside the camera, along the view: its edges leave the picture at the left, and nothing appears at the right.
    changed = _changed(draw(GRAY, _car((-3, 0, 2), yaw=-np.pi / 2, size_hwl=(2, 2, 12)), intrinsics=CAMERA))
    assert changed[:, :200].sum() > 500 and not changed[30:, 400:].any()
    label = _changed(draw(GRAY, _car((0, 0, -10)), intrinsics=CAMERA))
    assert not label[30:].any(), "behind the camera there is nothing to see"


def test_absurd_boxes_in_space_do_no_harm():
    for center in ((np.nan, 0, 5), (1e30, 0, 1), (0, 0, 0), (-1e9, 1e9, 1e-9)):
        for size in ((1e3, 1e3, 1e3), (0, 0, 0), (np.inf, 1, 1)):
            picture = draw(GRAY, _car(center, size_hwl=size), intrinsics=CAMERA)
            assert picture.shape == GRAY.shape and picture.dtype == np.uint8


def test_what_lies_outside_or_is_not_a_number_does_no_harm():
    keypoints = _pose({5: (-1e9, 1e9), 7: (np.nan, 3), 6: (1e30, -5), 8: (10, 10)})
    for boxes in ([[-1e9, -1e9, 1e9, 1e9]], [[np.nan, 0, 5, 5]], [[5, 5, 5, 5]]):
        draw(GRAY, _people(boxes, keypoints=keypoints), skeleton=COCO_SKELETON)
    one_pixel = np.zeros((1, 1, 3), np.uint8)
    assert draw_status(draw(one_pixel, _people([[0, 0, 1, 1]])), "text").shape == (1, 1, 3)


def test_gray_images_are_drawn_on_in_colour():
    assert draw(GRAY[..., 0], _people([[0, 0, 9, 9]])).shape == GRAY.shape


def test_what_is_no_image_is_an_error():
    with pytest.raises(InputError, match="float64"):
        draw(GRAY / 255, _people([]))
