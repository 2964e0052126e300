"""Stand-ins at the borders: a detector without a network, a source and a camera without a device."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from sdk.results import Detections, Keypoints
from sdk.sources import Source
from sdk.spec import COCO_KEYPOINT_NAMES, COCO_SKELETON, HeadSpec, InputSpec, ModelSpec

Image = npt.NDArray[np.uint8]

FAKE_SPEC = ModelSpec(
    name="fake-pose",
    tasks=("pose",),
    input=InputSpec(64, 64),
    stride=4,
    heads=(
        HeadSpec("heatmap", 1, "sigmoid"),
        HeadSpec("size", 2, "none"),
        HeadSpec("keypoint_offset", 34, "none"),
    ),
    class_names=("person",),
    keypoint_names=COCO_KEYPOINT_NAMES,
    skeleton=COCO_SKELETON,
)


class FakeDetector:
    """Finds one person in the middle of every image; its score is the mean brightness.

    Args:
        infer_s: seconds that the network takes.
        fail_in: a stage that raises RuntimeError, at the image `fail_at`.
    """

    def __init__(self, *, infer_s: float = 0.0, fail_in: str = "", fail_at: int = 0) -> None:
        self.spec = FAKE_SPEC
        self.threads: dict[str, str] = {}
        self._infer_s = infer_s
        self._fail_in = fail_in
        self._fail_at = fail_at
        self._calls: dict[str, int] = {}

    def preprocess(self, image: Image) -> Any:
        self._enter("preprocess")
        return image.shape[:2], float(image.mean() / 255)

    def infer(self, prepared: Any) -> dict[str, npt.NDArray[Any]]:
        self._enter("infer")
        time.sleep(self._infer_s)
        return {"heatmap": np.array([prepared[1]])}

    def decode(self, heads: Any, prepared: Any) -> Detections:
        self._enter("decode")
        height, width = prepared[0]
        xyxy = np.array([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]], np.float32)
        xy = np.linspace(xyxy[0, :2], xyxy[0, 2:], 17, dtype=np.float32)[None]
        keypoints = Keypoints(xy, np.full((1, 17), 0.9, np.float32))
        scores = heads["heatmap"].astype(np.float32)
        return Detections(xyxy, scores, np.zeros(1, np.int64), ("person",), keypoints)

    def _enter(self, stage: str) -> None:
        self.threads[stage] = threading.current_thread().name
        call = self._calls.get(stage, 0)
        self._calls[stage] = call + 1
        if stage == self._fail_in and call == self._fail_at:
            raise RuntimeError(f"{stage} failed")


class FakeSource(Source):
    """Gray frames, each as bright as its index.

    Args:
        num_frames: how many there are.
        wait_s: seconds before each frame.
        fail_at: reading this frame raises RuntimeError.
        stall_at: reading this frame blocks until the source is closed.
    """

    def __init__(
        self,
        num_frames: int = 5,
        *,
        is_live: bool = False,
        fps: float | None = None,
        wait_s: float = 0.0,
        fail_at: int = -1,
        stall_at: int = -1,
    ) -> None:
        super().__init__("fake", (32, 24), is_live=is_live, fps=fps, num_frames=None if is_live else num_frames)
        self.is_released = False
        self._count = num_frames
        self._wait_s = wait_s
        self._fail_at = fail_at
        self._stall_at = stall_at

    def _grab(self) -> bool:
        if self._next_index == self._stall_at:
            self._closed.wait()
        if self._next_index == self._fail_at:
            raise RuntimeError("the cable was cut")
        time.sleep(self._wait_s)
        return self._next_index < self._count

    def _retrieve(self) -> tuple[Image, str]:
        return np.full((24, 32, 3), self._next_index % 256, np.uint8), self.name

    def _release(self) -> None:
        self.is_released = True


class FakeCapture:
    """What cv2.VideoCapture is to a camera: opens or not, delivers some pictures, then fails."""

    def __init__(self, *, is_open: bool = True, num_pictures: int = 3) -> None:
        self._is_open = is_open
        self._left = num_pictures

    def isOpened(self) -> bool:  # noqa: N802
        return self._is_open

    def grab(self) -> bool:
        self._left -= 1
        return self._left >= 0

    def retrieve(self) -> tuple[bool, Image]:
        return True, np.full((48, 64, 3), self._left, np.uint8)

    def read(self) -> tuple[bool, Image | None]:
        return self.retrieve() if self.grab() else (False, None)

    def get(self, _property: int) -> float:
        return 25.0

    def release(self) -> None:
        self._is_open = False
