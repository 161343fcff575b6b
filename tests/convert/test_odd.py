"""Names nobody expects, notes that lie, places that are none, and small files that would become huge ones."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools import open_checkpoint
from ckpt_tools.analysis.digest import digest
from ckpt_tools.convert.plan import NOTE, Names
from ckpt_tools.convert.run import Conversion, carry_out, prepare
from ckpt_tools.errors import CkptError, LimitExceeded

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

SUFFIXES = (".safetensors", ".pt", ".npz")


def convert(source: Path, target: Path, **options: Any) -> Conversion:
    return carry_out(*prepare(str(source), str(target), force=True, **options))


def loaded(path: Path) -> dict[str, Any]:
    """What the format's own library finds."""
    if path.suffix == ".safetensors":
        found: dict[str, Any] = safetensors_torch.load_file(path)
        return found
    if path.suffix == ".pt":
        return dict(torch.load(path, weights_only=True))
    with numpy.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


# --- names

NAMES = st.one_of(
    st.text(max_size=8),
    st.text("a./\\\0\"'npy_", min_size=1, max_size=8),
    st.sampled_from(
        [
            *("", " ", ".", "..", "../../x", "/abs", "a.npy", "a", "a.npy.npy", "a\0b", "a\0c", "A", "__metadata__"),
            *(NOTE, "format", "é", "e\u0301", "\u202e", "a\nb", "🎉", "x" * 65_531, "x" * 65_532, "x" * 70_000),
        ]
    ),
)


@settings(max_examples=150)
@given(names=st.lists(NAMES, min_size=1, max_size=6, unique=True), suffix=st.sampled_from(SUFFIXES))
def test_any_names_come_out_as_they_are_or_are_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("names")
    source, target = folder / "in.pt", folder / f"out{suffix}"
    state = {name: torch.full((number,), float(number)) for number, name in enumerate(names)}
    try:
        torch.save(state, source)
    except UnicodeEncodeError:
        return
    try:
        convert(source, target)
    except CkptError as error:
        assert "--rename" in str(error)
        assert not target.exists()
        refused = {".safetensors": {"__metadata__"}, ".pt": set()}
        if suffix in refused:
            assert refused[suffix] & set(names)
        else:
            assert any("\0" in n or len(n.encode()) > 65_531 or f"{n}.npy" in names for n in names)
        return
    found = loaded(target)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in names)


@pytest.mark.parametrize(
    ("suffix", "names", "message"),
    [
        (".npz", ["a", "a.npy"], "the name a has a member that numpy would take for the array of that name with .npy"),
        (".npz", ["a\0b"], r"the name a\\x00b has a NUL"),
        (".npz", ["é" * 40_000], "the name é{59}… is too long for a zip archive"),
        (".safetensors", ["__metadata__"], "a tensor named __metadata__ cannot be written"),
    ],
)
def test_names_that_a_format_cannot_hold_are_told_by_a_dry_run_too(
    run: Any, tmp_path: Path, suffix: str, names: list[str], message: str
) -> None:
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "in.pt")
    with pytest.raises(CkptError, match=message) as found:
        prepare(str(tmp_path / "in.pt"), str(tmp_path / f"out{suffix}"))
    assert found.value.path == str(tmp_path / "in.pt")
    if suffix == ".safetensors":
        done = run("convert", tmp_path / "in.pt", tmp_path / "shards", "--shard-size", "1GB", "--dry-run")
        assert done.exit_code == 2
        convert(tmp_path / "in.pt", tmp_path / f"out{suffix}", names=Names(add="x"))
        assert list(loaded(tmp_path / f"out{suffix}")) == ["x__metadata__"]


# --- notes

SIZES = st.integers(-1, 7) | st.sampled_from([1 << 40, 1 << 62, 1 << 70])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KNOWN = st.sampled_from(["a", "b", "c.d", "e.f", "g", ""])


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Objects with these fields, of which some may be missing or be anything."""
    return st.fixed_dictionaries({}, optional={name: value | JSON for name, value in fields.items()}) | (
        st.fixed_dictionaries(fields)
    )


ALIASES = objects(
    of=KNOWN,
    offset=SIZES,
    shape=st.lists(SIZES, max_size=3),
    stride=st.lists(SIZES, max_size=3),
    stored=st.booleans(),
)
COMPOSITES = objects(
    dtype=st.sampled_from(["float32", "qint8", "complex64", "uint8", "q4_k", "quint4x2"]),
    shape=st.lists(SIZES, max_size=3),
    layout=st.sampled_from(["strided", "sparse_coo", "sparse_csr", "nested", "dense"]),
    details=JSON | objects(scale=JSON, zero_point=JSON, qscheme=JSON, axis=JSON, conj=JSON, neg=JSON),
    elements=st.sampled_from(["values", "scale", None]),
    parts=st.dictionaries(st.sampled_from(["values", "indices", "scale", "zero_point", "axis", "size"]), KNOWN),
)
NOTES = st.fixed_dictionaries(
    {},
    optional={
        "aliases": st.dictionaries(KNOWN, ALIASES, max_size=5) | JSON,
        "decomposed": st.dictionaries(KNOWN, COMPOSITES, max_size=3) | JSON,
        "values": JSON,
        "versions": JSON | st.dictionaries(KNOWN, JSON),
        "extra_state": JSON | st.dictionaries(KNOWN, JSON),
        "source": JSON,
        "version": JSON,
    },
)


@settings(max_examples=200)
@given(note=NOTES, lines=st.dictionaries(KNOWN, KNOWN, max_size=3), suffix=st.sampled_from(SUFFIXES))
def test_whatever_a_note_says_what_the_file_holds_comes_out(
    tmp_path_factory: pytest.TempPathFactory, note: dict[str, Any], lines: dict[str, str], suffix: str
) -> None:
    """A note may say what is not true of the file: all tensors come out, or one error says why not."""
    folder = tmp_path_factory.mktemp("notes")
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(1.0, 3), "c.d": torch.tensor([[0, 1]])}
    try:
        metadata = {**lines, NOTE: json.dumps(note)}
        safetensors_torch.save_file(tensors, folder / "in.safetensors", metadata)
    except UnicodeEncodeError:
        return
    checkpoint = open_checkpoint(folder / "in.safetensors")
    try:
        before = digest(checkpoint.state_dicts[0].tensors)
        done = convert(folder / "in.safetensors", folder / f"out{suffix}", decomposing=suffix == ".safetensors")
    except CkptError:
        return
    assert done.source is not None
    assert done.source.sha256 == before.sha256
    if suffix != ".npz":
        again = open_checkpoint(folder / f"out{suffix}").state_dicts[0]
        assert digest(again.tensors).sha256 == done.output.sha256  # type: ignore[union-attr]
    # every byte of the file is under some name of the output
    written = b"".join(bytes(t.contiguous().view(-1).view(torch.uint8)) for t in plain(loaded(folder / f"out{suffix}")))
    for tensor in tensors.values():
        assert bytes(tensor.view(-1).view(torch.uint8)) in written


def plain(found: dict[str, Any]) -> list[Any]:
    tensors = []
    for tensor in found.values():
        if not isinstance(tensor, torch.Tensor):
            continue
        if tensor.layout is torch.sparse_coo:
            tensors += [tensor._indices(), tensor._values()]
        elif tensor.is_quantized:
            tensors.append(tensor.int_repr())
        else:
            tensors.append(tensor)
    return tensors


def test_numbers_that_a_note_cannot_hold_are_no_fault(tmp_path: Path) -> None:
    note = json.dumps({"values": {"best": math.inf, "steps": 1 << 70, "epoch": 3}})
    safetensors_torch.save_file({"a": torch.ones(1)}, tmp_path / "in.safetensors", {NOTE: note})
    plan = convert(tmp_path / "in.safetensors", tmp_path / "out.safetensors").plan
    assert (plan.values, plan.left) == ({"best": "Infinity", "epoch": 3}, (("steps", "an integer beyond 64 bits"),))


def test_ties_that_the_library_notes_are_ties(tmp_path: Path) -> None:
    """The digest does not depend on the format: that of a tied model is one with all its names."""
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    torch.save(model.state_dict(), tmp_path / "model.pt")
    metadata = {"author": "embed.weight", "base.model": "someone/else", "e.f": "g.h"}
    safetensors_torch.save_model(model, tmp_path / "model.safetensors", metadata)
    assert list(safetensors_torch.load_file(tmp_path / "model.safetensors")) == ["embed.weight"]
    weights = open_checkpoint(tmp_path / "model.pt").state_dicts[0].tensors
    state_dict = open_checkpoint(tmp_path / "model.safetensors").state_dicts[0]
    assert [tensor.name for tensor in state_dict.tensors] == ["embed.weight", "head.weight"]
    assert digest(state_dict.tensors).sha256 == digest(weights).sha256
    for suffix in SUFFIXES:
        convert(tmp_path / "model.safetensors", tmp_path / f"out{suffix}")
    state = loaded(tmp_path / "out.pt")
    model.load_state_dict(state, strict=True)
    assert state["head.weight"].data_ptr() == state["embed.weight"].data_ptr()
    assert loaded(tmp_path / "out.npz").keys() == state.keys()
    # the line is written anew, under the new names
    convert(tmp_path / "model.safetensors", tmp_path / "new.safetensors", names=Names(add="net."))
    with safetensors_torch.safe_open(tmp_path / "new.safetensors", "pt") as file:
        written = file.metadata()
    del written[NOTE]
    assert written == {
        "author": "embed.weight", "base.model": "someone/else", "e.f": "g.h", "format": "pt",
        "net.head.weight": "net.embed.weight",
    }  # fmt: skip


def test_metadata_cannot_take_the_place_of_the_note(run: Any, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    done = run("convert", tmp_path / "a.pt", tmp_path / "b.safetensors", "--metadata", f"{NOTE}=x")
    assert done.exit_code == 2
    assert f"--metadata {NOTE}=… would take the place of what every output says there" in done.stderr


# --- sizes


def sparse() -> Any:
    long = 1 << 40
    indices, values = torch.zeros(1, 1, dtype=torch.int64).expand(1, long), torch.ones(1).expand(long)
    return torch.sparse_coo_tensor(indices, values, (5,), check_invariants=False)


BASE = torch.arange(200_000.0)
REPEATED: dict[str, Any] = {
    "expanded": lambda: {"a": torch.ones(1).expand(1 << 20, 1 << 20)},
    "views": lambda: {f"v{i}": BASE[: 200_000 - i] for i in range(1_500)},
    "parts": lambda: {"s": sparse()},
}


@pytest.mark.parametrize("what", REPEATED)
def test_a_few_bytes_repeated_without_measure_are_refused(run: Any, tmp_path: Path, what: str) -> None:
    torch.save(REPEATED[what](), tmp_path / "in.pt")
    assert (tmp_path / "in.pt").stat().st_size < 3_000_000
    for suffix in SUFFIXES:
        done = run("convert", tmp_path / "in.pt", tmp_path / f"out{suffix}")
        assert done.exit_code == 2
        assert "bytes are repeated, by expanded tensors and views, to " in done.stderr
    done = run("digest", tmp_path / "in.pt")
    assert done.exit_code == 2
    assert "bytes are repeated, by expanded tensors and views, to " in done.stderr
    assert "--drop" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_many_names_of_one_tensor_are_many_arrays_only_within_measure(tmp_path: Path) -> None:
    torch.save({f"t{i}": BASE for i in range(1_500)}, tmp_path / "in.pt")
    with pytest.raises(
        LimitExceeded, match="800,000 bytes are repeated, by expanded tensors and views, to 1,200,000,000"
    ):
        prepare(str(tmp_path / "in.pt"), str(tmp_path / "out.npz"))
    for suffix in (".safetensors", ".pt"):
        convert(tmp_path / "in.pt", tmp_path / f"out{suffix}")
        assert (tmp_path / f"out{suffix}").stat().st_size < 4_000_000


def test_views_of_one_memory_by_types_of_other_widths(tmp_path: Path) -> None:
    """uint16 and float8 lie in storages without a type, so that torch saves both views of one."""
    whole = torch.arange(8, dtype=torch.int32).to(torch.uint16)
    state = {"a": whole[:4], "b": whole.view(torch.float8_e5m2)[:4], "c": whole.view(torch.float8_e4m3fn)[:4]}
    torch.save(state, tmp_path / "in.pt")
    (found,) = open_checkpoint(tmp_path / "in.pt").state_dicts
    assert len({tensor.storage for tensor in found.tensors}) == 1
    apart = {name: tensor.clone() for name, tensor in state.items()}
    torch.save(apart, tmp_path / "apart.pt")
    (expected,) = open_checkpoint(tmp_path / "apart.pt").state_dicts
    assert digest(found.tensors) == digest(expected.tensors)
    for suffix in (".safetensors", ".pt"):
        convert(tmp_path / "in.pt", tmp_path / f"out{suffix}")
        written = loaded(tmp_path / f"out{suffix}")
        assert all(torch.equal(written[n].view(torch.uint8), state[n].view(torch.uint8)) for n in state)


# --- places


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("folder", "is a folder. Name a file in it; --out-dir and --shard-size write into a folder"),
        ("folder/", "is a folder"),
        ("new/", "is a folder"),
        ("folder.pt", "is a folder"),
        ("-", "an output is proven before it takes its place, which standard output cannot be"),
        ("pipe.pt", "is no regular file, which alone can be replaced"),
        ("none/deep/out.pt", "cannot be written: there is no folder {}/none/deep. Make it first"),
        ("link.pt", "cannot be written: there is no folder {}/nowhere. Make it first"),
    ],
)
def test_places_where_no_file_can_be(run: Any, tmp_path: Path, target: str, message: str) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    for folder in ("folder", "folder.pt"):
        (tmp_path / folder).mkdir()
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "link.pt").symlink_to(tmp_path / "nowhere" / "x.pt")
    before = sorted(tmp_path.rglob("*"))
    for dry in ([], ["--dry-run"]):
        done = run("convert", "a.pt", target, "--force", *dry, cwd=tmp_path)
        assert done.exit_code == 2
        assert done.stderr.startswith(f"ckpt: {target}: {message.format(os.path.realpath(tmp_path))}")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_set_of_shards_has_a_folder_to_be_in(run: Any, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    for dry in ([], ["--dry-run"]):
        done = run("convert", "a.pt", "none/deep", "--shard-size", "1GB", *dry, cwd=tmp_path)
        assert done.exit_code == 2
        assert f"cannot be written: there is no folder {os.path.realpath(tmp_path)}/none. Make it first" in done.stderr
    assert run("convert", "a.pt", "new", "--shard-size", "1GB", "--dry-run", cwd=tmp_path).exit_code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_dry_run_tells_of_a_folder_that_takes_nothing(run: Any, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    (tmp_path / "closed").mkdir(mode=0o500)
    for dry in ([], ["--dry-run"]):
        done = run("convert", "a.pt", "closed/b.pt", *dry, cwd=tmp_path)
        assert (done.exit_code, "closed/b.pt: cannot be written" in done.stderr) == (2, True)


def test_text_for_metadata_has_a_place_or_is_refused(run: Any, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    for target in (["b.pt"], ["b.npz"], ["--out-dir", "out", "--to", "pt"]):
        done = run("convert", "a.pt", *target, "--metadata", "who=me", cwd=tmp_path)
        assert (done.exit_code, "has no place for --metadata, which goes into .safetensors" in done.stderr) == (2, True)
    assert not (tmp_path / "b.pt").exists()
    assert run("convert", "a.pt", "b.safetensors", "--metadata", "who=me", cwd=tmp_path).exit_code == 0


def test_standard_input_is_a_source(run: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(3.0)}, buffer)
    done = run("convert", "-", tmp_path / "out.safetensors", stdin=buffer.getvalue())
    assert (done.exit_code, done.stderr) == (0, "")
    assert loaded(tmp_path / "out.safetensors")["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "in.pt", "out.safetensors", "--force", "--report", "in.pt"],
        ["convert", "in.pt", "out.safetensors", "--force", "--report", "link"],
        ["convert", "in.pt", "new.safetensors", "--report", "new.safetensors"],
        ["convert", "in.pt", "new.safetensors", "--report", "./folder/../new.safetensors"],
        ["convert", "in.pt", "folder", "--shard-size", "1GB", "--report", "folder/model.safetensors"],
        ["convert", "in.pt", "out.safetensors", "--force", "--report", "other.pt"],
        ["convert", "in.pt", "--out-dir", "folder", "--report", "in.pt"],
        ["digest", "in.pt", "--write", "in.pt"],
        ["digest", "in.pt", "--write", "other.pt"],
        ["inspect", "in.pt", "--format", "json", "-o", "in.pt"],
        ["diff", "in.pt", "other.pt", "--write-key-map", "other.pt"],
        ["diff", "in.pt", "other.pt", "--write-key-map", "link"],
        ["audit", "in.pt", "--write-baseline", "--baseline", "in.pt"],
        ["verify", "in.pt", "--model", "torch.nn:Identity", "--write-key-map", "in.pt"],
    ],
    ids=" ".join,
)
def test_no_text_replaces_a_checkpoint(run: Any, tmp_path: Path, words: list[str]) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "in.pt")
    (tmp_path / "other.pt").write_bytes((tmp_path / "in.pt").read_bytes())
    convert(tmp_path / "in.pt", tmp_path / "out.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("in.pt")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = run(*words, cwd=tmp_path)
    assert done.exit_code == 2
    assert done.stderr == f"ckpt: {words[-1]}: is a checkpoint, which no report replaces\n"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_record_of_outputs_replaces_none_of_what_is_read(run: Any, tmp_path: Path) -> None:
    for name in ("in.pt", "base.pt"):
        torch.save({"a": torch.ones(1)}, tmp_path / name)
    for name in ("in.pt", "base.pt"):
        before = (tmp_path / name).read_bytes()
        words = ["in.pt", "--model", "torch.nn:Identity", "--base", "base.pt", "--record", name]
        done = run("verify", *words, cwd=tmp_path)
        message = f"ckpt: {name}: is a checkpoint that is read, which --record does not replace\n"
        assert (done.exit_code, done.stderr) == (2, message)
        assert (tmp_path / name).read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"a\x1b[31m\x07.pt", r"a\x1b[31m\x07.pt"), (b"a\nb.pt", r"a\nb.pt"), (b"a\xff.pt", r"a\udcff.pt")],
    ids=["steers", "lines", "bytes"],
)
def test_a_file_of_any_name_is_converted_and_told_on_one_plain_line(
    run: Any, tmp_path: Path, name: bytes, shown: str
) -> None:
    source = os.path.join(tmp_path, os.fsdecode(name))
    torch.save({"a": torch.ones(1)}, tmp_path / "plain.pt")
    os.rename(tmp_path / "plain.pt", source)
    done = run("convert", source, f"{source}.safetensors")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.endswith(f"/{shown}.safetensors, verified bit for bit\n")
    assert len(done.stdout.splitlines()) == 1
    again = run("convert", source, f"{source}.safetensors")
    assert again.stderr.endswith(f"/{shown}.safetensors: exists already. --force replaces it\n")
    assert len(again.stderr.splitlines()) == 1
    assert run("diff", source, f"{source}.safetensors").exit_code == 0
    assert run("convert", tmp_path, "--out-dir", tmp_path / "out", "--jobs", "2").exit_code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "record: cannot be read: No such file or directory"),
        (b"", "record: is no record of a digest. ckpt digest --write makes one"),
        (b"\x80\x02", "record: is no record of a digest. ckpt digest --write makes one"),
        (b"# words\n", "record: is no record that this version can check: it begins with '#', not ckpt-digest-1"),
    ],
)
def test_what_is_no_record_of_a_digest(run: Any, tmp_path: Path, content: bytes | None, message: str) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "in.pt")
    if content is not None:
        (tmp_path / "record").write_bytes(content)
    done = run("digest", "in.pt", "--check", "record", cwd=tmp_path)
    assert done.exit_code == 2
    assert done.stderr == f"ckpt: {message}\n"


# --- what the command says and how it ends


def test_a_folder_with_one_checkpoint_is_that_one(run: Any, tmp_path: Path) -> None:
    (tmp_path / "one" / "deep").mkdir(parents=True)
    torch.save({"a": torch.arange(3.0)}, tmp_path / "one" / "deep" / "model.pt")
    (tmp_path / "one" / "notes.txt").write_text("nothing")
    done = run("convert", "one", "out.pt", cwd=tmp_path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert loaded(tmp_path / "out.pt")["a"].tolist() == [0, 1, 2]
    assert run("convert", "one", "one/deep/model.pt", "--force", cwd=tmp_path).exit_code == 2
    torch.save({"b": torch.ones(1)}, tmp_path / "one" / "other.pt")
    done = run("convert", "one", "more.pt", cwd=tmp_path)
    assert done.exit_code == 2
    assert done.stderr == "ckpt: one: 2 checkpoints are in this folder: other.pt, deep/model.pt. Name one\n"


@pytest.mark.parametrize(
    ("source", "values", "left"),
    [
        (
            {"mean": torch.ones(2), "config": {"a": 1}, "more": {}, "odd": numpy.array([None, 1], dtype=object)},
            {"config": {"a": 1}, "more": {}},
            {"odd": "object of class numpy._core.multiarray._reconstruct"},
        ),
        ([torch.ones(2), 5, torch.float16], {"[1]": 5}, {"[2]": "reference to torch.float16"}),
        ({"a": {1: torch.ones(2), "b": 3}, "c": 4}, {"a.b": 3, "c": 4}, {}),
        (
            {
                "model": {"w.x": torch.ones(1)},
                "model_ema": {"w.x": torch.ones(1)},
                "more": {"ema": {"w.x": torch.ones(1)}},
            },
            {},
            {
                "model_ema": "mapping of 1 entry; --select model_ema takes it",
                "more": "mapping of 1 entry; --select more.ema takes it",
            },
        ),
        (
            types.SimpleNamespace(model={"w.x": torch.ones(1)}, epoch=3, device=torch.float16),
            {"epoch": 3},
            {"device": "reference to torch.float16"},
        ),
    ],
    ids=["loose", "list", "nested", "several", "object"],
)
def test_what_is_beside_the_weights_goes_along_or_is_told(
    tmp_path: Path, source: object, values: dict[str, Any], left: dict[str, str]
) -> None:
    torch.save(source, tmp_path / "in.pt")
    plan = convert(tmp_path / "in.pt", tmp_path / "out.safetensors").plan
    assert (plan.values, dict(plan.left)) == (values, left)


def test_many_things_left_behind_for_one_reason_share_a_line(run: Any, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {f"w{n:02}": torch.ones(1) for n in range(12)}}, tmp_path / "in.pt")
    done = run("convert", "in.pt", "few.pt", "--keep", "w0*", cwd=tmp_path)
    told = [f"ckpt: left behind: {name}: left out by --keep or --drop" for name in ("w10", "w11")]
    rest = ["ckpt: left behind: epoch: plain data, which goes along only in safetensors"]
    assert done.stderr.splitlines() == told + rest
    done = run("convert", "in.pt", "one.pt", "--keep", "w1*", "--report", "told.json", cwd=tmp_path)
    names = "w00, w01, w02, w03, w04, w05 and 4 more"
    assert done.stderr.splitlines() == [
        f"ckpt: left behind: 10 things ({names}): left out by --keep or --drop",
        *rest,
    ]
    left = json.loads((tmp_path / "told.json").read_text())["files"][0]["left_behind"]
    assert [item["what"] for item in left] == [*(f"w0{n}" for n in range(10)), "epoch"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_an_asked_for_end_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """What ends a job in a queue or a container, or closes its terminal, is no kill."""
    torch.save({"a": torch.ones(3)}, tmp_path / "in.pt")
    (tmp_path / "out.pt").write_bytes(b"old")
    program = (
        "import os, signal, sys; from ckpt_tools.convert import prove\n"
        "def held(*arguments):\n"
        "    assert os.path.exists('.out.pt.partial')\n"
        f"    os.kill(os.getpid(), {number:d})\n"
        "    raise AssertionError('it goes on')\n"
        "prove.prove = held\n"
        "from ckpt_tools.cli import main; sys.argv[1:] = ['convert', 'in.pt', 'out.pt', '--force']; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (128 + number, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt", "out.pt"]
    assert (tmp_path / "out.pt").read_bytes() == b"old"


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "in.pt")
    program = (
        "import os, signal, sys; from ckpt_tools.convert import prove; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "honest = prove.prove\n"
        "def held(*arguments):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    return honest(*arguments)\n"
        "prove.prove = held\n"
        "from ckpt_tools.cli import main; sys.argv[1:] = ['convert', 'in.pt', 'out.pt']; main()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert (tmp_path / "out.pt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "map.json: cannot be read: No such file or directory"),
        (b"{", "map.json: is no key map: it is no JSON ("),
        (b"\xff", "map.json: is no key map: it is no JSON ("),
    ],
)
def test_what_is_no_key_map(run: Any, tmp_path: Path, content: bytes | None, message: str) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "in.pt")
    if content is not None:
        (tmp_path / "map.json").write_bytes(content)
    done = run("convert", "in.pt", "out.pt", "--key-map", "map.json", cwd=tmp_path)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"ckpt: {message}")
