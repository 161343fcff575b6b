"""A zip archive whose end is missing: how much is there, and what the local headers still show.

torch writes ``data.pkl`` first, then the storages in the order in which the pickle names them. So the pickle
is nearly always whole, and tells how large the file would have been.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from ckpt_tools.dtypes import BY_STORAGE, UINT8
from ckpt_tools.errors import CkptError, CorruptFile
from ckpt_tools.formats.archive import LOCAL
from ckpt_tools.pickles.machine import evaluate
from ckpt_tools.pickles.values import Global, brief
from ckpt_tools.report import count
from ckpt_tools.sources import Source

_SIGNATURE = b"PK\x03\x04"
PICKLE_LIMIT = 1 << 28
MAX_MEMBERS = 1_000_000


def explain(source: Source) -> CorruptFile:
    """The error for a zip archive without a central directory."""
    remedy = "Fetch it again: a download or a copy was cut short"
    first = _local_header(source, 0)
    if first is None:
        return CorruptFile("a zip archive of which not even the first header is whole", path=source.name, remedy=remedy)
    if not first.name.endswith("/data.pkl"):
        return CorruptFile(
            f"a zip archive, truncated after {source.size:,} bytes; its first member is {brief(first.name)}",
            path=source.name,
            remedy=remedy,
        )
    data = source.read(first.start, min(source.size - first.start, PICKLE_LIMIT))
    size = first.size
    try:
        if first.deflated:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            packed, data = data, inflater.decompress(data, PICKLE_LIMIT)
            size = len(packed) - len(inflater.unused_data)
        evaluation = evaluate(data)
    except (CkptError, zlib.error):
        return CorruptFile(
            f"a PyTorch zip archive, truncated after {source.size:,} bytes, within its pickle",
            path=source.name,
            remedy=remedy,
        )
    sizes: dict[str, int] = {}
    for reference in evaluation.persistent:
        pid = reference.pid
        if type(pid) is tuple and len(pid) == 5:
            _, cls, key, _, numel = pid
            if type(cls) is Global and type(key) is str and type(numel) is int and 0 <= numel < 1 << 63:
                sizes.setdefault(key, numel * BY_STORAGE.get(cls.name, UINT8).itemsize)
    end = first.start + (evaluation.end if size is None else size)
    whole, cut, reached = _walk(source, end, sizes)
    missing = sum(size for key, size in sizes.items() if key not in whole)
    where = f"; storage {brief(cut)} is cut" if cut is not None else ""
    least = max(reached + missing, source.size + 1)  # if nothing else is, the end of the directory is missing
    problem = CorruptFile(
        f"a truncated PyTorch zip archive: {source.size:,} bytes are there of at least {least:,}; "
        f"its pickle is whole and names {count(len(sizes), 'storage')}, of which {len(whole):,} are complete{where}",
        path=source.name,
        remedy=remedy,
    )
    problem.partial = evaluation  # type: ignore[attr-defined]  # as the pickle machine does
    return problem


class _Local(NamedTuple):
    """A member by its local header: *size* is that in the file, None where it is told only after the bytes."""

    name: str
    start: int
    size: int | None
    deflated: bool


def _local_header(source: Source, offset: int) -> _Local | None:
    """The member whose local header stands at *offset*; None where there is none, or not all of it."""
    raw = source.peek(offset, LOCAL.size)
    if len(raw) < LOCAL.size or not raw.startswith(_SIGNATURE):
        return None
    fields = LOCAL.unpack(raw)
    name = source.peek(offset + LOCAL.size, fields[9])
    start = offset + LOCAL.size + fields[9] + fields[10]
    if len(name) < fields[9] or start > source.size:
        return None
    told = not fields[2] & 0x8 and fields[7] != 0xFFFFFFFF
    return _Local(name.decode("utf-8", "replace"), start, fields[7] if told else None, fields[3] == 8)


def _walk(source: Source, offset: int, sizes: dict[str, int]) -> tuple[set[str], str | None, int]:
    """Go from header to header: the storages that are whole, the one that is cut, and the offset reached."""
    whole: set[str] = set()
    for _ in range(MAX_MEMBERS):
        # between members stands a data descriptor of 16 or 24 bytes
        at = source.peek(offset, 64).find(_SIGNATURE)
        header = _local_header(source, offset + at) if at >= 0 else None
        if header is None:
            break
        start, size = header.start, header.size
        key = header.name.rpartition("/data/")[2]
        if size is None:
            size = sizes.get(key)
        if size is None:
            # a short member whose size stands after it
            following = source.peek(start, 256).find(b"PK\x07\x08")
            if following < 0:
                break
            offset = start + following
            continue
        if start + size > source.size:
            return whole, key if key in sizes else None, start
        if key in sizes:
            whole.add(key)
        offset = start + size
    return whole, None, max(offset, source.size)
