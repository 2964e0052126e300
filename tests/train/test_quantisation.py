"""A network that rounds as its INT8 file does: in ONNX Runtime and in PyTorch alike, and it can be trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from calibration.config import WeightOptions
from calibration.methods import Range
from calibration.onnx_files import write_onnx
from calibration.placement import Target
from calibration.qdq import quantised_conv
from calibration.quantisation import quantise
from export.conversion import Form, convert
from export.tracing import trace
from export.verification import drawn_frames
from sdk.backends import Backend
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.detector import Detector
from sdk.errors import ConfigError, InputError
from sdk.spec import HeadSpec, InputSpec, ModelSpec
from tests.export.models import lively_model, pose_config
from tests.train.test_loop import assert_same_run, failing_data, interrupt, tiny_config
from train.checkpoint import Checkpoint, load_checkpoint, read_checkpoint, save_checkpoint
from train.config import TrainConfig
from train.data import open_data
from train.evaluate import TorchBackend
from train.loop import Trainer, train
from train.models import build_model
from train.models.deform_conv import DeformConv2d
from train.models.layers import BasicBlock, CenterNet, SeparateHeads, conv_bn_relu
from train.preprocessing import normalised
from train.quantisation import Int8Layer, Int8Network, Steps, fake_quantise, read_int8
from train.sample_pictures import sample_pictures

TARGETS: tuple[Target, ...] = ("onnxruntime", "tensorrt")
IMAGENET = InputSpec(64, 64, mean=(0.41, 0.45, 0.47), std=(0.29, 0.27, 0.28))


class EveryLayer(CenterNet):
    """A few layers, one of each kind that a file has in INT8."""

    def __init__(self, heads: Sequence[HeadSpec]) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 16, stride=2)
        self.block = BasicBlock(16, 32, stride=2)
        self.beside = conv_bn_relu(32, 32, kernel=1)
        self.down = nn.MaxPool2d(2)
        self.deform = nn.Sequential(DeformConv2d(32, 16), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.up = nn.Sequential(
            nn.ConvTranspose2d(16, 32, 4, 2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
        )
        self.heads = SeparateHeads(32, 16, heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.block(self.stem(x))
        heads: dict[str, Tensor] = self.heads(self.beside(x) + self.up(self.deform(self.down(x))))
        return heads


@dataclass(frozen=True)
class Quantised:
    """A network, its canonical graph, and the ranges of its activations on a few frames."""

    model: CenterNet
    spec: ModelSpec
    graph: onnx.ModelProto
    ranges: dict[str, Range]

    def write(self, path: Path, target: Target = "onnxruntime", *, range_share: float = 1.0) -> Path:
        """Its INT8 file; ranges may be made smaller than they are."""
        ranges = {name: Range(range_share * row.low, range_share * row.high) for name, row in self.ranges.items()}
        int8 = quantise(self.graph, ranges, target=target, weights=WeightOptions(search=False))
        write_onnx(int8, path, spec=replace(self.spec, precision="int8"), weights_sha256="of no interest")
        return path


def quantised(model: CenterNet, spec: ModelSpec) -> Quantised:
    graph = trace(model, spec)
    values = onnx.shape_inference.infer_shapes(graph).graph.value_info
    names = [value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    every = onnx.ModelProto()
    every.CopyFrom(graph)
    del every.graph.output[:]
    every.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(every.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = [session.run(names, {"frame": frame}) for frame in drawn_frames(spec)]
    ranges = {
        name: Range(float(min(value.min() for value in values)), float(max(value.max() for value in values)))
        for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }
    return Quantised(model, spec, graph, ranges)


@pytest.fixture(scope="module")
def few() -> Quantised:
    """The few layers, and pixels with a mean and three scales, as official models have them."""
    torch.set_num_threads(1)
    _, spec = lively_model(task="detection")
    torch.manual_seed(0)
    model = EveryLayer(spec.heads).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
        elif isinstance(layer, DeformConv2d):
            nn.init.normal_(layer.conv_offset_mask.weight, std=0.05)
    for head in model.heads.outputs.values():
        nn.init.normal_(head[2].weight, std=0.1)  # type: ignore[index]
    return quantised(model, replace(spec, input=IMAGENET))


@pytest.fixture(scope="module")
def edge() -> Quantised:
    torch.set_num_threads(1)
    model, spec = lively_model()
    assert isinstance(model, CenterNet)
    return quantised(model, spec)


@pytest.fixture(scope="module")
def edge_file(edge: Quantised, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edge.write(tmp_path_factory.mktemp("int8") / "edge.int8.onnx")


@pytest.fixture(scope="module")
def start(edge: Quantised, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the network that the file was made of."""
    path = tmp_path_factory.mktemp("start") / "edge.pth"
    save_checkpoint(path, Checkpoint(edge.spec, pose_config(), edge.model.state_dict()))
    return path


def rounding(network: Quantised, path: Path) -> CenterNet:
    model = copy.deepcopy(network.model)
    fake_quantise(model, read_int8(path))
    return model


def distances(network: Quantised, path: Path) -> tuple[float, float, float]:
    """Root mean squares of heads: rounding - INT8 file, float - INT8 file and rounding - float."""
    rows = []
    backends: list[Backend] = [OnnxRuntimeBackend(path)]
    backends += [TorchBackend(model, network.spec) for model in (rounding(network, path), network.model)]
    for frame in drawn_frames(network.spec):
        heads = [backend.infer({"frame": frame}) for backend in backends]
        rows.append([np.concatenate([row[name].ravel() for name in heads[0]]) for row in heads])
    file, trained, exact = np.concatenate(rows, axis=1)
    return _rms(trained - file), _rms(exact - file), _rms(trained - exact)


def _rms(values: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("range_share", [4.0, 16.0])
def test_the_network_gives_what_its_int8_file_gives(
    few: Quantised, target: Target, range_share: float, tmp_path: Path
) -> None:
    # Where a sum lies in the middle between two steps, its last bits decide, and whatever depends on it goes another
    # way. So the two differ too, but by less.
    path = few.write(tmp_path / "int8.onnx", target, range_share=range_share)
    from_file, float_from_file, _ = distances(few, path)
    assert from_file < 0.6 * float_from_file


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("path", "node"),
    [("beside", "beside.0.Conv"), ("deform", "deform.0.DeformConv.MatMul"), ("up", "up.1.ConvTranspose")],
)
def test_weights_are_rounded_as_in_the_file(
    few: Quantised, target: Target, path: str, node: str, tmp_path: Path
) -> None:
    file = few.write(tmp_path / "int8.onnx", target)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}
    if f"{node}.weight.quantized" not in arrays:
        assert (target, path) == ("tensorrt", "deform")  # in float there
        return
    expected = as_in_pytorch(arrays[f"{node}.weight.quantized"], arrays[f"{node}.weight.scale"], path, target)
    model = rounding(few, file)
    layer, norm = model.get_submodule(f"{path}.0"), model.get_submodule(f"{path}.1")
    read: list[npt.NDArray[np.float32]] = []
    layer.register_forward_pre_hook(lambda layer, inputs: read.append(layer.weight.detach().numpy()))
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
        factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).numpy()
    found = read[0] * factor.reshape((1, -1, 1, 1) if path == "up" else (-1, 1, 1, 1))
    if target == "onnxruntime":
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    else:  # where scales have 11 bits, which sends a few weights to the next step
        assert np.isclose(found, expected, rtol=1e-3).mean() > 0.98


def as_in_pytorch(
    steps: npt.NDArray[np.int8], scale: npt.NDArray[np.float32], path: str, target: Target
) -> npt.NDArray[np.float32]:
    """Weights of a file, in the layout of the layer."""
    weight: npt.NDArray[np.float32]
    if path == "deform":  # (I, 9 O)
        weight = np.moveaxis((steps * scale).T.reshape(9, 16, 32), 0, 2).reshape(16, 32, 3, 3)
    elif path == "up" and target == "tensorrt":
        weight = steps * scale[:, None, None]
    else:
        weight = steps * scale[:, None, None, None]
    if path == "up" and target == "onnxruntime":  # four kernels of 2x2, one for each output around a corner
        corners = weight.reshape(2, 2, 32, 16, 2, 2).transpose(3, 2, 4, 0, 5, 1)
        weight = corners[:, :, ::-1, :, ::-1, :].reshape(16, 32, 4, 4)
    return weight


def test_every_kind_of_layer_is_found(few: Quantised, tmp_path: Path) -> None:
    nodes = {layer.node: layer for layer in read_int8(few.write(tmp_path / "int8.onnx")).layers}
    assert {"stem.0.Conv", "block.conv1.Conv", "deform.0.DeformConv.MatMul", "up.1.ConvTranspose"} < nodes.keys()
    assert not [name for name in nodes if "conv_offset_mask" in name or name.startswith("outputs")]
    assert nodes["stem.0.Conv"].steps.lowest == 0
    for_tensorrt = read_int8(few.write(tmp_path / "s8s8.onnx", "tensorrt")).layers
    assert {(layer.steps.zero_point, layer.steps.lowest) for layer in for_tensorrt} == {(0, -128)}


def test_a_file_in_half_precision_with_peaks_says_the_same(edge: Quantised, tmp_path: Path) -> None:
    model, spec = convert(edge.graph, edge.spec, Form("tensorrt", precision="int8"), ranges=edge.ranges)
    assert spec.output == "peaks"
    write_onnx(model, tmp_path / "half.onnx", spec=spec, weights_sha256="of no interest")
    half = read_int8(tmp_path / "half.onnx")
    dense = read_int8(edge.write(tmp_path / "dense.onnx", "tensorrt"))
    assert half.layers == dense.layers
    assert half.tensors == dense.tensors


@pytest.mark.parametrize("target", TARGETS)
def test_a_deep_network_loses_as_much_as_its_int8_file(edge: Quantised, target: Target, tmp_path: Path) -> None:
    # A value that is rounded up here and down there sends all layers behind it on other ways; the size stays.
    path = edge.write(tmp_path / "int8.onnx", target)
    _, float_from_file, lost = distances(edge, path)
    assert 0.7 * float_from_file < lost < 1.4 * float_from_file


@pytest.mark.parametrize("target", TARGETS)
def test_what_the_file_clips_is_clipped(edge: Quantised, target: Target, tmp_path: Path) -> None:
    path = edge.write(tmp_path / "int8.onnx", target, range_share=0.3)
    from_file, float_from_file, _ = distances(edge, path)
    assert from_file < 0.2 * float_from_file


def test_names_and_weights_stay(edge: Quantised, edge_file: Path) -> None:
    model = rounding(edge, edge_file)
    model(torch.zeros(1, 3, 64, 64))
    found, expected = model.state_dict(), edge.model.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in edge.model.named_parameters()]


def test_gradients_reach_all_weights_but_not_beyond_the_range(edge: Quantised, edge_file: Path) -> None:
    model = rounding(edge, edge_file)
    images = torch.from_numpy(drawn_frames(edge.spec)[0])
    heads = model(normalised(images, edge.spec))
    torch.stack([head.square().mean() for head in heads.values()]).sum().backward()  # type: ignore[no-untyped-call]
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []

    x = torch.tensor([-1.0, -0.49, 0.0, 0.3, 1.0, 1.6, 99.0], requires_grad=True)
    rounded = Steps(scale=0.5, zero_point=1, lowest=0, highest=4).round(x)
    rounded.sum().backward()  # type: ignore[no-untyped-call]
    assert rounded.tolist() == [-0.5, -0.5, 0.0, 0.5, 1.0, 1.5, 1.5]
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


@given(seed=st.integers(0, 2**32 - 1), factor=st.sampled_from([-3.0, -1.0, 0.01, 0.7, 40.0]))
def test_rounding_before_a_batch_norm_gives_the_integers_of_the_folded_weights(seed: int, factor: float) -> None:
    conv, generator = nn.Conv2d(4, 8, 3, bias=False), torch.Generator().manual_seed(seed)
    nn.init.normal_(conv.weight, generator=generator)
    one = torch.eye(4 * 9).view(36, 4, 3, 3)  # reads the weights one by one
    weight = np.float32(factor) * conv.weight.detach().numpy()
    folded, _, scale = quantised_conv(weight, None, np.float32(1), search=False)
    fake_quantise_alone(conv)
    found = factor * conv(one)[:, :, 0, 0].T.reshape(8, 4, 3, 3).detach().numpy() / scale[:, None, None, None]
    assert np.mean(np.abs(found - folded) < 1e-3) > 0.99  # but for those halfway between two


def fake_quantise_alone(conv: nn.Conv2d) -> None:
    class Alone(CenterNet):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"out": self.conv(x[:, :1].repeat(1, 4, 1, 1))}

    layer = Int8Layer("conv.Conv", Steps(1.0, 0, -128, 127), conv.weight.numel(), 8)
    fake_quantise(Alone(), Int8Network(Path("x"), (layer,), {}, (1.0, 1.0, 1.0)))


def rounding_config(file: Path, **changes: str) -> TrainConfig:
    rounds = {"fake_quantise": str(file), "precision": "fp32", "learning_rate": "1e-3", "max_steps": "8"}
    return tiny_config(**{**rounds, "evaluate_every": "4", **changes})


def test_a_run_lowers_the_loss_under_rounding_and_leaves_statistics_alone(
    edge_file: Path, start: Path, tmp_path: Path
) -> None:
    config = rounding_config(edge_file, ema_decay="0")
    trainer = Trainer(config, open_data("synthetic", config), tmp_path)
    trainer.begin(resume=False, init=start)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    losses = [step_of(trainer) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]
    after = trainer.model.state_dict()
    changed = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"weight", "bias"}


def step_of(trainer: Trainer) -> float:
    """The loss before a step on pictures that are always the same."""
    return float(sum(trainer.train_step([trainer.batches[0]]).values()))


@pytest.mark.slow
def test_training_makes_good_for_ranges_that_are_too_narrow(edge: Quantised, start: Path, tmp_path: Path) -> None:
    def run(config: TrainConfig, init: Path) -> tuple[Trainer, list[float]]:
        trainer = Trainer(config, open_data("synthetic", config), tmp_path)
        trainer.begin(resume=False, init=init)
        return trainer, [step_of(trainer) for _ in range(config.max_steps)]

    rounds = rounding_config(Path("int8.onnx"), max_steps="50", learning_rate="5e-4")
    in_float = replace(rounds, fake_quantise="", freeze_batch_norm=True)
    trained = run(replace(in_float, max_steps=100, learning_rate=2e-3), start)[0].model.eval()
    save_checkpoint(tmp_path / "trained.pth", Checkpoint(edge.spec, pose_config(), trained.state_dict()))
    trained.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    file = quantised(trained, edge.spec).write(tmp_path / "int8.onnx", range_share=0.4)
    trainer, losses = run(replace(rounds, fake_quantise=str(file)), tmp_path / "trained.pth")
    other, losses_in_float = run(in_float, tmp_path / "trained.pth")
    trainer.model.load_state_dict(other.model.state_dict())  # the same steps in float, rounded afterwards
    cost, cost_afterwards = losses[-1] - losses_in_float[-1], step_of(trainer) - losses_in_float[-1]
    assert cost_afterwards > 1.0
    assert cost < 0.4 * cost_afterwards


def test_a_run_shows_what_the_rounding_network_finds(edge: Quantised, start: Path, tmp_path: Path) -> None:
    file = edge.write(tmp_path / "int8.onnx", range_share=0.1)
    config = rounding_config(file)
    trainer = Trainer(config, open_data("synthetic", config), tmp_path)
    trainer.begin(resume=False, init=start)
    shown = trainer.pictures()

    def pictures_of(model: CenterNet) -> list[npt.NDArray[np.uint8]]:
        detector = Detector(TorchBackend(model, trainer.spec))
        return list(sample_pictures(detector, trainer.data.held_back, range(len(shown))))

    assert all(map(np.array_equal, shown, pictures_of(rounding(edge, file))))
    assert not any(map(np.array_equal, shown, pictures_of(edge.model)))


def test_an_interrupted_run_resumes_to_bit_equal_weights_that_load_as_ever(
    edge_file: Path, start: Path, tmp_path: Path
) -> None:
    config = rounding_config(edge_file)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(config, open_data("synthetic", config), straight, init=start)
    with pytest.raises(KeyboardInterrupt):
        train(config, failing_data(config, 2 * 6 + 1, interrupt), stopped, init=start)
    train(config, open_data("synthetic", config), stopped, resume=True)
    assert_same_run(stopped, straight)
    model, spec = load_checkpoint(straight / "best.pth")
    assert model.state_dict().keys() == read_checkpoint(start).weights.keys()
    assert spec.precision == "fp32"


def test_a_run_needs_weights_to_start_from(edge_file: Path, tmp_path: Path) -> None:
    config = rounding_config(edge_file)
    with pytest.raises(ConfigError, match=r"edge.int8.onnx goes on from trained weights; name them with --init"):
        train(config, open_data("synthetic", config), tmp_path)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("edge_s", r"is of another network: stem.1.0.Conv has 3456 weights there, and 6912 here; calibrate an export"),
        ("res_18_up", r"is of another network, which has a layer stem.0.0.Conv that this one lacks; calibrate an expo"),
    ],
)
def test_a_file_of_another_network_is_refused(
    architecture: str, message: str, edge: Quantised, edge_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"edge.int8.onnx {message}"):
        fake_quantise(build_model(architecture, edge.spec.heads), read_int8(edge_file))


def test_files_without_int8(edge: Quantised, tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    write_onnx(edge.graph, path, spec=edge.spec, weights_sha256="of no interest")
    with pytest.raises(
        ConfigError, match=r"float.onnx has nothing in INT8; fake_quantise takes the file that `centee?"
    ):
        read_int8(path)
    with pytest.raises(InputError, match=r"cannot read .*missing.onnx"):
        read_int8(tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "bf16"}, r"precision=bf16 rounds about as coarsely as INT8, .*; set precision=fp32"),
        ({"compile": "true"}, r"compile=true and fake_quantise do not go together; set compile=false"),
    ],
)
def test_options_that_contradict_rounding(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rounding_config(Path("int8.onnx"), **changes)
