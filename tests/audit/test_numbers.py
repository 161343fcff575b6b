"""The rules about numbers, where one firing and one clean file do not say it all."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckpt_tools.audit.findings import Finding
from ckpt_tools.audit.rule import Rule
from ckpt_tools.audit.rules.numbers import constant_weight, infinite_values, nan_values, out_of_keeping, subnormal_flood
from tests.audit.cases import fixture, made
from tests.audit.cases_numbers import layers, of


def test_a_tensor_unlike_those_of_its_name(tmp_path: Path) -> None:
    (found,) = out_of_keeping.findings(of(**layers(1e5))(tmp_path))
    assert found.location.tensor == "layer8.weight"
    assert "those of 8 tensors like it" in found.message
    assert not list(out_of_keeping.findings(of(**layers(50.0))(tmp_path)))


def test_the_state_of_an_optimizer_may_be_zero(tmp_path: Path) -> None:
    subject = fixture("training/adam.pt")(tmp_path)
    assert subject.checkpoint is not None
    assert any(state_dict.role == "optimizer" for state_dict in subject.state_dicts)
    for rule in (nan_values, constant_weight, out_of_keeping):
        assert not list(rule.findings(subject))


def found_in(rule: Rule, tmp_path: Path, value: Any) -> list[Finding]:
    """What *rule* finds in a file of ``torch.save(value)``."""
    torch = pytest.importorskip("torch")
    file = BytesIO()
    torch.save(value, file)
    return list(rule.findings(made(file.getvalue())(tmp_path)))


def test_a_weight_of_a_state_dict_is_one_though_none_is_recorded_as_a_parameter(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    model[0].weight.data.zero_()
    for value in (model, model.state_dict(), {"model": model.state_dict(), "epoch": 3}):
        assert [finding.location.tensor for finding in found_in(constant_weight, tmp_path, value)] == ["0.weight"]


def test_a_constant_buffer_of_a_module_is_no_weight_and_a_row_is_no_matrix(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(4, 4)
    model.register_buffer("grid", torch.ones(4, 4))
    assert not found_in(constant_weight, tmp_path, model)
    assert not found_in(constant_weight, tmp_path, {"class_token": torch.zeros(1, 1, 8), "scale": torch.ones(8, 1, 1)})


@pytest.mark.parametrize(
    ("around", "place"),
    [
        (lambda bad, good: bad, ""),
        (lambda bad, good: [good, bad], "[1]"),
        (lambda bad, good: {"model": {"w": good}, "best": bad}, "best"),
        (lambda bad, good: ({"w": good}, {"losses": [bad]}), "[1].losses[0]"),
        (lambda bad, good: {"model": {"w": good}, "array": bad.numpy()}, "array"),
    ],
)
def test_tensors_outside_of_state_dicts_are_looked_at(
    tmp_path: Path, around: Callable[[Any, Any], Any], place: str
) -> None:
    torch = pytest.importorskip("torch")
    for rule, value in ((nan_values, torch.nan), (infinite_values, torch.inf)):
        bad = torch.tensor([[1.0, value]])
        assert [finding.location.tensor for finding in found_in(rule, tmp_path, around(bad, bad[:, :1]))] == [place]


def test_an_array_by_itself_is_looked_at(tmp_path: Path) -> None:
    file = BytesIO()
    np.save(file, np.array([1.0, np.nan]))
    (found,) = nan_values.findings(made(file.getvalue(), "a.npy")(tmp_path))
    assert found.message == "1 of 2 values are NaN"


def test_what_is_no_weight_need_not_be_like_one(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = [torch.zeros(2, 1, 64), torch.full((64, 2), 1e-40)]
    for rule in (constant_weight, subnormal_flood):
        assert not found_in(rule, tmp_path, state)


def test_of_several_state_dicts_the_message_says_which(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    good, bad = torch.ones(2), torch.tensor([1.0, torch.nan])
    (found,) = found_in(nan_values, tmp_path, {"model": {"w": good}, "ema": {"w": bad}})
    assert (found.location.tensor, found.message) == ("w", "1 of 2 values are NaN (in ema)")
    (found,) = found_in(nan_values, tmp_path, {"model": {"w": bad}})
    assert found.message == "1 of 2 values are NaN"


def test_single_numbers_of_a_run_and_masks_may_be_infinite(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    run = {"best": torch.tensor(torch.inf), "callbacks": {"Saver": {"kth_value": torch.tensor(torch.inf)}}}
    weights = {"scale": torch.tensor(1.0), "attn_mask": torch.full((2, 2), -torch.inf).triu(1), "w": torch.ones(2)}
    assert not found_in(infinite_values, tmp_path, {"model": weights, **run})
    weights |= {"scale": torch.tensor(torch.inf), "attn_mask": torch.full((2, 2), torch.inf)}
    found = found_in(infinite_values, tmp_path, {"model": weights, **run})
    assert [finding.location.tensor for finding in found] == ["scale", "attn_mask"]


@pytest.mark.parametrize(("tensors", "found"), [(10, 10), (11, 11), (40, 11)])
def test_a_run_that_diverged_is_told_in_few_findings(tmp_path: Path, tensors: int, found: int) -> None:
    for rule, value, what in ((nan_values, np.nan, "NaN"), (infinite_values, np.inf, "infinities")):
        arrays = {f"w{number:02}": np.full((2, 2), value, np.float32) for number in range(tensors)}
        findings = list(rule.findings(of(**arrays)(tmp_path)))
        assert len(findings) == found
        if tensors == 40:
            assert findings[-1].message == f"30 further tensors hold {what}: w10, w11, w12 and 27 more"
