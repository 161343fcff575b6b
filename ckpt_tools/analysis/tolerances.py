"""The policy file of ``ckpt diff``: which tensors may differ by how much."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches

from ckpt_tools.analysis.pairs import Tolerance
from ckpt_tools.errors import CkptError


def read_tolerances(path: str) -> list[tuple[str, Tolerance]]:
    """The tolerances of the TOML file at *path*, in its order, each with the glob it is for.

    They stand under ``[diff.tolerances]``, in pyproject.toml under ``[tool.ckpt-tools.diff.tolerances]``::

        "*.running_*" = { rtol = 1e-3, atol = 1e-6 }

    Raises `CkptError` where there are none, and for anything else that is in the way.
    """
    try:
        with open(path, "rb") as file:
            root: object = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CkptError(f"cannot be read as a policy: {error}", path=path) from None
    for key in ("tool", "ckpt-tools"):
        if isinstance(root, dict) and key in root:
            root = root[key]
    section = root.get("diff") if isinstance(root, dict) else None
    if not isinstance(section, dict) or not isinstance(section.get("tolerances"), dict):
        raise CkptError("has no table [diff.tolerances]", path=path)
    _check_keys(section, ("tolerances",), "diff", path)
    found = []
    for glob, value in section["tolerances"].items():
        where = f'diff.tolerances."{glob}"'
        if not isinstance(value, dict):
            raise CkptError(f"{where} is no table such as {{ rtol = 1e-3, atol = 1e-6 }}", path=path)
        _check_keys(value, ("rtol", "atol"), where, path)
        for name, number in value.items():
            if isinstance(number, bool) or not isinstance(number, int | float) or not number >= 0:
                raise CkptError(f"{where}: {name} is {number!r}, not a number of 0 or more", path=path)
        found.append((glob, Tolerance(float(value.get("rtol", 0)), float(value.get("atol", 0)))))
    return found


def _check_keys(table: Mapping[str, object], known: tuple[str, ...], where: str, path: str) -> None:
    for key in table:
        if key not in known:
            close = get_close_matches(key, known, 1)
            remedy = f"Did you mean {close[0]}?" if close else f"Known keys: {', '.join(known)}"
            raise CkptError(f"{where} has an unknown key {key!r}", path=path, remedy=remedy)
