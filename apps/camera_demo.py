"""`centeredge run`: a camera, a video or pictures through a detector, shown and written.

From the root of the repository, without installing::

    python apps/camera_demo.py                                  # the first camera, or a drawn scene
    python apps/camera_demo.py video.mp4 out.mp4 --json out.jsonl --headless
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

if importlib.util.find_spec("sdk") is None:  # started from the repository, not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from apps.outputs import Outputs, note
from export.engine_cache import bundled_engine
from sdk.camera import CameraIntrinsics
from sdk.detector import DEFAULT_MODEL, Detector
from sdk.errors import BackendError, ConfigError, SourceError, SourceOpenError
from sdk.results import FrameResult
from sdk.sources import Source, open_source
from sdk.spec import ModelSpec
from sdk.stream import Stream

_FALLBACK_INPUT = "synthetic://?fps=30"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `centeredge run`."""
    parser.add_argument(
        "input",
        metavar="INPUT",
        nargs="?",
        help="image, video, folder of images, glob, camera (0 or /dev/video0), rtsp://... or synthetic://; "
        "default: camera 0, or the drawn scene synthetic:// where there is none",
    )
    parser.add_argument(
        "output",
        metavar="OUTPUT",
        nargs="?",
        help="video (.mp4, .avi), image, or folder of images, with what was found drawn in",
    )
    parser.add_argument(
        "--model",
        metavar="M",
        help=f"a model file, or the name of a bundled model; default: {DEFAULT_MODEL}, or its engine where TensorRT is",
    )
    parser.add_argument(
        "--score", type=_score, metavar="S", help="least score of a detection, 0 to 1; default: the model's"
    )
    parser.add_argument(
        "--policy",
        choices=["latest", "all"],
        help="the newest frame, or every one; default: latest for cameras and streams, all for files",
    )
    parser.add_argument(
        "--intrinsics",
        metavar="FILE",
        help="the camera's intrinsics, for 3D models: KITTI calib, or YAML of OpenCV or ROS",
    )
    parser.add_argument("--headless", action="store_true", help="open no window")
    parser.add_argument("--web", metavar="[HOST:]PORT", help="show the picture on a web page")
    parser.add_argument("--json", metavar="FILE", help="write one JSON line a frame; - is standard output")
    parser.add_argument("--max-frames", type=_count, metavar="N", help="stop after N frames")


def run(args: argparse.Namespace) -> int:
    """Run a detector over the input until it ends, or until q, Esc or Ctrl-C."""
    if args.web:
        raise ConfigError("--web is not there yet; leave it out, and write a video as OUTPUT instead")
    with _open_input(args.input) as source, _open_model(args.model, args.score) as detector:
        detector.intrinsics = _intrinsics(args.intrinsics, detector.spec)
        detector.warm_up()
        with _sigterm_as_ctrl_c():
            return process(args, detector, source, intrinsics=detector.intrinsics)


def process(
    args: argparse.Namespace, detector: Any, source: Source, *, intrinsics: CameraIntrinsics | None = None
) -> int:
    """Run a detector over an open source, into the outputs that the arguments ask for.

    Ctrl-C ends a source without end as success, with its outputs; one with an end is then incomplete, so its
    outputs are discarded. A recording up to the moment at which a camera was lost is kept.
    """
    statistics = _Statistics(source.num_frames)
    lost: SourceError | None = None
    with ExitStack() as stack:
        outputs = Outputs(args, detector.spec, source, stack, intrinsics=intrinsics)
        stream = stack.enter_context(Stream(detector, source, policy=args.policy))
        try:
            for result in islice(stream, args.max_frames):
                statistics.add(result)
                if not outputs.show(result, statistics.line()):
                    break
        except KeyboardInterrupt:
            if source.num_frames is not None:
                raise
        except SourceError as err:
            if not source.is_live:
                raise
            lost = err
    note(statistics.summary())
    if lost is not None:
        raise lost
    return 0


class _Statistics:
    """How fast it goes; of the last frames alone, so that it does not grow."""

    def __init__(self, num_frames: int | None) -> None:
        self._expected = "" if num_frames is None else f" of {num_frames}"
        self._start_s = time.monotonic()
        self._ends_s: deque[float] = deque(maxlen=30)
        self._ms: deque[dict[str, float]] = deque(maxlen=1000)
        self._num_frames = self._dropped = 0
        self._last: FrameResult | None = None

    def add(self, result: FrameResult) -> None:
        self._ends_s.append(time.monotonic())
        self._ms.append(result.ms)
        self._num_frames += 1
        self._dropped += result.dropped
        self._last = result

    def line(self) -> str:
        """The state of things, of the last second or so."""
        if self._last is None or len(self._ends_s) < 2:
            return f"frame {self._num_frames}{self._expected}"
        fps = (len(self._ends_s) - 1) / max(1e-9, self._ends_s[-1] - self._ends_s[0])
        return (
            f"frame {self._num_frames}{self._expected}  {fps:.1f} fps  {len(self._last.detections)} found  "
            f"inference {self._last.ms['inference']:.1f} ms  age {self._last.age_ms:.0f} ms"
        )

    def summary(self) -> str:
        """The whole run in a line."""
        if not self._num_frames:
            return "no frames"
        seconds = time.monotonic() - self._start_s
        stages = ", ".join(f"{stage} {median(ms[stage] for ms in self._ms):.2f}" for stage in self._ms[-1])
        fps = self._num_frames / max(seconds, 1e-9)
        return (
            f"{self._num_frames} frames in {seconds:.1f} s ({fps:.1f} fps), {self._dropped} dropped; "
            f"median ms: {stages}"
        )


def _open_model(model: str | None, score: float | None) -> Detector:
    """The model that was asked for; else the bundled one, in TensorRT where that runs, or in ONNX Runtime."""
    if model is None and (engine := bundled_engine(note=note)) is not None:
        try:
            return Detector(engine, score_threshold=score)
        except BackendError as err:
            note(f"running on the CPU, without TensorRT: {err}")
    return Detector(model or DEFAULT_MODEL, score_threshold=score)


def _intrinsics(path: str | None, spec: ModelSpec) -> CameraIntrinsics | None:
    if "3d" not in spec.tasks:
        if path is not None:
            raise ConfigError(f"model {spec.name!r} does no 3D; leave --intrinsics out")
        return None
    if path is None:
        note(f"model {spec.name!r} places boxes in space once it knows the camera; give --intrinsics FILE")
        return None
    return CameraIntrinsics.from_file(path)


def _open_input(uri: str | None) -> Source:
    if uri is not None:
        return open_source(uri)
    try:
        return open_source(0)
    except SourceOpenError:
        note(f"no camera found; showing the drawn scene {_FALLBACK_INPUT} instead")
        return open_source(_FALLBACK_INPUT)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """`kill` and `docker stop` end the run as Ctrl-C does, with its outputs finished."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _score(text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0.0 <= score <= 1.0:
        raise argparse.ArgumentTypeError(f"expected a number in 0..1, got {text!r}")
    return score


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    from apps.cli import main

    sys.exit(main(["run", *sys.argv[1:]]))
