"""Measuring whole processes: wall time and peak memory, side by side in one run, as ratios.

A benchmark is a module ``bench_<command>.py`` here with a function ``run(measure: Measure, folder: Path)`` that
returns tables; ``python -m tests.benchmarks`` runs them all and writes docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Cost:
    """What runs of one command took: wall seconds of each, and the peak resident bytes of any."""

    seconds: list[float] = field(default_factory=list)
    rss: int = 0

    @property
    def wall(self) -> float:
        """The median, which one run on a busy machine does not move."""
        return statistics.median(self.seconds)


@dataclass
class Table:
    """A table of docs/benchmarks.md: what was measured, and for each target whether it is met."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""


def measure(commands: dict[str, Sequence[str]], runs: int = 7, env: dict[str, str] | None = None) -> dict[str, Cost]:
    """Run each command *runs* times, taking turns, after one unmeasured round that warms the page cache."""
    costs = {name: Cost() for name in commands}
    variables = {**os.environ, "NO_COLOR": "1", **(env or {})}
    # these slow a current OpenBLAS down (see the machine's notes), for us as for our peers
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        variables.pop(name, None)
    # pip compiles what it installs; a working tree is compiled by the first round, if Python may keep the result
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    # Linux counts the memory of the process that starts a program into the program's own peak, so a small
    # one must do it, not this one, which may have loaded torch
    starter = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", STARTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=variables,
        text=True,
    )
    assert starter.stdin is not None and starter.stdout is not None
    with starter:
        for round_ in range(runs + 1):
            for name, command in commands.items():
                print(json.dumps(list(command)), file=starter.stdin, flush=True)
                seconds, rss, code = json.loads(starter.stdout.readline())
                if code:
                    raise RuntimeError(f"{name}: exit code {code} of {' '.join(command)[:300]}")
                if round_:
                    costs[name].seconds.append(seconds)
                    costs[name].rss = max(costs[name].rss, rss)
        starter.stdin.close()
    return costs


STARTER = """
import json, os, sys, time
for line in sys.stdin:
    command = json.loads(line)
    actions = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, flags, 0) for fd, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY))]
    start = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status)]), flush=True)
"""
"""A process that runs the commands it is given, one a line, and tells wall seconds, peak bytes and exit code."""


def machine() -> str:
    """The machine in a line: processor, cores, memory, system, Python."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def ckpt(*arguments: str | Path) -> list[str]:
    """The command line of the installed program beside this Python."""
    return [str(Path(sys.executable).with_name("ckpt")), *map(str, arguments)]


def write_page(tables: Sequence[Table], path: Path) -> None:
    """Write docs/benchmarks.md."""
    import torch

    parts = [
        "# Benchmarks\n",
        "Written by `python -m tests.benchmarks`. Whole processes, started cold with a warm page cache, taking turns; "
        "medians. What stands in a table was measured in one run.\n",
        f"{machine()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}.\n",
    ]
    for table in tables:
        parts.append(f"## {table.title}\n")
        lines = ["| " + " | ".join(row) + " |" for row in (table.columns, ["---"] * len(table.columns), *table.rows)]
        parts.append("\n".join(lines) + "\n")
        if table.note:
            parts.append(table.note + "\n")
    path.write_text("\n".join(parts))


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for files of gigabytes."""
    return tempfile.TemporaryDirectory(prefix="ckpt-bench-")
