"""``ckpt summary --stats``: every byte read and every number counted, against a hash of the same file."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.harness import Table, ckpt, measure

LARGE = 2_000_000_000
TENSORS = 100


def make(path: Path, nbytes: int, dtype: str) -> None:
    """A state_dict of *nbytes* of normally distributed numbers."""
    import torch

    kind = getattr(torch, dtype)
    block = torch.randn(nbytes // kind.itemsize // TENSORS).to(kind)
    torch.save({f"layers.{i}.weight": block.roll(i) for i in range(TENSORS)}, path)


def run(folder: Path, runs: int = 3, large: int = LARGE) -> list[Table]:
    """The table of ``--stats``."""
    dtypes = ("float32", "bfloat16", "float16")
    for dtype in dtypes:
        make(folder / f"{dtype}.pt", large, dtype)
    commands = {"openssl": ["openssl", "dgst", "-sha256", str(folder / "float32.pt")]}
    commands |= {dtype: ckpt("summary", "--stats", folder / f"{dtype}.pt") for dtype in dtypes}
    costs = measure(commands, runs)
    base, ours = costs["openssl"], costs["float32"]
    table = Table("ckpt summary --stats", ("process", "wall", "per second", "peak memory", "target"))
    targets = {
        "openssl": "",
        "float32": f"no slower than openssl, under 200 MB: {ours.wall / base.wall:.2f}×, {ours.rss / 1e6:.0f} MB",
        "bfloat16": f"within 1.5× of float32 a byte: {costs['bfloat16'].wall / ours.wall:.2f}×",
        "float16": f"within 1.5× of float32 a byte: {costs['float16'].wall / ours.wall:.2f}×",
    }
    for name, cost in costs.items():
        label = "`openssl dgst -sha256`" if name == "openssl" else f"`ckpt summary --stats`, {name}"
        speed = f"{large / cost.wall / 1e9:.2f} GB"
        table.rows.append((label, f"{cost.wall:.2f} s", speed, f"{cost.rss / 1e6:.0f} MB", targets[name]))
    table.note = f"Files of {large / 1e9:g} GB, {TENSORS} tensors, two threads."
    return [table]
