"""How the values of two tensors of one shape differ, measured in one pass and bounded memory.

Both are worked on side by side, in blocks that stay in a core's cache. Types of up to 24 significant bits are measured
in float32, of which rows of 256 elements are summed up, and these sums in float64: norms are off by at most 1e-6 of
themselves where a core adds 16 numbers or more at once, *dot* by 1e-5 of the product of the norms. *max_abs* is exact
all the same. Small tensors, other types, and blocks whose squares leave the range of float32 are
measured in float64. A block in which something is not finite, or that float64 cannot square either, is gone through
again with more care.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import tee
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ckpt_tools.analysis.statistics import byte_numbers, finite_float16
from ckpt_tools.analysis.streaming import Span, even_spans, in_file, in_order, in_storage_order
from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import numpy_dtype
from ckpt_tools.dtypes import BY_NAME, DType
from ckpt_tools.errors import CkptError
from ckpt_tools.forks import can_fork, cores, in_forks

BLOCK = 1 << 16
"""Numbers of each tensor worked on at once: with what is made of them they stay in a core's own cache."""
BLOCK_BYTES = 1 << 18
"""Bytes of each tensor worked on at once."""
SPAN = 16 << 20
"""Bytes of each tensor that a process or thread takes at a time."""
WORTH_A_FORK = 64 << 20
"""Bytes that are compared before a process more could be forked."""

_FEW = 4096
"""Elements of a tensor that is small enough for float64 in any case."""

Basis = Literal["value", "stored integer"]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What may go unnoticed: elements with ``|B - A| <= atol + rtol * |A|``, and infinities that are equal."""

    rtol: float = 0.0
    atol: float = 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Tensor B against tensor A, both of *numel* elements.

    *identical*: same dtype and bits; the scale of quantized tensors is not part of these. *equal* counts elements of
    the same bits (of equal value where the dtypes differ); None where nothing but *identical* was asked for and it is
    False.

    *basis* says what was measured as numbers: values, or stored integers where A and B are quantized (before scale
    and zero point). Where it is None nothing was, and all that follows is as it is by default: only identity was
    asked for, or the elements are no numbers.

    *distance* is ‖B - A‖, *norm* ‖A‖, *other_norm* ‖B‖, *dot* the real part of <A, B>, which may leave float64: over
    the elements that are finite on both sides. *max_abs* is the largest |B - A| there, met at *max_index*. *max_ulp*,
    the largest distance in representable numbers, is None unless both have one float dtype. *sign_flips* counts
    elements that are positive on one side and negative on the other, *nans* and *infs* A's and B's. *cast*: B is A
    converted to B's other dtype as torch does, bit for bit; *cast_back*: A is B converted to A's. Where both hold the
    conversion lost nothing.

    *within*: no element breaks the tolerance, as one that is NaN always does; without a tolerance, all are *equal*.
    """

    numel: int
    identical: bool
    equal: int | None
    basis: Basis | None = None
    distance: float = 0.0
    norm: float = 0.0
    other_norm: float = 0.0
    dot: float = 0.0
    max_abs: float = 0.0
    max_index: tuple[int, ...] | None = None
    max_ulp: int | None = None
    sign_flips: int = 0
    nans: tuple[int, int] = (0, 0)
    infs: tuple[int, int] = (0, 0)
    cast: bool = False
    cast_back: bool = False
    within: bool = True

    @property
    def relative(self) -> float | None:
        """‖B - A‖ / ‖A‖; None where B moved from zero, or both are too large for float64."""
        if self.norm:
            ratio = self.distance / self.norm
            return None if math.isnan(ratio) else ratio
        return None if self.distance else 0.0

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between A and B; None where either is zero, or too large for float64."""
        a, b, scale = self.norm, self.other_norm, self.norm * self.other_norm
        if not a or not b or math.inf in (a, b, self.distance):
            return None
        if 1e-280 < scale < 1e300:
            cosine = self.dot / scale
        else:  # the product may have left float64, so by the law of cosines
            unit = max(a, b)
            cosine = (a / unit) ** 2 + (b / unit) ** 2 - (self.distance / unit) ** 2
            cosine /= 2 * (a / unit) * (b / unit)
        return min(max(cosine, -1.0), 1.0)


@dataclass(frozen=True, slots=True)
class ChangeHistogram:
    """How large the changes of a tensor's elements are, by powers of two.

    *counts* has the number of elements with ``edges[i] <= |B - A| < edges[i + 1]``, from the smallest change to the
    largest; *edges* are powers of two, one more than counts. *unchanged* elements are equal, *others* not finite on
    one side. *rms* is the root mean square of A's finite elements, against which an edge is large or small.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    unchanged: int
    others: int
    rms: float


_SMALLEST, _LARGEST = 1073, 1024
"""The least and the greatest exponent of a float64 as frexp has them, the least one's sign turned."""

_NOTHING = Span(0, 0)

PairOfTensors = tuple[TensorInfo, TensorInfo, Tolerance | None]


def compare(a: TensorInfo, b: TensorInfo, tolerance: Tolerance | None = None) -> Comparison | None:
    """Compare *b* with *a*, which has the same shape.

    None where their elements cannot be set against each other: different dtypes that are not both numbers.
    Raises ValueError for two shapes, `CkptError` where bytes are missing (meta and sparse tensors have none).
    """
    (found,) = compare_all([(a, b, tolerance)], threads=1)
    if isinstance(found, CkptError):
        raise found
    return found


def compare_all(
    pairs: Iterable[PairOfTensors],
    *,
    threads: int | None = None,
    values: bool = True,
    advance: Callable[[int], object] | None = None,
) -> Iterator[Comparison | CkptError | None]:
    """`compare` of each pair, in order; an error stands in its pair's place.

    *threads* work at once, by default as many as there are cores, up to four. They are processes where much is to
    be compared and this process may be forked: `forks.can_fork`.

    Without *values* only identity is found out, and a pair is read no further than to the first difference.
    *advance* is told, in the caller's thread, how many bytes of `bytes_to_compare` are done with.
    """
    known = [_Pair(a, b, tolerance, values) for a, b, tolerance in pairs]
    total: _Sums | None = None
    told = 0
    for piece, found in _measured(known, threads or min(cores(), 4)):
        pair = piece.pair
        if isinstance(found, CkptError):
            pair.error = pair.error or found
        elif found is not None:
            pair.different |= found.different
            total = found if total is None else total.merged(found)
        nbytes = pair.nbytes - told if piece.last else piece.nbytes
        told += nbytes
        if advance is not None and nbytes:
            advance(nbytes)
        if piece.last:
            yield pair.error or pair.result(total or _Sums())
            total, told = None, 0


def bytes_to_compare(pairs: Iterable[PairOfTensors]) -> int:
    """What `compare_all` tells of *pairs* in all: the bytes of both sides, whether they must be read or not."""
    return sum(a.nbytes + b.nbytes for a, b, _ in pairs)


def change_histogram(a: TensorInfo, b: TensorInfo) -> ChangeHistogram | None:
    """How large the changes from *a* to *b* are, element by element; reads both once. None where `compare` is, and
    where the elements are no numbers.
    """
    pair = _Pair(a, b, None, True)
    if not pair.real:
        return None
    scratch, sums = _Scratch(), _Sums()
    unchanged, finite, squares = 0, 0, 0.0
    counts = np.zeros(_SMALLEST + _LARGEST + 1, np.int64)
    with np.errstate(all="ignore"):
        for left, right in pair.spans():
            for at, x, y in pair.blocks(left, right, scratch):
                block = _Block(pair, at, x, y, scratch, sums)
                numbers = block.finite(*block.sides("<f8"))
                moved = numbers.sizes[numbers.sizes != 0]
                unchanged += numbers.sizes.size - moved.size
                finite += numbers.sizes.size
                squares += float(np.square(numbers.p).sum())
                places = np.where(np.isinf(moved), _LARGEST, np.frexp(moved)[1])
                counts += np.bincount(places + _SMALLEST, minlength=counts.size)
    total = pair.count * (1 if pair.complex else pair.reals)
    filled = np.flatnonzero(counts)
    low, high = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, -1)
    with np.errstate(over="ignore"):  # above 2**1023 there is but infinity
        edges = np.ldexp(0.5, np.arange(low, high + 1) - _SMALLEST)
    return ChangeHistogram(
        edges=tuple(edges.tolist()),
        counts=tuple((counts[low : max(high, 0)] * pair.repeats).tolist()),
        unchanged=unchanged * pair.repeats,
        others=(total - finite) * pair.repeats,
        rms=math.sqrt(squares / finite) if finite else 0.0,
    )


def side_by_side(a: TensorInfo, b: TensorInfo) -> Iterator[tuple[Array, Array]]:
    """The real numbers of both in row-major order as float64, piece by piece; a piece is good until the next.

    Raises ValueError for two shapes, and where their elements are not two series of as many real numbers;
    `CkptError` where bytes are missing.
    """
    pair = _Pair(a, b, None, True, as_stored=False)
    if not pair.real or pair.reals > 1:
        raise ValueError(f"{a.dtype} and {b.dtype} have no real numbers")
    scratch, sums = _Scratch(), _Sums()
    for left, right in pair.spans():
        for at, x, y in pair.blocks(left, right, scratch):
            p, q = _Block(pair, at, x, y, scratch, sums).sides("<f8")
            yield p, q


# --- how elements are read


class _Kind(NamedTuple):
    """How elements of a type become numbers.

    *words* are what is compared bit for bit, *per_byte* of them in a byte where several are. *real* is the least
    float type that has all numbers exactly (the nearest ones of 64-bit integers), of which each
    element makes *reals*; it is empty where elements are no numbers.
    """

    words: np.dtype[Any]
    per_byte: int
    real: str
    reals: int


@cache
def _kind(dtype: DType) -> _Kind:
    per_byte = {"quint4x2": 2, "quint2x4": 4}.get(dtype.name, 1)
    words = np.dtype(f"<u{min(dtype.itemsize, 8)}")
    if dtype.kind == "bits" or (dtype.kind == "quantized" and dtype.numpy is None):
        return _Kind(words, per_byte, "", 1)
    wide = dtype.kind == "complex" or dtype.name == "float64" or (dtype.itemsize > 2 and dtype.name != "float32")
    reals = 2 if dtype.kind == "complex" or dtype.name == "float4_e2m1fn_x2" else 1
    return _Kind(words, per_byte, "<f8" if wide else "<f4", reals)


_PART = {"complex128": "float64", "complex64": "float32", "complex32": "float16", "bcomplex32": "bfloat16"}
"""The type of the real and of the imaginary part."""


@cache
def _table(dtype: DType, real: str) -> Array:
    """The numbers that a byte holds, a row for each byte."""
    return byte_numbers(dtype)[0].astype(real)


_TOP = 2.0**32
"""The square of what `finite_float16` makes of an infinity: a sum of squares below it is one of finite numbers."""


def _fill(row: Array, dtype: DType, words: Array, reals: int) -> None:
    """Put the numbers of elements, *reals* of each, into *row*: as float32, those of float16 must be finite."""
    if dtype.name == "float16" and row.dtype == np.float32:
        finite_float16(words, row)
        return
    values = words.view(numpy_dtype(_part(dtype)))
    if dtype.itemsize == 1 and dtype.kind in ("float", "bool"):
        table = _table(dtype, row.dtype.str)
        if table.shape[1] == reals:
            np.take(table, words, axis=0, out=row.reshape(words.size, -1), mode="clip")
            return
        values = table[words, 0]
    if reals == 2 and dtype.kind != "complex":  # beside a complex number
        row[0::2], row[1::2] = values, 0
    else:
        np.copyto(row, values, casting="same_kind")


_ROWS = {4: 256, 8: 4096}
"""Elements summed in their own type at once, by bytes: a longer product might have BLAS start threads of its own."""

_SIGNED = {1: "<i1", 2: "<i2", 4: "<i4", 8: "<i8"}


class _Scratch:
    """Memory that a thread works in, block after block: numbers of A, those of B and the changes are its rows."""

    __slots__ = ("buffers", "flags", "products", "rows")

    def __init__(self) -> None:
        self.buffers = _empty(BLOCK_BYTES), _empty(BLOCK_BYTES)
        self.rows = {real: _empty(3 * BLOCK * int(real[2])).view(real).reshape(3, BLOCK) for real in ("<f4", "<f8")}
        self.flags = _empty(BLOCK).view(np.bool_)
        self.products = {size: np.empty((BLOCK // row, 1, 1), f"<f{size}") for size, row in _ROWS.items()}

    def words(self, dtype: np.dtype[Any], count: int) -> Array:
        """Memory for *count* integers, which the changes will take."""
        memory: Array = self.rows["<f8" if dtype.itemsize == 8 else "<f4"][2].view(dtype)[:count]
        return memory


def _empty(nbytes: int) -> Array:
    """Memory that begins with a cache line: across these, arithmetic takes up to twice the time."""
    memory = np.empty(nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes]


# --- what is known of a pair


@dataclass(slots=True)
class _Sums:
    """What is known of some of a pair's elements: `Comparison` says what the names mean."""

    different: bool = False
    equal: int = 0
    distance: float = 0.0
    norm: float = 0.0
    other_norm: float = 0.0
    dot: float = 0.0
    max_abs: float = 0.0
    max_at: int = -1
    max_ulp: int = 0
    sign_flips: int = 0
    nans: tuple[int, int] = (0, 0)
    infs: tuple[int, int] = (0, 0)
    cast: bool = True
    cast_back: bool = True
    within: bool = True

    def merged(self, later: _Sums) -> _Sums:
        """This, with what is known of later elements taken in."""
        self.equal += later.equal
        self.distance = math.hypot(self.distance, later.distance)  # whose squares may leave float64
        self.norm = math.hypot(self.norm, later.norm)
        self.other_norm = math.hypot(self.other_norm, later.other_norm)
        self.dot += later.dot
        self.reach(later.max_abs, later.max_at)
        self.max_ulp = max(self.max_ulp, later.max_ulp)
        self.sign_flips += later.sign_flips
        self.nans = self.nans[0] + later.nans[0], self.nans[1] + later.nans[1]
        self.infs = self.infs[0] + later.infs[0], self.infs[1] + later.infs[1]
        self.cast &= later.cast
        self.cast_back &= later.cast_back
        self.within &= later.within
        return self

    def reach(self, change: float, at: int) -> None:
        """Take in an element that changed by *change*."""
        if change > self.max_abs:
            self.max_abs, self.max_at = change, at


class _Piece(NamedTuple):
    """Two spans of a pair, side by side, or what comes after its *last* ones."""

    pair: _Pair
    left: Span
    right: Span
    last: bool = False

    @property
    def nbytes(self) -> int:
        return self.left.nbytes + self.right.nbytes

    def measure(self, idle: list[_Scratch]) -> _Sums | CkptError | None:
        """What is known of the elements in them; None where nothing is asked for any more."""
        if self.last or self.pair.done:
            return None
        scratch = idle.pop() if idle else _Scratch()
        try:
            return self.pair.read(self.left, self.right, scratch)
        except CkptError as error:
            return error
        finally:
            idle.append(scratch)


_Found = _Sums | CkptError | None


def _measured(pairs: Sequence[_Pair], threads: int) -> Iterator[tuple[_Piece, _Found]]:
    """All pieces of *pairs* in their order, with what was found out."""
    idle: list[_Scratch] = []

    def measure(pieces: list[_Piece]) -> list[_Found]:
        return [piece.measure(idle) for piece in pieces]

    processes = min(threads, 1 + sum(pair.nbytes for pair in pairs) // WORTH_A_FORK)
    batches: Iterable[list[_Piece]]
    results: Iterator[list[_Found] | CkptError | None]
    if processes > 1 and can_fork() and all(pair.in_files for pair in pairs):
        batches = known = list(_batches(pairs))
        wanted = (None if all(piece.pair.done for piece in batch) else at for at, batch in enumerate(known))
        results = in_forks(lambda at: measure(known[at]), wanted, processes)
    else:
        batches, pending = tee(_batches(pairs))
        results = in_order((partial(measure, batch) for batch in pending), threads)
    for batch, found in zip(batches, results, strict=True):
        if isinstance(found, list):
            yield from zip(batch, found, strict=True)
        else:
            for piece in batch:
                yield piece, found and found.at(path=piece.left.path)


def _batches(pairs: Iterable[_Pair]) -> Iterator[list[_Piece]]:
    """The pieces of *pairs* in their order, so many at a time that they are worth the handing over."""
    batch: list[_Piece] = []
    nbytes = 0
    for pair in pairs:
        for piece in pair.pieces():
            if nbytes and nbytes + piece.nbytes > 2 * SPAN:
                yield batch
                batch, nbytes = [], 0
            batch.append(piece)
            nbytes += piece.nbytes
    if batch:
        yield batch


class _Pair:
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
        self.kinds = _kind(a.dtype), _kind(b.dtype)
        self.same_type = a.dtype == b.dtype
        names = {a.dtype.name, b.dtype.name}
        kinds = {a.dtype.kind, b.dtype.kind}
        self.comparable = self.same_type or not (kinds & {"quantized", "bits"} or "float4_e2m1fn_x2" in names)
        self.real = max(kind.real for kind in self.kinds) if self.comparable else ""
        self.reals = max(kind.reals for kind in self.kinds)
        if self.real and a.numel <= _FEW:
            self.real = "<f8"
        self.direct = (
            self.same_type and names <= {"float32", "float64", "complex128"} and self.real == self.kinds[0].real
        )
        self.top = _TOP if "float16" in names else math.inf
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

    def result(self, sums: _Sums) -> Comparison | None:
        """The comparison, *sums* being those of all elements."""
        numel = self.given[0].numel
        if not self.values:
            return Comparison(numel, not self.different, None if self.different else numel, within=not self.different)
        if not self.comparable:
            return None
        equal = sums.equal * self.repeats
        identical = self.same_type and equal == numel
        if not self.real:
            return Comparison(numel, identical, equal, within=identical)
        root = math.sqrt(self.repeats)
        return Comparison(
            numel=numel,
            identical=identical,
            equal=equal,
            basis="stored integer" if self.a.dtype.kind == "quantized" else "value",
            distance=sums.distance * root,
            norm=sums.norm * root,
            other_norm=sums.other_norm * root,
            dot=sums.dot * self.repeats,
            max_abs=sums.max_abs,
            max_index=self._index(sums.max_at) if sums.max_at >= 0 else None,
            max_ulp=sums.max_ulp if self.ulps else None,
            sign_flips=sums.sign_flips * self.repeats,
            nans=(sums.nans[0] * self.repeats, sums.nans[1] * self.repeats),
            infs=(sums.infs[0] * self.repeats, sums.infs[1] * self.repeats),
            cast=not self.same_type and sums.cast,
            cast_back=not self.same_type and sums.cast_back,
            within=sums.within if self.tolerance else equal == numel,
        )

    def _index(self, at: int) -> tuple[int, ...]:
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

    def pieces(self) -> Iterator[_Piece]:
        """What is to be read, and an end."""
        self.different = not self.readable
        try:
            for left, right in self.spans():
                if self.done:
                    break
                yield _Piece(self, left, right)
        except CkptError as error:
            self.error = self.error or error
        yield _Piece(self, _NOTHING, _NOTHING, last=True)

    def spans(self) -> Iterator[tuple[Span, Span]]:
        """What is to be read, side by side."""
        if not self.readable:
            return
        left, right = (self.step * width // kind.per_byte for width, kind in zip(self.widths, self.kinds, strict=True))
        yield from zip(even_spans(self.a, left), even_spans(self.b, right), strict=True)

    def read(self, left: Span, right: Span, scratch: _Scratch) -> _Sums:
        """What is known of the elements in two spans."""
        sums = _Sums()
        with np.errstate(all="ignore"):  # NaN and infinities are counted, not warned of
            for at, x, y in self.blocks(left, right, scratch):
                if self.values:
                    _Block(self, at, x, y, scratch, sums).add()
                elif not _same_bytes(x, y):
                    sums.different = True
                    break
        return sums

    def blocks(self, left: Span, right: Span, scratch: _Scratch) -> Iterator[tuple[int, Array, Array]]:
        """The words of both sides, block by block, each with the place of the first element."""
        size = min(BLOCK // self.reals, BLOCK_BYTES // max(self.widths)) & ~3
        buffers = [
            buffer.data[: size * width // kind.per_byte]
            for buffer, width, kind in zip(scratch.buffers, self.widths, self.kinds, strict=True)
        ]
        at = left.start // self.widths[0] * self.kinds[0].per_byte
        for (_, x), (_, y) in zip(left.blocks(buffers[0]), right.blocks(buffers[1]), strict=True):
            count = min(size, self.count - at)
            yield at, _words(x, self.kinds[0], count), _words(y, self.kinds[1], count)
            at += count


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


@cache
def _memcmp() -> Callable[[int, int, int], int] | None:
    """C's own, which stops at the first difference and keeps no notes; None where there is no C library to ask."""
    try:
        call = ctypes.CDLL(None).memcmp
    except (OSError, TypeError, AttributeError):
        return None
    call.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    found: Callable[[int, int, int], int] = call
    return found


def _same_bytes(x: Array, y: Array) -> bool:
    """Whether two arrays of one size, dense both, hold the same bytes."""
    memcmp = _memcmp()
    if memcmp is None:
        return np.array_equal(x, y)
    return not memcmp(x.__array_interface__["data"][0], y.__array_interface__["data"][0], x.nbytes)


def _unravelled(at: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The index of place *at* in row-major order; numpy's ends at 64 dimensions."""
    index = []
    for size in reversed(shape):
        at, place = divmod(at, size)
        index.append(place)
    return tuple(reversed(index))


def _words(block: memoryview, kind: _Kind, count: int) -> Array:
    """The words of *count* elements."""
    raw = np.frombuffer(block, np.uint8)
    if kind.per_byte > 1:
        width = 8 // kind.per_byte
        return np.stack([raw >> width * i & (1 << width) - 1 for i in range(kind.per_byte)], axis=1).reshape(-1)[:count]
    return raw.view(kind.words)


# --- what is known of a block


class _Finite(NamedTuple):
    """Finite numbers of both sides, their places in the block, and the changes: complex ones as real numbers.

    *sizes* are the magnitudes of the changes, of which complex numbers have one and not two.
    """

    places: Array
    p: Array
    q: Array
    apart: Array
    sizes: Array


class _Block:
    """Elements of both sides, given as words, the first of which is at place *start*; `add` adds them to *sums*."""

    __slots__ = ("bits", "pair", "scratch", "start", "sums", "x", "y")

    def __init__(self, pair: _Pair, start: int, x: Array, y: Array, scratch: _Scratch, sums: _Sums) -> None:
        self.pair, self.start, self.x, self.y, self.scratch, self.sums = pair, start, x, y, scratch, sums
        self.bits: Array | None = None  # that differ, until the changes take their memory

    def add(self) -> None:
        """Measure what is asked for: quickly, and where that fails in float64, and where that fails with care."""
        pair, x, y = self.pair, self.x, self.y
        same = False
        if pair.same_type and _same_bytes(x, y):
            same = True
            self.sums.equal += x.size // max(1, pair.a.dtype.itemsize // 8)
        elif pair.same_type:
            bits = self.bits = np.bitwise_xor(x, y, out=self.scratch.words(x.dtype, x.size))
            if pair.a.dtype.itemsize == 16:
                bits = bits[0::2] | bits[1::2]
            self.sums.equal += bits.size - int(np.count_nonzero(bits))
        else:
            self._casts()
        if not pair.real or not x.size:
            return
        for real in ("<f4", "<f8") if pair.real == "<f4" else ("<f8",):
            numbers = self.sides(real)
            exact = not pair.long or max(_reach(x, pair.a), _reach(y, pair.b)) <= 1 << 53
            if exact and self._quickly(*numbers, same):
                return
        self._carefully(*numbers)

    def sides(self, real: str) -> tuple[Array, Array]:
        """The numbers of both sides, as type *real*."""
        pair = self.pair
        if pair.direct and real == pair.real:
            return self.x.view(real), self.y.view(real)
        count = self.x.size * pair.reals // max(1, pair.widths[0] // 8)
        p, q = self.scratch.rows[real][:2, :count]
        _fill(p, pair.a.dtype, self.x, pair.reals)
        _fill(q, pair.b.dtype, self.y, pair.reals)
        return p, q

    def _quickly(self, p: Array, q: Array, same: bool) -> bool:
        """Whether all is finite, and squares are within the range of its type; nothing is added where not."""
        pair, sums, products = self.pair, self.sums, self.scratch.products[p.itemsize]
        top = pair.top if p.itemsize == 4 else math.inf
        squares = _squares(p, products)
        if not _safe(squares, p) or squares >= top:
            return False
        norm = math.sqrt(squares)
        if same:
            self._norms(0.0, norm, norm, squares)
            return True
        others = _squares(q, products)
        if not _safe(others, q) or others >= top:
            return False
        if pair.signed:
            flips, steps = self._signs(p, q, max(squares, others))
            sums.sign_flips += flips
            sums.max_ulp = max(sums.max_ulp, steps)
        self.bits = None
        apart = np.subtract(q, p, out=self.scratch.rows["<f4" if p.itemsize == 4 else "<f8"][2, : p.size])
        moved = _squares(apart, products)
        distance = math.sqrt(moved) if _safe(moved, apart) else _norm(np.subtract(q, p, dtype=np.float64))
        alike = others / 16 < squares < 16 * others
        dot = (squares + others - distance**2) / 2 if alike else _dot(p, q)  # where the former would be off by too much
        self._norms(distance, norm, math.sqrt(others), dot)
        if not pair.same_type:
            sums.equal += _count(np.equal(p, q, out=self.scratch.flags[: p.size]), pair.reals)
        self._largest(p, q, apart)
        if pair.tolerance and sums.within and sums.max_abs > pair.tolerance.atol:
            sums.within = _within(pair, p.astype(np.float64), q.astype(np.float64))
        return True

    def _norms(self, distance: float, norm: float, other_norm: float, dot: float) -> None:
        sums = self.sums
        sums.distance = math.hypot(sums.distance, distance)
        sums.norm = math.hypot(sums.norm, norm)
        sums.other_norm = math.hypot(sums.other_norm, other_norm)
        sums.dot += dot

    def _largest(self, p: Array, q: Array, apart: Array) -> None:
        """The largest change, exactly. *apart* is overwritten."""
        sums, reals = self.sums, self.pair.reals
        if self.pair.complex:
            sizes = np.abs(apart.view("<c16"))
            at = int(sizes.argmax())
            sums.reach(float(sizes[at]), self.start + at)
            return
        high, low = float(np.maximum.reduce(apart)), float(np.minimum.reduce(apart))
        top = max(high, -low)
        if apart.dtype == np.float64:
            if top > sums.max_abs:
                at = min(
                    int(apart.argmax()) if high == top else apart.size,
                    int(apart.argmin()) if -low == top else apart.size,
                )
                sums.reach(top, self.start + at // reals)
        elif top >= np.float32(sums.max_abs):
            # rounding keeps the order, so the largest is among those that look so
            sizes = np.abs(apart, out=apart)
            places = np.flatnonzero(np.equal(sizes, np.float32(top), out=self.scratch.flags[: sizes.size]))
            exact = np.abs(q[places].astype(np.float64) - p[places].astype(np.float64))
            at = int(exact.argmax())
            sums.reach(float(exact[at]), self.start + int(places[at]) // reals)

    def _signs(self, p: Array, q: Array, squares: float = math.inf, places: Array | None = None) -> tuple[int, int]:
        """Sign flips of finite numbers, whose words are at *places*, and the largest distance in representable ones.

        The latter may come out less where a greater one is known already. *squares* is no less than the sum of
        those of either side. Floats are a sign and a magnitude, which orders as an integer does.
        """
        flags = self.scratch.flags[: p.size]
        x, y = (self.x, self.y) if places is None else (self.x[places], self.y[places])
        if self.bits is not None and self.bits.size == p.size and places is None:
            np.less(self.bits.view(_SIGNED[x.itemsize]), 0, out=flags)
        else:
            np.not_equal(np.signbit(p), np.signbit(q), out=flags)
        count = int(np.count_nonzero(flags))
        few = count < p.size >> 5  # to pick out more takes longer than to go through all
        opposite = flags.nonzero()[0] if few else slice(None)
        if not self.pair.ulps:
            zeros = (p[opposite] == 0) | (q[opposite] == 0)
            return count - int(np.count_nonzero(zeros if few else zeros & flags)), 0
        flips, most = 0, self.sums.max_ulp
        if count:
            magnitude = np.array((1 << 8 * x.itemsize - 1) - 1, x.dtype)
            u, v = x[opposite] & magnitude, y[opposite] & magnitude
            if not few:
                u *= flags
                v *= flags
            flips = int(np.count_nonzero(np.minimum(u, v)))  # zero has two signs, but it is no flip
            most = max(most, int((u + v).max()))
        if most < self.pair.ceiling(squares):
            steps = np.subtract(x, y, out=self.scratch.words(x.dtype, x.size))
            if count:
                steps[flags] = 0
            steps = steps.view(_SIGNED[x.itemsize])
            most = max(most, int(steps.max()), -int(steps.min()))
        return flips, most

    def _carefully(self, p: Array, q: Array) -> None:
        """The same of numbers that may be NaN, infinite, or beyond what float64 can square."""
        pair, sums, reals = self.pair, self.sums, self.pair.reals
        nans, infs = ([_count(test(side), reals, np.any) for side in (p, q)] for test in (np.isnan, np.isinf))
        sums.nans = sums.nans[0] + nans[0], sums.nans[1] + nans[1]
        sums.infs = sums.infs[0] + infs[0], sums.infs[1] + infs[1]
        exact = _long_differences(self.x, pair.a, self.y, pair.b) if pair.long else None
        if not pair.same_type:
            sums.equal += _count(p == q if exact is None else exact == 0, reals)
        if pair.tolerance and sums.within:
            sums.within = _within(pair, p, q, exact)
        numbers = self.finite(p, q)
        if not numbers.sizes.size:
            return
        self._norms(_norm(numbers.apart), _norm(numbers.p), _norm(numbers.q), _scaled_dot(numbers.p, numbers.q))
        at = int(numbers.sizes.argmax())
        per = reals if pair.complex else 1
        sums.reach(float(numbers.sizes[at]), self.start + int(numbers.places[at * per]) // reals)
        if pair.signed:
            flips, steps = self._signs(numbers.p, numbers.q, places=numbers.places)
            sums.sign_flips += flips
            sums.max_ulp = max(sums.max_ulp, steps)

    def finite(self, p: Array, q: Array) -> _Finite:
        """Those of the numbers *p* and *q*, in float64, that are finite on both sides."""
        pair, reals = self.pair, self.pair.reals
        there = np.isfinite(p) & np.isfinite(q)
        if reals > 1:
            there = np.repeat(there.reshape(-1, reals).all(axis=1), reals)
        places = np.flatnonzero(there)
        p, q = p[places], q[places]
        apart = _long_differences(self.x, pair.a, self.y, pair.b) if pair.long else q - p
        return _Finite(places, p, q, apart, np.abs(apart.view("<c16") if pair.complex else apart))

    def _casts(self) -> None:
        pair, sums = self.pair, self.sums
        if sums.cast:
            sums.cast = _is_cast(self.x, pair.a.dtype, self.y, pair.b.dtype)
        if sums.cast_back:
            sums.cast_back = _is_cast(self.y, pair.b.dtype, self.x, pair.a.dtype)


def _squares(values: Array, products: Array) -> float:
    """The sum of the squares; *products* is memory for as many as there are rows."""
    row = _ROWS[values.itemsize]
    count = values.size // row
    whole = values[: count * row]
    np.matmul(whole.reshape(count, 1, row), whole.reshape(count, row, 1), out=products[:count])
    squares = float(np.add.reduce(products[:count], axis=None, dtype=np.float64))
    rest = values[count * row :]
    return squares + float(np.square(rest, dtype=np.float64).sum()) if rest.size else squares


def _dot(p: Array, q: Array) -> float:
    row = _ROWS[p.itemsize]
    whole = p.size - p.size % row
    products = np.matmul(p[:whole].reshape(-1, 1, row), q[:whole].reshape(-1, row, 1))
    return float(products.sum(dtype=np.float64)) + float(p[whole:].astype(np.float64) @ q[whole:])


def _safe(squares: float, values: Array) -> bool:
    """Whether the sum of the squares of *values* lost nothing to the ends of their type's range."""
    if squares == 0:
        return not values.any()
    # what lies below the normal numbers is lost; so much of it is nothing to the sum
    smallest = 2.0**-102 if values.itemsize == 4 else 2.0**-970
    return math.isfinite(squares) and squares >= smallest * values.size


def _norm(values: Array) -> float:
    """The Euclidean norm of float64, whose squares may leave float64."""
    top = float(np.abs(values).max())
    if not top or math.isinf(top):
        return top
    exponent = math.frexp(top)[1]
    return float(np.ldexp(math.sqrt(float(np.square(np.ldexp(values, -exponent)).sum())), exponent))


def _scaled_dot(p: Array, q: Array) -> float:
    exponents = [math.frexp(float(np.abs(side).max()))[1] for side in (p, q)]
    product = np.ldexp(p, -exponents[0]) * np.ldexp(q, -exponents[1])
    return float(np.ldexp(float(product.sum()), sum(exponents)))


def _count(flags: Array, reals: int, of: Callable[..., Any] = np.all) -> int:
    """How many elements have the flag in all of their numbers, or in any."""
    return int(np.count_nonzero(flags if reals == 1 else of(flags.reshape(-1, reals), axis=1)))


def _within(pair: _Pair, p: Array, q: Array, exact: Array | None = None) -> bool:
    """Whether all elements are within the tolerance, in float64."""
    assert pair.tolerance is not None
    if pair.complex:
        p, q = p.view("<c16"), q.view("<c16")
    apart = np.abs(q - p if exact is None else exact)
    close = (apart <= pair.tolerance.atol + pair.tolerance.rtol * np.abs(p)) & np.isfinite(p) & np.isfinite(q)
    return bool((close | (np.isinf(p) & (p == q))).all())


# --- 64-bit integers, which float64 rounds


def _reach(words: Array, tensor: TensorInfo) -> int:
    """The largest magnitude of integers."""
    values = words.view(numpy_dtype(tensor.dtype))
    return max(int(values.max()), -int(values.min()))


def _long_differences(x: Array, a: TensorInfo, y: Array, b: TensorInfo) -> Array:
    """B - A of integers of any type, rounded once to float64: halves of 32 bits subtract without rounding."""
    halves = []
    for words, tensor in ((x, a), (y, b)):
        values = words.view(numpy_dtype(tensor.dtype))
        values = values.astype("<u8" if values.dtype.kind == "u" else "<i8", copy=False)
        halves.append(((values >> 32).astype(np.float64), (values & 0xFFFFFFFF).astype(np.float64)))
    (high_x, low_x), (high_y, low_y) = halves
    difference: Array = (high_y - high_x) * 2.0**32 + (low_y - low_x)
    return difference


# --- conversions


def _is_cast(words: Array, dtype: DType, others: Array, other: DType) -> bool:
    """Whether *others* are *words* converted from *dtype* to *other* by torch; any NaN may stand for another."""
    if not _castable(dtype, other):
        return False
    target = numpy_dtype(_part(other))
    values: Array = words.view(numpy_dtype(_part(dtype)))
    if target.itemsize < 4 and other.kind == "float" and values.dtype != np.float32:
        values = values.astype(np.float32)  # which torch goes through
    found = values.astype(target).view(others.dtype)
    if np.array_equal(found, others):
        return True
    if other.kind not in ("float", "complex"):
        return False
    apart = np.flatnonzero(found.view(f"<u{target.itemsize}") != others.view(f"<u{target.itemsize}"))
    values, found, others = values[apart], found.view(target)[apart], others.view(target)[apart]
    alike = np.isnan(found) & np.isnan(others)
    if other.name == "float8_e4m3fn":  # today's torch saturates what older ones, as numpy, make NaN
        alike |= np.isnan(found) & (found.view(np.uint8) - 1 == others.view(np.uint8)) & ~np.isnan(values)
    return bool(alike.all())


def _castable(dtype: DType, other: DType) -> bool:
    """Whether tensors are saved in another type so: not as integers what were floats, nor as scales of e8m0."""
    if "complex" in (dtype.kind, other.kind):
        return dtype.kind == other.kind
    kinds = {"float", "int", "uint", "bool"}
    return (
        {dtype.kind, other.kind} <= kinds
        and (dtype.kind != "float" or other.kind == "float")
        and other.name != "float8_e8m0fnu"
    )


def _part(dtype: DType) -> DType:
    """The type of the numbers that elements are made of."""
    return BY_NAME[_PART[dtype.name]] if dtype.kind == "complex" else dtype
