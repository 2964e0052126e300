"""KITTI object data: boxes, 3D boxes and cameras of the frames of a split."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sdk.camera import CameraIntrinsics
from sdk.errors import InputError
from sdk.kitti import KittiFolder, KittiObjects, read_kitti_calib, read_kitti_labels
from sdk.results import Boxes3D

from .pictures import Pictures
from .samples import NO_KEYPOINTS, Sample

CLASS_NAMES = ("Pedestrian", "Car", "Cyclist")  # in the order of the official models
# What looks much like a class and is labelled as another: neither right nor wrong. Tram and Misc are background.
ALIKE = {"Pedestrian": ("Person_sitting",), "Car": ("Van", "Truck"), "Cyclist": ()}
DONT_CARE = "DontCare"


class KittiData:
    """The frames of one split of a KITTI folder.

    Regions to ignore are those of DontCare and of objects that are alike one of the classes. They hold for all
    classes: a Van is no negative example for Pedestrian either, which costs nothing.

    Args:
        root: has training/{image_2,label_2,calib} and ImageSets/.
        split: a file of ImageSets.
        class_names: some of CLASS_NAMES, in any order; empty is all of them.
        with_boxes3d: give the 3D boxes and the camera.

    Raises:
        InputError: the folder is no KITTI folder, the split is missing, a file of a frame is missing or malformed,
            or a class is none of KITTI's.
    """

    keypoints = NO_KEYPOINTS
    num_keypoints = 0

    def __init__(
        self, root: Path, *, split: str = "train", class_names: Sequence[str] = (), with_boxes3d: bool = True
    ) -> None:
        self.class_names = tuple(class_names) or CLASS_NAMES
        if unknown := [name for name in self.class_names if name not in CLASS_NAMES]:
            raise InputError(f"KITTI has no class {', '.join(unknown)}; it has {', '.join(CLASS_NAMES)}")
        folder = KittiFolder(root)
        self.frames = folder.frame_names(split)
        self._with_boxes3d = with_boxes3d
        self._labels = [read_kitti_labels(folder.label_path(name)) for name in self.frames]
        self._cameras = [
            CameraIntrinsics(read_kitti_calib(folder.calib_path(name))) if with_boxes3d else None
            for name in self.frames
        ]
        self._pictures = Pictures([folder.image_path(name) for name in self.frames])

    def __len__(self) -> int:
        return len(self.frames)

    def subset(self, rows: Sequence[int]) -> KittiData:
        """The same data with some of its frames, by number."""
        part = copy.copy(self)
        part.frames = tuple(self.frames[row] for row in rows)
        part._labels = [self._labels[row] for row in rows]
        part._cameras = [self._cameras[row] for row in rows]
        part._pictures = Pictures([self._pictures.paths[row] for row in rows])
        return part

    def cache_images(self, limit_mb: int) -> bool:
        """Decode every frame once and keep it, if all fit into `limit_mb`; says whether they do."""
        # Frames are of one camera, or of a few that are alike.
        frame_bytes = self._pictures.image(0).nbytes if len(self) else 0
        return self._pictures.keep(frame_bytes * len(self), limit_mb)

    def name(self, index: int) -> str:
        """The file of a picture."""
        return self._pictures.paths[index].name

    def sample(self, index: int) -> Sample:
        """Sample `index`.

        Raises:
            InputError: the picture cannot be decoded.
        """
        labels = self._labels[index]
        whole = (labels.xyxy[:, 2:] > labels.xyxy[:, :2]).all(axis=1)
        kinds = np.array(labels.types, dtype=np.str_)
        alike = [DONT_CARE, *(kind for name in self.class_names for kind in ALIKE[name])]
        rows = np.flatnonzero(np.isin(kinds, self.class_names) & whole)
        return Sample(
            self._pictures.image(index),
            labels.xyxy[rows].astype(np.float32),
            np.array([self.class_names.index(kinds[row]) for row in rows], np.int64),
            np.zeros((len(rows), 0, 3), np.float32),
            labels.xyxy[np.isin(kinds, alike) & whole].astype(np.float32),
            _boxes3d(labels, rows) if self._with_boxes3d else None,
            self._cameras[index],
        )


def _boxes3d(labels: KittiObjects, rows: np.ndarray) -> Boxes3D:
    """The 3D boxes of some rows by their geometric centre; NaN where size or place is not known."""
    boxes = labels.boxes3d()[rows]
    unknown = (boxes.size_hwl_m <= 0).any(axis=1) | (boxes.center_m[:, 2] <= 0)
    for values in (boxes.center_m, boxes.size_hwl_m, boxes.yaw_rad):
        values[unknown] = np.nan
    return boxes
