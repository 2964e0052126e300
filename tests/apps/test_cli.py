import os
import subprocess
import sys

import pytest

from apps.cli import main


def _errors(capfd):
    return capfd.readouterr().err.splitlines()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run", "--wings"],
        ["run", "0", "--score", "1.5"],
        ["run", "0", "--score", "high"],
        ["run", "0", "--policy", "some"],
        ["run", "0", "--max-frames", "0"],
        ["run", "a", "b", "c"],
    ],
)
def test_bad_usage_exits_2_and_shows_the_usage(arguments, capfd):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: centeredge" in capfd.readouterr().err


def test_help_names_every_command(capfd):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capfd.readouterr().out
    for command in ("run", "train", "evaluate", "export", "calibrate", "benchmark", "doctor"):
        assert command in text


def test_a_failure_exits_1_with_one_line(capfd):
    assert main(["run", "missing.mp4"]) == 1
    (line,) = _errors(capfd)
    assert line.startswith("centeredge run: 'missing.mp4' does not exist; expected an image")


def test_debug_shows_the_traceback(capfd):
    assert main(["run", "missing.mp4", "--debug"]) == 1
    lines = _errors(capfd)
    assert lines[0] == "Traceback (most recent call last):"
    assert "SourceOpenError" in lines[-1]


def test_broken_files_add_no_noise_of_opencv(tmp_path, capfd):
    for name in ("v.mp4", "i.jpg", "i.png"):
        (tmp_path / name).write_bytes(b"\x89PNG no picture" * 9)
        assert main(["run", str(tmp_path / name)]) == 1
        (line,) = _errors(capfd)
        assert name in line


def test_a_password_is_not_in_the_error(capfd):
    assert main(["run", "rtsp://admin:secret@127.0.0.1:9/live"]) == 1
    (line,) = _errors(capfd)
    assert "rtsp://admin:***@127.0.0.1:9/live cannot be opened" in line


_WITHOUT = """
import sys
for name in {packages!r}:
    sys.modules[name] = None
from apps.cli import main
sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize(
    ("arguments", "packages", "parts"),
    [
        (
            ["train", "--preset", "person-pose", "--data", "synthetic", "--out", "unused"],
            ["torch"],
            ["centeredge train: ", "'torch'", "pip install 'centeredge[cpu,train]'"],
        ),
        (["run", "synthetic://"], ["onnxruntime"], ["centeredge run: ", "onnxruntime", "centeredge[cpu]"]),
        (["run", "video.mp4"], ["cv2"], ["centeredge run: ", "OpenCV", "pip install 'centeredge[cpu]'"]),
    ],
)
def test_a_missing_package_is_named_with_its_pip_line(arguments, packages, parts, tmp_path, model_path):
    (tmp_path / "video.mp4").write_bytes(b"")
    if arguments[0] == "run":
        arguments = [*arguments, "--model", str(model_path)]
    code = _WITHOUT.format(packages=packages, arguments=arguments)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    for part in parts:
        assert part in line


@pytest.mark.parametrize("command", ["run", "train", "evaluate", "export", "calibrate", "benchmark", "doctor"])
def test_asking_for_help_needs_no_heavy_package(command):
    heavy = ["torch", "onnx", "onnxruntime", "cv2", "pycocotools", "tensorrt"]
    code = _WITHOUT.format(packages=heavy, arguments=[command, "--help"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "No module named" in done.stderr:
        pytest.skip(f"{command} is not written yet")
    assert done.returncode == 0, done.stderr
    assert f"usage: centeredge {command}" in done.stdout
    assert "--debug" in done.stdout
