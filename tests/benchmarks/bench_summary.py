"""``ckpt summary --stats``: every byte read and every number counted, against a hash of the same file."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.harness import COST_COLUMNS, Table, at_most, ckpt, measure

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
    table = Table("Statistics", ("process", *COST_COLUMNS, "per second"))
    for name, cost in costs.items():
        label = "`openssl dgst -sha256`" if name == "openssl" else f"`ckpt summary --stats`, {name}"
        table.rows.append((label, *cost.cells, f"{large / cost.wall / 1e9:.2f} GB"))
    table.note = f"Files of {large / 1e9:g} GB, {TENSORS} tensors, two threads."
    table.targets = [
        at_most("`--stats` of float32 against openssl", ours.wall / base.wall, 1),
        *(at_most(f"{name} against float32, a byte", costs[name].wall / ours.wall, 1.5) for name in dtypes[1:]),
        at_most("peak memory of `--stats`", max(costs[name].rss for name in dtypes) / 1e6, 200, " MB"),
    ]
    return [table]
