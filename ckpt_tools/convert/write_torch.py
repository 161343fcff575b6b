"""Writing what ``torch.load(weights_only=True)`` reads, without torch: a zip archive with a pickle of tensors only.

Members, their order and alignment: torch/serialization.py (``_save``), caffe2/serialize/inline_container.cc. The
pickle: torch/_utils.py (``_rebuild_tensor_v2``, ``_v3``), in protocol 2, whose opcodes are those that
torch/_weights_only_unpickler.py takes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import NUMBERS, parts_of, scalar
from ckpt_tools.convert.archive import ALIGNMENT, Archive
from ckpt_tools.convert.decompose import ELEMENTS, Composite
from ckpt_tools.convert.plan import Entry, Plan
from ckpt_tools.convert.sharing import dense_stride, overlapping, same_views
from ckpt_tools.convert.stream import Sink, Written
from ckpt_tools.dtypes import DType
from ckpt_tools.errors import UnsupportedFeature
from ckpt_tools.pickles.values import plain

ROOT = "archive"
"""The folder in the archive, as torch names it where it saves to no file; so the bytes do not depend on the name."""

_MAX_TEXT = 0xFFFFFFFF

_ROWS, _COLUMNS = ("crow_indices", "col_indices", "values"), ("ccol_indices", "row_indices", "values")
_PARTS = {
    "sparse_coo": ("indices", "values"),
    "sparse_csr": _ROWS,
    "sparse_bsr": _ROWS,
    "sparse_csc": _COLUMNS,
    "sparse_bsc": _COLUMNS,
    "nested": ("buffer", "sizes", "strides", "offsets"),
}
"""The labels of what the rebuild functions are given, in their order."""


def is_rebuilt(entry: Entry) -> bool:
    """Whether ``weights_only`` rebuilds the entry's tensor, of a kind of its own, from plain ones."""
    tensor = entry.tensor
    if tensor.subclass is not None or any(part.layout != "strided" or part.parts for _, part in tensor.parts):
        return False
    labels = {label for label, _ in tensor.parts}
    if tensor.dtype.kind != "quantized":
        return tensor.layout in _PARTS and labels >= set(_PARTS[tensor.layout])
    if tensor.storage is None or tensor.dtype.storage is None:
        return False
    # what an earlier conversion noted may lack some of them, or have others under these names
    numbers = {label for label, part in parts_of(tensor) if label in NUMBERS and scalar(part) is not None}
    return numbers >= {"scale", "zero_point"} or (labels >= {"scales", "zero_points"} and "axis" in numbers)


def objection(tensor: TensorInfo, dtype: DType) -> str:
    """Why a .pt file of plain tensors cannot hold *tensor* as *dtype*; "" where it can."""
    if dtype.kind == "bits" and not dtype.name.startswith("bits"):
        return f"{dtype}, which torch cannot load"
    return ""


@dataclass(frozen=True, slots=True)
class _Placed:
    """Where a tensor is found: in the storage number *key* of *numel* elements, from *offset* on, by *stride*."""

    key: int
    numel: int
    offset: int
    stride: tuple[int, ...]


def write(sink: Sink, plan: Plan) -> Written:
    """Write the state_dict of *plan*, names that share memory still sharing it."""
    storages, placed = _place(plan)
    archive = Archive(sink, f"{ROOT}/")
    written = Written()
    archive.add("data.pkl", _pickle(plan, placed))
    archive.add(".format_version", b"1")
    archive.add(".storage_alignment", str(ALIGNMENT).encode())
    archive.add("byteorder", b"little")
    for key, entry in enumerate(storages):
        archive.stream(f"data/{key}", entry.tensor.numel * entry.dtype.itemsize, sink.streamed(entry, written))
    archive.add("version", b"3\n")
    archive.add(".data/serialization_id", archive.identity())
    archive.finish()
    return written


def _place(plan: Plan) -> tuple[list[Entry], dict[str, _Placed]]:
    """The storages to write, each as a dense run of elements, and where in them each name finds its tensor."""
    dtypes = {entry.name: entry.dtype for entry in plan.entries}
    groups = same_views(replace(entry.tensor, name=entry.name) for entry in plan.entries)
    names = {group[0].name: [tensor.name for tensor in group] for group in groups}
    bases: dict[str, tuple[str, int, int]] = {}  # first name of a view: its base, the base's first element, its length
    for members in overlapping(group[0] for group in groups):
        low = min(tensor.extent[0] for tensor in members)
        numel = max(tensor.extent[1] for tensor in members) - low
        bases |= {tensor.name: (members[0].name, low, numel) for tensor in members}
    storages: list[Entry] = []
    keys: dict[str, int] = {}
    placed: dict[str, _Placed] = {}
    for group in groups:
        first = group[0]
        base, low, numel = bases.get(first.name, (first.name, 0, first.numel))
        if base not in keys:
            keys[base] = len(storages)
            whole = first
            if first.name in bases:
                whole = replace(first, shape=(numel,), stride=(1,), storage_offset=low)
            storages.append(Entry(base, whole, dtypes[first.name]))
        if first.name in bases:
            place = _Placed(keys[base], numel, first.storage_offset - low, first.stride)
        else:
            place = _Placed(keys[base], numel, 0, dense_stride(first.shape))
        placed |= dict.fromkeys(names[first.name], place)
    return storages, placed


# --- the pickle


def _pickle(plan: Plan, placed: Mapping[str, _Placed]) -> bytes:
    out = _Pickler()
    out.ordered_dict()
    out.raw(b"(")
    entries = {entry.name: entry for entry in plan.entries}
    owners = {part: name for name, composite in plan.composites.items() for part in composite.parts.values()}
    written = set()
    for entry in plan.entries:
        owner = owners.get(entry.name)
        if owner is None:
            out.text(entry.name)
            out.tensor(entry, placed[entry.name])
        elif owner not in written:
            written.add(owner)
            composite = plan.composites[owner]
            parts = {label: (entries[part], placed[part]) for label, part in composite.parts.items()}
            out.text(owner)
            out.composite(composite, parts)
    for name, value in plan.extras.items():
        out.text(name)
        out.value(value)
    out.raw(b"u")
    if plan.versions is not None:
        # as pickle writes an OrderedDict with attributes: BUILD with its __dict__
        out.raw(b"}")
        out.text("_metadata")
        out.ordered_dict()
        out.raw(b"(")
        for module, version in plan.versions.items():
            out.text(module)
            out.value(version)
        out.raw(b"usb")
    return out.finish()


class _Pickler:
    """The few opcodes of protocol 2 that tensors and plain values need."""

    def __init__(self) -> None:
        self._parts: list[bytes] = [b"\x80\x02"]
        self._memo: dict[str, int] = {}

    def raw(self, data: bytes) -> None:
        self._parts.append(data)

    def finish(self) -> bytes:
        return b"".join([*self._parts, b"."])

    def global_(self, module: str, name: str) -> None:
        """GLOBAL, memoized."""
        key = f"{module} {name}"
        if key in self._memo:
            self.raw(b"h" + bytes([self._memo[key]]))
            return
        self.raw(f"c{module}\n{name}\n".encode("ascii"))
        self._memo[key] = len(self._memo)  # a table of dtypes long, so one byte is enough
        self.raw(b"q" + bytes([self._memo[key]]))

    def ordered_dict(self) -> None:
        """An empty ``OrderedDict``."""
        self.global_("collections", "OrderedDict")
        self.raw(b")R")

    def text(self, text: str) -> None:
        data = text.encode("utf-8")
        if len(data) > _MAX_TEXT:
            raise UnsupportedFeature("a name of 4 GiB cannot be pickled")
        self.raw(b"X" + struct.pack("<I", len(data)) + data)

    def integer(self, value: int) -> None:
        if 0 <= value < 256:
            self.raw(b"K" + bytes([value]))
        elif 0 <= value < 65536:
            self.raw(b"M" + struct.pack("<H", value))
        elif -(1 << 31) <= value < 1 << 31:
            self.raw(b"J" + struct.pack("<i", value))
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.raw(b"\x8a" + bytes([len(data)]) + data)

    def sizes(self, values: tuple[int, ...]) -> None:
        """A tuple of integers."""
        if not values:
            self.raw(b")")
            return
        if len(values) > 3:
            self.raw(b"(")
        for value in values:
            self.integer(value)
        self.raw({1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(values), b"t"))

    def tensor(self, entry: Entry, place: _Placed) -> None:
        """REDUCE of a rebuild call; v3, over bytes, where torch has no storage class for the type."""
        typed = entry.dtype.storage
        self.global_("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
        self.raw(b"(")
        self.storage(typed, place, entry.dtype.itemsize)
        self.sizes(entry.tensor.shape)
        self.sizes(place.stride)
        self.raw(b"\x89")
        self.ordered_dict()
        if not typed:
            self.global_("torch", entry.dtype.name)
        self.raw(b"tR")

    def storage(self, typed: str | None, place: _Placed, itemsize: int) -> None:
        """The persistent id of a storage, and the offset in it."""
        self.raw(b"(")
        self.text("storage")
        self.global_(*(("torch", typed) if typed else ("torch.storage", "UntypedStorage")))
        self.text(str(place.key))
        self.text("cpu")
        self.integer(place.numel * (1 if typed else itemsize))
        self.raw(b"tQ")
        self.integer(place.offset)

    def composite(self, composite: Composite, parts: Mapping[str, tuple[Entry, _Placed]]) -> None:
        """REDUCE of the call that makes a tensor of *parts*: quantized, sparse or nested."""
        tensor = composite.tensor
        if composite.elements is not None:
            self._quantized(composite, parts)
        elif tensor.layout == "nested":
            self.global_("torch._utils", "_rebuild_nested_tensor")
            self.raw(b"(")
            for label in _PARTS["nested"]:
                self.tensor(*parts[label])
            self.raw(b"tR")
        else:
            self.global_("torch._utils", "_rebuild_sparse_tensor")
            self.global_("torch.serialization", "_get_layout")
            self.text(f"torch.{tensor.layout}")
            self.raw(b"\x85R(")
            for label in _PARTS[tensor.layout]:
                self.tensor(*parts[label])
            self.global_("torch", "Size")
            self.sizes(tensor.shape)
            self.raw(b"\x85R")
            if tensor.layout == "sparse_coo":
                self.value(tensor.details.get("coalesced") is True)
            self.raw(b"t\x86R")

    def _quantized(self, composite: Composite, parts: Mapping[str, tuple[Entry, _Placed]]) -> None:
        tensor = composite.tensor
        elements, place = parts[ELEMENTS]
        self.global_("torch._utils", "_rebuild_qtensor")
        self.raw(b"(")
        self.storage(tensor.dtype.storage, place, elements.dtype.itemsize)
        self.sizes(tensor.shape)
        # several values in a byte lie densely, and their stride counts values
        self.sizes(place.stride if elements.tensor.shape == tensor.shape else dense_stride(tensor.shape))
        numbers = {label: scalar(part) for label, part in parts_of(tensor) if label in NUMBERS}
        if "scales" in parts:
            self.raw(b"(")
            self.global_("torch", "per_channel_affine")
            self.tensor(*parts["scales"])
            self.tensor(*parts["zero_points"])
            self.value(numbers["axis"])
            self.raw(b"t")
        else:
            self.global_("torch", "per_tensor_affine")
            self.value(numbers["scale"])
            self.value(numbers["zero_point"])
            self.raw(b"\x87")
        self.raw(b"\x89")
        self.ordered_dict()
        self.raw(b"tR")

    def value(self, root: object) -> None:
        """Plain data, however deep."""
        pending: list[object] = [root]
        while pending:
            item = plain(pending.pop())
            if type(item) is _Opcode:
                self.raw(item.code)
            elif isinstance(item, dict):
                self.raw(b"}")
                for key, value in reversed(item.items()):
                    pending += [_Opcode(b"s"), value, key]
            elif isinstance(item, tuple):
                self.raw(b"(")
                pending += [_Opcode(b"t"), *reversed(item)]
            elif isinstance(item, bytes):
                # as protocol 2 has them
                self.global_("_codecs", "encode")
                self.text(item.decode("latin-1"))
                self.text("latin1")
                self.raw(b"\x86R")
            elif isinstance(item, list):
                self.raw(b"]")
                for value in reversed(item):
                    pending += [_Opcode(b"a"), value]
            elif item is None or isinstance(item, bool):
                self.raw({None: b"N", True: b"\x88", False: b"\x89"}[item])
            elif isinstance(item, int):
                self.integer(item)
            elif isinstance(item, float):
                self.raw(b"G" + struct.pack(">d", item))
            else:
                self.text(str(item))


@dataclass(frozen=True, slots=True)
class _Opcode:
    code: bytes
