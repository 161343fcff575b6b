"""The source of a model's classes, which files of full models in torch's legacy format contain as text.

It is written as text, under names that say the class, and nothing of it is run.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckpt_tools.atomic import replacing
from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.errors import CkptError

if TYPE_CHECKING:
    from ckpt_tools.formats.torch_legacy import SourceFile

SUFFIX = ".py.txt"
"""Not ``.py``, so that nothing imports it or runs it at a click."""
MAX_NAME = 120
"""The longest name, in letters, before the suffix."""


@dataclass(frozen=True, slots=True)
class ClassSource:
    """The source *text* of the class *class_name*: *file* is where it stood, *path* where it is to be written."""

    class_name: str
    file: str
    text: str
    path: str


def sources_in(checkpoint: Checkpoint, folder: str) -> list[ClassSource]:
    """What there is of source in *checkpoint* and its parts, with a name for each in *folder*."""
    from ckpt_tools.formats.torch_legacy import SourceFile  # which few files need

    found: dict[tuple[str, str], SourceFile] = {}
    pending = [checkpoint]
    while pending:
        part = pending.pop()
        sources = part.metadata.get("sources")
        for class_name, source in sources.items() if isinstance(sources, dict) else ():
            if isinstance(source, SourceFile):
                found.setdefault((class_name, source.text), source)
        pending += part.parts
    taken: set[str] = set()
    return [
        ClassSource(name, str(source), text, os.path.join(folder, _file_name(name, taken)))
        for (name, text), source in found.items()
    ]


def check_sources(sources: Iterable[ClassSource], force: bool) -> None:
    """Raise `CkptError` where a file is there already that *force* does not allow to be replaced."""
    for source in sources:
        if os.path.lexists(source.path) and not force:
            raise CkptError("exists already", path=source.path, remedy="--force replaces it")


def write_sources(sources: Iterable[ClassSource]) -> None:
    """Write each text to its path, in a folder that is made where there is none."""
    for source in sources:
        try:
            os.makedirs(os.path.dirname(source.path) or ".", exist_ok=True)
        except OSError as error:
            raise CkptError(f"cannot be written: {error.strerror}", path=source.path) from None
        with replacing(source.path) as file:
            file.write(source.text.encode("utf-8", "backslashreplace"))


def _file_name(class_name: str, taken: set[str]) -> str:
    """A name of letters that every file system takes, not begun by a dot, and no other's in *taken*."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", class_name).lstrip(".-") or "_"
    if len(plain) > MAX_NAME:
        plain = f"{plain[:MAX_NAME]}-{zlib.crc32(class_name.encode('utf-8', 'surrogatepass')):08x}"
    name, number = plain, 1
    while name.lower() in taken:  # some file systems take a name in capitals for the same
        number += 1
        name = f"{plain}-{number}"
    taken.add(name.lower())
    return name + SUFFIX
