"""``verify``: files against a class, in a process of their own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ckpt_tools import errors
from ckpt_tools.errors import CkptError
from ckpt_tools.sources import is_url
from ckpt_tools.verification.job import Job
from ckpt_tools.verification.process import Child, Death
from ckpt_tools.verification.results import CHECKS, Check, Problem, Verification


def verify(
    path: str | os.PathLike[str],
    model: str | type,
    args: Sequence[object] = (),
    kwargs: Mapping[str, object] | None = None,
    *,
    input: str | Sequence[str] = (),
    batch: int = 1,
    select: str | None = None,
    base: str | os.PathLike[str] | None = None,
    expect_frozen: Sequence[str] = (),
    expect_trainable: Sequence[str] = (),
    reference: str | os.PathLike[str] | None = None,
    record: str | os.PathLike[str] | None = None,
    tolerance: float = 1e-4,
    min_loaded: float = 1.0,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    device: str = "cpu",
    timeout: float = 300.0,
    trust: bool = False,
) -> Verification:
    """Whether the checkpoint *path* reloads into *model*, and is what it should be.

    *model* is a class, or a specification: ``package.module:Class``, ``file.py:Class``, ``torchvision:NAME``,
    ``timm:NAME``, ``pickle`` (which needs *trust*). It is imported and built, with *args* and *kwargs*, in a process
    of its own with *timeout* seconds and no network, so that this one stays as it is. *input* is one or several of
    ``--input``: sizes without the batch, or files. The other options are those of ``ckpt verify``.

    The result says what was found: ``result.passed``, ``result.codes``, ``print(result)``. Raises `CkptError` for
    what is wrong with the question, such as a file that does not exist.
    """
    job = Job(
        os.fspath(path),
        model if isinstance(model, str) else specification(model),
        list(args),
        dict(kwargs or {}),
        trust,
        select,
        os.fspath(base) if base is not None else None,
        list(expect_frozen),
        list(expect_trainable),
        [input] if isinstance(input, str) else list(input),
        batch,
        os.fspath(reference) if reference is not None else None,
        os.fspath(record) if record is not None else None,
        device,
        tolerance,
        min_loaded,
        list(allow_missing),
        list(allow_unexpected),
        seconds=timeout,
    )
    for found in verify_each([job]):
        if isinstance(found, CkptError):
            raise found
        return found
    raise AssertionError("unreachable")


def verify_each(jobs: Iterable[Job]) -> Iterator[Verification | CkptError]:
    """The result of each job, or why it could not be done. One child does them all, as long as it lives."""
    child: Child | None = None
    try:
        for job in jobs:
            if job.path == "-" or is_url(job.path):
                yield CkptError(
                    "is not a file of this machine, and the class is run without network",
                    path=job.path,
                    remedy="Download it first",
                )
                continue
            if not os.path.lexists(job.path):
                yield errors.NotFound("no such file", path=job.path)
                continue
            if child is None:
                child = Child()
            found, alive = _one(child, job)
            yield found
            if not alive:
                child.close()
                child = None
    finally:
        if child is not None:
            child.close()


def _one(child: Child, job: Job) -> tuple[Verification | CkptError, bool]:
    """What became of one job, and whether *child* lives on."""
    found, alive = ask(child, job.as_json(), CHECKS)
    return (found if isinstance(found, CkptError) else Verification(job.path, job.model, found, child.output)), alive


def ask(child: Child, job: Mapping[str, Any], names: Iterable[str]) -> tuple[list[Check] | CkptError, bool]:
    """The checks of *job*, which are *names*, or why it could not be done; and whether *child* lives on."""
    order = list(names)
    checks: list[Check] = []
    running = order[0]
    for answer in child.ask(job):
        if isinstance(answer, Death):
            if not child.ready:
                message = f"the process that builds the model did not start: {answer.how}"
                return CkptError(message, remedy=child.output.strip()[-2000:] or None), False
            # it may also have died when that check was done
            return [*(c for c in checks if c.name != running), *_after(running, answer, order)], False
        if answer["event"] == "check":
            running = answer["name"]
        elif answer["event"] == "result":
            checks.append(Check.from_json(answer["check"]))
        elif answer["event"] == "error":
            return _error(answer, job["path"]), True
    return checks, True


def _after(running: str, death: Death, names: Sequence[str]) -> Iterator[Check]:
    """The check in which the child died, and those that it did not come to."""
    where = f", in {death.place}" if death.place else ""
    remedy = "--timeout gives it longer" if death.hung else ""
    code = "hangs" if death.hung else "crashes"
    doing = {"builds": "importing and building the class", "runs": "the forward pass", "loads": "loading"}
    message = f"{doing.get(running, f'the check {running}')} did not end: {death.how}{where}"
    at = names.index(running)
    yield Check(running, death.how, [Problem(code, "error", message, remedy)])
    for name in names[at + 1 :]:
        yield Check(name, f"the process ended in {running}", skipped=True)


def _error(answer: Mapping[str, Any], path: str) -> CkptError:
    kind = getattr(errors, answer["kind"], CkptError)
    place = answer["place"]
    problem = f"{place}: {answer['problem']}" if place and place != path else answer["problem"]
    if kind is errors.MissingDependency:
        return CkptError(problem, remedy=answer["remedy"])
    made: CkptError = kind(problem, remedy=answer["remedy"])
    return made.at(path=path)


def specification(cls: type) -> str:
    """What names *cls* to another process: its module where that can be imported there, else its file."""
    import importlib.util
    import inspect

    name = cls.__qualname__
    if "<locals>" in name:
        raise CkptError(f"{name} is made inside a function, where no other process finds it")
    try:
        found = cls.__module__ != "__main__" and importlib.util.find_spec(cls.__module__) is not None
    except (ImportError, ValueError):
        found = False
    if found:
        return f"{cls.__module__}:{name}"
    try:
        path = inspect.getsourcefile(cls)
    except TypeError:
        path = None
    if path is None:
        raise CkptError(f"{name} stands in no file, so no other process finds it")
    return f"{os.path.abspath(path)}:{name}"
