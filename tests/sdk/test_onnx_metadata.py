"""The reader of ONNX files without onnx, held against the onnx package."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sdk.errors import InputError, SpecError
from sdk.onnx_metadata import _PARTS, external_files, read_metadata, read_onnx_spec
from sdk.spec import ONNX_METADATA_KEY
from tests.helpers import tiny_spec


def write(
    folder: Path, *, metadata: dict[str, str] | None = None, locations: tuple[str, ...] = (), size: int = 4
) -> Path:
    """An ONNX file with an initializer of `size` floats, and one in each of the other files named."""
    here = numpy_helper.from_array(np.zeros(size, np.float32), "here")
    initializers = [here, *(external(f"w{index}", location) for index, location in enumerate(locations))]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["here"], ["out"])],
        "graph",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [size])],
        initializers,
    )
    model = helper.make_model(graph)
    helper.set_model_props(model, metadata or {})
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def external(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


@given(
    metadata=st.dictionaries(st.text(), st.text(), max_size=5),
    locations=st.lists(st.text(min_size=1), max_size=4).map(tuple),
    size=st.integers(0, 300),
)
def test_it_reads_what_the_onnx_package_wrote(
    tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, str], locations: tuple[str, ...], size: int
) -> None:
    path = write(tmp_path_factory.getbasetemp(), metadata=metadata, locations=locations, size=size)
    assert read_metadata(path) == metadata
    assert external_files(path) == tuple(dict.fromkeys(locations))


@given(content=st.binary(max_size=200))
def test_what_is_no_onnx_file_is_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "content.onnx"
    path.write_bytes(content)
    for read in (read_metadata, external_files):
        try:
            read(path)
        except InputError as err:
            assert str(path) in str(err) and "\n" not in str(err)


@given(part=st.floats(0.0, 1.0, exclude_max=True))
def test_a_file_cut_short_is_refused_or_read_as_onnx_reads_it(
    tmp_path_factory: pytest.TempPathFactory, part: float
) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = write(folder, metadata={"a": "b" * 50}, locations=("w.bin",)).read_bytes()
    path = folder / "cut.onnx"
    path.write_bytes(whole[: int(part * len(whole))])
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # of protobuf
        with pytest.raises(InputError, match="not an ONNX file"):
            read_metadata(path)
        return
    if model.ir_version and model.HasField("graph"):
        assert read_metadata(path) == {entry.key: entry.value for entry in model.metadata_props}


def test_the_field_numbers_are_those_of_onnx() -> None:
    messages = {
        "model": onnx.ModelProto,
        "training": onnx.TrainingInfoProto,
        "function": onnx.FunctionProto,
        "graph": onnx.GraphProto,
        "node": onnx.NodeProto,
        "attribute": onnx.AttributeProto,
        "tensor": onnx.TensorProto,
        "sparse tensor": onnx.SparseTensorProto,
    }
    names = {message.DESCRIPTOR.full_name: name for name, message in messages.items()}
    for name, message in messages.items():
        types = {part.number: part.message_type for part in message.DESCRIPTOR.fields if part.message_type}
        parts = {number: names[kind.full_name] for number, kind in types.items() if kind.full_name in names}
        assert _PARTS.get(name, {}) == parts, name


def test_external_tensors_are_found_wherever_they_stand(tmp_path: Path) -> None:
    inner = helper.make_graph([], "inner", [], [], [external("a", "in_subgraph.bin")])
    node = helper.make_node("If", ["c"], ["out"], then_branch=inner, else_branch=inner)
    constant = helper.make_node("Constant", [], ["k"], value=external("b", "in_constant.bin"))
    graph = helper.make_graph([constant, node], "graph", [], [])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert set(external_files(path)) == {"in_subgraph.bin", "in_constant.bin"}


def test_a_tensor_elsewhere_that_does_not_say_where_is_refused(tmp_path: Path) -> None:
    nowhere = TensorProto(name="w", data_location=TensorProto.EXTERNAL)
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(helper.make_graph([], "g", [], [], [nowhere])).SerializeToString())
    with pytest.raises(InputError, match="does not say in which"):
        external_files(path)


def test_messages_nested_without_end_are_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(200):  # a graph in an attribute of a node of a graph ...
        attribute = field(6, graph)
        graph = field(1, field(5, attribute))
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x08\x08" + field(7, graph))
    with pytest.raises(InputError, match="not an ONNX file"):
        external_files(path)


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message."""
    return header(number, len(content)) + content


def header(number: int, length: int) -> bytes:
    """What stands before the content of a field."""
    parts = []
    while length > 0x7F:
        parts.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([number << 3 | 2, *parts, length])


def test_weights_are_skipped_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, metadata={"key": "value"}, locations=("w.bin",))
    num_bytes = 2**31
    raw_data = header(9, num_bytes)
    tensor = header(5, len(raw_data) + num_bytes)
    graph = header(7, len(tensor) + len(raw_data) + num_bytes)
    with path.open("ab") as file:  # a second part of the graph, which the disk does not hold but for its end
        file.write(graph + tensor + raw_data)
        file.truncate(file.tell() + num_bytes)
    begun = time.monotonic()
    assert read_metadata(path) == {"key": "value"}
    assert external_files(path) == ("w.bin",)
    assert time.monotonic() - begun < 1.0


def test_the_spec_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, metadata={ONNX_METADATA_KEY: tiny_spec().to_json()})
    assert read_onnx_spec(path) == tiny_spec()


def test_a_file_without_a_sound_spec_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, metadata={"other": "text"})
    with pytest.raises(SpecError, match="no ModelSpec"):
        read_onnx_spec(path)
    path = write(tmp_path, metadata={ONNX_METADATA_KEY: "{"})
    with pytest.raises(SpecError, match=r"model\.onnx"):
        read_onnx_spec(path)
    with pytest.raises(InputError, match="No such file"):
        read_metadata(tmp_path / "missing.onnx")
