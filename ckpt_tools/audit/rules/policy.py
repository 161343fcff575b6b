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


@rule("P102", "global-added", "error")
def global_added(subject: Subject) -> Iterator[Finding]:
    """A pickle names a global that the baseline has not locked for the file.

    Why: weights are retrained, but what a file needs in order to load seldom changes; where it does, someone
    should look. Of a file that the baseline does not know, those count that torch's weights_only would refuse.

    Example: a checkpoint that was a state_dict and now names ``mypackage.trainer.State``.

    Remedy: find out where the global comes from; if it is meant, write the baseline again.
    """
    baseline = subject.options.baseline
    if baseline is None:
        return
    locked = baseline.locked(subject.path)
    for verdict in subject.verdicts:
        for name in verdict.names:
            if (name.name not in locked) if locked is not None else not name.allowed:
                yield subject.finding(
                    f"{name.name} is new" if locked is not None else f"{name.name}, in a file that is new",
                    member=verdict.member,
                    offset=name.offset,
                    evidence={"global": name.name},
                )


@rule("P103", "global-removed", "note")
def global_removed(subject: Subject) -> Iterator[Finding]:
    """A global that the baseline has locked for the file is no longer named.

    Why: the lock should be as tight as the file, or it lets the global come back unseen.

    Example: a checkpoint that once held an ``argparse.Namespace``.

    Remedy: write the baseline again.
    """
    locked = subject.options.baseline.locked(subject.path) if subject.options.baseline is not None else None
    named = {name.name for verdict in subject.verdicts for name in verdict.names}
    for gone in locked or ():
        if gone not in named:
            yield subject.finding(f"{gone} is gone", evidence={"global": gone})


RULES: tuple[Rule, ...] = (expired_waiver, global_added, global_removed)
