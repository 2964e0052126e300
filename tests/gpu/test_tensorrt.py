"""The shipped model as an engine of this GPU, against ONNX Runtime on the same photographs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

from apps.cli import main
from sdk.backends.cuda import Cuda
from sdk.backends.tensorrt import TensorRtBackend
from sdk.detector import MODELS_FOLDER, Detector
from sdk.engine_files import Runtime, this_host, version_tuple
from sdk.results import Detections

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

# Largest difference of a score and of a box's side in pixels. On a GPU, FP32 convolutions are computed in TF32, with
# as many digits as FP16.
TOLERANCES = {"fp32": (0.02, 2.0), "fp16": (0.03, 3.0)}
CLEAR_SCORE = 0.4  # a tenth above the threshold: such an object cannot be missing on one side


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    name: Runtime = request.param
    return name


def build(runtime: Runtime, precision: str, folder: Path) -> Path:
    """The shipped model, exported and built as a user does it."""
    target = "tensorrt-rtx" if runtime == "tensorrt_rtx" else "tensorrt"
    if runtime == "tensorrt" and version_tuple(this_host(runtime).runtime_version) < (10, 1):
        target = "tensorrt-8"
    onnx, engine = folder / f"{precision}.onnx", folder / f"{precision}.engine"
    source = str(MODELS_FOLDER / "person-pose.onnx")
    assert main(["export", source, str(onnx), "--target", target, "--precision", precision, "--debug"]) == 0
    assert main(["export", str(onnx), str(engine), "--debug"]) == 0
    return engine


def has_partner(row: int, found: Detections, others: Detections, *, precision: str) -> bool:
    score, pixels = TOLERANCES[precision]
    close = np.abs(others.scores - found.scores[row]) <= score
    return bool((close & (np.abs(others.xyxy - found.xyxy[row]).max(axis=1, initial=0.0) <= pixels)).any())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_engine_finds_what_onnx_runtime_finds(
    precision: str, runtime: Runtime, cuda: Cuda, photographs: Path, tmp_path: Path
) -> None:
    images = [cv2.imread(str(path)) for path in sorted((photographs / "coco" / "val").glob("*.jpg"))[:50]]
    with Detector(build(runtime, precision, tmp_path)) as on_gpu, Detector("person-pose") as on_cpu:
        num_clear = 0
        for image in images:
            pair = on_gpu(image), on_cpu(image)
            for found, others in (pair, pair[::-1]):
                clear = np.flatnonzero(found.scores >= CLEAR_SCORE)
                num_clear += len(clear)
                assert all(has_partner(row, found, others, precision=precision) for row in clear)
    assert num_clear > 20


def test_frames_have_answers_of_their_own(runtime: Runtime, cuda: Cuda, tmp_path: Path) -> None:
    backend = TensorRtBackend(build(runtime, "fp32", tmp_path))
    width, height = backend.spec.input.wh
    frames = np.random.default_rng(0).integers(0, 256, (3, 1, height, width, 3), np.uint8)
    first = [backend.infer({"frame": frame}) for frame in frames]
    again = [backend.infer({"frame": frame}) for frame in frames]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a["heatmap"], b["heatmap"])
    assert not np.array_equal(first[0]["heatmap"], first[1]["heatmap"])
    backend.close()
    backend.close()
