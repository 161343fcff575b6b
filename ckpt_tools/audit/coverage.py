"""What has been looked at: every byte of a file is examined, tensor data, inert or unread.

A format reads what its own loader would read. This looks at the rest: members of an archive under any name,
bytes after the end, what lies between. What is a pickle there is evaluated like the others.
"""

from __future__ import annotations

from bisect import bisect_right
from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Literal

from ckpt_tools.checkpoint import Checkpoint, Pickle, Storage, TensorInfo
from ckpt_tools.errors import CkptError
from ckpt_tools.formats import FORMATS
from ckpt_tools.formats.archive import Archive, Member, MissingDirectory, prefix
from ckpt_tools.formats.base import HEAD_BYTES, HeaderEnd
from ckpt_tools.formats.tar import BLOCK, entries, is_header, tail
from ckpt_tools.formats.unpickled import load_buffer, pickle_of
from ckpt_tools.pickles.machine import Evaluation, Truncated, evaluate
from ckpt_tools.records import comparable, record
from ckpt_tools.sources import Folder, Inflated, Source

How = Literal["examined", "tensor data", "inert", "unread"]
"""Read and understood; numbers of a tensor; of a kind that no loader runs (text, padding); none of these."""

MAX_DEPTH = 3
"""How deep archives may lie in archives."""
MAX_MEMBERS = 20_000
"""How many members of one archive are looked into, and how many pickles in a row."""
MAX_INFLATED = 1 << 30
"""The most bytes that are inflated in order to look into members."""
OVERLAPS = 4
"""How often the bytes of a storage are evaluated as pickles, for views that overlap."""
AS_PICKLE = "the same bytes as a pickle"
"""The name of a pickle that a file of another format is, too."""
TEXT_BYTES = 1 << 20
"""How much is read at once to see that it is text."""


@comparable
class Region:
    """*size* bytes of a file, or of the archive member *member*; *what* says what they are."""

    member: str
    offset: int
    size: int
    how: How
    what: str = ""


@record
class Coverage:
    """*regions* in file order. *pickles* are those that the checkpoint's own format does not lead to: in other
    members of the archive, in what a broken file still holds. *checkpoints* are files in the file, by member.
    *storages* are all that a tensor or a pickle of the checkpoint refers to.
    """

    regions: tuple[Region, ...] = ()
    pickles: tuple[Pickle, ...] = ()
    checkpoints: tuple[tuple[str, Checkpoint], ...] = ()
    storages: tuple[Storage, ...] = ()

    @property
    def unread(self) -> tuple[Region, ...]:
        """What was not examined."""
        return tuple(region for region in self.regions if region.how == "unread")


def cover(
    source: Source | Folder, checkpoint: Checkpoint | None, error: CkptError | None = None, *, depth: int = 0
) -> Coverage:
    """What of *source* the description accounts for, and what the rest is.

    *checkpoint* is None where it could not be read, because of *error*. Of an `Opening`, what was opened in it
    is covered.
    """
    survey = _Survey(checkpoint, error, depth)
    if isinstance(source, Source):
        survey.file(source, "")
    for name, file in source.opened.items() if isinstance(source, Opening) else ():
        survey.file(file, name)
    if error is not None and not survey.pickles:
        survey.pickles += _unfinished(error, error.member or "pickle", source if isinstance(source, Source) else None)
    return Coverage(tuple(survey.regions), tuple(survey.pickles), tuple(survey.checkpoints), survey.storages)


def in_tensors(checkpoint: Checkpoint) -> Iterator[Pickle]:
    """The pickles that tensors of bytes are, as layers of Transformer Engine keep what they want to unpickle.

    ``set_extra_state`` gets such a tensor whatever file it comes from, and hands its bytes to ``pickle.loads``.
    """
    seen: set[tuple[int, int, int]] = set()
    left: dict[int, int] = {}  # bytes of each storage that are evaluated: views may overlap
    for tensor in all_tensors(checkpoint):
        storage = tensor.storage
        if len(tensor.shape) != 1 or tensor.dtype.name not in ("uint8", "int8"):
            continue
        view = id(storage), tensor.storage_offset, tensor.numel
        if view in seen:
            continue
        seen.add(view)
        if storage is None or storage.missing or not tensor.contiguous or tensor.numel > MAX_INFLATED:
            continue
        place = storage.offset + tensor.storage_offset
        source = storage.source.slice(place, tensor.numel, f"{checkpoint.path}: {tensor.name}")
        try:
            head = source.peek(0, 4)
            is_pickle = tensor.name.endswith("_extra_state") or (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5")
            if not is_pickle and head != b"PK\x03\x04":
                continue
            budget = left.get(view[0], OVERLAPS * storage.nbytes)
            left[view[0]] = budget - tensor.numel
            if budget < 0:
                continue  # which was told
            if budget < tensor.numel:
                left[view[0]] = -1
                problem = "tensors overlap in the same bytes more often than is looked at"
                found = [replace(pickle_of(Evaluation(0), "", source), problem=problem)]
            elif head == b"PK\x03\x04":
                from ckpt_tools.formats import open_checkpoint  # rarely needed

                found = list(open_checkpoint(source).pickles)
            else:
                found = _pickles(source, "")
        except CkptError:
            continue
        for pickle in found:
            inner = f": {pickle.member}" if pickle.member else ""
            yield replace(pickle, member=f"the bytes of {tensor.name or 'a tensor'}{inner}")


def all_tensors(checkpoint: Checkpoint) -> Iterator[TensorInfo]:
    """Every tensor that the description has, parts included; one may come more than once."""
    for found in checkpoint.state_dicts:
        yield from found.tensors
    yield from _tensors_elsewhere(checkpoint)


def _tensors_elsewhere(checkpoint: Checkpoint) -> Iterator[TensorInfo]:
    """Those of the module, the loose ones, and the state of optimizers."""
    if checkpoint.module is not None:
        for _, module in checkpoint.module.walk():
            for registry in (module.parameters, module.buffers):
                yield from (tensor for tensor in registry.values() if tensor is not None)
    for _, tensor in checkpoint.loose:
        yield tensor
    if checkpoint.training is not None:
        for optimizer in checkpoint.training.optimizers:
            for state in optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, TensorInfo))


def all_storages(checkpoint: Checkpoint) -> list[Storage]:
    """Every storage that a tensor or a pickle of *checkpoint* refers to, once."""
    found: dict[int, Storage] = {}
    entries = (entry for state_dict in checkpoint.state_dicts for entry in state_dict.entries.values())
    tensors = (entry for entry in entries if isinstance(entry, TensorInfo))
    for tensor in chain(tensors, _tensors_elsewhere(checkpoint)):
        if tensor.storage is not None:
            found[id(tensor.storage)] = tensor.storage
        for _, part in tensor.parts:
            for storage in part.storages():
                found[id(storage)] = storage
    for pickle in checkpoint.pickles:
        for storage in pickle.storages:
            found[id(storage)] = storage
    return list(found.values())


class _Survey:
    """The state of one `cover`."""

    def __init__(self, checkpoint: Checkpoint | None, error: CkptError | None, depth: int) -> None:
        self.checkpoint = checkpoint
        self.error = error
        self.depth = depth
        self.regions: list[Region] = []
        self.pickles: list[Pickle] = []
        self.checkpoints: list[tuple[str, Checkpoint]] = []
        self.left = MAX_INFLATED
        self.data: dict[str, list[tuple[int, int]]] = {}
        self.known = checkpoint.pickles if checkpoint else ()
        self.read: dict[str, int] = {}  # where the pickles in each member end
        for pickle in self.known:
            self.read[pickle.member] = max(pickle.offset + pickle.size, self.read.get(pickle.member, 0))
        self.storages = tuple(all_storages(checkpoint)) if checkpoint else ()
        for storage in self.storages:
            try:
                for root, offset, size in storage.source.extents(storage.offset, storage.nbytes):
                    ranges = self.data.get(root.name)
                    if ranges is None:
                        ranges = self.data[root.name] = []
                    end = offset + size
                    ranges.append((offset, end if end < root.size else root.size))
                    if type(root) is Inflated:
                        self._note_deflated(root)
            except CkptError:  # a storage without bytes; a rule says so
                continue
        self.data = {name: _merged(sorted(ranges)) for name, ranges in self.data.items()}
        self.parts: dict[tuple[str, int], Checkpoint] = {}
        for part in checkpoint.parts if checkpoint else ():
            if isinstance(part.source, Source):
                for root, offset, _ in _places(part.source, 0, part.source.size):
                    self.parts[root.name, offset] = part

    def _note_deflated(self, inflated: Inflated) -> None:
        """Note where the bytes are that *inflated* is read from."""
        for root, offset, size in _places(inflated.compressed, 0, inflated.compressed.size):
            self.data.setdefault(root.name, []).append((offset, min(offset + size, root.size)))

    def file(self, source: Source, label: str) -> None:
        """Cover one file; *label* goes before the names of what is in it."""
        part = self.parts.get((source.name, 0)) if label else None
        if part is not None:
            self._inside(label, part, cover(source, part, depth=self.depth))
            return
        archive = _archive(source)
        is_zip = source.peek(0, 2) == b"PK"
        if archive is not None and is_zip and not (self.checkpoint and self.checkpoint.format == "distributed"):
            self._zip(archive, label)
            return
        if self.checkpoint is not None:
            self._flat(source, label)
            if self.checkpoint.format == "torch_tar":
                self._tar(source, label, _OF_TORCH_TAR)
        elif not self._look(source, label):
            what = self.error.problem if self.error is not None else "no format that is known"
            self.regions.append(Region(label, 0, source.size, "unread", what))
        if archive is not None and not is_zip:
            # a file of another format that ends in a zip archive, which zip readers would open
            self._zip(archive, f"{label}: zip at the end" if label else "zip at the end")

    def _flat(self, source: Source, label: str) -> None:
        """A file without members: what is no tensor's is header, which the format has read, up to the last."""
        assert self.checkpoint is not None
        format = self.checkpoint.format
        ranges = self.data.get(source.name, [])
        streams = format in ("pickle", "torch_legacy") or (format == "npy" and not ranges and bool(self.known))
        header = source.memo.get(HeaderEnd) if format == "gguf" else None
        position = header if isinstance(header, int) else 0
        if position:
            self.regions.append(Region(label, 0, position, "examined"))
        for start, end in ranges:
            if start > position and isinstance(header, int):
                self._gap(source, position, start, label, "between tensors")
            elif start > position:
                self.regions.append(Region(label, position, start - position, "examined"))
            self.regions.append(Region(label, start, end - start, "tensor data"))
            position = max(position, end)
        if not (streams or isinstance(header, int) or (ranges and format in _ENDS_WITH_TENSORS)):
            self.regions.append(Region(label, position, source.size - position, "examined"))
            position = source.size
        # those in the bytes of a storage count from there; the fifth of a legacy file lists the storages' keys
        own = (p for p in self.checkpoint.pickles if p.member == "storage keys" or not p.member.startswith("storage "))
        ends = [_end(pickle) for pickle in own] if streams else []
        last = max([position, *ends])
        if last > position:
            self.regions.append(Region(label, position, last - position, "examined"))
        if last < source.size:
            self._gap(source, last, source.size, label, "after the end")
        if format in _WITHOUT_PICKLES:
            # tensors may be such that all of the file is a pickle, to those who take it for one
            found = _pickles(source, f"{label}: {AS_PICKLE}" if label else AS_PICKLE)
            self.pickles += [pickle for pickle in found if pickle.globals]

    def _gap(self, source: Source, start: int, end: int, label: str, where: str) -> None:
        """Bytes that no format leads to: pickles in them are evaluated; zeros are padding."""
        end = min(end, source.size)  # a length that is damaged may reach further
        if start >= end:
            return
        padding = 0
        for chunk in source.slice(start, end - start, source.name).chunks(size=1 << 16):
            padding += len(chunk) - len(chunk.lstrip(b"\0"))
            if chunk.count(0) < len(chunk):
                break
        if padding:
            self.regions.append(Region(label, start, padding, "inert", f"zeros {where}"))
            start += padding
        if start == end:
            return
        rest = source.slice(start, end - start, source.name)
        found = _pickles(rest, f"{label}: {where}" if label else where)
        for pickle in found:
            self.pickles.append(replace(pickle, offset=start + pickle.offset))
        read = sum(pickle.size for pickle in found)
        if read:
            self.regions.append(Region(label, start, read, "examined", f"pickles {where}"))
        if start + read < end:
            text = not read and _is_text(rest)
            how: How = "inert" if text else "unread"
            what = f"{'text' if text else 'bytes'} {where}"
            self.regions.append(Region(label, start + read, end - start - read, how, what))

    def _zip(self, archive: Archive, label: str) -> None:
        source = archive.source
        root, base = next(((root.name, at) for root, at, _ in source.extents(0, source.size)), (source.name, 0))
        whole = set(() if self.parts else self.data.get(root, ()))
        for member, local in archive.placed:
            start, size = base + local.start, member.size
            if (start, start + size) in whole and size:  # as nearly all are
                self.regions.append(Region(f"{label}: {member.name}" if label else member.name, 0, size, "tensor data"))
            else:
                self._member(archive, member, root, start, label)
        for where, start, size in archive.asides():
            self._gap(source, start, start + size, label, where)

    def _member(self, archive: Archive, member: Member, root: str, start: int, label: str) -> None:
        """A member whose bytes begin at *start* of the file *root*."""
        name = f"{label}: {member.name}" if label else member.name
        size = member.size
        if not size:
            return
        part = self.parts.get((root, start)) if self.parts else None
        if part is not None and isinstance(part.source, Source):
            # what the format says of it is in the checkpoint already
            self._inside(name, part, cover(part.source, part, depth=self.depth + 1))
            return
        ranges = self.data.get(root)
        first = _first_in(start, start + member.compressed_size, ranges) if ranges else None
        if first is not None:
            self.regions.append(Region(name, 0, size, "tensor data" if first == start else "examined"))
            bare = first == start or (self.checkpoint is not None and self.checkpoint.format == "npz")
            end = _last_in(start, start + size, ranges) if ranges and bare and not member.method else None
            if end is not None and end < start + size:
                self._gap(archive.open(member), end - start, size, name, "after the tensor's bytes")
            return
        end = self.read.get(name) or self.read.get(member.name)
        chosen = archive.find(member.name) if end else None
        if end and chosen is not None and chosen.header_offset == member.header_offset:
            self.regions.append(Region(name, 0, end, "examined"))
            if end < size:
                self._gap(archive.open(member), end, size, name, "after the pickle")
            return
        if member.compressed_size < size:
            self.left -= size
            if self.left < 0:
                self.regions.append(Region(name, 0, size, "unread", "deflated, with more before it than is inflated"))
                return
        try:
            content = archive.open(member)
            if isinstance(content, Inflated) and (behind := content.behind()):
                at = content.compressed_size - behind
                self._gap(content.compressed, at, content.compressed_size, name, "after the deflated bytes")
            if not self._look(content, name):
                orphan = self._is_storage(archive, member)
                what = "a storage that no tensor refers to" if orphan else "no format that is known"
                self.regions.append(Region(name, 0, size, "inert" if orphan else "unread", what))
        except CkptError as error:
            self.regions.append(Region(name, 0, size, "unread", error.problem))

    def _is_storage(self, archive: Archive, member: Member) -> bool:
        """Whether the member is named as torch names storages; it reads those that a pickle refers to."""
        folder = f"{archive.root}data/"
        torch = self.checkpoint is not None and self.checkpoint.format in ("torch_zip", "torchscript")
        return torch and member.name.startswith(folder) and member.name.removeprefix(folder).isdecimal()

    def _look(self, source: Source, name: str) -> bool:
        """Look into what no format led to; False where it is none that is known."""
        if source.size <= 64 and ((head := source.peek(0, 64).rstrip(b"\n")).isdigit() or head in (b"little", b"big")):
            # torch's own members; no pickle of these letters does anything
            self.regions.append(Region(name, 0, source.size, "inert", "text"))
            return True
        found = _pickles(source, name or "pickle")
        if found:
            self.pickles += found
            end = found[-1].offset + found[-1].size
            self.regions.append(Region(name, 0, end, "examined", "pickle"))
            if end < source.size:
                self.regions.append(Region(name, end, source.size - end, "unread", "bytes after a pickle"))
            return True
        if _is_text(source):
            self.regions.append(Region(name, 0, source.size, "inert", "text"))
            return True
        if is_header(source.peek(0, BLOCK)):
            return self._tar(source, name)
        if name and self.depth + 1 < MAX_DEPTH:  # without a name it is the file that no format could read
            head = source.peek(0, HEAD_BYTES)
            for format in FORMATS:
                if format.detect is not None and format.detect(source, head):
                    return self._nested(source, name, format.read)
        return False

    def _tar(self, source: Source, name: str, read: frozenset[str] = frozenset()) -> bool:
        """A tar archive, of which the entries *read* are known; False where it holds nothing."""
        known = False
        for entry in entries(source):
            label = f"{name}: {entry.name}" if name else entry.name
            if entry.regular and entry.size and entry.name not in read:
                content = source.slice(entry.offset, min(entry.size, source.size - entry.offset), entry.name)
                known = True
                if not self._look(content, label):
                    self.regions.append(Region(label, 0, entry.size, "unread", "no format that is known"))
        behind = tail(source)
        if behind < source.size:
            self._gap(source, behind, source.size, name, "after the end")
        return known

    def _nested(self, source: Source, name: str, read: Callable[..., Checkpoint]) -> bool:
        """A checkpoint in the file."""
        inner: Checkpoint | None = None
        problem: CkptError | None = None
        try:
            inner = read(source)
        except CkptError as error:
            problem = error
        seen = cover(source, inner, problem, depth=self.depth + 1)
        if inner is None:
            self.pickles += [replace(pickle, member=f"{name}: {pickle.member}") for pickle in seen.pickles]
            self.regions.append(Region(name, 0, source.size, "unread", problem.problem if problem else ""))
            return True
        # the format may have been there under another name: those of the same size are the same
        known = Counter(p.size for p in self.known if p.member.startswith(f"{name}: "))
        for pickle in inner.pickles:
            known[pickle.size] -= 1
            if known[pickle.size] < 0:
                self.pickles.append(replace(pickle, member=f"{name}: {pickle.member}"))
        self.checkpoints.append((name, inner))
        self._inside(name, inner, seen)
        return True

    def _inside(self, name: str, inner: Checkpoint, seen: Coverage) -> None:
        """Take over what was seen in the member *name*, which is the checkpoint *inner*."""
        self.pickles += [replace(pickle, member=f"{name}: {pickle.member}") for pickle in seen.pickles]
        self.checkpoints += [(f"{name}: {place}", found) for place, found in seen.checkpoints]
        self.regions.append(Region(name, 0, inner.size, "examined", inner.title))
        self.regions += [
            replace(region, member=f"{name}: {region.member}" if region.member else name)
            for region in seen.regions
            if region.how == "unread"
        ]


_OF_TORCH_TAR = frozenset({"sys_info", "pickle", "tensors", "storages"})

_WITHOUT_PICKLES = frozenset({"npy", "safetensors", "gguf", "onnx"})
"""Formats of which no program takes a file for a pickle, unless it is told to."""

_ENDS_WITH_TENSORS = frozenset({"npy", "safetensors"})
"""Formats in which nothing stands after the last tensor."""


def _archive(source: Source) -> Archive | None:
    """The zip archive that *source* is or ends in; None where there is none."""
    try:
        return Archive.of(source)
    except MissingDirectory:
        return None
    except CkptError:
        pass
    try:
        # offsets may count from where the archive begins in the file, as Python's zipfile allows for
        skipped = prefix(source)
        return Archive.of(source.slice(skipped, source.size - skipped, source.name)) if skipped > 0 else None
    except CkptError:
        return None


def _places(source: Source, offset: int, size: int) -> list[tuple[Source, int, int]]:
    """Where bytes of *source* lie: in the outermost source, and in what is inflated on the way there."""
    found: list[tuple[Source, int, int]] = []
    try:
        for place in source.extents(offset, size):
            found.append(place)
            if type(place[0]) is Inflated:
                found += _places(place[0].compressed, 0, place[0].compressed.size)
    except CkptError:  # a storage without bytes; a rule says so
        pass
    return found


def _pickles(source: Source, member: str) -> list[Pickle]:
    """The pickles that stand one after the other at the beginning of *source*, an unfinished last one included.

    Almost any byte is some opcode, so text may pass for a pickle. Without the mark of a protocol, only what
    calls something or holds values counts.
    """
    head = source.peek(0, HEAD_BYTES)
    try:
        evaluate(head)
    except Truncated:
        pass
    except CkptError as error:
        return _unfinished(error, member, source)
    try:
        data = load_buffer(source)
    except CkptError:
        return []
    found: list[Pickle] = []
    position = 0
    while position < source.size and len(found) < MAX_MEMBERS:
        try:
            evaluation = evaluate(data, position)
        except CkptError as error:
            found += _unfinished(error, member, source)
            break
        whole = isinstance(evaluation.root, dict | list | tuple | set) and evaluation.end == source.size
        marked = evaluation.protocol >= 2 or _does_something(evaluation)
        if not (marked or (whole and evaluation.root) or _imports(evaluation)):
            break
        found.append(pickle_of(evaluation, member, source))
        position = evaluation.end
    return found


def _unfinished(error: CkptError, member: str, stream: Source | None) -> list[Pickle]:
    """What a pickle that cannot be evaluated to its end would do before, if anything."""
    partial = getattr(error, "partial", None)
    if not isinstance(partial, Evaluation) or not _does_something(partial):
        return []
    return [replace(pickle_of(partial, member, stream), problem=error.problem)]


def _imports(evaluation: Evaluation) -> bool:
    """Whether a pickle names something that can be imported, which by itself runs the module's code."""
    names = [name.path for name in evaluation.globals.values()]
    return bool(names) and all(part.isidentifier() for path in names for part in path.split("."))


def _does_something(evaluation: Evaluation) -> bool:
    """Whether a pickle, which may break off, calls something or at least names it under its protocol's mark."""
    return bool(evaluation.calls) or (evaluation.protocol >= 2 and bool(evaluation.globals))


def _is_text(source: Source) -> bool:
    """Whether all of *source* is UTF-8 text."""
    decoder = getincrementaldecoder("utf-8")()
    try:
        for chunk in source.chunks(size=TEXT_BYTES):
            if chunk.translate(None, _OF_TEXT):
                return False
            decoder.decode(chunk)
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return False
    return True


_OF_TEXT = bytes({*range(32, 256), *b"\t\n\r\f\x1b"})
"""Bytes of which UTF-8 text is made, white space and the escape of terminals' colours included."""


def _end(pickle: Pickle) -> int:
    """Where in its file a pickle ends."""
    start = pickle.stream.extents(pickle.offset, pickle.size) if pickle.stream is not None else ()
    return next((at for _, at, _ in start), pickle.offset) + pickle.size


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in ranges:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        elif end > start:
            merged.append((start, end))
    return merged


def _first_in(start: int, end: int, ranges: list[tuple[int, int]]) -> int | None:
    """Where in ``[start, end)`` the first byte is that *ranges* cover; None where there is none."""
    at = bisect_right(ranges, (start, 1 << 64)) - 1
    if at >= 0 and ranges[at][1] > start:
        return start
    if at + 1 < len(ranges) and ranges[at + 1][0] < end:
        return ranges[at + 1][0]
    return None


def _last_in(start: int, end: int, ranges: list[tuple[int, int]]) -> int:
    """Where in ``[start, end)`` the last byte ends that *ranges* cover; *start* where there is none."""
    at = bisect_right(ranges, (end, -1)) - 1
    return max(start, min(end, ranges[at][1])) if at >= 0 else start


class Opening(Folder):
    """A folder that keeps what was *opened* in it, by name: the files that a checkpoint in it is made of."""

    __slots__ = ("_prefix", "_within", "opened")

    def __init__(self, within: Folder, prefix: str = "", opened: dict[str, Source] | None = None) -> None:
        super().__init__(within.name)
        self._within = within
        self._prefix = prefix
        self.opened: dict[str, Source] = {} if opened is None else opened

    def names(self) -> list[str]:
        return self._within.names()

    def folders(self) -> list[str]:
        return self._within.folders()

    def open(self, name: str) -> Source:
        found = self.opened.get(self._prefix + name)
        if found is None:
            found = self.opened[self._prefix + name] = self._within.open(name)
        return found

    def folder(self, name: str) -> Folder:
        return Opening(self._within.folder(name), f"{self._prefix}{name}/", self.opened)
