"""What the pickle-based formats share: from one evaluated pickle to a `Checkpoint`."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping
from itertools import chain

from ckpt_tools.checkpoint import (
    Anomaly,
    Checkpoint,
    GlobalUse,
    Module,
    Pickle,
    Refusal,
    Storage,
    TensorInfo,
    format_path,
)
from ckpt_tools.errors import CkptError, LimitExceeded
from ckpt_tools.formats.producers import recognise
from ckpt_tools.pickles.machine import Buffer, Evaluation, Truncated, evaluate
from ckpt_tools.pickles.structure import MAX_DEPTH, survey
from ckpt_tools.pickles.torch_objects import Interpreter, View
from ckpt_tools.pickles.values import Budget, Global
from ckpt_tools.pickles.weights_only import locate, refusals
from ckpt_tools.sources import Inflated, Source

FIRST_BYTES = 1 << 16
"""How much is read to begin with where pickles stand before what is not to be read."""
MAP_BYTES = 16 << 20
"""Local files from this size on are mapped instead of being read."""
PICKLE_LIMIT = 1 << 31
"""The longest pickle that is read into memory: no program has written one beyond it (torch's own limit on
protocol 2 strings is 4 GiB; state_dicts of a million tensors pickle to 150 MB)."""

INFLATED_BYTES = 1 << 20
"""The longest deflated pickle that is evaluated whatever it was deflated to."""
INFLATED_RATIO = 16
"""How much a longer one may have been deflated: values take a hundred times the bytes that announce them."""


def load_buffer(source: Source) -> Buffer:
    """All bytes of a pickle, for the machine; those of a large local file are mapped, not read."""
    mapped = _map(source)
    if mapped is not None:
        return mapped
    if source.size > PICKLE_LIMIT:
        raise CkptError(f"its pickle of {source.size:,} bytes is too long to be evaluated", path=source.name)
    if isinstance(source, Inflated) and source.size > max(INFLATED_BYTES, INFLATED_RATIO * source.compressed_size):
        raise LimitExceeded(
            f"its pickle of {source.size:,} bytes is deflated to {source.compressed_size:,}, as no real one is",
            path=source.name,
            remedy="If you trust the file, pack it again without compression",
        )
    return source.read(0, source.size)


def _map(source: Source) -> mmap.mmap | None:
    """*source* mapped into memory, where it is large and the beginning of a local file."""
    if source.size < MAP_BYTES:
        return None
    place = source.locate(0)
    if place is None or place[1] != 0:
        return None
    try:
        with open(place[0], "rb") as file:
            return mmap.mmap(file.fileno(), source.size, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # no mappable file system, or shorter than a moment ago
        return None


class Pickles:
    """The pickles that stand back to back at the beginning of a source, whatever follows them.

    No more of it is read than they take, or twice that where it cannot be mapped.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.end = 0
        self._data: Buffer = _map(source) or source.peek(0, FIRST_BYTES)

    def next(self) -> Evaluation:
        """Evaluate the pickle that begins where the last one ended. Raises as `evaluate` does."""
        while True:
            try:
                evaluation = evaluate(self._data, self.end)
            except Truncated:
                known = len(self._data)
                more = b"" if known >= PICKLE_LIMIT else self.source.peek(known, known)
                if not more or not isinstance(self._data, bytes):
                    raise
                self._data += more
                continue
            self.end = evaluation.end
            return evaluation


def run_machine(data: Buffer, start: int, *, path: str, member: str | None) -> Evaluation:
    """Evaluate the pickle at *start*; errors say which file and member they are about."""
    try:
        return evaluate(data, start)
    except CkptError as error:
        raise error.at(path=path, member=member) from None


def describe(
    evaluation: Evaluation,
    persistent: Callable[[object], object],
    *,
    source: Source,
    stream: Source,
    member: str,
    format: str,
    title: str,
    nested: Callable[[Source], Storage | View] | None = None,
    metadata: Mapping[str, object] | None = None,
    producer: Mapping[str, str] | None = None,
    anomalies: Iterable[Anomaly] = (),
    refused: Iterable[Refusal] = (),
    interpreter: Callable[..., Interpreter] = Interpreter,
) -> Checkpoint:
    """The checkpoint that the pickle *evaluation* of *source* makes.

    *persistent* resolves its persistent ids, *nested* the bytes of a pickled storage; *stream* is the source
    the pickle was read from, *member* its name there. *refused* are reasons beyond the pickle's own why
    ``weights_only`` does not take the file. *interpreter* makes the `Interpreter`, for formats with classes
    of their own.
    """
    try:
        root = interpreter(persistent, stream, nested).run(evaluation)
    except CkptError as error:
        faulty = [call for call in evaluation.calls if call.offset == error.offset]
        for path in locate(evaluation.root, faulty).values():
            error.name(format_path(path))
        raise error.at(path=source.name, member=member) from None
    found = survey(root, Budget(evaluation.end - evaluation.start))
    oddities = [Anomaly(what, f"{member}, byte {offset}") for what, offset in evaluation.anomalies]
    if found.too_deep is not None:
        what = f"values are nested more than {MAX_DEPTH} deep; what lies deeper is not described"
        oddities.append(Anomaly(what, format_path(found.too_deep)))
    programs, noted = recognise(root, evaluation.globals.values())
    return Checkpoint(
        path=source.name,
        source=source,
        format=format,
        title=title,
        kind=found.kind,
        state_dicts=tuple(found.state_dicts),
        module=found.module,
        module_path=found.module_path,
        training=found.training,
        values=root,
        loose=tuple((p, t) for p, t in found.loose),
        metadata={**noted, **(metadata or {})},
        producer={**_numpy_era(evaluation.globals.values()), **programs, **(producer or {})},
        pickles=(pickle_of(evaluation, member, stream),),
        refusals=tuple(chain(refused, refusals(evaluation))),
        anomalies=(*anomalies, *oddities, *_module_hints(found.module)),
        size=source.size,
    )


def pickle_of(evaluation: Evaluation, member: str, stream: Source | None = None) -> Pickle:
    """The record of one evaluated stream, which was read from *stream*."""
    uses = tuple(
        GlobalUse(name.module, name.name, name.opcode, name.offset, frozenset(name.uses))
        for name in evaluation.globals.values()
    )
    storages: dict[int, Storage] = {}
    for reference in evaluation.persistent:
        found = reference.meaning
        if type(found) is View or type(found) is TensorInfo:
            found = found.storage
        if type(found) is Storage:
            storages[id(found)] = found
    return Pickle(
        member,
        evaluation.end - evaluation.start,
        evaluation.protocol,
        uses,
        evaluation.root,
        evaluation.start,
        tuple(storages.values()),
        evaluation,
        stream,
    )


def _numpy_era(names: Iterable[Global]) -> dict[str, str]:
    for name in names:
        if name.path.startswith("numpy._core."):
            return {"numpy": "2 or later (numpy._core)"}
        if name.path.startswith("numpy.core."):
            return {"numpy": "before 2 (numpy.core)"}
    return {}


def _module_hints(module: Module | None) -> list[Anomaly]:
    if module is None:
        return []
    return [Anomaly(hint, name) for name, part in module.walk() for hint in part.state_dict_hints]
