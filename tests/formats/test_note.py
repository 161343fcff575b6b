"""What a conversion noted comes back wherever the file is read, as far as it is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.convert.run import carry_out, prepare
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.formats.base import NOTE
from tests.formats.as_torch import by_name, sharing

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file


def tied() -> dict[str, Any]:
    weight = torch.arange(12.0).reshape(4, 3)
    return {"out.weight": weight, "embed.weight": weight, "half": weight[:2], "other": torch.ones(3)}


@pytest.mark.parametrize("shard_size", [None, 48])
def test_tied_names_are_there_for_inspect_digest_and_summary(run: Any, tmp_path: Path, shard_size: int | None) -> None:
    torch.save(tied(), tmp_path / "source.pt")
    target = tmp_path / ("folder" if shard_size else "out.safetensors")
    carry_out(*prepare(str(tmp_path / "source.pt"), str(target), shard_size=shard_size))
    ours, theirs = by_name(open_checkpoint(target)), by_name(open_checkpoint(tmp_path / "source.pt"))
    assert ours.keys() == theirs.keys()
    assert sharing({name: id(t.storage) for name, t in ours.items()}) == {
        frozenset({"out.weight", "embed.weight"}),
        frozenset({"half"}),
        frozenset({"other"}),
    }
    digests = [run("digest", path).stdout.split()[0] for path in (target, tmp_path / "source.pt")]
    assert digests[0] == digests[1]
    told = json.loads(run("inspect", target, "--tensors", "--format", "json").stdout)["files"][0]
    assert {tensor["name"] for tensor in told["tensors"]} == set(tied())
    assert "embed.weight = out.weight, counted once" in run("summary", target).stdout


def test_versions_come_back(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(model.state_dict(), tmp_path / "source.pt")
    carry_out(*prepare(str(tmp_path / "source.pt"), str(tmp_path / "out.safetensors")))
    (found,) = open_checkpoint(tmp_path / "out.safetensors").state_dicts
    assert found.metadata == {"": {"version": 1}, "0": {"version": 1}, "1": {"version": 2}}


@pytest.mark.parametrize(
    "alias",
    [
        {"of": "gone", "offset": 0, "shape": [4], "stride": [1]},
        {"of": "a", "offset": 1, "shape": [4], "stride": [1]},
        {"of": "a", "offset": -1, "shape": [4], "stride": [1]},
        {"of": "a", "offset": 0, "shape": [1 << 40], "stride": [0]},
        {"of": "a", "offset": 0, "shape": [4], "stride": []},
        {"of": "a", "offset": 0, "shape": 4, "stride": 1},
        {"of": 3, "offset": 0, "shape": [4], "stride": [1]},
        ["a"],
    ],
)
def test_an_alias_that_cannot_be_is_passed_over(tmp_path: Path, alias: Any) -> None:
    described = {**alias, "stored": False} if isinstance(alias, dict) else alias
    save_file({"a": torch.arange(4.0)}, tmp_path / "in.safetensors", {NOTE: json.dumps({"aliases": {"b": described}})})
    assert list(by_name(open_checkpoint(tmp_path / "in.safetensors"))) == ["a"]


def test_an_alias_never_takes_the_place_of_a_tensor(tmp_path: Path) -> None:
    alias = {"of": "a", "offset": 0, "shape": [2], "stride": [1], "stored": False}
    tensors = {"a": torch.arange(4.0), "b": torch.tensor([7.0])}
    save_file(tensors, tmp_path / "in.safetensors", {NOTE: json.dumps({"aliases": {"b": alias, "c": alias}})})
    found = by_name(open_checkpoint(tmp_path / "in.safetensors"))
    assert (found["b"].shape, found["c"].shape, list(found)) == ((1,), (2,), ["a", "b", "c"])


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"aliases": 3, "versions": []}', "[" * 5000])
def test_a_note_that_is_none_changes_nothing(tmp_path: Path, text: str) -> None:
    save_file({"a": torch.arange(4.0)}, tmp_path / "in.safetensors", {NOTE: text})
    (found,) = open_checkpoint(tmp_path / "in.safetensors").state_dicts
    assert (list(found.entries), found.metadata) == (["a"], None)
