"""A kill at any moment, a full disk, a source that changes: the old target or the new, whole, and nothing half."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.convert import prove, write_safetensors
from ckpt_tools.convert.run import carry_out, prepare
from ckpt_tools.errors import CkptError
from tests.convert.plain_files import safetensors_file

KILLS = 50
SIZES = {f"layer{n}.weight": 4_000_000 + n for n in range(16)}  # 64 MB
SHARDED = {f"layer{n}.weight": 1_300_000 + n for n in range(16)}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "ckpt_tools", "convert", *map(str, words)]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def killed(words: list[str], partial: Path, delay: float, *, from_start: bool) -> None:
    """Run a command and kill it *delay* seconds after its start, or after it begins to write *partial*."""
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not from_start and child.poll() is None and not partial.exists():
        time.sleep(0.001)
    time.sleep(delay)
    child.kill()
    child.wait()


def moments(words: list[str], partial: Path, count: int) -> list[tuple[float, bool]]:
    """*count* moments of a run, as delays from its start or from its first write; three are the first write itself."""
    start = time.monotonic()
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while child.poll() is None and not partial.exists():
        time.sleep(0.001)
    begun = time.monotonic()
    assert child.wait() == 0
    end = time.monotonic()
    chance = random.Random(5)
    from_start = [(chance.uniform(0, 1.1 * (end - start)), True) for _ in range(count // 5)]
    writing = [(chance.uniform(0, 1.1 * (end - begun)), False) for _ in range(count - count // 5 - 3)]
    return [(0.0, False)] * 3 + from_start + writing


def test_fifty_kills_leave_the_old_target_or_the_new(tmp_path: Path) -> None:
    source = safetensors_file(tmp_path / "in.safetensors", SIZES)
    target, partial = tmp_path / "out.safetensors", tmp_path / ".out.safetensors.partial"
    words = command(source, target, "--force")
    times = moments(words, partial, KILLS)
    new = target.read_bytes()
    left = 0
    for delay, from_start in times:
        target.write_bytes(b"old")
        killed(words, partial, delay, from_start=from_start)
        found = target.read_bytes()
        assert found in (b"old", new)
        # the next run takes what was left away, whether it is killed itself or not
        assert names(tmp_path) <= {"in.safetensors", "out.safetensors", ".out.safetensors.partial"}
        left += partial.exists()
    assert left >= 1
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    assert names(tmp_path) == {"in.safetensors", "out.safetensors"}
    assert target.read_bytes() == new


def test_kills_leave_the_old_set_of_shards_or_the_new(tmp_path: Path) -> None:
    old = safetensors_file(tmp_path / "old.safetensors", SHARDED, fill=3)
    new = safetensors_file(tmp_path / "new.safetensors", SHARDED, fill=7)
    out = tmp_path / "out"
    for source in (new, old):
        subprocess.run(command(source, out, "--shard-size", "3MB", "--force"), check=True, stdout=subprocess.DEVNULL)
        if source == new:
            wanted = set(weights(out).items())
    before = set(weights(out).items())
    assert before.isdisjoint(wanted)
    words = command(new, out, "--shard-size", "3MB", "--force")
    partial = out / ".model.safetensors.partial"
    times = moments(words, partial, 12)
    for delay, from_start in times:
        subprocess.run(
            command(old, out, "--shard-size", "3MB", "--force", "--no-verify"), check=True, stdout=subprocess.DEVNULL
        )
        killed(words, partial, delay, from_start=from_start)
        assert set(weights(out).items()) in (before, wanted)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    assert set(weights(out).items()) == wanted
    assert names(out) == {
        "model.safetensors.index.json", *(f"model-{n:05d}-of-00008.safetensors" for n in range(1, 9)),
    }  # fmt: skip


def weights(folder: Path) -> dict[str, bytes]:
    """The first bytes of every tensor, found as loaders find it: through the index."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found = {}
    for shard in set(index["weight_map"].values()):
        data = (folder / shard).read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__")
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            assert len(data) >= 8 + length + end
            found[name] = data[8 + length + begin :][:64]
    assert found.keys() == index["weight_map"].keys() == SHARDED.keys()
    return found


def test_a_killed_run_over_many_files_is_taken_up_again(tmp_path: Path) -> None:
    for number in range(12):
        safetensors_file(tmp_path / f"in{number}.safetensors", {"w": 3_000_000}, fill=number + 1)
    words = command(*sorted(tmp_path.glob("in*")), "--out-dir", tmp_path / "out", "--to", "safetensors", "--jobs", "2")
    for delay in (0.1, 0.2, 0.25, 0.3, 0.4):
        killed(words, tmp_path, delay, from_start=True)
    # processes of the last killed run may still be at their last file
    deadline = time.monotonic() + 30
    while True:
        done = subprocess.run(words, capture_output=True, text=True)
        if "is being written by another process" not in done.stderr or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path / "out") == {".ckpt-convert.jsonl", *(f"in{n}.safetensors" for n in range(12))}
    for number in range(12):
        assert (
            (tmp_path / "out" / f"in{number}.safetensors")
            .read_bytes()
            .endswith((tmp_path / f"in{number}.safetensors").read_bytes()[-3_000_000:])
        )


# --- a full disk

SMALL_DISK = """
mount -t tmpfs -o size=4m tmpfs "$1" || exit 77
printf old > "$1/out.safetensors"
shift
"$@"
code=$?
cd "$0" && find . -type f -name '*' -exec sh -c 'echo "$1 $(wc -c < "$1")"' _ {} \\; | sort
exit $code
"""


@pytest.mark.parametrize("options", [[], ["--no-verify"], ["--shard-size", "2MB"]], ids=["one", "unproven", "shards"])
def test_a_full_disk_leaves_the_old_target(tmp_path: Path, options: list[str]) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare to make a small disk with")
    disk = tmp_path / "disk"
    disk.mkdir()
    source = safetensors_file(tmp_path / "in.safetensors", {f"t{n}": 1_000_000 for n in range(6)})
    target = disk / ("new" if "--shard-size" in options else "out.safetensors")
    words = command(source, target, "--force", *options)
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", SMALL_DISK, str(disk), str(disk), *words],
        capture_output=True,
        text=True,
    )
    if done.returncode in (1, 77) and "ckpt:" not in done.stderr:
        pytest.skip(f"no small disk here: {done.stderr}")
    assert done.returncode == 2
    assert done.stderr == f"ckpt: {target}: cannot be written: No space left on device\n"
    assert done.stdout == "./out.safetensors 3\n"


LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
from ckpt_tools.cli import main
main()
"""


def test_a_size_limit_in_the_second_shard_leaves_the_old_set(tmp_path: Path) -> None:
    source = safetensors_file(tmp_path / "in.safetensors", {"a": 900_000, "b": 2_000_000})
    old = safetensors_file(tmp_path / "old.safetensors", {"a": 9, "b": 9}, fill=3)
    subprocess.run(command(old, tmp_path / "out", "--shard-size", "9"), check=True, stdout=subprocess.DEVNULL)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(before) == 3
    words = ["convert", source, tmp_path / "out", "--force", "--shard-size", "1MB"]
    done = subprocess.run([sys.executable, "-c", LIMITED, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("cannot be written: File too large\n")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


# --- a source that changes


def change(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"changed")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 500_000)


def replaced(path: Path) -> None:
    shutil.copy(path, f"{path}.new")
    os.replace(f"{path}.new", path)


@pytest.mark.parametrize("how", [change, cut, replaced])
@pytest.mark.parametrize("when", ["before writing", "after writing", "after the proof"])
@pytest.mark.parametrize("shard_size", [None, 300_000], ids=["one", "shards"])
def test_a_source_that_changes_is_told_and_the_old_target_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[Path], None], when: str, shard_size: int | None
) -> None:
    source = safetensors_file(tmp_path / "in.safetensors", {"a": 300_000, "b": 900_000})
    target = tmp_path / ("out" if shard_size else "out.safetensors")
    carry_out(*prepare(str(source), str(target), shard_size=shard_size))
    files = sorted(target.iterdir()) if shard_size else [target]
    before = {path.name: path.read_bytes() for path in files}
    place = {
        "before writing": (write_safetensors, "header"),
        "after writing": (prove, "prove"),
        "after the proof": (prove, "prove_with_library"),
    }[when]
    honest = getattr(*place)
    pending = [source]

    def meanwhile(*arguments: Any) -> Any:
        while pending:
            how(pending.pop())
        return honest(*arguments)

    conversion, watch = prepare(str(source), str(target), force=True, shard_size=shard_size)
    monkeypatch.setattr(*place, meanwhile)
    with pytest.raises(CkptError, match=r"changed while|cut while|came up short|would not hold"):
        carry_out(conversion, watch)
    assert pending == []
    left = sorted(target.iterdir()) if shard_size else [target]
    assert {path.name: path.read_bytes() for path in left} == before
    assert not [name for name in names(tmp_path) if "partial" in name]


# --- modes and links


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o027, 0o640, 0o750), (0o077, 0o600, 0o700)])
def test_modes_follow_the_umask(tmp_path: Path, mask: int, file: int, folder: int) -> None:
    source = safetensors_file(tmp_path / "in.safetensors", {"a": 50, "b": 50})
    old = os.umask(mask)
    try:
        carry_out(*prepare(str(source), str(tmp_path / "out"), shard_size=60))
        carry_out(*prepare(str(source), str(tmp_path / "out.pt")))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == folder
    modes = {stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "out.pt", *(tmp_path / "out").iterdir()]}
    assert modes == {file}


def test_links_to_a_target_are_followed_and_links_in_a_set_replaced(tmp_path: Path) -> None:
    source = safetensors_file(tmp_path / "in.safetensors", {"a": 50, "b": 50})
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "blob").write_bytes(b"shared by other sets, as in the cache of Hugging Face")
    (tmp_path / "real" / "model-00001-of-00002.safetensors").symlink_to("../blob")
    carry_out(*prepare(str(source), str(tmp_path / "link"), shard_size=60, force=True))
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
    }  # fmt: skip
    assert (tmp_path / "blob").read_bytes().startswith(b"shared")
    assert not any(path.is_symlink() for path in (tmp_path / "real").iterdir())


def test_a_link_to_a_target_that_is_not_there_yet(tmp_path: Path) -> None:
    source = safetensors_file(tmp_path / "in.safetensors", {"a": 50})
    (tmp_path / "real").mkdir()
    (tmp_path / "out.safetensors").symlink_to("real/made.safetensors")
    with pytest.raises(CkptError, match="exists already"):
        prepare(str(source), str(tmp_path / "out.safetensors"))
    carry_out(*prepare(str(source), str(tmp_path / "out.safetensors"), force=True))
    assert (tmp_path / "out.safetensors").is_symlink()
    assert names(tmp_path / "real") == {"made.safetensors"}
