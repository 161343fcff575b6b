"""What dangerous calls are made with, in a digest: a danger that is known is another one with another payload.

Of a dangerous pickle counts how it is built, opcode by opcode, and every name, text, number and byte string that the
dangerous calls are given; so one whose numbers alone change elsewhere, by training, keeps its digest. Where that may
not cover all that would happen, every byte counts. Of functions that are not known to be dangerous count the texts
that they are given, and of functions kept as bytecode the code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import Any

from ckpt_tools.pickles.machine import Evaluation
from ckpt_tools.pickles.values import Blob, Call, Global, OrderedDict, PersistentId
from ckpt_tools.sources import Source

MAX_OPCODES = 1 << 23
"""The longest pickle, in bytes, whose opcodes are listed: that takes a second for four megabytes."""
MAX_BYTES = 1 << 28
"""How many bytes count of what is no whole pickle."""
SHORT = 100
"""The longest name, text or byte string, and the widest integer in bits, that is told each time it is referred to."""


def digest(pieces: Iterable[bytes]) -> str:
    """The digest of *pieces*, "" where there are none."""
    from hashlib import sha256  # whose import takes longer than most files, which have no payload

    hasher, empty = sha256(), True
    for piece in pieces:
        hasher.update(b"%d:" % len(piece))
        hasher.update(piece)
        empty = False
    return "" if empty else hasher.hexdigest()[:32]


def of_bytes(source: Source, size: int | None = None) -> Iterator[bytes]:
    """The first *size* bytes of *source*, or all, as far as they count."""
    size = source.size if size is None else size
    yield b"%d" % size
    yield from source.chunks(0, min(size, MAX_BYTES))


def everything(evaluation: Evaluation, stream: Source | None) -> Iterator[bytes]:
    """All bytes of a pickle that was read from *stream*; of one without an end, what follows its beginning.

    Where nobody knows what it was read from, all values.
    """
    if stream is None:
        yield from map(_told, _leaves([evaluation.root, *evaluation.calls]))
    elif evaluation.end > evaluation.start:
        yield from stream.chunks(evaluation.start, evaluation.end - evaluation.start)
    else:
        yield from of_bytes(stream.slice(evaluation.start, stream.size - evaluation.start, stream.name))


def of_dangers(evaluation: Evaluation, stream: Source | None, calls: Collection[Call]) -> Iterator[bytes]:
    """What counts of a whole pickle that makes the dangerous *calls*."""
    opcodes = _opcodes(evaluation, stream) if stream is not None and not evaluation.anomalies else ()
    if stream is None or not opcodes:
        yield from everything(evaluation, stream)
        return
    yield from opcodes
    for leaf in _leaves(chain.from_iterable(map(_given, calls))):
        if type(leaf) is Blob:
            yield from stream.chunks(leaf.offset, leaf.size)
        else:
            yield _told(leaf)


def of_texts(calls: Iterable[Call]) -> Iterator[bytes]:
    """The names and texts that *calls* are given; numbers and byte strings may be what is trained."""
    for leaf in _leaves(chain.from_iterable(map(_given, calls)), lambda call: call.target == "_codecs.encode"):
        if isinstance(leaf, str | Global):
            yield _told(leaf)


def of_value(value: object) -> Iterator[bytes]:
    """The names and texts in *value*, which configures something."""
    for leaf in _leaves([value]):
        if isinstance(leaf, str | Global):
            yield _told(leaf)


def of_code(calls: Collection[Call], stream: Source | None) -> Iterator[bytes]:
    """The code that *calls* make code objects of: bytes, names, constants; not the file and line where it stood."""
    made = {id(call) for call in calls}
    parts = (part for call in calls for part in call.arguments if type(part) in (bytes, tuple, Blob))
    for leaf in _leaves(parts, lambda call: id(call) in made):
        if type(leaf) is Blob and stream is not None:
            yield from stream.chunks(leaf.offset, leaf.size)
        else:
            yield _told(leaf)


def _given(call: Call) -> tuple[object, ...]:
    return call.func, call.args, call.kwargs, call.state, call.items, call.entries


def _opcodes(evaluation: Evaluation, stream: Source) -> list[bytes]:
    """The opcodes of a pickle without the values that they hold, but for names and places in the memo.

    Empty where the pickle is too long, or odd enough for Python's own list of opcodes to give up.
    """
    from pickletools import genops  # which few files need

    found: list[bytes] = []
    size = evaluation.end - evaluation.start
    if size > MAX_OPCODES:
        return found
    last: int | None = -1
    try:
        for opcode, argument, at in genops(stream.read(evaluation.start, size)):
            last = at
            if opcode.name in _NAMING:
                found.append(f"{opcode.name} {argument}".encode("utf-8", "surrogatepass"))
            elif opcode.arg is None:
                found.append(opcode.name.encode())
            elif opcode.stack_after:  # neither FRAME nor PROTO
                kind = opcode.stack_after[0].name
                found.append(b"number" if kind in _NUMBERS else kind.encode())
    except ValueError:
        return []
    return found if last == size - 1 else []


_NUMBERS = ("int", "float", "int_or_bool")
_NAMING = frozenset(
    {
        *("GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT"),
        *("GLOBAL", "INST", "EXT1", "EXT2", "EXT4"),
    }
)


def _leaves(roots: Iterable[object], skipped: Callable[[Call], bool] = lambda call: False) -> Iterator[object]:
    """The names, texts, numbers and byte strings in *roots*, in order, but for what is in calls that are *skipped*.

    What is shared comes once, and is then referred to.
    """
    seen: dict[int, _Again] = {}
    pending = list(roots)
    pending.reverse()
    while pending:
        value = pending.pop()
        if not _is_short(value):
            if id(value) in seen:
                yield seen[id(value)]
                continue
            seen[id(value)] = _Again(len(seen))
        if value is None or isinstance(value, str | bytes | int | float | Global | Blob):
            yield value
        elif type(value) is not Call or not skipped(value):
            pending += reversed([*_inside(value)])


class _Again(int):
    """Stands for a value that was met before: which one, counted from 0."""


def _is_short(value: object) -> bool:
    """Whether it is a plain value that is cheap to tell each time, and may be shared by Python alone."""
    if isinstance(value, str | bytes):
        return len(value) <= SHORT
    if isinstance(value, Global):
        return len(value.path) <= SHORT
    return value is None or isinstance(value, float) or (isinstance(value, int) and value.bit_length() <= SHORT)


def _inside(value: object) -> Iterable[Any]:
    if isinstance(value, OrderedDict):
        return (*chain.from_iterable(value.items()), value.state)
    if isinstance(value, dict):
        return chain.from_iterable(value.items())
    if isinstance(value, set | frozenset):
        return sorted(value, key=_place)
    if isinstance(value, list | tuple):
        return value
    if type(value) is PersistentId:
        return (value.pid,)
    return _given(value) if type(value) is Call else ()


def _place(value: object) -> tuple[str, str, int]:
    """Where *value* comes in a set, which has no order of its own from one process to the next."""
    text = repr(_told(value)) if isinstance(value, str | bytes | int | float) else ""
    return type(value).__name__, text, getattr(value, "offset", 0)


def _told(leaf: object) -> bytes:
    if isinstance(leaf, str):
        return b"text " + leaf.encode("utf-8", "surrogatepass")
    if isinstance(leaf, bytes):
        return b"bytes " + leaf
    if isinstance(leaf, Global):
        return b"name " + leaf.path.encode("utf-8", "surrogatepass")
    if isinstance(leaf, Blob):
        return b"long %d" % leaf.size
    if isinstance(leaf, _Again):
        return b"again %d" % leaf
    return (leaf.hex() if isinstance(leaf, float) else f"{leaf:x}" if isinstance(leaf, int) else "none").encode()
