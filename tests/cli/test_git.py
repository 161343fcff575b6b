"""git's diff drivers, in a real repository."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ckpt_tools.cli.git import external_diff, is_external_diff

ROOT = Path(__file__).resolve().parents[2]
CKPT = f"'{sys.executable}' -m ckpt_tools"
TEXTCONV = f"diff.ckpt.textconv={CKPT} inspect --textconv"
EXTERNAL = f"diff.ckpt.command={CKPT} diff"

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="no git")


@pytest.fixture
def git(tmp_path):
    """``git("diff", …, config=[…])`` in a repository whose ``*.pt`` have the diff driver; its output."""
    folder = tmp_path / "repository"
    folder.mkdir()
    env = {
        **{name: value for name, value in os.environ.items() if name != "COLUMNS" and name[:4] != "GIT_"},
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
    }
    who = ["user.name=A", "user.email=a@example.org", "commit.gpgsign=false", "init.defaultBranch=main"]

    def git(*args, config=(), code=0):
        options = [word for setting in (*who, *config) for word in ("-c", setting)]
        done = subprocess.run(["git", *options, *args], cwd=folder, env=env, capture_output=True, timeout=120)
        assert (done.returncode, done.stderr.decode()) == (code, ""), done.stderr.decode()
        return done.stdout.decode("utf-8")

    git.folder, git.env = folder, env
    git("init", "-q")
    (folder / ".gitattributes").write_text("*.pt diff=ckpt\n")
    return git


@pytest.fixture
def history(git, fixtures_dir):
    """Two commits: of a model, and of what became of it."""
    for name in ("base", "tuned"):
        shutil.copy(fixtures_dir / "transfer" / f"{name}.pt", git.folder / "net.pt")
        git("add", ".")
        git("commit", "-q", "-m", name)
    return git


def changes(text):
    """The first word of each line that was taken away or added."""
    return [(line[0], line[1:].split()[0]) for line in text.splitlines() if re.match(r"[-+](?![-+]{2} )", line)]


CHANGED = {f"features.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
CHANGED |= {"head.weight", "head.bias"}


def test_textconv_shows_the_tensors_that_changed(history):
    text = history("diff", "HEAD~1", config=[TEXTCONV])
    assert text.startswith("diff --git a/net.pt b/net.pt\n")
    assert {name for _, name in changes(text)} == CHANGED
    assert [sign for sign, _ in changes(text)].count("-") == len(CHANGED)


@pytest.mark.parametrize("command", [("show", "HEAD"), ("log", "-p", "-1"), ("diff", "HEAD~1", "HEAD")])
def test_textconv_works_wherever_git_shows_a_patch(command, history):
    assert len(changes(history(*command, config=[TEXTCONV]))) == 2 * len(CHANGED)


def test_textconv_of_the_work_tree(history, fixtures_dir):
    shutil.copy(fixtures_dir / "transfer" / "base.pt", history.folder / "net.pt")
    assert len(changes(history("diff", config=[TEXTCONV]))) == 2 * len(CHANGED)


def test_textconv_of_the_first_commit_lists_everything(history):
    text = history("log", "-p", "--reverse", "HEAD~1", "--", "net.pt", config=[TEXTCONV])
    assert len([1 for sign, _ in changes(text) if sign == "+"]) > 8
    assert "+format: PyTorch zip archive (torch.save)\n" in text


def test_saving_the_same_again_is_no_difference(git, fixtures_dir):
    for name in ("mlp", "repacked_deflated", "alignment_512"):
        shutil.copy(fixtures_dir / "zip" / f"{name}.pt", git.folder / "net.pt")
        git("add", ".")
        git("commit", "-q", "-m", name)
    text = git("log", "-p", "--format=", "-2", config=[TEXTCONV])
    assert [name for _, name in changes(text) if name.startswith("fc")] == []


def test_the_cache_spares_the_second_run(history, tmp_path):
    counted = tmp_path / "textconv"
    counted.write_text(f"#!/bin/sh\necho run >>'{tmp_path}/runs'\nexec {CKPT} inspect --textconv \"$1\"\n")
    counted.chmod(0o755)
    config = [f"diff.ckpt.textconv='{counted}'", "diff.ckpt.cachetextconv=true"]
    first = history("diff", "HEAD~1", "HEAD", config=config)
    assert (tmp_path / "runs").read_text() == "run\nrun\n"
    assert history("diff", "HEAD~1", "HEAD", config=config) == first
    assert (tmp_path / "runs").read_text() == "run\nrun\n"
    assert history("for-each-ref", "--format=%(refname)", "refs/notes") == "refs/notes/textconv/ckpt\n"


def test_textconv_sees_what_a_filter_such_as_lfs_brings_back(git, fixtures_dir):
    (git.folder / ".gitattributes").write_text("*.pt filter=packed diff=ckpt\n")
    config = ["filter.packed.clean=gzip -n", "filter.packed.smudge=gzip -dc", TEXTCONV]
    for name in ("base", "tuned"):
        shutil.copy(fixtures_dir / "transfer" / f"{name}.pt", git.folder / "net.pt")
        git("add", ".", config=config)
        git("commit", "-q", "-m", name, config=config)
    raw = subprocess.run(["git", "cat-file", "blob", "HEAD:net.pt"], cwd=git.folder, capture_output=True, check=True)
    assert raw.stdout.startswith(b"\x1f\x8b")
    assert len(changes(git("diff", "HEAD~1", "HEAD", config=config))) == 2 * len(CHANGED)


def test_a_file_that_is_no_checkpoint_does_not_stop_git(history, fixtures_dir):
    for name in ("lfs_pointer.pt", "truncated_zip.pt", "page.pth", "empty.pt"):
        shutil.copy(fixtures_dir / "refused" / name, history.folder / "net.pt")
        history("add", ".")
        history("commit", "-q", "-m", name)
    for driver in (TEXTCONV, EXTERNAL):
        text = history("log", "-p", "--ext-diff", "--format=commit %s", config=[driver])
        assert [line for line in text.splitlines() if line.startswith("commit")] == [
            "commit empty.pt", "commit page.pth", "commit truncated_zip.pt", "commit lfs_pointer.pt", "commit tuned",
            "commit base",
        ]  # fmt: skip
        assert "Git LFS" in text


def test_inspect_textconv(run, fixtures_dir, tmp_path):
    done = run("inspect", "--textconv", fixtures_dir / "zip" / "mlp.pt")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("format: PyTorch zip archive (torch.save)\nkind: state_dict\n")
    broken = run("inspect", "--textconv", fixtures_dir / "refused" / "page.pth")
    assert (broken.exit_code, broken.stderr) == (0, "")
    assert broken.stdout.startswith("unreadable: ")
    nowhere = run("inspect", "--textconv", tmp_path / "nowhere.pt")
    assert (nowhere.exit_code, nowhere.stdout) == (2, "")
    assert run("inspect", "--textconv", tmp_path, tmp_path).exit_code == 2


# --- ckpt diff as git's external diff


def test_external_diff_says_what_changed(history, run, fixtures_dir):
    text = history("diff", "HEAD~1", "HEAD", config=[EXTERNAL])
    base, tuned = (fixtures_dir / "transfer" / f"{name}.pt" for name in ("base", "tuned"))
    expected = run("diff", base, tuned, env={"COLUMNS": None}).stdout
    assert text == expected.replace(str(base), "a/net.pt").replace(str(tuned), "b/net.pt")
    assert "head` replaced" in text


def test_external_diff_of_every_kind_of_change(history, fixtures_dir):
    shutil.copy(fixtures_dir / "zip" / "mlp.pt", history.folder / "added.pt")
    history("add", ".")
    history("commit", "-q", "-m", "more")
    assert history("diff", "HEAD~1", "HEAD", config=[EXTERNAL]).startswith("b/added.pt: added: state_dict, 4 tensors")
    assert history("diff", "HEAD", "HEAD~1", config=[EXTERNAL]).startswith("a/added.pt: removed: state_dict, 4 tensors")
    history("mv", "net.pt", "my new.pt")
    history("commit", "-q", "-m", "moved")
    shutil.copy(fixtures_dir / "transfer" / "base.pt", history.folder / "my new.pt")
    history("add", ".")
    moved = history("diff", "-M10%", "--cached", "HEAD~1", config=[EXTERNAL])
    assert moved.splitlines()[0].startswith("a/net.pt → b/my new.pt: ")
    here = history("diff", "HEAD", config=[EXTERNAL])  # the work tree's own file
    assert here.splitlines()[0].startswith("a/my new.pt → b/my new.pt: ")
    history("reset", "-q", "--hard")
    shown = history("log", "-p", "--ext-diff", "--format=%s", config=[EXTERNAL])
    assert [line.partition(":")[0] for line in shown.splitlines() if re.match(r"[ab]/", line)] == [
        "a/net.pt → b/my new.pt", "b/added.pt", "a/net.pt → b/net.pt", "b/net.pt",
    ]  # fmt: skip


def test_external_diff_of_a_conflict(history, fixtures_dir):
    for branch, name in (("one", "base"), ("two", "model")):
        history("checkout", "-q", "-b", branch, "main")
        shutil.copy(fixtures_dir / "transfer" / f"{name}.pt", history.folder / "net.pt")
        history("commit", "-q", "-a", "-m", branch)
    merged = subprocess.run(
        ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "merge", "-q", "one"],
        cwd=history.folder,
        capture_output=True,
    )
    assert merged.returncode == 1
    assert history("diff", "--cached", config=[EXTERNAL]).startswith("net.pt: unmerged\n")


def test_the_arguments_of_git():
    seven = ("d/n.pt", "/tmp/x_n.pt", "1" * 40, "100644", "d/n.pt", "0" * 40, "100644")
    assert external_diff(seven) == ("/tmp/x_n.pt", "d/n.pt", "a/d/n.pt → b/d/n.pt")
    assert external_diff((*seven[:1], "/dev/null", ".", ".", *seven[4:])) == (None, "d/n.pt", "b/d/n.pt")
    assert external_diff((*seven[:4], "/dev/null", ".", ".")) == ("/tmp/x_n.pt", None, "a/d/n.pt")
    assert external_diff((*seven, "e/m.pt", "similarity index 90%\n")) == (
        "/tmp/x_n.pt",
        "d/n.pt",
        "a/d/n.pt → b/e/m.pt",
    )
    assert external_diff(("n.pt",)) == (None, None, "n.pt")
    assert [is_external_diff(("x",) * count) for count in range(11)] == [count in (7, 9) for count in range(11)]


def test_a_lone_path_is_git_s_only_where_git_calls(run, fixtures_dir):
    path = fixtures_dir / "zip" / "mlp.pt"
    assert run("diff", path).exit_code == 2
    done = run("diff", path, env={"GIT_DIFF_PATH_TOTAL": "1"})
    assert (done.exit_code, done.stdout) == (0, f"{path}: unmerged\n")


# --- the page


def test_the_recipes_of_the_page(git, fixtures_dir, tmp_path):
    page = (ROOT / "docs" / "git.md").read_text("utf-8")
    recipes = [line.removeprefix("git ") for line in page.splitlines() if line.startswith("git config --global ")]
    attributes = re.findall(r"```gitattributes\n(.*?)```", page, re.S)
    assert (len(recipes), len(attributes)) == (3, 2)
    program = tmp_path / "bin" / "ckpt"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {CKPT} "$@"\n')
    program.chmod(0o755)
    git.env.update(GIT_CONFIG_GLOBAL=str(tmp_path / "config"), PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    for recipe in recipes:
        git(*shlex.split(recipe))
    (git.folder / ".gitattributes").write_text(attributes[0])
    for suffix in ("pt", "pth", "ckpt", "safetensors"):
        assert git("check-attr", "diff", f"a.{suffix}") == f"a.{suffix}: diff: ckpt\n"
    for name in ("base", "tuned"):
        shutil.copy(fixtures_dir / "transfer" / f"{name}.pt", git.folder / "net.pt")
        git("add", ".")
        git("commit", "-q", "-m", name)
    assert git("diff", "HEAD~1").startswith("a/net.pt → b/net.pt: ")
    for command in (("diff", "--no-ext-diff", "HEAD~1"), ("log", "-p", "-1"), ("show",)):
        assert len(changes(git(*command))) == 2 * len(CHANGED)
    assert git("show", "--ext-diff", "--format=").startswith("a/net.pt → b/net.pt: ")
    assert git("log", "--format=%s", r"-Ghead\.weight", "-1") == "tuned\n"
    assert git("log", "--format=%s", r"-Gfeatures\.0\.weight", "-1") == "base\n"
    lines = git("blame", "-s", "net.pt").splitlines()
    first = git("rev-list", "--max-parents=0", "--abbrev-commit", "HEAD").strip()
    assert {line.split(") ")[1].split()[0] for line in lines if not line.startswith(f"^{first}")} == CHANGED
    once = next(line for line in page.splitlines() if line.startswith("git -c "))
    git(*shlex.split(once)[1:])
    assert (git.folder / "diff.html").read_text("utf-8").startswith("<!doctype html>")
    (git.folder / ".gitattributes").write_text(attributes[1])
    assert "diff: ckpt" in git("check-attr", "-a", "net.pt")
    assert "filter: lfs" in git("check-attr", "-a", "net.pt")
