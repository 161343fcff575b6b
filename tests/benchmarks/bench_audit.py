"""``ckpt audit``: of headers against other scanners, of values against a checksum, of a tree by files a second."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_inspect import make
from tests.benchmarks.harness import COST_COLUMNS, Table, at_least, at_most, ckpt, measure, peer

LARGE = 2_000_000_000
FILES = 2_000

EPOCHS = 20
"""Checkpoints of one run."""
FEW = 40
"""Files of the tree that a scanner is given which takes a third of a second for each."""
QUIET = {"PROMPTFOO_DISABLE_TELEMETRY": "1"}
"""Without it modelaudit waits for a server."""

CODES = (0, 1, 2)
"""Of scanners; what they find is told elsewhere."""


def run(folder: Path, runs: int = 7, large: int = LARGE, files: int = FILES) -> list[Table]:
    """A large file, and a tree of small ones."""
    return [_large(folder, runs, large), *_tree(folder, runs, files)]


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
    table.note = "With values, each byte of a tensor is read once, for its statistics and for the archive's checksum."
    table.targets = [at_most("peak memory of headers", costs[headers].rss / 1e6, 40, " MB")]
    if digest in costs:
        against = costs[values].wall / costs[digest].wall
        table.targets.append(at_most("audit with values against openssl's SHA-256", against, 1.3))
    if picklescan in costs:
        against = costs[headers].wall / costs[picklescan].wall
        table.targets.append(at_most("audit of headers against picklescan", against, 1))
    return table


def _tree(folder: Path, runs: int, files: int) -> list[Table]:
    tree, few = folder / "tree", folder / "few"
    paths = _checkpoints(tree, files)
    for path in paths[:: -(-files // FEW)]:
        (few / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, few / path.parent.name)
    audit = ("audit", "--no-config", "--no-values")
    one, two, all_cores = (f"`ckpt audit --no-values{jobs}`" for jobs in (" --jobs 1", " --jobs 2", ""))
    commands = {
        one: ckpt(*audit, tree, "--jobs", "1"),
        two: ckpt(*audit, tree, "--jobs", "2"),
        all_cores: ckpt(*audit, tree),
        "`ckpt audit`": ckpt("audit", "--no-config", tree),
    }
    picklescan, modelaudit = "`picklescan`", "`modelaudit scan`"
    if found := peer("picklescan"):
        commands[picklescan] = [found, "-p", str(tree)]
    costs = measure(commands, runs, codes=CODES)
    table = Table(f"{files:,} small files", ("process", *COST_COLUMNS, "files a second"))
    table.rows = [(name, *cost.cells, f"{files / cost.wall:,.0f}") for name, cost in costs.items()]
    size = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
    table.note = (
        f"Checkpoints of training runs, {size:.0f} kB each on average: four architectures, state_dicts alone or with "
        f"optimizer and scheduler, {EPOCHS} epochs of a run that differ in values, epoch, loss and name. Without "
        "`--jobs`, `ckpt audit` uses a process for each core."
    )
    table.targets = [at_least("two processes against one", costs[one].wall / costs[two].wall, 1.7)]
    if picklescan in costs:
        faster = costs[picklescan].wall / costs[all_cores].wall
        table.targets.append(at_least("files a second against picklescan", faster, 3))
    tables = [table]
    if found := peer("modelaudit"):
        number = sum(1 for _ in few.rglob("*.pt"))
        commands = {all_cores: ckpt(*audit, few), modelaudit: [found, "scan", str(few)]}
        costs = measure(commands, 1, env=QUIET, codes=CODES)
        slow = Table(f"{number:,} of these files", ("process", *COST_COLUMNS, "files a second"))
        slow.rows = [(name, *cost.cells, f"{number / cost.wall:,.1f}") for name, cost in costs.items()]
        faster = costs[modelaudit].wall / costs[all_cores].wall
        slow.targets = [at_least("files a second against modelaudit", faster, 20)]
        tables.append(slow)
    return tables


def _checkpoints(tree: Path, files: int) -> list[Path]:
    """*files* checkpoints such as runs leave behind, a folder a run."""
    import torch

    torch.manual_seed(0)
    paths: list[Path] = []
    for path, content in islice(_of_runs(tree), files):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
        paths.append(path)
    return paths


def _of_runs(tree: Path) -> Iterator[tuple[Path, object]]:
    """Checkpoints and where they are saved, without end: of each run one an epoch."""
    import torch
    from torch import nn, optim

    def layers() -> dict[str, nn.Module]:
        perceptron = (nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
        convolutions = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16))
        return {
            "mlp": nn.Sequential(*perceptron),
            "conv": nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64, 10)),
            "encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2),
            "lstm": nn.LSTM(12, 16, 2),
        }

    for run, name in enumerate(cycle(layers()), 1):
        model = layers()[name]
        rate, optimizer = 1e-3 * run, optim.SGD(model.parameters(), lr=0.1 / run, momentum=0.9)
        if run % 2:
            optimizer = optim.AdamW(model.parameters(), lr=rate)
        scheduler = optim.lr_scheduler.StepLR(optimizer, 5)
        for epoch in range(EPOCHS):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
            scheduler.step()
            content: dict[str, Any] = model.state_dict()
            if run % 3:
                content = {
                    "epoch": epoch,
                    "model": content,
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "loss": float(torch.rand(())),
                }
            yield tree / f"{name}-{run:03}" / f"epoch_{epoch:02}.pt", content
