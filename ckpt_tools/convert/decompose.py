"""Tensors that a format cannot hold, taken apart into plain ones that it can.

A quantized tensor becomes its integers, scale and zero point; a sparse one its indices, values and size; a nested one
its buffer, sizes, strides and offsets; a complex one real numbers in pairs; a packed one its bytes; a tensor of a
class of its own the tensors that it is made of. What it was is noted (formats/note.py puts it together again).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite

from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import NUMBERS, chunks, parts_of
from ckpt_tools.convert.computed import computed
from ckpt_tools.dtypes import BY_NAME, UINT8, DType

ELEMENTS = "values"
"""The label of the part that holds a tensor's own elements."""

_PAIRS = {"complex128": "float64", "complex64": "float32", "complex32": "float16", "bcomplex32": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor on its way: *tensor* is the source's, under the source's name; *name* and *dtype* the output's."""

    name: str
    tensor: TensorInfo
    dtype: DType


@dataclass(frozen=True, slots=True)
class Composite:
    """A tensor that goes out as its parts: *parts* has their names in the output, by label.

    *elements* is the label of the part that holds its own elements, where it has any.
    """

    tensor: TensorInfo
    parts: Mapping[str, str]
    elements: str | None

    @property
    def kind(self) -> str:
        """What it is, in a word or two."""
        if self.tensor.layout != "strided":
            return self.tensor.layout
        return self.tensor.subclass or str(self.tensor.details.get("qscheme") or self.tensor.dtype)

    def as_json(self) -> dict[str, object]:
        """What the note says of it."""
        # the conj and neg bits are resolved where the elements are written
        told = {k: v for k, v in self.tensor.details.items() if _is_plain(v) and k not in ("conj", "neg")}
        described: dict[str, object] = {
            "dtype": self.tensor.dtype.name,
            "shape": list(self.tensor.shape),
            "layout": self.tensor.layout,
            "details": told,
            "elements": self.elements,
            "parts": dict(self.parts),
        }
        if self.tensor.subclass is not None:
            described["subclass"] = self.tensor.subclass
        return described


def decompose(
    entries: Iterable[Entry], apart: Callable[[Entry], bool], *, numbers: bool
) -> tuple[list[Entry], dict[str, Composite]]:
    """*entries* with the parts of those that are to be taken *apart* in their place, and what these were, by name.

    A part is named ``name.label``, or ``name.label_2`` and so on where that is taken. *numbers* is whether scales,
    zero points, axes and sizes become tensors as well.
    """
    entries = list(entries)
    taken = {entry.name for entry in entries}
    result: list[Entry] = []
    composites: dict[str, Composite] = {}
    pending = entries[::-1]
    while pending:
        entry = pending.pop()
        own = _elements(entry.tensor) if apart(entry) else None
        parts = [part for part in parts_of(entry.tensor) if numbers or part[0] not in NUMBERS] if apart(entry) else []
        if own is not None:
            parts.insert(0, (ELEMENTS, own))
        if not parts:  # plain, or nothing that could be taken apart
            result.append(entry)
            continue
        names: dict[str, str] = {}
        for label, part in parts:
            names[label] = _free(f"{entry.name}.{label}", taken)
            pending.append(Entry(names[label], part.renamed(f"{entry.tensor.name}.{label}"), part.dtype))
        pending[-len(parts) :] = pending[: -len(parts) - 1 : -1]
        composites[entry.name] = Composite(entry.tensor, names, ELEMENTS if own is not None else None)
    return result, composites


def can_be_taken_apart(tensor: TensorInfo) -> bool:
    """Whether there are parts to write: not so where the file has no bytes of it."""
    if any(storage.missing for storage in tensor.storages()):
        return False
    return _elements(tensor) is not None or bool(tensor.parts)


def _free(name: str, taken: set[str]) -> str:
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def _elements(tensor: TensorInfo) -> TensorInfo | None:
    """The tensor's own elements under a plain type: the same bytes; None where it has none."""
    if tensor.storage is None or tensor.layout != "strided":
        return None
    plain = replace(tensor, parts=(), details={}, attributes={}, subclass=None)
    if tensor.nbytes != tensor.numel * tensor.dtype.itemsize:  # several in a byte
        if tensor.storage_offset or not tensor.contiguous:
            return None
        return replace(plain, dtype=UINT8, shape=(tensor.nbytes,), stride=(1,))
    if tensor.dtype.name in _PAIRS:
        dtype, shape = BY_NAME[_PAIRS[tensor.dtype.name]], (*tensor.shape, 2)
        if tensor.details.get("conj") or tensor.details.get("neg"):
            return computed(tensor.name, dtype, shape, partial(chunks, tensor))
        stride = (*(2 * step for step in tensor.stride), 1)
        return replace(plain, dtype=dtype, shape=shape, stride=stride, storage_offset=2 * tensor.storage_offset)
    whole = BY_NAME.get(tensor.dtype.numpy or "")
    return replace(plain, dtype=whole) if whole is not None else None


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | str) or (isinstance(value, float) and isfinite(value))
