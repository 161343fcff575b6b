"""JUnit XML: a suite a file; a test case a finding, or where there are checks (``ckpt verify``) a case a check.

A file without findings passes one case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from ckpt_tools.report import Report, printable


def render(reports: Sequence[Report], command: str, width: int, color: bool) -> str:
    """Findings of severity error and warning are failures, notes are output of a case that passes."""
    root = ElementTree.Element("testsuites", name=f"ckpt {command}")
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for report in reports:
        suite, counts = _suite(report.data)
        root.append(suite)
        for key, number in counts.items():
            totals[key] += number
    root.attrib |= {key: str(number) for key, number in totals.items()}
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(data: Any) -> tuple[ElementTree.Element, dict[str, int]]:
    path = _text(data["path"])
    suite = ElementTree.Element("testsuite", name=path)
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}

    def case(name: str) -> ElementTree.Element:
        counts["tests"] += 1
        return ElementTree.SubElement(suite, "testcase", classname=path, name=_text(name))

    for check in data.get("checks", ()):
        one = case(check["name"])
        one.attrib["time"] = f"{check['seconds']:.3f}"
        text = _text("\n".join(_said(problem) for problem in check["problems"]) or check["message"])
        if check["verdict"] == "failed":
            counts["failures"] += 1
            ElementTree.SubElement(one, "failure", type="error", message=_text(check["message"])).text = text
        elif check["verdict"] == "skipped":
            counts["skipped"] += 1
            ElementTree.SubElement(one, "skipped", message=_text(check["message"]))
        else:
            ElementTree.SubElement(one, "system-out").text = text
    for finding in data["findings"]:
        place = ", ".join(
            str(part) for part in (finding["member"], finding["tensor"]) if part
        )  # the offset changes from file to file, a case's name should not
        one = case(f"{finding['code']} {finding['name']}" + (f" ({place})" if place else ""))
        where = f"{place}, byte {finding['offset']:,}" if finding["offset"] is not None else place
        text = _text(f"{where}\n{finding['message']}\n{finding['remedy']}".strip())
        if finding["severity"] == "note":
            ElementTree.SubElement(one, "system-out").text = text
        else:
            counts["failures"] += 1
            message = _text(finding["message"])
            ElementTree.SubElement(one, "failure", type=finding["severity"], message=message).text = text
    if data["failure"]:
        counts["errors"] += 1
        ElementTree.SubElement(case("audit"), "error", type="error", message=_text(data["failure"]))
    elif data["skipped"]:
        counts["skipped"] += 1
        ElementTree.SubElement(case("audit"), "skipped", message=_text(data["skipped"]))
    elif not data["findings"] and "checks" not in data:
        case("audit")
    suite.attrib |= {key: str(number) for key, number in counts.items()}
    return suite, counts


def _said(problem: Any) -> str:
    text = f"{problem['severity']} {problem['code']}: {problem['message']}"
    return f"{text}\n{problem['remedy']}" if problem["remedy"] else text


def _text(text: str) -> str:
    """*text* without the characters that XML has not."""
    return printable(text).encode("utf-8", "backslashreplace").decode()
