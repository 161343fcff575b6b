"""``python -m tests.benchmarks [NAME…]``: run all or some benchmarks and write docs/benchmarks.md."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from tests.benchmarks.harness import BENCHMARKS, ROOT, scratch, write_page


def main(names: list[str]) -> int:
    """The exit code: 1 where a target is missed."""
    code = 0
    for name in names or BENCHMARKS:
        with scratch() as folder:
            tables = import_module(f"tests.benchmarks.bench_{name}").run(Path(folder))
        for table in tables:
            print(table.markdown())
            code |= any(not target.met for target in table.targets)
        write_page({name: tables}, ROOT / "docs" / "benchmarks.md")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
