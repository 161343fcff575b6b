"""The harness measures what it says, on small files; the figures themselves are no test's business."""

import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.benchmarks.harness import BENCHMARKS, Table, at_least, at_most, measure, peer, scratch, write_page


def test_it_measures_the_process_and_not_its_parent():
    held = b"x" * 300_000_000
    hungry = [sys.executable, "-c", "x = b'x' * 210_000_000"]
    modest = [sys.executable, "-c", "pass"]
    costs = measure({"hungry": hungry, "modest": modest}, runs=2)
    assert len(held) > costs["hungry"].rss > 200_000_000 > 100_000_000 > costs["modest"].rss > 1_000_000
    assert len(costs["modest"].seconds) == 2


def test_a_process_that_sleeps_takes_as_long():
    costs = measure({"sleeping": [sys.executable, "-c", "import time; time.sleep(0.2)"]}, runs=1)
    assert costs["sleeping"].wall >= 0.2


def test_a_command_that_fails_is_no_measurement():
    failing = {"bad": [sys.executable, "-c", "raise SystemExit(3)"]}
    with pytest.raises(RuntimeError, match="exit code 3"):
        measure(failing, runs=1)
    assert len(measure(failing, runs=1, codes=(0, 3))["bad"].seconds) == 1


def test_a_peer_is_found_in_its_folder(tmp_path, monkeypatch):
    program = tmp_path / "some-peer"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert peer("some-peer") is None
    monkeypatch.setenv("CKPT_TOOLS_PEERS", str(tmp_path))
    assert peer("some-peer") == str(program)


def test_targets_are_judged_at_their_limit():
    assert at_most("time", 1.5, 1.5).met and not at_most("time", 1.51, 1.5).met
    assert at_least("speed", 15, 15).met and not at_least("speed", 14.9, 15).met
    assert at_most("peak memory", 25.25, 40, " MB").text == "peak memory: 25.2 MB, at most 40 MB"


def test_a_page_keeps_what_did_not_run(tmp_path):
    page = tmp_path / "page.md"

    def table(cell: str) -> Table:
        return Table("Times", ("process", "wall"), [("one", cell)], targets=[at_most("one", 2, 1)])

    write_page({"inspect": [table("1 ms")], "audit": [table("2 ms")]}, page)
    write_page({"inspect": [table("3 ms")]}, page)
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## ckpt audit", "## ckpt inspect"]
    assert "| one | 2 ms |" in text and "| one | 3 ms |" in text and "1 ms" not in text
    assert text.count("- one: 2×, at most 1× (**missed**)") == 2
    write_page({}, page)
    assert page.read_text() == text


def test_the_benchmark_of_inspect_runs(tmp_path):
    pytest.importorskip("torch")
    from tests.benchmarks import bench_inspect

    tables = bench_inspect.run(tmp_path, runs=1, large=400_000, small=40_000, pickled=10_000)
    assert [len(table.targets) for table in tables] == [5, 1]
    assert len(tables[0].rows) >= 5


@pytest.mark.benchmark
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_target_is_met(name):
    pytest.importorskip("torch")
    with scratch() as folder:
        tables = import_module(f"tests.benchmarks.bench_{name}").run(Path(folder))
    assert [target.text for table in tables for target in table.targets if not target.met] == []
