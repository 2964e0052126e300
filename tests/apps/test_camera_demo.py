import argparse
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from apps import camera_demo
from apps.cli import main
from sdk.errors import SourceError
from sdk.sources import open_source, read_image
from tests.fakes import FakeDetector, FakeSource

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "apps" / "camera_demo.py"
SCENE = "synthetic://?width=64&height=48"


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


def _run(*arguments, model):
    return main(["run", *map(str, arguments), "--model", str(model), "--headless"])


def _process(source, *arguments, detector=None):
    parser = argparse.ArgumentParser()
    camera_demo.add_arguments(parser)
    args = parser.parse_args(["input", *map(str, arguments), "--headless"])
    return camera_demo.process(args, detector or FakeDetector(), source)


def _json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def _write_images(folder, names):
    folder.mkdir()
    for name in names:
        cv2.imwrite(str(folder / name), np.full((48, 64, 3), 90, np.uint8))
    return folder


def test_a_video_becomes_a_video_and_json_lines(tmp_path, model_path, capfd):
    assert _run(f"{SCENE}&frames=12", tmp_path / "in.mp4", model=model_path) == 0
    video, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    assert _run(tmp_path / "in.mp4", video, "--json", lines, model=model_path) == 0
    assert sorted(os.listdir(tmp_path)) == ["in.mp4", "out.jsonl", "out.mp4"]
    with open_source(video) as source:
        assert (sum(1 for _ in source), source.wh, source.fps) == (12, (64, 48), 30.0)
    rows = _json_lines(lines)
    assert [row["index"] for row in rows] == list(range(12))
    assert set(rows[0]) == {"index", "source", "capture_ns", "age_ms", "dropped", "ms", "detections"}
    (person,) = rows[0]["detections"]
    assert person["class_name"] == "person"
    assert len(person["keypoints"]) == 17
    assert capfd.readouterr().err.splitlines()[-1].startswith("12 frames in ")


def test_an_image_becomes_an_image(tmp_path, model_path):
    image = _write_images(tmp_path / "in", ["a.png"]) / "a.png"
    assert _run(image, tmp_path / "out.png", model=model_path) == 0
    assert (read_image(tmp_path / "out.png") != read_image(image)).any()


def test_a_folder_becomes_a_folder_of_the_same_names(tmp_path, model_path):
    folder = _write_images(tmp_path / "in", ["a.png", "b.jpg"])
    assert _run(folder, tmp_path / "out", model=model_path) == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "b.jpg"]


def test_json_on_standard_output_is_nothing_but_json(model_path, capfd):
    assert _run(f"{SCENE}&frames=3", "--json", "-", model=model_path) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2]


def test_max_frames_ends_a_scene_without_end(tmp_path, model_path):
    assert _run(SCENE, "--max-frames", 4, "--json", tmp_path / "out.jsonl", model=model_path) == 0
    assert len(_json_lines(tmp_path / "out.jsonl")) == 4


def test_the_score_hides_what_is_below(tmp_path, model_path):
    for score, found in ((0.85, 1), (0.95, 0)):
        lines = tmp_path / f"{score}.jsonl"
        assert _run(f"{SCENE}&frames=1", "--score", score, "--json", lines, model=model_path) == 0
        assert [len(row["detections"]) for row in _json_lines(lines)] == [found]


def test_without_camera_and_display_it_says_what_it_does_instead(model_path, capfd):
    if any(Path("/dev").glob("video*")):
        pytest.skip("this machine has a camera")
    assert main(["run", "--model", str(model_path), "--max-frames", "2"]) == 0
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "no camera found; showing the drawn scene synthetic://?fps=30 instead"
    assert lines[1].startswith("there is no display, so no window")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--web", "8080"], "--web is not there yet"),
        (["--intrinsics", "calib.txt"], "model 'fake-pose' does no 3D; leave --intrinsics out"),
        (["out.xyz"], "out.xyz has the suffix '.xyz'"),
        (["out.jpg"], "out.jpg is one image, for 3 pictures"),
        (["missing/out.mp4"], "missing/out.mp4 cannot be written: No such file or directory"),
        (["--json", "missing/out.jsonl"], "--json missing/out.jsonl cannot be written"),
        (["same.mp4", "--json", "./same.mp4"], "same.mp4 and ./same.mp4 are the same file"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_no_file(
    arguments, message, tmp_path, model_path, capfd, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert _run(f"{SCENE}&frames=3", *arguments, model=model_path) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
    assert os.listdir(tmp_path) == []


def test_a_3d_model_places_boxes_once_it_knows_the_camera(tmp_path, model_3d_path, capfd):
    (tmp_path / "calib.txt").write_text("P2: 64 0 32 0 0 64 24 0 0 0 1 0\n")
    with_camera, without = tmp_path / "with.jsonl", tmp_path / "without.jsonl"
    intrinsics = ["--intrinsics", tmp_path / "calib.txt"]
    assert _run(f"{SCENE}&frames=2", "--json", without, model=model_3d_path) == 0
    assert "once it knows the camera; give --intrinsics FILE" in capfd.readouterr().err
    arguments = [f"{SCENE}&frames=1", tmp_path / "with.png", "--json", with_camera, *intrinsics]
    assert _run(*arguments, model=model_3d_path) == 0
    (flat,) = _json_lines(without)[0]["detections"]
    (car,) = _json_lines(with_camera)[0]["detections"]
    assert flat["box3d"] is None and flat["xyxy"] == car["xyxy"]
    assert set(car["box3d"]) == {"center_m", "size_hwl_m", "yaw_rad"}
    np.testing.assert_allclose(car["box3d"]["center_m"], [0, 0, 10], atol=0.01)
    np.testing.assert_allclose(car["box3d"]["yaw_rad"], -np.pi / 2, atol=1e-3)
    picture, frame = read_image(tmp_path / "with.png"), open_source(f"{SCENE}&frames=1")
    drawn = (picture != next(iter(frame)).image).any(axis=2)
    # The wireframe, 10 px wide at a distance of 10 m less half the length, stands where the 2D box (24 px) does not.
    assert drawn[20:29, 26:39].any() and not drawn[24:28, 18:24].any()


@pytest.mark.parametrize(("text", "message"), [(None, "cannot be read: No such file"), ("K: 3", "no camera matrix")])
def test_intrinsics_that_cannot_be_read_are_one_line(text, message, tmp_path, model_3d_path, capfd):
    path = tmp_path / "calib.txt"
    if text is not None:
        path.write_text(text)
    assert _run(f"{SCENE}&frames=3", "--intrinsics", path, model=model_3d_path) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line and "calib.txt" in line


def test_a_model_that_does_not_exist_is_one_line(capfd):
    assert _run(f"{SCENE}&frames=3", model="missing.onnx") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "missing.onnx" in line


def test_the_input_is_never_overwritten(tmp_path, model_path, capfd):
    folder = _write_images(tmp_path / "in", ["a.png", "b.png"])
    before = (folder / "a.png").read_bytes()
    for source, output in (
        (folder / "a.png", folder / "a.png"),
        (folder / "a.png", folder),
        (folder, folder),
        (folder / "*.png", folder),
    ):
        assert _run(source, output, model=model_path) == 1
        assert capfd.readouterr().err.count("\n") == 1
    assert sorted(os.listdir(folder)) == ["a.png", "b.png"]
    assert (folder / "a.png").read_bytes() == before


def test_a_bad_image_in_a_folder_leaves_no_output(tmp_path, model_path, capfd):
    folder = _write_images(tmp_path / "in", ["a.png", "b.png"])
    (folder / "b.png").write_bytes(b"no image")
    assert _run(folder, tmp_path / "out.mp4", "--json", tmp_path / "out.jsonl", model=model_path) == 1
    assert "b.png is damaged or no image" in capfd.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["in", "out.jsonl"]
    assert len(_json_lines(tmp_path / "out.jsonl")) == 1


def test_a_recording_is_kept_when_the_camera_is_lost(tmp_path, capfd):
    class FakeCamera(FakeSource):
        def _grab(self):
            if self._next_index == 5:
                raise SourceError("camera 0 stopped delivering")
            return True

    with pytest.raises(SourceError, match="camera 0 stopped delivering"):
        _process(FakeCamera(is_live=True), tmp_path / "out.mp4", "--policy", "all")
    assert open_source(tmp_path / "out.mp4").num_frames == 5
    assert "5 frames in" in capfd.readouterr().err


def test_dropped_frames_leave_the_video_its_length(tmp_path):
    source = FakeSource(20, fps=100.0)
    assert _process(source, tmp_path / "out.mp4", "--policy", "latest", detector=FakeDetector(infer_s=0.03)) == 0
    assert open_source(tmp_path / "out.mp4").num_frames == 20


def test_memory_stays_flat():
    tracemalloc.start()
    sizes = []

    class FakeWatchedDetector(FakeDetector):
        def decode(self, heads, prepared):
            if self._calls["infer"] % 50 == 0:
                sizes.append(tracemalloc.get_traced_memory()[0])
            return super().decode(heads, prepared)

    try:
        assert _process(FakeSource(3000), detector=FakeWatchedDetector()) == 0
    finally:
        tracemalloc.stop()
    assert np.median(sizes[-10:]) - np.median(sizes[20:30]) < 20_000


# As a program of its own


def _start(*arguments, model_path, cwd, script=SCRIPT):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments), "--model", str(model_path), "--headless"],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_ctrl_c,
    )


def _heed_ctrl_c():
    """A shell starts what it runs in the background deaf to Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_for_lines(path, count):
    deadline = time.monotonic() + 30
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < deadline, "no JSON lines came"
        time.sleep(0.02)


def test_the_script_starts_uninstalled_from_anywhere(tmp_path, model_path):
    for cwd in (ROOT, tmp_path):
        program = _start(f"{SCENE}&frames=2", "--json", "-", model_path=model_path, cwd=cwd)
        out, err = program.communicate(timeout=60)
        assert program.returncode == 0, err
        assert len(out.splitlines()) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_live_run_with_its_outputs(number, tmp_path, model_path):
    lines = tmp_path / "out.jsonl"
    program = _start(f"{SCENE}&fps=30", "out.mp4", "--json", lines, model_path=model_path, cwd=tmp_path)
    _wait_for_lines(lines, 3)
    program.send_signal(number)
    _, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    assert "frames in" in err and "Traceback" not in err
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "out.mp4"]
    assert open_source(tmp_path / "out.mp4").num_frames == len(_json_lines(lines))


def test_ctrl_c_discards_what_a_file_became(tmp_path, model_path):
    lines = tmp_path / "out.jsonl"
    scene = f"{SCENE}&fps=30&frames=10000"
    program = _start(scene, "out.mp4", "--json", lines, model_path=model_path, cwd=tmp_path)
    _wait_for_lines(lines, 2)
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=60)
    assert (program.returncode, err.splitlines()[-1]) == (130, "interrupted")
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_a_reader_that_leaves_ends_the_run(tmp_path, model_path):
    program = _start(f"{SCENE}&fps=100", "out.mp4", "--json", "-", model_path=model_path, cwd=tmp_path)
    assert json.loads(program.stdout.readline())["index"] == 0
    program.stdout.close()
    err = program.stderr.read()
    program.stderr.close()
    assert program.wait(timeout=60) == 0, err
    assert "Traceback" not in err and "Exception" not in err
    assert os.listdir(tmp_path) == ["out.mp4"]
