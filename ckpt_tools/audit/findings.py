"""What a rule has found, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from ckpt_tools.records import comparable, record

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The worst first."""


@comparable
class Location:
    """The file as the user named it; the archive member or part in it; the byte there; the tensor concerned.

    *offset* counts from the start of the member, or of the file where there is no *member*.
    """

    path: str
    member: str = ""
    offset: int | None = None
    tensor: str = ""

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.path, self.member) if part)
        if self.offset is not None:
            place += f", byte {self.offset:,}"
        return f"{place}, {self.tensor}" if self.tensor else place


@record
class Finding:
    """One defect at one place.

    *message* is a sentence that names what it is about, *remedy* what to do, *evidence* the facts for machines:
    plain JSON values only. Rules leave *code*, *name* and *severity* to `Rule`.
    """

    code: str
    name: str
    severity: Severity
    message: str
    location: Location
    evidence: Mapping[str, object] = field(default_factory=dict)
    remedy: str = ""

    @property
    def about(self) -> str:
        """The global, the operator, the layer or the like that it is about, "" where it names none."""
        return next((str(self.evidence[key]) for key in ("global", "name") if key in self.evidence), "")

    @property
    def names(self) -> tuple[str, ...]:
        """All that it is about: several globals, or `about` alone."""
        several = self.evidence.get("globals")
        return tuple(map(str, several)) if isinstance(several, list | tuple) and several else (self.about,)

    @property
    def payload(self) -> str:
        """A digest of what would do harm, "" where it is about nothing that does."""
        return str(self.evidence.get("payload", ""))
