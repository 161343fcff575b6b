"""Key maps: JSON objects of names and the names to give them, as ``ckpt diff`` and ``ckpt verify`` write them."""

from __future__ import annotations

import json

from ckpt_tools.errors import CkptError, NotFound


def read_key_map(path: str | None) -> dict[str, str]:
    """The key map at *path*, empty where there is none. Raises `CkptError` where the file is none."""
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except OSError as error:
        raise NotFound(f"cannot be read: {error.strerror}", path=path) from None
    except (ValueError, RecursionError) as error:
        raise CkptError(f"is no key map: it is no JSON ({error})", path=path) from None
    if not isinstance(found, dict) or not all(isinstance(new, str) for new in found.values()):
        raise CkptError("is no key map: not a JSON object of names and names", path=path)
    return found
