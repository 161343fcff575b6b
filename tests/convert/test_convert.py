"""What ``ckpt convert`` writes, renames, leaves behind, refuses and proves."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.convert import run as running
from ckpt_tools.convert.plan import NOTE, Names, rename
from ckpt_tools.convert.run import Conversion, carry_out, prepare
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import CkptError, LossyConversion, UnsupportedFeature
from ckpt_tools.formats import open_checkpoint

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


def convert(
    source: Path, target: Path, *, verify: bool = True, allow_lossy: bool = False, **options: Any
) -> Conversion:
    conversion, watch = prepare(str(source), str(target), **options)
    return carry_out(conversion, watch, verify=verify, allow_lossy=allow_lossy)


def saved(tmp_path: Path, value: object, name: str = "source.pt") -> Path:
    torch.save(value, tmp_path / name)
    return tmp_path / name


def note(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(str(open_checkpoint(path).metadata[NOTE]))
    return found


def every_dtype() -> dict[str, Any]:
    names = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
    names += ("uint16", "uint32", "uint64", "complex64", "float8_e4m3fn", "float8_e5m2")
    return {f"z.{name}": torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in names}


# --- formats


def test_safetensors_bytes_are_the_library_s(tmp_path: Path) -> None:
    state = {**every_dtype(), "a": torch.tensor(1.5), "é": torch.zeros(0, 3)}
    conversion = convert(saved(tmp_path, state), tmp_path / "ours.safetensors", verify=False)
    text = (tmp_path / "ours.safetensors").read_bytes()
    ours = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])
    assert list(ours.pop("__metadata__")) == sorted(["ckpt-tools", "format"])
    theirs = safetensors_torch.save(state)
    header = json.loads(theirs[8 : 8 + int.from_bytes(theirs[:8], "little")])
    assert list(ours.items()) == list(header.items())
    data = 8 + int.from_bytes(text[:8], "little")
    assert text[data:] == theirs[8 + int.from_bytes(theirs[:8], "little") :]
    assert data % 8 == 0
    assert conversion.nbytes == len(text)


def test_torch_archive_has_torch_s_members_at_torch_s_alignment(tmp_path: Path) -> None:
    state = {"a": torch.arange(5), "b": torch.tensor(2.0)}
    convert(saved(tmp_path, state), tmp_path / "ours.pt")
    torch.save(state, tmp_path / "archive.pt")
    with zipfile.ZipFile(tmp_path / "ours.pt") as ours, zipfile.ZipFile(tmp_path / "archive.pt") as theirs:
        assert ours.namelist() == theirs.namelist()
        assert ours.testzip() is None
        small = ("byteorder", ".format_version", ".storage_alignment", "version")
        assert [ours.read(f"archive/{n}") for n in small] == [theirs.read(f"archive/{n}") for n in small]
        assert len(ours.read("archive/.data/serialization_id")) == 40
    found = open_checkpoint(tmp_path / "ours.pt")
    assert found.anomalies == ()
    assert found.refusals == ()
    assert [t.storage.offset % 64 for s in found.state_dicts for t in s.tensors if t.storage] == [0, 0]


def test_members_beyond_4_gib_are_written_as_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckpt_tools.convert import archive as zips

    monkeypatch.setattr(zips, "_WIDE", 400)  # what 4 GiB is to a zip without the extension
    state = {"a": torch.arange(100), "b": torch.arange(3), "c": torch.arange(60.0)}
    convert(saved(tmp_path, state), tmp_path / "out.pt", verify=False)
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        assert sizes["archive/data/0"] == 800
        assert sizes["archive/data/1"] == 24
        assert archive.read("archive/data/1") == state["b"].numpy().tobytes()


def test_npz_output_is_numpy_s(tmp_path: Path) -> None:
    import numpy

    state = every_dtype() | {"é": torch.tensor(2.5), "t": torch.arange(6).reshape(2, 3).T, "empty": torch.zeros(0, 2)}
    state["again"] = state["t"]
    source = saved(tmp_path, state)
    with pytest.raises(UnsupportedFeature, match=r"z\.bfloat16 \(bfloat16, for which numpy has no type\)"):
        prepare(str(source), str(tmp_path / "out.npz"))
    convert(source, tmp_path / "out.npz", names=Names(drop=["z.bfloat16", "z.float8*"]))
    with numpy.load(tmp_path / "out.npz") as loaded:
        expected = {k: v.numpy() for k, v in state.items() if not k.startswith(("z.bfloat16", "z.float8"))}
        assert loaded.files == list(expected)
        for name, array in expected.items():
            assert loaded[name].dtype == array.dtype
            assert numpy.array_equal(loaded[name], array)


def test_what_an_npz_has_no_room_for_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path, {"a": torch.ones(1)})
    with pytest.raises(UnsupportedFeature, match="is too long for a zip archive"):
        convert(source, tmp_path / "out.npz", names=Names(add="b" * 70_000))
    source = saved(tmp_path, {"deep": torch.ones([1] * 40)})
    with pytest.raises(UnsupportedFeature, match=r"deep \(40 dimensions, of which numpy has 32\)"):
        convert(source, tmp_path / "out.npz")
    convert(source, tmp_path / "out.pt")


def test_bytes_do_not_depend_on_the_target_s_name_or_the_time(tmp_path: Path) -> None:
    source = FIXTURES / "training" / "adam.pt"
    for suffix in (".safetensors", ".pt"):
        convert(source, tmp_path / f"one{suffix}")
        convert(source, tmp_path / f"other{suffix}")
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"other{suffix}").read_bytes()


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CkptError, match=r"none of \.safetensors, \.pt"):
        prepare(str(FIXTURES / "zip" / "mlp.pt"), str(tmp_path / "out.txt"))


def test_large_tensors_are_copied_whole(tmp_path: Path) -> None:
    state = {"big": torch.randn(300_000), "offset": torch.randn(300_000)[1:], "turned": torch.randn(300, 400).T}
    convert(saved(tmp_path, state), tmp_path / "out.safetensors")
    loaded = safetensors_torch.load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("missing", [("copy_file_range",), ("copy_file_range", "sendfile")])
def test_large_tensors_are_copied_without_the_kernel_s_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...]
) -> None:
    for name in missing:
        monkeypatch.delattr(os, name, raising=False)
    state = {"a": torch.randn(700_000), "b": torch.randn(40_000)}
    convert(saved(tmp_path, state), tmp_path / "out.safetensors")
    loaded = safetensors_torch.load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(loaded[name], state[name]) for name in state)


# --- sharing


def aliased() -> dict[str, Any]:
    v = torch.arange(60.0).reshape(20, 3)
    return {"a": v, "b": v[10:20], "c": v.T, "d": v, "e": v.reshape(60), "f": torch.ones(2)}


def test_nothing_of_overlapping_views_is_lost(tmp_path: Path) -> None:
    state = aliased()
    convert(saved(tmp_path, state), tmp_path / "out.safetensors")
    loaded = safetensors_torch.load_file(tmp_path / "out.safetensors")
    assert sorted(loaded) == ["a", "b", "c", "e", "f"]
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)
    metadata = open_checkpoint(tmp_path / "out.safetensors").metadata
    assert metadata["d"] == "a"
    assert "b" not in metadata
    assert note(tmp_path / "out.safetensors")["aliases"] == {
        "b": {"of": "a", "offset": 30, "shape": [10, 3], "stride": [3, 1], "stored": True},
        "c": {"of": "a", "offset": 0, "shape": [3, 20], "stride": [1, 3], "stored": True},
        "d": {"of": "a", "offset": 0, "shape": [20, 3], "stride": [3, 1], "stored": False},
        "e": {"of": "a", "offset": 0, "shape": [60], "stride": [1], "stored": True},
    }


@pytest.mark.parametrize("through_safetensors", [False, True])
def test_pt_output_keeps_the_sharing_also_on_the_way_back(tmp_path: Path, through_safetensors: bool) -> None:
    state = aliased()
    source = saved(tmp_path, state)
    if through_safetensors:
        convert(source, tmp_path / "between.safetensors")
        source = tmp_path / "between.safetensors"
    convert(source, tmp_path / "out.pt")
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    loaded["a"].zero_()
    assert [float(loaded[name].abs().sum()) for name in "abcdef"] == [0, 0, 0, 0, 0, 2]


def test_a_note_that_is_not_true_shares_nothing(tmp_path: Path) -> None:
    aliases = {
        "b": {"of": "a", "offset": 1, "shape": [2], "stride": [1], "stored": True},
        "c": {"of": "a", "offset": 3, "shape": [2], "stride": [1], "stored": False},
        "d": {"of": "gone", "offset": 0, "shape": [2], "stride": [1], "stored": False},
        "e": {"of": "a", "offset": -1, "shape": [2], "stride": [1], "stored": False},
        "f": {"of": "a", "offset": 0, "shape": [1 << 40], "stride": [0], "stored": False},
        "g": ["a"],
        "h": {"of": "a", "offset": 1, "shape": [3], "stride": [1], "stored": False},
    }
    tensors = {"a": torch.arange(4.0), "b": torch.tensor([1.0, 9.0])}
    metadata = {NOTE: json.dumps({"aliases": aliases})}
    safetensors_torch.save_file(tensors, tmp_path / "in.safetensors", metadata)
    convert(tmp_path / "in.safetensors", tmp_path / "out.pt")
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert sorted(loaded) == ["a", "b", "h"]
    assert loaded["b"].tolist() == [1.0, 9.0]
    assert loaded["h"].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("text", ["{", "[]", '{"aliases": 3}', "[" * 5000])
def test_a_note_that_is_none_is_passed_over(tmp_path: Path, text: str) -> None:
    safetensors_torch.save_file({"a": torch.arange(4.0)}, tmp_path / "in.safetensors", {NOTE: text})
    convert(tmp_path / "in.safetensors", tmp_path / "out.pt")
    assert torch.load(tmp_path / "out.pt", weights_only=True)["a"].tolist() == [0, 1, 2, 3]


def test_slack_is_left_behind(tmp_path: Path) -> None:
    source = saved(tmp_path, {"a": torch.zeros(30_000)[5:20], "rows": torch.ones(1000, 100)[:, 3]})
    for suffix in (".safetensors", ".pt"):
        convert(source, tmp_path / f"out{suffix}")
        assert (tmp_path / f"out{suffix}").stat().st_size < 8000


def test_far_apart_views_of_one_storage_do_not_bring_it_along(tmp_path: Path) -> None:
    matrix = torch.randn(1000, 1000)
    source = saved(tmp_path, {"left": matrix[:, :2], "right": matrix[:, 998:]})
    convert(source, tmp_path / "out.pt")
    assert (tmp_path / "out.pt").stat().st_size < 30_000
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True)["right"], matrix[:, 998:])


def test_tied_models_load_with_the_library(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(5, 4)
            self.out = torch.nn.Linear(4, 5, bias=False)
            self.out.weight = self.embed.weight

    model, fresh = Tied(), Tied()
    convert(saved(tmp_path, model.state_dict()), tmp_path / "out.safetensors")
    assert safetensors_torch.load_model(fresh, tmp_path / "out.safetensors", strict=True) == (set(), [])
    assert torch.equal(fresh.out.weight, model.embed.weight)


def test_expansion_beyond_what_the_file_stands_for_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path, {"a": torch.zeros(1).expand(1 << 40)})
    with pytest.raises(CkptError, match=r"repeated, by expanded tensors and views, to 4,398,046,511,104"):
        prepare(str(source), str(tmp_path / "out.safetensors"))


# --- names


NAMES = ["module.a.weight", "module.b.weight"]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (Names(), NAMES),
        (Names(strip="auto"), ["a.weight", "b.weight"]),
        (Names(strip="module."), ["a.weight", "b.weight"]),
        (Names(add="net."), ["net.module.a.weight", "net.module.b.weight"]),
        (Names(strip="auto", add="net."), ["net.a.weight", "net.b.weight"]),
        (Names(renames=[(r"^module\.(.)", r"x.\1")]), ["x.a.weight", "x.b.weight"]),
        (Names(renames=[("weight", "w"), ("w$", "kernel")]), ["module.a.kernel", "module.b.kernel"]),
        (Names(mapping={"module.a.weight": "q"}, strip="auto"), ["q", "b.weight"]),
    ],
)
def test_names_change_by_the_rules(rules: Names, expected: list[str]) -> None:
    assert rename(NAMES, rules) == (dict(zip(NAMES, expected, strict=True)), [])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Names(renames=[(r"\.[ab]\.", ".")]), "module.a.weight and module.b.weight would both be named module.weight"),
        (Names(strip="module.a."), "1 name of 2 do not begin with module.a.: module.b.weight"),
        (Names(mapping={"c": "d"}), "renames what is not there: c"),
        (Names(renames=[("(", "")]), "no regular expression"),
        (Names(renames=[("a", r"\7")]), "invalid group reference"),
        (Names(renames=[(".*", "")]), "nothing would be left of the name module.a.weight"),
    ],
)
def test_rules_that_would_lose_a_name_are_refused(rules: Names, message: str) -> None:
    with pytest.raises(CkptError, match=message.replace("(", r"\(").replace(".*", ".")):
        rename(NAMES, rules)


def test_keep_and_drop_say_what_they_leave(tmp_path: Path) -> None:
    done = convert(
        FIXTURES / "zip" / "mlp.pt", tmp_path / "out.pt", names=Names(keep=["fc*"], drop=["*.bias"], add="net.")
    )
    assert list(torch.load(tmp_path / "out.pt", weights_only=True)) == ["net.fc1.weight", "net.fc2.weight"]
    assert done.plan.left == tuple((f"fc{n}.bias", "left out by --keep or --drop") for n in (1, 2))
    with pytest.raises(CkptError, match="leave no tensor"):
        prepare(str(FIXTURES / "zip" / "mlp.pt"), str(tmp_path / "none.pt"), names=Names(keep=["x"]))


@pytest.mark.parametrize(
    ("names", "unmatched"),
    [
        (Names(keep=["fc1.*", "fc3.*"]), [("--keep", "fc3.*")]),
        (Names(drop=["hed.*", "*.bias"]), [("--drop", "hed.*")]),
        (Names(renames=[("fc1", "a"), ("fc1", "b"), ("^a", "c")]), [("--rename", "fc1=b")]),  # one after the other
        (Names(renames=[("fc(.)", r"fc\1")]), []),  # it matches, though nothing changes
        (Names(keep=["fc2.*"], renames=[("fc1", "a")]), [("--rename", "fc1=a")]),  # what is left out has no new name
        (Names(keep=["fc1.*"], drop=["fc2.*"]), []),
        (Names(keep=["fc3*", "fc*"], drop=["x"], renames=[("x", "y")]), [
            ("--keep", "fc3*"), ("--drop", "x"), ("--rename", "x=y"),
        ]),
    ],
)  # fmt: skip
def test_options_that_match_nothing_are_told(tmp_path: Path, names: Names, unmatched: list[tuple[str, str]]) -> None:
    done = convert(FIXTURES / "zip" / "mlp.pt", tmp_path / "out.safetensors", names=names)
    assert list(done.plan.unmatched) == unmatched


def test_extra_states_are_matched_too(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "a._extra_state": {"calls": 3}}, tmp_path / "in.pt")
    names = Names(drop=["*_extra_state"])
    assert convert(tmp_path / "in.pt", tmp_path / "out.pt", names=names).plan.unmatched == ()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_matches_nothing_is_a_warning(run: Any, tmp_path: Path, dry: list[str]) -> None:
    source, story = FIXTURES / "zip" / "mlp.pt", tmp_path / "story.json"
    options = ("--drop", "hed.*", "--rename", "^module.=", "--report", story, *dry)
    done = run("convert", source, tmp_path / "out.safetensors", *options)
    assert done.exit_code == 0
    assert done.stderr == "ckpt: --drop hed.* matches nothing\nckpt: --rename ^module.= matches nothing\n"
    assert json.loads(story.read_text())["files"][0]["unmatched"] == [
        {"option": "--drop", "pattern": "hed.*"},
        {"option": "--rename", "pattern": "^module.="},
    ]
    assert ("hed.*" in done.stdout) is bool(dry)


@pytest.mark.parametrize("legacy", [False, True])
def test_long_names_are_names(tmp_path: Path, legacy: bool) -> None:
    name = "layer." * 12_000 + "weight"
    torch.save({name: torch.arange(3.0)}, tmp_path / "source.pt", _use_new_zipfile_serialization=not legacy)
    for target in ("out.safetensors", "out.pt"):
        convert(tmp_path / "source.pt", tmp_path / target)
    assert list(safetensors_torch.load_file(tmp_path / "out.safetensors")) == [name]
    assert torch.load(tmp_path / "out.pt", weights_only=True)[name].tolist() == [0, 1, 2]


# --- what goes along


def test_module_versions_go_along_and_come_back(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = model.state_dict()
    source = saved(tmp_path, state)
    convert(source, tmp_path / "out.safetensors")
    convert(tmp_path / "out.safetensors", tmp_path / "back.pt")
    convert(source, tmp_path / "direct.pt", names=Names(add="net."))
    assert dict(torch.load(tmp_path / "back.pt", weights_only=True)._metadata) == dict(state._metadata)
    moved = torch.load(tmp_path / "direct.pt", weights_only=True)._metadata
    assert moved["net.1"] == {"version": 2}
    assert "1" not in moved
    fresh = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    fresh.load_state_dict(torch.load(tmp_path / "back.pt", weights_only=True), strict=True)


def test_plain_data_goes_along_and_the_rest_is_listed(tmp_path: Path) -> None:
    value = {
        "model": {"w": torch.ones(2)},
        "epoch": 3,
        "loss": float("nan"),
        "args": {"lr": 0.1, "sizes": (1, 2), 4: None},
        "optimizer": {"state": {0: {"m": torch.ones(2)}}, "param_groups": [{"params": [0]}]},
        "seen": torch.arange(3),
        "raw": b"bytes",
        "text": "x" * 200_000,
    }
    done = convert(saved(tmp_path, value), tmp_path / "out.safetensors", select="model", metadata={"licence": "MIT"})
    found = note(tmp_path / "out.safetensors")
    assert found["values"] == {"epoch": 3, "loss": "NaN", "args": {"lr": 0.1, "sizes": [1, 2], "4": None}}
    assert dict(done.plan.left) == {
        "optimizer": "mapping of 2 entries",
        "seen": "tensor int64 [3]",
        "raw": "bytes",
        "text": "text of 200.0 kB",
    }
    assert found["source"] == {"name": "source.pt", "digest": done.source.sha256, "complete": True}
    metadata = open_checkpoint(tmp_path / "out.safetensors").metadata
    assert {k: v for k, v in metadata.items() if k != NOTE} == {"format": "pt", "licence": "MIT"}


@pytest.mark.parametrize("whole", [False, True])
def test_frozen_parameters_are_told(tmp_path: Path, whole: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    value = model if whole else dict(model.named_parameters())
    done = convert(saved(tmp_path, value), tmp_path / "out.pt")
    why = "False for 1 parameter, which no state_dict records: 0.weight"
    assert [item for item in done.plan.left if item[0] == "requires_grad"] == [("requires_grad", why)]
    loaded = torch.load(tmp_path / "out.pt", weights_only=True)
    assert not any(tensor.requires_grad for tensor in loaded.values())
    assert all(type(tensor) is torch.Tensor for tensor in loaded.values())


def test_metadata_of_safetensors_goes_on(tmp_path: Path) -> None:
    safetensors_torch.save_file({"a": torch.ones(1)}, tmp_path / "in.safetensors", {"format": "pt", "base": "x"})
    convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert open_checkpoint(tmp_path / "out.safetensors").metadata["base"] == "x"


# --- casting


def test_cast_is_torch_s(tmp_path: Path) -> None:
    state = {"w": torch.randn(3000), "h": torch.randn(5).half(), "n": torch.arange(3), "z": torch.tensor([0.0, -0.0])}
    for name in ("bfloat16", "float32", "float16"):
        convert(saved(tmp_path, state), tmp_path / f"{name}.safetensors", dtype=BY_NAME[name], allow_lossy=True)
        loaded = safetensors_torch.load_file(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(loaded[k], state[k].to(getattr(torch, name))) for k in ("w", "h", "z"))
        assert loaded["n"].dtype == torch.int64


def test_values_lost_in_casting_are_counted_and_refused(tmp_path: Path) -> None:
    source = saved(tmp_path, {"w": torch.tensor([1e6, -1e6, 1e-9, 1.0, float("inf"), 0.0, float("nan")])})
    target = tmp_path / "out.safetensors"
    with pytest.raises(LossyConversion, match=r"1 tensor: w \(2 to infinity, 1 to zero\)"):
        convert(source, target, dtype=BY_NAME["float16"])
    assert not target.exists()
    done = convert(source, target, dtype=BY_NAME["float16"], allow_lossy=True)
    assert (done.losses["w"].overflow, done.losses["w"].underflow) == (2, 1)
    assert str(safetensors_torch.load_file(target)["w"].tolist()) == "[inf, -inf, 0.0, 1.0, inf, 0.0, nan]"


# --- files


def test_existing_targets_and_the_source_are_safe(tmp_path: Path) -> None:
    source = saved(tmp_path, {"a": torch.ones(2)})
    before = source.read_bytes()
    (tmp_path / "link.pt").symlink_to(source)
    for target in (source, tmp_path / "link.pt"):
        with pytest.raises(CkptError, match="is the source"):
            convert(source, target, force=True)
    assert source.read_bytes() == before
    (tmp_path / "old.pt").write_bytes(b"old")
    with pytest.raises(CkptError, match="--force replaces it"):
        convert(source, tmp_path / "old.pt")
    assert (tmp_path / "old.pt").read_bytes() == b"old"
    convert(source, tmp_path / "old.pt", force=True)
    assert torch.load(tmp_path / "old.pt", weights_only=True)["a"].tolist() == [1, 1]
    with pytest.raises(CkptError, match="is the source"):
        convert(
            FIXTURES / "sharded" / "bin", FIXTURES / "sharded" / "bin" / "pytorch_model-00001-of-00002.bin", force=True
        )


def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.pt").symlink_to(tmp_path / "real" / "out.pt")
    convert(FIXTURES / "zip" / "mlp.pt", tmp_path / "link.pt", force=True)
    assert (tmp_path / "link.pt").is_symlink()
    assert len(torch.load(tmp_path / "real" / "out.pt", weights_only=True)) == 4


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        convert(FIXTURES / "zip" / "mlp.pt", tmp_path / "out.safetensors")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out.safetensors").stat().st_mode) == 0o640


def test_a_source_cut_meanwhile_is_told_and_the_old_target_stays(tmp_path: Path) -> None:
    source = saved(tmp_path, {"a": torch.randn(400_000)})
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")
    conversion, watch = prepare(str(source), str(target), force=True)
    os.truncate(source, 700_000)
    for verify in (True, False):
        with pytest.raises(CkptError, match=r"cut while it was being read|came up short"):
            carry_out(conversion, watch, verify=verify)
    assert target.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.safetensors", "source.pt"]


def test_a_source_changed_meanwhile_is_told(tmp_path: Path) -> None:
    source = saved(tmp_path, {"a": torch.randn(100)})
    conversion, watch = prepare(str(source), str(tmp_path / "out.pt"))
    os.utime(source, ns=(1, 1))
    with pytest.raises(CkptError, match="changed while it was being converted"):
        carry_out(conversion, watch)
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_proof_finds_a_flipped_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    honest = running._write

    def flipping(file: Any, *arguments: Any) -> Any:
        written = honest(file, *arguments)
        file.flush()
        place = open_checkpoint(file.name).state_dicts[0]["fc2.bias"].storage
        os.pwrite(file.fileno(), b"\xff", place.source.locate(place.offset)[1])
        return written

    monkeypatch.setattr(running, "_write", flipping)
    with pytest.raises(CkptError, match=r"would not hold what the source does: fc2\.bias, so it was not kept"):
        convert(FIXTURES / "zip" / "mlp.pt", tmp_path / f"out{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_named_like_the_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeature, match="named __metadata__"):
        convert(saved(tmp_path, {"__metadata__": torch.ones(1)}), tmp_path / "out.safetensors")


# --- the command


def test_command_writes_reports_and_lists(run: Any, tmp_path: Path) -> None:
    target, story = tmp_path / "out.safetensors", tmp_path / "report.json"
    done = run("convert", FIXTURES / "training" / "adam.pt", target, "--report", story)
    assert done.exit_code == 0
    assert done.stdout.startswith("4 tensors, ")
    assert done.stdout.endswith(f"written to {target}, verified bit for bit\n")
    assert "ckpt: left behind: optimizer_state_dict: mapping of 2 entries\n" in done.stderr
    data = json.loads(story.read_text())["files"][0]
    assert data["verified"] is True
    assert data["source_digest"] == data["output_digest"]
    assert data["bytes"] == target.stat().st_size
    digest = run("digest", target).stdout.split()[0]
    assert digest == data["source_digest"] == run("digest", FIXTURES / "training" / "adam.pt").stdout.split()[0]


def test_command_refuses_in_one_sentence(run: Any, tmp_path: Path) -> None:
    (tmp_path / "out.pt").write_bytes(b"old")
    done = run("convert", FIXTURES / "zip" / "mlp.pt", tmp_path / "out.pt")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"ckpt: {tmp_path / 'out.pt'}: exists already. --force replaces it\n"
    assert run("convert", FIXTURES / "zip" / "mlp.pt", tmp_path / "x.pt", "--rename", "nothing").exit_code == 2


def test_dry_run_writes_nothing(run: Any, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"fc1.bias": "first"}')
    done = run(
        *("convert", FIXTURES / "zip" / "mlp.pt", tmp_path / "out.pt"),
        *("--dry-run", "--key-map", tmp_path / "map.json", "--drop", "fc2.*"),
    )
    assert done.exit_code == 0
    assert "first" in done.stdout
    assert "left out by --keep or --drop" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.json"]


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}'])
def test_key_maps_that_are_none_are_refused(run: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "map.json").write_text(text)
    done = run("convert", FIXTURES / "zip" / "mlp.pt", tmp_path / "o.pt", "--key-map", tmp_path / "map.json")
    assert done.exit_code == 2
    assert "key map" in done.stderr


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.argv[0] = "ckpt"
from ckpt_tools.cli import main
main()
"""


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_full_disk_leaves_the_old_target(tmp_path: Path, suffix: str) -> None:
    import subprocess
    import sys

    source, target = saved(tmp_path, {"a": torch.randn(100_000)}), tmp_path / f"out{suffix}"
    target.write_bytes(b"old")
    words = ["convert", str(source), str(target), "--force"]
    done = subprocess.run([sys.executable, "-c", LIMITED, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"ckpt: {target}: cannot be written: File too large\n"
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
