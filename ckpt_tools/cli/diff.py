"""``ckpt diff``: what changed between two checkpoints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ckpt_tools.atomic import replacing
from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.cli.git import is_external_diff, report_external_diff
from ckpt_tools.cli.output import complain, emit, output_options, the_one
from ckpt_tools.cli.progress import progress
from ckpt_tools.report import Report

if TYPE_CHECKING:
    from ckpt_tools.analysis.diff import Diff
    from ckpt_tools.analysis.transfer import Breach


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="A B")
@click.option("--select", metavar="KEYS", help="The state_dict to compare, such as model_state_dict.")
@click.option("--select-b", metavar="KEYS", help="The state_dict of B, where it stands under other keys than in A.")
@click.option("--keys", multiple=True, metavar="GLOB", help="Only tensors whose name matches. [repeatable]")
@click.option("--exclude", multiple=True, metavar="GLOB", help="No tensors whose name matches. [repeatable]")
@click.option(
    "--ignore",
    multiple=True,
    type=click.Choice(
        ["weights", "buffers", "names", "ties", "optimizer", "metadata", "hyperparameters"], case_sensitive=False
    ),
    help="Leave this kind of difference out of account. [repeatable]",
)
@click.option("--rtol", type=click.FloatRange(0), default=0.0, help="|B - A| up to RTOL * |A| is no difference.")
@click.option("--atol", type=click.FloatRange(0), default=0.0, help="|B - A| up to ATOL is no difference.")
@click.option("--policy", metavar="FILE", help="Tolerances by name: [diff.tolerances] of a TOML file.")
@click.option("--transfer", "as_transfer", is_flag=True, help="B was trained from A: what trained, stayed, drifted.")
@click.option("--expect-frozen", multiple=True, metavar="GLOB", help="Exit code 1 if what matches moved. [repeatable]")
@click.option(
    "--expect-changed",
    multiple=True,
    metavar="GLOB",
    help="Exit code 1 if a parameter that matches stayed. [repeatable]",
)
@click.option("--depth", type=click.IntRange(1), help="Levels of layers to show. [default: what fits a screen]")
@click.option("--brief", is_flag=True, help="Only say whether they differ, and in what; measure no more than that.")
@click.option(
    "--threads", type=click.IntRange(1), help="Processes, or threads, that compare. [default: the cores, up to 4]"
)
@click.option("--rank", is_flag=True, help="Estimate the rank of each weight's change.")
@click.option("--write-key-map", metavar="FILE", help="Write A's names and B's for them, for convert and verify.")
@output_options("text", "json", "markdown", "html")
def diff(
    paths: tuple[str, ...],
    select: str | None,
    select_b: str | None,
    keys: tuple[str, ...],
    exclude: tuple[str, ...],
    ignore: tuple[str, ...],
    rtol: float,
    atol: float,
    policy: str | None,
    as_transfer: bool,
    expect_frozen: tuple[str, ...],
    expect_changed: tuple[str, ...],
    depth: int | None,
    brief: bool,
    threads: int | None,
    rank: bool,
    write_key_map: str | None,
    format: str,
    output: str | None,
) -> None:
    """Say what changed from checkpoint A to checkpoint B, whatever their formats.

    Exit code 0: no difference; 1: there are; 2: they, or some of their tensors, could not be compared. With
    --expect-frozen or --expect-changed it is 0 where these hold, whatever else differs, and 1 where they do not.

    As git's external diff driver (docs/git.md) it takes the arguments that git gives, and exits with 0.
    """
    for_git = is_external_diff(paths)
    if not for_git and len(paths) != 2:
        raise click.UsageError("two checkpoints are compared: ckpt diff A B")
    from ckpt_tools.analysis.comparison import Tolerance
    from ckpt_tools.analysis.diff import Options, bytes_to_compare
    from ckpt_tools.analysis.diff import diff as compare
    from ckpt_tools.analysis.diff_report import ranks_of, report
    from ckpt_tools.analysis.tolerances import read_tolerances
    from ckpt_tools.analysis.transfer import breaches, transfer

    tolerances = read_tolerances(policy) if policy is not None else []
    if rtol or atol:
        tolerances.append(("*", Tolerance(rtol, atol)))
    values = not brief or as_transfer or bool(expect_changed)  # a cast is no training, which only the values show
    options = Options(select, select_b, keys, exclude, frozenset(ignore), tolerances, values, threads)
    expectations = len(expect_frozen) + len(expect_changed)

    def compared(left: Checkpoint, right: Checkpoint) -> tuple[Diff, Sequence[Breach], Report]:
        if for_git:  # whose pager has the terminal
            found = compare(left, right, options)
        else:
            with progress(bytes_to_compare(left, right), "comparing") as advance:
                found = compare(left, right, options, advance)
        broken = breaches(found, expect_frozen, expect_changed)
        made = report(
            found,
            depth=depth,
            every=bool(keys),
            brief=brief,
            pictures=format == "html",
            ranks=ranks_of(found) if rank else None,
            transferred=transfer(found) if as_transfer else None,
            expectations=expectations,
            broken=broken,
        )
        return found, broken, made

    if for_git:
        made = report_external_diff(paths, lambda left, right: compared(left, right)[2])
        emit([made], command="diff", format=format, output=output)
        return
    a, b = paths
    found, broken, made = compared(the_one(a), the_one(b))
    if write_key_map is not None:
        with replacing(write_key_map) as file:
            file.write((json.dumps(dict(found.key_map), indent=2) + "\n").encode())
    emit([made], command="diff", format=format, output=output)
    unreadable = [entry for entry in found.tensors if entry.change == "unreadable"]
    for entry in unreadable:
        complain(f"{entry.name} could not be compared: {entry.problem}")
    if unreadable:
        sys.exit(2)
    sys.exit(bool(broken) if expectations else found.different)
