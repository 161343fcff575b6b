"""What the checks of ``ckpt export`` know, each adding to it for those after it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ckpt_tools.runtime.onnx.bfloat16 import rounding
from ckpt_tools.runtime.onnx.compare import Tolerance, tolerance
from ckpt_tools.runtime.onnx.file import Model
from ckpt_tools.runtime.onnx.inputs import Argument
from ckpt_tools.runtime.onnx.sessions import Session, Target, open_session
from ckpt_tools.runtime.onnx.sweep import Run
from ckpt_tools.runtime.verify.subject import Stop, Subject
from ckpt_tools.serving.job import Job


@dataclass(slots=True)
class State:
    """One file and the model it is held against.

    *reference* is the model in the checkpoint's own type and in eval mode, *exported* the one of the type that was
    asked for (the same where none was). *onnx* is the file, where it lies while it is checked; *outputs* are its
    outputs by name, *made* the arguments of the call. With *rounding* onnxruntime's CPU has no kernels for the file's
    bfloat16, and runs it in float32 with roundings.
    """

    job: Job
    folder: str
    subject: Subject
    provider: str = "cpu"
    usable: bool = True
    reference: nn.Module | None = None
    exported: nn.Module | None = None
    made: Sequence[Argument] = ()
    outputs: Sequence[str] = ()
    onnx: str = ""
    file: Model | None = None
    target: Target | None = None
    rounding: bool = False
    runs: list[Run] = field(default_factory=list)

    def models(self) -> tuple[nn.Module, nn.Module]:
        """The reference and what was exported."""
        if self.reference is None or self.exported is None:
            raise Stop("there is no filled model")
        return self.reference, self.exported

    def model(self) -> Model:
        """The file, where there is one that can be run."""
        if self.file is None:
            raise Stop("there is no file that can be run")
        return self.file

    def tolerance(self, provider: str) -> Tolerance:
        """How far apart values may be that *provider* computes: as was asked, or as types and device have it."""
        job = self.job
        kinds = [port.dtype for port in self.model().inputs + self.model().outputs]
        narrow = job.dtype or next((kind for kind in ("bfloat16", "float16") if kind in kinds), "float32")
        found = tolerance(narrow, "cpu" if provider == "cpu" else "gpu", tf32=job.tf32)
        return Tolerance(
            found.absolute if job.absolute is None else job.absolute,
            found.relative if job.relative is None else job.relative,
        )

    def open(self, where: Target, **options: Any) -> Session:
        """A session of the file on *where*; raises `Refused` as `open_session` does."""
        if where.provider != "cpu" or not self.rounding:
            return open_session(self.onnx, where, **options)
        folder = os.path.dirname(os.path.abspath(self.onnx))
        return open_session(rounding(self.model().proto).SerializeToString(), where, folder=folder, **options)
