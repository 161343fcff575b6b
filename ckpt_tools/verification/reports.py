"""A verification as a report: a line a check, the problems below, with what to do about them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ckpt_tools.report import Block, Facts, Report, Table, count
from ckpt_tools.verification.results import CHECKS, Verification

_MARKS = {"passed": "passed", "warning": "warning", "failed": "FAILED", "skipped": "skipped"}


def report_of(found: Verification) -> Report:
    """The report for people and machines."""
    rows = [(_MARKS[check.verdict], check.name, check.message) for check in found.checks]
    blocks: list[Block] = [Table("", ("verdict", "check", "what was found"), rows)]
    problems = [
        (f"{problem.severity} {problem.code}", _text(problem.message, problem.remedy))
        for problem in found.problems
        if problem.severity != "note"
    ]
    if problems:
        blocks.append(Facts("Problems", problems))
    notes = [(problem.code, problem.message) for problem in found.problems if problem.severity == "note"]
    if notes:
        blocks.append(Facts("Notes", notes))
    if found.output.strip() and not found.passed:
        lines = found.output.strip().splitlines()
        blocks.append(Facts("The last that was printed", [("", "\n".join(lines[-20:]))]))
    return Report(found.path, found.as_json, blocks, _verdict(found))


def _text(message: str, remedy: str) -> str:
    return f"{message}\n→ {remedy}" if remedy else message


def _verdict(found: Verification) -> str:
    failed = [check.name for check in found.checks if check.verdict == "failed"]
    warned = [check.name for check in found.checks if check.verdict == "warning"]
    with_class = f"with {found.model}"
    if failed:
        return f"does not verify {with_class}: {_listed(failed)} failed"
    if warned:
        return f"verifies {with_class}, with {count(len(found.at_least('warning')), 'warning')}"
    return f"verifies {with_class}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def findings_of(found: Verification) -> dict[str, object]:
    """The problems in the form of the findings of an audit, for the formats that list findings."""
    return {
        "path": found.path,
        "failure": "",
        "skipped": "",
        "container": "",
        "waived": [],
        "answer": "passed" if found.passed else "failed",
        "size": 0,
        "rules": CHECKS,
        "findings": [
            {
                "code": check.name,
                "name": problem.code,
                "severity": problem.severity,
                "message": problem.message,
                "remedy": problem.remedy,
                "member": "",
                "offset": None,
                "tensor": "",
                "evidence": {"problem": problem.code},
                "fingerprint": hashlib.sha256(f"{found.path}\0{check.name}\0{problem.code}".encode()).hexdigest()[:32],
            }
            for check in found.checks
            for problem in check.problems
        ],
    }
