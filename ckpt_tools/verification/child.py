"""The process that ``ckpt verify`` starts: it may crash, hang, print and exit as the user's class has it.

Jobs come on standard input, answers go to what standard output was when it started, a JSON object a line; see
`ckpt_tools.verification.process`. Nothing here imports torch: what the worker prints or refuses is told already while
it is being imported. The worker is a module with a class ``Job`` and a function ``checks``, such as
`ckpt_tools.runtime.verify`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import traceback
import urllib.request
from importlib import import_module
from typing import Any, TextIO


def main(worker: str) -> None:
    """Have the module *worker* answer jobs until there are no more."""
    del sys.argv[1:]  # a class that reads the command line finds an empty one, not ours
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    jobs = os.fdopen(os.dup(0), encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)  # a class that asks for input gets none, and no job
    os.dup2(2, 1)
    faulthandler.enable()
    _close_network()
    _serve(jobs, channel, worker)


def _serve(jobs: TextIO, channel: TextIO, worker: str) -> None:
    def tell(event: str, **data: object) -> None:
        channel.write(json.dumps({"event": event, **data}) + "\n")
        channel.flush()

    from ckpt_tools.errors import CkptError
    from ckpt_tools.report import plain_json

    answered = False
    mark = b""
    for line in jobs:
        try:
            asked = json.loads(line)
            mark = asked.pop("mark").encode()
            # torch comes with the first job, when it is known that there is one
            module: Any = import_module(worker)
            if not answered:
                tell("ready")
                answered = True
            job = module.Job(**asked)
            faulthandler.dump_traceback_later(job.seconds, exit=True)
            for check in module.checks(job, lambda name: tell("check", name=name)):
                found: Any = plain_json(check.as_json())
                tell("result", check=found)
            _mark(mark)
            tell("done")
        except CkptError as error:
            _mark(mark)
            tell("error", kind=type(error).__name__, problem=error.problem, place=error.place, remedy=error.remedy)
        except Exception as error:
            traceback.print_exc()
            _mark(mark)
            problem = f"internal error: {type(error).__name__}: {error}"
            remedy = "This is a fault of ckpt-tools, please report it"
            tell("error", kind="CkptError", problem=problem, place="", remedy=remedy)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _mark(mark: bytes) -> None:
    """Say on standard error that all has come that this job printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # which the class may have replaced, or closed
            stream.flush()
    os.write(2, mark)


def _close_network() -> None:
    """Refuse every connection by network, from whatever part of Python it is asked for."""

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        host: object = None
        if event == "socket.getaddrinfo" or event in ("socket.gethostbyname", "socket.gethostbyaddr"):
            host = arguments[0]
        elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = arguments[1]
            host = address[0] if isinstance(address, tuple) else None
        if host is not None:
            raise ConnectionRefusedError(f"ckpt-tools lets nothing be downloaded (from {host})")

    sys.addaudithook(watch)
    # the dead proxy in the environment is for programs; Python would name it in place of who was asked
    urllib.request.getproxies = lambda: {}
