"""A checkpoint as lines that git can compare: what it holds and a digest of each tensor, and nothing of where.

Neither the file's name nor offsets, strides or storages are in it, so that files of the same content give the same
lines::

    format: PyTorch zip archive (torch.save)
    kind: training
    torch.load(weights_only=True): takes it
    imports: torch._utils._rebuild_tensor_v2
    epoch = 3
    model.conv1.weight float32 [64,3,7,7] 4f0b3a62d1c98e57
    optimizer.param_groups[0].lr = 0.001
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from ckpt_tools.analysis.digest import digest
from ckpt_tools.analysis.leaves import MAX_LEAVES, Described, Leaf, Opaque, leaves
from ckpt_tools.checkpoint import Checkpoint, KeyPath, Module, StateDict, TensorInfo, format_path
from ckpt_tools.contents import scalar
from ckpt_tools.errors import CkptError
from ckpt_tools.pickles.values import plain
from ckpt_tools.report import count, one_line
from ckpt_tools.sources import Source

DIGITS = 16
"""Hexadecimal digits of a SHA-256 that a line shows."""

LONG = 200
"""Characters of a text up to which it is shown whole; of a longer one a digest tells whether it changed."""


def listing(checkpoint: Checkpoint) -> Iterator[str]:
    """The lines of *checkpoint*, without line ends. The bytes of every tensor are read once.

    Where they are missing or damaged, the tensor's line says so.
    """
    # the root folder of an archive is the name of the file that torch.save wrote
    root = checkpoint.producer.get("root folder", "")
    yield f"format: {checkpoint.title}"
    yield f"kind: {checkpoint.kind}"
    yield from (one_line(f"{key}: {value}") for key, value in checkpoint.producer.items() if key != "root folder")
    if checkpoint.refusals is not None:
        yield f"torch.load(weights_only=True): {'refuses it' if checkpoint.refusals else 'takes it'}"
    yield from dict.fromkeys(one_line(f"imports: {use}") for use in checkpoint.globals)
    content = _Content()
    if checkpoint.metadata:
        yield from content.of_value(dict(checkpoint.metadata), ("metadata",))
    module = checkpoint.module
    if checkpoint.values is not None:
        yield from content.of_value(checkpoint.values, (), () if module is None else {checkpoint.module_path})
    if module is not None:
        yield from content.of_module(module, checkpoint.module_path)
    # what stands nowhere in the values: parts put together, an exported program's weights
    for state_dict in checkpoint.state_dicts:
        yield from content.of_tensors(content.rest_of(state_dict))
        yield from content.versions(state_dict)
    yield from content.of_tensors(checkpoint.loose)
    if content.opaque:
        for pickle in checkpoint.pickles:
            if pickle.stream is not None:
                text = _digest_of(pickle.stream, pickle.offset, pickle.size)
                yield one_line(f"pickle {pickle.member.removeprefix(f'{root}/')}: {pickle.size:,} bytes, {text}")


def unreadable(source: Source | None, error: CkptError) -> Iterator[str]:
    """The lines of a file that is no readable checkpoint: why, and a digest of its bytes (*source*)."""
    yield one_line(f"unreadable: {error.problem}")
    if source is not None:
        yield f"content: {source.size:,} bytes, {_digest_of(source, 0, source.size)}"


class _Content:
    """What is inside, line by line. A tensor is listed once under each of its names."""

    def __init__(self) -> None:
        self.opaque = False
        """Whether something was described that may change without its description doing so."""
        self._listed: set[str] = set()
        self._seen: set[int] = set()
        self._first: dict[object, str] = {}

    def of_value(self, value: object, path: KeyPath, without: Collection[KeyPath] = ()) -> Iterator[str]:
        """Every single value under *value*, which stands at *path*, but for what stands at the paths *without*."""
        for where, leaf in leaves(value, path=path, without=without):
            if isinstance(leaf, TensorInfo):
                yield from self.of_tensors([(where, leaf)])
            else:
                self.opaque |= isinstance(leaf, Opaque)
                yield one_line(f"{format_path(where) or '(root)'}{_said(leaf)}")

    def of_module(self, module: Module, path: KeyPath) -> Iterator[str]:
        """A line for each module with its settings, and its tensors after it."""
        for name, part in islice(module.walk(), MAX_LEAVES):
            here = (*path, name) if name else path
            settings = [f"{key}={_compact(value)}" for key, value in part.hyperparameters.items()]
            if part.training is not None:
                settings.insert(0, f"training={part.training}")
            yield one_line(f"{format_path(here) or '(root)'}: {' '.join([part.class_name, *settings])}")
            own = {**part.parameters, **part.buffers}
            yield from self.of_tensors(((*here, key), tensor) for key, tensor in own.items() if tensor is not None)
            if part.extra_state is not None:
                yield from self.of_value(part.extra_state, (*here, "_extra_state"))

    def of_tensors(self, tensors: Iterable[tuple[KeyPath, TensorInfo]]) -> Iterator[str]:
        """A line for each tensor, and one for each part of those that are made of several."""
        for path, tensor in tensors:
            name = format_path(path) or "tensor"
            if name in self._listed:
                continue
            self._listed.add(name)
            self._seen.add(id(tensor))
            bits = tuple(map(str, tensor.details.items()))  # a conjugate shares memory and is not the same
            key = (id(tensor.storage), tensor.dtype.name, tensor.storage_offset, tensor.shape, tensor.stride, bits)
            first = self._first.setdefault(key, name) if tensor.storage is not None and tensor.numel else name
            shown = [tensor.dtype.name, f"[{','.join(map(str, tensor.shape))}]"]
            if first != name:
                shown.append(f"= {first}")
            else:
                shown += _contents(tensor)
            if tensor.layout != "strided":
                shown.append(tensor.layout)
            if tensor.subclass is not None:
                shown.append(tensor.subclass)
            if tensor.is_parameter:
                shown.append("trainable" if tensor.requires_grad else "frozen")
            if tensor.device != "cpu":
                shown.append(tensor.device)
            shown += [
                f"{key}={_compact(value)}" for key, value in (*tensor.details.items(), *tensor.attributes.items())
            ]
            yield one_line(" ".join([name, *shown]))
            yield from self.of_tensors(((f"{name}#{label}",), part) for label, part in tensor.parts)

    def rest_of(self, state_dict: StateDict) -> Iterator[tuple[KeyPath, TensorInfo]]:
        """The tensors of a state_dict that were not listed where they stand in the values."""
        for name, value in state_dict.entries.items():
            if isinstance(value, TensorInfo) and id(value) not in self._seen:
                yield (*state_dict.path, name), value

    def versions(self, state_dict: StateDict) -> Iterator[str]:
        """The versions of modules that a state_dict records, a line for each that some have."""
        found = Counter(
            str(value.get("version")) for value in (state_dict.metadata or {}).values() if isinstance(value, dict)
        )
        where = format_path((*state_dict.path, "_metadata"))
        yield from (one_line(f"{where}: version {v} of {count(n, 'module')}") for v, n in sorted(found.items()))


def _contents(tensor: TensorInfo) -> list[str]:
    """A digest of its elements, and its value where that is one number; nothing where it is made of parts."""
    if tensor.storage is None:
        return [] if tensor.parts else ["no bytes"]
    try:
        found = [digest([tensor]).tensors[0].sha256[:DIGITS]]
        value = scalar(tensor) if not tensor.shape else None
    except CkptError:
        return ["unreadable"]
    return found if value is None else [*found, f"({value!r})"]


def _said(leaf: Leaf) -> str:
    """`` = 3``, or ``: object of class argparse.Namespace``."""
    return f": {leaf}" if isinstance(leaf, Described) else f" = {_text(leaf)}"


def _text(leaf: object) -> str:
    if isinstance(leaf, int) and not isinstance(leaf, bool) and leaf.bit_length() > 64:
        if leaf.bit_length() > 4 * LONG:
            return f"an integer of {leaf.bit_length():,} bits, {_sha256(hex(leaf).encode())}"
        return hex(leaf)
    if isinstance(leaf, str | bytes):
        text = json.dumps(leaf, ensure_ascii=False) if isinstance(leaf, str) else repr(leaf[: LONG + 1])
        if len(leaf) > LONG:
            encoded = leaf.encode("utf-8", "surrogatepass") if isinstance(leaf, str) else leaf
            return f"{text[:LONG]}… ({len(leaf):,} in all, {_sha256(encoded)})"
        return text
    return repr(leaf)


def _compact(value: object) -> str:
    """A module's setting in one word, if it can be: ``(3,3)``."""
    value = plain(value)
    if isinstance(value, list | tuple) and len(value) <= 8 and all(_is_single(plain(item)) for item in value):
        items = ",".join(_text(plain(item)) for item in value)
        return f"[{items}]" if isinstance(value, list) else f"({items})"
    if _is_single(value):
        return _text(value)
    parts = [
        f"{format_path(path)}{_said(leaf)}" if not isinstance(leaf, TensorInfo) else f"{format_path(path)} tensor"
        for path, leaf in islice(leaves(value), 64)
    ]
    return "{" + ", ".join(part.strip(" :=") for part in parts) + "}"


def _is_single(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | bytes)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def _digest_of(source: Source, offset: int, size: int) -> str:
    hasher = hashlib.sha256()
    for chunk in source.chunks(offset, size):
        hasher.update(chunk)
    return hasher.hexdigest()[:DIGITS]
