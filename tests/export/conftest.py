"""One model, exported once."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from torch import nn

from export.onnx_export import export_onnx
from export.verification import Report
from sdk.spec import ModelSpec

from .models import lively_model, write_checkpoint


class Exported:
    """A PyTorch model and the file it was exported to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model: nn.Module
        self.spec: ModelSpec
        self.model, self.spec = lively_model()
        self.weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.report: Report = export_onnx(self.model, self.spec, path)
        self.onnx = onnx.load(path)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("export") / "model.onnx")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model.pth")
