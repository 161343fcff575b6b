"""What is asked of the process that builds the model, in a form that goes through a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from typing import Any

from ckpt_tools.records import record


@record
class Job:
    """One file to verify against one class.

    *model* is a specification as `ckpt_tools.runtime.locate` reads it, *args* and *kwargs* what it is called with,
    *trust* the leave to unpickle. *inputs* are as of ``--input``: sizes without the batch (*batch* is put before
    them, 0 for nothing), ``int64:128``, or files. *frozen* and *trainable* are globs of what is expected;
    *min_loaded* the share of parameter elements that must come from the file; names that match *allow_missing*
    may be missing from it, and those that match *allow_unexpected* may be in it alone. *key_map* gives names of the
    file others before all that. *tolerance* is relative to the largest output. *seconds* is the time limit.
    """

    path: str
    model: str
    args: Sequence[object] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)
    trust: bool = False
    select: str | None = None
    base: str | None = None
    frozen: Sequence[str] = ()
    trainable: Sequence[str] = ()
    inputs: Sequence[str] = ()
    batch: int = 1
    reference: str | None = None
    record: str | None = None
    device: str = "cpu"
    tolerance: float = 1e-4
    min_loaded: float = 1.0
    allow_missing: Sequence[str] = ()
    allow_unexpected: Sequence[str] = ()
    key_map: Mapping[str, str] = field(default_factory=dict)
    write_fixed: str | None = None
    write_key_map: str | None = None
    force: bool = False
    seconds: float = 300.0

    def as_json(self) -> dict[str, Any]:
        """As it goes through the pipe."""
        return {each.name: getattr(self, each.name) for each in fields(self)}
