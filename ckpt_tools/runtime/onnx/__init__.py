"""The checks of ``ckpt export`` and ``ckpt check-onnx``, each a function of a `State`, and their order."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

from ckpt_tools.atomic import unfinished_folder
from ckpt_tools.errors import CkptError
from ckpt_tools.runtime.onnx import environment
from ckpt_tools.serving.job import Job as Job
from ckpt_tools.serving.results import CHECKS
from ckpt_tools.verification.results import Check, Problem


def checks(job: Job, before: Callable[[str], object] = lambda name: None) -> Iterator[Check]:
    """Each check of *job* as it ends; *before* is told the name of each before it begins.

    The file is made in a folder beside where it belongs, and takes its place when all that says whether it is right
    has passed. Raises `CkptError` for what is wrong with the question.
    """
    environment.require(exporting=job.write)
    from ckpt_tools.runtime.onnx.export import put_in_place
    from ckpt_tools.runtime.onnx.stages import FUNCTIONS
    from ckpt_tools.runtime.onnx.state import State
    from ckpt_tools.runtime.verify.subject import Stop, Subject
    from ckpt_tools.verification.job import Job as Verification

    with ExitStack() as stack:
        if job.write:
            folder = stack.enter_context(unfinished_folder(job.onnx))
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ckpt-tools-"))
        subject = Subject(Verification(job.path, job.model, job.args, job.kwargs, trust=job.trust, select=job.select))
        state = State(job, folder, subject)
        failed = False
        for name, function in zip(CHECKS, FUNCTIONS, strict=True):
            before(name)
            begun = time.perf_counter()
            try:
                if not state.usable and name != "placement":
                    raise Stop("the environment does not allow it")
                found = function(state)
            except Stop as stop:
                found = Check(name, str(stop), skipped=True)
            except CkptError:
                raise
            except Exception as error:  # of the class, or of a library in a case that is not foreseen
                last = traceback.extract_tb(error.__traceback__)[-1]
                text = " ".join(str(error).split())
                message = f"{type(error).__name__}: {text} ({os.path.basename(last.filename)}, line {last.lineno})"
                found = Check(name, "it raised an error", [Problem("raised", "error", message)])
            failed = failed or found.verdict == "failed"
            if name == "numbers" and job.write and state.file is not None and not failed:
                put_in_place(state)
            yield replace(found, seconds=time.perf_counter() - begun)
