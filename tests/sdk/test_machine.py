"""Looking at a machine: files, commands and imports, none of which may fail."""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdk.machine import CommandFailed, Gpu, Machine, Memory, Package, inspect_machine, run_command
from tests.machines import (
    JETPACK_6_ORIN,
    LAPTOP,
    OLD_GTK_BUILD,
    PC_WITH_GPU,
    FakeMachine,
    jetson_files,
)


@pytest.fixture(scope="module")
def this_machine() -> Machine:
    return inspect_machine()


def test_this_machine_is_what_python_says_of_it(this_machine: Machine) -> None:
    machine = this_machine
    assert machine.python == platform.python_version()
    assert machine.arch == platform.machine()
    assert machine.numpy == Package("numpy", np.__version__)
    assert machine.cpu.cores >= 1
    assert bool(machine.gpus) != bool(machine.no_gpu)
    for package in (machine.opencv, machine.onnxruntime, machine.tensorrt, machine.cuda, machine.torch):
        assert package.works != bool(package.problem)


def test_this_machine_has_the_versions_that_can_be_imported_here(this_machine: Machine) -> None:
    cv2, onnxruntime = pytest.importorskip("cv2"), pytest.importorskip("onnxruntime")
    assert this_machine.opencv.version == cv2.__version__
    assert this_machine.onnxruntime.version == onnxruntime.__version__
    assert this_machine.onnxruntime.providers == tuple(onnxruntime.get_available_providers())


def test_a_jetson_is_told_by_its_release_file_and_its_device_tree() -> None:
    machine = JETPACK_6_ORIN.inspect()
    jetson = machine.jetson
    assert jetson is not None
    assert jetson.model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (jetson.chip, jetson.l4t, jetson.jetpack, jetson.jetpack_major) == ("tegra234", "36.4.3", "6.2", 6)
    assert jetson.jetpack_tensorrt == "10.3"
    assert machine.system == "Ubuntu 22.04.5 LTS"
    assert machine.cpu.cores == 6
    assert machine.cpu.flags == ("asimd", "asimddp", "asimdhp")
    assert machine.memory == Memory(total_mib=7619, available_mib=5274)
    assert machine.gpus == (Gpu("Orin", "8.7"),)
    assert machine.trtexec == "/usr/src/tensorrt/bin/trtexec"
    assert machine.cuda == Package("cuda-python", "12.9.10")
    assert machine.opencv.gstreamer and machine.opencv.ffmpeg and machine.opencv.gui == "GTK3"
    assert not machine.onnxruntime.has_deform_conv


@pytest.mark.parametrize(
    ("release", "jetpack", "tensorrt"),
    [
        ("R32 (release), REVISION: 7.1", "4", "8.2 or older"),
        ("R35 (release), REVISION: 1.0", "5.0.2", "8.4"),
        ("R35 (release), REVISION: 4.1", "5.1.2", "8.5.2"),
        ("R36 (release), REVISION: 3.0", "6.0", "8.6.2"),
        ("R36 (release), REVISION: 4.4", "6.2.1", "10.3"),
        ("R36 (release), REVISION: 4.9", "6.2.1 or later", "10.3"),
        ("R38 (release), REVISION: 4.0", "7.1", "10.13"),
        ("R39 (release), REVISION: 2.1", "7.2.1", "10.16"),
        ("R77 (release), REVISION: 1.0", None, None),
    ],
)
def test_jetpack_follows_from_the_l4t_release(release: str, jetpack: str | None, tensorrt: str | None) -> None:
    files = jetson_files(release, "NVIDIA Jetson", "tegra234", system="Ubuntu")
    found = FakeMachine(files).inspect().jetson
    assert found is not None
    assert (found.jetpack, found.jetpack_tensorrt) == (jetpack, tensorrt)


def test_a_container_on_a_jetson_may_see_only_half_of_it() -> None:
    files = dict(JETPACK_6_ORIN.files)
    del files["etc/nv_tegra_release"]
    jetson = replace(JETPACK_6_ORIN, files=files).inspect().jetson
    assert jetson is not None and jetson.l4t is None and jetson.jetpack is None and jetson.chip == "tegra234"
    only_release = {"etc/nv_tegra_release": JETPACK_6_ORIN.files["etc/nv_tegra_release"]}
    machine = replace(JETPACK_6_ORIN, files=only_release).inspect()
    assert machine.jetson is not None and machine.jetson.jetpack == "6.2"
    assert machine.gpus == () and machine.no_gpu is not None and "device tree" in machine.no_gpu


def test_a_pc_tells_of_its_gpu_through_nvidia_smi() -> None:
    machine = PC_WITH_GPU.inspect()
    assert machine.jetson is None
    assert machine.gpus == (Gpu("NVIDIA GeForce RTX 4090", "8.9", "580.65.06", 24564),)
    assert machine.no_gpu is None
    assert machine.cuda == Package("pycuda", "2026.1")
    assert machine.onnxruntime.has_deform_conv
    assert machine.torch == Package("torch", "2.13.0")
    assert machine.trtexec is None


def test_an_old_driver_does_not_know_its_compute_capability() -> None:
    class FakeOldDriver(FakeMachine):
        def _smi(self) -> str:
            return str(self.smi)

        def run(self, command):  # type: ignore[no-untyped-def]
            if command[0] == "nvidia-smi" and "compute_cap" in command[1]:
                raise CommandFailed('Field "compute_cap" is not a valid field to query.')
            return super().run(command)

    machine = FakeOldDriver(
        LAPTOP.files, smi="Quadro P2000, 470.256.02, 4096\nQuadro P400, 470.256.02, [N/A]\n"
    ).inspect()
    assert machine.gpus == (
        Gpu("Quadro P2000", None, "470.256.02", 4096),
        Gpu("Quadro P400", None, "470.256.02", None),
    )


@pytest.mark.parametrize(
    ("smi", "reason"),
    [
        (None, "nvidia-smi is not installed"),
        (CommandFailed("couldn't communicate with the NVIDIA driver"), "nvidia-smi failed: couldn't communicate"),
        (CommandFailed("no answer within 60 s"), "nvidia-smi failed: no answer within 60 s"),
        ("No devices were found\n", "nvidia-smi lists none"),
    ],
)
def test_a_machine_without_a_gpu_says_why(smi: str | CommandFailed | None, reason: str) -> None:
    machine = replace(LAPTOP, smi=smi).inspect()
    assert machine.gpus == ()
    assert machine.no_gpu is not None and reason in machine.no_gpu


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        ("ModuleNotFoundError: No module named 'tensorrt'", "is not installed"),
        (
            "ImportError: libnvinfer.so.10: cannot open shared object file: No such file or directory",
            "cannot be imported: ImportError: libnvinfer.so.10: cannot open",
        ),
        ("crashed with SIGSEGV", "cannot be imported: crashed with SIGSEGV"),
        ("no answer within 60 s", "cannot be imported: no answer within 60 s"),
    ],
)
def test_a_broken_package_is_a_finding(failure: str, problem: str) -> None:
    machine = replace(PC_WITH_GPU, answers={**PC_WITH_GPU.answers, "tensorrt": failure}).inspect()
    assert not machine.tensorrt.works
    assert (machine.tensorrt.problem or "").startswith(problem)
    assert machine.onnxruntime.works


def test_the_broken_one_of_two_cuda_bindings_is_named() -> None:
    broken = "ImportError: libcuda.so.1: cannot open shared object file"
    for module, name in (("cuda", "cuda-python"), ("pycuda", "pycuda")):
        found = replace(LAPTOP, answers={module: broken}).inspect().cuda
        assert found == Package(name, problem=f"cannot be imported: {broken}")
    assert LAPTOP.inspect().cuda == Package("cuda-python or pycuda", problem="is not installed")


@pytest.mark.parametrize(("build", "gui"), [(OLD_GTK_BUILD, "GTK+"), ("  GUI:   NONE\n", None), ("", None)])
def test_what_draws_windows_in_old_and_new_opencv(build: str, gui: str | None) -> None:
    machine = replace(LAPTOP, answers={"cv2": {"version": "4.5.1", "build": build}}).inspect()
    assert machine.opencv.gui == gui


@given(st.dictionaries(st.sampled_from(sorted(JETPACK_6_ORIN.files)), st.text(max_size=200)), st.text(max_size=80))
def test_no_file_and_no_answer_can_make_it_fail(files: dict[str, str], answer: str) -> None:
    class FakeNonsense(FakeMachine):
        def run(self, command):  # type: ignore[no-untyped-def]
            return answer

    # Line ends and surrogates are the file system's business.
    machine = FakeNonsense({name: text.encode(errors="replace").decode() for name, text in files.items()}).inspect()
    assert machine.python and machine.cpu.cores >= 1


def test_commands_that_fail_say_how(tmp_path: Path) -> None:
    def python(code: str) -> list[str]:
        return [sys.executable, "-c", code]

    assert run_command(python("print('here')")).strip() == "here"
    with pytest.raises(CommandFailed, match="there is no such program"):
        run_command([str(tmp_path / "missing")])
    with pytest.raises(CommandFailed, match="crashed with SIGSEGV"):
        run_command(python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    with pytest.raises(CommandFailed, match=r"^ImportError: broken$"):
        run_command(python("raise ImportError('broken')"))
    with pytest.raises(CommandFailed, match="exit code 3"):
        run_command(python("raise SystemExit(3)"))
    started_s = time.monotonic()
    with pytest.raises(CommandFailed, match=r"no answer within 0\.5 s"):
        run_command(python("import time; time.sleep(60)"), timeout_s=0.5)
    assert time.monotonic() - started_s < 20


def test_a_file_of_the_working_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("__version__ = '99.0'\n")
    monkeypatch.chdir(tmp_path)
    assert inspect_machine().tensorrt.version != "99.0"
