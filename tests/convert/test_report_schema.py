"""``ckpt convert --report``: what it writes follows its schema, whatever became of the files, and fills all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "docs" / "schema" / "convert.schema.json").read_text("utf-8"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
FIXTURES = ROOT / "fixtures"
GROUPS = (
    "zip",
    "legacy",
    "model",
    "training",
    "safetensors",
    "sharded",
    "sb3",
    "tar",
    "numpy",
    "other",
    "refused/*.pt",
)


def report(path: Path) -> list[dict[str, Any]]:
    document = json.loads(path.read_text("utf-8"))
    VALIDATOR.validate(document)
    files: list[dict[str, Any]] = document["files"]
    return files


@pytest.fixture(scope="module")
def told(run: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Everything that conversions of the fixtures and of a few more files report."""
    folder = tmp_path_factory.mktemp("reports")
    arguments = [FIXTURES / group for group in GROUPS]
    files: list[dict[str, Any]] = []

    def convert(*words: Any, code: int = 0) -> list[dict[str, Any]]:
        done = run("convert", *words, "--report", folder / "report.json")
        assert done.exit_code == code, done.stderr
        found = report(folder / "report.json")
        files.extend(found)
        return found

    many = (*arguments, "--out-dir", folder / "out", "--decompose")
    converted = convert(*many, code=1)
    assert {file["result"] for file in converted} == {"converted", "failed"}
    assert {file["result"] for file in convert(*many, code=1)} == {"unchanged", "failed"}
    next(folder.glob("out/.*.jsonl")).unlink()
    assert {file["result"] for file in convert(*many, code=1)} == {"compared", "failed"}
    for suffix in ("pt", "npz"):
        planned = convert(*arguments, "--out-dir", folder / suffix, "--to", suffix, "--dry-run", code=1)
        assert {file["result"] for file in planned} == {"planned", "failed"}

    torch.save(
        {
            **{"a.weight_orig": torch.ones(2, 3), "a.weight_mask": torch.eye(3)[:2], "big": torch.full((3,), 1e6)},
            "nan": torch.tensor(float("nan")),
        },
        folder / "pruned.pt",
    )
    for number, suffix in enumerate(("safetensors", "pt", "npz")):
        options = (
            "--bake",
            "--dtype",
            "float16",
            "--allow-lossy",
            "--add-prefix",
            "net.",
            "--drop",
            "nan",
            "--drop",
            "x",
        )
        (one,) = convert(folder / "pruned.pt", folder / f"one.{suffix}", *options)
        assert (one["result"], one["written"], one["verified"]) == ("converted", True, True)
        (one,) = convert(folder / "pruned.pt", folder / f"more{number}.{suffix}", "--dry-run")
        assert (one["result"], one["written"], one["bytes"]) == ("planned", False, None)
    (one,) = convert(folder / "pruned.pt", folder / "bare.safetensors", "--no-verify")
    assert (one["verified"], one["source_digest"]) == (False, None)
    (shards,) = convert(FIXTURES / "zip" / "mlp.pt", folder / "shards", "--shard-size", "150")
    assert len(shards["files"]) > 2
    convert(FIXTURES / "legacy" / "model.pt", folder / "model.pt", "--extract-source", folder / "source")
    state = {"w": torch.ones(1), "_extra_state": {"calls": 3, "note": ("a", float("inf"))}}
    torch.save(state, folder / "extra.pt")
    convert(folder / "extra.pt", folder / "extra.safetensors")
    return files


def test_every_field_of_the_schema_is_filled_by_some_report(told: list[dict[str, Any]]) -> None:
    filled = {key for file in told for key, value in file.items() if value not in (None, "", [], {}, False, 0)}
    described = {key for kind in ("conversion", "unchanged", "failure") for key in SCHEMA["$defs"][kind]["properties"]}
    assert filled == described
    conversion = SCHEMA["$defs"]["conversion"]["properties"]
    for name in ("tensors", "baked", "class_sources", "left_behind", "unmatched"):
        items = [item for file in told for item in file.get(name, ())]
        assert set().union(*items) == conversion[name]["items"]["properties"].keys(), name
    for name in ("decomposed", "aliases", "lost_values"):
        items = [item for file in told for item in file.get(name, {}).values()]
        assert set().union(*items) == conversion[name]["additionalProperties"]["properties"].keys(), name
    assert {file["format"] for file in told if "format" in file} == set(conversion["format"]["enum"])
    assert {made["method"] for file in told for made in file.get("baked", ())} <= set(
        conversion["baked"]["items"]["properties"]["method"]["enum"]
    )
    assert {bool(alias["stored"]) for file in told for alias in file.get("aliases", {}).values()} == {True, False}


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    pending = [schema]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            pending += part.values()
            if "properties" in part:
                yield part
        elif isinstance(part, list):
            pending += part


def test_the_schema_takes_nothing_else(told: list[dict[str, Any]]) -> None:
    assert all(part["additionalProperties"] is False for part in objects(SCHEMA))
    file = next(file for file in told if file["result"] == "converted" and file["aliases"])
    for change in (
        {"more": 1},
        {"result": "unchanged"},
        {"source_digest": "0"},
        {"aliases": {"a": {"of": "b"}}},
        {"select": [None]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            VALIDATOR.validate({"version": 1, "command": "convert", "files": [{**file, **change}]})
    for key in file:
        with pytest.raises(jsonschema.ValidationError):
            less = {name: value for name, value in file.items() if name != key}
            VALIDATOR.validate({"version": 1, "command": "convert", "files": [less]})


def test_the_documentation_names_it() -> None:
    assert "(schema/convert.schema.json)" in (ROOT / "docs" / "convert.md").read_text("utf-8")
