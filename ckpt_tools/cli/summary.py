"""``ckpt summary``: parameters, frozen and trainable, layer by layer."""

from __future__ import annotations

import sys

import click

from ckpt_tools.analysis.summary import summarize
from ckpt_tools.cli.output import emit, output_options, report_each
from ckpt_tools.formats import open_checkpoint


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--select", metavar="KEYS", help="The state_dict to sum up, such as model_state_dict.")
@click.option("--base", metavar="PATH", help="Compare with this checkpoint: what changed was trained.")
@click.option("--depth", type=click.IntRange(1), help="Levels of layers to show. [default: what fits a screen]")
@click.option("--sort", type=click.Choice(["parameters", "bytes", "name"]), help="List layers in this order.")
@click.option("--keys", metavar="GLOB", help="Only parameters whose name matches.")
@output_options("text", "json", "markdown", "csv")
def summary(
    paths: tuple[str, ...],
    select: str | None,
    base: str | None,
    depth: int | None,
    sort: str | None,
    keys: str | None,
    format: str,
    output: str | None,
) -> None:
    """Count parameters, tell frozen from trainable, and say how that is known.

    A state_dict alone does not record what is trainable: the verdict is then "unknown". Full-model pickles
    record it; an optimizer in the same file, or a --base to compare with, allow to infer it.
    """
    older = open_checkpoint(base) if base is not None else None
    reports, code = report_each(
        paths,
        lambda checkpoint: summarize(checkpoint, select=select, base=older, depth=depth, sort=sort, keys=keys),
    )
    if reports:
        emit(reports, command="summary", format=format, output=output)
    sys.exit(code)
