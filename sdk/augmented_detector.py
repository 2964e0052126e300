"""A detector that looks at a frame more than once: test-time augmentation, for measurements, not for control loops.

Objects as Points (arXiv:1904.07850), sec. 5, "Inference": "We use three levels of test augmentations: no augmentation,
flip augmentation, and flip and multi-scale (0.5, 0.75, 1, 1.25, 1.5). For flip, we average the network outputs before
decoding bounding boxes. For multi-scale, we use NMS to merge results."::

    with AugmentedDetector(open_backend(path), flip=True) as detector:
        figures = evaluate_on_coco(detector, images, annotations)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from .backends import Arrays, Backend
from .camera import CameraIntrinsics
from .decoding import Candidates, assemble, find_peaks
from .errors import ConfigError
from .geometry import Affine
from .opencv import load_cv2
from .preprocessing import Prepared, as_bgr, prepare
from .results import Detections
from .soft_nms import merge
from .spec import Activation, ModelSpec

Resolution = Literal["fixed", "keep"]
KeypointMode = Literal["matching", "regression"]
FloatArray = npt.NDArray[np.floating[Any]]

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
# Sizes other than the model's own are multiples of its coarsest stride; Hourglass-104 needs 128 (paper, sec. 5.1).
INPUT_MULTIPLE = 32


class AugmentedDetector:
    """Finds objects in frames as `Detector` does, and takes its time. Not thread-safe.

    With the defaults it gives what `Detector` gives. 3D models are refused: no rule says how depths of several passes
    become one, and the official code has none either.

    Args:
        backend: an open model with dense outputs.
        flip: average the network's outputs with those for the mirrored input.
        scales: of the input size; what they find is merged by soft-NMS.
        resolution: `fixed` fits each frame into the model's input size, `keep` takes it pixel by pixel, padded with
            black (paper, sec. 5.1, "Training and Testing resolution").
        keypoints: `matching` snaps regressed joints to detected ones, `regression` leaves them (paper, sec. 4.2; the
            paper's -jd and -reg in table 5).
        nms: soft-NMS also after a single scale (paper, sec. 5.1, "NMS").
        score_threshold: objects of a lower score are left out; 0 keeps all.
        input_multiple: padded sizes are multiples of it.

    Attributes:
        spec: of the model, at its own size.
        intrinsics: as `Detector` has it; unused here, where no model finds 3D boxes.

    Raises:
        ConfigError: the model does not allow what is asked for, or a scale is not positive.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        resolution: Resolution = "fixed",
        keypoints: KeypointMode = "matching",
        nms: bool = False,
        score_threshold: float = 0.0,
        input_multiple: int = INPUT_MULTIPLE,
    ) -> None:
        self.spec: ModelSpec = backend.spec
        self.score_threshold = score_threshold
        self.intrinsics: CameraIntrinsics | None = None
        self._backend = backend
        self._flip = flip
        self._scales = tuple(scales)
        self._resolution: Resolution = resolution
        self._keypoints: KeypointMode = keypoints
        self._nms = nms
        self._input_multiple = input_multiple
        self._check()

    def __call__(self, image: npt.NDArray[Any]) -> Detections:
        """What is in one frame, in its pixels; by falling score, at most `spec.max_detections`.

        Args:
            image: (H, W, 3) uint8 BGR of any size; gray and BGRA are converted.

        Raises:
            InputError: it is not such an image.
            BackendError, HeadShapeError: the model failed, or is not what its spec says.
        """
        image = as_bgr(image)
        found = [self._at_scale(image, scale) for scale in self._scales]
        if len(found) == 1 and not self._nms:
            return found[0]
        # The official code measures boxes as if their last pixel were inside.
        border_px = 1.0 if self.spec.decoding == "centernet" else 0.0
        merged = merge(found, limit=self.spec.max_detections, border_px=border_px)
        return merged[merged.scores >= self.score_threshold]

    def close(self) -> None:
        """Free what the backend holds; the detector cannot be used afterwards."""
        self._backend.close()

    def __enter__(self) -> AugmentedDetector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _at_scale(self, image: npt.NDArray[np.uint8], scale: float) -> Detections:
        spec, prepared = self._prepared(image, scale)
        heads = self._infer(prepared.tensor)
        if self._flip:
            mirrored = self._infer(np.ascontiguousarray(prepared.tensor[:, :, ::-1]))
            heads, spec = average_with_mirrored(heads, mirrored, spec)
        # What is below the threshold now can neither rise above it in the merge nor lower what is.
        candidates = find_peaks(heads, spec, score_threshold=self.score_threshold)
        if self._keypoints == "regression":
            candidates = _without_joints(candidates)
        return assemble(candidates, spec, prepared.feature_to_image, image_wh=prepared.image_wh)

    def _prepared(self, image: npt.NDArray[np.uint8], scale: float) -> tuple[ModelSpec, Prepared]:
        """The frame as the network takes it at one scale, and the spec with its size."""
        if self._resolution == "keep":
            return _padded(image, scale, self.spec, self._input_multiple)
        if scale == 1.0:
            return self.spec, prepare(image, self.spec)
        width, height = (
            _next_multiple(max(1, round(side * scale)) - 1, self._input_multiple) for side in self.spec.input.wh
        )  # as large as asked for, or a little larger
        spec = self.spec.with_input_size(width, height)
        return spec, prepare(image, spec)

    def _infer(self, tensor: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        return self._backend.infer({self._backend.inputs[0]: tensor})

    def _check(self) -> None:
        name = self.spec.name
        for what, value, known in (
            ("resolution", self._resolution, get_args(Resolution)),
            ("keypoints", self._keypoints, get_args(KeypointMode)),
        ):
            if value not in known:
                raise ConfigError(f"{what} is {value!r}, expected one of {', '.join(known)}")
        if not self._scales or not all(0 < scale < np.inf for scale in self._scales):
            raise ConfigError(f"scales are {self._scales}, expected positive numbers such as {PAPER_SCALES}")
        if "3d" in self.spec.tasks:
            raise ConfigError(
                f"model {name!r} finds 3D boxes, for which there is no flip, scales, NMS or other resolution; "
                "evaluate it without these options"
            )
        if self.spec.output != "dense":
            raise ConfigError(
                f"model {name!r} gives peaks, and these options need the maps they were taken from; evaluate the "
                "checkpoint, or what `centeredge export CHECKPOINT OUT.onnx --target onnxruntime` makes of it"
            )
        other_sizes = self._resolution == "keep" or any(scale != 1 for scale in self._scales)
        if other_sizes and not getattr(self._backend, "any_size", True):
            width, height = self.spec.input.wh
            raise ConfigError(
                f"scales and resolution keep need a model that takes frames of any size, and {name!r} was exported "
                f"for {width}x{height} alone; evaluate the .pth it was exported from, or export that with --any-size"
            )


def average_with_mirrored(heads: Arrays, mirrored: Arrays, spec: ModelSpec) -> tuple[dict[str, FloatArray], ModelSpec]:
    """Flip augmentation: the mean of the outputs for an input and for the input mirrored left to right.

    Scores are averaged after the sigmoid, sizes and keypoint offsets in feature cells. Offsets below a cell come from
    the unmirrored input alone, as in the official code.

    Args:
        heads: raw outputs (1, C, h, w) for the input.
        mirrored: raw outputs for the mirrored input.
        spec: of the model.

    Returns:
        Heads for `find_peaks`, and the spec to read them with: sizes and keypoint offsets are in cells.
    """
    out: dict[str, FloatArray] = {head.name: np.asarray(heads[head.name], np.float32) for head in spec.heads}
    back: dict[str, FloatArray] = {
        head.name: np.asarray(mirrored[head.name], np.float32)[..., ::-1] for head in spec.heads
    }
    swapped = _swapped_keypoints(spec)
    out["heatmap"] = _mean_score(out["heatmap"], back["heatmap"])
    if "keypoint_heatmap" in out:
        out["keypoint_heatmap"] = _mean_score(out["keypoint_heatmap"], back["keypoint_heatmap"][:, swapped])
    # A head that is not finite is found at a peak by the decoder, or does not matter.
    with np.errstate(over="ignore", invalid="ignore"):
        sizes, back_sizes = _size_cells(out["size"], spec), _size_cells(back["size"], spec)
        if "keypoint_offset" in out:
            offsets = _offset_cells(out["keypoint_offset"], sizes, spec)
            back_offsets = _offset_cells(back["keypoint_offset"], back_sizes, spec)[:, swapped]
            back_offsets[:, :, 0] = _mirror_of_a_cell(spec) - back_offsets[:, :, 0]
            out["keypoint_offset"] = ((offsets + back_offsets) / 2).reshape(out["keypoint_offset"].shape)
        out["size"] = (sizes + back_sizes) / 2
    return out, _read_in_cells(spec)


def _mean_score(raw: FloatArray, other: FloatArray) -> FloatArray:
    """The raw value whose sigmoid is the mean of two sigmoids.

    With E = exp(-raw) and F = exp(-other) the mean p has p / (1 - p) = (2 + E + F) / (E + F + 2 E F), which loses
    nothing where scores are close to 1.
    """
    e, f = (np.exp(-np.clip(values.astype(np.float64), -300, 300)) for values in (raw, other))
    return np.asarray(np.log((2 + e + f) / (e + f + 2 * e * f)), np.float32)


def _size_cells(raw: FloatArray, spec: ModelSpec) -> FloatArray:
    """(1, 2, h, w) width and height in cells; below 0 where a linear head says so."""
    return np.exp(np.minimum(raw, 10.0)) if spec.head("size").activation == "exp" else raw  # as the decoder has it


def _offset_cells(raw: FloatArray, size_cells: FloatArray, spec: ModelSpec) -> FloatArray:
    """(1, K, 2, h, w) offsets of the joints from the cell, in cells."""
    offsets = raw.reshape(1, spec.num_keypoints, 2, *raw.shape[-2:])
    return offsets * np.maximum(size_cells[:, None], 0) if spec.head("keypoint_offset").activation == "box" else offsets


def _mirror_of_a_cell(spec: ModelSpec) -> float:
    """What an offset x and its mirror image add up to.

    A point p at offset p - c from the corner c of its cell is at W - p in the mirrored map, in the cell with corner
    W - 1 - c: its offset there is 1 - (p - c). The official code counts cells instead of measuring from their
    corners: W - 1 - p and W - 1 - c, which only changes the sign.
    """
    return 0.0 if spec.decoding == "centernet" else 1.0


def _swapped_keypoints(spec: ModelSpec) -> list[int]:
    """Which keypoint a mirrored picture shows where keypoint 0, 1, ... is."""
    order = list(range(spec.num_keypoints))
    for a, b in spec.keypoint_flip_pairs:
        order[a], order[b] = b, a
    return order


def _read_in_cells(spec: ModelSpec) -> ModelSpec:
    """The spec of heads whose sizes and keypoint offsets are in cells already."""
    in_cells: Mapping[str, Activation] = {"size": "none", "keypoint_offset": "none"}
    heads = (replace(head, activation=in_cells.get(head.name, head.activation)) for head in spec.heads)
    return replace(spec, heads=tuple(heads))


def _without_joints(candidates: Candidates) -> Candidates:
    """Without joint detections every joint stays where it was regressed."""
    return replace(
        candidates,
        joint_scores=candidates.joint_scores[:0],
        joint_ids=candidates.joint_ids[:0],
        joint_cells_yx=candidates.joint_cells_yx[:0],
        joint_offsets=candidates.joint_offsets[:0],
    )


def _padded(image: npt.NDArray[np.uint8], scale: float, spec: ModelSpec, multiple: int) -> tuple[ModelSpec, Prepared]:
    """The frame at its own resolution times `scale`, in the middle of black up to the next multiple."""
    cv2 = load_cv2()
    height, width = image.shape[:2]
    scaled_w, scaled_h = max(1, int(width * scale)), max(1, int(height * scale))
    if scale != 1.0:
        image = cv2.resize(image, (scaled_w, scaled_h), interpolation=cv2.INTER_LINEAR)
    canvas_w, canvas_h = _next_multiple(scaled_w, multiple), _next_multiple(scaled_h, multiple)
    left, top = canvas_w // 2 - scaled_w // 2, canvas_h // 2 - scaled_h // 2
    canvas = np.zeros((canvas_h, canvas_w, 3), np.uint8)
    canvas[top : top + scaled_h, left : left + scaled_w] = image
    at_size = spec.with_input_size(canvas_w, canvas_h)
    prepared = prepare(canvas, replace(at_size, input=replace(at_size.input, fit="letterbox")))  # nothing to scale
    x, y = width / scaled_w, height / scaled_h
    canvas_to_image = Affine(np.array([[x, 0.0, -left * x], [0.0, y, -top * y]]), "image", "image")
    return at_size, replace(
        prepared, feature_to_image=prepared.feature_to_image.then(canvas_to_image), image_wh=(width, height)
    )


def _next_multiple(side: int, multiple: int) -> int:
    """The first multiple above `side`: the official code pads also what is one already."""
    return (side // multiple + 1) * multiple
