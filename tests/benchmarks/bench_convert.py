"""``ckpt convert``: against copying the file, copying and hashing it, and torch with the safetensors library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.harness import COST_COLUMNS, ROOT, Table, at_least, at_most, ckpt, measure

LARGE = 2_000_000_000

MAKE = """
import sys
from pathlib import Path
from tests.benchmarks.bench_inspect import make
make(Path(sys.argv[1]), int(sys.argv[2]))
"""
TORCH = """
import sys, torch
from safetensors.torch import save_file
save_file(torch.load(sys.argv[1], mmap=True, weights_only=True), sys.argv[2])
"""


def run(folder: Path, runs: int = 3, large: int = LARGE) -> list[Table]:
    """The table of one large file."""
    source, target, copy = folder / "large.pt", folder / "out.safetensors", folder / "copy"
    # in a process of its own: a child's peak memory begins with that of the process that starts it
    subprocess.run([sys.executable, "-c", MAKE, str(source), str(large)], check=True, cwd=ROOT)
    # what is written is flushed to the disk by convert, so by what it is compared with
    hashes = f"cp {source} {copy} && sync {copy} && openssl dgst -sha256 {source} && openssl dgst -sha256 {copy}"
    commands = {
        "`cp`, `sync`": ["sh", "-c", f"cp {source} {copy} && sync {copy}"],
        "`ckpt convert --no-verify`": ckpt("convert", source, target, "--force", "--no-verify"),
        "`cp`, `sync`, `openssl dgst -sha256` twice": ["sh", "-c", hashes],
        "`ckpt convert`": ckpt("convert", source, target, "--force"),
        "`ckpt convert` to .pt": ckpt("convert", source, folder / "out.pt", "--force"),
        "`torch.load(mmap=True)`, `save_file`": [sys.executable, "-c", TORCH, str(source), str(target)],
    }
    costs = measure(commands, runs)
    cp, plain, hashed, proven, to_pt, torch = costs.values()
    peak = max(plain.rss, proven.rss, to_pt.rss)
    table = Table(f"{large / 1e9:g} GB zip to safetensors", ("process", *COST_COLUMNS))
    table.rows = [(name, *cost.cells) for name, cost in costs.items()]
    table.targets = [
        at_most("`--no-verify` against `cp`", plain.wall / cp.wall, 1.15),
        at_most("with proof against `cp` and two hashes", proven.wall / hashed.wall, 1.3),
        at_least("torch against `--no-verify`", torch.wall / plain.wall, 2.5),
        at_most("peak memory of convert", peak / 1e6, 64, " MB"),
    ]
    return [table]
