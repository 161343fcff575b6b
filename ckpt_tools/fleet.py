"""The same work on many items: here, in processes of this machine, or on the workers of a Dask cluster.

A process does one item at a time and may be killed: what it worked on fails, and another process takes its place.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ckpt_tools.errors import CkptError, MissingDependency

if TYPE_CHECKING:
    from queue import SimpleQueue

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2
"""Items handed out for each process before the first result is waited for."""
ON_CLUSTER = 1000
"""And to a cluster, whose size may change."""
GRACE = 5
"""Seconds that a process has to tidy up when it is to end."""
CONNECT = 10
"""Seconds in which a scheduler has to answer."""


def run_all(
    function: Callable[[T], R], items: Iterable[T], *, jobs: int = 1, dask: str | None = None
) -> Iterator[R | CkptError]:
    """What *function* returns for each of *items*, in their order and as soon as that is known; or its error.

    With *jobs* above 1 that many processes work at once, and with *dask*, the address of a scheduler, the workers of
    that cluster, which need this version of ckpt-tools and see the same files. *function* is then one that can be
    imported, or a `functools.partial` of one, and what it takes and returns can be pickled. An error that is no
    `CkptError` comes as one, and so does the end of a process. Raises `MissingDependency` without Dask, and
    `CkptError` where the scheduler cannot be reached.
    """
    work = partial(outcome, function)
    if dask is not None:
        yield from _on_cluster(work, items, dask)
    elif jobs > 1:
        yield from _in_processes(work, items, jobs)
    else:
        yield from map(work, items)


def outcome(function: Callable[[T], R], item: T) -> R | CkptError:
    """What *function* makes of *item*, or its error; one that is no `CkptError` comes as one."""
    try:
        return function(item)
    except CkptError as error:
        return error
    except Exception as error:
        if os.environ.get("CKPT_DEBUG"):
            traceback.print_exc()
        return CkptError(
            f"internal error: {type(error).__name__}: {error}",
            remedy="This is a fault of ckpt-tools, please report it; CKPT_DEBUG=1 shows the traceback",
        )


# --- processes


def _in_processes(work: Callable[[T], R | CkptError], items: Iterable[T], jobs: int) -> Iterator[R | CkptError]:
    from concurrent.futures import Future, ThreadPoolExecutor
    from queue import SimpleQueue

    idle: SimpleQueue[_Worker[T, R]] = SimpleQueue()
    workers = [_Worker(work) for _ in range(jobs)]
    for worker in workers:
        idle.put(worker)
    pending: deque[Future[R | CkptError]] = deque()
    # a thread waits for each process
    threads = ThreadPoolExecutor(jobs)
    try:
        for item in items:
            pending.append(threads.submit(_hand_over, idle, item))
            if len(pending) > jobs * AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        for worker in workers:
            worker.stop()
        threads.shutdown()
        for worker in workers:
            worker.close()


def _hand_over(idle: SimpleQueue[_Worker[T, R]], item: T) -> R | CkptError:
    worker = idle.get()
    try:
        return worker.do(item)
    finally:
        idle.put(worker)


class _Worker(Generic[T, R]):
    """A process that is told items on its standard input and answers on its standard output; begun when needed."""

    def __init__(self, work: Callable[[T], R | CkptError]) -> None:
        self._work = work
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def do(self, item: T) -> R | CkptError:
        """What the process makes of *item*; an error where it ends instead."""
        task = pickle.dumps(item)
        if self._process is not None and self._process.poll() is not None:  # it was killed when it had nothing to do
            _ended(self._process)
            self._process = None
        process = self._process = self._process or _started(self._work)
        assert process.stdin is not None
        assert process.stdout is not None
        if self._stopped:
            process.terminate()
        try:
            process.stdin.write(task)
            process.stdin.flush()
            answer: R | CkptError = pickle.load(process.stdout)
            return answer
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            self._process = None
            return _ended(process)

    def stop(self) -> None:
        """End the process, which may be at work."""
        self._stopped = True
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()

    def close(self) -> None:
        """Give back what a stopped process has left."""
        if self._process is not None:
            _ended(self._process)


def _started(work: object) -> subprocess.Popen[bytes]:
    # what can be imported here can be there; -P: and nothing that happens to lie in the current folder
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(work))
    return process


def _ended(process: subprocess.Popen[bytes]) -> CkptError:
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):
            pipe.close()  # type: ignore[union-attr]
    code = process.wait()
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return CkptError(
        f"the process that worked on it {how}",
        remedy="It may have run out of memory; try again with fewer --jobs" if code < 0 else None,
    )


def serve() -> None:
    """What a process does: take the function from standard input, then items, and answer each."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at Ctrl-C the one that began it ends it
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # unfinished files are removed
    # nothing else may read or write there
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    work: Callable[[object], object] = pickle.load(tasks)
    while True:
        try:
            item = pickle.load(tasks)
        except EOFError:
            return
        answers.write(pickle.dumps(work(item)))
        answers.flush()


# --- a cluster


def _on_cluster(work: Callable[[T], R | CkptError], items: Iterable[T], address: str) -> Iterator[R | CkptError]:
    try:
        from distributed import Client
    except ImportError:
        raise MissingDependency("distributed", "dask", "a Dask cluster") from None
    try:
        client = Client(address, set_as_default=False, timeout=CONNECT)
    except (OSError, ValueError) as error:
        raise CkptError(f"no Dask scheduler answers there: {error}", path=address) from None
    with client:
        pending: deque[Any] = deque()
        for item in items:
            pending.append(client.submit(work, item, pure=False))
            if len(pending) > ON_CLUSTER:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())


def _result(future: Any) -> Any:
    try:
        return future.result()
    except Exception as error:  # workers that were killed, or that lack this package
        return CkptError(f"the cluster gave it up: {type(error).__name__}: {error}")
