"""I: whether the file is whole, and is what it seems."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.audit.findings import Finding
from ckpt_tools.audit.rule import Rule, rule
from ckpt_tools.audit.subject import Subject


@rule("I101", "unreadable", "error")
def unreadable(subject: Subject) -> Iterator[Finding]:
    """The file cannot be read as any checkpoint.

    Why: what cannot be read cannot be judged, and a loader may take it differently or fail in production.

    Example: a download that broke off, a web page saved under the name of the weights, a Git LFS pointer.

    Remedy: fetch the file again, or save it again from its source.
    """
    error = subject.error
    if error is not None:
        yield subject.finding(
            error.problem, member=error.member or "", offset=error.offset, remedy=error.remedy or "",
            evidence={"kind": type(error).__name__},
        )  # fmt: skip


RULES: tuple[Rule, ...] = (unreadable,)
