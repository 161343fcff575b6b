"""What was found before: later audits fail only on what is new, and the globals of each file are locked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ckpt_tools.atomic import replacing
from ckpt_tools.audit.dangers import with_nested
from ckpt_tools.audit.results import UNREAD, Audited, fingerprints, path_key
from ckpt_tools.errors import CkptError
from ckpt_tools.records import record

VERSION = 2
"""Of the files that are written. Those of version 1 do not tell one payload of a danger from another."""


@record
class Baseline:
    """*findings* by fingerprint, each with a few words for whoever reads the file; *globals* by path.

    In one of an earlier *version* no danger has the fingerprint that it has now: such findings are told as new.
    """

    findings: Mapping[str, str]
    globals: Mapping[str, tuple[str, ...]]
    version: int = VERSION

    def locked(self, path: str) -> tuple[str, ...] | None:
        """The globals that the file at *path* named; None where it was not there."""
        return self.globals.get(path_key(path))

    def without_known(self, result: Audited) -> Audited:
        """*result* without the findings that stand in the baseline. What was not read is never known."""
        prints = list(fingerprints(result.findings))
        fresh = tuple(
            finding
            for finding, fingerprint in zip(result.findings, prints, strict=True)
            if fingerprint not in self.findings or finding.code == UNREAD
        )
        return replace(result, findings=fresh, known=len(result.findings) - len(fresh))


def load(path: str) -> Baseline:
    """The baseline in the file at *path*."""
    import json

    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        version = found["version"]
        if version not in (1, VERSION):
            raise CkptError(f"is a baseline of version {version!r:.20}, not {VERSION}", path=path)
        return Baseline(
            {str(key): str(what) for key, what in found["findings"].items()},
            {str(file): tuple(map(str, names)) for file, names in found["globals"].items()},
            version,
        )
    except OSError as error:
        raise CkptError(
            f"cannot be read: {error.strerror}", path=path, remedy="Make it with --write-baseline"
        ) from None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CkptError(f"is no baseline ({type(error).__name__}: {error})", path=path) from None


def write(path: str, results: Iterable[Audited]) -> None:
    """Record *results* at *path*, sorted, so that a changed baseline is easy to review."""
    import json

    findings: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    for result in results:
        for finding, fingerprint in zip(result.findings, fingerprints(result.findings), strict=True):
            findings[fingerprint] = f"{finding.code} {finding.location}"
        named = {name.name for verdict in with_nested(result.verdicts) for name in verdict.names}
        if result.verdicts:
            names[path_key(result.path)] = sorted(named)
    document = {
        "version": VERSION,
        "findings": dict(sorted(findings.items(), key=lambda item: (item[1], item[0]))),
        "globals": dict(sorted(names.items())),
    }
    with replacing(path) as file:
        file.write((json.dumps(document, indent=2) + "\n").encode("ascii"))
