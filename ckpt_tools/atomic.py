"""Files, and sets of files, that appear whole or not at all."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from ckpt_tools.errors import CkptError

PARTIAL = ".partial"
"""What the name of an unfinished file ends in; it begins with a dot, and the target's own name stands between.

Only a killed run leaves one behind, which the next run for the same target replaces.
"""


class Batch:
    """Files that are whole and wait to take their places together, as a disk syncs many files in the time of one.

    At the end of the ``with`` block those that were not put in place are removed.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[BinaryIO, str, str]] = []

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *exception: object) -> None:
        for file, target, _ in self._waiting:
            _discard(file, partial_name(target))
        self._waiting.clear()

    def add(self, file: BinaryIO, target: str, name: str) -> None:
        """Have *file* wait for the place *target*, which the user calls *name*."""
        self._waiting.append((file, target, name))

    def put_in_place(self) -> dict[str, CkptError]:
        """Sync and rename all files; the errors of those that the system refuses, by the name of their target."""
        errors: dict[str, CkptError] = {}
        for file, target, name in self._waiting:
            try:
                _finish(file, partial_name(target), target)
            except OSError as error:
                errors[name] = CkptError(f"cannot be written: {error.strerror}", path=name)
        self._waiting.clear()
        return errors


@contextmanager
def replacing(path: str | os.PathLike[str], batch: Batch | None = None) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of *path* when the block ends without an error.

    It is a temporary file beside *path*, with the permissions that the umask gives a new file; until it is
    renamed the old file stays as it is, and after a failure it is gone. With *batch* it is renamed with the others
    of that. A symbolic link is followed. Raises `CkptError` where the system refuses, or another process is writing
    the same file.
    """
    name = os.fspath(path)
    target = os.path.realpath(name)
    temporary = partial_name(target)
    try:
        held = _claim(temporary, _new_file, name)
        file = open(temporary, "wb", opener=lambda path, flags: held)  # noqa: SIM115 - a batch closes it later
        try:
            yield file
            file.flush()
        except BaseException:
            _discard(file, temporary)
            raise
        if batch is not None:
            batch.add(file, target, name)
        else:
            _finish(file, temporary, target)
    except OSError as error:
        raise _refusal(error, name) from None


def _refusal(error: OSError, name: str) -> CkptError:
    return _without_folder(name) or CkptError(f"cannot be written: {error.strerror}", path=name)


def _without_folder(name: str) -> CkptError | None:
    folder = os.path.dirname(os.path.realpath(name))
    if os.path.isdir(folder):
        return None
    return CkptError(f"cannot be written: there is no folder {folder}", path=name, remedy="Make it first")


def check_writable(name: str) -> None:
    """Raise the `CkptError` that `replacing` would, for a file or a new folder of this *name*; nothing is written."""
    missing = _without_folder(name)
    if missing is not None:
        raise missing
    folder = name if os.path.isdir(name) else os.path.dirname(os.path.realpath(name))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CkptError(f"cannot be written: nothing may be written into {folder}", path=name)


def _finish(file: BinaryIO, temporary: str, target: str) -> None:
    """Have the disk hold *file* and give it its name; it is gone where that fails."""
    try:
        os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        _discard(file, temporary)
        raise
    file.close()


def _discard(file: BinaryIO, temporary: str) -> None:
    """Remove what was written, before others may take its name."""
    with suppress(OSError):
        os.unlink(temporary)
    with suppress(OSError):  # what it still has to write finds no room either
        file.close()


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
        raise _refusal(error, path) from None


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
