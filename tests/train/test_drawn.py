from __future__ import annotations

import numpy as np

from train.drawn import DrawnData, DrawnStreets, drawn_sample
from train.samples import NO_KEYPOINTS


def test_every_number_is_another_picture_and_always_the_same() -> None:
    for source, again, other in (
        [DrawnData(7, (96, 64), seed) for seed in (5, 5, 6)],
        [DrawnStreets(7, (96, 64), seed) for seed in (5, 5, 6)],
    ):
        assert len(source) == 7
        np.testing.assert_array_equal(source.sample(3).image, again.sample(3).image)
        np.testing.assert_array_equal(source.sample(3).boxes_xyxy, again.sample(3).boxes_xyxy)
        assert not np.array_equal(source.sample(3).image, source.sample(4).image)
        assert not np.array_equal(source.sample(3).image, other.sample(3).image)


def test_people_with_and_without_keypoints() -> None:
    with_pose, boxes_only = DrawnData(1, (96, 64), 0), DrawnData(1, (96, 64), 0, keypoints=NO_KEYPOINTS)
    assert with_pose.sample(0).keypoints.shape[1] == with_pose.num_keypoints == 17
    assert boxes_only.sample(0).keypoints.shape[1] == boxes_only.num_keypoints == 0
    np.testing.assert_array_equal(with_pose.sample(0).image, boxes_only.sample(0).image)


def test_streets_have_cars_and_people_where_wanted() -> None:
    cars, both = DrawnStreets(9, (128, 96), 0), DrawnStreets(9, (128, 96), 0, people=True)
    assert (cars.class_names, both.class_names) == (("Car",), ("person", "Car"))
    seen = set()
    for index in range(12):
        sample = both.sample(index)
        assert sample.boxes3d is not None and sample.camera is not None
        assert len(sample.boxes3d) == len(sample.boxes_xyxy) == len(sample.class_ids) == len(sample.keypoints)
        labelled = sample.keypoints[..., 2].any(axis=1)
        np.testing.assert_array_equal(labelled, sample.class_ids == 0)  # people alone have poses
        seen |= set(sample.class_ids.tolist())
        assert set(cars.sample(index).class_ids.tolist()) <= {0} and cars.sample(index).keypoints.shape[1] == 0
    assert seen == {0, 1}


def test_pictures_to_mix_among_photographs() -> None:
    sample = drawn_sample(np.random.default_rng(0), (80, 60), class_id=2, num_keypoints=0)
    assert sample.image.shape == (60, 80, 3) and set(sample.class_ids.tolist()) == {2}
    assert sample.keypoints.shape == (len(sample.boxes_xyxy), 0, 3)
