"""The benchmark of convert runs, on small files; its figures are no test's business."""

from pathlib import Path

import pytest


def test_the_benchmark_of_convert_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.benchmarks import bench_convert

    large, huge, many = bench_convert.run(tmp_path, runs=1, large=400_000, huge=4_000_000, small_files=20)
    assert [len(table.rows) for table in (large, huge, many)] == [8, 2, 5]
    assert many.title.startswith("20 files of ")
    assert list(tmp_path.iterdir()) == []
