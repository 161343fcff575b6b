"""The command line: exit codes, streams, output options, many inputs."""

import json
import os
import shutil
from pathlib import Path

import pytest


def test_one_file(run, fixtures_dir):
    done = run("inspect", fixtures_dir / "zip" / "mlp.pt")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "state_dict, 4 tensors, 67 elements" in done.stdout


def test_a_broken_file_is_exit_code_2_and_the_others_are_still_told(run, fixtures_dir):
    done = run("inspect", fixtures_dir / "refused" / "page.pth", fixtures_dir / "zip" / "mlp.pt")
    assert done.exit_code == 2
    assert "HTML" in done.stderr and "Traceback" not in done.stderr
    assert "67 elements" in done.stdout


@pytest.mark.parametrize("bad", ["nowhere.pt", "no*thing.pt", ""])
def test_a_missing_file(run, bad):
    done = run("inspect", bad)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no such file" in done.stderr


@pytest.mark.parametrize(
    "args", [["inspect"], ["nonsense"], ["inspect", "--depth", "0", "x"], ["inspect", "--format", "xml", "x"]]
)
def test_bad_usage_is_exit_code_2(run, args):
    done = run(*args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Usage:" in done.stderr


def test_folder_glob_and_standard_input(run, fixtures_dir, tmp_path):
    for name in ("a.pt", "deep/er/b.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(fixtures_dir / "zip" / "mlp.pt", tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    for target in (tmp_path, tmp_path / "**" / "*.pt"):
        done = run("inspect", target, "--format", "json")
        assert done.exit_code == 0
        paths = [os.path.relpath(f["path"], tmp_path) for f in json.loads(done.stdout)["files"]]
        assert sorted(paths) == ["a.pt", "deep/er/b.pt"]
    done = run("inspect", "-", "--format", "json", stdin=(tmp_path / "a.pt").read_bytes())
    assert json.loads(done.stdout)["files"][0]["parameters"]["elements"] == 67


def test_an_empty_folder_examined_nothing(run, tmp_path):
    done = run("inspect", tmp_path)
    assert done.exit_code == 2
    assert "no checkpoint is in this folder" in done.stderr


def test_output_file_replaces_the_old_one_or_leaves_it(run, fixtures_dir, tmp_path):
    out = tmp_path / "report.md"
    out.write_text("old")
    assert run("inspect", fixtures_dir / "refused" / "empty.pt", "-o", out).exit_code == 2
    assert out.read_text() == "old"
    done = run("inspect", fixtures_dir / "zip" / "mlp.pt", "--format", "markdown", "-o", out)
    assert (done.exit_code, done.stdout) == (0, "")
    assert out.read_text().startswith("## ")
    assert os.listdir(tmp_path) == ["report.md"]
    done = run("inspect", fixtures_dir / "zip" / "mlp.pt", "-o", tmp_path / "no" / "such" / "folder")
    assert done.exit_code == 2 and "cannot be written" in done.stderr


def test_tensors_lists_all_of_them(run, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({f"layer{i * 7}.x{i % 3}": torch.zeros(i % 5 + 1) for i in range(700)}, tmp_path / "m.pt")
    done = run("inspect", tmp_path / "m.pt", "--tensors")
    assert "Tensors (700)" in done.stdout
    assert sum(line.startswith("  layer") for line in done.stdout.partition("Tensors (700)")[2].splitlines()) == 700
    done = run("inspect", tmp_path / "m.pt", "--keys", "layer7.*", "--format", "json")
    assert [t["name"] for t in json.loads(done.stdout)["files"][0]["tensors"]] == ["layer7.x1"]
    done = run("inspect", tmp_path / "m.pt")
    assert "more rows" in done.stdout  # what is left out is counted


def test_width_and_hostile_names(run, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"evil\x1b[31m\n\r" + "x" * 300: torch.zeros(1)}, tmp_path / "m.pt")
    done = run("inspect", tmp_path / "m.pt", "--tensors", env={"COLUMNS": "80"})
    assert max(map(len, done.stdout.splitlines()[1:])) <= 80
    assert "\x1b" not in done.stdout and "\\x1b" in done.stdout
    done = run("inspect", tmp_path / "m.pt", "--tensors", env={"COLUMNS": None})
    assert "x" * 300 in done.stdout


def test_weights_and_optimizers_are_no_arguments_whatever_their_key(run, tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(2, 1)
    saved = {"params": model.state_dict(), "opt": torch.optim.SGD(model.parameters(), lr=0.1).state_dict()}
    for more, told in (({}, []), ({"cfg": {"seed": 1}}, ["  arguments  seed=1   (at cfg)"])):
        torch.save(saved | more, tmp_path / "m.pt")
        lines = run("inspect", tmp_path / "m.pt").stdout.splitlines()
        assert [line for line in lines if line.startswith("  arguments")] == told


def test_a_glob_that_matches_no_name_is_told(run, fixtures_dir):
    done = run("inspect", fixtures_dir / "zip" / "mlp.pt", "--keys", "fc")
    assert "Tensors that match fc (0)\n  none  a glob is held against the whole name\n" in done.stdout
    data = json.loads(run("inspect", fixtures_dir / "zip" / "mlp.pt", "--keys", "fc", "--format", "json").stdout)
    assert data["files"][0]["tensors"] == []


def test_summary_formats(run, fixtures_dir):
    path = fixtures_dir / "model" / "frozen_backbone.pt"
    done = run("summary", path, "--format", "csv")
    header, *rows = done.stdout.splitlines()
    assert header == "file,layer,class,shape,parameters,trainable,frozen,unknown,buffers,bytes,status"
    assert len(rows) >= 3
    done = run("summary", path, "--format", "json")
    assert json.loads(done.stdout)["files"][0]["totals"]["unknown"] == 0
    assert "| layer " in run("summary", path, "--format", "markdown").stdout


def test_summary_of_what_has_no_model(run, fixtures_dir):
    done = run("summary", fixtures_dir / "zip" / "empty_dict.pt")
    assert done.exit_code == 2 and "no model" in done.stderr


def test_help_and_version(run):
    for args in (["--help"], ["inspect", "--help"], ["summary", "-h"]):
        done = run(*args)
        assert done.exit_code == 0 and "Usage: " in done.stdout
    assert run("--version").stdout.startswith("ckpt 0.")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", ["inspect", "digest", "summary"])
def test_an_output_that_takes_nothing_is_told_as_that(fixtures_dir, command):
    import subprocess
    import sys

    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ckpt_tools", command, fixtures_dir / "zip" / "mlp.pt"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr == "ckpt: standard output cannot be written: No space left on device\n"


def test_a_closed_pipe_is_no_error(fixtures_dir):
    import subprocess
    import sys

    command = f"{sys.executable} -m ckpt_tools inspect {fixtures_dir / 'zip' / '*.pt'} --tensors | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0
