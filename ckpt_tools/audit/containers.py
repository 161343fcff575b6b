"""Files that hold files: tar and zip archives, compressed files, folders at a URL. Each of those is judged.

Archives that one program writes and reads as a checkpoint are none of these: they are judged as what they are.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import IO, Any

from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, NotACheckpoint, UnsupportedFeature
from ckpt_tools.formats.archive import Archive
from ckpt_tools.formats.tar import BLOCK, entries, is_header, tail
from ckpt_tools.records import record
from ckpt_tools.sources import CHUNK, Folder, Source

MAX_UNPACKED = 1 << 32
"""The most bytes that one compressed file is decompressed to, in a temporary file."""
MAX_MEMBERS = 10_000
"""The most members of one container that are judged."""
BEHIND = "behind the end"
"""The name of what follows the end of an archive or of a compressed stream."""


@record
class Container:
    """*title* says what it is; *members* gives the name and the bytes of each file in it."""

    format: str
    title: str
    members: Callable[[], Iterator[tuple[str, Source]]]


def container(source: Source | Folder, error: CkptError | None) -> Container | None:
    """The container that *source* is, which no format takes for a checkpoint, as *error* says; None for none."""
    if error is None:
        return None
    if isinstance(source, Source) and source.peek(0, 4) == b"PK\x03\x04":
        # one damaged member makes all of a zip archive unreadable as a checkpoint
        return None if _is_of_torch(source) else Container("zip", "zip archive", lambda: _in_zip(source))
    if not isinstance(error, UnsupportedFeature | NotACheckpoint):
        return None
    if isinstance(source, Folder):
        return Container("folder", "folder", lambda: _in_folder(source))
    head = source.peek(0, BLOCK)
    if is_header(head):
        return Container("tar", "tar archive", lambda: _in_tar(source))
    for magic, name, begin in _COMPRESSIONS:
        if head.startswith(magic) and _decompresses(source, begin):
            return Container(name, f"file compressed with {name}", partial(_in_compressed, source, magic, begin))
    return None


def _is_of_torch(source: Source) -> bool:
    """Whether a zip archive has members of torch's own, or is damaged: it is a checkpoint that cannot be read."""
    try:
        return any(member.name.endswith(_OF_TORCH) for member in Archive.of(source).members)
    except CkptError:
        return True


_OF_TORCH = (
    *("/data.pkl", "/constants.pkl", "/model.json", "/archive_format"),
    *("/.format_version", "/.storage_alignment", "/.data/serialization_id", "/byteorder"),  # whose data.pkl may be gone
)


def _in_folder(folder: Folder) -> Iterator[tuple[str, Source]]:
    pending: list[tuple[str, Folder]] = [("", folder)]
    while pending:
        prefix, inner = pending.pop(0)
        for name in inner.names():
            yield prefix + name, inner.open(name)
        pending += [(f"{prefix}{name}/", inner.folder(name)) for name in inner.folders()]


def _in_tar(source: Source) -> Iterator[tuple[str, Source]]:
    for entry in entries(source):
        if entry.regular:
            if entry.offset + entry.size > source.size:
                raise CorruptFile("the tar archive breaks off", path=source.name, member=entry.name)
            yield entry.name, source.slice(entry.offset, entry.size, entry.name)
    yield from _behind(source, tail(source))


def _behind(source: Source, at: int) -> Iterator[tuple[str, Source]]:
    """What is no zero from *at* on, behind the end of an archive or of what is compressed."""
    while chunk := source.peek(at, CHUNK):
        rest = chunk.lstrip(b"\0")
        if rest:
            at += len(chunk) - len(rest)
            yield BEHIND, source.slice(at, source.size - at, BEHIND)
            return
        at += len(chunk)


def _in_zip(source: Source) -> Iterator[tuple[str, Source]]:
    archive = Archive.of(source)
    if sum(member.compressed_size for member in archive.members) > source.size:
        raise LimitExceeded("the members of the zip archive overlap", path=source.name)
    left = MAX_UNPACKED
    for member in archive.members:
        left -= member.size if member.size > member.compressed_size else 0
        if left < 0:
            raise LimitExceeded(f"more than {MAX_UNPACKED:,} bytes would be inflated", path=source.name)
        if member.size or not member.name.endswith("/"):  # a folder with bytes is a file to some
            yield member.name, archive.open(member)
    for where, start, size in archive.asides():
        yield where, source.slice(start, size, where)


def _in_compressed(source: Source, magic: bytes, begin: _Begin) -> Iterator[tuple[str, Source]]:
    """What is compressed in *source*, in a temporary file; of a tar archive the files in it."""
    base = os.path.basename(source.name)
    stem, dot, suffix = base.rpartition(".")
    name = f"{stem}.tar" if suffix.lower() in ("tgz", "tbz2", "txz") else stem if dot else base
    from tempfile import TemporaryFile

    with TemporaryFile() as file:
        end = 0
        while end == 0 or source.peek(end, len(magic)) == magic:  # streams in a row are one to those who read them
            end = _decompress(source, end, begin, file)
        file.flush()
        inside = _Temporary(file, name)
        if is_header(inside.peek(0, BLOCK)):
            yield from _in_tar(inside)
        else:
            yield name, inside
    yield from _behind(source, end)


def _decompress(source: Source, start: int, begin: _Begin, file: IO[bytes]) -> int:
    """Decompress the stream that begins at *start* into *file*; the offset at which it ends."""
    stream, at, pending = begin(), start, b""
    try:
        while not stream.eof:
            if not pending and getattr(stream, "needs_input", True):
                pending = source.peek(at, _FEED)
                at += len(pending)
                if not pending:
                    raise EOFError("it breaks off")
            data = stream.decompress(pending, CHUNK)
            pending = getattr(stream, "unconsumed_tail", b"")  # the others keep it themselves
            if file.tell() + len(data) > MAX_UNPACKED:
                raise LimitExceeded(f"decompresses to more than {MAX_UNPACKED:,} bytes", path=source.name)
            file.write(data)
    except _errors() as error:
        raise CorruptFile(f"it cannot be decompressed: {error}", path=source.name) from None
    return at - len(stream.unused_data)


def _decompresses(source: Source, begin: _Begin) -> bool:
    """Whether what looks compressed by its first bytes is so."""
    try:
        return bool(begin().decompress(source.peek(0, _FEED), 1))
    except _errors():
        return False


class _Temporary(Source):
    """The bytes of an open file."""

    __slots__ = ("_file",)

    def __init__(self, file: IO[bytes], name: str) -> None:
        super().__init__(name, os.fstat(file.fileno()).st_size)
        self._file = file

    def peek(self, offset: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), max(0, min(count, self.size - offset)), offset)


def _errors() -> tuple[type[Exception], ...]:
    """What reading a damaged compressed file raises."""
    from lzma import LZMAError

    return OSError, EOFError, zlib.error, LZMAError


def _zlib(bits: int) -> _Begin:
    return lambda: zlib.decompressobj(bits)


def _module(name: str, decompressor: str) -> _Begin:
    """A decompressor of one of Python's modules, which few files need."""
    return lambda: getattr(import_module(name), decompressor)()


_Begin = Callable[[], Any]
"""Makes what decompresses one stream."""
_FEED = 1 << 16
"""Compressed bytes that are read at once."""
_COMPRESSIONS: tuple[tuple[bytes, str, _Begin], ...] = (
    (b"\x1f\x8b\x08", "gzip", _zlib(zlib.MAX_WBITS | 16)),
    (b"BZh", "bzip2", _module("bz2", "BZ2Decompressor")),
    (b"\xfd7zXZ\0", "xz", _module("lzma", "LZMADecompressor")),
    (b"\x78", "zlib", _zlib(zlib.MAX_WBITS)),
)
