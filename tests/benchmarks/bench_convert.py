"""``ckpt convert``: against copying the file, copying and hashing it, and torch with the safetensors library."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.harness import COST_COLUMNS, ROOT, Table, at_least, at_most, ckpt, measure

LARGE = 2_000_000_000
HUGE = 8_000_000_000
SMALL_FILES = 1_000

MAKE = """
import sys
from pathlib import Path
from tests.benchmarks.bench_inspect import make
make(Path(sys.argv[1]), int(sys.argv[2]))
"""
MAKE_SMALL = """
import os, sys, torch
folder, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    at = os.path.join(folder, f"run{number // 100}")
    os.makedirs(at, exist_ok=True)
    layers = {f"layers.{n}.weight": torch.randn(32, 32) for n in range(4)}
    torch.save({**layers, **{f"layers.{n}.bias": torch.randn(32) for n in range(4)}}, f"{at}/{number}.pth")
"""
TORCH = """
import sys, torch
from safetensors.torch import save_file
save_file(torch.load(sys.argv[1], mmap=True, weights_only=True), sys.argv[2])
"""
TORCH_SYNC = f"{TORCH}import os\nos.fsync(os.open(sys.argv[2], os.O_RDWR))\n"
TORCH_LOOP = """
import glob, os, sys, torch
from safetensors.torch import save_file
for path in glob.glob(f"{sys.argv[1]}/**/*.pth", recursive=True):
    target = os.path.join(sys.argv[2], os.path.relpath(path, sys.argv[1])[:-4] + ".safetensors")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    save_file(torch.load(path, weights_only=True), target)
"""


def run(
    folder: Path, runs: int = 5, large: int = LARGE, huge: int = HUGE, small_files: int = SMALL_FILES
) -> list[Table]:
    """The tables of one large file, of a larger one, and of many small ones."""
    return [_large(folder, runs, large), _huge(folder, huge), _many(folder, runs, small_files)]


def _large(folder: Path, runs: int, large: int) -> Table:
    source, target, copy = folder / "large.pt", folder / "out.safetensors", folder / "copy"
    # in a process of its own: a child's peak memory begins with that of the process that starts it
    subprocess.run([sys.executable, "-c", MAKE, str(source), str(large)], check=True, cwd=ROOT)
    hashes = f"openssl dgst -sha256 {source} && openssl dgst -sha256 {copy}"
    commands = {
        "`cp`": ["cp", str(source), str(copy)],
        "`ckpt convert --no-verify`": ckpt("convert", source, target, "--force", "--no-verify"),
        "`cp`, `openssl dgst -sha256` twice": ["sh", "-c", f"cp {source} {copy} && {hashes}"],
        "`ckpt convert`": ckpt("convert", source, target, "--force"),
        "`torch.load(mmap=True)`, `save_file`": [sys.executable, "-c", TORCH, str(source), str(target)],
        "`cp`, `sync`": ["sh", "-c", f"cp {source} {copy} && sync {copy}"],
        "`torch.load(mmap=True)`, `save_file`, `fsync`": [sys.executable, "-c", TORCH_SYNC, str(source), str(target)],
        "`ckpt convert` to .pt": ckpt("convert", source, folder / "out.pt", "--force"),
    }
    costs = measure(commands, runs, settle=True)
    cp, plain, hashed, proven, torch, *_, to_pt = costs.values()
    table = Table(f"{large / 1e9:g} GB zip to safetensors", ("process", *COST_COLUMNS))
    table.rows = [(name, *cost.cells) for name, cost in costs.items()]
    table.note = (
        "Each writes over what it wrote before. convert has the disk hold the file before it takes its place; "
        "`cp` and `save_file` do not unless a row says so."
    )
    table.targets = [
        at_most("`--no-verify` against `cp`", plain.wall / cp.wall, 1.15),
        at_most("with proof against `cp` and two hashes", proven.wall / hashed.wall, 1.3),
        at_least("torch against `--no-verify`", torch.wall / plain.wall, 2.5),
        at_most("peak memory of convert", max(plain.rss, proven.rss, to_pt.rss) / 1e6, 64, " MB"),
    ]
    for name in ("copy", "out.pt", "large.pt", "out.safetensors"):
        (folder / name).unlink()
    return table


def _huge(folder: Path, huge: int) -> Table:
    """Memory alone, so the file may have holes."""
    source, target = folder / "huge.safetensors", folder / "out.safetensors"
    size = huge // 100
    header = json.dumps(
        {
            f"layers.{n}.weight": {"dtype": "U8", "shape": [size], "data_offsets": [n * size, (n + 1) * size]}
            for n in range(100)
        }
    ).encode()
    with open(source, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 100 * size)
    costs = measure(
        {
            "`ckpt convert --no-verify`": ckpt("convert", source, target, "--force", "--no-verify"),
            "`ckpt convert`": ckpt("convert", source, target, "--force"),
        },
        runs=1,
        settle=True,
    )
    table = Table(f"{huge / 1e9:g} GB safetensors to safetensors", ("process", *COST_COLUMNS))
    table.rows = [(name, *cost.cells) for name, cost in costs.items()]
    table.note = "The source is one hole, and the times say nothing of a disk."
    table.targets = [at_most("peak memory of convert", max(cost.rss for cost in costs.values()) / 1e6, 64, " MB")]
    source.unlink()
    target.unlink()
    return table


def _many(folder: Path, runs: int, count: int) -> Table:
    source, target = folder / "small", folder / "converted"
    source.mkdir()
    subprocess.run([sys.executable, "-c", MAKE_SMALL, str(source), str(count)], check=True)

    def anew(*options: str) -> list[str]:
        words = ckpt("convert", source, "--out-dir", target, *options)
        return ["sh", "-c", 'rm -rf "$0" && exec "$@"', str(target), *words]

    commands = {
        "`ckpt convert --out-dir`": anew(),
        "`ckpt convert --out-dir --no-verify`": anew("--no-verify"),
        "`ckpt convert --out-dir --jobs 2`": anew("--jobs", "2"),
        "a loop of `torch.load`, `save_file`": [
            *("sh", "-c", 'rm -rf "$0" && exec "$@"', str(target)),
            *(sys.executable, "-c", TORCH_LOOP, str(source), str(target)),
        ],
    }
    costs = measure(commands, runs, settle=True)
    costs |= measure(
        {"`ckpt convert --out-dir`, all there": ckpt("convert", source, "--out-dir", folder / "kept")}, runs
    )
    one, *_, torch, _ = costs.values()
    table = Table(
        f"{count:,} files of {_kilobytes(source)}", ("process", *COST_COLUMNS, "files per second", "of torch")
    )
    table.rows = [
        (name, *cost.cells, f"{count / cost.wall:,.0f}", f"{torch.wall / cost.wall:.2f}×")
        for name, cost in costs.items()
    ]
    table.note = "convert reads its outputs again and has the disk hold them; torch, in one process, does neither."
    table.targets = [at_most("convert against torch, one process each", one.wall / torch.wall, 1)]
    for name in ("small", "converted", "kept"):
        shutil.rmtree(folder / name)
    return table


def _kilobytes(folder: Path) -> str:
    sizes = [path.stat().st_size for path in folder.rglob("*.pth")]
    return f"{sum(sizes) / len(sizes) / 1000:.0f} kB"
