"""Whether two outputs are the same within a tolerance, and where they are farthest apart."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ckpt_tools.records import record
from ckpt_tools.report import number
from ckpt_tools.runtime.verify.subject import shape


class Tolerance(NamedTuple):
    """``|d| ≤ absolute·max|ref| + relative·|ref|``."""

    absolute: float
    relative: float

    def __str__(self) -> str:
        return f"{number(self.absolute)}·max|ref| + {number(self.relative)}·|ref|"


def tolerance(dtype: str, device: str, *, tf32: bool) -> Tolerance:
    """What the type of the weights and the kind of device (``cpu``, ``gpu``) allow; docs/export.md has the reasons."""
    if dtype == "bfloat16":
        return Tolerance(4e-2, 5e-2)
    if dtype == "float16":
        return Tolerance(5e-3, 1e-2)
    if device == "cpu":
        return Tolerance(1e-5, 1e-4)
    return Tolerance(5e-3, 1e-2) if tf32 else Tolerance(1e-4, 1e-3)


@record
class Difference:
    """How far *found* is from the reference: the largest ``|d|``, at which index, and what is allowed there.

    *fault* is a sentence where it cannot pass: ``""``, or what is not finite, or too far. *kind* is the code of that.
    *top1* is how many rows have the same largest entry, of how many; None where there are no rows.
    """

    worst: float
    at: tuple[int, ...]
    reference: float
    found: float
    scale: float
    allowed: float
    cosine: float
    top1: tuple[int, int] | None
    kind: str
    fault: str


def compare(reference: Tensor, found: Tensor, allowed: Tolerance) -> Difference:
    """Compare two tensors of the same shape; numbers that are no floats must be equal. NaN never passes."""
    top1 = _top1(reference, found)
    exact = not (reference.dtype.is_floating_point or reference.dtype.is_complex)
    kind = torch.complex128 if reference.dtype.is_complex else torch.float64
    a, b = reference.detach().to(kind), found.detach().to(kind)
    if not a.numel():
        return Difference(0.0, (), 0.0, 0.0, 0.0, 0.0, 1.0, top1, "", "")
    # an infinity that torch has too, with its sign, is a value such as a mask's
    for which, tensor, bad in (
        ("torch's own output", a, a.isnan()),
        ("the ONNX output", b, ~b.isfinite() & (a != b)),
    ):
        if bool(bad.any()):
            at = _index(int(bad.flatten().to(torch.uint8).argmax()), a)
            what = "NaN" if bool(tensor[at].isnan()) else "infinite"
            fault = f"{int(bad.sum()):,} of {a.numel():,} values of {which} are {what}, the first at {_at(at)}"
            return Difference(math.nan, at, _value(a[at]), _value(b[at]), math.nan, 0.0, math.nan, top1, "nan", fault)
    distance = (a - b).abs()
    distance[a == b] = 0.0  # equal infinities
    finite = a[a.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    limit = torch.zeros(()) if exact else allowed.absolute * scale + allowed.relative * a.abs().nan_to_num(posinf=0.0)
    limit = limit.to(torch.float64).expand_as(distance)
    # the index that is farthest beyond what is allowed there; where none is, the one farthest from the reference
    beyond = distance - limit
    failed = bool((beyond > 0).any())
    at = _index(int((beyond if failed else distance).flatten().argmax()), a)
    worst = float(distance[at])
    cosine = _cosine(a, b)
    fault = ""
    if failed:
        said = f"{_said(a[at])} in torch and {_said(b[at])} in ONNX"
        fault = (
            f"{int((beyond > 0).sum()):,} of {a.numel():,} values are too far apart, the worst at {_at(at)}: {said}, "
            f"{number(worst)} apart where {number(float(limit[at]))} is allowed"
        )
    code = "numbers" if failed else ""
    return Difference(worst, at, _value(a[at]), _value(b[at]), scale, float(limit[at]), cosine, top1, code, fault)


def mismatch(reference: Tensor, found: Tensor) -> str:
    """Why shape or type are not the same, in a sentence; "" where they are. Nothing is broadcast."""
    if reference.shape != found.shape:
        theirs, ours = shape(tuple(found.shape)), shape(tuple(reference.shape))
        try:
            torch.broadcast_shapes(reference.shape, found.shape)
        except RuntimeError:
            more = ""
        else:
            more = ", which would broadcast, and hide it from a careless comparison"
        return f"{theirs}, where torch returns {ours}{more}"
    ours, theirs = str(reference.dtype).removeprefix("torch."), str(found.dtype).removeprefix("torch.")
    floats = reference.dtype.is_floating_point and found.dtype.is_floating_point
    return "" if ours == theirs or floats else f"of type {theirs}, where torch returns {ours}"


def _index(flat: int, tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), tensor.shape))


def _at(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]"


def _value(value: Tensor) -> float:
    return float(value.abs()) if value.is_complex() else float(value)


def _said(value: Tensor) -> str:
    return number(_value(value))


def _cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.flatten(), b.flatten()
    both = a.isfinite() & b.isfinite()
    a, b = a[both], b[both]
    if a.is_complex():
        a, b = torch.view_as_real(a).flatten(), torch.view_as_real(b).flatten()
    norms = float(a.norm() * b.norm())
    if norms == 0.0:
        return 1.0 if bool((a == b).all()) else 0.0
    return min(1.0, float(a @ b) / norms)


def _top1(reference: Tensor, found: Tensor) -> tuple[int, int] | None:
    if reference.dim() < 2 or not reference.dtype.is_floating_point or reference.shape[1] < 2 or not reference.numel():
        return None
    same = reference.argmax(1) == found.argmax(1)
    return int(same.sum()), same.numel()
