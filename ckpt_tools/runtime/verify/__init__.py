"""The checks of ``ckpt verify``, each a function of a `Subject` that returns a `Check`, and their order."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace

from ckpt_tools.errors import CkptError
from ckpt_tools.runtime.verify.builds import builds, opens
from ckpt_tools.runtime.verify.keys import keys
from ckpt_tools.runtime.verify.loads import loads, round_trip
from ckpt_tools.runtime.verify.resume import resume
from ckpt_tools.runtime.verify.runs import runs
from ckpt_tools.runtime.verify.subject import Stop, Subject
from ckpt_tools.runtime.verify.transfer import transfer
from ckpt_tools.verification.job import Job
from ckpt_tools.verification.results import CHECKS, Check, Problem

FUNCTIONS: tuple[Callable[[Subject], Check], ...] = (opens, builds, keys, transfer, loads, runs, round_trip, resume)
"""In the order of `CHECKS`."""


_OURS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep


def checks(job: Job, before: Callable[[str], object] = lambda name: None) -> Iterator[Check]:
    """Each check of *job* as it ends; *before* is told the name of each before it begins.

    What a check cannot go on without is said by the check that found it missing; those after it are skipped.
    Raises `CkptError` for what is wrong with the question rather than with file or class.
    """
    subject = Subject(job)
    for name, function in zip(CHECKS, FUNCTIONS, strict=True):
        before(name)
        begun = time.perf_counter()
        try:
            found = function(subject)
        except Stop as stop:
            found = Check(name, str(stop), skipped=True)
        except CkptError:
            raise
        except Exception as error:  # of the class, in a method of torch's that it overrides
            last = traceback.extract_tb(error.__traceback__)[-1]
            if last.filename.startswith(_OURS):
                raise
            message = f"{type(error).__name__}: {' '.join(str(error).split())} ({last.filename}, line {last.lineno})"
            found = Check(name, "it raised an error", [Problem("class-raised", "error", message)])
        yield replace(found, seconds=time.perf_counter() - begun)
