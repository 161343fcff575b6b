"""The arguments to build a class with, as text."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ckpt_tools.errors import CkptError


def parse_arguments(args: str | None, kwargs: Iterable[str]) -> tuple[list[object], dict[str, object]]:
    """What to call a class with: *args* a JSON list, each of *kwargs* ``key=value`` with a JSON value or a string."""
    positional: object = []
    if args is not None:
        try:
            positional = json.loads(args)
        except ValueError as error:
            raise CkptError(
                f"the arguments are no JSON: {error}", remedy='A list is wanted, such as [2, "relu"]'
            ) from None
    if not isinstance(positional, list):
        raise CkptError(f"the arguments are no JSON list: {args}", remedy='A list is wanted, such as [2, "relu"]')
    named: dict[str, object] = {}
    for item in kwargs:
        key, equals, text = item.partition("=")
        if not equals or not key.isidentifier():
            raise CkptError(f"{item!r} is not key=value")
        try:
            named[key] = json.loads(text)
        except ValueError:
            named[key] = {"True": True, "False": False, "None": None}.get(text, text)
    return positional, named
