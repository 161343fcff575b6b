"""What a format is to the rest of the program: a way to recognise a source, and a way to read it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.errors import CkptError
from ckpt_tools.formats.archive import Archive
from ckpt_tools.records import record
from ckpt_tools.sources import Folder, Source

HEAD_BYTES = 4096
"""How much of a file's beginning `Format.detect` is shown."""
NOTE = "ckpt-tools"
"""The metadata key of what our own conversion noted; see formats/note.py."""


class HeaderEnd(int):
    """Where the header of a file ends, and its tensors may begin: what a format leaves in `Source.memo` for others."""


@record
class Format:
    """A file format.

    *detect* is given the source and its first bytes and judges by content; *read* describes the checkpoint
    or raises a `CkptError`. A format that lives in a folder has *folder* instead of *detect*: it is given the
    folder and says whether it is one of its own, and *read* is given the folder.
    """

    name: str
    title: str
    read: Callable[[Source], Checkpoint] | Callable[[Folder], Checkpoint]
    detect: Callable[[Source, bytes], bool] | None = None
    folder: Callable[[Folder], bool] | None = None


Detect = Callable[[Source, bytes], bool]


def lazy(
    name: str,
    may_be: Detect | None = None,
    *,
    pick: Callable[[ModuleType], Format] | None = None,
    files: bool = True,
    folders: tuple[str, ...] = (),
    module: str = "",
) -> Format:
    """The format *name*, whose *module* here is imported only for a file that *may_be* of it.

    *may_be* looks at the first bytes, at no cost; the format's own ``detect`` decides. *pick* takes the format
    from the module, where it is not its ``FORMAT``. It has files unless *files* is false, and folders in which the
    name of some file has one of the endings *folders*.
    """

    @cache
    def real() -> Format:
        found = import_module(f"ckpt_tools.formats.{module or name}")
        made: Format = pick(found) if pick is not None else found.FORMAT
        return made

    def detect(source: Source, head: bytes) -> bool:
        if may_be is not None and not may_be(source, head):
            return False
        decide = real().detect
        return decide is not None and decide(source, head)

    def is_folder(folder: Folder) -> bool:
        if not any(name.endswith(folders) for name in folder.names()):
            return False
        decide = real().folder
        return decide is not None and decide(folder)

    def read(source: Any) -> Checkpoint:
        return real().read(source)

    return Format(name, name, read, detect if files else None, is_folder if folders else None)


def begins(*marks: bytes) -> Detect:
    """Whether a file begins with one of *marks*."""
    return lambda source, head: head.startswith(marks)


def zip_with(*endings: str) -> Detect:
    """Whether a file is a zip archive with a member whose name has one of *endings*."""
    lines = [f"{ending}\n" for ending in endings]

    def may_be(source: Source, head: bytes) -> bool:
        if not head.startswith(b"PK\x03\x04"):
            return False
        try:
            listing = Archive.of(source).listing
        except CkptError:
            return False
        return any(line in listing for line in lines)

    return may_be
