"""HTML: one file that needs nothing else, neither a network nor a script to be read.

Everything from a report passes two gates: `printable`, then jinja2's escaping. Behind them the page forbids, by its
own Content-Security-Policy, every script but its own and every address.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from itertools import pairwise

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

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
    printable,
    shade,
)

LONG = 32
"""Characters without a space from which a cell is broken wherever it must be."""

NARROW = 14
"""Cells in a row up to which a heat map stands in two columns."""

TONES = {
    "good": ("trainable", "identical", "same", "equal", "ok", "pass", "recorded"),
    "calm": ("frozen", "moved", "renamed", "note", "info", "inferred"),
    "warm": ("changed", "warning", "mixed", "partial", "differs"),
    "bad": ("error", "removed", "missing", "fail", "dangerous", "contradiction"),
    "new": ("added", "new"),
}
"""Words that colour a cell of the columns `STATES` that begins with one."""

STATES = ("status", "verdict", "severity", "change")

_TONE = {word: tone for tone, words in TONES.items() for word in words}
_BARS = " ▁▂▃▄▅▆▇█"
_SHARE = re.compile(r"(\d{1,3}(?:\.\d+)?) ?%")


def render(reports: Sequence[Report], command: str, width: int, color: bool) -> str:
    """A page with a section a report."""
    page = files("ckpt_tools.render") / "page"
    script = (page / "page.js").read_text("utf-8")
    environment = Environment(
        loader=DictLoader({"page.html": (page / "page.html").read_text("utf-8")}),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        reports=[(report, list(_grouped(report.blocks))) for report in reports],
        command=command,
        version=version("ckpt-tools"),
        style=Markup((page / "page.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        grid=_grid,
        heat=_heat,
        narrow=lambda block: max(len(cells) for _, cells in block.rows) <= NARROW,
        heat_edges=[f"−{-math.log10(edge):.0f}" for edge in HEAT_EDGES],
        bars=_bars,
    )


def _finalize(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _grouped(blocks: Sequence[Block]) -> Iterator[tuple[str, list[Block]]]:
    """The blocks that have something to show, by kind; histograms that follow each other stand side by side."""
    group: list[Block] = []
    for block in blocks:
        if isinstance(block, Histogram):
            group.append(block)
            continue
        if group:
            yield "histograms", group
            group = []
        if block.rows:
            kind = {Facts: "facts", Table: "table", Tree: "tree", HeatMap: "heat"}[type(block)]
            yield kind, [block]
    if group:
        yield "histograms", group


# --- tables and trees


@dataclass(slots=True)
class _Column:
    """A column that has something in it: *kind* is name, text, code, state, number, share or bars."""

    name: str
    kind: str
    at: int


@dataclass(slots=True)
class _Cell:
    text: str
    kind: str
    look: str = ""


def _grid(block: Table | Tree) -> tuple[list[_Column], list[tuple[int, list[_Cell]]], list[_Cell]]:
    """The columns of *block* in which something stands, each row's depth and cells in them, and the total's."""
    rows = block.rows if isinstance(block, Tree) else [(0, row) for row in block.rows]
    columns = [
        _Column(name.removeprefix(">"), _kind(name, at, [cells[at] for _, cells in rows]), at)
        for at, name in enumerate(block.columns)
        if at == 0 or any(cells[at].strip() for _, cells in rows)
    ]
    made = [(depth, [_cell(cells[column.at], column.kind) for column in columns]) for depth, cells in rows]
    total = made.pop()[1] if len(made) > 1 and made[-1][1][0].text == "total" else []
    return columns, made, total


def _kind(name: str, at: int, cells: Sequence[str]) -> str:
    filled = [cell for cell in cells if cell.strip()]
    if name.startswith(">"):
        return "share" if filled and all(_SHARE.fullmatch(cell) for cell in filled) else "number"
    if at == 0:
        return "name"
    if filled and all(set(cell) <= set(_BARS) for cell in filled):
        return "bars"
    if name in STATES:
        return "state"
    return "code" if all(" " not in cell for cell in filled) and any("." in cell for cell in filled) else "text"


def _cell(text: str, kind: str) -> _Cell:
    if kind == "share" and (share := _SHARE.fullmatch(text)):
        return _Cell(text, kind, share[1])
    long = any(len(word) > LONG for word in text.split())
    if kind == "state" and not long:
        return _Cell(text, kind, _TONE.get(text.partition(" ")[0], "plain"))
    if kind == "bars":
        heights = [_BARS.index(bar) for bar in text]
        return _Cell(text, kind, "".join(f"M{x} 8v-{h}h1v{h}" for x, h in enumerate(heights) if h))
    return _Cell(text, kind, "long" if long else "")


# --- pictures


def _heat(block: HeatMap) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The rows of a heat map: a label and its cells, each a look, a label and its value in words."""
    return [(label, [(*_look(value), name) for name, value in cells]) for label, cells in block.rows]


def _look(value: float) -> tuple[str, str]:
    if math.isnan(value):
        return "nan", "not comparable"
    if math.isinf(value):
        return "inf", "∞"
    return (f"s{shade(value)}", number(value)) if value > 0 else ("zero", "0")


@dataclass(slots=True)
class _Bars:
    """A histogram drawn 100 wide and high; *zero* is where 0 lies on it, if it does."""

    bars: list[tuple[float, float, float, str]]
    zero: float | None
    first: str
    last: str
    told: str


def _bars(block: Histogram) -> _Bars:
    edges, counts = block.edges, block.counts
    top, width = max(counts, default=0) or 1, 100 / max(len(counts), 1)
    spans = [f"{number(low)} to {number(high)}" for low, high in pairwise(edges)]
    bars = [
        (round(at * width, 3), round(width, 3), round(max(100 * n / top, 1.5), 3), f"{span}: {n:,}")
        for at, (n, span) in enumerate(zip(counts, spans, strict=True))
        if n
    ]
    zero = None
    for at, (low, high) in enumerate(pairwise(edges)):
        if low <= 0 < high and (at or low < 0):
            zero = round((at + (0 - low) / (high - low)) * width, 3)
    told = f"{sum(counts):,} values"
    if counts and any(counts):
        told += f", most from {spans[counts.index(top)]}"
    return _Bars(bars, zero, number(edges[0]), number(edges[-1]), told)
