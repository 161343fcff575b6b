"""Every rule finds what its page says and leaves a clean file alone, has a page, and is in the documents."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt_tools.audit.findings import SEVERITIES
from ckpt_tools.audit.rule import SECTIONS, Rule, registry, rule
from ckpt_tools.audit.rules import BY_CODE, FAMILIES, RULES
from ckpt_tools.audit.subject import Subject
from ckpt_tools.errors import CkptError
from ckpt_tools.formats.archive import Archive
from ckpt_tools.sources import MemorySource
from tests.audit.archives import MLP
from tests.audit.cases import Case, all_cases, fixture

CASES = list(all_cases())
BY_ID = [pytest.param(code, case, id=f"{code}-{number}") for number, (code, case) in enumerate(CASES)]


def test_every_rule_has_a_firing_and_a_clean_file() -> None:
    assert {rule.code for rule in RULES} - {code for code, _ in CASES} == set()


@pytest.mark.parametrize(("code", "case"), BY_ID)
def test_the_rule_finds_it(code: str, case: Case, tmp_path: Path) -> None:
    subject = case.firing(tmp_path)
    found = list(BY_CODE[code].findings(subject))
    assert found
    first = found[0]
    assert case.says in first.message
    assert (first.code, first.name, first.severity) == (code, BY_CODE[code].name, BY_CODE[code].severity)
    assert (first.location.path, first.location.member, first.location.tensor) == (
        subject.path,
        case.member,
        case.tensor,
    )
    assert all(finding.remedy for finding in found)


@pytest.mark.parametrize(("code", "case"), BY_ID)
def test_the_rule_leaves_a_clean_file_alone(code: str, case: Case, tmp_path: Path) -> None:
    assert [finding.message for finding in BY_CODE[code].findings(case.clean(tmp_path))] == []


@pytest.mark.parametrize(("code", "case"), BY_ID)
def test_no_rule_would_find_anything_where_its_condition_is_false(code: str, case: Case, tmp_path: Path) -> None:
    subject = case.firing(tmp_path)
    assert BY_CODE[code].when is None or BY_CODE[code].when(subject)
    idle = [rule for rule in RULES if rule.when is not None and not rule.when(subject)]
    assert [finding.code for rule in idle for finding in rule.findings(subject)] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_rule_has_a_page(rule: Rule) -> None:
    assert re.fullmatch(r"[A-Z]\d{3}", rule.code)
    assert rule.code[0] in FAMILIES
    assert re.fullmatch(r"[a-z]+(-[a-z0-9]+)+|[a-z]+", rule.name)
    assert rule.severity in SEVERITIES
    assert rule.needs in ("header", "bytes", "values")
    assert rule.summary.endswith(".")
    for section in SECTIONS:
        assert rule.section(section).rstrip()[-1] in ".):", f"{section} is missing or no sentence"


def test_sections_of_a_page() -> None:
    @rule("X101", "example", "note")
    def example(subject):
        """It finds
        something.

        Why: it matters: a lot.

        And more.

        Example: this.

        Remedy: do
        that.
        """
        yield subject.finding("here", remedy="")
        yield subject.finding("there", member="a/b", offset=3, tensor="t", evidence={"n": 1}, remedy="Leave it.")

    assert (example.summary, example.remedy) == ("It finds something.", "Do that.")
    assert example.section("Why") == "it matters: a lot.\n\nAnd more."
    assert example.section("Example") == "this."
    first, second = example.findings(fixture("zip/mlp.pt")(Path()))
    assert (first.code, first.name, first.severity, first.remedy) == ("X101", "example", "note", "Do that.")
    assert second.remedy == "Leave it."
    assert (second.location.member, second.location.offset, second.location.tensor) == ("a/b", 3, "t")
    assert dict(second.evidence) == {"n": 1}


def test_a_registry_refuses_twins() -> None:
    @rule("X101", "one", "note")
    def one(subject):
        """One."""
        yield from ()

    @rule("X102", "one", "note")
    def namesake(subject):
        """Two."""
        yield from ()

    assert registry((one,)) == (one,)
    with pytest.raises(ValueError, match="two rules have the code X101"):
        registry((one,), (one,))
    with pytest.raises(ValueError, match="two rules have the name one"):
        registry((one, namesake))


@pytest.mark.parametrize(
    "how", [lambda byte: byte ^ 1, lambda byte: byte ^ 0xFF, lambda byte: 0], ids=["bit", "all", "0"]
)
def test_an_archive_that_looks_plain_hides_nothing(how: Callable[[int], int], monkeypatch: pytest.MonkeyPatch) -> None:
    headers = [
        *((member.header_offset, local.start) for member, local in Archive.of(MemorySource(MLP, "a.pt")).placed),
        (len(MLP) - 22 - 56 * 8, len(MLP)),
    ]

    def found(data: bytes) -> list[tuple[str, str]] | str:
        try:
            archive = Archive(MemorySource(data, "a.pt"))
            subject = Subject("a.pt", archive.source, None)
            findings = [f for code in ("I203", "I205") for f in BY_CODE[code].findings(subject)]
            return [(f.code, f.message) for f in findings] + [("aside", str(aside)) for aside in archive.asides()]
        except CkptError as error:
            return error.problem

    for start, end in headers:
        for at in range(start, end):
            data = bytearray(MLP)
            data[at] = how(data[at])
            quick = found(bytes(data))
            with monkeypatch.context() as patch:
                patch.setattr(Archive, "is_plain", False)
                assert found(bytes(data)) == quick, at
