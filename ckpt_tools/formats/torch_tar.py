"""torch.save before 0.2: a tar archive of ``sys_info``, ``pickle``, ``tensors`` and ``storages``.

``storages`` is a pickled count, for each storage a pickle of (key, location, class), the number of elements
as int64 and the raw bytes, and at last a pickle of views: (key, key of the storage, offset, number of
elements). ``tensors`` is a pickled count, and for each a pickle of (key, storage's key, class), the number of
dimensions in 8 bytes of which 4 count, sizes, strides and the offset as int64. ``pickle`` refers to either by
key. All numbers are little-endian (torch/serialization.py, ``legacy_load`` in ``_legacy_load``).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from struct import Struct

from ckpt_tools.checkpoint import Anomaly, Checkpoint, GlobalUse, Pickle, Refusal, Storage, TensorInfo
from ckpt_tools.dtypes import BY_STORAGE
from ckpt_tools.errors import CkptError, CorruptFile, UnsupportedFeature
from ckpt_tools.formats import torch_legacy
from ckpt_tools.formats.base import HEAD_BYTES, Format
from ckpt_tools.formats.tar import BLOCK, entries, is_header
from ckpt_tools.formats.unpickled import describe, load_buffer, pickle_of, run_machine
from ckpt_tools.pickles.machine import Evaluation, Truncated, evaluate
from ckpt_tools.pickles.torch_objects import MAX_RANK, View, strided
from ckpt_tools.pickles.values import Global, brief
from ckpt_tools.sources import Source

_MAX_ROW = 1 << 20
"""The longest pickle of a row, in bytes."""

_I32 = Struct("<i")
_I64 = Struct("<q")


def detect(source: Source, head: bytes) -> bool:
    """Whether it is a tar archive with torch's members."""
    if not is_header(head[:BLOCK]):
        return False
    names = [entry.name for entry in islice(entries(source), 64)]
    return names[:1] == ["sys_info"] or {"pickle", "storages"} <= set(names)


class Tar:
    """The members of a tar checkpoint, and what the keys in its pickle refer to."""

    def __init__(self, source: Source) -> None:
        self.source = source
        # where a name repeats, Python's tarfile takes the last
        self._entries = {entry.name: entry for entry in entries(source)}
        self.anomalies: list[Anomaly] = []
        self.pickles: list[Pickle] = []
        self.objects: dict[int, Storage | View | TensorInfo] = {}
        for name, read_rows in (("storages", self._read_storages), ("tensors", self._read_tensors)):
            try:
                read_rows(self.member(name))
            except CkptError as error:
                raise error.at(path=source.name, member=name) from None

    def member(self, name: str) -> Source:
        """The bytes of the member *name*."""
        entry = self._entries.get(name)
        if entry is None:
            raise CorruptFile(
                f"the tar archive has no member {name!r}: it is truncated, or was never whole",
                path=self.source.name,
            )
        if not entry.regular:
            raise CorruptFile("the member is no regular file", path=self.source.name, member=name)
        if entry.sparse:
            raise UnsupportedFeature(
                "the member is a sparse file, which torch never wrote", path=self.source.name, member=name
            )
        if entry.offset + entry.size > self.source.size:
            missing = entry.offset + entry.size - self.source.size
            raise CorruptFile(
                f"truncated: the file ends {missing:,} bytes before this member does",
                path=self.source.name,
                member=name,
                remedy="Fetch it again: a download or a copy was cut short",
            )
        return self.source.slice(entry.offset, entry.size, f"{self.source.name}: {name}")

    def optional(self, name: str) -> Source | None:
        """The bytes of a member that torch does without."""
        return self.member(name) if name in self._entries else None

    def persistent(self, pid: object) -> object:
        """What a persistent id stands for: a tensor or a storage; None for a class, with its source."""
        if type(pid) is tuple and pid and type(pid[0]) is Global:
            return None
        key = int(pid) if type(pid) is str and pid.isascii() and pid.isdigit() and len(pid) < 20 else pid
        found = self.objects.get(key) if type(key) is int else None
        if found is None:
            raise CorruptFile(f"the pickle refers to {brief(pid)}, which is no tensor or storage of the file")
        return found

    def _read_storages(self, member: Source) -> None:
        seen: list[Evaluation] = []
        position = self._step(member, 0, seen)
        total = _count(seen[0].root, member)
        for number in range(1, total + 1):
            place = f"storage {number:,} of {total:,}"
            position = self._step(member, position, seen)
            row = seen[-1].root
            if type(row) is not tuple or len(row) != 3 or type(row[0]) is not int or type(row[2]) is not Global:
                raise CorruptFile(f"{place} is described by {brief(row)}", offset=position)
            key, location, cls = row
            dtype = BY_STORAGE.get(cls.name)
            if dtype is None:
                raise CorruptFile(f"{cls.path} is no storage class", offset=position)
            numel = _I64.unpack(member.read(position, 8))[0]
            position += 8
            nbytes = numel * dtype.itemsize
            if not 0 <= nbytes <= member.size - position:
                raise CorruptFile(
                    f"{place} has {numel:,} elements of {dtype.name}, but {member.size - position:,} bytes are left",
                    offset=position - 8,
                )
            device = location if isinstance(location, str) else brief(location)
            self.objects[key] = Storage(member, position, nbytes, dtype, device, brief(key))
            position += nbytes
        position = self._step(member, position, seen)
        self._read_views(seen[-1].root)
        self._record("storages", seen, position)
        self.check_end("storages", member, position)

    def _read_views(self, views: object) -> None:
        for row in views if isinstance(views, list | tuple) else (views,):
            if type(row) is not tuple or len(row) != 4 or not all(type(n) is int for n in row):
                raise CorruptFile(f"a view of a storage is described by {brief(row)}")
            key, root_key, offset, numel = row
            root = self.objects.get(root_key)
            if isinstance(root, Storage):
                root = View(root, 0, root.nbytes, root.dtype)
            if not isinstance(root, View) or root.dtype is None:
                raise CorruptFile(f"a view is of storage {brief(root_key)}, which is not in the file")
            begin, nbytes = offset * root.dtype.itemsize, numel * root.dtype.itemsize
            if begin < 0 or nbytes < 0 or begin + nbytes > root.nbytes:
                raise CorruptFile(f"the view {brief(key)} reaches past the end of storage {brief(root_key)}")
            self.objects[key] = View(root.storage, root.offset + begin, nbytes, root.dtype)

    def _read_tensors(self, member: Source) -> None:
        data = load_buffer(member)
        seen = [evaluate(data)]
        total = _count(seen[0].root, member)
        position = seen[0].end
        for number in range(1, total + 1):
            place = f"tensor {number:,} of {total:,}"
            seen.append(evaluate(data, position))
            position = seen[-1].end
            row = seen[-1].root
            if type(row) is not tuple or len(row) != 3 or type(row[0]) is not int or type(row[1]) is not int:
                raise CorruptFile(f"{place} is described by {brief(row)}", offset=position)
            key, storage_key, _ = row
            storage = self.objects.get(storage_key)
            if not isinstance(storage, Storage | View):
                raise CorruptFile(f"{place} is over storage {brief(storage_key)}, which is not in the file")
            rank = _I32.unpack(member.read(position, 4))[0]
            if not 0 <= rank <= MAX_RANK:
                raise CorruptFile(f"{place} has {rank} dimensions", offset=position)
            numbers = Struct(f"<{2 * rank + 1}q").unpack(member.read(position + 8, 8 * (2 * rank + 1)))
            position += 8 + 8 * len(numbers)
            if any(n < 0 for n in numbers):
                raise CorruptFile(f"{place} has a negative size, stride or offset", offset=position)
            self.objects[key] = strided(storage, numbers[-1], numbers[:rank], numbers[rank : 2 * rank])
        self._record("tensors", seen, position)
        self.check_end("tensors", member, position)

    def _step(self, member: Source, position: int, seen: list[Evaluation]) -> int:
        """Evaluate the short pickle at *position*, which bytes of tensors may follow; returns its end."""
        window = 256
        while True:
            data = member.peek(position, window)
            try:
                evaluation = evaluate(data)
                break
            except Truncated as error:
                if len(data) < window or window >= _MAX_ROW:
                    error.offset = position + (error.offset or 0)
                    raise
                window *= 4
            except CkptError as error:
                error.offset = position + (error.offset or 0)
                raise
        for name in evaluation.globals.values():
            name.offset += position
        evaluation.start, evaluation.end = position, position + evaluation.end
        seen.append(evaluation)
        return evaluation.end

    def _record(self, member: str, seen: list[Evaluation], end: int) -> None:
        """Keep what the many short pickles of a member name, as one."""
        uses: dict[tuple[str, str], GlobalUse] = {}
        for evaluation in seen:
            for use in pickle_of(evaluation, member).globals:
                known = uses.get((use.module, use.name))
                uses[use.module, use.name] = (
                    use
                    if known is None
                    else GlobalUse(use.module, use.name, known.opcode, known.offset, known.uses | use.uses)
                )
        whole = Evaluation(0)
        whole.end = end
        whole.root = [evaluation.root for evaluation in seen]
        for evaluation in seen:
            whole.protocol = max(whole.protocol, evaluation.protocol)
            whole.calls += evaluation.calls
            whole.persistent += evaluation.persistent
            whole.globals.update(evaluation.globals)
            whole.opcodes |= evaluation.opcodes
            whole.anomalies += evaluation.anomalies
            whole.misuses.update(evaluation.misuses)
        self.pickles.append(Pickle(member, end, whole.protocol, tuple(uses.values()), evaluation=whole))

    def check_end(self, name: str, member: Source, end: int) -> None:
        """Note what the member has beyond *end*, which torch does not read."""
        if end < member.size:
            self.anomalies.append(
                Anomaly(f"{member.size - end:,} bytes follow what torch reads", f"{name}, byte {end:,}")
            )


def _count(value: object, member: Source) -> int:
    # each row is a pickle of at least 8 bytes
    if type(value) is not int or not 0 <= value <= member.size // 8:
        raise CorruptFile(f"the count of rows is {brief(value)}")
    return value


def read(source: Source) -> Checkpoint:
    """Describe a tar checkpoint; the bytes of its storages are not read."""
    try:
        tar = Tar(source)
        stream = tar.member("pickle")
        info = tar.optional("sys_info")
    except CkptError as error:
        raise error.at(path=source.name) from None
    evaluation = run_machine(load_buffer(stream), 0, path=source.name, member="pickle")
    tar.check_end("pickle", stream, evaluation.end)
    pickles = [*tar.pickles, pickle_of(evaluation, "pickle", stream)]
    if info is not None:
        about = run_machine(load_buffer(info), 0, path=source.name, member="sys_info")
        pickles.insert(0, pickle_of(about, "sys_info", info))
    if torch_legacy.detect(source, source.peek(0, HEAD_BYTES)):
        tar.anomalies.append(
            Anomaly("the same bytes are a legacy file, which torch.load takes them for if given no path but a buffer")
        )
    sources = torch_legacy.class_sources(evaluation, stream)
    checkpoint = describe(
        evaluation,
        tar.persistent,
        source=source,
        stream=stream,
        member="pickle",
        format=FORMAT.name,
        title=FORMAT.title,
        metadata={"sources": sources} if sources else {},
        producer={"torch": "before 0.2 (the tar format)"},
        anomalies=tar.anomalies,
        refused=[Refusal("tar", "weights_only refuses the tar format altogether", is_global=False)],
    )
    return replace(checkpoint, pickles=tuple(pickles))


FORMAT = Format("torch_tar", "PyTorch tar archive (torch.save before 0.2)", read, detect)
