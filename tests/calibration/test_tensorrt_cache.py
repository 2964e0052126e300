"""TensorRT's calibration cache: read and written bit by bit, told apart from damage, and turned into Q/DQ."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from calibration.collection import collect_statistics
from calibration.config import Target
from calibration.errors import CalibrationError
from calibration.methods import Range
from calibration.onnx_files import read_onnx, write_onnx
from calibration.quantisation import quantise
from calibration.ranges import ranges_from_statistics
from calibration.tensorrt_cache import cache_content, is_cache, model_ranges, network_ranges, read_cache, write_cache
from export.conversion import Form, convert
from sdk.backends.onnxruntime import OnnxRuntimeBackend
from sdk.detector import MODELS_FOLDER
from sdk.errors import ConfigError, InputError
from sdk.preprocessing import prepare
from sdk.scenes import random_scene
from sdk.spec import ModelSpec

# As TensorRT writes them: colons, spaces and brackets in names, and tensors that the ONNX file does not name.
HAND_MADE = """TRT-8502-EntropyCalibration2
input_1:0: 3c010a14
stem.0.2.Relu: 3d0b7086
(Unnamed Layer* 3) [Convolution]_output: 40008102
/model.0/act/Mul_output_0: 3F800000
"""


@pytest.fixture(scope="module")
def shipped() -> tuple[onnx.ModelProto, ModelSpec]:
    return read_onnx(MODELS_FOLDER / "person-pose.onnx")


@pytest.fixture(scope="module")
def frame(shipped: tuple[onnx.ModelProto, ModelSpec]) -> npt.NDArray[np.uint8]:
    return prepare(random_scene(np.random.default_rng(3), (200, 160))[0], shipped[1]).tensor


@pytest.fixture(scope="module")
def measured(shipped: tuple[onnx.ModelProto, ModelSpec]) -> dict[str, Range]:
    """Ranges of the shipped model, on two drawn scenes."""
    rng = np.random.default_rng(3)
    images = [random_scene(rng, (200, 160))[0] for _ in range(2)]
    return ranges_from_statistics(shipped[0], collect_statistics(*shipped, images, total=2), "minmax")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ranges.cache"


# --- The file


def test_a_cache_made_by_hand_is_read(path: Path) -> None:
    path.write_text(HAND_MADE)
    ranges = read_cache(path)
    assert list(ranges) == [
        "input_1:0",
        "stem.0.2.Relu",
        "(Unnamed Layer* 3) [Convolution]_output",
        "/model.0/act/Mul_output_0",
    ]
    assert ranges["/model.0/act/Mul_output_0"] == Range(-127.0, 127.0, 127.0)
    assert ranges["input_1:0"].amax == pytest.approx(1.0, rel=1e-3), "from 0 to 1, as TensorRT measured it"
    assert all(bounds.low == -bounds.amax and bounds.high == bounds.amax for bounds in ranges.values())


def test_a_cache_with_the_line_ends_of_windows_is_read(path: Path) -> None:
    path.write_bytes(HAND_MADE.replace("\n", "\r\n").encode())
    assert list(read_cache(path))[-1] == "/model.0/act/Mul_output_0"


names = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1)
steps = st.floats(min_value=2.0**-149, max_value=float(np.finfo(np.float32).max), width=32)


@given(st.dictionaries(names, steps, min_size=1))
def test_what_was_written_is_read_back_bit_by_bit(
    tmp_path_factory: pytest.TempPathFactory, amounts: dict[str, float]
) -> None:
    path = tmp_path_factory.getbasetemp() / "bits.cache"
    ranges = {name: Range(-step * 127, step * 127, step * 127) for name, step in amounts.items()}
    write_cache(ranges, path, tensorrt_version="10.3.0")
    assert read_cache(path) == ranges
    assert cache_content(read_cache(path), tensorrt_version="10.3.0") == path.read_bytes()


def test_steps_are_a_127th_of_the_symmetric_end_as_big_endian_float32(path: Path) -> None:
    write_cache({"a b: c": Range(-0.5, 3.0, 2.54)}, path, tensorrt_version="8.6.1.post1")
    assert path.read_text() == f"TRT-8601-EntropyCalibration2\na b: c: {np.float32(0.02).byteswap().tobytes().hex()}\n"


@pytest.mark.parametrize(
    ("version", "header"),
    [("8.5.2", "TRT-8502"), ("8.6.2", "TRT-8602"), ("10.3.0", "TRT-100300"), ("10.16.2.10", "TRT-101602")],
)
def test_the_header_has_the_version_as_tensorrt_writes_it(version: str, header: str) -> None:
    assert cache_content({"x": Range(0, 1)}, tensorrt_version=version).startswith(
        f"{header}-EntropyCalibration2\n".encode()
    )


@pytest.mark.parametrize(("version", "message"), [("11.0.0", "10 was the last"), ("8.5", "three numbers"), ("", "''")])
def test_versions_without_a_cache_are_refused(path: Path, version: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_cache({"x": Range(0, 1)}, path, tensorrt_version=version)
    assert not path.exists()


@pytest.mark.parametrize("amax", [0.0, -1.0, math.inf, 1e39 * 127, 1e-46])
def test_ranges_that_no_step_expresses_are_refused(path: Path, amax: float) -> None:
    with pytest.raises(CalibrationError, match=r"tensor 'dead' reaches to .*, expected a number above zero"):
        write_cache({"dead": Range(-1, 1, amax)}, path, tensorrt_version="8.5.2")
    assert not path.exists()


@pytest.mark.parametrize("name", ["", "two\nlines"])
def test_names_that_do_not_fit_in_a_line_are_refused(path: Path, name: str) -> None:
    with pytest.raises(CalibrationError, match="cannot hold the name"):
        write_cache({name: Range(0, 1)}, path, tensorrt_version="8.5.2")


def test_a_cache_that_cannot_be_written_leaves_the_old_one(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        write_cache({"x": Range(0, 1)}, tmp_path / "no folder" / "x.cache", tensorrt_version="8.5.2")
    path.mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        write_cache({"x": Range(0, 1)}, path, tensorrt_version="8.5.2")
    assert os.listdir(tmp_path) == ["ranges.cache"]


def hex_of(step: float) -> str:
    return struct.pack(">f", step).hex()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stem: 3d0b70", r"line 3 is 'stem: 3d0b70', expected a tensor's name"),
        ("stem: 3d0b7086ff", "line 3 is .* the file is damaged or cut short"),
        ("stem 3d0b7086", "line 3 is"),
        ("stem: 3d0b708g", "line 3 is"),
        (": 3d0b7086", "line 3 is"),
        (f"stem: {hex_of(0.0)}", r"line 3 gives tensor 'stem' the step 0, expected a number above zero"),
        (f"stem: {hex_of(-1.0)}", "line 3 gives tensor 'stem' the step -1"),
        (f"stem: {hex_of(math.nan)}", "the step nan"),
        (f"stem: {hex_of(math.inf)}", "the step inf"),
        ("first: 3d0b7086", "line 3 gives tensor 'first' a second time"),
    ],
)
def test_damage_is_found_and_its_line_named(path: Path, line: str, message: str) -> None:
    path.write_text(f"TRT-8502-EntropyCalibration2\nfirst: 3d0b7086\n{line}\nlast: 3d0b7086\n")
    with pytest.raises(CalibrationError, match=message) as caught:
        read_cache(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("calibrator", ["EntropyCalibration2", "EntropyCalibration", "MinMaxCalibration"])
def test_calibrators_that_give_steps_are_read_alike(path: Path, calibrator: str) -> None:
    path.write_text(f"TRT-100300-{calibrator}\nx: 3f800000\n")
    assert read_cache(path) == {"x": Range(-127.0, 127.0, 127.0)}


def test_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    path.write_text("TRT-8502-LegacyCalibration\nx: 3f800000\n")
    with pytest.raises(CalibrationError, match=r"by LegacyCalibration, expected one of EntropyCalibration2, "):
        read_cache(path)
    path.write_text('{"format": 2}\n')
    with pytest.raises(InputError, match=r"no calibration cache of TensorRT: line 1 is '\{\"format\": 2\}'"):
        read_cache(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match="it is not text"):
        read_cache(path)
    path.write_text("TRT-8502-EntropyCalibration2\n\n")
    with pytest.raises(CalibrationError, match="without a tensor"):
        read_cache(path)
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        read_cache(tmp_path / "missing.cache")


def test_a_cache_is_known_by_its_start(path: Path, tmp_path: Path) -> None:
    path.write_text(HAND_MADE)
    assert is_cache(path)
    path.write_text('{"format": 2}')
    assert not is_cache(path) and not is_cache(tmp_path / "missing") and not is_cache(tmp_path)


# --- Which tensors TensorRT is told about


def small_graph() -> onnx.GraphProto:
    """frame -> Cast -> Transpose -> Conv -> ReLU -> Conv (a head)."""
    nodes = [
        helper.make_node("Cast", ["frame"], ["frame.Cast"], to=TensorProto.FLOAT, name="frame.Cast"),
        helper.make_node("Transpose", ["frame.Cast"], ["Cast"], perm=[0, 3, 1, 2], name="Cast"),
        helper.make_node("Conv", ["Cast", "w"], ["stem.Conv"], name="stem.Conv"),
        helper.make_node("Relu", ["stem.Conv"], ["stem.Relu"], name="stem.Relu"),
        helper.make_node("Conv", ["stem.Relu", "v"], ["heatmap"], name="head.Conv"),
    ]
    inputs = [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, 8, 8, 3])]
    outputs = [helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, [1, 2, 8, 8])]
    return helper.make_graph(nodes, "small", inputs, outputs)


def test_pixels_and_what_a_relu_reads_have_ranges_and_heads_have_none() -> None:
    relu = Range(0.0, 4.0)
    found = network_ranges(small_graph(), {"stem.Relu": relu, "of another form": Range(0, 1)})
    pixel = Range(0.0, 255.0)
    assert list(found.items()) == [
        ("frame", pixel),
        ("frame.Cast", pixel),
        ("Cast", pixel),
        ("stem.Conv", relu),
        ("stem.Relu", relu),
    ]


def test_ranges_of_another_graph_or_for_a_file_with_qdq_are_refused() -> None:
    graph = small_graph()
    with pytest.raises(CalibrationError, match=r"2 of the 2 tensors in the ranges are not in the model \('a', 'b'\)"):
        network_ranges(graph, {"a": Range(0, 1), "b": Range(0, 1)})
    graph.node.append(helper.make_node("QuantizeLinear", ["stem.Relu", "s"], ["q"]))
    with pytest.raises(CalibrationError, match="has its ranges inside"):
        network_ranges(graph, {"stem.Relu": Range(0, 1)})


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_convolution_of_the_tensorrt_file_knows_what_it_reads(
    shipped: tuple[onnx.ModelProto, ModelSpec], measured: dict[str, Range], precision: str
) -> None:
    model, _ = convert(*shipped, Form("tensorrt-8", precision=precision))  # type: ignore[arg-type]
    ranges = network_ranges(model.graph, measured)
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    between = {node.output[0] for node in convs} - {"outputs.Conv"}
    assert len(convs) > 20
    assert {node.input[0] for node in convs} - ranges.keys() == set()
    assert between - ranges.keys() == set(), "before a ReLU as well"
    in_float = {"outputs.Conv", "heatmap.dense", "heatmap", "size", "class_ids"}
    assert not in_float & ranges.keys() and not any(name.startswith("peaks.") for name in ranges)


# --- From a cache to Q/DQ


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_cache_becomes_a_qdq_model(
    shipped: tuple[onnx.ModelProto, ModelSpec],
    measured: dict[str, Range],
    frame: npt.NDArray[np.uint8],
    tmp_path: Path,
    target: Target,
) -> None:
    model, spec = shipped
    lines = [f"{name}: {hex_of(bounds.amax / 127)}" for name, bounds in measured.items()]
    (tmp_path / "hand-made.cache").write_text("\n".join(["TRT-8502-EntropyCalibration2", *lines]))
    from_cache = quantise(model, model_ranges(model, read_cache(tmp_path / "hand-made.cache")), target=target)
    write_onnx(from_cache, tmp_path / "int8.onnx", spec=spec, weights_sha256="")
    int8, float32 = (
        OnnxRuntimeBackend(file).infer({"frame": frame})["heatmap"]
        for file in (tmp_path / "int8.onnx", MODELS_FOLDER / "person-pose.onnx")
    )
    assert np.abs(int8 - float32).max() < 0.2 * np.abs(float32).max()
    if target == "tensorrt":
        assert from_cache.graph == quantise(model, measured, target="tensorrt").graph, "nothing was lost on the way"


def test_what_comes_out_of_relus_starts_at_zero(
    shipped: tuple[onnx.ModelProto, ModelSpec], measured: dict[str, Range]
) -> None:
    """Else ONNX Runtime's form, in which the quantiser stands for the ReLU, would let negative values pass."""
    model = shipped[0]
    symmetric = {name: Range(-bounds.amax, bounds.amax, bounds.amax) for name, bounds in measured.items()}
    found = model_ranges(model, symmetric)
    assert found.keys() == measured.keys()
    for name, bounds in found.items():
        assert bounds.amax == measured[name].amax
        assert bounds.low == (0.0 if measured[name].low == 0.0 else -bounds.amax), name


def test_a_cache_of_tensorrt_itself_fits_whatever_file_it_was_made_from(
    shipped: tuple[onnx.ModelProto, ModelSpec], measured: dict[str, Range]
) -> None:
    """TensorRT has a step for each tensor of the file that it parsed, and for its own."""
    model, _ = convert(*shipped, Form("tensorrt-8"))
    everything = {name: Range(-1, 1) for node in model.graph.node for name in node.output}
    of_tensorrt = {"(Unnamed Layer* 3) [Constant]_output": Range(-1, 1), "ONNXTRT_Broadcast_7_output": Range(-1, 1)}
    found = model_ranges(shipped[0], {**everything, **of_tensorrt, **measured})
    assert measured.keys() <= found.keys() and of_tensorrt.keys().isdisjoint(found)
    assert {node.input[0] for node in model.graph.node if node.op_type == "Conv"} <= model_ranges(
        model, {**everything, **of_tensorrt}
    ).keys()


def test_a_cache_of_another_graph_is_refused(
    shipped: tuple[onnx.ModelProto, ModelSpec], measured: dict[str, Range]
) -> None:
    model = shipped[0]
    with pytest.raises(
        CalibrationError, match=r"no range for \d+ of the \d+ tensors .*\('stem\.0\.2\.Relu', .*, \.\.\.\)"
    ):
        model_ranges(model, {"images": Range(0, 1)})
    less = {name: bounds for name, bounds in measured.items() if name != "smooth.0.2.Relu"}
    with pytest.raises(CalibrationError, match=r"no range for 1 of the \d+ .*\('smooth\.0\.2\.Relu'\): it was made"):
        model_ranges(model, less)
    deeper = {**measured, "stages.2.2.conv1.Conv": Range(0, 1)}
    with pytest.raises(CalibrationError, match=rf"1 of the {len(deeper)} tensors .*\('stages\.2\.2\.conv1\.Conv'\)"):
        model_ranges(model, deeper)
