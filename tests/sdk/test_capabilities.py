"""What each kind of machine can run, and what it is told to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.targets import TARGETS as EXPORT_TARGETS
from sdk.capabilities import PRECISIONS, TARGETS, Capability, capabilities, to_do
from sdk.machine import Gpu, Machine, Package, inspect_machine
from tests.machines import (
    JETPACK_5_XAVIER,
    JETPACK_6_ORIN,
    LAPTOP,
    PC_WITH_GPU,
    WHEEL_BUILD,
    FakeMachine,
    jetson_files,
)

MACHINES = tuple(fake.inspect() for fake in (JETPACK_6_ORIN, JETPACK_5_XAVIER, PC_WITH_GPU, LAPTOP))


def found(machine: Machine, target: str, precision: str = "fp32") -> Capability:
    return next(c for c in capabilities(machine) if (c.target, c.precision) == (target, precision))


def with_tensorrt(machine: FakeMachine, version: str) -> Machine:
    return replace(machine, answers={**machine.answers, "tensorrt": {"version": version}}).inspect()


def test_the_targets_are_those_of_the_export() -> None:
    assert tuple(EXPORT_TARGETS) == TARGETS


def test_every_target_has_an_answer_in_every_precision_on_this_machine() -> None:
    answers = capabilities(inspect_machine())
    assert [(c.target, c.precision) for c in answers] == [(t, p) for t in TARGETS for p in PRECISIONS]
    assert all(c.note for c in answers)


def test_jetpack_6_runs_onnxruntime_and_tensorrt() -> None:
    machine = JETPACK_6_ORIN.inspect()
    for target in ("onnxruntime", "tensorrt", "tensorrt-8"):
        assert [found(machine, target, precision).status for precision in PRECISIONS] == ["yes"] * 3
    assert "TensorRT 10.3.0 on Orin" in found(machine, "tensorrt").note
    assert "no DeformConv" in found(machine, "onnxruntime").note
    assert "--target tensorrt-8" in found(machine, "onnxruntime").note
    assert "asimddp" in found(machine, "onnxruntime", "int8").note
    assert found(machine, "tensorrt-rtx").status == "no"
    assert to_do(machine) == ()


def test_jetpack_6_0_has_tensorrt_8() -> None:
    files = jetson_files("R36 (release), REVISION: 3.0", "NVIDIA Jetson AGX Orin", "tegra234", system="Ubuntu 22.04")
    machine = with_tensorrt(replace(JETPACK_6_ORIN, files=files), "8.6.2")
    assert found(machine, "tensorrt").status == "no"
    assert "use --target tensorrt-8" in found(machine, "tensorrt").note
    assert found(machine, "tensorrt-8", "int8").status == "yes"


def test_jetpack_5_is_served_by_trtexec() -> None:
    machine = JETPACK_5_XAVIER.inspect()
    assert found(machine, "onnxruntime").status == "yes"
    assert found(machine, "tensorrt").status == "no"
    files_only = found(machine, "tensorrt-8", "fp16")
    assert files_only.status == "partly"
    assert "/usr/src/tensorrt/bin/trtexec" in files_only.note and "Python 3.8" in files_only.note
    assert to_do(machine) == ()


def test_jetpack_4_and_5_0_are_too_old() -> None:
    for release in ("R32 (release), REVISION: 7.1", "R35 (release), REVISION: 1.0"):
        files = jetson_files(release, "NVIDIA Jetson AGX Xavier", "tegra194", system="Ubuntu")
        machine = replace(JETPACK_5_XAVIER, files=files).inspect()
        assert {found(machine, target).status for target in ("tensorrt", "tensorrt-8")} == {"no"}
        assert "GridSample" in found(machine, "tensorrt-8").note


def test_a_pc_with_an_rtx_gpu_runs_everything_that_was_promised() -> None:
    machine = PC_WITH_GPU.inspect()
    for target in ("onnxruntime", "tensorrt", "tensorrt-8"):
        assert [found(machine, target, precision).status for precision in PRECISIONS] == ["yes"] * 3
    rtx = [found(machine, "tensorrt-rtx", precision).status for precision in PRECISIONS]
    assert rtx == ["yes", "yes", "partly"]
    assert "calibrate" in found(machine, "tensorrt", "int8").note
    assert to_do(machine) == ()


def test_a_laptop_runs_on_its_cpu_and_is_told_nothing_it_cannot_use() -> None:
    machine = LAPTOP.inspect()
    assert found(machine, "onnxruntime", "int8").status == "yes"
    assert "without VNNI" in found(machine, "onnxruntime", "int8").note
    for target in ("tensorrt", "tensorrt-8", "tensorrt-rtx"):
        assert found(machine, target).status == "no"
        assert "nvidia-smi is not installed" in found(machine, target).note
    assert to_do(machine) == ()


def test_tensorrt_rtx_builds_without_a_gpu() -> None:
    machine = replace(LAPTOP, answers={**LAPTOP.answers, "tensorrt_rtx": {"version": "1.7.1.116"}}).inspect()
    assert found(machine, "tensorrt-rtx").status == "partly"
    assert "builds engines here" in found(machine, "tensorrt-rtx").note


@pytest.mark.parametrize(
    ("version", "target", "status", "reason"),
    [
        ("8.5.3", "tensorrt-8", "no", "older than 8.6"),
        ("8.6.1", "tensorrt-8", "yes", ""),
        ("8.6.1", "tensorrt", "no", "older than 10.1; use --target tensorrt-8"),
        ("10.1.0", "tensorrt", "yes", ""),
        ("10.2.0", "tensorrt", "no", "10.2.0 does not start"),
        ("10.2.0.post1", "tensorrt-8", "no", "10.2.0 does not start"),
        ("11.4.0.106", "tensorrt-8", "yes", "--target tensorrt has the better form"),
        ("12.0.0", "tensorrt", "partly", "newer than this version of CenterEdge knows"),
    ],
)
def test_versions_of_tensorrt(version: str, target: str, status: str, reason: str) -> None:
    capability = found(with_tensorrt(PC_WITH_GPU, version), target)
    assert capability.status == status
    assert reason in capability.note


def test_tensorrt_11_from_pip_does_not_belong_on_jetpack_6() -> None:
    machine = with_tensorrt(JETPACK_6_ORIN, "11.4.0")
    assert found(machine, "tensorrt").status == "no"
    assert "which brings 10.3" in found(machine, "tensorrt").note
    assert to_do(machine) == ("pip uninstall tensorrt tensorrt-cu12 tensorrt-cu13",)


def test_tensorrt_11_may_come_with_jetpack_7_2_2() -> None:
    files = jetson_files("R39 (release), REVISION: 2.1", "NVIDIA Jetson AGX Orin", "tegra234", system="Ubuntu 24.04")
    machine = with_tensorrt(replace(JETPACK_6_ORIN, files=files, python="3.12.3"), "11.4.1")
    assert found(machine, "tensorrt").status == "no"
    assert machine.jetson is not None
    newer = replace(machine, jetson=replace(machine.jetson, jetpack="7.2.2"))
    assert found(newer, "tensorrt").status == "yes"


def test_a_jetson_without_the_module_is_sent_to_jetpack_and_not_to_pip() -> None:
    answers = {name: answer for name, answer in JETPACK_6_ORIN.answers.items() if name != "tensorrt"}
    machine = replace(JETPACK_6_ORIN, answers=answers).inspect()
    assert "JetPack 6.2 brings it, pip does not" in found(machine, "tensorrt").note
    assert to_do(machine) == ("sudo apt install nvidia-jetpack && python3 -m venv --system-site-packages .venv",)
    other_python = replace(JETPACK_6_ORIN, answers=answers, python="3.12.7").inspect()
    assert "for Python 3.10, and this is 3.12.7" in found(other_python, "tensorrt").note
    assert to_do(other_python) == ("make clean && make PYTHON=/usr/bin/python3 demo",)


@pytest.mark.parametrize(("driver", "major"), [("580.65.06", 13), ("550.120", 12)])
def test_a_pc_gets_the_packages_of_the_cuda_that_its_driver_knows(driver: str, major: int) -> None:
    machine = replace(
        LAPTOP,
        smi=f"NVIDIA GeForce RTX 3060, {driver}, 12288, 8.6\n",
        answers={**LAPTOP.answers, "tensorrt_rtx": {"version": "1.7.1.116"}},
    ).inspect()
    tensorrt = "pip install tensorrt" if major == 13 else "pip install tensorrt-cu12"
    assert to_do(machine) == (tensorrt, f"pip install 'cuda-python=={major}.*'")
    assert found(machine, "tensorrt-rtx").status == "partly"
    assert "engines can be built, not run" in found(machine, "tensorrt-rtx").note


@pytest.mark.parametrize(
    ("capability", "tensorrt", "rtx"), [("7.0", "no", "no"), ("9.0", "yes", "no"), (None, "yes", "no")]
)
def test_gpus_that_are_too_old_or_not_for_it(capability: str | None, tensorrt: str, rtx: str) -> None:
    machine = replace(PC_WITH_GPU.inspect(), gpus=(Gpu("Some GPU", capability, "580.65.06", 16384),))
    assert found(machine, "tensorrt").status == tensorrt
    assert found(machine, "tensorrt-rtx").status == rtx


def test_without_opencv_nothing_runs() -> None:
    answers = {**LAPTOP.answers, "cv2": "ImportError: libGL.so.1: cannot open shared object file"}
    machine = replace(LAPTOP, answers=answers).inspect()
    assert {capability.status for capability in capabilities(machine)} == {"no"}
    assert "libGL.so.1" in found(machine, "onnxruntime").note
    assert to_do(machine) == ("pip install 'centeredge[cpu]'",)
    on_jetson = {name: answer for name, answer in JETPACK_6_ORIN.answers.items() if name != "cv2"}
    assert to_do(replace(JETPACK_6_ORIN, answers=on_jetson).inspect()) == ("sudo apt install python3-opencv",)
    assert to_do(replace(JETPACK_5_XAVIER, answers={}).inspect())[0] == "pip install opencv-python"


def test_opencv_of_the_system_with_a_numpy_that_is_too_new() -> None:
    answers = {**JETPACK_6_ORIN.answers, "cv2": "ImportError: numpy.core.multiarray failed to import"}
    machine = replace(JETPACK_6_ORIN, answers=answers, versions={"numpy": "2.2.6"}).inspect()
    assert to_do(machine) == ("pip install 'numpy<2'",)


def test_a_wheel_that_hides_jetpacks_opencv_is_to_go() -> None:
    answers = {**JETPACK_6_ORIN.answers, "cv2": {"version": "4.12.0", "build": WHEEL_BUILD}}
    commands = to_do(replace(JETPACK_6_ORIN, answers=answers).inspect())
    assert commands == ("pip uninstall opencv-python opencv-python-headless && sudo apt install python3-opencv",)


def test_onnxruntime_that_is_missing_or_old() -> None:
    missing = {name: answer for name, answer in LAPTOP.answers.items() if name != "onnxruntime"}
    assert to_do(replace(LAPTOP, answers=missing).inspect()) == ("pip install 'centeredge[cpu]'",)
    old = {**LAPTOP.answers, "onnxruntime": {"version": "1.16.3", "providers": []}}
    assert to_do(replace(LAPTOP, answers=old).inspect()) == ("pip install --upgrade onnxruntime",)
    on_jetson = {name: answer for name, answer in JETPACK_6_ORIN.answers.items() if name != "onnxruntime"}
    assert to_do(replace(JETPACK_6_ORIN, answers=on_jetson).inspect()) == ("pip install onnxruntime",)


@given(st.data())
def test_any_mixture_of_findings_has_answers(data: st.DataObject) -> None:
    """Whatever is there or broken: an answer for each, and no command twice."""
    known = MACHINES
    packages = [*(m.tensorrt for m in known), Package("x", problem="is broken"), Package("x", "unknown")]
    machine = replace(
        data.draw(st.sampled_from(known)),
        jetson=data.draw(st.sampled_from([m.jetson for m in known])),
        gpus=data.draw(st.sampled_from([m.gpus for m in known])),
        opencv=data.draw(st.sampled_from([m.opencv for m in known])),
        tensorrt=data.draw(st.sampled_from(packages)),
        tensorrt_rtx=data.draw(st.sampled_from(packages)),
        cuda=data.draw(st.sampled_from(packages)),
        arch=data.draw(st.sampled_from(["x86_64", "aarch64", "AMD64", "riscv64"])),
    )
    answers = capabilities(machine)
    assert len(answers) == len(TARGETS) * len(PRECISIONS)
    assert all(answer.note and answer.status in ("yes", "partly", "no") for answer in answers)
    assert not [answer for answer in answers if answer.status == "yes" and answer.todo]
    commands = to_do(machine)
    assert len(set(commands)) == len(commands)
