"""Bytes on their way from the source to the output: copied by the kernel where they lie as they must, else streamed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import BinaryIO

from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import chunks, numpy_dtype, swap_width
from ckpt_tools.convert.plan import Entry
from ckpt_tools.errors import CkptError, CorruptFile
from ckpt_tools.sources import CHUNK

COPY_STEP = 1 << 26
"""Bytes the kernel is asked to copy at a time, so that progress shows."""

WRITE_BACK = 1 << 25
"""Bytes after which the disk is told to begin writing them."""

# what the system says where it cannot copy between these two files, whatever their contents
_CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.ETXTBSY}

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}

Advance = Callable[[int], None]


@dataclass(slots=True)
class Losses:
    """What casting did to a tensor's values: finite ones that became infinite, others that became zero."""

    overflow: int = 0
    underflow: int = 0


@dataclass(slots=True)
class Written:
    """What a writer has learnt: the digest of each cast tensor, and what was lost, by output name."""

    sha256: dict[str, str] = field(default_factory=dict)
    losses: dict[str, Losses] = field(default_factory=dict)


class Watch:
    """The local files that are read, to see whether one of them changes meanwhile."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int, int, int]] = {}

    def note(self, path: str) -> None:
        """Remember the file at *path* as it is now, unless it is known."""
        if path not in self._known and os.path.isfile(path):
            self._known[path] = self._state(path)

    def check(self) -> None:
        """Raise `CkptError` where a file is not what it was."""
        for path, known in self._known.items():
            if self._state(path) != known:
                raise CkptError("changed while it was being converted", path=path, remedy="Try again")

    def states(self) -> dict[str, list[int]]:
        """Size in bytes and time of change in nanoseconds of each file, as it was when it was first read."""
        return {path: [size, changed] for path, (_, _, size, changed) in self._known.items()}

    def same_as(self, target: str) -> bool:
        """Whether *target* is one of the files."""
        if not os.path.exists(target):
            return False
        return any(os.path.exists(path) and os.path.samefile(path, target) for path in self._known)

    @staticmethod
    def _state(path: str) -> tuple[int, int, int, int]:
        try:
            status = os.stat(path)
        except OSError:
            return (-1, -1, -1, -1)
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Sink:
    """The file being written, from its current end on; *advance* is told of the tensor bytes written.

    *replaced* is the path of the file that it will replace, if there is one. The system lets go of what it caches of
    that while the disk writes, as else it does when the file goes, and the disk has nothing to do then.
    """

    def __init__(self, file: BinaryIO, advance: Advance | None = None, replaced: str | None = None) -> None:
        self.file = file
        self.position = file.tell()
        self._begun = self.position
        self._advance = advance or (lambda count: None)
        self._path = ""
        self._source = -1
        self._replaced = _only_name(replaced) if replaced is not None else -1

    def write(self, data: bytes) -> None:
        """Append *data*."""
        self.file.write(data)
        self.position += len(data)
        if self.position - self._begun >= WRITE_BACK:
            self.file.flush()
            self._write_back()

    def reserve(self, count: int) -> None:
        """Take room for *count* more bytes, so that a disk without it says so before they are copied."""
        call = _system("fallocate")
        if count < WRITE_BACK or call is None:
            return
        import ctypes

        if call(self.file.fileno(), 1, self.position, count):  # FALLOC_FL_KEEP_SIZE
            error = ctypes.get_errno()
            if error in _NO_ROOM:
                raise OSError(error, os.strerror(error))

    def zeros(self, count: int) -> None:
        """Append *count* zero bytes."""
        self.write(bytes(count))

    def patch(self, offset: int, data: bytes) -> None:
        """Write *data* over what stands at *offset*."""
        self.file.seek(offset)
        self.file.write(data)
        self.file.seek(self.position)

    def tensor(self, entry: Entry, written: Written) -> None:
        """Append the elements of *entry*, dense and cast as the plan says."""
        tensor = entry.tensor
        place = None
        if entry.dtype == tensor.dtype and as_stored(tensor) and tensor.storage is not None:
            start = tensor.storage.offset + tensor.storage_offset * tensor.dtype.itemsize
            place = tensor.storage.source.locate(start)
        if place is not None and tensor.nbytes >= CHUNK // 16:
            self._copy(place[0], place[1], tensor.nbytes)
            return
        for chunk in contents(entry, written):
            self.write(chunk)
            self._advance(len(chunk))

    def streamed(self, entry: Entry, written: Written) -> Iterator[bytes]:
        """Append the elements of *entry* and hand out each chunk once it is written."""
        for chunk in contents(entry, written):
            self.write(chunk)
            self._advance(len(chunk))
            yield chunk

    def close(self) -> None:
        """Let go of the source, and of what is left of the file that will be replaced."""
        self._close_source()
        if self._replaced >= 0:
            self._forget(self._begun, 0)  # to its end
            os.close(self._replaced)
            self._replaced = -1

    def _close_source(self) -> None:
        if self._source >= 0:
            os.close(self._source)
            self._source = -1

    def _copy(self, path: str, offset: int, count: int) -> None:
        if path != self._path:
            self._close_source()
            self._source, self._path = _opened(path), path
        self.file.flush()
        end = offset + count
        ways = [_copy_file_range, _sendfile, _read_and_write]
        while offset < end:
            try:
                done = ways[0](self._source, offset, self.file.fileno(), self.position, min(COPY_STEP, end - offset))
            except OSError as error:
                if error.errno in _CANNOT and len(ways) > 1:
                    del ways[0]
                    continue
                raise
            if not done:
                if len(ways) > 1:  # some file systems answer 0 where they mean that they cannot
                    del ways[0]
                    continue
                raise CorruptFile("ends here now: it was cut while it was being read", path=path, offset=offset)
            offset += done
            self.position += done
            self._advance(done)
            if self.position - self._begun >= WRITE_BACK:
                self._write_back()
        self.file.seek(self.position)

    def _write_back(self) -> None:
        """Have the disk begin with what is written, so that little is left when it has to be there."""
        count = self.position - self._begun
        _begin_write_back(self.file.fileno(), self._begun, count)
        self._forget(self._begun, count)
        self._begun = self.position

    def _forget(self, offset: int, count: int) -> None:
        if self._replaced >= 0:
            with suppress(OSError):  # it was a hint
                os.posix_fadvise(self._replaced, offset, count, os.POSIX_FADV_DONTNEED)


def as_stored(tensor: TensorInfo) -> bool:
    """Whether the tensor's bytes lie in its storage just as they are to be written."""
    return (
        tensor.contiguous and not swap_width(tensor) and not (tensor.details.get("conj") or tensor.details.get("neg"))
    )


def contents(entry: Entry, written: Written) -> Iterator[bytes]:
    """The bytes of *entry* in chunks, cast as the plan says; *written* notes what casting does."""
    if entry.dtype == entry.tensor.dtype:
        yield from chunks(entry.tensor)
        return
    import numpy

    source, target = numpy_dtype(entry.tensor.dtype), numpy_dtype(entry.dtype)
    hasher = hashlib.sha256()
    losses = Losses()
    for chunk in chunks(entry.tensor):
        values = numpy.frombuffer(chunk, source)
        with numpy.errstate(all="ignore"):  # what is lost is counted, not warned of
            cast = values.astype(target)
        losses.overflow += int((numpy.isinf(cast) & numpy.isfinite(values)).sum())
        losses.underflow += int(((cast == 0) & (values != 0)).sum())
        data = cast.tobytes()
        hasher.update(data)
        yield data
    written.sha256[entry.name] = hasher.hexdigest()
    if losses.overflow or losses.underflow:
        written.losses[entry.name] = losses


def _begin_write_back(descriptor: int, offset: int, count: int) -> None:
    """Start writing a part of a file to the disk and do not wait for it; nothing where the system has no such call."""
    call = _system("sync_file_range")
    if call is not None:
        call(descriptor, offset, count, 2)  # SYNC_FILE_RANGE_WRITE; a failure shows at fsync


@cache
def _system(name: str) -> Callable[[int, int, int, int], int] | None:
    """A call of Linux that Python lacks, or has with a slow stand-in for file systems that cannot do it."""
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        call = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (ImportError, OSError, AttributeError):
        return None
    wide = ctypes.c_int64
    call.argtypes = [
        ctypes.c_int,
        *((ctypes.c_int, wide, wide) if name == "fallocate" else (wide, wide, ctypes.c_uint)),
    ]
    found: Callable[[int, int, int, int], int] = call
    return found


def _only_name(path: str) -> int:
    """A descriptor of the file *path* where it is large and has no other name; else -1."""
    if not hasattr(os, "posix_fadvise"):
        return -1
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return -1
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size >= WRITE_BACK and status.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    return -1


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise CkptError(f"cannot be read: {error.strerror}", path=path) from None


def _copy_file_range(source: int, offset: int, target: int, position: int, count: int) -> int:
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, "not on this system")
    return os.copy_file_range(source, target, count, offset, position)


def _sendfile(source: int, offset: int, target: int, position: int, count: int) -> int:
    if not hasattr(os, "sendfile"):
        raise OSError(errno.ENOSYS, "not on this system")
    os.lseek(target, position, os.SEEK_SET)
    return os.sendfile(target, source, offset, count)


def _read_and_write(source: int, offset: int, target: int, position: int, count: int) -> int:
    return os.pwrite(target, os.pread(source, min(count, CHUNK), offset), position)
