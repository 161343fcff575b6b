"""Which tensor of one state_dict is which of another, when names have changed.

Names are compared first, then behind wrappers' prefixes and any other that most names carry; what is left is paired by
content, and what is left then layer by layer, by order and shapes. Each pair says how it was found, so that a guess is
never taken for a fact.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from ckpt_tools.analysis.overview import WRAPPERS, wrapper_prefix
from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import chunks
from ckpt_tools.errors import CkptError

MAX_ORDER_WORK = 25_000_000
"""The most pairs of layers that matching by order looks at, between what fits from the front and from the back."""

MAX_PREFIX = 8
"""The most parts that a prefix of another kind than the wrappers' can have."""

How = Literal["name", "prefix", "content", "order"]

_Match = tuple[TensorInfo, TensorInfo]


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of each side, and *how* they were found to be the same one."""

    a: TensorInfo
    b: TensorInfo
    how: How


@dataclass(frozen=True, slots=True)
class Pairing:
    """All pairs in the order of side A, then what only A and only B have; *prefixes* are those stripped."""

    pairs: tuple[Pair, ...]
    only_a: tuple[TensorInfo, ...]
    only_b: tuple[TensorInfo, ...]
    prefixes: tuple[str, str]

    @property
    def key_map(self) -> dict[str, str]:
        """Names of A that B has under another name."""
        return {pair.a.name: pair.b.name for pair in self.pairs if pair.a.name != pair.b.name}


def pair(a: Sequence[TensorInfo], b: Sequence[TensorInfo]) -> Pairing:
    """Pair the tensors of two state_dicts. Bytes are read only of what names leave over."""
    prefixes = wrapper_prefix(t.name for t in a), wrapper_prefix(t.name for t in b)
    if prefixes[0] == prefixes[1]:
        prefixes = "", ""
    by_name = {tensor.name[len(prefixes[1]) :]: tensor for tensor in b}
    found: dict[int, Pair] = {}
    rest_a: list[TensorInfo] = []
    for tensor in a:
        other = by_name.pop(tensor.name[len(prefixes[0]) :], None)
        if other is None:
            rest_a.append(tensor)
        else:
            found[id(tensor)] = Pair(tensor, other, "name" if tensor.name == other.name else "prefix")
    rest_b = list(by_name.values())
    if rest_a and rest_b:
        wider, matched = _by_prefix(rest_a, rest_b, prefixes)
        found |= {id(left): Pair(left, right, "prefix") for left, right in matched}
        rest_a, rest_b = _without(rest_a, matched, 0), _without(rest_b, matched, 1)
        left = {t.name.removeprefix(wider[0]) for t in a}
        right = [t.name.removeprefix(wider[1]) for t in rest_b]
        if len(left) == len(a) and left.isdisjoint(right):  # else names of two tensors would be the same without it
            prefixes = wider
    for how, matcher in (("prefix", _by_bare_name), ("content", _by_content), ("order", _by_order)):
        matched = matcher(rest_a, rest_b)
        found |= {id(left): Pair(left, right, how) for left, right in matched}  # type: ignore[arg-type]
        rest_a, rest_b = _without(rest_a, matched, 0), _without(rest_b, matched, 1)
    pairs = tuple(found[id(tensor)] for tensor in a if id(tensor) in found)
    return Pairing(pairs, tuple(rest_a), tuple(rest_b), prefixes)


def _without(tensors: Sequence[TensorInfo], matched: Sequence[_Match], side: int) -> list[TensorInfo]:
    taken = {id(both[side]) for both in matched}
    return [tensor for tensor in tensors if id(tensor) not in taken]


def _by_prefix(
    a: Sequence[TensorInfo], b: Sequence[TensorInfo], prefixes: tuple[str, str]
) -> tuple[tuple[str, str], list[_Match]]:
    """*prefixes* with another at the end of one of them, and the tensors that have one name behind these.

    More than half of the names must have it, with the same shapes, and no other prefix may fit as well.
    """
    sides = [{t.name.removeprefix(prefix): t for t in s} for s, prefix in zip((a, b), prefixes, strict=True)]
    for side, (inner, outer) in enumerate((sides, sides[::-1])):
        fits: Counter[str] = Counter()
        for name, tensor in outer.items():
            at = 0
            for _ in range(MAX_PREFIX):
                at = name.find(".", at) + 1
                if not at:
                    break
                if (other := inner.get(name[at:])) is not None and other.shape == tensor.shape:
                    fits[name[:at]] += 1
        best = fits.most_common(2)
        if not best or best[0][1] < 2 or 2 * best[0][1] <= min(len(a), len(b)):
            continue
        if len(best) == 2 and best[0][1] == best[1][1]:
            continue
        prefix = best[0][0]
        bare = {name.removeprefix(prefix): tensor for name, tensor in outer.items() if name.startswith(prefix)}
        matched = [(tensor, bare[name]) for name, tensor in inner.items() if name in bare]
        if side:
            return (prefixes[0] + prefix, prefixes[1]), [(right, left) for left, right in matched]
        return (prefixes[0], prefixes[1] + prefix), matched
    return prefixes, []


def _by_bare_name(a: Sequence[TensorInfo], b: Sequence[TensorInfo]) -> list[_Match]:
    """Tensors of one name once each is freed of wrappers' prefixes, where these are not the same on all."""
    counts = Counter(_bare(tensor.name) for tensor in b)
    waiting = {name: tensor for tensor in b if counts[name := _bare(tensor.name)] == 1}
    return [(tensor, other) for tensor in a if (other := waiting.pop(_bare(tensor.name), None)) is not None]


def _bare(name: str) -> str:
    while (parts := name.partition("."))[0] in WRAPPERS and parts[2]:
        name = parts[2]
    return name


def _by_content(a: Sequence[TensorInfo], b: Sequence[TensorInfo]) -> list[_Match]:
    """Tensors of the same type, shape and bytes.

    Where several have them (zeros, ones), those are paired that stand in layers paired by others of their tensors,
    under the same last name; the rest in order, if on both sides as many have the same last name.
    """
    shapes = {_form(tensor) for tensor in a} & {_form(tensor) for tensor in b}
    sides: list[dict[object, list[TensorInfo]]] = [{}, {}]
    for side, tensors in zip(sides, (a, b), strict=True):
        for tensor in _readable(tensors, shapes):
            side.setdefault((_form(tensor), _hash(tensor)), []).append(tensor)
    matched: list[_Match] = []
    several: list[tuple[list[TensorInfo], list[TensorInfo]]] = []
    for key, alike in sides[0].items():
        others = sides[1].get(key, [])
        if len(alike) == len(others) == 1:
            matched.append((alike[0], others[0]))
        elif others:
            several.append((alike, others))
    layers: dict[str, set[str]] = {}
    for left, right in matched:
        layers.setdefault(_layer(left), set()).add(_layer(right))
    for alike, others in several:
        named = {tensor.name: tensor for tensor in others}
        found = []
        for tensor in alike:
            (layer, *more) = layers.get(_layer(tensor), ("",))
            if layer and not more and (other := named.pop(f"{layer}.{_last(tensor)}", None)) is not None:
                found.append((tensor, other))
        matched += found
        left_over = [_grouped(_without(tensors, found, side)) for side, tensors in enumerate((alike, others))]
        for last, group in left_over[0].items():
            if len(group) == len(left_over[1].get(last, ())):
                matched += zip(group, left_over[1][last], strict=True)
    return matched


def _grouped(tensors: Iterable[TensorInfo]) -> dict[str, list[TensorInfo]]:
    """*tensors* by their last names."""
    found: dict[str, list[TensorInfo]] = {}
    for tensor in tensors:
        found.setdefault(_last(tensor), []).append(tensor)
    return found


def _readable(tensors: Iterable[TensorInfo], forms: set[object]) -> list[TensorInfo]:
    return [t for t in tensors if t.numel and t.storage is not None and t.layout == "strided" and _form(t) in forms]


def _form(tensor: TensorInfo) -> object:
    return tensor.dtype.name, tensor.shape


def _hash(tensor: TensorInfo) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    try:
        for chunk in chunks(tensor):
            digest.update(chunk)
    except CkptError:
        return tensor.name.encode("utf-8", "surrogatepass")  # equal to nothing
    return digest.digest()


def _by_order(a: Sequence[TensorInfo], b: Sequence[TensorInfo]) -> list[_Match]:
    """Layers that hold tensors of the same last names and shapes, in the same order; a part of a layer is none."""
    layers_a, layers_b = _layers(a), _layers(b)
    forms_a, forms_b = ([tuple((_last(t), t.shape) for t in layer) for layer in side] for side in (layers_a, layers_b))
    shorter, front, back = min(len(forms_a), len(forms_b)), 0, 0
    while front < shorter and forms_a[front] == forms_b[front]:
        front += 1
    while back < shorter - front and forms_a[-1 - back] == forms_b[-1 - back]:
        back += 1
    at = [(i, i) for i in range(front)] + [(len(forms_a) - i, len(forms_b) - i) for i in range(back, 0, -1)]
    middle_a, middle_b = forms_a[front : len(forms_a) - back], forms_b[front : len(forms_b) - back]
    if len(middle_a) * len(middle_b) <= MAX_ORDER_WORK:
        for block in SequenceMatcher(None, middle_a, middle_b, autojunk=False).get_matching_blocks():
            at += [(front + block.a + i, front + block.b + i) for i in range(block.size)]
    return [both for i, j in at for both in zip(layers_a[i], layers_b[j], strict=True)]


def _layers(tensors: Iterable[TensorInfo]) -> list[list[TensorInfo]]:
    """The tensors of each layer, in the order of their last names."""
    found: dict[str, list[TensorInfo]] = {}
    for tensor in tensors:
        found.setdefault(_layer(tensor), []).append(tensor)
    return [sorted(layer, key=_last) for layer in found.values()]


def _layer(tensor: TensorInfo) -> str:
    return tensor.name.rpartition(".")[0]


def _last(tensor: TensorInfo) -> str:
    return tensor.name.rpartition(".")[2]
