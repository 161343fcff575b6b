"""The pickle machine: evaluates every opcode of protocols 0 to 5 to inert values.

It resolves no name and calls nothing. It is iterative, so depth costs no recursion, and every size is checked
against the bytes that are there before anything is allocated. What Python's own unpickler would accept, it
accepts; where streams are odd in ways that unpicklers tolerate, it says so in `Evaluation.anomalies`.

Opcode semantics follow Lib/pickle.py and Modules/_pickle.c of CPython 3.11 to 3.14.
"""

from __future__ import annotations

import gc
import mmap
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable
from itertools import compress
from struct import Struct
from struct import error as struct_error

from ckpt_tools.checkpoint import Refusal
from ckpt_tools.errors import CorruptFile, LimitExceeded
from ckpt_tools.pickles.values import Blob, Budget, Call, Global, OrderedDict, PersistentId, as_global

BLOB_BYTES = 4096
"""Byte strings from this size on are left in the file as a `Blob`."""
BLOB_TEXT = 1 << 16
"""The same for text, which is rarely that long unless it carries an array (protocols below 3)."""
MAX_DIGITS = 4300
"""Python's own limit on the digits of a decimal integer literal (sys.int_info)."""
MAX_KEY_NODES = 4096
"""The most elements, nested ones counted each time they occur, in a tuple or frozenset used as a key."""
MAX_KEY_DEPTH = 32
"""How deep such keys may nest: hashing and comparing them recurse in C."""
MAX_KEY_BITS = 8192
"""The widest integer used as a key: hashing reads all of it, and keys are shown in paths."""
MAX_SAME_HASH = 256
"""The most keys of one mapping with the same hash; tuples and wide integers can be made to collide."""

Buffer = bytes | mmap.mmap

_U16 = Struct("<H").unpack_from
_I32 = Struct("<i").unpack_from
_U32 = Struct("<I").unpack_from
_U64 = Struct("<Q").unpack_from
_F64 = Struct(">d").unpack_from


class Evaluation:
    """What a stream evaluates to.

    *root* is the value at STOP, *end* the offset after it. *calls* holds every `Call` in the order they would
    be made, *persistent* every persistent id likewise, *globals* every name in order of first mention (its
    key says whether Python 2's names were in force), *opcodes* the codes that occur, *anomalies* pairs of an
    oddity and its offset, *misuses* those oddities that torch's weights_only unpickler refuses, each with the
    opcode that it stands at. *refusals* are kept by `weights_only.refusals`.
    """

    __slots__ = (
        "anomalies",
        "calls",
        "end",
        "globals",
        "misuses",
        "opcodes",
        "persistent",
        "protocol",
        "refusals",
        "root",
        "start",
    )

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        self.root: object = None
        self.protocol = 0
        self.calls: list[Call] = []
        self.persistent: list[PersistentId] = []
        self.globals: dict[tuple[str, str, bool], Global] = {}
        self.opcodes: frozenset[int] = frozenset()
        self.anomalies: list[tuple[str, int]] = []
        self.misuses: dict[str, int] = {}
        self.refusals: tuple[Refusal, ...] | None = None


class Truncated(CorruptFile):
    """The bytes end before the pickle does."""


def evaluate(data: Buffer, start: int = 0) -> Evaluation:
    """Evaluate the one pickle that begins at *start* of *data*.

    Raises `CorruptFile` (with ``offset``, and what was read so far in its ``partial`` attribute) where the
    stream cannot be evaluated, `Truncated` where more bytes might help.
    """
    machine = _Machine(data, start)
    kind: type[CorruptFile] = CorruptFile
    collecting = gc.isenabled()
    gc.disable()  # nothing becomes garbage meanwhile, and looking for it takes a third of the time
    try:
        result = machine.run()
        if _arrays_between(result):
            result.end = result.start  # which is not known
            raise CorruptFile("the bytes of arrays stand between its opcodes, as joblib writes them")
        return result
    except (_Short, struct_error):
        kind, problem = Truncated, "the pickle breaks off"
    except IndexError:
        if machine.cut():
            kind, problem = Truncated, "the pickle breaks off"
        else:
            problem = "an opcode finds too few values on the stack"
    except KeyError as error:
        problem = f"memo entry {error.args[0]} is fetched before anything was stored there"
    except UnicodeDecodeError:
        problem = "a string or name is not validly encoded"
    except ValueError as error:
        problem = str(error)
    except CorruptFile as error:
        error.partial = machine.result  # type: ignore[attr-defined]
        error.offset = machine.at if error.offset is None else error.offset
        raise
    finally:
        if collecting:
            gc.enable()
    failure = kind(problem, offset=machine.at)
    failure.partial = machine.result  # type: ignore[attr-defined]
    raise failure from None


def _arrays_between(result: Evaluation) -> bool:
    """Whether joblib's unpickler would read bytes of arrays from the stream, and opcodes only behind them.

    What was read as opcodes, up to some STOP, is none of it then (joblib/numpy_pickle.py: NumpyUnpickler.load_build).
    """
    for old in (False, True):
        wrapper = result.globals.get(("joblib.numpy_pickle", "NumpyArrayWrapper", old))
        if wrapper is not None and wrapper.uses:
            return True
    return False


class _Short(Exception):
    """An argument reaches past the end of the data."""


class _Machine:
    """The state of one evaluation; `run` has the frequent opcodes inline, the rest are methods."""

    def __init__(self, data: Buffer, start: int) -> None:
        self.data = data
        self.end = len(data)
        self.at = start  # of the opcode being executed
        self.position = start  # of the next byte; kept by the methods, `run` works on a local copy
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}
        self.protocol = 0  # that of the last PROTO, which is what unpicklers go by
        self.spend = Budget(self.end - start).spend
        self.short_frame: Truncated | None = None
        self.merged: dict[int, object] = {}  # by id, the states that several BUILDs were merged into
        self.long_keys: dict[int, tuple[Blob, str]] = {}  # by id
        self.same_hash: dict[tuple[int, int], int] = {}  # keys seen, by mapping and hash
        self.result = Evaluation(start)

    def cut(self) -> bool:
        """Whether the opcode at hand, or its one-byte argument, lies beyond the end."""
        return self.at >= self.end or (self.at + 1 >= self.end and self.data[self.at] in b"qhK\x8c")

    def run(self) -> Evaluation:
        data, end, result = self.data, self.end, self.result
        memo, calls, marks = self.memo, result.calls, self.marks
        persistent = result.persistent
        stack = self.stack
        seen = [False] * 256  # a list, to which Python writes faster than to a bytearray
        position = at = self.position
        try:
            while True:
                at = position
                code = data[at]
                position = at + 1
                seen[code] = True
                # in order of frequency in torch's pickles, by halves
                if code > 0x70:
                    if code == 0x71:  # BINPUT
                        memo[data[position]] = stack[-1]
                        position += 1
                    elif code == 0x72:  # LONG_BINPUT
                        memo[_U32(data, position)[0]] = stack[-1]
                        position += 4
                    elif code == 0x74:  # TUPLE
                        items = stack
                        stack = marks.pop()
                        stack.append(tuple(items))
                    elif code == 0x85:  # TUPLE1
                        stack[-1] = (stack[-1],)
                    elif code == 0x86:  # TUPLE2
                        last = stack.pop()
                        stack[-1] = (stack[-1], last)
                    elif code == 0x89:  # NEWFALSE
                        stack.append(False)
                    elif code == 0x7D:  # EMPTY_DICT
                        stack.append({})
                    elif code == 0x94:  # MEMOIZE
                        memo[len(memo)] = stack[-1]
                    elif code == 0x8C:  # SHORT_BINUNICODE
                        size = data[position]
                        position += 1
                        start, position = position, position + size
                        if position > end:
                            raise _Short
                        stack.append(str(data[start:position], "utf-8", "surrogatepass"))
                    elif code == 0x73:  # SETITEM
                        value, key, target = stack[-1], stack[-2], stack[-3]
                        if type(target) is dict and type(key) is str and key not in target:
                            target[key] = value
                            del stack[-2:]
                        else:
                            position, stack = self._rare(code, at, position, stack)
                    elif code == 0x87:  # TUPLE3
                        last = stack.pop()
                        middle = stack.pop()
                        stack[-1] = (stack[-1], middle, last)
                    elif code == 0x88:  # NEWTRUE
                        stack.append(True)
                    else:
                        position, stack = self._rare(code, at, position, stack)
                elif code == 0x68:  # BINGET
                    stack.append(memo[data[position]])
                    position += 1
                elif code == 0x4B:  # BININT1
                    stack.append(data[position])
                    position += 1
                elif code == 0x28:  # MARK
                    marks.append(stack)
                    stack = []
                elif code == 0x58:  # BINUNICODE
                    size = _U32(data, position)[0]
                    position += 4
                    stop = position + size
                    if stop > end or size >= BLOB_TEXT:
                        stack.append(self._blob(position, size, True))
                    else:
                        stack.append(str(data[position:stop], "utf-8", "surrogatepass"))
                    position = stop
                elif code == 0x52:  # REDUCE
                    args = stack.pop()
                    func = stack[-1]
                    if type(func) is Global and type(args) is tuple:
                        func.uses.add("call")
                        if func.path != "collections.OrderedDict":
                            stack[-1] = call = Call(func, args, at)
                            calls.append(call)
                            continue
                        if not args:
                            stack[-1] = OrderedDict()
                            continue
                    self.at, self.stack = at, stack
                    stack[-1] = self._called(func, args)
                elif code == 0x29:  # EMPTY_TUPLE
                    stack.append(())
                elif code == 0x51:  # BINPERSID
                    stack[-1] = pid = PersistentId(stack[-1])
                    persistent.append(pid)
                elif code == 0x6A:  # LONG_BINGET
                    stack.append(memo[_U32(data, position)[0]])
                    position += 4
                elif code == 0x4D:  # BININT2
                    stack.append(_U16(data, position)[0])
                    position += 2
                elif code == 0x4A:  # BININT
                    stack.append(_I32(data, position)[0])
                    position += 4
                elif code == 0x47:  # BINFLOAT
                    stack.append(_F64(data, position)[0])
                    position += 8
                elif code == 0x4E:  # NONE
                    stack.append(None)
                elif code == 0x5D:  # EMPTY_LIST
                    stack.append([])
                elif code == 0x2E:  # STOP
                    if self.short_frame:
                        raise self.short_frame
                    result.root = stack.pop()
                    result.end = position
                    if stack or marks:
                        result.anomalies.append(("values are left on the stack at STOP", at))
                    return result
                else:
                    position, stack = self._rare(code, at, position, stack)
        finally:
            self.at, self.position = at, max(position, self.position)
            result.opcodes = frozenset(compress(range(256), seen))

    def _rare(self, code: int, at: int, position: int, stack: list[object]) -> tuple[int, list[object]]:
        """Execute an opcode that is not inline; returns the position after it, and the stack."""
        method = _METHODS.get(code)
        if method is None:
            raise ValueError(f"{code:#04x} is no pickle opcode")
        self.at, self.position, self.stack = at, position, stack
        method(self)
        return self.position, self.stack

    # --- reading arguments

    def _take(self, count: int) -> bytes:
        start = self.position
        self.position = start + count
        if self.position > self.end:
            raise _Short
        return self.data[start : self.position]

    def _line(self) -> bytes:
        stop = self.data.find(b"\n", self.position, self.end)
        if stop < 0:
            raise _Short
        line = self.data[self.position : stop]
        self.position = stop + 1
        return line

    def _blob(self, start: int, size: int, text: bool) -> object:
        self.position = start + size
        if self.position > self.end:
            raise Truncated(
                f"{'a string' if text else 'a byte string'} of {size:,} bytes is declared where "
                f"{max(0, self.end - start):,} are left"
            )
        return Blob(start, size, text)

    def _text(self, size: int) -> None:
        if size >= BLOB_TEXT or self.position + size > self.end:
            self.stack.append(self._blob(self.position, size, True))
        else:
            self.stack.append(str(self._take(size), "utf-8", "surrogatepass"))

    def _bytes(self, size: int) -> None:
        if size >= BLOB_BYTES or self.position + size > self.end:
            self.stack.append(self._blob(self.position, size, False))
        else:
            self.stack.append(self._take(size))

    def _string(self, data: bytes) -> None:
        # Python 2's str: text where it is UTF-8, which is torch.load's default encoding, else the bytes
        try:
            self.stack.append(data.decode("utf-8"))
        except UnicodeDecodeError:
            self._misuse("a Python 2 string that is not UTF-8: torch.load takes it with encoding='latin1'")
            self.stack.append(data)

    def _marked(self) -> list[object]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    # --- numbers and strings

    def int_(self) -> None:
        line = self._line()
        text = line.partition(b"\0")[0]  # where C's strings end
        if _OCTAL.fullmatch(text) or (line and not text):
            # C's strtol, which comes first, takes a leading zero as octal; Python's int() does not
            number = int(text or b"0", 8)
            if not -(1 << 63) <= number < 1 << 63:
                raise ValueError(f"{line[:40]!r} is no integer")
            if line not in (b"00", b"01"):
                self._odd("an integer literal with a leading zero, which only some unpicklers take")
        else:
            number = self._integer(text, 0)
        # "01" and "00" are True and False since Python 2.3, and C goes by value and length alone
        is_bool = len(line) == 2 and text[-1:] in (b"0", b"1") and number in (0, 1)
        self.stack.append(bool(number) if is_bool else number)

    def long_(self) -> None:
        line = self._line()
        if not line:
            raise _Short
        self.stack.append(self._integer(line.removesuffix(b"L").partition(b"\0")[0], 0))

    def _integer(self, text: bytes, base: int) -> int:
        plain = _DECIMAL.fullmatch(text)
        if plain is None:
            self._odd("an integer literal that is not plain decimal")
        if len(text) > MAX_DIGITS and not _PREFIXED.match(text):
            digits = sum(48 <= byte <= 57 for byte in text)
            if digits > MAX_DIGITS:
                raise LimitExceeded(f"an integer literal has {digits:,} digits")
        try:
            return int(text, base)
        except ValueError:
            raise ValueError(f"{text[:40]!r} is no integer") from None

    def binlong1(self) -> None:
        self.stack.append(int.from_bytes(self._take(self._take(1)[0]), "little", signed=True))

    def binlong4(self) -> None:
        size = _I32(self._take(4))[0]
        if size < 0:
            raise ValueError("an integer of negative size")
        self.stack.append(int.from_bytes(self._take(size), "little", signed=True))

    def float_(self) -> None:
        line = self._line()
        text = line.partition(b"\0")[0]
        if not _FLOAT.fullmatch(text):
            raise ValueError(f"{line[:40]!r} is no number")
        number = float(text)
        if number in (_INFINITY, -_INFINITY) and b"n" not in text.lower():
            raise ValueError(f"{line[:40]!r} is too large for a number")
        self.stack.append(number)

    def string(self) -> None:
        line = self._line()
        if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b'"', b"'"):
            raise ValueError("a string without its quotes")
        body = line[1:-1]
        self._string(_unescape(body) if b"\\" in body else body)

    def binstring(self) -> None:
        size = _I32(self._take(4))[0]
        if size < 0:
            raise ValueError("a string of negative size")
        self._legacy_string(size)

    def short_binstring(self) -> None:
        self._legacy_string(self._take(1)[0])

    def _legacy_string(self, size: int) -> None:
        if size >= BLOB_BYTES or self.position + size > self.end:
            self.stack.append(self._blob(self.position, size, False))
        else:
            self._string(self._take(size))

    def unicode(self) -> None:
        line = self._line()
        self.stack.append(str(line, "raw-unicode-escape") if b"\\" in line else str(line, "latin-1"))

    def binunicode8(self) -> None:
        self._text(_U64(self._take(8))[0])

    def binbytes(self) -> None:
        self._bytes(_U32(self._take(4))[0])

    def short_binbytes(self) -> None:
        self._bytes(self._take(1)[0])

    def binbytes8(self) -> None:
        self._bytes(_U64(self._take(8))[0])

    bytearray8 = binbytes8

    def next_buffer(self) -> None:
        raise ValueError("it wants a buffer that was pickled apart from it, which no file can give")

    def readonly_buffer(self) -> None:
        if not isinstance(self.stack[-1], bytes | Blob | Call | PersistentId):
            raise ValueError(f"a {type(self.stack[-1]).__name__} is taken for a buffer")

    # --- containers

    def list_(self) -> None:
        items = self._marked()
        self.stack.append(items)

    def dict_(self) -> None:
        items = self._marked()
        target: dict[object, object] = {}
        self._set(target, items)
        self.stack.append(target)

    def empty_set(self) -> None:
        self.stack.append(set())

    def frozenset_(self) -> None:
        items = self._marked()
        self._check_keys(items, items)
        self.stack.append(frozenset(items))

    def append(self) -> None:
        item = self.stack.pop()
        self._extend([item])

    def appends(self) -> None:
        items = self._marked()
        self._extend(items)

    def _extend(self, items: list[object]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is Call:
            self._add_items(target, items)
        elif items:
            self._method_on(target, "append")
        else:
            self._misuse(f"nothing is appended to a {type(target).__name__}")

    def additems(self) -> None:
        items = self._marked()
        target = self.stack[-1]
        if type(target) is set:
            self._check_keys(target, items)
            target.update(items)
        elif type(target) is Call:
            self._add_items(target, items)
        elif items:
            self._method_on(target, "add")

    def _add_items(self, target: Call, items: list[object]) -> None:
        if target.items is None:
            target.items = items
        else:
            target.items.extend(items)

    def setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def setitems(self) -> None:
        items = self._marked()
        self._set(self.stack[-1], items)

    def _set(self, target: object, items: list[object]) -> None:
        if len(items) % 2:
            raise ValueError("a key without its value")
        pairs = iter(items)
        if isinstance(target, dict):
            before = len(target)
            for key in pairs:
                if type(key) is not str:
                    key = self._key(key)
                    self._check_key(target, key)
                target[key] = next(pairs)
            if len(target) - before != len(items) // 2:
                self._odd("a mapping sets a key twice")
        elif type(target) is Call:
            if target.entries is None:
                target.entries = []
            if target.target in _MAPPINGS:
                items[::2] = map(self._key, items[::2])
                self._check_keys(target, items[::2])
            target.entries.extend((key, next(pairs)) for key in pairs)
        elif not items:
            self._misuse(f"no items are set on a {type(target).__name__}")
        elif type(target) is list:
            for key in pairs:
                value = next(pairs)
                if type(key) is not int or not -len(target) <= key < len(target):
                    raise ValueError("SETITEM on a list, beyond its end")
                target[key] = value
            self._misuse("SETITEM on a list")
        else:
            self._method_on(target, "set item")

    def _method_on(self, target: object, use: str) -> None:
        """An opcode that would call a method of something that is not a container."""
        if type(target) is Global:
            target.uses.add(use)
        elif not isinstance(target, PersistentId | Call):
            raise ValueError(f"{use} on a {type(target).__name__}")
        self._misuse(f"an opcode calls a method ({use}) of what is no container")

    def _key(self, key: object) -> object:
        """*key*, which is a name however long it is: a text that was left in the file is read."""
        if type(key) is not Blob or not key.text:
            return key
        if id(key) not in self.long_keys:  # one key may be set in many mappings
            data = bytes(self.data[key.offset : key.offset + key.size])
            self.long_keys[id(key)] = (key, str(data, "utf-8", "surrogatepass"))
        return self.long_keys[id(key)][1]

    def _check_keys(self, target: object, keys: Iterable[object]) -> None:
        for key in keys:
            if type(key) is not str:
                self._check_key(target, key)

    def _check_key(self, target: object, key: object) -> None:
        """Refuse what cannot be hashed, or only at a cost that a few bytes can drive up without bound."""
        kind = type(key)
        if kind is tuple or kind is frozenset:
            self.spend(_nodes(key))
        elif isinstance(key, list | dict | set):
            raise ValueError(f"a {kind.__name__} is used as a key")
        elif kind is int and (key >= _WIDE or key <= -_WIDE):  # type: ignore[operator]
            _check_wide(key)  # type: ignore[arg-type]
        else:
            return
        place = id(target), hash(key)
        seen = self.same_hash[place] = self.same_hash.get(place, 0) + 1
        if seen > MAX_SAME_HASH:
            raise LimitExceeded("keys are made to collide")

    # --- stack and memo

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._marked()

    def pop_mark(self) -> None:
        self._marked()

    def dup(self) -> None:
        self.stack.append(self.stack[-1])

    def get(self) -> None:
        self.stack.append(self.memo[self._index()])

    def put(self) -> None:
        self.memo[self._index()] = self.stack[-1]

    def _index(self) -> int:
        index = self._integer(self._line().partition(b"\0")[0], 10)
        if index < 0:
            raise ValueError("a negative memo index")
        return index

    def proto(self) -> None:
        version = self._take(1)[0]
        if version > 5:
            self._odd(f"pickle protocol {version}, which only torch's weights_only unpickler takes")
        if self.at != self.result.start:
            self._odd("PROTO in the middle of the stream")
        self.protocol = version
        self.result.protocol = max(version, self.result.protocol)

    def frame(self) -> None:
        size = _U64(self._take(8))[0]
        left = self.end - self.position
        if size > left and not self.short_frame:
            # what is there of it is read all the same, for the sake of what a cut file still tells
            problem = f"a frame of {size:,} bytes is declared where {left:,} are left"
            self.short_frame = Truncated(problem, offset=self.at)

    # --- names and objects

    def _global(self, module: object, name: object, opcode: str) -> Global:
        if type(module) is not str or type(name) is not str:
            raise ValueError(f"{opcode} names something by what is no string")
        if not module or not name:
            raise ValueError(f"{opcode} has an empty name")
        old = self.protocol < 3
        known = self.result.globals.get((module, name, old))
        if known is None:
            mapped = NAME_MAPPING.get((module, name)) if old else None
            if mapped is not None:
                path = ".".join(mapped)
            else:
                path = f"{IMPORT_MAPPING.get(module, module) if old else module}.{name}"
            known = Global(module, name, path, opcode, self.at)
            self.result.globals[module, name, old] = known
        return known

    def global_(self) -> None:
        module = str(self._line(), "utf-8")
        self.stack.append(self._global(module, str(self._line(), "utf-8"), "GLOBAL"))

    def stack_global(self) -> None:
        name = self.stack.pop()
        self.stack[-1] = self._global(self.stack[-1], name, "STACK_GLOBAL")

    def ext1(self) -> None:
        self._extension(self._take(1)[0])

    def ext2(self) -> None:
        self._extension(_U16(self._take(2))[0])

    def ext4(self) -> None:
        self._extension(_I32(self._take(4))[0])

    def _extension(self, code: int) -> None:
        if code <= 0:
            raise ValueError(f"{code} is no extension code")
        # what a code stands for is settled in the reading process (copyreg's registry), not in the file
        self.stack.append(self._global("copyreg", f"extension {code}", "EXT"))

    def persid(self) -> None:
        self._persistent(str(self._line(), "ascii"))

    def _persistent(self, pid: object) -> None:
        made = PersistentId(pid)
        self.result.persistent.append(made)
        self.stack.append(made)

    def inst(self) -> None:
        module = str(self._line(), "ascii")
        cls = self._global(module, str(self._line(), "ascii"), "INST")
        args = tuple(self._marked())
        self.stack.append(self._called(cls, args))

    def obj(self) -> None:
        items = self._marked()
        cls = items[0]
        self.stack.append(self._called(cls, tuple(items[1:])))

    def newobj(self) -> None:
        args = self.stack.pop()
        self.stack.append(self._new(self.stack.pop(), args))

    def newobj_ex(self) -> None:
        kwargs = self.stack.pop()
        args = self.stack.pop()
        made = self._new(self.stack.pop(), args)
        if not isinstance(kwargs, dict | Call):
            raise ValueError("NEWOBJ_EX takes its keyword arguments from what is no dict")
        if type(made) is Call:
            made.kwargs = kwargs
        self.stack.append(made)

    def _called(self, func: object, args: object) -> Call | OrderedDict:
        """What calling *func* gives: an ordered dict is made at once, anything else remains a call."""
        if not isinstance(func, Global | Call | PersistentId):
            raise ValueError(f"a {type(func).__name__} is called")
        args = self._arguments(args)
        name = as_global(func)
        if name is not None:
            name.uses.add("call")
            if name.path == "collections.OrderedDict":
                made = self._ordered_dict(args)
                if made is not None:
                    return made
        return self._call(func, args)

    def _new(self, cls: object, args: object) -> Call | OrderedDict:
        if not isinstance(cls, Global | Call | PersistentId):
            raise ValueError(f"a {type(cls).__name__} is taken for a class")
        args = self._arguments(args)
        name = as_global(cls)
        if name is not None:
            name.uses.add("new")
            if name.path == "collections.OrderedDict":
                return OrderedDict()
        return self._call(cls, args, new=True)

    def _arguments(self, args: object) -> object:
        if isinstance(args, list | dict | set | frozenset | str | bytes):
            self.spend(len(args))
            self._odd(
                f"arguments are given as a {type(args).__name__}, which only torch's weights_only unpickler takes"
            )
            return tuple(args)
        if type(args) is tuple or type(args) is Call:
            return args
        raise ValueError(f"a {type(args).__name__} is given as arguments")

    def _call(self, func: object, args: object, new: bool = False) -> Call:
        call = Call(func, args, self.at, new)
        self.result.calls.append(call)
        return call

    def _ordered_dict(self, args: object) -> OrderedDict | None:
        """``OrderedDict(*args)``: empty since Python 3; Python 2 gives the items as one list of pairs."""
        made = OrderedDict()
        if args == ():
            return made
        items = args[0] if type(args) is tuple and len(args) == 1 else None
        if isinstance(items, dict):
            items = list(items.items())
        if not isinstance(items, list | tuple):
            return None
        self.spend(len(items))
        for pair in items:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise ValueError("an OrderedDict is made from what are no pairs")
            self._check_keys(made, pair[:1])
            made[pair[0]] = pair[1]
        return made

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Call | OrderedDict):
            if target.state is None:
                target.state = state
            elif isinstance(target.state, dict) and isinstance(state, dict):
                self.spend(len(state))
                if id(target.state) not in self.merged:
                    # the first state may be shared; what it is merged into must not be
                    self.spend(len(target.state))
                    target.state = dict(target.state)
                    self.merged[id(target.state)] = target.state
                target.state.update(state)
            else:
                self._odd("an object's state is set twice")
                target.state = state
        elif type(target) is Global:
            target.uses.add("build")
            self._misuse("attributes are set on what a name refers to, not on an instance of it")
        elif type(target) is PersistentId:
            self._odd("attributes are set on what a persistent id refers to")
        elif state is None or (type(state) is tuple and state in _NO_STATES):
            # sets are among the types that the weights_only unpickler would set attributes on
            (self._odd if type(target) is set else self._misuse)(f"BUILD on a {type(target).__name__}")
        else:
            raise ValueError(f"attributes are set on a {type(target).__name__}, which has none")

    def _misuse(self, what: str) -> None:
        self.result.misuses.setdefault(what, self.data[self.at])
        self._odd(what)

    def _odd(self, what: str) -> None:
        anomalies = self.result.anomalies
        if len(anomalies) < 1000:
            anomalies.append((what, self.at))


_WIDE = (1 << 61) - 1  # from here on, integers share hashes (sys.hash_info.modulus)
_MAPPINGS = frozenset({"builtins.dict", "collections.Counter", "collections.defaultdict"})
_NO_STATES: tuple[object, ...] = ((None, None), (None, {}), ({}, None))  # set nothing, so that even a list has them
_OCTAL = re.compile(rb"\s*[+-]?0[0-7]+")
_DECIMAL = re.compile(rb"[+-]?[0-9]+")
_PREFIXED = re.compile(rb"\s*[+-]?0[box]", re.I)
_FLOAT = re.compile(rb"[+-]?(inf(inity)?|nan|([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?)", re.I)
_INFINITY = float("inf")
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.|$)", re.S)
_ESCAPED = dict(zip(b"abfnrtv\\'\"", b"\a\b\f\n\r\t\v\\'\"", strict=True))


def _nodes(key: object) -> int:
    """The elements of a tuple or frozenset, nested ones counted each time they occur."""
    count = 0
    level: list[object] = [key]
    for _ in range(MAX_KEY_DEPTH):
        below: list[object] = []
        for item in level:
            kind = type(item)
            if kind is tuple or kind is frozenset:
                count += len(item)  # type: ignore[arg-type]
                if count > MAX_KEY_NODES:
                    raise LimitExceeded(f"a key has more than {MAX_KEY_NODES:,} elements")
                below.extend(item)  # type: ignore[arg-type]
            elif kind is int:
                _check_wide(item)  # type: ignore[arg-type]
            elif isinstance(item, list | dict | set):
                raise ValueError(f"a {kind.__name__} is used in a key")
        if not below:
            return count
        level = below
    raise LimitExceeded(f"a key is nested more than {MAX_KEY_DEPTH} deep")


def _check_wide(key: int) -> None:
    if key.bit_length() > MAX_KEY_BITS:
        raise LimitExceeded(f"a key is an integer of {key.bit_length():,} bits")


def _unescape(body: bytes) -> bytes:
    """The bytes that a Python 2 string literal stands for, as ``codecs.escape_decode`` reads it."""

    def one(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if code[:1] == b"x":
            if len(code) == 3:
                return bytes([int(code[1:], 16)])
            raise ValueError("a string has a malformed \\x escape")
        if not code:
            raise ValueError("a string ends within an escape")
        if code[:1].isdigit() and code[0] < 0x38:
            return bytes([int(code, 8) & 0xFF])
        known = _ESCAPED.get(code[0])
        return match[0] if known is None else bytes([known])  # an unknown escape stands for itself

    return _ESCAPE.sub(one, body)


_METHODS: dict[int, Callable[[_Machine], None]] = {
    0x30: _Machine.pop,
    0x31: _Machine.pop_mark,
    0x32: _Machine.dup,
    0x46: _Machine.float_,
    0x49: _Machine.int_,
    0x4C: _Machine.long_,
    0x50: _Machine.persid,
    0x53: _Machine.string,
    0x54: _Machine.binstring,
    0x55: _Machine.short_binstring,
    0x56: _Machine.unicode,
    0x61: _Machine.append,
    0x62: _Machine.build,
    0x63: _Machine.global_,
    0x64: _Machine.dict_,
    0x65: _Machine.appends,
    0x67: _Machine.get,
    0x69: _Machine.inst,
    0x6C: _Machine.list_,
    0x6F: _Machine.obj,
    0x70: _Machine.put,
    0x73: _Machine.setitem,
    0x75: _Machine.setitems,
    0x80: _Machine.proto,
    0x81: _Machine.newobj,
    0x82: _Machine.ext1,
    0x83: _Machine.ext2,
    0x84: _Machine.ext4,
    0x8A: _Machine.binlong1,
    0x8B: _Machine.binlong4,
    0x42: _Machine.binbytes,
    0x43: _Machine.short_binbytes,
    0x8D: _Machine.binunicode8,
    0x8E: _Machine.binbytes8,
    0x8F: _Machine.empty_set,
    0x90: _Machine.additems,
    0x91: _Machine.frozenset_,
    0x92: _Machine.newobj_ex,
    0x93: _Machine.stack_global,
    0x95: _Machine.frame,
    0x96: _Machine.bytearray8,
    0x97: _Machine.next_buffer,
    0x98: _Machine.readonly_buffer,
}
