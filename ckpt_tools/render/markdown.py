"""Markdown as GitHub shows it."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from ckpt_tools.render.text import plain
from ckpt_tools.report import Block, Facts, Report, one_line, printable

_PIPE = "\\|"  # which ends a cell, in code too
_ESCAPES = str.maketrans({c: "\\" + c for c in "\\`*_{}[]<>#|~"})


def render(reports: Sequence[Report], command: str, width: int, color: bool) -> str:
    """A heading a report, a table a block."""
    return "\n".join(_report(report) for report in reports)


def _report(report: Report) -> str:
    parts = [f"## {_escape(one_line(report.title))}"]
    if report.verdict:
        parts.append(_escape(one_line(report.verdict)))
    parts += [text for block in report.blocks if (text := _block(block))]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    block = plain(block)
    if not block.rows:
        return ""
    columns = ("", "") if isinstance(block, Facts) else block.columns
    lines = [f"### {_escape(block.title)}\n"] if block.title else []
    lines.append(
        tabulate(
            [[_cell(cell) for cell in row] for row in block.rows],
            headers=[name.removeprefix(">") for name in columns],
            colalign=["right" if name.startswith(">") else "left" for name in columns],
            tablefmt="pipe",
            disable_numparse=True,
        )
    )
    if block.note:
        lines.append(f"\n{_escape(block.note)}")
    return "\n".join(lines)


def _cell(text: str) -> str:
    indent = len(text) - len(text.lstrip(" "))
    return "&nbsp;" * indent + _escape(text.strip()).replace("\n", "<br>")


def _escape(text: str) -> str:
    """*text* as it stands, but for what stands between backticks, which is code."""
    parts = printable(text).replace("``", "`").split("`")
    if len(parts) % 2 == 0 or not all(part.strip() for part in parts[1::2]):  # a backtick that is part of a name
        return printable(text).translate(_ESCAPES)
    return "".join(
        f"`{part.replace('|', _PIPE)}`" if at % 2 else part.translate(_ESCAPES) for at, part in enumerate(parts)
    )
