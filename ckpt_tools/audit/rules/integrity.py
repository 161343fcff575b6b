"""I: whether the file is whole, and is what it seems."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache, partial

from ckpt_tools.analysis.checksums import Checksums
from ckpt_tools.audit.coverage import all_tensors
from ckpt_tools.audit.findings import Finding
from ckpt_tools.audit.inputs import MODEL_SUFFIXES
from ckpt_tools.audit.rule import Rule, rule
from ckpt_tools.audit.subject import SMALL, Subject
from ckpt_tools.checkpoint import Anomaly
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, NotACheckpoint, UnsupportedFeature
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.formats.archive import STREAMED, Archive, Local, Member
from ckpt_tools.report import count, listed, shortened
from ckpt_tools.sources import Inflated

MAX_INFLATED = 1 << 32
"""The most bytes that are inflated to compare checksums."""


def _error(subject: Subject, kind: type[CkptError], *but: type[CkptError]) -> Iterator[Finding]:
    """The finding for a file that could not be read because of an error of *kind*."""
    error = subject.error
    if isinstance(error, kind) and not isinstance(error, but):
        yield subject.finding(
            error.problem,
            member=error.member or "",
            offset=error.offset,
            remedy=error.remedy or "",
            evidence={"kind": type(error).__name__},
        )


@rule("I101", "not-a-checkpoint", "error")
def not_a_checkpoint(subject: Subject) -> Iterator[Finding]:
    """The file is something other than its name or its place promises.

    Why: whatever loads it fails, or takes it for something else.

    Example: a Git LFS pointer, a web page saved under the name of the weights, an empty file, an archive of empty
    folders, the ``data.pkl`` of an archive that was unpacked.

    Remedy: fetch the file itself.
    """
    if not subject.named_code:  # of a configuration that is told
        yield from _error(subject, NotACheckpoint)
    checkpoint = subject.checkpoint
    archive = _archive(subject) if checkpoint is not None and checkpoint.format == "archive" else None
    if archive is None or checkpoint is None:
        return
    parts = {part.path.removeprefix(f"{checkpoint.path}: ") for part in checkpoint.parts}
    for member in archive.members:
        if member.name.lower().endswith(MODEL_SUFFIXES) and member.name not in parts:
            try:
                open_checkpoint(archive.open(member))
            except NotACheckpoint as error:
                yield subject.finding(error.problem, member=member.name, remedy=error.remedy or "")
            except CkptError:  # it was not read; the coverage tells
                continue


@rule("I102", "unread-content", "error")
def unread_content(subject: Subject) -> Iterator[Finding]:
    """The file holds something that was not looked at, and a loader might.

    Why: an audit that passes over what it does not understand says nothing about the file. Whatever --fail-on says,
    the exit code is not 0.

    Example: an encrypted member of an archive, bytes behind the end of a pickle, a member of unknown format.

    Remedy: take the part out of the file, or save the model in a format that has no room for it (safetensors).
    """
    if subject.error is not None:
        return
    for region in subject.coverage.unread:
        yield subject.finding(
            f"{count(region.size, 'byte')} not looked at: {region.what}",
            member=region.member,
            offset=region.offset,
            evidence={"bytes": region.size},
        )


@rule("I103", "damaged", "error")
def damaged(subject: Subject) -> Iterator[Finding]:
    """The file contradicts its own format: it is truncated, or parts of it are missing, overlap or do not fit.

    Why: a loader fails on it, or worse, does not notice. The message names the first contradiction.

    Example: a download that broke off; a storage that is missing, or shorter than the tensor that lies in it; in
    safetensors tensors that overlap, holes between them, bytes after the last, a name that occurs twice, a header
    longer than the file; a missing shard.

    Remedy: fetch the file again, or save it again from its source.
    """
    yield from _error(subject, CorruptFile, LimitExceeded)


@rule("I104", "beyond-limits", "error")
def beyond_limits(subject: Subject) -> Iterator[Finding]:
    """The file declares sizes, counts or depths that its bytes cannot stand behind.

    Why: no program writes such files. Loading them takes memory or time without end.

    Example: a pickle that refers to itself until it has copied gigabytes; a member deflated ten thousand times;
    ``bytearray(1 << 40)``.

    Remedy: do not load the file; ask where it comes from.
    """
    yield from _error(subject, LimitExceeded)
    for pickle in subject.pickles:
        if any("call" in use.uses and _reserves(use.module, use.name) for use in pickle.globals):
            for call in pickle.evaluation.calls:
                asked = max((value for value in call.arguments if type(value) is int), default=0)
                if asked > max(MAX_RESERVED, subject.size) and _reserves(*call.target.rpartition(".")[::2]):
                    what = f"a pickle has {call.target} take room for {asked:,} elements, of which it gives none"
                    yield subject.finding(what, member=pickle.member, offset=call.offset)


MAX_RESERVED = 1 << 28
"""How many elements a pickle may have memory taken for, beyond those that it holds."""
_RESERVES = r"(?:builtins|__builtin__)\.(?:bytearray|bytes)|torch\.(?:\w+\.)*\w+(?:Storage|Tensor)"


@lru_cache(maxsize=256)
def _reserves(module: str, name: str) -> bool:
    """Whether a function makes something as long as the number that it is given."""
    return re.fullmatch(_RESERVES, f"{module}.{name}") is not None


@rule("I105", "unsupported", "error")
def unsupported(subject: Subject) -> Iterator[Finding]:
    """The file is well-formed as far as can be told, but this version of ckpt-tools cannot read it.

    Why: what cannot be read was not examined, although something else may load it.

    Example: a tar archive compressed with gzip, an HDF5 file of Keras, an encrypted archive.

    Remedy: unpack or convert it, and audit what it holds.
    """
    error = subject.error
    if error is not None and not isinstance(error, NotACheckpoint | CorruptFile):
        yield from _error(subject, type(error))


# --- zip archives


def _archive(subject: Subject) -> Archive | None:
    """The zip archive that the file is; None where it is none."""
    return subject.archive if subject.file is not None and subject.file.peek(0, 2) == b"PK" else None


@rule("I201", "crc-mismatch", "error", needs="bytes")
def crc_mismatch(subject: Subject) -> Iterator[Finding]:
    """A member of the archive does not have the checksum that the archive gives for it.

    Why: a bit has flipped, or the bytes were changed after the file was written. torch.load does not compare the
    checksums of members and loads the changed weights without a word.

    Example: one flipped byte in ``archive/data/3``.

    Remedy: fetch the file again; if it is the same, compare its digest with the one that its author gives.
    """
    archive = _archive(subject)
    if archive is None or not any(member.crc for member in archive.members):
        return  # torch.serialization.set_crc32_options(False) leaves them all at 0; that is a rule of its own
    left = MAX_INFLATED
    for member in archive.members:
        left -= member.size if member.size > member.compressed_size else 0
        if left < 0:
            raise LimitExceeded(f"more than {MAX_INFLATED:,} bytes would be inflated", member=member.name)
    from ckpt_tools.analysis.streaming import in_order

    threads = 2 if subject.size > SMALL else 1
    # what was read is known by its member's name, which several may have
    times = Counter(member.name for member in archive.members)
    known, none = subject.checksums, Checksums()
    jobs = [partial(_checksum, archive, m, known if times[m.name] == 1 else none) for m in archive.members]
    for member, found in zip(archive.members, in_order(jobs, threads), strict=True):
        declared = f"{member.crc:08x}"
        if isinstance(found, CorruptFile):
            yield subject.finding(found.problem, member=member.name, evidence={"declared": declared})
        elif found is not None and found != member.crc:
            yield subject.finding(
                f"its checksum is {found:08x}, where the archive has {declared}",
                member=member.name,
                evidence={"declared": declared, "found": f"{found:08x}"},
            )


def _checksum(archive: Archive, member: Member, known: Checksums) -> int | CorruptFile | None:
    """The CRC-32 of a member's bytes; None where they cannot be had, which the coverage tells."""
    try:
        content = archive.open(member)
        found = known.of(content)
        if isinstance(content, Inflated) and (behind := content.behind()):
            return CorruptFile(f"{count(behind, 'byte')} follow where its deflated bytes end", path=content.name)
    except UnsupportedFeature:
        return None
    except CorruptFile as error:
        return error
    return found


@rule("I202", "no-checksums", "note")
def no_checksums(subject: Subject) -> Iterator[Finding]:
    """The archive has no checksums: all of them are 0.

    Why: nobody can tell whether a byte of it has changed.

    Example: a file saved under ``torch.serialization.set_crc32_options(False)``.

    Remedy: save with checksums, or keep the digest of the file elsewhere (`ckpt digest`).
    """
    archive = _archive(subject)
    if archive is not None and any(m.size for m in archive.members) and not any(m.crc for m in archive.members):
        yield subject.finding(f"none of {count(len(archive.members), 'member')} has a checksum")


@rule("I203", "header-mismatch", "error")
def header_mismatch(subject: Subject) -> Iterator[Finding]:
    """The two headers of a member, the one before its bytes and the one in the directory, disagree.

    Why: torch goes by the directory, other readers by what stands before the bytes. Such a file can show each of
    them something else, which is how scanners have been deceived.

    Example: a member that is ``data.pkl`` in the directory and ``readme.txt`` in its own header.

    Remedy: do not trust the file; pack it again from what you know to be in it.
    """
    archive = _archive(subject)
    if archive is None:
        return
    for member, other in archive.aliases():
        what = f"an extra field has another name, {other!r:.200}, by which Python knows it since 3.12"
        yield subject.finding(what, member=member.name, evidence={"name": other})
    for member in archive.members if not archive.is_plain else ():
        differences = list(_differences(member, archive.local(member)))
        if differences:
            yield subject.finding(
                "its own header has " + "; ".join(differences),
                member=member.name,
                evidence={"differences": differences, "header_offset": member.header_offset},
            )


def _differences(member: Member, local: Local) -> Iterator[str]:
    """What the local header says otherwise; sizes and checksums that it leaves to others do not count."""
    if not local.fields:
        yield "no signature"
        return
    _, _, flags, method, _, _, crc, packed, size, _, _ = local.fields
    if local.name != member.name:
        yield f"the name {shortened(local.name)}"
    if method != member.method:
        yield f"the compression method {method}, not {member.method}"
    if flags != member.flags:
        yield f"the flags {flags:#x}, not {member.flags:#x}"
    for what, here, there, form in (("checksum", crc, member.crc, "08x"), ("size", size, member.size, ",")):
        later = here == 0 and member.flags & STREAMED
        if here != there and not later and here != 0xFFFFFFFF:
            yield f"the {what} {here:{form}}, not {there:{form}}"
    if packed not in (member.compressed_size, 0xFFFFFFFF) and not (packed == 0 and member.flags & STREAMED):
        yield f"the packed size {packed:,}, not {member.compressed_size:,}"


@rule("I204", "duplicate-members", "error")
def duplicate_members(subject: Subject) -> Iterator[Finding]:
    """Several members of the archive answer to one name.

    Why: torch looks names up without regard to case and may open another one than Python's zipfile does, so that a
    scanner and the loader do not see the same bytes.

    Example: ``archive/data.pkl`` twice, or together with ``archive/DATA.PKL``.

    Remedy: pack the archive again with one of them, after looking at each.
    """
    archive = _archive(subject)
    for names in archive.duplicates if archive is not None else ():
        assert archive is not None
        chosen = archive.find(names[0])
        place = chosen.header_offset if chosen is not None else 0
        last = [member for member in archive.members if member.name == names[-1]][-1]
        python = "the same" if last.header_offset == place else f"the one at byte {last.header_offset:,}"
        yield subject.finding(
            f"{len(names)} members are called {shortened(' = '.join(dict.fromkeys(names)))}; torch opens the one "
            f"whose header is at byte {place:,}, Python's zipfile {python}",
            member=names[0],
            evidence={"names": list(names), "torch_opens": place, "zipfile_opens": last.header_offset},
        )


@rule("I205", "overlapping-members", "error")
def overlapping_members(subject: Subject) -> Iterator[Finding]:
    """Members of the archive take the same bytes of the file.

    Why: no writer makes such archives; they are bombs, or hide one member behind another.

    Example: a thousand members that all point to the same deflated gigabyte.

    Remedy: do not unpack the file; ask where it comes from.
    """
    archive = _archive(subject)
    end, previous = 0, ""
    for member, local in archive.placed if archive is not None and not archive.is_plain else ():
        if member.header_offset < end:
            yield subject.finding(
                f"it begins at byte {member.header_offset:,}, within {shortened(previous)}, which ends at byte {end:,}",
                member=member.name,
                evidence={"begins": member.header_offset, "other": previous, "other_ends": end},
            )
        if local.start + member.compressed_size > end:
            end, previous = local.start + member.compressed_size, member.name


@rule("I206", "orphaned-storage", "warning")
def orphaned_storage(subject: Subject) -> Iterator[Finding]:
    """A storage in the archive belongs to no tensor.

    Why: it takes room, and is left from other weights or put there for another purpose.

    Example: ``archive/data/7``, to which ``data.pkl`` does not refer.

    Remedy: save the checkpoint again, or convert it: what no tensor refers to stays behind.
    """
    archive = _archive(subject)
    checkpoint = subject.checkpoint
    if archive is None or checkpoint is None or checkpoint.format not in _WITH_STORAGES:
        return
    folder = f"{archive.root}data/"
    for member in subject.other_members:
        if member.size and member.name.startswith(folder) and member.name.removeprefix(folder).isdecimal():
            yield subject.finding(
                f"{count(member.size, 'byte')} that no tensor refers to",
                member=member.name,
                evidence={"bytes": member.size},
            )


_WITH_STORAGES = frozenset({"torch_zip", "torchscript"})


@rule("I207", "storage-too-long", "warning")
def storage_too_long(subject: Subject) -> Iterator[Finding]:
    """A storage has more bytes in the archive than the pickle declares.

    Why: loaders read the declared part and pass over the rest, in which anything may stand.

    Example: ``archive/data/0`` of 4,096 bytes for a storage of 1,000 float32.

    Remedy: save the checkpoint again, or convert it: what lies beyond stays behind.
    """
    checkpoint = subject.checkpoint
    if checkpoint is None or checkpoint.format not in _WITH_STORAGES:
        return
    for storage in subject.coverage.storages:
        if storage.missing is None and storage.source.size > storage.nbytes:
            yield subject.finding(
                f"the member has {storage.source.size:,} bytes, the storage {storage.nbytes:,}",
                member=storage.source.name.removeprefix(f"{checkpoint.path}: "),
                evidence={"member": storage.source.size, "storage": storage.nbytes},
            )


@rule("I208", "missing-storage", "error")
def missing_storage(subject: Subject) -> Iterator[Finding]:
    """The bytes of a tensor are not where the file says that they are.

    Why: what loads the file fails, or with it the service that starts from it. The file alone looks whole: it is
    small, and its graph and names are there.

    Example: ``model.onnx`` without its ``model.onnx.data``, or with one that a copy cut short.

    Remedy: fetch the file that the message names, and keep it beside this one.
    """
    checkpoint = subject.checkpoint
    if all(storage.missing is None for storage in subject.coverage.storages):
        return
    found: dict[str, list[str]] = {}
    for tensor in all_tensors(checkpoint) if checkpoint is not None else ():
        for storage in tensor.storages():
            if storage.missing is not None:
                found.setdefault(storage.missing, []).append(tensor.name)
    for why, names in found.items():
        yield subject.finding(
            f"the bytes of {count(len(names), 'tensor')} are missing: {why} ({listed(names, 3)})",
            tensor=names[0],
            evidence={"tensors": names[:100]},
        )


# --- what readers pass over


def _has_anomalies(subject: Subject) -> bool:
    return subject.checkpoint is not None and bool(subject.checkpoint.anomalies)


@rule("I301", "oddity", "warning", when=_has_anomalies)
def oddity(subject: Subject) -> Iterator[Finding]:
    """Something about the file is odd, and loaders pass over it in silence.

    Why: programs that write checkpoints do not make such files. It is damage, or an attempt to show different
    readers different things.

    Example: bytes after the last storage of a legacy file; a storage that is stored twice; a JSON header that
    begins with white space; an archive whose version no torch has written.

    Remedy: find out what wrote the file; save it again with torch.
    """
    checkpoint = subject.checkpoint
    for anomaly in _anomalies(subject):
        if checkpoint is not None and checkpoint.format != "sharded":
            yield _about(subject, anomaly)


@rule("I302", "index-mismatch", "warning", when=_has_anomalies)
def index_mismatch(subject: Subject) -> Iterator[Finding]:
    """The index of a sharded checkpoint and its shards disagree.

    Why: loaders go by the shards; what the index promises may not be there, or be there twice.

    Example: a ``total_size`` that is not that of the tensors; a tensor that stands in two shards, or in another one
    than the index says; a shard that the index does not mention.

    Remedy: fetch the index and the shards again, from one revision, or write the index anew.
    """
    checkpoint = subject.checkpoint
    for anomaly in _anomalies(subject):
        if checkpoint is not None and checkpoint.format == "sharded":
            yield _about(subject, anomaly)


def _about(subject: Subject, anomaly: Anomaly) -> Finding:
    place = re.fullmatch(r"(?:(?P<member>.*?), )?byte (?P<offset>[\d,]+)", anomaly.where)
    if place is None:
        return subject.finding(anomaly.what, member=anomaly.where)
    return subject.finding(anomaly.what, member=place["member"] or "", offset=int(place["offset"].replace(",", "")))


def _anomalies(subject: Subject) -> Iterator[Anomaly]:
    """The anomalies of the checkpoint, but those that another rule reports, or that concern a module's code."""
    checkpoint = subject.checkpoint
    if checkpoint is None:
        return
    hints = (
        {hint for _, part in checkpoint.module.walk() for hint in part.state_dict_hints} if checkpoint.module else ()
    )
    for anomaly in checkpoint.anomalies:
        if anomaly.what not in hints and "answer to the same name" not in anomaly.what:
            yield anomaly


RULES: tuple[Rule, ...] = (
    not_a_checkpoint,
    unread_content,
    damaged,
    beyond_limits,
    unsupported,
    crc_mismatch,
    no_checksums,
    header_mismatch,
    duplicate_members,
    overlapping_members,
    orphaned_storage,
    storage_too_long,
    missing_storage,
    oddity,
    index_mismatch,
)
