"""A progress line on standard error, for what takes longer than a second."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from ckpt_tools.report import size

PATIENCE = 1.0
"""Seconds of silence before the line appears."""
INTERVAL = 0.1
"""Seconds between two updates."""


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A function to call with each number of bytes done, of *total*; the line goes away at the end.

    Only a terminal sees it. It may be called from several threads.
    """
    start = shown = monotonic()
    done = 0
    visible = False
    watched = sys.stderr.isatty()

    def advance(count: int) -> None:
        nonlocal done, shown, visible
        done += count
        now = monotonic()
        if not watched or now - start < PATIENCE or now - shown < INTERVAL:
            return
        shown, visible = now, True
        speed = done / (now - start)
        left = f", {(total - done) / speed:,.0f} s left" if speed and done < total else ""
        share = f"{100 * done / total:.0f} %" if total else ""
        print(
            f"\r{what}: {size(done)} of {size(total)} ({share}), {size(int(speed))}/s{left}\x1b[K",
            end="",
            file=sys.stderr,
        )
        sys.stderr.flush()

    try:
        yield advance
    finally:
        if visible:
            print("\r\x1b[K", end="", file=sys.stderr)
