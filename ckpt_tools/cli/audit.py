"""``ckpt audit``: the gate for model files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace

import click

from ckpt_tools.audit import baseline as baselines
from ckpt_tools.audit.engine import audit as run_audit
from ckpt_tools.audit.findings import SEVERITIES, Severity
from ckpt_tools.audit.policy import Options, Policy, find, load
from ckpt_tools.audit.reports import for_machines, for_people
from ckpt_tools.audit.results import Audited, exit_code
from ckpt_tools.cli import tell
from ckpt_tools.cli.output import check_place, emit, emit_each, output_options

_FOR_PEOPLE = ("text", "markdown", "html")


def _codes(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(code.strip() for text in texts for code in text.split(",") if code.strip())


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--select",
    multiple=True,
    metavar="CODES",
    help="Only these rules, by code or prefix: S,I301; and what could not be examined.",
)
@click.option("--ignore", multiple=True, metavar="CODES", help="Not these rules, by code or prefix.")
@click.option(
    "--fail-on", type=click.Choice(SEVERITIES), help="The mildest severity that makes the exit code 1. [default: error]"
)
@click.option("--config", metavar="FILE", help="The policy, instead of the nearest pyproject.toml or ckpt-tools.toml.")
@click.option("--no-config", is_flag=True, help="No policy, whatever files there are.")
@click.option("--baseline", metavar="FILE", help="Tell only what is new since this was written; globals are locked.")
@click.option("--write-baseline", is_flag=True, help="Write what is found to the --baseline and exit with 0.")
@click.option("--fix-hints", is_flag=True, help="Say what to do about each finding.")
@click.option("--no-values", is_flag=True, help="Read headers and pickles only, not the bytes of tensors.")
@click.option("--base", metavar="PATH", help="The checkpoint that training began with, for the rules that compare.")
@click.option("--torch", metavar="VERSION", help="The torch that is to load the files, for the rules that ask.")
@click.option(
    "--jobs", type=click.IntRange(1), metavar="N", show_default="one a core, for many files", help="Processes to use."
)
@click.option("--dask", metavar="ADDRESS", help="Have the workers of this Dask cluster do it: its scheduler's address.")
@click.option("--cache", metavar="DIR", help="Keep results here, and take them from here where nothing has changed.")
@output_options("text", "json", "sarif", "junit", "github", "gitlab", "markdown", "html")
def audit(
    paths: tuple[str, ...],
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    fail_on: Severity | None,
    config: str | None,
    no_config: bool,
    baseline: str | None,
    write_baseline: bool,
    fix_hints: bool,
    no_values: bool,
    base: str | None,
    torch: str | None,
    jobs: int | None,
    dask: str | None,
    cache: str | None,
    format: str,
    output: str | None,
) -> None:
    """Examine model files without running them: what loading them would do, whether they are whole and sound.

    PATH is a file, a folder (every file below it), a glob, an archive, a URL, or - for standard input. Exit code
    1 where there are findings of --fail-on or worse, 2 where a file could not be examined or nothing was.
    `ckpt rules` lists the rules, `ckpt explain CODE` tells about one.
    """
    if write_baseline and baseline is None:
        raise click.UsageError("--write-baseline needs --baseline FILE to write to")
    path = None if no_config else config or find()
    if path is not None and config is None:
        # the folder may be a download, whose settings would switch off what speaks against it
        tell(f"the settings in {os.path.relpath(path)} count (--no-config: none)")
    policy = load(path) if path is not None else Policy()
    policy = replace(
        policy,
        select=_codes(select) or policy.select,
        ignore=(*policy.ignore, *_codes(ignore)),
        fail_on=fail_on or policy.fail_on,
        base=base or policy.base,
        torch=torch or policy.torch,
    )
    if write_baseline and baseline is not None:
        check_place(baseline)
    known = baselines.load(baseline) if baseline is not None and not write_baseline else None
    if known is not None and known.version < baselines.VERSION:
        tell(
            f"{baseline}: written by an earlier version, without what dangerous calls are made with: they are "
            "told as new. Look at them, and write it anew with --write-baseline"
        )
    options = Options(policy, not no_values, baseline=known, cache=cache)
    results: list[Audited] = []
    coming = _kept(run_audit(paths, options, jobs=jobs, dask=dask), results)
    try:
        if format == "text" and output is None:
            emit_each(for_people(coming, hints=fix_hints), command="audit")
        else:
            if format in _FOR_PEOPLE:
                # who opens a page wants to know first what it comes to; where results stream, that comes last
                *rest, last = for_people(coming, hints=fix_hints)
                reports = [last, *rest] if format != "text" else [*rest, last]
            else:
                reports = for_machines(coming)
            emit(reports, command="audit", format=format, output=output)
    except BrokenPipeError:
        # unlike those of other commands this exit code is a verdict, and there is none on what was not looked at
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        tell("the report was not read to its end")
        sys.exit(2)
    if write_baseline and baseline is not None:
        baselines.write(baseline, results)
    code = exit_code(results, policy.fail_on)
    sys.exit(0 if write_baseline and code == 1 else code)


def _kept(coming: Iterable[Audited], results: list[Audited]) -> Iterator[Audited]:
    """The results as they come, which are kept in *results*; standard error is told what could not be examined.

    Where only that is a terminal, it shows how far the audit is.
    """
    watched = sys.stderr.isatty() and not sys.stdout.isatty()
    for result in coming:
        results.append(result)
        if result.failure:
            tell(result.failure)
        if watched and len(results) % 50 == 0:
            name = os.path.basename(result.path)[:40]
            print(f"\raudit: {len(results):,} files, now {name!a}\x1b[K", end="", file=sys.stderr, flush=True)
        yield result
    if watched:
        print("\r\x1b[K", end="", file=sys.stderr)
