"""Where bytes come from: local files, memory, and slices of these. Nothing is read until it is asked for.

A `Source` is a run of bytes with a name and a size. Formats cut slices from slices, so that a storage of a
checkpoint inside an archive still knows where in which file its bytes lie (`Source.locate`), which lets a
converter copy them without passing them through Python.
"""

from __future__ import annotations

import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator

from ckpt_tools.errors import CkptError, CorruptFile, NotFound

CHUNK = 1 << 20
"""Bytes read at a time where a source is streamed."""
FIRST_STEP = 1 << 14
"""Bytes inflated at first."""


class Source:
    """A named, sized run of bytes that can be read at any offset."""

    __slots__ = ("memo", "name", "size")

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.memo: dict[type, object] = {}
        """What has been parsed of it and is wanted by several formats, such as an archive's directory."""

    def peek(self, offset: int, count: int) -> bytes:
        """Up to *count* bytes from *offset*; fewer only where the source ends."""
        raise NotImplementedError

    def read(self, offset: int, count: int) -> bytes:
        """Exactly *count* bytes from *offset*, or `CorruptFile` where the source ends before."""
        if offset < 0 or count < 0 or offset + count > self.size:
            raise CorruptFile(
                f"{count:,} bytes are wanted at byte {offset:,}, but it ends at byte {self.size:,}",
                path=self.name,
            )
        data = self.peek(offset, count)
        if len(data) != count:
            raise CorruptFile(f"the read at byte {offset:,} came up short", path=self.name)
        return data

    def chunks(self, offset: int = 0, count: int | None = None, size: int = CHUNK) -> Iterator[bytes]:
        """The bytes of ``[offset, offset + count)`` in order, at most *size* at a time."""
        end = self.size if count is None else offset + count
        while offset < end:
            data = self.read(offset, min(size, end - offset))
            yield data
            offset += len(data)

    def locate(self, offset: int) -> tuple[str, int] | None:
        """The local file and the offset in it where byte *offset* lies verbatim; None where there is none."""
        return None

    def extents(self, offset: int, size: int) -> Iterable[tuple[Source, int, int]]:
        """Where *size* bytes from *offset* come from: runs of outermost sources, each as (source, offset, size)."""
        return ((self, offset, size),)

    def folder(self) -> Folder | None:
        """The folder it lies in; None for what is no file of its own."""
        return None

    def slice(self, offset: int, size: int, name: str) -> Source:
        """The *size* bytes from *offset* as a source of their own."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise CorruptFile(
                f"{name} would take the bytes {offset:,} to {offset + size:,}, but the file ends at byte {self.size:,}",
                path=self.name,
            )
        return Slice(self, offset, size, name)

    def close(self) -> None:
        """Give back the file descriptor, if one is held."""


class FileSource(Source):
    """A local regular file, opened when it is first read."""

    __slots__ = ("_fd", "_held")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._fd = -1
        self._held: bytes | None = None
        name = os.fspath(path)
        try:
            status = os.stat(name)
        except OSError as error:
            raise NotFound(f"cannot be read: {error.strerror}", path=name) from None
        except ValueError as error:  # a NUL in the name
            raise NotFound(f"is no path: {error}", path=name) from None
        if not stat.S_ISREG(status.st_mode):
            raise NotFound("is not a regular file", path=name)
        super().__init__(name, status.st_size)

    def hold(self) -> None:
        """Read all of it, and serve every later read from memory: for a short file of which much is wanted."""
        self._held = self.peek(0, self.size)
        self.close()

    def peek(self, offset: int, count: int) -> bytes:
        if self._held is not None and offset >= 0:
            return self._held[offset : offset + count]
        if self._fd < 0:
            try:
                self._fd = os.open(self.name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                raise NotFound(f"cannot be read: {error.strerror}", path=self.name) from None
        try:
            data = os.pread(self._fd, count, offset)
            while len(data) < count:  # one call returns at most 2 GiB, or less at a signal
                more = os.pread(self._fd, count - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise CkptError(f"reading failed: {error.strerror}", path=self.name, offset=offset) from None
        return data

    def locate(self, offset: int) -> tuple[str, int] | None:
        return (self.name, offset) if self._held is None else None

    def folder(self) -> Folder:
        return Folder(os.path.dirname(self.name) or ".")

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # when the interpreter ends, the name os may be gone before this is
        if self._fd >= 0:
            close(self._fd)


class MemorySource(Source):
    """Bytes already in memory."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(name, len(data))
        self._data = data

    def peek(self, offset: int, count: int) -> bytes:
        return self._data[offset : offset + count]


class Slice(Source):
    """A part of another source."""

    __slots__ = ("offset", "parent")

    def __init__(self, parent: Source, offset: int, size: int, name: str) -> None:
        super().__init__(name, size)
        self.parent = parent
        self.offset = offset

    def peek(self, offset: int, count: int) -> bytes:
        return self.parent.peek(self.offset + offset, max(0, min(count, self.size - offset)))

    def locate(self, offset: int) -> tuple[str, int] | None:
        return self.parent.locate(self.offset + offset)

    def extents(self, offset: int, size: int) -> Iterable[tuple[Source, int, int]]:
        return self.parent.extents(self.offset + offset, size)


class Inflated(Source):
    """A deflated run of bytes, inflated forward as it is read; going back starts again.

    *size* is what the archive declares. Inflating stops there, so that a bomb costs no more than it admits.
    """

    __slots__ = ("_buffer", "_compressed", "_consumed", "_inflater", "_position", "_step")

    def __init__(self, compressed: Source, size: int, name: str) -> None:
        # deflate expands at most 1032-fold (zlib's technical notes)
        if size > 1032 * compressed.size + 64:
            raise CorruptFile(
                f"declares {size:,} bytes, more than {compressed.size:,} deflated bytes can hold",
                path=compressed.name,
            )
        super().__init__(name, size)
        self._compressed = compressed
        self._restart()

    @property
    def compressed_size(self) -> int:
        """The bytes that it takes in the archive."""
        return self._compressed.size

    @property
    def compressed(self) -> Source:
        """The deflated bytes."""
        return self._compressed

    def _restart(self) -> None:
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._consumed = 0
        self._buffer = b""
        self._position = 0  # of the buffer's first byte in the inflated stream
        self._step = FIRST_STEP

    def peek(self, offset: int, count: int) -> bytes:
        count = max(0, min(count, self.size - offset))
        if offset < self._position:
            self._restart()
        parts: list[bytes] = []
        missing = count
        while missing:
            start = offset + count - missing - self._position
            if start < len(self._buffer):
                part = self._buffer[start : start + missing]
                parts.append(part)
                missing -= len(part)
                continue
            self._position += len(self._buffer)
            self._buffer = self._inflate()
            if not self._buffer:
                break
        return b"".join(parts)

    def behind(self) -> int:
        """How many bytes follow where the deflated ones end, which takes inflating them all.

        Raises `CorruptFile` where they give more than is declared.
        """
        self.peek(max(0, self.size - 1), 1)
        self._position += len(self._buffer)
        self._buffer = self._inflate() if self._position >= self.size else b""
        if self._buffer or self._position > self.size:
            raise CorruptFile(f"inflates to more than the {self.size:,} bytes that are declared", path=self.name)
        return len(self._inflater.unused_data) + self._compressed.size - self._consumed

    def _inflate(self) -> bytes:
        try:
            while not self._inflater.eof:
                feed = self._inflater.unconsumed_tail
                if not feed:
                    feed = self._compressed.peek(self._consumed, self._step)
                    self._consumed += len(feed)
                    if not feed:
                        break
                data = self._inflater.decompress(feed, self._step)
                if data:
                    self._step = min(2 * self._step, CHUNK)  # a header is short, what is streamed is long
                    return data
        except zlib.error as error:
            raise CorruptFile(f"does not inflate: {error}", path=self.name) from None
        return b""


class Folder:
    """A directory of files that make up one checkpoint together."""

    __slots__ = ("_names", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._names: list[str] | None = None

    def names(self) -> list[str]:
        """The names of the files directly in it, sorted, as they were when they were first asked for."""
        if self._names is None:
            self._names = self._entries(os.DirEntry.is_file)
        return self._names

    def folders(self) -> list[str]:
        """The names of the folders directly in it, sorted."""
        return self._entries(os.DirEntry.is_dir)

    def open(self, name: str) -> Source:
        """The file *name*, which may not lead out of the folder. Raises `NotFound` where there is none."""
        return FileSource(os.path.join(self.name, self.inside(name)))

    def folder(self, name: str) -> Folder:
        """The folder *name* in it, which need not exist, but may not lead out of it."""
        return Folder(os.path.join(self.name, self.inside(name)))

    def inside(self, name: str) -> str:
        """*name*, which comes from a file; `CorruptFile` where it would lead out of the folder."""
        from pathlib import PureWindowsPath

        path = PureWindowsPath(name)  # takes either slash, and knows drives
        if path.anchor or ".." in path.parts:
            raise CorruptFile(f"it names a file outside its folder: {name!r:.200}", path=self.name)
        return name

    def _entries(self, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
        def is_wanted(entry: os.DirEntry[str]) -> bool:
            try:
                return wanted(entry)
            except OSError:  # a link that leads nowhere
                return False

        try:
            with os.scandir(self.name) as entries:
                return sorted(entry.name for entry in entries if is_wanted(entry))
        except OSError as error:
            raise NotFound(f"cannot be listed: {error.strerror}", path=self.name) from None
        except ValueError as error:  # a NUL in the name
            raise NotFound(f"is no path: {error}", path=self.name) from None


def matching(pattern: str) -> list[str]:
    """The paths that match a glob, in order; each once, though ``**`` follows links to folders, maybe in circles."""
    import glob  # shells have mostly done this

    paths = sorted(glob.glob(pattern, recursive=True))
    seen: set[tuple[str, str]] = set()
    folders: dict[str, str] = {}
    kept: set[str] = set()
    for path in sorted(paths, key=len):
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        place = (folders[folder], name)
        if place not in seen:
            seen.add(place)
            kept.add(path)
    return [path for path in paths if path in kept]


def is_url(target: object) -> bool:
    """Whether *target* is a URL, or several that fsspec chains with ``::``; `ckpt_tools.remote` opens those."""
    return isinstance(target, str) and "://" in target


def open_source(target: str | os.PathLike[str] | bytes | Source | Folder) -> Source | Folder:
    """*target* as bytes to read: a path, ``-`` for standard input, bytes, or a source or folder as it is.

    Raises `NotFound` where there is nothing to read.
    """
    if isinstance(target, Source | Folder):
        return target
    if isinstance(target, bytes):
        return MemorySource(target, "<bytes>")
    name = os.fspath(target)
    if name == "-":
        return MemorySource(sys.stdin.buffer.read(), "<stdin>")
    if os.path.isdir(name):
        return Folder(name)
    return FileSource(name)
