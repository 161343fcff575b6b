"""``ckpt convert``: weights into another file, bit for bit, with proof."""

from __future__ import annotations

import re
import signal
import sys
from typing import Any

import click

from ckpt_tools.analysis.overview import some_prefix
from ckpt_tools.cli import tell
from ckpt_tools.cli.output import check_place, emit, path_of_one
from ckpt_tools.cli.progress import progress
from ckpt_tools.convert.key_map import read_key_map
from ckpt_tools.convert.plan import Names
from ckpt_tools.convert.run import FORMATS, carry_out, check_folder, prepare, report, work
from ckpt_tools.convert.source_text import ClassSource, check_sources, sources_in, write_sources
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.report import listed, one_line

MANY = 8
"""Things left behind for one reason from which on they share a line."""

_SUFFIXES = [suffix.removeprefix(".") for suffixes in FORMATS.values() for suffix in suffixes]
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """``5GB`` as bytes; units are powers of 1000, as huggingface_hub has them, or with an i of 1024."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMGT]?i?B?)", value, re.IGNORECASE)
    unit = _UNITS.get(match[2].upper()) if match is not None else None
    nbytes = int(float(match[1]) * unit) if match is not None and unit is not None else 0
    if nbytes < 1:
        raise click.BadParameter(f"{value!r} is no size such as 5GB, 500MB or 2GiB")
    return nbytes


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="SRC... DST")
@click.option(
    "--out-dir", metavar="FOLDER", help="Convert every SRC, files, folders and globs, into a tree below FOLDER."
)
@click.option("--to", type=click.Choice(_SUFFIXES), help="What to write into --out-dir. [default: safetensors]")
@click.option("--jobs", type=click.IntRange(1), default=1, metavar="N", help="With --out-dir: work in N processes.")
@click.option("--dask", metavar="ADDRESS", help="With --out-dir: work on the Dask cluster of this scheduler.")
@click.option("--select", metavar="KEYS", help="The state_dict to convert, such as model_state_dict.")
@click.option("--keep", metavar="GLOB", multiple=True, help="Only tensors whose name matches. May be repeated.")
@click.option("--drop", metavar="GLOB", multiple=True, help="No tensors whose name matches. May be repeated.")
@click.option(
    "--strip-prefix",
    metavar="PREFIX",
    default="",
    help="Take this off every name; 'auto': what wrappers (DataParallel, torch.compile, …) put before every name.",
)
@click.option("--key-map", metavar="FILE", help="Rename by this JSON object of old names and new ones.")
@click.option("--rename", metavar="FROM=TO", multiple=True, help="Replace a regular expression. May be repeated.")
@click.option("--add-prefix", metavar="PREFIX", default="", help="Put this before every name.")
@click.option(
    "--dtype", type=click.Choice(["float16", "bfloat16", "float32"]), help="Cast floating tensors of 16 bits or more."
)
@click.option("--allow-lossy", is_flag=True, help="Cast even where values become infinite or zero.")
@click.option("--bake", is_flag=True, help="Compute pruned, weight_norm and spectral_norm weights from their parts.")
@click.option(
    "--extract-source",
    metavar="DIR",
    help="Write the source of the model's classes, where a legacy file has it, into this folder as text.",
)
@click.option("--decompose", is_flag=True, help="Write quantized, sparse and other such tensors as their parts.")
@click.option(
    "--shard-size",
    metavar="SIZE",
    callback=_size,
    help="Safetensors in shards of at most this, such as 5GB, and an index. DST is a folder or x.safetensors.",
)
@click.option("--metadata", metavar="KEY=VALUE", multiple=True, help="Text for the output's metadata (safetensors).")
@click.option("--force", is_flag=True, help="Replace DST if it exists; never the source.")
@click.option("--no-verify", is_flag=True, help="Do not read the output again to compare it with the source.")
@click.option("--dry-run", is_flag=True, help="Print what would be done; write nothing.")
@click.option("--report", "report_file", metavar="FILE", help="Write the whole story to this file, as JSON.")
def convert(
    paths: tuple[str, ...],
    out_dir: str | None,
    to: str | None,
    jobs: int,
    dask: str | None,
    select: str | None,
    keep: tuple[str, ...],
    drop: tuple[str, ...],
    strip_prefix: str,
    key_map: str | None,
    rename: tuple[str, ...],
    add_prefix: str,
    dtype: str | None,
    allow_lossy: bool,
    bake: bool,
    decompose: bool,
    extract_source: str | None,
    shard_size: int | None,
    metadata: tuple[str, ...],
    force: bool,
    no_verify: bool,
    dry_run: bool,
    report_file: str | None,
) -> None:
    """Write the weights of SRC to DST: .safetensors, .npz, or a .pt, .pth or .bin that weights_only takes.

    SRC is anything that inspect reads. The output is read again and compared with the source before it takes
    DST's place. What is left behind is listed on standard error.

    With --out-dir there is no DST, and any number of SRC. What is there already, unchanged, is passed over; a
    file that cannot be converted does not stop the others. Exit code 1 if some failed, 2 if all did.
    """
    _end_tidily()
    names = Names(
        keep, drop, strip_prefix, read_key_map(key_map), [_pair(text, "--rename") for text in rename], add_prefix
    )
    options: dict[str, Any] = {
        "select": select,
        "names": names,
        "dtype": BY_NAME[dtype] if dtype is not None else None,
        "metadata": dict(_pair(text, "--metadata") for text in metadata),
        "shard_size": shard_size,
        "baking": bake,
        "decomposing": decompose,
    }
    if out_dir is not None:
        if extract_source is not None:
            raise click.UsageError("--extract-source is for one SRC")
        if shard_size is not None and to not in (None, _SUFFIXES[0]):
            raise click.UsageError("--shard-size writes safetensors")
        from ckpt_tools.cli.convert_many import convert_many  # which one file does not need
        from ckpt_tools.convert.many import Options

        doing = Options(options, not no_verify, allow_lossy, force, dry_run, report_file is not None)
        sys.exit(convert_many(paths, out_dir, to or _SUFFIXES[0], doing, jobs=jobs, dask=dask, report_file=report_file))
    if len(paths) != 2:
        raise click.UsageError("SRC and DST are needed, or --out-dir for any number of SRC")
    if to is not None or jobs > 1 or dask is not None:
        raise click.UsageError("--to, --jobs and --dask are for --out-dir")
    path, target = paths
    conversion, watch = prepare(path_of_one(path), target, **options, force=force)
    if report_file is not None:
        check_place(report_file, *conversion.targets())
    if bake and not conversion.plan.baked:
        tell("nothing to bake: no pruning, weight_norm, spectral_norm or parametrization")
    for option, pattern in conversion.plan.unmatched:
        why = some_prefix(conversion.plan.names) if option == "--strip-prefix" else ""
        tell(f"{option} {pattern} matches nothing{f': {why}' if why else ''}")
    sources: list[ClassSource] = []
    if extract_source is not None:
        sources = sources_in(conversion.plan.checkpoint, extract_source)
        check_sources(sources, force)
        if not sources:
            tell("no source to extract: only full models in torch's legacy format contain any")
    if dry_run:
        check_folder(conversion)
    else:
        with progress(work(conversion, not no_verify), "converting") as advance:
            conversion = carry_out(conversion, watch, verify=not no_verify, allow_lossy=allow_lossy, advance=advance)
        if sources:
            write_sources(sources)
    story = report(conversion, not dry_run, sources)
    if report_file is not None:
        emit([story], command="convert", format="json", output=report_file)
    if dry_run:
        emit([story], command="convert", format="text", output=None)
        return
    _tell_what_is_left(story.data["left_behind"])
    for source in sources:
        tell(f"source of {source.class_name}: {source.path}")
    click.echo(one_line(story.verdict))


def _end_tidily() -> None:
    """Have what asks the program to end, short of a kill, remove the unfinished output first, as Ctrl-C does."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup has it ignored
            signal.signal(number, end)


def _tell_what_is_left(left: Any) -> None:
    """A line for each thing, but one for all that stay behind for one reason where they are many."""
    reasons: dict[str, list[str]] = {}
    for item in left:
        reasons.setdefault(item["why"], []).append(item["what"])
    for why, things in reasons.items():
        if len(things) > MANY:
            things = [f"{len(things):,} things ({listed(things)})"]
        for what in things:
            tell(f"left behind: {what}: {why}")


def _pair(text: str, option: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not equals or not left:
        raise click.BadParameter(f"{text!r} has no = after a name", param_hint=option)
    return left, right
