"""The process in which the user's class lives: whatever the class does to it, this one goes on.

The channel is the child's standard input for jobs and its standard output for answers, a JSON object a line; the
child takes a private copy of the latter before it imports anything, so that what the class prints comes through
standard error, from where the last of it is kept. A mark there tells that all of it has come.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

from ckpt_tools.records import record

KEPT = 64 << 10
"""Bytes of the class's output that are kept: the last."""

STARTUP = 300.0
"""Seconds that importing torch may take."""

_GRACE = 5.0
"""Seconds beyond the time limit in which the child may tell where it hangs, before it is killed."""

_MAIN = "import sys; sys.path[:] = sys.argv[2:]; from ckpt_tools.verification.child import main; main(sys.argv[1])"


@record
class Death:
    """The child ended before it had answered: *how* in words, *place* in the user's code where that is known.

    *hung* is whether that was because of the time limit.
    """

    how: str
    place: str
    hung: bool


class Child:
    """A child process, started when this is made. Use it in a ``with`` block, whose end ends the process.

    *worker* is the module that does the jobs, as `ckpt_tools.verification.child` describes it.
    """

    def __init__(self, worker: str = "ckpt_tools.runtime.verify") -> None:
        self._process = subprocess.Popen(
            # -P: no folder before the standard library but those that this process has there
            [sys.executable, "-P", "-c", _MAIN, worker, *(entry or os.getcwd() for entry in sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_offline(os.environ),
            start_new_session=os.name == "posix",  # so that what the class starts can be ended with it
        )
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._said = bytearray()
        self._news = threading.Condition()
        self._threads = [
            threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._keep, args=(self._process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.ready = False

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def ask(self, job: Mapping[str, Any]) -> Iterator[dict[str, Any] | Death]:
        """The answers to *job* up to the one that ends them; a `Death`, where it comes to that, is the last.

        The job's ``seconds`` count from when the child is ready.
        """
        mark = f"\0{secrets.token_hex(16)}\0"
        with self._news:
            self._said.clear()
        limit = float(job["seconds"])
        with contextlib.suppress(OSError):  # it has died, as the answers will show
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({**job, "mark": mark}).encode() + b"\n")
            self._process.stdin.flush()
        begun = time.monotonic()
        deadline = begun + (limit + _GRACE if self.ready else STARTUP)
        while True:
            try:
                answer = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                self._kill()
                yield self._death(limit, hung=True)
                return
            if answer is None:
                yield self._death(limit, hung=self.ready and time.monotonic() - begun >= limit)
                return
            if answer["event"] == "ready":
                self.ready = True
                begun = time.monotonic()
                deadline = begun + limit + _GRACE
                continue
            ended = answer["event"] in ("done", "error")
            if ended:
                self._wait_for(mark.encode())
            yield answer
            if ended:
                return

    @property
    def output(self) -> str:
        """What has come through the child's standard output and error since the job began."""
        with self._news:
            return self._said[-KEPT:].decode("utf-8", "replace")

    def close(self) -> None:
        """End the process, and all that it has started."""
        self._kill()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(_GRACE)

    def _death(self, limit: float, *, hung: bool) -> Death:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._kill()
        place = _place(self.output)
        if hung:
            return Death(f"it was still running after {limit:g} s", place, True)
        code = self._process.returncode
        if code >= 0:
            return Death(f"the process ended itself with exit code {code}", place, False)
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        meaning = {
            "SIGSEGV": " (segmentation fault)",
            "SIGABRT": " (abort)",
            "SIGBUS": " (bus error)",
            "SIGKILL": " (killed from outside, as the system does where memory runs out)",
        }.get(name, "")
        return Death(f"the process died of {name}{meaning}", place, False)

    def _listen(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in stream:
                self._answers.put(json.loads(line))
        self._answers.put(None)

    def _keep(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(stream.fileno(), KEPT):
                with self._news:
                    self._said += chunk
                    del self._said[: -2 * KEPT]
                    self._news.notify()

    def _wait_for(self, mark: bytes) -> None:
        """Let what was printed before *mark* arrive, and take the mark away: it comes by another pipe than answers."""
        with self._news:
            self._news.wait_for(lambda: mark in self._said, _GRACE)
            self._said = self._said.partition(mark)[0]


def _offline(environment: Mapping[str, str]) -> dict[str, str]:
    """The child's environment: libraries are told to stay offline, programs it starts find a dead proxy."""
    dead = "http://127.0.0.1:9"
    return {
        **{name: value for name, value in environment.items() if not name.lower().endswith("_proxy")},
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "http_proxy": dead,
        "https_proxy": dead,
        "all_proxy": dead,
        "CKPT_TOOLS_CHILD": "1",
    }


def _place(output: str) -> str:
    """Where in the user's code the process was, from the stack that ``faulthandler`` wrote; "" where it did not."""
    stacks = re.split(r"^.*most recent call first\):?.*$", output, flags=re.M)[1:]
    for stack in reversed(stacks):  # the main thread comes last
        found = [
            f"{path}, line {line}"
            for path, line in re.findall(r'^  File "(.*)", line (\d+) in ', stack, re.M)
            if not path.startswith("<") and not path.startswith((_OURS, _STANDARD_LIBRARY))
        ]
        own = [place for place in found if "site-packages" not in place]
        if found:
            return (own or found)[0]
    return ""


_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep
