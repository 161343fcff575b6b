"""The bytes of tensors are torch's, whatever strides, blocks, byte order and sign bits they come in."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools import TensorInfo, contents, open_checkpoint
from ckpt_tools.checkpoint import Storage
from ckpt_tools.contents import chunks, read_bytes, scalar, to_numpy
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import LimitExceeded, UnsupportedFeature
from ckpt_tools.sources import MemorySource

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


def test_far_apart_elements_of_a_file_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "GATHER_BYTES", 16)
    tensor = torch.arange(10_000.0).reshape(100, 100).t()
    torch.save([tensor], tmp_path / "x.pt")
    ((_, found),) = open_checkpoint(tmp_path / "x.pt").loose
    assert read_bytes(found) == dense(tensor)
    assert b"".join(chunks(found, 64)) == dense(tensor)


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
