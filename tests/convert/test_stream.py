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
