"""`import sdk` needs NumPy alone."""

from __future__ import annotations

import json
import subprocess
import sys

import sdk
from tests.conftest import ROOT

OPTIONAL = (
    *("torch", "torchvision", "onnx", "onnxruntime", "cv2", "tensorrt", "tensorrt_rtx", "pycuda", "cuda"),
    *("pycocotools", "scipy", "tqdm"),
)


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_sdk_can_be_imported_without_any_optional_package() -> None:
    # None in sys.modules makes `import name` raise ImportError.
    out = _run(
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))\n"
        "import sdk\n"
        "print([sdk.Detector, sdk.Stream, sdk.open_source, sdk.ModelSpec, sdk.Detections])"
    )
    assert "Detector" in out


def test_the_sdk_imports_no_optional_package_that_is_there() -> None:
    found = json.loads(_run("import sdk, sys, json; print(json.dumps(sorted(sys.modules)))"))
    roots = {name.split(".")[0] for name in found}
    assert not roots & set(OPTIONAL)
    assert not roots & {"calibration", "train", "export", "apps"}


def test_a_missing_package_is_named_with_what_to_install() -> None:
    code = (
        "import sys; sys.modules[{missing!r}] = None\n"
        "import numpy, pathlib, sdk\n"
        "from sdk.backends.onnxruntime import OnnxRuntimeBackend\n"
        "from sdk.preprocessing import as_bgr\n"
        "try:\n"
        "    {use}\n"
        "except sdk.BackendUnavailable as err:\n"
        "    print(isinstance(err, ImportError), err)"
    )
    for missing, use in (
        ("onnxruntime", "OnnxRuntimeBackend(pathlib.Path('model.onnx'))"),
        ("cv2", "as_bgr(numpy.zeros((4, 4, 3), numpy.uint8))"),
    ):
        out = _run(code.format(missing=missing, use=use))
        assert out.startswith("True") and "pip install 'centeredge[cpu]'" in out and "Jet" in out


def test_all_names_that_are_promised_exist() -> None:
    assert sorted(sdk.__all__) == list(sdk.__all__)
    for name in sdk.__all__:
        assert getattr(sdk, name) is not None
    assert {"Detector", "Stream", "open_source", "ModelSpec", "Detections", "Keypoints", "Boxes3D"} <= set(sdk.__all__)
    assert {"Frame", "FrameResult", "SdkError", "InputError", "SourceError", "BackendError"} <= set(sdk.__all__)


def test_the_benchmarks_can_be_started() -> None:
    assert _run("from benchmarks.__main__ import BENCHMARKS; print(len(BENCHMARKS) > 5)").startswith("True")
