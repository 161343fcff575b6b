"""What a command has to say, before it is text, JSON or a page: `Report`.

The *data* of a report is what machines read; its *blocks* are what people read. Renderers turn either into
output and add nothing of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ckpt_tools.records import record


@record
class Facts:
    """Labelled single values: ``[("format", "PyTorch zip archive"), …]``. A value may have several lines."""

    title: str
    rows: Sequence[tuple[str, str]]
    note: str = ""


@record
class Table:
    """Rows under column names. A name that begins with ``>`` is of a column of numbers, set to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@record
class Tree:
    """A table whose rows lie in one another: each is its depth (0 for the outermost) and its cells.

    The first column is the one that is indented. A row's children follow it, one level deeper.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[int, Sequence[str]]]
    note: str = ""


PAGE_ROWS = 1000
"""Rows that a tree may have on a page, where its branches fold; text shows what fits a screen."""


@record
class HeatMap:
    """One cell a thing, such as a tensor, under the label of its row: ``[("layer1.0", [("conv1.weight", 0.02)])]``.

    A value is 0 or more, such as a relative change, and is shown on a logarithmic scale; 0, infinity and NaN (not
    comparable) have looks of their own. *measure* says what the values are.
    """

    title: str
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]
    measure: str = ""
    note: str = ""


HEAT_EDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Where one shade of a heat map ends and the next begins, for every map alike, so that maps can be compared."""


def shade(value: float) -> int:
    """The shade, 0 to 7, of a finite *value* above 0 in a heat map."""
    return sum(value >= edge for edge in HEAT_EDGES)


@record
class Histogram:
    """How many fall between each edge and the next: *edges*, rising, are one more than *counts*."""

    title: str
    edges: Sequence[float]
    counts: Sequence[int]
    note: str = ""


Block = Facts | Table | Tree | HeatMap | Histogram


@record
class Report:
    """The answer of a command for one file: *title* names it, *verdict* is the answer in a sentence.

    *collect* makes the data for machines, when a renderer asks for it. A *summary* is about all the others.
    """

    title: str
    collect: Callable[[], Mapping[str, object]]
    blocks: Sequence[Block] = ()
    verdict: str = ""
    summary: bool = False

    @property
    def data(self) -> Mapping[str, object]:
        """What machines read."""
        return self.collect()


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 tensor``, ``1,024 tensors``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(names: Sequence[str], shown: int = 6) -> str:
    """The first of *names*, which may be anything a file has in their place, and how many more there are."""
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(map(shortened, names[:shown])) + more


def shortened(name: str, length: int = 200) -> str:
    """*name*, which comes from a file, on one line and no longer than *length*, to be put into a message."""
    text = name if len(name) <= length else f"{name[: length - 1]}…"
    return text if text.isprintable() else repr(text)[1:-1]


def printable(text: str) -> str:
    """*text* with what would steer a terminal or turn the reading direction made visible: names are hostile."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """*text* as `printable`, on one line: a name of several could otherwise write lines of its own into a log, where
    programs such as GitHub's runner look for commands.
    """
    return printable(text).replace("\n", "\\n")


def sparkline(histogram: Sequence[int]) -> str:
    """A histogram as text, a character a bin: a space where it is empty, else one of eight heights."""
    top = max(histogram, default=0)
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * count // top)] if count else " " for count in histogram)


def size(nbytes: int) -> str:
    """Bytes for people, in powers of 1000 as disks and downloads count them: ``44.7 MB``."""
    if nbytes < 1000:
        return f"{nbytes} B"
    value = float(nbytes)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.95 or unit == "TB":
            return f"{value:,.1f} {unit}"
    raise AssertionError("unreachable")


def number(value: object) -> str:
    """A number as people write it: ``0.001``, ``1e-05``, ``12``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return str(value) if abs(value) < 1 << 63 else "an integer beyond 64 bits"
    return f"{value:.6g}"


def plain_json(value: object) -> object:
    """*value* with NaN and infinities as the strings ``NaN``, ``Infinity``, ``-Infinity``, as JSON has none."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 64:
        return hex(value) if value.bit_length() < 4096 else "an integer beyond 4096 bits"
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return value
