"""``ckpt audit``: of headers against other scanners, of values against a checksum, of a tree by files a second."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.benchmarks.bench_inspect import make
from tests.benchmarks.harness import COST_COLUMNS, Table, at_least, at_most, ckpt, measure, peer

LARGE = 2_000_000_000
FILES = 2_000

SMALL = Path(__file__).resolve().parents[2] / "fixtures" / "training" / "adam.pt"
"""What the tree is made of copies of: a checkpoint with a model, an optimizer and a scheduler."""

CODES = (0, 1, 2)
"""Of scanners; what they find is told elsewhere."""


def run(folder: Path, runs: int = 7, large: int = LARGE, files: int = FILES) -> list[Table]:
    """A large file, and a tree of small ones."""
    return [_large(folder, runs, large), _tree(folder, runs, files)]


def _large(folder: Path, runs: int, nbytes: int) -> Table:
    path = folder / "large.pt"
    make(path, nbytes)
    size = f"{nbytes / 1e9:g} GB"
    headers, values, digest, picklescan = (
        f"`ckpt audit --no-values`, {size} zip",
        f"`ckpt audit`, {size} zip",
        f"`openssl dgst -sha256`, {size}",
        f"`picklescan`, {size} zip",
    )
    commands = {headers: ckpt("audit", "--no-config", "--no-values", path), values: ckpt("audit", "--no-config", path)}
    if found := shutil.which("openssl"):
        commands[digest] = [found, "dgst", "-sha256", str(path)]
    if found := peer("picklescan"):
        commands[picklescan] = [found, "-p", str(path)]
    costs = measure(commands, runs, codes=CODES)
    path.unlink()
    table = Table("A large file", ("process", *COST_COLUMNS))
    table.rows = [(name, *cost.cells) for name, cost in costs.items()]
    table.note = "The tensors' values are read twice: for their statistics and for the archive's checksums."
    table.targets = [at_most("peak memory of headers", costs[headers].rss / 1e6, 40, " MB")]
    if digest in costs:
        against = costs[values].wall / costs[digest].wall
        table.targets.append(at_most("audit with values against openssl's SHA-256", against, 1.3))
    if picklescan in costs:
        against = costs[headers].wall / costs[picklescan].wall
        table.targets.append(at_most("audit of headers against picklescan", against, 1))
    return table


def _tree(folder: Path, runs: int, files: int) -> Table:
    tree = folder / "tree"
    for number in range(files):
        path = tree / f"{number // 100:02}" / f"{number % 100:02}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SMALL, path)
    audit = ("audit", "--no-config", "--no-values", tree)
    one, two = "`ckpt audit --no-values`", "`ckpt audit --no-values --jobs 2`"
    commands = {one: ckpt(*audit), two: ckpt(*audit, "--jobs", "2"), "`ckpt audit`": ckpt("audit", "--no-config", tree)}
    if found := peer("picklescan"):
        commands["`picklescan`"] = [found, "-p", str(tree)]
    if found := peer("modelaudit"):
        commands["`modelaudit scan`"] = [found, "scan", str(tree)]
    costs = measure(commands, runs, codes=CODES)
    table = Table(f"{files:,} small files", ("process", *COST_COLUMNS, "files a second"))
    table.rows = [(name, *cost.cells, f"{files / cost.wall:,.0f}") for name, cost in costs.items()]
    table.note = f"Copies of a training checkpoint of {SMALL.stat().st_size / 1e3:.1f} kB."
    table.targets = [at_least("two processes against one", costs[one].wall / costs[two].wall, 1.7)]
    for name, factor in (("`picklescan`", 3), ("`modelaudit scan`", 20)):
        if name in costs:
            table.targets.append(at_least(f"files a second against {name}", costs[name].wall / costs[one].wall, factor))
    return table
