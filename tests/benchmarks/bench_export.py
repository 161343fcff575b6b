"""``ckpt export`` of VGG19 against the plain script: load, ``torch.onnx.export``, and nothing more."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.bench_verify import make
from tests.benchmarks.harness import Table, at_most, ckpt, measure

PLAIN = """
import sys
import torch
import torchvision

name, path, size, target = sys.argv[1:]
model = torchvision.models.get_model(name)
model.load_state_dict(torch.load(path))
torch.onnx.export(model.eval(), (torch.rand(1, 3, int(size), int(size)),), target, dynamo=True)
"""
EXPORT = """
import sys
from ckpt_tools.runtime.onnx import checks
from ckpt_tools.serving.job import Job
name, path, size, target = sys.argv[1:]
job = Job(path, f"torchvision:{name}", target, inputs=[f"1,3,{size},{size}"], force=True)
for check in checks(job):
    assert check.verdict != "failed", check.problems
    if check.name == "weights":
        break
"""


def run(folder: Path, runs: int = 3, name: str = "vgg19", size: int = 224) -> list[Table]:
    """The table of the plain script, of the export up to the comparison of the weights, and of the whole command."""
    path = folder / f"{name}.pt"
    weights = make(path, name)
    arguments = [name, str(path), str(size)]
    whole = ["export", str(path), "--model", f"torchvision:{name}", "--input", f"1,3,{size},{size}", "--force", "-o"]
    costs = measure(
        {
            "plain": [sys.executable, "-c", PLAIN, *arguments, str(folder / "plain.onnx")],
            "export": [sys.executable, "-c", EXPORT, *arguments, str(folder / "worker.onnx")],
            "whole": ckpt(*whole, folder / "whole.onnx"),
        },
        runs,
    )
    labels = {
        "plain": "plain script: `load_state_dict`, `torch.onnx.export`",
        "export": "the worker of `ckpt export` up to the check of the weights, bit for bit",
        "whole": "`ckpt export`: the same, and two runs in torch and onnxruntime",
    }
    note = f"{weights / 1e6:,.0f} MB of weights, an input of 1×3×{size}×{size}."
    table = Table.of_costs(name, costs, labels, note)
    table.targets = [
        at_most("peak memory of the export against the plain script", costs["export"].rss / costs["plain"].rss, 1.1),
        at_most(
            "what the check adds to the export, in copies of the weights",
            (costs["whole"].rss - costs["export"].rss) / weights,
            1,
        ),
    ]
    return [table]
