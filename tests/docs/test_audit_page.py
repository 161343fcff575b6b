"""docs/audit.md, the pre-commit hook and the GitHub action do what they say."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.audit.engine import check_codes
from ckpt_tools.audit.inputs import MODEL_SUFFIXES
from ckpt_tools.audit.policy import KINDS, load
from ckpt_tools.formats import FORMATS

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "audit.md").read_text("utf-8")
HOOK: dict[str, Any] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())[0]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with ``models``, one of them cut, in which ``ckpt`` is a program."""
    (tmp_path / "models").mkdir()
    shutil.copy(ROOT / "fixtures/zip/mlp.pt", tmp_path / "models" / "good model.pt")
    shutil.copy(ROOT / "fixtures/refused/cut.safetensors", tmp_path / "models" / "cut.safetensors")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "ckpt"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ckpt_tools "$@"\n')
    program.chmod(0o755)
    return tmp_path


def shell(line: str, project: Path, **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", line],
        cwd=project,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_policy_on_the_page_is_one(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    path = tmp_path / "pyproject.toml"
    path.write_text(text)
    policy = load(str(path))
    check_codes(policy)
    assert policy.fail_on == "warning"
    assert [requirement.paths for requirement in policy.requirements] == [("*",), ("trusted/*.pt",)]


COMMANDS = [
    line.strip().removeprefix("- ").removeprefix("sh ").strip("'")
    for language in ("sh", "yaml", "groovy")
    for block in blocks(language)
    for line in block.splitlines()
    if "ckpt audit" in line
]


def test_the_recipes_run(project: Path) -> None:
    assert len(COMMANDS) == 4
    codes = [shell(line, project).returncode for line in COMMANDS]
    # the baseline is written first, and nothing is new then
    assert list(zip(COMMANDS, codes, strict=True)) == [
        ("ckpt audit models --baseline ckpt-baseline.json --write-baseline", 0),
        ("ckpt audit models --baseline ckpt-baseline.json", 0),
        ("ckpt audit models --format gitlab --output gl-code-quality-report.json", 1),
        ("ckpt audit models --format junit --output audit.xml", 1),
    ]


def test_recipes_are_valid_yaml() -> None:
    for block in blocks("yaml"):
        assert yaml.safe_load(block)
    github = next(yaml.safe_load(block) for block in blocks("yaml") if "runs-on" in block)
    step = next(s for s in github["jobs"]["audit"]["steps"] if "ckpt-tools" in s.get("uses", ""))
    assert set(step["with"]) <= set(ACTION["inputs"])


def test_the_hook_runs_on_the_files_that_it_asks_for(project: Path) -> None:
    names = ["models/good model.pt", "models/cut.safetensors", "README.md", "train.py", "weights.PTH", "a.ptx"]
    chosen = [name for name in names if re.search(HOOK["files"], name)]
    assert chosen == ["models/good model.pt", "models/cut.safetensors", "weights.PTH"]
    assert (HOOK["id"], HOOK["language"]) == ("ckpt-audit", "python")
    # pre-commit runs the entry, the arguments that a user gives, and then the files
    clean = shell(f"{HOOK['entry']} --no-values {shlex.quote(chosen[0])}", project)
    assert (clean.returncode, clean.stderr) == (0, "")
    both = shell(f"{HOOK['entry']} {' '.join(map(shlex.quote, chosen[:2]))}", project)
    assert both.returncode == 1
    assert "I103 damaged" in both.stdout


def test_the_hook_is_for_what_the_audit_takes_for_models() -> None:
    asked = {f".{suffix}" for suffix in re.findall(r"\w+", HOOK["files"].partition(r"\.(")[2])}
    assert asked == set(MODEL_SUFFIXES)


def audit_step() -> dict[str, Any]:
    step: dict[str, Any] = next(s for s in ACTION["runs"]["steps"] if s.get("id") == "audit")
    return step


def run_action(project: Path, **inputs: str) -> tuple[int, str, str, str]:
    """The exit code, standard output, outputs and summary of the action's step, with its defaults."""
    given = {name: entry.get("default", "") for name, entry in ACTION["inputs"].items()} | inputs
    env = {
        variable: given[match[1]]
        for variable, value in audit_step()["env"].items()
        if (match := re.fullmatch(r"\$\{\{ inputs\.(\S+) \}\}", value))
    }
    assert len(env) == len(given)
    outputs, summary = project / "outputs", project / "summary"
    for file in (outputs, summary):
        file.write_text("")
    done = shell(audit_step()["run"], project, GITHUB_OUTPUT=str(outputs), GITHUB_STEP_SUMMARY=str(summary), **env)
    return done.returncode, done.stdout, outputs.read_text(), summary.read_text()


def test_the_action_annotates_and_sums_up(project: Path) -> None:
    code, stdout, outputs, summary = run_action(project, paths="models\n", sarif="out.sarif")
    assert (code, outputs) == (1, "exit-code=1\n")
    assert stdout.startswith("::error file=models/cut.safetensors,title=I103 damaged::holds 154 of 160 bytes")
    assert "## models/cut.safetensors" in summary
    assert '"ruleId": "I103"' in (project / "out.sarif").read_text()


def test_the_action_takes_several_paths_and_options(project: Path) -> None:
    code, stdout, outputs, summary = run_action(
        project,
        paths="models/good model.pt\nmodels/cut.safetensors",
        args="--ignore=I103\n--no-values",
        summary="false",
    )
    assert (code, stdout, outputs, summary) == (0, "", "exit-code=0\n", "")


def test_inputs_of_the_action_are_no_code(project: Path) -> None:
    assert all("${{" not in step.get("run", "") for step in ACTION["runs"]["steps"])
    code, _, _, _ = run_action(project, paths="$(touch pwned); touch pwned\n-o pwned", summary="false")
    assert code == 2
    assert not (project / "pwned").exists()


@pytest.mark.parametrize("name", [*KINDS, *(format.name for format in FORMATS)])
def test_the_page_names_what_a_policy_can_ask_for(name: str) -> None:
    assert f"`{name}`" in PAGE
