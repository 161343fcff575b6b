"""One function over many items, in several processes; results come in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Option = TypeVar("Option")
Result = TypeVar("Result")

BATCH = 8
"""Items that a process is given at once."""


def spread(
    function: Callable[[Item, Option], Result], items: Iterable[Item], option: Option, jobs: int
) -> Iterator[Result]:
    """``function(item, option)`` for each item, by *jobs* processes, of which each has two batches at most to do."""
    queue = iter(items)
    pending: deque[Future[list[Result]]] = deque()
    with ProcessPoolExecutor(jobs) as pool:
        while True:
            while len(pending) < 2 * jobs and (batch := list(islice(queue, BATCH))):
                pending.append(pool.submit(_batch, function, batch, option))
            if not pending:
                return
            yield from pending.popleft().result()


def _batch(function: Callable[[Item, Option], Result], items: list[Item], option: Option) -> list[Result]:
    return [function(item, option) for item in items]
