"""How the values of two tensors of one shape differ, measured in one pass and bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ckpt_tools.analysis.trainability import same_bytes
from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import chunks, numpy_dtype
from ckpt_tools.errors import CkptError, CorruptFile

BLOCK = 1 << 20
"""Bytes of each tensor taken at a time; their float64 copies are a few times that."""


Basis = Literal["value", "stored integer"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What may go unnoticed: elements with ``|B - A| <= atol + rtol * |A|``, and infinities that are equal."""

    rtol: float = 0.0
    atol: float = 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Tensor B against tensor A, both of *numel* elements.

    *identical*: same dtype and bits. *equal* counts elements of the same bits (of equal value where the dtypes
    differ); None where nothing but *identical* was asked for and it is False.

    *basis* says what was measured as numbers: values, or stored integers where A and B are quantized (before scale
    and zero point). Where it is None nothing was, and all that follows is as it is by default: the bits
    are known to be the same, only identity was asked for, or the elements are no numbers.

    *distance* is ‖B - A‖, *norm* ‖A‖, *other_norm* ‖B‖, *dot* the real part of <A, B>: over the elements that are
    finite on both sides. *max_abs* is the largest |B - A| there, at *max_index*. *max_ulp* is None unless both
    have one float dtype. *nans* and *infs* count A's and B's. *cast*: B is A converted to B's other dtype, bit
    for bit; *cast_back*: A is B converted to A's. Where both hold the conversion lost nothing.

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
        """‖B - A‖ / ‖A‖; None where B moved from zero."""
        if self.norm:
            return self.distance / self.norm
        return None if self.distance else 0.0

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between A and B; None where either is zero."""
        scale = self.norm * self.other_norm
        return self.dot / scale if scale else None


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


def compare(a: TensorInfo, b: TensorInfo, tolerance: Tolerance | None = None) -> Comparison | None:
    """Compare *b* with *a*, which has the same shape.

    None where their elements cannot be set against each other: different dtypes that are not both numbers.
    Raises ValueError for two shapes, `CkptError` where bytes are missing (meta and sparse tensors have none).
    """
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} is not {b.shape}")
    if same_bytes(a, b) and not tolerance:
        return Comparison(a.numel, True, a.numel)
    if any(t.dtype.kind in ("quantized", "bits") or t.dtype.numpy is None or "_x2" in t.dtype.name for t in (a, b)):
        return None
    return _measure(a, b, tolerance)


def compare_all(
    pairs: Iterable[tuple[TensorInfo, TensorInfo, Tolerance | None]],
    *,
    threads: int = 2,
    values: bool = True,
    advance: Callable[[int], object] | None = None,
) -> Iterator[Comparison | CkptError | None]:
    """`compare` of each pair, in order, by *threads* at once; an error stands in its pair's place.

    Without *values* only identity is found out, and a pair is read no further than to the first difference.
    *advance* is told, in the caller's thread, how many bytes of `bytes_to_compare` are done with.
    """
    for a, b, tolerance in pairs:
        try:
            if a.shape != b.shape:
                raise ValueError(f"{a.shape} is not {b.shape}")
            if values:
                yield compare(a, b, tolerance)
            elif a.dtype != b.dtype:
                yield Comparison(a.numel, False, None, within=False)
            else:
                same = same_bytes(a, b)
                yield Comparison(a.numel, same, a.numel if same else None, within=same)
        except CkptError as error:
            yield error
        if advance is not None:
            advance(a.nbytes + b.nbytes)


def bytes_to_compare(pairs: Iterable[tuple[TensorInfo, TensorInfo, Tolerance | None]]) -> int:
    """What `compare_all` tells of *pairs* in all: the bytes of both sides, whether they must be read or not."""
    return sum(a.nbytes + b.nbytes for a, b, _ in pairs)


def change_histogram(a: TensorInfo, b: TensorInfo) -> ChangeHistogram | None:
    """How large the changes from *a* to *b* are, element by element; reads both once. None where `compare` is."""
    import numpy as np

    if any(t.dtype.kind in ("quantized", "bits") or t.dtype.numpy is None or "_x2" in t.dtype.name for t in (a, b)):
        return None
    wide: Any = np.complex128 if "complex" in (a.dtype.kind, b.dtype.kind) else np.float64
    unchanged, finite, squares = 0, 0, 0.0
    counts = np.zeros(2200, np.int64)
    for x, y in _blocks(a, b):
        with np.errstate(all="ignore"):
            p, q = x.astype(wide), y.astype(wide)
            numbers = np.isfinite(p) & np.isfinite(q)
            apart = np.abs(q - p)[numbers]
            moved = apart[apart != 0]
            unchanged += len(apart) - len(moved)
            finite += len(apart)
            squares += float(np.sum(np.abs(p[numbers]) ** 2))
            counts += np.bincount(np.frexp(moved)[1] + 1100, minlength=2200)
    there = np.flatnonzero(counts)
    if not len(there):
        return ChangeHistogram((), (), unchanged, a.numel - finite, math.sqrt(squares / finite) if finite else 0.0)
    low, high = int(there[0]), int(there[-1]) + 1
    edges = tuple(math.ldexp(0.5, i - 1100) for i in range(low, high + 1))
    rms = math.sqrt(squares / finite)
    return ChangeHistogram(edges, tuple(counts[low:high].tolist()), unchanged, a.numel - finite, rms)


def _measure(a: TensorInfo, b: TensorInfo, tolerance: Tolerance | None) -> Comparison:
    import numpy as np

    rtol, atol = (tolerance.rtol, tolerance.atol) if tolerance else (0.0, 0.0)
    same_type = a.dtype == b.dtype
    ulps = same_type and a.dtype.kind == "float" and a.dtype.name != "float8_e8m0fnu"
    wide: Any = np.complex128 if "complex" in (a.dtype.kind, b.dtype.kind) else np.float64
    kinds = {a.dtype.kind, b.dtype.kind}
    start = equal = flips = max_ulp = 0
    squares = squares_a = squares_b = dot = 0.0
    max_abs, max_at = 0.0, -1
    nans, infs = [0, 0], [0, 0]
    cast, within = not same_type, True
    for x, y in _blocks(a, b):
        with np.errstate(all="ignore"):
            p, q = x.astype(wide), y.astype(wide)
            bits = (_bits(x) == _bits(y)) if same_type else None
            if bits is not None and bits.ndim > 1:
                bits = bits.all(axis=1)
            same = bits if bits is not None else p == q
            cast = cast and x.astype(y.dtype).tobytes() == y.tobytes()
            for side, values in enumerate((p, q)):
                nans[side] += int(np.isnan(values).sum())
                infs[side] += int(np.isinf(values).sum())
            finite = np.isfinite(p) & np.isfinite(q)
            exact = kinds in ({"int"}, {"uint"})  # int64 differences that float64 would round away
            apart = _gap(x, y).astype(np.float64) if exact else np.abs(q - p)
            apart = np.where(finite, apart, 0.0)
            zero_p, zero_q = np.where(finite, p, 0), np.where(finite, q, 0)
            squares += float(np.sum(apart * apart))
            squares_a += float(np.sum(np.abs(zero_p) ** 2))
            squares_b += float(np.sum(np.abs(zero_q) ** 2))
            dot += float(np.sum(zero_p * np.conj(zero_q)).real)
            top = int(np.argmax(apart))
            if apart[top] > max_abs:
                max_abs, max_at = float(apart[top]), start + top
            if wide is np.float64:
                opposite = (zero_p < 0) != (zero_q < 0)
                flips += int(np.sum(opposite & (zero_p != 0) & (zero_q != 0)))
            if ulps and finite.any():
                max_ulp = max(max_ulp, int(_gap(_ordered(x), _ordered(y))[finite].max()))
            close = finite & (apart <= atol + rtol * np.abs(p)) | (np.isinf(p) & (p == q))
            within = within and bool(close.all())
        equal += int(same.sum())
        start += len(x)
    index = tuple(int(i) for i in np.unravel_index(max_at, a.shape)) if max_at >= 0 else None
    return Comparison(
        a.numel, same_type and equal == a.numel, equal, "value", math.sqrt(squares), math.sqrt(squares_a),
        math.sqrt(squares_b), dot, max_abs, index, max_ulp if ulps else None, flips,
        (nans[0], nans[1]), (infs[0], infs[1]), cast, False, within if tolerance else equal == a.numel,
    )  # fmt: skip


def _blocks(a: TensorInfo, b: TensorInfo) -> Iterator[tuple[Any, Any]]:
    """Both tensors' elements, side by side."""
    import numpy as np

    left, right = chunks(a, BLOCK), chunks(b, BLOCK)
    types = numpy_dtype(a.dtype), numpy_dtype(b.dtype)
    x = y = b""
    for at in range(0, a.numel, BLOCK // 16):
        count = min(BLOCK // 16, a.numel - at)
        x, y = _filled(x, left, count * types[0].itemsize), _filled(y, right, count * types[1].itemsize)
        yield np.frombuffer(x, types[0], count), np.frombuffer(y, types[1], count)
        x, y = x[count * types[0].itemsize :], y[count * types[1].itemsize :]


def _filled(held: bytes, more: Iterator[bytes], nbytes: int) -> bytes:
    """*held* with what follows, *nbytes* at least: chunks need not end where elements do."""
    while len(held) < nbytes:
        chunk = next(more, b"")
        if not chunk:
            raise CorruptFile("the tensor's bytes end early")
        held += chunk
    return held


def _bits(values: Any) -> Any:
    """The elements as unsigned integers: two to a row for complex128, which no integer holds."""
    if values.itemsize == 16:
        return values.view("<u8").reshape(-1, 2)
    return values.view(f"<u{values.itemsize}")


def _ordered(values: Any) -> Any:
    """Floats as int64 in the order of their values, neighbours one apart and both zeros 0."""
    top = 1 << (8 * values.itemsize - 1)
    bits = _bits(values).astype("<u8")
    magnitude = (bits & (top - 1)).astype("<i8")
    return magnitude * (1 - 2 * (bits >= top).astype("<i8"))


def _gap(x: Any, y: Any) -> Any:
    """|x - y| of integers as uint64, exact over their whole range."""
    import numpy as np

    p, q = x.astype("<u8"), y.astype("<u8")  # which wraps, and unwraps in the difference
    return np.where(x > y, p - q, q - p)
