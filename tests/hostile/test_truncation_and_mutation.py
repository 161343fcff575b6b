"""Damaged and hostile files: each ends in a description or in an error of ours, and none is ever run.

Truncation at every byte of every small fixture; ten thousand mutations, blind ones and such as know the
format; pickles that would do something if they were unpickled.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools import Checkpoint, CkptError, TensorInfo, open_checkpoint
from ckpt_tools.contents import read_bytes, scalar

FIXTURES = Path(__file__).resolve().parent.parent.parent / "fixtures"
ENTRIES = json.loads((FIXTURES / "MANIFEST.json").read_text(encoding="utf-8"))["fixtures"]
FILES = [part["file"] for entry in ENTRIES for part in entry.get("files", [entry])]
SMALL = 6000
"""Up to this size a file is cut at every byte, beyond it at some hundred places."""
SEVERAL = (".distcp", "tiny.onnx", "trailing.safetensors")
"""Archives back to back, a protocol buffer, and a file that has more than it should."""


@cache
def content(file: str) -> bytes:
    return (FIXTURES / file).read_bytes()


def tensors_of(checkpoint: Checkpoint) -> Iterator[TensorInfo]:
    for state_dict in checkpoint.state_dicts:
        yield from state_dict.tensors
    for _, tensor in checkpoint.loose:
        yield tensor
    if checkpoint.module is not None:
        yield from checkpoint.module.state_dict().tensors
    for part in checkpoint.parts:
        yield from tensors_of(part)


def examine(data: bytes) -> bool:
    """Open *data* and read what it describes; whether it was described. Anything but a `CkptError` goes through."""
    try:
        checkpoint = open_checkpoint(data)
    except CkptError as error:
        assert 0 < len(str(error)) < 3000
        assert str(error).startswith("<bytes>")
        return False
    for tensor in tensors_of(checkpoint):
        for found in (tensor, *(part for _, part in tensor.parts)):
            if found.nbytes < 1 << 20:
                try:
                    assert len(read_bytes(found)) == found.nbytes
                    scalar(found)
                except CkptError as error:
                    assert str(error)
    return True


# --- truncation


@pytest.mark.parametrize("file", FILES)
def test_truncated(file: str) -> None:
    data = content(file)
    step = 1 if len(data) <= SMALL else len(data) // 300
    for size in range(0, len(data), step):
        try:
            described = examine(data[:size])
        except Exception as error:
            pytest.fail(f"cut to {size} bytes: {type(error).__name__}: {error}")
        # nothing that is cut can pass for whole, unless it lacks but its padding, or is whole at several places
        assert not described or not any(data[size:]) or file.endswith(SEVERAL), f"cut to {size} bytes"


# --- mutation

STEADY = [file for file in FILES if not file.startswith("refused/") and len(content(file)) < 20_000]
ZIPS = [file for file in STEADY if content(file).startswith(b"PK\3\4")]
PICKLED = [file for file in ZIPS if any(n.endswith("data.pkl") for n in zipfile.ZipFile(FIXTURES / file).namelist())]


def flip(data: bytearray, chance: random.Random, start: int = 0, end: int | None = None) -> None:
    """Change a byte between *start* and *end*."""
    at = chance.randrange(start, len(data) if end is None else end)
    data[at] = chance.choice([data[at] ^ (1 << chance.randrange(8)), chance.randrange(256), 0, 0xFF])


def blind(file: str, chance: random.Random) -> bytes:
    """Bytes changed, removed, put in or moved, anywhere."""
    data = bytearray(content(file))
    for _ in range(chance.randint(1, 5)):
        kind = chance.randrange(8)
        at, size = chance.randrange(len(data)), chance.randrange(1, 40)
        if kind < 5:
            flip(data, chance)
        elif kind == 5 and len(data) > 100:
            del data[at : at + size]
        elif kind == 6:
            data[at:at] = chance.randbytes(size)
        else:
            piece = data[at : at + size]
            to = chance.randrange(len(data))
            data[to : to + len(piece)] = piece
    return bytes(data)


def unpacked(file: str) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content(file))) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def packed(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip with *members*, whose names may repeat."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members:
            archive.NameToInfo.pop(name, None)  # or zipfile warns of duplicates
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


INTERESTING = [
    *(
        b"\x8b\xff\xff\xff\x7f",
        b"X\xff\xff\xff\xff",
        b"\x8d" + b"\xff" * 8,
        b"\x95" + b"\x7f" * 8,
        b"r\xff\xff\xff\xff",
    ),
    *(b"(", b"t", b"}", b"]", b")", b"R", b"b", b"Q", b"u", b"s", b"e", b"a", b"0", b"1", b"2", b"N", b"\x81", b"\x94"),
    *(b"h\0", b"h\x01", b"q\0", b"\x85", b"\x86", b"\x87", b"2\x86" * 40, b"\x85" * 3000, b".", b"\x8f", b"(\x91"),
    *(b"cos\nsystem\n", b"ccollections\nOrderedDict\n", b"ctorch\nSize\n", b"ctorch._utils\n_rebuild_parameter\n"),
    *(
        b"K\x01",
        b"J\xff\xff\xff\xff",
        b"\x8a\x09" + b"\xff" * 9,
        b"\x8b\x00\x04\0\0" + b"\x11" * 1024,
        b"G" + b"\x7f" * 8,
    ),
    *(
        b"I99999999999999999999\n",
        b"L-1L\n",
        b"F1e400\n",
        b"S'a'\n",
        b"V\\ud800\n",
        b"Pid\n",
        b"(ios\nsystem\n",
        b"\x82\x01",
    ),
]


def opcodes(file: str, chance: random.Random) -> bytes:
    """The pickle's opcodes changed, repeated, dropped, or others put between them."""
    members = unpacked(file)
    name = chance.choice([n for n in members if n.endswith("data.pkl")])
    data = bytearray(members[name])
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        kind = chance.randrange(6)
        if kind == 0:
            data[at:at] = chance.choice(INTERESTING)
        elif kind == 1:
            piece = chance.choice(INTERESTING)
            data[at : at + len(piece)] = piece
        elif kind == 2:
            piece = data[at : at + chance.randrange(1, 60)]
            data[at:at] = piece
        elif kind == 3:
            del data[at : at + chance.randrange(1, 12)]
        else:
            flip(data, chance)
    members[name] = bytes(data)
    return packed(list(members.items()))


def directory(file: str, chance: random.Random) -> bytes:
    """Fields of the central directory, of local headers and of the end record set to odd values."""
    data = bytearray(content(file))
    odd = [0, 1, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, len(data), len(data) - 1, chance.randrange(len(data))]
    for _ in range(chance.randint(1, 3)):
        mark, fields = chance.choice(
            [
                (b"PK\1\2", [(8, 2), (10, 2), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)]),
                (b"PK\3\4", [(6, 2), (8, 2), (18, 4), (22, 4), (26, 2), (28, 2)]),
                (b"PK\5\6", [(4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)]),
                (b"PK\6\6", [(24, 4), (32, 4), (40, 4), (48, 4)]),
            ]
        )
        places = [i for i in range(len(data) - 4) if data[i : i + 4] == mark]
        if places:
            offset, width = chance.choice(fields)
            at = chance.choice(places) + offset
            data[at : at + width] = (chance.choice(odd) & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(data)


def members(file: str, chance: random.Random) -> bytes:
    """Members repeated, renamed, shortened, lengthened, exchanged or left out."""
    found = list(unpacked(file).items())
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(found))
        name, data = found[at]
        other = chance.randrange(len(found))
        kind = chance.randrange(7)
        if kind == 0:
            found.insert(other, (chance.choice([name, name.upper(), name.swapcase()]), found[other][1]))
        elif kind == 1:
            found[at] = (name, data[: chance.randrange(len(data) + 1)])
        elif kind == 2:
            found[at] = (name, data + chance.randbytes(chance.randrange(1, 9)))
        elif kind == 3:
            found[at], found[other] = (name, found[other][1]), (found[other][0], data)
        elif kind == 4 and len(found) > 1:
            del found[at]
        elif kind == 5:
            found[at] = (
                chance.choice(["", "/", "..", name + "/", "x" * 300, name.replace("/", "\\"), "\u00e9/" + name]),
                data,
            )
        else:
            found[at] = (name, chance.choice([b"", b"big", b"little", b"\xff" * 40, chance.randbytes(30)]))
    return packed(found, chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


MUTATIONS: dict[str, tuple[Callable[[str, random.Random], bytes], list[str], int]] = {
    "blind": (blind, STEADY, 4000),
    "opcodes": (opcodes, PICKLED, 4000),
    "directory": (directory, ZIPS, 2000),
    "members": (members, ZIPS, 2000),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutated(kind: str, seed: int) -> None:
    mutate, files, count = MUTATIONS[kind]
    chance = random.Random(f"{kind} {seed}")
    described = 0
    for number in range(count // 4):
        file = chance.choice(files)
        data = mutate(file, chance)
        try:
            described += examine(data)
        except Exception as error:
            pytest.fail(f"{file}, mutation {number}: {type(error).__name__}: {error}")
    # some survive, most do not: the mutations are neither harmless nor all fatal at once
    assert 0 < described < count // 4


# --- nothing is run


class Act:
    """Unpickles to a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def acts(path: Path) -> dict[str, bytes]:
    """Streams that make the folder *path*, or import a module, in every way there is."""
    name = str(path)
    slotted = b"}" + text("x") + b"K\x01s"
    return {
        **{f"protocol {protocol}": pickle.dumps(Act(path), protocol) for protocol in range(6)},
        "GLOBAL and REDUCE": b"cos\nmkdir\n" + text(name) + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04" + short("os") + short("mkdir") + b"\x93" + text(name) + b"\x85R.",
        "dotted name": b"\x80\x04" + short("pathlib") + short("os.mkdir") + b"\x93" + text(name) + b"\x85R.",
        "INST": b"(" + text(name) + b"ios\nmkdir\n.",
        "OBJ": b"(cos\nmkdir\n" + text(name) + b"o.",
        "NEWOBJ": b"cos\nmkdir\n" + text(name) + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04cos\nmkdir\n)}" + text("path") + text(name) + b"s\x92.",
        "BUILD": b"cpathlib\nPath\n" + text(name) + b"\x85R" + slotted + b"b.",
        "a method": b"c__builtin__\ngetattr\ncpathlib\nPath\n" + text(name) + b"\x85R" + text("mkdir") + b"\x86R)R.",
        "eval": b"c__builtin__\neval\n" + text(f"__import__('os').mkdir({name!r})") + b"\x85R.",
        "dropped": b"cos\nmkdir\n" + text(name) + b"\x85R0N.",
        "a key": b"}cos\nmkdir\n" + text(name) + b"\x85RNs.",
        "a persistent id": b"cos\nmkdir\n" + text(name) + b"\x85RQ.",
        "the storage's place": b"("
        + text("storage")
        + b"ctorch\nFloatStorage\n"
        + text("0")
        + b"cos\nmkdir\n"
        + text(name)
        + b"\x85RK\x04tQ.",
        "only a name": b"cantigravity\nx\n.",
        "before the end breaks off": b"cos\nmkdir\n" + text(name) + b"\x85R",
    }


WAYS = list(acts(Path("x")))


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_run(way: str, tmp_path: Path) -> None:
    victim = tmp_path / "made"
    stream = acts(victim)[way]
    legacy = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    forms = {
        "zip": packed([("archive/data.pkl", stream), ("archive/data/0", bytes(16)), ("archive/version", b"3\n")]),
        "legacy": legacy + stream + pickle.dumps([], 2),
        "plain": stream,
        "array": packed([("x.npy", npy(stream))]),
        "script": packed([("a/data.pkl", stream), ("a/constants.pkl", stream), ("a/version", b"3\n")]),
        "checkpoint in a zip": packed(
            [("policy.pth", packed([("archive/data.pkl", stream), ("archive/version", b"3\n")]))]
        ),
    }
    for form, data in forms.items():
        try:
            checkpoint = open_checkpoint(data)
        except CkptError:
            checkpoint = None
        assert not victim.exists(), form
        if checkpoint is not None and form in ("zip", "legacy", "plain"):
            assert checkpoint.globals, form
    assert "antigravity" not in sys.modules


def npy(stream: bytes) -> bytes:
    """An array of objects, as numpy saves it: a pickle after the header."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (64 - (10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + stream


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("only a name", "before the end breaks off")])
def test_the_streams_would_have_run(way: str, tmp_path: Path) -> None:
    """What the test above rests on: unpickled, each way but those that pickle itself refuses makes the folder."""
    victim = tmp_path / "made"

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: object) -> object:
            return pid

    try:
        Unpickler(io.BytesIO(acts(victim)[way])).load()
    except Exception as error:
        assert way in ("NEWOBJ", "NEWOBJ_EX", "BUILD"), error  # os.mkdir is no class; a Path takes no attributes
    assert victim.exists() == (way not in ("NEWOBJ", "NEWOBJ_EX", "BUILD"))
