"""``ckpt convert --out-dir``: a tree into a tree, resumed, in processes or on a cluster, none stopped by a bad file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.convert.many import MANIFEST, Options, Task, convert_all, tasks
from ckpt_tools.errors import CkptError

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three checkpoints in a tree, and what is none."""
    for number, name in enumerate(("a/one.pth", "a/deep/two.pt", "b/one.ckpt")):
        path = tmp_path / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"w": torch.full((3,), float(number)), "epoch": number}, path)
    (tmp_path / "runs" / "notes.txt").write_text("nothing")
    return tmp_path / "runs"


CONVERTED = ["a/deep/two.safetensors", "a/one.safetensors", "b/one.safetensors"]


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in tree(folder)}


def rows(stdout: str) -> dict[str, list[str]]:
    """The summary's table: files, tensors, size by result."""
    lines = stdout.splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip().startswith("result"))
    found = {}
    for line in lines[start + 1 :]:
        if not line.strip():
            break
        result, *cells = [cell for cell in line.strip().split("  ") if cell]
        found[result] = [cell.strip() for cell in cells]
    return found


def test_a_tree_is_kept(run: Any, runs: Path, tmp_path: Path) -> None:
    for number, arguments in enumerate(([runs], [runs / "**/*.p*", runs / "b" / "one.ckpt"], [runs / "a", runs / "b"])):
        out = tmp_path / f"out{number}"
        done = run("convert", *arguments, "--out-dir", out)
        assert (done.exit_code, done.stderr) == (0, "")
        assert done.stdout.startswith(f"{out}: 3 of 3 checkpoints\n")
        assert rows(done.stdout)["converted"][:2] == ["3", "3"]
        assert tree(out) == CONVERTED
    values = [safetensors_torch.load_file(out / name)["w"].tolist() for name in CONVERTED]
    assert values == [[1.0] * 3, [0.0] * 3, [2.0] * 3]


def test_a_single_file_lies_at_the_top(run: Any, runs: Path, tmp_path: Path) -> None:
    done = run("convert", runs / "a" / "deep" / "two.pt", "--out-dir", tmp_path / "out", "--to", "npz")
    assert done.exit_code == 0
    assert tree(tmp_path / "out") == ["two.npz"]


def test_what_matches_nothing_in_any_file_is_told_once(run: Any, runs: Path, tmp_path: Path) -> None:
    torch.save({"v": torch.ones(1)}, runs / "b" / "other.pt")
    options = ("--out-dir", tmp_path / "out", "--drop", "x*", "--rename", "^v$=u", "--rename", "nothing=y")
    told = [
        "ckpt: --drop x* matches nothing in any of 4 files",
        "ckpt: --rename nothing=y matches nothing in any of 4 files",
    ]
    for how in ("converted", "unchanged since it was converted"):
        done = run("convert", runs, *options)
        assert list(rows(done.stdout)) == [how]
        assert done.exit_code == 0
        assert done.stderr.splitlines() == told
    (tmp_path / "out" / MANIFEST).write_text("")
    done = run("convert", runs, *options)
    assert list(rows(done.stdout)) == ["there already, and equal"]
    assert done.stderr.splitlines() == told


def test_a_bad_file_stops_no_other(run: Any, runs: Path, tmp_path: Path) -> None:
    (runs / "a" / "bad.pt").write_bytes(b"<html>")
    torch.save({"lr": 0.1}, runs / "b" / "no_weights.pt")
    out, story = tmp_path / "out", tmp_path / "report.json"
    done = run("convert", runs, tmp_path / "gone", "--out-dir", out, "--report", story)
    assert done.exit_code == 1
    assert tree(out) == CONVERTED
    assert done.stdout.startswith(f"{out}: 3 of 6 checkpoints\n")
    assert rows(done.stdout)["failed"] == ["3"]
    errors = done.stderr.splitlines()
    assert len(errors) == 3
    assert f"ckpt: {tmp_path / 'gone'}: no such file" in errors
    assert any(line.startswith(f"ckpt: {runs / 'a' / 'bad.pt'}: ") for line in errors)
    told = {Path(file["path"]).name: file for file in json.loads(story.read_text())["files"]}
    assert {name: file["result"] for name, file in told.items()} == {
        "one.pth": "converted", "two.pt": "converted", "one.ckpt": "converted",
        "bad.pt": "failed", "no_weights.pt": "failed", "gone": "failed",
    }  # fmt: skip
    assert told["two.pt"]["values"] == {"epoch": 1}
    assert told["two.pt"]["verified"] is True
    assert "there is no model in it" in told["no_weights.pt"]["error"]


def test_exit_code_2_where_nothing_could_be_done(run: Any, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.pt").write_bytes(b"<html>")
    (tmp_path / "empty").mkdir()
    for source in ("bad", "empty", "gone"):
        assert run("convert", tmp_path / source, "--out-dir", tmp_path / "out").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_what_is_unchanged_is_passed_over_unread(run: Any, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("convert", runs, "--out-dir", out)
    run(*words)
    before = {name: (out / name).stat().st_mtime_ns for name in CONVERTED}
    # a file that cannot be read any more, its size and time kept, shows that it was not
    status = (runs / "b" / "one.ckpt").stat()
    (runs / "b" / "one.ckpt").write_bytes(b"x" * status.st_size)
    os.utime(runs / "b" / "one.ckpt", ns=(status.st_atime_ns, status.st_mtime_ns))
    torch.save({"w": torch.ones(2)}, runs / "new.pt")
    for options, counts in (((), ["3", "1"]), (("--force",), ["4"])):
        done = run(*words, *options)
        assert done.exit_code == 0
        assert sorted((cells[0] for cells in rows(done.stdout).values()), reverse=True) == counts
    assert {name: (out / name).stat().st_mtime_ns for name in CONVERTED} == before
    assert tree(out) == [*CONVERTED, "new.safetensors"]


def test_other_options_are_another_conversion(run: Any, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("convert", runs, "--out-dir", out)
    done = run("convert", runs, "--out-dir", out, "--add-prefix", "net.")
    assert done.exit_code == 2
    assert done.stderr.count("exists already, and is not what would be written. --force replaces it") == 3
    done = run("convert", runs, "--out-dir", out, "--add-prefix", "net.", "--force")
    assert rows(done.stdout)["converted"][:2] == ["3", "3"]
    assert list(safetensors_torch.load_file(out / CONVERTED[0])) == ["net.w"]


def test_what_no_line_vouches_for_is_compared(run: Any, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("convert", runs, "--out-dir", out, "--dtype", "bfloat16")
    run(*words)
    (out / MANIFEST).unlink()
    before = contents(out)
    done = run(*words)
    assert (done.exit_code, rows(done.stdout)["there already, and equal"][:2]) == (0, ["3", "3"])
    assert contents(out) == before
    assert rows(run(*words).stdout)["unchanged since it was converted"][0] == "3"
    # an output that was changed, and a source that was
    data = bytearray((out / CONVERTED[0]).read_bytes())
    data[-1] ^= 1
    (out / CONVERTED[0]).write_bytes(data)
    torch.save({"w": torch.full((3,), 9.0), "epoch": 0}, runs / "a" / "one.pth")
    done = run(*words)
    assert done.exit_code == 1
    assert [line.partition(": exists")[0] for line in done.stderr.splitlines()] == [
        f"ckpt: {out / name}" for name in sorted(CONVERTED[:2], reverse=True)
    ]
    assert (out / CONVERTED[0]).read_bytes() == bytes(data)
    done = run(*words, "--force")
    assert {result: cells[0] for result, cells in rows(done.stdout).items()} == {
        "converted": "2",
        "unchanged since it was converted": "1",
    }
    assert (out / CONVERTED[0]).read_bytes() == before[CONVERTED[0]]
    assert safetensors_torch.load_file(out / CONVERTED[1])["w"].tolist() == [9.0] * 3


def test_what_is_computed_or_taken_apart_is_compared_too(run: Any, tmp_path: Path) -> None:
    for name in ("quantized.pt", "sparse.pt", "tied.pt", "conj_neg.pt"):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(FIXTURES / "zip" / name, tmp_path / "in")
    state = {"a.weight_g": torch.ones(4, 1), "a.weight_v": torch.randn(4, 3), "a.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "in" / "normed.pt")
    words = ("convert", tmp_path / "in", "--out-dir", tmp_path / "out", "--decompose", "--bake")
    assert rows(run(*words).stdout)["converted"][0] == "5"
    (tmp_path / "out" / MANIFEST).unlink()
    done = run(*words)
    assert (done.exit_code, rows(done.stdout)["there already, and equal"][0]) == (0, "5")


def test_what_was_not_verified_is_when_that_is_asked_for(run: Any, runs: Path, tmp_path: Path) -> None:
    words = ("convert", runs, "--out-dir", tmp_path / "out")
    for options, result in (
        (["--no-verify"], "converted"),
        (["--no-verify"], "unchanged since it was converted"),
        ([], "there already, and equal"),
        ([], "unchanged since it was converted"),
    ):
        assert rows(run(*words, *options).stdout)[result][0] == "3"


def test_a_damaged_manifest_is_none(run: Any, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("convert", runs, "--out-dir", out)
    run(*words)
    lines = (out / MANIFEST).read_bytes().splitlines(keepends=True)
    junk = [b"\xff\n", b"[]\n", b"{}\n", b'{"target": "a/one.safetensors"}\n', b"[" * 9000 + b"\n"]
    (out / MANIFEST).write_bytes(b"".join([*lines[:2], *junk, lines[2][:40]]))
    done = run(*words)
    # the line that says nothing came later; the last was cut
    assert {result: cells[0] for result, cells in rows(done.stdout).items()} == {
        "there already, and equal": "2",
        "unchanged since it was converted": "1",
    }
    assert rows(run(*words).stdout)["unchanged since it was converted"][0] == "3"


def test_folders_that_are_checkpoints_are_one_each(run: Any, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "sharded" / "bin", tmp_path / "models" / "v1.5")
    words = ("convert", tmp_path / "models", "--out-dir", tmp_path / "out")
    assert run(*words).exit_code == 0
    assert tree(tmp_path / "out") == ["v1.5.safetensors"]
    assert rows(run(*words).stdout)["unchanged since it was converted"][0] == "1"
    (tmp_path / "models" / "v1.5" / "generation.json").write_text("{}")
    assert rows(run(*words).stdout)["there already, and equal"][0] == "1"
    done = run("convert", tmp_path / "models" / "v1.5", "--out-dir", tmp_path / "shards", "--shard-size", "170")
    assert done.exit_code == 0
    assert tree(tmp_path / "shards")[-1] == "v1.5.safetensors.index.json"
    assert len(tree(tmp_path / "shards")) > 2
    again = run("convert", tmp_path / "models" / "v1.5", "--out-dir", tmp_path / "shards", "--shard-size", "170")
    assert rows(again.stdout)["unchanged since it was converted"][0] == "1"


def test_two_files_for_one_target_are_told_and_stop_no_other(run: Any, runs: Path, tmp_path: Path) -> None:
    shutil.copy(runs / "a" / "one.pth", runs / "a" / "one.pt")
    out = tmp_path / "out"
    for _ in range(2):  # also where a run without the other has converted one of them before
        done = run("convert", runs, "--out-dir", out)
        assert done.exit_code == 1
        errors = done.stderr.splitlines()
        remedy = "Convert one of them alone, or in another run"
        assert sorted(errors) == [
            f"ckpt: {runs}/a/one.{mine}: would be written to {out}/a/one.safetensors, and so would "
            f"{runs}/a/one.{other}. {remedy}"
            for mine, other in (("pt", "pth"), ("pth", "pt"))
        ]
        assert rows(done.stdout)["failed"] == ["2"]
        assert "2 of 4 checkpoints" in done.stdout
        run("convert", runs / "a/one.pt", "--out-dir", out / "a")
    assert tree(out) == CONVERTED


def test_outputs_are_no_sources(run: Any, runs: Path) -> None:
    for out in (runs / "out", runs):
        assert run("convert", runs, "--out-dir", out).exit_code == 0
        done = run("convert", runs, "--out-dir", out)
        assert (done.exit_code, done.stderr) == (0, "")
        assert rows(done.stdout)["unchanged since it was converted"][0] == "3"
        shutil.rmtree(runs / "out", ignore_errors=True)
    assert [name for name in tree(runs) if name.endswith(".safetensors")] == CONVERTED


def test_the_output_folder_may_hold_the_sources(run: Any, runs: Path, tmp_path: Path) -> None:
    for _ in range(2):
        done = run("convert", "runs", "--out-dir", ".", cwd=tmp_path)
        assert (done.exit_code, done.stderr) == (0, "")
        assert tree(tmp_path / "a") == ["deep/two.safetensors", "one.safetensors"]
        assert tree(tmp_path / "b") == ["one.safetensors"]
    (tmp_path / "runs2").mkdir()  # not below runs, though its name begins so
    assert [task.target for task in tasks([(str(runs), str(runs / "a" / "one.pth"))], f"{runs}2", ".npz")] == [
        f"{runs}2/a/one.npz"
    ]


def test_names_keep_what_is_no_suffix() -> None:
    found = [("x", f"x/{name}") for name in ("epoch_1.5", "m.pth.tar", "a.b.PT", ".pt", "m2.bin.index.json", "c.tar")]
    targets = [os.path.basename(task.target) for task in tasks(found, "out", ".npz")]
    assert targets == ["epoch_1.5.npz", "m.npz", "a.b.npz", ".pt.npz", "m2.npz", "c.npz"]
    assert tasks([("x", "x/.m.pt.partial")], "out", ".npz") == []


def test_processes_write_the_same(run: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        jobs = ["--jobs", "2"] if name == "two" else []
        done = run("convert", FIXTURES / "zip", FIXTURES / "legacy", "--out-dir", tmp_path / name, *jobs)
        assert done.exit_code == 1
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert len(one) > 20
    assert one == two
    lines = [(tmp_path / name / MANIFEST).read_text().splitlines() for name in ("one", "two")]
    targets = [[json.loads(line)["target"] for line in found] for found in lines]
    assert targets[0] == targets[1]


KILLING = """
import os, signal, sys
if "-P" in sys.orig_argv:  # a process of the fleet
    from ckpt_tools.convert import many
    honest = many._convert
    def convert(task, **options):
        if task.source.endswith("two.pt"):
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(task, **options)
    many._convert = convert
"""


def test_a_killed_process_costs_its_file(run: Any, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLING)
    torch.save({"w": torch.ones(1)}, runs / "z.pt")
    done = run(
        *("convert", runs, "--out-dir", tmp_path / "out", "--jobs", "2"), env={"PYTHONPATH": str(tmp_path / "site")}
    )
    assert done.exit_code == 1
    assert done.stderr == (
        f"ckpt: {runs / 'a' / 'deep' / 'two.pt'}: the process that worked on it was killed by signal 9. "
        "It may have run out of memory; try again with fewer --jobs\n"
    )
    assert tree(tmp_path / "out") == [*CONVERTED[1:], "z.safetensors"]
    assert run("convert", runs, "--out-dir", tmp_path / "out").exit_code == 0
    assert tree(tmp_path / "out") == [*CONVERTED, "z.safetensors"]


def test_a_cluster_writes_the_same(run: Any, runs: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    (runs / "a" / "bad.pt").write_bytes(b"<html>")
    run("convert", runs, "--out-dir", tmp_path / "here")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options, host="127.0.0.1") as cluster:
        done = run("convert", runs, "--out-dir", tmp_path / "there", "--dask", cluster.scheduler_address)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"ckpt: {runs / 'a' / 'bad.pt'}: ")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert tree(tmp_path / "there") == CONVERTED


def test_without_dask_the_extra_is_named(run: Any, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "distributed.py").write_text("raise ImportError")
    words = ("convert", runs, "--out-dir", tmp_path / "out", "--dask", "localhost:1")
    done = run(*words, env={"PYTHONPATH": str(tmp_path)})
    assert done.exit_code == 2
    assert "pip install 'ckpt-tools[dask]'" in done.stderr


def test_a_dry_run_writes_nothing(run: Any, runs: Path, tmp_path: Path) -> None:
    (runs / "bad.pt").write_bytes(b"<html>")
    done = run("convert", runs, "--out-dir", tmp_path / "out", "--dry-run")
    assert done.exit_code == 1
    assert {result: cells[0] for result, cells in rows(done.stdout).items()} == {
        "would be converted": "3",
        "failed": "1",
    }
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.pt"], "SRC and DST are needed"),
        (["a.pt", "b.pt", "c.pt"], "or --out-dir for any number of SRC"),
        (["a.pt", "b.pt", "--jobs", "2"], "are for --out-dir"),
        (["-", "--out-dir", "x"], "standard input has no name"),
        (["a.pt", "--out-dir", "x", "--to", "pt", "--shard-size", "1GB"], "--shard-size writes safetensors"),
        (["https://example.org/a.pt", "--out-dir", "x"], "give a URL a DST of its own"),
    ],
)
def test_wrong_words_are_told(run: Any, words: list[str], message: str, tmp_path: Path) -> None:
    done = run("convert", *words, cwd=tmp_path)
    assert done.exit_code == 2
    assert message in done.stderr


def test_the_fingerprint_is_of_what_changes_the_output() -> None:
    plain = Options({"select": None})
    assert plain.fingerprint == Options({"select": None}, verify=False, force=True).fingerprint
    assert plain.fingerprint != Options({"select": "model"}).fingerprint


def test_a_target_that_cannot_be_written_is_told(run: Any, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b").write_text("a file where a folder is needed")
    done = run("convert", runs, "--out-dir", tmp_path / "out")
    assert done.exit_code == 1
    assert tree(tmp_path / "out") == [*CONVERTED[:2], "b"]
    assert done.stderr == f"ckpt: {tmp_path / 'out' / 'b'}: cannot be made: File exists\n"


def test_a_disk_that_is_full_at_the_last_moment_costs_its_file(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = os.fsync, iter(range(100))

    def fsync(descriptor: int) -> None:
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        honest(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    out = str(tmp_path / "out")
    todo = tasks(
        [(str(runs), str(path)) for path in [*sorted(runs.rglob("one.*")), runs / "a/deep/two.pt"]], out, ".pt"
    )
    outcomes = [
        str(outcome) if isinstance(outcome, CkptError) else outcome.how
        for _, outcome in convert_all(todo, out, Options())
    ]
    assert outcomes == ["converted", f"{out}/b/one.pt: cannot be written: No space left on device", "converted"]
    assert tree(tmp_path / "out") == ["a/deep/two.pt", "a/one.pt"]
    lines = (tmp_path / "out" / MANIFEST).read_text().splitlines()
    assert [json.loads(line)["target"] for line in lines] == ["a/one.pt", "a/deep/two.pt"]


def test_tasks_know_their_sizes(runs: Path) -> None:
    (task,) = tasks([(str(runs), str(runs / "a" / "one.pth"))], "out", ".pt")
    assert task == Task(str(runs / "a" / "one.pth"), "out/a/one.pt", (runs / "a" / "one.pth").stat().st_size)
    both = tasks([("x", "x/a.pt"), ("x", "./x/a.pt"), ("x", "x/b.pt"), ("x", "x/a.pth")], "out", ".npz")
    assert {task.source: task.rival for task in both} == {"x/a.pt": "x/a.pth", "x/a.pth": "x/a.pt", "x/b.pt": ""}


def test_links_to_folders_lead_nowhere_twice(run: Any, runs: Path, tmp_path: Path) -> None:
    (runs / "b" / "up").symlink_to("..")
    (runs / "again").symlink_to("a")
    (runs / "b" / "linked.pth").symlink_to("../a/one.pth")
    done = run("convert", "**/*.pth", "--out-dir", tmp_path / "out", cwd=runs)
    assert (done.exit_code, done.stderr) == (0, "")
    assert tree(tmp_path / "out") == ["a/one.safetensors", "b/linked.safetensors"]
    done = run("convert", runs, "--out-dir", tmp_path / "whole")
    assert tree(tmp_path / "whole") == sorted([*CONVERTED, "b/linked.safetensors"])
