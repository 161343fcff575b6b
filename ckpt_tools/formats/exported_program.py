"""torch.export.save's ``.pt2``: a zip with the graph as JSON, and beside it the tensors' bytes.

Since torch 2.8 (torch/export/pt2_archive/_package.py): ``archive_format`` says pt2; ``models/NAME.json`` is the
graph; ``data/weights/NAME_weights_config.json`` tells where in ``data/weights/weight_N`` each tensor of the
state_dict lies, ``data/constants/`` likewise; each such member is the bytes of one storage, or, where
``use_pickle`` is set, a file of torch.save. Before the configuration existed, ``data/weights/NAME.pt`` was one
file of torch.save.

Torch 2.1 to 2.7 (torch/export/__init__.py, ``load``): ``serialized_exported_program.json`` and files of
torch.save beside it, at the top of the zip.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ckpt_tools.checkpoint import Anomaly, Checkpoint, KeyPath, Pickle, Refusal, StateDict, Storage, TensorInfo
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, UnsupportedFeature
from ckpt_tools.formats import torch_legacy, torch_zip
from ckpt_tools.formats.archive import Archive, Member, MissingDirectory
from ckpt_tools.formats.base import HEAD_BYTES, Format
from ckpt_tools.formats.json_text import JSON_LIMIT, read_json
from ckpt_tools.formats.torch_zip import Members
from ckpt_tools.formats.unpickled import load_buffer, pickle_of, run_machine
from ckpt_tools.pickles.torch_objects import MAX_RANK
from ckpt_tools.pickles.values import plain
from ckpt_tools.sources import Source

# ScalarType of torch/_export/serde/schema.py
_DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    9: "complex32",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
    31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz",
    33: "float8_e8m0fnu",
    34: "uint32",
    35: "uint64",
}
_OLD_GRAPH = "serialized_exported_program.json"
_SYMBOL = re.compile(r"Symbol\('(\w+)'[^()]*\)")
_T = TypeVar("_T")


@dataclass(slots=True)
class _Findings:
    """What the members of an archive add up to.

    *opened* holds what the pickled ones have in them, *budget* the bytes that those not opened yet may take.
    """

    budget: int
    opened: dict[str, object] = field(default_factory=dict)
    state_dicts: list[StateDict] = field(default_factory=list)
    pickles: list[Pickle] = field(default_factory=list)
    metadata: dict[str, object] = field(default_factory=dict)
    producer: dict[str, str] = field(default_factory=dict)
    anomalies: list[Anomaly] = field(default_factory=list)


def detect(source: Source, head: bytes) -> bool:
    """Whether it is a zip archive with the marks of torch.export."""
    if not head.startswith(b"PK\x03\x04"):
        return False
    try:
        archive = Archive.of(source)
    except MissingDirectory:
        return False
    names = {member.name for member in archive.members}
    return f"{archive.root}archive_format" in names or _OLD_GRAPH in names


def read(source: Source) -> Checkpoint:
    """Describe an exported program; of the graph no more is told than its inputs, outputs and versions.

    ``state_dict`` is that of ``torch.export.load``, ``constants`` likewise; with several programs in one
    archive their paths begin with the program's name.
    """
    archive = Archive.of(source)
    found = _Findings(source.size)
    try:
        if archive.find(f"{archive.root}archive_format") is not None:
            _read_archive(Members(archive, archive.root), found)
        else:
            _read_old(Members(archive, ""), found)
    except CkptError as error:
        raise error.at(path=source.name) from None
    return Checkpoint(
        path=source.name,
        source=source,
        format=FORMAT.name,
        title=FORMAT.title,
        kind="program",
        state_dicts=tuple(found.state_dicts),
        metadata=found.metadata,
        producer=found.producer,
        pickles=tuple(found.pickles),
        refusals=(Refusal("torch.export", "only torch.export.load reads such archives", is_global=False),),
        anomalies=tuple(found.anomalies),
        size=source.size,
    )


def _read_archive(members: Members, found: _Findings) -> None:
    archive, root = members.archive, members.root
    kind = members.text("archive_format")
    if kind != "pt2":
        raise UnsupportedFeature(
            f"an archive of format {kind!r:.40}, where torch.export writes 'pt2'", member=f"{root}archive_format"
        )
    found.producer["archive version"] = members.text("archive_version") or "0"
    names = [member.name.removeprefix(root) for member in archive.members]
    programs = [name[7:-5] for name in names if name.startswith("models/") and name.endswith(".json")]
    for name in programs:
        path: KeyPath = (name,) if len(programs) > 1 else ()
        _read_graph(archive, f"{root}models/{name}.json", found, f"{name}: " if path else "")
        for part, folder, role in (("state_dict", "weights", "model"), ("constants", "constants", "other")):
            entries = _payload(members, f"data/{folder}/", f"{name}_{folder}_config.json", f"{name}.pt", found)
            if entries or role == "model":
                found.state_dicts.append(StateDict((*path, part), role, entries))  # type: ignore[arg-type]
        samples = f"{root}data/sample_inputs/{name}.pt"
        if archive.find(samples) is not None:
            _nested(archive, samples, found)
    compiled = dict.fromkeys(n.split("/")[2] for n in names if n.startswith("data/aotinductor/") and n.count("/") > 2)
    if compiled:
        found.metadata["compiled by AOTInductor"] = tuple(compiled)
    extra = tuple(name[6:] for name in names if name.startswith("extra/"))
    if extra:
        found.metadata["extra files"] = extra


def _read_old(members: Members, found: _Findings) -> None:
    archive = members.archive
    found.producer["schema version"] = members.text("version") or "unknown"
    _read_graph(archive, _OLD_GRAPH, found)
    for part, role in (("state_dict", "model"), ("constants", "other"), ("example_inputs", None)):
        # .json in torch 2.1, of torch.save's bytes all the same
        member = archive.find(f"serialized_{part}.pt") or archive.find(f"serialized_{part}.json")
        if member is None:
            if role == "model":
                raise CorruptFile("an exported program without its state_dict", member=f"serialized_{part}.pt")
            continue
        value = _nested(archive, member.name, found)
        if role is not None:
            entries = _mapping(value, member)
            if entries or role == "model":
                found.state_dicts.append(StateDict((part,), role, entries))  # type: ignore[arg-type]
    extra = tuple(m.name[12:] for m in archive.members if m.name.startswith("extra_files/"))
    if extra:
        found.metadata["extra files"] = extra


def _mapping(value: object, member: Member) -> dict[str, object]:
    if not isinstance(value, dict):
        raise CorruptFile("it holds no mapping of names to tensors", member=member.name)
    return {str(key): plain(item) for key, item in value.items()}


def _nested(archive: Archive, name: str, found: _Findings) -> object:
    """What the file of torch.save in member *name* holds; its pickles are added to what is *found*."""
    if name in found.opened:
        return found.opened[name]
    source = _open(archive, name, found)
    head = source.peek(0, HEAD_BYTES)
    for format in (torch_zip, torch_legacy):
        if format.detect(source, head):
            try:
                inner = format.read(source)
            except CkptError as error:
                inside = f"{name}: {error.member}" if error.member else name
                error.path, error.member = archive.source.name, inside
                raise
            found.pickles += [replace(p, member=f"{name}: {p.member}") for p in inner.pickles]
            found.anomalies += [replace(a, where=f"{name}: {a.where}") for a in inner.anomalies]
            value = found.opened[name] = plain(inner.values)
            return value
    raise CorruptFile("it is no file of torch.save", member=name)


def _opaque(archive: Archive, name: str, found: _Findings) -> object:
    """The object that is plainly pickled in member *name*."""
    if name not in found.opened:
        stream = _open(archive, name, found)
        evaluation = run_machine(load_buffer(stream), 0, path=archive.source.name, member=name)
        found.pickles.append(pickle_of(evaluation, name, stream))
        found.opened[name] = evaluation.root
    return found.opened[name]


def _open(archive: Archive, name: str, found: _Findings) -> Source:
    member = archive.find(name)
    if member is None:
        raise CorruptFile("the archive lacks it", member=name)
    found.budget -= member.compressed_size
    if found.budget < 0:
        raise LimitExceeded("the members of the archive overlap: together they are larger than it", member=name)
    return archive.open(member)


# --- weights and constants


def _payload(members: Members, folder: str, config: str, older: str, found: _Findings) -> dict[str, object]:
    """The tensors that the member *config* of *folder* describes, or that *older* holds, by name."""
    archive, folder = members.archive, members.root + folder
    member = archive.find(folder + older)
    if member is not None:
        return _mapping(_nested(archive, member.name, found), member)
    member = archive.find(folder + config)
    if member is None:
        raise CorruptFile("an exported program without it", member=folder + config)
    try:
        described = _get(read_json(archive.open(member)), "config", dict)
        storages: dict[str, Storage] = {}
        entries: dict[str, object] = {}
        for name, value in described.items():
            try:
                entries[name] = _entry(members, folder, value, storages, found)
            except CkptError as error:
                error.problem = f"{name}: {error.problem}"
                raise
        return entries
    except CkptError as error:
        raise error.at(path=archive.source.name, member=member.name) from None


def _entry(members: Members, folder: str, value: object, storages: dict[str, Storage], found: _Findings) -> object:
    if not isinstance(value, dict):
        raise CorruptFile("it is described by no object")
    key = _get(value, "path_name", str)
    member = members.archive.find(folder + key)
    if member is None:
        raise CorruptFile(f"its member {folder}{key} is missing")
    if key.startswith("opaque_obj_"):  # torch.export.load unpickles it, whatever it is
        return _opaque(members.archive, member.name, found)
    if value.get("use_pickle") is True or key.startswith("custom_obj_"):
        return _nested(members.archive, member.name, found)
    meta = _get(value, "tensor_meta", dict)
    name = _DTYPES.get(_get(meta, "dtype", int))
    if name is None:
        raise UnsupportedFeature(f"it is of the scalar type {meta['dtype']!r:.20}, which this version does not know")
    dtype = BY_NAME[name]
    shape, stride = _sizes(_get(meta, "sizes", list)), _sizes(_get(meta, "strides", list))
    (offset,) = _sizes([meta.get("storage_offset")])
    if len(shape) != len(stride) or len(shape) > MAX_RANK:
        raise CorruptFile(f"it has {len(shape)} sizes and {len(stride)} strides")
    device = _get(meta, "device", dict)
    index = device.get("index")
    place = str(device.get("type")) + (f":{index}" if isinstance(index, int) else "")
    storage = storages.get(key)
    if storage is None:
        storage = storages[key] = Storage(
            members.archive.open(member), 0, member.size, dtype, place, key, members.byteorder
        )
    is_parameter = value.get("is_param") is True
    tensor = TensorInfo(
        "",
        dtype,
        shape,
        stride,
        offset,
        storage,
        place,
        requires_grad=meta.get("requires_grad") is True,
        is_parameter=is_parameter,
    )
    needed = tensor.extent[1] * dtype.itemsize
    if tensor.numel and not member.size:
        gone = "it was exported without values, in place of which torch.export.load gives zeros"
        return replace(tensor, storage=replace(storage, nbytes=needed, missing=gone))
    if tensor.numel and needed > member.size:
        raise CorruptFile(f"it reaches byte {needed:,} of {member.name}, which has {member.size:,}")
    return tensor


def _get(mapping: Mapping[str, object], key: str, kind: type[_T]) -> _T:
    value = mapping.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CorruptFile(f"{key} is {value!r:.40}, where {_KINDS[kind]} is wanted")
    return value


_KINDS: Mapping[type, str] = {dict: "an object", list: "a list", str: "text", int: "a whole number"}


def _sizes(values: list[object]) -> tuple[int, ...]:
    """Whole numbers, each as ``{"as_int": N}``; torch takes no symbols here."""
    sizes: list[int] = []
    for value in values:
        size = value.get("as_int") if isinstance(value, dict) else None
        if type(size) is not int or not 0 <= size < 1 << 63:
            raise CorruptFile(f"{value!r:.60} is no size, stride or offset")
        sizes.append(size)
    return tuple(sizes)


# --- the graph


def _read_graph(archive: Archive, name: str, found: _Findings, prefix: str = "") -> None:
    """Versions, inputs, outputs and non-persistent buffers, as far as the graph in member *name* gives them."""
    member = archive.find(name)
    if member is None:
        return
    try:
        graph = read_json(archive.open(member))
    except LimitExceeded:
        found.metadata[f"{prefix}graph"] = f"not read: more than {JSON_LIMIT:,} bytes of JSON"
        return
    except CkptError as error:
        raise error.at(path=archive.source.name, member=name) from None
    if isinstance(graph.get("torch_version"), str):
        found.producer["torch"] = str(graph["torch_version"])
    opsets = _object(graph.get("opset_version"))
    if opsets:
        found.producer["opset"] = ", ".join(f"{domain} {version}" for domain, version in opsets.items())
    schema = graph.get("schema_version")
    if isinstance(schema, dict):
        found.producer["schema version"] = f"{schema.get('major')}.{schema.get('minor')}"
    module = _object(graph.get("graph_module"))
    signature = _object(module.get("signature"))
    values = _object(_object(module.get("graph")).get("tensor_values"))
    inputs = [_object(spec) for spec in _list(signature.get("input_specs"))]
    outputs = [_object(spec) for spec in _list(signature.get("output_specs"))]
    found.metadata[f"{prefix}inputs"] = tuple(_argument(s["user_input"], values) for s in inputs if "user_input" in s)
    found.metadata[f"{prefix}outputs"] = tuple(
        _argument(spec["user_output"], values) for spec in outputs if "user_output" in spec
    )
    passing = [b for spec in inputs if (b := _object(spec.get("buffer"))) and b.get("persistent") is False]
    if passing:
        found.metadata[f"{prefix}non-persistent buffers"] = tuple(str(b.get("buffer_name")) for b in passing)


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _argument(spec: object, values: Mapping[str, object]) -> str:
    """An input or output as text: ``x: float32[2, s77]``, or what stands for it."""
    argument = _object(_object(spec).get("arg"))
    kind, value = next(iter(argument.items()), ("unknown", None))
    name = _object(value).get("name")
    if not isinstance(name, str):
        return f"{value!r:.40}" if isinstance(value, int | float | str) else kind.removeprefix("as_")
    meta = _object(values.get(name))
    dtype = _DTYPES.get(meta["dtype"]) if isinstance(meta.get("dtype"), int) else None  # type: ignore[call-overload]
    if kind != "as_tensor" or dtype is None:
        return name
    return f"{name}: {dtype}[{', '.join(_dimension(size) for size in _list(meta.get('sizes')))}]"


def _dimension(size: object) -> str:
    size = _object(size)
    if isinstance(size.get("as_int"), int):
        return str(size["as_int"])
    # sympy's srepr of an expression: its symbols' names are enough
    expression = str(_object(size.get("as_expr")).get("expr_str", "?"))
    return _SYMBOL.sub(r"\1", expression[:200])


FORMAT = Format("exported_program", "exported program (torch.export.save)", read, detect)
