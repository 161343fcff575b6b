"""The benchmark of audit runs, on small files; its figures are no test's business."""

from pathlib import Path

import pytest


def test_the_benchmark_of_audit_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.benchmarks import bench_audit

    large, tree, *_ = bench_audit.run(tmp_path, runs=1, large=400_000, files=3)
    assert [row[0] for row in large.rows][:2] == [
        "`ckpt audit --no-values`, 0.0004 GB zip",
        "`ckpt audit`, 0.0004 GB zip",
    ]
    assert [row[0] for row in tree.rows][:3] == [
        "`ckpt audit --no-values --jobs 1`",
        "`ckpt audit --no-values --jobs 2`",
        "`ckpt audit --no-values`",
    ]
    names = sorted(str(path.relative_to(tmp_path / "tree")) for path in (tmp_path / "tree").rglob("*.pt"))
    assert names == ["mlp-001/epoch_00.pt", "mlp-001/epoch_01.pt", "mlp-001/epoch_02.pt"]
