"""``export`` and ``check_onnx``: in a process of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt_tools.errors import CkptError, NotFound
from ckpt_tools.serving.job import Job
from ckpt_tools.serving.results import CHECKS, Export
from ckpt_tools.sources import is_url
from ckpt_tools.verification.process import Child
from ckpt_tools.verification.run import ask, specification

WORKER = "ckpt_tools.runtime.onnx"


def export(
    path: str | os.PathLike[str],
    model: str | type,
    onnx: str | os.PathLike[str],
    *,
    input: str | Sequence[str],
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    **options: Any,
) -> Export:
    """Write the checkpoint *path*, filled into *model*, as the ONNX file *onnx*, and check what it computes.

    *model* is a class, or a specification as for `verify`; *input* one or several of ``--input``: complete sizes
    such as ``"1,3,224,224"``. The *options* are the fields of `Job`, such as ``dynamic=["batch"]``,
    ``opset=20``, ``provider="cuda"``. Everything runs in a process of its own, without network.

    The result says what was found: ``result.passed``, ``result.reason``, ``result.codes``. Raises `CkptError` for what
    is wrong with the question.
    """
    return answer(_job(path, model, onnx, input, args, kwargs, {**options, "write": True}))


def check_onnx(
    onnx: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str],
    model: str | type,
    input: str | Sequence[str] = (),
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    **options: Any,
) -> Export:
    """Whether the ONNX file *onnx* computes what the checkpoint *against* does in *model*; see `export`.

    Without *input* the sizes are those that `export` had, or as the file has them: a dynamic first axis is 2 then,
    another one 64.
    """
    return answer(_job(against, model, onnx, input, args, kwargs, {**options, "write": False}))


def answer(job: Job) -> Export:
    """Have *job* done in a process of its own. Raises `CkptError` for what is wrong with the question."""
    for path in (job.path,) if job.write else (job.path, job.onnx):
        if path == "-" or is_url(path):
            what = "is not a file of this machine, and the class runs without network"
            raise CkptError(what, path=path, remedy="Download it first")
        if not os.path.lexists(path):
            raise NotFound("no such file", path=path)
    if job.samples is not None and not os.path.isfile(job.samples):
        raise NotFound("no such file", path=job.samples)
    if job.write and os.path.lexists(job.onnx) and not job.force:
        raise CkptError("exists already", path=job.onnx, remedy="--force replaces it")
    with Child(WORKER) as child:
        found, _ = ask(child, job.as_json(), CHECKS)
        if isinstance(found, CkptError):
            raise found
        return Export(job.path, job.model, job.onnx, job.write, found, child.output)


def _job(
    path: str | os.PathLike[str],
    model: str | type,
    onnx: str | os.PathLike[str],
    input: str | Sequence[str],
    args: Sequence[object],
    kwargs: Mapping[str, object] | None,
    options: Mapping[str, Any],
) -> Job:
    return Job(
        os.fspath(path),
        model if isinstance(model, str) else specification(model),
        os.fspath(onnx),
        args=list(args),
        kwargs=dict(kwargs or {}),
        inputs=[input] if isinstance(input, str) else list(input),
        **options,
    )
