"""Text for a terminal or a pipe."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ckpt_tools.report import (
    HEAT_EDGES,
    Block,
    Facts,
    HeatMap,
    Histogram,
    Report,
    Table,
    Tree,
    number,
    one_line,
    printable,
    shade,
    sparkline,
)

MIN_WIDTH = 40
MIN_CELLS = (16, 9)
"""How narrow a column of text may become, first and if need be."""
LONGEST_WORD = 32
"""Characters of a word that stays whole as long as there is room."""


def render(reports: Sequence[Report], command: str, width: int, color: bool) -> str:
    """The reports one after the other. Colour only repeats what the words say."""
    return "\n".join(_report(report, width, color) for report in reports)


def _report(report: Report, width: int, color: bool) -> str:
    parts = [_bold(one_line(report.title), color) + (f": {one_line(report.verdict)}" if report.verdict else "")]
    parts += [text for block in report.blocks if (text := _block(block, width, color))]
    return "\n\n".join(parts) + "\n"


def _bold(text: str, color: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if color and text else text


def _block(block: Block, width: int, color: bool) -> str:
    block = plain(block)
    lines = _facts(block, width) if isinstance(block, Facts) else _table(block, width)
    if not lines:
        return ""
    if block.note:
        lines += _wrapped(block.note, width, "  ", "  ")
    heading = [_bold(block.title, color)] if block.title else []
    return "\n".join(heading + lines)


def _facts(block: Facts, width: int) -> list[str]:
    label_width = max((len(one_line(label)) for label, _ in block.rows), default=0)
    lines: list[str] = []
    for label, value in block.rows:
        start = f"  {one_line(label):<{label_width}}  "
        for line in printable(value).splitlines() or [""]:
            lines += _wrapped(line, width, start, " " * len(start))
            start = " " * len(start)
    return lines


def plain(block: Block) -> Facts | Table:
    """*block* in characters alone: a tree indented, a heat map and a histogram as bars of a line's height."""
    match block:
        case Tree():
            return Table(
                block.title, block.columns, [("  " * d + row[0], *row[1:]) for d, row in block.rows], block.note
            )
        case HeatMap():
            strips = [(label, _strip([value for _, value in cells])) for label, cells in block.rows]
            return Facts(block.title, [*strips, ("", _legend(block))] if strips else [], block.note)
        case Histogram():
            bars = f"{number(block.edges[0])} {sparkline(block.counts)} {number(block.edges[-1])}"
            return Facts(block.title, [("", bars)], block.note)
    return block


def _strip(values: Sequence[float], length: int = 64) -> str:
    cells = "".join(
        "?" if math.isnan(v) else "∞" if math.isinf(v) else "▁▂▃▄▅▆▇█"[shade(v)] if v else "·" for v in values
    )
    return "\n".join(cells[at : at + length] for at in range(0, len(cells), length))


def _legend(block: HeatMap) -> str:
    values = [value for _, cells in block.rows for _, value in cells]
    parts = [f"▁ below {number(HEAT_EDGES[0])}, a step each tenfold, █ from {number(HEAT_EDGES[-1])}"]
    parts += ["· 0"] * (0.0 in values)
    parts += ["∞ infinite"] * (math.inf in values)
    parts += ["? not comparable"] * any(map(math.isnan, values))
    return f"{block.measure}: {', '.join(parts)}" if block.measure else ", ".join(parts)


def _wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    """*text* broken at spaces to *width* columns (0: not at all), after the indents *first* and *rest*."""
    if not width or len(first) + len(text) <= width:
        return [first + text]
    from textwrap import wrap

    return wrap(text, max(width, MIN_WIDTH), initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def _table(block: Table, width: int) -> list[str]:
    if not block.rows:
        return []
    names = [name.removeprefix(">") for name in block.columns]
    align = ["right" if name.startswith(">") else "left" for name in block.columns]
    rows = [[printable(cell) for cell in row] for row in block.rows]
    # columns in which nothing stands say nothing
    used = [i for i in range(len(names)) if any(row[i].strip() for row in rows)]
    if width:
        _fit(rows, names, [i for i in used if align[i] == "left"], used, width)
    lines = ["  " + line for line in _aligned([names, *rows], used, align)]
    return [_cut(line, width) for line in lines] if width else lines


def _aligned(rows: Sequence[Sequence[str]], used: Sequence[int], align: Sequence[str]) -> list[str]:
    """The columns *used* of *rows*, two spaces apart; a cell of several lines makes the row as high.

    tabulate would do, but its import takes as long as all of `ckpt inspect`.
    """
    cells = [[row[i].splitlines() or [""] for i in used] for row in rows]
    widths = [max(len(line) for row in cells for line in row[at]) for at in range(len(used))]
    lines: list[str] = []
    for row in cells:
        for level in range(max(map(len, row))):
            parts = [cell[level] if level < len(cell) else "" for cell in row]
            padded = [
                part.rjust(wide) if align[i] == "right" else part.ljust(wide)
                for part, wide, i in zip(parts, widths, used, strict=True)
            ]
            lines.append("  ".join(padded).rstrip())
    return lines


def _fit(rows: list[list[str]], names: Sequence[str], texts: Sequence[int], used: Sequence[int], width: int) -> None:
    """Break the cells of the widest columns of text until the table is *width* columns wide."""
    widths = {i: max(len(names[i]), *(len(row[i]) for row in rows)) for i in used}
    # a hash may be broken; and what continues a cell is indented
    words = {i: [len(word) + 1 for row in rows for word in row[i].split() if len(word) <= LONGEST_WORD] for i in texts}
    wanted = dict(widths)
    for least, whole in (*((least, True) for least in MIN_CELLS), (MIN_CELLS[-1], False)):
        # words stay whole as long as that is enough
        floors = {i: max(least, len(names[i]), max(words[i], default=0) if whole else 0) for i in texts}
        excess = 2 * len(used) + sum(wanted.values()) - max(width, MIN_WIDTH)
        while excess > 0 and (wide := [i for i in texts if wanted[i] > floors[i]]):
            # the widest gives way, down to the next, so that no column pays for all of them
            widest, *others = sorted(wide, key=lambda i: -wanted[i])
            next_to_it = wanted[others[0]] if others else 0
            step = min(excess, wanted[widest] - max(floors[widest], min(next_to_it, wanted[widest] - 1)))
            wanted[widest] -= step
            excess -= step
    for i in texts:
        if wanted[i] < widths[i]:
            for row in rows:
                row[i] = "\n".join(_wrapped_cell(row[i], wanted[i]))


def _wrapped_cell(text: str, width: int) -> list[str]:
    if len(text) <= width:
        return [text]
    from textwrap import wrap

    indent = " " * (len(text) - len(text.lstrip(" ")))
    return wrap(text, width, subsequent_indent=indent + " ", break_on_hyphens=False)


def _cut(line: str, width: int) -> str:
    return line if len(line) <= max(width, MIN_WIDTH) else line[: max(width, MIN_WIDTH) - 1] + "…"
