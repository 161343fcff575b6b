"""``ckpt verify``: whether a checkpoint reloads into its class, and is what it should be."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from ckpt_tools.audit.findings import SEVERITIES, Severity
from ckpt_tools.cli import tell
from ckpt_tools.cli.model import ModelChoice, model_options
from ckpt_tools.cli.output import check_place, emit, expand, output_options
from ckpt_tools.convert.key_map import read_key_map
from ckpt_tools.errors import CkptError
from ckpt_tools.formats import looks_like_checkpoint, open_checkpoint
from ckpt_tools.report import Report
from ckpt_tools.verification.arguments import parse_arguments
from ckpt_tools.verification.job import Job
from ckpt_tools.verification.reports import findings_of, report_of
from ckpt_tools.verification.results import Verification
from ckpt_tools.verification.run import verify_each

_FINDINGS = ("sarif", "github", "gitlab", "junit")


def _share(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """``95%`` or ``0.95`` as a fraction."""
    try:
        share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise click.BadParameter(f"{value!r} is no share such as 95%")
    return share


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@model_options(required=True)
@click.option("--select", metavar="KEYS", help="The state_dict to verify, such as model_state_dict.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SIZES|FILE",
    help="Run the model on an input of these sizes, such as 3,224,224 or int64:128, or on what is in a .npy, .npz "
    "or image file. [repeatable]",
)
@click.option(
    "--batch",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="The batch size, put before the sizes of each --input; 0: the sizes are complete.",
)
@click.option("--record", metavar="FILE", help="Write inputs and outputs to this .npz, for --reference.")
@click.option("--reference", metavar="FILE", help="Outputs must be those that --record wrote.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=1e-4,
    show_default=True,
    help="How far outputs may be apart, relative to the largest.",
)
@click.option("--base", metavar="PATH", help="The checkpoint that training began with, to compare the backbone with.")
@click.option("--expect-frozen", multiple=True, metavar="GLOB", help="Parameters that must be frozen. [repeatable]")
@click.option(
    "--expect-trainable", multiple=True, metavar="GLOB", help="Parameters that must be trainable. [repeatable]"
)
@click.option(
    "--min-loaded",
    default="100%",
    show_default=True,
    metavar="SHARE",
    callback=_share,
    help="The share of parameter elements that the file must have.",
)
@click.option("--allow-missing", multiple=True, metavar="GLOB", help="Names that the file may lack. [repeatable]")
@click.option(
    "--allow-unexpected", multiple=True, metavar="GLOB", help="Names that only the file may have. [repeatable]"
)
@click.option("--key-map", metavar="FILE", help="Give tensors other names first: a JSON object, as diff writes it.")
@click.option("--write-fixed", metavar="FILE", help="Write the weights under the class's names, as convert does.")
@click.option("--write-key-map", metavar="FILE", help="Write the names' changes, for convert --key-map.")
@click.option("--force", is_flag=True, help="Replace the file of --write-fixed if it exists.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda", "auto"]),
    default="cpu",
    show_default=True,
    help="Where to run the model; auto: on a GPU where there is one.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=300,
    show_default=True,
    help="Seconds that one file may take before the class counts as hanging.",
)
@click.option(
    "--fail-on",
    type=click.Choice(SEVERITIES),
    default="error",
    show_default=True,
    help="The mildest severity that makes the exit code 1.",
)
@output_options("text", "json", "sarif", "junit", "github", "gitlab", "markdown", "html")
def verify(
    paths: tuple[str, ...],
    model: ModelChoice,
    select: str | None,
    inputs: tuple[str, ...],
    batch: int,
    record: str | None,
    reference: str | None,
    tolerance: float,
    base: str | None,
    expect_frozen: tuple[str, ...],
    expect_trainable: tuple[str, ...],
    min_loaded: float,
    allow_missing: tuple[str, ...],
    allow_unexpected: tuple[str, ...],
    key_map: str | None,
    write_fixed: str | None,
    write_key_map: str | None,
    force: bool,
    device: str,
    timeout: float,
    fail_on: Severity,
    format: str,
    output: str | None,
) -> None:
    """Build a class, load checkpoints into it and run it: would they work where they are to be deployed?

    The class runs in a process of its own, with a time limit and without network. Exit code 1 where a check
    fails, 2 where it could not be made.
    """
    args, kwargs = parse_arguments(model.args, model.kwargs)
    mapping = read_key_map(key_map)

    def job(path: str) -> Job:
        return Job(
            path,
            model.spec,
            args,
            kwargs,
            model.trust,
            select,
            base,
            expect_frozen,
            expect_trainable,
            inputs,
            batch,
            reference,
            record,
            device,
            tolerance,
            min_loaded,
            allow_missing,
            allow_unexpected,
            mapping,
            write_fixed,
            write_key_map,
            force,
            timeout,
        )

    files = list(_files(paths))
    found = [path for path in files if isinstance(path, str)]
    if len(found) > 1 and (record or write_fixed or write_key_map):
        raise click.UsageError("--record, --write-fixed and --write-key-map are for one file")
    if write_key_map is not None:
        check_place(write_key_map)
    if record is not None and os.path.realpath(record) in map(os.path.realpath, [*found, *([base] if base else [])]):
        raise CkptError("is a checkpoint that is read, which --record does not replace", path=record)
    if record is not None and looks_like_checkpoint(record) and not _is_recording(record):
        raise CkptError("is a checkpoint, which no recording replaces", path=record, remedy="Give it another name")
    code = 2 if len(found) < len(files) else 0
    results: list[Verification] = []
    for result in verify_each(map(job, found)):
        if isinstance(result, CkptError):
            tell(str(result))
            code = 2
        else:
            results.append(result)
    if results:
        emit(reports_in(results, format), command="verify", format=format, output=output)
    if code == 0 and any(result.at_least(fail_on) for result in results):
        code = 1
    sys.exit(code)


def _is_recording(path: str) -> bool:
    """Whether the file at *path* is what an earlier --record wrote, an npz of inputs and outputs."""
    try:
        found = open_checkpoint(path)
    except CkptError:
        return False
    names = [name for state_dict in found.state_dicts for name in state_dict.entries]
    return found.format == "npz" and all(name.startswith(("input:", "output:")) for name in names)


def _files(paths: tuple[str, ...]) -> Iterator[str | None]:
    """The files that *paths* name, None for each that names nothing (which is told on standard error)."""
    for path in paths:
        try:
            # what is no checkpoint is said so by the check, so a lone file is taken whatever it is
            yield from [path] if os.path.isfile(path) else expand(path)
        except CkptError as error:
            tell(str(error))
            yield None


def reports_in(results: list[Verification], format: str) -> list[Report]:
    """The reports of *results* with the data that *format* is made of."""
    reports = [report_of(result) for result in results]
    if format not in _FINDINGS:
        return reports
    collect: Callable[[Verification], Any] = _cases if format == "junit" else findings_of
    return [Report(r.title, lambda result=result: collect(result)) for r, result in zip(reports, results, strict=True)]  # type: ignore[misc]


def _cases(result: Verification) -> dict[str, object]:
    return {**findings_of(result), "findings": [], "checks": [check.as_json() for check in result.checks]}
