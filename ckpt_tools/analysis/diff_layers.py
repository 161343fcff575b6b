"""What the differences of two checkpoints come to: layer by layer, and in one sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from ckpt_tools.analysis.counting import looks_like_buffer
from ckpt_tools.analysis.diff import Absent, Diff, TensorDiff, ValueDiff, moved
from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.records import record
from ckpt_tools.report import count, number, shortened

Status = Literal["identical", "buffers moved", "changed", "replaced", "altered", "added", "removed", "unreadable"]

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
        """What happened to it: *replaced* is another shape, *altered* a parameter more or less."""
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
        if weights & {"value", "dtype"}:
            return "changed"
        if "unreadable" in changes:
            return "unreadable"
        return "buffers moved" if any(entry.differs for entry in self.buffers) else "identical"


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
        return text + (f", {close:,} of them only within the tolerance" if close else "")
    return ", ".join([*_weights(diff), *_names(diff), *_beside(diff)])


def _weights(diff: Diff) -> list[str]:
    if diff.tensors and all(entry.change in ("added", "removed") for entry in diff.tensors):
        only = [sum(entry.change == change for entry in diff.tensors) for change in ("removed", "added")]
        told = [f"{count(n, 'tensor')} only in {side}" for n, side in zip(only, "AB", strict=True) if n]
        return [f"no tensor in common ({', '.join(told)})"]
    casts = [entry for entry in diff.tensors if is_cast(entry)]
    layers = layers_of(entry for entry in diff.tensors if not is_cast(entry))
    head = head_of(layers)
    heads = () if head is None else (head.old, head.new)
    rest = [layer for layer in layers if not _below(layer.path, heads)]
    parts = list(_cast(casts))
    body = [layer for layer in rest if layer.status not in ("added", "removed")]
    parts += _body([e for layer in body for e in layer.weights], "backbone" if head else "weights", bool(casts))
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


def _cast(entries: Sequence[TensorDiff]) -> Iterable[str]:
    groups: Counter[str] = Counter()
    for entry in entries:
        if entry.a is not None and entry.b is not None and entry.comparison is not None:
            forth = entry.comparison.cast
            groups[f"B is A cast to {entry.b.dtype}" if forth else f"A is B cast to {entry.a.dtype}"] += 1
    return (f"{what} ({count(number_of, 'tensor')})" for what, number_of in groups.items())


def _below(path: str, heads: Iterable[str]) -> bool:
    return any(path == head or path.startswith(f"{head}.") for head in heads)


def _body(entries: Sequence[TensorDiff], word: str, more: bool) -> list[str]:
    """What became of the parameters of layers that both have. *more* is true where others were only cast."""
    if not entries:
        return []
    counts = Counter(entry.change for entry in entries)
    same = counts["identical"] + counts["within tolerance"]
    if same == len(entries):
        close = counts["within tolerance"]
        told = f", {close:,} of them only within the tolerance" if close else ""
        return [f"{'other ' if more else ''}{word} identical ({count(same, 'tensor')}{told})"]
    parts = []
    changed = [entry for entry in entries if entry.change in _MOVED]
    if changed:
        parts.append(_changed(changed, len(entries), word.removesuffix("s")))
    for change, what in (("shape", "of another shape"), ("added", "added"), ("removed", "removed")):
        found = [entry for entry in entries if entry.change == change]
        if found:
            parts.append(f"{_some_tensors(found)} {what}")
    if counts["unreadable"]:
        parts.append(f"{count(counts['unreadable'], 'tensor')} could not be compared")
    if same and not changed:
        parts.append(f"other {word} identical ({count(same, 'tensor')})")
    return parts


def _changed(changed: Sequence[TensorDiff], of: int, word: str) -> str:
    if len(changed) == of:
        text = f"all {count(of, f'{word} tensor')} changed" if of > 1 else f"the only {word} tensor changed"
    else:
        text = f"{len(changed):,} of {count(of, f'{word} tensor')} changed{_where(changed)}"
    share = moved(changed)
    if share and share != math.inf:
        text += f", by {number(round_to(share))} of their norm"
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
    return " in " + " and ".join(f"`{shortened(module)}`" for module in modules)


def _some(layers: Sequence[Layer]) -> str:
    if len(layers) <= _NAMED:
        return " and ".join(
            f"`{shortened(layer.path or (*layer.weights, *layer.buffers)[0].name)}`" for layer in layers
        )
    return count(len(layers), "layer")


def _some_tensors(entries: Sequence[TensorDiff]) -> str:
    if len(entries) <= _NAMED:
        return " and ".join(f"`{shortened(entry.name)}`" for entry in entries)
    return count(len(entries), "tensor")


def _buffers(body: Sequence[Layer]) -> list[str]:
    """Which buffers moved, apart where their layer did not; and which only one side has."""
    groups: dict[str, list[tuple[Layer, TensorDiff]]] = {}
    for layer in body:
        for entry in layer.buffers:
            if entry.change in ("added", "removed"):
                groups.setdefault(entry.change, []).append((layer, entry))
            elif entry.differs and not is_cast(entry):
                still = layer.status == "buffers moved"
                groups.setdefault("layer whose weights stayed" if still else "layer that changed", []).append(
                    (layer, entry)
                )
    parts: list[str] = []
    for kind in ("layer whose weights stayed", "layer that changed", "added", "removed"):
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
        parts.append(
            f"prefix `{old}` became `{new}`"
            if old and new
            else f"prefix `{old}` dropped"
            if old
            else f"prefix `{new}` added"
        )
    for how, told in (("content", "renamed"), ("order", "renamed, by their order and shapes")):
        found = sum(entry.how == how for entry in diff.tensors)
        if found:
            parts.append(f"{count(found, 'tensor')} {told}")
    return parts


def _beside(diff: Diff) -> list[str]:
    parts = []
    if diff.ties:
        broken = sum(tie.broken for tie in diff.ties)
        kinds = ((broken, "broken"), (len(diff.ties) - broken, "new"))
        parts += [f"{number_} tied group{'s' if number_ > 1 else ''} {what}" for number_, what in kinds if number_]
    settings = sum(value.category == "hyperparameters" for value in diff.values)
    if settings:
        parts.append(f"{count(settings, 'module setting')} changed")
    optimizer = [value for value in diff.values if value.category == "optimizer"]
    if optimizer:
        parts.append(f"optimizer {_only(optimizer) or 'differs'}")
    metadata = [value for value in diff.values if value.category == "metadata"]
    for value in metadata:
        if value.path[-1:] == ("epoch",) and not isinstance(value.a, Absent) and not isinstance(value.b, Absent):
            parts.append(f"epoch {number(value.a)}→{number(value.b)}")
            metadata.remove(value)
            break
    if metadata:
        names = {str(value.path[0]) if value.path else "" for value in metadata}
        told = " and ".join(f"`{shortened(name)}`" for name in sorted(names)) if len(names) <= _NAMED else "metadata"
        parts.append(f"{told} {_only(metadata) or ('differs' if len(names) == 1 or told == 'metadata' else 'differ')}")
    return parts


def _only(values: Sequence[ValueDiff]) -> str:
    if all(isinstance(value.b, Absent) for value in values):
        return "only in A"
    return "only in B" if all(isinstance(value.a, Absent) for value in values) else ""
