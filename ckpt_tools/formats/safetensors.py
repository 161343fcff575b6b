"""safetensors files: a length, a JSON header, and the tensors' bytes one after the other.

What is accepted and what is refused follows the library (safetensors 0.8, safetensors/src/tensor.rs, and
serde_json beneath it), which also reads some headers that its own specification forbids; those are reported
as anomalies. The one exception is a key that occurs twice: the specification forbids it, the library takes
the last, other readers may take the first, so that a file could show each of them another tensor.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import NamedTuple

from ckpt_tools.checkpoint import Anomaly, Checkpoint, Role, StateDict, Storage, TensorInfo
from ckpt_tools.dtypes import BY_SAFETENSORS
from ckpt_tools.errors import CkptError, CorruptFile, UnsupportedFeature
from ckpt_tools.formats.base import Format
from ckpt_tools.sources import Source

MAX_HEADER = 100_000_000
"""The longest header the library reads, in bytes."""
MAX_DEPTH = 127
"""The deepest nesting of arrays and objects that serde_json reads."""

_FIELDS = ("dtype", "shape", "data_offsets")
_BITS = {code: 8 * dtype.itemsize for code, dtype in BY_SAFETENSORS.items()}
_BITS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_SIZE_LIMIT = 1 << 64  # the library computes in unsigned 64-bit integers
_TORCH_LIMIT = 1 << 63  # and torch in signed ones

_FRAMEWORKS = {
    "pt": "PyTorch",
    "np": "NumPy",
    "tf": "TensorFlow",
    "flax": "Flax",
    "paddle": "PaddlePaddle",
    "mlx": "MLX",
}
_OPTIMIZER_STATE = re.compile(
    r"(max_)?exp_avg(_sq(_row|_col)?)?|exp_inf|momentum_buffer|(square|grad)_avg|acc_(delta|grad)|step"
)

_repr = reprlib.Repr()
_repr.maxstring, _repr.maxlist = 100, 12
_quoted = _repr.repr  # bounded in length and depth, as what it shows need not be

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class _Entry(NamedTuple):
    """A tensor as the header gives it; *begin* and *end* count bytes from the end of the header."""

    name: str
    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


def detect(source: Source, head: bytes) -> bool:
    """Whether a header length and the beginning of a JSON object stand at the start."""
    length, start = head[:8], head[8:].lstrip(b" \t\r\n\xef\xbb\xbf")[:2]
    if len(length) < 8 or start[:1] != b"{":
        return False
    # a damaged length is still one where no text has a NUL, and an object begins with a quoted name
    return int.from_bytes(length, "little") <= MAX_HEADER or (0 in length and start == b'{"')


def read(source: Source) -> Checkpoint:
    """The tensors and metadata of a safetensors file; only its header is read.

    Raises `CorruptFile` for whatever the library would refuse, and `UnsupportedFeature` for tensors that it
    would list but torch cannot have.
    """
    try:
        return _read(source)
    except CkptError as error:
        raise error.at(path=source.name) from None


def _read(source: Source) -> Checkpoint:
    length = _header_length(source)
    header = _parse(source.read(8, length))
    anomalies: list[Anomaly] = []
    if source.peek(8, 1) != b"{":
        anomalies.append(Anomaly("the header begins with white space, where the format wants {", "header"))
    metadata = _metadata(header.pop("__metadata__", None))
    entries = [_entry(name, value, anomalies) for name, value in header.items()]
    _check_layout(entries, 8 + length, source.size)
    tensors = {entry.name: _tensor(entry, source, 8 + length) for entry in entries}
    role = _role(tensors)
    return Checkpoint(
        path=source.name,
        source=source,
        format=FORMAT.name,
        title=FORMAT.title,
        kind="optimizer" if role == "optimizer" else "state_dict",
        state_dicts=(StateDict((), role, tensors | _tied(tensors, metadata)),),
        values=tensors,
        metadata=metadata,
        producer=_producer(metadata),
        anomalies=tuple(anomalies),
        size=source.size,
    )


def _header_length(source: Source) -> int:
    if source.size < 8:
        raise CorruptFile(f"holds {source.size} of the 8 bytes that give the header's length: truncated")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > MAX_HEADER:
        raise CorruptFile(f"declares a header of {length:,} bytes; the format allows {MAX_HEADER:,}", offset=0)
    if 8 + length > source.size:
        raise CorruptFile(f"holds {source.size:,} of the {8 + length:,} bytes up to the header's end: truncated")
    return length


# --- the header as JSON, as serde_json reads it


def _parse(data: bytes) -> dict[str, object]:
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFile("the header is not UTF-8", offset=8 + error.start) from None
    try:
        header = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(header, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        offset = 8 + len(text[: error.pos].encode("utf-8"))
        raise CorruptFile(f"the header is not valid JSON: {error.msg}", offset=offset) from None
    except UnicodeEncodeError:
        raise CorruptFile("the header is not valid JSON: it escapes half of a surrogate pair") from None
    except RecursionError:
        raise CorruptFile("the header is nested too deeply") from None
    except ValueError as error:
        raise CorruptFile(f"the header is not valid JSON: {error}") from None
    if type(header) is not dict:
        raise CorruptFile("the header is valid JSON, but not an object", offset=8)
    return header


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise CorruptFile(f"the header has the key {_quoted(twice)} twice, so that readers may differ")
    return mapping


def _integer(literal: str) -> int | float:
    # whatever is no unsigned 64-bit integer can be no size or offset; -0 is a float to the library
    if len(literal) <= 20 and literal[0] != "-":
        value = int(literal)
        if value < _SIZE_LIMIT:
            return value
    return _float(literal)


def _float(literal: str) -> float:
    value = float(literal)
    if not isfinite(value):
        raise ValueError(f"the number {literal:.40} is out of range")
    return value


def _constant(literal: str) -> float:
    raise ValueError(f"{literal} is no number in JSON")


def _deeper_than(value: object, depth: int) -> bool:
    """Whether arrays and objects are nested more than *depth* deep in *value*."""
    level: list[object] = [value]
    for _ in range(depth + 1):
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            return False
        level = [item for c in containers for item in (c.values() if isinstance(c, dict) else c)]
    return True


# --- what the header says


def _metadata(value: object) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CorruptFile("__metadata__ is not an object")
    for key, text in value.items():
        if type(text) is not str:
            raise CorruptFile(f"__metadata__ has {_quoted(text)} under {_quoted(key)}; it may hold only text")
    return value


def _entry(name: str, value: object, anomalies: list[Anomaly]) -> _Entry:
    """The entry *value* of the header, checked by itself."""
    if type(value) is list and len(value) == len(_FIELDS):
        # any serde struct may come as a list of its fields
        anomalies.append(Anomaly("the tensor is described by a list, where the format wants an object", name))
        value = dict(zip(_FIELDS, value, strict=True))
    if type(value) is not dict:
        raise CorruptFile(f"the header's entry {_quoted(name)} is not an object that describes a tensor")
    if len(value) > len(_FIELDS):
        for field in value.keys() - _FIELDS:
            anomalies.append(Anomaly(f"the tensor has a field that the format does not know: {field}", name))
            if _deeper_than(value[field], MAX_DEPTH - 2):
                raise CorruptFile(f"the header is nested too deeply in tensor {_quoted(name)}")
    try:
        code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    except KeyError as error:
        raise CorruptFile(f"tensor {_quoted(name)} has no {error.args[0]}") from None
    if type(code) is dict and len(code) == 1 and None in code.values():
        # and an enum's variant as an object with null in it
        (code,) = code
        anomalies.append(Anomaly("the dtype is an object, where the format wants text", name))
    bits = _BITS.get(code) if type(code) is str else None
    if bits is None:
        raise CorruptFile(f"tensor {_quoted(name)} has the unknown dtype {_quoted(code)}")
    if type(shape) is not list:
        raise CorruptFile(f"tensor {_quoted(name)} has the shape {_quoted(shape)}, which is no list")
    count = 1
    for size in shape:
        if type(size) is not int:
            raise CorruptFile(f"tensor {_quoted(name)} has a shape with {_quoted(size)} in it")
        count *= size
        if count >= _SIZE_LIMIT:
            raise CorruptFile(f"tensor {_quoted(name)} has more elements than 64 bits can count")
    if type(offsets) is not list or [type(offset) for offset in offsets] != [int, int]:
        raise CorruptFile(
            f"tensor {_quoted(name)} has the data_offsets {_quoted(offsets)}, not the two byte offsets wanted"
        )
    begin, end = offsets
    if end < begin:
        raise CorruptFile(f"tensor {_quoted(name)} would begin at byte {begin:,} and end at byte {end:,}")
    if (end - begin) * 8 != count * bits:
        raise CorruptFile(
            f"tensor {_quoted(name)} has {end - begin:,} bytes, but {code} of shape {_quoted(shape)} takes "
            + (f"{count * bits // 8:,}" if count * bits % 8 == 0 else "no whole number of them")
        )
    return _Entry(name, code, tuple(shape), begin, end)


def _check_layout(entries: list[_Entry], start: int, size: int) -> None:
    """Check that *entries* cover the bytes from *start* to *size* without a hole or an overlap."""
    position = 0
    previous = ""
    for name, _, _, begin, end in sorted(entries, key=lambda entry: entry[3:]):
        if begin > position:
            raise CorruptFile(
                f"the {begin - position:,} bytes before tensor {_quoted(name)} belong to no tensor",
                offset=start + position,
            )
        if begin < position:
            raise CorruptFile(
                f"tensor {_quoted(name)} begins within tensor {_quoted(previous)}, which ends at byte "
                f"{start + position:,}",
                offset=start + begin,
            )
        position = end
        previous = name
    if start + position > size:
        whole = sum(1 for entry in entries if start + entry.end <= size)
        raise CorruptFile(
            f"holds {size:,} of {start + position:,} bytes: truncated; {whole:,} of {len(entries):,} tensors are whole",
            remedy="Download or copy the file again",
        )
    if start + position < size:
        raise CorruptFile(
            f"{size - start - position:,} bytes that belong to no tensor stand at the end",
            offset=start + position,
        )


def _tensor(entry: _Entry, source: Source, start: int) -> TensorInfo:
    name, code, shape, begin, end = entry
    dtype = BY_SAFETENSORS.get(code)
    if dtype is None:
        raise UnsupportedFeature(f"tensor {_quoted(name)} is of dtype {code}, for which torch has no type")
    if code == "F4":
        # torch counts pairs of 4-bit values, which must not straddle rows
        if shape[-1] % 2:
            raise UnsupportedFeature(
                f"tensor {_quoted(name)} has rows of {shape[-1]:,} 4-bit values; torch wants an even number"
            )
        shape = (*shape[:-1], shape[-1] // 2)
    stride = [1] * len(shape)
    step = 1
    for axis in range(len(shape) - 1, -1, -1):
        stride[axis] = step
        step *= shape[axis] or 1
        if step >= _TORCH_LIMIT:  # only where another size is 0
            raise UnsupportedFeature(f"tensor {_quoted(name)} is empty, but too large for torch otherwise")
    storage = Storage(source, start + begin, end - begin, dtype, "cpu", name)
    return TensorInfo(name, dtype, shape, tuple(stride), 0, storage)


def _tied(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, object]) -> dict[str, TensorInfo]:
    """The names that share a tensor with another, which ``safetensors.torch.save_model`` leaves to the metadata.

    It notes ``name: kept name`` for each (bindings/python/py_src/safetensors/torch.py). Only a name with a dot is
    taken for one: what else people note has none.
    """
    return {
        name: tensors[kept]
        for name, kept in metadata.items()
        if "." in name and name not in tensors and isinstance(kept, str) and kept in tensors
    }


def _role(names: Iterable[str]) -> Role:
    """What the tensors are, by whether most *names* end as those in an optimizer's state do."""
    told = [_OPTIMIZER_STATE.fullmatch(name.rpartition(".")[2]) is not None for name in names]
    return "optimizer" if 2 * sum(told) > len(told) else "model"


def _producer(metadata: Mapping[str, object]) -> Mapping[str, str]:
    producer: dict[str, str] = {}
    framework = metadata.get("format")
    if isinstance(framework, str):
        producer["framework"] = _FRAMEWORKS.get(framework, framework)
    if "DCP_SHARDING_INFO" in metadata:
        producer["writer"] = "torch.distributed.checkpoint"
    elif any(key.startswith("ss_") for key in metadata):
        producer["writer"] = "sd-scripts"
    return producer


FORMAT = Format("safetensors", "safetensors", read, detect)
