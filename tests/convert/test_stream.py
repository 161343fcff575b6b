"""How bytes reach the disk: room taken before they are copied, writing begun early, whatever the system can do."""

from __future__ import annotations

import ctypes
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.convert import stream
from ckpt_tools.convert.run import carry_out, prepare
from ckpt_tools.convert.stream import Sink
from ckpt_tools.errors import CkptError
from tests.convert.plain_files import safetensors_file

linux = pytest.mark.skipif(os.uname().sysname != "Linux", reason="the calls are Linux's")


class Calls:
    """Stands for the system's calls and remembers them; *fails* is the error that fallocate meets."""

    def __init__(self, fails: int = 0) -> None:
        self.made: list[tuple[Any, ...]] = []
        self._fails = fails

    def __call__(self, name: str) -> Any:
        def call(descriptor: int, *numbers: int) -> int:
            self.made.append((name, *numbers))
            if name == "fallocate" and self._fails:
                ctypes.set_errno(self._fails)
                return -1
            return 0

        return call


def convert(source: Path, target: Path) -> None:
    carry_out(*prepare(str(source), str(target), force=True), verify=False)


def test_the_disk_begins_early_and_gets_every_byte_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = safetensors_file(tmp_path / "in.safetensors", {"a": 300_000, "b": 200_001, "c": 70_000, "d": 9})
    calls = Calls()
    monkeypatch.setattr(stream, "WRITE_BACK", 100_000)
    monkeypatch.setattr(stream, "COPY_STEP", 65_536)
    monkeypatch.setattr(stream, "_system", calls)
    convert(source, tmp_path / "out.safetensors")
    (name, keep_size, start, count), *begun = calls.made
    assert (name, keep_size, start + count) == ("fallocate", 1, (tmp_path / "out.safetensors").stat().st_size)
    assert count == 570_010
    position = 0
    for name, offset, size, only_begin in begun:
        assert (name, offset, only_begin) == ("sync_file_range", position, 2)
        assert size >= 100_000
        position += size
    assert len(begun) == 4
    assert position <= start + count


def test_what_is_streamed_is_begun_early_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    monkeypatch.setattr(stream, "WRITE_BACK", 1000)
    monkeypatch.setattr(stream, "_system", calls)
    with open(tmp_path / "out", "wb") as file:
        sink = Sink(file)
        for _ in range(5):
            sink.write(b"x" * 600)
        assert (tmp_path / "out").stat().st_size >= 2400  # or there would be nothing to begin with
    assert calls.made == [("sync_file_range", 0, 1200, 2), ("sync_file_range", 1200, 1200, 2)]


@linux
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_disk_without_room_is_told_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    source = safetensors_file(tmp_path / "in.safetensors", {"a": 300_000})
    monkeypatch.setattr(stream, "WRITE_BACK", 100_000)
    monkeypatch.setattr(stream, "_system", Calls(number))
    monkeypatch.setattr(Sink, "tensor", None)
    with pytest.raises(CkptError, match=f"out.safetensors: cannot be written: {os.strerror(number)}"):
        convert(source, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


@pytest.mark.parametrize("missing", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_a_system_that_cannot_reserve_or_begin_writes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int | None
) -> None:
    source = safetensors_file(tmp_path / "in.safetensors", {"a": 300_000, "b": 5})
    convert(source, tmp_path / "expected.safetensors")
    monkeypatch.setattr(stream, "WRITE_BACK", 100_000)
    monkeypatch.setattr(stream, "_system", Calls(missing) if missing is not None else lambda name: None)
    convert(source, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


class Forgotten:
    """Stands for posix_fadvise and remembers of which inode what was let go; it was a hint, so it may fail."""

    def __init__(self, fails: bool = False) -> None:
        self.parts: dict[int, list[tuple[int, int]]] = {}
        self._fails = fails

    def __call__(self, descriptor: int, offset: int, count: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        self.parts.setdefault(os.fstat(descriptor).st_ino, []).append((offset, count))
        if self._fails:
            raise OSError(errno.EINVAL, "no")


@linux
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_what_is_replaced_is_let_go_while_the_disk_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, fails: bool
) -> None:
    source = safetensors_file(tmp_path / "in.safetensors", {"a": 300_000, "b": 200_001, "c": 70_000})
    target = tmp_path / f"out{suffix}"
    convert(source, tmp_path / f"expected{suffix}")
    target.write_bytes(b"old" * 300_000)
    old, forgotten = target.stat().st_ino, Forgotten(fails)
    monkeypatch.setattr(stream, "WRITE_BACK", 100_000)
    monkeypatch.setattr(os, "posix_fadvise", forgotten)
    link = tmp_path / f"link{suffix}"
    link.symlink_to(target)
    convert(source, link)
    assert target.read_bytes() == (tmp_path / f"expected{suffix}").read_bytes()
    # all of it, each part once, and nothing of any other file
    assert forgotten.parts.keys() == {old}
    *parts, last = forgotten.parts[old]
    position = 0
    for offset, count in parts:
        assert (offset, count >= 100_000) == (position, True)
        position += count
    assert len(parts) >= 2
    assert last == (position, 0)


@linux
def test_shards_let_go_of_the_shards_they_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = safetensors_file(tmp_path / "in.safetensors", {"a": 300_000, "b": 200_001})
    for force in (False, True):
        old = {path.stat().st_ino for path in tmp_path.glob("out/*.safetensors")}
        forgotten = Forgotten()
        monkeypatch.setattr(stream, "WRITE_BACK", 100_000)
        monkeypatch.setattr(os, "posix_fadvise", forgotten)
        carry_out(*prepare(str(source), str(tmp_path / "out"), force=force, shard_size=300_000), verify=False)
        assert forgotten.parts.keys() == old
        assert len(old) == (2 if force else 0)


@linux
@pytest.mark.parametrize("what", ["linked", "small", "link to nothing"])
def test_a_file_that_stays_is_not_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    source = safetensors_file(tmp_path / "in.safetensors", {"a": 300_000})
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old" * (100_000 if what == "linked" else 1000))
    if what == "linked":
        os.link(target, tmp_path / "another name")
    if what == "link to nothing":
        target.unlink()
        target.symlink_to(tmp_path / "nowhere")
    forgotten = Forgotten()
    monkeypatch.setattr(stream, "WRITE_BACK", 100_000)
    monkeypatch.setattr(os, "posix_fadvise", forgotten)
    convert(source, target)
    assert forgotten.parts == {}


def test_a_system_without_the_hint_writes_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = safetensors_file(tmp_path / "in.safetensors", {"a": 300_000})
    target = tmp_path / "out.safetensors"
    convert(source, target)
    written = target.read_bytes()
    target.write_bytes(b"old" * 100_000)
    monkeypatch.setattr(stream, "WRITE_BACK", 100_000)
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    convert(source, target)
    assert target.read_bytes() == written


@linux
def test_linux_has_the_calls(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        reserve, begin = stream._system("fallocate"), stream._system("sync_file_range")
        assert reserve is not None
        assert begin is not None
        assert reserve(file.fileno(), 1, 0, 1 << 20) == 0
        assert os.fstat(file.fileno()).st_size == 0
        file.write(b"x" * 5000)
        file.flush()
        assert begin(file.fileno(), 0, 5000, 2) == 0
    assert stream._system("no_such_call") is None


def test_other_systems_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream.sys, "platform", "darwin")
    assert stream._system.__wrapped__("fallocate") is None


def test_a_small_output_reserves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    monkeypatch.setattr(stream, "_system", calls)
    sink = Sink(io.BytesIO())
    sink.reserve(1000)
    sink.write(b"x" * 1000)
    assert calls.made == []
