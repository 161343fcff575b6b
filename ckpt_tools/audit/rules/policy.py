"""P: what the policy file asks for."""

from __future__ import annotations

from collections.abc import Iterator

from ckpt_tools.audit.findings import Finding
from ckpt_tools.audit.policy import Requirement, matches
from ckpt_tools.audit.rule import Rule, rule
from ckpt_tools.audit.subject import Subject


def _asked(subject: Subject) -> Iterator[Requirement]:
    """The requirements that are for the file."""
    for requirement in subject.options.policy.requirements:
        if any(matches(subject.path, glob) for glob in requirement.paths):
            yield requirement


@rule("P101", "expired-waiver", "error")
def expired_waiver(subject: Subject) -> Iterator[Finding]:
    """A waiver in the policy that covers the file is past its date, and no longer holds.

    Why: a waiver is a promise to mend something; without an end it becomes the rule.

    Example: ``expires = 2026-06-30`` in July.

    Remedy: mend what was waived, or renew the waiver with a reason and a new date.
    """
    for waiver in subject.options.policy.waivers:
        if waiver.expired(subject.options.today) and matches(subject.path, waiver.path):
            yield subject.finding(
                f"the waiver of {waiver.code} for {waiver.path} expired on {waiver.expires}: {waiver.reason}",
                evidence={"code": waiver.code, "path": waiver.path, "expires": str(waiver.expires)},
            )


RULES: tuple[Rule, ...] = (expired_waiver,)
