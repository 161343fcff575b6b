"""JSON: the data of the reports, under a version number that changes when a field changes its meaning."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ckpt_tools.report import Report

VERSION = 1


def render(reports: Sequence[Report], command: str, width: int, color: bool) -> str:
    """One object: ``{"version": 1, "command": …, "files": […]}``."""
    document = {"version": VERSION, "command": command, "files": [dict(report.data) for report in reports]}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
