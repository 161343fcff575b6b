"""A zip archive whose end is missing: how much is there, and what the local headers still show.

torch writes ``data.pkl`` first, then the storages in the order in which the pickle names them. So the pickle
is nearly always whole, and tells how large the file would have been.
"""

from __future__ import annotations

from ckpt_tools.dtypes import BY_STORAGE, UINT8
from ckpt_tools.errors import CkptError, CorruptFile
from ckpt_tools.formats.archive import LOCAL
from ckpt_tools.pickles.machine import evaluate
from ckpt_tools.pickles.values import Global, PersistentId
from ckpt_tools.report import count
from ckpt_tools.sources import Source

_SIGNATURE = b"PK\x03\x04"
MAX_MEMBERS = 1_000_000


def explain(source: Source) -> CorruptFile:
    """The error for a zip archive without a central directory."""
    remedy = "Fetch it again: a download or a copy was cut short"
    first = _local_header(source, 0)
    if first is None:
        return CorruptFile("a zip archive of which not even the first header is whole", path=source.name, remedy=remedy)
    name, start = first
    if not name.endswith("/data.pkl"):
        return CorruptFile(
            f"a zip archive, truncated after {source.size:,} bytes; its first member is {name!r}",
            path=source.name,
            remedy=remedy,
        )
    data = source.read(start, min(source.size - start, 1 << 28))
    try:
        evaluation = evaluate(data)
    except CkptError:
        return CorruptFile(
            f"a PyTorch zip archive, truncated after {source.size:,} bytes, within its pickle",
            path=source.name,
            remedy=remedy,
        )
    sizes: dict[str, int] = {}
    for call in evaluation.calls:
        for argument in call.arguments[:1]:
            if type(argument) is PersistentId and type(argument.pid) is tuple and len(argument.pid) == 5:
                _, cls, key, _, numel = argument.pid
                if type(cls) is Global and type(numel) is int and type(key) is str:
                    sizes[key] = numel * BY_STORAGE.get(cls.name, UINT8).itemsize
    whole, cut, reached = _walk(source, start + evaluation.end, sizes)
    missing = sum(size for key, size in sizes.items() if key not in whole)
    where = f"; storage {cut!r} is cut" if cut is not None else ""
    return CorruptFile(
        f"a truncated PyTorch zip archive: {source.size:,} bytes are there of at least {reached + missing:,}; "
        f"its pickle is whole and names {count(len(sizes), 'storage')}, of which {len(whole):,} are complete{where}",
        path=source.name,
        remedy=remedy,
    )


def _local_header(source: Source, offset: int) -> tuple[str, int] | None:
    """The name of the member whose local header stands at *offset*, and where its bytes begin."""
    raw = source.peek(offset, LOCAL.size)
    if len(raw) < LOCAL.size or not raw.startswith(_SIGNATURE):
        return None
    fields = LOCAL.unpack(raw)
    name = source.peek(offset + LOCAL.size, fields[9])
    start = offset + LOCAL.size + fields[9] + fields[10]
    if len(name) < fields[9] or start > source.size:
        return None
    return name.decode("utf-8", "replace"), start


def _walk(source: Source, offset: int, sizes: dict[str, int]) -> tuple[set[str], str | None, int]:
    """Go from header to header: the storages that are whole, the one that is cut, and the offset reached."""
    whole: set[str] = set()
    for _ in range(MAX_MEMBERS):
        # between members stands a data descriptor of 16 or 24 bytes
        at = source.peek(offset, 64).find(_SIGNATURE)
        header = _local_header(source, offset + at) if at >= 0 else None
        if header is None:
            break
        name, start = header
        key = name.rpartition("/data/")[2]
        size = sizes.get(key)
        if size is None:
            # a short member whose size its local header does not tell
            following = source.peek(start, 256).find(b"PK\x07\x08")
            if following < 0:
                break
            offset = start + following
            continue
        if start + size > source.size:
            return whole, key, start
        whole.add(key)
        offset = start + size
    return whole, None, max(offset, source.size)
