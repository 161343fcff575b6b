"""Processes forked for one computation: they share what is in memory, and send back small results.

Threads of one process wait for each other to give up the interpreter; where each step takes microseconds, as with
arithmetic on blocks that fit a core's cache, two of them are hardly faster than one. A fork takes some milliseconds.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Generic, NoReturn, TypeVar

from ckpt_tools.errors import CkptError

A = TypeVar("A")
T = TypeVar("T")

forked = False
"""Whether this process is one of them: it may die, and its parent will say what happened."""

AHEAD = 2
"""Arguments that a process holds at once, so that it need not wait for the next."""


def cores() -> int:
    """How many processes of this one can work at once."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def together(items: Iterable[T], cost: Callable[[T], int], limit: int, most: int = sys.maxsize) -> Iterator[list[T]]:
    """*items* in their order, as many at a time as are worth the handing over.

    A list has one item or more, no more than *most*, and costs no more than *limit* unless one alone does.
    """
    several: list[T] = []
    total = 0
    for item in items:
        more = cost(item)
        if several and (len(several) >= most or total + more > limit):
            yield several
            several, total = [], 0
        several.append(item)
        total += more
    if several:
        yield several


def can_fork() -> bool:
    """Whether this process may be forked: it has no thread but one, and no torch, whose threads Python cannot see."""
    return sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules


def in_forks(work: Callable[[A], T], arguments: Iterable[A | None], processes: int) -> Iterator[T | CkptError | None]:
    """What *work* returns for each of *arguments*, in their order, or the `CkptError` it raises; None for None.

    An argument is short: `AHEAD` of them, pickled, fit a pipe (64 KiB).

    *work* sees memory as it is when the first result is asked for. The end of a process stands in place of what it
    worked on, and another one goes on. *arguments* is iterated in the caller's process, a little ahead. Raises any
    other error of *work*.
    """
    numbered = enumerate(arguments)
    known: dict[int, T | CkptError | None] = {}

    def hand_to(worker: _Worker[A, T]) -> None:
        for number, argument in numbered:
            if argument is not None:
                worker.take(number, argument)
                return
            known[number] = None

    workers: list[_Worker[A, T]] = []
    try:
        for _ in range(processes):
            workers.append(_Worker(work))
        for _ in range(AHEAD):
            for worker in workers:
                hand_to(worker)
        at = 0
        while True:
            while at in known:
                yield known.pop(at)
                at += 1
            busy = [worker for worker in workers if worker.held]
            if not busy:
                return
            for worker in select.select(busy, (), ())[0]:
                number, outcome = worker.finish()
                known[number] = outcome
                hand_to(worker)
    finally:
        for worker in workers:
            worker.end()


class _Worker(Generic[A, T]):
    """A forked process, and the numbered arguments it has *held* from the first it works on."""

    _open: set[int] = set()  # noqa: RUF012 - our ends of all pipes, which no other worker is to keep open

    def __init__(self, work: Callable[[A], T]) -> None:
        self.work = work
        self.held: deque[tuple[int, A]] = deque()
        self._fork()

    def _fork(self) -> None:
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        self._open |= {self._requests, self._replies}
        with warnings.catch_warnings():
            # numpy's BLAS keeps threads, which hold nothing that is needed here
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process = os.fork()
        if not self._process:
            for descriptor in self._open:
                os.close(descriptor)
            _serve(self.work, requests, replies)
        os.close(requests)
        os.close(replies)

    def fileno(self) -> int:
        """Where results come in."""
        return self._replies

    def take(self, number: int, argument: A) -> None:
        """Hand over a numbered argument."""
        self.held.append((number, argument))
        with suppress(BrokenPipeError):  # then no answer will come
            _write(self._requests, argument)

    def finish(self) -> tuple[int, T | CkptError]:
        """The outcome of the first argument held, which has come, or will not come any more."""
        number, _ = self.held.popleft()
        reply = _read(self._replies)
        if reply is None:
            status = self._ended()
            self._fork()
            for _, argument in self.held:
                _write(self._requests, argument)
            return number, CkptError(f"the process that read it {_how(status)}")
        outcome: T | BaseException = pickle.loads(reply)
        if isinstance(outcome, BaseException) and not isinstance(outcome, CkptError):
            raise outcome
        return number, outcome

    def end(self) -> None:
        """Stop the process, whatever it is at."""
        with suppress(ProcessLookupError):
            os.kill(self._process, signal.SIGKILL)
        self._ended()

    def _ended(self) -> int:
        for descriptor in (self._requests, self._replies):
            self._open.discard(descriptor)
            os.close(descriptor)
        return os.waitpid(self._process, 0)[1]


def _how(status: int) -> str:
    if not os.WIFSIGNALED(status):
        return f"ended with exit status {os.waitstatus_to_exitcode(status)}"
    if os.WTERMSIG(status) == signal.SIGBUS:
        return "lost the file: it was cut, or its disk failed, while it was being read"
    return f"was ended by {signal.Signals(os.WTERMSIG(status)).name}"


def _write(pipe: int, message: object) -> None:
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    data = memoryview(len(content).to_bytes(8, "little") + content)
    while data:
        data = data[os.write(pipe, data) :]


def _read(pipe: int) -> bytes | None:
    """The next message, pickled; None where the other end is closed."""
    size = _bytes(pipe, 8)
    content = _bytes(pipe, int.from_bytes(size, "little"))
    return content or None


def _bytes(pipe: int, count: int) -> bytes:
    """*count* bytes, or none where the other end is closed before they have come."""
    data = b""
    while len(data) < count:
        more = os.read(pipe, count - len(data))
        if not more:
            return b""
        data += more
    return data


def _serve(work: Callable[[Any], Any], requests: int, replies: int) -> NoReturn:
    """Answer requests until there are no more. Nothing of the parent's is tidied up, flushed or reported here."""
    global forked
    forked = True
    status = 1
    try:
        while request := _read(requests):
            try:
                outcome = work(pickle.loads(request))
            except Exception as error:
                outcome = error
            _write(replies, outcome)
        status = 0
    finally:
        os._exit(status)
