"""Folders of torch.distributed.checkpoint: tensors in chunks that many ranks wrote.

``.metadata`` is a pickle of ``Metadata`` (torch/distributed/checkpoint/metadata.py): ``state_dict_metadata`` has, by
flat name, the whole size, type and chunks of each tensor (`TensorStorageMetadata`), or that the entry is an object
(`BytesStorageMetadata`); ``planner_data`` the path of keys that each flat name was made of; ``storage_data`` the file,
offset and length of each chunk and object. At each place in a ``__<rank>_<number>.distcp`` lies what torch.save
wrote: a zip archive of one tensor or object (torch/distributed/checkpoint/filesystem.py). Without collectives each
rank has a ``__<rank>.metadata`` of its own.

Tensors are described whole. The storage of one that is a single chunk leads into the archive in the file; that of
one in several chunks is put together from them as it is read (`ckpt_tools.formats.assembled`), row-major, so that it
can be compared, digested and written like any other: consolidating is copying. ``details["chunks"]`` tells in how
many chunks such a tensor is. The archives of tensors are not opened before their bytes are wanted; those of objects
are, since their pickles say what the checkpoint's other values are, and what loading them would run.

The Hugging Face variant (torch/distributed/checkpoint/hf_storage.py) has safetensors instead, whose metadata tells
under ``DCP_SHARDING_INFO`` where in the whole tensor each chunk begins. It records no full shapes: these follow from
the chunks, so that a missing last chunk cannot be noticed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ckpt_tools.checkpoint import Anomaly, Checkpoint, KeyPath, Pickle, Refusal, StateDict, TensorInfo
from ckpt_tools.dtypes import BY_NAME, DType
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, NotFound, UnsupportedFeature
from ckpt_tools.formats import safetensors, torch_zip
from ckpt_tools.formats.assembled import Deferred, Piece, assemble, elements
from ckpt_tools.formats.base import HEAD_BYTES, Format
from ckpt_tools.formats.parts import all_anomalies, beside
from ckpt_tools.formats.producers import recognise
from ckpt_tools.formats.unpickled import load_buffer, pickle_of, run_machine
from ckpt_tools.pickles.machine import Evaluation
from ckpt_tools.pickles.structure import MAX_DEPTH, survey
from ckpt_tools.pickles.torch_objects import MAX_RANK, Interpreter
from ckpt_tools.pickles.values import Call, Global, OrderedDict, brief, key_text, plain
from ckpt_tools.report import count, listed, shortened
from ckpt_tools.sources import Folder, Source

METADATA = ".metadata"
SHARDING = "DCP_SHARDING_INFO"

CHUNK_BYTES = 16
"""The fewest bytes of pickle that a chunk takes: an object with two fields of sizes."""

_RANK_METADATA = re.compile(r"__(\d{1,9})\.metadata")
_RANK_FILE = re.compile(r"__(\d{1,9})_\d+\.distcp")
_HF_FILE = re.compile(r"shard-(\d{5,9})-model-\d+-of-\d+\.safetensors")


def detect(source: Source, head: bytes) -> bool:
    """Whether it is a file of such a folder, which is then read as a whole."""
    name = re.split(r"[/\\]", source.name)[-1]
    if not name.endswith((METADATA, ".distcp")):
        return False
    folder = source.folder()
    return folder is not None and is_distributed(folder)


def is_distributed(folder: Folder) -> bool:
    """Whether a folder holds a distributed checkpoint, or what is left of one."""
    names = folder.names()
    if any(name.endswith(".distcp") for name in names):
        return True
    metadata = next((name for name in names if name == METADATA or _RANK_METADATA.fullmatch(name)), None)
    if metadata is not None:
        return b"checkpoint.metadata" in folder.open(metadata).peek(0, HEAD_BYTES)
    shard = next((name for name in names if name.endswith(".safetensors")), None)
    if shard is None or any(name.endswith(".index.json") for name in names):
        return False
    return SHARDING.encode() in folder.open(shard).peek(0, HEAD_BYTES)


def read(target: Source | Folder) -> Checkpoint:
    """The whole tensors and the objects of the checkpoint; of tensors, no bytes are read.

    Raises `CorruptFile` where a file or a range of one is missing, or the chunks of a tensor do not make it up.
    """
    folder = target if isinstance(target, Folder) else target.folder()
    assert folder is not None  # or it would not have been recognised
    names = folder.names()
    ranks = sorted((name for name in names if _RANK_METADATA.fullmatch(name)), key=lambda name: (len(name), name))
    if METADATA in names:
        return _read(target, folder, names, [METADATA])
    if ranks:
        return _read(target, folder, names, ranks)
    parts = [name for name in names if name.endswith(".distcp")]
    if parts:
        raise CorruptFile(
            f"{count(len(parts), 'file')} of a distributed checkpoint, but no {METADATA} that tells what is in them: "
            "saving was not finished, or it was left behind",
            path=folder.name,
            remedy=f"Copy the folder again with its hidden files, or take an earlier checkpoint: {METADATA} is "
            "written last",
        )
    return _hugging_face(target, folder, names)


def _read(target: Source | Folder, folder: Folder, names: Sequence[str], sources: Sequence[str]) -> Checkpoint:
    """The checkpoint that the metadata files *sources* describe."""
    files = _Files(folder)
    found = [_Metadata(folder.open(name), name, files) for name in sources]
    values: dict[object, object] = {}
    for metadata in found:
        nested = _nested(metadata.entries())
        if len(found) == 1:
            values = nested
        else:
            values[metadata.member.removesuffix(METADATA)] = nested
    surveyed = survey(values)
    globals_ = [name for metadata in found for name in metadata.evaluation.globals.values()]
    programs, noted = recognise(values, globals_)
    anomalies = [anomaly for metadata in found for anomaly in metadata.anomalies()]
    for name in names:
        if name.endswith(".distcp") and name not in files.opened:
            anomalies.append(Anomaly(f"a file that {sources[0]} does not mention", name))
    ranks = {match[1] for name in files.opened if (match := _RANK_FILE.fullmatch(name))}
    return Checkpoint(
        path=target.name,
        source=folder,
        format=FORMAT.name,
        title=f"{FORMAT.title}, {count(len(files.opened), 'file')} of {count(len(ranks), 'rank')}",
        kind=surveyed.kind,
        state_dicts=tuple(surveyed.state_dicts),
        module=surveyed.module,
        module_path=surveyed.module_path,
        training=surveyed.training,
        values=values,
        loose=tuple(surveyed.loose),
        metadata={**noted, **found[0].noted(), **beside(names, files.opened)},
        producer={"torch.distributed.checkpoint": found[0].version(), **programs},
        pickles=tuple(pickle for metadata in found for pickle in metadata.pickles),
        refusals=(
            Refusal(
                "distributed checkpoint",
                f"torch.load takes no folder, and what takes it unpickles {METADATA} and all objects unrestricted",
                is_global=False,
            ),
        ),
        anomalies=tuple(anomalies),
        size=sum(file.size for file in files.opened.values()) + sum(metadata.source.size for metadata in found),
    )


class _Files:
    """The files that hold chunks, each opened once."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.opened: dict[str, Source] = {}

    def open(self, places: Mapping[_Key, _Place], member: str) -> None:
        """Open the files of *places*; an error names all that are missing."""
        missing: dict[str, str] = {}
        for place in places.values():
            if place.file in self.opened or place.file in missing:
                continue
            try:
                self.opened[place.file] = self.folder.open(place.file)
            except NotFound as error:
                missing[place.file] = error.problem
        if missing:
            affected = dict.fromkeys(name for (name, _), place in places.items() if place.file in missing)
            verb, them = ("is", "it") if len(missing) == 1 else ("are", "them")
            raise CorruptFile(
                f"{len(missing):,} of {count(len({p.file for p in places.values()}), 'file')} {verb} missing, and with "
                f"{them} {count(len(affected), 'entry', 'entries')}, in whole or in part: {listed(list(missing))} "
                f"({listed(list(affected))})",
                path=self.folder.name,
                member=member,
                remedy="Fetch the missing files: each rank writes its own, where training ran",
            )


_Key = tuple[str, tuple[int, ...] | None]
"""A flat name, and the offsets of a chunk of that tensor; None for objects."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a chunk or object lies; *transforms* names what its bytes were passed through."""

    file: str
    offset: int
    length: int
    transforms: str


class _Metadata:
    """One metadata file: what it says, checked as it is used."""

    def __init__(self, source: Source, member: str, files: _Files) -> None:
        self.source = source
        self.member = member
        self.files = files
        self.evaluation: Evaluation = run_machine(load_buffer(source), 0, path=source.name, member=None)
        self.pickles: list[Pickle] = [pickle_of(self.evaluation, member, source)]
        try:
            Interpreter(_no_storage, source).run(self.evaluation)
            root = self.evaluation.root
            if type(root) is not Call or not root.class_name.endswith("checkpoint.metadata.Metadata"):
                raise CorruptFile("a pickle of something else than the Metadata of a distributed checkpoint")
            self._fields: Mapping[object, object] = root.attributes
            self._places = self._read_places()
            self._unused = dict.fromkeys(self._places)
            files.open(self._places, member)
        except CkptError as error:
            raise error.at(path=source.name) from None

    def version(self) -> str:
        """The version of the format, where it is recorded."""
        version = self._fields.get("version")
        return f"format {version}" if isinstance(version, str) else "format without a version"

    def noted(self) -> dict[str, object]:
        """What the writer noted of itself: the path and the id under which it saved."""
        meta = plain(self._fields.get("storage_meta"))
        fields = meta.attributes if type(meta) is Call else {}
        noted: dict[str, object] = {}
        for key in ("checkpoint_id", "save_id"):
            value = plain(fields.get(key))
            if type(value) is Call and value.class_name.startswith("pathlib."):
                value = "/".join(str(part) for part in value.arguments[:64]).replace("//", "/")
            if isinstance(value, str):
                noted[key] = shortened(value)
        return noted

    def anomalies(self) -> Iterator[Anomaly]:
        """What is odd; complete once all entries were read."""
        for what, offset in self.evaluation.anomalies:
            yield Anomaly(what, f"{self.member}, byte {offset}")
        if self.evaluation.end != self.source.size:
            rest = self.source.size - self.evaluation.end
            yield Anomaly(f"{count(rest, 'byte')} follow the end of the pickle", self.member)
        if self._unused:
            names = list(dict.fromkeys(name for name, _ in self._unused))
            yield Anomaly(f"places are given for what is no entry: {listed(names)}", self.member)

    def entries(self) -> Iterator[tuple[KeyPath, object]]:
        """Each entry under the path of keys that it was saved under: a tensor, or an object's value."""
        paths = plain(self._fields.get("planner_data"))
        chunks_left = self.source.size // CHUNK_BYTES
        try:
            for name, raw in _mapping(self._fields, "state_dict_metadata").items():
                if type(name) is not str:
                    raise CorruptFile(f"an entry goes by {brief(name)}, which is no name")
                entry = plain(raw)
                kind = entry.class_name.rpartition(".")[2] if type(entry) is Call else brief(entry)
                path = _path(paths.get(name) if isinstance(paths, dict) else None, name)
                if kind == "TensorStorageMetadata" and type(entry) is Call:
                    chunks = plain(entry.attributes.get("chunks"))
                    if not isinstance(chunks, list | tuple):
                        raise CorruptFile(f"{shortened(name)} has no list of chunks")
                    chunks_left -= len(chunks)
                    if chunks_left < 0:
                        raise LimitExceeded("more chunks are listed than the pickle has room for: it repeats some")
                    yield path, self._tensor(name, entry, chunks)
                elif kind == "BytesStorageMetadata":
                    yield path, self._object(name)
                else:
                    raise CorruptFile(f"{shortened(name)} is described by {kind}, which is neither tensor nor object")
        except CkptError as error:
            raise error.at(path=self.source.name) from None

    # --- entries

    def _tensor(self, name: str, entry: Call, chunks: Sequence[object]) -> TensorInfo:
        """The whole tensor; its storage gives its elements, row-major."""
        shape = _sizes(entry.attributes.get("size"), name)
        dtype, requires_grad = _properties(entry.attributes.get("properties"), name)
        pieces: list[Piece] = []
        transforms = ""
        for raw in chunks:
            chunk = plain(raw)
            fields = chunk.attributes if type(chunk) is Call else {}
            offsets, sizes = _sizes(fields.get("offsets"), name), _sizes(fields.get("sizes"), name)
            place = self._place(name, offsets)
            transforms = transforms or place.transforms
            pieces.append(Piece(offsets, sizes, self._chunk(name, place, dtype, sizes)))
        made = replace(assemble(name, dtype, shape, pieces), requires_grad=requires_grad)
        if transforms and made.storage is not None:
            why = f"stored through the extension {transforms}, which this version cannot undo"
            return replace(made, storage=replace(made.storage, missing=why))
        return made

    def _chunk(self, name: str, place: _Place, dtype: DType, sizes: tuple[int, ...]) -> Source:
        """The elements of a chunk, found in its archive when they are first read."""
        nbytes = math.prod(sizes) * dtype.itemsize
        lying = self._slice(name, place)
        if nbytes > place.length and not place.transforms:
            raise CorruptFile(
                f"{shortened(name)}: a chunk of {nbytes:,} bytes would lie in {place.length:,} bytes of "
                f"{shortened(place.file)}"
            )

        def find() -> Source:
            tensor = plain(_archive(lying).values)
            if not isinstance(tensor, TensorInfo) or (tensor.dtype, tensor.shape) != (dtype, sizes):
                there = f"{tensor.dtype} of {tensor.shape}" if isinstance(tensor, TensorInfo) else brief(tensor)
                raise CorruptFile(
                    f"holds {there}, where {self.member} has {dtype} of {sizes}", path=lying.name, member=name
                )
            if tensor.dtype.kind == "quantized":
                raise UnsupportedFeature("quantized chunks cannot be put together", path=lying.name, member=name)
            return elements(tensor, lying.name)

        return Deferred(lying.name, nbytes, find)

    def _object(self, name: str) -> object:
        """The value of what is no tensor."""
        place = self._place(name, None)
        if place.transforms:
            return f"<stored through the extension {place.transforms}>"
        try:
            found = _archive(self._slice(name, place))
        except CkptError as error:
            error.name(shortened(name))
            raise
        self.pickles += [replace(pickle, member=f"{place.file}: {name}") for pickle in found.pickles]
        return found.values

    def _slice(self, name: str, place: _Place) -> Source:
        file = self.files.opened[place.file]
        return file.slice(place.offset, place.length, f"{file.name}: {shortened(name)}")

    def _place(self, name: str, offsets: tuple[int, ...] | None) -> _Place:
        place = self._places.get((name, offsets))
        if place is None:
            chunk = f"the chunk of {shortened(name)} at {offsets}" if offsets is not None else shortened(name)
            raise CorruptFile(f"{chunk} is listed, but has no place in a file")
        self._unused.pop((name, offsets), None)
        return place

    def _read_places(self) -> dict[_Key, _Place]:
        places: dict[_Key, _Place] = {}
        for raw_index, raw_place in _mapping(self._fields, "storage_data").items():
            index, place = plain(raw_index), plain(raw_place)
            if type(index) is not Call or type(place) is not Call:
                raise CorruptFile("a place in a file is given by something else than MetadataIndex and _StorageInfo")
            name, fields = index.attributes.get("fqn"), place.attributes
            file, offset, length = (fields.get(key) for key in ("relative_path", "offset", "length"))
            if type(name) is not str or type(file) is not str:
                raise CorruptFile(f"a place in a file is given without a name: {brief((name, file))}")
            if type(offset) is not int or type(length) is not int:
                raise CorruptFile(f"{shortened(name)} has the place {brief((offset, length))} in a file")
            offsets = index.attributes.get("offset")
            key = (name, None if offsets is None else _sizes(offsets, name))
            places[key] = _Place(file, offset, length, _transforms(fields.get("transform_descriptors")))
        return places


def _no_storage(pid: object) -> object:
    raise CorruptFile("the metadata refers to a storage, which it has none of")


def _archive(source: Source) -> Checkpoint:
    """What torch.save wrote there."""
    if not torch_zip.detect(source, source.peek(0, HEAD_BYTES)):
        raise CorruptFile("no archive of torch.save lies where the metadata has one", path=source.name)
    return torch_zip.read(source)


def _mapping(fields: Mapping[object, object], key: str) -> dict[object, object]:
    value = plain(fields.get(key))
    if not isinstance(value, dict):
        raise CorruptFile(f"its {key} is no mapping but {brief(value)}")
    return value


def _sizes(value: object, name: str) -> tuple[int, ...]:
    """A ``torch.Size``: whole numbers, none of them negative, no more of them than torch takes."""
    sizes = plain(value)
    if not isinstance(sizes, tuple | list) or len(sizes) > MAX_RANK:
        raise CorruptFile(f"{shortened(name)} has {brief(sizes)} in place of sizes or offsets")
    for size in sizes:
        if type(size) is not int or not 0 <= size < 1 << 63:
            raise CorruptFile(f"{shortened(name)} has a size or offset of {brief(size)}")
    return tuple(sizes)


def _properties(value: object, name: str) -> tuple[DType, bool | None]:
    """The type, and whether the tensor required grad (deprecated: of a state_dict's tensors none does)."""
    properties = plain(value)
    state = properties.state if type(properties) is Call else None
    fields = state if type(state) is tuple else ()
    dtype = fields[0] if fields else None
    known = BY_NAME.get(dtype.path.removeprefix("torch.")) if type(dtype) is Global else None
    if known is None:
        raise CorruptFile(f"{shortened(name)} is of the unknown dtype {brief(dtype)}")
    return known, fields[2] if len(fields) > 2 and isinstance(fields[2], bool) else None


def _transforms(value: object) -> str:
    value = plain(value)
    return listed([key_text(item) for item in value[:8]]) if isinstance(value, list | tuple) else ""


# --- from flat names to what was saved


def _path(value: object, name: str) -> KeyPath:
    path = plain(value)
    if not isinstance(path, tuple | list) or not path or not all(type(step) in (str, int) for step in path[:MAX_DEPTH]):
        return (name,)
    if len(path) >= MAX_DEPTH:
        raise LimitExceeded(f"{shortened(name)} stands {len(path):,} levels deep, of which {MAX_DEPTH} are read")
    return tuple(path)


class _Level(dict[object, object]):
    """A container that paths lead through."""


def _nested(entries: Iterable[tuple[KeyPath, object]]) -> dict[object, object]:
    """The nested mappings and lists whose leaves are *entries* (torch/distributed/checkpoint/_traverse.py).

    Saving turns every key into text. Those of an optimizer's ``state`` are numbers again here, since its groups
    refer to them as such.
    """
    root = _Level()
    made: list[tuple[_Level, object, _Level]] = []
    for path, value in entries:
        at = root
        for step in path[:-1]:
            below = at.get(step)
            if below is None:
                below = at[step] = _Level()
                made.append((at, step, below))
            if not isinstance(below, _Level):
                raise CorruptFile(f"an entry stands at {path}, below another that holds a value")
            at = below
        if path[-1] in at:
            raise CorruptFile(f"two entries stand at {path}")
        at[path[-1]] = value
    for above, step, level in reversed(made):
        keys = list(level)
        if step == "state" and "param_groups" in above and all(_is_number(key) for key in keys):
            above[step] = {int(str(key)): value for key, value in level.items()}
        elif all(type(key) is int for key in keys) and _is_list(keys):
            above[step] = [level.get(index) for index in range(max(map(int, map(str, keys))) + 1)]
        else:
            above[step] = _ordered(level)
    return _ordered(root)


def _is_number(key: object) -> bool:
    return type(key) is str and len(key) < 18 and key.isascii() and key.isdigit()


def _is_list(keys: Sequence[object]) -> bool:
    """Whether indexes are those of a list, in which what holds no entries leaves gaps."""
    return all(type(key) is int and 0 <= key < 2 * len(keys) + 64 for key in keys)


def _ordered(level: _Level) -> dict[object, object]:
    made = OrderedDict()
    made.update(level)
    return made


# --- the Hugging Face variant


@dataclass(slots=True)
class _Chunks:
    """What the files hold of one tensor."""

    dtype: DType
    pieces: list[Piece] = field(default_factory=list)


def _hugging_face(target: Source | Folder, folder: Folder, names: Sequence[str]) -> Checkpoint:
    """The whole tensors of safetensors files whose metadata says where their chunks belong."""
    shards = [name for name in names if name.endswith(".safetensors")]
    numbers = {int(match[1]) for name in shards if (match := _HF_FILE.fullmatch(name))}
    gaps = sorted(set(range(1, min(max(numbers, default=0), 10**6) + 1)) - numbers)
    if gaps:
        raise CorruptFile(
            f"the shards of {count(len(gaps), 'rank')} are missing, below the highest number there is: "
            f"{listed([f'shard-{number:05}-model-…' for number in gaps])}",
            path=folder.name,
            remedy="Fetch the missing files: each rank writes its own, where training ran",
        )
    parts = {name: safetensors.read(folder.open(name)) for name in shards}
    chunks: dict[str, _Chunks] = {}
    for part in parts.values():
        try:
            _collect(part, chunks)
        except CkptError as error:
            raise error.at(path=part.path) from None
    entries: dict[str, TensorInfo] = {}
    for name, found in chunks.items():
        shape = tuple(
            max(piece.offsets[axis] + piece.sizes[axis] for piece in found.pieces)
            for axis in range(len(found.pieces[0].sizes))
        )
        try:
            entries[name] = assemble(name, found.dtype, shape, found.pieces)
        except CkptError as error:
            raise error.at(path=folder.name) from None
    noted: dict[str, object] = {}
    if any(tensor.details for tensor in entries.values()):
        noted["shapes"] = "inferred from the chunks: the format does not record those of whole tensors"
    return Checkpoint(
        path=target.name,
        source=folder,
        format=FORMAT.name,
        title=f"{FORMAT.title} in safetensors (Hugging Face), {count(len(parts), 'file')}",
        kind="state_dict",
        state_dicts=(StateDict((), "model", entries),),
        values=entries,
        metadata={**noted, **beside(names, parts)},
        producer={"writer": "torch.distributed.checkpoint"},
        anomalies=all_anomalies(parts),
        parts=tuple(parts.values()),
        size=sum(part.size for part in parts.values()),
    )


def _collect(part: Checkpoint, chunks: dict[str, _Chunks]) -> None:
    """Add the tensors of one file to *chunks*, each at its place in the whole."""
    text = part.metadata.get(SHARDING)
    try:
        sharding = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        raise CorruptFile(f"its {SHARDING} is not valid JSON") from None
    for tensor in part.state_dicts[0].tensors:
        name = tensor.name
        info = sharding.get(name) if isinstance(sharding, dict) else None
        saved = info.get("saved_offsets") if isinstance(info, dict) else None
        if saved is None and sharding:
            raise CorruptFile(f"its {SHARDING} has no saved_offsets for {shortened(name)}")
        offsets = _sizes(saved, name) if saved is not None else (0,) * len(tensor.shape)
        found = chunks.setdefault(name, _Chunks(tensor.dtype))
        rank = len(found.pieces[0].sizes) if found.pieces else len(tensor.shape)
        if len(offsets) != len(tensor.shape) or rank != len(tensor.shape) or found.dtype != tensor.dtype:
            raise CorruptFile(f"the chunks of {shortened(name)} differ in type or number of dimensions")
        found.pieces.append(Piece(offsets, tensor.shape, elements(tensor, f"{part.path}: {shortened(name)}")))


FORMAT = Format("distributed", "torch.distributed.checkpoint", read, detect, is_distributed)
