from __future__ import annotations

import pytest
import torch

from sdk.errors import ConfigError
from train.config import preset
from train.models import ARCHITECTURES, build_model
from train.models.layers import bilinear_upsampling
from train.samples import COCO_KEYPOINTS
from train.specs import STRIDE, spec_from_config

SPEC = spec_from_config(preset("person-pose"), ("person",), COCO_KEYPOINTS, trained_on="")
CHANNELS = {head.name: head.channels for head in SPEC.heads}

# Of the pose networks. A change here changes speed and every published figure: say so in the changelog.
NUM_PARAMETERS = {
    "edge_n": 513_610,
    "edge_s": 2_200_306,
    "edge_m": 5_644_346,
    "res_18_up": 12_951_034,
    "res_18": 16_261_242,
    "res_101": 53_876_346,
    "resdcn_18": 14_546_443,
    "resdcn_101": 49_782_283,
    "dla_34": 20_625_346,
    "dlav0_34": 18_910_930,
    "hourglass": 194_811_124,
}
HEAVY = ("res_101", "resdcn_101", "hourglass")
LIGHT = [name for name in ARCHITECTURES if name not in HEAVY]
EVERY = [*LIGHT, *(pytest.param(name, marks=pytest.mark.slow) for name in HEAVY)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_pinned(architecture: str) -> None:
    with torch.device("meta"):
        model = build_model(architecture, SPEC.heads)
    assert sum(p.numel() for p in model.parameters()) == NUM_PARAMETERS[architecture]
    assert model.stride == STRIDE and model.input_multiple % 32 == 0


@pytest.mark.parametrize("architecture", EVERY)
def test_outputs_are_the_heads_at_stride_4(architecture: str) -> None:
    torch.manual_seed(0)
    model = build_model(architecture, SPEC.heads).eval()
    width, height = 3 * model.input_multiple, 2 * model.input_multiple
    images = torch.rand(2, 3, height, width)
    with torch.inference_mode():
        heads, again = model(images), model(images)
        alone = model(images[1:])
        *_, last_stack = model.forward_stacks(images)
    assert {name: head.shape for name, head in heads.items()} == {
        name: (2, channels, height // STRIDE, width // STRIDE) for name, channels in CHANNELS.items()
    }
    for name, head in heads.items():
        assert torch.equal(head, again[name])
        assert torch.equal(head, last_stack[name])
        torch.testing.assert_close(head[1:], alone[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", EVERY)
def test_a_fresh_heatmap_says_a_tenth_everywhere(architecture: str) -> None:
    torch.manual_seed(0)
    model = build_model(architecture, SPEC.heads).train()
    side = max(64, model.input_multiple)
    heads = model(torch.rand(2, 3, side, side))
    for name in ("heatmap", "keypoint_heatmap"):
        scores = torch.sigmoid(heads[name].detach())
        assert float(scores.min()) > 0.05 and float(scores.max()) < 0.2


@pytest.mark.parametrize("architecture", EVERY)
def test_every_parameter_is_trained(architecture: str) -> None:
    torch.manual_seed(0)
    model = build_model(architecture, SPEC.heads).train()
    # Blocks start as their shortcuts; away from that start every weight has an influence.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    side = max(64, model.input_multiple)
    stacks = model.forward_stacks(torch.rand(2, 3, side, side))
    torch.stack([head.square().sum() for heads in stacks for head in heads.values()]).sum().backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert idle == {name for name, p in model.named_parameters() if not p.requires_grad}
    if architecture.startswith("dla"):  # in every official checkpoint, and of no influence
        assert {name.rsplit(".", 1)[0] for name in idle} == {
            "base.fc",
            "base.level3.project.0",
            "base.level3.project.1",
            "base.level4.project.0",
            "base.level4.project.1",
        }
    else:
        assert idle == set()


@pytest.mark.slow
def test_the_hourglass_has_two_stacks_with_heads_of_their_own() -> None:
    torch.manual_seed(0)
    model = build_model("hourglass", SPEC.heads).eval()
    with torch.inference_mode():
        first, last = model.forward_stacks(torch.rand(1, 3, 128, 128))
    assert first.keys() == last.keys() == CHANNELS.keys()
    assert not torch.equal(first["size"], last["size"])


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("groups", [1, 3])
def test_upsampling_starts_bilinear(factor: int, groups: int) -> None:
    x = torch.randn(1, 3, 6, 5)
    found = bilinear_upsampling(3, factor, groups=groups)(x)
    expected = torch.nn.functional.interpolate(x, scale_factor=factor, mode="bilinear")
    inside = (..., slice(factor, -factor), slice(factor, -factor))  # a border is zero here, and itself there
    torch.testing.assert_close(found[inside], expected[inside])


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name.startswith("edge")])
def test_edge_networks_have_no_operator_that_int8_dislikes(architecture: str) -> None:
    kinds = {type(layer).__name__ for layer in build_model(architecture, SPEC.heads).modules()}
    assert not kinds & {"ConvTranspose2d", "SiLU", "Hardswish", "GELU", "LayerNorm", "Linear", "GroupNorm"}


def test_an_unknown_architecture_names_the_known() -> None:
    with pytest.raises(
        ConfigError, match="no architecture 'yolo'; there are edge_n, edge_s, edge_m, res_18_up, res_18"
    ):
        build_model("yolo", SPEC.heads)
