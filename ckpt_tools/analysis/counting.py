"""Counting tensors honestly: memory that several names share is counted once, slack is told apart."""

from __future__ import annotations

from collections.abc import Iterable

from ckpt_tools.checkpoint import Storage, TensorInfo
from ckpt_tools.records import record

# torch/nn/modules/batchnorm.py and utils/spectral_norm.py: names that only buffers have
BUFFER_NAMES = frozenset({"running_mean", "running_var", "num_batches_tracked"})


@record
class Tally:
    """*tensors* names, *elements* and *nbytes* of distinct memory, *slack* bytes of storages no tensor uses."""

    tensors: int = 0
    elements: int = 0
    nbytes: int = 0
    slack: int = 0


def distinct(tensors: Iterable[TensorInfo]) -> list[TensorInfo]:
    """The tensors without those that name the very elements of an earlier one, transposed or not."""
    listed = list(tensors)
    return listed if _all_alone(listed) else [group[0] for group in _groups(listed)]


def tied(tensors: Iterable[TensorInfo]) -> list[list[str]]:
    """Groups of names for the same elements, in file order."""
    listed = list(tensors)
    groups = () if _all_alone(listed) else _groups(listed)
    return [[t.name for t in group] for group in groups if len(group) > 1 and group[0].numel]


def _all_alone(tensors: list[TensorInfo]) -> bool:
    """Whether each has a storage of its own, as nearly all have."""
    return len({id(tensor.storage) for tensor in tensors}) == len(tensors)


def _groups(tensors: Iterable[TensorInfo]) -> list[list[TensorInfo]]:
    """The tensors, those together that name the very same elements, in file order."""
    groups: list[list[TensorInfo]] = []
    # which elements a tensor has is worked out for the second one of a storage: most storages have one
    alone: dict[int, list[TensorInfo]] = {}
    known: dict[tuple[int, object], list[TensorInfo]] = {}
    for tensor in tensors:
        place = id(tensor.storage)
        first = alone.get(place)
        if first is not None and tensor.storage is not None:
            known.setdefault((place, _elements(first[0])), first)
            group = known.setdefault((place, _elements(tensor)), [])
        else:
            group = alone[place] = []
        if not group:
            groups.append(group)
        group.append(tensor)
    return groups


def _elements(tensor: TensorInfo) -> object:
    return tensor.extent, tensor.numel


def tally(tensors: Iterable[TensorInfo]) -> Tally:
    """Count *tensors*; bytes are those of the storages that some tensor reaches, overlaps once."""
    listed = list(tensors)
    elements = sum(tensor.numel for tensor in distinct(listed))
    extents: dict[int, tuple[Storage, list[tuple[int, int]]]] = {}
    for tensor in listed:
        for part in _stored(tensor):
            storage = part.storage
            if storage is not None:
                low, high = part.extent
                item = part.dtype.itemsize
                pair = (low * item, min(high * item, storage.nbytes))
                extents.setdefault(id(storage), (storage, []))[1].append(pair)
    used = slack = 0
    for storage, pairs in extents.values():
        covered = _covered(pairs)
        used += covered
        slack += storage.nbytes - covered
    return Tally(len(listed), elements, used, slack)


def _stored(tensor: TensorInfo) -> Iterable[TensorInfo]:
    yield tensor
    for _, part in tensor.parts:
        yield from _stored(part)


def _covered(pairs: list[tuple[int, int]]) -> int:
    total = end = 0
    for low, high in sorted(pairs):
        if high > end:
            total += high - max(low, end)
            end = high
    return total


def looks_like_buffer(name: str) -> bool:
    """Whether a name is one that BatchNorm's buffers have; an inference, not a record."""
    return name.rpartition(".")[2] in BUFFER_NAMES
