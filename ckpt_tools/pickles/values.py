"""What a pickle stream evaluates to when nothing is resolved and nothing is called.

Plain Python values stand for themselves (None, numbers, str, bytes, list, tuple, dict, set). What would need
an import or a call stays inert in one of the types below. They are mutable while the machine builds them,
since a pickle may refer to an object before it has filled it, and are compared by identity.
"""

from __future__ import annotations

from typing import Final

from ckpt_tools.errors import LimitExceeded

SPARE_WORK = 250_000
"""Copies, in elements, that any stream may ask for; see `Budget`."""

UNSET: Final = object()
"""Marks a `Call` whose meaning has not been looked for yet."""


class Budget:
    """Work that is not in proportion to the bytes which ask for it: copies of what a stream shares.

    A stream of *nbytes* may ask for `SPARE_WORK` elements and twice its length.
    """

    __slots__ = ("left",)

    def __init__(self, nbytes: int) -> None:
        self.left = SPARE_WORK + 2 * nbytes

    def spend(self, amount: int) -> None:
        """Account for *amount* elements; raises `LimitExceeded` where they are too many."""
        self.left -= amount
        if self.left < 0:
            raise LimitExceeded("the pickle copies what it shares far more often than its length allows for")


class Global:
    """A module-level name that the file refers to; only the name.

    *path* is ``module.name`` with Python 2's module names translated as an unpickler would
    (``__builtin__`` → ``builtins``); *module* and *name* are as in the file.
    """

    __slots__ = ("module", "name", "offset", "opcode", "path", "uses")

    def __init__(self, module: str, name: str, path: str, opcode: str, offset: int) -> None:
        self.module = module
        self.name = name
        self.path = path
        self.opcode = opcode
        self.offset = offset
        self.uses: set[str] = set()

    def __repr__(self) -> str:
        return f"<global {self.path}>"


class Call:
    """A call that an unpickler would have made: ``func(*args, **kwargs)``, or ``func.__new__`` where *new*.

    *state* is what BUILD would have set on the result, *items* what APPENDS would have appended, *entries*
    the key-value pairs SETITEMS would have stored. *meaning* caches what it stands for, once interpreted.
    """

    __slots__ = ("args", "entries", "func", "items", "kwargs", "meaning", "new", "offset", "state")

    def __init__(self, func: object, args: object, offset: int, new: bool = False) -> None:
        self.func = func
        self.args = args
        self.kwargs: object = None
        self.new = new
        self.offset = offset
        self.state: object = None
        self.items: list[object] | None = None
        self.entries: list[tuple[object, object]] | None = None
        self.meaning: object = UNSET

    @property
    def target(self) -> str:
        """The dotted name of what is called, "" where that is no global."""
        name = as_global(self.func)
        return name.path if name is not None else ""

    @property
    def class_name(self) -> str:
        """The dotted name of the class it makes an instance of, seen through copyreg's helpers."""
        if self.target in _HELPERS and type(self.args) is tuple and self.args:
            first = as_global(self.args[0])
            return first.path if first is not None else ""
        return self.target

    @property
    def arguments(self) -> tuple[object, ...]:
        """The positional arguments, () where the file gives something else."""
        return self.args if type(self.args) is tuple else ()

    @property
    def attributes(self) -> dict[object, object]:
        """The instance's attributes as far as BUILD gives them: the state, slots included."""
        state = self.state
        if type(state) is tuple and len(state) == 2:
            both: dict[object, object] = {}
            for part in state:
                if isinstance(part, dict):
                    both.update(part)
            return both
        return state if isinstance(state, dict) else {}

    def __repr__(self) -> str:
        return f"<{'new' if self.new else 'call'} {self.target or '?'}>"


_HELPERS = frozenset({"copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"})


class OrderedDict(dict[object, object]):
    """A ``collections.OrderedDict``; *state* holds attributes set on it, such as torch's ``_metadata``."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        # without dict's own __init__, which would do nothing, once for every tensor
        self.state: object = None


class PersistentId:
    """A reference to something outside the stream; torch uses it for storages, long ago also for tensors.

    *meaning* is what it refers to, once resolved.
    """

    __slots__ = ("meaning", "pid")

    def __init__(self, pid: object) -> None:
        self.pid = pid
        self.meaning: object = UNSET

    def __repr__(self) -> str:
        return "<persistent id>"


class Blob:
    """A long run of bytes inside the stream, left where it lies. *text* is true where it encodes a str.

    *length* caches how many characters that has, once they are counted.
    """

    __slots__ = ("length", "offset", "size", "text")

    def __init__(self, offset: int, size: int, text: bool) -> None:
        self.offset = offset
        self.size = size
        self.text = text
        self.length = -1

    def __repr__(self) -> str:
        return f"<{self.size:,} bytes{' of text' if self.text else ''}>"


def as_global(value: object) -> Global | None:
    """The global that *value* is, or that stands in its persistent id.

    Legacy files wrap the classes of modules so: ``('module', class, source_file, source_text)``; tar files
    have the last three.
    """
    if type(value) is PersistentId:
        pid = value.pid
        if type(pid) is tuple and len(pid) == 4 and pid[0] == "module":
            value = pid[1]
        elif type(pid) is tuple and len(pid) == 3:
            value = pid[0]
    return value if type(value) is Global else None


def plain(value: object) -> object:
    """What *value* stands for: the meaning of a call or a persistent id where it has one, else itself."""
    if type(value) is Call or type(value) is PersistentId:
        return value if value.meaning is UNSET or value.meaning is None else value.meaning
    return value


def key_text(key: object) -> str:
    """A mapping's key as text: names as they are, what Python 2 wrote as bytes whole, else anything in a few words."""
    if type(key) is str:
        return key
    key = plain(key)  # protocol 2 writes bytes as a call
    return str(key) if isinstance(key, int) else repr(key) if type(key) is bytes else brief(key)


def brief(value: object) -> str:
    """*value* in a few words for a message, at a bounded cost whatever a file makes it."""
    if type(value) is tuple:
        items = [f"a {type(v).__name__}" if type(v) is tuple else brief(v) for v in value[:6]]
        return f"({', '.join(items)}{', …' if len(value) > 6 else ''})"
    if isinstance(value, str | bytes):
        return repr(value[:60])
    if value is None or isinstance(value, float | Global):
        return repr(value)
    if isinstance(value, int) and value.bit_length() <= 64:
        return repr(value)
    return f"a {type(value).__name__}"
