"""What a rule sees of one file: `Subject`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from ckpt_tools.analysis.checksums import Checksums
from ckpt_tools.analysis.summary import Subject as Model
from ckpt_tools.analysis.summary import subject_of
from ckpt_tools.audit.configured import Named, decoded, named_code
from ckpt_tools.audit.coverage import Coverage, Opening, cover, in_tensors
from ckpt_tools.audit.dangers import PickleVerdict, judge, with_nested
from ckpt_tools.audit.findings import Finding, Location
from ckpt_tools.audit.inputs import TEXTS, has_companions
from ckpt_tools.audit.policy import Options
from ckpt_tools.checkpoint import Checkpoint, Module, Pickle, StateDict, TensorInfo, format_path
from ckpt_tools.errors import CkptError, NotFound
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.formats.archive import Archive, Member
from ckpt_tools.formats.json_text import JSON_LIMIT
from ckpt_tools.records import cached
from ckpt_tools.sources import FileSource, Folder, Source, is_url, open_source

if TYPE_CHECKING:
    from ckpt_tools.analysis.statistics import Statistics

HELD = 1 << 18
"""Bytes of a file up to which one read of all of it costs less than those of its headers one by one."""
SMALL = 4 << 20
"""Bytes of a file up to which a thread of its own costs more than it saves."""


class Subject:
    """One file, or one folder that is a checkpoint, with what is known of it.

    *checkpoint* is None where the file cannot be read as one, and *error* says why. Everything else is worked
    out when a rule first asks, once.
    """

    def __init__(
        self,
        path: str,
        source: Source | Folder,
        checkpoint: Checkpoint | None,
        error: CkptError | None = None,
        options: Options | None = None,
    ) -> None:
        self.path = path
        self.source = source
        self.checkpoint = checkpoint
        self.error = error
        self.options = options or Options()

    @classmethod
    def open(cls, path: str, options: Options | None = None) -> Subject:
        """The file or folder at *path*. Raises `NotFound` where it cannot be read at all."""
        if is_url(path):
            from ckpt_tools.remote import open_url

            source = open_url(path)
        else:
            source = open_source(path)
        return cls.of(source, path, options)

    @classmethod
    def of(cls, source: Source | Folder, path: str = "", options: Options | None = None) -> Subject:
        """The subject over *source*."""
        path = path or source.name
        if isinstance(source, Folder):
            source = Opening(source)
        try:
            if isinstance(source, FileSource) and source.size <= HELD:
                source.hold()
            return cls(path, source, open_checkpoint(source), None, options)
        except NotFound:
            raise
        except CkptError as error:
            return cls(path, source, None, error, options)

    def finding(
        self,
        message: str,
        *,
        member: str = "",
        offset: int | None = None,
        tensor: str = "",
        evidence: Mapping[str, object] | None = None,
        remedy: str = "",
    ) -> Finding:
        """A finding of the rule at hand; *evidence* holds plain JSON values, *remedy* "" is the rule's own."""
        return Finding("", "", "error", message, Location(self.path, member, offset, tensor), evidence or {}, remedy)

    @property
    def size(self) -> int:
        """Its bytes, of a folder those of the files that the checkpoint is made of."""
        return self.source.size if isinstance(self.source, Source) else self.checkpoint.size if self.checkpoint else 0

    @property
    def file(self) -> Source | None:
        """The file; None for a folder."""
        return self.source if isinstance(self.source, Source) else None

    @property
    def is_remote(self) -> bool:
        """Whether it stands at a URL."""
        return is_url(self.path)

    @cached
    def archive(self) -> Archive | None:
        """The zip archive that the file is, or ends in; None where there is none that can be read."""
        if self.file is None:
            return None
        try:
            return Archive.of(self.file)
        except CkptError:
            return None

    @cached
    def coverage(self) -> Coverage:
        """What of the file has been looked at."""
        seen = cover(self.source, self.checkpoint, self.error)
        may_be = any(storage.dtype is None or storage.dtype.itemsize == 1 for storage in seen.storages)
        kept = tuple(in_tensors(self.checkpoint)) if self.checkpoint is not None and may_be else ()
        return replace(seen, pickles=(*seen.pickles, *kept)) if kept else seen

    @cached
    def other_members(self) -> tuple[Member, ...]:
        """The members of the archive that are not tensors' bytes."""
        tensors = {region.member for region in self.coverage.regions if region.how == "tensor data"}
        return tuple(member for member in (self.archive.members if self.archive else ()) if member.name not in tensors)

    @cached
    def pickles(self) -> tuple[Pickle, ...]:
        """Every pickle in the file, those included that its format does not lead to."""
        own = self.checkpoint.pickles if self.checkpoint is not None else ()
        return (*own, *self.coverage.pickles)

    @cached
    def verdicts(self) -> tuple[PickleVerdict, ...]:
        """The answer for each of `pickles`."""
        return tuple(judge(pickle) for pickle in self.pickles)

    @cached
    def all_verdicts(self) -> tuple[PickleVerdict, ...]:
        """`verdicts`, each followed by those of the pickles in its byte strings."""
        return tuple(with_nested(self.verdicts))

    @cached
    def companions(self) -> Folder | None:
        """The folder from which Transformers and others read further files with it; None where they read none."""
        if isinstance(self.source, Folder):
            return self.source
        wanted = has_companions(self.path) and not self.is_remote  # a file at a URL is that file
        return self.source.folder() if wanted else None

    @cached
    def named_code(self) -> tuple[Named, ...]:
        """What the file, if it is no model but a configuration, has called that does harm."""
        file = self.file
        if self.checkpoint is not None or file is None or not self.path.lower().endswith(TEXTS):
            return ()
        return tuple(dict.fromkeys(named_code(decoded(file.read(0, min(file.size, JSON_LIMIT))))))

    @cached
    def checkpoints(self) -> tuple[tuple[str, Checkpoint], ...]:
        """The file's own and those of the files in it, each with its place, "" for the first."""
        if self.checkpoint is None:
            return self.coverage.checkpoints
        parts = ((part.path, part) for part in self.checkpoint.parts)
        return (("", self.checkpoint), *parts, *self.coverage.checkpoints)

    @cached
    def state_dicts(self) -> tuple[StateDict, ...]:
        """Those of the file, the module's own first."""
        if self.checkpoint is None:
            return ()
        found = list(self.checkpoint.state_dicts)
        if self.checkpoint.module is not None:
            own = self.checkpoint.module.state_dict()
            found.insert(0, StateDict(self.checkpoint.module_path, "model", own.entries, own.metadata))
        return tuple(found)

    @cached
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The tensors of all `state_dicts`; names are those in their state_dict."""
        return tuple(tensor for found in self.state_dicts for tensor in found.tensors)

    @cached
    def listing(self) -> str:
        """The keys of all `state_dicts`, a line each: what none of them has is seen at one look."""
        return "\n".join(["", *(name for found in self.state_dicts for name in found.entries), ""])

    @cached
    def loose(self) -> StateDict:
        """The tensors that stand in no state_dict, under where they stand: a lone one, those of a list."""
        found = self.checkpoint.loose if self.checkpoint is not None else ()
        return StateDict((), "other", {format_path(path): tensor for path, tensor in found})

    @cached
    def statistics(self) -> tuple[tuple[TensorInfo, Statistics | None], ...]:
        """Each of `tensors` and `loose` with its numbers, from one pass over the bytes; None where it has none."""
        from ckpt_tools.analysis.statistics import Statistics, statistics_of

        tensors = (*self.tensors, *self.loose.tensors)
        numbers = statistics_of(tensors, threads=2 if self.size > SMALL else 1, checksums=self._read)
        found = (one if isinstance(one, Statistics) else None for one in numbers)
        return tuple(zip(tensors, found, strict=True))

    @property
    def module(self) -> Module | None:
        """The ``nn.Module`` that is pickled in it."""
        return self.checkpoint.module if self.checkpoint is not None else None

    def numbers_of(self, tensor: TensorInfo) -> Statistics | None:
        """The numbers of a tensor that is, under whatever name, among `tensors`; None where it has none."""
        place = _elements(tensor)
        return next((numbers for other, numbers in self.statistics if _elements(other) == place), None)

    @cached
    def _read(self) -> Checksums | None:
        """Where the checksums of what is read are noted; None where nobody compares them."""
        if self.archive is None or not any(member.crc for member in self.archive.members):
            return None
        return Checksums()

    @cached
    def checksums(self) -> Checksums:
        """Those of the bytes that `statistics` reads, so that they are not read twice."""
        with suppress(CkptError):  # what cannot be read is told by who asks for the numbers
            _ = self.statistics
        return self._read or Checksums()

    @cached
    def model(self) -> Model | None:
        """The model in the file with the verdicts on its parameters; None where there is none, or more than one."""
        if self.checkpoint is None:
            return None
        try:
            return subject_of(self.checkpoint)
        except CkptError:
            return None

    @cached
    def base(self) -> Checkpoint | None:
        """The checkpoint to compare with, where the user names one."""
        base = self.options.policy.base
        return open_checkpoint(base) if base else None


def _elements(tensor: TensorInfo) -> object:
    """What is the same for all names of a tensor."""
    return id(tensor.storage), tensor.dtype.name, tensor.storage_offset, tensor.shape, tensor.stride
