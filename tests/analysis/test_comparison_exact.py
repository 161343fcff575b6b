"""Comparisons against a plain reference in numpy's widest types: every dtype, any strides, bit patterns, cuts."""

import gc
import math
import os
import subprocess
import sys
import textwrap
import threading

import ml_dtypes
import numpy as np
import pytest

from ckpt_tools.analysis import elements, streaming
from ckpt_tools.analysis import pairs as module
from ckpt_tools.analysis.changes import change_histogram
from ckpt_tools.analysis.comparison import Tolerance, bytes_to_compare, compare, compare_all
from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import numpy_dtype, read_bytes
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import CkptError, CorruptFile, UnsupportedFeature
from tests.analysis.test_statistics_exact import describe, of

FLOATS = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float8_e8m0fnu",
]  # fmt: skip
INTEGERS = ["int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool", "int4"]
COMPLEX = ["complex128", "complex64", "complex32", "bcomplex32"]
QUANTIZED = ["qint8", "quint8", "qint32"]
PARTS = {"complex128": "float64", "complex64": "float32", "complex32": "float16", "bcomplex32": "bfloat16"}


@pytest.fixture(autouse=True, params=["small blocks", "whole"])
def block(request, monkeypatch):
    """Blocks of at most 64 numbers, four to a span, and float32 for all; or such as they are."""
    if request.param == "small blocks":
        monkeypatch.setattr(elements, "BLOCK", 64)
        monkeypatch.setattr(elements, "BLOCK_BYTES", 256)
        monkeypatch.setattr(module, "SPAN", 1024)
        monkeypatch.setattr(module, "FEW", 0)
    return request.param


def wide(tensor):
    """The numbers in the widest type: longdouble, exact for 64-bit integers, or complex ones of two of these."""
    dtype = tensor.dtype
    raw = np.frombuffer(bytearray(read_bytes(tensor)), np.uint8)
    if dtype.kind == "complex":
        parts = raw.view(numpy_dtype(BY_NAME[PARTS[dtype.name]])).astype(np.float64).astype(np.longdouble)
        return parts[0::2] + 1j * parts[1::2]
    if dtype.kind == "bool":
        return (raw != 0).astype(np.longdouble)
    values = raw.view(numpy_dtype(dtype))
    return (values if values.dtype.kind in "iu" else values.astype(np.float64)).astype(np.longdouble)


def steps(tensor):
    """Floats in the order of their values, as Python's integers."""
    dtype = tensor.dtype
    bits = np.frombuffer(read_bytes(tensor), f"<u{dtype.itemsize}").tolist()
    top = 1 << 8 * dtype.itemsize - 1
    return [-(b - top) if b >= top else b for b in bits]


def check(a, b, found, relative=1e-6):
    tiny = 5e-324 * a.numel  # the rounding of subnormal numbers
    with np.errstate(all="ignore"):
        p, q = wide(a), wide(b)
        same_type = a.dtype == b.dtype
        size = a.dtype.itemsize
        if same_type:
            x, y = (np.frombuffer(read_bytes(t), np.uint8).reshape(-1, size) for t in (a, b))
            equal = int((x == y).all(axis=1).sum())
        else:
            equal = int((p == q).sum())
        finite = np.isfinite(p) & np.isfinite(q)
        apart = np.abs(q[finite] - p[finite])
        norm, other = (float(np.sqrt((np.abs(v[finite]) ** 2).sum())) for v in (p, q))
        dot = float((p[finite] * np.conj(q[finite])).real.sum())
        opposite = finite & (p.real * q.real < 0)
        if np.finfo(np.longdouble).minexp > -2000:  # longdouble is float64: products of tiny numbers vanish
            opposite = finite & (np.sign(p.real) * np.sign(q.real) < 0)
    assert (found.numel, found.equal) == (a.numel, equal)
    assert found.identical == (same_type and equal == a.numel)
    assert found.basis == ("stored integer" if a.dtype.kind == "quantized" else "value")
    assert found.distance == pytest.approx(float(np.sqrt((apart**2).sum())), rel=relative, abs=tiny)
    assert found.norm == pytest.approx(norm, rel=relative, abs=tiny)
    assert found.other_norm == pytest.approx(other, rel=relative, abs=tiny)
    if math.isinf(dot):  # or, block by block, both infinities
        assert not math.isfinite(found.dot)
    else:
        assert abs(found.dot - dot) <= 8 * relative * norm * other + 5e-324
    largest = float(apart.max()) if apart.size else 0.0
    assert found.max_abs == pytest.approx(largest, rel=4e-16, abs=0)
    if largest:
        at = np.ravel_multi_index(found.max_index, a.shape) if a.shape else 0
        assert float(abs(q[at] - p[at])) == pytest.approx(largest, rel=4e-16, abs=0)
    else:
        assert found.max_index is None
    assert found.nans == (int(np.isnan(p).sum()), int(np.isnan(q).sum()))
    assert found.infs == (int(np.isinf(p).sum()), int(np.isinf(q).sum()))
    kinds = {a.dtype.kind, b.dtype.kind}
    if kinds & {"uint", "bool", "quantized", "complex"} or "float8_e8m0fnu" in (a.dtype.name, b.dtype.name):
        assert found.sign_flips == 0
    else:
        assert found.sign_flips == int(opposite.sum())
    if same_type and a.dtype.kind == "float" and a.dtype.name != "float8_e8m0fnu":
        gaps = [abs(i - j) for i, j, there in zip(steps(a), steps(b), finite, strict=True) if there]
        assert found.max_ulp == max(gaps, default=0)
    else:
        assert found.max_ulp is None
    assert found.within == (equal == a.numel)


def ordinary(rng, dtype, count, spread=1.0):
    """*count* elements such as weights have, as bytes."""
    kind = BY_NAME[dtype]
    if kind.kind == "complex":
        return ordinary(rng, PARTS[dtype], 2 * count, spread)
    if kind.kind == "bool":
        return rng.integers(0, 2, count).astype(np.uint8).tobytes()
    target = numpy_dtype(kind)
    if target.kind in "iu":
        info = np.iinfo(target)
        return rng.integers(info.min, info.max, count, target, endpoint=True).tobytes()
    numbers = rng.standard_normal(count) * spread
    return (np.abs(numbers) if dtype == "float8_e8m0fnu" else numbers).astype(target).tobytes()


def moved(rng, raw, dtype, share=0.3):
    """*raw* with some elements replaced."""
    size = BY_NAME[dtype].itemsize
    old = np.frombuffer(bytearray(raw), np.uint8).reshape(-1, size)
    new = np.frombuffer(ordinary(rng, dtype, len(old)), np.uint8).reshape(-1, size)
    return np.where(rng.random((len(old), 1)) < share, new, old).tobytes()


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS + COMPLEX + QUANTIZED)
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_ordinary_numbers(dtype, count):
    rng = np.random.default_rng(count)
    raw = ordinary(rng, dtype, count)
    a, b = describe(raw, dtype), describe(moved(rng, raw, dtype), dtype)
    check(a, b, compare(a, b))
    check(a, a, compare(a, describe(raw, dtype)))


@pytest.mark.parametrize("dtype", FLOATS + INTEGERS + COMPLEX + QUANTIZED)
def test_any_bits(dtype):
    """NaN, infinities, subnormals, both zeros, values whose squares leave the type, signalling bits."""
    rng = np.random.default_rng(7)
    size = BY_NAME[dtype].itemsize
    raw = rng.bytes(2000 * size)
    if dtype == "bool":
        raw = bytes(byte & 1 for byte in raw)
    other = np.frombuffer(bytearray(raw), np.uint8).copy()
    other[rng.random(other.size) < 0.1 / size] ^= 1 if dtype == "bool" else 0x81
    a, b = describe(raw, dtype), describe(other.tobytes(), dtype)
    check(a, b, compare(a, b))
    check(a, a, compare(a, describe(raw, dtype)))
    c = describe(rng.bytes(len(raw)) if dtype != "bool" else raw[::-1], dtype)
    check(a, c, compare(a, c))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "complex64", "int64"])
def test_more_than_a_block(dtype, block):
    if block != "whole":
        return
    rng = np.random.default_rng(8)
    count = elements.BLOCK * 3 + 77
    raw = ordinary(rng, dtype, count)
    values = np.frombuffer(bytearray(raw), np.uint8).copy()
    values[rng.integers(0, values.size, 50)] ^= 1
    a, b = describe(raw, dtype, (count // 7, 7)) if not count % 7 else describe(raw, dtype), None
    b = describe(values.tobytes(), dtype, a.shape)
    check(a, b, compare(a, b))
    c = describe(ordinary(rng, dtype, count, 3.0), dtype, a.shape)
    check(a, c, compare(a, c))


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 3e-21, 1e-18, 1e-8, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("change", [1e-7, 1e-3, 1.0])
def test_float32_of_any_size(scale, change):
    rng = np.random.default_rng(9)
    x = (rng.standard_normal(9000) * scale).astype(np.float32)
    y = (x + rng.standard_normal(9000) * scale * change).astype(np.float32)
    a, b = of(x), of(y)
    check(a, b, compare(a, b))
    a, b = of(x), of(y * np.float32(1e3))
    check(a, b, compare(a, b))


@pytest.mark.parametrize("first", [4610, 4800])
def test_the_largest_of_those_that_round_alike(first):
    x, y = np.zeros((2, 5000), np.float32)
    y[[4610, 4800]] = 1
    x[first] = -(2.0**-26)
    found = compare(of(x), of(y))
    assert (found.max_index, found.max_abs) == ((first,), 1 + 2.0**-26)


@pytest.mark.parametrize("value", [1.1, 1 / 3, 1.9999999, 3e9])
def test_errors_of_float32_do_not_add_up(value):
    """Equal elements are rounded alike, time and again."""
    x = np.full(50_003, value, np.float32)
    for y in (x * np.float32(1.0000007), x * np.float32(-7.3), x * np.float32(1e-6)):
        a, b = of(x), of(y)
        check(a, b, compare(a, b), relative=2e-7)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-100, 1e100, 1e200, 1e307])
def test_float64_whose_squares_leave_it(scale):
    rng = np.random.default_rng(10)
    x, y = rng.random((2, 500)) * scale
    a, b = of(x), of(y)
    found = compare(a, b)
    check(a, b, found)
    assert found.cosine == pytest.approx(
        float(x / scale @ (y / scale)) / np.linalg.norm(x / scale) / np.linalg.norm(y / scale), rel=1e-3
    )
    assert 0.5 < found.relative < 1.5


def test_sizes_that_no_float64_has():
    top = np.finfo(np.float64).max
    found = compare(of(np.full(9, top)), of(np.full(9, -top)))
    assert (found.distance, found.norm, found.max_abs, found.cosine, found.relative) == (math.inf,) * 3 + (None, None)


# --- what is no number, and what is not finite


def test_bits_of_nan_count_and_no_total_is_poisoned():
    x = np.ones(200, np.float32)
    x[[3, 70, 150]] = math.nan, math.inf, -math.inf
    y = x.copy()
    assert compare(of(x), of(y)).identical
    found = compare(of(x), of(y))
    assert (found.nans, found.infs, found.norm, found.distance) == (
        (1, 1),
        (2, 2),
        pytest.approx(math.sqrt(197), rel=1e-14),
        0,
    )
    y[3] = 5
    y[150] = math.nan
    y[0] = 3
    found = compare(of(x), of(y))
    assert (found.equal, found.nans, found.infs) == (197, (1, 1), (2, 1))
    assert (found.distance, found.max_abs, found.max_index) == (2, 2, (0,))
    z = x.view(np.uint32).copy()
    z[3] ^= 1  # another NaN
    found = compare(of(x), of(z.view(np.float32)))
    assert (found.identical, found.equal, found.within, found.distance) == (False, 199, False, 0)


@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan, 65504.0, -65504.0])
@pytest.mark.parametrize("rest", [0.0, 0.5, 300.0])
def test_float16_at_its_end(special, rest):
    x = np.full(9000, rest, np.float16)
    y = x.copy()
    y[4567] = special
    for p, q in ((x, y), (y, x), (y, y)):
        a, b = of(p), of(q.copy())
        check(a, b, compare(a, b))
        b = of(q.astype(np.float32))
        check(a, b, compare(a, b))


def test_zeros_of_two_signs_are_two_things_of_one_value():
    found = compare(of(np.zeros(2, np.float32)), of(np.array([0.0, -0.0], np.float32)))
    assert (found.identical, found.equal, found.distance, found.max_ulp, found.sign_flips) == (False, 1, 0, 0, 0)
    assert (found.max_index, found.relative, found.within) == (None, 0, False)
    assert compare(of(np.zeros(2, np.float32)), of(-np.zeros(2, np.float32)), Tolerance()).within


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "complex64"])
def test_tolerances(dtype):
    x = np.linspace(1, 2, 300).astype(dtype)
    y = x.copy()
    y[200] += 0.25
    a, b = of(x), of(y)
    ratio = float(abs(y[200] - x[200]) / abs(x[200]))
    assert not compare(a, b).within and not compare(a, b, Tolerance()).within
    assert compare(a, b, Tolerance(atol=0.2501)).within and not compare(a, b, Tolerance(atol=0.2499)).within
    assert compare(a, b, Tolerance(rtol=ratio * 1.0001)).within
    assert not compare(a, b, Tolerance(rtol=ratio * 0.9999)).within
    assert compare(a, b, Tolerance(rtol=ratio / 2, atol=0.126)).within
    x[100] = y[100] = math.inf
    assert compare(of(x), of(y), Tolerance(atol=1)).within
    y[100] = 7
    assert not compare(of(x), of(y), Tolerance(atol=1)).within
    x[100] = y[100] = math.nan
    assert not compare(of(x), of(y), Tolerance(atol=1)).within
    assert not compare(of(x), of(x), Tolerance(atol=1)).within
    assert compare(of(x), of(x)).within


def test_tolerances_of_64_bit_integers_are_exact():
    x = np.array([2**60, -(2**60)], np.int64)
    assert compare(of(x), of(x + 1), Tolerance(atol=1)).within
    assert not compare(of(x), of(x + 1), Tolerance(atol=0.5)).within


def test_64_bit_integers_are_told_apart():
    x = np.array([2**63 - 1, -(2**63), 2**53], np.int64)
    y = np.array([2**63 - 2, 2**63 - 1, 2**53 + 1], np.int64)
    found = compare(of(x), of(y))
    assert (found.equal, found.max_abs, found.max_index, found.sign_flips) == (0, 2.0**64, (1,), 1)
    found = compare(of(x[2:]), of(y[2:]))
    assert (found.distance, found.max_abs) == (1, 1)
    found = compare(of(np.array([-1, 2**53 + 1])), of(np.array([2**64 - 1, 2**53 + 1], np.uint64)))
    assert (found.equal, found.max_abs) == (1, 2.0**64)


# --- other types beside


PACKED = {
    "quint4x2": [[byte & 15, byte >> 4] for byte in range(256)],
    "quint2x4": [[byte >> shift & 3 for shift in (0, 2, 4, 6)] for byte in range(256)],
}


@pytest.mark.parametrize("dtype", list(PACKED))
@pytest.mark.parametrize("count", [1, 2, 3, 129, 517])
def test_several_in_a_byte(dtype, count):
    rng = np.random.default_rng(11)
    per = len(PACKED[dtype][0])
    x, y = (np.frombuffer(rng.bytes(-(-count // per)), np.uint8).copy() for _ in range(2))
    y[::3] = x[::3]
    p, q = (np.array(PACKED[dtype])[v].reshape(-1)[:count].astype(float) for v in (x, y))
    a, b = describe(x.tobytes(), dtype, (count,)), describe(y.tobytes(), dtype, (count,))
    found = compare(a, b)
    assert (found.numel, found.basis, found.equal) == (count, "stored integer", int((p == q).sum()))
    assert found.distance == pytest.approx(np.linalg.norm(p - q), rel=1e-6)
    assert found.max_abs == abs(p - q).max()
    if found.max_abs:
        assert abs(p - q)[found.max_index[0]] == found.max_abs
    y = x.copy()
    y[-1] ^= 0x80  # of an odd number the last half is filling
    found = compare(a, describe(y.tobytes(), dtype, (count,)))
    assert found.identical == bool(count % per)


def test_two_float4_in_a_byte():
    rng = np.random.default_rng(12)
    x, y = (np.frombuffer(rng.bytes(600), np.uint8) for _ in range(2))
    a, b = (describe(v.tobytes(), "float4_e2m1fn_x2", (20, 30)) for v in (x, y))
    p, q = (np.stack([v & 15, v >> 4], axis=1).reshape(-1).view(ml_dtypes.float4_e2m1fn).astype(float) for v in (x, y))
    found = compare(a, b)
    assert (found.numel, found.equal) == (600, int((x == y).sum()))
    assert found.distance == pytest.approx(np.linalg.norm(p - q), rel=1e-6)
    assert (found.max_abs, found.max_ulp) == (abs(p - q).max(), None)
    assert found.sign_flips == int((p * q < 0).sum())
    at = np.ravel_multi_index(found.max_index, (20, 30))
    assert abs(p - q)[2 * at : 2 * at + 2].max() == found.max_abs
    histogram = change_histogram(a, b)
    assert sum(histogram.counts) + histogram.unchanged == 1200


@pytest.mark.parametrize("dtype", ["bits8", "bits16", "bits1x8"])
def test_bits_are_equal_or_not(dtype):
    raw = bytes(range(200))
    a, b = describe(raw, dtype), describe(raw[:-2] + b"..", dtype)
    found = compare(a, b)
    assert (found.identical, found.basis, found.equal) == (False, None, a.numel - 2 // a.dtype.itemsize)
    assert not found.within and compare(a, describe(raw, dtype)).identical
    assert change_histogram(a, b) is None


@pytest.mark.parametrize(
    "pair", [("bits8", "uint8"), ("qint8", "int8"), ("quint8", "qint8"), ("float4_e2m1fn_x2", "uint8")]
)
def test_what_cannot_be_set_against_each_other(pair):
    a, b = (describe(b"1234", dtype) for dtype in pair)
    assert compare(a, b) is None
    assert change_histogram(a, b) is None


MIXED = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e5m2",
    "float8_e4m3fn",
    "int32",
    "uint8",
    "int64",
    "bool",
    "complex64",
    "complex32",
]


@pytest.mark.parametrize("first", MIXED)
@pytest.mark.parametrize("second", MIXED)
def test_two_types(first, second):
    if first == second:
        return
    rng = np.random.default_rng(13)
    a, b = (describe(ordinary(rng, dtype, 700), dtype) for dtype in (first, second))
    check(a, b, compare(a, b))
    small = rng.integers(0, 2, 700).astype(np.uint8)  # which all types have
    a, b = (as_dtype(small, dtype) for dtype in (first, second))
    found = compare(a, b)
    check(a, b, found)
    assert (found.equal, found.identical) == (700, False)
    if not {"complex64", "complex32"} & {first, second}:
        floats = {dtype for dtype in MIXED if "float" in dtype}
        assert found.cast == (second in floats or first not in floats)
        assert found.cast_back == (first in floats or second not in floats)


def as_dtype(values, dtype):
    kind = BY_NAME[dtype]
    if kind.kind == "complex":
        parts = np.zeros((values.size, 2), numpy_dtype(BY_NAME[PARTS[dtype]]))
        parts[:, 0] = values
        return describe(parts.tobytes(), dtype)
    return describe(values.astype(numpy_dtype(kind)).tobytes(), dtype)


# --- where elements lie


def strided(values, shape, stride, offset=0):
    kind = BY_NAME[values.dtype.name]
    return describe(values.tobytes(), kind.name, shape, stride, offset)


LAYOUTS = {
    "transposed": ((30, 20), (1, 30)),
    "channels last": ((2, 3, 10, 10), (300, 1, 30, 3)),
    "every other": ((10, 15), (40, 2)),
    "expanded": ((5, 40, 3), (0, 1, 40)),
    "expanded, scattered": ((4, 10, 5), (0, 33, 3)),
    "overlapping": ((50, 50), (1, 1)),
    "scalar": ((), ()),
    "one": ((1, 1), (7, 99)),
    "empty": ((3, 0), (1, 1)),
}


@pytest.mark.parametrize("left", list(LAYOUTS))
@pytest.mark.parametrize("right", ["alike", "row-major"])
def test_any_strides(left, right):
    rng = np.random.default_rng(14)
    shape, stride = LAYOUTS[left]
    x, y = rng.standard_normal((2, 2500)).astype(np.float32)
    y[:300:2] = x[:300:2]
    a = strided(x, shape, stride, 5)
    b = (
        strided(y, shape, stride, 5)
        if right == "alike"
        else describe(y[: math.prod(shape)].tobytes(), "float32", shape)
    )
    check(a, b, compare(a, b))
    check(a, a, compare(a, describe(read_bytes(a), "float32", shape)))
    check(a, a, compare(a, strided(x, shape, stride, 5)))
    found = change_histogram(a, b)
    p, q = wide(a), wide(b)
    assert sum(found.counts) == int((p != q).sum()) and found.unchanged == int((p == q).sum())
    assert found.rms == pytest.approx(float(np.sqrt((p * p).mean())) if p.size else 0, rel=1e-6)


def test_bytes_swapped_and_signs_turned():
    x = np.linspace(-3, 5, 300).astype(np.float32)
    swapped = describe(x.astype(">f4").tobytes(), "float32", byteorder="big")
    assert compare(of(x), swapped).identical
    assert compare(of(-x), describe(x.tobytes(), "float32", neg=True)).identical
    z = (x[:150] + 1j * x[150:]).astype(np.complex64)
    assert compare(of(z.conj()), describe(z.tobytes(), "complex64", conj=True)).identical
    found = compare(of(z), describe(z.tobytes(), "complex64", conj=True))
    assert found.distance == pytest.approx(float(np.linalg.norm(z - z.conj())), rel=1e-6)


def test_more_dimensions_than_numpy_has():
    shape, values = (1,) * 70 + (2, 3), np.arange(6, dtype=np.float32)
    a, b = describe(values.tobytes(), "float32", shape), describe((values**2).tobytes(), "float32", shape)
    assert compare(a, b).max_index == (0,) * 70 + (1, 2)


# --- many pairs


def mixed(folder, seed):
    rng = np.random.default_rng(6)
    arrays = {
        "float32": rng.standard_normal(300_000).astype(np.float32),
        "float16": rng.standard_normal(250_001).astype(np.float16),
        "float64": rng.standard_normal(110_000),
        "int64": rng.integers(-9, 9, 70_000),
        "uint8": rng.integers(0, 255, 500_000).astype(np.uint8),
    }
    change = np.random.default_rng(seed)
    folder.mkdir()
    tensors = []
    for dtype, array in arrays.items():
        if seed:
            array[change.integers(0, array.size, 99)] += array.dtype.type(1)
        tensors.append(of(array, path=folder / dtype))
    return tensors


def pairs_of(tmp_path):
    return [(a, b, None) for a, b in zip(mixed(tmp_path / "a", 0), mixed(tmp_path / "b", 1), strict=True)]


def test_threads_and_places_change_nothing(tmp_path, block):
    pairs = pairs_of(tmp_path)
    if block != "whole":
        pairs = pairs[:2]
    told = []
    one = list(compare_all(pairs, threads=1, advance=told.append))
    assert sum(told) == bytes_to_compare(pairs) == 2 * sum(a.nbytes for a, _, _ in pairs)
    assert list(compare_all(pairs, threads=2)) == one
    assert list(compare_all(pairs, threads=5)) == one
    for (a, b, _), found in zip(pairs, one, strict=True):
        check(a, b, found)


def test_identity_alone(tmp_path):
    pairs = pairs_of(tmp_path)
    told = []
    found = list(compare_all(pairs, values=False, advance=told.append))
    assert [(f.identical, f.equal, f.basis, f.within) for f in found] == [(False, None, None, False)] * 5
    assert sum(told) == bytes_to_compare(pairs)
    found = list(compare_all([(a, a, None) for a, _, _ in pairs], values=False))
    assert [(f.identical, f.equal, f.within) for f in found] == [(True, a.numel, True) for a, _, _ in pairs]
    two = describe(b"1234", "float32"), describe(b"1234", "int32"), None
    (found,) = compare_all([two], values=False)
    assert (found.identical, found.equal) == (False, None)


def test_identity_alone_reads_no_further_than_to_the_first_difference(tmp_path, monkeypatch):
    values = np.zeros(5_000_000, np.float32)
    a = of(values, path=tmp_path / "a")
    values[0] = 1
    b = of(values, path=tmp_path / "b")
    monkeypatch.setattr(module, "SPAN", 1 << 16)
    read = []
    blocks = streaming.Span.blocks
    monkeypatch.setattr(streaming.Span, "blocks", lambda span, buffer: (read.append(span), blocks(span, buffer))[1])
    (found,) = compare_all([(a, b, None)], values=False)
    assert not found.identical and len(read) < 30  # of 610


def test_an_error_stands_in_its_pairs_place(tmp_path):
    pairs = pairs_of(tmp_path)[:3]
    os.truncate(tmp_path / "b" / "float16", 300_000)
    meta = TensorInfo("t", BY_NAME["float32"], (2,), (1,), device="meta")
    told = []
    found = list(compare_all([*pairs, (meta, meta, None)], advance=told.append))
    assert [type(f).__name__ for f in found] == ["Comparison", "CorruptFile", "Comparison", "UnsupportedFeature"]
    assert "cut while it was being read" in found[1].problem
    assert sum(told) == bytes_to_compare([*pairs, (meta, meta, None)])
    with pytest.raises(UnsupportedFeature):
        compare(meta, meta)
    with pytest.raises(CorruptFile):
        compare(*pairs[1])
    with pytest.raises(CkptError):
        change_histogram(*pairs[1][:2])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="is not"):
        compare(of(np.zeros(1)), of(np.zeros(8)))
    with pytest.raises(ValueError, match="is not"):
        change_histogram(of(np.zeros(1)), of(np.zeros(8)))


def test_giving_up_early_leaves_no_thread(tmp_path):
    before = threading.active_count()
    found = compare_all(pairs_of(tmp_path))
    next(found)
    found.close()
    del found
    gc.collect()
    assert threading.active_count() == before


# --- histograms


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int64", "complex64", "float8_e5m2"])
def test_histogram(dtype):
    rng = np.random.default_rng(15)
    raw = ordinary(rng, dtype, 900)
    a, b = describe(raw, dtype), describe(moved(rng, raw, dtype), dtype)
    found = change_histogram(a, b)
    apart = np.abs(wide(b) - wide(a)).astype(np.float64)
    assert found.counts == tuple(np.histogram(apart[apart > 0], np.array(found.edges))[0].tolist())
    assert sum(found.counts) == int((apart > 0).sum()) and found.unchanged == int((apart == 0).sum())
    assert found.counts[0] and found.counts[-1] and found.others == 0
    assert all(math.frexp(edge)[0] == 0.5 for edge in found.edges)
    assert found.rms == pytest.approx(float(np.sqrt((np.abs(wide(a)) ** 2).mean())), rel=1e-6)


def test_histogram_of_the_ends():
    top = np.finfo(np.float64).max
    found = change_histogram(of(np.array([0.0, top, 1, math.nan, 1])), of(np.array([5e-324, -top, 1, 1, math.inf])))
    assert (found.edges[0], found.edges[-1], found.counts[0], found.counts[-1]) == (5e-324, math.inf, 1, 1)
    assert (sum(found.counts), found.unchanged, found.others) == (2, 1, 2)
    found = change_histogram(of(np.ones(3)), of(np.ones(3)))
    assert (found.edges, found.counts, found.unchanged, found.rms) == ((), (), 3, 1)


def test_memory_is_bounded(tmp_path, block):
    if block != "whole":
        return
    size = 300_000_000
    for name in "ab":
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
    script = f"""
    from ckpt_tools.analysis.comparison import compare_all
    from ckpt_tools.checkpoint import Storage, TensorInfo
    from ckpt_tools.dtypes import BY_NAME
    from ckpt_tools.sources import FileSource
    kind = BY_NAME["float32"]
    for shape, stride, other in (((75_000_000,), (1,), (1,)), ((5000, 7500), (15_000, 2), (7500, 1))):
        storages = [Storage(FileSource({str(tmp_path)!r} + "/" + n), 0, {size}, kind, "cpu", "0") for n in "ab"]
        tensors = [TensorInfo("t", kind, shape, s, 0, at) for s, at in zip((stride, other), storages, strict=True)]
        (found,) = compare_all([(*tensors, None)])
        # the peak of getrusage begins with that of the process that forked this one
        peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(found.equal, found.identical, int(peak.split()[1]) < 200_000)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=os.getcwd(), check=True
    )
    assert process.stdout.split("\n")[:2] == ["75000000 True True", "37500000 True True"]
