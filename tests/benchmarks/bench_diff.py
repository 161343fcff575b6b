"""``ckpt diff``: equal files against ``cmp``, changed ones against the script that people write with torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.harness import COST_COLUMNS, Table, at_least, at_most, ckpt, measure

LARGE = 2_000_000_000
TENSORS = 100

MAKE = """
import sys, torch
folder, elements, tensors = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
block = torch.randn(elements)
before = {f"layers.{i}.weight": block.roll(i) for i in range(tensors)}
torch.save(before, f"{folder}/before.pt")
for i, weight in enumerate(before.values()):
    weight += 1e-3 * block.roll(-i)
torch.save(before, f"{folder}/after.pt")
torch.save({"weight": torch.zeros(1)}, f"{folder}/small.pt")
"""
TORCH = """
import sys, torch
before, after = (torch.load(path, mmap=True, weights_only=True) for path in sys.argv[1:])
for name, a in before.items():
    b = after[name]
    change = b - a
    print(name, torch.equal(a, b), change.norm().item(), change.abs().max().item())
"""
ALONE = """
import sys
from ckpt_tools import open_checkpoint
from ckpt_tools.analysis.comparison import compare_all
before, after = (open_checkpoint(path).model_state_dict().tensors for path in sys.argv[2:])
pairs = [(a, b, None) for a, b in zip(before, after, strict=True)]
for found in compare_all(pairs, threads=int(sys.argv[1])):
    assert found is not None
"""


def run(folder: Path, runs: int = 5, large: int = LARGE) -> list[Table]:
    """The table of two float32 files, equal and changed."""
    before, equal, after, small = (str(folder / f"{name}.pt") for name in ("before", "equal", "after", "small"))
    # in a process of its own: a child's peak memory begins with that of the process that starts it
    numbers = str(large // 4 // TENSORS), str(TENSORS)
    subprocess.run([sys.executable, "-c", MAKE, str(folder), *numbers], check=True)
    shutil.copyfile(before, equal)
    alone = [sys.executable, "-c", ALONE]
    commands = {
        "`cmp`, equal files": ["cmp", before, equal],
        "`ckpt diff`, equal files": ckpt("diff", before, equal),
        "`ckpt diff --brief`, equal files": ckpt("diff", "--brief", before, equal),
        "`torch.load(mmap=True)`, `equal`, `norm`, `max`": [sys.executable, "-c", TORCH, before, after],
        "`ckpt diff`, changed files": ckpt("diff", before, after),
        "`ckpt diff --brief`, changed files": ckpt("diff", "--brief", before, after),
        "comparison alone, one thread": [*alone, "1", before, after],
        "comparison alone, two threads": [*alone, "2", before, after],
        "comparison alone, one number": [*alone, "2", small, small],
    }
    costs = measure(commands, runs, codes=(0, 1))
    cmp, same, brief, torch, changed, brief_changed, one, two, start = costs.values()
    peak = max(cost.rss for cost in (same, brief, changed, brief_changed, two))
    table = Table(f"Two float32 files of {large / 1e9:g} GB", ("process", *COST_COLUMNS))
    table.rows = [(name, *cost.cells) for name, cost in costs.items()]
    table.note = (
        f"{TENSORS} tensors; every number of the changed files is another. `ckpt diff` also counts what is equal, sign "
        "flips and NaN, and measures both norms, their cosine and the distance in representable numbers."
    )
    table.targets = [
        at_most("equal files against `cmp`", same.wall / cmp.wall, 1),
        at_most("equal files, `--brief`, against `cmp`", brief.wall / cmp.wall, 1),
        at_least("torch against changed files", torch.wall / changed.wall, 3.5),
        at_least("one thread against two, less the start", (one.wall - start.wall) / (two.wall - start.wall), 1.6),
        at_most("peak memory of diff", peak / 1e6, 200, " MB"),
    ]
    return [table]
