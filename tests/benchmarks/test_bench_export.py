"""The benchmark of export runs, on a small model; its figures are no test's business."""

from pathlib import Path

import pytest


@pytest.mark.full
def test_the_benchmark_of_export_runs(tmp_path: Path) -> None:
    for package in ("torchvision", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from tests.benchmarks import bench_export

    (table,) = bench_export.run(tmp_path, runs=1, name="squeezenet1_1", size=64)
    assert len(table.rows) == 3
    assert len(table.targets) == 2
    assert {"plain.onnx", "whole.onnx"} <= {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "worker.onnx").exists()  # it stops before the file is put in place
