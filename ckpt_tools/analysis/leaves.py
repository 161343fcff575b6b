"""The single values inside a file's inert objects, each under its key path, to be compared with another file's."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ckpt_tools.checkpoint import KeyPath, Module, TensorInfo
from ckpt_tools.pickles.values import Blob, Call, Global, PersistentId, key_text, plain
from ckpt_tools.report import count, size

MAX_DEPTH = 50
MAX_LEAVES = 100_000
"""Values that are looked at in one file; shared ones count as often as they are reached."""


class Described(str):
    """Words that stand for a value which is no number or text: ``object of class argparse.Namespace``."""

    __slots__ = ()


Leaf = bool | int | float | str | bytes | None | TensorInfo | Described


def leaves(root: object, *, without: Collection[KeyPath] = (), path: KeyPath = ()) -> Iterator[tuple[KeyPath, Leaf]]:
    """Every leaf under *root*, which stands at *path*, in file order; nothing at or below the paths *without*.

    A container gives its items, an object its class and its attributes; an empty container is a leaf. At most
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
            yield where, Described("more values than are compared")
            return
        value = plain(value)
        below = _below(value) if len(where) - len(path) < MAX_DEPTH else []
        if type(value) is Call:
            yield where, Described(f"object of class {value.class_name or 'unknown'}")
        elif not below:
            yield where, _leaf(value)
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
        found += list(enumerate(value.items or ()))
        return found + [(key_text(key), item) for key, item in value.entries or ()]
    return []


def _leaf(value: object) -> Leaf:
    if value is None or isinstance(value, bool | int | float | str | bytes | TensorInfo):
        return value
    if isinstance(value, Module):
        return Described(f"module {value.class_name}")
    if isinstance(value, dict):
        return Described("empty mapping" if not value else f"mapping of {count(len(value), 'entry', 'entries')}")
    if isinstance(value, list | tuple):
        return Described(f"empty {type(value).__name__}" if not value else f"{type(value).__name__} of {len(value):,}")
    if isinstance(value, set | frozenset):
        return Described("{" + ", ".join(sorted(key_text(item) for item in value)) + "}")
    if type(value) is Global:
        return Described(f"reference to {value.path}")
    if type(value) is Blob:
        return Described(f"{'text' if value.text else 'bytes'} of {size(value.size)}")
    if type(value) is PersistentId:
        return Described("persistent id")
    return Described(type(value).__name__)
