"""GGUF files are described as the header has them, and as the gguf package reads them."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.checkpoint import Checkpoint, TensorInfo
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, UnsupportedFeature
from ckpt_tools.formats import gguf, open_checkpoint
from ckpt_tools.sources import MemorySource
from tests.formats.as_torch import assert_only_ckpt_errors, by_name
from tests.formats.hostile import assert_withstands_damage

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
F32, F16, Q4_0, Q4_K, BF16 = 0, 1, 2, 12, 30


class Writer:
    """Writes a GGUF file as its specification has it."""

    def __init__(self, version: int = 3, order: str = "<") -> None:
        self.version, self.order = version, order
        self.entries: list[bytes] = []
        self.infos: list[bytes] = []
        self.data = b""

    def pack(self, codes: str, *values: object) -> bytes:
        return struct.pack(self.order + codes, *values)

    def length(self, value: int) -> bytes:
        return self.pack("I" if self.version == 1 else "Q", value)

    def text(self, value: str) -> bytes:
        data = value.encode()
        return self.length(len(data)) + data

    def value(self, kind: int, value: Any) -> bytes:
        if kind == STRING:
            return self.text(value)
        return self.pack({UINT32: "I", INT32: "i", FLOAT32: "f", BOOL: "?", UINT64: "Q"}[kind], value)

    def add(self, key: str, kind: int, value: object) -> None:
        self.entries.append(self.text(key) + self.pack("I", kind) + self.value(kind, value))

    def add_array(self, key: str, kind: int, values: Sequence[object]) -> None:
        items = b"".join(self.value(kind, value) for value in values)
        self.entries.append(self.text(key) + self.pack("II", ARRAY, kind) + self.length(len(values)) + items)

    def add_tensor(
        self, name: str, shape: tuple[int, ...], kind: int, data: bytes, *, offset: int | None = None
    ) -> None:
        dims = b"".join(self.length(size) for size in reversed(shape))
        place = len(self.data) if offset is None else offset
        self.infos.append(self.text(name) + self.pack("I", len(shape)) + dims + self.pack("IQ", kind, place))
        self.data += data + bytes(-len(data) % 32)

    def bytes(self, alignment: int = 32) -> bytes:
        head = b"GGUF" + self.pack("I", self.version) + self.length(len(self.infos)) + self.length(len(self.entries))
        head += b"".join(self.entries) + b"".join(self.infos)
        return head + bytes(-len(head) % alignment) + self.data


def floats(count: int, order: str = "<") -> bytes:
    return struct.pack(f"{order}{count}f", *range(count))


def example(version: int = 3, order: str = "<") -> bytes:
    writer = Writer(version, order)
    writer.add("general.architecture", STRING, "llama")
    writer.add("llama.block_count", UINT32, 2)
    writer.add("llama.rope.freq_base", FLOAT32, 0.5)
    writer.add("tokenizer.ggml.add_bos_token", BOOL, True)
    writer.add_array("general.tags", STRING, ["a", "é"])
    writer.add_array("tokenizer.ggml.token_type", INT32, list(range(100)))
    writer.add_array("tokenizer.ggml.tokens", STRING, [f"t{n}" for n in range(65)])
    writer.add_tensor("token_embd.weight", (2, 3), F32, floats(6, order))
    writer.add_tensor("norm.weight", (3,), BF16, bytes(range(6)))
    writer.add_tensor("blk.0.attn_q.weight", (2, 256), Q4_K, bytes(n % 256 for n in range(2 * 144)))
    return writer.bytes()


def tensors(data: bytes) -> dict[str, TensorInfo]:
    return by_name(open_checkpoint(data))


@pytest.mark.parametrize(("version", "order"), [(1, "<"), (2, "<"), (3, "<"), (3, ">")])
def test_every_version_and_byte_order(version: int, order: str) -> None:
    checkpoint = open_checkpoint(example(version, order))
    assert (checkpoint.format, checkpoint.kind, checkpoint.refusals) == ("gguf", "state_dict", None)
    assert checkpoint.producer["GGUF version"] == str(version)
    assert ("byte order" in checkpoint.producer) == (order == ">")
    assert dict(checkpoint.metadata) == {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.rope.freq_base": 0.5,
        "tokenizer.ggml.add_bos_token": True,
        "general.tags": ("a", "é"),
        "tokenizer.ggml.token_type": "[100 × int32]",
        "tokenizer.ggml.tokens": "[65 × string]",
    }
    found = by_name(checkpoint)
    assert {n: (t.dtype.name, t.shape, t.stride) for n, t in found.items()} == {
        "token_embd.weight": ("float32", (2, 3), (3, 1)),
        "norm.weight": ("bfloat16", (3,), (1,)),
        "blk.0.attn_q.weight": ("Q4_K", (2, 256), (256, 1)),
    }
    assert read_bytes(found["token_embd.weight"]) == floats(6)  # in little-endian order, whatever the file's
    assert checkpoint.anomalies == ()


def test_blocks_are_a_part_and_elements_are_counted() -> None:
    tensor = tensors(example())["blk.0.attn_q.weight"]
    assert (tensor.numel, tensor.nbytes) == (512, 288)
    ((name, blocks),) = tensor.parts
    assert (name, blocks.dtype.name, blocks.shape) == ("blocks", "uint8", (2, 144))
    assert read_bytes(blocks) == bytes(n % 256 for n in range(288))
    assert tensor.details == {"ggml": "Q4_K: 256 elements in 144 bytes"}
    with pytest.raises(UnsupportedFeature, match="no bytes of its own"):
        read_bytes(tensor)


def test_only_the_header_is_read() -> None:
    class Counting(MemorySource):
        read_to = 0

        def peek(self, offset: int, count: int) -> bytes:
            data = super().peek(offset, count)
            self.read_to = max(self.read_to, offset + len(data))
            return data

    writer = Writer()
    writer.add_tensor("w", (1 << 20,), F32, floats(1 << 20))
    source = Counting(writer.bytes(), "model.gguf")
    open_checkpoint(source)
    assert source.read_to < 1 << 17


def test_long_texts_are_replaced_by_their_length() -> None:
    writer = Writer()
    writer.add("tokenizer.chat_template", STRING, "x" * (gguf.MAX_TEXT + 1))
    writer.add("general.name", STRING, "x" * gguf.MAX_TEXT)
    metadata = open_checkpoint(writer.bytes()).metadata
    assert metadata["tokenizer.chat_template"] == f"[{gguf.MAX_TEXT + 1:,} bytes of text]"
    assert metadata["general.name"] == "x" * gguf.MAX_TEXT


def test_another_alignment() -> None:
    writer = Writer()
    writer.add("general.alignment", UINT32, 64)
    writer.add_tensor("w", (2,), F32, floats(2))
    (tensor,) = tensors(writer.bytes(64)).values()
    assert tensor.storage is not None
    assert tensor.storage.offset % 64 == 0
    assert read_bytes(tensor) == floats(2)


def test_tensors_of_no_elements_and_of_no_dimensions() -> None:
    writer = Writer()
    writer.add_tensor("scalar", (), F32, floats(1))
    writer.add_tensor("empty", (0, 4), F32, b"")
    writer.add_tensor("no_blocks", (0, 32), Q4_0, b"")
    found = tensors(writer.bytes())
    assert {n: (t.shape, t.numel, t.nbytes) for n, t in found.items()} == {
        "scalar": ((), 1, 4), "empty": ((0, 4), 0, 0), "no_blocks": ((0, 32), 0, 0)
    }  # fmt: skip


def test_every_type_of_ggml_is_as_the_package_has_it() -> None:
    package = pytest.importorskip("gguf")
    for kind, (elements, nbytes) in package.GGML_QUANT_SIZES.items():
        if int(kind) in gguf._DTYPES:
            assert elements == 1
        elif kind.name != "Q8_1":  # never stored; the package has its size before its scales became half floats
            assert gguf._BLOCKS[int(kind)] == (kind.name, elements, nbytes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_the_package_writes(tmp_path: Path) -> None:
    package = pytest.importorskip("gguf")
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "model.gguf"
    writer = package.GGUFWriter(path, "llama")
    writer.add_block_count(3)
    writer.add_token_list([f"t{n}" for n in range(100)])
    random = numpy.random.default_rng(0)
    arrays = {
        "a": random.standard_normal((4, 64)).astype("f4"),
        "b": random.standard_normal((2, 3, 32)).astype("f2"),
        "c": numpy.arange(5, dtype="i4"),
        "d": numpy.arange(5, dtype="i8"),
    }
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    for kind in (package.GGMLQuantizationType.Q4_0, package.GGMLQuantizationType.Q8_0):
        writer.add_tensor(kind.name, package.quantize(arrays["a"], kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(path)
    assert checkpoint.metadata["llama.block_count"] == 3
    assert checkpoint.metadata["tokenizer.ggml.tokens"] == "[100 × string]"
    found = by_name(checkpoint)
    there = {tensor.name: tensor for tensor in package.GGUFReader(path).tensors}
    assert list(found) == list(there)
    for name, tensor in found.items():
        other = there[name]
        assert tensor.shape == tuple(reversed(other.shape.tolist()))
        assert tensor.nbytes == other.n_bytes
        raw = dict(tensor.parts).get("blocks", tensor)
        assert raw.storage is not None
        assert raw.storage.offset == other.data_offset
        assert raw.shape == other.data.shape
        assert read_bytes(raw) == other.data.tobytes()


# --- damage


def one_entry(entry: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry


def one_tensor(shape: tuple[int, ...], kind: int, *, rank: int | None = None, offset: int = 0) -> bytes:
    dims = struct.pack(f"<{len(shape)}Q", *reversed(shape))
    info = struct.pack("<Q", 1) + b"w" + struct.pack("<I", len(shape) if rank is None else rank) + dims
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + info + struct.pack("<IQ", kind, offset)
    return head + bytes(-len(head) % 32) + bytes(64)


TEXT = struct.pack("<Q", 1) + b"k"


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), UnsupportedFeature, "GGUF model of version 4"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0) + bytes(99), LimitExceeded, "1,099,511,627,776 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 63) + bytes(99), LimitExceeded, "entries of metadata, and has 99"),
        (one_entry(struct.pack("<Q", 1 << 62) + bytes(9)), CorruptFile, "truncated"),
        (one_entry(TEXT + struct.pack("<I", 13) + bytes(8)), CorruptFile, "the unknown type 13"),
        (one_entry(TEXT + struct.pack("<IQ", STRING, 1 << 63)), CorruptFile, "truncated"),
        (one_entry(TEXT + struct.pack("<IIQ", ARRAY, UINT64, 1 << 61)), CorruptFile, "truncated"),
        (one_entry(TEXT + struct.pack("<IIQ", ARRAY, STRING, 1 << 61)), LimitExceeded, "strings in arrays"),
        (one_entry(TEXT + struct.pack("<IIQ", ARRAY, STRING, 1 << 20)), CorruptFile, "truncated"),
        (one_entry(TEXT + struct.pack("<IIQ", ARRAY, ARRAY, 1 << 20)), CorruptFile, "an array of the unknown type 9"),
        (one_entry(TEXT + struct.pack("<IIQ", ARRAY, ARRAY, 1) + bytes(20)), CorruptFile, "the unknown type 9"),
        (one_tensor((4,), 99), UnsupportedFeature, "'w' is of ggml's type 99"),
        (one_tensor((4,), Q4_0), CorruptFile, r"'w' has rows of \(4,\) elements, but Q4_0 comes in blocks of 32"),
        (one_tensor((1, 1, 1, 1, 1), F32), CorruptFile, "of 5 dimensions"),
        (one_tensor((), F32, rank=1 << 31), CorruptFile, "of 2,147,483,648 dimensions"),
        (one_tensor((1 << 62, 1 << 62), F32), CorruptFile, "more elements than 63 bits"),
        (one_tensor((17,), F32), CorruptFile, r"holds 128 of 132 bytes: truncated; 0 of 1 tensors are whole"),
        (one_tensor((1,), F32, offset=(1 << 64) - 1), CorruptFile, "truncated"),
    ],
)
def test_a_header_that_lies(data: bytes, error: type[CkptError], message: str) -> None:
    with pytest.raises(error, match=message):
        open_checkpoint(data)


def test_names_that_occur_twice() -> None:
    writer = Writer()
    writer.add("a", UINT32, 1)
    writer.add("a", UINT32, 2)
    with pytest.raises(CorruptFile, match="the key 'a' twice"):
        open_checkpoint(writer.bytes())
    writer = Writer()
    writer.add_tensor("w", (1,), F32, floats(1))
    writer.add_tensor("w", (1,), F32, floats(1))
    with pytest.raises(CorruptFile, match="two tensors of the name 'w'"):
        open_checkpoint(writer.bytes())


@pytest.mark.parametrize("alignment", [0, 3])
def test_an_alignment_that_is_none(alignment: int) -> None:
    writer = Writer()
    writer.add("general.alignment", UINT32, alignment)
    with pytest.raises(CorruptFile, match="no power of two"):
        open_checkpoint(writer.bytes())


def test_tensors_out_of_place_are_reported() -> None:
    writer = Writer()
    writer.add_tensor("a", (1,), F32, floats(1))
    writer.add_tensor("b", (1,), F32, floats(1), offset=0)
    (anomaly,) = open_checkpoint(writer.bytes()).anomalies
    assert (anomaly.where, anomaly.what) == ("b", "it begins at byte 0 of the data, not at 32")


@pytest.mark.parametrize("version", [1, 3])
def test_cut_off_anywhere(version: int) -> None:
    writer = Writer(version)
    writer.add("general.name", STRING, "x")
    writer.add_array("a", INT32, [1, 2])
    writer.add_tensor("w", (1, 32), Q4_0, bytes(18))
    data = writer.bytes()[:-14]  # what pads the last tensor may be missing
    assert list(tensors(data)) == ["w"]
    assert assert_only_ckpt_errors(data) == 0


def test_damaged_anywhere() -> None:
    assert assert_withstands_damage(example(), step=3) > 0
    assert isinstance(open_checkpoint(io.BytesIO(example()).getvalue()), Checkpoint)
