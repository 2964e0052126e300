"""A model, ready to be asked.

::

    detector = sdk.Detector("model.onnx", score_threshold=0.3)
    for detection in detector(cv2.imread("street.jpg")): ...
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends import Backend, open_backend
from .camera import CameraIntrinsics
from .decoding import assemble, find_peaks
from .errors import InputError
from .peaks import candidates_from_peaks
from .preprocessing import Prepared, prepare
from .results import Detections
from .spec import ModelSpec

MODELS_FOLDER = Path(__file__).parent / "models"
DEFAULT_MODEL = "person-pose.int8"


class Detector:
    """Finds objects in frames. Not thread-safe: one detector a thread.

    Args:
        model: a .onnx or .engine file, the name of a bundled model, or a `Backend`; None is the bundled
            person-pose.int8.
        score_threshold: objects of a lower score are left out, 0 keeps the best `spec.max_detections`; None
            takes the model's own.
        threads: of the CPU for one frame; None is one a core.
        intrinsics: of the camera that takes the frames, in their pixels; None: a 3D model gives no 3D boxes.

    Attributes:
        spec: of the model.
        score_threshold, intrinsics: see above; may be changed at any time.

    Raises:
        InputError: no such file or bundled model, or a threshold outside 0..1.
        BackendError, SpecError: the file cannot be used.
    """

    def __init__(
        self,
        model: str | Path | Backend | None = None,
        *,
        score_threshold: float | None = None,
        threads: int | None = None,
        intrinsics: CameraIntrinsics | None = None,
    ) -> None:
        if score_threshold is not None and not 0.0 <= score_threshold <= 1.0:
            raise InputError(f"score_threshold is {score_threshold}, expected a number in 0..1")
        if model is None or isinstance(model, (str, Path)):
            model = open_backend(model_path(DEFAULT_MODEL if model is None else model), threads=threads)
        self._backend = model
        self.spec: ModelSpec = model.spec
        self.score_threshold = self.spec.score_threshold if score_threshold is None else score_threshold
        self.intrinsics = intrinsics

    def __call__(self, image: npt.NDArray[Any]) -> Detections:
        """What is in one frame, in the caller's thread.

        Args:
            image: (H, W, 3) uint8 BGR of any size; gray and BGRA are converted.

        Raises:
            InputError: it is not such an image.
            BackendError, HeadShapeError: the model failed, or is not what its spec says.
        """
        prepared = self.preprocess(image)
        return self.decode(self.infer(prepared), prepared)

    def preprocess(self, image: npt.NDArray[Any]) -> Prepared:
        """The first stage: scale the frame to the network's input."""
        return prepare(image, self.spec)

    def infer(self, prepared: Prepared) -> dict[str, npt.NDArray[Any]]:
        """The second stage: run the network; raw outputs by name, maps or the peaks in them as the spec says."""
        return self._backend.infer({self._backend.inputs[0]: prepared.tensor})

    def decode(self, heads: dict[str, npt.NDArray[Any]], prepared: Prepared) -> Detections:
        """The third stage: from heads to objects in pixels of the frame."""
        candidates_of = candidates_from_peaks if self.spec.output == "peaks" else find_peaks
        candidates = candidates_of(heads, self.spec, score_threshold=self.score_threshold)
        return assemble(
            candidates, self.spec, prepared.feature_to_image, image_wh=prepared.image_wh, camera=self.intrinsics
        )

    def warm_up(self) -> None:
        """Run once on black, so that the first real frame is not the slow one."""
        self(np.zeros((self.spec.input.height, self.spec.input.width, 3), np.uint8))

    def close(self) -> None:
        """Free what the backend holds; the detector cannot be used afterwards."""
        self._backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def bundled_models() -> tuple[str, ...]:
    """Names of the models that ship with the SDK."""
    return tuple(sorted(path.name.removesuffix(".onnx") for path in MODELS_FOLDER.glob("*.onnx")))


def model_path(model: str | Path) -> Path:
    """The file of a model given as a path or as a bundled name.

    Raises:
        InputError: it is neither.
    """
    path = Path(model)
    if path.is_file():
        return path
    bundled = MODELS_FOLDER / f"{model}.onnx"
    if path.name == str(model) and bundled.is_file():
        return bundled
    names = ", ".join(bundled_models()) or "none"
    raise InputError(
        f"there is no model file {model}; a path to a .onnx or .engine file is expected, or a bundled model: {names}"
    )
