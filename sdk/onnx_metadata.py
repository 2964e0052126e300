"""What an ONNX file says about itself, read without the onnx package and without its weights.

::

    spec = read_onnx_spec(Path("model.onnx"))
    target = read_metadata(Path("model.onnx")).get("centeredge.target")

A machine that has only TensorRT can so build an engine. An ONNX file is a protobuf message: fields, each a number, a
wire type and a value (https://protobuf.dev/programming-guides/encoding). Everything that is not asked for is skipped
by its length, so that a file of a gigabyte is read as fast as a small one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .errors import InputError, SpecError
from .spec import ONNX_METADATA_KEY, ModelSpec

# What `centeredge export` writes beside the spec: the target's name, and "min,opt,max" of a symbolic batch.
TARGET_METADATA_KEY = "centeredge.target"
BATCH_METADATA_KEY = "centeredge.batch"
MULTIPLE_METADATA_KEY = "centeredge.input_multiple"  # what the sides of the input must be multiples of

# Field numbers of onnx.proto.
_IR_VERSION, _GRAPH, _METADATA = 1, 7, 14  # of ModelProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1  # of TensorProto
# Where tensors can stand: message -> field -> message that it holds.
_PARTS = {
    "model": {_GRAPH: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
_MAX_DEPTH = 100  # of messages within messages, as protobuf's own readers have it
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file.

    Raises:
        InputError: the file is missing, is not ONNX, or is cut short.
    """
    with _open(path) as file:
        numbers, metadata = set(), {}
        for field in _fields(file, _Span(0, _size(file)), path):
            numbers.add(field.number)
            if field.number == _METADATA:
                key, value = _entry(file, field.span, path)
                metadata[key] = value
    if not {_IR_VERSION, _GRAPH} <= numbers:
        raise InputError(f"{path} is not an ONNX file: it holds no graph")
    return metadata


def read_onnx_spec(path: Path) -> ModelSpec:
    """The ModelSpec of an ONNX file.

    Raises:
        InputError: as `read_metadata`.
        SpecError: it carries no ModelSpec, or a damaged one.
    """
    text = read_metadata(path).get(ONNX_METADATA_KEY)
    if text is None:
        raise SpecError(f"{path} has no ModelSpec; use a file that `centeredge export` wrote")
    try:
        return ModelSpec.from_json(text)
    except SpecError as err:
        raise type(err)(f"{path}: {err}") from err


def external_files(path: Path) -> tuple[str, ...]:
    """Files that hold tensors of an ONNX file, as it names them; each once, in order of appearance.

    Raises:
        InputError: as `read_metadata`, or a tensor is said to be elsewhere but not where.
    """
    with _open(path) as file:
        return tuple(dict.fromkeys(_locations(file, _Span(0, _size(file)), "model", path, 0)))


def external_paths(path: Path) -> tuple[Path, ...]:
    """The same files where they lie, all of them within the folder of the ONNX file.

    Parsers open whatever is named there: a file from elsewhere must not choose what that is.

    Raises:
        InputError: as `external_files`, or a file is outside the folder, or is not there.
    """
    folder, files = path.resolve().parent, []
    for location in external_files(path):
        file = (folder / location).resolve()
        if Path(location).is_absolute() or ".." in Path(location).parts or not file.is_relative_to(folder):
            raise InputError(
                f"{path} keeps weights in {location!r}, outside its folder, which is refused; put the file beside it "
                "and export it again"
            )
        if not file.is_file():
            raise InputError(f"{path} keeps weights in {location!r}, which is not there; it belongs beside the .onnx")
        files.append(file)
    return tuple(files)


class _Span(NamedTuple):
    """Bytes of the file from `start` up to `end`."""

    start: int
    end: int


class _Field(NamedTuple):
    """A field of a message: its number, and its number or the place of its bytes."""

    number: int
    value: int
    span: _Span


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as err:
        raise InputError(f"cannot read {path}: {err.strerror}") from err


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _locations(file: BinaryIO, span: _Span, kind: str, path: Path, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise _damaged(path)
    if kind == "tensor":
        yield from _location(file, span, path)
        return
    for field in _fields(file, span, path):
        part = _PARTS[kind].get(field.number)
        if part is not None:
            yield from _locations(file, field.span, part, path, depth + 1)


def _location(file: BinaryIO, span: _Span, path: Path) -> Iterator[str]:
    """The file that one tensor stands in, if it is not this one."""
    entries, is_external = {}, False
    for field in _fields(file, span, path):
        if field.number == _EXTERNAL_DATA:
            key, value = _entry(file, field.span, path)
            entries[key] = value
        elif field.number == _DATA_LOCATION:
            is_external = field.value == _EXTERNAL
    if is_external:
        if "location" not in entries:
            raise InputError(f"{path} keeps a tensor in another file and does not say in which; export it again")
        yield entries["location"]


def _entry(file: BinaryIO, span: _Span, path: Path) -> tuple[str, str]:
    """A pair of strings."""
    texts = {_KEY: "", _VALUE: ""}
    for field in _fields(file, span, path):
        if field.number in texts:
            file.seek(field.span.start)
            try:
                texts[field.number] = file.read(field.span.end - field.span.start).decode()
            except UnicodeDecodeError as err:
                raise _damaged(path) from err
    return texts[_KEY], texts[_VALUE]


def _fields(file: BinaryIO, span: _Span, path: Path) -> Iterator[_Field]:
    """The fields of the message in a span; the file may be read elsewhere between them."""
    position = span.start
    while position < span.end:
        file.seek(position)
        tag = _varint(file, path)
        number, wire_type = tag >> 3, tag & 7
        value = _varint(file, path) if wire_type in (_VARINT, _BYTES) else 0
        start = file.tell()
        length = {_VARINT: 0, _FIXED64: 8, _BYTES: value, _FIXED32: 4}.get(wire_type)
        if number == 0 or length is None or start + length > span.end:
            raise _damaged(path)
        position = start + length
        yield _Field(number, value, _Span(start, position) if wire_type == _BYTES else _Span(start, start))


def _varint(file: BinaryIO, path: Path) -> int:
    """A number of seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise _damaged(path)
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise _damaged(path)


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is not an ONNX file, or it is cut short")
