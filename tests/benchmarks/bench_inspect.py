"""``ckpt inspect``: against the start of an interpreter, against torch.load, and by the size of the file."""

from __future__ import annotations

import io
import pickletools
import sys
import time
import zipfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.harness import COST_COLUMNS, Table, at_least, at_most, ckpt, measure, peer

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


def run(folder: Path, runs: int = 15, large: int = LARGE, small: int = SMALL, pickled: int = 20_000_000) -> list[Table]:
    """The table of ``ckpt inspect`` and that of the pickle machine."""
    paths = {name: folder / name for name in ("large.pt", "small.pt", "large.safetensors")}
    for path in paths.values():
        make(path, small if path.stem == "small" else large)
    size = f"{large / 1e9:g} GB"
    commands = {
        "`python -c 'import click, tabulate'`": [sys.executable, "-c", "import click, tabulate"],
        f"`ckpt inspect`, {size} zip": ckpt("inspect", paths["large.pt"]),
        f"`ckpt inspect`, {small / 1e6:g} MB zip": ckpt("inspect", paths["small.pt"]),
        f"`ckpt inspect`, {size} safetensors": ckpt("inspect", paths["large.safetensors"]),
        f"`torch.load(mmap=True, weights_only=True)`, {size} zip": [
            sys.executable, "-c", TORCH, str(paths["large.pt"])
        ],
    }  # fmt: skip
    start, ours, little, safetensors, torch = commands
    for program in ("picklescan", "modelscan"):
        if found := peer(program):
            commands[f"`{program}`, {size} zip"] = [found, "-p", str(paths["large.pt"])]
    costs = measure(commands, runs)
    wall = {name: cost.wall for name, cost in costs.items()}
    table = Table("Headers", ("process", *COST_COLUMNS, "against inspect"))
    table.rows = [(name, *cost.cells, f"{cost.wall / wall[ours]:.2f}×") for name, cost in costs.items()]
    table.note = f"Each file has {TENSORS} tensors. `torch.load` lists their names, dtypes and shapes."
    table.targets = [
        at_most(f"inspect of {size} against the imports", wall[ours] / wall[start], 1.5),
        at_most(f"inspect of {size} against inspect of {small / 1e6:g} MB", wall[ours] / wall[little], 1.1),
        at_least("`torch.load` against inspect", wall[torch] / wall[ours], 15),
        at_most("peak memory of inspect, zip", costs[ours].rss / 1e6, 40, " MB"),
        at_most("peak memory of inspect, safetensors", costs[safetensors].rss / 1e6, 40, " MB"),
    ]
    return [table, pickle_speed(pickled)]


def pickle_speed(nbytes: int) -> Table:
    """Opcodes per second of the pickle machine and of ``pickletools.genops`` on one torch pickle."""
    from ckpt_tools.pickles.machine import evaluate

    data = _state_dict_pickle(nbytes)
    opcodes = sum(1 for _ in pickletools.genops(data))
    readers: dict[str, Callable[[bytes], object]] = {
        "`ckpt_tools.pickles.machine.evaluate`": evaluate,
        "`pickletools.genops`, which builds nothing": lambda data: deque(pickletools.genops(data), maxlen=0),
    }
    least = dict.fromkeys(readers, float("inf"))
    for _ in range(5):
        for name, read in readers.items():
            start = time.perf_counter()
            read(data)
            least[name] = min(least[name], time.perf_counter() - start)
    table = Table("The pickle machine", ("reader", "opcodes per second"))
    table.rows = [(name, f"{opcodes / seconds / 1e6:.2f} million") for name, seconds in least.items()]
    table.note = f"A state_dict's pickle of {len(data) / 1e6:.1f} MB and {opcodes:,} opcodes, best of five."
    ours, theirs = least.values()
    table.targets = [at_least("evaluate against genops, opcodes per second", theirs / ours, 1)]
    return table


def _state_dict_pickle(nbytes: int) -> bytes:
    """The pickle, about *nbytes* long, of a state_dict; its tensors share a storage, so the file has no more."""
    import torch

    one = torch.zeros(1)
    file = io.BytesIO()
    torch.save({f"layers.{i}.weight": one[:1] for i in range(nbytes // 91)}, file)
    with zipfile.ZipFile(file) as archive:
        return archive.read("archive/data.pkl")
