"""``ckpt inspect``: what a checkpoint is and what is in it."""

from __future__ import annotations

import sys

import click

from ckpt_tools.analysis.overview import SCREEN_ROWS, overview
from ckpt_tools.cli.git import textconv as print_lines
from ckpt_tools.cli.output import emit, output_options, report_each
from ckpt_tools.report import PAGE_ROWS


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--keys", metavar="GLOB", help="List the tensors whose name matches.")
@click.option("--depth", type=click.IntRange(1), help="Levels of layers to show. [default: what fits a screen]")
@click.option("--textconv", is_flag=True, help="For git diff: a line a tensor, with a digest of its bytes.")
@output_options("text", "json", "markdown", "html")
def inspect(
    paths: tuple[str, ...],
    tensors: bool,
    keys: str | None,
    depth: int | None,
    textconv: bool,
    format: str,
    output: str | None,
) -> None:
    """Say what each checkpoint is, who made it, and what is in it.

    PATH is a file, a folder, a glob, or - for standard input. Nothing the file contains is run, and no
    tensor bytes are read. Exit code 2 if any file could not be read.

    --textconv makes the text of one file that git compares (docs/git.md): it reads all bytes, and has neither
    file name nor offsets in it.
    """
    if textconv:
        if len(paths) != 1:
            raise click.UsageError("--textconv takes one file")
        print_lines(paths[0])
        return
    screen = PAGE_ROWS if format == "html" else SCREEN_ROWS
    reports, code = report_each(
        paths, lambda checkpoint: overview(checkpoint, all_tensors=tensors, keys=keys, depth=depth, screen=screen)
    )
    if reports:
        emit(reports, command="inspect", format=format, output=output)
    sys.exit(code)
