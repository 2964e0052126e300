"""What runs on a GPU: the same tests of the same claims, where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.test_loop import tiny_config
from train.data import open_data
from train.loop import Trainer, train
from train.models.deform_conv import DeformConv2d

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that PyTorch can use"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_on_the_gpu_ends_with_finite_figures(precision: str, tmp_path: Path) -> None:
    config = tiny_config(device="cuda", precision=precision)
    figures = train(config, open_data("synthetic", config), tmp_path)
    assert all(0.0 <= value <= 1.0 for value in figures.values())
    assert (tmp_path / "last.pth").is_file()


def test_a_step_on_the_gpu_is_that_of_the_cpu(tmp_path: Path) -> None:
    terms = {}
    for device in ("cpu", "cuda"):
        config = tiny_config(device=device, precision="fp32")
        trainer = Trainer(config, open_data("synthetic", config), tmp_path)
        terms[device] = trainer.train_step([trainer.batches[0]])
    for name, term in terms["cpu"].items():
        assert float(terms["cuda"][name]) == pytest.approx(float(term), rel=1e-3)


def test_deformable_convolution_on_the_gpu_is_that_of_the_cpu() -> None:
    torch.manual_seed(0)
    layer = DeformConv2d(8, 6)
    torch.nn.init.normal_(layer.conv_offset_mask.weight, std=0.5)
    x = torch.randn(2, 8, 9, 7)
    on_cpu = layer(x)
    on_gpu = layer.cuda()(x.cuda()).cpu()
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-4, atol=1e-4)
