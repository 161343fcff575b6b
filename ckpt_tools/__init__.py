"""Open PyTorch checkpoints statically: nothing a file contains is ever imported or run."""

from __future__ import annotations

from ckpt_tools.checkpoint import Checkpoint, Module, StateDict, Storage, TensorInfo
from ckpt_tools.errors import CkptError
from ckpt_tools.formats import open_checkpoint

__all__ = ["Checkpoint", "CkptError", "Module", "StateDict", "Storage", "TensorInfo", "open_checkpoint"]
