"""Writing ``.npz``: a zip archive with one ``.npy`` member a tensor (numpy/lib/format.py), readable by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.convert.archive import ALIGNMENT, Archive
from ckpt_tools.convert.plan import Entry, Plan
from ckpt_tools.convert.stream import Sink, Written
from ckpt_tools.dtypes import DType
from ckpt_tools.errors import UnsupportedFeature
from ckpt_tools.report import shortened

MAX_DIMENSIONS = 32
"""Of an array in numpy 1; numpy 2 has 64."""

MAX_NAME = 0xFFFF - len(".npy")
"""Bytes of a tensor's name."""

_KINDS = {"float": "f", "int": "i", "uint": "u", "complex": "c", "bool": "b"}


def objection(tensor: TensorInfo, dtype: DType) -> str:
    """Why numpy by itself cannot hold *tensor* as *dtype*; "" where it can."""
    if len(tensor.shape) > MAX_DIMENSIONS:
        return f"{len(tensor.shape)} dimensions, of which numpy has {MAX_DIMENSIONS}"
    return "" if dtype.numpy == dtype.name else f"{dtype}, for which numpy has no type"


def check_names(names: Iterable[str]) -> None:
    """Raise `UnsupportedFeature` where numpy would not find each array under its name.

    A zip's names end at a NUL (zipfile.py, ``ZipInfo``) and have 65,535 bytes at most; numpy takes ``a.npy`` for the
    member of that name, which holds the array ``a`` (numpy/lib/_npyio_impl.py, ``NpzFile.__getitem__``).
    """
    taken = set(names)
    for name in taken:
        why = ""
        if "\0" in name:
            why = "has a NUL"
        elif len(name.encode()) > MAX_NAME:
            why = "is too long for a zip archive"
        elif f"{name}.npy" in taken:
            why = "has a member that numpy would take for the array of that name with .npy"
        if why:
            raise UnsupportedFeature(f"the name {shortened(name, 60)} {why}", remedy="Change it with --rename")


def write(sink: Sink, plan: Plan) -> Written:
    """Write every tensor of *plan*; names that share memory each get a copy, as the format cannot share."""
    archive = Archive(sink)
    written = Written()
    for entry in plan.entries:
        head = _header(entry)
        size = len(head) + entry.tensor.numel * entry.dtype.itemsize
        archive.stream(f"{entry.name}.npy", size, _member(sink, head, entry, written))
    archive.finish()
    return written


def _member(sink: Sink, head: bytes, entry: Entry, written: Written) -> Iterator[bytes]:
    sink.write(head)
    yield head
    yield from sink.streamed(entry, written)


def _header(entry: Entry) -> bytes:
    """Magic, version 1.0, the header's length, and the header, padded so that the elements are aligned."""
    order = "|" if entry.dtype.itemsize == 1 else "<"
    descr = f"{order}{_KINDS[entry.dtype.kind]}{entry.dtype.itemsize}"
    text = repr({"descr": descr, "fortran_order": False, "shape": entry.tensor.shape})
    text += " " * (-(10 + len(text) + 1) % ALIGNMENT) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("ascii")
