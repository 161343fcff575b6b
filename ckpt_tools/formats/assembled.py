"""Tensors that files hold in pieces, as one run of bytes each.

The storage of such a tensor has a source whose bytes are the tensor's elements, row-major and little-endian, put
together from the pieces when they are read and not before. So digest, statistics, comparison and conversion take
it like any other tensor, and no more of it is in memory than is asked for. Where one piece is the whole, the
piece's own source stands there, whose bytes can still be located in a file.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ckpt_tools.checkpoint import Storage, TensorInfo
from ckpt_tools.contents import chunks, swap_width
from ckpt_tools.dtypes import DType
from ckpt_tools.errors import CorruptFile, LimitExceeded
from ckpt_tools.formats.dense import dense
from ckpt_tools.report import shortened
from ckpt_tools.sources import MemorySource, Source

MAX_COMPARED = 1 << 22
"""The most pairs of pieces that are compared to see that none overlap; those of a grid need far fewer."""
SHORT_RUN = 64
"""Runs of up to so many bytes are copied many at a time."""


class Piece(NamedTuple):
    """A box of a tensor, from index *offsets* on and of *sizes*; *source* has its elements, row-major."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    source: Source


def assemble(name: str, dtype: DType, shape: tuple[int, ...], pieces: Sequence[Piece]) -> TensorInfo:
    """The tensor that *pieces* make up; its ``details`` tell the number of chunks where there are several.

    Raises `CorruptFile` where the pieces do not cover the tensor, each element once.
    """
    filled = [piece for piece in pieces if 0 not in piece.sizes]
    _check_cover(shortened(name), shape, filled)
    for piece in filled:
        wanted = math.prod(piece.sizes) * dtype.itemsize
        if piece.source.size != wanted:
            raise CorruptFile(
                f"{shortened(name)}: a chunk of {wanted:,} bytes has {piece.source.size:,}: {piece.source.name}",
            )
    nbytes = math.prod(shape) * dtype.itemsize
    if not filled:
        return dense(name, dtype, shape, Storage(MemorySource(b"", name), 0, 0, dtype, "cpu", name))
    if len(filled) == 1:
        return dense(name, dtype, shape, Storage(filled[0].source, 0, nbytes, dtype, "cpu", name))
    source = Assembled(name, shape, dtype.itemsize, lambda: filled)
    return dense(name, dtype, shape, Storage(source, 0, nbytes, dtype, "cpu", name), {"chunks": len(filled)})


def _check_cover(name: str, shape: tuple[int, ...], pieces: Sequence[Piece]) -> None:
    """Check that *pieces* lie within *shape* and cover it, each element once."""
    for offsets, sizes, _ in pieces:
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            raise CorruptFile(f"{name} has {len(shape)} dimensions, and a chunk of it {len(sizes)}")
        if any(at + size > whole for at, size, whole in zip(offsets, sizes, shape, strict=True)):
            raise CorruptFile(f"{name} is of shape {_text(shape)}; its chunk {_text(sizes)} at {offsets} reaches out")
    covered, whole = sum(math.prod(piece.sizes) for piece in pieces), math.prod(shape)
    overlapping = _overlapping(name, pieces)
    if overlapping is not None:
        first, second = overlapping
        raise CorruptFile(f"{name}: the chunks at {first.offsets} and at {second.offsets} overlap")
    if covered != whole:
        raise CorruptFile(f"{name} has {whole:,} elements, of which its chunks hold {covered:,}")


def _text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def _overlapping(name: str, pieces: Sequence[Piece]) -> tuple[Piece, Piece] | None:
    """Two pieces that share elements: swept along the dimension that tells most of them apart."""
    if len(pieces) < 2:
        return None
    rank = len(pieces[0].sizes)
    if not rank:
        return pieces[0], pieces[1]
    axis = max(range(rank), key=lambda axis: len({piece.offsets[axis] for piece in pieces}))
    left = MAX_COMPARED
    active: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.offsets[axis]):
        active = [other for other in active if other.offsets[axis] + other.sizes[axis] > piece.offsets[axis]]
        left -= len(active) + 1
        if left < 0:
            raise LimitExceeded(f"{name} is cut into {len(pieces):,} chunks, crosswise, too many to be checked")
        for other in active:
            if all(
                piece.offsets[i] < other.offsets[i] + other.sizes[i]
                and other.offsets[i] < piece.offsets[i] + piece.sizes[i]
                for i in range(rank)
            ):
                return other, piece
        active.append(piece)
    return None


# --- sources


class Assembled(Source):
    """The bytes of a tensor of *shape*, whose pieces *find* tells at the first read; they must cover it."""

    __slots__ = ("_find", "_itemsize", "_runs", "_shape")

    def __init__(self, name: str, shape: tuple[int, ...], itemsize: int, find: Callable[[], Sequence[Piece]]) -> None:
        super().__init__(name, math.prod(shape) * itemsize)
        self._shape = shape
        self._itemsize = itemsize
        self._find = find
        self._runs: list[_Runs] | None = None

    def peek(self, offset: int, count: int) -> bytes:
        if self._runs is None:
            self._runs = [_runs(piece, self._shape, self._itemsize) for piece in self._find()]
        out = memoryview(bytearray(max(0, min(count, self.size - offset))))
        for runs in self._runs:
            runs.fill(out, offset)
        return bytes(out)

    def extents(self, offset: int, size: int) -> Iterator[tuple[Source, int, int]]:
        """All that its pieces are made of, whatever part of it is asked for."""
        for piece in self._find():
            yield from piece.source.extents(0, piece.source.size)


@dataclass(frozen=True, slots=True)
class _Runs:
    """Where a piece's bytes go: *count* runs of *length* bytes, one after the other in *source*.

    *base* is where the first goes, *outer* the number and distance of those after it, outermost first.
    """

    source: Source
    length: int
    count: int
    base: int
    outer: tuple[tuple[int, int], ...]

    def start(self, index: int) -> int:
        """Where run *index* goes; it grows with *index*."""
        at = self.base
        for size, step in reversed(self.outer):
            index, i = divmod(index, size)
            at += i * step
        return at

    def fill(self, out: memoryview, offset: int) -> None:
        """Write into *out*, which stands for the bytes from *offset* on, what belongs there."""
        end = offset + len(out)
        first = bisect_right(range(self.count), offset - self.length, key=self.start)
        stop = bisect_right(range(self.count), end - 1, key=self.start)
        if self.length <= SHORT_RUN and len(self.outer) == 1:
            whole = first + (first < stop and self.start(first) < offset)
            last = stop - (whole < stop and self.start(stop - 1) + self.length > end)
            if whole < last:
                self._stripes(out, offset, whole, last)
                self._copy(out, offset, first, whole)
                first = last
        self._copy(out, offset, first, stop)

    def _copy(self, out: memoryview, offset: int, first: int, stop: int) -> None:
        """Write the runs from *first* to *stop* one by one, as far as *out* reaches."""
        end = offset + len(out)
        starts = [self.start(index) for index in range(first, stop)]
        if not starts:
            return
        skipped, cut = max(0, offset - starts[0]), max(0, starts[-1] + self.length - end)
        data = self.source.read(first * self.length + skipped, len(starts) * self.length - skipped - cut)
        at = 0
        for start in starts:
            begin, after = max(start, offset), min(start + self.length, end)
            out[begin - offset : after - offset] = data[at : at + after - begin]
            at += after - begin

    def _stripes(self, out: memoryview, offset: int, first: int, stop: int) -> None:
        """Write the runs from *first* to *stop*, which are short, whole and evenly apart: each byte of all at once."""
        data = memoryview(self.source.read(first * self.length, (stop - first) * self.length))
        step = self.outer[0][1]
        begin = self.start(first) - offset
        after = self.start(stop - 1) - offset + 1
        for i in range(self.length):
            out[begin + i : after + i : step] = data[i :: self.length]


def _runs(piece: Piece, shape: tuple[int, ...], itemsize: int) -> _Runs:
    steps = [itemsize] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        steps[axis] = steps[axis + 1] * shape[axis + 1]
    inner = len(shape)  # from here on the piece is as wide as the whole
    while inner and piece.sizes[inner - 1] == shape[inner - 1]:
        inner -= 1
    inner = max(inner - 1, 0)
    outer: list[tuple[int, int]] = []
    for size, step in zip(piece.sizes[:inner], steps, strict=False):
        if outer and outer[-1][1] == size * step:  # evenly apart, over both dimensions
            outer[-1] = (outer[-1][0] * size, step)
        else:
            outer.append((size, step))
    return _Runs(
        piece.source,
        math.prod(piece.sizes[inner:]) * itemsize,
        math.prod(piece.sizes[:inner]),
        sum(at * step for at, step in zip(piece.offsets, steps, strict=True)),
        tuple(outer),
    )


class Deferred(Source):
    """A source whose *size* is known before it is worth the effort to *find* it."""

    __slots__ = ("_find", "_found")

    def __init__(self, name: str, size: int, find: Callable[[], Source]) -> None:
        super().__init__(name, size)
        self._find = find
        self._found: Source | None = None

    def _source(self) -> Source:
        if self._found is None:
            found = self._find()
            if found.size != self.size:
                raise CorruptFile(f"holds {found.size:,} bytes where {self.size:,} are wanted", path=self.name)
            self._found = found
        return self._found

    def peek(self, offset: int, count: int) -> bytes:
        return self._source().peek(offset, count)

    def locate(self, offset: int) -> tuple[str, int] | None:
        return self._source().locate(offset)

    def extents(self, offset: int, size: int) -> Iterable[tuple[Source, int, int]]:
        return self._source().extents(offset, size)


def elements(tensor: TensorInfo, name: str) -> Source:
    """The elements of *tensor* as `contents.chunks` gives them; where they already lie so, the file's own bytes.

    Raises `UnsupportedFeature` for a tensor without bytes of its own, at the latest when they are read.
    """
    storage = tensor.storage
    plain = storage is not None and not storage.missing and tensor.layout == "strided" and tensor.contiguous
    bits = tensor.details.get("conj") or tensor.details.get("neg")
    if storage is None or not plain or bits or swap_width(tensor):
        return _Gathered(name, tensor)
    return storage.source.slice(storage.offset + tensor.storage_offset * tensor.dtype.itemsize, tensor.nbytes, name)


class _Gathered(Source):
    """A tensor's elements gathered forward as they are read; going back starts again."""

    __slots__ = ("_buffer", "_chunks", "_position", "_tensor")

    def __init__(self, name: str, tensor: TensorInfo) -> None:
        super().__init__(name, tensor.nbytes)
        self._tensor = tensor
        self._restart()

    def _restart(self) -> None:
        self._chunks: Iterator[bytes] = chunks(self._tensor)
        self._buffer = b""
        self._position = 0  # of the buffer's first byte

    def extents(self, offset: int, size: int) -> Iterator[tuple[Source, int, int]]:
        """All of the storage that its elements lie in."""
        storage = self._tensor.storage
        if storage is not None:
            yield from storage.source.extents(storage.offset, storage.nbytes)

    def peek(self, offset: int, count: int) -> bytes:
        if offset < self._position:
            self._restart()
        parts: list[bytes] = []
        missing = max(0, min(count, self.size - offset))
        while missing:
            part = self._buffer[offset - self._position :][:missing]
            if not part:
                self._position += len(self._buffer)
                self._buffer = next(self._chunks, b"")
                if not self._buffer:
                    break
                continue
            parts.append(part)
            offset += len(part)
            missing -= len(part)
        return b"".join(parts)
