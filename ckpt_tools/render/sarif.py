"""SARIF 2.1.0, the OASIS standard for findings, as GitHub's code scanning and others take it.

A finding's artifact is the file. What is in an archive is an artifact nested in it, which is where the byte offset of
an opcode counts; that stands under ``relatedLocations``. The logical location is the member or the tensor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from ckpt_tools.audit.results import artifact
from ckpt_tools.audit.rule import Rule
from ckpt_tools.audit.rules import FAMILIES, RULES
from ckpt_tools.report import Report, printable
from ckpt_tools.version import VERSION

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def render(reports: Sequence[Report], command: str, width: int, color: bool) -> str:
    """One log with one run; files that were skipped are left out."""
    artifacts = _Artifacts()
    results: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    checks: dict[str, str] = next((r.data["rules"] for r in reports if "rules" in r.data), {})  # type: ignore[misc]
    rules = [{"id": name, "shortDescription": {"text": what}} for name, what in checks.items()] or _rules()
    positions = {rule["id"]: position for position, rule in enumerate(rules)}
    for report in reports:
        data: Any = report.data
        if data["skipped"]:
            continue
        path, prefix = artifact(data)
        index = artifacts.add(path, data)
        if data["failure"]:
            failures.append({"level": "error", "message": {"text": printable(data["failure"])}})
        results += [_result(finding, path, prefix, index, artifacts) for finding in data["findings"]]
        for finding in data["waived"]:
            suppression = {"kind": "external", "justification": printable(finding["reason"])}
            results.append({**_result(finding, path, prefix, index, artifacts), "suppressions": [suppression]})
    driver = {
        "name": "ckpt-tools",
        "version": VERSION,
        "rules": rules,
    }
    for result in results:
        result["ruleIndex"] = positions[result["ruleId"]]
    invocation = {"executionSuccessful": not failures, "toolExecutionNotifications": failures}
    run = {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "artifacts": artifacts.entries,
        "results": results,
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _rules() -> list[dict[str, Any]]:
    """Every rule of the audit."""
    return [
        {
            "id": rule.code,
            "name": rule.name,
            "shortDescription": {"text": rule.summary},
            "fullDescription": {"text": " ".join(rule.section("Why").split()) or rule.summary},
            "help": {"text": rule.page, "markdown": rule.page},
            "defaultConfiguration": {"level": rule.severity},
            "properties": _properties(rule),
        }
        for rule in RULES
    ]


def _properties(rule: Rule) -> dict[str, Any]:
    """The rule's family as a tag; of security rules also how grave they are, by which GitHub sorts."""
    found: dict[str, Any] = {"tags": [FAMILIES[rule.code[0]].partition(":")[0]], "reads": rule.needs}
    if rule.code.startswith("S"):
        found["security-severity"] = _GRAVITY[rule.severity]
    return found


_GRAVITY = {"error": "9.0", "warning": "5.0", "note": "2.0"}


class _Artifacts:
    """The files, and what in them findings are about, each once."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._files: dict[str, int] = {}
        self._members: dict[tuple[int, str], int] = {}

    def add(self, path: str, data: Mapping[str, Any]) -> int:
        """The index of the file at *path*, about which *data* is, or about something in it."""
        if path not in self._files:
            self._files[path] = len(self.entries)
            entry: dict[str, Any] = {"location": {"uri": _uri(path)}, "properties": {"answer": data["answer"]}}
            if data["size"]:
                entry["length"] = data["size"]
            self.entries.append(entry)
        return self._files[path]

    def member(self, file: int, name: str) -> int:
        """The index of what is called *name* in the file."""
        if (file, name) not in self._members:
            self._members[file, name] = len(self.entries)
            self.entries.append({"location": {"uri": quote(name, errors="surrogatepass")}, "parentIndex": file})
        return self._members[file, name]


def _result(finding: Mapping[str, Any], path: str, prefix: str, file: int, artifacts: _Artifacts) -> dict[str, Any]:
    offset, tensor = finding["offset"], finding["tensor"]
    member = ": ".join(part for part in (prefix, finding["member"]) if part)
    place: dict[str, Any] = {"artifactLocation": {"uri": _uri(path), "index": file}}
    location: dict[str, Any] = {"physicalLocation": place}
    result: dict[str, Any] = {
        "ruleId": finding["code"],
        "level": finding["severity"],
        "message": {"text": printable(f"{finding['message']}. {finding['remedy']}".rstrip(". ") + ".")},
        "locations": [location],
        "properties": {"evidence": finding["evidence"]},
    }
    logical = [_logical(path, member, "member")] if member else []
    if tensor:
        logical.append(_logical(path, tensor, "tensor"))
    if logical:
        location["logicalLocations"] = logical
    if member:
        inner: dict[str, Any] = {"artifactLocation": {"index": artifacts.member(file, member)}}
        if offset is not None:
            inner["region"] = {"byteOffset": offset}
        result["relatedLocations"] = [{"id": 0, "physicalLocation": inner}]
    elif offset is not None:
        place["region"] = {"byteOffset": offset}
    if "fingerprint" in finding:
        result["partialFingerprints"] = {"ckptFinding/v2": finding["fingerprint"]}
    return result


def _logical(path: str, name: str, kind: str) -> dict[str, str]:
    shown = printable(name)
    return {"name": shown, "fullyQualifiedName": f"{printable(path)}::{shown}", "kind": kind}


def _uri(path: str) -> str:
    """*path* as a URI reference, relative where the path is."""
    if "://" in path:
        return quote(path, safe=":/?#[]@!$&'()*+,;=%")
    if os.path.isabs(path):
        return PurePath(path).as_uri()
    return quote(path.replace(os.sep, "/"), errors="surrogatepass")
