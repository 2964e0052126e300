"""CenterEdge: from a camera frame to objects and human poses, on the machine that carries the camera.

::

    import sdk

    detector = sdk.Detector()                       # the bundled person-pose model
    detections = detector(image)                    # (H, W, 3) uint8 BGR
    with sdk.Stream(detector, 0, policy="latest") as stream:
        for result in stream:
            print(result.frame.index, result.detections.xyxy)
"""

from .camera import CameraIntrinsics
from .detector import Detector, bundled_models
from .drawing import draw
from .errors import (
    BackendError,
    BackendUnavailable,
    ConfigError,
    EngineMismatch,
    HeadShapeError,
    InputError,
    SdkError,
    SourceEnded,
    SourceError,
    SourceOpenError,
    SourceTimeout,
    SpecError,
    SpecVersionError,
)
from .results import Boxes3D, Detections, Frame, FrameResult, Keypoints
from .sources import open_source
from .spec import ModelSpec
from .stream import Stream

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BackendUnavailable",
    "Boxes3D",
    "CameraIntrinsics",
    "ConfigError",
    "Detections",
    "Detector",
    "EngineMismatch",
    "Frame",
    "FrameResult",
    "HeadShapeError",
    "InputError",
    "Keypoints",
    "ModelSpec",
    "SdkError",
    "SourceEnded",
    "SourceError",
    "SourceOpenError",
    "SourceTimeout",
    "SpecError",
    "SpecVersionError",
    "Stream",
    "bundled_models",
    "draw",
    "open_source",
]
