"""The results of an audit as reports: one a file, and for people what it comes to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ckpt_tools.audit.dangers import NameVerdict, PickleVerdict
from ckpt_tools.audit.findings import SEVERITIES, Finding
from ckpt_tools.audit.results import Audited, summed
from ckpt_tools.report import Block, Facts, Report, Table, count, listed, one_line, size

ALIKE = 3
"""More pickles than this that need the same classes share a line."""
FEW = 10
"""Up to so many files are each shown, with or without findings."""


def for_machines(results: Iterable[Audited]) -> list[Report]:
    """A report a file, in which everything is."""
    return [Report(result.path, result.data) for result in results]


def for_people(results: Iterable[Audited], *, hints: bool = False) -> Iterator[Report]:
    """A report for each file about which there is something to say, as it comes, and at the end one that sums up.

    *hints* adds what to do about each finding.
    """
    seen: list[Audited] = []
    waiting: list[Audited] = []  # until it is known whether there are more than a few
    shown = 0
    for result in results:
        seen.append(result)
        waiting.append(result)
        if len(seen) > FEW:
            telling = [r for r in waiting if r.findings or r.failure]
            shown += len(telling)
            yield from (_one(r, hints) for r in telling)
            waiting.clear()
    telling = [r for r in waiting if not r.skipped] if len(seen) <= FEW else []
    shown += len(telling)
    yield from (_one(r, hints) for r in telling)
    if len(seen) != 1 or not shown:
        yield _sum(seen, len(seen) - shown)


def _one(result: Audited, hints: bool) -> Report:
    if result.failure:
        return Report(
            result.path, result.data, verdict="not examined: " + result.failure.removeprefix(f"{result.path}: ")
        )
    blocks: list[Block] = []
    pickles = [*_pickles(result.verdicts)]
    if pickles:
        blocks.append(Facts("", pickles))
    if result.findings:
        columns = ("severity", "rule", "where", "finding", *(("what to do",) if hints else ()))
        ordered = sorted(result.findings, key=lambda finding: SEVERITIES.index(finding.severity))
        blocks.append(Table("", columns, [_row(finding, hints) for finding in ordered]))
    if result.waived:
        rows = [(f.code, f.name, _place(f), one_line(f.message), one_line(reason)) for f, reason in result.waived]
        blocks.append(Table("Waived", ("code", "rule", "where", "finding", "reason"), rows))
    return Report(result.path, result.data, blocks, _verdict(result))


def _verdict(result: Audited) -> str:
    """``dangerous; PyTorch zip archive (torch.save), 44.7 MB; 1 error``."""
    parts = [result.answer]
    if result.title:
        parts.append(f"{result.title}, {size(result.size)}")
    parts.append(_findings({severity: sum(f.severity == severity for f in result.findings) for severity in SEVERITIES}))
    if result.known:
        parts.append(f"{result.known:,} known from the baseline")
    return "; ".join(parts)


def _findings(numbers: dict[str, int]) -> str:
    told = [count(number, severity) for severity, number in numbers.items() if number]
    return ", ".join(told) or "no findings"


def _row(finding: Finding, hints: bool) -> tuple[str, ...]:
    row = (finding.severity, f"{finding.code} {finding.name}", _place(finding), one_line(finding.message))
    return (*row, _hint(finding.remedy)) if hints else row


def _hint(remedy: str) -> str:
    """A remedy as a sentence of its own, with code between single backticks."""
    text = one_line(remedy).replace("``", "`")
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "`")) or not text else ".")


def _place(finding: Finding) -> str:
    place = finding.location
    parts = [place.member] if place.member else []
    if place.offset is not None:
        parts.append(f"byte {place.offset:,}")
    if place.tensor:
        parts.append(place.tensor)
    return one_line(", ".join(parts))


def _pickles(verdicts: Sequence[PickleVerdict]) -> Iterator[tuple[str, str]]:
    """A line for each pickle, the gravest first; those with tensors only on one, and many that need the same."""
    for answer in ("dangerous", "unknown"):
        for verdict in verdicts:
            if verdict.answer == answer:
                yield verdict.member, f"{answer}: {_why(verdict)}"
    needing: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.answer == "needs classes":
            needing.setdefault(_why(verdict), []).append(verdict.member)
    for why, members in needing.items():
        for label in [count(len(members), "pickle")] if len(members) > ALIKE else members:
            yield label, f"needs classes: {why}"
    plain = [verdict.member for verdict in verdicts if verdict.answer == "tensors only"]
    if plain:
        yield plain[0] if len(plain) == 1 else count(len(plain), "pickle"), "tensors only"


def _why(verdict: PickleVerdict) -> str:
    def told(name: NameVerdict) -> str:
        what = name.danger if verdict.answer == "dangerous" else name.purpose
        return f"{name.name} ({what})" if what else name.name

    names = [n for n in verdict.names if (n.danger if verdict.answer == "dangerous" else not n.allowed)]
    if not names or verdict.answer == "unknown":
        return listed(verdict.reasons or verdict.refusals)
    return listed([told(name) for name in names])


def _sum(results: Sequence[Audited], hidden: int) -> Report:
    sums = summed(results)
    verdict = f"{count(sums['files'], 'file')} examined: " + _findings({s: sums[f"{s}s"] for s in SEVERITIES})
    answers: list[str] = [result.answer for result in results if not (result.skipped or result.failure)]
    rows: list[tuple[str, str]] = [
        (answer, f"{answers.count(answer):,}")
        for answer in ("dangerous", "unknown", "needs classes", "tensors only", "no pickle")
        if answer in answers
    ]
    for label in ("failed", "skipped", "waived", "known"):
        if sums[label]:
            rows.append((_LABELS[label], f"{sums[label]:,}"))
    note = f"{count(hidden, 'file')} without findings not shown" if hidden - sums["skipped"] > 0 else ""
    blocks = [Facts("", rows, note)] if rows else []
    return Report("audit", lambda: {"summary": sums}, blocks, verdict, summary=True)


_LABELS = {
    "failed": "could not be examined",
    "skipped": "no model files, skipped",
    "waived": "findings waived",
    "known": "findings known from the baseline",
}
