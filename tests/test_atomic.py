"""Files appear whole or not at all; what killed runs leave is replaced, what living ones write is not touched."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from ckpt_tools.atomic import partial_name, replacing, unfinished_folder
from ckpt_tools.errors import CkptError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    with replacing(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_bytes() == b"old"
        assert names(tmp_path) == [".out.partial", "out"]
        assert file.name == partial_name(str(target))
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "out") as file:
        file.write(b"new")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), unfinished_folder(str(tmp_path / "set")) as folder:
        (Path(folder) / "a").write_bytes(b"a")
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").write_bytes(b"left")
    (tmp_path / ".set.partial").mkdir()
    (tmp_path / ".set.partial" / "left").write_bytes(b"left")
    with replacing(tmp_path / "out") as file:
        file.write(b"new")
    with unfinished_folder(str(tmp_path / "set")) as folder:
        assert os.listdir(folder) == []
        os.rename(folder, tmp_path / "set")
    assert names(tmp_path) == ["out", "set"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_living_run_writes_is_not_touched(tmp_path: Path, kind: str) -> None:
    partial = tmp_path / ".out.partial"
    with replacing(tmp_path / "out") as file:
        file.write(b"first")
        with pytest.raises(CkptError, match="out: is being written by another process"):
            if kind == "file":
                with replacing(tmp_path / "out"):
                    pytest.fail("both write it")
            else:
                with unfinished_folder(str(tmp_path / "out")):
                    pytest.fail("both write it")
        assert partial.exists()
    assert (tmp_path / "out").read_bytes() == b"first"


def test_without_locks_a_remainder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with replacing(tmp_path / "out") as file:
        file.write(b"new")
    assert (tmp_path / "out").read_bytes() == b"new"
    (tmp_path / ".out.partial").write_bytes(b"left")
    with (
        pytest.raises(CkptError, match=r"another process. Remove .*\.out\.partial if it is left"),
        replacing(tmp_path / "out"),
    ):
        pytest.fail("it may be another's")
    assert (tmp_path / ".out.partial").read_bytes() == b"left"


def test_a_link_under_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(CkptError, match="cannot be written"), replacing(tmp_path / "out"):
        pytest.fail("it was followed")
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_folder_renamed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with unfinished_folder(str(tmp_path / "set")) as folder:
        os.rename(folder, tmp_path / "set")
        os.mkdir(folder)  # another run's
    assert names(tmp_path) == [".set.partial", "set"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(CkptError, match=r"cannot be written: there is no folder .*none\. Make it"),
        replacing(tmp_path / "none" / "out"),
    ):
        pytest.fail("it was written")


def test_long_names_have_temporary_names_too(tmp_path: Path) -> None:
    for name in ("n" * 255, "n" * 254 + "m", "é" * 127):
        with replacing(tmp_path / name) as file:
            assert len(os.path.basename(os.fsencode(file.name))) <= 255
        assert (tmp_path / name).exists()
    assert partial_name("n" * 255) != partial_name("n" * 254 + "m")
