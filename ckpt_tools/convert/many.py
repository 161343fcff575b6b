"""Many conversions: a tree of files into a tree. A bad file is told and passed over, and what is done stays done.

A line a file in the manifest of the output folder says what was read and written, with sizes and times of change.
Where all of these still hold, and the options, the file is passed over unread. An output that no line vouches for
(the run was killed, or the manifest is gone) is read and compared with its source instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import BinaryIO

from ckpt_tools.atomic import PARTIAL, Batch
from ckpt_tools.convert.run import Conversion, carry_out, check_existing, prepare, report
from ckpt_tools.errors import CkptError
from ckpt_tools.fleet import run_all
from ckpt_tools.forks import together

MANIFEST = ".ckpt-convert.jsonl"
"""In the output folder: a JSON object a line; of two for one target the later counts."""

BATCH_FILES = 32
"""Files that are put in place together."""
BATCH_BYTES = 64 << 20
"""And how many bytes they have; a larger file goes alone."""


@dataclass(frozen=True, slots=True)
class Task:
    """A file or folder to convert, where to, and its size in bytes; *rival* is another that would go there as well."""

    source: str
    target: str
    nbytes: int = 0
    rival: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """What is done with each file: *preparing* goes to `run.prepare`; *stories* asks for the data of each report."""

    preparing: Mapping[str, object] = field(default_factory=dict)
    verify: bool = True
    allow_lossy: bool = False
    force: bool = False
    dry_run: bool = False
    stories: bool = False

    @property
    def fingerprint(self) -> str:
        """What the output depends on besides the source, in few characters."""
        return hashlib.sha256(repr(sorted(self.preparing.items())).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Done:
    """A file that is where it should be.

    *how* is ``converted``, ``unchanged`` (the manifest says so), ``compared`` (it was there, and is equal) or
    ``planned``. *record* is its line for the manifest, *story* the data of its report. *unmatched* are the options
    that fit none of its names, as in the plan.
    """

    task: Task
    how: str
    tensors: int
    nbytes: int
    left: int = 0
    record: Mapping[str, object] | None = None
    story: Mapping[str, object] | None = None
    unmatched: tuple[tuple[str, str], ...] = ()


Outcome = Done | CkptError

_SUFFIX = re.compile(
    r"(\.(pth\.tar|pt2?|pth|ckpt|bin|safetensors|np[yz]|gguf|onnx|pkl|pickle|zip|tar)(\.index\.json)?)$", re.I
)


def tasks(found: Iterable[tuple[str, str]], folder: str, suffix: str) -> list[Task]:
    """What goes where: *found* are pairs of the folder that an argument begins at, and a path that it names.

    The tree below what all these folders have in common is kept; names end in *suffix* for their own suffix. What
    lies in the output *folder*, or is another's target, is no source. Two that would become one are each the other's
    rival.
    """
    pairs = [(root, path) for root, path in found if not path.endswith(PARTIAL)]
    if not pairs:
        return []
    top = os.path.commonpath([os.path.abspath(root) for root, _ in pairs])
    inside, beginning = (os.path.join(os.path.realpath(path), "") for path in (folder, top))
    is_below = len(inside) > len(beginning) and inside.startswith(beginning)
    sources: dict[str, str] = {}
    for _, path in pairs:
        own = os.path.abspath(path)
        if is_below and os.path.realpath(own).startswith(inside):
            continue
        name = os.path.relpath(own, top)
        sources[path] = os.path.join(folder, _stem(name) + suffix)
    others: dict[str, list[str]] = {}
    for path, target in sources.items():
        others.setdefault(os.path.realpath(target), []).append(path)
    for path in list(sources):
        if any(other != path for other in others.get(os.path.realpath(path), ())):
            del sources[path]
    made: dict[str, list[str]] = {}
    seen: set[str] = set()
    for path, target in sources.items():
        if os.path.abspath(path) not in seen:
            seen.add(os.path.abspath(path))
            made.setdefault(os.path.realpath(target), []).append(path)
    return [
        Task(path, sources[path], _size(path), next((other for other in paths if other != path), ""))
        for paths in made.values()
        for path in paths
    ]


def _stem(name: str) -> str:
    """*name* without what says the format: an ``epoch_1.5`` stays whole."""
    stem = _SUFFIX.sub("", name)
    return stem if os.path.basename(stem) else name


def _size(path: str) -> int:
    return sum(size for size, _ in _files(path).values())


def _files(path: str) -> dict[str, list[int]]:
    """The states of a file, or of those in a folder and below it."""
    if not os.path.isdir(path):
        return {path: _state(path)}
    found = (os.path.join(root, name) for root, _, names in os.walk(path) for name in names)
    return {name: _state(name) for name in found}


def _state(path: str) -> list[int]:
    """Size in bytes and time of change in nanoseconds; -1 where there is nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


def convert_all(
    todo: Sequence[Task], folder: str, options: Options, *, jobs: int = 1, dask: str | None = None
) -> Iterator[tuple[Task, Outcome]]:
    """Convert all of *todo* into the output *folder*, and say of each, in order, what became of it."""
    known = _Manifest(folder, options)
    alone = [task for task in todo if not task.rival]
    unchanged = {task: done for task in alone if (done := known.unchanged(task)) is not None}
    rest = [task for task in alone if task not in unchanged]
    outcomes = _outcomes(rest, options, jobs, dask)
    try:
        for task in todo:
            if task.rival:
                outcome: Outcome = _rivalry(task)
            else:
                outcome = unchanged[task] if task in unchanged else next(outcomes)
            if isinstance(outcome, CkptError):
                outcome = outcome.at(path=task.source)
            elif outcome.record is not None:
                known.add(task, outcome.record)
            yield task, outcome
    finally:
        known.close()
        outcomes.close()


def _rivalry(task: Task) -> CkptError:
    return CkptError(
        f"would be written to {task.target}, and so would {task.rival}",
        path=task.source,
        remedy="Convert one of them alone, or in another run",
    )


class _Manifest:
    """What earlier runs noted in the output folder, and what this one does."""

    def __init__(self, folder: str, options: Options) -> None:
        self._folder = folder
        self._path = os.path.join(folder, MANIFEST)
        self._options = options
        self._file: BinaryIO | None = None
        self._records: dict[str, dict[str, object]] = {}
        try:
            with open(self._path, "rb") as file:
                for line in file:
                    self._read(line)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise CkptError(f"cannot be read: {error.strerror}", path=self._path) from None

    def unchanged(self, task: Task) -> Done | None:
        """What became of *task* earlier, where nothing has changed since."""
        record = self._records.get(os.path.relpath(task.target, self._folder))
        if record is None or record.get("source") != os.path.abspath(task.source):
            return None
        if record.get("options") != self._options.fingerprint or (self._options.verify and not record.get("digest")):
            return None
        read, written = record.get("read"), record.get("written")
        if not isinstance(read, dict) or not isinstance(written, dict) or not written:
            return None
        if os.path.isdir(task.source) and not _files(os.path.abspath(task.source)).keys() <= read.keys():
            return None
        place = os.path.dirname(task.target)
        if any(_state(path) != state for path, state in read.items()):
            return None
        if any(_state(os.path.join(place, name)) != state for name, state in written.items()):
            return None
        tensors, nbytes = record.get("tensors"), record.get("bytes")
        if not isinstance(tensors, int) or not isinstance(nbytes, int):
            return None
        noted = record.get("unmatched")
        pairs = [tuple(pair) for pair in noted if isinstance(pair, list)] if isinstance(noted, list) else []
        return Done(task, "unchanged", tensors, nbytes, unmatched=tuple(pairs))

    def add(self, task: Task, record: Mapping[str, object]) -> None:
        """Note that *task* is done."""
        line = {"target": os.path.relpath(task.target, self._folder), **record}
        text = json.dumps(line, ensure_ascii=True, separators=(",", ":"))
        try:
            if self._file is None:
                self._file = open(self._path, "ab")  # noqa: SIM115 - open as long as there is something to note
                self._file.write(b"\n" if self._file.tell() else b"")  # a killed run may have left half a line
            self._file.write(text.encode("ascii") + b"\n")
            self._file.flush()
        except OSError as error:
            raise CkptError(f"cannot be written: {error.strerror}", path=self._path) from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _read(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(record, dict) and isinstance(record.get("target"), str):
            self._records[record["target"]] = record


def _outcomes(rest: Sequence[Task], options: Options, jobs: int, dask: str | None) -> Generator[Outcome, None, None]:
    work = partial(_convert_together, options)
    groups = list(_groups(rest, jobs))
    for group, outcome in zip(groups, run_all(work, groups, jobs=jobs, dask=dask), strict=True):
        if not isinstance(outcome, CkptError):
            yield from outcome
        elif len(group) == 1:
            yield outcome
        else:
            # one of them was too much for the process: alone it hurts no other
            alone = [[task] for task in group]
            for single in run_all(work, alone, jobs=max(jobs, 2), dask=dask):
                yield from [single] if isinstance(single, CkptError) else single


def _groups(rest: Sequence[Task], jobs: int) -> Iterator[list[Task]]:
    most = min(BATCH_FILES, max(1, len(rest) // (2 * jobs)))
    return together(rest, lambda task: task.nbytes, BATCH_BYTES, most)


# --- in a process


def _convert_together(options: Options, group: Sequence[Task]) -> list[Outcome]:
    with Batch() as batch:
        outcomes = [_try(task, options, batch) for task in group]
        errors = batch.put_in_place()
    return [errors.get(task.target) or _signed(outcome) for task, outcome in zip(group, outcomes, strict=True)]


def _try(task: Task, options: Options, batch: Batch) -> Outcome:
    # what each of them comes to, of which run_all tells only for all together
    (outcome,) = run_all(partial(_convert, options=options, batch=batch), [task])
    return outcome


def _convert(task: Task, options: Options, batch: Batch) -> Done:
    conversion, watch = prepare(task.source, task.target, **options.preparing, force=True)  # type: ignore[arg-type]
    how = "planned"
    if not options.dry_run:
        _make_folder(os.path.dirname(task.target))
        if conversion.existing() and not options.force:
            how = "compared"
            try:
                conversion = check_existing(conversion)
            except CkptError:
                raise CkptError(
                    "exists already, and is not what would be written", path=task.target, remedy="--force replaces it"
                ) from None
        else:
            how = "converted"
            conversion = carry_out(
                conversion, watch, verify=options.verify, allow_lossy=options.allow_lossy, batch=batch
            )
    # in a folder also what was not needed: another file would have been
    read = {**(_files(task.source) if os.path.isdir(task.source) else {}), **watch.states()}
    return Done(
        task,
        how,
        len(conversion.plan.entries),
        conversion.nbytes,
        len(conversion.plan.left),
        _record(task, conversion, options, read) if not options.dry_run else None,
        dict(report(conversion, not options.dry_run).data) if options.stories else None,
        conversion.plan.unmatched,
    )


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path or ".", exist_ok=True)
    except OSError as error:
        raise CkptError(f"cannot be made: {error.strerror}", path=path) from None


def _record(task: Task, conversion: Conversion, options: Options, read: Mapping[str, list[int]]) -> dict[str, object]:
    return {
        "source": os.path.abspath(task.source),
        "options": options.fingerprint,
        "digest": conversion.source.sha256 if conversion.source is not None else None,
        "tensors": len(conversion.plan.entries),
        "bytes": conversion.nbytes,
        "unmatched": conversion.plan.unmatched,
        "read": {os.path.abspath(path): state for path, state in read.items()},
        "files": conversion.files,
    }


def _signed(outcome: Outcome) -> Outcome:
    """*outcome* with the states of the files that are in their places now."""
    if isinstance(outcome, CkptError) or outcome.record is None:
        return outcome
    record = dict(outcome.record)
    folder = os.path.dirname(outcome.task.target)
    names = record.pop("files")
    assert isinstance(names, tuple)
    record["written"] = {name: _state(os.path.join(folder, name)) for name in names}
    return replace(outcome, record=record)
