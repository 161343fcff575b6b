"""The table of what scanners say: its sums, and that it leaves nothing out."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks import peers
from tests.hostile.attacks import attacks


def test_every_attack_is_in_a_group(tmp_path: Path) -> None:
    made = list(peers.hostile(tmp_path))
    assert len(made) == len(attacks()) == len({path for _, path in made})
    assert all(Path(path).exists() for _, path in made)
    assert {group for group, _ in made} == set(peers.GROUPS)


def test_a_table_counts_by_group() -> None:
    cases = [("a", "1"), ("a", "2"), ("b", "3")]
    said = {
        "x": {"1": "found", "2": "clean", "3": "found"},
        "y": {"1": "not examined", "2": "found", "3": "clean"},
    }
    assert peers.table("attacks found", cases, said, "found") == "\n".join(
        [
            "| attacks found | files | x | y |",
            "| --- | --- | --- | --- |",
            "| a | 2 | 1 | 1 |",
            "| b | 1 | 1 | 0 |",
            "| **found, in all** | 3 | **2** | **1** |",
            "| **not examined, in all** | 3 | **0** | **1** |",
            "| **clean, in all** | 3 | **1** | **1** |",
        ]
    )


def test_ours_is_asked_like_the_others(tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.pkl", tmp_path / "good.pkl"
    bad.write_bytes(b"cos\nsystem\n(Vtrue\ntR.")
    good.write_bytes(b"\x80\x02}X\x01\x00\x00\x00xK\x01s.")
    paths = [str(bad), str(good), str(tmp_path / "none")]
    said = peers.ask(Path(sys.executable), peers.OURS, paths)
    assert said == dict(zip(paths, ("found", "clean", "not examined"), strict=True))


def test_a_scanner_that_dies_is_asked_about_the_rest() -> None:
    driver = 'import os\ndef judge(path):\n    return os._exit(1) if path == "b" else "clean"\n'
    said = peers.ask(Path(sys.executable), driver, ["a", "b", "c"])
    assert said == {"a": "clean", "b": "not examined", "c": "clean"}
