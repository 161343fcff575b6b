"""The elements of two tensors as words, which are compared bit for bit, and as numbers, which are measured."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ckpt_tools.analysis.statistics import byte_numbers, finite_float16
from ckpt_tools.contents import numpy_dtype
from ckpt_tools.dtypes import BY_NAME, DType

BLOCK = 1 << 16
"""Numbers of each tensor worked on at once: with what is made of them they stay in a core's own cache."""
BLOCK_BYTES = 1 << 18
"""Bytes of each tensor worked on at once."""

Array = npt.NDArray[Any]


class Kind(NamedTuple):
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
def kind_of(dtype: DType) -> Kind:
    """How elements of *dtype* become numbers."""
    per_byte = dtype.packed
    words = np.dtype(f"<u{min(dtype.itemsize, 8)}")
    if dtype.kind == "bits" or (dtype.kind == "quantized" and dtype.numpy is None):
        return Kind(words, per_byte, "", 1)
    wide = dtype.kind == "complex" or dtype.name == "float64" or (dtype.itemsize > 2 and dtype.name != "float32")
    reals = 2 if dtype.kind == "complex" or dtype.name == "float4_e2m1fn_x2" else 1
    return Kind(words, per_byte, "<f8" if wide else "<f4", reals)


_PART = {"complex128": "float64", "complex64": "float32", "complex32": "float16", "bcomplex32": "bfloat16"}
"""The type of the real and of the imaginary part."""


@cache
def _table(dtype: DType, real: str) -> Array:
    """The numbers that a byte holds, a row for each byte."""
    return byte_numbers(dtype)[0].astype(real)


FLOAT16_TOP = 2.0**32
"""The square of what `finite_float16` makes of an infinity: a sum of squares below it is one of finite numbers."""


def fill(row: Array, dtype: DType, words: Array, reals: int) -> None:
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


ROWS = {4: 256, 8: 4096}
"""Elements summed in their own type at once, by bytes: a longer product might have BLAS start threads of its own."""

SIGNED = {1: "<i1", 2: "<i2", 4: "<i4", 8: "<i8"}


class Scratch:
    """Memory that a thread works in, block after block: numbers of A, those of B and the changes are its rows."""

    __slots__ = ("buffers", "flags", "products", "rows")

    def __init__(self) -> None:
        self.buffers = _empty(BLOCK_BYTES), _empty(BLOCK_BYTES)
        self.rows = {real: _empty(3 * BLOCK * int(real[2])).view(real).reshape(3, BLOCK) for real in ("<f4", "<f8")}
        self.flags = _empty(BLOCK).view(np.bool_)
        self.products = {size: np.empty((BLOCK // row, 1, 1), f"<f{size}") for size, row in ROWS.items()}

    def size(self, reals: int, width: int) -> int:
        """How many elements of so many numbers and bytes it has room for."""
        return min(self.flags.size // reals, self.buffers[0].size // width)

    def words(self, dtype: np.dtype[Any], count: int) -> Array:
        """Memory for *count* integers, which the changes will take."""
        memory: Array = self.rows["<f8" if dtype.itemsize == 8 else "<f4"][2].view(dtype)[:count]
        return memory


def _empty(nbytes: int) -> Array:
    """Memory that begins with a cache line: across these, arithmetic takes up to twice the time."""
    memory = np.empty(nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes]


def as_words(block: memoryview, kind: Kind, count: int) -> Array:
    """The words of *count* elements."""
    raw = np.frombuffer(block, np.uint8)
    if kind.per_byte > 1:
        width = 8 // kind.per_byte
        return np.stack([raw >> width * i & (1 << width) - 1 for i in range(kind.per_byte)], axis=1).reshape(-1)[:count]
    return raw.view(kind.words)


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


def same_bytes(x: Array, y: Array) -> bool:
    """Whether two arrays of one size, dense both, hold the same bytes."""
    memcmp = _memcmp()
    if memcmp is None:
        return np.array_equal(x, y)
    return not memcmp(x.__array_interface__["data"][0], y.__array_interface__["data"][0], x.nbytes)


# --- conversions


def is_cast(words: Array, dtype: DType, others: Array, other: DType) -> bool:
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
