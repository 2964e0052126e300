"""`centeredge doctor`: a report for people, the same as JSON, and never a failure."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from apps.cli import main
from apps.doctor import findings, report
from sdk.capabilities import PRECISIONS, TARGETS
from tests.conftest import ROOT
from tests.machines import JETPACK_5_XAVIER, JETPACK_6_ORIN, LAPTOP, PC_WITH_GPU, FakeMachine


def test_the_report_of_this_machine_and_its_json_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "machine.json"
    assert main(["doctor", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    for part in ("This machine", "Packages", "What runs here", *TARGETS, *PRECISIONS):
        assert part in text
    assert f"python  {platform.python_version()}" in text
    assert set(json.loads(out.read_text())) == {"machine", "capabilities", "to_do"}


def test_json_takes_the_place_of_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["machine"]["python"] == platform.python_version()
    assert {(c["target"], c["precision"]) for c in document["capabilities"]} == {
        (target, precision) for target in TARGETS for precision in PRECISIONS
    }
    assert isinstance(document["machine"]["onnxruntime"]["has_deform_conv"], bool)


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", str(tmp_path / "missing" / "machine.json")]) == 1
    assert "No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize("machine", [JETPACK_6_ORIN, JETPACK_5_XAVIER, PC_WITH_GPU, LAPTOP])
def test_reports_are_aligned_and_fit_a_terminal(machine: FakeMachine) -> None:
    text = report(machine.inspect())
    assert max(len(line) for line in text.splitlines()) <= 120
    assert "None" not in text
    for section in text.split("\n\n")[:2]:  # This machine, Packages
        assert len({len(name) for name in re.findall(r"^  \w+ +", section, re.M)}) == 1


def test_the_report_of_a_jetson() -> None:
    text = report(JETPACK_6_ORIN.inspect())
    assert "JetPack 6.2 (L4T 36.4.3)" in text
    assert "Orin, compute capability 8.7, shared memory" in text
    assert "4.8.0, GStreamer, FFMPEG, windows (GTK3)" in text
    assert "To do" not in text
    table = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()[1:2] in (["yes"], ["no"])}
    assert table["tensorrt"] == ["yes", "yes", "yes"]
    assert table["tensorrt-rtx"] == ["no", "no", "no"]


def test_commands_are_at_the_end() -> None:
    answers = {**JETPACK_6_ORIN.answers, "cv2": "ImportError: numpy.core.multiarray failed to import"}
    machine = replace(JETPACK_6_ORIN, answers=answers, versions={"numpy": "2.2.6"}).inspect()
    assert report(machine).endswith("To do\n  pip install 'numpy<2'")
    assert findings(machine)["to_do"] == ["pip install 'numpy<2'"]


def test_numpy_alone_is_enough() -> None:
    packages = ["cv2", "onnx", "onnxruntime", "torch", "tensorrt", "pycocotools", "tqdm"]
    code = f"import sys; sys.modules.update(dict.fromkeys({packages})); from apps.cli import main; main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "What runs here" in done.stdout
