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

    *name* is relative to the parent, *path* from the root; *members* are the layers that a node of a folded tree
    stands for, as they were before, *repeats* how many of these are its siblings.
    """

    name: str
    path: str
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    children: dict[str, Node] = field(default_factory=dict)
    class_name: str = ""
    repeats: int = 1
    members: list[Node] = field(default_factory=list)

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


def fold(root: Node, marks: Mapping[str, str] | None = None) -> Node:
    """The same tree with runs of equal, numbered siblings made one node.

    Equal means the same names, shapes, dtypes, classes and *marks* (by tensor name) all the way down. A block
    that differs stays on its own between the runs.
    """
    marks = marks or {}
    known: dict[object, int] = {}
    signatures: dict[int, int] = {}
    for node in reversed(list(root.walk())):  # children first
        key = (
            node.class_name,
            tuple((name, t.dtype.name, t.shape, marks.get(t.name)) for name, t in node.tensors.items()),
            tuple((name, signatures[id(child)]) for name, child in node.children.items()),
        )
        signatures[id(node)] = known.setdefault(key, len(known))
    return _folded([root], signatures)


def _folded(members: list[Node], signatures: Mapping[int, int]) -> Node:
    """The first of *members*, which are equal, with its children folded."""
    node = members[0]
    made = Node(node.name, node.path, node.tensors, {}, node.class_name, node.repeats, members)
    for run in _runs(list(node.children.values()), signatures):
        if len(run) > 2 or (len(run) == 2 and run[0].children and run[0].name.isdecimal()):
            first, last = _numbered(run[0].name), _numbered(run[-1].name)
            name = f"{first[0]}{{{first[1]}-{last[1]}}}"
            folded = _folded([member.children[child.name] for member in members for child in run], signatures)
            folded.name, folded.repeats = name, len(run)
            folded.path = f"{made.path}.{name}" if made.path else name
            made.children[name] = folded
        else:
            for child in run:
                made.children[child.name] = _folded([member.children[child.name] for member in members], signatures)
    return made


def _runs(children: list[Node], signatures: Mapping[int, int]) -> Iterator[list[Node]]:
    """*children* in order, cut into runs of equal ones whose numbers follow each other."""
    run: list[Node] = []
    for child in children:
        if run:
            stem, digits = _numbered(child.name)
            before_stem, before = _numbered(run[-1].name)
            if not (
                digits
                and before
                and stem == before_stem
                and int(digits) == int(before) + 1
                and signatures[id(child)] == signatures[id(run[-1])]
            ):
                yield run
                run = []
        run.append(child)
    if run:
        yield run


def _numbered(name: str) -> tuple[str, str]:
    """A name cut before its last digits (18 of them at most); the digits are "" where it ends in none."""
    stem = name.rstrip("0123456789")
    if len(name) - len(stem) > 18:
        return name, ""
    return stem, name[len(stem) :]


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
