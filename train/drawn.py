"""Drawn pictures as a data set: exact annotations, seeded and endless, without a download."""

from __future__ import annotations

import numpy as np

from sdk.scenes import random_scene, sparse_scene
from sdk.scenes3d import random_street
from sdk.spec import COCO_KEYPOINT_NAMES

from .samples import COCO_KEYPOINTS, NO_KEYPOINTS, KeypointSchema, Sample, empty_boxes


class DrawnData:
    """An endless data set of drawn people, counted as `length` pictures; every index is another picture.

    Args:
        length: what `len` says, and the pictures of one epoch.
        wh: of the pictures, pixels.
        seed: another seed gives other pictures.
        keypoints: COCO's 17, or NO_KEYPOINTS for boxes alone.
    """

    class_names: tuple[str, ...] = ("person",)

    def __init__(
        self, length: int, wh: tuple[int, int], seed: int, *, keypoints: KeypointSchema = COCO_KEYPOINTS
    ) -> None:
        self._length, self._wh, self._seed = length, wh, seed
        self.keypoints = keypoints

    @property
    def num_keypoints(self) -> int:
        return len(self.keypoints)

    def __len__(self) -> int:
        return self._length

    def sample(self, index: int) -> Sample:
        image, boxes, keypoints = sparse_scene(np.random.default_rng((self._seed, 2, index)), self._wh)
        class_ids = np.zeros(len(boxes), np.int64)
        return Sample(image, boxes, class_ids, keypoints[:, : self.num_keypoints], empty_boxes())


class DrawnStreets:
    """An endless data set of drawn cars with 3D boxes and intrinsics, and of people among them where wanted.

    Args:
        length: what `len` says, and the pictures of one epoch.
        wh: of the pictures, pixels.
        seed: another seed gives other pictures.
        people: the classes are person (with COCO's keypoints) and Car, not Car alone.
    """

    def __init__(self, length: int, wh: tuple[int, int], seed: int, *, people: bool = False) -> None:
        self._length, self._wh, self._seed, self._people = length, wh, seed, people
        self.class_names: tuple[str, ...] = ("person", "Car") if people else ("Car",)
        self.keypoints = COCO_KEYPOINTS if people else NO_KEYPOINTS

    @property
    def num_keypoints(self) -> int:
        return len(self.keypoints)

    def __len__(self) -> int:
        return self._length

    def sample(self, index: int) -> Sample:
        street = random_street(np.random.default_rng((self._seed, 3, index)), self._wh, people=self._people)
        class_ids = np.where(street.is_person, 0, len(self.class_names) - 1)
        keypoints = street.keypoints[:, : self.num_keypoints]
        return Sample(
            street.image, street.boxes_xyxy, class_ids, keypoints, empty_boxes(), street.boxes3d, street.camera
        )


def drawn_sample(
    rng: np.random.Generator, wh: tuple[int, int], *, class_id: int = 0, num_keypoints: int = len(COCO_KEYPOINT_NAMES)
) -> Sample:
    """A drawn picture of people of class `class_id`, to mix among photographs; `num_keypoints` is COCO's 17, or 0.

    Harder than those of `DrawnData`: people small, cut and behind each other, as in photographs.
    """
    image, boxes, keypoints = random_scene(rng, wh)
    return Sample(image, boxes, np.full(len(boxes), class_id), keypoints[:, :num_keypoints], empty_boxes())
