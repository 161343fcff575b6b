"""Statistics against exact arithmetic: all bit patterns, any strides, the limits of float64, blocks cut anywhere."""

import gc
import math
import os
import subprocess
import sys
import textwrap
import threading
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.analysis import statistics as module
from ckpt_tools.analysis import streaming
from ckpt_tools.analysis.statistics import BINS, NoStatistics, bytes_to_read, statistics, statistics_of
from ckpt_tools.analysis.streaming import in_storage_order
from ckpt_tools.checkpoint import Storage, TensorInfo
from ckpt_tools.contents import numpy_dtype, to_numpy
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import CorruptFile
from ckpt_tools.sources import FileSource, MemorySource

WIDE_FLOATS = ["float64", "float32", "float16", "bfloat16"]
BYTE_FLOATS = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "int4", "uint4"]
QUANTIZED = ["qint8", "quint8", "qint32"]
MANTISSA = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}


def describe(raw, dtype, shape=None, stride=None, offset=0, *, byteorder="little", path=None, **details):
    """A tensor of *raw* bytes, in memory or in the file at *path*."""
    kind = BY_NAME[dtype]
    if shape is None:
        shape = (len(raw) // kind.itemsize,)
    if stride is None:
        stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    if path is None:
        source = MemorySource(raw, "m")
    else:
        path.write_bytes(raw)
        source = FileSource(path)
    storage = Storage(source, 0, len(raw), kind, "cpu", "0", byteorder)
    return TensorInfo("t", kind, shape, stride, offset, storage, details=details)


def of(array, dtype=None, **where):
    return describe(array.tobytes(), dtype or array.dtype.name, array.shape, **where)


def values(tensor):
    """The numbers as Python has them: exact integers, floats."""
    array = to_numpy(tensor).reshape(-1)
    with np.errstate(invalid="ignore"):  # signalling NaN
        return (array if array.dtype.kind in "iub" else array.astype(np.float64)).tolist()


def tolerance(dtype):
    """float16 and bfloat16 are summed in float32 where their numbers allow."""
    return Fraction(2, 10**7) if dtype in ("float16", "bfloat16") else Fraction(1, 10**12)


def check(found, numbers, smallest=0.0, tolerance=Fraction(1, 10**12)):
    """*found* against fractions; *numbers* are Python's, *smallest* the least normal one of the type."""
    finite = [x for x in numbers if math.isfinite(x)]
    assert (found.count, found.finite) == (len(numbers), len(finite))
    assert found.nan == sum(x != x for x in numbers)
    assert (found.positive_infinity, found.negative_infinity) == (numbers.count(math.inf), numbers.count(-math.inf))
    assert found.zeros == sum(x == 0 for x in numbers)
    assert found.subnormal == sum(0 < abs(x) < smallest for x in numbers)
    assert found.constant == (len(numbers) > 0 and all(x == numbers[0] for x in numbers))
    if not finite:
        assert (found.minimum, found.maximum, found.mean, found.std, found.l2) == (None, None, None, None, 0)
        assert found.histogram == ()
        return
    assert (found.minimum, found.maximum) == (min(finite), max(finite))
    exact = [Fraction(x) for x in finite]
    n, mean = len(exact), sum(exact) / len(exact)
    spread = sum((x - mean) ** 2 for x in exact)
    rms = root(sum(x * x for x in exact) / n)
    assert close(found.mean, mean, tolerance * rms)
    assert close(found.l2, root(sum(x * x for x in exact)), tolerance * rms * n)
    if n > 1:
        # a mean that is large against the deviation costs at most its own rounding
        std = root(spread / (n - 1))
        assert close(found.std, std, tolerance * std + Fraction(5e-16) * Fraction(abs(mean)) / 1000)
    else:
        assert found.std is None
    assert sum(found.histogram) == n and found.histogram[0 if n > 1 and min(finite) < max(finite) else BINS // 2] > 0


def root(square):
    """The square root of a fraction to 100 bits."""
    scale = 1 << 2400
    return Fraction(math.isqrt(square.numerator * scale * scale // square.denominator), scale)


def close(value, exact, tolerance):
    limit = Fraction(sys.float_info.max)
    if abs(exact) > limit * (1 - Fraction(1, 1 << 40)):  # so near the end that rounding decides
        return abs(value) > sys.float_info.max * (1 - 1e-12)
    return abs(Fraction(value) - exact) <= tolerance + Fraction(1, 1 << 1073)


def smallest(dtype):
    if dtype in WIDE_FLOATS:
        return {"float64": 2.0**-1022, "float16": 2.0**-14}.get(dtype, 2.0**-126)
    return {
        "float8_e4m3fn": 2.0**-6, "float8_e5m2": 2.0**-14, "float8_e4m3fnuz": 2.0**-7, "float8_e5m2fnuz": 2.0**-15,
    }.get(dtype, 0.0)  # fmt: skip


@pytest.fixture(params=[5, module.BLOCK], ids=["small blocks", "whole"])
def block(request, monkeypatch):
    """Blocks of five elements and spans of four blocks, or such as they are."""
    if request.param == 5:
        monkeypatch.setattr(module, "BLOCK", 6)
        monkeypatch.setattr(streaming, "SPAN", 48)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int16", "uint16"])
def test_every_pattern_of_sixteen_bits(dtype):
    tensor = of(np.arange(1 << 16, dtype=np.uint16), dtype)
    check(statistics(tensor), values(tensor), smallest(dtype), tolerance(dtype))


@pytest.mark.parametrize("dtype", [*BYTE_FLOATS, *INTEGERS[:1], "uint8", "int4", "uint4", "qint8", "quint8"])
def test_every_pattern_of_eight_bits(dtype):
    tensor = of(np.arange(1 << 8, dtype=np.uint8), dtype)
    found = statistics(tensor)
    check(found, values(tensor), smallest(dtype))
    assert not found.sampled
    assert found.basis == ("stored integer" if "q" in dtype else "value")
    assert type(found.minimum) is (int if "int" in dtype else float)


def test_every_byte_of_float4():
    # OCP Microscaling Formats: E2M1 has these eight magnitudes, of which 0.5 is subnormal; two in a byte
    half = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    nibbles = half + [-x for x in half]
    check(
        statistics(of(np.arange(256, dtype=np.uint8), "float4_e2m1fn_x2")),
        [nibbles[x >> shift & 15] for x in range(256) for shift in (0, 4)],
        1.0,
    )


@pytest.mark.parametrize(("dtype", "bits"), [("quint4x2", 4), ("quint2x4", 2)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8])
def test_what_the_last_byte_has_left_over_does_not_count(dtype, bits, count):
    raw = bytes([0b11100100, 0b10110001, 0b01111010, 0xFF])[: -(-count * bits // 8)]
    numbers = [byte >> shift & (1 << bits) - 1 for byte in raw for shift in range(0, 8, bits)][:count]
    check(statistics(describe(raw, dtype, (count,), (1,))), numbers)


def test_bool_is_what_is_not_zero():
    found = statistics(describe(bytes([0, 1, 2, 255]), "bool"))
    check(found, [0, 1, 1, 1])
    assert (found.minimum, found.maximum) == (0, 1)


@pytest.mark.parametrize("dtype", [*WIDE_FLOATS, *INTEGERS, "qint32", *BYTE_FLOATS])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 7, 100, 1001])
def test_random_bits(block, dtype, count):
    raw = np.random.default_rng(count).bytes(count * BY_NAME[dtype].itemsize)
    tensor = describe(raw, dtype)
    check(statistics(tensor), values(tensor), smallest(dtype), tolerance(dtype))


SPECIAL = [0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 0.1, 1e-3, 3e4]


@pytest.mark.parametrize("block", [5], indirect=True, ids=["small blocks"])
@pytest.mark.parametrize("dtype", WIDE_FLOATS)
def test_specials_mixed(block, dtype):
    limits = {
        "float64": [sys.float_info.max, -sys.float_info.max, 5e-324, -5e-324, 2.0**-1022, 1e200, 1e-200],
        "float32": [3.4028234663852886e38, -3.4028234663852886e38, 1e-45, -1e-45, 2.0**-126],
        "float16": [65504.0, -65504.0, 2.0**-24, -(2.0**-24), 2.0**-14],
        "bfloat16": [3.3895313892515355e38, -3.3895313892515355e38, 2.0**-133, 2.0**-126],
    }[dtype]

    @given(st.lists(st.sampled_from(SPECIAL + limits) | st.sampled_from(limits), max_size=40))
    def run(numbers):
        array = np.array(numbers).astype(numpy_dtype(BY_NAME[dtype]))
        tensor = of(array, dtype)
        check(statistics(tensor), values(tensor), smallest(dtype))

    run()


@pytest.mark.parametrize("block", [5], indirect=True, ids=["small blocks"])
def test_any_float64(block):
    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
    def run(numbers):
        check(statistics(of(np.array(numbers))), numbers, 2.0**-1022)

    run()


@pytest.mark.parametrize("block", [5], indirect=True, ids=["small blocks"])
@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_any_integer(block, dtype):
    info = np.iinfo(dtype)
    near = st.integers(-20, 20).map(lambda step: min(max((info.max + info.min) // 2 + (1 << 61) + step, 0), info.max))

    @given(st.lists(st.integers(int(info.min), int(info.max)), min_size=1, max_size=30) | st.lists(near, min_size=1))
    def run(numbers):
        check(statistics(of(np.array(numbers, dtype))), numbers)

    run()


@pytest.mark.parametrize("block", [5], indirect=True, ids=["small blocks"])
def test_any_shape_and_stride(block):
    data = np.random.default_rng(0).integers(-50, 50, 3000).astype(np.float32)
    data[::37] = math.nan
    axis = st.tuples(st.integers(0, 4), st.integers(0, 9))

    @given(st.lists(axis, max_size=5), st.integers(0, 40))
    def run(axes, offset):
        shape, stride = tuple(a[0] for a in axes), tuple(a[1] for a in axes)
        tensor = describe(data.tobytes(), "float32", shape, stride, offset)
        view = np.lib.stride_tricks.as_strided(data[offset:], shape, [4 * s for s in stride])
        check(statistics(tensor), view.reshape(-1).tolist())

    run()


@given(st.permutations(range(4)), st.lists(st.integers(1, 4), min_size=4, max_size=4))
def test_a_transposed_tensor_is_read_as_it_lies(order, sizes):
    stride = [math.prod(sizes[i + 1 :]) for i in range(4)]
    raw = bytes(4 * math.prod(sizes))
    tensor = describe(raw, "float32", tuple(sizes[i] for i in order), tuple(stride[i] for i in order))
    flat, repeats = in_storage_order(tensor)
    assert (flat.shape, flat.stride, repeats) == ((math.prod(sizes),), (1,), 1)


def test_what_is_repeated_is_read_once():
    tensor = describe(np.array([1.0, 2.0, 4.0], np.float32).tobytes(), "float32", (3, 1 << 40), (1, 0))
    found, n = statistics(tensor), 3 << 40
    assert bytes_to_read([tensor]) == 12
    assert (found.count, found.minimum, found.maximum, sum(found.histogram)) == (n, 1.0, 4.0, n)
    assert found.mean == pytest.approx(7 / 3, rel=1e-15)
    assert found.std == pytest.approx(math.sqrt(14 / 9), rel=1e-12)
    assert found.l2 == pytest.approx(math.sqrt(21 * (1 << 40)), rel=1e-15)


def test_a_short_storage_that_windows_make_endless_is_refused():
    tensor = describe(bytes(4096), "float32", (500, 500, 500, 500), (1, 1, 1, 1))
    found = statistics(tensor)
    assert isinstance(found, NoStatistics) and "repeats 4,096 bytes to 250,000,000,000" in found.reason


@pytest.mark.parametrize("dtype", ["complex128", "complex64", "complex32", "bcomplex32"])
def test_complex_numbers_count_by_magnitude(block, dtype):
    parts = np.random.default_rng(1).standard_normal(2000)
    parts[:12] = [0, -0.0, 1, math.nan, math.inf, 0, -math.inf, math.nan, 3, 4, 1e-6, 0]
    part = {"complex128": "float64", "complex64": "float32", "complex32": "float16", "bcomplex32": "bfloat16"}[dtype]
    parts = parts.astype(numpy_dtype(BY_NAME[part]))
    found = statistics(describe(parts.tobytes(), dtype))
    wide = parts.astype(np.float64)
    assert found.basis == "magnitude"
    check(found, np.hypot(wide[::2], wide[1::2]).tolist(), smallest(part))


def test_conj_neg_and_byte_order():
    numbers = np.array([1.5, -2.0, math.inf, 0.25, 7.0])
    check(statistics(describe(numbers.astype(">f4").tobytes(), "float32", byteorder="big")), numbers.tolist())
    check(statistics(describe(numbers.astype("<f4").tobytes(), "float32", neg=True)), (-numbers).tolist())
    pairs = np.array([3 + 4j, 5 - 12j])
    check(statistics(describe(pairs.tobytes(), "complex128", conj=True)), [5.0, 13.0])


@pytest.mark.parametrize(
    ("offset", "spread"), [(1e8, 1.0), (1e8, 1e-6), (-1e15, 3.0), (1e300, 1e290), (1e-300, 1e-310)]
)
def test_a_large_offset(offset, spread):
    numbers = offset + spread * np.random.default_rng(2).standard_normal(400_000)
    found = statistics(of(numbers))
    reference = numbers.astype(np.longdouble)
    rest = reference - np.longdouble(offset)
    scale = np.longdouble(spread)
    assert float((np.longdouble(found.mean) - reference.mean()) / scale) == pytest.approx(
        0, abs=2e-16 * abs(offset) / spread
    )
    assert found.std / float((rest / scale).std(ddof=1) * scale) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_large_offset_of_narrow_types(dtype):
    kind = numpy_dtype(BY_NAME[dtype])
    array = (1e8 + 1e6 * np.random.default_rng(3).standard_normal(300_000)).astype(kind)
    wide = array.astype(np.longdouble)
    found = statistics(of(array, dtype))
    assert found.mean == pytest.approx(float(wide.mean()), rel=1e-14)
    assert found.std == pytest.approx(float(wide.std(ddof=1)), rel=1e-9)
    assert found.l2 == pytest.approx(float(np.sqrt((wide * wide).sum())), rel=1e-12)


def test_every_finite_float16_is_widened_exactly():
    words = np.arange(1 << 16, dtype=np.uint16)
    words = words[words & 0x7C00 != 0x7C00]
    found = module._READINGS["float16"].numbers(words, np.empty(words.size, np.float32))
    assert found.dtype == np.float32
    assert found.tobytes() == words.view(np.float16).astype(np.float32).tobytes()  # negative zero too


def against_float64(array, within):
    """The moments of *array* against its own in float64; *within* is relative to the deviation or the norm."""
    wide = array.astype(np.longdouble)
    found = statistics(of(array))
    std = float(wide.std(ddof=1))
    assert found.mean == pytest.approx(float(wide.mean()), rel=1e-14, abs=within * std)
    assert found.std == pytest.approx(std, rel=within)
    assert found.l2 == pytest.approx(float(np.sqrt((wide * wide).sum())), rel=within)


def random_numbers(like, size, seed):
    rng = np.random.default_rng(seed)
    return {
        "normal": rng.standard_normal,
        "two values": lambda n: rng.choice([-0.3, 0.3], n),
        "sparse": lambda n: np.where(rng.random(n) < 0.01, 0.7, 0.0),
        "one sign": lambda n: rng.exponential(1.0, n) ** 2,
        "heavy tails": lambda n: np.clip(rng.standard_cauchy(n), -2e4, 2e4),
        "sorted": lambda n: np.sort(rng.standard_normal(n)),
    }[like](size)


LIKE = ["normal", "two values", "sparse", "one sign", "heavy tails", "sorted"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("like", LIKE)
def test_narrow_types_are_summed_in_float32_closely_enough(dtype, like):
    array = random_numbers(like, module.BLOCK + 100_003, 7)
    against_float64(array.astype(numpy_dtype(BY_NAME[dtype])), 2e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types_of_any_size_and_scale(dtype):
    @given(st.sampled_from(LIKE), st.integers(2, 2000), st.integers(0, 1 << 32), st.floats(-2, 1))
    def run(like, size, seed, exponent):
        array = (random_numbers(like, size, seed) * 10**exponent).astype(numpy_dtype(BY_NAME[dtype]))
        array[-1] += 1  # not all equal
        against_float64(array, 2e-7)

    run()


@pytest.mark.parametrize(
    ("dtype", "offset", "scale"),
    [("float16", 4, 1), ("bfloat16", -4, 1), ("bfloat16", 0, 1e25), ("bfloat16", 0, 1e-25), ("bfloat16", 0, 1e37)],
)
def test_narrow_types_are_summed_in_float64_where_float32_is_not_enough(dtype, offset, scale):
    array = (offset + np.random.default_rng(8).standard_normal(300_000)) * scale
    against_float64(array.astype(numpy_dtype(BY_NAME[dtype])), 1e-12)


def test_large_integers_with_a_small_deviation():
    steps = np.random.default_rng(4).integers(-3, 4, 300_000)
    found = statistics(of((1 << 62) + steps))
    assert (found.minimum, found.maximum) == ((1 << 62) - 3, (1 << 62) + 3)
    assert found.std == pytest.approx(steps.std(ddof=1), rel=1e-12)
    counts = [found.histogram[i] for i in (0, 4, 8, 12, 16, 20, 23)]
    if not found.sampled:
        assert counts == np.bincount(steps + 3).tolist()
    assert sum(counts) == sum(found.histogram)


def test_float32_at_its_limit_does_not_overflow():
    found = statistics(of(np.array([3.4e38, -3.4e38] * 5000, np.float32)))
    assert found.l2 == pytest.approx(3.4e38 * 100, rel=1e-7)
    assert found.std == pytest.approx(3.4e38, rel=1e-4)


def test_float64_at_its_limit():
    top = sys.float_info.max
    found = statistics(of(np.full(1000, top)))
    assert (found.mean, found.std, found.constant) == (top, 0.0, True)
    assert math.isinf(found.l2)  # which no float64 can hold
    found = statistics(of(np.array([top, -top] * 500)))
    assert found.mean == 0
    assert found.std == math.inf  # sqrt(1000 / 999) times the greatest number
    found = statistics(of(np.array([top, -top, 0.0, 0.0])))
    assert (found.mean, found.std / top) == (0, pytest.approx(math.sqrt(2 / 3), rel=1e-15))


# --- histograms


def test_a_histogram_of_few_is_of_all():
    numbers = np.random.default_rng(5).standard_normal(50_000)
    found = statistics(of(numbers))
    assert not found.sampled
    assert list(found.histogram) == np.histogram(numbers, BINS)[0].tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
def test_a_histogram_of_many_is_of_a_fair_sample(dtype):
    columns = np.linspace(-900, 900, 1024)  # every column has values of its own
    array = np.tile(columns, (700, 1)).astype(numpy_dtype(BY_NAME[dtype]))
    found = statistics(of(array, dtype))
    assert found.sampled and module.SAMPLE // 2 < sum(found.histogram) <= module.SAMPLE + 2
    shares = np.array(found.histogram) / sum(found.histogram)
    exact = np.histogram(array.astype(np.float64), BINS)[0] / array.size
    assert abs(shares - exact).max() < 0.002


def test_a_sample_shows_both_ends():
    array = np.zeros(1_000_000, np.float32)
    array[123_456], array[7] = 9.0, -9.0
    found = statistics(of(array))
    assert found.histogram[0] >= 1 and found.histogram[-1] >= 1


def test_a_byte_type_of_any_size_counts_all():
    found = statistics(of(np.tile(np.arange(256, dtype=np.uint8), 4000), "uint8"))
    assert not found.sampled
    assert list(found.histogram) == [4000 * n for n in np.histogram(np.arange(256), BINS)[0]]


# --- reading


def mixed(tmp_path):
    rng = np.random.default_rng(6)
    arrays = {
        "float32": rng.standard_normal(3_000_000).astype(np.float32),
        "float16": rng.standard_normal(2_500_001).astype(np.float16),
        "float64": rng.standard_normal(1_100_000),
        "int64": rng.integers(-9, 9, 700_000),
        "uint8": rng.integers(0, 255, 5_000_000).astype(np.uint8),
    }
    arrays["float32"][::99_991] = math.nan
    return [of(array, path=tmp_path / dtype) for dtype, array in arrays.items()]


def test_threads_and_place_change_nothing(tmp_path):
    tensors = mixed(tmp_path)
    one = list(statistics_of(tensors, threads=1))
    assert list(statistics_of(tensors, threads=2)) == one
    assert list(statistics_of(tensors, threads=5)) == one
    for found, tensor in zip(one, tensors, strict=True):
        array = to_numpy(tensor).astype(np.longdouble)
        finite = array[np.isfinite(array)]
        assert found.finite == finite.size
        within, std = float(tolerance(tensor.dtype.name)), float(finite.std(ddof=1))
        assert found.mean == pytest.approx(float(finite.mean()), rel=1e-12, abs=max(within * std, 1e-15))
        assert found.std == pytest.approx(std, rel=within)


def test_names_of_the_same_elements_are_read_once(tmp_path):
    raw = np.arange(12, dtype=np.float32).tobytes()
    a = describe(raw, "float32", (3, 4), (4, 1), path=tmp_path / "m")
    transposed = TensorInfo("b", a.dtype, (4, 3), (1, 4), 0, a.storage)
    part = TensorInfo("c", a.dtype, (4,), (1,), 0, a.storage)
    told = []
    found = list(statistics_of([a, part, transposed, a], progress=told.append))
    assert found[0] is found[2] is found[3]
    assert found[1].count == 4
    assert sum(told) == bytes_to_read([a, part, transposed, a]) == 48 + 16


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (TensorInfo("t", BY_NAME["float32"], (2,), (1,), device="meta"), "meta"),
        (TensorInfo("t", BY_NAME["float32"], (2, 2), layout="sparse_coo"), "sparse_coo"),
        (describe(b"1234", "bits8"), "bits8"),
        (TensorInfo("t", BY_NAME["float32"]._replace(name="Q4_K", kind="quantized", numpy=None), (32,), (1,)), "Q4_K"),
        (
            TensorInfo(
                "t",
                BY_NAME["float32"],
                (2,),
                (1,),
                0,
                Storage(MemorySource(b"", "m"), 0, 8, None, "cpu", "0", missing="no member data/0"),
            ),
            "no member data/0",
        ),
        (describe(b"1234", "quint4x2", (2, 2), (1, 3)), "packs several"),
    ],
)
def test_no_numbers_for_a_reason(tensor, reason):
    one = of(np.ones(3))
    first, found, last = statistics_of([one, tensor, one])
    assert isinstance(found, NoStatistics) and reason in found.reason
    assert first == last and first.count == 3


def test_a_file_cut_while_it_is_read(tmp_path):
    tensors = mixed(tmp_path)
    os.truncate(tmp_path / "float16", 3_000_000)
    with pytest.raises(CorruptFile, match="cut while it was being read"):
        list(statistics_of(tensors))


def test_giving_up_early_leaves_no_thread(tmp_path):
    before = threading.active_count()
    found = statistics_of(mixed(tmp_path))
    next(found)
    found.close()
    del found
    gc.collect()
    assert threading.active_count() == before


def test_memory_is_bounded(tmp_path):
    size = 300_000_000
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(size)
    script = f"""
    from ckpt_tools.analysis.statistics import statistics
    from ckpt_tools.checkpoint import Storage, TensorInfo
    from ckpt_tools.dtypes import BY_NAME
    from ckpt_tools.sources import FileSource
    kind = BY_NAME["float32"]
    for shape, stride in (((75_000_000,), (1,)), ((5000, 7500), (15_000, 2))):
        storage = Storage(FileSource({str(tmp_path / "sparse")!r}), 0, {size}, kind, "cpu", "0")
        found = statistics(TensorInfo("t", kind, shape, stride, 0, storage))
        # the peak of getrusage begins with that of the process that forked this one
        peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(found.zeros, found.constant, int(peak.split()[1]) < 150_000)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=os.getcwd(), check=True
    )
    assert process.stdout.split("\n")[:2] == ["75000000 True True", "37500000 True True"]
