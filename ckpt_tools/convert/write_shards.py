"""Writing safetensors as shards and an index, in the layout of Hugging Face.

Names, the index and how tensors are dealt out: huggingface_hub/serialization/_base.py
(``split_state_dict_into_shards_factory``) and _torch.py (``save_torch_state_dict``). What fits in one shard becomes a
single file without an index, as there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ckpt_tools.atomic import partial_name, sync_folder, unfinished_folder
from ckpt_tools.convert import write_safetensors
from ckpt_tools.convert.plan import Entry, Plan
from ckpt_tools.convert.stream import Advance, Sink, Written
from ckpt_tools.errors import CkptError
from ckpt_tools.formats.json_text import read_json
from ckpt_tools.sources import FileSource

SUFFIX = ".safetensors"
INDEX = ".index.json"
DEFAULT_STEM = "model"
"""What loaders look for in a folder: ``model.safetensors.index.json`` or ``model.safetensors``."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a set of shards goes: into *folder*, under names that begin with *stem*, *limit* bytes a shard at most."""

    folder: str
    stem: str
    limit: int

    @property
    def single(self) -> str:
        """The name of the file where there is only one."""
        return self.stem + SUFFIX

    @property
    def index(self) -> str:
        """The name of the index where there are several."""
        return self.single + INDEX

    def shard(self, number: int, total: int) -> str:
        """The name of a shard, counted from 1."""
        return f"{self.stem}-{number:05d}-of-{total:05d}{SUFFIX}"

    def existing(self) -> list[str]:
        """The names in the folder that belong to a set of this name: shards, an index, a single file."""
        ours = re.compile(re.escape(self.stem) + r"(-\d{5,6}-of-\d{5,6})?\.safetensors(\.index\.json)?")
        try:
            return sorted(filter(ours.fullmatch, os.listdir(self.folder)))
        except FileNotFoundError:
            return []


def place_of(target: str, limit: int) -> Place:
    """What *target* names: a folder, or by ``x.safetensors`` (or the name of its index) the stem ``x`` in one."""
    path = target.removesuffix(INDEX)
    if os.path.isdir(path) or not path.lower().endswith(SUFFIX):
        if os.path.splitext(path)[1].lower() in (".pt", ".pth", ".bin", ".npz"):
            raise CkptError("shards are written as safetensors: name a folder or a .safetensors file", path=target)
        return Place(os.path.realpath(path), DEFAULT_STEM, limit)
    folder, base = os.path.split(path)
    return Place(os.path.realpath(folder or "."), base[: -len(SUFFIX)], limit)


def deal_out(plan: Plan, limit: int) -> list[list[Entry]]:
    """The tensors of each shard, *limit* bytes at most unless one alone takes more.

    In the order of the state_dict, a new shard begun where the next tensor does not fit; a tensor above the limit
    gets one of its own. Names for one tensor are held once, so they cannot part.
    """
    held = {entry.name for entry in write_safetensors.stored(plan)}
    shards: list[list[Entry]] = []
    current: list[Entry] = []
    filled = 0
    for entry in plan.entries:
        if entry.name not in held:
            continue
        size = nbytes(entry)
        if size > limit:
            shards.append([entry])
            continue
        if filled + size > limit:
            shards.append(current)
            current, filled = [], 0
        current.append(entry)
        filled += size
    if current or not shards:
        shards.append(current)
    return [write_safetensors.in_order(shard) for shard in shards]


def nbytes(entry: Entry) -> int:
    """What *entry* takes in the output."""
    return entry.tensor.numel * entry.dtype.itemsize


def write_shard(path: str, entries: Sequence[Entry], advance: Advance | None, replaced: str) -> Written:
    """Write one shard of several, in the place of *replaced*; what is said about all of them stands in the index."""
    with open(path, "xb") as file:
        sink = Sink(file, advance, replaced)
        try:
            written = write_safetensors.write(sink, entries, {"format": "pt"})
        finally:
            sink.close()
        file.flush()
        os.fsync(file.fileno())
    return written


def index_text(plan: Plan, shards: Mapping[str, Sequence[Entry]], metadata: Mapping[str, str]) -> str:
    """The index of *shards*, by name; *metadata* is what a single file would have."""
    of = {entry.name: name for name, entries in shards.items() for entry in entries}
    total = sum(nbytes(entry) for entries in shards.values() for entry in entries)
    said = {key: value for key, value in sorted(metadata.items()) if key not in ("format", "total_size")}
    index = {
        "metadata": {"total_size": total, **said},
        "weight_map": {entry.name: of[entry.name] for entry in plan.entries if entry.name in of},
    }
    return json.dumps(index, indent=2, ensure_ascii=False) + "\n"


def write_whole(path: str, text: str) -> None:
    """Write the file *path* anew, down to the disk."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


# --- putting a set in the place of another


@contextmanager
def replacing_set(place: Place) -> Iterator[str]:
    """A folder to write a set in, which takes the place of what is there when the block ends without an error.

    A folder that does not exist appears with all that is in it. In one that does the index comes last, so that it
    never names a shard that is not there. Raises `CkptError` where the system refuses.
    """
    # a folder of its own is renamed as a whole; one that is there may lie on a disk of its own
    there = os.path.isdir(place.folder)
    target = os.path.join(place.folder, place.single) if there else place.folder
    with unfinished_folder(target) as unfinished:
        yield unfinished
        sync_folder(unfinished)
        if not there:
            os.rename(unfinished, place.folder)
            return
        _move_in(place, unfinished)


def _move_in(place: Place, unfinished: str) -> None:
    new = sorted(os.listdir(unfinished), key=lambda name: name == place.index)
    old = place.existing()
    aside = os.path.join(place.folder, f".{place.single}.replaced")
    _set_aside(place, aside, set(new))
    for name in new:
        if name == place.index:
            sync_folder(place.folder)
        os.replace(os.path.join(unfinished, name), os.path.join(place.folder, name))
    # loaders prefer one or the other of an index and a single file: the one that is left must be the new one
    for name in sorted(set(old) - set(new), key=lambda name: name != place.index):
        os.unlink(os.path.join(place.folder, name))
    _remove(aside)
    sync_folder(place.folder)


def _set_aside(place: Place, aside: str, new: Collection[str]) -> None:
    """Have the old index name its shards elsewhere, where new ones take their names: it stays true until replaced."""
    index = os.path.join(place.folder, place.index)
    try:
        found = read_json(FileSource(index))
    except CkptError:
        return  # there is none that names anything
    weight_map = found.get("weight_map")
    if not isinstance(weight_map, dict):
        return
    named = {name for name in weight_map.values() if name in new}
    taken = sorted(name for name in named if os.path.isfile(os.path.join(place.folder, name)))
    if not taken:
        return
    _remove(aside)
    os.mkdir(aside)
    for name in taken:
        os.link(os.path.join(place.folder, name), os.path.join(aside, name))
    elsewhere = {name: f"{os.path.basename(aside)}/{name}" for name in taken}
    found["weight_map"] = {tensor: elsewhere.get(name, name) for tensor, name in weight_map.items()}
    temporary = partial_name(index)
    write_whole(temporary, json.dumps(found))
    os.replace(temporary, index)
    sync_folder(place.folder)


def _remove(folder: str) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
