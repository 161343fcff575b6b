"""Findings in the formats of other programs: valid there, complete, and safe from what names contain."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from ckpt_tools.audit.dangers import NameVerdict, PickleVerdict
from ckpt_tools.audit.engine import audit
from ckpt_tools.audit.findings import Finding, Location
from ckpt_tools.audit.policy import Options, Policy, Waiver
from ckpt_tools.audit.reports import for_machines, for_people
from ckpt_tools.audit.results import Audited
from ckpt_tools.audit.rules import RULES
from ckpt_tools.render import render

ROOT = Path(__file__).resolve().parents[2]
# the schema of the OASIS standard, as the program's documentation for SARIF tools links it
SARIF = json.loads((Path(__file__).parent / "sarif-2.1.0-rtm.5.json").read_text())
SCHEMA = json.loads((ROOT / "docs/schema/audit.schema.json").read_text())

HOSTILE = "a\x00b\x1b[31m\n::error::pwn\u202e%0A,x=:y<script>&\udcff"


def finding(**changes: Any) -> Finding:
    fields: dict[str, Any] = {
        "code": "I103",
        "name": "damaged",
        "severity": "error",
        "message": "it broke",
        "location": Location("models/a b.pt", "archive/data.pkl", 12, "fc.weight"),
        "evidence": {"n": 1},
        "remedy": "Mend it",
    }
    return Finding(**{**fields, **changes})


RESULTS = [
    Audited(
        "models/a b.pt",
        "torch_zip",
        "PyTorch zip archive (torch.save)",
        "state_dict",
        100,
        findings=(finding(), finding(severity="warning", location=Location("models/a b.pt", offset=7))),
        waived=((finding(code="I206", name="orphaned-storage", severity="warning"), "known"),),
    ),
    Audited("clean.pt", "torch_zip", "PyTorch zip archive (torch.save)", "state_dict", 100),
    Audited("README.md", skipped="plain text"),
    Audited("gone.pt", failure="gone.pt: no such file"),
    Audited("note.pt", findings=(finding(severity="note", location=Location("note.pt", tensor="x")),)),
]

WORST = [
    Audited(
        f"dir/{HOSTILE}",
        findings=(finding(message=HOSTILE, remedy=HOSTILE, location=Location(HOSTILE, HOSTILE, 0, HOSTILE)),),
        waived=((finding(message=HOSTILE, evidence={HOSTILE: HOSTILE}), HOSTILE),),
    ),
    Audited(HOSTILE, failure=HOSTILE),
    Audited(HOSTILE, skipped=HOSTILE),
]


def rendered(format: str, results: list[Audited]) -> str:
    return render(for_machines(results), format, command="audit")


@pytest.mark.parametrize("results", [RESULTS, WORST, []], ids=["usual", "hostile", "none"])
def test_sarif_is_valid(results: list[Audited]) -> None:
    jsonschema.Draft4Validator(SARIF).validate(json.loads(rendered("sarif", results)))


@pytest.mark.parametrize("results", [RESULTS, WORST, []], ids=["usual", "hostile", "none"])
def test_json_is_valid(results: list[Audited]) -> None:
    jsonschema.validate(json.loads(rendered("json", results)), SCHEMA)


def test_every_fixture_follows_both_schemas() -> None:
    waivers = (Waiver("I101", "known"),)
    results = list(audit([str(ROOT / "fixtures"), str(ROOT / "docs/files")], Options(Policy(waivers=waivers))))
    jsonschema.validate(json.loads(rendered("json", results)), SCHEMA)
    document = json.loads(rendered("sarif", results))
    jsonschema.Draft4Validator(SARIF).validate(document)
    (run,) = document["runs"]
    assert len(run["results"]) == sum(len(result.findings) + len(result.waived) for result in results)


def test_sarif_has_every_rule() -> None:
    (run,) = json.loads(rendered("sarif", []))["runs"]
    described = run["tool"]["driver"]["rules"]
    assert [(rule["id"], rule["name"]) for rule in described] == [(rule.code, rule.name) for rule in RULES]
    by_code = {rule["id"]: rule["properties"] for rule in described}
    assert by_code["S101"] == {"tags": ["security"], "reads": "header", "security-severity": "9.0"}
    assert by_code["I201"] == {"tags": ["integrity"], "reads": "bytes"}
    assert all(rule["help"]["markdown"] and rule["shortDescription"]["text"] for rule in described)


def test_sarif_says_where() -> None:
    (run,) = json.loads(rendered("sarif", RESULTS))["runs"]
    first, second, note, waived = (run["results"][i] for i in (0, 1, 3, 2))
    place = first["locations"][0]
    assert place["physicalLocation"] == {"artifactLocation": {"uri": "models/a%20b.pt", "index": 0}}
    assert place["logicalLocations"] == [
        {"name": "archive/data.pkl", "fullyQualifiedName": "models/a b.pt::archive/data.pkl", "kind": "member"},
        {"name": "fc.weight", "fullyQualifiedName": "models/a b.pt::fc.weight", "kind": "tensor"},
    ]
    inner = first["relatedLocations"][0]["physicalLocation"]
    assert inner["region"] == {"byteOffset": 12}
    assert run["artifacts"][inner["artifactLocation"]["index"]] == {
        "location": {"uri": "archive/data.pkl"},
        "parentIndex": 0,
    }
    assert second["locations"][0]["physicalLocation"]["region"] == {"byteOffset": 7}
    assert "relatedLocations" not in second
    assert (first["ruleId"], first["level"], first["message"]["text"]) == ("I103", "error", "it broke. Mend it.")
    assert RULES[first["ruleIndex"]].code == "I103"
    assert first["properties"] == {"evidence": {"n": 1}}
    assert waived["suppressions"] == [{"kind": "external", "justification": "known"}]
    assert note["locations"][0]["logicalLocations"][0]["kind"] == "tensor"
    assert first["partialFingerprints"] != second["partialFingerprints"]
    assert run["invocations"] == [
        {
            "executionSuccessful": False,
            "toolExecutionNotifications": [{"level": "error", "message": {"text": "gone.pt: no such file"}}],
        }
    ]
    assert [a["location"]["uri"] for a in run["artifacts"]] == [
        "models/a%20b.pt",
        "archive/data.pkl",
        "clean.pt",
        "gone.pt",
        "note.pt",
    ]


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("/a b/m.pt", "file:///a%20b/m.pt"),
        ("s3://bucket/a b.pt?x=1", "s3://bucket/a%20b.pt?x=1"),
        ("ü.pt", "%C3%BC.pt"),
    ],
)
def test_sarif_uris(path: str, uri: str) -> None:
    (run,) = json.loads(rendered("sarif", [Audited(path)]))["runs"]
    assert run["artifacts"][0]["location"] == {"uri": uri}


def test_junit() -> None:
    root = ElementTree.fromstring(rendered("junit", RESULTS))
    assert root.attrib == {"name": "ckpt audit", "tests": "6", "failures": "2", "errors": "1", "skipped": "1"}
    cases = {suite.get("name"): [(case.get("name"), [child.tag for child in case]) for case in suite] for suite in root}
    assert cases == {
        "models/a b.pt": [("I103 damaged (archive/data.pkl, fc.weight)", ["failure"]), ("I103 damaged", ["failure"])],
        "clean.pt": [("audit", [])],
        "README.md": [("audit", ["skipped"])],
        "gone.pt": [("audit", ["error"])],
        "note.pt": [("I103 damaged (x)", ["system-out"])],
    }
    failure = root[0][0][0]
    assert (failure.get("type"), failure.get("message")) == ("error", "it broke")
    assert failure.text == "archive/data.pkl, fc.weight, byte 12\nit broke\nMend it"


def test_junit_withstands_names() -> None:
    ElementTree.fromstring(rendered("junit", WORST))


def test_github() -> None:
    assert rendered("github", RESULTS).splitlines() == [
        "::error file=models/a b.pt,title=I103 damaged::archive/data.pkl, fc.weight: it broke%0AMend it",
        "::warning file=models/a b.pt,title=I103 damaged::it broke%0AMend it",
        "::error file=gone.pt,title=not examined::gone.pt: no such file",
        "::notice file=note.pt,title=I103 damaged::x: it broke%0AMend it",
    ]


def test_github_commands_cannot_be_forged() -> None:
    lines = rendered("github", WORST).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert re.fullmatch(r"::error file=[^,:]*,title=[^,:]*::.*", line)


def test_gitlab() -> None:
    entries = json.loads(rendered("gitlab", [*RESULTS, Audited("./s.pt", findings=(finding(code="S101"),))]))
    assert [(e["location"]["path"], e["severity"], e["check_name"]) for e in entries] == [
        ("models/a b.pt", "critical", "I103 damaged"),
        ("models/a b.pt", "major", "I103 damaged"),
        ("gone.pt", "blocker", "not-examined"),
        ("note.pt", "info", "I103 damaged"),
        ("s.pt", "blocker", "S101 damaged"),
    ]
    assert entries[0]["description"] == "archive/data.pkl, fc.weight: it broke"
    assert entries[0]["location"]["lines"] == {"begin": 1}
    assert len({entry["fingerprint"] for entry in entries}) == 5


@pytest.mark.parametrize("format", ["text", "markdown", "html"])
def test_pages_for_people_are_made_of_the_worst(format: str) -> None:
    if format == "html":
        pytest.importorskip("jinja2")
    text = render(list(for_people(WORST, hints=True)), format, command="audit", width=80)
    assert "\x1b[31m" not in text
    assert "\u202e" not in text
    assert "<script>&" not in text or format == "text"


@pytest.mark.parametrize("format", ["text", "markdown"])
def test_no_line_is_a_command_to_githubs_runner(format: str) -> None:
    text = render(list(for_people(WORST, hints=True)), format, command="audit", width=0)
    assert not [line for line in text.splitlines() if line.lstrip().startswith("::")]


def test_many_pickles_that_need_the_same_share_a_line() -> None:
    needed = NameVerdict("torch.jit._pickle.build_intlist", 2, allowed=False, purpose="a plain value", kind="inert")
    verdicts = [PickleVerdict(f"{n}.debug_pkl", "needs classes", (needed,)) for n in range(4)]
    for number, shown in ((3, ["0.debug_pkl", "1.debug_pkl", "2.debug_pkl"]), (4, ["4 pickles"])):
        (report,) = for_people([Audited("script.pt", verdicts=tuple(verdicts[:number]))])
        (facts,) = report.blocks
        assert [label for label, _ in facts.rows] == shown
