"""Statistics of every dtype against torch in float64, whatever the layout; extremes, NaN, threads."""

import math

import pytest

from ckpt_tools import open_checkpoint
from ckpt_tools.analysis.statistics import BINS, NoStatistics, statistics, statistics_of

torch = pytest.importorskip("torch")

FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"]
INTEGERS = ["int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "bool"]


@pytest.fixture
def described(tmp_path):
    def described(**tensors):
        torch.save(tensors, tmp_path / "m.pt")
        state_dict = open_checkpoint(tmp_path / "m.pt").state_dicts[0]
        return [state_dict[name] for name in tensors]

    return described


def check(found, tensor):
    numbers = tensor.reshape(-1)
    exact = (numbers if numbers.dtype == torch.float64 else numbers.to(torch.float64)).reshape(-1)
    finite = exact[exact.isfinite()]
    assert (found.count, found.finite) == (exact.numel(), finite.numel())
    assert (found.nan, found.infinite) == (int(exact.isnan().sum()), int(exact.isinf().sum()))
    assert found.zeros == int((exact == 0).sum())
    assert (found.minimum, found.maximum) == (finite.min().item(), finite.max().item())
    narrow = numbers.dtype in (torch.float16, torch.bfloat16)  # which are summed in float32
    within = 2e-7 if narrow else 1e-12
    assert found.mean == pytest.approx(finite.mean().item(), rel=1e-9, abs=within * float(finite.abs().max() + 1))
    assert found.l2 == pytest.approx(finite.norm().item(), rel=2e-7 if narrow else 1e-9)
    if finite.numel() > 1:
        assert found.std == pytest.approx(finite.std().item(), rel=2e-7 if narrow else 1e-7, abs=1e-12)
    assert len(found.histogram) == BINS


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("count", [1, 7, 300_000])
def test_floats(described, name, count):
    torch.manual_seed(count)
    values = torch.randn(count, dtype=torch.float64) * 3
    values[count // 2] = 0
    tensor = values.to(getattr(torch, name))
    [info] = described(t=tensor)
    check(statistics(info), tensor)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(described, name):
    tensor = (torch.arange(100_000) % 97).to(getattr(torch, name))
    [info] = described(t=tensor)
    check(statistics(info), tensor)


def test_nan_and_infinities_are_counted_and_poison_nothing(described):
    tensor = torch.randn(200_000)
    tensor[::1000], tensor[1::1000], tensor[2::1000] = math.nan, math.inf, -math.inf
    [info] = described(t=tensor)
    found = statistics(info)
    assert (found.nan, found.positive_infinity, found.negative_infinity) == (200, 200, 200)
    check(found, tensor)


def test_layouts(described):
    base = torch.randn(400, 300)
    tensors = {"t": base.T, "cut": base[3:50, 7::5], "wide": base[:1].expand(50, 300), "zero_d": torch.tensor(2.5)}
    for info, tensor in zip(described(**tensors), tensors.values(), strict=True):
        check(statistics(info), tensor)


def test_a_large_offset_costs_no_precision(described):
    tensor = torch.randn(500_000, dtype=torch.float64) * 1e-3 + 1e8
    [info] = described(t=tensor)
    found = statistics(info)
    assert found.mean == pytest.approx(tensor.mean().item(), rel=1e-14)
    assert found.std == pytest.approx(1e-3, rel=1e-2)


def test_values_near_the_limit_do_not_overflow(described):
    [info] = described(t=torch.full((1000,), 3e38))
    found = statistics(info)
    assert found.l2 == pytest.approx(3e38 * math.sqrt(1000), rel=1e-6)
    assert found.constant and found.std == 0


def test_subnormals_zeros_and_constants(described):
    sub, zero, one = described(s=torch.tensor([1e-40, 1.0, 0.0, -0.0]), z=torch.zeros(5), o=torch.ones(3).half())
    found = statistics(sub)
    assert (found.subnormal, found.zeros) == (1, 2)
    assert statistics(zero).constant and statistics(one).constant and not found.constant


def test_nothing_to_count(described):
    empty, meta = described(e=torch.empty(0, 3), m=torch.empty(3, device="meta"))
    found = statistics(empty)
    assert (found.count, found.minimum, found.mean, found.l2) == (0, None, None, 0)
    assert isinstance(statistics(meta), NoStatistics)


def test_threads_change_nothing(described):
    infos = described(**{f"t{i}": torch.randn(150_000 + i) for i in range(6)})
    told = []
    one = list(statistics_of(infos, threads=1, progress=told.append))
    assert one == list(statistics_of(infos, threads=2))
    assert sum(told) == sum(info.nbytes for info in infos)


def test_the_histogram_and_its_picture(described):
    [info] = described(t=torch.cat([torch.zeros(10), torch.ones(30)]))
    found = statistics(info)
    assert (found.histogram[0], found.histogram[-1], sum(found.histogram)) == (10, 30, 40)
