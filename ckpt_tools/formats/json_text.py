"""JSON from files nobody vouches for."""

from __future__ import annotations

from ckpt_tools.errors import CorruptFile, LimitExceeded
from ckpt_tools.sources import Source

JSON_LIMIT = 1 << 26
"""The longest text that is read, in bytes: parsed, it may take thirty times that."""


def read_json(source: Source, limit: int = JSON_LIMIT) -> dict[str, object]:
    """The one object that *source* holds as JSON.

    Raises `LimitExceeded` where it is longer than *limit* bytes, `CorruptFile` where it is anything else.
    """
    if source.size > limit:
        raise LimitExceeded(f"{source.size:,} bytes of JSON, of which {limit:,} are read at most", path=source.name)
    import json

    try:
        value = json.loads(source.read(0, source.size))
    except RecursionError:
        raise CorruptFile("the JSON is nested too deeply", path=source.name) from None
    except ValueError as error:  # no UTF-8, no JSON, or a number of thousands of digits
        raise CorruptFile(f"not valid JSON: {error}", path=source.name) from None
    if not isinstance(value, dict):
        raise CorruptFile("valid JSON, but not an object", path=source.name)
    return value
