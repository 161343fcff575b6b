"""The pages say what the program does: every command in them is run, every generated part compared."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)

PAGES = [page for page in generate.PAGES if page.name not in ("cli.md", "rules.md", "benchmarks.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_print_what_the_page_shows(page):
    text = page.read_text()
    assert generate.filled(text) == text, "run: python docs/generate.py"


def test_the_command_reference_is_the_help():
    assert (ROOT / "docs" / "cli.md").read_text() == generate.cli_reference(), "run: python docs/generate.py"


def test_the_rules_are_their_pages():
    assert (ROOT / "docs" / "rules.md").read_text() == generate.rule_reference(), "run: python docs/generate.py"


def test_readme_shows_every_command():
    from ckpt_tools.cli import COMMANDS

    text = (ROOT / "README.md").read_text()
    assert [name for name in COMMANDS if f"ckpt {name} " not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout


@pytest.mark.parametrize("page", generate.PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_test_command_is_what_ci_runs():
    text = (ROOT / "README.md").read_text()
    assert "-m pytest\n" in text
    assert "python -m pytest" in (ROOT / "check").read_text()
    assert "./check" in (ROOT / ".ci" / "run").read_text()
