"""Which tensor of one state_dict is which of another, when names have changed.

Names are compared first, then behind wrappers' prefixes; what is left is paired by content, and what is left
then layer by layer, by order and shapes. Each pair says how it was found, so that a guess is never taken for a fact.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
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

How = Literal["name", "prefix", "content", "order"]


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
    for how, matcher in (("prefix", _by_bare_name), ("content", _by_content), ("order", _by_order)):
        matched = matcher(rest_a, rest_b)
        for left, right in matched:
            found[id(left)] = Pair(left, right, how)  # type: ignore[arg-type]
        taken = {id(tensor) for both in matched for tensor in both}
        rest_a = [tensor for tensor in rest_a if id(tensor) not in taken]
        rest_b = [tensor for tensor in rest_b if id(tensor) not in taken]
    pairs = tuple(found[id(tensor)] for tensor in a if id(tensor) in found)
    return Pairing(pairs, tuple(rest_a), tuple(rest_b), prefixes)


def _by_bare_name(a: Sequence[TensorInfo], b: Sequence[TensorInfo]) -> list[tuple[TensorInfo, TensorInfo]]:
    """Tensors of one name once each is freed of wrappers' prefixes, where these are not the same on all."""
    counts = Counter(_bare(tensor.name) for tensor in b)
    waiting = {name: tensor for tensor in b if counts[name := _bare(tensor.name)] == 1}
    return [(tensor, other) for tensor in a if (other := waiting.pop(_bare(tensor.name), None)) is not None]


def _bare(name: str) -> str:
    while (parts := name.partition("."))[0] in WRAPPERS and parts[2]:
        name = parts[2]
    return name


def _by_content(a: Sequence[TensorInfo], b: Sequence[TensorInfo]) -> list[tuple[TensorInfo, TensorInfo]]:
    """Tensors of the same type, shape and bytes.

    Where several have them (zeros, ones), they are paired in order, and only under the same last name.
    """
    shapes = {_form(tensor) for tensor in a} & {_form(tensor) for tensor in b}
    sides: list[dict[object, list[TensorInfo]]] = [{}, {}]
    for side, tensors in zip(sides, (a, b), strict=True):
        for tensor in _readable(tensors, shapes):
            side.setdefault((_form(tensor), _hash(tensor)), []).append(tensor)
    matched = []
    for key, alike in sides[0].items():
        others = sides[1].get(key, [])
        if len(alike) == len(others) == 1:
            matched.append((alike[0], others[0]))
            continue
        waiting: dict[str, deque[TensorInfo]] = {}
        for other in others:
            waiting.setdefault(_last(other), deque()).append(other)
        matched += [(tensor, waiting[last].popleft()) for tensor in alike if waiting.get(last := _last(tensor))]
    return matched


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


def _by_order(a: Sequence[TensorInfo], b: Sequence[TensorInfo]) -> list[tuple[TensorInfo, TensorInfo]]:
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
        found.setdefault(tensor.name.rpartition(".")[0], []).append(tensor)
    return [sorted(layer, key=_last) for layer in found.values()]


def _last(tensor: TensorInfo) -> str:
    return tensor.name.rpartition(".")[2]
