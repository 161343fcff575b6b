"""The changes between two tensors of one shape, element by element."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ckpt_tools.analysis.blocks import Block, Sums
from ckpt_tools.analysis.elements import Array, Scratch
from ckpt_tools.analysis.pairs import Pair
from ckpt_tools.checkpoint import TensorInfo


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


def change_histogram(a: TensorInfo, b: TensorInfo) -> ChangeHistogram | None:
    """How large the changes from *a* to *b* are, element by element; reads both once. None where `compare` is, and
    where the elements are no numbers.
    """
    pair = Pair(a, b, None, True)
    if not pair.real:
        return None
    scratch, sums = Scratch(), Sums()
    unchanged, finite, squares = 0, 0, 0.0
    counts = np.zeros(_SMALLEST + _LARGEST + 1, np.int64)
    with np.errstate(all="ignore"):
        for left, right in pair.spans():
            for at, x, y in pair.blocks(left, right, scratch):
                block = Block(pair, at, x, y, scratch, sums)
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
    pair = Pair(a, b, None, True, as_stored=False)
    if not pair.real or pair.reals > 1:
        raise ValueError(f"{a.dtype} and {b.dtype} have no real numbers")
    scratch, sums = Scratch(), Sums()
    for left, right in pair.spans():
        for at, x, y in pair.blocks(left, right, scratch):
            p, q = Block(pair, at, x, y, scratch, sums).sides("<f8")
            yield p, q
