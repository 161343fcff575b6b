"""A file whose bytes are held is read once."""

from pathlib import Path

import pytest

from ckpt_tools.errors import CkptError, NotFound
from ckpt_tools.sources import FileSource


def test_a_file_that_is_held_is_read_once_and_from_memory_then(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abcdef")
    source = FileSource(path)
    assert source.locate(2) == (str(path), 2)
    source.hold()
    path.write_bytes(b"------")
    assert [source.peek(0, 3), source.peek(4, 9), source.read(1, 2), source.peek(9, 1)] == [b"abc", b"ef", b"bc", b""]
    assert source.locate(2) is None, "who reads the file there sees other bytes"
    with pytest.raises(CkptError, match="reading failed"):
        source.peek(-1, 1)


def test_a_file_that_cannot_be_opened_cannot_be_held(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abcdef")
    source = FileSource(path)
    path.unlink()
    with pytest.raises(NotFound, match="cannot be read"):
        source.hold()
