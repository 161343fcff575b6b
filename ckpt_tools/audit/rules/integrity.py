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
            error.problem,
            member=error.member or "",
            offset=error.offset,
            remedy=error.remedy or "",
            evidence={"kind": type(error).__name__},
        )


@rule("I102", "unread-content", "error")
def unread_content(subject: Subject) -> Iterator[Finding]:
    """The file holds something that was not looked at, and a loader might.

    Why: an audit that passes over what it does not understand says nothing about the file.

    Example: an encrypted member of an archive, bytes behind the end of a pickle, a member of unknown format.

    Remedy: take the part out of the file, or save the model in a format that has no room for it (safetensors).
    """
    if subject.error is not None:
        return
    for region in subject.coverage.unread:
        yield subject.finding(
            f"{region.size:,} bytes were not looked at: {region.what}",
            member=region.member,
            offset=region.offset,
            evidence={"bytes": region.size},
        )


RULES: tuple[Rule, ...] = (unreadable, unread_content)
