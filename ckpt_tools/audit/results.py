"""What an audit says of one file: `Audited`, as plain values that go to another process, into a cache, into JSON."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, field
from typing import Any

from ckpt_tools.audit.coverage import Coverage
from ckpt_tools.audit.dangers import Danger, NameVerdict, PickleVerdict
from ckpt_tools.audit.findings import SEVERITIES, Finding, Location, Severity
from ckpt_tools.records import comparable, record
from ckpt_tools.report import plain_json

UNREAD = "I102"
"""The rule whose findings no ``--fail-on`` passes over: something loadable was not looked at."""


@comparable
class Bytes:
    """How many bytes of a file were examined, are tensor data, are of a kind that nothing runs, were not read."""

    examined: int = 0
    tensor_data: int = 0
    inert: int = 0
    unread: int = 0

    @classmethod
    def of(cls, coverage: Coverage) -> Bytes:
        """The sums of *coverage*."""
        sums = dict.fromkeys(("examined", "tensor data", "inert", "unread"), 0)
        for region in coverage.regions:
            sums[region.how] += region.size
        return cls(sums["examined"], sums["tensor data"], sums["inert"], sums["unread"])


@record
class Audited:
    """The result for one file or folder.

    *format* and *kind* are those of the checkpoint, "" where there is none. *waived* are findings that a waiver of
    the policy covers, each with its reason; *known* is how many more stand in the baseline. *skipped* says what the
    file is where it plainly is no model; *failure* what went wrong where it could not be examined at all.
    *container* is the file that it lies in, for what was unpacked; its *path* then begins with that.
    """

    path: str
    format: str = ""
    title: str = ""
    kind: str = ""
    size: int = 0
    verdicts: tuple[PickleVerdict, ...] = ()
    findings: tuple[Finding, ...] = ()
    waived: tuple[tuple[Finding, str], ...] = ()
    known: int = 0
    bytes: Bytes = field(default_factory=Bytes)
    skipped: str = ""
    failure: str = ""
    container: str = ""

    @property
    def answer(self) -> str:
        """The gravest answer that one of its pickles gets; "no pickle" where there is none."""
        answers = {verdict.answer for verdict in self.verdicts}
        return next((a for a in ("dangerous", "unknown", "needs classes", "tensors only") if a in answers), "no pickle")

    def data(self) -> dict[str, Any]:
        """The result for machines: what ``--format json`` prints of the file."""
        prints = fingerprints(self.findings)
        return {
            "path": self.path,
            "format": self.format,
            "title": self.title,
            "kind": self.kind,
            "size": self.size,
            "answer": self.answer,
            "pickles": [asdict(verdict) for verdict in self.verdicts],
            "bytes": asdict(self.bytes),
            "findings": [
                {**_finding_data(finding), "fingerprint": fingerprint}
                for finding, fingerprint in zip(self.findings, prints, strict=True)
            ],
            "waived": [{**_finding_data(finding), "reason": reason} for finding, reason in self.waived],
            "known": self.known,
            "skipped": self.skipped,
            "failure": self.failure,
            "container": self.container,
        }

    @classmethod
    def of(cls, data: Mapping[str, Any], path: str) -> Audited:
        """The result that `data` was made of, now for the same content at *path*."""

        def finding(item: Mapping[str, Any]) -> Finding:
            place = Location(path, item["member"], item["offset"], item["tensor"])
            return Finding(
                item["code"],
                item["name"],
                item["severity"],
                item["message"],
                place,
                item["evidence"],
                item["remedy"],
            )

        return cls(
            path,
            data["format"],
            data["title"],
            data["kind"],
            data["size"],
            tuple(map(_verdict, data["pickles"])),
            tuple(finding(item) for item in data["findings"]),
            tuple((finding(item), item["reason"]) for item in data["waived"]),
            data["known"],
            Bytes(**data["bytes"]),
            data["skipped"],
            data["failure"],
            data["container"],
        )


def artifact(data: Mapping[str, Any]) -> tuple[str, str]:
    """Of a result's data, the path of the file that there is, and what lies before its members' names for others."""
    container, path = data["container"], data["path"]
    inside = path.removeprefix(f"{container}: ") if container else ""
    # code hosts know files by their paths from the root of the repository
    return (container or path).removeprefix("./"), inside


def place(finding: Mapping[str, Any], prefix: str) -> str:
    """Where in its file a finding is, without the offset; *prefix* is that of `artifact`."""
    member = ": ".join(part for part in (prefix, finding["member"]) if part)
    return ", ".join(part for part in (member, finding["tensor"]) if part)


def fingerprints(findings: Iterable[Finding]) -> Iterator[str]:
    """For each finding of one file what stays the same when the file is trained on: rule, place and name, no numbers.

    Of what would do harm also the payload, see `ckpt_tools.audit.payload`. Findings that agree in all of these are told
    apart by their order.
    """
    from hashlib import sha256

    seen: Counter[tuple[str, ...]] = Counter()
    for finding in findings:
        place = finding.location
        payload = (finding.payload,) if finding.payload else ()
        parts = (finding.code, path_key(place.path), place.member, place.tensor, finding.about, *payload)
        text = "\0".join((*parts, str(seen[parts])))
        seen[parts] += 1
        yield sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def path_key(path: str) -> str:
    """*path* so that two ways to write it are one."""
    return path if "://" in path else os.path.normpath(path).replace(os.sep, "/")


def exit_code(results: Iterable[Audited], fail_on: Severity) -> int:
    """2 where a file could not be examined or nothing was, 1 for findings from *fail_on* up, else 0."""
    examined = failed = found = False
    grave = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    for result in results:
        failed |= bool(result.failure)
        examined |= not (result.failure or result.skipped)
        found |= any(finding.severity in grave or finding.code == UNREAD for finding in result.findings)
    return 2 if failed or not examined else 1 if found else 0


def summed(results: Sequence[Audited]) -> dict[str, int]:
    """How many files were examined, skipped and failed, and how many findings of each severity there are."""
    found = Counter(finding.severity for result in results for finding in result.findings)
    return {
        "files": sum(not (result.skipped or result.failure) for result in results),
        "skipped": sum(bool(result.skipped) for result in results),
        "failed": sum(bool(result.failure) for result in results),
        **{f"{severity}s": found[severity] for severity in SEVERITIES},
        "waived": sum(len(result.waived) for result in results),
        "known": sum(result.known for result in results),
    }


def _verdict(data: Mapping[str, Any]) -> PickleVerdict:
    return PickleVerdict(
        **{
            **data,
            "names": tuple(NameVerdict(**name) for name in data["names"]),
            "reasons": tuple(data["reasons"]),
            "dangers": tuple(Danger(**danger) for danger in data["dangers"]),
            "refusals": tuple(data["refusals"]),
            "nested": tuple(map(_verdict, data["nested"])),
        }
    )


def _finding_data(finding: Finding) -> dict[str, Any]:
    place = finding.location
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "message": finding.message,
        "member": place.member,
        "offset": place.offset,
        "tensor": place.tensor,
        "evidence": plain_json(dict(finding.evidence)),
        "remedy": finding.remedy,
    }
