"""GitLab's code quality report: a JSON list of findings, which a merge request shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ckpt_tools.audit.results import artifact, place
from ckpt_tools.report import Report

_SEVERITIES = {"error": "critical", "warning": "major", "note": "info"}


def render(reports: Sequence[Report], command: str, width: int, color: bool) -> str:
    """An entry a finding, and one for each file that could not be examined."""
    entries: list[dict[str, Any]] = []
    for report in reports:
        data: Any = report.data
        path, prefix = artifact(data)
        if data["failure"]:
            mark = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:32]
            entries.append(_entry(path, "not-examined", data["failure"], "blocker", mark))
        for finding in data["findings"]:
            where = place(finding, prefix)
            text = f"{where}: {finding['message']}" if where else finding["message"]
            severity = _SEVERITIES[finding["severity"]]
            if finding["code"].startswith("S") and severity == "critical":
                severity = "blocker"
            name = f"{finding['code']} {finding['name']}"
            entries.append(_entry(path, name, text, severity, finding["fingerprint"]))
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def _entry(path: str, name: str, text: str, severity: str, fingerprint: str) -> dict[str, Any]:
    return {
        "description": text,
        "check_name": name,
        "fingerprint": fingerprint,
        "severity": severity,
        "location": {"path": path, "lines": {"begin": 1}},
    }
