"""``python -m tests.benchmarks [COMMAND…]``: run the benchmarks and write docs/benchmarks.md."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from tests.benchmarks.harness import ROOT, scratch, write_page

BENCHMARKS = tuple(sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")))

if __name__ == "__main__":
    wanted = sys.argv[1:] or BENCHMARKS
    tables = []
    for name in wanted:
        with scratch() as folder:
            tables += import_module(f"tests.benchmarks.bench_{name}").run(Path(folder))
    write_page(tables, ROOT / "docs" / "benchmarks.md")
