"""What git asks for: the lines of a file (``textconv``) and the report of a change (an external diff driver).

git takes any exit code but 0 for a crash and stops in the middle of its own output, so what can be told is told on
standard output with code 0, a file that is no checkpoint included.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.errors import CkptError
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.report import Report
from ckpt_tools.sources import Folder, open_source


def textconv(path: str) -> None:
    """Print the lines of the file at *path* that git is to compare. Raises `NotFound` where there is none."""
    from ckpt_tools.analysis.listing import listing, unreadable

    source = open_source(path)
    try:
        for line in listing(open_checkpoint(source)):
            _print(line)
    except CkptError as error:
        for line in unreadable(None if isinstance(source, Folder) else source, error):
            _print(line)


def is_external_diff(arguments: Sequence[str]) -> bool:
    """Whether these are the arguments of a diff driver: 7, 9 for a renamed file, 1 for an unmerged one."""
    return len(arguments) in (7, 9) or (len(arguments) == 1 and "GIT_DIFF_PATH_TOTAL" in os.environ)


def external_diff(arguments: Sequence[str]) -> tuple[str | None, str | None, str]:
    """The old and the new file, None for one that does not exist, and what git calls them: ``a/net.pt → b/net.pt``.

    git passes ``path old-file old-hex old-mode new-file new-hex new-mode``, for a renamed file also its new path and
    a description, and for an unmerged file the path alone (gitattributes(5), "Defining an external diff driver").
    The files are temporary copies or those of the work tree; ``/dev/null`` stands for none.
    """
    path, *rest = arguments
    if not rest:
        return None, None, path
    sides = ((f"a/{path}", rest[0], rest[2]), (f"b/{rest[6] if len(rest) > 6 else path}", rest[3], rest[5]))
    files = [None if file == os.devnull or mode == "." else file for _, file, mode in sides]
    label = " → ".join(name for (name, _, _), file in zip(sides, files, strict=True) if file is not None)
    return files[0], files[1], label


def report_external_diff(arguments: Sequence[str], compare: Callable[[Checkpoint, Checkpoint], Report]) -> Report:
    """The report of an external diff, by *compare* where there are two files; one that cannot be read is told in it."""
    from ckpt_tools.analysis.overview import overview

    old, new, label = external_diff(arguments)
    names = iter(label.split(" → "))
    opened: list[Checkpoint] = []
    name = label
    try:
        for file in filter(None, (old, new)):
            name = next(names)
            opened.append(replace(open_checkpoint(file), path=name))
        if len(opened) == 2:
            return compare(*opened)
        if not opened:
            return Report(label, dict, verdict="unmerged")
        report = overview(opened[0])
        return replace(report, verdict=f"{'added' if old is None else 'removed'}: {report.verdict}")
    except CkptError as error:
        return Report(label, dict, verdict=f"{name} cannot be compared: {error.problem}")


def _print(line: str) -> None:
    sys.stdout.buffer.write(line.encode("utf-8", "backslashreplace") + b"\n")
