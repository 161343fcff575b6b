"""Plain pickles: pickle.dump of tensors, arrays, or anything else, in any protocol.

A tensor that torch did not pickle itself has its storage as ``torch.storage._load_from_bytes(bytes)``, where
the bytes are a legacy file of one storage (torch/storage.py, ``TypedStorage.__reduce__``).
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tools.checkpoint import Anomaly, Checkpoint, Pickle, Refusal, Storage
from ckpt_tools.dtypes import BY_STORAGE, UINT8
from ckpt_tools.errors import CkptError, CorruptFile, NotACheckpoint, UnsupportedFeature
from ckpt_tools.formats.base import Format
from ckpt_tools.formats.torch_legacy import Legacy, nested_storage
from ckpt_tools.formats.unpickled import describe, load_buffer, pickle_of
from ckpt_tools.pickles.arrays import byte_source
from ckpt_tools.pickles.machine import Buffer, Evaluation, Truncated, evaluate
from ckpt_tools.pickles.torch_objects import View
from ckpt_tools.pickles.values import Global, PersistentId, brief
from ckpt_tools.sources import Source

MAX_FOLLOWING = 1000
"""How many of the pickles that follow the first are looked into."""
MAX_UNMARKED = 64 << 20
"""The longest file without a protocol mark that is tried as a pickle of protocol 0 or 1."""


def detect(source: Source, head: bytes) -> bool:
    """Whether it is a pickle: by its first opcode, or where there is no such mark, by evaluating it.

    Of protocols 0 and 1, which have none, only what holds more than a plain value is taken, so that no text
    passes for a pickle: one that calls something, or a container that is not empty and has nothing after it.
    """
    if head[:1] == b"\x80":
        return len(head) > 1 and head[1] <= 5
    if source.size > MAX_UNMARKED:
        return False
    try:
        evaluation = evaluate(head)
    except Truncated:
        if source.size <= len(head):
            return False
        try:
            evaluation = _Whole.of(source).first
        except CkptError:
            return False
    except CkptError:
        return False
    root = evaluation.root
    return bool(evaluation.calls) or (
        isinstance(root, dict | list | tuple | set) and bool(root) and evaluation.end == source.size
    )


class _Whole:
    """All bytes of the file and its first pickle, evaluated once for `detect` and `read`."""

    def __init__(self, source: Source) -> None:
        self.data: Buffer = load_buffer(source)
        self.first: Evaluation = evaluate(self.data)

    @classmethod
    def of(cls, source: Source) -> _Whole:
        known = source.memo.get(cls)
        if not isinstance(known, _Whole):
            known = source.memo[cls] = cls(source)
        return known


def read(source: Source) -> Checkpoint:
    """Describe a plain pickle; byte strings of some length, and so arrays, stay in the file."""
    try:
        whole = _Whole.of(source)
    except CkptError as error:
        raise _explained(error).at(path=source.name) from None
    finally:
        source.memo.pop(_Whole, None)
    evaluation = whole.first
    if any(_is_zip_storage(reference.pid) for reference in evaluation.persistent):
        raise _lone_data_pkl(source, evaluation)
    nested = _Nested(source)
    checkpoint = describe(
        evaluation,
        lambda pid: None,
        source=source,
        stream=source,
        member="pickle",
        format=FORMAT.name,
        title=FORMAT.title,
        nested=nested.storage,
        refused=[Refusal("plain pickle", "torch.load reads no plain pickles; pickle.load does", is_global=False)],
    )
    nested.look_at_the_rest(evaluation)
    following, oddities = _following(whole, source)
    return replace(
        checkpoint,
        pickles=(*checkpoint.pickles, *following, *nested.pickles),
        anomalies=(*checkpoint.anomalies, *oddities, *nested.anomalies),
    )


class _Nested:
    """The legacy files in byte strings that the pickle would have ``torch.load`` read."""

    def __init__(self, stream: Source) -> None:
        self.stream = stream
        self.pickles: list[Pickle] = []
        self.anomalies: list[Anomaly] = []
        self._count = 0

    def storage(self, source: Source) -> Storage | View:
        """The storage in *source*; what its pickles name is kept."""
        self._count += 1
        try:
            return nested_storage(source, self._record)
        except CkptError as error:
            error.member = f"storage {self._count:,}, pickled as bytes" + (f": {error.member}" if error.member else "")
            error.path = None
            raise

    def _record(self, legacy: Legacy) -> None:
        self.pickles += [
            replace(pickle, member=f"storage {self._count:,}: {pickle.member}")
            for pickle in legacy.pickles
            if pickle.globals
        ]

    def look_at_the_rest(self, evaluation: Evaluation) -> None:
        """Look into byte strings that no tensor is made of: ``torch.load`` would be given them all the same."""
        for call in evaluation.calls:
            if call.target != "torch.storage._load_from_bytes" or isinstance(call.meaning, Storage | View):
                continue
            data = byte_source(call.arguments[0], self.stream) if call.arguments else None
            try:
                if data is None:
                    raise CorruptFile("it is not given bytes")
                call.meaning = self.storage(data)
            except CkptError as error:
                self.anomalies.append(
                    Anomaly(f"_load_from_bytes gets what is no storage ({error.problem})", f"byte {call.offset:,}")
                )


def _following(whole: _Whole, source: Source) -> tuple[list[Pickle], list[Anomaly]]:
    """The pickles after the first, and what is odd about that."""
    pickles: list[Pickle] = []
    end = whole.first.end
    while end < len(whole.data) and len(pickles) < MAX_FOLLOWING:
        try:
            evaluation = evaluate(whole.data, end)
        except CkptError:
            break
        end = evaluation.end
        pickles.append(pickle_of(evaluation, f"pickle {len(pickles) + 2}", source))
    anomalies = []
    if pickles:
        count = "another pickle follows" if len(pickles) == 1 else f"{len(pickles):,} more pickles follow"
        anomalies.append(Anomaly(f"{count}; only the first is described", f"byte {whole.first.end:,}"))
    if end < len(whole.data):
        anomalies.append(Anomaly(f"{len(whole.data) - end:,} bytes follow that are no pickle", f"byte {end:,}"))
    return pickles, anomalies


def _explained(error: CkptError) -> CkptError:
    """The error for a stream that cannot be evaluated to its end."""
    partial = getattr(error, "partial", None)
    names = {name.path for name in partial.globals.values()} if isinstance(partial, Evaluation) else set()
    if "joblib.numpy_pickle.NumpyArrayWrapper" in names:
        # joblib/numpy_pickle.py: the bytes of each array stand in the middle of the stream
        return UnsupportedFeature(
            "a joblib dump, which has arrays between the opcodes of its pickle",
            offset=error.offset,
            remedy="Load it with joblib and save its arrays in another format",
        )
    if isinstance(error, Truncated):
        return CorruptFile(
            f"a truncated pickle: {error.problem}",
            offset=error.offset,
            remedy="Fetch it again: a download or a copy was cut short",
        )
    return error


def _is_zip_storage(pid: object) -> bool:
    return type(pid) is tuple and len(pid) == 5 and pid[0] == "storage"


def _lone_data_pkl(source: Source, evaluation: Evaluation) -> NotACheckpoint:
    """The error for the ``data.pkl`` of a torch zip without the archive."""
    tensors = sum(any(type(argument) is PersistentId for argument in call.arguments[:1]) for call in evaluation.calls)
    sizes: dict[str, int] = {}
    for reference in evaluation.persistent:
        if _is_zip_storage(reference.pid) and type(reference.pid) is tuple:
            _, cls, key, _, numel = reference.pid
            if type(cls) is Global and type(numel) is int and 0 <= numel < 1 << 63:
                sizes[brief(key)] = numel * BY_STORAGE.get(cls.name, UINT8).itemsize
    keys = list(sizes)
    named = ", ".join(keys[:8]) + (f", … {keys[-1]}" if len(keys) > 8 else "")
    return NotACheckpoint(
        f"the data.pkl of a torch zip archive, alone: it describes {tensors:,} tensors over {len(keys):,} storages "
        f"({named}), whose {sum(sizes.values()):,} bytes are in the archive's other members",
        path=source.name,
        remedy="Keep the archive whole: it is one file, not to be unpacked",
    )


FORMAT = Format("pickle", "plain pickle", read, detect)
