"""``ckpt convert --shard-size``: shards and an index as huggingface_hub writes and reads them, all of it or nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.analysis.digest import digest
from ckpt_tools.convert import prove, write_shards
from ckpt_tools.convert.plan import NOTE, source_of
from ckpt_tools.convert.run import Conversion, carry_out, prepare
from ckpt_tools.errors import CkptError
from ckpt_tools.formats import open_checkpoint

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
MLP = FIXTURES / "zip" / "mlp.pt"


def convert(source: Path, target: Path, shard_size: int, *, verify: bool = True, **options: Any) -> Conversion:
    return carry_out(*prepare(str(source), str(target), shard_size=shard_size, **options), verify=verify)


def saved(tmp_path: Path, value: object, name: str = "source.pt") -> Path:
    torch.save(value, tmp_path / name)
    return tmp_path / name


def blocks(*sizes: int) -> dict[str, Any]:
    """Tensors t0, t1, … of so many bytes."""
    return {f"t{n}": torch.full((size,), n, dtype=torch.uint8) for n, size in enumerate(sizes)}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def index(folder: Path, stem: str = "model") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{stem}.safetensors.index.json").read_text())
    return found


@pytest.mark.parametrize(
    "sizes",
    [(60, 60, 20, 60, 20, 20), (10, 200, 10), (100, 100), (101, 101, 1), (1, 99, 1), (300,), (300, 300), (5, 5)],
    ids=str,
)
def test_tensors_are_dealt_out_as_huggingface_hub_does(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    hub = pytest.importorskip("huggingface_hub")
    state = blocks(*sizes)
    split = hub.split_torch_state_dict_into_shards(state, max_shard_size=100)
    done = convert(saved(tmp_path, state), tmp_path / "out", 100)
    shards = sorted(split.filename_to_tensors)
    assert names(tmp_path / "out") == shards + (["model.safetensors.index.json"] if split.is_sharded else [])
    assert done.files == tuple(names(tmp_path / "out"))
    if split.is_sharded:
        found = index(tmp_path / "out")
        assert found["weight_map"] == split.tensor_to_filename
        assert list(found["weight_map"]) == list(state)
        assert found["metadata"]["total_size"] == split.metadata["total_size"] == sum(sizes)
    assert done.nbytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 8)
        self.hidden = torch.nn.Linear(8, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.out = torch.nn.Linear(8, 50, bias=False)
        self.out.weight = self.embed.weight


def test_huggingface_hub_loads_it_into_a_model(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    model, fresh = Tied(), Tied()
    done = convert(saved(tmp_path, model.state_dict()), tmp_path / "out", 300)
    assert len(done.files) == 4
    told = hub.load_torch_model(fresh, tmp_path / "out")
    assert (told.missing_keys, told.unexpected_keys) == (["out.weight"], [])  # one memory with embed.weight
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    loaded: dict[str, Any] = {}
    for name in done.files[:-1]:
        loaded |= hub.load_state_dict_from_file(tmp_path / "out" / name, safe=True)
    assert loaded.keys() == model.state_dict().keys() - {"out.weight"}


def test_our_reader_finds_the_aliases_again(tmp_path: Path) -> None:
    model = Tied()
    view = torch.arange(12.0)
    state = {**model.state_dict(), "view": view, "part": view[3:6]}
    source = saved(tmp_path, {"model": state, "epoch": 7})
    done = convert(source, tmp_path / "out", 400, metadata={"licence": "MIT"})
    found = open_checkpoint(tmp_path / "out")
    assert found.anomalies == ()
    assert found.metadata["out.weight"] == "embed.weight"
    assert found.metadata["licence"] == "MIT"
    carry_out(*prepare(str(tmp_path / "out"), str(tmp_path / "whole.safetensors")))
    assert open_checkpoint(tmp_path / "whole.safetensors").metadata["licence"] == "MIT"
    note = json.loads(str(found.metadata[NOTE]))
    assert note["source"] == {"name": "source.pt", "digest": done.source.sha256, "complete": True}
    assert note["values"] == {"epoch": 7}
    assert digest(source_of(found, None).tensors).sha256 == done.source.sha256 == done.output.sha256
    carry_out(*prepare(str(tmp_path / "out"), str(tmp_path / "back.pt")))
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert back["out.weight"].data_ptr() == back["embed.weight"].data_ptr()
    assert back["part"].data_ptr() == back["view"].data_ptr() + 12


def test_tensors_that_were_taken_apart_come_together_again(tmp_path: Path) -> None:
    for name in ("quantized.pt", "sparse.pt"):
        source = FIXTURES / "zip" / name
        done = convert(source, tmp_path / name.removesuffix(".pt"), 20, decomposing=True)
        assert len(done.files) > 3
        found = open_checkpoint(tmp_path / name.removesuffix(".pt"))
        assert digest(source_of(found, None).tensors) == digest(source_of(open_checkpoint(source), None).tensors)


def test_one_shard_is_the_file_that_would_be_written_without(tmp_path: Path) -> None:
    convert(MLP, tmp_path / "out", 10**9)
    convert(MLP, tmp_path / "other.safetensors", 10**9)
    carry_out(*prepare(str(MLP), str(tmp_path / "plain.safetensors")))
    plain = (tmp_path / "plain.safetensors").read_bytes()
    assert names(tmp_path / "out") == ["model.safetensors"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == plain
    assert (tmp_path / "other.safetensors").read_bytes() == plain


def test_bytes_do_not_depend_on_the_time_or_the_folder(tmp_path: Path) -> None:
    convert(MLP, tmp_path / "a", 170)
    convert(MLP, tmp_path / "b", 170)
    assert names(tmp_path / "a") == names(tmp_path / "b")
    assert len(names(tmp_path / "a")) == 3
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("target", ["x.safetensors", "x.safetensors.index.json"])
def test_a_stem_puts_the_set_beside_other_files(tmp_path: Path, target: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    convert(MLP, tmp_path / "out" / target, 170)
    assert names(tmp_path / "out") == [
        "config.json", "x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors", "x.safetensors.index.json",
    ]  # fmt: skip
    assert len(open_checkpoint(tmp_path / "out").state_dicts[0].tensors) == 4


def test_what_exists_is_replaced_only_by_force_and_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    many, few = saved(tmp_path, blocks(*[90] * 5), "many.pt"), saved(tmp_path, blocks(90, 90), "few.pt")
    convert(many, out, 100)
    (out / "config.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(CkptError, match=r"model-00001-of-00005.safetensors: exists already. --force"):
        convert(few, out, 100)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    convert(few, out, 100, force=True)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names(out) == ["config.json", *shards, "model.safetensors.index.json"]
    convert(many, out, 1000, force=True)
    assert names(out) == ["config.json", "model.safetensors"]
    convert(few, out, 100, force=True)
    assert names(out) == ["config.json", *shards, "model.safetensors.index.json"]
    assert names(tmp_path) == ["few.pt", "many.pt", "out"]


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    convert(MLP, tmp_path / "set", 170)
    before = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    for limit in (50, 170, 10**6):  # the last would remove the shards after writing a single file
        with pytest.raises(CkptError, match="is the source"):
            convert(tmp_path / "set", tmp_path / "set", limit, force=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == before


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CkptError, match="shards are written as safetensors"):
        convert(MLP, tmp_path / "out.pt", 100)


@pytest.mark.parametrize("sizes", [(90, 90), (90, 90, 90)], ids=["same names", "other names"])
def test_at_every_step_one_set_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int]) -> None:
    """Stop before each call that changes the folder; whatever is there then loads, as the old set or as the new."""
    old, new = blocks(90, 90), {name: tensor + 1 for name, tensor in blocks(*sizes).items()}
    old_file, new_file = saved(tmp_path, old, "old.pt"), saved(tmp_path, new, "new.pt")
    seen: list[str] = []

    class Killed(BaseException):
        pass

    for step in range(1, 100):
        out = tmp_path / f"out{step}"
        convert(old_file, out, 100)
        left = step
        with monkeypatch.context() as patch:

            def counted(real: Any, *arguments: Any, **options: Any) -> Any:
                nonlocal left
                left -= 1
                if left <= 0:
                    raise Killed
                return real(*arguments, **options)

            for name in ("replace", "link", "unlink", "mkdir", "rename", "rmdir"):
                patch.setattr(os, name, partial(counted, getattr(os, name)))
            try:
                convert(new_file, out, 100, force=True)
                finished = True
            except Killed:
                finished = False
        found = {t.name: t.storage.read(0, 1)[0] for t in open_checkpoint(out).state_dicts[0].tensors}
        seen.append("new" if found == {name: int(tensor[0]) for name, tensor in new.items()} else "old")
        if seen[-1] == "old":
            assert found == {name: int(tensor[0]) for name, tensor in old.items()}
        loaded = {
            name: int(tensor[0])
            for shard in set(index(out)["weight_map"].values())
            for name, tensor in safetensors_torch.load_file(out / shard).items()
        }
        assert loaded == found
        # the next run puts everything right
        convert(new_file, out, 100, force=True)
        assert names(out) == sorted([*set(index(out)["weight_map"].values()), "model.safetensors.index.json"])
        if finished:
            break
    assert seen == sorted(seen, reverse=True)  # old, …, then new
    assert {"old", "new"} == set(seen)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, stored: object) -> None:
        assert os.path.dirname(path) == str(tmp_path / ".out.partial")
        raise CkptError("the safetensors library refuses the output")

    monkeypatch.setattr(prove, "prove_with_library", refuse)
    with pytest.raises(CkptError, match="library refuses"):
        convert(MLP, tmp_path / "out", 170)
    assert names(tmp_path) == []


def test_the_proof_covers_every_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = write_shards.write_shard

    def flipping(path: str, *arguments: Any) -> Any:
        written = honest(path, *arguments)
        if "00002-of" in path:
            with open(path, "r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"\xff")
        return written

    monkeypatch.setattr(write_shards, "write_shard", flipping)
    with pytest.raises(CkptError, match=r"would not hold what the source does: fc2\.\w+, so it was not kept"):
        convert(MLP, tmp_path / "out", 170)
    assert names(tmp_path) == []


def test_command(run: Any, tmp_path: Path) -> None:
    done = run("convert", MLP, tmp_path / "out", "--shard-size", "0.17KB", "--report", tmp_path / "report.json")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.endswith(f"written to {tmp_path / 'out'} in 2 shards, verified bit for bit\n")
    assert json.loads((tmp_path / "report.json").read_text())["files"][0]["files"] == names(tmp_path / "out")
    for text in ("5XB", "0", "-1GB", "GB", "1e9"):
        done = run("convert", MLP, tmp_path / "x", "--shard-size", text)
        assert done.exit_code == 2
        assert "is no size such as 5GB, 500MB or 2GiB" in done.stderr


def test_torch_is_not_needed(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from ckpt_tools.cli import main; main()"
    words = ["convert", str(MLP), str(tmp_path / "out"), "--shard-size", "100"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
