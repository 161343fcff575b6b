"""The rules about training, where one firing and one clean file do not say it all."""

from pathlib import Path

import pytest

from ckpt_tools.audit.rules.training import RULES, _mismatches, foreign_optimizer, head_not_stepped, progress_disagrees
from ckpt_tools.checkpoint import Optimizer, ParamGroup, TensorInfo
from ckpt_tools.dtypes import BY_NAME
from tests.audit.cases import fixture
from tests.audit.cases_training import checkpoint


def test_a_scheduler_that_was_not_stepped(tmp_path: Path) -> None:
    (found,) = progress_disagrees.findings(checkpoint("a.pt", 5, 0)(tmp_path))
    assert found.message == "scheduler was stepped 0 times, the epoch is 5"
    assert not list(progress_disagrees.findings(checkpoint("a.pt", 5, 500)(tmp_path)))  # once a batch


@pytest.mark.parametrize("name", ["head_replaced", "head_replaced_at_once", "head_grown"])
def test_an_optimizer_from_before_the_head_was_replaced(tmp_path: Path, name: str) -> None:
    (found,) = head_not_stepped.findings(fixture(f"training/{name}.pt")(tmp_path))
    assert found.location.tensor.startswith("head.")


@pytest.mark.parametrize("name", ["adam", "two_groups", "param_names", "sgd_momentum", "frozen_filtered", "lightning"])
def test_an_optimizer_of_the_model(tmp_path: Path, name: str) -> None:
    suffix = "ckpt" if name == "lightning" else "pt"
    assert not list(foreign_optimizer.findings(fixture(f"training/{name}.{suffix}")(tmp_path)))


@pytest.mark.parametrize("file", ["refused/page.pth", "training/ema.pt", "zip/values.pt", "zip/tensor.pt"])
def test_no_rule_minds_a_file_without_one_model(tmp_path: Path, file: str) -> None:
    subject = fixture(file)(tmp_path)
    assert [finding.code for rule in RULES for finding in rule.findings(subject)] == []


def test_each_state_of_a_shape_that_is_used_up_is_told() -> None:
    weight = TensorInfo("weight", BY_NAME["float32"], (2, 3))
    state = {index: {"momentum_buffer": weight} for index in range(4)}
    optimizer = Optimizer((), (ParamGroup((0, 1, 2, 3), None, {}),), state)
    assert list(_mismatches(optimizer, [weight])) == [
        "it holds 4 parameters, the model has 1",
        "state of shapes that no parameter has, or not as often: 1 (2×3), 2 (2×3), 3 (2×3)",
    ]
