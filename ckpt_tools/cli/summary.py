"""``ckpt summary``: parameters, frozen and trainable, layer by layer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from ckpt_tools.analysis.summary import summarize
from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.cli.model import ModelChoice, model_options
from ckpt_tools.cli.output import emit, output_options, report_each, the_one
from ckpt_tools.cli.progress import progress
from ckpt_tools.report import PAGE_ROWS, Report


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--select", metavar="KEYS", help="The state_dict to sum up, such as model_state_dict.")
@click.option("--base", metavar="PATH", help="Compare with this checkpoint: what changed was trained.")
@click.option("--depth", type=click.IntRange(1), help="Levels of layers to show. [default: what fits a screen]")
@click.option("--sort", type=click.Choice(["parameters", "bytes", "name"]), help="List layers in this order.")
@click.option("--keys", metavar="GLOB", help="Only parameters whose name matches.")
@click.option("--stats", is_flag=True, help="Read the bytes: min, max, mean, std, zeros, NaN, a histogram a tensor.")
@model_options()
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SIZES",
    help="With --model: run it on an input of these sizes, such as 3,224,224 or int64:128. [repeatable]",
)
@click.option(
    "--batch",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="The batch size, put before the sizes of each --input; 0: the sizes are complete.",
)
@output_options("text", "json", "markdown", "html", "csv")
def summary(
    paths: tuple[str, ...],
    select: str | None,
    base: str | None,
    depth: int | None,
    sort: str | None,
    keys: str | None,
    stats: bool,
    model: ModelChoice | None,
    inputs: tuple[str, ...],
    batch: int,
    format: str,
    output: str | None,
) -> None:
    """Count parameters, tell frozen from trainable, and say how that is known.

    A state_dict alone does not record what is trainable: the verdict is then "unknown". Full-model pickles
    record it; an optimizer in the same file, or a --base to compare with, allow to infer it. With --model, the
    class that is built tells its flags, and with --input also the shapes and multiply-adds of each layer.
    """
    older = the_one(base) if base is not None else None
    options: dict[str, Any] = {"select": select, "base": older, "depth": depth, "sort": sort, "keys": keys}
    if format == "html":
        options["screen"] = PAGE_ROWS
    if inputs and model is None:
        raise click.UsageError("--input is for --model")
    make = partial(summarize, **options) if model is None else _with_class(model, inputs, batch, options)
    if stats:
        make = _with_statistics(make, select, keys)
    reports, code = report_each(paths, make)
    if reports:
        emit(reports, command="summary", format=format, output=output)
    sys.exit(code)


def _with_statistics(
    make: Callable[[Checkpoint], Report], select: str | None, keys: str | None
) -> Callable[[Checkpoint], Report]:
    """*make*, and the statistics after it; imports numpy."""
    from ckpt_tools.analysis.number_table import with_statistics

    return lambda checkpoint: with_statistics(make(checkpoint), checkpoint, select=select, keys=keys, progress=progress)


def _with_class(
    model: ModelChoice, inputs: tuple[str, ...], batch: int, options: dict[str, Any]
) -> Callable[[Checkpoint], Report]:
    """`summarize` with the class that the user named; imports torch."""
    from ckpt_tools.runtime.class_summary import summarize_class
    from ckpt_tools.runtime.forward import InputSpec

    build = model.builder()
    specs = [InputSpec.parse(text) for text in inputs]
    return lambda checkpoint: summarize_class(checkpoint, build(checkpoint), specs, batch=batch or None, **options)
