"""Values compared, held against torch in float64."""

import math

import pytest

from ckpt_tools import open_checkpoint
from ckpt_tools.analysis.comparison import Tolerance, compare, compare_all

torch = pytest.importorskip("torch")


@pytest.fixture
def pair(tmp_path):
    def pair(a, b):
        torch.save({"w": a, "v": b}, tmp_path / "m.pt")
        state_dict = open_checkpoint(tmp_path / "m.pt").model_state_dict()
        return state_dict["w"], state_dict["v"]

    return pair


@pytest.mark.parametrize(
    "name", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "int64", "uint8"]
)
@pytest.mark.parametrize("shape", [(), (0, 3), (7, 5), (300, 1000)])
def test_against_torch(pair, name, shape):
    torch.manual_seed(1)
    dtype = getattr(torch, name)
    scale = 1 if dtype.is_floating_point or dtype.is_complex else 50
    a, b = ((torch.randn(shape, dtype=torch.float64).abs() * scale + k).to(dtype) for k in (0, 1))
    found = compare(*pair(a.T if len(shape) > 1 else a, b.T if len(shape) > 1 else b))
    wide = torch.complex128 if dtype.is_complex else torch.float64
    p, q = a.to(wide), b.to(wide)
    assert found.identical == (a.numel() == 0)
    if a.numel():
        assert found.distance == pytest.approx((q - p).norm().item(), rel=1e-6)
        assert found.norm == pytest.approx(p.norm().item(), rel=1e-6)
        assert found.max_abs == pytest.approx((q - p).abs().max().item(), rel=1e-12)
        changes = (q - p).abs().T if len(shape) > 1 else (q - p).abs()
        assert changes[found.max_index].item() == pytest.approx(found.max_abs, rel=1e-15)
        assert found.equal == int((p == q).sum())


def test_nan_is_the_same_only_by_its_bits(pair):
    nan = torch.tensor([float("nan"), 1.0])
    assert compare(*pair(nan, nan.clone())).identical
    found = compare(*pair(nan, torch.tensor([2.0, 1.5])))
    assert (found.identical, found.equal, found.nans, found.distance, found.within) == (False, 0, (1, 0), 0.5, False)
    assert not compare(*pair(nan, nan.clone()), Tolerance(atol=9.0)).within


def test_small_numbers_signs_steps_and_counters(pair):
    found = compare(*pair(torch.tensor([1e-9, 1.0]), torch.tensor([9e-9, -1.0])))
    assert (found.equal, found.sign_flips, found.max_index) == (0, 1, (1,))
    step = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert compare(*pair(torch.tensor(1.0), step)).max_ulp == 1
    assert compare(*pair(torch.tensor(0.0), torch.tensor(3.0))).relative is None
    assert compare(*pair(torch.tensor(2**53), torch.tensor(2**53 + 1))).distance == 1.0
    assert compare(*pair(torch.tensor(1.0), torch.tensor(1.5)), Tolerance(rtol=0.5)).within


def test_a_cast_is_recognised(pair):
    a = torch.randn(9)
    assert compare(*pair(a, a.half())).cast
    assert compare(*pair(a.bfloat16(), a.bfloat16().float())).cast
    assert not compare(*pair(a, a.half() + 1)).cast


def test_pairs_keep_their_order_and_shapes_must_agree(pair):
    a, b = pair(torch.zeros(1), torch.ones(1))
    assert [found.identical for found in compare_all([(a, a, None), (a, b, None)])] == [True, False]
    with pytest.raises(ValueError):
        compare(*pair(torch.zeros(1), torch.zeros(8)))


FLOATS = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
]
INTEGERS = ["int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool"]
COMPLEX = ["complex128", "complex64", "complex32"]
CASTS = [
    (first, second)
    for first in FLOATS + INTEGERS + COMPLEX
    for second in FLOATS + INTEGERS + COMPLEX
    if first != second and (first in COMPLEX) == (second in COMPLEX) and not (first in FLOATS and second in INTEGERS)
]
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 448, 449, 464, 465, 480, -500, 57344, 61440, 65504, 65519, 65520]
SPECIAL += [240, 248, 250, 1e-8, 1e-46, 3.4e38, 1e300, -1e9]


def bits(tensor):
    return tensor.reshape(-1, 1).contiguous().view(torch.uint8)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize(("first", "second"), CASTS)
def test_torchs_casts_are_recognised(pair, first, second):
    torch.manual_seed(2)
    wild = torch.randn(3000, dtype=torch.float64) * torch.exp(6 * torch.randn(3000, dtype=torch.float64))
    values = torch.cat([torch.randn(3000, dtype=torch.float64), wild, torch.tensor(SPECIAL, dtype=torch.float64)])
    if first in INTEGERS:
        values = (values * 40).nan_to_num(0).clamp(0 if first[0] in "ub" else -100, 100)
    if first in COMPLEX:
        values = torch.complex(values, values.flip(0))
    a = values.to(getattr(torch, first))
    there, back = a.to(getattr(torch, second)), a.to(getattr(torch, second)).to(a.dtype)
    found = compare(*pair(a, there))
    assert found.cast
    same = (bits(back) == bits(a)).all(1) | (a != a)
    assert found.cast_back == (bool(same.all()) and not (first in INTEGERS and second in FLOATS))
    changed = there.clone()
    bits(changed)[17, 0] ^= 1
    assert not compare(*pair(a, changed)).cast


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_torch_rounds_float64_twice(pair, dtype):
    a = torch.tensor([1 + torch.finfo(dtype).eps / 2 + 2.0**-40], dtype=torch.float64)  # past the middle, by less
    assert a.to(dtype).item() == 1
    assert compare(*pair(a, a.to(dtype))).cast


def test_what_is_not_a_cast(pair):
    a = torch.tensor([1.0, 449.0, math.nan])
    assert compare(*pair(a, torch.tensor([1.0, 448.0, math.nan]).to(torch.float8_e4m3fn))).cast
    assert not compare(*pair(a, torch.tensor([1.0, 448.0, 448.0]).to(torch.float8_e4m3fn))).cast
    assert not compare(*pair(torch.tensor([1.0]), torch.tensor([1]))).cast
    assert compare(*pair(torch.tensor([1.0]), torch.tensor([1]))).cast_back
    assert not compare(*pair(torch.tensor([1.0]), torch.tensor([1.0 + 0j]))).cast
    same = compare(*pair(torch.tensor([1.0]), torch.tensor([1.0])))
    assert not same.cast and not same.cast_back
