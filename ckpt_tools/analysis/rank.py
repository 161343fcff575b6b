"""The numerical rank of a matrix's change: whether a low-rank adapter, merged into the weights, could have made it.

Singular values count that stand out of what rounding adds. Its size is known: B's elements were rounded to their
type's precision, and the change may have been to bfloat16's before it was added. Independent errors of variance v
have no singular value above √(max row sum of v) + √(max column sum of v) to speak of (Bandeira, van Handel 2016).

The largest singular values are found by subspace iteration from a random start (Halko, Martinsson, Tropp 2011),
each step of which is one pass over the rows. They come out too small if at all, never too large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckpt_tools.analysis.changes import side_by_side
from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import numpy_dtype
from ckpt_tools.dtypes import DType

MOST = 128
"""The highest rank told from full rank."""
MOST_COLUMNS = 1 << 16
"""The widest matrix that is looked at: what is kept of it grows with its columns."""
MARGIN = 2.0
"""How far above the bound a singular value must be: rounding errors of small changes are not quite independent."""

_WIDTH = MOST + 32  # directions that are followed; the ones too many make the others precise
_BLOCK = 1 << 21  # elements of the change at once
_CHUNK = 1 << 13  # of its columns multiplied at once
_PRECISIONS = (8, 11, 24, 53)  # bits of bfloat16, float16, float32 and float64

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Rank:
    """The rank of ΔW = B - A as a matrix of *rows* × *columns*.

    *rank* counts the singular values above what rounding explains; 0 where there are none. It is None where it is not
    low: more than `MOST`, or more than half of what the matrix can have. *energy* is their share of ‖ΔW‖², or that
    of the `MOST` largest.
    """

    rows: int
    columns: int
    rank: int | None
    energy: float

    @property
    def lora(self) -> str:
        """A remark such as ``consistent with LoRA r≈16``, or ``no more than rounding``; empty where there is none."""
        if self.rank is None:
            return ""
        if not self.rank:
            return "no more than rounding"
        return f"consistent with LoRA r≈{self.rank}" if 4 * self.rank <= min(self.rows, self.columns) else ""


def change_rank(a: TensorInfo, b: TensorInfo) -> Rank | None:
    """The rank of the change from *a* to *b*; reads them one to three times.

    Kernels of convolutions count as out × rest, elements that are not finite on one side as unchanged. None where
    they are no matrices of floats of at least two rows and columns and at most `MOST_COLUMNS`. Raises ValueError for
    two shapes, `CkptError` where bytes are missing.
    """
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} is not {b.shape}")
    rows = a.shape[0] if a.shape else 0
    columns = math.prod(a.shape[1:]) if len(a.shape) > 1 else 0
    floats = all(t.dtype.kind == "float" and "_x2" not in t.dtype.name for t in (a, b))
    if not floats or min(rows, columns) < 2 or columns > MOST_COLUMNS:
        return None
    change = _Change(a, b, rows, columns)
    width = min(_WIDTH, rows, columns)
    basis: Array = np.eye(columns, dtype=np.float32)[:, :width] if columns <= width else change.sketch(width)
    for last in (columns <= width or rows <= width, False, True):
        values, following = change.step(basis)
        limit = change.limit
        rank = int(np.count_nonzero(values > limit))
        rest = change.energy - float(np.square(values).sum())
        if last or rank > MOST or rest <= change.noise:
            break
        basis = _orthonormal(following)
    if not change.energy:
        return Rank(rows, columns, 0, 0.0)
    held = float(np.square(values[: min(rank, MOST)]).sum()) / change.energy
    full = rank > MOST or 2 * rank > min(rows, columns)
    return Rank(rows, columns, None if full else rank, min(held, 1.0))


class _Change:
    """ΔW, gone through row by row; *energy*, *noise* and *limit* are known once that was done."""

    def __init__(self, a: TensorInfo, b: TensorInfo, rows: int, columns: int) -> None:
        self.a, self.b, self.rows, self.columns = a, b, rows, columns
        self.energy = self.noise = self.limit = 0.0
        self._known = False

    def sketch(self, width: int) -> Array:
        """Orthonormal columns near the space of the rows: *width* random combinations of these, or each by itself."""
        following = np.zeros((self.columns, width), np.float32)
        generator = np.random.default_rng(0)
        for first, block in self._blocks():
            if self.rows <= width:
                weights = np.eye(self.rows, dtype=np.float32)[first : first + len(block)]
            else:
                weights = generator.standard_normal((len(block), width), np.float32)
            _add_product(following, block, weights)
        return _orthonormal(following)

    def step(self, basis: Array) -> tuple[Array, Array]:
        """The singular values of ΔW within *basis*, descending, and ΔWᵀΔW *basis*, which is nearer to the largest's."""
        following = np.zeros_like(basis)
        gram = np.zeros((basis.shape[1], basis.shape[1]))
        for _, block in self._blocks():
            image = block @ basis
            _add_product(following, block, image)
            wide = image.astype(np.float64)
            gram += wide.T @ wide
        return np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0)), following

    def _blocks(self) -> Iterator[tuple[int, Array]]:
        """Rows of ΔW, each block with the number of its first."""
        height = max(1, min(self.rows, _BLOCK // self.columns))
        block = np.empty(height * self.columns, np.float32)
        rounding = None if self._known else _Rounding(self.a.dtype, self.b.dtype, self.rows, self.columns, height)
        first = filled = 0
        for p, q in side_by_side(self.a, self.b):
            change = q - p
            if not np.isfinite(change).all():
                there = np.isfinite(change)
                p, q, change = (np.where(there, values, 0.0) for values in (p, q, change))
            at = 0
            while at < change.size:
                until = min(change.size, at + block.size - filled)
                block[filled : filled + until - at] = change[at:until]
                if rounding is not None:
                    rounding.add(filled, p[at:until], q[at:until])
                filled += until - at
                at = until
                rows = filled // self.columns
                if rows == min(height, self.rows - first):
                    whole = block[: rows * self.columns].reshape(rows, self.columns)
                    if rounding is not None:
                        rounding.add_rows(first, whole)
                    yield first, whole
                    first += rows
                    filled = 0
        if rounding is not None:
            self.energy, self.noise, self.limit = rounding.total()
            self._known = True


class _Rounding:
    """The variance of what rounding adds to the elements of ΔW, summed over rows and columns, and ‖ΔW‖².

    The unit in an element's last place is 2**(exponent - precision), and the variance a twelfth of its square. The
    precision of what was saved in a wider type than it was computed in shows in the bits that are never used.
    """

    def __init__(self, a: DType, b: DType, rows: int, columns: int, height: int) -> None:
        self._types = [_limits(dtype) for dtype in (a, b)]
        self._bits = [0, 0]
        self._units = np.empty((height, columns))
        self._rows = np.zeros((2, rows))
        self._columns = np.zeros((2, columns))

    def add(self, place: int, p: Array, q: Array) -> None:
        """Take in elements of A and B that come at *place* of the block."""
        exponents = np.full(p.shape, -500, np.int32)
        for side, (values, (_, least)) in enumerate(zip((p, q), self._types, strict=True)):
            self._bits[side] |= int(np.bitwise_or.reduce(values.view(np.uint64)))
            own = np.where(values == 0, least, np.frexp(values)[1])
            np.maximum(exponents, own, out=exponents)
        self._units.reshape(-1)[place : place + p.size] = np.ldexp(1.0, 2 * exponents)

    def add_rows(self, first: int, block: Array) -> None:
        """Take in the rows of ΔW from number *first* on, whose elements came before."""
        squares = np.square(block, dtype=np.float64)
        for kind, parts in enumerate((self._units[: len(block)], squares)):
            self._rows[kind, first : first + len(block)] = parts.sum(axis=1)
            self._columns[kind] += parts.sum(axis=0)

    def total(self) -> tuple[float, float, float]:
        """‖ΔW‖², how much of it may be rounding's, and the highest singular value that it explains."""
        precisions = [
            min(most, next(bits for bits in _PRECISIONS if bits >= used))
            for (most, _), used in zip(self._types, map(_bits_used, self._bits), strict=True)
            if used
        ]
        # that of the elements, and that of the change, which has twice the variance of its mean exponent at most
        shares = np.array([4.0 ** -min(precisions, default=53) / 12, 4.0**-8 / 6])
        rows, columns = shares @ self._rows, shares @ self._columns
        limit = MARGIN * (math.sqrt(rows.max()) + math.sqrt(columns.max()))
        return float(self._rows[1].sum()), float(rows.sum()), limit


def _limits(dtype: DType) -> tuple[int, int]:
    """The precision of a float type in bits, and the exponent below which it has no finer unit."""
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo
    kind = finfo(numpy_dtype(dtype))
    precision = kind.nmant + 1
    return precision, math.frexp(float(kind.smallest_subnormal))[1] - 1 + precision


def _bits_used(bits: int) -> int:
    """How many bits of a float64's significand are ever set, the implied one included; 0 where all are zero."""
    if not bits & ((1 << 63) - 1):
        return 0
    fraction = bits & ((1 << 52) - 1)
    return 53 - ((fraction & -fraction).bit_length() - 1) if fraction else 1


def _add_product(total: Array, block: Array, image: Array) -> None:
    """Add *block*ᵀ *image* to *total*, some columns of the block at a time."""
    for at in range(0, len(total), _CHUNK):
        total[at : at + _CHUNK] += block[:, at : at + _CHUNK].T @ image


def _orthonormal(columns: Array) -> Array:
    """An orthonormal basis of the space of *columns*, written over them.

    By their Gram matrix, as that takes no memory; once more, as the first time leaves what is almost dependent askew.
    """
    for least in (1e-13, 1e-2):
        gram = np.zeros((columns.shape[1], columns.shape[1]))
        for at in range(0, len(columns), _CHUNK):
            part = columns[at : at + _CHUNK].astype(np.float64)
            gram += part.T @ part
        squares, vectors = np.linalg.eigh(gram)
        kept = squares > least * squares.max(initial=0.0)
        turn = vectors[:, kept] / np.sqrt(squares[kept])
        for at in range(0, len(columns), _CHUNK):
            columns[at : at + _CHUNK, : turn.shape[1]] = columns[at : at + _CHUNK] @ turn
        columns = columns[:, : turn.shape[1]]
    return columns
