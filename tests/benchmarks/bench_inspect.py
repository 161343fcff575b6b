"""``ckpt inspect``: against the start of an interpreter, against torch.load, and by the size of the file."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.benchmarks.harness import Table, ckpt, measure

SMALL, LARGE = 20_000_000, 2_000_000_000
TENSORS = 300

TORCH = """
import sys, torch
state = torch.load(sys.argv[1], mmap=True, weights_only=True)
for name, tensor in state.items():
    print(name, tensor.dtype, tuple(tensor.shape))
"""


def make(path: Path, nbytes: int) -> None:
    """A state_dict of *nbytes* in blocks of four tensors, as layers have them."""
    import torch

    elements = nbytes // 4 // TENSORS
    names = ("attention.weight", "attention.bias", "mlp.weight", "mlp.bias")
    state = {f"layers.{i // 4}.{names[i % 4]}": torch.full((elements,), float(i)) for i in range(TENSORS)}
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path)


def run(folder: Path, runs: int = 11, large: int = LARGE, small: int = SMALL, pickled: int = 20_000_000) -> list[Table]:
    """The two tables of ``ckpt inspect``."""
    for name, nbytes in (("large.pt", large), ("small.pt", small), ("large.safetensors", large)):
        make(folder / name, nbytes)
    costs = measure(
        {
            "start": [sys.executable, "-W", "ignore", "-c", "import click, tabulate"],
            "large": ckpt("inspect", folder / "large.pt"),
            "small": ckpt("inspect", folder / "small.pt"),
            "safetensors": ckpt("inspect", folder / "large.safetensors"),
            "torch": [sys.executable, "-c", TORCH, str(folder / "large.pt")],
        },
        runs,
    )
    base, ours = costs["start"], costs["large"]
    table = Table("ckpt inspect", ("process", "wall", "peak memory", "against ckpt inspect on 2 GB", "target"))
    targets = {
        "start": f"inspect within 1.5×: {ours.wall / base.wall:.2f}×",
        "large": f"under 40 MB: {ours.rss / 1e6:.1f} MB",
        "small": f"2 GB within 1.1× of 20 MB: {ours.wall / costs['small'].wall:.2f}×",
        "safetensors": "",
        "torch": f"inspect 15× ahead or more: {costs['torch'].wall / ours.wall:.1f}×",
    }
    labels = {
        "start": "`python -c 'import click, tabulate'`",
        "large": f"`ckpt inspect`, {large / 1e9:g} GB zip, {TENSORS} tensors",
        "small": f"`ckpt inspect`, {small / 1e6:g} MB zip, {TENSORS} tensors",
        "safetensors": f"`ckpt inspect`, {large / 1e9:g} GB safetensors",
        "torch": "`torch.load(mmap=True, weights_only=True)`, names and shapes",
    }
    for name, cost in costs.items():
        ratio = f"{cost.wall / ours.wall:.2f}×"
        table.rows.append(
            (labels[name], f"{1000 * cost.wall:.0f} ms", f"{cost.rss / 1e6:.1f} MB", ratio, targets[name])
        )
    return [table, pickle_speed(pickled)]


def pickle_speed(nbytes: int) -> Table:
    """Opcodes per second of the pickle machine and of ``pickletools.genops`` on one torch pickle."""
    import io
    import pickletools
    import zipfile

    import torch

    from ckpt_tools.pickles.machine import evaluate

    state: dict[str, torch.Tensor] = {}
    buffer = io.BytesIO()
    empty = torch.zeros(1)
    # a view each: they share a storage, so the file stays small while the pickle grows
    for i in range(nbytes // 75):
        state[f"layers.{i}.weight"] = empty[:1]
    torch.save(state, buffer)
    with zipfile.ZipFile(buffer) as archive:
        data = archive.read("archive/data.pkl")
    count = sum(1 for _ in pickletools.genops(data))
    speeds: dict[str, float] = {}
    for name, read in (("ours", evaluate), ("genops", lambda d: sum(1 for _ in pickletools.genops(d)))):
        best = min(_timed(read, data) for _ in range(5))
        speeds[name] = count / best
    table = Table("The pickle machine", ("reader", "opcodes per second", "target"))
    table.rows = [
        ("ckpt_tools.pickles.machine.evaluate", f"{speeds['ours'] / 1e6:.2f} million", ""),
        (
            "pickletools.genops, which builds nothing",
            f"{speeds['genops'] / 1e6:.2f} million",
            f"evaluate is faster: {speeds['ours'] / speeds['genops']:.2f}×",
        ),
    ]
    table.note = f"A state_dict's pickle of {len(data) / 1e6:.1f} MB and {count:,} opcodes, best of five."
    return table


def _timed(read, data) -> float:
    start = time.perf_counter()
    read(data)
    return time.perf_counter() - start
