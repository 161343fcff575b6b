"""``ckpt audit``, ``rules`` and ``explain`` as they are typed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.audit.rules import FAMILIES, RULES
from tests.audit.archives import MLP, with_member

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
GOOD, CUT = FIXTURES / "zip/mlp.pt", FIXTURES / "refused/cut.safetensors"
DANGEROUS = ROOT / "docs/files/runs_a_command.pkl"


def test_a_clean_file(run: Any, tmp_path: Path) -> None:
    shutil.copy(GOOD, tmp_path / "mlp.pt")
    outcome = run("audit", "mlp.pt", cwd=tmp_path)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert outcome.stdout == (
        "mlp.pt: tensors only; PyTorch zip archive (torch.save), 2.5 kB; no findings\n\n  mlp/data.pkl  tensors only\n"
    )


def test_a_dangerous_one(run: Any) -> None:
    outcome = run("audit", DANGEROUS, cwd=ROOT)
    assert (outcome.exit_code, outcome.stderr) == (1, "")
    head, _, answer = outcome.stdout.splitlines()[:3]
    assert head.startswith(f"{DANGEROUS}: dangerous; plain pickle, 64 B; ")
    assert answer == "  pickle  dangerous: os.system (runs code or programs)"


def test_one_bad_file_and_one_that_is_not_there(run: Any, tmp_path: Path) -> None:
    outcome = run("audit", CUT, GOOD, "nowhere.pt", cwd=tmp_path)
    assert (outcome.exit_code, outcome.stderr) == (2, "ckpt: nowhere.pt: no such file\n")
    assert f"{CUT}: no pickle; 1 error\n" in outcome.stdout
    assert f"{GOOD}: tensors only; " in outcome.stdout
    assert "nowhere.pt: not examined: no such file\n" in outcome.stdout
    assert "audit: 2 files examined: 1 error\n" in outcome.stdout


def test_nothing_to_examine(run: Any, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Models")
    outcome = run("audit", tmp_path)
    assert outcome.exit_code == 2
    assert "0 files examined: no findings" in outcome.stdout
    assert "no model files, skipped  1" in outcome.stdout


def test_standard_input(run: Any) -> None:
    outcome = run("audit", "-", stdin=MLP)
    assert outcome.exit_code == 0
    assert outcome.stdout.startswith("-: tensors only; ")


def test_many_files_are_summed_up(run: Any, tmp_path: Path) -> None:
    for number in range(12):
        shutil.copy(GOOD, tmp_path / f"{number:02}.pt")
    shutil.copy(CUT, tmp_path / "cut.safetensors")
    outcome = run("audit", ".", cwd=tmp_path)
    assert outcome.exit_code == 1
    assert outcome.stdout == (
        "./cut.safetensors: no pickle; 1 error\n\n"
        "  severity  rule          finding\n"
        "  error     I103 damaged  holds 154 of 160 bytes: truncated; 1 of 2 tensors are whole\n\n"
        "audit: 13 files examined: 1 error\n\n"
        "  tensors only  12\n"
        "  no pickle     1\n"
        "  12 files without findings not shown\n"
    )


def test_a_pickle_that_is_refused_for_no_name_says_why(run: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.pkl").write_bytes(pickle.dumps({}, 4))
    outcome = run("audit", "empty.pkl", cwd=tmp_path)
    assert "needs classes: MEMOIZE: the weights_only unpickler does not know this opcode\n" in outcome.stdout


def test_hints(run: Any) -> None:
    plain = run("audit", CUT).stdout
    hinted = run("audit", CUT, "--fix-hints").stdout
    assert "Download or copy the" not in plain
    assert "Download or copy the" in hinted


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--select", "S"], 1),  # what could not be examined is told all the same
        (["--select", "S", "--ignore", "I1"], 0),
        (["--select", "S,I1"], 1),
        (["--ignore", "I103"], 0),
        (["--ignore", "I", "--select", "I103"], 1),
    ],
)
def test_rules_are_chosen(run: Any, tmp_path: Path, options: list[str], code: int) -> None:
    assert run("audit", CUT, *options, cwd=tmp_path).exit_code == code


def test_fail_on(run: Any, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(with_member("mlp/data/4", bytes(8)))
    assert run("audit", "model.pt", cwd=tmp_path).exit_code == 0
    assert run("audit", "model.pt", "--fail-on", "warning", cwd=tmp_path).exit_code == 1


def test_the_policy_is_found_named_and_left_out(run: Any, tmp_path: Path) -> None:
    shutil.copy(GOOD, tmp_path / "model.pt")
    (tmp_path / "ckpt-tools.toml").write_text('[audit.require]\nformats = ["safetensors"]\n')
    (tmp_path / "other.toml").write_text('[audit]\nselct = ["S"]\n')
    below = tmp_path / "below"
    below.mkdir()
    assert "P201 format-not-allowed" in run("audit", "../model.pt", cwd=below).stdout
    assert run("audit", "../model.pt", "--no-config", cwd=below).exit_code == 0
    outcome = run("audit", "model.pt", "--config", "other.toml", cwd=tmp_path)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr == "ckpt: other.toml: unknown key selct in [audit]; did you mean select?\n"


def test_a_policy_that_was_only_found_is_told(run: Any, tmp_path: Path) -> None:
    shutil.copy(DANGEROUS, tmp_path / "model.pkl")
    (tmp_path / "ckpt-tools.toml").write_text('[audit]\nignore = ["S", "F"]\n')
    told = "ckpt: the settings in ckpt-tools.toml count (--no-config: none)\n"
    found = run("audit", "model.pkl", cwd=tmp_path)
    assert (found.exit_code, found.stderr) == (0, told)
    named = run("audit", "model.pkl", "--config", "ckpt-tools.toml", cwd=tmp_path)
    assert (named.exit_code, named.stderr) == (0, "")
    assert run("audit", "model.pkl", "--no-config", cwd=tmp_path).exit_code == 1


def test_a_baseline_is_written_and_held(run: Any, tmp_path: Path) -> None:
    shutil.copy(CUT, tmp_path / "cut.safetensors")
    shutil.copy(GOOD, tmp_path / "model.pt")
    outcome = run("audit", ".", "--write-baseline", cwd=tmp_path)
    assert outcome.exit_code == 2
    assert "--write-baseline needs --baseline FILE" in outcome.stderr
    assert run("audit", ".", "--baseline", "known.json", cwd=tmp_path).exit_code == 2
    assert run("audit", ".", "--baseline", "known.json", "--write-baseline", cwd=tmp_path).exit_code == 0
    assert json.loads((tmp_path / "known.json").read_text())["globals"] == {
        "model.pt": ["collections.OrderedDict", "torch.FloatStorage", "torch._utils._rebuild_tensor_v2"]
    }
    outcome = run("audit", ".", "--baseline", "known.json", cwd=tmp_path)
    assert outcome.exit_code == 0
    assert "findings known from the baseline  1" in outcome.stdout
    shutil.copy(FIXTURES / "training/custom_objects.pt", tmp_path / "model.pt")
    outcome = run("audit", ".", "--baseline", "known.json", cwd=tmp_path)
    assert outcome.exit_code == 1
    assert "argparse.Namespace is new" in outcome.stdout


def test_the_report_is_a_file_or_standard_output(run: Any, tmp_path: Path) -> None:
    shown = run("audit", GOOD, "--format", "json")
    written = run("audit", GOOD, "--format", "json", "-o", tmp_path / "r.json")
    assert (written.exit_code, written.stdout, written.stderr) == (0, "", "")
    assert (tmp_path / "r.json").read_text() == shown.stdout


def test_processes_and_cache_change_nothing(run: Any, tmp_path: Path) -> None:
    plain = run("audit", FIXTURES, "--format", "json")
    assert run("audit", FIXTURES, "--format", "json", "--jobs", "2").stdout == plain.stdout
    for _ in range(2):
        assert run("audit", FIXTURES, "--format", "json", "--cache", tmp_path).stdout == plain.stdout


def test_rules_are_listed(run: Any) -> None:
    outcome = run("rules", "--format", "json")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    (listed,) = json.loads(outcome.stdout)["files"]
    assert [rule["code"] for rule in listed["rules"]] == [rule.code for rule in RULES]
    some = run("rules", "i2", "P1").stdout
    assert "I201  crc-mismatch" in some
    assert "P101  expired-waiver" in some
    assert "I101" not in some
    assert f"I: {FAMILIES['I']}" in some
    assert run("rules", "X9").exit_code == 2


@pytest.mark.parametrize("asked", ["I201", "i201", "crc-mismatch"])
def test_a_rule_is_explained(run: Any, asked: str) -> None:
    outcome = run("explain", asked)
    assert outcome.exit_code == 0
    assert outcome.stdout.startswith("I201 crc-mismatch (error, reads the bytes)\n\nA member of the archive does not")
    assert "\n\nWhy: a bit has flipped" in outcome.stdout
    assert "\n\nRemedy: " in outcome.stdout


def test_a_rule_that_there_is_not(run: Any) -> None:
    outcome = run("explain", "crc-missmatch")
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert "did you mean crc-mismatch?" in outcome.stderr


def test_headers_alone_need_neither_numpy_nor_torch() -> None:
    """And so a hook on a commit of small files is quick."""
    files = [FIXTURES / "zip/mlp.pt", FIXTURES / "safetensors/library.safetensors", DANGEROUS]
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ckpt_tools", "audit", "--no-values", *files],
        capture_output=True,
        text=True,
    )
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in process.stderr.splitlines()}
    assert process.returncode == 1
    assert "ckpt_tools" in loaded
    assert loaded & {"numpy", "ml_dtypes", "torch", "dask"} == set()


def test_findings_are_told_as_they_come(tmp_path: Path) -> None:
    """The report of a file is there before the last file is looked at."""
    for number in range(11):
        shutil.copy(CUT, tmp_path / f"{number:02}.safetensors")
    os.mkfifo(tmp_path / "zz.pt")
    code = (
        "import os, sys\n"
        "from ckpt_tools.audit import engine\n"
        "look = engine._examine\n"
        "def examine(target, options):\n"
        "    if target.path.endswith('last.pt'):\n"
        "        print('LAST', flush=True)\n"
        "    return look(target, options)\n"
        "engine._examine = examine\n"
        "from ckpt_tools.cli import main\n"
        "main()\n"
    )
    shutil.copy(GOOD, tmp_path / "last.pt")
    process = subprocess.run(
        [sys.executable, "-c", code, "audit", str(tmp_path), str(tmp_path / "last.pt")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    before, _, after = process.stdout.rpartition("LAST")
    assert before.count("I103 damaged") == 11
    assert "audit: 13 files examined" in after


def test_a_report_that_nobody_reads_to_its_end_is_no_verdict(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ckpt_tools", "audit", str(GOOD)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (2, b"ckpt: the report was not read to its end\n")


def test_names_write_no_lines_of_their_own(run: Any, tmp_path: Path) -> None:
    forged = "x\n::error::forged.pt"
    shutil.copy(DANGEROUS, tmp_path / forged)
    outcome = run("audit", forged, f"gone\x1b[31m{forged}", cwd=tmp_path)
    assert outcome.exit_code == 2
    assert outcome.stderr == "ckpt: gone\\x1b[31mx\\n::error::forged.pt: no such file\n"
    assert "x\\n::error::forged.pt: dangerous; " in outcome.stdout
    assert "\n::error" not in outcome.stdout
    assert "## x\\\\n::error::forged.pt" in run("audit", forged, "--format", "markdown", cwd=tmp_path).stdout


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_cache_that_cannot_be_written_is_told(run: Any, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    outcome = run("audit", GOOD, "--cache", place, cwd=tmp_path)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr == f"ckpt: {place}: cannot be written: Not a directory\n"


def test_a_base_that_is_not_there_is_told_once(run: Any, tmp_path: Path) -> None:
    outcome = run("audit", GOOD, GOOD, "--base", "gone.pt", cwd=tmp_path)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr == "ckpt: gone.pt: cannot be read: No such file or directory\n"


@pytest.mark.parametrize("format", ["html", "markdown"])
def test_a_page_begins_with_what_it_comes_to(run: Any, tmp_path: Path, format: str) -> None:
    text = run("audit", GOOD, CUT, "--format", format, cwd=tmp_path).stdout
    assert text.index("2 files examined") < text.index("tensors only; PyTorch zip archive")
    if format == "html":
        assert "<title>2 files examined: 1 error · ckpt audit</title>" in text


@pytest.mark.parametrize("format", ["json", "sarif", "junit", "html"])
def test_what_programs_read_is_in_utf_8(tmp_path: Path, format: str) -> None:
    path = tmp_path / "größe.pt"
    shutil.copy(GOOD, path)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "ckpt_tools", "audit", str(path), "--format", format]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, cwd=tmp_path, check=True)
    text = done.stdout.decode("utf-8")
    assert "größe.pt" in text or "gr%C3%B6%C3%9Fe.pt" in text
