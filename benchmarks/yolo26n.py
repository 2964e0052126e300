"""YOLO26n as ONNX, FP32 and INT8, for comparison: `python -m benchmarks.yolo26n 320 320`.

Ultralytics (AGPL) is neither a dependency nor a part of this project; it runs here in an environment of its own,
.venv-yolo. Its package imports torchvision, of which the export needs nothing, so empty modules stand in.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import numpy as np

from sdk.scenes import random_scene

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv-yolo"
CACHE = ROOT / "build" / "yolo26n"
NUM_CALIBRATION = 16

_EXPORT = """
import importlib.machinery, importlib.metadata, shutil, sys, types

class Distribution:
    version, metadata = "0.0", {"Name": "torchvision"}

version, distribution = importlib.metadata.version, importlib.metadata.distribution
importlib.metadata.version = lambda name: "0.0" if name == "torchvision" else version(name)
importlib.metadata.distribution = lambda name: Distribution if name == "torchvision" else distribution(name)

def missing(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})

for name in ("", ".ops", ".transforms", ".transforms.functional", ".models", ".datasets"):
    module = types.ModuleType("torchvision" + name)
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    module.__path__, module.__version__, module.__getattr__ = [], "0.0", missing
    sys.modules[module.__name__] = module

from ultralytics import YOLO

width, height, target = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
path = YOLO("yolo26n.yaml").export(format="onnx", imgsz=(height, width), nms=False, simplify=False, opset=17)
shutil.move(path, target)
"""
_NEEDS = [
    *("numpy", "opencv-python-headless", "onnx", "onnxruntime", "onnxscript", "pillow", "pyyaml", "requests"),
    *("psutil", "polars", "matplotlib", "scipy", "tqdm", "ultralytics-thop", "py-cpuinfo"),
]


class Unavailable(Exception):
    """YOLO26n cannot be made here."""


def models(input_wh: tuple[int, int]) -> dict[str, Path]:
    """FP32 and INT8 files of that size, made once.

    Raises:
        Unavailable: the packages cannot be installed.
    """
    width, height = input_wh
    fp32 = CACHE / f"yolo26n_{width}x{height}.onnx"
    int8 = CACHE / f"yolo26n_{width}x{height}.int8.onnx"
    if not fp32.is_file():
        _export(fp32, width, height)
    if not int8.is_file():
        _quantise(fp32, int8, input_wh)
    return {"yolo26n": fp32, "yolo26n.int8": int8}


def _export(path: Path, width: int, height: int) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    python = ENVIRONMENT / "bin" / "python"
    try:
        if not python.is_file():
            venv.create(ENVIRONMENT, with_pip=True)
            pip = [str(python), "-m", "pip", "install", "--quiet"]
            constraints = ["--constraint", str(ROOT / "constraints.txt")]
            subprocess.run([*pip, "torch", *_NEEDS, *constraints], check=True, capture_output=True)
            subprocess.run([*pip, "--no-deps", "ultralytics"], check=True, capture_output=True)
        command = [str(python), "-c", _EXPORT, str(width), str(height), str(path)]
        subprocess.run(command, check=True, capture_output=True, cwd=CACHE, text=True)
    except subprocess.CalledProcessError as err:
        reason = str(err.stderr or err).strip().splitlines()[-1]
        raise Unavailable(f"its export failed ({reason})") from err


def _quantise(fp32: Path, int8: Path, input_wh: tuple[int, int]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class DrawnScenes(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = NUM_CALIBRATION

        def get_next(self) -> dict[str, np.ndarray] | None:
            if not self._left:
                return None
            self._left -= 1
            image = random_scene(np.random.default_rng(self._left), input_wh)[0]
            return {"images": image.transpose(2, 0, 1)[None].astype(np.float32) / 255}

    prepared = fp32.with_suffix(".prepared.onnx")
    quant_pre_process(str(fp32), str(prepared))
    quantize_static(
        str(prepared),
        str(int8),
        DrawnScenes(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


if __name__ == "__main__":
    for name, path in models((int(sys.argv[1]), int(sys.argv[2]))).items():
        print(name, path)
