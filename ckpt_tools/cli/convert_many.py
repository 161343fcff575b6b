"""``ckpt convert --out-dir``: many files, one after another told, and what became of them in a table."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import click

from ckpt_tools.cli import tell
from ckpt_tools.cli.output import check_place, emit, expand
from ckpt_tools.cli.progress import progress
from ckpt_tools.convert.many import Done, Options, Task, convert_all, tasks
from ckpt_tools.errors import CkptError
from ckpt_tools.formats import looks_like_checkpoint
from ckpt_tools.report import Report, Table, count, size
from ckpt_tools.sources import is_url

_HOW = {
    "converted": "converted",
    "unchanged": "unchanged since it was converted",
    "compared": "there already, and equal",
    "planned": "would be converted",
}


def convert_many(
    arguments: Sequence[str],
    folder: str,
    suffix: str,
    options: Options,
    *,
    jobs: int,
    dask: str | None,
    report_file: str | None,
) -> int:
    """Convert what *arguments* name into *folder*, and return the exit code."""
    failed: list[tuple[str, CkptError]] = []
    if report_file is not None:
        check_place(report_file)
    todo = tasks(_found(arguments, failed), folder, f".{suffix}")
    done: list[Done] = []
    with progress(sum(task.nbytes for task in todo), "converting") as advance:
        for task, outcome in convert_all(todo, folder, options, jobs=jobs, dask=dask):
            advance(task.nbytes)
            if isinstance(outcome, Done):
                done.append(outcome)
            else:
                failed.append((task.source, outcome))
                _tell(outcome)
    for option, pattern in done[0].unmatched if done else ():
        if all((option, pattern) in item.unmatched for item in done):
            tell(f"{option} {pattern} matches nothing in any of {count(len(done), 'file')}")
    if report_file is not None:
        stories = [_story(item) for item in done] + [_failure(path, error) for path, error in failed]
        emit(stories, command="convert", format="json", output=report_file)
    emit([_summary(folder, todo, done, failed)], command="convert", format="text", output=None)
    if failed or not done:
        return 1 if done else 2
    return 0


def _found(arguments: Sequence[str], failed: list[tuple[str, CkptError]]) -> Iterator[tuple[str, str]]:
    """The paths that *arguments* name, each with the folder that its argument begins at."""
    for argument in arguments:
        if argument == "-":
            raise click.UsageError("standard input has no name to be written under in --out-dir")
        try:
            paths = list(expand(argument))
        except CkptError as error:
            failed.append((argument, error))
            _tell(error)
            continue
        for path in paths:
            yield _begin(argument), path


def _begin(argument: str) -> str:
    if is_url(argument):
        raise click.UsageError("--out-dir is for local files: give a URL a DST of its own")
    if os.path.isdir(argument) and not looks_like_checkpoint(argument):
        return argument
    if os.path.lexists(argument):
        return os.path.dirname(os.path.abspath(argument))
    import glob

    root = argument
    while glob.has_magic(root):
        root = os.path.dirname(root)
    return root or "."


def _tell(error: CkptError) -> None:
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)  # a line of progress
    tell(str(error))


def _summary(
    folder: str, todo: Sequence[Task], done: Sequence[Done], failed: Sequence[tuple[str, CkptError]]
) -> Report:
    rows = []
    for how, words in _HOW.items():
        those = [item for item in done if item.how == how]
        if those:
            tensors, nbytes = sum(item.tensors for item in those), sum(item.nbytes for item in those)
            rows.append((words, f"{len(those):,}", f"{tensors:,}", size(nbytes) if nbytes else ""))
    if failed:
        rows.append(("failed", f"{len(failed):,}", "", ""))
    blocks = [Table("", ("result", ">files", ">tensors", ">size"), rows)]
    if failed:
        blocks.append(Table("Failed", ("what", "why"), [(path, _why(path, error)) for path, error in failed]))
    left = Counter({"things": sum(item.left for item in done), "files": sum(1 for item in done if item.left)})
    if left["things"]:
        what = f"{count(left['things'], 'thing')} that {'is' if left['things'] == 1 else 'are'} no weights"
        blocks[0] = Table("", blocks[0].columns, rows, f"{what} stayed behind; --report names them")
    total = len(todo) + len(failed) - sum(1 for path, _ in failed if any(task.source == path for task in todo))
    verdict = f"{len(done):,} of {count(total, 'checkpoint')}"
    return Report(folder, lambda: {}, blocks, verdict)


def _why(path: str, error: CkptError) -> str:
    return str(error).removeprefix(f"{path}: ")


def _story(done: Done) -> Report:
    known = {"path": done.task.source, "target": done.task.target, "result": done.how}
    return Report(done.task.source, lambda: {**(done.story or {}), **known})


def _failure(path: str, error: CkptError) -> Report:
    return Report(path, lambda: {"path": path, "result": "failed", "error": str(error)})
