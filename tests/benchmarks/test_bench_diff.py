"""The benchmark of diff runs, on small files; its figures are no test's business."""

from pathlib import Path

import pytest


def test_the_benchmark_of_diff_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.benchmarks import bench_diff

    (table,) = bench_diff.run(tmp_path, runs=1, large=400_000)
    assert len(table.rows) == 9
    assert (tmp_path / "after.pt").stat().st_size > 400_000
    assert (tmp_path / "before.pt").read_bytes() == (tmp_path / "equal.pt").read_bytes()
