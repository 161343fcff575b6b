"""The bytes of tensors, dense, row-major and little-endian, whatever way the file keeps them.

This is where numpy is imported, and only when bytes are asked for that do not already lie so in the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ckpt_tools.checkpoint import Storage, TensorInfo
from ckpt_tools.dtypes import BY_NAME, DType
from ckpt_tools.errors import CorruptFile, LimitExceeded, UnsupportedFeature
from ckpt_tools.sources import CHUNK, MemorySource

if TYPE_CHECKING:
    import numpy

GATHER_BYTES = 16 << 20
"""The most storage bytes held at once to gather a tensor whose elements lie scattered."""

EXPANDED_BYTES = 1 << 30
"""The longest tensor that `read_bytes` makes of a shorter storage."""

_FORMATS = {
    "float64": "d",
    "float32": "f",
    "float16": "e",
    "int64": "q",
    "int32": "i",
    "int16": "h",
    "int8": "b",
    "uint64": "Q",
    "uint32": "I",
    "uint16": "H",
    "uint8": "B",
    "bool": "?",
}


def scalar(tensor: TensorInfo) -> bool | int | float | None:
    """The value of a tensor of one element, read without numpy; None where its bytes cannot be read so."""
    storage = tensor.storage
    if storage is None or storage.missing or tensor.numel != 1 or tensor.details:
        return None
    order = ">" if storage.byteorder == "big" and storage.dtype is not None else "<"
    raw = storage.read(tensor.storage_offset * tensor.dtype.itemsize, tensor.dtype.itemsize)
    if tensor.dtype.name == "bfloat16":  # the upper half of a float32
        raw, code = (raw + b"\0\0" if order == ">" else b"\0\0" + raw), "f"
    elif tensor.dtype.name in _FORMATS:
        code = _FORMATS[tensor.dtype.name]
    else:
        return None
    value: bool | int | float = struct.unpack(order + code, raw)[0]
    return value


NUMBERS = ("scale", "zero_point", "axis", "size")
"""The labels of parts that files keep as numbers."""


def parts_of(tensor: TensorInfo) -> list[tuple[str, TensorInfo]]:
    """What *tensor* is made of beside its own elements: its parts, and as tensors the numbers that belong to it.

    These are the scale (float64) and zero point (int64) of one quantized as a whole, the axis (int64) of one quantized
    per channel, and the size (int64) of a sparse one. Raises `CorruptFile` where they are no numbers.
    """
    found = dict(tensor.parts)
    if tensor.dtype.kind == "quantized":
        for label, code in (("scale", "d"), ("zero_point", "q"), ("axis", "q")):
            if label in tensor.details and label not in found:
                found[label] = _number(tensor, label, BY_NAME["float64" if code == "d" else "int64"], code)
    if tensor.layout.startswith("sparse") and "size" not in found:
        data = struct.pack(f"<{len(tensor.shape)}q", *tensor.shape)
        found["size"] = _constant("size", BY_NAME["int64"], (len(tensor.shape),), data)
    return list(found.items())


def _number(tensor: TensorInfo, label: str, dtype: DType, code: str) -> TensorInfo:
    value = tensor.details[label]
    try:
        if isinstance(value, int | float):
            return _constant(label, dtype, (), struct.pack(f"<{code}", value))
    except (struct.error, OverflowError):
        pass
    raise CorruptFile(f"{tensor.name or 'a tensor'} has a {label} that is no such number")


def _constant(name: str, dtype: DType, shape: tuple[int, ...], data: bytes) -> TensorInfo:
    storage = Storage(MemorySource(data, name), 0, len(data), dtype, "cpu", name)
    return TensorInfo(name, dtype, shape, (1,) * len(shape), 0, storage)


def chunks(tensor: TensorInfo, size: int = CHUNK) -> Iterator[bytes]:
    """The elements' bytes in row-major order, little-endian, conj and neg resolved, about *size* at a time.

    Raises `UnsupportedFeature` for tensors without bytes of their own: meta, sparse, nested, wrappers.
    """
    storage = tensor.storage
    if storage is None or tensor.layout != "strided":
        raise UnsupportedFeature(
            f"{tensor.name or 'the tensor'} has no bytes of its own: it is "
            f"{tensor.subclass or (tensor.device if tensor.device == 'meta' else tensor.layout)}"
        )
    if storage.missing:
        raise UnsupportedFeature(f"the bytes of {tensor.name or 'the tensor'} are missing: {storage.missing}")
    if tensor.numel == 0:
        return
    itemsize = tensor.dtype.itemsize
    packed = tensor.nbytes != tensor.numel * itemsize
    if packed and (tensor.storage_offset or not tensor.contiguous):
        raise UnsupportedFeature(f"{tensor.name} packs several {tensor.dtype.name} in a byte and is not dense")
    if tensor.contiguous and not swap_width(tensor) and not _bits(tensor):
        start = storage.offset + tensor.storage_offset * itemsize
        yield from storage.source.chunks(start, tensor.nbytes, size)
    else:
        for block in _blocks(tensor, max(size // itemsize, 1)):
            yield _gather(tensor, block)


def read_bytes(tensor: TensorInfo) -> bytes:
    """All of `chunks` in one piece.

    Raises `LimitExceeded` where an expanded tensor would take more than its storage and more than a gibibyte.
    """
    if tensor.storage is not None and tensor.nbytes > max(tensor.storage.nbytes, EXPANDED_BYTES):
        sizes = f"{tensor.storage.nbytes:,} bytes to {tensor.nbytes:,}"
        raise LimitExceeded(f"{tensor.name or 'the tensor'} repeats {sizes}, which is too many to hold")
    return b"".join(chunks(tensor))


def to_numpy(tensor: TensorInfo) -> numpy.ndarray[Any, Any]:
    """The tensor as a numpy array of its own shape; ml_dtypes stands in where numpy lacks the type.

    Raises `UnsupportedFeature` where there is no such type (complex32) or no bytes.
    """
    import numpy

    return numpy.frombuffer(bytearray(read_bytes(tensor)), dtype=numpy_dtype(tensor.dtype)).reshape(tensor.shape)


def numpy_dtype(dtype: DType) -> numpy.dtype[Any]:
    """The numpy type that reads elements of *dtype*, little-endian."""
    import numpy

    name = dtype.numpy
    if name is None:
        raise UnsupportedFeature(f"numpy has no type for {dtype.name}")
    if name.startswith("ml_dtypes."):
        import ml_dtypes

        made: numpy.dtype[Any] = numpy.dtype(getattr(ml_dtypes, name.removeprefix("ml_dtypes.")))
        return made
    return numpy.dtype(name)


def swap_width(tensor: TensorInfo) -> int:
    """The width in bytes of what must be byte-swapped to be little-endian; 0 where nothing must.

    torch swaps by the storage's type, so it leaves untyped storages as they are
    (torch/serialization.py, ``load_tensor``).
    """
    storage = tensor.storage
    if storage is None or storage.byteorder == "little" or storage.dtype is None:
        return 0
    width = storage.dtype.itemsize // (2 if storage.dtype.kind == "complex" else 1)
    return width if width > 1 else 0


def _bits(tensor: TensorInfo) -> bool:
    return bool(tensor.details.get("conj") or tensor.details.get("neg"))


def _blocks(tensor: TensorInfo, limit: int) -> Iterator[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """The tensor cut along its leading dimensions, as (offset, shape, stride) of *limit* elements at most."""
    pending = [(tensor.storage_offset, tensor.shape, tensor.stride)]
    while pending:
        offset, shape, stride = pending.pop()
        count = 1
        for size in shape:
            count *= size
        if count <= limit or not shape:
            yield offset, shape, stride
            continue
        inner = count // shape[0]
        step = max(limit // inner, 1)
        if inner > limit:
            # one index of the first dimension at a time; kept lazy by cutting the rest off
            if shape[0] > 1:
                pending.append((offset + stride[0], (shape[0] - 1, *shape[1:]), stride))
            pending.append((offset, shape[1:], stride[1:]))
            continue
        if shape[0] > step:
            pending.append((offset + step * stride[0], (shape[0] - step, *shape[1:]), stride))
        yield offset, (min(step, shape[0]), *shape[1:]), stride


def _gather(tensor: TensorInfo, block: tuple[int, tuple[int, ...], tuple[int, ...]]) -> bytes:
    """The dense bytes of one block."""
    import numpy

    storage = tensor.storage
    assert storage is not None
    offset, shape, stride = block
    itemsize = tensor.dtype.itemsize
    span = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    located = storage.source.locate(storage.offset)
    if span * itemsize > GATHER_BYTES and located is not None:
        # far apart: let the page cache, not us, hold what lies between
        path, start = located
        raw: Any = numpy.memmap(path, numpy.uint8, "r", start + offset * itemsize, (span * itemsize,))
    else:
        raw = numpy.frombuffer(storage.read(offset * itemsize, span * itemsize), numpy.uint8)
    # numpy has fewer dimensions than torch, of which those of size 1 can go
    axes = [(size, step * itemsize) for size, step in zip(shape, stride, strict=True) if size != 1]
    items = numpy.lib.stride_tricks.as_strided(
        raw, (*(size for size, _ in axes), itemsize), (*(step for _, step in axes), 1), writeable=False
    )
    dense = numpy.ascontiguousarray(items)
    width = swap_width(tensor)
    if width:
        dense = numpy.ascontiguousarray(dense.reshape(-1, width)[:, ::-1])
    if _bits(tensor):
        dense = _resolve(dense.copy(), tensor)  # it may still be the read-only bytes themselves
    return dense.tobytes()


def _resolve(dense: numpy.ndarray[Any, Any], tensor: TensorInfo) -> numpy.ndarray[Any, Any]:
    """Flip the signs that a conj or neg bit stands for."""
    half = tensor.dtype.itemsize // 2
    negative = bool(tensor.details.get("neg"))
    if tensor.dtype.kind != "complex":  # which never has the conj bit
        if negative and tensor.dtype.kind in ("int", "uint"):
            import numpy

            numbers = dense.reshape(-1).view(f"<u{tensor.dtype.itemsize}")
            numpy.negative(numbers, out=numbers)
        elif negative:
            dense.reshape(-1, tensor.dtype.itemsize)[:, -1] ^= 0x80
        return dense
    pairs = dense.reshape(-1, 2, half)
    flip_real, flip_imaginary = negative, negative != bool(tensor.details.get("conj"))
    # the sign is the top bit of the last byte of a little-endian float
    if flip_real:
        pairs[:, 0, -1] ^= 0x80
    if flip_imaginary:
        pairs[:, 1, -1] ^= 0x80
    return pairs
