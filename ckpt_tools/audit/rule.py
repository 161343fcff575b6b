"""A rule of the audit: one generator function, whose docstring is its public page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from inspect import getdoc
from typing import TYPE_CHECKING, Literal

from ckpt_tools.audit.findings import Finding, Severity
from ckpt_tools.records import record

if TYPE_CHECKING:
    from ckpt_tools.audit.subject import Subject

Needs = Literal["header", "bytes", "values"]
"""What a rule reads: headers and pickles; every byte of the file; the numbers of the tensors."""

Check = Callable[["Subject"], Iterator[Finding]]
Condition = Callable[["Subject"], object]

SECTIONS = ("Why", "Example", "Remedy")
"""What a page has after its first paragraph, each a paragraph (or more) that begins with the word and a colon."""


@record
class Rule:
    """A rule: *code* and *name* are stable, *check* finds, and its docstring is the rule's *page*.

    Where *when* is false of a file, the rule finds nothing there and need not be asked.
    """

    code: str
    name: str
    severity: Severity
    check: Check
    needs: Needs
    when: Condition | None = None

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """What the rule finds in *subject*, under the rule's own code, name and severity."""
        return (self.signed(found, self.severity) for found in self.check(subject))

    def signed(self, found: Finding, severity: Severity) -> Finding:
        """What *check* has found, under the rule's code and name and with the remedy that the rule gives for it."""
        remedy = found.remedy or self.remedy
        return Finding(self.code, self.name, severity, found.message, found.location, found.evidence, remedy)

    @property
    def page(self) -> str:
        """What there is to know of the rule: the docstring of *check*."""
        return _page(self.check)

    @property
    def summary(self) -> str:
        """The page's first paragraph, on one line: what the rule finds."""
        return " ".join(self.page.partition("\n\n")[0].split())

    @property
    def remedy(self) -> str:
        """What the page advises, on one line."""
        return _remedy(self.check)

    def section(self, title: str) -> str:
        """The text of a section of the page; "" where it has none."""
        return _section(self.page, title)


# worked out when they are first asked for: most runs ask for few of them


@cache
def _page(check: Check) -> str:
    return getdoc(check) or ""


@cache
def _remedy(check: Check) -> str:
    text = " ".join(_section(_page(check), "Remedy").split()).replace("``", "`")
    return text[:1].upper() + text[1:]


def _section(page: str, title: str) -> str:
    others = "|".join(SECTIONS)
    found = re.search(rf"^{title}: *(.*?)(?=\n\n(?:{others}): |\Z)", page, re.S | re.M)
    return found[1].strip() if found else ""


def rule(
    code: str, name: str, severity: Severity, *, needs: Needs = "header", when: Condition | None = None
) -> Callable[[Check], Rule]:
    """Make a rule of a generator function, which yields what `Subject.finding` makes.

    Its docstring says what the rule finds, then ``Why: …``, ``Example: …`` and ``Remedy: …``, a paragraph each.
    The remedy there is that of every finding that gives none. *when* is asked once for rules in a row that share it.
    """

    def make(check: Check) -> Rule:
        return Rule(code, name, severity, check, needs, when)

    return make


def has_module(subject: Subject) -> bool:
    """The condition of rules about a pickled ``nn.Module``."""
    return subject.module is not None


def registry(*families: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules of *families* in one tuple; refuses two with the same code or name."""
    rules = tuple(rule for family in families for rule in family)
    for attribute in ("code", "name"):
        seen: set[str] = set()
        for one in rules:
            value = getattr(one, attribute)
            if value in seen:
                raise ValueError(f"two rules have the {attribute} {value}")
            seen.add(value)
    return rules
