"""Writing safetensors: the header and the order of tensors as the library writes them.

Order and padding: safetensors/src/tensor.rs (``prepare``): by dtype, widest first, then by name; the header padded
with spaces to a multiple of 8 bytes. Unlike the library's, the metadata is in sorted order, so that the same
conversion gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.convert.plan import Entry, Plan
from ckpt_tools.convert.stream import Sink, Written
from ckpt_tools.dtypes import DType
from ckpt_tools.errors import UnsupportedFeature

MAX_HEADER = 100_000_000
"""The longest header the library reads."""

# the library's enum, whose order is that of the tensors in a file, backwards
_ORDER = (
    *("BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    *("I16", "U16", "F16", "BF16", "I32", "U32", "F32", "C64", "F64", "I64", "U64"),
)
_RANK = {code: rank for rank, code in enumerate(_ORDER)}


def objection(tensor: TensorInfo, dtype: DType) -> str:
    """Why safetensors cannot hold *tensor* as *dtype*; "" where it can."""
    if dtype.safetensors is None:
        return f"{dtype}, for which safetensors has no type"
    if dtype.safetensors == "F4" and not tensor.shape:
        return "a scalar of packed 4-bit values"
    return ""


def check_names(names: Iterable[str]) -> None:
    """Raise `UnsupportedFeature` where one of *names* is the metadata's."""
    if "__metadata__" in names:
        raise UnsupportedFeature("a tensor named __metadata__ cannot be written", remedy="Rename it with --rename")


def stored(plan: Plan) -> list[Entry]:
    """The entries that take bytes, in the order of the file."""
    return in_order(e for e in plan.entries if e.name not in plan.aliases or plan.aliases[e.name].stored)


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """*entries* in the order of a file."""
    return sorted(entries, key=lambda entry: (-_RANK[entry.dtype.safetensors or ""], entry.name.encode("utf-8")))


def shape(entry: Entry) -> list[int]:
    """The shape as the format counts it: packed 4-bit values one by one, where torch counts pairs."""
    sizes = list(entry.tensor.shape)
    if entry.dtype.safetensors == "F4":
        sizes[-1] *= 2
    return sizes


def header(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    """The header for *entries* in this order, its length in front.

    Raises `UnsupportedFeature` where it would be longer than the library reads.
    """
    table: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for entry in entries:
        end = position + entry.tensor.numel * entry.dtype.itemsize
        table[entry.name] = {"dtype": entry.dtype.safetensors, "shape": shape(entry), "data_offsets": [position, end]}
        position = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise UnsupportedFeature(
            f"the header would take {len(text):,} bytes, more than the {MAX_HEADER:,} that safetensors allows"
        )
    return len(text).to_bytes(8, "little") + text


def metadata(plan: Plan, note: str, note_key: str) -> dict[str, str]:
    """The output's metadata: the plan's, the aliases as the library notes them, and our *note*."""
    plain = {name: alias.of for name, alias in plan.aliases.items() if not alias.stored}
    return {**plain, "format": "pt", **plan.metadata, note_key: note}


def write(sink: Sink, entries: Iterable[Entry], metadata: Mapping[str, str]) -> Written:
    """Write *entries*, in this order, and *metadata*."""
    listed = list(entries)
    written = Written()
    sink.write(header(listed, metadata))
    sink.reserve(sum(entry.tensor.numel * entry.dtype.itemsize for entry in listed))
    for entry in listed:
        sink.tensor(entry, written)
    return written
