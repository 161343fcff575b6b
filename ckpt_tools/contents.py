"""The bytes of tensors, dense, row-major and little-endian, whatever way the file keeps them.

This is where numpy is imported, and only when bytes are asked for that do not already lie so in the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

from ckpt_tools.checkpoint import Storage, TensorInfo
from ckpt_tools.dtypes import BY_NAME, DType
from ckpt_tools.errors import CorruptFile, LimitExceeded, UnsupportedFeature
from ckpt_tools.sources import CHUNK, MemorySource, Source

if TYPE_CHECKING:
    import numpy

GATHER_BYTES = 16 << 20
"""The most that is gathered at once of a tensor whose elements lie scattered: what lies near is read for each again."""

WINDOW_BYTES = 1 << 20
"""The most that is read at once for that."""

GAP_BYTES = 16 << 10
"""What lies between two runs of elements is read along up to here: that takes no longer than to ask for each run."""

HELD_BYTES = 256 << 20
"""The most that is held of what cannot be read here and there without beginning anew, such as a deflated file."""

EXPANDED_BYTES = 1 << 30
"""The longest tensor that `read_bytes` makes of a shorter storage; more is allowed for several."""

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


def identity(tensor: TensorInfo) -> object:
    """Equal for tensors that are the same view of the same memory; their elements are the same, in the same order."""
    # the stride of a dimension of size 1 means nothing; tensors that are not strided have none
    stride = tuple(0 if size == 1 else step for size, step in zip(tensor.shape, tensor.stride, strict=False))
    # the storage itself, so that it lives as long as what is known of it
    return (tensor.storage, tensor.dtype, tensor.storage_offset, tensor.shape, stride, *resolved_bits(tensor))


def resolved_bits(tensor: TensorInfo) -> tuple[bool, bool]:
    """Whether the tensor's elements are the conjugates, and the negatives, of what is in its storage."""
    return bool(tensor.details.get("conj")), bool(tensor.details.get("neg"))


def check_expansion(tensors: Iterable[TensorInfo], *, shared: bool = True, remedy: str | None = None) -> None:
    """Refuse tensors that are small in the file and, by expansion and by views, large without measure.

    Same views count once where they are *shared*. Raises `LimitExceeded` from a gibibyte and eight times the
    storages on.
    """
    wanted = 0
    seen: set[object] = set()
    storages: dict[Storage, None] = {}
    pending = list(tensors)
    while pending:
        tensor = pending.pop()
        pending += [part for _, part in tensor.parts]
        if tensor.storage is None or tensor.storage.missing or (shared and identity(tensor) in seen):
            continue
        seen.add(identity(tensor))
        storages[tensor.storage] = None
        wanted += tensor.nbytes
    stored = sum(storage.nbytes for storage in storages)
    if wanted > EXPANDED_BYTES + 8 * stored:
        raise LimitExceeded(
            f"its {stored:,} bytes are repeated, by expanded tensors and views, to {wanted:,}",
            remedy=remedy,
        )


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
    if tensor.contiguous and not swap_width(tensor) and not any(resolved_bits(tensor)):
        start = storage.offset + tensor.storage_offset * itemsize
        yield from storage.source.chunks(start, tensor.nbytes, size)
        return
    step = max(size // itemsize, 1) * itemsize
    for gathered in _gathered(tensor, step):
        for start in range(0, len(gathered), step):
            yield _resolved(gathered[start : start + step], tensor)


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


def _gathered(tensor: TensorInfo, step: int) -> Iterator[numpy.ndarray[Any, Any]]:
    """The elements in row-major order, as the file has them, in flat arrays of bytes, each good until the next.

    An array has *step* bytes at most, or `GATHER_BYTES` where elements lie far apart: what lies near them is read anew
    for each.
    """
    import numpy

    storage = tensor.storage
    assert storage is not None
    itemsize = tensor.dtype.itemsize
    low, high = (storage.offset + element * itemsize for element in tensor.extent)
    source, shift = storage.source, storage.offset
    block_bytes = step
    if high - low > GATHER_BYTES:
        block_bytes = max(GATHER_BYTES, step)
        if high - low <= HELD_BYTES and source.locate(low) is None:
            source, shift = MemorySource(source.read(low, high - low), source.name), storage.offset - low
    room = numpy.empty(min(block_bytes, tensor.nbytes), numpy.uint8)
    for offset, shape, stride in _blocks(tensor, block_bytes // itemsize):
        # numpy has fewer dimensions than torch, of which those of size 1 can go
        axes = [(size, by * itemsize) for size, by in zip(shape, stride, strict=True) if size != 1]
        dense = room[: math.prod(shape) * itemsize]
        sizes = (*(size for size, _ in axes), itemsize)
        _fill(dense.reshape(sizes), source, shift + offset * itemsize, [by for _, by in axes])
        yield dense


def _fill(dense: numpy.ndarray[Any, Any], source: Source, start: int, steps: list[int]) -> None:
    """Fill *dense*, the last axis of which is an element's bytes, with those that lie at *start* and by *steps*.

    `WINDOW_BYTES` at most are held of what is read for it.
    """
    import numpy

    itemsize = dense.shape[-1]
    order = sorted(range(len(steps)), key=lambda axis: -steps[axis])
    pending = [(start, dense)]
    while pending:
        at, part = pending.pop()
        sizes = part.shape
        # what a run of the axes that lie close together spans, and the axes along which runs lie far apart
        span = itemsize + sum((sizes[axis] - 1) * steps[axis] for axis in order)
        far: list[int] = []
        for axis in order:
            rest = span - (sizes[axis] - 1) * steps[axis]
            if sizes[axis] > 1 and steps[axis] - rest <= GAP_BYTES:
                break
            far.append(axis)
            span = rest
        runs = math.prod(sizes[axis] for axis in far)
        if runs * span > max(WINDOW_BYTES, itemsize):
            cut = next(axis for axis in order if sizes[axis] > 1)
            if cut in far:
                some = WINDOW_BYTES * sizes[cut] // (runs * span)
            else:
                some = (WINDOW_BYTES - span + (sizes[cut] - 1) * steps[cut]) // steps[cut] + 1
            some = min(max(some, 1), sizes[cut] - 1)
            index: list[Any] = [slice(None)] * len(sizes)
            for first, last in ((some, sizes[cut]), (0, some)):
                index[cut] = slice(first, last)
                pending.append((at + first * steps[cut], part[tuple(index)]))
            continue
        laid = list(steps)
        by = runs * span
        for axis in far:
            by //= sizes[axis]
            laid[axis] = by
        if runs == 1:
            raw: bytes | bytearray = source.read(at, span)
        else:
            raw = bytearray(runs * span)
            for number, where in enumerate(product(*(range(sizes[axis]) for axis in far))):
                run = at + sum(i * steps[axis] for i, axis in zip(where, far, strict=True))
                raw[number * span : (number + 1) * span] = source.read(run, span)
        part[...] = numpy.lib.stride_tricks.as_strided(
            numpy.frombuffer(raw, numpy.uint8), sizes, (*laid, 1), writeable=False
        )


def _resolved(items: numpy.ndarray[Any, Any], tensor: TensorInfo) -> bytes:
    """*items*, bytes of whole elements, little-endian and with conj and neg resolved."""
    width = swap_width(tensor)
    if width:
        items = items.reshape(-1, width)[:, ::-1]
    if any(resolved_bits(tensor)):
        items = _flipped(items.flatten(), tensor)
    return items.tobytes()


def _flipped(dense: numpy.ndarray[Any, Any], tensor: TensorInfo) -> numpy.ndarray[Any, Any]:
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
