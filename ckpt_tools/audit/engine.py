"""The audit itself: from paths to `Audited` results, one a file, in a stable order.

A file is judged on its own, in this process or another; a bad one never stops the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from itertools import chain, groupby, islice, tee

from ckpt_tools.audit.cache import Cache
from ckpt_tools.audit.containers import MAX_MEMBERS, Container, container
from ckpt_tools.audit.coverage import Coverage, Opening
from ckpt_tools.audit.findings import Finding, Location, Severity
from ckpt_tools.audit.inputs import MODEL_SUFFIXES, Target, below, targets
from ckpt_tools.audit.policy import Options, Policy, matches, suggestion, version
from ckpt_tools.audit.results import UNREAD, Audited, Bytes
from ckpt_tools.audit.rule import Condition, Rule
from ckpt_tools.audit.rules import BY_CODE, FAMILIES, RULES
from ckpt_tools.audit.subject import Subject
from ckpt_tools.errors import CkptError, NotACheckpoint, UnsupportedFeature
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.report import listed
from ckpt_tools.sources import Folder

MAX_DEPTH = 3
"""How deep containers may lie in containers."""

MANY = 32
"""So many files are worth starting processes for."""
AT_ONCE = 16
"""The most files that a process takes at once."""
SHORT = 1 << 20
"""Bytes from which on a file is taken alone."""


def audit(
    paths: Iterable[str], options: Options | None = None, *, jobs: int | None = 1, dask: str | None = None
) -> Iterator[Audited]:
    """Audit everything that *paths* name; the results come in the order of the files.

    With *jobs* above 1 that many processes work; with None one for each core where there are many files and this
    process can be forked; with *dask*, the address of a scheduler, a cluster. Raises `CkptError` for what
    the policy names and there is not: a rule, a version of torch, the checkpoint to compare with.
    """
    options = options or Options()
    check(options.policy)
    found: Iterator[Target] = (target for path in paths for target in targets(path))
    if jobs is None:
        first = list(islice(found, MANY))
        jobs = _cores() if len(first) == MANY else 1
        found = chain(first, found)
    work = partial(_examine, options=options)
    outcomes: Iterator[_Outcome]
    if dask is not None:
        outcomes = _on_cluster(work, found, dask)
    elif jobs > 1:
        outcomes = _in_processes(work, found, jobs)
    else:
        outcomes = ((target, work(target)) for target in found)
    baseline = options.baseline
    for target, group in outcomes:
        results = [Audited(target.path, failure=f"{target.path}: {group}")] if isinstance(group, CkptError) else group
        yield from results if baseline is None else map(baseline.without_known, results)


def check(policy: Policy) -> None:
    """Raise `CkptError` for what no file could be held against: codes, a version, a base that there are not."""
    check_codes(policy)
    if policy.torch is not None and version(policy.torch) is None:
        raise CkptError(f"torch is {policy.torch!r:.100}, no version such as 2.4", path=policy.source or None)
    if policy.base is not None:
        open_checkpoint(policy.base)


def check_codes(policy: Policy) -> None:
    """Raise `CkptError` for a code that is no rule's and no beginning of one."""
    for code, where in policy.codes():
        if code not in FAMILIES and not any(code and known.startswith(code) for known in BY_CODE):
            raise CkptError(
                f"{where} names {code!r}, which is no rule{suggestion(code, BY_CODE)}", path=policy.source or None
            )


# --- in other processes

_Work = Callable[[Target], list[Audited]]
_Outcome = tuple[Target, list[Audited] | CkptError]


def _cores() -> int:
    """How many processes to use, unless this one must not be forked."""
    from ckpt_tools.forks import can_fork, cores

    return cores() if can_fork() else 1


def _in_processes(work: _Work, found: Iterable[Target], jobs: int, at_once: int = AT_ONCE) -> Iterator[_Outcome]:
    """The outcome for each target, from processes of this machine, which take several short files at once."""
    from ckpt_tools.fleet import run_all
    from ckpt_tools.forks import can_fork, in_forks

    batches, handed_out = tee(_together(found, at_once))
    each = partial(_each, work)
    outcomes = in_forks(each, handed_out, jobs) if can_fork() else run_all(each, handed_out, jobs=jobs)
    for several, outcome in zip(batches, outcomes, strict=True):
        if isinstance(outcome, list):
            yield from zip(several, outcome, strict=True)
        elif len(several) > 1:  # the process ended: one by one, so that only the file that ends it is lost
            yield from _in_processes(work, several, 2, 1)
        else:
            assert isinstance(outcome, CkptError)
            yield several[0], outcome


def _each(work: _Work, several: list[Target]) -> list[list[Audited] | CkptError]:
    from ckpt_tools.fleet import outcome

    return [outcome(work, target) for target in several]


def _together(found: Iterable[Target], at_once: int) -> Iterator[list[Target]]:
    """The targets in order, in lists of which each takes a process about as long."""
    from ckpt_tools.forks import together

    return together(found, _length, SHORT, at_once)


def _length(target: Target) -> int:
    try:
        return os.stat(target.path).st_size
    except (OSError, ValueError):  # a remote one
        return 0


def _on_cluster(work: _Work, found: Iterable[Target], address: str) -> Iterator[_Outcome]:
    from ckpt_tools.fleet import run_all

    asked, handed_out = tee(found)
    return zip(asked, run_all(work, handed_out, dask=address), strict=True)


# --- one file


def _examine(target: Target, options: Options) -> list[Audited]:
    """The results for one target: for a folder, also for the files in it that are no part of its checkpoint."""
    if target.error is not None:
        return [Audited(target.path, failure=str(target.error))]
    if options.cache is None:
        return list(_look_at(target, options))
    kept = Cache(options.cache)
    key = kept.key(target.path, target.named, options)
    known = kept.get(key, target.path) if key is not None else None
    if known is not None:
        return [known]
    results = list(_look_at(target, options))
    if key is not None and len(results) == 1:
        kept.put(key, results[0])
    return results


def _look_at(target: Target, options: Options) -> Iterator[Audited]:
    try:
        subject = Subject.open(target.path, options)
    except Exception as error:
        yield _failed(target.path, error)
    else:
        yield from _all_of(subject, target.named, 0)


def _all_of(subject: Subject, named: bool, depth: int) -> Iterator[Audited]:
    """The results for a file and what is in it, or for a folder and what lies beside the checkpoint that it is."""
    held: Container | None = None
    try:
        held = container(subject.source, subject.error) if depth < MAX_DEPTH else None
        if held is None:
            yield judged(subject, named=named)
        else:
            yield from _held(subject, held, named, depth)
    except Exception as error:  # a fault of ours or of the machine must not keep the other files from being judged
        yield _failed(subject.path, error)
    if subject.file is not None:
        subject.file.memo.clear()  # an archive refers back to it, so that its bytes would be kept for a while
    if held is None and isinstance(subject.source, Opening) and not subject.is_remote:
        taken = frozenset(source.name for source in subject.source.opened.values())
        for target in below(subject.path, taken):
            yield from _examine(target, subject.options)


def _held(subject: Subject, held: Container, named: bool, depth: int) -> Iterator[Audited]:
    """The results for what a container holds, the container's own first, which tells whether all of it was seen."""
    inside: list[Audited] = []
    names: list[str] = []
    problem = ""
    members = held.members()
    try:
        for number, (name, source) in enumerate(members):
            if number == MAX_MEMBERS:
                problem = f"only the first {MAX_MEMBERS:,} members were looked at"
                break
            names.append(name)
            join = "/" if isinstance(subject.source, Folder) else ": "
            inside += _all_of(Subject.of(source, f"{subject.path}{join}{name}", subject.options), False, depth + 1)
    except CkptError as error:
        problem = str(error)
    # the rules look at the archive itself: its headers, names and checksums
    bare = Subject(subject.path, subject.source, None, None, subject.options)
    bare.coverage = Coverage()
    if not problem and all(result.skipped for result in inside):
        bare.error = NotACheckpoint(f"a {held.title} that holds no {f'model: {listed(names)}' if names else 'file'}")
    own = judged(bare)
    if not own.skipped:
        own = replace(own, format=held.format, title=held.title, kind="archive")
    if bare.error is not None and not _is_promised(subject, held, named):
        told = (*own.findings, *(finding for finding, _ in own.waived))
        if all(finding.evidence.get("kind") == NotACheckpoint.__name__ for finding in told):  # its headers are sound
            own = Audited(subject.path, size=subject.size, skipped=bare.error.problem)
    policy, unread = subject.options.policy, BY_CODE[UNREAD]
    if problem and policy.counts(UNREAD, subject.path):
        severity = policy.severity_of(UNREAD, unread.severity)
        place = Location(subject.path)
        finding = Finding(UNREAD, unread.name, severity, problem, place, {"rule": UNREAD}, unread.remedy)
        reason = _waiver(finding, subject.options)
        if reason:
            own = replace(own, waived=(*own.waived, (finding, reason)))
        else:
            own = replace(own, findings=(*own.findings, finding))
    yield own
    for result in inside:
        yield result if isinstance(subject.source, Folder) else replace(result, container=subject.path)


def _is_promised(subject: Subject, held: Container, named: bool) -> bool:
    """Whether there should be a model in a container, by its name, or since it was named as what to examine."""
    path = subject.path.lower()
    # a tar archive is what .tar promises, and .pth.tar is a model
    suffixed = (path.removesuffix(".tar") if held.format == "tar" else path).endswith(MODEL_SUFFIXES)
    return (named or suffixed) and not isinstance(subject.source, Folder)


def _failed(path: str, error: Exception) -> Audited:
    if isinstance(error, CkptError):
        return Audited(path, failure=str(error.at(path=path)))
    if os.environ.get("CKPT_DEBUG"):
        import traceback

        traceback.print_exc()
    return Audited(path, failure=f"{path}: internal error: {type(error).__name__}: {error}")


def judged(subject: Subject, *, named: bool = True) -> Audited:
    """The result for one subject; *named* is false where it was only met in a folder, so that it may be skipped."""
    checkpoint, error = subject.checkpoint, subject.error
    if not named and isinstance(error, NotACheckpoint) and _is_no_model(subject):
        return Audited(subject.path, size=subject.size, skipped=error.problem)
    policy = subject.options.policy
    found: list[Finding] = []
    for when, rules in _asked(subject.options):
        for rule, severity in rules if when is None or _holds(when, subject) else ():
            if not policy.per_path_ignores or policy.counts(rule.code, subject.path):
                _ask(rule, severity, subject, found)
    reasons = [_waiver(finding, subject.options) for finding in found]
    if isinstance(error, NotACheckpoint | UnsupportedFeature) and not (found or subject.pickles):
        return Audited(subject.path, size=subject.size, skipped=error.problem)  # nor was the rule asked that says so
    return Audited(
        subject.path,
        checkpoint.format if checkpoint is not None else "",
        checkpoint.title if checkpoint is not None else "",
        checkpoint.kind if checkpoint is not None else "",
        subject.size,
        subject.verdicts,
        tuple(finding for finding, reason in zip(found, reasons, strict=True) if not reason),
        tuple((finding, reason) for finding, reason in zip(found, reasons, strict=True) if reason),
        bytes=Bytes.of(subject.coverage),
    )


def _is_no_model(subject: Subject) -> bool:
    """Whether neither its name nor anything in it has to do with models."""
    return not subject.path.lower().endswith(MODEL_SUFFIXES) and not subject.pickles


@lru_cache(maxsize=4)
def _asked(options: Options) -> tuple[tuple[Condition | None, tuple[tuple[Rule, Severity], ...]], ...]:
    """The rules that *options* ask for, each with its severity; which do not count for a file, its path tells.

    Those in a row that have the same condition come together with it.
    """
    policy = options.policy
    asked = (rule for rule in RULES if policy.counts(rule.code) and (rule.needs == "header" or options.values))
    return tuple(
        (when, tuple((rule, policy.severity_of(rule.code, rule.severity)) for rule in rules))
        for when, rules in groupby(asked, lambda rule: rule.when)
    )


def _holds(when: Condition, subject: Subject) -> bool:
    """Whether *when* is true of *subject*, or cannot be told: then each rule says so itself."""
    try:
        return bool(when(subject))
    except CkptError:
        return True


def _ask(rule: Rule, severity: Severity, subject: Subject, found: list[Finding]) -> None:
    """Add to *found* what *rule* finds in *subject*."""
    try:
        for finding in rule.check(subject):
            found.append(rule.signed(finding, severity))
    except CkptError as error:
        unread = BY_CODE[UNREAD]
        found.append(
            Finding(
                UNREAD,
                unread.name,
                subject.options.policy.severity_of(UNREAD, unread.severity),
                f"{rule.code} {rule.name} could not look at everything: {error.problem}",
                Location(subject.path, error.member or "", error.offset),
                {"rule": rule.code},
                error.remedy or f"look at it by hand, or leave {rule.code} out for this file",
            )
        )


def _waiver(finding: Finding, options: Options) -> str:
    """The reason of the waiver that covers *finding*; "" where none does."""
    for waiver in options.policy.waivers:
        if (
            finding.code.startswith(waiver.code)
            and matches(finding.location.path, waiver.path)
            and matches(finding.location.member, waiver.member)
            and matches(finding.location.tensor, waiver.tensor)
            and all(fnmatchcase(name, waiver.name) for name in finding.names)
            and not waiver.expired(options.today)
        ):
            return waiver.reason
    return ""
