"""Tensors as a tree of layers, with repeated blocks folded: ``layers.{0-31}``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ckpt_tools.checkpoint import TensorInfo

MAX_DEPTH = 64
"""Levels of dotted names that are told apart; what lies deeper stays one name."""


@dataclass(slots=True, eq=False)
class Node:
    """A layer: its own tensors by their last name, and the layers below it.

    *name* is relative to the parent, *path* from the root; *repeats* counts the equal siblings that a folded
    node stands for.
    """

    name: str
    path: str
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)
    class_name: str = ""
    repeats: int = 1

    def walk(self) -> Iterator[Node]:
        """This node and all below, parents first."""
        pending = [self]
        while pending:
            node = pending.pop()
            yield node
            pending.extend(reversed(node.children.values()))

    def all_tensors(self) -> Iterator[TensorInfo]:
        """The tensors of this node and all below; those of a folded node once, not once a repeat."""
        for node in self.walk():
            yield from node.tensors.values()


def grow(tensors: Iterable[TensorInfo], classes: Mapping[str, str] | None = None) -> Node:
    """The tree that the dotted names of *tensors* make; *classes* gives layers' class names by path."""
    root = Node("", "", class_name=(classes or {}).get("", ""))
    for tensor in tensors:
        *layers, last = tensor.name.split(".", MAX_DEPTH)
        node = root
        for layer in layers:
            below = node.children.get(layer)
            if below is None:
                path = f"{node.path}.{layer}" if node.path else layer
                below = node.children[layer] = Node(layer, path, class_name=(classes or {}).get(path, ""))
            node = below
        node.tensors[last] = tensor
    return root


def fold(root: Node) -> Node:
    """The same tree with runs of equal, numbered siblings made one node.

    Equal means the same names, shapes, dtypes and classes all the way down. A block that differs stays on its
    own between the runs.
    """
    known: dict[object, int] = {}
    signatures: dict[int, int] = {}
    for node in reversed(list(root.walk())):  # children first
        key = (
            node.class_name,
            tuple((name, t.dtype.name, t.shape) for name, t in node.tensors.items()),
            tuple((name, signatures[id(child)]) for name, child in node.children.items()),
        )
        signatures[id(node)] = known.setdefault(key, len(known))
    return _folded(root, signatures)


def _folded(node: Node, signatures: Mapping[int, int]) -> Node:
    made = Node(node.name, node.path, node.tensors, {}, node.class_name, node.repeats)
    run: list[Node] = []

    def flush() -> None:
        if len(run) > 2 or (len(run) == 2 and run[0].children):
            first, last = run[0], run[-1]
            name = f"{{{first.name}-{last.name}}}"
            folded = _folded(first, signatures)
            folded.name, folded.repeats = name, len(run)
            folded.path = f"{made.path}.{name}" if made.path else name
            made.children[name] = folded
        else:
            for child in run:
                made.children[child.name] = _folded(child, signatures)
        run.clear()

    for child in node.children.values():
        follows = run and (
            child.name.isdecimal()
            and run[-1].name.isdecimal()
            and int(child.name[:18]) == int(run[-1].name[:18]) + 1
            and signatures[id(child)] == signatures[id(run[-1])]
        )
        if not follows:
            flush()
        run.append(child)
    flush()
    return made


def rows_at(root: Node, depth: int) -> list[tuple[int, Node]]:
    """The nodes down to *depth* levels below the root, each with its level, in file order."""
    rows: list[tuple[int, Node]] = []
    pending = [(0, root)]
    while pending:
        level, node = pending.pop()
        if level:
            rows.append((level, node))
        if level < depth:
            pending.extend((level + 1, child) for child in reversed(node.children.values()))
    return rows


def fitting_depth(root: Node, limit: int) -> int:
    """The greatest depth at which no more than *limit* rows are shown, at least 1."""
    depth = 1
    shown = len(root.children)
    level = list(root.children.values())
    while level:
        level = [child for node in level for child in node.children.values()]
        shown += len(level)
        if not level or shown > limit:
            break
        depth += 1
    return depth
