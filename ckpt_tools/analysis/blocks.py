"""What can be said of two blocks of elements, and summed up over many.

Types of up to 24 significant bits are measured in float32, of which rows of 256 elements are summed up, and these sums
in float64: norms are off by at most 1e-6 of themselves where a core adds 16 numbers or more at once, *dot* by 1e-5 of
the product of the norms. *max_abs* is exact all the same. Small tensors, other types, and blocks whose squares leave
the range of float32 are measured in float64. A block in which something is not finite, or that float64 cannot square
either, is gone through again with more care.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ckpt_tools.analysis.elements import ROWS, SIGNED, Array, Scratch, fill, is_cast, same_bytes
from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import numpy_dtype

if TYPE_CHECKING:
    from ckpt_tools.analysis.pairs import Pair


@dataclass(slots=True)
class Sums:
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

    def merged(self, later: Sums) -> Sums:
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


class Finite(NamedTuple):
    """Finite numbers of both sides, their places in the block, and the changes: complex ones as real numbers.

    *sizes* are the magnitudes of the changes, of which complex numbers have one and not two.
    """

    places: Array
    p: Array
    q: Array
    apart: Array
    sizes: Array


class Block:
    """Elements of both sides, given as words, the first of which is at place *start*; `add` adds them to *sums*."""

    __slots__ = ("bits", "pair", "scratch", "start", "sums", "x", "y")

    def __init__(self, pair: Pair, start: int, x: Array, y: Array, scratch: Scratch, sums: Sums) -> None:
        self.pair, self.start, self.x, self.y, self.scratch, self.sums = pair, start, x, y, scratch, sums
        self.bits: Array | None = None  # that differ, until the changes take their memory

    def add(self) -> None:
        """Measure what is asked for: quickly, and where that fails in float64, and where that fails with care."""
        pair, x, y = self.pair, self.x, self.y
        same = False
        if pair.same_type and same_bytes(x, y):
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
        fill(p, pair.a.dtype, self.x, pair.reals)
        fill(q, pair.b.dtype, self.y, pair.reals)
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
            np.less(self.bits.view(SIGNED[x.itemsize]), 0, out=flags)
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
            steps = steps.view(SIGNED[x.itemsize])
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

    def finite(self, p: Array, q: Array) -> Finite:
        """Those of the numbers *p* and *q*, in float64, that are finite on both sides."""
        pair, reals = self.pair, self.pair.reals
        there = np.isfinite(p) & np.isfinite(q)
        if reals > 1:
            there = np.repeat(there.reshape(-1, reals).all(axis=1), reals)
        places = np.flatnonzero(there)
        p, q = p[places], q[places]
        apart = _long_differences(self.x, pair.a, self.y, pair.b) if pair.long else q - p
        return Finite(places, p, q, apart, np.abs(apart.view("<c16") if pair.complex else apart))

    def _casts(self) -> None:
        pair, sums = self.pair, self.sums
        if sums.cast:
            sums.cast = is_cast(self.x, pair.a.dtype, self.y, pair.b.dtype)
        if sums.cast_back:
            sums.cast_back = is_cast(self.y, pair.b.dtype, self.x, pair.a.dtype)


def _squares(values: Array, products: Array) -> float:
    """The sum of the squares; *products* is memory for as many as there are rows."""
    row = ROWS[values.itemsize]
    count = values.size // row
    whole = values[: count * row]
    np.matmul(whole.reshape(count, 1, row), whole.reshape(count, row, 1), out=products[:count])
    squares = float(np.add.reduce(products[:count], axis=None, dtype=np.float64))
    rest = values[count * row :]
    return squares + float(np.square(rest, dtype=np.float64).sum()) if rest.size else squares


def _dot(p: Array, q: Array) -> float:
    row = ROWS[p.itemsize]
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


def _within(pair: Pair, p: Array, q: Array, exact: Array | None = None) -> bool:
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
