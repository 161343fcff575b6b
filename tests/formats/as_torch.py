"""What torch says of a tensor, to compare a description with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_tools.checkpoint import Checkpoint, TensorInfo
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CkptError
from ckpt_tools.formats import open_checkpoint

if TYPE_CHECKING:
    import torch


def dense_bytes(tensor: torch.Tensor) -> bytes:
    """The elements in row-major order, conj and neg bits resolved."""
    import torch

    dense = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return dense.view(torch.uint8).numpy().tobytes() if dense.numel() else b""


def assert_same_tensor(found: TensorInfo, expected: torch.Tensor) -> None:
    """*found* describes *expected*: type, shape, stride, flags and bytes."""
    assert f"torch.{found.dtype}" == str(expected.dtype)
    assert found.shape == tuple(expected.shape)
    assert found.stride == expected.stride()
    assert found.requires_grad in (None, expected.requires_grad)
    assert read_bytes(found) == dense_bytes(expected)


def assert_same_tensors(found: Mapping[str, TensorInfo], expected: Mapping[str, torch.Tensor]) -> None:
    """The same names in the same order, each with the same tensor, and the same ones sharing memory."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert_same_tensor(found[name], tensor)
    assert sharing({name: id(t.storage) for name, t in found.items() if t.numel}) == sharing(
        {name: t.untyped_storage().data_ptr() for name, t in expected.items() if t.numel()}
    )


def sharing(identities: Mapping[str, int]) -> set[frozenset[str]]:
    """The groups of names with one identity."""
    groups: dict[int, set[str]] = {}
    for name, identity in identities.items():
        groups.setdefault(identity, set()).add(name)
    return {frozenset(group) for group in groups.values()}


def by_name(checkpoint: Checkpoint, *path: object) -> dict[str, TensorInfo]:
    """The tensors of the state_dict at *path*."""
    (found,) = (s for s in checkpoint.state_dicts if s.path == path)
    return {tensor.name: tensor for tensor in found.tensors}


def assert_only_ckpt_errors(data: bytes, folder: Path | None = None, *, step: int = 1) -> int:
    """Open *data* cut off at every byte: a description or a `CkptError` each time. How many were described.

    With *folder* each is opened as a file there instead of as bytes.
    """
    described = 0
    for size in range(0, len(data), step):
        target: Any = data[:size]
        if folder is not None:
            target = folder / "cut"
            target.write_bytes(data[:size])
        try:
            open_checkpoint(target)
            described += 1
        except CkptError as error:
            assert str(error)
    return described
