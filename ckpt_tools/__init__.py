"""Open PyTorch checkpoints statically: nothing a file contains is ever imported or run."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckpt_tools.analysis.diff import diff
    from ckpt_tools.analysis.digest import digest
    from ckpt_tools.analysis.overview import overview
    from ckpt_tools.analysis.summary import summarize
    from ckpt_tools.checkpoint import Checkpoint, Module, StateDict, Storage, TensorInfo
    from ckpt_tools.contents import chunks, read_bytes, to_numpy
    from ckpt_tools.errors import CkptError
    from ckpt_tools.formats import open_checkpoint
    from ckpt_tools.serving.run import check_onnx, export
    from ckpt_tools.verification.run import verify

_WHERE = {
    "analysis.diff": ("diff",),
    "analysis.digest": ("digest",),
    "analysis.overview": ("overview",),
    "analysis.summary": ("summarize",),
    "checkpoint": ("Checkpoint", "Module", "StateDict", "Storage", "TensorInfo"),
    "contents": ("chunks", "read_bytes", "to_numpy"),
    "errors": ("CkptError",),
    "formats": ("open_checkpoint",),
    "serving.run": ("check_onnx", "export"),
    "verification.run": ("verify",),
}

__all__ = [
    "Checkpoint",
    "CkptError",
    "Module",
    "StateDict",
    "Storage",
    "TensorInfo",
    "check_onnx",
    "chunks",
    "diff",
    "digest",
    "export",
    "open_checkpoint",
    "overview",
    "read_bytes",
    "summarize",
    "to_numpy",
    "verify",
]


def __getattr__(name: str) -> object:
    """The public names, each imported when it is first used."""
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(f"ckpt_tools.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
