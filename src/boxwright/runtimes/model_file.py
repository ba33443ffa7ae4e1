"""Model files on disk: where they are, and what an ONNX or XML file says of itself before an engine reads it.

The ONNX package is not needed for this: of the Protocol Buffers wire format a few lines are enough, and a file that
was cut off shows as a field that is longer than the rest.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

from boxwright.core.errors import ModelFileError

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_METADATA, _MODEL_FUNCTIONS, _MODEL_TRAINING = 7, 14, 25, 20
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE_INITIALIZER = 1, 5, 11, 12, 15
_TENSOR_NAME, _TENSOR_EXTERNAL_DATA = 8, 13
_TENSOR_FLOAT_DATA, _TENSOR_RAW_DATA = 4, 9
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VALUE_INFO_NAME = 1
# Where tensors can lie below a message, and the kind of message that follows:
# nodes' attributes, subgraphs, functions and sparse tensors.
_CHILDREN = {
    "model": {_MODEL_GRAPH: "graph", _MODEL_FUNCTIONS: "function", _MODEL_TRAINING: "training"},
    "training": {1: "graph", 2: "graph"},
    "graph": {_GRAPH_NODE: "node", _GRAPH_INITIALIZER: "tensor", _GRAPH_SPARSE_INITIALIZER: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_WIRE_VARINT, _WIRE_64_BIT, _WIRE_BYTES, _WIRE_32_BIT = 0, 1, 2, 5

# An XML file whose first element comes later is none that an engine wrote.
_MOST_BYTES_BEFORE_ROOT = 1 << 20
_XML_CHUNK_BYTES = 1 << 14
_HTML_PAGE = re.compile(rb"\s*(<\?xml[^>]*>\s*)?<(!doctype\s+html|html)\b", re.IGNORECASE)

Buffer = mmap.mmap | bytes
Span = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """What an ONNX file says of itself.

    Attributes:
        path: of the file.
        metadata: its `metadata_props`.
        input_names: of the graph, those with a value of their own included.
        output_names: of the graph.
        defaulted_input_names: inputs that have an initializer.
        external_paths: files beside it that hold tensors; all of them lie in its folder.
    """

    path: Path
    metadata: dict[str, str]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    defaulted_input_names: tuple[str, ...]
    external_paths: tuple[Path, ...]


def locate_model_file(path: str | os.PathLike[str]) -> Path:
    """The model file that a path means: itself, or the one IR inside an OpenVINO folder.

    Raises:
        ModelFileError: where there is none, or several.
    """
    given = Path(path)
    if given.is_dir():
        found = sorted(given.glob("*.xml"))
        if len(found) != 1:
            raise ModelFileError(
                str(given),
                expected="an OpenVINO folder with one .xml file",
                got=f"{len(found)} of them",
                fix="give the model file itself",
            )
        return found[0]
    if not given.is_file():
        got = "something else" if given.exists() else "a path that does not exist"
        raise ModelFileError(str(given), expected="a model file or an OpenVINO folder", got=got, fix="check the path")
    return given


def xml_root(path: str | os.PathLike[str]) -> str:
    """The name of an XML file's first element: "net" in an OpenVINO IR, "opencv_storage" in a file of OpenCV.

    Raises:
        ModelFileError: where it cannot be read or is no XML.
    """
    names: list[str] = []
    parser = expat.ParserCreate()

    def on_start(name: str, attributes: dict[str, Any]) -> None:
        names.append(name)

    parser.StartElementHandler = on_start
    got = "one without an element"
    try:
        with open(path, "rb") as file:
            if _HTML_PAGE.match(file.read(_XML_CHUNK_BYTES)):
                raise ModelFileError(
                    str(path),
                    expected="an XML file",
                    got="an HTML page",
                    fix="download the file itself, not the page that shows it",
                )
            file.seek(0)
            while not names and file.tell() < _MOST_BYTES_BEFORE_ROOT and (chunk := file.read(_XML_CHUNK_BYTES)):
                parser.Parse(chunk)
            if os.fstat(file.fileno()).st_size == 0:
                got = "an empty file"
    except expat.ExpatError as error:
        got = f"one that is damaged at line {error.lineno}"
    except OSError as error:
        got = error.strerror or str(error)
    if not names:  # what is damaged later is for the engine to say
        raise ModelFileError(str(path), expected="an XML file", got=got, fix="get an intact copy of it")
    return names[0]


def inspect_onnx(path: str | os.PathLike[str]) -> OnnxFile:
    """Read what an ONNX file says of itself, without its weights.

    Raises:
        ModelFileError: where it cannot be read, is cut off or no ONNX file, or has tensors in a file that is missing
            or lies outside its folder.
    """
    with _opened(path) as data:
        model = (0, len(data))
        metadata = dict(_entry(data, span) for span in _messages(data, model, _MODEL_METADATA))
        graphs = list(_messages(data, model, _MODEL_GRAPH))
        if not graphs:
            raise _damaged(path, "a file without a graph")
        # Repeated occurrences of a message are merged by the format, so all are looked at.
        names: dict[int, list[str]] = {_GRAPH_INITIALIZER: [], _GRAPH_INPUT: [], _GRAPH_OUTPUT: []}
        for graph in graphs:
            for field in _fields(data, graph):
                if field.wire == _WIRE_BYTES and field.number in names:
                    name_field = _TENSOR_NAME if field.number == _GRAPH_INITIALIZER else _VALUE_INFO_NAME
                    names[field.number].append(_text(data, field.content, name_field))
        initialized = set(names[_GRAPH_INITIALIZER])
        return OnnxFile(
            path=Path(path),
            metadata=metadata,
            input_names=tuple(names[_GRAPH_INPUT]),
            output_names=tuple(names[_GRAPH_OUTPUT]),
            defaulted_input_names=tuple(name for name in names[_GRAPH_INPUT] if name in initialized),
            external_paths=_external_paths(Path(path), data),
        )


def onnx_float(path: str | os.PathLike[str], name: str) -> float | None:
    """The value of an initializer that is a single float32; None where there is none of that name.

    Raises:
        ModelFileError: where the file cannot be read or is no ONNX file.
    """
    with _opened(path) as data:
        for graph in _messages(data, (0, len(data)), _MODEL_GRAPH):
            for tensor in _messages(data, graph, _GRAPH_INITIALIZER):
                if _text(data, tensor, _TENSOR_NAME) != name:
                    continue
                for number in (_TENSOR_RAW_DATA, _TENSOR_FLOAT_DATA):
                    for start, end in _messages(data, tensor, number):
                        if end - start == 4:
                            return float(struct.unpack("<f", bytes(data[start:end]))[0])
    return None


def onnx_without_initializers(path: str | os.PathLike[str], names: tuple[str, ...]) -> bytes:
    """The content of an ONNX file, the initializers of these names left out, so that they become plain inputs.

    Raises:
        ModelFileError: where it cannot be read or is no ONNX file.
    """
    with _opened(path) as data:
        pieces: list[bytes] = []
        for field in _fields(data, (0, len(data))):
            if field.is_message(_MODEL_GRAPH):
                graph = b"".join(_graph_pieces(data, field.content, names))
                pieces += [data[field.start : field.after_tag], _varint_bytes(len(graph)), graph]
            else:
                pieces.append(data[field.start : field.content[1]])
        return b"".join(pieces)


def _graph_pieces(data: Buffer, graph: Span, names: tuple[str, ...]) -> Iterator[bytes]:
    for field in _fields(data, graph):
        is_initializer = field.is_message(_GRAPH_INITIALIZER)
        if not (is_initializer and _text(data, field.content, _TENSOR_NAME) in names):
            yield data[field.start : field.content[1]]


def _external_paths(model_path: Path, data: Buffer) -> tuple[Path, ...]:
    # A tensor outside the file carries an entry with this key, so most files need no walk over their nodes.
    if data.find(b"location") < 0:
        return ()
    locations: set[str] = set()
    pending = [("model", (0, len(data)))]
    while pending:
        kind, span = pending.pop()
        for field in _fields(data, span):
            if field.wire != _WIRE_BYTES:
                continue
            if kind == "tensor" and field.number == _TENSOR_EXTERNAL_DATA:
                key, value = _entry(data, field.content)
                if key == "location":
                    locations.add(value)
            elif field.number in _CHILDREN.get(kind, {}):
                pending.append((_CHILDREN[kind][field.number], field.content))
    return tuple(_inside_folder(model_path, location) for location in sorted(locations))


def _inside_folder(model_path: Path, location: str) -> Path:
    """The file of external data, which a model from elsewhere must not choose freely on this machine."""
    folder = model_path.parent.resolve()
    file = (folder / location).resolve()
    if not file.is_relative_to(folder) or "\x00" in location:
        raise ModelFileError(
            str(model_path),
            expected="external data inside the folder of the model",
            got=f"the location {location!r}",
            fix="get the model with its data in one folder, and do not trust its source",
        )
    if not file.is_file():
        raise ModelFileError(
            str(model_path),
            expected=f"its external data {location!r} beside it",
            got="no such file",
            fix="copy that file too",
        )
    return file


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Buffer]:
    """The content of the file; what goes wrong in reading it becomes a `ModelFileError` that names the file."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise _damaged(path, "an empty file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data
    except OSError as error:
        raise ModelFileError(
            str(path), expected="a file that can be read", got=error.strerror or str(error), fix="check the path"
        ) from error
    except _WireError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: str | os.PathLike[str], got: str) -> ModelFileError:
    return ModelFileError(str(path), expected="an intact ONNX file", got=got, fix="copy or export it again")


class _WireError(Exception):
    """These bytes are not what the wire format allows."""


class _Field(NamedTuple):
    """A field of a message: where it starts, where its tag ends, and where its content lies."""

    number: int
    wire: int
    start: int
    after_tag: int
    content: Span

    def is_message(self, number: int) -> bool:
        return self.number == number and self.wire == _WIRE_BYTES


def _messages(data: Buffer, span: Span, number: int) -> Iterator[Span]:
    return (field.content for field in _fields(data, span) if field.is_message(number))


def _text(data: Buffer, span: Span, number: int) -> str:
    """The last string of that field, as the format has it."""
    text = ""
    for start, end in _messages(data, span, number):
        try:
            text = bytes(data[start:end]).decode()
        except UnicodeDecodeError as error:
            raise _WireError("a file with a name that is no text") from error
    return text


def _entry(data: Buffer, span: Span) -> tuple[str, str]:
    return _text(data, span, _ENTRY_KEY), _text(data, span, _ENTRY_VALUE)


def _fields(data: Buffer, span: Span) -> Iterator[_Field]:
    """The fields of a message."""
    position, end = span
    while position < end:
        start = position
        key, after_tag = _varint(data, start, end)
        wire, number = key & 7, key >> 3
        content = after_tag
        if wire == _WIRE_VARINT:
            _, position = _varint(data, after_tag, end)
        elif wire == _WIRE_BYTES:
            length, content = _varint(data, after_tag, end)
            position = content + length
        elif wire in (_WIRE_64_BIT, _WIRE_32_BIT):
            position = after_tag + (8 if wire == _WIRE_64_BIT else 4)
        else:
            raise _WireError("bytes that are no ONNX model")
        if number == 0:
            raise _WireError("bytes that are no ONNX model")
        if position > end:
            raise _WireError(f"one that ends {position - end} bytes too early")
        yield _Field(number, wire, start, after_tag, (content, position))


def _varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """The number at `position` and the position after it."""
    value, shift = 0, 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _WireError("one that ends within a number")


def _varint_bytes(value: int) -> bytes:
    pieces = bytearray()
    while value >= 0x80:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)
