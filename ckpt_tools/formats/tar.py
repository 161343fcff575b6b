"""Tar archives: POSIX ustar, with pax records and GNU's names for what does not fit (IEEE Std 1003.1, pax).

Read as Python's tarfile does. Nothing is unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ckpt_tools.errors import LimitExceeded
from ckpt_tools.sources import CHUNK, Source

BLOCK = 512
"""Everything in a tar archive begins at a multiple of this many bytes."""
MAX_ENTRIES = 10_000
"""The most entries an archive may have; torch wrote four."""
_MAX_PAX = 1 << 20
_BARE = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices and folders."""
_SPECIAL = (*_BARE, b"K", b"X")
"""The same, and records of GNU's and of Sun's."""


class Entry(NamedTuple):
    """A file in a tar archive: *offset* and *size* of its bytes."""

    name: str
    offset: int
    size: int
    regular: bool
    sparse: bool = False
    """Whether its bytes are put together from pieces, so that they are not those that stand here."""


def entries(source: Source) -> Iterator[Entry]:
    """The entries in order, up to the first block that is no header, as Python's tarfile reads them."""
    position = 0
    renamed: dict[str, str] = {}
    common: dict[str, str] = {}
    for _ in range(MAX_ENTRIES):
        header = source.peek(position, BLOCK)
        if not is_header(header):
            return
        kind = header[156:157]
        size = _number(header[124:136])
        assert size is not None  # is_header has looked
        start = position + BLOCK
        # what is no file has no bytes, whatever size it gives: tarfile finds the next header right behind it
        position = start + (0 if kind in _BARE else -(-size // BLOCK) * BLOCK)
        if kind in (b"x", b"g"):  # pax: records for the next header, or for all
            records = _pax(source.peek(start, size)) if size <= _MAX_PAX else {}
            if kind == b"x":
                renamed = records
            else:
                common |= records
            continue
        if kind == b"L":  # GNU: the next entry's name
            renamed = {"path": _name(source.peek(start, min(size, _MAX_PAX)))}
            continue
        prefix = _name(header[345:500]) if header[257:263] == b"ustar\0" else ""
        own = (f"{prefix}/" if prefix else "") + _name(header[:100])
        name = renamed.get("path") or common.get("path") or own
        if kind in _BARE:
            size = 0
        elif renamed.get("size", "").isdecimal():
            size = int(renamed["size"][:20])
            position = start + -(-size // BLOCK) * BLOCK
        elif common.get("size", "").isdecimal():
            size = int(common["size"][:20])  # the next header stands where this one's own size has it all the same
        sparse = kind == b"S" or "sparse" in renamed or "sparse" in common
        renamed = {}
        regular = kind not in _SPECIAL  # tarfile reads unknown kinds as files
        yield Entry(name.rstrip("/"), start, size, regular, sparse)
    raise LimitExceeded(f"a tar archive of more than {MAX_ENTRIES:,} entries", path=source.name)


def tail(source: Source) -> int:
    """Where what is no zero begins behind the last entry; the size of *source* where nothing does."""
    at = max((entry.offset + -(-entry.size // BLOCK) * BLOCK for entry in entries(source)), default=0)
    while chunk := source.peek(at, CHUNK):
        rest = chunk.lstrip(b"\0")
        if rest:
            return at + len(chunk) - len(rest)
        at += len(chunk)
    return source.size


def is_header(block: bytes) -> bool:
    """Whether *block* is a tar header: its checksum is right, and its size a number."""
    if len(block) < BLOCK or not any(block[:100]) or _number(block[124:136]) is None:
        return False
    return _number(block[148:156]) == sum(block[:148]) + 8 * 32 + sum(block[156:512])


def _name(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int | None:
    """Octal digits, or GNU's base 256 where the top bit is set; None where it is neither, or negative."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:]) if field[0] == 0x80 else None
    digits = field.partition(b"\0")[0].strip()
    if not digits:
        return 0
    return int(digits, 8) if digits.isdigit() and not digits.strip(b"01234567") else None


def _pax(data: bytes) -> dict[str, str]:
    """The path and the size among the records, each of which is its length, a key and a value."""
    found: dict[str, str] = {}
    while data:
        digits, space, _ = data[:20].partition(b" ")
        if not space or not digits.isdigit() or int(digits) <= len(digits) + 1:
            break
        record, data = data[len(digits) + 1 : int(digits)], data[int(digits) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        if key.startswith(b"GNU.sparse."):
            found["sparse"] = ""
            key = {b"GNU.sparse.name": b"path"}.get(key, key)
        if key in (b"path", b"size"):
            found[key.decode()] = value.decode("utf-8", "surrogateescape")
    return found
