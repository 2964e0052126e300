"""What a calibration does: one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from sdk.errors import ConfigError

from .methods import METHODS
from .tensorrt_cache import version_number

Target = Literal["onnxruntime", "tensorrt"]  # whose rules say what runs in INT8
TARGETS = get_args(Target)
METHOD_NAMES = (*METHODS, "auto")
# Closest to float on the shipped model (docs/benchmarks.md).
DEFAULT_METHOD = "minmax"


@dataclass(frozen=True)
class WeightOptions:
    """How weights become integers.

    The defaults are what is hard to beat: on the shipped model, none of these gained anything beyond chance
    (docs/benchmarks.md).

    Attributes:
        search: the scale of each channel is that of the smallest squared error; otherwise it holds the largest weight.
        bias_correction: biases take back the mean shift that rounded weights cause (Nagel et al. 2019,
            arXiv:1906.04721, sec. 4.2); needs the channels' means.
    """

    search: bool = False
    bias_correction: bool = False


@dataclass(frozen=True)
class CalibrationConfig:
    """Everything that decides the INT8 model and what is measured on it.

    Raises:
        ConfigError: on construction, for options that contradict each other or say nothing that can be done.
    """

    images: Path | None = None  # photographs to calibrate on, a folder or a list; not needed where `ranges` exists
    annotations: Path | None = None  # COCO file of `images`: balances classes; some are set aside for accuracy
    eval_images: Path | None = None  # photographs to measure accuracy on
    eval_annotations: Path | None = None  # COCO file of these
    num: int = 200  # photographs to calibrate on
    method: str | None = None  # that chooses the ranges; None: DEFAULT_METHOD, or that of `ranges`
    target: Target = "onnxruntime"  # runtime to quantise for
    precision: Literal["int8", "fp16"] = "int8"  # fp16 needs no photographs but those to measure accuracy on
    ranges: Path | None = None  # JSON file of ranges: used if it exists, written if not; or a cache of TensorRT
    weights: WeightOptions = field(default_factory=WeightOptions)  # how weights become integers
    equalise: bool = False  # even out the channels of neighbouring convolutions first (`equalisation.py`)
    keep_float: tuple[str, ...] = ()  # names of nodes that stay in float whatever the rules say
    max_ap_drop: float | None = None  # layers go back to float until no more AP is lost; None: nothing does
    sensitivity: bool = False  # measure what each part of the network in float would change
    force: bool = False  # leave evaluation photographs that were calibrated on out, rather than refuse
    write_cache: Path | None = None  # calibration cache for TensorRT up to 10
    tensorrt_version: str = "10.3.0"  # of the cache
    seed: int = 0  # chooses the photographs

    def __post_init__(self) -> None:
        if self.method is not None and self.method not in METHOD_NAMES:
            raise ConfigError(f"there is no method {self.method!r}; there are {', '.join(METHOD_NAMES)}")
        if self.target not in TARGETS:
            raise ConfigError(f"there is no target {self.target!r}; there are {', '.join(TARGETS)}")
        if (self.eval_images is None) != (self.eval_annotations is None):
            raise ConfigError("--eval-images and --eval-annotations go together; name both or neither")
        if self.num < 2:
            raise ConfigError(f"--num {self.num} is too few; calibration needs at least 2 photographs")
        if self.images is None and self.annotations is not None:
            raise ConfigError("--annotations says what is in --images, which is missing; name both")
        if self.max_ap_drop is not None and self.eval_images is None and self.annotations is None:
            raise ConfigError(
                "--max-ap-drop needs annotated photographs to measure AP on; name --eval-images and "
                "--eval-annotations, or --annotations"
            )
        if self.max_ap_drop is not None and not 0.0 <= self.max_ap_drop < 1.0:
            raise ConfigError(
                f"--max-ap-drop {self.max_ap_drop} is no loss of AP; expected 0 or more and less than 1: 0.005"
            )
        if self.write_cache is not None:
            version_number(self.tensorrt_version)
        if self.weights.bias_correction and self.has_ranges:
            raise ConfigError(
                f"--bias-correction measures on photographs, and {self.ranges} replaces those; name a --ranges file "
                "that does not exist yet, with --images"
            )
        if self.precision == "fp16":
            self._check_half()
        elif self.images is None and not self.has_ranges:
            raise ConfigError(
                "--images is missing: photographs like those that the camera will see, a folder or a list of files"
            )

    def _check_half(self) -> None:
        for given, option in (
            (self.method, "--method"),
            (self.ranges, "--ranges"),
            (self.max_ap_drop, "--max-ap-drop"),
            (self.sensitivity or None, "--sensitivity"),
            (self.write_cache, "--write-cache"),
            (self.weights.search or None, "--weight-search"),
            (self.weights.bias_correction or None, "--bias-correction"),
            (self.equalise or None, "--equalise"),
        ):
            if given is not None:
                raise ConfigError(f"{option} is for --precision int8, FP16 has nothing to choose; leave it out")

    @property
    def has_ranges(self) -> bool:
        """Whether there are ranges to use again."""
        return self.ranges is not None and self.ranges.is_file()
