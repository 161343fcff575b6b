"""What our own conversion noted in a safetensors file, or in the index of several, and what follows for its tensors.

safetensors holds every byte under one name, and plain tensors only. A second name for the very elements of another
is noted, and so is what a tensor was whose parts stand in the file one by one; here both come back. The note is one
text of the metadata, a JSON object (docs/convert.md). What it says is taken as far as it is true of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ckpt_tools.checkpoint import Checkpoint, StateDict, TensorInfo
from ckpt_tools.dtypes import BY_NAME, DType
from ckpt_tools.formats.base import NOTE
from ckpt_tools.formats.dense import dense
from ckpt_tools.pickles.torch_objects import MAX_RANK

MAX_DEPTH = 8
"""How deep tensors may be made of tensors that are made of others."""

_LAYOUTS = ("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "nested")


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for elements of the tensor *of*: from its element *offset* on, with *shape* and *stride*.

    *stored* is whether the file also holds them under this name.
    """

    of: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    stored: bool

    def as_json(self) -> dict[str, object]:
        """The alias as the note has it."""
        return {
            "of": self.of,
            "offset": self.offset,
            "shape": list(self.shape),
            "stride": list(self.stride),
            "stored": self.stored,
        }

    def view(self, name: str, base: object) -> TensorInfo | None:
        """The tensor *name* that it is of *base*; None where that has not these elements."""
        if not isinstance(base, TensorInfo) or base.storage is None or not base.contiguous:
            return None
        offset = base.storage_offset + self.offset
        view = replace(base, name=name, shape=self.shape, stride=self.stride, storage_offset=offset)
        low, high = view.extent
        inside = base.extent[0] <= low and high <= base.extent[1] and view.numel <= base.numel
        return view if inside else None


def note_of(checkpoint: Checkpoint) -> Mapping[str, object]:
    """The note in the file's metadata; empty where there is none."""
    text = checkpoint.metadata.get(NOTE)
    if not isinstance(text, str):
        return {}
    try:
        note = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def aliases_of(note: Mapping[str, object]) -> dict[str, Alias]:
    """The aliases that are described as they must be."""
    described = note.get("aliases")
    found = {name: _alias(value) for name, value in described.items()} if isinstance(described, dict) else {}
    return {name: alias for name, alias in found.items() if alias is not None}


def with_note(checkpoint: Checkpoint) -> Checkpoint:
    """*checkpoint* as its own note has it; no tensor bytes are read, and a note that is not true changes nothing."""
    note = note_of(checkpoint)
    if not note or len(checkpoint.state_dicts) != 1:
        return checkpoint
    (state_dict,) = checkpoint.state_dicts
    entries = dict(state_dict.entries)
    for name, alias in aliases_of(note).items():
        view = alias.view(name, entries.get(alias.of))
        if view is not None and not alias.stored and name not in entries:
            entries[name] = view
    decomposed = note.get("decomposed")
    if isinstance(decomposed, dict):
        entries = _composed(entries, decomposed)
    extras = note.get("extra_state")
    if isinstance(extras, dict):
        entries |= {name: value for name, value in extras.items() if name not in entries}
    versions = note.get("versions")
    metadata = versions if isinstance(versions, dict) else state_dict.metadata
    return replace(checkpoint, state_dicts=(StateDict(state_dict.path, state_dict.role, entries, metadata),))


def _alias(described: object) -> Alias | None:
    if not isinstance(described, dict):
        return None
    of, offset, shape, stride, stored = (described.get(k) for k in ("of", "offset", "shape", "stride", "stored"))
    if not (isinstance(of, str) and isinstance(stored, bool) and _is_size(offset)):
        return None
    if not (isinstance(shape, list) and isinstance(stride, list) and len(shape) == len(stride)):
        return None
    if not all(map(_is_size, [*shape, *stride])):
        return None
    assert isinstance(offset, int)
    return Alias(of, offset, tuple(shape), tuple(stride), stored)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


# --- tensors that are made of parts


def _composed(entries: Mapping[str, object], decomposed: Mapping[str, object]) -> dict[str, object]:
    """*entries* with each tensor that was taken apart in the place of its first part."""
    known = dict(entries)
    waiting = {name: value for name, value in decomposed.items() if name not in known}
    consumed: dict[str, str] = {}
    # a part may itself have been taken apart, and then comes first
    for _ in range(MAX_DEPTH):
        ready = {}
        for name, described in waiting.items():
            names = _part_names(described)
            if names and all(part in known and part not in consumed for part in names.values()):
                made = _compose(name, described, {label: known[part] for label, part in names.items()})
                if made is not None:
                    ready[name] = (made, names)
        for name, (made, names) in ready.items():
            if not any(part in consumed for part in names.values()):
                known[name] = made
                consumed |= dict.fromkeys(names.values(), name)
        waiting = {name: value for name, value in waiting.items() if name not in ready}
        if not ready or not waiting:
            break
    result: dict[str, object] = {}
    for name, value in entries.items():
        owner = name
        while owner in consumed:
            owner = consumed[owner]
        if owner not in result:
            result[owner] = value if owner == name else known[owner]
    return result


def _part_names(described: object) -> dict[str, str]:
    parts = described.get("parts") if isinstance(described, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        return {}
    return parts if len(set(parts.values())) == len(parts) else {}


def _compose(name: str, described: object, parts: dict[str, object]) -> TensorInfo | None:
    """The tensor *name* that was taken apart into *parts*; None where they cannot be its parts."""
    assert isinstance(described, dict)
    shape, layout, details, elements = (described.get(k) for k in ("shape", "layout", "details", "elements"))
    subclass = described.get("subclass")
    dtype = _dtype(described.get("dtype"))
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_size, shape)):
        return None
    if dtype is None or not isinstance(layout, str) or layout not in _LAYOUTS:
        return None
    if not (isinstance(details, dict) and isinstance(subclass, str | None) and isinstance(elements, str | None)):
        return None
    details = {key: value for key, value in details.items() if key not in ("conj", "neg")}
    tensors = {label: part for label, part in parts.items() if isinstance(part, TensorInfo)}
    if len(tensors) != len(parts) or (elements is not None and elements not in tensors):
        return None
    made = replace(
        dense(name, dtype, tuple(shape), None, details),
        layout=layout,
        subclass=subclass,
        parts=tuple((label, part) for label, part in tensors.items() if label != elements),
    )
    if layout != "strided":
        made = replace(made, stride=())
    if elements is None:
        return made
    own = tensors[elements]
    start = own.storage_offset * own.dtype.itemsize
    if own.storage is None or not own.contiguous or own.parts or start % dtype.itemsize:
        return None
    made = replace(made, storage=own.storage, storage_offset=start // dtype.itemsize)
    return made if made.nbytes == own.nbytes else None


def _dtype(name: object) -> DType | None:
    """A dtype by its name; a packed type of another format, which torch does not have, by whatever name that gives."""
    if not isinstance(name, str) or not 0 < len(name) <= 40:
        return None
    return BY_NAME.get(name) or DType(name, 1, "quantized")
