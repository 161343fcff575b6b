"""Tensors of files that know nothing of strides: dense, row-major, and sometimes packed as torch cannot say."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ckpt_tools.checkpoint import Storage, TensorInfo
from ckpt_tools.dtypes import UINT8, DType


def dense(
    name: str,
    dtype: DType,
    shape: tuple[int, ...],
    storage: Storage | None,
    details: Mapping[str, object] | None = None,
) -> TensorInfo:
    """A tensor that takes all of *storage*, row-major."""
    stride = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        stride[axis] = stride[axis + 1] * max(shape[axis + 1], 1)
    return TensorInfo(name, dtype, shape, tuple(stride), 0, storage, details=details or {})


def packed(name: str, kind: str, shape: tuple[int, ...], storage: Storage, details: Mapping[str, object]) -> TensorInfo:
    """A tensor of a type that torch does not have, several elements to a block of bytes.

    Its *shape* counts elements, so that parameters are counted right; its dtype is named *kind* and, like
    torch's own packed types, one byte in size. It has no storage itself: the bytes are its part ``blocks``, a
    tensor of uint8, one row for each row of elements.
    """
    rows = prod(shape[:-1])
    width = storage.nbytes // rows if rows else 0
    blocks = (*shape[:-1], width) if width * rows == storage.nbytes else (storage.nbytes,)
    part = dense("blocks", UINT8, blocks, storage)
    return TensorInfo(
        name,
        DType(kind, 1, "quantized"),
        shape,
        dense(name, UINT8, shape, None).stride,
        parts=(("blocks", part),),
        details=details,
    )
