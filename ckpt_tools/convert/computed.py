"""Tensors whose bytes stand in no file but are computed from those of others, a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

from ckpt_tools.checkpoint import Storage, TensorInfo
from ckpt_tools.convert.sharing import dense_stride
from ckpt_tools.dtypes import DType
from ckpt_tools.sources import CHUNK, Source


class Computed(Source):
    """The *size* bytes that each call of *produce* hands out in order."""

    __slots__ = ("_produce",)

    def __init__(self, name: str, size: int, produce: Callable[[], Iterator[bytes]]) -> None:
        super().__init__(name, size)
        self._produce = produce

    def chunks(self, offset: int = 0, count: int | None = None, size: int = CHUNK) -> Iterator[bytes]:
        end = self.size if count is None else offset + count
        start = 0
        for chunk in self._produce():
            piece = chunk[max(offset - start, 0) : end - start]
            if piece:
                yield piece
            start += len(chunk)
            if start >= end:
                return

    def peek(self, offset: int, count: int) -> bytes:
        return b"".join(self.chunks(offset, count))


def computed(name: str, dtype: DType, shape: tuple[int, ...], produce: Callable[[], Iterator[bytes]]) -> TensorInfo:
    """A dense tensor, the bytes of which *produce* hands out each time it is called."""
    nbytes = prod(shape) * dtype.itemsize
    storage = Storage(Computed(name, nbytes, produce), 0, nbytes, dtype, "cpu", name)
    return TensorInfo(name, dtype, shape, dense_stride(shape), 0, storage)
