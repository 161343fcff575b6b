"""numpy's files: ``.npy``, one array, and ``.npz``, a zip archive of such.

A ``.npy`` file is a magic string, a version, a length and a header that is the literal of a Python dict, then
the elements, or for arrays of objects a pickle (numpy/lib/format.py; NEP 1). Only the headers and the pickles
are read.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import replace
from typing import NamedTuple

from ckpt_tools.checkpoint import Anomaly, Checkpoint, Pickle
from ckpt_tools.errors import CkptError, CorruptFile, UnsupportedFeature
from ckpt_tools.formats import plain_pickle
from ckpt_tools.formats.archive import Archive, Member
from ckpt_tools.formats.base import Format
from ckpt_tools.pickles.arrays import parse_descr, tensor_over
from ckpt_tools.pickles.structure import survey
from ckpt_tools.pickles.values import Call, plain
from ckpt_tools.sources import Source

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000
"""The longest header that numpy parses without being told to trust the file."""

_LENGTHS = {(1, 0): 2, (2, 0): 4, (3, 0): 4}
_KEYS = {"descr", "fortran_order", "shape"}


class _Header(NamedTuple):
    """What stands before the elements, and where these *start*."""

    descr: object
    fortran_order: bool
    shape: tuple[object, ...]
    start: int


class OtherArray:
    """An array whose elements torch has no type for: text, dates, records.

    *descr* is numpy's notation of their type, *source* holds the elements.
    """

    __slots__ = ("descr", "shape", "source")

    def __init__(self, descr: str, shape: tuple[object, ...], source: Source) -> None:
        self.descr = descr
        self.shape = shape
        self.source = source

    def __repr__(self) -> str:
        return f"<array of {self.descr}, shape {self.shape}>"


class _Contents:
    """The arrays of a file by name, and what was met on the way."""

    def __init__(self) -> None:
        self.values: dict[object, object] = {}
        self.pickles: list[Pickle] = []
        self.anomalies: list[Anomaly] = []

    def add(self, name: str, source: Source, header: _Header, where: str) -> None:
        """Take the ``.npy`` file *source* as the value *name*; *where* is what the user knows it by."""
        descr, fortran, shape, start = header
        elements = source.slice(start, source.size - start, source.name)
        if _has_objects(descr):
            self._objects(name, elements, shape, where)
            return
        found = parse_descr(descr) if isinstance(descr, str) else None
        if found is None or found[0].kind in ("quantized", "bits"):
            self.values[name] = OtherArray(f"{descr!r:.200}", shape, elements)
            return
        tensor = tensor_over(elements, found, shape, fortran, where)
        if tensor.nbytes < elements.size:
            following = elements.size - tensor.nbytes
            self.anomalies.append(Anomaly(f"{following:,} bytes follow the array, which numpy does not read", where))
            elements = elements.slice(0, tensor.nbytes, elements.name)
            tensor = tensor_over(elements, found, shape, fortran, where)
        self.values[name] = tensor

    def _objects(self, name: str, stream: Source, shape: tuple[object, ...], where: str) -> None:
        pickled = plain_pickle.read(stream)
        self.pickles += [replace(pickle, member=f"{where}: {pickle.member}") for pickle in pickled.pickles]
        self.anomalies += [
            replace(anomaly, where=f"{where}: {anomaly.where}" if anomaly.where else where)
            for anomaly in pickled.anomalies
        ]
        objects = _objects_of(pickled.values)
        # np.save of anything that is no array wraps it in an array without dimensions
        self.values[name] = plain(objects[0]) if shape == () and len(objects) == 1 else objects

    def checkpoint(self, source: Source, format: Format, root: object) -> Checkpoint:
        """All of it as the checkpoint whose root is *root*."""
        found = survey(root)
        return Checkpoint(
            path=source.name,
            source=source,
            format=format.name,
            title=format.title,
            kind=found.kind,
            state_dicts=tuple(found.state_dicts),
            module=found.module,
            module_path=found.module_path,
            training=found.training,
            values=root,
            loose=tuple(found.loose),
            pickles=tuple(self.pickles),
            anomalies=tuple(self.anomalies),
            size=source.size,
        )


def _has_objects(descr: object) -> bool:
    """Whether a type has Python objects in it, so that numpy has pickle read the array (``dtype.hasobject``).

    ``|O8`` is how Python 2 wrote it; fields are (name, type) or (name, type, shape), subarrays (type, shape).
    """
    pending = [descr]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            if "O" in part or "object" in part:
                return True
        elif isinstance(part, bytes):
            pending.append(part.decode("latin-1"))
        elif isinstance(part, tuple):
            pending += part[:1]
        elif isinstance(part, list):
            pending += [field[1] for field in part if isinstance(field, tuple) and len(field) > 1]
        elif isinstance(part, dict):  # which numpy before 1.17 takes: fields by name, or lists of names and formats
            pending += [form for value in part.values() for form in (value if isinstance(value, list) else [value])]
    return False


def _objects_of(root: object) -> list[object]:
    """The elements of a pickled array of objects; [root] where it is something else."""
    # ndarray.__reduce__ has the state (version, shape, dtype, fortran order, list of the elements)
    if type(root) is Call and type(root.state) is tuple and len(root.state) == 5:
        elements = root.state[4]
        if type(elements) is list:
            return elements
    return [root]


def _header(source: Source) -> _Header:
    start = source.peek(0, 12)
    if not start.startswith(MAGIC):
        raise CorruptFile("the array does not begin with numpy's magic string")
    if len(start) < 8:
        raise CorruptFile("the array ends within its version: truncated")
    version = start[6], start[7]
    width = _LENGTHS.get(version)
    if width is None:
        raise UnsupportedFeature(f"the array has the format version {version[0]}.{version[1]}; 1.0 to 3.0 are known")
    if len(start) < 8 + width:
        raise CorruptFile("the array ends within its header's length: truncated")
    size = int.from_bytes(start[8 : 8 + width], "little")
    if 8 + width + size > source.size:
        raise CorruptFile(f"holds {source.size:,} of the {8 + width + size:,} bytes up to the header's end: truncated")
    if size > MAX_HEADER:
        raise UnsupportedFeature(f"the array has a header of {size:,} bytes, beyond the {MAX_HEADER:,} numpy reads")
    raw = source.read(8 + width, size)
    try:
        text = raw.decode("utf-8" if version == (3, 0) else "latin-1")
        header = _literal(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise CorruptFile(f"the array's header is no Python literal: {raw[:80]!r}", offset=8 + width) from None
    if type(header) is not dict or header.keys() != _KEYS:
        raise CorruptFile("the array's header is not a dict of descr, fortran_order and shape", offset=8 + width)
    fortran, shape = header["fortran_order"], header["shape"]
    if type(fortran) is not bool or type(shape) is not tuple:
        raise CorruptFile(
            f"the array has the fortran_order {fortran!r:.80} and the shape {shape!r:.80}", offset=8 + width
        )
    return _Header(header["descr"], fortran, shape, 8 + width + size)


def _literal(text: str) -> object:
    with warnings.catch_warnings(action="ignore"):  # about the literals of a hostile file
        try:
            value: object = ast.literal_eval(text.strip())
        except SyntaxError:
            # Python 2 wrote sizes as 3L
            value = ast.literal_eval(re.sub(r"(\d)L\b", r"\1", text.strip()))
    return value


def _detect_npy(source: Source, head: bytes) -> bool:
    return head.startswith(MAGIC)


def _read_npy(source: Source) -> Checkpoint:
    """The array of a ``.npy`` file, or what was pickled into one."""
    contents = _Contents()
    try:
        contents.add("", source, _header(source), "array")
    except CkptError as error:
        error.path = source.name
        raise
    return contents.checkpoint(source, NPY, contents.values[""])


def _detect_npz(source: Source, head: bytes) -> bool:
    if not head.startswith(b"PK\x03\x04"):
        return False
    try:
        return any(member.name.endswith(".npy") for member in Archive.of(source).members)
    except CkptError:
        return False


def _read_npz(source: Source) -> Checkpoint:
    """The arrays of a ``.npz`` file by name; only headers are read, but the pickles of object arrays whole."""
    archive = Archive.of(source)
    contents = _Contents()
    chosen: dict[str, Member] = {}
    for member in archive.members:
        name = member.name.removesuffix(".npy")
        if name in chosen:
            contents.anomalies.append(Anomaly("several members have this name; numpy takes the last", member.name))
        chosen[name] = member
    for name, member in chosen.items():
        try:
            first = archive.open(member)
            if first.peek(0, len(MAGIC)) != MAGIC:
                contents.anomalies.append(Anomaly("the member is no array; numpy would give its bytes", member.name))
                continue
            # the elements get a source of their own: one that inflates holds on to what it has read
            contents.add(name, archive.open(member), _header(first), member.name)
        except CkptError as error:
            error.path, error.member = source.name, member.name
            raise
    return contents.checkpoint(source, NPZ, contents.values)


NPY = Format("npy", "NumPy array (.npy)", _read_npy, _detect_npy)
NPZ = Format("npz", "NumPy archive (.npz)", _read_npz, _detect_npz)
FORMATS = (NPY, NPZ)
