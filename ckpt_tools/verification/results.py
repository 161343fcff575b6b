"""The checks of ``ckpt verify`` and their verdicts: the same objects on both sides of the pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Literal

from ckpt_tools.audit.findings import SEVERITIES, Severity
from ckpt_tools.records import record

CHECKS: dict[str, str] = {
    "opens": "the file is whole and holds weights",
    "builds": "the class can be imported and built",
    "keys": "names, shapes and types are those of the class",
    "transfer": "head and backbone are what they should be",
    "loads": "the weights fill the class",
    "runs": "a forward pass works",
    "round-trip": "saved again, the weights are the same",
    "resume": "training can go on from it",
}
"""The checks in their order, and what each one means."""

Verdict = Literal["passed", "warning", "failed", "skipped"]


@record
class Problem:
    """One thing that is not as it should be: *code* is its name for machines, such as ``wrapped-names``.

    *message* is a sentence, *remedy* what to do about it.
    """

    code: str
    severity: Severity
    message: str
    remedy: str = ""


@record
class Check:
    """What one check found: a *message* that sums it up, and the *problems*, worst first.

    *facts* are for machines, plain JSON values only. A check that was *skipped* says why in its message.
    """

    name: str
    message: str
    problems: Sequence[Problem] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    skipped: bool = False
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """That of the worst problem; notes leave a check passed."""
        severities = {problem.severity for problem in self.problems}
        if "error" in severities:
            return "failed"
        if "warning" in severities:
            return "warning"
        return "skipped" if self.skipped else "passed"

    def as_json(self) -> dict[str, object]:
        """As it stands in ``--format json``, and goes through the pipe."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "message": self.message,
            "problems": [
                {"code": p.code, "severity": p.severity, "message": p.message, "remedy": p.remedy}
                for p in self.problems
            ],
            "facts": dict(self.facts),
            "seconds": round(self.seconds, 3),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Check:
        """The check that `as_json` gave."""
        problems = [Problem(p["code"], p["severity"], p["message"], p["remedy"]) for p in data["problems"]]
        skipped = data["verdict"] == "skipped"
        return cls(data["name"], data["message"], problems, data["facts"], skipped, data["seconds"])


def worst_first(problems: Sequence[Problem]) -> list[Problem]:
    """*problems*, errors before warnings before notes."""
    return sorted(problems, key=lambda problem: SEVERITIES.index(problem.severity))


class Checked:
    """What has *checks*: their problems, and each check by its name."""

    __slots__ = ()

    checks: Sequence[Check]

    @property
    def problems(self) -> list[Problem]:
        """Every problem of every check, in the order of the checks."""
        return [problem for check in self.checks for problem in check.problems]

    @property
    def codes(self) -> list[str]:
        """The codes of the `problems`."""
        return [problem.code for problem in self.problems]

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)


@record
class Verification(Checked):
    """The checks of one file against one class, all of `CHECKS` in order.

    *model* is the class as it was named; *output* what it printed, the last of it where that was long.
    """

    path: str
    model: str
    checks: Sequence[Check]
    output: str = ""

    @property
    def passed(self) -> bool:
        """Whether no check failed; warnings do not count."""
        return not self.at_least("error")

    def at_least(self, severity: Severity) -> list[Problem]:
        """The problems that are of *severity* or worse."""
        limit = SEVERITIES.index(severity)
        return [problem for problem in self.problems if SEVERITIES.index(problem.severity) <= limit]

    def __str__(self) -> str:
        lines = [f"{self.path} {'verifies' if self.passed else 'does not verify'} with {self.model}"]
        for check in self.checks:
            lines.append(f"  {check.verdict} {check.name}: {check.message}")
            for problem in check.problems:
                lines.append(f"    {problem.severity} {problem.code}: {problem.message}")
                if problem.remedy:
                    lines.append(f"      → {problem.remedy}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, object]:
        """As it stands in ``--format json``."""
        return {
            "path": self.path,
            "model": self.model,
            "passed": self.passed,
            "checks": [check.as_json() for check in self.checks],
            "output": self.output,
        }
