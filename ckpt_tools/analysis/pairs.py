"""Two tensors of one shape, and how their elements are set against each other, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ckpt_tools.analysis.blocks import Block, Sums
from ckpt_tools.analysis.elements import FLOAT16_TOP, Array, Scratch, as_words, kind_of, same_bytes
from ckpt_tools.analysis.streaming import Span, even_spans, in_file, in_storage_order
from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import numpy_dtype
from ckpt_tools.errors import CkptError
from ckpt_tools.forks import together

SPAN = 16 << 20
"""Bytes of each tensor that a process or thread takes at a time."""

FEW = 4096
"""Elements of a tensor that is small enough for float64 in any case."""

_NOTHING = Span(0, 0)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What may go unnoticed: elements with ``|B - A| <= atol + rtol * |A|``, and infinities that are equal."""

    rtol: float = 0.0
    atol: float = 0.0


class Pair:
    """Two tensors, and how their elements are set against each other.

    *real* is the type their numbers are first measured in, *reals* how many there are of each element. *done*: no
    more of it need be read.
    """

    def __init__(
        self, a: TensorInfo, b: TensorInfo, tolerance: Tolerance | None, values: bool, as_stored: bool = True
    ) -> None:
        if a.shape != b.shape:
            raise ValueError(f"{a.shape} is not {b.shape}")
        self.given, self.tolerance, self.values = (a, b), tolerance, values
        self.a, self.b, self.repeats = _in_one_order(a, b) if as_stored else (a, b, 1)
        self.kinds = kind_of(a.dtype), kind_of(b.dtype)
        self.same_type = a.dtype == b.dtype
        names = {a.dtype.name, b.dtype.name}
        kinds = {a.dtype.kind, b.dtype.kind}
        self.comparable = self.same_type or not (kinds & {"quantized", "bits"} or "float4_e2m1fn_x2" in names)
        self.real = max(kind.real for kind in self.kinds) if self.comparable else ""
        self.reals = max(kind.reals for kind in self.kinds)
        if self.real and a.numel <= FEW:
            self.real = "<f8"
        self.direct = (
            self.same_type and names <= {"float32", "float64", "complex128"} and self.real == self.kinds[0].real
        )
        self.top = FLOAT16_TOP if "float16" in names else math.inf
        self.complex = "complex" in kinds
        self.long = kinds <= {"int", "uint", "bool"} and max(a.dtype.itemsize, b.dtype.itemsize) == 8
        self.signed = not kinds & {"uint", "bool", "quantized", "complex"} and "float8_e8m0fnu" not in names
        self.ulps = self.same_type and self.signed and kinds == {"float"} and self.reals == 1
        self.count = self.a.numel
        self.widths = a.dtype.itemsize, b.dtype.itemsize
        self.step = SPAN // max(self.widths)
        self.different = False
        self.error: CkptError | None = None
        self._ceilings: dict[int, int] = {}

    def ceiling(self, squares: float) -> int:
        """An integer than which no float of A's type is greater as an integer, if *squares* is its square or more."""
        exponent = math.frexp(squares)[1] // 2 + 2 if math.isfinite(squares) else 1023
        known = self._ceilings.get(exponent)
        if known is None:
            power = np.array(math.ldexp(1.0, min(exponent, 1023))).astype(numpy_dtype(self.a.dtype))
            known = self._ceilings[exponent] = int(power.view(self.kinds[0].words))
        return known

    @property
    def done(self) -> bool:
        """Whether nothing more is to be found out."""
        return self.error is not None or (self.different and not self.values)

    @property
    def in_files(self) -> bool:
        """Whether the elements of both, if any are to be read, lie in local files as they are wanted."""
        if not self.count or not self.readable:
            return True
        try:
            return in_file(self.a) is not None and in_file(self.b) is not None
        except CkptError:
            return False

    @property
    def readable(self) -> bool:
        """Whether their elements can be set against each other, as far as that is asked for."""
        return self.comparable and (self.values or self.same_type)

    @property
    def nbytes(self) -> int:
        """The bytes of both sides."""
        return self.given[0].nbytes + self.given[1].nbytes

    def index(self, at: int) -> tuple[int, ...]:
        """The index of the element that comes at place *at*."""
        given = self.given[0]
        if self.a is given:
            return _unravelled(at, given.shape)
        axes = [axis for axis, size in enumerate(given.shape) if size != 1 and given.stride[axis]]
        index = [0] * len(given.shape)
        if len(self.a.shape) == len(axes):  # as they come, and not one after the other in the storage
            places = _unravelled(at, self.a.shape)
        else:
            places = tuple(at // given.stride[axis] % given.shape[axis] for axis in axes)
        for axis, place in zip(axes, places, strict=True):
            index[axis] = place
        return tuple(index)

    # --- reading

    def pieces(self) -> Iterator[Piece]:
        """What is to be read, and an end."""
        self.different = not self.readable
        try:
            for left, right in self.spans():
                if self.done:
                    break
                yield Piece(self, left, right)
        except CkptError as error:
            self.error = self.error or error
        yield Piece(self, _NOTHING, _NOTHING, last=True)

    def spans(self) -> Iterator[tuple[Span, Span]]:
        """What is to be read, side by side."""
        if not self.readable:
            return
        left, right = (self.step * width // kind.per_byte for width, kind in zip(self.widths, self.kinds, strict=True))
        yield from zip(even_spans(self.a, left), even_spans(self.b, right), strict=True)

    def read(self, left: Span, right: Span, scratch: Scratch) -> Sums:
        """What is known of the elements in two spans."""
        sums = Sums()
        with np.errstate(all="ignore"):  # NaN and infinities are counted, not warned of
            for at, x, y in self.blocks(left, right, scratch):
                if self.values:
                    Block(self, at, x, y, scratch, sums).add()
                elif not same_bytes(x, y):
                    sums.different = True
                    break
        return sums

    def blocks(self, left: Span, right: Span, scratch: Scratch) -> Iterator[tuple[int, Array, Array]]:
        """The words of both sides, block by block, each with the place of the first element."""
        size = scratch.size(self.reals, max(self.widths)) & ~3
        buffers = [
            buffer.data[: size * width // kind.per_byte]
            for buffer, width, kind in zip(scratch.buffers, self.widths, self.kinds, strict=True)
        ]
        at = left.start // self.widths[0] * self.kinds[0].per_byte
        for (_, x), (_, y) in zip(left.blocks(buffers[0]), right.blocks(buffers[1]), strict=True):
            count = min(size, self.count - at)
            yield at, as_words(x, self.kinds[0], count), as_words(y, self.kinds[1], count)
            at += count


class Piece(NamedTuple):
    """Two spans of a pair, side by side, or what comes after its *last* ones."""

    pair: Pair
    left: Span
    right: Span
    last: bool = False

    @property
    def nbytes(self) -> int:
        """The bytes of both spans."""
        return self.left.nbytes + self.right.nbytes

    def measure(self, idle: list[Scratch]) -> Sums | CkptError | None:
        """What is known of the elements in them; None where nothing is asked for any more."""
        if self.last or self.pair.done:
            return None
        try:
            scratch = idle.pop()
        except IndexError:
            scratch = Scratch()
        try:
            return self.pair.read(self.left, self.right, scratch)
        except CkptError as error:
            return error
        finally:
            idle.append(scratch)


def batched(pairs: Iterable[Pair]) -> Iterator[list[Piece]]:
    """The pieces of *pairs* in their order, so many at a time that they are worth the handing over."""
    pieces = (piece for pair in pairs for piece in pair.pieces())
    return together(pieces, lambda piece: piece.nbytes, 2 * SPAN)


def _in_one_order(a: TensorInfo, b: TensorInfo) -> tuple[TensorInfo, TensorInfo, int]:
    """Both tensors as they lie in their storages, and how often each element comes, if both lie alike."""
    if a.storage is None or b.storage is None or a.layout != "strided" or b.layout != "strided":
        return a, b, 1
    left, right = ([(s, n) for s, n in zip(t.stride, t.shape, strict=True) if n != 1] for t in (a, b))
    if left != right or a.contiguous:
        return a, b, 1
    x, repeats = in_storage_order(a)
    y, _ = in_storage_order(b)
    return x, y, repeats


def _unravelled(at: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index of place *at* in row-major order; numpy's ends at 64 dimensions."""
    index = []
    for size in reversed(shape):
        at, place = divmod(at, size)
        index.append(place)
    return tuple(reversed(index))
