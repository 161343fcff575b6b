"""The harness measures what it says, on small files; the figures themselves are no test's business."""

import sys

import pytest

from tests.benchmarks.harness import measure, write_page


def test_it_measures_the_process_itself():
    hungry = [sys.executable, "-c", "x = b'x' * 210_000_000"]
    modest = [sys.executable, "-c", "pass"]
    costs = measure({"hungry": hungry, "modest": modest}, runs=2)
    assert costs["hungry"].rss > 200_000_000 > costs["modest"].rss > 1_000_000
    assert len(costs["modest"].seconds) == 2


def test_a_command_that_fails_is_no_measurement():
    with pytest.raises(RuntimeError, match="exit code 3"):
        measure({"bad": [sys.executable, "-c", "raise SystemExit(3)"]}, runs=1)


def test_the_benchmark_of_inspect_runs(tmp_path):
    pytest.importorskip("torch")
    from tests.benchmarks import bench_inspect

    tables = bench_inspect.run(tmp_path, runs=1, large=400_000, small=40_000, pickled=10_000)
    write_page(tables, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "torch.load" in text and "genops" in text
