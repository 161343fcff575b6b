"""``--extract-source`` writes the source that legacy files contain, as text, under names that cannot lead astray."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.convert.source_text import MAX_NAME, check_sources, sources_in, write_sources
from ckpt_tools.errors import CkptError
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.formats.torch_legacy import SourceFile
from ckpt_tools.sources import MemorySource

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


def holding(sources: dict[str, SourceFile], *parts: Checkpoint) -> Checkpoint:
    source = MemorySource(b"", "m.pt")
    return Checkpoint("m.pt", source, "torch_legacy", "", "model", metadata={"sources": sources}, parts=parts)


def test_fixture_of_a_full_model(run: Any, tmp_path: Path) -> None:
    source = FIXTURES / "legacy" / "model.pt"
    expected = open_checkpoint(source).metadata["sources"]
    done = run(
        *("convert", source, tmp_path / "out.safetensors", "--extract-source", tmp_path / "made" / "src"),
        *("--report", tmp_path / "story.json"),
    )
    assert done.exit_code == 0
    files = {path.name: path.read_text() for path in (tmp_path / "made" / "src").iterdir()}
    assert files == {f"{name}.py.txt": text.text for name, text in expected.items()}
    assert "gone.models.SmallCNN.py.txt" in files
    assert (
        f"ckpt: source of gone.models.SmallCNN: {tmp_path / 'made' / 'src' / 'gone.models.SmallCNN.py.txt'}"
        in done.stderr
    )
    told = json.loads((tmp_path / "story.json").read_text())["files"][0]["class_sources"]
    assert [(s["class"], s["file"]) for s in told] == [(name, str(file)) for name, file in expected.items()]
    assert Path(told[0]["written_to"]).read_text() == files[Path(told[0]["written_to"]).name]


def test_what_torch_writes_today(run: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    done = run("convert", tmp_path / "model.pt", tmp_path / "out.pt", "--extract-source", tmp_path)
    assert done.exit_code == 0
    text = (tmp_path / "torch.nn.modules.linear.Linear.py.txt").read_text()
    assert text == inspect.getsource(torch.nn.Linear)


def test_a_dry_run_only_tells(run: Any, tmp_path: Path) -> None:
    words = ("convert", FIXTURES / "legacy" / "model.pt", "out.pt", "--extract-source", "src")
    done = run(*words, "--dry-run", cwd=tmp_path)
    assert done.exit_code == 0
    assert "src/gone.models.SmallCNN.py.txt" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_there_stay_without_force(run: Any, tmp_path: Path) -> None:
    old = tmp_path / "gone.models.SmallCNN.py.txt"
    old.write_text("mine")
    words = ("convert", FIXTURES / "legacy" / "model.pt", tmp_path / "out.pt", "--extract-source", tmp_path)
    done = run(*words)
    assert (done.exit_code, done.stderr) == (2, f"ckpt: {old}: exists already. --force replaces it\n")
    assert old.read_text() == "mine"
    assert not (tmp_path / "out.pt").exists()
    assert run(*words, "--force").exit_code == 0
    assert "class SmallCNN" in old.read_text()


def test_where_there_is_none_a_line_says_so(run: Any, tmp_path: Path) -> None:
    done = run("convert", FIXTURES / "zip" / "mlp.pt", tmp_path / "out.pt", "--extract-source", tmp_path / "src")
    assert done.exit_code == 0
    assert done.stderr == "ckpt: no source to extract: only full models in torch's legacy format contain any\n"
    assert not (tmp_path / "src").exists()


def test_many_files_have_no_one_folder(run: Any, tmp_path: Path) -> None:
    words = ("convert", FIXTURES / "zip" / "mlp.pt", "--out-dir", tmp_path / "out", "--extract-source", tmp_path)
    done = run(*words)
    assert done.exit_code == 2
    assert "--extract-source is for one SRC" in done.stderr


def test_names_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    names = ["../../etc/x", "/abs.X", "a\\b.C", "..", ".hidden", "-rf", "é.ü", "a\0b", "A.B", "a.b", "a b", "a/b", ""]
    names.append("long." * 1000 + "C")
    names.append("long." * 1000 + "D")
    sources = sources_in(holding({name: SourceFile("x.py", f"# {name}") for name in names}), str(tmp_path / "src"))
    check_sources(sources, force=False)
    write_sources(sources)
    assert {path.parent for path in tmp_path.rglob("*.txt")} == {tmp_path / "src"}
    written = {Path(s.path).name.removesuffix(".py.txt"): s.class_name for s in sources}
    long = [name for name in written if name.startswith("long.")]
    assert [len(name) for name in long] == [MAX_NAME + 9] * 2
    assert {name: own for name, own in written.items() if name not in long} == {
        "_.._etc_x": "../../etc/x",
        "_abs.X": "/abs.X",
        "a_b.C": "a\\b.C",
        "_": "..",
        "hidden": ".hidden",
        "rf": "-rf",
        "_._": "é.ü",
        "a_b": "a\0b",
        "A.B": "A.B",
        "a.b-2": "a.b",
        "a_b-2": "a b",
        "a_b-3": "a/b",
        "_-2": "",
    }
    for source in sources:
        assert Path(source.path).read_text("utf-8") == f"# {source.class_name}"


def test_texts_that_are_no_unicode_and_lines_of_windows(tmp_path: Path) -> None:
    (source,) = sources_in(holding({"a.B": SourceFile("b.py", "x = '\ud800'\r\n")}), str(tmp_path))
    write_sources([source])
    assert Path(source.path).read_bytes() == b"x = '\\ud800'\r\n"


def test_parts_have_sources_too_each_once(tmp_path: Path) -> None:
    same, other = SourceFile("b.py", "class B: pass"), SourceFile("b.py", "class B: ...")
    whole = holding({"a.B": same}, holding({"a.B": same}), holding({"a.B": other}))
    names = [Path(source.path).name for source in sources_in(whole, str(tmp_path))]
    assert names == ["a.B.py.txt", "a.B-2.py.txt"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sources = sources_in(holding({"a.B": SourceFile("b.py", "")}), str(tmp_path / "file" / "src"))
    with pytest.raises(CkptError, match="cannot be written: Not a directory"):
        write_sources(sources)
