"""What an ONNX file holds, read without onnx or onnxruntime, and refused where it must not be loaded.

Only the wire format of protocol buffers is walked, from a memory map, so weights are not read; the map stays open as
long as what was found. Field numbers are those
of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from edgeft.errors import ModelError

NAMES = ("model.onnx", "decoder_model_merged.onnx", "onnx/model.onnx")
"""Tried in this order before any other .onnx file of a folder (edgeft's and optimum's names, transformers.js')."""
SUFFIX = ".onnx"

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_DEPTH = 16
"""Graphs inside attributes inside graphs."""
EXTERNAL = 1
"""`TensorProto.DataLocation`."""

MODEL_IR, MODEL_PRODUCER, MODEL_GRAPH, MODEL_OPSET, MODEL_METADATA, MODEL_TRAINING, MODEL_FUNCTION = (
    1, 2, 7, 8, 14, 20, 25,
)  # fmt: skip
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE = 1, 5, 15
NODE_INPUT, NODE_OUTPUT, NODE_OP, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES = (
    5, 6, 10, 11, 22, 23,
)  # fmt: skip
SPARSE_PARTS = (1, 2)
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW, TENSOR_EXTERNAL, TENSOR_LOCATION = 1, 2, 8, 9, 13, 14
FUNCTION_NODE, FUNCTION_ATTRIBUTE = 7, 11
TRAINING_GRAPHS = (1, 2)
KEY, VALUE = 1, 2

Value = int | memoryview


@dataclass(frozen=True)
class NodeInfo:
    """One node."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the file: the number of its type (`TensorProto.DataType`), its shape, and its bytes as far as they
    lie in one piece, in this file (`location` empty) or in another."""

    name: str
    kind: int
    shape: tuple[int, ...]
    n_bytes: int
    location: str
    offset: int
    raw: memoryview | None = field(default=None, repr=False, compare=False)
    """The bytes, where they lie in this file in one piece."""


@dataclass(frozen=True)
class ExternalData:
    """Where the bytes of a tensor lie: `location` is relative to the file's folder."""

    tensor: str
    location: str
    offset: int
    n_bytes: int | None
    """None: up to the end of that file."""


@dataclass
class OnnxFile:
    """What is known of an ONNX file before it is loaded."""

    path: Path
    n_bytes: int
    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    """Version by domain; the standard one is called `ai.onnx`."""
    metadata: dict[str, str] = field(default_factory=dict)
    nodes: list[NodeInfo] = field(default_factory=list)
    """Of the main graph."""
    inner_nodes: list[NodeInfo] = field(default_factory=list)
    """Of graphs inside nodes, and of functions."""
    tensors: list[TensorInfo] = field(default_factory=list)
    external: list[ExternalData] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader of its numbers should know, once it is open."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the file and of all it refers to."""
        files = {self.path.parent / each.location for each in self.external}
        return self.n_bytes + sum(path.stat().st_size for path in files)

    def consumers(self, value: str) -> set[str]:
        """Operators of the main graph that take `value`."""
        return {node.op for node in self.nodes if value in node.inputs}


def holds_onnx(path: Path) -> bool:
    """Whether `path` is an ONNX file, or a folder with one in it or in its `onnx/`."""
    return path.suffix == SUFFIX if path.is_file() else any((*path.glob("*.onnx"), *path.glob("onnx/*.onnx")))


def find_file(path: Path) -> tuple[Path, Path]:
    """The ONNX file of `path`, itself or in that folder, and the folder with its tokenizer and configuration.

    Raises ModelError when there is none, or when there are several and none has a usual name.
    """
    if path.is_file():
        above = path.parent.parent
        inside = path.parent.name == "onnx" and (above / "tokenizer.json").is_file()
        return path, above if inside else path.parent
    files = sorted([*path.glob("*.onnx"), *path.glob("onnx/*.onnx")])
    usual = [path / name for name in NAMES if path / name in files]
    if not files:
        raise ModelError(f"{path}: no .onnx file in this folder; export the model first (edgeft export)")
    if not usual and len(files) > 1:
        found = ", ".join(str(file.relative_to(path)) for file in files)
        raise ModelError(f"{path}: several models ({found}); give the path of one of them")
    return (usual or files)[0], path


def check_onnx(path: Path) -> OnnxFile:
    """Read the structure of the ONNX file `path` and check that all of it is there.

    Raises ModelError for a file that is none or is cut short, and for one whose external data is missing, cut short,
    or anywhere but in the file's own folder.
    """
    try:
        with path.open("rb") as file:
            n_bytes = path.stat().st_size
            if not n_bytes:
                raise ModelError(f"{path}: the file is empty; export or copy it again")
            # Unmapped with the last view of it: an exception's traceback may still hold one.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found = _model(OnnxFile(path, n_bytes), memoryview(mapped))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); give the path of an exported model") from None
    except _NotProtobuf as error:
        raise ModelError(f"{path}: {error}") from None
    for each in found.external:
        _check_external(path, each)
    return found


class _NotProtobuf(Exception):
    """The bytes are not what the format says."""


def _model(found: OnnxFile, content: memoryview) -> OnnxFile:
    if not _plausible(content):
        raise _NotProtobuf("not an ONNX file; export the model again (edgeft export)")
    n_graphs = 0
    for number, value in _fields(content):
        if number == MODEL_IR and isinstance(value, int):
            found.ir_version = value
        elif number == MODEL_PRODUCER:
            found.producer = _text(value)
        elif number == MODEL_OPSET:
            opset = dict(_fields(_message(value)))
            version = opset.get(VALUE, 0)
            found.opsets[_text(opset.get(KEY, memoryview(b""))) or "ai.onnx"] = (
                version if isinstance(version, int) else 0
            )
        elif number == MODEL_METADATA:
            key, text = _entry(value)
            found.metadata[key] = text
        elif number == MODEL_GRAPH:
            n_graphs += 1
            _graph(found, _message(value), 0)
        elif number == MODEL_FUNCTION:
            _function(found, _message(value))
        elif number == MODEL_TRAINING:
            for part, graph in _fields(_message(value)):
                if part in TRAINING_GRAPHS:
                    _graph(found, _message(graph), 1)
    if n_graphs != 1 or not found.nodes:
        raise _NotProtobuf("an ONNX file without a graph; it is damaged, export or copy it again")
    return found


def _plausible(content: memoryview) -> bool:
    """Every writer begins with the IR version (field 1), or where it is left out with another field of the model."""
    number, kind = content[0] >> 3, content[0] & 7
    expected = VARINT if number in (1, 5) else BYTES
    return number in (1, 2, 3, 4, 5, 6, 7, 8, 14) and kind == expected


def _graph(found: OnnxFile, content: memoryview, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise _NotProtobuf(f"graphs nested more than {MAX_DEPTH} deep; no exporter writes that")
    for number, value in _fields(content):
        if number == GRAPH_NODE:
            _node(found, _message(value), depth)
        elif number == GRAPH_INITIALIZER:
            _tensor(found, _message(value))
        elif number == GRAPH_SPARSE:
            _sparse(found, _message(value))


def _function(found: OnnxFile, content: memoryview) -> None:
    for number, value in _fields(content):
        if number == FUNCTION_NODE:
            _node(found, _message(value), 1)
        elif number == FUNCTION_ATTRIBUTE:
            _attribute(found, _message(value), 1)


def _node(found: OnnxFile, content: memoryview, depth: int) -> None:
    op, inputs, outputs = "", [], []
    for number, value in _fields(content):
        if number == NODE_OP:
            op = _text(value)
        elif number == NODE_INPUT:
            inputs.append(_text(value))
        elif number == NODE_OUTPUT:
            outputs.append(_text(value))
        elif number == NODE_ATTRIBUTE:
            _attribute(found, _message(value), depth)
    (found.inner_nodes if depth else found.nodes).append(NodeInfo(op, tuple(inputs), tuple(outputs)))


def _attribute(found: OnnxFile, content: memoryview, depth: int) -> None:
    for number, value in _fields(content):
        if number in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
            _tensor(found, _message(value))
        elif number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
            _graph(found, _message(value), depth + 1)
        elif number in (ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES):
            _sparse(found, _message(value))


def _sparse(found: OnnxFile, content: memoryview) -> None:
    for number, value in _fields(content):
        if number in SPARSE_PARTS:
            _tensor(found, _message(value))


def _tensor(found: OnnxFile, content: memoryview) -> None:
    name, entries, kind, location, n_bytes = "", {}, 0, 0, 0
    shape: list[int] = []
    raw: memoryview | None = None
    for number, value in _fields(content):
        if number == TENSOR_NAME:
            name = _text(value)
        elif number == TENSOR_DIMS:
            shape += [value] if isinstance(value, int) else _packed(value)
        elif number == TENSOR_RAW:
            raw = _message(value)
            n_bytes = len(raw)
        elif number == TENSOR_EXTERNAL:
            key, text = _entry(value)
            entries[key] = text
        elif number == TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif number == TENSOR_LOCATION and isinstance(value, int):
            location = value
    if location != EXTERNAL and not entries:
        found.tensors.append(TensorInfo(name, kind, tuple(shape), n_bytes, "", 0, raw))
        return
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries["length"]) if "length" in entries else None
    except ValueError:
        raise _NotProtobuf(f"the tensor {name!r} lies at no number of bytes in another file; it is damaged") from None
    found.external.append(ExternalData(name, entries.get("location", ""), offset, length))
    found.tensors.append(TensorInfo(name, kind, tuple(shape), length or 0, entries.get("location", ""), offset))


def _check_external(path: Path, data: ExternalData) -> None:
    where = f"{path}: the data of {data.tensor!r} "
    parts = (*PurePosixPath(data.location).parts, *PureWindowsPath(data.location).parts)
    absolute = PurePosixPath(data.location).is_absolute() or PureWindowsPath(data.location).anchor
    if not data.location or absolute or ".." in parts:
        raise ModelError(f"{where}lies outside the model's folder ({data.location!r}); do not trust this file")
    folder, target = path.parent.resolve(), (path.parent / data.location).resolve()
    if not target.is_relative_to(folder):
        raise ModelError(f"{where}is a link out of the model's folder ({data.location!r}); do not trust this file")
    if not target.is_file():
        raise ModelError(f"{where}should be in {data.location}, which is not there; copy the whole folder")
    held = target.stat().st_size
    end = data.offset + (data.n_bytes or 0)
    if data.offset < 0 or (data.n_bytes or 0) < 0 or end > held:
        raise ModelError(
            f"{where}ends at byte {end} of {data.location}, which has {held}: incomplete; export or copy it again"
        )


def _fields(content: memoryview) -> Iterator[tuple[int, Value]]:
    """(number, value) of every field: an int for a varint, a view of the bytes else."""
    at, end = 0, len(content)
    while at < end:
        tag, at = _varint(content, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise _NotProtobuf("not an ONNX file, or damaged; export or copy it again")
        if kind == VARINT:
            number_value, at = _varint(content, at)
            yield number, number_value
            continue
        if kind == BYTES:
            size, at = _varint(content, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise _NotProtobuf("not an ONNX file, or damaged; export or copy it again")
        if at + size > end:
            raise _NotProtobuf("incomplete ONNX file; export or copy it again")
        yield number, content[at : at + size]
        at += size


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    """The number at `at` and where the next field begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise _NotProtobuf("incomplete ONNX file; export or copy it again")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _NotProtobuf("not an ONNX file, or damaged; export or copy it again")


def _packed(content: memoryview) -> list[int]:
    """Numbers one behind the other."""
    numbers, at = [], 0
    while at < len(content):
        number, at = _varint(content, at)
        numbers.append(number)
    return numbers


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise _NotProtobuf("not an ONNX file, or damaged; export or copy it again")
    return value


def _text(value: Value) -> str:
    return bytes(_message(value)).decode(errors="replace")


def _entry(value: Value) -> tuple[str, str]:
    """A `StringStringEntryProto`."""
    parts = dict(_fields(_message(value)))
    return _text(parts.get(KEY, memoryview(b""))), _text(parts.get(VALUE, memoryview(b"")))
