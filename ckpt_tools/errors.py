"""What can go wrong, as a tree that callers can catch at the height they care about::

CkptError
├── NotFound             no such file, or no permission to read it
├── NotACheckpoint       the bytes are something else: an HTML page, an LFS pointer, nothing at all
├── CorruptFile          a known format, damaged or truncated
│   └── LimitExceeded    a size, count or depth that the bytes of the file cannot stand behind
├── UnsupportedFeature   well-formed, but nothing this version can do
├── Ambiguous            several candidates and no reason to prefer one
├── LossyConversion      the operation would lose information and was not told to
└── MissingDependency    an optional package is needed; says which extra brings it
"""

from __future__ import annotations


class CkptError(Exception):
    """One clear sentence about what is wrong, where, and what to do about it.

    *path* is the file as the user named it, *member* the archive member or part within it, *offset* a byte
    offset in that member (or in the file), *remedy* what the user can do.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | None = None,
        member: str | None = None,
        offset: int | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path
        self.member = member
        self.offset = offset
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        # as it is, whatever the class takes to make one: errors come back from other processes
        return _remade, (type(self), self.args, self.__dict__)

    def at(self, *, path: str | None = None, member: str | None = None) -> CkptError:
        """This error, with the place filled in where it is not known yet."""
        if self.path is None or self.path == path:  # else it names a member of its own already
            self.path, self.member = path, self.member or member
        return self

    def name(self, subject: str) -> None:
        """Put what the error is about, such as a tensor's name, before the problem."""
        if subject and not self.problem.startswith(subject):
            self.problem = f"{subject}: {self.problem}"

    @property
    def place(self) -> str:
        """``file: member, byte N``, as far as each is known."""
        parts = [part for part in (self.path, self.member) if part]
        place = ": ".join(parts)
        if self.offset is not None:
            place += f"{', ' if place else ''}byte {self.offset}"
        return place

    def __str__(self) -> str:
        place = self.place.replace("\n", "\\n")  # a line an error, whatever the file is called
        text = f"{place}: {self.problem}" if place else self.problem
        return f"{text}. {self.remedy}" if self.remedy else text


class NotFound(CkptError):
    """The path does not exist or cannot be read."""


class NotACheckpoint(CkptError):
    """The bytes are not a checkpoint; the message names what they are."""


class CorruptFile(CkptError):
    """A known format whose bytes contradict it."""


class LimitExceeded(CorruptFile):
    """A declared size, count or depth is beyond what the file's bytes can stand behind."""


class UnsupportedFeature(CkptError):
    """Well-formed input that asks for something this version cannot do."""


class Ambiguous(CkptError):
    """Several candidates fit; the message lists them."""


class LossyConversion(CkptError):
    """Information would be lost and the caller did not allow it."""


class MissingDependency(CkptError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed",
            remedy=f"Install it with: pip install 'ckpt-tools[{extra}]'",
        )
        self.package = package
        self.extra = extra


def _remade(cls: type[CkptError], args: tuple[object, ...], state: dict[str, object]) -> CkptError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error
