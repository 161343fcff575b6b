"""ONNX models: a protobuf message whose initializers are the weights, in the file or in others beside it.

Just enough of the wire format is read to go from field to field by their lengths; the bytes of tensors are
passed over, so that a model costs no more than what describes it. Message layouts: onnx/onnx.proto; wire
format: the protobuf documentation's page on encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal, NamedTuple

from ckpt_tools.checkpoint import Anomaly, Checkpoint, StateDict, Storage, TensorInfo
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, NotFound, UnsupportedFeature
from ckpt_tools.formats.base import Format
from ckpt_tools.formats.dense import dense, packed
from ckpt_tools.pickles.torch_objects import MAX_RANK
from ckpt_tools.sources import Folder, Source

MAX_FIELDS = 1 << 22
"""The most fields that are gone through; a model of 100,000 nodes has a few hundred thousand."""
MAX_TENSORS = 1 << 18
"""The most initializers; a model has some thousand."""
MAX_TEXT = 1 << 16
"""The longest name that is read, in bytes, and the longest metadata that are kept."""
FIRST_FIELDS = 64
"""How many of the outermost fields are looked at to recognise a model."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# the wire type of each field of ModelProto: it has no mark, so that any other field tells it is something else
_MODEL = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2, 26: 2}

# TensorProto.DataType, as far as torch has the type
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
    17: "float8_e4m3fn",
    18: "float8_e4m3fnuz",
    19: "float8_e5m2",
    20: "float8_e5m2fnuz",
    24: "float8_e8m0fnu",
}
# and those that are packed: name, elements in a byte
_PACKED = {21: ("UINT4", 2), 22: ("INT4", 2), 23: ("FLOAT4E2M1", 2), 25: ("UINT2", 4), 26: ("INT2", 4)}
_STRING = 8
# fields of TensorProto that hold a list of values: those of fixed width, and varints
_FIXED_DATA = {4: ("float32", "complex64"), 10: ("float64", "complex128")}
_VARINT_DATA = frozenset({5, 7, 11})


class _Field(NamedTuple):
    """A field of a message: its number, wire type, value where it is a number, and where its bytes lie."""

    number: int
    wire: int
    value: int
    start: int
    end: int


class _Message:
    """Reads fields forward, through a window that grows where they stand close together."""

    LEAST, MOST = 1 << 9, 1 << 16

    def __init__(self, source: Source) -> None:
        self.source = source
        self._budget = MAX_FIELDS
        self._start = self._stop = 0
        self._data = b""
        self._step = self.LEAST

    def fields(self, start: int, end: int) -> Iterator[_Field]:
        """The fields of the message between *start* and *end*."""
        at = start
        while at < end:
            self._budget -= 1
            if self._budget < 0:
                raise LimitExceeded(f"an ONNX model of more than {MAX_FIELDS:,} fields", offset=at)
            tag, at = self.varint(at, end)
            number, wire = tag >> 3, tag & 7
            value, first = 0, at
            if wire == _VARINT:
                value, at = self.varint(at, end)
            elif wire == _BYTES:
                size, first = self.varint(at, end)
                at = first + size
            elif wire in (_FIXED64, _FIXED32):
                at += 8 if wire == _FIXED64 else 4
            if number == 0 or wire not in (_VARINT, _FIXED64, _BYTES, _FIXED32):
                raise CorruptFile("an ONNX model, damaged: no protobuf field stands where one must", offset=first)
            if at > end:
                wanted = f"field {number} wants {at - first:,} bytes, and {end - first:,} are left"
                what = "truncated" if end == self.source.size else "damaged"
                raise CorruptFile(f"an ONNX model, {what}: {wanted}", offset=first)
            yield _Field(number, wire, value, first, at)

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """The number at *at*, and the offset after it."""
        value = shift = 0
        while at < end and shift < 70:
            if not self._start <= at < self._stop:
                self._move(at)
            byte = self._data[at - self._start]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, at
            shift += 7
        problem = "a number without an end" if shift == 70 else "truncated within a number"
        raise CorruptFile(f"an ONNX model, {problem}", offset=at)

    def _move(self, at: int) -> None:
        self._step = min(self._step * 2, self.MOST) if at == self._stop else self.LEAST
        self._data = self.source.read(at, min(self._step, self.source.size - at))
        self._start, self._stop = at, at + len(self._data)

    def text(self, field: _Field) -> str:
        """A text; `LimitExceeded` where it is longer than any name."""
        size = field.end - field.start
        if field.wire != _BYTES:
            raise CorruptFile("an ONNX model, damaged: a number stands where text must", offset=field.start)
        if size > MAX_TEXT:
            raise LimitExceeded(f"a name of {size:,} bytes", offset=field.start)
        return self.source.read(field.start, size).decode("utf-8", "replace")

    def pair(self, message: _Field) -> tuple[str, str]:
        """The two texts of a StringStringEntryProto; of a long value only how long it is."""
        key = value = ""
        for part in self.fields(message.start, message.end):
            if part.number == 1:
                key = self.text(part)
            elif part.number == 2:
                size = part.end - part.start
                value = self.text(part) if size <= MAX_TEXT else f"[{size:,} bytes of text]"
        return key, value


class _Varints(Source):
    """Values kept as a run of varints, each as its lowest *width* bytes: read from the beginning, in pieces."""

    __slots__ = ("_at", "_message", "_position", "_run", "_width")

    def __init__(self, source: Source, run: _Field, count: int, width: int) -> None:
        super().__init__(source.name, count * width)
        self._run = run
        self._width = width
        self._message = _Message(source)
        self._position, self._at = 0, run.start

    def peek(self, offset: int, count: int) -> bytes:
        count = max(0, min(count, self.size - offset))
        if offset < self._position:
            self._position, self._at = 0, self._run.start
        skipped, data = offset - self._position, bytearray()
        mask = (1 << 8 * self._width) - 1
        at, end = self._at, self._run.end
        while self._position < offset + count and at < end:
            self._at = at
            value, at = self._message.varint(at, end)
            self._position += self._width
            if skipped >= self._width:
                skipped -= self._width
            else:
                data += (value & mask).to_bytes(self._width, "little")
        if self._position > offset + count:  # stopped within a value: come back to it
            self._position -= self._width
        else:
            self._at = at
        return bytes(data[skipped : skipped + count])


@dataclass(slots=True)
class _Tensor:
    """A TensorProto, as far as it says what the tensor is and where its bytes are."""

    name: str = ""
    dims: list[int] = field(default_factory=list)
    kind: int = 0
    raw: _Field | None = None
    values: list[_Field] = field(default_factory=list)
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False


def detect(source: Source, head: bytes) -> bool:
    """Whether the outermost fields are those of a model, a version and a graph among them."""
    if not head or head[0] & 7 not in (_VARINT, _BYTES):
        return False
    seen: dict[int, int] = {}
    message, at = _Message(source), 0
    try:
        for _ in range(FIRST_FIELDS):
            if at >= source.size:
                break
            tag, at = message.varint(at, source.size)
            if _MODEL.get(tag >> 3) != tag & 7:
                return False
            value, at = message.varint(at, source.size)
            seen.setdefault(tag >> 3, value)
            at += value if tag & 7 == _BYTES else 0
    except CkptError:
        pass  # it may be cut off
    return 7 in seen and 1 <= seen.get(1, 0) <= 100


def read(source: Source) -> Checkpoint:
    """Describe an ONNX model: versions, inputs and outputs, and its initializers.

    An initializer in an external file is described over that file, where it is there beside the model; one
    whose file would lie elsewhere is not followed there.
    """
    try:
        return _Model(source).describe()
    except CkptError as error:
        raise error.at(path=source.name) from None


class Mention(NamedTuple):
    """What a node refers to: an operator as ``domain::type``, or the *file* of a tensor among its attributes.

    A *key* is one under which a tensor's external data has something that the standard knows nothing of.
    """

    kind: Literal["operator", "file", "key"]
    text: str
    offset: int


# of which messages each message is made, as far as they lead to nodes and tensors; "" is a tensor's external data
_LEADS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: ""},
}


_EXTERNAL = ("offset", "length", "checksum", "basepath")


def mentions(source: Source) -> tuple[Mention, ...]:
    """The operators and external files in the model, each where it comes first: in functions and branches too.

    Raises `CkptError` where the model is damaged, or has more fields than any.
    """
    known = source.memo.get(Mention)
    if not isinstance(known, tuple):
        found: dict[str, Mention] = {}
        for mention in _mentions(source):
            found.setdefault(f"{mention.kind} {mention.text}", mention)
        known = source.memo[Mention] = tuple(found.values())
    return known


def _mentions(source: Source) -> Iterator[Mention]:
    message = _Message(source)
    pending: list[tuple[str, int, int]] = [("model", 0, source.size)]
    while pending:
        kind, start, end = pending.pop()
        names = {4: "", 7: ""}
        for part in message.fields(start, end):
            inner = _LEADS[kind].get(part.number) if part.wire == _BYTES else None
            if inner == "":
                key, value = message.pair(part)
                if key == "location":
                    yield Mention("file", value, part.start)
                elif key not in _EXTERNAL:
                    yield Mention("key", key, part.start)
            elif inner is not None:
                pending.append((inner, part.start, part.end))
            elif kind == "node" and part.number in names:
                names[part.number] = message.text(part)
        if kind == "node":
            yield Mention("operator", f"{names[7] or 'ai.onnx'}::{names[4]}", start)


def functions(source: Source) -> frozenset[str]:
    """The operators that the model itself defines, as ``domain::name``."""
    message = _Message(source)
    found = set()
    for part in message.fields(0, source.size):
        if part.number == 25 and part.wire == _BYTES:
            names = {1: "", 10: ""}
            for field in message.fields(part.start, part.end):
                if field.number in names:
                    names[field.number] = message.text(field)
            found.add(f"{names[10] or 'ai.onnx'}::{names[1]}")
    return frozenset(found)


class _Model:
    """What the fields of one model add up to."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.message = _Message(source)
        self.initializers: dict[str, object] = {}
        self.inputs: list[tuple[str, str]] = []
        self.outputs: list[tuple[str, str]] = []
        self.counts = {"nodes": 0, "functions": 0}
        self.properties: dict[str, object] = {}
        self.anomalies: list[Anomaly] = []
        self.folder = source.folder()
        self.files: dict[str, Source | str] = {}

    def describe(self) -> Checkpoint:
        names = {2: "", 3: ""}
        version = 0
        opsets: list[str] = []
        graph_name = ""
        for part in self.message.fields(0, self.source.size):
            if part.number in names:
                names[part.number] = self.message.text(part)
            elif part.number == 1:
                version = part.value
            elif part.number == 7:
                graph_name = self._graph(part)
            elif part.number == 8:
                opsets.append(self._opset(part))
            elif part.number == 14:
                key, value = self.message.pair(part)
                self.properties[key] = value
            elif part.number == 25:
                self.counts["functions"] += 1
        exporter = " ".join(name for name in names.values() if name)
        known: dict[str, object] = {"graph": graph_name} if graph_name else {}
        known |= {name: number for name, number in self.counts.items() if number}
        for title, values in (("inputs", self.inputs), ("outputs", self.outputs)):
            # before IR version 4 every initializer is an input too
            known[title] = tuple(text for name, text in values if name not in self.initializers)
        outside = sum(file.size for file in self.files.values() if isinstance(file, Source))
        return Checkpoint(
            path=self.source.name,
            source=self.source,
            format=FORMAT.name,
            title=FORMAT.title,
            kind="program",
            state_dicts=(StateDict((), "model", self.initializers),),
            values=self.initializers,
            metadata={**self.properties, **known},
            producer={
                **({"exporter": exporter} if exporter else {}),
                "ONNX IR version": str(version),
                "opset": ", ".join(opsets),
            },
            anomalies=tuple(self.anomalies),
            size=self.source.size + outside,
        )

    def _opset(self, message: _Field) -> str:
        domain, version = "ai.onnx", 0
        for part in self.message.fields(message.start, message.end):
            if part.number == 1:
                domain = self.message.text(part) or domain
            elif part.number == 2:
                version = part.value
        return f"{domain} {version}"

    # --- the graph

    def _graph(self, graph: _Field) -> str:
        """Go through the graph's fields; returns its name."""
        name = ""
        for part in self.message.fields(graph.start, graph.end):
            if part.number == 1:
                self.counts["nodes"] += 1
            elif part.number == 2:
                name = self.message.text(part)
            elif part.number == 5:
                tensor = self._parse(part)
                self._add(tensor.name, self._tensor(tensor, part.start))
            elif part.number == 15:
                self._add(*self._sparse(part))
            elif part.number in (11, 12):
                (self.inputs if part.number == 11 else self.outputs).append(self._value_info(part))
        return name

    def _add(self, name: str, tensor: object) -> None:
        if name in self.initializers:
            raise CorruptFile(f"an ONNX model with two initializers of the name {name!r:.80}")
        if len(self.initializers) == MAX_TENSORS:
            raise LimitExceeded(f"an ONNX model of more than {MAX_TENSORS:,} initializers")
        self.initializers[name] = tensor

    def _value_info(self, message: _Field) -> tuple[str, str]:
        """The name of an input or output, and it as text: ``x: float32[batch, 3]``."""
        name, text = "", ""
        for part in self.message.fields(message.start, message.end):
            if part.number == 1:
                name = self.message.text(part)
            elif part.number == 2:
                for kind in self.message.fields(part.start, part.end):
                    text = self._tensor_type(kind) if kind.number == 1 else ""
        return name, f"{name}: {text}" if text else name

    def _tensor_type(self, message: _Field) -> str:
        kind, dims = "", ""
        for part in self.message.fields(message.start, message.end):
            if part.number == 1:
                kind = _kind_name(part.value)
            elif part.number == 2:
                sizes = [self._dimension(dim) for dim in self.message.fields(part.start, part.end) if dim.number == 1]
                dims = f"[{', '.join(sizes)}]"
        return kind + dims

    def _dimension(self, message: _Field) -> str:
        for part in self.message.fields(message.start, message.end):
            if part.number in (1, 2):
                return str(_signed(part.value)) if part.number == 1 else self.message.text(part)
        return "?"

    # --- tensors

    def _parse(self, message: _Field) -> _Tensor:
        found = _Tensor()
        for part in self.message.fields(message.start, message.end):
            if part.number == 1:
                self._dims(part, found.dims)
            elif part.number == 2:
                found.kind = part.value
            elif part.number == 8:
                found.name = self.message.text(part)
            elif part.number == 9 and part.wire == _BYTES:
                found.raw = part
            elif part.number == 13:
                key, value = self.message.pair(part)
                found.external[key] = value
            elif part.number == 14:
                found.is_external = part.value == 1
            elif part.number in _VARINT_DATA or part.number in _FIXED_DATA:
                found.values = [*found.values[:1], part]  # one, or too many
        return found

    def _dims(self, part: _Field, dims: list[int]) -> None:
        """Add the dimensions in *part*: one, or a packed run of them."""
        at = part.start
        while at < part.end:
            size, at = self.message.varint(at, part.end)
            if len(dims) == MAX_RANK:
                raise LimitExceeded(f"an initializer of more than {MAX_RANK} dimensions", offset=part.start)
            if size >= 1 << 63:
                raise CorruptFile("an initializer with a negative dimension", offset=part.start)
            dims.append(size)

    def _tensor(self, tensor: _Tensor, at: int) -> object:
        """The description of *tensor*; where its elements are text, which is no tensor to torch, that as text."""
        name, shape = tensor.name, tuple(tensor.dims)
        elements = prod(shape)
        if elements >= 1 << 63:
            raise CorruptFile(f"initializer {name!r:.80} has more elements than 63 bits can count", offset=at)
        if tensor.kind == _STRING:
            return f"[{elements:,} × string]"
        if tensor.kind in _DTYPES:
            dtype = BY_NAME[_DTYPES[tensor.kind]]
            storage = self._storage(tensor, elements * dtype.itemsize, dtype.name, at)
            return dense(name, dtype, shape, replace(storage, dtype=dtype))
        if tensor.kind in _PACKED:
            label, per_byte = _PACKED[tensor.kind]
            storage = self._storage(tensor, -(-elements // per_byte), "uint8", at)
            return packed(name, label, shape, storage, {"onnx": f"{label}: {per_byte} elements in a byte"})
        raise UnsupportedFeature(
            f"initializer {name!r:.80} is of ONNX's type {tensor.kind}, which this version does not know", offset=at
        )

    def _storage(self, tensor: _Tensor, nbytes: int, dtype: str, at: int) -> Storage:
        """Where the *nbytes* bytes of *tensor* are; *dtype* is the type of its elements."""
        name = tensor.name
        if tensor.is_external:
            return self._external(tensor, nbytes)
        run = tensor.raw
        values = tensor.values
        if run is None and len(values) == 1 and values[0].wire == _BYTES:
            if dtype in _FIXED_DATA.get(values[0].number, ()):
                run = values[0]
            elif values[0].number in _VARINT_DATA:
                width = BY_NAME[dtype].itemsize
                count, size = nbytes // width, values[0].end - values[0].start
                if not count <= size <= 10 * count:
                    raise CorruptFile(f"initializer {name!r:.80} has {size:,} bytes for {count:,} numbers", offset=at)
                return Storage(_Varints(self.source, values[0], count, width), 0, nbytes, None, "cpu", name)
        if run is not None:
            if run.end - run.start != nbytes:
                raise CorruptFile(
                    f"initializer {name!r:.80} has {run.end - run.start:,} bytes, but its shape takes {nbytes:,}",
                    offset=at,
                )
            return Storage(self.source, run.start, nbytes, None, "cpu", name)
        missing = None
        if nbytes:
            missing = "its values are scattered" if values else "the file holds no values for it"
        return Storage(self.source, 0, nbytes, None, "cpu", name, missing=missing)

    def _external(self, tensor: _Tensor, nbytes: int) -> Storage:
        """The bytes of *tensor* in a file beside the model."""
        location = tensor.external.get("location", "")
        try:
            offset = int(tensor.external.get("offset") or 0)
            length = int(tensor.external.get("length") or nbytes)
        except ValueError:
            raise CorruptFile(f"initializer {tensor.name!r:.80} lies at an offset that is no number") from None
        if offset < 0 or length != nbytes:
            raise CorruptFile(
                f"initializer {tensor.name!r:.80} has {length:,} bytes at {offset:,} of {location!r:.80}, "
                f"but its shape takes {nbytes:,}"
            )
        file = self._file(location)
        missing = file if isinstance(file, str) else None
        if not isinstance(file, str) and offset + nbytes > file.size:
            missing = f"{location} ends at byte {file.size:,}, before its bytes at {offset:,} do"
        if missing is not None or isinstance(file, str):
            return Storage(self.source, 0, nbytes, None, "cpu", tensor.name, missing=missing)
        return Storage(file, offset, nbytes, None, "cpu", tensor.name)

    def _file(self, location: str) -> Source | str:
        """The external file *location*, or why there is none."""
        known = self.files.get(location)
        if known is None:
            known = self.files[location] = self._open(location)
        return known

    def _open(self, location: str) -> Source | str:
        try:
            Folder("").inside(location)
        except CorruptFile:
            what = f"an initializer's file would lie outside the model's folder: {location!r:.80}"
            self.anomalies.append(Anomaly(what, "external data"))
            return f"its file {location!r:.80} would lie outside the model's folder"
        if self.folder is None:
            return f"its bytes are in {location!r:.80} beside the model, and the model is not read from a folder"
        try:
            return self.folder.open(location)
        except NotFound:
            return f"its file {location!r:.80} is not there"

    def _sparse(self, message: _Field) -> tuple[str, TensorInfo]:
        """A SparseTensorProto: the values that are not zero, and where in the tensor they stand."""
        parts: dict[int, _Tensor] = {1: _Tensor(), 2: _Tensor()}
        dims: list[int] = []
        for part in self.message.fields(message.start, message.end):
            if part.number in parts:
                parts[part.number] = self._parse(part)
            elif part.number == 3:
                self._dims(part, dims)
        made = {n: self._tensor(tensor, message.start) for n, tensor in parts.items()}
        values, indices = made[1], made[2]
        if not isinstance(values, TensorInfo) or not isinstance(indices, TensorInfo):
            raise CorruptFile("a sparse initializer without values or indices", offset=message.start)
        return parts[1].name, TensorInfo(
            parts[1].name,
            values.dtype,
            tuple(dims),
            layout="sparse_coo",
            parts=(("indices", indices), ("values", values)),
            details={"onnx": "sparse_initializer"},
        )


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _kind_name(kind: int) -> str:
    if kind in _PACKED:
        return _PACKED[kind][0].lower()
    return "string" if kind == _STRING else _DTYPES.get(kind, f"type {kind}")


FORMAT = Format("onnx", "ONNX model", read, detect)
