"""A state_dict that several files hold, with an index that tells which tensor is in which file.

The layout of Hugging Face: ``model.safetensors.index.json`` or ``pytorch_model.bin.index.json`` with
``weight_map`` (a tensor's name to its file's) and ``metadata.total_size`` (bytes of all tensors), and shards named
``model-00001-of-00003.safetensors``; beside them ``config.json`` (huggingface_hub/serialization/_base.py,
transformers/modeling_utils.py). Folders with the numbered shards alone are read too, and those with ``config.json``
and a single file of weights.

Loaders read each shard whole and go by the index only for the names of the files; here the two must agree. What
contradicts without a doubt about the tensors is an anomaly; what leaves a tensor out is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ckpt_tools.checkpoint import Anomaly, Checkpoint, KeyPath, Role, StateDict, TensorInfo
from ckpt_tools.errors import CkptError, CorruptFile, NotFound
from ckpt_tools.formats import safetensors, torch_legacy, torch_zip
from ckpt_tools.formats.base import Format
from ckpt_tools.formats.json_text import read_json
from ckpt_tools.formats.parts import all_anomalies, all_pickles, all_refusals, beside, common, open_part
from ckpt_tools.pickles.values import OrderedDict, plain
from ckpt_tools.report import count, listed, shortened
from ckpt_tools.sources import Folder, Source

CONFIG_LIMIT = 1 << 22
"""The longest ``config.json`` that is read, in bytes."""

_FILES = (safetensors.FORMAT, torch_zip.FORMAT, torch_legacy.FORMAT)
# diffusers may put the variant last: .index.fp16.json
_INDEX = re.compile(r".+\.(?:safetensors|bin|pth?)\.index(?:\.[\w-]+)?\.json")
_NUMBERED = re.compile(r"(.+)-(\d{5,6})-of-(\d{5,6})((?:\.[\w-]+)*\.(?:safetensors|bin))")
_WHOLE = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)
_SHOWN = 6


def detect(source: Source, head: bytes) -> bool:
    """Whether it is an index beside its shards."""
    return (
        head.lstrip().startswith(b"{")
        and (b'"weight_map"' in head or _INDEX.fullmatch(_base(source.name)) is not None)
        and source.folder() is not None
    )


def is_model_folder(folder: Folder) -> bool:
    """Whether a folder holds an index, or numbered shards, or a model's configuration and its weights."""
    names = folder.names()
    return bool(_indexes(names) or _numbered(names) or ("config.json" in names and _single(names)))


def read(target: Source | Folder) -> Checkpoint:
    """The state_dict that the shards hold together, in the order of the index; only their headers are read.

    ``parts`` are the shards. Raises `CorruptFile` where a shard, or a tensor that the index names, is missing.
    """
    if isinstance(target, Source):
        folder = target.folder()
        assert folder is not None  # or it would not have been recognised
        return _indexed(target, folder, _names(folder), [])
    names = target.names()
    indexes = _indexes(names)
    if indexes:
        others = [Anomaly(f"a second index: what {indexes[0]} names is described", name) for name in indexes[1:]]
        return replace(_indexed(target.open(indexes[0]), target, names, others), path=target.name, source=target)
    numbered = _numbered(names)
    if numbered:
        return _without_index(target, names, numbered)
    return _whole(target, names)


# --- the files of a folder


def _base(name: str) -> str:
    return re.split(r"[/\\]", name)[-1]


def _names(folder: Folder) -> list[str]:
    """The files of a folder, none where it cannot be listed: over HTTP it need not be."""
    try:
        return folder.names()
    except CkptError:
        return []


def _indexes(names: Iterable[str]) -> list[str]:
    """The indexes, that of safetensors first, as loaders prefer it, and one without a variant's name."""
    found = [name for name in names if _INDEX.fullmatch(name)]
    return sorted(found, key=lambda name: (".safetensors." not in name, len(name), name))


def _numbered(names: Iterable[str]) -> list[str]:
    """The numbered shards of one set: safetensors before others, and the smallest name first."""
    sets: dict[tuple[bool, str], list[str]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match:
            sets.setdefault((not name.endswith(".safetensors"), _set(name)), []).append(name)
    return sets[min(sets)] if sets else []


def _set(name: str) -> str:
    """A shard's name without its number."""
    return _NUMBERED.sub(r"\1-of-\3\4", name)


def _single(names: Sequence[str]) -> str | None:
    return next((name for name in _WHOLE if name in names), None)


# --- reading


def _indexed(source: Source, folder: Folder, names: Sequence[str], anomalies: list[Anomaly]) -> Checkpoint:
    """The state_dict of an index and the shards beside it."""
    weight_map, metadata = _index(source)
    shards = _open(folder, weight_map, source.name)
    tensors = {shard: _tensors(part) for shard, part in shards.items()}
    entries: dict[str, TensorInfo] = {}
    elsewhere: dict[tuple[str, str], list[str]] = {}
    absent: list[str] = []
    where = {name: shard for shard, found in tensors.items() for name in found}
    for name, shard in weight_map.items():
        place = shard if name in tensors[shard] else where.get(name)
        if place is None:
            absent.append(name)
            continue
        entries[name] = tensors[place][name]
        if place != shard:
            elsewhere.setdefault((shard, place), []).append(name)
    loose: list[tuple[KeyPath, TensorInfo]] = [
        ((shard, name), tensor)
        for shard, found in tensors.items()
        for name, tensor in found.items()
        if name not in weight_map
    ]
    for (shard, place), names_there in elsewhere.items():
        what = f"{_tensors_are(names_there)} in {place}, where the index has {shard}"
        anomalies.append(Anomaly(f"{what}: {listed(names_there)}", "weight_map"))
    for shard, unnamed in _grouped(loose).items():
        anomalies.append(Anomaly(f"{_tensors_are(unnamed)} not in the index: {listed(unnamed)}", shard))
    for name, found in tensors.items():
        twice = [t for t in found if where[t] != name and t in weight_map]
        if twice:
            what = f"{_tensors_are(twice)} in it and in another shard: {listed(twice)}"
            anomalies.append(Anomaly(what, name))
    anomalies += _total_size(metadata, entries.values(), (tensor for _, tensor in loose), bool(absent))
    of_sets = {_set(shard) for shard in shards}
    for name in names:
        if name not in shards and _NUMBERED.fullmatch(name) and _set(name) in of_sets:
            anomalies.append(Anomaly("a shard that the index does not mention", name))
    if absent:
        also = "".join(f"; {anomaly.what} ({anomaly.where})" for anomaly in anomalies[:_SHOWN])
        raise CorruptFile(
            f"{_tensors_are(absent)} in the index, but in no shard: {listed(absent)}{also}",
            path=source.name,
            remedy="Fetch the index and the shards again, from one revision",
        )
    made = _joined(source, shards, entries, "sharded state_dict with an index")
    return replace(
        made,
        loose=tuple(loose),
        metadata={**made.metadata, **metadata, **beside(names, shards)},
        producer={**_producer(folder, names, anomalies), **made.producer},
        anomalies=(*anomalies, *made.anomalies),
        size=made.size + source.size,
    )


def _tensors_are(names: Sequence[str]) -> str:
    return f"{count(len(names), 'tensor')} {'is' if len(names) == 1 else 'are'}"


def _grouped(loose: Iterable[tuple[KeyPath, TensorInfo]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for (shard, name), _ in loose:
        groups.setdefault(str(shard), []).append(str(name))
    return groups


def _index(source: Source) -> tuple[dict[str, str], dict[str, object]]:
    """The weight map and the metadata of an index, checked."""
    index = read_json(source)
    weight_map, metadata = index.get("weight_map"), index.get("metadata")
    if not isinstance(weight_map, dict):
        raise CorruptFile("the index has no weight_map, which tells each tensor's file", path=source.name)
    for name, shard in weight_map.items():
        if type(shard) is not str:
            raise CorruptFile(f"the weight_map has no file name for tensor {shortened(name)}", path=source.name)
    noted = metadata if isinstance(metadata, dict) else {}
    return weight_map, {key: value for key, value in noted.items() if isinstance(value, str | int | float | bool)}


def _open(folder: Folder, weight_map: Mapping[str, str], index: str) -> dict[str, Checkpoint]:
    """The shards that an index names, by name, in its order."""
    shards: dict[str, Checkpoint] = {}
    missing: dict[str, str] = {}
    for shard in dict.fromkeys(weight_map.values()):
        try:
            source = folder.open(shard)
        except NotFound as error:
            missing[shard] = error.problem
            continue
        except CorruptFile as error:
            raise error.at(path=index) from None
        shards[shard] = open_part(source, _FILES)
    if missing:
        affected = sum(shard in missing for shard in weight_map.values())
        names = [name for name, shard in weight_map.items() if shard in missing]
        reasons = set(missing.values())
        reason = f" ({reasons.pop()})" if len(reasons) == 1 else ""
        raise CorruptFile(
            f"{len(missing):,} of {count(len(missing) + len(shards), 'shard')} "
            f"{'is' if len(missing) == 1 else 'are'} missing{reason}, and with "
            f"{'it' if len(missing) == 1 else 'them'} {affected:,} of {count(len(weight_map), 'tensor')}: "
            f"{listed(list(missing))} ({listed(names)})",
            path=index,
            remedy="Fetch the missing files into the folder of the index",
        )
    return shards


def _tensors(part: Checkpoint) -> dict[str, TensorInfo]:
    """The tensors of a shard, which is a mapping of names to them."""
    values = part.values
    if not isinstance(values, dict):
        raise CorruptFile(f"a shard holds no state_dict but a {part.kind}", path=part.path)
    meanings = ((name, plain(value)) for name, value in values.items())
    return {str(name): value for name, value in meanings if isinstance(value, TensorInfo)}


def _total_size(
    metadata: Mapping[str, object], named: Iterable[TensorInfo], loose: Iterable[TensorInfo], incomplete: bool
) -> list[Anomaly]:
    """An anomaly where the declared size is not that of the tensors: memory that names share counted or not."""
    declared = metadata.get("total_size")
    try:
        number = int(declared) if isinstance(declared, int | float | str) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or abs(number) >= 1 << 63:
        if "total_size" not in metadata:
            return []
        return [Anomaly(f"total_size is {str(declared)[:40]!r}, no number of bytes", "metadata")]
    tensors = list(named)
    sizes = {sum(t.nbytes for t in tensors), _memory(tensors)}
    tensors += loose
    sizes |= {sum(t.nbytes for t in tensors), _memory(tensors)}
    if number in sizes:
        return []
    there = " that are there" if incomplete else ""
    return [Anomaly(f"total_size is {number:,} bytes, the tensors{there} take {min(sizes):,}", "metadata")]


def _memory(tensors: Iterable[TensorInfo]) -> int:
    return sum({id(s): s.nbytes for tensor in tensors for s in tensor.storages()}.values())


def _joined(
    source: Source | Folder, shards: Mapping[str, Checkpoint], entries: dict[str, TensorInfo], title: str
) -> Checkpoint:
    """One checkpoint of several shards, whose tensors are *entries*."""
    parts = tuple(shards.values())
    versions: dict[str, object] = {}
    for part in parts:
        for found in part.state_dicts:
            versions.update(found.metadata or {})
    role: Role = "optimizer" if all(part.kind == "optimizer" for part in parts) and parts else "model"
    values = OrderedDict()
    values.update(entries)
    return Checkpoint(
        path=source.name,
        source=source,
        format=FORMAT.name,
        title=f"{title}, {count(len(parts), 'shard')} ({_kinds(parts)})",
        kind="optimizer" if role == "optimizer" else "state_dict",
        state_dicts=(StateDict((), role, entries, versions or None),),
        values=values,
        metadata=common([part.metadata for part in parts]),
        producer=common([part.producer for part in parts]),
        pickles=all_pickles(shards),
        refusals=all_refusals(shards) if any(part.refusals is not None for part in parts) else None,
        anomalies=all_anomalies(shards),
        parts=parts,
        size=sum(part.size for part in parts),
    )


def _kinds(parts: Iterable[Checkpoint]) -> str:
    return ", ".join(dict.fromkeys(part.title for part in parts)) or "none"


def _without_index(folder: Folder, names: Sequence[str], numbered: Sequence[str]) -> Checkpoint:
    """The state_dict of numbered shards; their own headers tell what is in them."""
    total = int(_NUMBERED.sub(r"\3", numbered[0]))
    there = {int(_NUMBERED.sub(r"\2", name)) for name in numbered}
    missing = total - len(there & set(range(1, total + 1)))
    if missing:
        absent = [number for number in range(1, min(total, 10**6) + 1) if number not in there]
        raise CorruptFile(
            f"{missing:,} of {count(total, 'shard')} {'is' if missing == 1 else 'are'} missing, and there is no "
            f"index: {listed([_numbered_name(numbered[0], number) for number in absent])}",
            path=folder.name,
            remedy="Fetch the missing files",
        )
    shards = {name: open_part(folder.open(name), _FILES) for name in numbered}
    anomalies = [Anomaly("there is no index: the shards' own headers were put together", folder.name)]
    entries: dict[str, TensorInfo] = {}
    for shard, part in shards.items():
        for name, tensor in _tensors(part).items():
            if name in entries:
                raise CorruptFile(
                    f"several shards hold a tensor of this name: {shortened(name)}, and no index tells which counts",
                    path=folder.name,
                    member=shard,
                )
            entries[name] = tensor
    made = _joined(folder, shards, entries, "sharded state_dict without an index")
    return replace(
        made,
        metadata={**made.metadata, **beside(names, shards)},
        producer={**_producer(folder, names, anomalies), **made.producer},
        anomalies=(*anomalies, *made.anomalies),
    )


def _numbered_name(name: str, number: int) -> str:
    match = _NUMBERED.fullmatch(name)
    assert match is not None
    return f"{match[1]}-{number:0{len(match[2])}}-of-{match[3]}{match[4]}"


def _whole(folder: Folder, names: Sequence[str]) -> Checkpoint:
    """The one file of weights in a model's folder."""
    name = _single(names)
    assert name is not None  # or the folder would not have been recognised
    part = open_part(folder.open(name), _FILES)
    anomalies: list[Anomaly] = []
    producer = _producer(folder, names, anomalies)
    return replace(
        part,
        metadata={**part.metadata, **beside(names, [name])},
        producer={**producer, **part.producer},
        anomalies=(*part.anomalies, *anomalies),
    )


# --- config.json


def _producer(folder: Folder, names: Sequence[str], anomalies: list[Anomaly]) -> dict[str, str]:
    """What ``config.json`` tells of the model and of the library that wrote it."""
    if "config.json" not in names:
        return {}
    try:
        config = read_json(folder.open("config.json"), CONFIG_LIMIT)
    except CkptError as error:
        anomalies.append(Anomaly(f"not read: {error.problem}", "config.json"))
        return {}
    found: dict[str, str] = {}
    for label, *keys in (
        ("transformers", "transformers_version"),
        ("diffusers", "_diffusers_version"),
        ("architecture", "architectures", "_class_name"),
        ("model type", "model_type"),
        ("declared dtype", "dtype", "torch_dtype"),
    ):
        value = next((config[key] for key in keys if config.get(key) is not None), None)
        items = value if isinstance(value, list) else [value]
        if all(isinstance(item, str) for item in items[:_SHOWN]) and items:
            found[label] = listed([str(item) for item in items])
    return found


FORMAT = Format("sharded", "sharded state_dict", read, detect, is_model_folder)
