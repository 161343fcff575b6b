"""What every reporting command shares: finding its inputs, its output options, and writing the result."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click

from ckpt_tools.atomic import replacing
from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.cli import tell
from ckpt_tools.errors import Ambiguous, CkptError, NotACheckpoint, NotFound
from ckpt_tools.formats import looks_like_checkpoint, open_checkpoint
from ckpt_tools.render import render
from ckpt_tools.report import Report, listed
from ckpt_tools.sources import is_url, matching


def output_options(*formats: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add ``--format`` (one of *formats*, the first by default) and ``-o`` to a command."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.option(
            "-o", "--output", type=click.Path(dir_okay=False), help="Write to this file, not to standard output."
        )(function)
        return click.option(
            "--format",
            "format",
            type=click.Choice(formats),
            default=formats[0],
            show_default=True,
            help="Output format.",
        )(function)

    return add


def report_each(paths: Sequence[str], make: Callable[[Checkpoint], Report]) -> tuple[list[Report], int]:
    """The reports of all files, and 2 where one could not be read (each told on standard error), else 0."""
    reports: list[Report] = []
    code = for_each(paths, lambda path, checkpoint: reports.append(make(checkpoint)))
    return reports, code


def for_each(paths: Sequence[str], do: Callable[[str, Checkpoint], None]) -> int:
    """Call *do* with every file that *paths* name; 2 where that failed for one (told on standard error), else 0."""
    code = 0
    for path in paths:
        try:
            matches = list(expand(path))
        except CkptError as error:
            tell(str(error))
            code = 2
            continue
        for match in matches:
            try:
                do(match, open_checkpoint(match))
            except CkptError as error:
                tell(str(error.at(path=match)))
                code = 2
    return code


def expand(path: str) -> Iterator[str]:
    """The files that *path* names: a glob expanded, a folder walked for what is or claims to be a checkpoint.

    Raises `NotFound` where it names nothing, `NotACheckpoint` for a folder without any.
    """
    matches = [path] if path == "-" or is_url(path) or os.path.lexists(path) else matching(path)
    if not matches:
        raise NotFound("no such file", path=path)
    for match in matches:
        if os.path.isdir(match):
            yield from _in_folder(match)
        else:
            yield match


def the_one(path: str) -> Checkpoint:
    """The checkpoint at `path_of_one`."""
    return open_checkpoint(path_of_one(path))


def path_of_one(path: str) -> str:
    """*path*, or where that is a folder and no checkpoint itself, the path of the only one in it.

    Raises `Ambiguous` where there are several, and what `expand` raises.
    """
    if not os.path.isdir(path) or looks_like_checkpoint(path):
        return path
    first, *more = expand(path)
    if more:
        names = [os.path.relpath(other, path) for other in (first, *more)]
        raise Ambiguous(f"{len(names):,} checkpoints are in this folder: {listed(names)}", path=path, remedy="Name one")
    return first


def _in_folder(folder: str) -> Iterator[str]:
    if looks_like_checkpoint(folder):
        yield folder
        return
    found = False
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in [*folders, *sorted(names)]:
            path = os.path.join(root, name)
            if looks_like_checkpoint(path):
                found = True
                yield path
                if name in folders:
                    folders.remove(name)
    if not found:
        raise NotACheckpoint("no checkpoint is in this folder or below it", path=folder)


def emit(reports: Sequence[Report], *, command: str, format: str, output: str | None) -> None:
    """Render and write: to *output*, whole or not at all and over no checkpoint, or to standard output."""
    if output is not None:
        check_place(output)
        with replacing(output) as file:
            file.write(render(reports, format, command=command).encode("utf-8", "backslashreplace"))
        return
    # other programs take UTF-8, whatever the terminal's encoding
    _write(render(reports, format, command=command, **_look()), None if format == "text" else "utf-8")


def check_place(path: str, *written: str) -> None:
    """Raise `CkptError` where text at *path* would replace a checkpoint, or one of those about to be *written*."""
    if looks_like_checkpoint(path) or os.path.realpath(path) in map(os.path.realpath, written):
        raise CkptError("is a checkpoint, which no report replaces", path=path)


def emit_each(reports: Iterable[Report], *, command: str) -> None:
    """Write *reports* as text to standard output, each as soon as it is there."""
    for number, report in enumerate(reports):
        _write(("\n" if number else "") + render([report], "text", command=command, **_look()))


def _look() -> dict[str, Any]:
    """The width and the colours that standard output has room for."""
    terminal = sys.stdout.isatty()
    color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return {"width": _width(terminal), "color": color}


def _write(text: str, encoding: str | None = None) -> None:
    sys.stdout.buffer.write(text.encode(encoding or sys.stdout.encoding or "utf-8", "backslashreplace"))
    sys.stdout.flush()


def _width(terminal: bool) -> int:
    """The columns to fill: COLUMNS where set, else those of the terminal; 0 (no limit) in a pipe."""
    try:
        return int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns if terminal else 0
    except (OSError, ValueError):
        return 0
