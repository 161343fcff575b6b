"""The fixtures are what MANIFEST.json says, as torch reads them."""

from __future__ import annotations

import hashlib
import importlib
import json
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
MANIFEST = json.loads((FIXTURES / "MANIFEST.json").read_text(encoding="utf-8"))
ENTRIES: list[dict[str, Any]] = MANIFEST["fixtures"]
FILES = [part for entry in ENTRIES for part in entry.get("files", [entry])]


def of_entry(entry: dict[str, Any]) -> str:
    return str(entry["file"])


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """fixtures/generate.py as a module."""
    pytest.importorskip("torch")
    return importlib.import_module("fixtures.generate")


@pytest.mark.parametrize("part", FILES, ids=of_entry)
def test_bytes_are_those_of_the_manifest(part: dict[str, Any]) -> None:
    data = (FIXTURES / part["file"]).read_bytes()
    assert len(data) == part["bytes"]
    assert hashlib.sha256(data).hexdigest() == part["sha256"]


@pytest.mark.parametrize("entry", ENTRIES, ids=of_entry)
def test_torch_says_what_the_manifest_says(entry: dict[str, Any], generate: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    if torch.__version__.split("+")[0] != MANIFEST["torch"]:
        pytest.skip(f"the manifest is of torch {MANIFEST['torch']}")
    found = generate.entry_of(generate.FIXTURES[entry["file"]])
    assert json.loads(json.dumps(found)) == entry


REFUSED = [entry for entry in ENTRIES if "error" in entry]


@pytest.mark.parametrize("entry", REFUSED, ids=of_entry)
def test_what_is_to_be_refused_is_refused_by_torch(entry: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors")
    expected = (RuntimeError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError)
    with pytest.raises(expected):
        torch.load(FIXTURES / entry["file"], weights_only=False)


def test_readme_is_of_these_builders(generate: ModuleType) -> None:
    assert (FIXTURES / "README.md").read_text(encoding="utf-8") == generate.readme()


def test_manifest_and_builders_name_the_same_files(generate: ModuleType) -> None:
    assert [entry["file"] for entry in ENTRIES] == list(generate.FIXTURES)


def test_no_file_lies_about_unlisted() -> None:
    own = {"README.md", "MANIFEST.json", "generate.py", "classes_gone.py", "nets.py"}
    lying = {
        path.relative_to(FIXTURES).as_posix()
        for path in FIXTURES.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert lying - own == {part["file"] for part in FILES}


def test_all_is_small() -> None:
    assert sum(part["bytes"] for part in FILES) < 3_000_000
