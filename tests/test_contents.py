"""The bytes of tensors are torch's, whatever strides, blocks, byte order and sign bits they come in."""

from __future__ import annotations

import io
import math
import os
import struct
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools import TensorInfo, contents, open_checkpoint
from ckpt_tools.checkpoint import Storage
from ckpt_tools.contents import chunks, read_bytes, scalar, to_numpy
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import CorruptFile, LimitExceeded, UnsupportedFeature
from ckpt_tools.sources import FileSource, MemorySource

torch = pytest.importorskip("torch")
DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "int64", "uint16", "bool", "complex64", "float8_e5m2")


def described(tensor: Any) -> TensorInfo:
    buffer = io.BytesIO()
    torch.save([tensor], buffer)
    ((_, found),) = open_checkpoint(buffer.getvalue()).loose
    return found


def dense(tensor: Any) -> bytes:
    """The elements in row-major order, as torch lays them out."""
    fresh = torch.empty(tensor.numel(), dtype=tensor.dtype)
    fresh.view(tensor.shape).copy_(tensor)
    return bytes(fresh.view(torch.uint8).numpy())


@st.composite
def strided(draw: st.DrawFn) -> Any:
    """A tensor anywhere in a storage, with any strides, 0 and overlapping ones among them."""
    dtype = getattr(torch, draw(st.sampled_from(DTYPES)))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    stride = [draw(st.integers(0, 7)) for _ in shape]
    offset = draw(st.integers(0, 5))
    reach = offset + 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True) if size)
    seed = draw(st.integers(0, 1000))
    raw = torch.randint(0, 2, (max(reach, offset) * 16,), generator=torch.Generator().manual_seed(seed))
    return raw.to(torch.uint8).mul(37 if dtype is not torch.bool else 1).view(dtype).as_strided(shape, stride, offset)


@settings(max_examples=200)
@given(tensor=strided(), size=st.sampled_from([1, 7, 16, 64, 1 << 20]))
def test_any_strides_in_blocks_of_any_size(tensor: Any, size: int) -> None:
    found = described(tensor)
    pieces = list(chunks(found, size))
    assert b"".join(pieces) == dense(tensor)
    itemsize = tensor.element_size()
    assert all(len(piece) <= max(size, itemsize) for piece in pieces)


@settings(max_examples=200)
@given(tensor=strided())
def test_what_a_description_derives(tensor: Any) -> None:
    found = described(tensor)
    assert found.numel == tensor.numel()
    assert found.nbytes == tensor.numel() * tensor.element_size()
    assert found.contiguous == tensor.is_contiguous()
    touched = {
        tensor.storage_offset() + sum(i * s for i, s in zip(index, tensor.stride(), strict=True))
        for index in torch.ones(tensor.shape).nonzero().tolist()
    }
    low, high = found.extent
    assert (low, high) == ((min(touched), max(touched) + 1) if touched else (tensor.storage_offset(),) * 2)


class Watched(FileSource):
    """A file, and how much of it was read at a time; *here_and_there* is whether it can be."""

    def __init__(self, path: Path, here_and_there: bool) -> None:
        super().__init__(path)
        self.here_and_there = here_and_there
        self.read_at_once: list[int] = []

    def peek(self, offset: int, count: int) -> bytes:
        self.read_at_once.append(count)
        return super().peek(offset, count)

    def locate(self, offset: int) -> tuple[str, int] | None:
        return super().locate(offset) if self.here_and_there else None


@settings(max_examples=300)
@given(
    tensor=strided(),
    size=st.sampled_from([1, 64, 1 << 20]),
    gather=st.sampled_from([16, 100, 1 << 20]),
    window=st.sampled_from([1, 40, 200]),
    gap=st.sampled_from([0, 9, 1 << 20]),
    here_and_there=st.booleans(),
)
def test_any_strides_far_apart(
    tensor: Any, size: int, gather: int, window: int, gap: int, here_and_there: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        for name, value in (("GATHER", gather), ("WINDOW", window), ("GAP", gap)):
            patch.setattr(contents, f"{name}_BYTES", value)
        raw = tensor.untyped_storage()
        path = Path(folder, "raw")
        path.write_bytes(b"before" + bytes(torch.tensor(raw, dtype=torch.uint8, device="cpu").numpy()))
        source = Watched(path, here_and_there)
        found = replace(described(tensor), storage=Storage(source, 6, raw.nbytes(), None, "cpu", "0"))
        pieces = list(chunks(found, size))
        assert b"".join(pieces) == dense(tensor)
        itemsize = tensor.element_size()
        assert all(len(piece) <= max(size, itemsize) for piece in pieces)
        if here_and_there and not tensor.is_contiguous():
            assert max(source.read_at_once) <= max(window, itemsize)
        source.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x.view(64, 256, 2048).permute(2, 0, 1),
        lambda x: x[:, ::2],
        lambda x: x.view(2, -1).t(),
        lambda x: x.t()[::512],
    ],
    ids=["transposed", "channels last", "every other", "two long rows", "few columns"],
)
def test_memory_is_bounded_whatever_the_strides(tmp_path: Path, view: Any) -> None:
    whole = torch.zeros(8192, 4096)
    torch.save([view(whole)], tmp_path / "x.pt")
    program = [sys.executable, "-c", READ, str(tmp_path / "x.pt")]
    told = subprocess.run(program, check=True, capture_output=True, text=True)
    before, after = map(int, told.stdout.split())
    assert after - before < 24 << 10  # kB; the file has 131,072


READ = """
import sys
import numpy
from ckpt_tools import chunks, open_checkpoint

def peak():
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))

((_, tensor),) = open_checkpoint(sys.argv[1]).loose
before = peak()
assert sum(map(len, chunks(tensor))) == tensor.nbytes
print(before, peak())
"""


@pytest.mark.parametrize("through", ["zip", "deflated"])
def test_a_source_that_is_cut_meanwhile_is_an_error(tmp_path: Path, through: str) -> None:
    path = tmp_path / "x.npz"
    array = numpy.arange(6_000_000.0).reshape(2000, 3000).T
    (numpy.savez if through == "zip" else numpy.savez_compressed)(path, x=array)
    (tensor,) = open_checkpoint(path).state_dicts[0].tensors
    assert not tensor.contiguous
    found = chunks(tensor)
    first = next(found)
    assert first == array.tobytes()[: len(first)]
    os.truncate(path, path.stat().st_size // 2)
    if through == "zip":
        with pytest.raises(CorruptFile, match="came up short"):
            list(found)
    else:  # which was read to its end at once
        assert first + b"".join(found) == array.tobytes()


def complexes() -> list[Any]:
    base = torch.complex(torch.arange(1.0, 7), -torch.arange(11.0, 17)).reshape(2, 3)
    both = [
        base,
        base.conj(),
        base._neg_view(),
        base.conj()._neg_view(),
        base.conj().t(),
        base.conj().imag,
        base.conj().real,
    ]
    return [*both, base.to(torch.complex128).conj(), base.conj().imag[:, 1:], base[1].conj()]


@pytest.mark.parametrize("number", range(len(complexes())))
def test_sign_bits(number: int) -> None:
    tensor = complexes()[number]
    assert read_bytes(described(tensor)) == dense(tensor)
    assert b"".join(chunks(described(tensor), 8)) == dense(tensor)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "float16", "bfloat16", "float64"])
def test_negated_views(dtype: str) -> None:
    tensor = torch.tensor([0, 1, 100, 127]).to(getattr(torch, dtype))._neg_view()
    assert read_bytes(described(tensor)) == dense(tensor)


def over(data: bytes, name: str, shape: tuple[int, ...], stride: tuple[int, ...] = (), **rest: Any) -> TensorInfo:
    """A tensor over *data* as a storage of its own."""
    dtype = BY_NAME[name]
    typed = None if rest.pop("untyped", False) else dtype
    source = Storage(MemorySource(data, "x"), 0, len(data), typed, "cpu", "0", rest.pop("byteorder", "little"))
    dense_stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return TensorInfo("t", dtype, shape, stride or dense_stride, rest.pop("offset", 0), source, **rest)


@pytest.mark.parametrize(
    ("name", "code", "values"),
    [
        ("float32", "f", (1.5, -2.0)),
        ("float64", "d", (1.5, -2.0)),
        ("int16", "h", (1, -2)),
        ("int64", "q", (1, -2)),
        ("int8", "b", (1, -2)),
        ("bool", "?", (True, False)),
    ],
)
def test_big_endian_storages(name: str, code: str, values: tuple[Any, ...]) -> None:
    big = struct.pack(f">2{code}", *values)
    little = struct.pack(f"<2{code}", *values)
    assert read_bytes(over(big, name, (2,), byteorder="big")) == little
    # torch swaps by the storage's type, and leaves untyped ones as they are
    assert read_bytes(over(big, name, (2,), byteorder="big", untyped=True)) == big
    assert scalar(over(big, name, (1,), byteorder="big")) == values[0]
    assert scalar(over(little, name, (), byteorder="little", offset=1)) == values[1]


def test_big_endian_complex_numbers_are_swapped_by_halves() -> None:
    big, little = struct.pack(">4f", 1, 2, 3, 4), struct.pack("<4f", 1, 2, 3, 4)
    assert read_bytes(over(big, "complex64", (2,), byteorder="big")) == little
    conjugate = over(big, "complex64", (2,), byteorder="big", details={"conj": True})
    assert read_bytes(conjugate) == struct.pack("<4f", 1, -2, 3, -4)
    transposed = over(big, "complex64", (2, 1), (1, 2), byteorder="big")
    assert read_bytes(transposed) == little


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int8", "int64", "uint16", "bool", "uint64"]
)
def test_scalars(dtype: str) -> None:
    for value in (1, 0, 3 if dtype != "bool" else 1):
        tensor = torch.tensor([9, value, 9]).to(getattr(torch, dtype))[1]
        assert scalar(described(tensor)) == tensor.item()
        assert type(scalar(described(tensor))) is type(tensor.item())


@pytest.mark.parametrize("tensor", [torch.zeros(2), torch.zeros(0), torch.zeros((), dtype=torch.complex64)])
def test_what_is_no_scalar(tensor: Any) -> None:
    assert scalar(described(tensor)) is None
    assert scalar(described(torch.zeros((), device="meta"))) is None
    assert scalar(described(torch.ones(1, dtype=torch.int8)._neg_view())) is None


def test_to_numpy() -> None:
    for dtype in ("float32", "int64", "bool", "bfloat16", "float8_e4m3fn", "uint16", "complex64"):
        tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(getattr(torch, dtype)).t()
        array = to_numpy(described(tensor))
        assert array.shape == (3, 2)
        assert array.tobytes() == dense(tensor)
        assert array.flags.writeable
    with pytest.raises(UnsupportedFeature, match="numpy has no type for complex32"):
        to_numpy(over(bytes(4), "complex32", (1,)))


def test_more_dimensions_than_numpy_has() -> None:
    tensor = torch.arange(6.0).reshape(2, *[1] * 60, 3).transpose(0, -1)
    assert tensor.dim() == 62
    assert read_bytes(described(tensor)) == dense(tensor)


def test_an_element_repeated_without_end() -> None:
    huge = over(bytes(4), "float32", (1 << 20, 1 << 20), (0, 0))
    with pytest.raises(LimitExceeded, match="repeats 4 bytes to 4,398,046,511,104"):
        read_bytes(huge)
    first = next(chunks(huge, 64))
    assert first == bytes(64)
    small = over(b"abcd", "float32", (1000,), (0,))
    assert read_bytes(small) == b"abcd" * 1000


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (lambda: described(torch.zeros(2, device="meta")), "has no bytes of its own: it is meta"),
        (lambda: described(torch.eye(2).to_sparse()), "has no bytes of its own: it is sparse_coo"),
        (lambda: over(bytes(4), "quint4x2", (2, 2), (1, 2)), "packs several quint4x2 in a byte and is not dense"),
        (lambda: over(bytes(4), "quint4x2", (2,), offset=1), "packs several quint4x2 in a byte and is not dense"),
        (
            lambda: TensorInfo(
                *("t", BY_NAME["int8"], (1,), (1,), 0),
                Storage(MemorySource(b"", "x"), 0, 1, None, "cpu", "0", missing="it was never written"),
            ),
            "the bytes of t are missing: it was never written",
        ),
    ],
)
def test_tensors_without_bytes(tensor: Any, problem: str) -> None:
    with pytest.raises(UnsupportedFeature, match=problem):
        read_bytes(tensor())


def test_packed_types() -> None:
    assert read_bytes(over(b"\x21\x43\x05", "quint4x2", (5,))) == b"\x21\x43\x05"
    assert read_bytes(over(b"\x21\x43", "quint2x4", (8,))) == b"\x21\x43"
