from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sdk.errors import ConfigError
from train.config import preset
from train.models import ARCHITECTURES, build_model
from train.specs import STRIDE, spec_from_config

SPEC = spec_from_config(preset("person-pose"), ("person",), trained_on="")
CHANNELS = {head.name: head.channels for head in SPEC.heads}

# Of the pose networks. A change here changes speed and every published figure: say so in the changelog.
NUM_PARAMETERS = {"edge_n": 513_610, "edge_s": 2_200_306, "edge_m": 5_644_346, "res_18": 12_951_034}


def test_every_architecture_is_pinned() -> None:
    assert set(NUM_PARAMETERS) == set(ARCHITECTURES)
    assert all(a < b for a, b in pairwise(NUM_PARAMETERS.values()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_outputs_are_the_heads_at_stride_4(architecture: str) -> None:
    torch.manual_seed(0)
    model = build_model(architecture, SPEC.heads).eval()
    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMETERS[architecture]
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        heads, again = model(images), model(images)
        alone = model(images[1:])
    assert {name: head.shape for name, head in heads.items()} == {
        name: (2, channels, 64 // STRIDE, 96 // STRIDE) for name, channels in CHANNELS.items()
    }
    for name, head in heads.items():
        assert torch.equal(head, again[name])
        torch.testing.assert_close(head[1:], alone[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fresh_heatmap_says_a_tenth_everywhere(architecture: str) -> None:
    torch.manual_seed(0)
    model = build_model(architecture, SPEC.heads).train()
    heads = model(torch.rand(2, 3, 64, 64))
    for name in ("heatmap", "keypoint_heatmap"):
        scores = torch.sigmoid(heads[name].detach())
        assert float(scores.min()) > 0.05 and float(scores.max()) < 0.2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_is_trained(architecture: str) -> None:
    torch.manual_seed(0)
    model = build_model(architecture, SPEC.heads).train()
    # Blocks start as their shortcuts; away from that start every weight has an influence.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    sum(head.square().sum() for head in model(torch.rand(2, 3, 64, 64)).values()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name.startswith("edge")])
def test_edge_networks_have_no_operator_that_int8_dislikes(architecture: str) -> None:
    kinds = {type(layer).__name__ for layer in build_model(architecture, SPEC.heads).modules()}
    assert not kinds & {"ConvTranspose2d", "SiLU", "Hardswish", "GELU", "LayerNorm", "Linear", "GroupNorm"}


def test_an_unknown_architecture_names_the_known() -> None:
    with pytest.raises(ConfigError, match="no architecture 'yolo'; there are edge_n, edge_s, edge_m, res_18"):
        build_model("yolo", SPEC.heads)
