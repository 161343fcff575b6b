"""The single values inside a file's inert objects, each under its key path, to be compared with another file's."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator

from ckpt_tools.checkpoint import Checkpoint, KeyPath, Module, TensorInfo
from ckpt_tools.pickles.values import Blob, Call, Global, PersistentId, key_text, plain
from ckpt_tools.report import count, size
from ckpt_tools.sources import Source

MAX_DEPTH = 50
MAX_LEAVES = 100_000
"""Values that are looked at in one file; shared ones count as often as they are reached."""


class Described(str):
    """Words that stand for a value which is no number or text: ``object of class argparse.Namespace``."""

    __slots__ = ()


class Opaque(Described):
    """Words for a value of which not all was looked at: it may change without them."""

    __slots__ = ()


Leaf = bool | int | float | str | bytes | None | TensorInfo | Described


def stream_of(checkpoint: Checkpoint) -> Source | None:
    """What the offsets of a checkpoint's long values count in; None where these may lie in several streams."""
    streams = {id(pickle.stream): pickle.stream for pickle in checkpoint.pickles}
    return next(iter(streams.values())) if len(streams) == 1 else None


def leaves(
    root: object, *, without: Collection[KeyPath] = (), path: KeyPath = (), stream: Source | None = None
) -> Iterator[tuple[KeyPath, Leaf]]:
    """Every leaf under *root*, which stands at *path*, in file order; nothing at or below the paths *without*.

    A container gives its items, an object its class and its attributes, or what else it is made from; an empty
    container is a leaf. Long texts and bytes, which were left in the file, are told by their SHA-256, read from
    *stream* (see `stream_of`); without it they are `Opaque`, as is what lies deeper than `MAX_DEPTH`. At most
    `MAX_LEAVES` are given, and the last of these says so.
    """
    left = MAX_LEAVES
    pending: list[tuple[KeyPath, object]] = [(path, root)]
    while pending:
        where, value = pending.pop()
        if where in without:
            continue
        left -= 1
        if left <= 0:
            yield where, Opaque("more values than are compared")
            return
        value = plain(value)
        below = _below(value) if len(where) - len(path) < MAX_DEPTH else []
        if type(value) is Call:
            yield where, Described(f"object of class {value.class_name or 'unknown'}")
        elif not below:
            yield where, _leaf(value, stream)
        if len(below) > left:
            below = below[:left]
        pending += [((*where, key), item) for key, item in reversed(below)]


def _below(value: object) -> list[tuple[object, object]]:
    if isinstance(value, dict):
        return [(key if type(key) is int else key_text(key), item) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if type(value) is Call:
        found: list[tuple[object, object]] = [(key_text(key), item) for key, item in value.attributes.items()]
        if not found:
            found += [(f"argument {index}", item) for index, item in enumerate(value.arguments)]
            if value.state is not None:  # no attributes: what an array of objects holds, say
                found.append(("state", value.state))
        found += list(enumerate(value.items or ()))
        return found + [(key_text(key), item) for key, item in value.entries or ()]
    return []


def _leaf(value: object, stream: Source | None) -> Leaf:
    if value is None or isinstance(value, bool | int | float | str | bytes | TensorInfo):
        return value
    if isinstance(value, Module):
        return Described(f"module {value.class_name}")
    if isinstance(value, dict):
        return Opaque(f"mapping of {count(len(value), 'entry', 'entries')}") if value else Described("empty mapping")
    if isinstance(value, list | tuple):
        kind = type(value).__name__
        return Opaque(f"{kind} of {len(value):,}") if value else Described(f"empty {kind}")
    if isinstance(value, complex):
        return Described(repr(value))
    if isinstance(value, set | frozenset):
        return Described("{" + ", ".join(sorted(key_text(item) for item in value)) + "}")
    if type(value) is Global:
        return Described(f"reference to {value.path}")
    if type(value) is Blob:
        told = f"{'text' if value.text else 'bytes'} of {size(value.size)}"
        if stream is None:
            return Opaque(told)
        hasher = hashlib.sha256()
        for chunk in stream.chunks(value.offset, value.size):
            hasher.update(chunk)
        return Described(f"{told}, SHA-256 {hasher.hexdigest()[:16]}")
    if type(value) is PersistentId:
        return Opaque("persistent id")
    return Opaque(type(value).__name__)
