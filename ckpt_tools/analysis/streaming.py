"""Tensor bytes for analyses that want all of them, in any order: read once, in bounded memory, by threads."""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from math import prod
from typing import NamedTuple, TypeVar

from ckpt_tools import forks
from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import EXPANDED_BYTES, chunks, swap_width
from ckpt_tools.errors import CkptError, CorruptFile, UnsupportedFeature
from ckpt_tools.sources import Source

T = TypeVar("T")

SPAN = 4 << 20
"""Bytes that one thread takes at a time: long enough to make nothing of the handing over."""


class Span(NamedTuple):
    """*nbytes* bytes of a tensor from byte *start* of its elements: *data*, or where they lie in a local file.

    *offset* is their place in the file *path*; without one in the source *name*, "" where they lie otherwise.
    """

    start: int
    nbytes: int
    data: bytes = b""
    path: str = ""
    offset: int = 0
    name: str = ""

    @property
    def place(self) -> tuple[str, int] | None:
        """The outermost source, by name, in which the bytes lie just as they are here, and where."""
        name = self.path or self.name
        return (name, self.offset) if name else None

    def blocks(self, buffer: memoryview) -> Iterator[tuple[int, memoryview]]:
        """The bytes in pieces that fit *buffer*, which is overwritten, each with its start within the elements."""
        if not self.path:
            for at in range(0, self.nbytes, len(buffer)):
                yield self.start + at, memoryview(self.data)[at : at + len(buffer)]
            return
        try:
            with open(self.path, "rb", buffering=0) as file:
                if forks.forked and (mapped := self._mapped(file.fileno())) is not None:
                    for at in range(0, self.nbytes, len(buffer)):
                        yield self.start + at, mapped[at : at + len(buffer)]
                    return
                file.seek(self.offset)
                for at in range(0, self.nbytes, len(buffer)):
                    block = buffer[: self.nbytes - at]
                    filled = 0
                    while filled < len(block):
                        count = file.readinto(block[filled:])
                        if not count:
                            raise CorruptFile(
                                "ends here now: it was cut while it was being read",
                                path=self.path,
                                offset=self.offset + at + filled,
                            )
                        filled += count
                    yield self.start + at, block
        except OSError as error:
            raise CkptError(f"reading failed: {error.strerror}", path=self.path, offset=self.offset) from None

    def _mapped(self, descriptor: int) -> memoryview | None:
        """The bytes as they lie in the page cache; None where they must be read.

        Saves copying them. A file that is cut, or a disk that fails, kills who looks at a mapping, so that only a
        forked process may have one.
        """
        if self.offset % _ALIGNED or os.fstat(descriptor).st_size < self.offset + self.nbytes:
            return None
        before = self.offset % mmap.ALLOCATIONGRANULARITY
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        try:
            mapping = mmap.mmap(descriptor, before + self.nbytes, flags, mmap.PROT_READ, offset=self.offset - before)
        except (OSError, ValueError):  # not every file system can; and the file may be shorter by now
            return None
        return memoryview(mapping)[before:]


_ALIGNED = 8
"""Bytes at whose multiples the widest numbers begin, as arithmetic wants it."""


def in_storage_order(tensor: TensorInfo) -> tuple[TensorInfo, int]:
    """A tensor of the same elements, each once and as they follow in the storage, and how often each comes.

    The elements of a transposed tensor become a vector. Where they lie scattered only what an expanded tensor
    repeats (stride 0) is taken away.
    """
    if tensor.storage is None or tensor.layout != "strided" or not tensor.numel:
        return tensor, 1
    axes = [(stride, size) for stride, size in zip(tensor.stride, tensor.shape, strict=True) if size != 1]
    repeats = prod(size for stride, size in axes if not stride)
    axes = [(stride, size) for stride, size in axes if stride]
    dense = 1
    for stride, size in sorted(axes):
        if stride != dense:
            break
        dense *= size
    else:
        axes = [(1, dense)]
    return replace(tensor, stride=tuple(a[0] for a in axes), shape=tuple(a[1] for a in axes)), repeats


def spans(tensor: TensorInfo, nbytes: int = SPAN) -> Iterator[Span]:
    """The bytes of *tensor* as `contents.chunks` gives them, cut into spans that threads may read, of *nbytes* or less.

    What does not lie as it is wanted in a local file is read here, as the iterator goes on. Raises
    `UnsupportedFeature` for a tensor without bytes of its own, and for one that repeats a short storage to more
    than a gibibyte.
    """
    storage = tensor.storage
    if storage is not None and tensor.nbytes > max(storage.nbytes, EXPANDED_BYTES):
        raise UnsupportedFeature(f"{tensor.name} repeats {storage.nbytes:,} bytes to {tensor.nbytes:,}")
    stored = _as_they_lie(tensor)
    place = stored.locate(0) if stored is not None else None
    if place is not None:
        path, offset = place
        for start in range(0, tensor.nbytes, nbytes):
            yield Span(start, min(nbytes, tensor.nbytes - start), path=path, offset=offset + start)
        return
    places = list(stored.extents(0, stored.size)) if stored is not None else []
    name, offset = (places[0][0].name, places[0][1]) if len(places) == 1 else ("", 0)
    start = 0
    for chunk in chunks(tensor):
        yield Span(start, len(chunk), chunk, offset=offset + start, name=name)
        start += len(chunk)


def in_file(tensor: TensorInfo) -> tuple[str, int] | None:
    """The local file in which the bytes of *tensor* lie just as `contents.chunks` gives them, and where."""
    found = _as_they_lie(tensor)
    return found.locate(0) if found is not None else None


def _as_they_lie(tensor: TensorInfo) -> Source | None:
    """The bytes of *tensor* where they lie just as `contents.chunks` gives them."""
    storage = tensor.storage
    if storage is None or storage.missing or tensor.layout != "strided" or not tensor.numel or not tensor.contiguous:
        return None
    if swap_width(tensor) or tensor.details.get("conj") or tensor.details.get("neg"):
        return None
    if tensor.storage_offset and tensor.nbytes != tensor.numel * tensor.dtype.itemsize:  # packed
        return None
    offset = storage.offset + tensor.storage_offset * tensor.dtype.itemsize
    return storage.source.slice(offset, tensor.nbytes, tensor.name)


def even_spans(tensor: TensorInfo, nbytes: int) -> Iterator[Span]:
    """`spans`, but of *nbytes* each, and what is left in the last: so those of two tensors go together.

    It ends early where `contents.chunks` does; that all of a tensor came is the caller's to see.
    """
    held = bytearray()
    start = 0
    for span in spans(tensor, nbytes):
        if span.path:
            yield span
            continue
        if not held and span.nbytes == nbytes:
            yield Span(start, nbytes, span.data)
            start += nbytes
            continue
        held += span.data
        while len(held) >= nbytes:
            yield Span(start, nbytes, bytes(memoryview(held)[:nbytes]))
            del held[:nbytes]
            start += nbytes
    if held:
        yield Span(start, len(held), bytes(held))


def in_order(jobs: Iterable[Callable[[], T]], threads: int) -> Iterator[T]:
    """What *jobs* return, in their order; up to *threads* run at once, and few more are begun than are asked for.

    *jobs* is iterated in the caller's thread. The first error of a job is raised in its turn.
    """
    if threads > 1:
        waiting = iter(jobs)
        first = list(islice(waiting, 2))
        jobs = chain(first, waiting)
        threads = min(threads, len(first))
    if threads < 2:
        for job in jobs:
            yield job()
        return
    from concurrent.futures import Future, ThreadPoolExecutor  # which imports logging

    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(job))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
