"""What a calibration does: one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdk.errors import ConfigError

from .methods import METHODS

TARGETS = ("onnxruntime", "tensorrt")
METHOD_NAMES = (*METHODS, "auto")
# Closest to float on the shipped model (docs/benchmarks.md).
DEFAULT_METHOD = "minmax"


@dataclass(frozen=True)
class CalibrationConfig:
    """Everything that decides the INT8 model and what is measured on it.

    Raises:
        ConfigError: on construction, for options that contradict each other or are not there yet.
    """

    images: Path | None = None  # folder of photographs to calibrate on; not needed where `ranges` exists
    annotations: Path | None = None  # COCO file of that folder: accuracy on those that were not calibrated on
    eval_images: Path | None = None  # folder of the photographs to measure accuracy on
    eval_annotations: Path | None = None  # COCO file of that folder
    num: int = 200  # photographs to calibrate on
    method: str | None = None  # that chooses the ranges; None: DEFAULT_METHOD, or that of `ranges`
    target: str = "onnxruntime"  # runtime to quantise for
    ranges: Path | None = None  # JSON file of ranges: used if it exists, written if not
    seed: int = 0  # chooses the photographs

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHOD_NAMES:
            raise ConfigError(f"there is no method {self.method!r}; there are {', '.join(METHOD_NAMES)}")
        if self.method == "auto":
            raise ConfigError(f"--method auto is not supported by this version yet; use one of {', '.join(METHODS)}")
        if self.target not in TARGETS:
            raise ConfigError(f"there is no target {self.target!r}; there are {', '.join(TARGETS)}")
        if self.target != "onnxruntime":
            raise ConfigError(f"--target {self.target} is not supported by this version yet; use onnxruntime")
        if (self.eval_images is None) != (self.eval_annotations is None):
            raise ConfigError("--eval-images and --eval-annotations go together; name both or neither")
        if self.num < 2:
            raise ConfigError(f"--num {self.num} is too few; calibration needs at least 2 photographs")
        if self.images is None and not self.has_ranges:
            raise ConfigError("--images is missing: a folder of photographs like those that the camera will see")
        if self.images is None and self.annotations is not None:
            raise ConfigError("--annotations says what is in --images, which is missing; name both")

    @property
    def has_ranges(self) -> bool:
        """Whether there are ranges to use again."""
        return self.ranges is not None and self.ranges.is_file()
