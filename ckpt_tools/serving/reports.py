"""An export as a report: a line a check, the runs, the problems below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ckpt_tools.report import Block, Facts, Report, Table, number
from ckpt_tools.serving.results import Export

_MARKS = {"passed": "passed", "warning": "warning", "failed": "FAILED", "skipped": "skipped"}


def report_of(found: Export) -> Report:
    """The report for people and machines."""
    rows = [(_MARKS[check.verdict], check.name, check.message) for check in found.checks]
    blocks: list[Block] = [Table("", ("verdict", "check", "what was found"), rows)]
    runs = _facts(found, "numbers").get("runs")
    if isinstance(runs, list) and runs:
        blocks.append(_runs(runs))
    for title, notes in (("Problems", False), ("Notes", True)):
        shown = [
            (p.code if notes else f"{p.severity} {p.code}", f"{p.message}\n→ {p.remedy}" if p.remedy else p.message)
            for p in found.problems
            if (p.severity == "note") == notes
        ]
        if shown:
            blocks.append(Facts(title, shown))
    if found.output.strip() and not found.passed:
        blocks.append(Facts("The last that was printed", [("", "\n".join(found.output.strip().splitlines()[-12:]))]))
    return Report(found.onnx, found.as_json, blocks, _verdict(found))


def cases_of(found: Export) -> dict[str, object]:
    """What the JUnit renderer reads: a test case a check."""
    return {
        "path": found.onnx,
        "failure": "",
        "skipped": "",
        "findings": [],
        "checks": [check.as_json() for check in found.checks],
    }


SHOWN = 16
"""Runs that people are shown; machines get all of them."""


def _runs(runs: list[Any]) -> Table:
    shown = sorted(runs, key=lambda run: bool(run["ok"]))[:SHOWN] if len(runs) > SHOWN else runs
    note = f"and {len(runs) - SHOWN:,} more, which JSON has" if len(runs) > SHOWN else ""
    rows = [
        (
            run["input"],
            run["on"],
            run["output"],
            number(run["worst"]),
            number(run["allowed"]),
            number(run["cosine"]),
            run["top1"],
            "" if run["ok"] else "FAILED",
        )
        for run in shown
    ]
    columns = ("input", "on", "output", ">largest |d|", ">allowed there", ">cosine", ">top-1", "")
    return Table("Runs, against torch", columns, rows, note)


def _facts(found: Export, name: str) -> Mapping[str, Any]:
    return next((check.facts for check in found.checks if check.name == name), {})


def _verdict(found: Export) -> str:
    placement = _facts(found, "placement").get("verdict", "")
    place = placement or "not verified on a GPU"
    if found.passed:
        return f"computes what {found.path} computes with {found.model}; {place}"
    failed = [check.name for check in found.checks if check.verdict == "failed"]
    kept = "; it was not kept" if found.written and _facts(found, "file").get("kept") is False else ""
    made = "was not written" if found.written and found["file"].verdict == "skipped" else f"is refused ({found.reason})"
    return f"{made}: {', '.join(failed)} failed{kept}"
