"""Zip archives that hold checkpoints as members, such as those of Stable-Baselines3.

Stable-Baselines3 (stable_baselines3/common/save_util.py) writes ``policy.pth``, ``policy.optimizer.pth``,
``pytorch_variables.pth`` with torch.save, ``data`` as JSON in which what JSON cannot hold is a cloudpickle in
base64 under ``:serialized:``, ``_stable_baselines3_version`` and ``system_info.txt``.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from ckpt_tools.checkpoint import Anomaly, Checkpoint, Found, Pickle, Refusal, TrainingState
from ckpt_tools.errors import CkptError, LimitExceeded, NotACheckpoint, UnsupportedFeature
from ckpt_tools.formats.archive import Archive, Member
from ckpt_tools.formats.base import HEAD_BYTES, Format
from ckpt_tools.formats.unpickled import pickle_of
from ckpt_tools.pickles.machine import evaluate
from ckpt_tools.sources import MemorySource, Source

MAX_DEPTH = 2
"""How deep archives may lie in archives, the outermost included."""
MAX_MEMBERS = 10_000
"""How many members are looked at."""
MAX_INFLATED = 1 << 30
"""The most bytes that members compressed more than `FAIR_RATIO` may declare together: to see the end of one, all of
it is inflated."""
FAIR_RATIO = 4
"""Weights compress by less than this."""
MAX_JSON = 16 << 20
"""The longest ``data`` member that is parsed."""
MAX_TEXT = 200
"""The longest string taken over from it."""

_SYSTEM = {"Python": "python", "PyTorch": "torch", "Numpy": "numpy"}


class _Depth(int):
    """How many archives a member lies in; kept in its source's memo."""


@dataclass(slots=True)
class _Contents:
    """The members of an archive that are checkpoints, each with its format."""

    members: list[tuple[str, Source, Format]]
    anomalies: list[Anomaly]


def over(formats: Callable[[], tuple[Format, ...]]) -> Format:
    """The format, given how to get at the formats of members, among which it is itself."""

    def detect(source: Source, head: bytes) -> bool:
        depth = source.memo.get(_Depth, 0)
        if not head.startswith(b"PK\x03\x04") or not isinstance(depth, int) or depth >= MAX_DEPTH:
            return False
        contents = source.memo[_Contents] = _look_into(source, depth, formats())
        return bool(contents.members)

    return Format("archive", "zip archive of checkpoints", _read, detect)


def _look_into(source: Source, depth: int, formats: tuple[Format, ...]) -> _Contents:
    archive = Archive.of(source)
    if sum(member.compressed_size for member in archive.members) > source.size:
        raise LimitExceeded("the members of the zip archive overlap", path=source.name)
    contents = _Contents([], [])
    budget = MAX_INFLATED
    for member in archive.members[:MAX_MEMBERS]:
        if not member.size:
            continue
        if member.size > FAIR_RATIO * member.compressed_size:
            budget -= member.size
            if budget < 0:
                what = f"not looked into: {member.compressed_size:,} bytes would be inflated to {member.size:,}"
                contents.anomalies.append(Anomaly(what, member.name))
                continue
        try:
            found = archive.open(member)
        except UnsupportedFeature as error:
            contents.anomalies.append(Anomaly(error.problem, member.name))
            continue
        found.memo[_Depth] = _Depth(depth + 1)
        head = found.peek(0, HEAD_BYTES)
        for format in formats:
            if format.detect is not None and format.detect(found, head):
                contents.members.append((member.name, found, format))
                break
    if len(archive.members) > MAX_MEMBERS:
        contents.anomalies.append(
            Anomaly(f"of {len(archive.members):,} members only the first {MAX_MEMBERS:,} were looked at")
        )
    return contents


def _read(source: Source) -> Checkpoint:
    """Describe the archive by its members that are checkpoints."""
    contents = source.memo.pop(_Contents, None)
    if not isinstance(contents, _Contents):
        raise NotACheckpoint("the zip archive holds no checkpoint", path=source.name)
    parts: dict[str, Checkpoint] = {}
    for name, member, format in contents.members:
        if format.name == "pickle" and name.rpartition("/")[2] == "data.pkl":
            raise NotACheckpoint(
                "the zip archive holds the members of a torch archive, but not in the folder that torch looks for",
                path=source.name,
                member=name,
                remedy="Pack them again so that the first entry is a folder with data.pkl directly in it",
            )
        if name in parts:
            contents.anomalies.append(Anomaly("two members have this name; the last is described", name))
        try:
            parts[name] = format.read(member)  # type: ignore[arg-type]
        except CkptError as error:
            raise error.at(path=member.name) from None
    archive = Archive.of(source)
    data = _json(archive)
    serialized, oddities = _serialized(data)
    version = _text(archive, "_stable_baselines3_version")
    producer = {"stable-baselines3": version} if version else {}
    producer |= _system_info(_text(archive, "system_info.txt"))
    modules = [(name, part) for name, part in parts.items() if part.module is not None]
    return Checkpoint(
        path=source.name,
        source=source,
        format="archive",
        title="Stable-Baselines3 archive" if version else "zip archive of checkpoints",
        kind="archive",
        state_dicts=tuple(
            replace(found, path=(name, *found.path)) for name, part in parts.items() for found in part.state_dicts
        ),
        module=modules[0][1].module if modules else None,
        module_path=(modules[0][0], *modules[0][1].module_path) if modules else (),
        training=_training(parts, data),
        values={name: part.values for name, part in parts.items()},
        loose=tuple(((name, *path), tensor) for name, part in parts.items() for path, tensor in part.loose),
        metadata={key: value for key, value in data.items() if _is_small(value)},
        producer=producer,
        pickles=(
            *(
                replace(pickle, member=f"{name}: {pickle.member}")
                for name, part in parts.items()
                for pickle in part.pickles
            ),
            *serialized,
        ),
        refusals=(
            Refusal("zip archive", "torch.load takes its members, not the archive", is_global=False),
            *(
                replace(refusal, path=(name, *refusal.path))
                for name, part in parts.items()
                for refusal in part.refusals or ()
            ),
        ),
        anomalies=(
            *(
                Anomaly(anomaly.what, f"{name}: {anomaly.where}" if anomaly.where else name)
                for name, part in parts.items()
                for anomaly in part.anomalies
            ),
            *contents.anomalies,
            *oddities,
        ),
        parts=tuple(parts.values()),
        size=source.size,
    )


def _training(parts: Mapping[str, Checkpoint], data: Mapping[str, object]) -> TrainingState | None:
    """What the parts say of the run, each value under the name of its member, and the number of steps."""
    merged = TrainingState()
    runs = {name: part.training for name, part in parts.items() if part.training is not None}
    for name, run in runs.items():

        def below(found: Found | None, name: str = name) -> Found | None:
            return replace(found, path=(name, *found.path)) if found is not None else None

        merged = TrainingState(
            epoch=merged.epoch or below(run.epoch),
            step=merged.step or below(run.step),
            loss=merged.loss or below(run.loss),
            metrics={
                **{key: replace(found, path=(name, *found.path)) for key, found in run.metrics.items()},
                **merged.metrics,
            },
            lr=merged.lr or below(run.lr),
            optimizers=(*merged.optimizers, *(replace(o, path=(name, *o.path)) for o in run.optimizers)),
            schedulers=(*merged.schedulers, *((name, *path) for path in run.schedulers)),
            rng=(*merged.rng, *((name, *path) for path in run.rng)),
            arguments=merged.arguments or below(run.arguments),
        )
    steps = data.get("num_timesteps")
    if merged.step is None and isinstance(steps, int):
        return replace(merged, step=Found(steps, ("data", "num_timesteps")))
    return merged if runs else None


# --- what Stable-Baselines3 adds


def _member(archive: Archive, name: str, limit: int) -> bytes | None:
    member: Member | None = archive.find(name)
    if member is None or member.size > limit:
        return None
    return archive.open(member).read(0, member.size)


def _text(archive: Archive, name: str) -> str:
    return (_member(archive, name, 1 << 16) or b"").decode("utf-8", "replace").strip()


def _json(archive: Archive) -> dict[str, object]:
    raw = _member(archive, "data", MAX_JSON)
    try:
        data = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _is_small(value: object) -> bool:
    if isinstance(value, list):
        return (
            len(value) <= 16 and not any(isinstance(item, list | dict) for item in value) and all(map(_is_small, value))
        )
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and len(value) <= MAX_TEXT)


def _serialized(data: Mapping[str, object]) -> tuple[list[Pickle], list[Anomaly]]:
    """The pickles in the JSON, which Stable-Baselines3 would load; here they are only looked through."""
    pickles: list[Pickle] = []
    anomalies: list[Anomaly] = []
    for key, value in data.items():
        text = value.get(":serialized:") if isinstance(value, dict) else None
        if not isinstance(text, str):
            continue
        try:
            raw, member = base64.b64decode(text), f"data: {key[:MAX_TEXT]}"
            pickles.append(pickle_of(evaluate(raw), member, MemorySource(raw, member)))
        except (binascii.Error, ValueError, CkptError) as error:
            anomalies.append(Anomaly(f"a serialized value is no whole pickle ({error})", f"data: {key[:MAX_TEXT]}"))
    return pickles, anomalies


def _system_info(text: str) -> dict[str, str]:
    """The versions among the lines ``- PyTorch: 2.1.0``."""
    return dict(_versions(text))


def _versions(text: str) -> Iterator[tuple[str, str]]:
    for name, version in re.findall(r"^\W*(\w+): *(\S{1,80})$", text, re.M):
        if name in _SYSTEM:
            yield _SYSTEM[name], version
