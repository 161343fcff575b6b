"""The benchmark of convert runs, on a small file; its figures are no test's business."""

from pathlib import Path

import pytest


def test_the_benchmark_of_convert_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.benchmarks import bench_convert

    (table,) = bench_convert.run(tmp_path, runs=1, large=400_000)
    assert len(table.rows) == 6
    assert (tmp_path / "out.safetensors").stat().st_size > 400_000 - 1200
