"""numpy arrays and scalars inside pickles, read without numpy.

An array is ``_reconstruct(ndarray, (0,), b'b')`` with the state ``(version, shape, dtype, fortran, bytes)``
set by BUILD, or ``_frombuffer(buffer, dtype, shape, order)`` in protocol 5; a dtype is
``dtype('f4', False, True)`` with the state ``(3, '<', …)`` (methods.c and descriptor.c in
numpy/_core/src/multiarray).
"""

from __future__ import annotations

import struct
from typing import Literal

from ckpt_tools.checkpoint import Storage, TensorInfo
from ckpt_tools.dtypes import BY_NAME, DType
from ckpt_tools.errors import CorruptFile
from ckpt_tools.pickles.values import Blob, Call, brief
from ckpt_tools.sources import MemorySource, Source

Order = Literal["little", "big"]

MAX_WRAPPING = 8
"""How many calls of bytes() and bytearray() around bytes are looked through."""
_CONTINUATIONS = bytes(range(0x80, 0xC0))
_BEGINNINGS = bytes(range(0x80)) + b"\xc2\xc3"

_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}
_SCALAR_CODES = {
    "float16": "e",
    "float32": "f",
    "float64": "d",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
    "bool": "?",
}


def parse_descr(descr: str) -> tuple[DType, Order] | None:
    """The dtype and byte order of numpy's short notation (``<f4``, ``|b1``, ``>i8``); None for any other."""
    order: Order = "little"
    if descr[:1] in "<>|=":
        order = "big" if descr[0] == ">" else "little"
        descr = descr[1:]
    if descr in ("b1", "?"):
        return BY_NAME["bool"], order
    kind, digits = descr[:1], descr[1:]
    if kind in _KINDS and digits in ("1", "2", "4", "8", "16"):
        dtype = BY_NAME.get(f"{_KINDS[kind]}{int(digits) * 8}")
        return (dtype, order) if dtype else None
    dtype = BY_NAME.get(descr)  # ml_dtypes: bfloat16, float8_e4m3fn
    return (dtype, order) if dtype else None


def dtype_of(value: object) -> tuple[DType, Order] | None:
    """The dtype that a pickled ``numpy.dtype`` names; None where torch has no such type."""
    if type(value) is not Call or not value.arguments:
        return None
    if value.target == "numpy.dtype":
        descr = value.arguments[0]
        if type(descr) is not str:
            return None
        state = value.state
        order = state[1] if type(state) is tuple and len(state) > 1 and type(state[1]) is str else ""
        return parse_descr((order if order in ("<", ">") else "") + descr)
    return None


def byte_source(value: object, stream: Source) -> Source | None:
    """The bytes that *value* holds, inline or left in *stream*, protocol 2's encoded text included."""
    for _ in range(MAX_WRAPPING):
        if type(value) is Call and value.target in ("builtins.bytearray", "builtins.bytes"):
            value = value.arguments[0] if value.arguments else b""
        else:
            break
    if isinstance(value, bytes):
        return MemorySource(value, stream.name)
    if type(value) is str:  # what Python 2 wrote as str, if all of it happens to be UTF-8
        return MemorySource(value.encode("utf-8", "surrogatepass"), stream.name)
    if type(value) is Blob and not value.text:
        return stream.slice(value.offset, value.size, stream.name)
    if type(value) is Call and value.target == "_codecs.encode" and value.arguments[1:] == ("latin1",):
        if isinstance(value.meaning, bytes):  # encoded already; many arrays may share one text
            return MemorySource(value.meaning, stream.name)
        text = value.arguments[0]
        if type(text) is Blob and text.text:
            return Latin1(stream.slice(text.offset, text.size, stream.name), text)
        if type(text) is str:
            try:
                return MemorySource(text.encode("latin-1"), stream.name)
            except UnicodeEncodeError:
                raise CorruptFile("an array's bytes hold a character beyond latin-1") from None
    return None


class Latin1(Source):
    """Bytes that protocol 2 wrote as text: each byte a character up to U+00FF, in UTF-8.

    The size is known only by reading, so it is counted once, in pieces.
    """

    __slots__ = ("_mark", "_text")

    def __init__(self, text: Source, blob: Blob) -> None:
        if blob.length < 0:
            # every character is one or two bytes; the second of two has its top bits 10
            blob.length = 0
            for chunk in text.chunks():
                begins = chunk.translate(None, _CONTINUATIONS)
                if begins.translate(None, _BEGINNINGS):
                    raise CorruptFile("an array's bytes hold a character beyond latin-1", path=text.name)
                blob.length += len(begins)
        super().__init__(text.name, blob.length)
        self._text = text
        self._mark = (0, 0)  # decoded offset, encoded offset: where the last read ended

    def peek(self, offset: int, count: int) -> bytes:
        count = max(0, min(count, self.size - offset))
        decoded, encoded = self._mark if self._mark[0] <= offset else (0, 0)
        parts: list[bytes] = []
        while decoded < offset + count:
            raw = self._text.peek(encoded, 1 << 20)
            if raw and raw[-1] & 0xC0 == 0xC0:  # a character cut in two
                raw = raw[:-1]
            if not raw:
                break
            try:
                data = raw.decode("utf-8").encode("latin-1")
            except UnicodeError:
                raise CorruptFile("an array's bytes are no latin-1 text", path=self.name) from None
            self._mark = (decoded, encoded)
            part = data[max(0, offset - decoded) : offset + count - decoded]
            parts.append(part)
            decoded += len(data)
            encoded += len(raw)
        return b"".join(parts)


def array(call: Call, stream: Source) -> TensorInfo | None:
    """The array that *call* rebuilds, described as a tensor of subclass numpy.ndarray; None for object arrays
    and dtypes torch does not have.
    """
    if call.target.endswith("_frombuffer"):
        if len(call.arguments) < 4:
            return None
        data, dtype, shape, order = call.arguments[:4]
        fortran = order == "F"
    else:
        state = call.state
        if type(state) is not tuple or len(state) != 5:
            return None
        _, shape, dtype, fortran, data = state
    found = dtype_of(dtype)
    source = byte_source(data, stream)
    if found is None or source is None or not isinstance(shape, tuple):
        return None
    return tensor_over(source, found, shape, bool(fortran))


def tensor_over(
    source: Source, dtype: tuple[DType, Order], shape: tuple[object, ...], fortran: bool, key: str = ""
) -> TensorInfo:
    """A dense array of *shape* over all of *source*, described as a tensor.

    Raises `CorruptFile` where the bytes are fewer than the shape takes.
    """
    element, order = dtype
    sizes: list[int] = []
    for size in shape:
        if type(size) is not int or not 0 <= size < 1 << 63:
            raise CorruptFile(f"an array has the impossible shape {brief(shape)}")
        sizes.append(size)
    stride = [1] * len(sizes)
    axes = range(len(sizes)) if fortran else range(len(sizes) - 1, -1, -1)
    step = 1
    for axis in axes:
        stride[axis] = step
        step *= max(sizes[axis], 1)
    storage = Storage(source, 0, source.size, element, "cpu", key, order)
    info = TensorInfo("", element, tuple(sizes), tuple(stride), 0, storage, subclass="numpy.ndarray")
    if info.nbytes > source.size:
        raise CorruptFile(f"an array of shape {info.shape} takes {info.nbytes:,} bytes, but {source.size:,} are there")
    return info


def scalar(call: Call) -> object:
    """The Python number that ``numpy.core.multiarray.scalar(dtype, bytes)`` stands for, or None."""
    if len(call.arguments) != 2:
        return None
    found = dtype_of(call.arguments[0])
    source = byte_source(call.arguments[1], MemorySource(b"", ""))
    if found is None or source is None:
        return None
    dtype, order = found
    code = _SCALAR_CODES.get(dtype.name)
    if code is None or source.size != dtype.itemsize:
        return None
    value: object = struct.unpack((">" if order == "big" else "<") + code, source.read(0, source.size))[0]
    return value
