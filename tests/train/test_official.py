"""Official checkpoints: every tensor finds its place, and the network computes what the official one does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from sdk.errors import ConfigError, InputError, SpecError
from sdk.spec import COCO_KEYPOINT_NAMES, HeadSpec
from train.checkpoint import init_from, load_checkpoint
from train.models import build_model, load_imagenet_backbone
from train.official import COCO_CLASS_NAMES, OFFICIAL_HEADS, official_name

from .official_networks import LAYOUTS, official_forward, random_state, read_layout

NAMES = sorted(path.stem for path in LAYOUTS.glob("*.json"))
OWN_HEADS = {official: ours for ours, official in OFFICIAL_HEADS.items()}
OWN_TASKS = {"ctdet": ("detection",), "multi_pose": ("detection", "pose"), "ddd": ("detection", "3d")}
# The largest by name only: it alone would take longer than all the others.
LIGHT = [name for name in NAMES if not name.startswith(("hourglass", "resdcn_101"))]


def _write(path: Path, content: Any, *, old: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    return path


def _small(seed: int = 0, name: str = "resdcn_18-ctdet") -> dict[str, torch.Tensor]:
    return random_state(read_layout(name)["tensors"], seed)


def test_there_are_eight_layouts() -> None:
    assert len(NAMES) == 8


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_and_the_number_of_parameters(name: str) -> None:
    layout = read_layout(name)
    heads = [HeadSpec(OWN_HEADS[head], channels, "none") for head, channels in layout["heads"].items()]
    with torch.device("meta"):
        model = build_model(layout["architecture"], heads)
    assert sum(parameter.numel() for parameter in model.parameters()) == layout["num_parameters"]
    found = {official_name(own): list(tensor.shape) for own, tensor in model.state_dict().items()}
    assert found == layout["tensors"]


@pytest.mark.parametrize("name", LIGHT)
def test_it_computes_what_the_official_network_does(name: str, tmp_path: Path) -> None:
    _compare(name, tmp_path, side=64)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - set(LIGHT)))
def test_the_large_ones_too(name: str, tmp_path: Path) -> None:
    _compare(name, tmp_path, side=128)


def _compare(name: str, folder: Path, *, side: int) -> None:
    layout = read_layout(name)
    state = random_state(layout["tensors"])
    wrapped = {"epoch": 140, "state_dict": {f"module.{key}": value for key, value in state.items()}}
    model, spec = load_checkpoint(_write(folder / "model.pth", wrapped, old=True))
    assert not model.training
    assert spec.tasks == OWN_TASKS[layout["task"]]
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    expected = official_forward(layout["architecture"], state, layout["heads"], x)
    with torch.inference_mode():
        found = model(x)
    assert list(found) == [head.name for head in spec.heads]
    assert {name: head.shape[1] for name, head in found.items()} == {h.name: h.channels for h in spec.heads}
    for head, reference in expected.items():
        difference = (found[OWN_HEADS[head]].double() - reference).abs().max() / reference.abs().max()
        assert found[OWN_HEADS[head]].shape == (2, layout["heads"][head], side // 4, side // 4)
        assert difference < 1e-4, head
        assert reference.std() > 0.02  # nothing equals nothing all too easily


def test_the_spec_of_a_detector(tmp_path: Path) -> None:
    _, spec = train.load_checkpoint(_write(tmp_path / "ctdet_coco_resdcn18.pth", {"state_dict": _small()}))
    assert spec.name == "ctdet_coco_resdcn18" and spec.trained_on == "imported from ctdet_coco_resdcn18.pth"
    assert spec.class_names == COCO_CLASS_NAMES and len(set(COCO_CLASS_NAMES)) == 80
    assert spec.decoding == "centernet" and spec.score_threshold == 0.3
    assert spec.input.wh == (512, 512) and spec.input.fit == "longest_side"
    assert spec.input.mean == (0.40789654, 0.44719302, 0.47026115) and spec.input.channel_order == "bgr"
    assert [(head.name, head.activation) for head in spec.heads] == [
        ("heatmap", "sigmoid"),
        ("offset", "none"),
        ("size", "none"),
    ]


def test_the_spec_of_a_pose_model(tmp_path: Path) -> None:
    _, spec = load_checkpoint(_write(tmp_path / "pose.pth", _small(name="dla_34-multi_pose")))
    assert spec.class_names == ("person",) and spec.keypoint_names == COCO_KEYPOINT_NAMES
    assert len(spec.oks_sigmas) == 17 and len(spec.keypoint_flip_pairs) == 8
    assert spec.head("keypoint_offset").activation == "none"


def test_the_spec_of_a_3d_model(tmp_path: Path) -> None:
    _, spec = load_checkpoint(_write(tmp_path / "ddd.pth", _small(name="dla_34-ddd")), task="ddd")
    assert spec.class_names == ("Pedestrian", "Car", "Cyclist") and spec.score_threshold == 0.2
    assert spec.input.wh == (1280, 384) and spec.input.fit == "width"
    assert spec.input.mean == (0.485, 0.456, 0.406) and spec.input.std == (0.229, 0.224, 0.225)
    assert spec.head("depth").activation == "inverse_sigmoid"


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_form_of_file(tmp_path: Path, old: bool, prefix: str) -> None:
    state = _small()
    bare = {prefix + name: value for name, value in state.items()}
    for content in (bare, {"epoch": 1, "state_dict": bare}):
        model, _ = load_checkpoint(_write(tmp_path / "model.pth", content, old=old))
        own = model.state_dict()
        assert all(torch.equal(own[name], state[official_name(name)]) for name in own)


def test_half_precision_and_files_without_batch_counts_are_taken(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in _small().items() if "num_batches" not in name}
    model, _ = load_checkpoint(_write(tmp_path / "model.pth", state))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.is_meta for parameter in model.state_dict().values())


def test_classes_of_its_own_are_numbered(tmp_path: Path) -> None:
    state = _small()
    state["hm.2.weight"], state["hm.2.bias"] = torch.zeros(3, 64, 1, 1), torch.zeros(3)
    _, spec = load_checkpoint(_write(tmp_path / "model.pth", state))
    assert spec.class_names == ("class_0", "class_1", "class_2")


def test_a_model_without_offsets(tmp_path: Path) -> None:
    state = {name: value for name, value in _small().items() if not name.startswith("reg.")}
    _, spec = load_checkpoint(_write(tmp_path / "model.pth", state))
    assert not spec.has_head("offset")


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    state = _small()
    del state["layer1.0.conv1.weight"], state["deconv_layers.3.weight"]
    state["wh.2.weight"] = torch.zeros(160, 64, 1, 1)
    path = _write(tmp_path / "model.pth", state)
    with pytest.raises(
        SpecError,
        match=r"model.pth does not fit resdcn_18: 2 missing \(layer1.0.conv1.weight, deconv_layers.3.weight\); "
        r"1 misshapen \(wh.2.weight is \(160, 64, 1, 1\), not \(2, 64, 1, 1\)\)",
    ):
        load_checkpoint(path, architecture="resdcn_18")


def test_extra_tensors_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _write(tmp_path / "model.pth", {**_small(), "fc.weight": torch.zeros(3), "fc.bias": torch.zeros(3)})
    with caplog.at_level(logging.WARNING):
        load_checkpoint(path)
    assert "2 extra (fc.bias, fc.weight)" in caplog.text


def test_architecture_and_task_are_checked(tmp_path: Path) -> None:
    path = _write(tmp_path / "model.pth", _small())
    for task in ("ctdet", "detection"):
        load_checkpoint(path, architecture="resdcn_18", task=task)
    with pytest.raises(ConfigError, match=r"model.pth holds a 'resdcn_18', not a 'dla_34'; leave the option out"):
        load_checkpoint(path, architecture="dla_34")
    with pytest.raises(ConfigError, match=r"model.pth does detection, not pose"):
        load_checkpoint(path, task="multi_pose")
    with pytest.raises(ConfigError, match=r"no task 'exdet'; there are detection \(ctdet\), pose \(multi_pose\), 3d"):
        load_checkpoint(path, task="exdet")
    with pytest.raises(ConfigError, match="no architecture 'yolo'"):
        load_checkpoint(path, architecture="yolo")


def test_a_network_that_nobody_knows(tmp_path: Path) -> None:
    path = _write(tmp_path / "other.pth", {"a.weight": torch.zeros(3), "hm.2.bias": torch.zeros(80)})
    with pytest.raises(ConfigError, match=r"do not say which network .*\(a.weight, hm.2.bias, ...\); pass the arch"):
        load_checkpoint(path)
    with pytest.raises(SpecError, match=r"other.pth does not fit res_18: \d+ missing \(conv1.weight, .*, ...\)"):
        load_checkpoint(path, architecture="res_18")


def test_a_depth_that_we_do_not_have(tmp_path: Path) -> None:
    state = {f"layer3.{index}.conv1.weight": torch.zeros(1) for index in range(6)}
    state |= {"layer1.0.conv1.weight": torch.zeros(1), "deconv_layers.0.weight": torch.zeros(1)}
    with pytest.raises(ConfigError, match="holds a 'res_34', which is not among"):
        load_checkpoint(_write(tmp_path / "model.pth", state))


@pytest.mark.parametrize("content", [{}, {"state_dict": {}}, {"state_dict": {"a": 1}}, [torch.zeros(1)], 3])
def test_no_state_dict(tmp_path: Path, content: Any) -> None:
    with pytest.raises(SpecError, match="no ModelSpec and no state dict; expected a checkpoint that"):
        load_checkpoint(_write(tmp_path / "other.pth", content))


@pytest.mark.parametrize("old", [False, True])
def test_a_truncated_file(tmp_path: Path, old: bool) -> None:
    path = _write(tmp_path / "model.pth", {"state_dict": _small()}, old=old)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"model.pth is (damaged|not a PyTorch checkpoint)"):
        load_checkpoint(path)


def test_training_starts_from_an_official_detector(tmp_path: Path) -> None:
    """The paper's pose models start from detection: all but the new heads."""
    state = _small(name="dla_34-ctdet")
    path = _write(tmp_path / "ctdet.pth", {"state_dict": state})
    heads = [
        HeadSpec("heatmap", 1, "sigmoid"),
        HeadSpec("offset", 2, "none"),
        HeadSpec("size", 2, "none"),
        HeadSpec("keypoint_offset", 34, "none"),
    ]
    model = build_model("dla_34", heads)
    fresh = init_from(model, path)
    assert {name.rsplit(".", 2)[0] for name in fresh} == {"heads.outputs.heatmap", "heads.outputs.keypoint_offset"}
    assert torch.equal(model.state_dict()["ida_up.project.0.conv.weight"], state["ida_up.proj_1.conv.weight"])


def test_starting_from_another_official_network_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "ctdet.pth", {"kps.0.up1.0.conv1.weight": torch.zeros(3)})
    with pytest.raises(ConfigError, match=r"no tensor of .*ctdet.pth fits this network"):
        init_from(build_model("edge_n", [HeadSpec("heatmap", 1, "sigmoid")]), path)


HEADS = [HeadSpec("heatmap", 1, "sigmoid"), HeadSpec("size", 2, "none")]


def test_an_imagenet_resnet_starts_the_backbone(tmp_path: Path) -> None:
    names = {name: shape for name, shape in read_layout("res_18-ctdet")["tensors"].items() if name[0] in "bcl"}
    state = random_state(names)
    path = _write(
        tmp_path / "resnet18.pth", {**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    )
    for architecture in ("res_18", "resdcn_18", "res_18_up"):
        model = build_model(architecture, HEADS)
        assert load_imagenet_backbone(model, path) == ([], ["fc.weight", "fc.bias"])
        own = model.state_dict()
        # A classifier takes red, green, blue; the pictures here are blue, green, red.
        assert torch.equal(own["conv1.weight"], state["conv1.weight"].flip(1))
        assert all(torch.equal(own[name], value) for name, value in state.items() if name != "conv1.weight")
    with pytest.raises(
        SpecError, match=r"layer1.0.conv1.weight in .* is \(64, 64, 3, 3\), this network's is \(64, 64, 1"
    ):
        load_imagenet_backbone(build_model("res_101", HEADS), path)


def test_an_imagenet_dla_starts_the_backbone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = read_layout("dla_34-ctdet")["tensors"]
    state = random_state({name[5:]: shape for name, shape in tensors.items() if name.startswith("base.")})
    path = _write(tmp_path / "dla34.pth", {name: value for name, value in state.items() if "num_batches" not in name})
    model = build_model("dlav0_34", HEADS)
    assert load_imagenet_backbone(model, path) == ([], [])
    assert torch.equal(model.state_dict()["base.level5.root.conv.weight"], state["level5.root.conv.weight"])
    del state["level2.tree1.bn1.weight"]
    assert load_imagenet_backbone(model, _write(path, state)) == (["level2.tree1.bn1.weight"], [])
    assert "lacks level2.tree1.bn1.weight" in caplog.text


def test_imagenet_weights_that_fit_nothing(tmp_path: Path) -> None:
    path = _write(tmp_path / "other.pth", {"features.0.weight": torch.zeros(3)})
    with pytest.raises(ConfigError, match=r"holds no backbone of this network; expected tensors such as conv1.weight"):
        load_imagenet_backbone(build_model("res_18", HEADS), path)
    with pytest.raises(ConfigError, match="EdgeNet has no backbone that ImageNet weights fit"):
        load_imagenet_backbone(build_model("edge_n", HEADS), path)
