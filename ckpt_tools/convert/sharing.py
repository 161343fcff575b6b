"""Names that share memory: found in a source, noted in a file that cannot share, and shared again from the note.

safetensors holds every byte under one name. A name for the very elements of another is left out of the file and
noted, and the reader gives it back (formats/note.py); a view of another (part of it, or turned) becomes a tensor of
its own and is noted as well, so that a file that can share gets it back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ckpt_tools.checkpoint import StateDict, Storage, TensorInfo
from ckpt_tools.contents import chunks, identity, resolved_bits
from ckpt_tools.formats.note import Alias


def same_views(tensors: Iterable[TensorInfo]) -> list[list[TensorInfo]]:
    """*tensors* in groups of the same view, in order; empty tensors share nothing."""
    groups: dict[object, list[TensorInfo]] = {}
    for tensor in tensors:
        key = identity(tensor) if tensor.numel and tensor.storage is not None else tensor.name
        groups.setdefault(key, []).append(tensor)
    return list(groups.values())


def aliases(tensors: Iterable[TensorInfo]) -> dict[str, Alias]:
    """What each name is an alias of. Of several names for the same view the first alphabetically is kept.

    That is the name which safetensors.torch.save_model keeps (``_remove_duplicate_names``).
    """
    found: dict[str, Alias] = {}
    kept: list[TensorInfo] = []
    for group in same_views(tensors):
        first = min(group, key=lambda tensor: tensor.name)
        kept.append(first)
        for tensor in group:
            if tensor is not first:
                found[tensor.name] = Alias(first.name, 0, tensor.shape, dense_stride(tensor.shape), False)
    for members in _by_memory(kept):
        base: TensorInfo | None = None
        members.sort(key=lambda t: (t.extent[0], -t.extent[1], not t.contiguous, t.name))
        # in this order, what has reached furthest covers a tensor if anything does, and nothing covers it
        for tensor in members:
            if base is not None and tensor.extent[1] <= base.extent[1]:
                offset = tensor.storage_offset - base.storage_offset
                found[tensor.name] = Alias(base.name, offset, tensor.shape, tensor.stride, True)
            elif tensor.contiguous:
                base = tensor
    return found


def overlapping(tensors: Iterable[TensorInfo]) -> list[list[TensorInfo]]:
    """Groups of two or more of *tensors*, all of different views, that overlap in memory and can be kept so."""
    found: list[list[TensorInfo]] = []
    for members in _by_memory(tensors):
        members.sort(key=lambda t: t.extent)
        group: list[TensorInfo] = []
        end = 0
        for tensor in [*members, None]:
            if tensor is None or (group and tensor.extent[0] >= end):
                low = group[0].extent[0]
                # far-apart rows of a big matrix would bring along what lies between them
                if len(group) > 1 and end - low <= sum(t.numel for t in group):
                    found.append(group)
                group = []
            if tensor is not None:
                group.append(tensor)
                end = max(end, tensor.extent[1]) if len(group) > 1 else tensor.extent[1]
    return found


def shared_again(state_dict: StateDict, aliases: Mapping[str, Alias]) -> StateDict:
    """*state_dict* with the views among *aliases* that the file holds as tensors of their own sharing memory again.

    Only where their bytes still agree; they are read for that.
    """
    entries = dict(state_dict.entries)
    for name, alias in aliases.items():
        own = entries.get(name)
        view = alias.view(name, state_dict.entries.get(alias.of)) if alias.stored else None
        if view is not None and isinstance(own, TensorInfo) and _equal(own, view):
            entries[name] = view
    return replace(state_dict, entries=entries)


def dense_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor, in elements."""
    return tuple(math.prod(max(size, 1) for size in shape[axis + 1 :]) for axis in range(len(shape)))


def _by_memory(tensors: Iterable[TensorInfo]) -> list[list[TensorInfo]]:
    """Lists of tensors of one storage and type that hold its elements as they are."""
    groups: dict[tuple[Storage, str], list[TensorInfo]] = {}
    for tensor in tensors:
        if tensor.storage is not None and tensor.numel and not any(resolved_bits(tensor)):
            groups.setdefault((tensor.storage, tensor.dtype.name), []).append(tensor)
    return list(groups.values())


def _equal(a: TensorInfo, b: TensorInfo) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return all(x == y for x, y in zip(chunks(a), _same_cuts(b, a), strict=False))


def _same_cuts(tensor: TensorInfo, like: TensorInfo) -> Iterable[bytes]:
    """The bytes of *tensor*, cut where those of *like* are."""
    rest = b""
    pieces = iter(chunks(tensor))
    for size in map(len, chunks(like)):
        while len(rest) < size:
            rest += next(pieces)
        yield rest[:size]
        rest = rest[size:]
