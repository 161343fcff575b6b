"""Outputs that are decisions: things found, best first, and whole numbers.

A value may differ by a rounding and be right. A decision that hangs on one, such as which of two boxes is suppressed,
comes out the other way and is as right, but is far from it in numbers. So where such outputs differ:

- Rows of things found (detections: boxes, labels, scores) are compared with the rows that they are, not with those in
  their place: rows of equal scores stand in any order.
- What torch itself decides otherwise when its layers are moved by no more than the tolerance allows, as roundings
  move them, is not held against the file; that it is so is said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ckpt_tools.records import record
from ckpt_tools.report import count, listed, number
from ckpt_tools.runtime.onnx.compare import Difference, Tolerance, compare, mismatch

COARSE = 10
"""By how much more than the tolerance a value must have changed to be another decision, not the same one shifted."""


@record
class Compared:
    """A *difference*; how many of its rows were *reordered* for it, and how many rows or values are *hanging*.

    The latter are decisions that came out otherwise, as they do in torch itself when its layers are moved a little.
    """

    difference: Difference
    reordered: int = 0
    hanging: int = 0

    def without_top1(self) -> Compared:
        """The same of rows that have no classes to choose from."""
        return replace(self, difference=replace(self.difference, top1=None))


def counted(session: Any) -> list[bool]:
    """Whether the first size of each output of *session* hangs on values, so that no size of an input tells it."""
    given = {dim for value in session.get_inputs() for dim in value.shape if isinstance(dim, str)}
    firsts = [value.shape[0] if value.shape else 0 for value in session.get_outputs()]
    return [not isinstance(first, int) and not _known(first, given) for first in firsts]


def _known(dim: str | None, given: set[str]) -> bool:
    names = set(re.findall(r"[A-Za-z_]\w*\b(?!\()", dim or ""))
    return bool(names) and names <= given


def found_things(paths: Sequence[str], tensors: Sequence[Tensor], free: Sequence[bool]) -> list[list[int]]:
    """The outputs that tell of the same things, one in each row: siblings in what forward returns, of as many rows.

    One of them has to be their scores: floats that do not rise.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for index, (path, tensor) in enumerate(zip(paths, tensors, strict=True)):
        if free[index]:
            groups.setdefault((path.rpartition(".")[0], len(tensor)), []).append(index)
    return [group for group in groups.values() if any(_ranks(tensors[index]) for index in group)]


def _ranks(tensor: Tensor) -> bool:
    return tensor.dim() == 1 and tensor.dtype.is_floating_point and bool((tensor[1:] <= tensor[:-1]).all())


@record
class Pairs:
    """Rows that are the same in two lists of things found: *rows* of the one and the other; *lost* have none."""

    rows: tuple[list[int], list[int]]
    lost: list[int]
    extra: list[int]


def pair(wanted: Sequence[Tensor], found: Sequence[Tensor], allowed: Tolerance) -> Pairs:
    """Each row of *wanted* with the first row of *found* that is not taken and the same in every tensor."""
    limits = [_limits(tensor, allowed) for tensor in wanted]
    taken = torch.zeros(len(found[0]), dtype=torch.bool)
    rows: tuple[list[int], list[int]] = ([], [])
    lost = []
    # what has least in a row tells most rows apart for least work
    order = sorted(range(len(wanted)), key=lambda index: wanted[index].numel())
    for row in range(len(wanted[0])):
        candidates = (~taken).nonzero().flatten()
        for index in order:
            apart = (found[index][candidates].double() - wanted[index][row].double()).abs() <= limits[index][row]
            candidates = candidates[apart.flatten(1).all(1) if apart.dim() > 1 else apart]
            if not len(candidates):
                lost.append(row)
                break
        else:
            taken[candidates[0]] = True
            rows[0].append(row)
            rows[1].append(int(candidates[0]))
    return Pairs(rows, lost, (~taken).nonzero().flatten().tolist())


def _limits(tensor: Tensor, allowed: Tolerance) -> Tensor:
    wide = tensor.double().abs()
    if not tensor.dtype.is_floating_point or not tensor.numel():
        return torch.zeros_like(wide)
    return allowed.absolute * wide.max() + allowed.relative * wide


def compare_things(
    wanted: Sequence[Tensor],
    found: Sequence[Tensor],
    allowed: Tolerance,
    moved: Iterable[Sequence[Tensor]],
    names: Sequence[str],
) -> list[Compared] | None:
    """The outputs *names* of a group, row by row; None where types, or the sizes of a row, are others.

    *moved* is what torch returns when its layers are moved a little, more than once.
    """
    if any(mismatch(w[:0], f[:0]) for w, f in zip(wanted, found, strict=True)) or len({len(f) for f in found}) > 1:
        return None
    pairs = pair(wanted, found, allowed)
    lost, extra = _without_counterpart(wanted, found, pairs, allowed, moved)
    reordered = 0 if pairs.lost or pairs.extra else sum(a != b for a, b in zip(*pairs.rows, strict=True))
    hanging = max(len(pairs.lost) - len(lost), len(pairs.extra) - len(extra))
    compared = [
        Compared(compare(w[pairs.rows[0]], f[pairs.rows[1]], allowed), reordered, hanging)
        for w, f in zip(wanted, found, strict=True)
    ]
    if lost or extra:
        fault = _fault(wanted, found, lost, extra, names)
        compared[0] = replace(compared[0], difference=replace(compared[0].difference, kind="rows", fault=fault))
    return compared


def _without_counterpart(
    wanted: Sequence[Tensor],
    found: Sequence[Tensor],
    pairs: Pairs,
    allowed: Tolerance,
    moved: Iterable[Sequence[Tensor]],
) -> tuple[set[int], set[int]]:
    """The rows of either side that the other has not, without those that torch loses or finds when it is moved."""
    coarse = Tolerance(COARSE * allowed.absolute, COARSE * allowed.relative)
    lost, extra = set(pairs.lost), set(pairs.extra)
    if 2 * max(len(lost), len(extra)) > max(len(wanted[0]), len(found[0])):
        return lost, extra  # no rounding does that, and torch need not be run
    others = iter(moved)
    while (lost or extra) and (other := next(others, None)) is not None:
        there = pair(wanted, other, coarse)
        if 2 * len(there.lost) > len(wanted[0]):
            continue  # all has changed: that tells nothing of a single row
        lost &= set(there.rows[0])
        extra &= set(pair(found, other, coarse).lost)
    return lost, extra


def _fault(
    wanted: Sequence[Tensor], found: Sequence[Tensor], lost: set[int], extra: set[int], names: Sequence[str]
) -> str:
    said = f"torch finds {count(len(wanted[0]), 'row')} of {listed(names)}, the file {len(found[0]):,}"
    if lost:
        said += f"; {len(lost):,} of torch's are not in the file's, the first {_row(wanted, min(lost), names)}"
    if extra:
        said += f"; {len(extra):,} of the file's are not in torch's, the first {_row(found, min(extra), names)}"
    return said


def _row(tensors: Sequence[Tensor], row: int, names: Sequence[str]) -> str:
    small = [(name, t[row]) for name, t in zip(names, tensors, strict=True) if t[row].numel() <= 4]
    values = (f"{name} {', '.join(number(float(f'{float(v):.4g}')) for v in t.flatten())}" for name, t in small)
    return f"[{row}] ({'; '.join(values)})"


def compare_whole(wanted: Tensor, found: Tensor, allowed: Tolerance, moved: Iterable[Tensor]) -> Compared:
    """Whole numbers, such as the class of each pixel: equal, or such as torch gives too when it is *moved*."""
    wrong = wanted != found
    total = int(wrong.sum())
    # no rounding turns more than half of them, and torch need not be run
    others = iter(moved) if 2 * total <= wrong.numel() else iter(())
    while bool(wrong.any()) and (other := next(others, None)) is not None:
        if other.shape == found.shape:
            wrong &= other != found
    hanging = total - int(wrong.sum())
    return Compared(compare(wanted, torch.where(wrong, found, wanted), allowed), hanging=hanging)
