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
from importlib.resources import files
from itertools import pairwise

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup, escape

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
from ckpt_tools.version import VERSION

LONG = 56
"""Characters without a space up to which a cell is not broken within a word."""

PROSE = 24
"""Characters of a text from which its column is not squeezed to the width of a word."""

TONES = {
    "good": ("trainable", "identical", "equal", "ok", "pass"),
    "calm": ("frozen", "moved", "renamed", "note", "info"),
    "warm": ("changed", "warning", "mixed", "partial", "differs", "needs classes"),
    "bad": ("error", "removed", "missing", "fail", "dangerous", "contradiction"),
    "new": ("added", "new"),
}
"""Words that get a colour in a column in which every cell begins with one, or with a number of them."""

PLAIN = ("tensors only", "no pickle", "unknown", "unchanged", "untouched", "buffers", "tied", "empty")
"""Words that stand among those in such columns and get no colour."""

_TONE = {word: tone for tone, words in (*TONES.items(), ("plain", PLAIN)) for word in words}
_STATE = re.compile(r"(?:[\d,]+ )?([a-z]+)(?![^ ,:])")
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
        heading=next((report.verdict for report in reports if report.summary), f"{len(reports):,} files"),
        version=VERSION,
        style=Markup((page / "page.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        grid=_grid,
        heat=_heat,
        widest=lambda block: max(len(cells) for _, cells in block.rows),
        code=_code,
        state=_state,
        tone=_tone,
        tally=_tally,
        heat_edges=[f"−{-math.log10(edge):.0f}" for edge in HEAT_EDGES],
        bars=_bars,
    )


def _finalize(value: object) -> object:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _code(text: str) -> Markup:
    """A sentence with what stands between backticks as code."""
    parts = printable(text).replace("``", "`").split("`")
    if len(parts) % 2 == 0:  # a backtick that is part of a name
        return escape(printable(text))
    return Markup("").join(Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts))


def _tone(verdict: str) -> str:
    """The tone of a verdict: that of the findings that it counts, where these are graver than its first word."""
    if re.search(r"\b\d[\d,]* errors?\b|^(?:unknown|not examined)\b", verdict):
        return "bad"
    return _state(verdict)


def _tally(verdict: str) -> Markup:
    """A verdict with the numbers of errors and warnings in their colours."""
    text = str(_code(verdict))
    text = re.sub(r"\b(\d[\d,]* errors?)\b", r'<span class="state bad">\1</span>', text)
    return Markup(re.sub(r"\b(\d[\d,]* warnings?)\b", r'<span class="state warm">\1</span>', text))


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


@dataclass(slots=True)
class _Grid:
    """The columns in which something stands, each row's depth and cells in them, and those of the total."""

    columns: list[_Column]
    rows: list[tuple[int, list[_Cell]]]
    total: list[_Cell]
    folds: bool


def _grid(block: Table | Tree) -> _Grid:
    rows = block.rows if isinstance(block, Tree) else [(0, row) for row in block.rows]
    columns = [
        _Column(name.removeprefix(">"), _kind(name, at, [cells[at] for _, cells in rows]), at)
        for at, name in enumerate(block.columns)
        if at == 0 or any(cells[at].strip() for _, cells in rows)
    ]
    made = [(depth, [_cell(cells[column.at], column.kind) for column in columns]) for depth, cells in rows]
    total = made.pop()[1] if len(made) > 1 and made[-1][1][0].text == "total" else []
    return _Grid(columns, made, total, any(depth for depth, _ in made))


def _kind(name: str, at: int, cells: Sequence[str]) -> str:
    filled = [cell for cell in cells if cell.strip()]
    if name.startswith(">"):
        return "share" if filled and all(_SHARE.fullmatch(cell) for cell in filled) else "number"
    if at == 0:  # a column of names, but for what comes one to a verdict
        return "state" if filled and all(cell in _TONE for cell in filled) else "name"
    if filled and all(set(cell) <= set(_BARS) for cell in filled):
        return "bars"
    if filled and all(len(cell) <= PROSE * 2 and _state(cell) for cell in filled):
        return "state"
    return "code" if all(" " not in cell for cell in filled) and any("." in cell for cell in filled) else "text"


def _state(text: str) -> str:
    """The tone of a cell such as ``frozen`` or ``19 changed, 4 removed``; "" where it begins with no known word."""
    found = _STATE.match(text)
    return _TONE.get(text.partition(";")[0]) or (_TONE.get(found[1], "") if found else "")


def _cell(text: str, kind: str) -> _Cell:
    if kind == "share" and (share := _SHARE.fullmatch(text)):
        return _Cell(text, kind, share[1])
    if kind == "state" and text:
        return _Cell(text, kind, _state(text))
    if kind == "bars":
        heights = [_BARS.index(bar) for bar in text]
        return _Cell(text, kind, "".join(f"M{x} 8v-{h}h1v{h}" for x, h in enumerate(heights) if h))
    if kind == "text" and len(text) > PROSE:
        kind = "prose"
    return _Cell(text, kind, "long" if any(len(word) > LONG for word in text.split()) else "")


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
    spans = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
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
    return _Bars(bars, zero, f"{edges[0]:.3g}", f"{edges[-1]:.3g}", told)
