"""``ckpt verify`` of VGG19 against the plain script: build, load strictly, run once."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.harness import Table, at_most, ckpt, measure

PLAIN = """
import sys
import torch
import torchvision

model = torchvision.models.get_model(sys.argv[1])
model.load_state_dict(torch.load(sys.argv[2]))
model.eval()
with torch.inference_mode():
    print(model(torch.rand(1, 3, 224, 224)).shape)
"""


def make(path: Path, name: str) -> int:
    """The weights of a model as it is made, its head as if it were trained; returns their bytes."""
    import torch
    from torchvision import models

    model = models.get_model(name)
    with torch.no_grad():
        for parameter in list(model.parameters())[-2:]:
            parameter.normal_()
    torch.save(model.state_dict(), path)
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def run(folder: Path, runs: int = 5, name: str = "vgg19") -> list[Table]:
    """The table of all checks against the plain script, and of what the imports alone take."""
    path, script = folder / f"{name}.pt", folder / "plain.py"
    weights = make(path, name)
    script.write_text(PLAIN)
    costs = measure(
        {
            "imports": [sys.executable, "-c", "import torch, torchvision"],
            "plain": [sys.executable, str(script), name, str(path)],
            "verify": ckpt("verify", path, "--model", f"torchvision:{name}", "--input", "3,224,224"),
        },
        runs,
    )
    labels = {
        "imports": "`import torch, torchvision`",
        "plain": "plain script: build, load strictly, run once",
        "verify": "`ckpt verify`: all checks, four forward passes' worth, a digest of every byte",
    }
    note = f"{weights / 1e6:,.0f} MB of weights, an input of 1×3×224×224."
    table = Table.of_costs(name, costs, labels, note)
    table.targets = [
        at_most(
            "wall of `ckpt verify` against the plain script",
            min(costs["verify"].seconds) / min(costs["plain"].seconds),
            1.1,
        ),
        at_most(
            "peak memory beyond the imports, in sizes of the weights",
            (costs["verify"].rss - costs["imports"].rss) / weights,
            1.3,
        ),
    ]
    return [table]
