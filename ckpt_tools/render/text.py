"""Text for a terminal or a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from ckpt_tools.report import Block, Facts, Report, Table

MIN_WIDTH = 40


def render(reports: Sequence[Report], command: str, width: int, color: bool) -> str:
    """The reports one after the other. Colour only repeats what the words say."""
    return "\n".join(_report(report, width, color) for report in reports)


def _report(report: Report, width: int, color: bool) -> str:
    parts = [_bold(report.title, color) + (f": {report.verdict}" if report.verdict else "")]
    parts += [text for block in report.blocks if (text := _block(block, width, color))]
    return "\n\n".join(parts) + "\n"


def _bold(text: str, color: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if color and text else text


def _block(block: Block, width: int, color: bool) -> str:
    body = _facts(block) if isinstance(block, Facts) else _table(block)
    if not body:
        return ""
    lines = [line if not width else _cut(line, width) for line in body.splitlines()]
    note = getattr(block, "note", "")
    if note:
        lines.append(f"  {note}")
    heading = [_bold(block.title, color)] if block.title else []
    return "\n".join(heading + lines)


def _facts(block: Facts) -> str:
    if not block.rows:
        return ""
    label_width = max(len(label) for label, _ in block.rows)
    lines: list[str] = []
    for label, value in block.rows:
        first, *rest = _printable(value).splitlines() or [""]
        lines.append(f"  {label:<{label_width}}  {first}")
        lines += [f"  {'':<{label_width}}  {line}" for line in rest]
    return "\n".join(lines)


def _table(block: Table) -> str:
    if not block.rows:
        return ""
    names = [name.removeprefix(">") for name in block.columns]
    align = ["right" if name.startswith(">") else "left" for name in block.columns]
    rows = [[_printable(cell) for cell in row] for row in block.rows]
    # columns in which nothing stands say nothing
    used = [i for i in range(len(names)) if any(row[i].strip() for row in rows)]
    body = tabulate(
        [[row[i] for i in used] for row in rows],
        headers=[names[i] for i in used],
        colalign=[align[i] for i in used],
        tablefmt="plain",
        disable_numparse=True,
        preserve_whitespace=True,
    )
    return "\n".join("  " + line.rstrip() for line in body.splitlines())


def _cut(line: str, width: int) -> str:
    return line if len(line) <= max(width, MIN_WIDTH) else line[: max(width, MIN_WIDTH) - 1] + "…"


def _printable(text: str) -> str:
    """*text* with what would steer the terminal made visible: names come from hostile files."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
