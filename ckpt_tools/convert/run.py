"""One conversion from beginning to end: plan, write beside the target, prove, rename; and the report of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from ckpt_tools.analysis.digest import ALGORITHM, Digest
from ckpt_tools.atomic import Batch, replacing
from ckpt_tools.checkpoint import TensorInfo, format_path
from ckpt_tools.convert import prove, write_npz, write_safetensors, write_shards, write_torch
from ckpt_tools.convert.plan import NOTE, Entry, Names, Plan, common_objection, is_told, make_plan, note_text
from ckpt_tools.convert.source_text import ClassSource
from ckpt_tools.convert.stream import Advance, Losses, Sink, Watch, Written, contents
from ckpt_tools.convert.write_shards import Place
from ckpt_tools.dtypes import DType
from ckpt_tools.errors import CkptError, LossyConversion, UnsupportedFeature
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.report import Block, Facts, Report, Table, count, plain_json, size
from ckpt_tools.version import VERSION

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


_CHECK_NAMES: dict[str, Callable[[Iterable[str]], None]] = {
    "safetensors": write_safetensors.check_names,
    "torch": lambda names: None,
    "npz": write_npz.check_names,
}

_TO_COME = "".join(f"{byte:02x}" for byte in b"the digest will be written here.")
"""What stands for the source's digest, as long, until that is known: it is made while the output is read again."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done, or would be: *source* and *output* are digests, None where nothing was verified.

    *place* is where a set of shards goes, and *files* are what was written: the names of shards and index, or one.
    """

    plan: Plan
    target: str
    format: str
    place: Place | None = None
    source: Digest | None = None
    output: Digest | None = None
    losses: Mapping[str, Losses] | None = None
    nbytes: int = 0
    files: tuple[str, ...] = ()

    def targets(self) -> list[str]:
        """The files that it may write, as far as their names are known before."""
        if self.place is not None:
            return [os.path.join(self.place.folder, name) for name in (self.place.single, self.place.index)]
        return [self.target]

    def existing(self) -> list[str]:
        """The files that it would replace."""
        if self.place is not None:
            return [os.path.join(self.place.folder, name) for name in self.place.existing()]
        return [self.target] if os.path.lexists(self.target) else []


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
    shard_size: int | None = None,
    baking: bool = False,
    decomposing: bool = False,
) -> tuple[Conversion, Watch]:
    """The plan for converting *source* to *target*, and a watch on the files it will read; nothing is written.

    With *shard_size* the output is safetensors in shards of that many bytes. Raises `CkptError` where *target* is
    one of the source's files, or exists and *force* does not allow that.
    """
    watch = Watch()
    watch.note(source)
    if shard_size is None:
        _check_place(target)
    place = write_shards.place_of(target, shard_size) if shard_size is not None else None
    format = format_of(target) if place is None else "safetensors"
    plan = make_plan(
        open_checkpoint(source),
        _OBJECTIONS[format],
        select=select,
        names=names,
        dtype=dtype,
        metadata=metadata,
        baking=baking,
        apart=_apart(format, decomposing),
        numbers=format != "torch",  # which has scales and sizes in its pickle
        shared=format != "npz",
    )
    try:
        _CHECK_NAMES[format](entry.name for entry in plan.entries)
    except UnsupportedFeature as error:
        raise error.at(path=source) from None
    for storage in (storage for tensor in plan.state_dict.tensors for storage in tensor.storages()):
        located = storage.source.locate(storage.offset)
        if located is not None:
            watch.note(located[0])
    conversion = Conversion(plan, target, format, place)
    taken = conversion.existing()
    for path in taken:
        if watch.same_as(path):
            raise CkptError("is the source; a conversion does not write over what it reads", path=path)
    if taken and not force:
        raise CkptError("exists already", path=taken[0], remedy="--force replaces it")
    return conversion, watch


def _check_place(target: str) -> None:
    """Raise `CkptError` where no file can take the place *target*."""
    if target == "-":
        raise CkptError("an output is proven before it takes its place, which standard output cannot be", path=target)
    if os.path.isdir(target) or target.endswith(os.sep):
        raise CkptError(
            "is a folder", path=target, remedy="Name a file in it; --out-dir and --shard-size write into a folder"
        )
    if os.path.exists(target) and not os.path.isfile(target):
        raise CkptError("is no regular file, which alone can be replaced", path=target)


def _apart(format: str, decomposing: bool) -> Callable[[Entry], bool]:
    """Which tensors go out as their parts: those that torch rebuilds from them, and all that need it if so wanted."""
    if format == "torch":
        return write_torch.is_rebuilt
    if not decomposing:
        return lambda entry: False
    if format != "safetensors":
        raise CkptError(f"--decompose writes .safetensors: .{format} has no place for what the parts were parts of")
    return lambda entry: bool(common_objection(entry.tensor) or write_safetensors.objection(entry.tensor, entry.dtype))


def carry_out(
    conversion: Conversion,
    watch: Watch,
    *,
    verify: bool = True,
    allow_lossy: bool = False,
    advance: Advance | None = None,
    batch: Batch | None = None,
) -> Conversion:
    """Write the target of *conversion*: whole and, with *verify*, proven, or not at all.

    *advance* is told of bytes read or written, `work` bytes in all. Raises `LossyConversion` where a cast made
    values infinite or zero and *allow_lossy* does not allow it, and `CkptError` where the proof fails, the source
    changes meanwhile, or the system refuses. With *batch* a single file takes its place when that says so.
    """
    if conversion.place is not None:
        with write_shards.replacing_set(conversion.place) as folder:
            return _filled(_Set(conversion, conversion.place, folder), watch, verify, allow_lossy, advance)
    with replacing(conversion.target, batch) as file:
        return _filled(_OneFile(conversion, file), watch, verify, allow_lossy, advance)


def check_existing(conversion: Conversion) -> Conversion:
    """The conversion as it would be if it had been carried out, where what is there holds just what it would write.

    Both are read to the end. Raises `CkptError` where anything differs, in names, types, shapes or bits.
    """
    plan = conversion.plan
    files = conversion.existing()
    index = [path for path in files if path.endswith(write_shards.INDEX)]
    written = Written()
    for entry in plan.entries:
        if entry.dtype != entry.tensor.dtype:
            for _ in contents(entry, written):
                pass
    source, output = prove.prove((index or files)[0], plan, written.sha256)
    return replace(
        conversion,
        source=source,
        output=output,
        losses=written.losses,
        nbytes=sum(map(os.path.getsize, files)),
        files=tuple(map(os.path.basename, files)),
    )


def work(conversion: Conversion, verify: bool) -> int:
    """About how many bytes `carry_out` tells its *advance* of."""
    once = sum(entry.tensor.nbytes for entry in conversion.plan.entries)
    return once * (3 if verify else 1)


def _filled(
    draft: _OneFile | _Set, watch: Watch, verify: bool, allow_lossy: bool, advance: Advance | None
) -> Conversion:
    """Write and prove *draft*, which may take its place then."""
    plan = draft.conversion.plan
    source: Digest | None = None
    output: Digest | None = None
    try:
        written = draft.write(_TO_COME if verify else None, advance)
    except UnsupportedFeature as error:
        raise error.at(path=plan.checkpoint.path) from None
    _refuse_losses(plan, written.losses, allow_lossy)
    if verify:
        source, output = prove.prove(draft.path, plan, written.sha256, advance)
        draft.fill_in(source.sha256)
    watch.check()
    return replace(
        draft.conversion,
        source=source,
        output=output,
        losses=written.losses,
        nbytes=sum(map(os.path.getsize, draft.files)),
        files=draft.names,
    )


class _OneFile:
    """A single file that is being written; *path* and *files* are where it is meanwhile."""

    def __init__(self, conversion: Conversion, file: BinaryIO) -> None:
        self.path = file.name
        self.files = [file.name]
        self.names = (os.path.basename(conversion.target),)
        self.conversion = conversion
        self._file = file

    def write(self, digest: str | None, advance: Advance | None) -> Written:
        """Write it, with *digest* in its metadata where the format has any."""
        written = _write(self._file, self.conversion, digest, advance, os.path.realpath(self.conversion.target))
        self._file.flush()
        return written

    def fill_in(self, sha256: str) -> None:
        """Put the source's digest where `_TO_COME` stands, and have the format's own library open the file."""
        if self.conversion.format != "safetensors":
            return
        with open(self.path, "rb") as written:
            head = written.read(8 + int.from_bytes(written.read(8), "little"))
        self._file.seek(8 + head.index(_TO_COME.encode("ascii")))
        self._file.write(sha256.encode("ascii"))
        self._file.flush()
        prove.prove_with_library(self.path, write_safetensors.stored(self.conversion.plan))


class _Set:
    """Shards and an index that are being written into *folder*, or the single file that holds all of them."""

    def __init__(self, conversion: Conversion, place: Place, folder: str) -> None:
        self.conversion = conversion
        self._place = place
        shards = write_shards.deal_out(conversion.plan, place.limit)
        names = [place.single]
        if len(shards) > 1:
            names = [place.shard(number, len(shards)) for number in range(1, len(shards) + 1)]
        self._shards = dict(zip(names, shards, strict=True))
        self.files = [os.path.join(folder, name) for name in names]
        self.path = self.files[0]
        if len(shards) > 1:
            self.path = os.path.join(folder, place.index)
            self.files.append(self.path)
        self.names = tuple(map(os.path.basename, self.files))

    def write(self, digest: str | None, advance: Advance | None) -> Written:
        if len(self._shards) == 1:
            with open(self.path, "xb") as file:
                written = _write(file, self.conversion, digest, advance, self._replaced(self.path))
                file.flush()
                os.fsync(file.fileno())
            return written
        written = Written()
        for path, entries in zip(self.files, self._shards.values(), strict=False):
            part = write_shards.write_shard(path, entries, advance, self._replaced(path))
            written.sha256 |= part.sha256
            written.losses |= part.losses
        self._write_index(digest)
        return written

    def fill_in(self, sha256: str) -> None:
        if len(self._shards) == 1:
            with open(self.path, "r+b") as file:
                _OneFile(self.conversion, file).fill_in(sha256)
                os.fsync(file.fileno())
            return
        self._write_index(sha256)
        for path, entries in zip(self.files, self._shards.values(), strict=False):
            prove.prove_with_library(path, entries)

    def _replaced(self, path: str) -> str:
        """The file whose place *path* takes."""
        return os.path.join(self._place.folder, os.path.basename(path))

    def _write_index(self, digest: str | None) -> None:
        text = write_shards.index_text(self.conversion.plan, self._shards, _metadata(self.conversion.plan, digest))
        write_shards.write_whole(self.path, text)


def _write(
    file: BinaryIO, conversion: Conversion, digest: str | None, advance: Advance | None, replaced: str
) -> Written:
    plan = conversion.plan
    sink = Sink(file, advance, replaced)
    try:
        if conversion.format == "torch":
            return write_torch.write(sink, plan)
        if conversion.format == "npz":
            return write_npz.write(sink, plan)
        return write_safetensors.write(sink, write_safetensors.stored(plan), _metadata(plan, digest))
    finally:
        sink.close()


def _metadata(plan: Plan, digest: str | None) -> dict[str, str]:
    return write_safetensors.metadata(plan, note_text(plan, digest, VERSION), NOTE)


def _refuse_losses(plan: Plan, losses: Mapping[str, Losses], allowed: bool) -> None:
    if not losses or allowed:
        return
    told = [f"{name} ({loss.overflow:,} to infinity, {loss.underflow:,} to zero)" for name, loss in losses.items()]
    raise LossyConversion(
        f"casting would lose values of {count(len(told), 'tensor')}: {', '.join(told[:8])}",
        path=plan.checkpoint.path,
        remedy="--allow-lossy accepts that; bfloat16 has the range of float32",
    )


# --- the report


def report(conversion: Conversion, done: bool, sources: Sequence[ClassSource] = ()) -> Report:
    """The story of *conversion*, which is *done* or only planned; *sources* are those that are written beside it."""
    plan = conversion.plan
    renamed = [(old, new) for old, new in plan.names.items() if old != new]
    cast = [(e.name, e.tensor.dtype.name, e.dtype.name) for e in plan.entries if e.tensor.dtype != e.dtype]
    left = [*plan.left]
    extras = [name for name, value in plan.extras.items() if _has_place(conversion.format, value)]
    if conversion.format != "safetensors":
        left += [(path, "plain data, which goes along only in safetensors") for path in plan.values]
    lost = (name for name in plan.extras if name not in extras)
    left += [(name, "extra state, for which the format has no place") for name in lost]
    nbytes = sum(e.tensor.numel * e.dtype.itemsize for e in plan.entries if not _is_tied(plan, e.name))
    facts = [
        ("state_dict", format_path(plan.state_dict.path) or "the root"),
        ("to", f"{conversion.target} ({conversion.format})"),
        ("tensors", f"{len(plan.tensors):,}, {size(nbytes)}"),
    ]
    if plan.values and conversion.format == "safetensors":
        facts.append(("plain data", ", ".join(plan.values)))
    if extras:
        facts.append(("extra state", ", ".join(extras)))
    if conversion.source is not None:
        of = "source's digest" if plan.complete else "digest of what is taken"
        facts.append((of, conversion.source.sha256))
    blocks: list[Block] = [Facts("", facts)]
    rows: list[tuple[str, ...]]
    if renamed:
        blocks.append(Table("Renamed", ("from", "to"), renamed))
    if plan.baked:
        rows = [(made.name, made.method, ", ".join(made.parts), made.basis) for made in plan.baked]
        blocks.append(Table("Baked", ("weight", "method", "made of", "known"), rows))
    if plan.composites and conversion.format == "safetensors":
        rows = [(name, made.kind, ", ".join(made.parts.values())) for name, made in plan.composites.items()]
        blocks.append(Table("Taken apart", ("tensor", "kind", "into"), rows))
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
    if sources:
        rows = [(source.class_name, source.file, source.path) for source in sources]
        blocks.append(Table("Source of classes", ("class", "was in", "goes to"), rows))
    if left:
        blocks.append(Table("Left behind", ("what", "why"), left))
    if plan.unmatched:
        blocks.append(Table("Matching nothing", ("option", "pattern"), plan.unmatched))
    return Report(
        plan.checkpoint.path,
        lambda: _data(conversion, done, extras, left, sources),
        tuple(blocks),
        _verdict(conversion, done),
    )


def _verdict(conversion: Conversion, done: bool) -> str:
    plan = conversion.plan
    tensors = count(len(plan.tensors), "tensor")
    if plan.composites and conversion.format == "safetensors":
        tensors += f", {len(plan.composites):,} of them as their parts"
    if plan.baked:
        tensors += f", {len(plan.baked):,} of them baked"
    if not done:
        return f"{tensors} would go to {conversion.target}; nothing was written"
    how = "verified bit for bit" if conversion.output is not None else "not verified"
    shards = f" in {len(conversion.files) - 1:,} shards" if len(conversion.files) > 1 else ""
    return f"{tensors}, {size(conversion.nbytes)}, written to {conversion.target}{shards}, {how}"


def _is_tied(plan: Plan, name: str) -> bool:
    return name in plan.aliases and not plan.aliases[name].stored


def _has_place(format: str, extra: object) -> bool:
    """Whether a file of *format* takes the *extra* state of a module."""
    return format == "torch" or (format == "safetensors" and is_told(extra))


def _data(
    conversion: Conversion,
    done: bool,
    extras: Sequence[str],
    left: Sequence[tuple[str, str]],
    sources: Sequence[ClassSource],
) -> dict[str, object]:
    plan = conversion.plan
    data: dict[str, object] = {
        "path": plan.checkpoint.path,
        "target": conversion.target,
        "result": "converted" if done else "planned",
        "format": conversion.format,
        "written": done,
        "verified": conversion.output is not None,
        "files": list(conversion.files),
        "bytes": conversion.nbytes if done else None,
        "algorithm": ALGORITHM,
        "source_digest": conversion.source.sha256 if conversion.source else None,
        "source_complete": plan.complete,
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
        "decomposed": {name: composite.as_json() for name, composite in plan.composites.items()},
        "aliases": {name: alias.as_json() for name, alias in plan.aliases.items()},
        "lost_values": {
            name: {"overflow": loss.overflow, "underflow": loss.underflow}
            for name, loss in (conversion.losses or {}).items()
        },
        "values": dict(plan.values) if conversion.format == "safetensors" else {},
        "extra_state": list(extras),
        "class_sources": [{"class": s.class_name, "file": s.file, "written_to": s.path} for s in sources],
        "left_behind": [{"what": what, "why": why} for what, why in left],
        "unmatched": [{"option": option, "pattern": pattern} for option, pattern in plan.unmatched],
    }
    cleaned = plain_json(data)
    assert isinstance(cleaned, dict)
    return cleaned
