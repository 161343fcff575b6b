"""The rules about training, where one firing and one clean file do not say it all."""

from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.audit.policy import Options, Policy, Requirement
from ckpt_tools.audit.rules.policy import not_frozen
from ckpt_tools.audit.rules.training import (
    RULES,
    _mismatches,
    drifted_buffers,
    foreign_optimizer,
    head_as_initialised,
    head_not_stepped,
    misspelt_requires_grad,
    progress_disagrees,
)
from ckpt_tools.audit.subject import Subject
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


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("epoch=3-step=700.ckpt", ["the name says step 700, the file 7"]),
        ("epoch=3-step=8.ckpt", []),
        ("epoch=9-step=7.ckpt", ["the name says epoch 9, the file 3"]),
        ("iter=700.pt", []),  # several iterations may be a step
        ("run_12.pt", []),
    ],
)
def test_a_name_that_disagrees(tmp_path: Path, name: str, found: list[str]) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 2)
    torch.save({"epoch": 3, "global_step": 7, "state_dict": model.state_dict()}, tmp_path / name)
    subject = Subject.open(str(tmp_path / name))
    assert [finding.message for finding in progress_disagrees.findings(subject)] == found


@pytest.mark.parametrize(
    ("algorithm", "options", "epoch", "stepped", "fires"),
    [
        ("Adam", {}, 3, False, True),
        ("Adam", {}, 3, True, False),
        ("Adam", {}, 0, False, False),
        ("SGD", {"momentum": 0.9}, 3, False, True),
        ("SGD", {}, 3, False, False),  # it has none to keep
    ],
)
def test_an_optimizer_without_state(
    tmp_path: Path, algorithm: str, options: dict[str, float], epoch: int, stepped: bool, fires: bool
) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 2)
    optimizer = getattr(torch.optim, algorithm)(model.parameters(), lr=0.1, **options)
    if stepped:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    saved = {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(saved, tmp_path / "run.pt")
    found = [finding.message for finding in progress_disagrees.findings(Subject.open(str(tmp_path / "run.pt")))]
    told = "optimizer holds no state, as one that was never stepped; the epoch is 3"
    assert found == ([told] if fires else [])


def test_what_one_loop_misspelt_is_one_finding(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(3)))
    for parameter in model[:2].parameters():
        parameter.requires_gard = False
    model[2].weight.require_grad = False
    torch.save(model, tmp_path / "model.pt")
    many, one = misspelt_requires_grad.findings(Subject.open(str(tmp_path / "model.pt")))
    assert many.message.endswith("(4 parameters: 0.weight, 0.bias, 1.weight and 1 more)")
    assert many.evidence["where"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert (one.location.tensor, one.evidence["where"]) == ("2.weight", ["2.weight"])


@pytest.mark.parametrize("head", ["fc", "model.classifier"])
def test_the_head_of_a_file_that_is_sorted_by_name(tmp_path: Path, head: str) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    random = np.random.default_rng(0)
    values = random.uniform(-0.125, 0.125, (32, 64)).astype(np.float32)  # 1/sqrt(64)
    trained = random.normal(0, 0.02, (64, 64)).astype(np.float32)
    numpy.save_file({f"{head}.weight": values, "model.layer.weight": trained}, tmp_path / "m.safetensors")
    (found,) = head_as_initialised.findings(Subject.open(str(tmp_path / "m.safetensors")))
    assert found.location.tensor == f"{head}.weight"


def test_the_numbers_of_a_parameter_are_those_that_were_measured(tmp_path: Path) -> None:
    subject = fixture("model/tied.pt")(tmp_path)
    assert subject.model is not None
    for parameter in subject.model.parameters:
        same = [n for tensor, n in subject.statistics if tensor.name == parameter.name]
        assert [subject.numbers_of(parameter)] == same


def test_a_base_of_another_model_is_told(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"other.weight": torch.ones(2, 2)}, tmp_path / "base.pt")
    torch.save({"module.fc.weight": torch.ones(2, 2)}, tmp_path / "model.pt")
    options = Options(Policy(base=str(tmp_path / "base.pt")))
    (found,) = drifted_buffers.findings(Subject.open(str(tmp_path / "model.pt"), options))
    assert found.message == "nothing was compared: the base has none of its parameters"
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "base.pt")
    assert not list(drifted_buffers.findings(Subject.open(str(tmp_path / "model.pt"), options)))


def test_a_base_without_the_prefix_of_a_wrapper_tells_what_is_frozen(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a.weight": torch.ones(2, 2), "b.weight": torch.ones(2, 2)}, tmp_path / "base.pt")
    torch.save({"module.a.weight": torch.ones(2, 2), "module.b.weight": torch.zeros(2, 2)}, tmp_path / "model.pt")
    requirement = Requirement(frozen=("module.*",))
    options = Options(Policy(base=str(tmp_path / "base.pt"), requirements=(requirement,)))
    (found,) = not_frozen.findings(Subject.open(str(tmp_path / "model.pt"), options))
    assert found.location.tensor == "module.b.weight"
    assert found.message.startswith("it is trainable: ")
