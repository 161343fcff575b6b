"""One conversion from beginning to end: plan, write beside the target, prove, rename; and the report of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import BinaryIO

from ckpt_tools.analysis.digest import ALGORITHM, Digest
from ckpt_tools.atomic import replacing
from ckpt_tools.checkpoint import TensorInfo, format_path
from ckpt_tools.convert import prove, write_npz, write_safetensors, write_torch
from ckpt_tools.convert.plan import NOTE, Names, Plan, make_plan, note_text
from ckpt_tools.convert.stream import Losses, Sink, Watch, Written
from ckpt_tools.dtypes import DType
from ckpt_tools.errors import CkptError, LossyConversion, UnsupportedFeature
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.report import Block, Facts, Report, Table, count, plain_json, size

FORMATS: dict[str, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "torch": (".pt", ".pth", ".bin"),
    "npz": (".npz",),
}
"""What can be written, and the suffixes that ask for it."""

_OBJECTIONS: dict[str, Callable[[TensorInfo, DType], str]] = {
    "safetensors": write_safetensors.objection,
    "torch": write_torch.objection,
    "npz": write_npz.objection,
}


_TO_COME = "".join(f"{byte:02x}" for byte in b"the digest will be written here.")
"""What stands for the source's digest, as long, until that is known: it is made while the output is read again."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done, or would be: *source* and *output* are digests, None where nothing was verified."""

    plan: Plan
    target: str
    format: str
    source: Digest | None = None
    output: Digest | None = None
    losses: Mapping[str, Losses] | None = None
    nbytes: int = 0


def format_of(target: str) -> str:
    """The format that the suffix of *target* asks for."""
    for name, suffixes in FORMATS.items():
        if target.lower().endswith(suffixes):
            return name
    known = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
    raise CkptError(f"its suffix is none of {known}, so the format to write is not clear", path=target)


def prepare(
    source: str,
    target: str,
    *,
    select: str | None = None,
    names: Names | None = None,
    dtype: DType | None = None,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
    baking: bool = False,
) -> tuple[Conversion, Watch]:
    """The plan for converting *source* to *target*, and a watch on the files it will read; nothing is written.

    Raises `CkptError` where *target* is one of the source's files, or exists and *force* does not allow that.
    """
    watch = Watch()
    watch.note(source)
    format = format_of(target)
    plan = make_plan(
        open_checkpoint(source),
        _OBJECTIONS[format],
        select=select,
        names=names,
        dtype=dtype,
        metadata=metadata,
        baking=baking,
    )
    for storage in (storage for tensor in plan.state_dict.tensors for storage in tensor.storages()):
        located = storage.source.locate(storage.offset)
        if located is not None:
            watch.note(located[0])
    if watch.same_as(target):
        raise CkptError("is the source; a conversion does not write over what it reads", path=target)
    if os.path.isdir(target):
        raise CkptError("is a folder", path=target)
    if os.path.lexists(target) and not force:
        raise CkptError("exists already", path=target, remedy="--force replaces it")
    return Conversion(plan, target, format), watch


def carry_out(
    conversion: Conversion,
    watch: Watch,
    *,
    verify: bool = True,
    allow_lossy: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Conversion:
    """Write the target of *conversion*: whole and, with *verify*, proven, or not at all.

    *advance* is told of bytes read or written, `work` bytes in all. Raises `LossyConversion` where a cast made
    values infinite or zero and *allow_lossy* does not allow it, and `CkptError` where the proof fails, the source
    changes meanwhile, or the system refuses.
    """
    plan = conversion.plan
    source: Digest | None = None
    output: Digest | None = None
    with replacing(conversion.target) as file:
        written = _write(file, conversion, _TO_COME if verify else None, advance)
        file.flush()
        _refuse_losses(plan, written.losses, allow_lossy)
        if verify:
            source, output = prove.prove(file.name, plan, written.sha256, advance)
            if conversion.format == "safetensors":
                _fill_in(file, source.sha256)
                prove.prove_with_library(file.name, write_safetensors.stored(plan))
        watch.check()
        nbytes = file.seek(0, os.SEEK_END)
    return Conversion(plan, conversion.target, conversion.format, source, output, written.losses, nbytes)


def work(conversion: Conversion, verify: bool) -> int:
    """About how many bytes `carry_out` tells its *advance* of."""
    once = sum(entry.tensor.nbytes for entry in conversion.plan.entries)
    return once * (3 if verify else 1)


def _write(
    file: BinaryIO, conversion: Conversion, digest: str | None, advance: Callable[[int], None] | None
) -> Written:
    plan = conversion.plan
    sink = Sink(file, advance)
    try:
        if conversion.format == "torch":
            return write_torch.write(sink, plan)
        if conversion.format == "npz":
            return write_npz.write(sink, plan)
        note = note_text(plan, digest, _version())
        metadata = write_safetensors.metadata(plan, note, NOTE)
        return write_safetensors.write(sink, write_safetensors.stored(plan), metadata)
    except UnsupportedFeature as error:
        raise error.at(path=conversion.plan.checkpoint.path) from None
    finally:
        sink.close()


def _fill_in(file: BinaryIO, sha256: str) -> None:
    """Put the source's digest where the header of the safetensors *file* has `_TO_COME`."""
    with open(file.name, "rb") as written:
        head = written.read(8 + int.from_bytes(written.read(8), "little"))
    file.seek(8 + head.index(_TO_COME.encode("ascii")))
    file.write(sha256.encode("ascii"))
    file.flush()


def _refuse_losses(plan: Plan, losses: Mapping[str, Losses], allowed: bool) -> None:
    if not losses or allowed:
        return
    told = [f"{name} ({loss.overflow:,} to infinity, {loss.underflow:,} to zero)" for name, loss in losses.items()]
    raise LossyConversion(
        f"casting would lose values of {count(len(told), 'tensor')}: {', '.join(told[:8])}",
        path=plan.checkpoint.path,
        remedy="--allow-lossy accepts that; bfloat16 has the range of float32",
    )


def _version() -> str:
    try:
        return version("ckpt-tools")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"


# --- the report


def report(conversion: Conversion, done: bool) -> Report:
    """The story of *conversion*, which is *done* or only planned."""
    plan = conversion.plan
    renamed = [(e.tensor.name, e.name) for e in plan.entries if e.tensor.name != e.name]
    cast = [(e.name, e.tensor.dtype.name, e.dtype.name) for e in plan.entries if e.tensor.dtype != e.dtype]
    left = [*plan.left]
    if conversion.format != "safetensors":
        left += [(path, "plain data, which goes along only in safetensors") for path in plan.values]
    nbytes = sum(e.tensor.numel * e.dtype.itemsize for e in plan.entries if not _is_tied(plan, e.name))
    facts = [
        ("state_dict", format_path(plan.state_dict.path) or "the root"),
        ("to", f"{conversion.target} ({conversion.format})"),
        ("tensors", f"{len(plan.entries):,}, {size(nbytes)}"),
    ]
    if plan.values and conversion.format == "safetensors":
        facts.append(("plain data", ", ".join(plan.values)))
    if conversion.source is not None:
        facts.append(("source's digest", conversion.source.sha256))
    blocks: list[Block] = [Facts("", facts)]
    if renamed:
        blocks.append(Table("Renamed", ("from", "to"), renamed))
    if plan.baked:
        rows = [(made.name, made.method, ", ".join(made.parts), made.basis) for made in plan.baked]
        blocks.append(Table("Baked", ("weight", "method", "made of", "known"), rows))
    if cast:
        blocks.append(Table("Cast", ("tensor", "from", "to"), cast))
    if conversion.losses:
        rows = [(name, f"{loss.overflow:,}", f"{loss.underflow:,}") for name, loss in conversion.losses.items()]
        blocks.append(Table("Values lost in casting", ("tensor", ">to infinity", ">to zero"), rows))
    if plan.aliases:
        how = {True: "a view, written on its own", False: "the same tensor, written once"}
        rows = [(name, alias.of, how[alias.stored]) for name, alias in plan.aliases.items()]
        if conversion.format == "npz":
            rows = [(name, alias.of, "written on its own") for name, alias in plan.aliases.items()]
        if conversion.format == "torch":
            rows = [(name, alias.of, "keeps sharing memory") for name, alias in plan.aliases.items()]
        blocks.append(Table("Aliases", ("name", "of", "how"), rows))
    if left:
        blocks.append(Table("Left behind", ("what", "why"), left))
    return Report(
        plan.checkpoint.path, lambda: _data(conversion, done, left), tuple(blocks), _verdict(conversion, done)
    )


def _verdict(conversion: Conversion, done: bool) -> str:
    tensors = count(len(conversion.plan.entries), "tensor")
    if conversion.plan.baked:
        tensors += f", {len(conversion.plan.baked):,} of them baked"
    if not done:
        return f"{tensors} would go to {conversion.target}; nothing was written"
    how = "verified bit for bit" if conversion.output is not None else "not verified"
    return f"{tensors}, {size(conversion.nbytes)}, written to {conversion.target}, {how}"


def _is_tied(plan: Plan, name: str) -> bool:
    return name in plan.aliases and not plan.aliases[name].stored


def _data(conversion: Conversion, done: bool, left: list[tuple[str, str]]) -> dict[str, object]:
    plan = conversion.plan
    data: dict[str, object] = {
        "path": plan.checkpoint.path,
        "target": conversion.target,
        "format": conversion.format,
        "written": done,
        "verified": conversion.output is not None,
        "bytes": conversion.nbytes if done else None,
        "algorithm": ALGORITHM,
        "source_digest": conversion.source.sha256 if conversion.source else None,
        "output_digest": conversion.output.sha256 if conversion.output else None,
        "select": list(plan.state_dict.path),
        "tensors": [
            {
                "name": e.name,
                "source": e.tensor.name,
                "dtype": e.dtype.name,
                "source_dtype": e.tensor.dtype.name,
                "shape": list(e.tensor.shape),
            }
            for e in plan.entries
        ],
        "baked": [
            {"name": made.name, "method": made.method, "parts": list(made.parts), "basis": made.basis}
            for made in plan.baked
        ],
        "aliases": {name: alias.as_json() for name, alias in plan.aliases.items()},
        "lost_values": {
            name: {"overflow": loss.overflow, "underflow": loss.underflow}
            for name, loss in (conversion.losses or {}).items()
        },
        "values": dict(plan.values) if conversion.format == "safetensors" else {},
        "left_behind": [{"what": what, "why": why} for what, why in left],
    }
    cleaned = plain_json(data)
    assert isinstance(cleaned, dict)
    return cleaned
