"""An assembler for pickles and the files around them: what the attacks are built of.

What they would run is inert (``true``), and nothing in the tests loads them.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from dataclasses import dataclass

COMMAND = "true"
"""A program that does nothing."""


@dataclass(frozen=True)
class Attack:
    """A file (or, with *files*, a folder); *code* is a rule that has to fire, *cites* where it was published.

    *answer* is what the audit has to answer, "" where the file has no pickle that could be judged.
    """

    name: str
    data: bytes
    code: str
    suffix: str = ".pkl"
    cites: tuple[str, ...] = ()
    answer: str = "dangerous"
    files: tuple[tuple[str, bytes], ...] = ()


Value = object


@dataclass(frozen=True)
class Raw:
    """Opcodes that leave one value."""

    code: bytes


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(value: str) -> bytes:
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def push(value: Value) -> bytes:
    """Opcodes that push *value*: None, numbers, text, bytes, tuples, lists, dicts, or `Raw` ones."""
    if isinstance(value, Raw):
        return value.code
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(push, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(push, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(push(key) + push(item) for key, item in value.items()) + b"u"
    raise TypeError(value)


def name(path: str) -> Raw:
    """``module:attribute`` by GLOBAL."""
    module, _, attribute = path.partition(":")
    return Raw(f"c{module}\n{attribute}\n".encode())


def stacked(path: str) -> Raw:
    """``module:attribute`` by STACK_GLOBAL."""
    module, _, attribute = path.partition(":")
    return Raw(short(module) + short(attribute) + b"\x93")


def call(function: Raw | str, *args: Value) -> Raw:
    """``function(*args)`` by REDUCE."""
    func = stacked(function) if isinstance(function, str) else function
    return Raw(func.code + push(args) + b"R")


def new(cls: str, *args: Value, state: Value = None) -> Raw:
    """``cls.__new__(cls, *args)`` by NEWOBJ, with BUILD where there is a *state*."""
    return Raw(stacked(cls).code + push(args) + b"\x81" + (push(state) + b"b" if state is not None else b""))


def stream(*parts: Value, protocol: int = 4) -> bytes:
    """A whole pickle: each part is dropped but the last."""
    head = b"\x80" + bytes([protocol])
    return head + b"0".join(map(push, parts)) + b"."


def zipped(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for member, data in members:
            archive.NameToInfo.pop(member, None)  # or zipfile warns of duplicates
            archive.writestr(zipfile.ZipInfo(member), data, method)
    return buffer.getvalue()


def checkpoint(data: bytes, *more: tuple[str, bytes], method: int = zipfile.ZIP_STORED, root: str = "archive") -> bytes:
    """What torch.save would have made of the pickle *data*."""
    return zipped([(f"{root}/data.pkl", data), *more, (f"{root}/version", b"3\n")], method)


def behind(first: bytes, data: bytes) -> bytes:
    """A checkpoint of the pickle *data*, whose archive begins after the bytes *first* and counts them in."""
    buffer = io.BytesIO(b"x" * len(first))  # zipfile would go on with an archive that is there
    buffer.seek(0, 2)
    with zipfile.ZipFile(buffer, "a") as archive:
        for member, content in (("archive/data.pkl", data), ("archive/data/0", bytes(16)), ("archive/version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(member), content)
    return first + buffer.getvalue()[len(first) :]


BENIGN = stream({"epoch": 3, "step": 1000}, protocol=2)

SYSTEM = call("os:system", COMMAND)

LEGACY = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


def tensors(*before: Raw, key: str = "0", numel: int = 4) -> bytes:
    """A state_dict of one tensor; *before* is done first and dropped."""
    storage = Raw(push(("storage", name("torch:FloatStorage"), key, "cpu", numel)) + b"Q")
    tensor = Raw(
        name("torch._utils:_rebuild_tensor_v2").code
        + push((storage, 0, (numel,), (1,), False, Raw(name("collections:OrderedDict").code + b")R")))
        + b"R"
    )
    return stream(*before, {"weight": tensor}, protocol=2)


ZEROS = ("archive/data/0", bytes(16))


def patched(data: bytes, mark: bytes, offset: int, value: bytes, last: bool = False) -> bytes:
    """*data* with the bytes at *offset* of the first (or last) header that begins with *mark* replaced."""
    at = (data.rfind(mark) if last else data.find(mark)) + offset
    return data[:at] + value + data[at + len(value) :]


def npy(data: bytes) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (64 - (10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def tarred(members: list[tuple[str, bytes]], link: tuple[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link is not None:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            archive.addfile(info)
    return buffer.getvalue()


def old_tar(data: bytes, link: tuple[str, str] | None = None, *more: tuple[str, bytes]) -> bytes:
    """A checkpoint of torch before 0.2, in which *data* is the object's pickle."""
    nothing = pickle.dumps(0, 2)
    info = pickle.dumps({"protocol_version": 1000, "little_endian": True, "type_sizes": {}}, 2)
    members = [("sys_info", info), ("pickle", data), ("tensors", nothing), ("storages", nothing + pickle.dumps([], 2))]
    return tarred([*members, *more], link)


def symlinked() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", BENIGN)
        info = zipfile.ZipInfo("archive/link")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def script(code: str, *more: tuple[str, bytes]) -> bytes:
    """A TorchScript archive with one class, of which *code* is the body of ``forward``."""
    text_of = (
        "class M(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n"
        f"  def forward(self: __torch__.M,\n    x: Tensor) -> Tensor:\n    {code}\n    return x\n"
    )
    data = b"\x80\x02" + name("__torch__:M").code + b")\x81" + push({"training": True}) + b"b."
    return zipped(
        [
            ("m/data.pkl", data),
            ("m/code/__torch__.py", text_of.encode()),
            ("m/constants.pkl", b"\x80\x02)."),
            ("m/version", b"3\n"),
            *more,
        ]
    )


def exported(graph: dict[str, object], text: bytes = b"") -> bytes:
    """An exported program with *graph*, or the JSON *text*, and no weights."""
    return zipped(
        [
            ("p/archive_format", b"pt2"),
            ("p/archive_version", b"0"),
            ("p/models/model.json", text or json.dumps(graph).encode()),
            ("p/data/weights/model.pt", checkpoint(stream({}, protocol=2))),
            ("p/data/constants/model.pt", checkpoint(stream({}, protocol=2))),
        ]
    )


def onnx(location: str) -> bytes:
    """A model with one initializer whose bytes are at *location*."""

    def field(number: int, data: bytes | int) -> bytes:
        if isinstance(data, int):
            return bytes([number << 3, data])
        return bytes([number << 3 | 2, len(data)]) + data

    entries = b"".join(
        field(13, field(1, key) + field(2, value))
        for key, value in ((b"location", location.encode()), (b"length", b"4"))
    )
    tensor = field(1, 1) + field(2, 1) + field(8, b"w") + entries + field(14, 1)
    return field(1, 8) + field(7, field(2, b"g") + field(5, tensor)) + field(8, field(2, 13))


def gguf(template: str) -> bytes:
    def string(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    entries = [("general.architecture", "llama"), ("tokenizer.chat_template", template)]
    body = b"".join(string(key) + struct.pack("<I", 8) + string(value) for key, value in entries)
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + body
    return data + bytes(-len(data) % 32)
