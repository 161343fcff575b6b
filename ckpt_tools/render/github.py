"""Workflow commands, which GitHub's runner turns into annotations of a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckpt_tools.audit.results import artifact, place
from ckpt_tools.report import Report, printable

_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


def render(reports: Sequence[Report], command: str, width: int, color: bool) -> str:
    """A line a finding, and one for each file that could not be examined."""
    lines: list[str] = []
    for report in reports:
        data: Any = report.data
        path, prefix = artifact(data)
        if data["failure"]:
            lines.append(_line("error", path, "not examined", data["failure"]))
        for finding in data["findings"]:
            title = f"{finding['code']} {finding['name']}"
            where = place(finding, prefix)
            text = f"{where}: {finding['message']}" if where else finding["message"]
            if finding["remedy"]:
                text += f"\n{finding['remedy']}"
            lines.append(_line(_COMMANDS[finding["severity"]], path, title, text))
    return "".join(lines)


def _line(command: str, path: str, title: str, text: str) -> str:
    return f"::{command} file={_property(path)},title={_property(title)}::{_data(text)}\n"


def _data(text: str) -> str:
    """*text* in which nothing can end the command or begin another."""
    return printable(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
