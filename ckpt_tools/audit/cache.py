"""Results by what they depend on: the content of the file, the rules, and what was asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache

from ckpt_tools.atomic import replacing
from ckpt_tools.audit.inputs import CONFIGURATIONS, OTHER_CONFIGURATIONS, TEMPLATES, has_companions
from ckpt_tools.audit.policy import Options, installed_torch
from ckpt_tools.audit.results import Audited
from ckpt_tools.errors import CkptError
from ckpt_tools.records import record
from ckpt_tools.sources import FileSource


@record
class Cache:
    """Results in files of the folder *folder*. A folder's checkpoint, a URL and failures are not kept."""

    folder: str

    def key(self, path: str, named: bool, options: Options) -> str | None:
        """What the result for the file at *path* is kept under; None where it is not kept."""
        if path == "-" or not os.path.isfile(path):
            return None
        from hashlib import sha256

        digest = sha256()
        for part in (rules_version(), repr(_asked(options, path)), str(named), os.path.normpath(path)):
            digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
        for chunk in FileSource(path).chunks():
            digest.update(chunk)
        for name in sorted({*CONFIGURATIONS, *OTHER_CONFIGURATIONS, *TEMPLATES}) if has_companions(path) else ():
            beside = _digest(os.path.join(os.path.dirname(path), name))
            digest.update(f"\0{beside}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def get(self, key: str, path: str) -> Audited | None:
        """The result kept under *key*; None where there is none, or it is damaged."""
        import json

        try:
            with open(self._file(key), encoding="utf-8") as file:
                return Audited.of(json.load(file), path)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, key: str, result: Audited) -> None:
        """Keep *result*, unless it is of what could not be read, which may pass, or depends on other files too."""
        if result.failure or not result.format or result.format in _OF_SEVERAL_FILES:
            return
        import json

        try:
            os.makedirs(os.path.dirname(self._file(key)), exist_ok=True)
        except OSError as error:
            raise CkptError(f"cannot be written: {error.strerror}", path=self.folder) from None
        with replacing(self._file(key)) as file:
            file.write(json.dumps(result.data()).encode("ascii"))

    def _file(self, key: str) -> str:
        return os.path.join(self.folder, key[:2], f"{key}.json")


@cache
def rules_version() -> str:
    """A digest of all of this package's code: whatever changes in it may change a result."""
    from hashlib import sha256

    digest = sha256()
    for path in sorted(_sources(os.path.dirname(os.path.dirname(__file__)))):
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def _sources(folder: str) -> Iterator[str]:
    for root, _, names in os.walk(folder):
        yield from (os.path.join(root, name) for name in names if name.endswith(".py"))


def _asked(options: Options, path: str) -> object:
    """All that *options* say of the file at *path*, as values whose representation tells them apart."""
    policy = asdict(options.policy)
    base = _content(options.policy.base) if options.policy.base else ""
    locked = options.baseline.locked(path) if options.baseline is not None else None
    torch = installed_torch() if options.policy.torch is None else ""
    return policy, options.values, options.today if options.policy.waivers else "", base, locked, torch


@cache
def _content(path: str) -> str:
    """The digest of the file to compare with, which is asked for once a file; of what is no file, its name."""
    return _digest(path)


def _digest(path: str) -> str:
    if not os.path.isfile(path):
        return path
    from hashlib import file_digest

    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


_OF_SEVERAL_FILES = frozenset({"sharded", "distributed", "deepspeed", "peft", "onnx"})
