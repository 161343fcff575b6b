"""A firing and a clean file for every rule: each family has a module ``cases_*.py`` here with its ``CASES``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckpt_tools.audit.policy import Options, Policy, Requirement
from ckpt_tools.audit.subject import Subject
from ckpt_tools.sources import MemorySource

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


Make = Callable[[Path], Subject]
"""Makes a subject, for which it may use the folder that it is given."""


@dataclass(frozen=True)
class Case:
    """Makes of two subjects: the rule finds something in the first, and says *says*; nothing in the second.

    *member* and *tensor* are those of the first finding.
    """

    firing: Make
    clean: Make
    says: str
    member: str = ""
    tensor: str = ""


Cases = Mapping[str, Case]


def all_cases() -> Iterator[tuple[str, Case]]:
    """The cases of every family, by the rule's code."""
    for path in sorted(Path(__file__).parent.glob("cases_*.py")):
        cases: Cases = importlib.import_module(f"tests.audit.{path.stem}").CASES
        yield from cases.items()


def fixture(name: str, options: Options | None = None) -> Make:
    """The subject over a file or folder of the fixtures."""
    return lambda folder: Subject.open(str(FIXTURES / name), options)


def made(data: bytes, name: str = "model.pt", options: Options | None = None) -> Make:
    """The subject over *data*."""
    return lambda folder: Subject.of(MemorySource(data, name), name, options)


def asked(name: str, **requirement: object) -> Make:
    """The subject over a fixture, under a policy with one requirement."""
    policy = Policy(requirements=(Requirement(**requirement),))  # type: ignore[arg-type]
    return fixture(name, Options(policy))
