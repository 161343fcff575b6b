"""What has been looked at: every byte of a file is examined, tensor data, or unread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ckpt_tools.checkpoint import Checkpoint, Pickle
from ckpt_tools.records import record
from ckpt_tools.sources import Folder, Source

How = Literal["examined", "tensor data", "inert", "unread"]
"""Read and understood; numbers of a tensor; of a kind that no loader runs (text, padding); none of these."""


@dataclass(frozen=True, slots=True)
class Region:
    """*size* bytes of a file, or of the archive member *member*; *what* says what they are."""

    member: str
    offset: int
    size: int
    how: How
    what: str = ""


@record
class Coverage:
    """*regions* in file order. *pickles* are those that the checkpoint's own format does not lead to: in other
    members of the archive, in what a broken file still holds.
    """

    regions: tuple[Region, ...] = ()
    pickles: tuple[Pickle, ...] = ()

    @property
    def unread(self) -> tuple[Region, ...]:
        """What was not examined."""
        return tuple(region for region in self.regions if region.how == "unread")


def cover(source: Source | Folder, checkpoint: Checkpoint | None) -> Coverage:
    """What of *source* the description *checkpoint* accounts for, and what the rest is."""
    return Coverage()
