"""From a description to a torch tensor, without torch.load."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ckpt_tools.checkpoint import Storage, TensorInfo
from ckpt_tools.contents import chunks, swap_width
from ckpt_tools.errors import UnsupportedFeature


class Tensors:
    """Makes the torch tensors of a file; those that share a storage in the file share memory.

    Storages that lie in a local file as they are get mapped, privately: pages are read when they are touched,
    and writing to a tensor never reaches the file. The rest is read into memory. Everything is on the CPU.
    """

    def __init__(self) -> None:
        self._files: dict[str, torch.UntypedStorage] = {}
        self._storages: dict[Storage, torch.UntypedStorage] = {}  # a Storage is equal to itself alone

    def make(self, tensor: TensorInfo) -> Tensor:
        """*tensor* with its shape, strides and bits; what is not as the machine has it becomes a dense copy.

        Raises `UnsupportedFeature` where no bytes stand behind it, or this torch has no such type.
        """
        dtype = torch_dtype(tensor)
        made = self._view(tensor, dtype)
        if made is None:
            made = _dense(tensor, dtype)
        cast = tensor.details.get("cast_to")
        return made.to(getattr(torch, cast)) if isinstance(cast, str) else made

    def _view(self, tensor: TensorInfo, dtype: torch.dtype) -> Tensor | None:
        storage = tensor.storage
        if storage is None or storage.missing or tensor.layout != "strided" or swap_width(tensor):
            return None
        if tensor.details.get("conj") or tensor.details.get("neg"):
            return None
        if storage not in self._storages:
            self._storages[storage] = self._mapped(storage, tensor.dtype.itemsize) or _read(storage)
        made: Tensor = torch.empty(0, dtype=dtype)
        return made.set_(self._storages[storage], tensor.storage_offset, tensor.shape, tensor.stride)

    def _mapped(self, storage: Storage, alignment: int) -> torch.UntypedStorage | None:
        located = storage.source.locate(storage.offset)
        if located is None or storage.nbytes == 0 or located[1] % alignment:
            return None
        path, start = located
        if path not in self._files:
            try:
                self._files[path] = torch.UntypedStorage.from_file(path, False, os.path.getsize(path))
            except (OSError, RuntimeError):  # a file system that maps nothing
                return None
        whole = self._files[path]
        # past the end of a file that has shrunk, a mapping kills the process
        return whole[start : start + storage.nbytes] if start + storage.nbytes <= whole.nbytes() else None


def torch_dtype(tensor: TensorInfo) -> torch.dtype:
    """The torch type of *tensor*. Raises `UnsupportedFeature` for quantized ones and for those it lacks."""
    found = getattr(torch, tensor.dtype.name, None)
    if tensor.dtype.kind == "quantized":
        raise UnsupportedFeature(f"{tensor.name or 'a tensor'} is quantized ({tensor.dtype.name})")
    if not isinstance(found, torch.dtype):
        raise UnsupportedFeature(
            f"{tensor.name or 'a tensor'} is of type {tensor.dtype.name}, which torch {torch.__version__} lacks"
        )
    return found


def _read(storage: Storage) -> torch.UntypedStorage:
    buffer = bytearray(storage.nbytes)
    position = 0
    for chunk in storage.source.chunks(storage.offset, storage.nbytes):
        buffer[position : position + len(chunk)] = chunk
        position += len(chunk)
    return torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage() if buffer else torch.UntypedStorage(0)


def _dense(tensor: TensorInfo, dtype: torch.dtype) -> Tensor:
    buffer = bytearray(tensor.nbytes if tensor.layout == "strided" else 0)
    position = 0
    for chunk in chunks(tensor):  # raises what is wrong where there are no bytes
        buffer[position : position + len(chunk)] = chunk
        position += len(chunk)
    if not buffer:
        return torch.empty(tensor.shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).reshape(tensor.shape)
