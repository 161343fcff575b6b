"""What the user asks of an audit: which rules count, for which files, and what must hold.

It stands in ``[tool.ckpt-tools.audit]`` of pyproject.toml or in ``[audit]`` of ckpt-tools.toml. What is misspelt
there is an error, since a requirement that is not understood would hold for ever.
"""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from ckpt_tools.audit.baseline import Baseline
from ckpt_tools.audit.findings import SEVERITIES, Severity
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import CkptError
from ckpt_tools.formats import FORMATS
from ckpt_tools.records import record
from ckpt_tools.sources import is_url

KINDS = (
    "state_dict", "state_dicts", "model", "program", "training", "optimizer", "tensor", "tensors", "archive", "object",
)  # fmt: skip
"""What a checkpoint may be; see `Checkpoint.kind`."""

UNEXAMINED = frozenset({"I102", "I103", "I104", "I105"})
"""The rules that tell that a model, or a part of it, could not be examined. Whoever selects other rules gets them too:
a file in which those could not look would pass for clean. Only what ignores them leaves them out."""

_FILES = ("ckpt-tools.toml", "pyproject.toml")


@record
class Waiver:
    """The rule *code* (or a prefix) does not count for files that match *path*, until *expires*, for a *reason*.

    *name* is the global, the operator or the like that a finding is about.
    """

    code: str
    reason: str
    path: str = "*"
    member: str = "*"
    tensor: str = "*"
    name: str = "*"
    expires: datetime.date | None = None

    def expired(self, today: datetime.date) -> bool:
        """Whether it no longer holds; on its last day it does."""
        return self.expires is not None and self.expires < today


@record
class Requirement:
    """What must hold for the files that match one of *paths*; what is empty or None is not asked for.

    *globals*, *keys* and *frozen* are globs of names. *shapes* gives each named tensor's sizes, -1 for any.
    *metadata* gives values, "*" for any. *digest* is that of ``ckpt digest``, *sha256* that of the whole file.
    """

    paths: tuple[str, ...] = ("*",)
    formats: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    globals: tuple[str, ...] | None = None
    dtypes: tuple[str, ...] = ()
    max_size: int | None = None
    min_parameters: int | None = None
    max_parameters: int | None = None
    keys: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    digest: str = ""
    sha256: str = ""


@record
class Policy:
    """The settings. *source* is the file they come from, "" for none.

    *select* and *ignore* hold codes or prefixes of codes; the longer match wins, and nothing selected is all. The
    rules `UNEXAMINED` need not be selected.
    """

    source: str = ""
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    per_path_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    severity: Mapping[str, Severity] = field(default_factory=dict)
    fail_on: Severity = "error"
    waivers: tuple[Waiver, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    base: str | None = None
    torch: str | None = None

    def counts(self, code: str, path: str | None = None) -> bool:
        """Whether rule *code* is asked for at all, or in the file at *path*."""
        wanted = max((len(prefix) for prefix in self.select if code.startswith(prefix)), default=-1)
        unwanted = max((len(prefix) for prefix in self.ignore if code.startswith(prefix)), default=-1)
        if (wanted < 0 and self.select and code not in UNEXAMINED) or unwanted >= max(wanted, 0):
            return False
        return path is None or not any(
            matches(path, glob) and code.startswith(codes) for glob, codes in self.per_path_ignores.items() if codes
        )

    def severity_of(self, code: str, own: Severity) -> Severity:
        """How severe rule *code*, by itself *own*, is to be taken."""
        found = [prefix for prefix in self.severity if code.startswith(prefix)]
        return self.severity[max(found, key=len)] if found else own

    def trusted(self, path: str) -> tuple[str, ...]:
        """The globs of the globals that the file at *path* may name, by any of the requirements that are for it."""
        asked = (r for r in self.requirements if any(matches(path, glob) for glob in r.paths))
        return tuple(glob for requirement in asked for glob in requirement.globals or ())

    def codes(self) -> Iterable[tuple[str, str]]:
        """Every code or prefix that the settings name, with where it stands."""
        yield from ((code, "select") for code in self.select)
        yield from ((code, "ignore") for code in self.ignore)
        yield from ((code, "severity") for code in self.severity)
        yield from ((code, "per-path-ignores") for codes in self.per_path_ignores.values() for code in codes)
        yield from ((waiver.code, "waivers") for waiver in self.waivers)


@record
class Options:
    """What an audit is told.

    *values*: whether the bytes of tensors are read. *today*: for waivers that expire. *baseline*: what was found
    before. *cache*: the folder of results that are kept.
    """

    policy: Policy = field(default_factory=Policy)
    values: bool = True
    today: datetime.date = field(default_factory=datetime.date.today)
    baseline: Baseline | None = None
    cache: str | None = None


def matches(path: str, glob: str) -> bool:
    """Whether *path*, or one of its ends, matches *glob*: ``*.pt`` is any such file, ``old/*`` any in such a folder."""
    path = path.replace(os.sep, "/")
    return fnmatchcase(path, glob) or fnmatchcase(path, f"*/{glob}")


def find(start: str = ".") -> str | None:
    """The nearest file with settings, from the folder *start* upward; None where there is none."""
    folder = os.path.abspath(start)
    while True:
        for name in _FILES:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and _table(path) is not None:
                return path
        above = os.path.dirname(folder)
        if above == folder:
            return None
        folder = above


def load(path: str) -> Policy:
    """The settings in the file at *path*, from whose folder a relative ``base`` counts.

    Raises `CkptError` where it has none, or one that is not understood.
    """
    table = _table(path)
    if table is None:
        raise CkptError(
            "has no settings for audit", path=path, remedy="They stand in [tool.ckpt-tools.audit], or [audit]"
        )
    where = "tool.ckpt-tools.audit" if os.path.basename(path) == "pyproject.toml" else "audit"
    try:
        values = _read(table, _POLICY, where)
    except _Mistake as error:
        raise CkptError(str(error), path=path) from None
    base = values.get("base")
    if base is not None and not is_url(base):
        values["base"] = os.path.join(os.path.dirname(path), base)
    return Policy(source=path, **values)


def version(text: str) -> tuple[int, int] | None:
    """The first two numbers of a version such as 2.4, 2.14.1 or 2.5.0a0+cu121; None where it is none."""
    match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})(?:\.[\w.+]*)?", text)
    return (int(match[1]), int(match[2])) if match else None


@cache
def installed_torch() -> tuple[int, int] | None:
    """The version of the torch in this environment, which is not imported; None where there is none."""
    from importlib import metadata  # slow to import

    try:
        return version(metadata.version("torch"))
    except metadata.PackageNotFoundError:
        return None


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean …?`` where a known word is like *word*, else ""."""
    import difflib

    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


# --- reading TOML


class _Mistake(Exception):
    """What is wrong, with the place."""


_Reader = Callable[[Any, str], Any]


def _table(path: str) -> dict[str, Any] | None:
    """The table of settings in a file; None where it has none."""
    import tomllib

    try:
        with open(path, "rb") as file:
            document: Any = tomllib.load(file)
    except OSError as error:
        raise CkptError(f"cannot be read: {error.strerror}", path=path) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CkptError(f"is no valid TOML: {error}", path=path) from None
    keys = ("tool", "ckpt-tools", "audit") if os.path.basename(path) == "pyproject.toml" else ("audit",)
    if keys == ("audit",):
        unknown = [key for key in document if key != "audit"]
        if unknown:
            raise CkptError(f"unknown table {unknown[0]}{suggestion(unknown[0], keys)}", path=path)
    for key in keys:
        if not isinstance(document, dict) or key not in document:
            return None
        document = document[key]
    return document if isinstance(document, dict) else None


def _read(table: Any, readers: Mapping[str, tuple[str, _Reader]], where: str) -> dict[str, Any]:
    """The values of *table* by the name of their attribute; *readers* has for each key that and how to read it."""
    if not isinstance(table, dict):
        raise _Mistake(f"[{where}] is no table")
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in readers:
            raise _Mistake(f"unknown key {key} in [{where}]{suggestion(key, readers)}")
        attribute, reader = readers[key]
        found[attribute] = reader(value, f"{where}.{key}")
    return found


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _Mistake(f"{where} is no string: {value!r:.100}")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _Mistake(f"{where} is no list of strings: {value!r:.100}")
    return tuple(_text(item, where) for item in value)


def _severity(value: Any, where: str) -> Severity:
    for severity in SEVERITIES:
        if value == severity:
            return severity
    raise _Mistake(f"{where} is {value!r:.100}, not one of {', '.join(SEVERITIES)}")


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf or value % 1:
        raise _Mistake(f"{where} is no whole number: {value!r:.100}")
    return int(value)


def _among(known: Iterable[str]) -> _Reader:
    """A list of words that are all *known*."""
    some = sorted(known)
    names = f"; there are {', '.join(some)}" if len(some) < 30 else ""

    def read(value: Any, where: str) -> tuple[str, ...]:
        words = _texts(value, where)
        for word in words:
            if word not in known:
                raise _Mistake(f"{where} has {word!r:.100}, which there is not{suggestion(word, known) or names}")
        return words

    return read


def _dtypes(value: Any, where: str) -> tuple[str, ...]:
    """Types by any of their names."""
    return tuple(BY_NAME[name].name for name in _among(BY_NAME)(value, where))


_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _bytes(value: Any, where: str) -> int:
    """``2_000_000`` or ``"2 MB"``."""
    if not isinstance(value, str):
        return _count(value, where)
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if match is None or (match[2] or "B") not in _UNITS:
        raise _Mistake(f'{where} is no size such as "2 GB": {value!r:.100}')
    return int(float(match[1]) * _UNITS[match[2] or "B"])


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and size >= -1 for size in value):
        raise _Mistake(f"{where} is no list of sizes, -1 for any: {value!r:.100}")
    return tuple(value)


def _date(value: Any, where: str) -> datetime.date:
    if isinstance(value, str):
        try:
            return datetime.date.fromisoformat(value)
        except ValueError:
            pass
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value
    raise _Mistake(f"{where} is no date such as 2026-12-31: {value!s:.100}")


def _mapping(reader: _Reader) -> _Reader:
    def read(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _Mistake(f"{where} is no table")
        return {key: reader(item, f"{where}.{key}") for key, item in value.items()}

    return read


def _metadata(value: Any, where: str) -> dict[str, str]:
    """A list of keys that must be there, or a table of their values."""
    if isinstance(value, list):
        return dict.fromkeys(_texts(value, where), "*")
    found: dict[str, str] = _mapping(_text)(value, where)
    return found


def _hash(value: Any, where: str) -> str:
    text = _text(value, where).lower()
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise _Mistake(f"{where} is no SHA-256 in 64 hexadecimal digits: {value!r:.100}")
    return text


def _waivers(value: Any, where: str) -> tuple[Waiver, ...]:
    if not isinstance(value, list):
        raise _Mistake(f"{where} is no list of tables: begin each with [[{where}]]")
    made = []
    for item in value:
        fields = _read(item, _WAIVER, where)
        for key in ("code", "reason"):
            if not fields.get(key):
                raise _Mistake(f"a waiver in {where} has no {key}")
        made.append(Waiver(**fields))
    return tuple(made)


def _requirements(value: Any, where: str) -> tuple[Requirement, ...]:
    made = []
    for item in value if isinstance(value, list) else [value]:
        required = Requirement(**_read(item, _REQUIRE, where))
        low, high = required.min_parameters, required.max_parameters
        if low is not None and high is not None and low > high:
            raise _Mistake(f"{where} has a min-parameters of {low:,}, above its max-parameters of {high:,}")
        made.append(required)
    return tuple(made)


_WAIVER: Mapping[str, tuple[str, _Reader]] = {
    "code": ("code", _text),
    "reason": ("reason", _text),
    "path": ("path", _text),
    "member": ("member", _text),
    "tensor": ("tensor", _text),
    "name": ("name", _text),
    "expires": ("expires", _date),
}

_REQUIRE: Mapping[str, tuple[str, _Reader]] = {
    "paths": ("paths", _texts),
    "formats": ("formats", _among([format.name for format in FORMATS])),
    "kinds": ("kinds", _among(KINDS)),
    "globals": ("globals", _texts),
    "dtypes": ("dtypes", _dtypes),
    "max-size": ("max_size", _bytes),
    "min-parameters": ("min_parameters", _count),
    "max-parameters": ("max_parameters", _count),
    "keys": ("keys", _texts),
    "shapes": ("shapes", _mapping(_shape)),
    "metadata": ("metadata", _metadata),
    "frozen": ("frozen", _texts),
    "licenses": ("licenses", _texts),
    "digest": ("digest", _hash),
    "sha256": ("sha256", _hash),
}

_POLICY: Mapping[str, tuple[str, _Reader]] = {
    "select": ("select", _texts),
    "ignore": ("ignore", _texts),
    "per-path-ignores": ("per_path_ignores", _mapping(_texts)),
    "severity": ("severity", _mapping(_severity)),
    "fail-on": ("fail_on", _severity),
    "waivers": ("waivers", _waivers),
    "require": ("requirements", _requirements),
    "base": ("base", _text),
    "torch": ("torch", _text),
}
