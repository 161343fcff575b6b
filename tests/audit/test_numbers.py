"""The rules about numbers, where one firing and one clean file do not say it all."""

from pathlib import Path

from ckpt_tools.audit.rules.numbers import constant_weight, nan_values, out_of_keeping
from tests.audit.cases import fixture
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
