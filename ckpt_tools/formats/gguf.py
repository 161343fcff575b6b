"""GGUF, the format of llama.cpp: a header of metadata and tensor descriptions, then the tensors' bytes.

The header's layout is that of ggml (docs/gguf.md, src/gguf.cpp): versions 1 (32-bit counts and lengths), 2 and
3 (which may be big-endian). Dimensions stand fastest first, the reverse of torch's order. Types of ggml that
pack several elements into a block, such as Q4_K, are described by `ckpt_tools.formats.dense.packed`.
"""

from __future__ import annotations

from math import prod
from struct import Struct
from typing import Any, Literal, NamedTuple

from ckpt_tools.checkpoint import Anomaly, Checkpoint, StateDict, Storage, TensorInfo
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, UnsupportedFeature
from ckpt_tools.formats.base import Format, HeaderEnd
from ckpt_tools.formats.dense import dense, packed
from ckpt_tools.sources import Source

MAX_TENSORS = 1 << 16
"""The most tensors; models have some thousand."""
MAX_ENTRIES = 1 << 16
"""The most entries of metadata; models have some dozens."""
MAX_STRINGS = 1 << 24
"""The most strings that are gone through in arrays; vocabularies have some hundred thousand."""
MAX_TEXT = 1 << 16
"""The longest text of the metadata that is kept, in bytes."""
MAX_ITEMS = 64
"""The longest array of the metadata that is kept; of others it is told how long they are."""
MAX_DIMENSIONS = 4
"""ggml's own limit, GGML_MAX_DIMS."""

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_NAMES = {
    0: "uint8", 1: "int8", 2: "uint16", 3: "int16", 4: "uint32", 5: "int32", 6: "float32", 7: "bool",
    _STRING: "string", 10: "uint64", 11: "int64", 12: "float64",
}  # fmt: skip

# enum ggml_type, as far as torch has the type
_DTYPES = {
    0: "float32",
    1: "float16",
    24: "int8",
    25: "int16",
    26: "int32",
    27: "int64",
    28: "float64",
    30: "bfloat16",
}
# and the others: name, elements in a block, bytes of a block (ggml-common.h)
_BLOCKS = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    31: ("Q4_0_4_4", 32, 18),
    32: ("Q4_0_4_8", 32, 18),
    33: ("Q4_0_8_8", 32, 18),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    36: ("IQ4_NL_4_4", 32, 18),
    37: ("IQ4_NL_4_8", 32, 18),
    38: ("IQ4_NL_8_8", 32, 18),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}


class _Entry(NamedTuple):
    """A tensor as the header gives it: its shape in torch's order, its bytes counted from the data's start."""

    name: str
    shape: tuple[int, ...]
    kind: int
    begin: int
    nbytes: int


class _Reader:
    """Reads the header forward, in pieces."""

    STEP = 1 << 16

    def __init__(self, source: Source) -> None:
        self.source = source
        self.at = 0
        self.order = "<"
        self.length = "Q"
        """What counts and lengths are: 64 bits, 32 in version 1."""
        self._start = 0
        self._data = b""
        self._structs: dict[str, Struct] = {}

    def take(self, size: int) -> bytes:
        """The next *size* bytes."""
        end = self.at + size
        if not self._start <= self.at <= end <= self._start + len(self._data):
            if end > self.source.size:
                raise CorruptFile(
                    f"a GGUF model, truncated: the header wants {size:,} bytes at byte {self.at:,}, "
                    f"but the file ends at {self.source.size:,}"
                )
            self._start = self.at
            self._data = self.source.peek(self.at, max(size, self.STEP))
        data = self._data[self.at - self._start : end - self._start]
        self.at = end
        return data

    def unpack(self, codes: str) -> tuple[Any, ...]:
        """The next numbers of the types *codes*, as `struct` names them, in the file's byte order."""
        known = self._structs.get(codes)
        if known is None:
            known = self._structs[codes] = Struct(self.order + codes)
        return known.unpack(self.take(known.size))

    def number(self, code: str) -> int:
        """One number."""
        (value,) = self.unpack(code)
        return value  # type: ignore[no-any-return]

    def skip(self, size: int) -> None:
        """Go past *size* bytes, which must be there."""
        if self.at + size > self.source.size:
            raise CorruptFile(
                f"a GGUF model, truncated: {size:,} bytes are declared at byte {self.at:,}, "
                f"but the file ends at {self.source.size:,}"
            )
        self.at += size

    def text(self, limit: int = MAX_TEXT) -> str:
        """A string; where it is longer than *limit* bytes, only how long it is."""
        size = self.number(self.length)
        if size > limit:
            self.skip(size)
            return f"[{size:,} bytes of text]"
        return self.take(size).decode("utf-8", "replace")


def detect(source: Source, head: bytes) -> bool:
    """Whether it begins with GGUF's mark."""
    return head.startswith(b"GGUF")


def read(source: Source) -> Checkpoint:
    """Describe a GGUF file; no more than its header is read.

    Metadata keep their keys. Texts and arrays that are long, such as vocabularies, are replaced by what they
    are and how long.
    """
    try:
        return _read(source)
    except CkptError as error:
        raise error.at(path=source.name) from None


def _read(source: Source) -> Checkpoint:
    reader = _Reader(source)
    reader.skip(4)
    version = reader.number("I")
    if version & 0xFFFF == 0:  # versions are small: it is the other byte order
        reader = _Reader(source)
        reader.order = ">"
        reader.skip(4)
        version = reader.number("I")
    if version not in (1, 2, 3):
        raise UnsupportedFeature(f"a GGUF model of version {version}, where 1 to 3 are known")
    if version == 1:
        reader.length = "I"
    tensors, entries = reader.unpack(2 * reader.length)
    left = source.size - reader.at
    # the shortest tensor: no name, no dimensions, type, offset; the shortest entry: no key, type, one byte
    if tensors * 20 + entries * 9 > left or tensors > MAX_TENSORS or entries > MAX_ENTRIES:
        raise LimitExceeded(
            f"a GGUF model that declares {tensors:,} tensors and {entries:,} entries of metadata, and has {left:,} "
            "bytes for them"
        )
    metadata = _metadata(reader, entries)
    described = [_entry(reader) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise CorruptFile(f"a GGUF model with the alignment {alignment!r}, which is no power of two")
    start = -(-reader.at // alignment) * alignment
    source.memo[HeaderEnd] = HeaderEnd(reader.at)
    order: Literal["little", "big"] = "big" if reader.order == ">" else "little"
    found: dict[str, object] = {}
    for entry in described:
        if entry.name in found:
            raise CorruptFile(f"a GGUF model with two tensors of the name {entry.name!r:.80}")
        found[entry.name] = _tensor(entry, source, start, order)
    _check_size(described, start, source.size)
    return Checkpoint(
        path=source.name,
        source=source,
        format=FORMAT.name,
        title=FORMAT.title,
        kind="state_dict",
        state_dicts=(StateDict((), "model", found),),
        values=found,
        metadata=metadata,
        producer={"GGUF version": str(version)} | ({"byte order": "big"} if order == "big" else {}),
        anomalies=tuple(_misplaced(described, alignment)),
        size=source.size,
    )


# --- metadata


def _metadata(reader: _Reader, count: int) -> dict[str, object]:
    metadata: dict[str, object] = {}
    strings = MAX_STRINGS
    for _ in range(count):
        key = reader.text()
        kind = reader.number("I")
        if key in metadata:
            raise CorruptFile(f"a GGUF model with the key {key!r:.80} twice", offset=reader.at)
        if kind != _ARRAY:
            metadata[key] = _value(reader, kind)
            continue
        kind = reader.number("I")
        length = reader.number(reader.length)
        if length <= MAX_ITEMS:
            metadata[key] = tuple(_value(reader, kind) for _ in range(length))
            continue
        if kind == _STRING:
            strings -= length
            if strings < 0:
                raise LimitExceeded(f"a GGUF model with more than {MAX_STRINGS:,} strings in arrays", offset=reader.at)
            for _ in range(length):
                reader.skip(reader.number(reader.length))
        elif kind in _SCALARS:
            reader.skip(length * Struct("=" + _SCALARS[kind]).size)
        else:  # arrays of arrays too, which ggml does not take either
            raise CorruptFile(f"a GGUF model with an array of the unknown type {kind}", offset=reader.at)
        metadata[key] = f"[{length:,} × {_NAMES[kind]}]"
    return metadata


def _value(reader: _Reader, kind: int) -> object:
    if kind == _STRING:
        return reader.text()
    if kind not in _SCALARS:
        raise CorruptFile(f"a GGUF model with a value of the unknown type {kind}", offset=reader.at)
    return reader.number(_SCALARS[kind])


# --- tensors


def _entry(reader: _Reader) -> _Entry:
    name = reader.text()
    rank = reader.number("I")
    if rank > MAX_DIMENSIONS:
        raise CorruptFile(
            f"tensor {name!r:.80} of {rank:,} dimensions, where GGUF has {MAX_DIMENSIONS}", offset=reader.at
        )
    shape = tuple(reversed(reader.unpack(reader.length * rank)))
    kind, begin = reader.unpack("IQ")
    elements = prod(shape)
    if elements >= 1 << 63:
        raise CorruptFile(f"tensor {name!r:.80} has more elements than 63 bits can count", offset=reader.at)
    if kind in _DTYPES:
        return _Entry(name, shape, kind, begin, elements * BY_NAME[_DTYPES[kind]].itemsize)
    if kind not in _BLOCKS:
        raise UnsupportedFeature(f"tensor {name!r:.80} is of ggml's type {kind}, which this version does not know")
    label, size, nbytes = _BLOCKS[kind]
    if (shape[-1] if shape else 1) % size:
        raise CorruptFile(
            f"tensor {name!r:.80} has rows of {shape[-1:]} elements, but {label} comes in blocks of {size}"
        )
    return _Entry(name, shape, kind, begin, elements // size * nbytes)


def _check_size(entries: list[_Entry], start: int, size: int) -> None:
    end = start + max((entry.begin + entry.nbytes for entry in entries), default=0)
    if end > size:
        whole = sum(1 for entry in entries if start + entry.begin + entry.nbytes <= size)
        raise CorruptFile(
            f"a GGUF model that holds {size:,} of {end:,} bytes: truncated; {whole:,} of {len(entries):,} tensors "
            "are whole",
            remedy="Download or copy the file again",
        )


def _tensor(entry: _Entry, source: Source, start: int, order: Literal["little", "big"]) -> TensorInfo:
    place = start + entry.begin
    if entry.kind in _DTYPES:
        dtype = BY_NAME[_DTYPES[entry.kind]]
        return dense(
            entry.name, dtype, entry.shape, Storage(source, place, entry.nbytes, dtype, "cpu", entry.name, order)
        )
    label, size, nbytes = _BLOCKS[entry.kind]
    storage = Storage(source, place, entry.nbytes, None, "cpu", entry.name, order)
    return packed(entry.name, label, entry.shape, storage, {"ggml": f"{label}: {size} elements in {nbytes} bytes"})


def _misplaced(entries: list[_Entry], alignment: int) -> list[Anomaly]:
    """The first tensor that does not stand where the one before it ends, which llama.cpp does not take."""
    expected = 0
    for entry in entries:
        if entry.begin != expected:
            return [Anomaly(f"it begins at byte {entry.begin:,} of the data, not at {expected:,}", entry.name)]
        expected += -(-entry.nbytes // alignment) * alignment
    return []


FORMAT = Format("gguf", "GGUF (llama.cpp)", read, detect)
