"""Files, and sets of files, that appear whole or not at all."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ckpt_tools.errors import CkptError

PARTIAL = ".partial"
"""What the name of an unfinished file ends in; it begins with a dot, and the target's own name stands between.

Only a killed run leaves one behind, which the next run for the same target replaces.
"""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of *path* when the block ends without an error.

    It is a temporary file beside *path*, with the permissions that the umask gives a new file; until it is
    renamed the old file stays as it is, and after a failure it is gone. A symbolic link is followed. Raises
    `CkptError` where the system refuses, or another process is writing the same file.
    """
    name = os.fspath(path)
    target = os.path.realpath(name)
    temporary = partial_name(target)
    try:
        held = _claim(temporary, _new_file, name)
        with open(temporary, "wb", opener=lambda path, flags: held) as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, target)
            except BaseException:
                os.unlink(temporary)
                raise
    except OSError as error:
        raise CkptError(f"cannot be written: {error.strerror}", path=name) from None


@contextmanager
def unfinished_folder(path: str) -> Iterator[str]:
    """A new folder beside *path* for what is to appear there; what is left of it at the end is removed.

    Raises `CkptError` where the system refuses, or another process does the same.
    """
    temporary = partial_name(os.path.realpath(path))
    try:
        held = _claim(temporary, _new_folder, path)
        try:
            yield temporary
        finally:
            try:
                if _is(temporary, held):  # else it has been renamed
                    _remove_folder(temporary, ignore_errors=True)
            finally:
                os.close(held)
    except OSError as error:
        raise CkptError(f"cannot be written: {error.strerror}", path=path) from None


def partial_name(target: str) -> str:
    """The name under which *target* is written until it is whole."""
    folder, base = os.path.split(target)
    if len(os.fsencode(base)) > 240:  # file systems take 255 bytes
        base = f"{base[:50]}-{zlib.crc32(os.fsencode(base)):08x}"
    return os.path.join(folder, f".{base}{PARTIAL}")


def sync_folder(path: str) -> None:
    """Have the disk hold what was renamed in the folder *path*."""
    folder = os.open(path or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _claim(temporary: str, make: Callable[[str], int], target: str) -> int:
    """The descriptor of what *make* makes at *temporary*, locked: nobody else writes the same *target* meanwhile."""
    while True:
        try:
            made = make(temporary)
        except FileExistsError:
            _clear(temporary, target)
            continue
        try:
            # whoever finds it before it is locked takes it for a dead run's and removes it
            if _lock(made) and _is(temporary, made):
                return made
        except OSError:  # a file system without locks
            return made
        os.close(made)


def _clear(temporary: str, target: str) -> None:
    """Remove what a killed run left at *temporary*; an error where the run is alive."""
    try:
        left = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        try:
            dead = _lock(left)
        except OSError:
            remedy = f"Remove {temporary} if it is left from a run that was killed"
            raise CkptError("is being written by another process", path=target, remedy=remedy) from None
        if not dead:
            raise CkptError("is being written by another process", path=target)
        if not _is(temporary, left):
            return
        if os.path.isdir(temporary):
            _remove_folder(temporary)
        else:
            os.unlink(temporary)
    except FileNotFoundError:
        return
    finally:
        os.close(left)


def _is(path: str, descriptor: int) -> bool:
    """Whether *path* still is the file or folder that is open."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_folder(path: str, ignore_errors: bool = False) -> None:
    import shutil  # which imports every compression there is

    shutil.rmtree(path, ignore_errors)


def _lock(descriptor: int) -> bool:
    """Lock an open file for this process; False where another one has it. A kill releases it.

    Raises OSError where the file system has no locks.
    """
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _new_file(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _new_folder(path: str) -> int:
    os.mkdir(path)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
