"""How the values of two tensors of one shape differ, measured in one pass and bounded memory.

Both are worked on side by side, in blocks that stay in a core's cache, by processes or threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import tee
from typing import Literal

from ckpt_tools.analysis.blocks import Sums
from ckpt_tools.analysis.elements import Scratch
from ckpt_tools.analysis.pairs import Pair, Piece, Tolerance, batched
from ckpt_tools.analysis.streaming import in_order
from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.errors import CkptError
from ckpt_tools.forks import can_fork, cores, in_forks

__all__ = ["Comparison", "Tolerance", "bytes_to_compare", "compare", "compare_all"]

WORTH_A_FORK = 64 << 20
"""Bytes that are compared before a process more could be forked."""

Basis = Literal["value", "stored integer"]


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
            return ratio if math.isfinite(ratio) else None
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
    known = [Pair(a, b, tolerance, values) for a, b, tolerance in pairs]
    total: Sums | None = None
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
            yield pair.error or _result(pair, total or Sums())
            total, told = None, 0


def bytes_to_compare(pairs: Iterable[PairOfTensors]) -> int:
    """What `compare_all` tells of *pairs* in all: the bytes of both sides, whether they must be read or not."""
    return sum(a.nbytes + b.nbytes for a, b, _ in pairs)


_Found = Sums | CkptError | None


def _measured(pairs: Sequence[Pair], threads: int) -> Iterator[tuple[Piece, _Found]]:
    """All pieces of *pairs* in their order, with what was found out."""
    idle: list[Scratch] = []

    def measure(pieces: list[Piece]) -> list[_Found]:
        return [piece.measure(idle) for piece in pieces]

    processes = min(threads, 1 + sum(pair.nbytes for pair in pairs) // WORTH_A_FORK)
    batches: Iterable[list[Piece]]
    results: Iterator[list[_Found] | CkptError | None]
    if processes > 1 and can_fork() and all(pair.in_files for pair in pairs):
        batches = known = list(batched(pairs))
        wanted = (None if all(piece.pair.done for piece in batch) else at for at, batch in enumerate(known))
        results = in_forks(lambda at: measure(known[at]), wanted, processes)
    else:
        batches, pending = tee(batched(pairs))
        results = in_order((partial(measure, batch) for batch in pending), threads)
    for batch, found in zip(batches, results, strict=True):
        if isinstance(found, list):
            yield from zip(batch, found, strict=True)
        else:
            for piece in batch:
                yield piece, found and found.at(path=piece.left.path)


def _result(pair: Pair, sums: Sums) -> Comparison | None:
    """The comparison of *pair*, *sums* being those of all elements."""
    numel = pair.given[0].numel
    if not pair.values:
        return Comparison(numel, not pair.different, None if pair.different else numel, within=not pair.different)
    if not pair.comparable:
        return None
    equal = sums.equal * pair.repeats
    identical = pair.same_type and equal == numel
    if not pair.real:
        return Comparison(numel, identical, equal, within=identical)
    root = math.sqrt(pair.repeats)
    return Comparison(
        numel=numel,
        identical=identical,
        equal=equal,
        basis="stored integer" if pair.a.dtype.kind == "quantized" else "value",
        distance=sums.distance * root,
        norm=sums.norm * root,
        other_norm=sums.other_norm * root,
        dot=sums.dot * pair.repeats,
        max_abs=sums.max_abs,
        max_index=pair.index(sums.max_at) if sums.max_at >= 0 else None,
        max_ulp=sums.max_ulp if pair.ulps else None,
        sign_flips=sums.sign_flips * pair.repeats,
        nans=(sums.nans[0] * pair.repeats, sums.nans[1] * pair.repeats),
        infs=(sums.infs[0] * pair.repeats, sums.infs[1] * pair.repeats),
        cast=not pair.same_type and sums.cast,
        cast_back=not pair.same_type and sums.cast_back,
        within=sums.within if pair.tolerance else equal == numel,
    )
