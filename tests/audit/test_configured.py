"""What configurations have called, wherever a file keeps them, and at a cost in proportion to its length."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.audit.configured import MAX_NAMED, named_code
from ckpt_tools.audit.rules import BY_CODE
from ckpt_tools.audit.subject import Subject
from ckpt_tools.sources import MemorySource


def found(data: bytes, name: str = "model.pt") -> list[str]:
    return [finding.message for finding in BY_CODE["S130"].findings(Subject.of(MemorySource(data, name), name))]


HELD: dict[str, Any] = {
    "a dict": {"_instantiator": "os.system"},
    "an OrderedDict": collections.OrderedDict(_instantiator="os.system"),
    "a Counter, by its argument": collections.Counter(_instantiator="os.system"),  # type: ignore[call-overload]
    "a defaultdict": collections.defaultdict(int, _instantiator="os.system"),  # type: ignore[arg-type]
    "a UserDict": collections.UserDict(_instantiator="os.system"),
}


@pytest.mark.parametrize("held", HELD.values(), ids=HELD)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_whatever_mapping_holds_it(held: object, protocol: int) -> None:
    data = pickle.dumps({"hyper_parameters": held}, protocol)
    assert found(data, "model.pkl") == ["_instantiator is os.system: it is imported, and called with the class"]


def test_pairs_that_a_dict_is_made_of() -> None:
    data = b"\x80\x02cbuiltins\ndict\n]](X\x0d\0\0\0_instantiatorX\x09\0\0\0os.systemea\x85R."
    assert found(data, "model.pkl")


@pytest.mark.parametrize("length", [10, 70_000])
def test_a_text_of_python_however_long(length: int) -> None:
    data = pickle.dumps({"config": "import os\nos.system('x')\n#" + "x" * length}, 2)
    assert found(data, "model.pkl") == ["config is os: it runs code or programs"]


def test_many_of_them_are_told_up_to_a_number() -> None:
    text = "\n".join(f"- _target_: os.system\n  n: {n}" for n in range(20_000))
    assert len(list(named_code(text))) == 20_000  # of a text the digest is taken once
    many = {str(n): {"_target_": "os.system", "n": str(n)} for n in range(2 * MAX_NAMED)}
    assert len(found(pickle.dumps(many, 2), "model.pkl")) == MAX_NAMED


def test_a_companion_too_long_to_be_looked_at_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpt_tools.audit.engine import audit
    from ckpt_tools.audit.rules import security

    safetensors = pytest.importorskip("safetensors.numpy")
    numpy = pytest.importorskip("numpy")
    monkeypatch.setattr(security, "JSON_LIMIT", 100)
    safetensors.save_file({"w": numpy.ones((2, 2))}, tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text("#" * 200)
    (result,) = audit([str(tmp_path / "model.safetensors")])
    assert any(f.code == "I102" and "of which nothing was looked at" in f.message for f in result.findings)


def test_a_companion_in_utf_16(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    numpy = pytest.importorskip("numpy")
    safetensors.save_file({"w": numpy.ones((2, 2))}, tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_text("_target_: os.system\n", encoding="utf-16")
    subject = Subject.open(str(tmp_path / "model.safetensors"))
    assert [finding.location.member for finding in BY_CODE["S130"].findings(subject)] == ["config.yaml"]
