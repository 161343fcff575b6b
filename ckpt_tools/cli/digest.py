"""``ckpt digest``: a fingerprint of the weights, whatever file holds them."""

from __future__ import annotations

import sys

import click

from ckpt_tools.analysis.digest import ALGORITHM, Digest
from ckpt_tools.analysis.digest import digest as digest_of
from ckpt_tools.analysis.summary import weights
from ckpt_tools.atomic import replacing
from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.cli.output import check_place, for_each, the_one
from ckpt_tools.errors import CkptError, NotFound
from ckpt_tools.report import one_line


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--select", metavar="KEYS", help="The state_dict to digest, such as model_state_dict.")
@click.option("--tensors", is_flag=True, help="Print the line of every tensor too.")
@click.option("--write", metavar="FILE", help="Record the digest and every tensor's line in this file.")
@click.option("--check", metavar="FILE", help="Compare with a recorded digest; exit code 1 where it differs.")
def digest(paths: tuple[str, ...], select: str | None, tensors: bool, write: str | None, check: str | None) -> None:
    """Print the SHA-256 of the weights' names, dtypes, shapes and bytes.

    It is the same for one model as .pt, legacy file, safetensors or shards. docs/digest.md says how it is
    computed.

    PATH is a file, a folder, a glob, or - for standard input; each file has a line. Exit code 2 if any could not
    be read. --write and --check are for one PATH.
    """
    if write is None and check is None:
        sys.exit(for_each(paths, lambda path, checkpoint: _tell(path, _digest(checkpoint, select), tensors)))
    if len(paths) != 1:
        raise click.UsageError("--write and --check take one PATH")
    if write is not None:
        check_place(write)
    found = _digest(the_one(paths[0]), select)
    lines = [line.line for line in found.tensors]
    if write is not None:
        with replacing(write) as file:
            file.write("".join([f"{ALGORITHM} {found.sha256}\n", *lines]).encode("ascii"))
    if check is not None:
        differences = _compare(check, found.sha256, lines)
        for text in differences:
            click.echo(text)
        if differences:
            sys.exit(1)
    _tell(paths[0], found, tensors)


def _digest(checkpoint: Checkpoint, select: str | None) -> Digest:
    return digest_of(weights(checkpoint, select).tensors)


def _tell(path: str, found: Digest, tensors: bool) -> None:
    """Print the line of the file at *path*, and those of its *tensors* where they are wanted."""
    shown = one_line(path)  # a line a file, whatever its name
    click.echo(f"{found.sha256}  {shown}")
    if tensors:
        click.echo("".join(line.line for line in found.tensors), nl=False)


def _compare(recorded: str, sha256: str, lines: list[str]) -> list[str]:
    """How the weights differ from the record in the file *recorded*, tensor by tensor."""
    try:
        with open(recorded, encoding="ascii") as file:
            head, *old = file.readlines()
    except OSError as error:
        raise NotFound(f"cannot be read: {error.strerror}", path=recorded) from None
    except ValueError:  # not ASCII, or empty
        raise CkptError("is no record of a digest", path=recorded, remedy="ckpt digest --write makes one") from None
    algorithm, _, value = head.strip().partition(" ")
    if algorithm != ALGORITHM:
        raise CkptError(
            f"is no record that this version can check: it begins with {algorithm[:40]!r}, not {ALGORITHM}",
            path=recorded,
        )
    if value == sha256:
        return []
    gone, new = sorted(set(old) - set(lines)), sorted(set(lines) - set(old))
    return [f"- {line.strip()}" for line in gone] + [f"+ {line.strip()}" for line in new]
