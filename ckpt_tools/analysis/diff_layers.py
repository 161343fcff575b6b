"""What the differences of two checkpoints come to: layer by layer, and in one sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from ckpt_tools.analysis.comparison import Comparison
from ckpt_tools.analysis.counting import looks_like_buffer
from ckpt_tools.analysis.diff import Absent, Diff, TensorDiff, ValueDiff, moved
from ckpt_tools.checkpoint import Checkpoint, TensorInfo
from ckpt_tools.pickles.values import key_text, plain
from ckpt_tools.records import record
from ckpt_tools.report import count, number, shortened

Status = Literal[
    "identical", "cast", "buffers moved", "changed", "replaced", "altered", "added", "removed", "unreadable"
]

_MOVED = ("value", "dtype")
_NAMED = 3
"""How many layers the sentence names before it only counts them."""


@record
class Layer:
    """The tensors of one module, not of those below it: its parameters and its buffers."""

    path: str
    weights: Sequence[TensorDiff]
    buffers: Sequence[TensorDiff]

    @property
    def status(self) -> Status:
        """What happened to it: *replaced* is another shape, *altered* a parameter more or less, *cast* another type."""
        changes = [entry.change for entry in self.weights or self.buffers]
        if all(change == "added" for change in changes):
            return "added"
        if all(change == "removed" for change in changes):
            return "removed"
        weights = {entry.change for entry in self.weights}
        if "shape" in weights:
            return "replaced"
        if weights & {"added", "removed"}:
            return "altered"
        if any(entry.change in _MOVED and not is_cast(entry) for entry in self.weights):
            return "changed"
        if "unreadable" in changes:
            return "unreadable"
        if any(entry.differs and not is_cast(entry) for entry in self.buffers):
            return "buffers moved"
        return "cast" if any(is_cast(entry) for entry in (*self.weights, *self.buffers)) else "identical"


@record
class Head:
    """A last layer that is not what it was: *old* and *new* name it, and how many outputs it has."""

    old: str
    new: str
    outputs: tuple[int | None, int | None]

    def __str__(self) -> str:
        text = f"`{shortened(self.old)}` replaced"
        if self.new != self.old:
            text += f" by `{shortened(self.new)}`"
        before, after = self.outputs
        if before is not None and after is not None and before != after:
            text += f" ({before}→{after} classes)"
        return text


def layers_of(entries: Iterable[TensorDiff]) -> list[Layer]:
    """The layers, in the order of their first tensors."""
    weights: dict[str, list[TensorDiff]] = {}
    buffers: dict[str, list[TensorDiff]] = {}
    for entry in entries:
        weights.setdefault(entry.layer, [])
        buffers.setdefault(entry.layer, [])
        (buffers if entry.is_buffer else weights)[entry.layer].append(entry)
    return [Layer(path, weights[path], buffers[path]) for path in weights]


def head_of(layers: Sequence[Layer]) -> Head | None:
    """The head that was replaced: the last layer with parameters of A, where B has another in its place.

    That is the same layer with another number of outputs, or one that is gone while others came. There is none
    where no layer is in both.
    """
    if not any(e.change not in ("added", "removed", "shape") for layer in layers for e in layer.weights):
        return None
    of_a = [layer for layer in layers if any(entry.a is not None for entry in layer.weights)]
    of_b = [layer for layer in layers if any(entry.b is not None for entry in layer.weights)]
    if not of_a or not of_b:
        return None
    last = of_a[-1]
    if last.status == "replaced" and all(
        entry.a is None or entry.b is None or entry.a.shape[1:] == entry.b.shape[1:] for entry in last.weights
    ):
        return Head(last.path, last.path, (_outputs(last, "a"), _outputs(last, "b")))
    added = [layer for layer in of_b if layer.status == "added"]
    if last.status != "removed" or not added:
        return None
    new = added[-1]
    name = new.path if len(added) == 1 else _common(layer.path for layer in added)
    return Head(last.path, name or new.path or new.weights[0].name, (_outputs(last, "a"), _outputs(new, "b")))


def _outputs(layer: Layer, side: Literal["a", "b"]) -> int | None:
    shapes = [getattr(entry, side).shape for entry in layer.weights if getattr(entry, side) is not None]
    return next((shape[0] for shape in shapes if len(shape) >= 2), None)


def _common(paths: Iterable[str]) -> str:
    """The layers' names as far as they are the same, whole parts only."""
    shared: list[str] | None = None
    for path in paths:
        parts = path.split(".")
        shared = parts if shared is None else [x for x, y in zip(shared, parts, strict=False) if x == y]
    return ".".join(shared or ())


def verdict(diff: Diff) -> str:
    """The differences in a sentence."""
    if not diff.different:
        close = sum(entry.change == "within tolerance" for entry in diff.tensors)
        text = f"identical ({count(len(diff.tensors), 'tensor')})" if diff.tensors else "identical"
        text += f", {close:,} of them only within the tolerance" if close else ""
        if diff.uncompared:
            text += f" as far as compared; {count(len(diff.uncompared), 'value')} could not be"
        return text + (f"; left out: {', '.join(sorted(diff.ignored))}" if diff.ignored else "")
    return ", ".join([*_weights(diff), *_names(diff), *_beside(diff)])


def _weights(diff: Diff) -> list[str]:
    if diff.tensors and all(entry.change in ("added", "removed") for entry in diff.tensors):
        only = [sum(entry.change == change for entry in diff.tensors) for change in ("removed", "added")]
        told = [f"{count(n, 'tensor')} only in {side}" for n, side in zip(only, "AB", strict=True) if n]
        return [f"no tensor in common ({', '.join(told)})"]
    layers = layers_of(diff.tensors)
    head = head_of(layers)
    heads = () if head is None else (head.old, head.new)
    rest = [layer for layer in layers if not _below(layer.path, heads)]
    parts = list(_cast(diff.tensors))
    body = [layer for layer in rest if layer.status not in ("added", "removed")]
    parts += _body([e for layer in body for e in layer.weights], "backbone" if head else "weights")
    if head is not None:
        parts.append(str(head))
    for what in ("added", "removed"):
        found = [layer for layer in rest if layer.status == what]
        if found:
            parts.append(f"{_some(found)} {what}")
    return parts + _buffers(body)


def is_cast(entry: TensorDiff) -> bool:
    """Whether all that happened to it is a conversion to another dtype, or back from one."""
    found = entry.comparison
    return entry.change == "dtype" and found is not None and (found.cast or found.cast_back)


def _is_retyped(entry: TensorDiff) -> bool:
    """Whether it has another dtype, and its values were not set against the other's."""
    return entry.change == "dtype" and (entry.comparison is None or entry.comparison.basis is None)


def _cast(entries: Sequence[TensorDiff]) -> Iterable[str]:
    """Which tensors were cast, by types, and which have another type alone."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    retyped: Counter[str] = Counter()
    for entry in entries:
        if entry.a is not None and entry.b is not None and entry.comparison is not None and is_cast(entry):
            groups.setdefault((str(entry.a.dtype), str(entry.b.dtype)), []).append(entry.comparison)
        elif entry.a is not None and entry.b is not None and _is_retyped(entry):
            retyped[f"from {entry.a.dtype} to {entry.b.dtype}"] += 1
    for (old, new), found in groups.items():
        back = sum(not each.cast for each in found)
        if back and all(each.cast_back for each in found):  # those that lost nothing do not say which way it went
            back = len(found)
        if back < len(found):
            yield f"B is A cast to {new} ({count(len(found) - back, 'tensor')})"
        if back:
            yield f"A is B cast to {old} ({count(back, 'tensor')})"
    yield from (f"{count(times, 'tensor')} {what}" for what, times in retyped.items())


def _below(path: str, heads: Iterable[str]) -> bool:
    return any(path == head or path.startswith(f"{head}.") for head in heads)


def _body(entries: Sequence[TensorDiff], word: str) -> list[str]:
    """What became of the parameters of layers that both have, but for those that were only cast."""
    told = [entry for entry in entries if is_cast(entry) or _is_retyped(entry)]
    entries = [entry for entry in entries if not is_cast(entry) and not _is_retyped(entry)]
    if not entries:
        return []
    counts = Counter(entry.change for entry in entries)
    same = counts["identical"] + counts["within tolerance"]
    if same == len(entries):
        close = counts["within tolerance"]
        within = f", {close:,} of them only within the tolerance" if close else ""
        return [f"{'other ' if told else ''}{word} identical ({count(same, 'tensor')}{within})"]
    parts = []
    changed = [entry for entry in entries if entry.change in _MOVED]
    if changed:
        parts.append(_changed(changed, len(entries), word.removesuffix("s"), bool(told)))
    for change, what in (("shape", "of another shape"), ("added", "added"), ("removed", "removed")):
        found = [entry for entry in entries if entry.change == change]
        if found:
            parts.append(f"{_some_tensors(found)} {what}")
    if counts["unreadable"]:
        parts.append(f"{count(counts['unreadable'], 'tensor')} could not be compared")
    if same and not changed:
        parts.append(f"other {word} identical ({count(same, 'tensor')})")
    return parts


def _changed(changed: Sequence[TensorDiff], of: int, word: str, others: bool) -> str:
    """*changed* of *of* tensors; *others*, which these are not among, were told of."""
    number_of = f"{of:,} other" if others else f"{of:,}"
    if len(changed) < of:
        noun = "tensor" if of == 1 else "tensors"
        text = f"{len(changed):,} of {number_of} {word} {noun} changed{_where(changed)}"
    elif of > 1:
        text = f"all {number_of} {word} tensors changed"
    else:
        text = f"the only {'other ' if others else ''}{word} tensor changed"
    share = moved(changed)
    if share and share != math.inf:
        text += f", by {number(round_to(share))} of {'its' if len(changed) == 1 else 'their'} norm"
    measured = [entry.comparison for entry in changed if entry.comparison is not None]
    spoilt = sum(found.nans[1] > found.nans[0] or found.infs[1] > found.infs[0] for found in measured)
    return text + (f", {count(spoilt, 'tensor')} with new NaN or Inf" if spoilt else "")


def round_to(value: float, digits: int = 3) -> float:
    """*value* to that many significant digits: more would only be noise to a reader."""
    return float(f"{value:.{digits}g}")


def _where(changed: Sequence[TensorDiff]) -> str:
    for depth in (1, 2, 3):
        modules = list(dict.fromkeys(".".join(entry.name.split(".")[:-1][:depth]) for entry in changed))
        if len(modules) > 1 or depth == 3:
            break
    if len(modules) > _NAMED or not all(modules):
        return ""
    return f" in {_and(modules)}"


def _and(names: Sequence[str]) -> str:
    """*names* as code: `a`, `b` and `c`."""
    *first, last = (f"`{shortened(name)}`" for name in names)
    return f"{', '.join(first)} and {last}" if first else last


def _some(layers: Sequence[Layer]) -> str:
    if len(layers) <= _NAMED:
        return _and([layer.path or (*layer.weights, *layer.buffers)[0].name for layer in layers])
    return count(len(layers), "layer")


def _some_tensors(entries: Sequence[TensorDiff]) -> str:
    if len(entries) <= _NAMED:
        return _and([entry.name for entry in entries])
    return count(len(entries), "tensor")


def _buffers(body: Sequence[Layer]) -> list[str]:
    """Which buffers moved, apart where their layer did not; and which only one side has."""
    groups: dict[str, list[tuple[Layer, TensorDiff]]] = {}
    for layer in body:
        for entry in layer.buffers:
            if entry.change in ("added", "removed"):
                groups.setdefault(entry.change, []).append((layer, entry))
            elif entry.differs and not is_cast(entry) and not _is_retyped(entry):
                kind = "layer without weights" if not layer.weights else "layer that changed"
                if layer.weights and layer.status == "buffers moved":
                    kind = "layer whose weights stayed"
                groups.setdefault(kind, []).append((layer, entry))
    parts: list[str] = []
    for kind in ("layer whose weights stayed", "layer that changed", "layer without weights", "added", "removed"):
        found = groups.get(kind, [])
        if not found:
            continue
        noun = "BatchNorm buffer" if all(looks_like_buffer(entry.name) for _, entry in found) else "buffer"
        what = count(len(found), noun)
        if kind in ("added", "removed"):
            parts.append(f"{what} {kind}")
            continue
        layers = list({id(layer): layer for layer, _ in found}.values())
        if kind.endswith("stayed") and all(_recorded_frozen(e.b) for layer in layers for e in layer.weights):
            kind = "frozen layer"
        before, _, after = kind.partition("layer")
        told = f"{what} moved" if not parts else f"{len(found):,}"
        parts.append(f"{told} in {count(len(layers), f'{before}layer')}{after}")
    return parts


def _recorded_frozen(tensor: TensorInfo | None) -> bool:
    return tensor is not None and bool(tensor.is_parameter) and tensor.requires_grad is False


def _names(diff: Diff) -> list[str]:
    if not diff.key_map or "names" in diff.ignored:
        return []
    old, new = diff.prefixes
    parts = []
    if any(diff.prefixes):
        both = [(entry.a.name, entry.b.name) for entry in diff.tensors if entry.a and entry.b]
        parts.append(
            f"prefix `{old}` became `{new}`"
            if old and new
            else f"prefix `{old}` dropped{_how_many(' from', [a for a, _ in both], old)}"
            if old
            else f"prefix `{new}` added{_how_many(' to', [b for _, b in both], new)}"
        )
    ways = Counter(entry.how for entry in diff.tensors if entry.a and entry.b and entry.a.name != entry.b.name)
    found, guessed = ways["content"] + ways["order"], ways["order"]
    if not any(diff.prefixes):  # two tensors would have one name without them
        found += ways["prefix"]
    if found:
        told = f", {guessed:,} of them" if guessed < found else ","
        parts.append(f"{count(found, 'tensor')} renamed" + (f"{told} by their order and shapes" if guessed else ""))
    return parts


def _how_many(word: str, names: Sequence[str], prefix: str) -> str:
    """`` from 4 of 9 names`` where not all that both have begin with *prefix* on the side that has it."""
    have = sum(name.startswith(prefix) for name in names)
    return f"{word} {have:,} of {len(names):,} names" if have < len(names) else ""


def _beside(diff: Diff) -> list[str]:
    parts = []
    if diff.ties:
        broken = sum(tie.broken for tie in diff.ties)
        kinds = ((broken, "broken"), (len(diff.ties) - broken, "new"))
        parts += [f"{number_} tied group{'s' if number_ > 1 else ''} {what}" for number_, what in kinds if number_]
    settings = [value for value in diff.values if value.category == "hyperparameters"]
    if settings:
        keys = list(dict.fromkeys(str(value.path[1]) for value in settings if len(value.path) > 1))
        which = f" ({_and(keys)})" if 0 < len(keys) <= _NAMED else ""
        parts.append(f"{count(len(settings), 'module setting')} changed{which}")
    optimizer = [value for value in diff.values if value.category == "optimizer"]
    if optimizer:
        whole = not any({"state", "param_groups"} & {*value.path} for value in optimizer)
        parts.append(f"optimizer {(whole and _only(optimizer)) or _differs(optimizer)}")
    metadata = [value for value in diff.values if value.category == "metadata"]
    for value in metadata:
        if value.path[-1:] == ("epoch",) and not isinstance(value.a, Absent) and not isinstance(value.b, Absent):
            parts.append(f"epoch {number(value.a)}→{number(value.b)}")
            metadata.remove(value)
            break
    if metadata:
        names = {str(value.path[0]) if value.path else "the value" for value in metadata}
        told = _and(sorted(names)) if len(names) <= _NAMED else "metadata"
        only = _only(metadata)
        if only and names & _names_of(diff.b if only == "only in A" else diff.a):  # of which the other has a part
            only = ""
        parts.append(f"{told} {only or ('differs' if len(names) == 1 or told == 'metadata' else 'differ')}")
    return parts


def _names_of(checkpoint: Checkpoint) -> set[str]:
    """The first steps of the paths of a checkpoint's values."""
    values = plain(checkpoint.values)
    return {key_text(key) for key in values} if isinstance(values, dict) else set()


def _only(values: Sequence[ValueDiff]) -> str:
    if all(isinstance(value.b, Absent) for value in values):
        return "only in A"
    return "only in B" if all(isinstance(value.a, Absent) for value in values) else ""


def _differs(optimizer: Sequence[ValueDiff]) -> str:
    """How an optimizer that both have is another: ``differs in lr (0.1→0.01) and state``."""
    settings: dict[str, set[str]] = {}
    state = False
    for value in optimizer:
        state |= "state" in value.path[:-1]
        if "param_groups" in value.path[:-1] and not isinstance(value.a, Absent) and not isinstance(value.b, Absent):
            short = all(isinstance(side, bool | int | float) for side in (value.a, value.b))
            change = f" ({number(value.a)}→{number(value.b)})" if short else ""
            settings.setdefault(str(value.path[-1]), set()).add(change)
    if len(settings) > _NAMED or (not settings and not state):
        return "differs"
    told = [name + (min(changes) if len(changes) == 1 else "") for name, changes in settings.items()]
    *first, last = [*map(shortened, told), *["state"] * state]
    return f"differs in {', '.join(first)} and {last}" if first else f"differs in {last}"
