"""CSV: the rows of the reports, a header first, numbers plain."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from ckpt_tools.report import Report


def render(reports: Sequence[Report], command: str, width: int, color: bool) -> str:
    """The ``rows`` of each report's data, under the names of the first; the file's path comes first."""
    out = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for report in reports:
        rows = report.data.get("rows")
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, Mapping):
                line = {"file": report.title, **row}
                if writer is None:
                    writer = csv.DictWriter(out, list(line), lineterminator="\n")
                    writer.writeheader()
                writer.writerow({key: _harmless(value) for key, value in line.items()})
    return out.getvalue()


def _harmless(value: object) -> object:
    """Text that a spreadsheet would take for a formula, quoted: names come from hostile files."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value
