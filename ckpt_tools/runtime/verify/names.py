"""When a file has the right tensors under other names: how to rename them, found by trying.

Each way to rename is tried on the names alone and kept if more elements then find a tensor of their name and shape
in the class; then again, until nothing makes it better. So stacked wrappers come off one by one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ckpt_tools.analysis.overview import WRAPPERS
from ckpt_tools.analysis.pairing import pair
from ckpt_tools.analysis.renames import ALL
from ckpt_tools.checkpoint import StateDict, TensorInfo
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.records import record
from ckpt_tools.report import listed

Shapes = Mapping[str, tuple[int, ...]]

MAX_STEPS = 8
"""How many renamings may follow one another."""

ENOUGH = 0.5
"""The share of the elements, of the file or of the class, that must fit in the end: else it is another class."""

COMMON = 0.1
"""The share of the names that must have a prefix in common before it counts as one."""


@record
class Step:
    """One renaming: its *code*, *what* it mends in words, and the new name of every name it changes."""

    code: str
    what: str
    names: Mapping[str, str]


@record
class Renaming:
    """Steps that follow one another, and what they come to: the new *names* by the file's, changed ones only."""

    steps: Sequence[Step]
    names: Mapping[str, str]
    guess: bool = False


def renaming(tensors: Sequence[TensorInfo], shapes: Shapes) -> Renaming | None:
    """How to rename *tensors* so that more fit a class, whose tensors have *shapes*; None where nothing helps."""
    sizes = {tensor.name: tensor for tensor in tensors}
    current = {name: name for name in sizes}
    steps: list[Step] = []
    score = _score(current, sizes, shapes)
    while len(steps) < MAX_STEPS:
        best = _best(current, sizes, shapes, score) or _best(current, sizes, shapes, score, after=True)
        if best is None:
            break
        score, taken = best
        for step in taken:
            steps.append(step)
            current = _after(current, step)
    guessed = _by_order(current, sizes, shapes)
    if guessed is not None:
        steps.append(guessed)
        current = {old: guessed.names.get(new, new) for old, new in current.items()}
    fitting = sum(sizes[old].numel for old, new in current.items() if shapes.get(new) == sizes[old].shape)
    smaller = min(sum(tensor.numel for tensor in tensors), sum(map(math.prod, shapes.values())))
    if fitting < ENOUGH * smaller:
        return None
    changed = {old: new for old, new in current.items() if old != new}
    return Renaming(steps, changed, guessed is not None) if steps else None


def _after(current: Mapping[str, str], step: Step) -> dict[str, str]:
    return {old: step.names.get(new, new) for old, new in current.items()}


def _best(
    current: Mapping[str, str], sizes: Mapping[str, TensorInfo], shapes: Shapes, score: int, *, after: bool = False
) -> tuple[int, tuple[Step, ...]] | None:
    """The step that fits most, and what that comes to; *after*: the two, the first of which helps only the second."""
    best: tuple[int, tuple[Step, ...]] | None = None
    for step in _known(current, shapes) if after else _candidates(current, sizes, shapes):
        tried = _after(current, step)
        if len(set(tried.values())) < len(tried):
            continue
        if after:
            found = _best(tried, sizes, shapes, best[0] if best else score)
            if found is not None:
                best = found[0], (step, *found[1])
            continue
        reached = _score(tried, sizes, shapes)
        if reached > (best[0] if best else score):
            best = reached, (step,)
    return best


def renamed(state_dict: StateDict, names: Mapping[str, str]) -> StateDict:
    """*state_dict* under new names; the versions of modules go along with their tensors."""
    entries: dict[str, object] = {}
    moved: dict[str, str] = {}
    for old, value in state_dict.entries.items():
        new = names.get(old, old)
        entries[new] = value
        moved.setdefault(old.rpartition(".")[0], new.rpartition(".")[0])
    versions = state_dict.metadata
    if versions is not None and names:
        versions = {moved.get(path, path): version for path, version in versions.items()}
    return StateDict(state_dict.path, state_dict.role, entries, versions)


def _score(current: Mapping[str, str], sizes: Mapping[str, TensorInfo], shapes: Shapes) -> int:
    """Elements that find a tensor of their name and shape; of the name alone, they count for a little."""
    return sum(
        max(1, sizes[old].numel) * 2 + 1 if shapes[new] == sizes[old].shape else 1
        for old, new in current.items()
        if new in shapes
    )


def _candidates(current: Mapping[str, str], sizes: Mapping[str, TensorInfo], shapes: Shapes) -> Iterator[Step]:
    yield from _prefixes(current, sizes, shapes)
    yield from _known(current, shapes)


def _known(current: Mapping[str, str], shapes: Shapes) -> Iterator[Step]:
    """What libraries have renamed, and names without dots."""
    names = list(current.values())
    for rename in ALL:
        changed = rename.apply(names)
        if changed:
            yield Step(rename.code, rename.what, changed)
    for part, who in WRAPPERS.items():
        changed = {name: new for name in names if (new := name.replace(f".{part}.", ".")) != name}
        if changed:
            yield Step("wrapped-names", f"names hold {part}. ({who}) within, in the class they do not", changed)
    flat = {name.replace(".", ""): name for name in shapes}
    if len(flat) == len(shapes):
        for prefix in ("", "model", "ema_model", "module"):
            changed = {
                n: flat[n.removeprefix(prefix)] for n in names if n.removeprefix(prefix) in flat and n not in shapes
            }
            if changed:
                what = "names are without their dots, as an exponential moving average keeps them in buffers"
                yield Step("flattened-names", what, changed)


def _prefixes(current: Mapping[str, str], sizes: Mapping[str, TensorInfo], shapes: Shapes) -> Iterator[Step]:
    """What to take off or put before names, by the votes of those that then end alike."""
    ends: dict[str, list[str]] = {}
    for name in shapes:
        parts = name.split(".")
        for at in range(len(parts)):
            ends.setdefault(".".join(parts[at:]), []).append(".".join([*parts[:at], ""]) if at else "")
    votes: Counter[tuple[str, str]] = Counter()
    voters: Counter[tuple[str, str]] = Counter()
    for old, name in current.items():
        parts = name.split(".")
        for at in range(len(parts)):
            end = ".".join(parts[at:])
            for ours in ends.get(end, ())[:4]:
                theirs = ".".join([*parts[:at], ""]) if at else ""
                if shapes[ours + end] == sizes[old].shape and (theirs or ours):
                    votes[theirs, ours] += max(1, sizes[old].numel)
                    voters[theirs, ours] += 1
    votes = Counter({vote: number for vote, number in votes.items() if voters[vote] >= COMMON * len(current)})
    # one component at a time first, so that each wrapper is named; what is left then comes off as a whole
    for theirs, ours in dict.fromkeys(
        [*((f"{t.partition('.')[0]}.", "") for (t, _) in votes if t), *(v for v, _ in votes.most_common(16))]
    ):
        changed = {}
        for name in current.values():
            if name.startswith(theirs) and not (ours and name.startswith(ours)):
                changed[name] = ours + name[len(theirs) :]
        if not changed:
            continue
        yield Step(_prefix_code(theirs, ours), _prefix_words(theirs, ours), changed)


def _prefix_code(theirs: str, ours: str) -> str:
    parts = theirs.split(".")[:-1]
    if theirs and ours:
        return "renumbered-layers" if parts[-1].isdigit() and ours.split(".")[-2].isdigit() else "other-prefix"
    if ours:
        return "bare-names"
    if set(parts) & (WRAPPERS.keys() - {"model"}):
        return "stacked-wrappers" if len(parts) > 1 else "wrapped-names"
    return "lightning-names" if parts == ["model"] else "prefixed-names"


def _prefix_words(theirs: str, ours: str) -> str:
    def known(prefix: str) -> str:
        words = [WRAPPERS[part] for part in prefix.split(".")[:-1] if part in WRAPPERS]
        return f" ({' around '.join(words)})" if words else ""

    if theirs and ours and theirs.split(".")[-2].isdigit() and ours.split(".")[-2].isdigit():
        return (
            f"layers are numbered otherwise: what is {ours[:-1]} in the class is {theirs[:-1]} in the file, as where a "
            "layer was put into a Sequential or taken out"
        )
    if theirs and ours:
        return f"names begin with {theirs}{known(theirs)}, in the class with {ours}{known(ours)}"
    if ours:
        return f"names are bare, in the class they begin with {ours}{known(ours)}"
    return f"names begin with {theirs}{known(theirs)}, in the class they do not"


def _by_order(current: Mapping[str, str], sizes: Mapping[str, TensorInfo], shapes: Shapes) -> Step | None:
    """Layers of another name with the same shapes in the same order: a guess, taken where it leaves almost nothing."""
    float32 = BY_NAME["float32"]
    left = [sizes[old].renamed(new) for old, new in current.items() if new not in shapes]
    taken = set(current.values())
    open_ = [TensorInfo(name, float32, size) for name, size in shapes.items() if name not in taken]
    if not left or not open_:
        return None
    # without storage, so that no bytes are compared
    bare = [TensorInfo(tensor.name, float32, tensor.shape) for tensor in left]
    found = {p.a.name: p.b.name for p in pair(bare, open_).pairs}
    if len(found) < 0.9 * max(len(left), len(open_)):
        return None
    layers = {old.rpartition(".")[0]: new.rpartition(".")[0] for old, new in found.items()}
    told = listed([f"{new} is {old} in the file" for old, new in layers.items()], 2)
    return Step("renamed-layers", f"layers have other names, with the same shapes in the same order: {told}", found)
