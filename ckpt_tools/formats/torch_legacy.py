"""torch.save before 1.6, and since then with ``_use_new_zipfile_serialization=False``.

Five pickles stand back to back: a magic number, a protocol version, what machine it was, the object, and the
keys of its storages. Then follows, for each key in that order, the number of elements as a little-endian
int64 and the raw bytes, which are little-endian too, whatever machine wrote them
(torch/serialization.py, ``_legacy_save`` and ``_legacy_load``; torch/csrc/serialization.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace

from ckpt_tools.checkpoint import Anomaly, Checkpoint, Pickle, Refusal, Storage
from ckpt_tools.dtypes import BY_STORAGE, UINT8, DType
from ckpt_tools.errors import CkptError, CorruptFile, UnsupportedFeature
from ckpt_tools.formats.base import HEAD_BYTES, Format
from ckpt_tools.formats.unpickled import Pickles, describe, pickle_of
from ckpt_tools.pickles.machine import Evaluation, Truncated, evaluate
from ckpt_tools.pickles.torch_objects import View
from ckpt_tools.pickles.values import Blob, Global, PersistentId, as_global, brief
from ckpt_tools.pickles.weights_only import refusals
from ckpt_tools.sources import Source

MAGIC = 0x1950A86A20F9469CFC6C
"""What the first pickle holds."""
PROTOCOL = 1001
"""What the second pickle holds."""

_REMEDY = "Fetch it again: a download or a copy was cut short"
# opcodes that only Python 2 writes in binary pickles, for its byte strings
_PYTHON2 = frozenset(b"TU")


def detect(source: Source, head: bytes) -> bool:
    """Whether its first pickle is torch's magic number, in whatever pickle protocol."""
    try:
        return evaluate(head[:64]).root == MAGIC
    except CkptError:
        return False


class SourceFile(str):
    """The name of the file that a class came from; *text* is the class's source, which legacy files keep."""

    text: str

    def __new__(cls, name: str, text: str) -> SourceFile:
        made = super().__new__(cls, name)
        made.text = text
        return made


@dataclass(frozen=True, slots=True)
class _Reference:
    """``('storage', class, root key, location, numel, view)``; *view* is None or (key, offset, numel)."""

    key: Hashable
    dtype: DType
    untyped: bool
    device: str
    numel: int
    view: tuple[Hashable, int, int] | None

    @property
    def nbytes(self) -> int:
        """The size of the whole storage."""
        return self.numel * self.dtype.itemsize


class Legacy:
    """The pickles of a legacy file, evaluated, and where its storages lie.

    Reads the pickles and 8 bytes a storage. Raises `CorruptFile` where they contradict each other, or where
    the file ends before its last storage does.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.anomalies: list[Anomaly] = []
        self._streams = Pickles(source)
        self._evaluations: list[tuple[str, Evaluation]] = []
        self._expect("magic number", MAGIC)
        self._expect("protocol version", PROTOCOL)
        info = self._next("sys_info").root
        self.big_endian = isinstance(info, dict) and info.get("little_endian") is False
        self.object = self._next("object")
        keys = self._next("storage keys").root
        self._references = [r for r in map(self._reference, self.object.persistent) if r is not None]
        self._placed = self._place(keys)
        self._made: dict[Hashable, Storage | View] = {}

    @property
    def pickles(self) -> tuple[Pickle, ...]:
        """The record of each of the five."""
        return tuple(pickle_of(evaluation, member, self.source) for member, evaluation in self._evaluations)

    def refusals(self) -> Iterator[Refusal]:
        """Why ``weights_only`` refuses the file, beyond what the object's own pickle says."""
        for _, evaluation in self._evaluations:
            if evaluation is not self.object:
                yield from refusals(evaluation)
        if any(reference.untyped for reference in self._references):
            # StorageType knows no such name (torch/serialization.py, up to 2.14 at least)
            reason = "torch writes untyped storages into legacy files, but cannot load them"
            yield Refusal("UntypedStorage", reason, is_global=False)

    def persistent(self, pid: object) -> Storage | View | None:
        """What a persistent id of the object's pickle stands for, asked for in their order; None for a class.

        torch makes each storage where it first meets its key, with the type it has there.
        """
        reference = self._reference(PersistentId(pid))
        if reference is None:
            return None
        root = self._made.get(reference.key)
        if root is None:
            root = self._made[reference.key] = self._root(reference)
        elif isinstance(root, Storage) and root.nbytes == 0:
            # without memory there is nothing to share: torch makes another, of the type at hand
            root = replace(root, dtype=reference.dtype)
        if reference.view is None:
            return root
        key, offset, numel = reference.view
        view = self._made.get(key)
        if view is None:
            if isinstance(root, Storage):
                root = View(root, 0, root.nbytes, root.dtype)
            # a slice of the storage, so it ends where the storage ends
            begin = min(offset * reference.dtype.itemsize, root.nbytes)
            nbytes = min(numel * reference.dtype.itemsize, root.nbytes - begin)
            view = self._made[key] = View(root.storage, root.offset + begin, nbytes, reference.dtype)
        return view

    def _root(self, reference: _Reference) -> Storage:
        start = self._placed.get(reference.key)
        missing = None
        if start is None:
            missing = "its bytes are not in the file"
            self.anomalies.append(
                Anomaly(
                    "a storage is referred to, but not stored; torch leaves its memory uninitialised",
                    f"storage {brief(reference.key)}",
                )
            )
        return Storage(
            self.source,
            start or 0,
            reference.nbytes,
            None if reference.untyped else reference.dtype,
            reference.device,
            _text(reference.key),
            missing=missing,
        )

    def _next(self, member: str) -> Evaluation:
        try:
            evaluation = self._streams.next()
        except Truncated as error:
            raise CorruptFile(
                f"truncated after {self.source.size:,} bytes, within its {member}: {error.problem}",
                path=self.source.name,
                offset=error.offset,
                remedy=_REMEDY,
            ) from None
        except CkptError as error:
            raise error.at(path=self.source.name, member=member) from None
        self._evaluations.append((member, evaluation))
        return evaluation

    def _expect(self, member: str, value: int) -> None:
        found = self._next(member).root
        if found != value:
            raise UnsupportedFeature(f"the {member} is {brief(found)}; torch knows only {value}", path=self.source.name)

    def _reference(self, reference: PersistentId) -> _Reference | None:
        pid = reference.pid
        if as_global(reference) is not None:
            return None
        if type(pid) is not tuple or len(pid) != 6 or pid[0] != "storage":
            raise CorruptFile(f"a persistent id is no reference to a storage: {brief(pid)}")
        _, cls, key, location, numel, view = pid
        keys, numbers = [key], [numel]
        if type(view) is tuple and len(view) == 3:
            keys.append(view[0])
            numbers += view[1:]
        elif view is not None:
            raise CorruptFile(f"storage {brief(key)} has malformed view metadata: {brief(view)}")
        if (
            type(cls) is not Global
            or not all(isinstance(k, str | bytes | int) for k in keys)
            or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
        ):
            raise CorruptFile(f"a storage is referred to by a malformed persistent id: {brief(pid)}")
        dtype = BY_STORAGE.get(cls.name)
        if dtype is None and cls.name not in ("UntypedStorage", "_UntypedStorage"):
            raise CorruptFile(f"{cls.path} is no storage class")
        return _Reference(key, dtype or UINT8, dtype is None, _text(location), numel, view)

    def _place(self, keys: object) -> dict[Hashable, int]:
        """Where the bytes of each storage begin, in the order of the *keys* that the fifth pickle lists."""
        first = {reference.key: reference for reference in reversed(self._references)}
        listed: list[_Reference] = []
        for key in keys if isinstance(keys, list | tuple) else (keys,):
            if not isinstance(key, str | bytes | int) or key not in first:
                raise CorruptFile(f"storage {brief(key)} is listed, but nothing refers to it", path=self.source.name)
            listed.append(first[key])
        placed: dict[Hashable, int] = {}
        end = self._streams.end
        for number, reference in enumerate(listed, 1):
            place = f"storage {brief(reference.key)} ({number:,} of {len(listed):,})"
            count = self.source.peek(end, 8)
            start, end = end + 8, end + 8 + reference.nbytes
            declared = int.from_bytes(count, "little", signed=True)
            if len(count) == 8 and declared != reference.numel:
                raise CorruptFile(
                    f"{place} has {reference.numel:,} elements by the pickle, "
                    f"but {declared:,} by the number before its bytes",
                    path=self.source.name,
                    offset=start - 8,
                )
            if end > self.source.size:
                missing = end - self.source.size + sum(8 + r.nbytes for r in listed[number:])
                raise CorruptFile(
                    f"truncated: it ends {max(self.source.size - start, 0):,} bytes into {place}, "
                    f"{missing:,} bytes early",
                    path=self.source.name,
                    remedy=_REMEDY,
                )
            if reference.key in placed:
                self.anomalies.append(Anomaly("stored twice; torch takes the last", place))
            placed[reference.key] = start
        if end < self.source.size:
            again = detect(self.source, self.source.peek(end, HEAD_BYTES))
            self.anomalies.append(
                Anomaly(
                    f"{self.source.size - end:,} bytes follow the last storage"
                    f"{', beginning with another legacy file' if again else ''}",
                    f"byte {end:,}",
                )
            )
        return placed


def _text(value: object) -> str:
    if isinstance(value, bytes):  # a byte string of Python 2
        return value.decode("ascii", "replace")
    return value if isinstance(value, str) else brief(value)


def nested_storage(source: Source, record: Callable[[Legacy], None] | None = None) -> Storage | View:
    """The one storage in *source*, a legacy file, as ``torch.storage._load_from_bytes`` takes it in bytes.

    *record* is told of the file.
    """
    legacy = Legacy(source)
    if record is not None:
        record(legacy)
    root = legacy.object.root
    found = legacy.persistent(root.pid) if type(root) is PersistentId else None
    if found is None:
        raise CorruptFile("the bytes of a pickled storage hold something else")
    return found


def read(source: Source) -> Checkpoint:
    """Describe a legacy file; only its pickles and 8 bytes a storage are read."""
    try:
        legacy = Legacy(source)
    except CkptError as error:
        raise error.at(path=source.name) from None
    producer: dict[str, str] = {}
    names = {name.path for name in legacy.object.globals.values()}
    if "torch._utils._rebuild_tensor_v2" in names:
        producer["torch"] = "0.4 or later (inferred from _rebuild_tensor_v2)"
    elif "torch._utils._rebuild_tensor" in names:
        producer["torch"] = "before 0.4 (inferred from _rebuild_tensor)"
    if _PYTHON2 & legacy.object.opcodes:
        producer["python"] = "2 (its byte strings are in the pickle)"
    if legacy.big_endian:
        producer["machine"] = "big-endian; the bytes in the file are little-endian all the same"
    sources = class_sources(legacy.object, source)
    checkpoint = describe(
        legacy.object,
        legacy.persistent,
        source=source,
        stream=source,
        member="object",
        format=FORMAT.name,
        title=FORMAT.title,
        nested=nested_storage,
        metadata={"sources": sources} if sources else {},
        producer=producer,
        anomalies=legacy.anomalies,
    )
    known = {refusal.subject: refusal for refusal in (*(checkpoint.refusals or ()), *legacy.refusals())}
    return replace(checkpoint, pickles=legacy.pickles, refusals=tuple(known.values()))


def class_sources(evaluation: Evaluation, stream: Source) -> dict[str, SourceFile]:
    """The source file of each class whose source is in the pickle, with the text."""
    found: dict[str, SourceFile] = {}
    for reference in evaluation.persistent:
        cls = as_global(reference)
        if cls is None or type(reference.pid) is not tuple:
            continue
        file, text = reference.pid[-2:]
        if type(text) is Blob:
            text = stream.read(text.offset, text.size)
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        if isinstance(text, str) and isinstance(file, str | bytes):
            found.setdefault(cls.path, SourceFile(_text(file), text))
    return found


FORMAT = Format("torch_legacy", "PyTorch legacy file (torch.save before 1.6)", read, detect)
