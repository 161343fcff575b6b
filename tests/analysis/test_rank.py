"""Ranks planted in the change of a matrix are found again; noise, rounding and nothing are told from them."""

import math

import numpy as np
import pytest

from ckpt_tools.analysis import rank as module
from ckpt_tools.analysis.rank import MOST, Rank, change_rank
from ckpt_tools.contents import numpy_dtype
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import CorruptFile
from tests.analysis.test_statistics_exact import describe, of

SHAPES = [(320, 320), (700, 200), (200, 700)]


def rounded(values, dtype):
    return values.astype(numpy_dtype(BY_NAME[dtype])).astype(np.float64)


def tensor(values, dtype, shape=None):
    return describe(values.astype(numpy_dtype(BY_NAME[dtype])).tobytes(), dtype, shape or values.shape)


def weights(rng, shape):
    return rng.standard_normal(shape) * 0.02


def planted(rng, shape, rank, size, spread=0.1):
    """A matrix of *rank* with elements of about *size*, the least of whose singular values is *spread* the largest."""
    left, right = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
    product = (left * np.geomspace(1, spread, rank)) @ right
    return product * (size / product.std())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 16, 64])
@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 2e-5), ("float32", 2e-2), ("float16", 1e-3), ("bfloat16", 3e-3)]
)
def test_planted_ranks(shape, rank, dtype, size):
    rng = np.random.default_rng(rank)
    before = rounded(weights(rng, shape), dtype)
    found = change_rank(tensor(before, dtype), tensor(before + planted(rng, shape, rank, size), dtype))
    assert (found.rows, found.columns, found.rank) == (*shape, rank)
    assert 0.98 < found.energy <= 1
    assert found.lora == (f"consistent with LoRA r≈{rank}" if 4 * rank <= min(shape) else "")


@pytest.mark.parametrize("rank", [MOST, MOST + 1])
def test_the_highest_rank_told(rank):
    rng = np.random.default_rng(1)
    before = weights(rng, (400, 400))
    found = change_rank(
        tensor(before, "float32"), tensor(before + planted(rng, (400, 400), rank, 1e-3, 0.5), "float32")
    )
    assert found.rank == (rank if rank == MOST else None)


@pytest.mark.parametrize("shape", [*SHAPES, (64, 64), (10, 300)])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_change_of_everything_is_full(shape, dtype):
    rng = np.random.default_rng(2)
    before, change = rounded(weights(rng, shape), dtype), weights(rng, shape) * 0.1
    found = change_rank(tensor(before, dtype), tensor(before + change, dtype))
    assert (found.rank, found.lora) == (None, "")
    values = np.linalg.svd(rounded(before + change, dtype) - before, compute_uv=False) ** 2
    share = values[: min(MOST, len(values))].sum() / values.sum()
    assert found.energy == pytest.approx(share, rel=0.15)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("widened", [True, False])
def test_rounding_has_no_rank(shape, dtype, widened):
    """A cast, and one that was saved as float32 again."""
    before = weights(np.random.default_rng(3), shape)
    after = tensor(rounded(before, dtype), "float32") if widened and "8" not in dtype else tensor(before, dtype)
    found = change_rank(tensor(before, "float32"), after)
    assert (found.rank, found.energy, found.lora) == (0, 0, "no more than rounding")
    found = change_rank(after, tensor(before, "float32"))
    assert found.rank == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rank_shows_through_a_cast(shape):
    rng = np.random.default_rng(4)
    before = weights(rng, shape)
    after = before + planted(rng, shape, 8, 4e-3)
    assert change_rank(tensor(before, "float32"), tensor(after, "bfloat16")).rank == 8
    halves = (tensor(rounded(values, "bfloat16"), "float32") for values in (before, after))
    assert change_rank(*halves).rank == 8


def test_a_change_that_was_rounded_before_it_was_added():
    rng = np.random.default_rng(5)
    before = weights(rng, (300, 300))
    after = before + rounded(planted(rng, (300, 300), 16, 1e-3), "bfloat16")
    assert change_rank(tensor(before, "float32"), tensor(after, "float32")).rank == 16


def test_from_zero():
    rng = np.random.default_rng(6)
    after = planted(rng, (300, 200), 8, 1e-3)
    for dtype in ("float32", "bfloat16"):
        assert change_rank(of(np.zeros((300, 200), np.float32)), tensor(after, dtype)).rank == 8


def test_nothing_changed():
    before = tensor(weights(np.random.default_rng(7), (300, 200)), "float32")
    assert change_rank(before, before) == Rank(300, 200, 0, 0.0)


@pytest.mark.parametrize("shape", [(200, 30, 3, 3), (40, 10, 5, 4), (20, 9, 60)])
def test_kernels_are_out_times_rest(shape):
    rng = np.random.default_rng(8)
    flat = shape[0], math.prod(shape[1:])
    before = weights(rng, flat)
    after = before + planted(rng, flat, 4, 1e-3)
    found = change_rank(tensor(before, "float32", shape), tensor(after, "float32", shape))
    assert (found.rows, found.columns, found.rank) == (*flat, 4)


def test_strides_do_not_matter():
    rng = np.random.default_rng(9)
    before = weights(rng, (250, 180))
    after = before + planted(rng, (250, 180), 4, 1e-3)
    a, b = (describe(v.T.astype(np.float32).tobytes(), "float32", v.shape, (1, 250)) for v in (before, after))
    assert change_rank(a, b).rank == 4
    assert change_rank(tensor(before, "float32"), b).rank == 4


def test_what_is_not_finite_counts_as_unchanged():
    rng = np.random.default_rng(10)
    before = weights(rng, (250, 180)).astype(np.float32)
    after = before.copy()
    after[0, :9] = math.nan
    before[1, :9] = math.inf
    after[2:4] += 1
    assert change_rank(of(before), of(after)).rank == 1


def test_blocks_of_any_height(monkeypatch):
    rng = np.random.default_rng(11)
    before = weights(rng, (333, 201))
    pair = tensor(before, "float32"), tensor(before + planted(rng, (333, 201), 5, 1e-3), "float32")
    whole = change_rank(*pair)
    monkeypatch.setattr(module, "_BLOCK", 201 * 7 + 5)
    monkeypatch.setattr(module, "_CHUNK", 50)
    cut = change_rank(*pair)
    assert (cut.rank, whole.rank) == (5, 5)
    assert cut.energy == pytest.approx(whole.energy, rel=1e-5)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", ()),
        ("float32", (12,)),
        ("float32", (1, 12)),
        ("float32", (12, 1)),
        ("float32", (0, 12)),
        ("float32", (2, module.MOST_COLUMNS + 1)),
        ("int32", (4, 4)),
        ("complex64", (4, 4)),
        ("qint8", (4, 4)),
        ("float4_e2m1fn_x2", (4, 4)),
        ("bits8", (4, 4)),
    ],
)
def test_what_is_no_matrix_of_floats(dtype, shape):
    a = describe(bytes(math.prod(shape) * BY_NAME[dtype].itemsize), dtype, shape)
    assert change_rank(a, a) is None


def test_errors(tmp_path):
    values = np.ones((300, 300), np.float32)
    a, b = of(values), of(values + 1, path=tmp_path / "b")
    with pytest.raises(ValueError, match="is not"):
        change_rank(a, of(values[:20]))
    (tmp_path / "b").write_bytes(b"short")
    with pytest.raises(CorruptFile):
        change_rank(a, b)
