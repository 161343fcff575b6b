"""What the numbers of a tensor are like: extremes, moments, zeros, NaN and a histogram, from one pass over its bytes.

Types of up to a byte are counted value by value, which gives everything exactly. Wider ones are worked on in
blocks, as float64; each block's moments are taken about its own mean where the mean outweighs the deviation, and
merged pairwise (Chan, Golub, LeVeque 1979), so that neither a large offset nor values near the type's limits cost
precision. Blocks are cut and merged in the same way whatever the number of threads.

float16 and bfloat16 are summed in float32, which holds their squares exactly, a row of 128 at a time, and the rows'
sums in float64. Each row's sum is within 128 * 2**-24 of the sum of its magnitudes in whatever order it is added up,
so that mean and std are off by less than 1e-5 of std, l2 of itself; as rows err in either direction, by some 1e-8.
Where the mean outweighs the deviation, or squares might leave float32's range, these too are summed as float64.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ckpt_tools.analysis.checksums import Checksums
from ckpt_tools.analysis.streaming import Span, in_order, in_storage_order, spans
from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import numpy_dtype
from ckpt_tools.dtypes import DType
from ckpt_tools.errors import UnsupportedFeature

BINS = 24
"""Bins of a histogram, equally wide from the least finite value to the greatest."""

SAMPLE = 1 << 16
"""Elements that a histogram is made of where there are more; every value of a type of up to a byte counts."""

BLOCK = 3 << 17
"""Elements worked on at once: few enough for a core's cache, so many that threads seldom wait for the interpreter."""

_ROW = 4096  # a dot product this short keeps any BLAS from starting threads of its own
_NARROW_ROW = 128  # numbers that are summed in float32
_WIDEST = 16  # bytes of an element

Basis = Literal["value", "magnitude", "stored integer"]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Statistics:
    """The numbers of a tensor in numbers. Except for the counts, only finite elements enter.

    *basis* says what an element's number is: its value; its magnitude ``|z|`` where it is complex (beyond
    float64 it is infinite); the stored integer where it is quantized, before scale and zero point. *count*
    counts numbers, of which packed types such as float4_e2m1fn_x2 hold several in an element of the tensor.

    *minimum*, *maximum* and *mean* are None where nothing is finite, *std* where fewer than two are; it is
    the sample's (n - 1), as ``torch.std`` has it. *l2* is the Euclidean norm. *zeros* includes negative zero.
    *constant*: all elements are equal; those of one element are, NaN never is.

    *histogram* has `BINS` counts, of all finite elements or, where *sampled*, of evenly spaced ones and the
    two extremes. It has none where nothing is finite.
    """

    basis: Basis
    count: int
    finite: int
    minimum: float | int | None
    maximum: float | int | None
    mean: float | None
    std: float | None
    l2: float
    zeros: int
    subnormal: int
    nan: int
    positive_infinity: int
    negative_infinity: int
    constant: bool
    histogram: tuple[int, ...]
    sampled: bool

    @property
    def infinite(self) -> int:
        """Infinities of either sign."""
        return self.positive_infinity + self.negative_infinity


@dataclass(frozen=True, slots=True)
class NoStatistics:
    """Why a tensor has none: no bytes of its own, or a type whose bits are no numbers."""

    reason: str


def statistics(tensor: TensorInfo) -> Statistics | NoStatistics:
    """The statistics of one tensor."""
    return next(statistics_of([tensor]))


def statistics_of(
    tensors: Sequence[TensorInfo],
    *,
    threads: int = 2,
    progress: Callable[[int], None] | None = None,
    checksums: Checksums | None = None,
) -> Iterator[Statistics | NoStatistics]:
    """The statistics of each of *tensors* in turn, while the next ones are being read by *threads*.

    Names of the same elements are read once. *progress* is told, in the caller's thread, how many bytes have
    been read, of `bytes_to_read`; *checksums*, those of what was read. Raises what reading raises, such as
    `CorruptFile`.
    """
    keys, works = _distinct(tensors)
    known: dict[object, Statistics | NoStatistics] = {}
    results = in_order(_jobs(works, checksums is not None), threads)
    for key in keys:
        if key not in known:
            work = works[key]
            summed: _Accumulator | None = None
            while not isinstance(part := next(results), _End):
                if progress is not None:
                    progress(part.nbytes)
                if checksums is not None and part.place is not None:
                    checksums.add(*part.place, part.nbytes, part.crc)
                if summed is None:
                    summed = part.sums
                else:
                    summed.merge(part.sums)
            if part.reason:
                known[key] = NoStatistics(part.reason)
            else:
                known[key] = (summed or _accumulator(work.tensor)).result(work.repeats)
        yield known[key]


def bytes_to_read(tensors: Sequence[TensorInfo]) -> int:
    """How many bytes `statistics_of` reads of *tensors*, those it cannot read included."""
    return sum(work.tensor.nbytes for work in _distinct(tensors)[1].values())


# --- what is to be read


class _Work(NamedTuple):
    tensor: TensorInfo
    repeats: int


def _distinct(tensors: Sequence[TensorInfo]) -> tuple[list[object], dict[object, _Work]]:
    """For each tensor what its statistics depend on, and what is to be read for each of these."""
    keys: list[object] = []
    works: dict[object, _Work] = {}
    for tensor in tensors:
        work = _Work(*in_storage_order(tensor))
        flat = work.tensor
        key: object = id(tensor)
        if flat.storage is not None:
            signs = bool(flat.details.get("conj")), bool(flat.details.get("neg"))
            place = id(flat.storage), flat.dtype.name, flat.storage_offset, flat.shape, flat.stride
            key = (*place, flat.layout, work.repeats, signs)
        keys.append(key)
        works.setdefault(key, work)
    return keys, works


class _Accumulator(Protocol):
    """What is known of some of a tensor's elements."""

    def add(self, raw: Array, start: int, scratch: _Scratch) -> None:
        """Take in the elements whose bytes are *raw*, which begin at byte *start* of the tensor's."""

    def merge(self, later: Any) -> None:
        """Take in what another accumulator of the same tensor knows of later elements."""

    def result(self, repeats: int) -> Statistics:
        """The statistics of the tensor in which each element comes *repeats* times."""


class _Part(NamedTuple):
    """*nbytes* bytes of a tensor, summed up; *crc* is their CRC-32 where they lie at *place* and it is wanted."""

    nbytes: int
    sums: _Accumulator
    place: tuple[str, int] | None
    crc: int


class _End(NamedTuple):
    """Comes after the last part of a tensor; *reason* says why there are no statistics."""

    reason: str = ""


class _Scratch:
    """Memory that a thread works in, block after block."""

    __slots__ = ("buffer", "single", "spare", "wide")

    def __init__(self) -> None:
        self.buffer = np.empty(BLOCK * _WIDEST, np.uint8)
        self.single = np.empty(BLOCK, np.float32)
        self.wide = np.empty(BLOCK, np.float64)
        self.spare = np.empty(BLOCK, np.uint64)


def _jobs(works: dict[object, _Work], checked: bool) -> Iterator[Callable[[], _Part | _End]]:
    idle: list[_Scratch] = []
    for tensor, _ in works.values():
        reason = ""
        try:
            _accumulator(tensor)
            for span in spans(tensor):
                yield partial(_read, tensor, span, idle, checked)
        except UnsupportedFeature as error:
            reason = error.problem
        yield partial(_End, reason)


def _read(tensor: TensorInfo, span: Span, idle: list[_Scratch], checked: bool) -> _Part:
    try:
        scratch = idle.pop()
    except IndexError:
        scratch = _Scratch()
    sums = _accumulator(tensor)
    buffer = scratch.buffer.data[: BLOCK * tensor.dtype.itemsize]
    crc, place = 0, span.place if checked else None
    with np.errstate(all="ignore"):  # NaN and infinities are counted, not warned of
        for start, block in span.blocks(buffer):
            if place is not None:
                crc = zlib.crc32(block, crc)
            sums.add(np.frombuffer(block, np.uint8), start, scratch)
    idle.append(scratch)
    return _Part(span.nbytes, sums, place, crc)


def _accumulator(tensor: TensorInfo) -> _Accumulator:
    dtype = tensor.dtype
    if dtype.kind == "bits" or (dtype.kind == "quantized" and not dtype.numpy):
        raise UnsupportedFeature(f"elements of type {dtype.name} are not read as numbers")
    if dtype.itemsize == 1:
        return _Counts(tensor)
    return _Sums(tensor)


# --- what both kinds of accumulators come down to


@dataclass(slots=True)
class _Tally:
    count: int = 0
    zeros: int = 0
    subnormal: int = 0
    nan: int = 0
    positive_infinity: int = 0
    negative_infinity: int = 0

    def add(self, other: _Tally) -> None:
        self.count += other.count
        self.zeros += other.zeros
        self.subnormal += other.subnormal
        self.nan += other.nan
        self.positive_infinity += other.positive_infinity
        self.negative_infinity += other.negative_infinity


class _Moments(NamedTuple):
    """Finite numbers summed up. Their mean is *base* + *rest*, kept apart as *base* may be large and exact.

    *deviation* is that of the population: unlike a sum of squares it is within the range of the numbers.
    """

    n: int = 0
    low: float | int = math.inf
    high: float | int = -math.inf
    base: float | int = 0
    rest: float = 0.0
    deviation: float = 0.0

    @property
    def mean(self) -> float:
        # rounding may carry it past what it lies between
        return float(min(max(self.base + self.rest, self.low), self.high))

    def merged(self, later: _Moments) -> _Moments:
        if not self.n or not later.n:
            return self if self.n else later
        n = self.n + later.n
        here, there = self.n / n, later.n / n
        step = (later.base - self.base) + (later.rest - self.rest)
        if math.isfinite(step):
            base, rest = self.base, self.rest + step * there
            between = step * math.sqrt(here * there)
        else:  # the means are farther apart than a float64 can say
            base, rest = 0, self.mean * here + later.mean * there
            between = (later.mean / 2 - self.mean / 2) * (2 * math.sqrt(here * there))
        deviation = math.hypot(self.deviation * math.sqrt(here), later.deviation * math.sqrt(there), between)
        return _Moments(n, min(self.low, later.low), max(self.high, later.high), base, rest, deviation)


def _statistics(
    dtype: DType, tally: _Tally, moments: _Moments, histogram: Array, sampled: bool, repeats: int
) -> Statistics:
    count, finite = tally.count * repeats, moments.n * repeats
    some, mean = finite > 0, moments.mean if finite else 0.0
    alike = tally.count in (tally.positive_infinity, tally.negative_infinity)
    return Statistics(
        basis="magnitude" if dtype.kind == "complex" else "stored integer" if dtype.kind == "quantized" else "value",
        count=count,
        finite=finite,
        minimum=moments.low if some else None,
        maximum=moments.high if some else None,
        mean=mean if some else None,
        std=moments.deviation * math.sqrt(finite / (finite - 1)) if finite > 1 else None,
        l2=math.hypot(mean, moments.deviation) * math.sqrt(finite),
        zeros=tally.zeros * repeats,
        subnormal=tally.subnormal * repeats,
        nan=tally.nan * repeats,
        positive_infinity=tally.positive_infinity * repeats,
        negative_infinity=tally.negative_infinity * repeats,
        constant=count > 0 and (alike or (finite == count and moments.low == moments.high)),
        histogram=tuple((histogram * (1 if sampled else repeats)).tolist()),
        sampled=sampled,
    )


def _bins(numbers: Array, low: float | int, high: float | int) -> Array:
    """The bin of each of *numbers*; all are in the middle where they are equal."""
    if low == high:
        return np.full(numbers.shape, BINS // 2)
    if numbers.dtype.kind in "iu":
        above = numbers.astype(np.uint64) - np.uint64(int(low) % (1 << 64))  # before anything is rounded
        places = above.astype(np.float64) / float(high - low)
    else:
        scale = 0.5 if math.isinf(high - low) else 1.0
        places = numbers.astype(np.float64)
        places *= scale
        places -= low * scale
        places /= high * scale - low * scale
    places *= BINS
    bins = places.astype(np.intp)
    return np.minimum(bins, BINS - 1, out=bins)


# --- types of up to a byte: how often each byte comes


class _Counts:
    __slots__ = ("counts", "tensor", "values")

    def __init__(self, tensor: TensorInfo) -> None:
        self.tensor = tensor
        self.values, _ = byte_numbers(tensor.dtype)
        self.counts = np.zeros(self.values.shape, np.int64)

    def add(self, raw: Array, start: int, scratch: _Scratch) -> None:
        self.counts += np.bincount(raw, minlength=256)[:, None]
        tensor = self.tensor
        # torch's quint4x2 counts what it packs, so that some may be left over; its float4_e2m1fn_x2 counts bytes
        used = tensor.numel % self.values.shape[1] if tensor.dtype.kind == "quantized" else 0
        if used and start + raw.size == tensor.nbytes:
            self.counts[raw[-1], used:] -= 1

    def merge(self, later: _Counts) -> None:
        self.counts += later.counts

    def result(self, repeats: int) -> Statistics:
        dtype = self.tensor.dtype
        _, smallest = byte_numbers(dtype)
        there = self.counts > 0
        values, counts = self.values[there], self.counts[there]

        def total(which: Array) -> int:
            return int(counts[which].sum())

        tally = _Tally(
            int(counts.sum()),
            total(values == 0),
            total((values != 0) & (abs(values) < smallest)),
            total(np.isnan(values)),
            total(values == math.inf),
            total(values == -math.inf),
        )
        finite = np.isfinite(values)
        numbers, weights = values[finite], counts[finite]
        if not numbers.size:
            return _statistics(dtype, tally, _Moments(), weights, False, repeats)
        low, high, count = numbers.min().item(), numbers.max().item(), int(weights.sum())
        mean = float(weights @ numbers) / count
        deviation = math.sqrt(float(weights @ (numbers - mean) ** 2) / count)
        rest = float(weights @ (numbers - mean)) / count
        histogram = np.bincount(_bins(numbers, low, high), weights, BINS).astype(np.int64)
        if dtype.kind != "float":
            low, high = int(low), int(high)
        return _statistics(dtype, tally, _Moments(count, low, high, mean, rest, deviation), histogram, False, repeats)


@cache
def byte_numbers(dtype: DType) -> tuple[Array, float]:
    """The numbers that each byte holds, 256 rows of one or more, and the smallest normal one."""
    codes = np.arange(256, dtype=np.uint8)
    per_byte = 2 if dtype.name == "float4_e2m1fn_x2" else dtype.packed
    width = 8 // per_byte
    # the first of several is in the lowest bits
    parts = np.stack([codes >> width * i & (1 << width) - 1 for i in range(per_byte)], axis=1)
    if dtype.kind == "bool":
        return (parts != 0).astype(np.float64), 0.0
    if dtype.kind != "float":
        return parts.view(numpy_dtype(dtype)).astype(np.float64), 0.0
    import ml_dtypes

    kind = np.dtype(ml_dtypes.float4_e2m1fn) if dtype.name == "float4_e2m1fn_x2" else numpy_dtype(dtype)
    finfo: Any = ml_dtypes.finfo
    return parts.view(kind).astype(np.float64), float(finfo(kind).smallest_normal)


# --- wider types: block by block


class _Reading(NamedTuple):
    """How elements become numbers, from an array of *words*.

    *numbers* gives float32, float64 or integers; it may use memory for as many float32. *exponent* masks the bits
    of a float that are all zero in zeros and subnormals, all one in NaN and infinities. Where it is 0, numbers
    below *smallest* are subnormal.
    """

    words: str
    numbers: Callable[[Array, Array], Array]
    exponent: int = 0
    smallest: float = 0.0


def _same(words: Array, space: Array) -> Array:
    return words


def _viewed(name: str) -> Callable[[Array, Array], Array]:
    return lambda words, space: words.view(name)


def finite_float16(words: Array, space: Array) -> Array:
    """float16 as float32. Exponent and fraction go where a float32 has them, which makes it 2**-112 as large.
    What is not finite comes out as 65536 or more.

    numpy's own conversion, which does this number by number, takes three times as long.
    """
    numbers = space[: words.size]
    bits = numbers.view(np.int32)
    np.copyto(bits, words.view(np.int16))  # repeats the sign in the upper half
    np.left_shift(bits, _THIRTEEN, out=bits)
    np.bitwise_and(bits, _SIGN_AND_FLOAT16, out=bits)
    np.multiply(numbers, _TWO_TO_112, out=numbers)
    return numbers


def _bfloat16(words: Array, space: Array) -> Array:
    """bfloat16 as float32, of which it is the upper half."""
    numbers = space[: words.size]
    bits = numbers.view(np.uint32)
    np.copyto(bits, words)
    np.left_shift(bits, _SIXTEEN, out=bits)
    return numbers


_THIRTEEN, _SIXTEEN = np.array(13, np.int32), np.array(16, np.uint32)
_SIGN_AND_FLOAT16, _TWO_TO_112 = np.array(~0x70001FFF, np.int32), np.array(2.0**112, np.float32)


def _magnitude(parts: Array, space: Array) -> Array:
    return np.hypot(parts[0::2].astype(np.float64), parts[1::2].astype(np.float64))


def _bfloat16_magnitude(words: Array, space: Array) -> Array:
    return _magnitude(_bfloat16(words, np.empty(words.size, np.float32)), space)


_READINGS = {
    "float64": _Reading("<u8", _viewed("<f8"), 0x7FF << 52),
    "float32": _Reading("<u4", _viewed("<f4"), 0xFF << 23),
    "float16": _Reading("<u2", finite_float16, 0x1F << 10),
    "bfloat16": _Reading("<u2", _bfloat16, 0xFF << 7),
    "complex128": _Reading("<f8", _magnitude, smallest=2.0**-1022),
    "complex64": _Reading("<f4", _magnitude, smallest=2.0**-126),
    "complex32": _Reading("<f2", _magnitude, smallest=2.0**-14),
    "bcomplex32": _Reading("<u2", _bfloat16_magnitude, smallest=2.0**-126),
}


class _Finite(NamedTuple):
    """The finite numbers of a block and their extremes. Of *narrow* ones float32 holds the squares exactly."""

    numbers: Array
    low: float | int
    high: float | int
    narrow: bool = False


class _Sums:
    __slots__ = ("moments", "reading", "sample", "step", "tally", "tensor")

    def __init__(self, tensor: TensorInfo) -> None:
        self.tensor = tensor
        dtype = tensor.dtype
        self.reading = _READINGS.get(dtype.name) or _Reading(numpy_dtype(dtype).str, _same)
        self.step = _step(tensor.numel)
        self.tally = _Tally()
        self.moments = _Moments()
        self.sample: list[Array] = []

    def add(self, raw: Array, start: int, scratch: _Scratch) -> None:
        itemsize = self.tensor.dtype.itemsize
        words = raw.view(self.reading.words)
        first = -(start // itemsize) % self.step
        self.sample.append(words.reshape(-1, itemsize // words.itemsize)[first :: self.step].copy())
        self.tally.count += raw.size // itemsize
        finite = self._floats(words, scratch) if self.reading.exponent else self._others(words, scratch)
        if finite.numbers.size:
            self.moments = self.moments.merged(_moments(finite, scratch))

    def _floats(self, words: Array, scratch: _Scratch) -> _Finite:
        numbers, exponent, tally = self.reading.numbers, self.reading.exponent, self.tally
        sign = 1 << 8 * words.itemsize - 1
        low, high, nearest = _ends(words)
        if exponent in (low & exponent, high & exponent):
            special = words & exponent == exponent
            others, words = words[special], words[~special]
            positive, negative = np.count_nonzero(others == exponent), np.count_nonzero(others == sign | exponent)
            tally.positive_infinity += int(positive)
            tally.negative_infinity += int(negative)
            tally.nan += int(others.size - positive - negative)
            if not words.size:
                return _Finite(words, math.inf, -math.inf)
            low, high, nearest = _ends(words)
        if not nearest & exponent:
            bits = scratch.wide.view(words.dtype)[: words.size]
            small = words.size - int(np.count_nonzero(np.bitwise_and(words, exponent, out=bits)))
            zeros = 0
            if not nearest:
                zeros = words.size - int(np.count_nonzero(np.bitwise_and(words, sign - 1, out=bits)))
            tally.zeros += zeros
            tally.subnormal += small - zeros
        ends = numbers(np.array([low, high], words.dtype), scratch.single) + 0.0  # no negative zero
        least, greatest = ends.tolist()
        return _Finite(numbers(words, scratch.single), least, greatest, words.itemsize == 2)

    def _others(self, words: Array, scratch: _Scratch) -> _Finite:
        numbers = self.reading.numbers(words, scratch.single)
        if numbers.dtype.kind == "f":  # of complex numbers
            nan, infinite = np.isnan(numbers), numbers == math.inf
            self.tally.nan += int(np.count_nonzero(nan))
            self.tally.positive_infinity += int(np.count_nonzero(infinite))
            numbers = numbers[~(nan | infinite)]
            if not numbers.size:
                return _Finite(numbers, math.inf, -math.inf)
        low, high = numbers.min().item(), numbers.max().item()
        zeros = numbers.size - int(np.count_nonzero(numbers))
        self.tally.zeros += zeros
        if 0 <= low < self.reading.smallest:
            self.tally.subnormal += int(np.count_nonzero(numbers < self.reading.smallest)) - zeros
        return _Finite(numbers, low, high)

    def merge(self, later: _Sums) -> None:
        self.tally.add(later.tally)
        self.moments = self.moments.merged(later.moments)
        self.sample += later.sample

    def result(self, repeats: int) -> Statistics:
        sampled = self.step > 1
        low, high = self.moments.low, self.moments.high
        histogram = np.zeros(0, np.int64)
        if self.moments.n:
            with np.errstate(all="ignore"):
                words = np.concatenate(self.sample).reshape(-1)
                if exponent := self.reading.exponent:
                    words = words[words & exponent != exponent]
                numbers = self.reading.numbers(words, np.empty(words.size, np.float32))
                if not exponent and numbers.dtype.kind == "f":
                    numbers = numbers[np.isfinite(numbers)]
                histogram = np.bincount(_bins(numbers, low, high), minlength=BINS)
            if sampled and low < high:
                histogram[[0, -1]] += 1
        return _statistics(self.tensor.dtype, self.tally, self.moments, histogram, sampled, repeats)


def _ends(words: Array) -> tuple[int, int, int]:
    """The words of the least and the greatest of floats, and the magnitude that is nearest to zero.

    A float is a sign and a magnitude, which orders as an integer does.
    """
    sign = 1 << 8 * words.itemsize - 1
    signed = words.view(f"<i{words.itemsize}")
    first, last = int(words.min()), int(words.max())
    signed_first, signed_last = int(signed.min()), int(signed.max())
    low = last if last >= sign else first  # none is negative
    high = signed_last if signed_last >= 0 else signed_first + 2 * sign  # all are
    return low, high, min(first % sign, signed_first % sign)


def _step(numel: int) -> int:
    """Every how many elements one is sampled; it has no factor in common with any size, so no column is favoured."""
    step = -(-numel // SAMPLE) or 1
    while math.gcd(step, numel) > 1:
        step += 1
    return step


def _moments(finite: _Finite, scratch: _Scratch) -> _Moments:
    numbers, low, high, narrow = finite
    count, top = numbers.size, max(-low, high)
    if low == high:
        return _Moments(count, low, high, low)
    if narrow and 2.0**-40 < top < 2.0**60:  # the range of their squares is float32's
        mean, variance = _mean_and_variance(numbers)
        if variance > mean * mean:
            return _Moments(count, low, high, 0, mean, math.sqrt(variance))
    wide = scratch.wide[:count]
    origin = scale = 0
    if numbers.dtype.kind in "iu" and numbers.itemsize == 8:
        origin, top = int(low), high - low
        # subtracted before they are rounded
        np.subtract(numbers.view(np.uint64), np.uint64(origin % (1 << 64)), out=scratch.spare[:count])
        np.copyto(wide, scratch.spare[:count])
        x = wide
    elif numbers.dtype == np.float64:
        x = numbers
    else:
        np.copyto(wide, numbers)
        x = wide
    if not 2.0**-400 < top < 2.0**480:  # squares would leave float64's range
        scale = math.frexp(top)[1]
        x = np.ldexp(x, -scale, out=wide)
    base, (mean, variance) = 0.0, _mean_and_variance(x)
    if variance < 1e-4 * mean * mean:  # most of it cancelled
        base = mean
        mean, variance = _mean_and_variance(np.subtract(x, base, out=wide))
    deviation = math.sqrt(max(variance, 0.0))
    if scale:
        base, mean, deviation = (float(np.ldexp(value, scale)) for value in (base, mean, deviation))
        if base:
            base = float(min(max(base, low), high))
    if origin:
        return _Moments(count, low, high, origin, base + mean, deviation)
    return _Moments(count, low, high, base, mean, deviation)


def _mean_and_variance(x: Array) -> tuple[float, float]:
    row = _ROW if x.dtype == np.float64 else _NARROW_ROW
    whole = x.size - x.size % row
    rows, rest = x[:whole].reshape(-1, row), x[whole:].astype(np.float64)
    squares = np.matmul(rows[:, None, :], rows[:, :, None]).sum(dtype=np.float64) + rest @ rest
    mean = float(np.einsum("ij->i", rows).sum(dtype=np.float64) + rest.sum()) / x.size
    return mean, float(squares) / x.size - mean * mean
