"""``ckpt convert``: against copying the file, copying and hashing it, and torch with the safetensors library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.harness import ROOT, Table, ckpt, measure

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
    costs = measure(
        {
            "cp": ["sh", "-c", f"cp {source} {copy} && sync {copy}"],
            "plain": ckpt("convert", source, target, "--force", "--no-verify"),
            "hashes": ["sh", "-c", hashes],
            "proof": ckpt("convert", source, target, "--force"),
            "pt": ckpt("convert", source, folder / "out.pt", "--force"),
            "torch": [sys.executable, "-c", TORCH, str(source), str(target)],
        },
        runs,
    )
    plain, proof = costs["plain"], costs["proof"]
    peak = max(plain.rss, proof.rss, costs["pt"].rss)
    labels = {
        "cp": ("`cp`, `sync`", f"--no-verify within 1.15×: {plain.wall / costs['cp'].wall:.2f}×"),
        "plain": ("`ckpt convert --no-verify`", f"under 64 MB: {peak / 1e6:.1f} MB at most"),
        "hashes": (
            "`cp`, `sync`, `openssl dgst -sha256` twice",
            f"with proof within 1.3×: {proof.wall / costs['hashes'].wall:.2f}×",
        ),
        "proof": ("`ckpt convert`", ""),
        "pt": ("`ckpt convert` to .pt", ""),
        "torch": (
            "`torch.load(mmap=True)`, `save_file`",
            f"--no-verify 2.5× ahead or more: {costs['torch'].wall / plain.wall:.1f}×",
        ),
    }
    table = Table(f"ckpt convert, {large / 1e9:g} GB zip to safetensors", ("process", "wall", "peak memory", "target"))
    for name, cost in costs.items():
        label, target_met = labels[name]
        table.rows.append((label, f"{cost.wall:.2f} s", f"{cost.rss / 1e6:.1f} MB", target_met))
    return [table]
