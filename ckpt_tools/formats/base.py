"""What a format is to the rest of the program: a way to recognise a source, and a way to read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.sources import Folder, Source

HEAD_BYTES = 4096
"""How much of a file's beginning `Format.detect` is shown."""


@dataclass(frozen=True, slots=True)
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
