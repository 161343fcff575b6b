"""Measuring whole processes: wall time and peak memory, side by side in one run, and what they should come to.

A benchmark is a module ``bench_<name>.py`` here with a function ``run(folder: Path) -> list[Table]``; that is all
its registration. ``python -m tests.benchmarks`` runs them and writes docs/benchmarks.md, ``pytest -m benchmark``
fails where a target is missed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = tuple(sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py")))

# A process of its own between us and what is measured: exec hands down the peak of the process that called it,
# and ours may have held gigabytes.
_LAUNCHER = """
import os, sys, time
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
start = time.perf_counter()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(child, 0)
print(time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


@dataclass
class Cost:
    """What runs of one command took: wall seconds of each, and the peak resident bytes of any."""

    seconds: list[float] = field(default_factory=list)
    rss: int = 0

    @property
    def wall(self) -> float:
        """The median, which one run on a busy machine does not move."""
        return statistics.median(self.seconds)

    @property
    def cells(self) -> tuple[str, str, str]:
        """Median, minimum and peak as a table shows them, under `COST_COLUMNS`."""
        return f"{1000 * self.wall:,.0f} ms", f"{1000 * min(self.seconds):,.0f} ms", f"{self.rss / 1e6:,.1f} MB"


COST_COLUMNS = ("wall, median", "least", "peak memory")


@dataclass
class Target:
    """A figure that should be reached, in words, and whether it is."""

    text: str
    met: bool


def at_most(what: str, value: float, limit: float, unit: str = "×") -> Target:
    """``inspect against start: 0.98×, at most 1.5×``."""
    return Target(f"{what}: {value:.3g}{unit}, at most {limit:g}{unit}", value <= limit)


def at_least(what: str, value: float, limit: float, unit: str = "×") -> Target:
    """``torch.load against inspect: 31×, at least 15×``."""
    return Target(f"{what}: {value:.3g}{unit}, at least {limit:g}{unit}", value >= limit)


@dataclass
class Table:
    """A table of docs/benchmarks.md, and the targets that its figures should reach."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""
    targets: list[Target] = field(default_factory=list)

    @classmethod
    def of_costs(cls, title: str, costs: Mapping[str, Cost], labels: Mapping[str, str], note: str = "") -> Table:
        """A row for each process, by its label."""
        rows = [(labels[key], *cost.cells) for key, cost in costs.items()]
        return cls(title, ("process", *COST_COLUMNS), rows, note)

    def markdown(self) -> str:
        lines = [f"### {self.title}", ""]
        lines += ["| " + " | ".join(row) + " |" for row in (self.columns, ["---"] * len(self.columns), *self.rows)]
        if self.note:
            lines += ["", self.note]
        if self.targets:
            lines += [""] + [f"- {target.text} ({'met' if target.met else '**missed**'})" for target in self.targets]
        return "\n".join(lines) + "\n"


def measure(
    commands: Mapping[str, Sequence[str]],
    runs: int = 7,
    env: Mapping[str, str] | None = None,
    codes: Collection[int] = (0,),
    *,
    settle: bool = False,
) -> dict[str, Cost]:
    """Run each command *runs* times, taking turns, after one unmeasured round that warms the page cache.

    With *settle* the disk has what one command wrote before the next begins, so that none pays for another. Raises
    RuntimeError where one ends with an exit code that is not among *codes*.
    """
    costs = {name: Cost() for name in commands}
    # Python's own switches are left out, so that every program runs as installed: PYTHONDONTWRITEBYTECODE would
    # have what pip did not compile compiled in each run. The OpenBLAS ones slow some processors down.
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "OPENBLAS_"))}
    variables |= {"NO_COLOR": "1", **(env or {})}
    for turn in range(runs + 1):
        for name, command in commands.items():
            if settle:
                os.sync()
            seconds, rss, code = _run(command, variables)
            if code not in codes:
                raise RuntimeError(f"{name}: exit code {code} of {' '.join(command)[:300]}")
            if turn:
                costs[name].seconds.append(seconds)
                costs[name].rss = max(costs[name].rss, rss)
    return costs


def _run(command: Sequence[str], env: dict[str, str]) -> tuple[float, int, int]:
    """Wall seconds, peak resident bytes and exit code of one process; what it writes to stdout is thrown away."""
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command]
    told = subprocess.run(launcher, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True).stdout
    seconds, rss, code = told.split()
    # Linux counts in KiB, macOS in bytes
    return float(seconds), int(rss) * (1 if sys.platform == "darwin" else 1024), int(code)


def ckpt(*arguments: str | Path) -> list[str]:
    """The command line of the installed program beside this Python."""
    return [str(Path(sys.executable).with_name("ckpt")), *map(str, arguments)]


def peer(program: str) -> str | None:
    """Where *program*, which others wrote, is installed: in the folder CKPT_TOOLS_PEERS or on the PATH."""
    return shutil.which(program, path=os.environ.get("CKPT_TOOLS_PEERS")) or shutil.which(program)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for files of gigabytes."""
    return tempfile.TemporaryDirectory(prefix="ckpt-bench-")


def machine() -> str:
    """The machine in a line: processor, cores, memory, system, Python, torch, and the day."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (named := re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())):
        model = named[1]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    try:
        torch = f"torch {version('torch')}"
    except PackageNotFoundError:
        torch = "no torch"
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {torch}, {time.strftime('%Y-%m-%d')}"
    )


_INTRODUCTION = """# Benchmarks

Written by `python -m tests.benchmarks`. Whole processes from start to exit, with the files in the page cache and
Python's modules compiled, as installed; the commands of a section take turns in one run. Peak memory is the
kernel's count of resident bytes, the interpreter and shared libraries included.
"""


def write_page(results: Mapping[str, Sequence[Table]], path: Path) -> None:
    """Put the tables of each benchmark into docs/benchmarks.md; sections of benchmarks that did not run stay."""
    old = path.read_text("utf-8") if path.exists() else ""
    sections = dict(re.findall(r"^## ckpt (\w+)\n(.*?)(?=^## |\Z)", old, re.M | re.S))
    for name, tables in results.items():
        sections[name] = "\n".join(["", f"{machine()}.", "", *(table.markdown() for table in tables)])
    parts = [_INTRODUCTION, *(f"## ckpt {name}\n{sections[name].rstrip()}\n" for name in sorted(sections))]
    path.write_text("\n".join(parts), "utf-8")
