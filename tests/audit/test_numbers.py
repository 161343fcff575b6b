"""The rules about numbers, where one firing and one clean file do not say it all."""

import io
from pathlib import Path

import pytest

from ckpt_tools.audit.rules.numbers import constant_weight, index_out_of_range, nan_values, out_of_keeping
from ckpt_tools.audit.subject import Subject
from ckpt_tools.sources import MemorySource
from tests.audit.cases import fixture
from tests.audit.cases_numbers import layers, of
from tests.hostile.third_search import compressed, nested, sparse


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


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (sparse(-1), ["an index of it is -1, where there are 4"]),
        (sparse(3), []),
        (compressed((0, 1, 1), 3), ["an index of it is 3, where there are 3"]),
        (compressed((0, 1, 1), 2), []),
        (compressed((0, 9, 1), 0), ["its compressed indices do not rise from 0 to the number of its values"]),
        (compressed((-1, 0, 1), 0), ["its compressed indices do not rise from 0 to the number of its values"]),
        (nested(1), ["it refers to element 4 of 4"]),
        (nested(-1), ["a size, a stride or an offset of it is negative"]),
        (nested(0), []),
    ],
)
def test_indices_stay_within_the_tensor(data: bytes, says: list[str]) -> None:
    subject = Subject.of(MemorySource(data, "model.pt"))
    assert [finding.message for finding in index_out_of_range.findings(subject)] == says


@pytest.mark.filterwarnings("ignore")
def test_indices_of_torchs_own_are_within_the_tensor() -> None:
    torch = pytest.importorskip("torch")
    dense = torch.zeros(6, 8)
    dense[1, 2] = dense[5, 7] = dense[0, 0] = 1
    made = {
        "coo": dense.to_sparse(),
        "hybrid": torch.ones(4, 5, 3).to_sparse(2),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
        "bsr": dense.to_sparse_bsr((2, 4)),
        "bsc": dense.to_sparse_bsc((3, 2)),
        "batches": torch.stack([dense, dense]).to_sparse_csr(),
        "nothing": torch.zeros(3, 3).to_sparse_csr(),
        "no rows": torch.zeros(0, 3).to_sparse_csr(),
        "nested": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)]),
        "an empty row": torch.nested.nested_tensor([torch.ones(0, 3), torch.ones(4, 3)]),
    }
    file = io.BytesIO()
    torch.save(made, file)
    subject = Subject.of(MemorySource(file.getvalue(), "model.pt"))
    assert len(subject.tensors) == len(made)
    assert list(index_out_of_range.findings(subject)) == []
