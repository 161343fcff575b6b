"""The comparison of two outputs: what passes, what does not, and what is said of it."""

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from ckpt_tools.runtime.onnx.compare import Tolerance, compare, mismatch, tolerance  # noqa: E402

TIGHT = Tolerance(1e-5, 1e-4)
NAN, INF = math.nan, math.inf


def t(*values: Any) -> Any:
    return torch.tensor(values)


def test_the_limit_is_of_the_largest_and_of_each_value() -> None:
    reference = t([100.0, 1.0])
    # 1e-5·100 + 1e-4·1 is allowed at the second value
    assert compare(reference, t([100.0, 1.001]), TIGHT).fault == ""
    found = compare(reference, t([100.0, 1.25]), TIGHT)
    assert (found.kind, found.at, found.scale) == ("numbers", (0, 1), 100.0)
    assert found.allowed == pytest.approx(1.1e-3)
    assert found.worst == 0.25
    assert found.fault == (
        "1 of 2 values are too far apart, the worst at [0, 1]: 1 in torch and 1.25 in ONNX, 0.25 apart where "
        "0.0011 is allowed"
    )


def test_the_worst_is_where_the_limit_is_passed_by_most() -> None:
    found = compare(t([100.0, 1.0]), t([100.02, 1.02]), TIGHT)
    assert found.at == (0, 1)  # as far from the reference, but less is allowed there


@pytest.mark.parametrize(
    "reference, found, fault",
    [
        (t(1.0, NAN), t(1.0, NAN), "1 of 2 values of torch's own output are NaN, the first at [1]"),
        (t(1.0, 2.0), t(NAN, 2.0), "1 of 2 values of the ONNX output are NaN, the first at [0]"),
        (t(1.0, 2.0), t(1.0, INF), "1 of 2 values of the ONNX output are infinite, the first at [1]"),
        (t(1.0, INF), t(1.0, -INF), "1 of 2 values of the ONNX output are infinite, the first at [1]"),
    ],
)
def test_what_is_not_finite_passes_under_no_tolerance(reference: Any, found: Any, fault: str) -> None:
    answer = compare(reference, found, Tolerance(1e30, 1e30))
    assert (answer.kind, answer.fault) == ("nan", fault)


def test_an_infinity_that_torch_has_too_is_a_value() -> None:
    assert compare(t(1.0, -INF), t(1.0, -INF), TIGHT).fault == ""
    assert compare(t(1.0, INF), t(1.0, 5.0), Tolerance(1.0, 1.0)).kind == "numbers"


def test_integers_must_be_equal() -> None:
    assert compare(t([1, 2]), t([1, 2]), TIGHT).fault == ""
    assert compare(t([1, 2]), t([1, 3]), Tolerance(10.0, 10.0)).kind == "numbers"
    assert compare(t(True), t(False), Tolerance(10.0, 10.0)).kind == "numbers"


def test_cosine_and_top1() -> None:
    found = compare(t([1.0, 2.0], [4.0, 3.0]), t([2.0, 1.0], [4.0, 3.0]), Tolerance(1.0, 1.0))
    assert found.top1 == (1, 2)
    assert found.cosine == pytest.approx((2 + 2 + 16 + 9) / 30)
    assert compare(torch.zeros(3), torch.zeros(3), TIGHT).cosine == 1.0
    assert compare(torch.zeros(0, 4), torch.zeros(0, 4), TIGHT).fault == ""


def test_shapes_are_exact() -> None:
    assert mismatch(torch.zeros(2, 3), torch.zeros(2, 3)) == ""
    assert mismatch(torch.zeros(2, 3), torch.zeros(3, 2)) == "3×2, where torch returns 2×3"
    assert mismatch(torch.zeros(2, 3), torch.zeros(3)) == (
        "3, where torch returns 2×3, which would broadcast, and hide it from a careless comparison"
    )
    assert mismatch(torch.zeros(2), torch.zeros(2, dtype=torch.int64)) == "of type int64, where torch returns float32"
    assert mismatch(torch.zeros(2), torch.zeros(2, dtype=torch.float16)) == ""  # numbers tell whether that will do


@pytest.mark.parametrize(
    "dtype, device, tf32, expected",
    [
        ("float32", "cpu", False, (1e-5, 1e-4)),
        ("float32", "gpu", False, (1e-4, 1e-3)),
        ("float32", "gpu", True, (5e-3, 1e-2)),
        ("float16", "cpu", False, (5e-3, 1e-2)),
        ("bfloat16", "gpu", False, (4e-2, 5e-2)),
    ],
)
def test_default_tolerances(dtype: str, device: str, tf32: bool, expected: tuple[float, float]) -> None:
    assert tolerance(dtype, device, tf32=tf32) == expected
