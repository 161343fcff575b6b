"""Writing zip archives whose payloads are aligned, as torch and mapped readers want them."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ckpt_tools.convert.stream import Sink

ALIGNMENT = 64

_WIDE = 0xFFFFFFFF
"""Sizes and offsets from here on stand in a zip64 field, and this in their place."""
_UTF8 = 0x0800  # the flag that names are UTF-8; torch sets it as well


@dataclass(frozen=True, slots=True)
class _Member:
    name: bytes
    crc: int
    size: int
    offset: int


def _narrow(value: int) -> int:
    return value if value < _WIDE else 0xFFFFFFFF


class Archive:
    """A zip archive of stored members, each payload at a multiple of `ALIGNMENT` bytes."""

    def __init__(self, sink: Sink, root: str = "") -> None:
        self._sink = sink
        self._root = root
        self._members: list[_Member] = []

    def add(self, name: str, data: bytes) -> None:
        """A member that holds *data*."""
        self.stream(name, len(data), self._whole(data))

    def stream(self, name: str, size: int, written: Iterator[bytes]) -> None:
        """A member of *size* bytes that *written* writes and hands out."""
        sink = self._sink
        path = f"{self._root}{name}".encode()
        offset = sink.position
        wide = struct.pack("<HHQQ", 1, 16, size, size) if size >= _WIDE else b""
        start = offset + 30 + len(path) + len(wide) + 4
        padding = -start % ALIGNMENT
        # torch's own padding: an extra field FB
        extra = wide + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        head = self._fields(45 if wide else 20, 0, _narrow(size), len(path), len(extra))
        sink.write(b"PK\x03\x04" + head + path + extra)
        crc = 0
        for chunk in written:
            crc = zlib.crc32(chunk, crc)
        sink.patch(offset + 14, struct.pack("<I", crc))
        self._members.append(_Member(path, crc, size, offset))

    def identity(self) -> bytes:
        """Forty digits that the members' names and checksums determine, as torch's do."""
        told = "".join(f"{m.name.decode('utf-8')} {m.crc:08x}\n" for m in self._members)
        return f"{int(hashlib.sha256(told.encode()).hexdigest(), 16) % 10**40:040d}".encode()

    def finish(self) -> None:
        """The central directory and its end."""
        sink = self._sink
        start = sink.position
        for member in self._members:
            wide = b""
            if member.size >= _WIDE:
                wide += struct.pack("<QQ", member.size, member.size)
            if member.offset >= _WIDE:
                wide += struct.pack("<Q", member.offset)
            extra = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
            version = 45 if wide else 20
            fields = self._fields(version, member.crc, _narrow(member.size), len(member.name), len(extra))
            tail = struct.pack("<HHHII", 0, 0, 0, 0, _narrow(member.offset))
            sink.write(b"PK\x01\x02" + struct.pack("<H", version) + fields + tail + member.name + extra)
        size, number = sink.position - start, len(self._members)
        if start >= _WIDE or size >= _WIDE or number >= 0xFFFF:
            end = sink.position
            sink.write(b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, number, number, size, start))
            sink.write(b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1))
        counted = min(number, 0xFFFF)
        sink.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, counted, counted, _narrow(size), _narrow(start), 0))

    def _whole(self, data: bytes) -> Iterator[bytes]:
        self._sink.write(data)
        yield data

    @staticmethod
    def _fields(version: int, crc: int, size: int, name: int, extra: int) -> bytes:
        """What local and central headers have in common; the time is the zip format's first, 1980-01-01."""
        return struct.pack("<HHHHHIIIHH", version, _UTF8, 0, 0, 0x21, crc, size, size, name, extra)
