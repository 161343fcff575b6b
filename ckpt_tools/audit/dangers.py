"""What loading a pickle would do: one of three answers for each stream, and why.

*tensors only*: torch.load with weights_only takes it. *needs classes*: it refers to classes or functions beyond
that, none of which is known to do harm. *dangerous*: it calls, fetches or changes something that runs code, loads
files, opens connections or reflects. Unknown is never safe: a stream that cannot be evaluated to its end is
*unknown* at best, and a function that nothing is known of is reported even where it is not dangerous by name.

A pickle can only act through the names it refers to, so each is judged (`ckpt_tools.audit.gadgets`), together with
what the stream does with it; and it can combine what it has, so calls of computed values, attributes set on
modules and functions, and bytes that are pickles themselves are judged too.
"""

from __future__ import annotations

import contextlib
import math
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from sys import intern
from typing import Literal

from ckpt_tools.audit import payload
from ckpt_tools.audit.gadgets import (
    CLASS_MODULES,
    CODE_CARRIERS,
    ENUMERATIONS,
    HELD,
    INERT,
    INERT_LIBRARY,
    KNOWN_DANGERS,
    LIBRARIES,
    MAKERS,
    RECONSTRUCTED,
    RESTORED,
    SAYS,
    STANDARD_LIBRARY,
    SUSPECT_WORDS,
    Category,
    entry,
)
from ckpt_tools.checkpoint import GlobalUse, Pickle, Storage
from ckpt_tools.errors import CkptError, LimitExceeded
from ckpt_tools.formats.base import HEAD_BYTES
from ckpt_tools.formats.unpickled import Pickles, pickle_of
from ckpt_tools.pickles.arrays import byte_source
from ckpt_tools.pickles.machine import Evaluation, Truncated, evaluate
from ckpt_tools.pickles.torch_objects import MAX_RANK, View
from ckpt_tools.pickles.values import Blob, Budget, Call, Global, OrderedDict, PersistentId, as_global, brief
from ckpt_tools.pickles.weights_only import ALLOWED_GLOBALS, refusals
from ckpt_tools.records import cached, comparable, record
from ckpt_tools.sources import MemorySource, Source

Answer = Literal["tensors only", "needs classes", "dangerous", "unknown"]

Kind = Literal["tensor", "inert", "class", "code", "unknown class", "unknown function", "dangerous"]
"""What a name is: among those that torch takes by itself; a maker of plain values; a class or function of a known
library; part of a function that is kept in the file; either of these from a package that nothing is known of."""

MAX_NESTED = 3
"""How deep pickles in byte strings of pickles are looked into."""
MAX_NESTED_BYTES = 1 << 28
"""The longest byte string that is evaluated as a pickle."""
MAX_ANOMALIES = 1000
"""How many oddities the pickle machine lists."""
MAX_DANGERS = 200
"""The most dangers of one pickle that are listed."""


@record
class NameVerdict:
    """A global: *allowed* where torch's weights_only takes it by default, *danger* why it is dangerous, else "";
    *purpose* what it is used for, such as "a layer of torch" or "a numpy scalar"; *called* where the stream calls
    or instantiates it.
    """

    name: str
    offset: int
    allowed: bool
    danger: str = ""
    purpose: str = ""
    kind: Kind = "unknown class"
    category: Category | None = None
    opcode: str = ""
    called: bool = False


@comparable
class Danger:
    """Something that a stream would do: *subject* says what of it, *what* the deed, at the opcode at *offset*."""

    category: Category
    subject: str
    what: str
    offset: int

    def __str__(self) -> str:
        return f"{self.subject} {self.what}"


@record
class PickleVerdict:
    """The answer for one pickle. *reasons* say why it is dangerous or cannot be judged ("unknown").

    *dangers* are the reasons one by one; *refusals* what torch's weights_only would refuse; *nested* the verdicts
    for pickles in its byte strings, whose dangers are not among its own. *complete* is False where the stream
    cannot be evaluated to its end, so that only what stands before is judged. *payload* is a digest of what its
    dangerous and unknown functions are called with and of the bytecode that it holds, "" where it has none of these.
    """

    member: str
    answer: Answer
    names: tuple[NameVerdict, ...] = ()
    reasons: tuple[str, ...] = ()
    dangers: tuple[Danger, ...] = ()
    refusals: tuple[str, ...] = ()
    nested: tuple[PickleVerdict, ...] = ()
    complete: bool = True
    payload: str = ""


def with_nested(verdicts: Iterable[PickleVerdict]) -> Iterator[PickleVerdict]:
    """*verdicts* in order, each followed by those of the pickles in its byte strings."""
    pending = list(reversed([*verdicts]))
    while pending:
        verdict = pending.pop()
        yield verdict
        pending += reversed(verdict.nested)


def judge(pickle: Pickle) -> PickleVerdict:
    """Which of the answers *pickle* gets."""
    return _judge(pickle, 0)


def _judge(pickle: Pickle, depth: int) -> PickleVerdict:
    evaluation = pickle.evaluation
    if not isinstance(evaluation, Evaluation):
        raise TypeError(f"{pickle.member}: a pickle without its evaluation cannot be judged")
    complete = evaluation.end > evaluation.start  # the end is known only once STOP is reached
    refused = tuple(f"{refusal.subject}: {refusal.reason}" for refusal in refusals(evaluation)) if complete else ()
    stream = _Stream(evaluation)
    names = tuple(_judge_name(use, stream) for use in pickle.globals)
    dangers = [Danger(name.category, name.name, name.danger, name.offset) for name in names if name.category]
    # only modules, classes and functions go by name, so no object of its own is restored like this
    changed = (name for name, use in zip(names, pickle.globals, strict=True) if use.uses & _CHANGES)
    dangers += [
        Danger("injection", name.name, f"is changed itself: {SAYS['injection']}", name.offset)
        for name in changed
        if name.category != "injection"
    ]
    nested: list[PickleVerdict] = []
    if not complete or refused or _holds_bytes(evaluation):
        try:
            dangers += _deeds(evaluation)
        except LimitExceeded:
            what = "hands the same values to its calls far more often than can be followed"
            dangers.append(Danger("computed", "the stream", what, evaluation.start))
        nested += _nested(pickle, evaluation, depth, dangers)
    reasons = [str(danger) for danger in dangers]
    reasons += [f"{reason}, in {one.member}" for one in nested if one.answer == "dangerous" for reason in one.reasons]
    answer: Answer
    if reasons:
        answer = "dangerous"
    elif not complete or any(one.answer == "unknown" for one in nested):
        answer, reasons = "unknown", [pickle.problem or "a pickle in it cannot be evaluated to its end"]
    elif refused or not all(name.allowed for name in names):
        answer = "needs classes"
    else:
        answer = "tensors only"
    acts = dangers or not complete or any(name.kind in ("unknown function", "code") for name in names)
    loaded = payload.digest(_payload(pickle, names, dangers, complete)) if acts else ""
    if shift := pickle.offset - evaluation.start:  # it was evaluated by itself, and stands further on in its member
        names = tuple(replace(name, offset=name.offset + shift) for name in names)
        dangers = [replace(danger, offset=danger.offset + shift) for danger in dangers]
    return PickleVerdict(
        pickle.member,
        answer,
        names,
        tuple(dict.fromkeys(reasons)),
        tuple(dangers[:MAX_DANGERS]),
        refused,
        tuple(nested),
        complete,
        loaded,
    )


def _payload(
    pickle: Pickle, names: Iterable[NameVerdict], dangers: Iterable[Danger], complete: bool
) -> Iterator[bytes]:
    """What tells a stream from others that have the same names do something else."""
    evaluation, stream = pickle.evaluation, pickle.stream
    grave: set[tuple[str, str]] = set()
    unknown: set[tuple[str, str]] = set()
    for use, name in zip(pickle.globals, names, strict=True):
        if name.category is not None:
            grave.add((use.module, use.name))
        elif name.kind == "unknown function":
            unknown.add((use.module, use.name))
    named = {name.offset for name in names if name.category is not None}
    deeds = {danger.offset: danger for danger in dangers if danger.offset not in named}
    made = [call for call in evaluation.calls if call.offset in deeds or _concerns(call, grave)]
    # what is changed or hidden stands among no call's arguments
    hidden = deeds.keys() - {call.offset for call in made} or any(
        danger.category == "injection" or _IN_PLACE in danger.what for danger in dangers
    )
    if not complete or hidden:
        yield from payload.everything(evaluation, stream)
    elif grave or deeds:
        yield from payload.of_dangers(evaluation, stream, made)
    if unknown:
        yield from payload.of_texts(call for call in evaluation.calls if _concerns(call, unknown))
    if any(name.kind == "code" for name in names):
        yield from payload.of_code([call for call in evaluation.calls if _is_code_type(call.func)], stream)


def _concerns(call: Call, names: Container[tuple[str, str]]) -> bool:
    """Whether one of *names* is what is called, or what a call of something else is given to call or to keep."""
    state = call.state if type(call.state) is tuple else ()
    found = map(as_global, (call.func, *call.arguments[:4], *state[:2]))
    return any(name is not None and (name.module, name.name) in names for name in found)


# --- names


class _Stream:
    """What a whole stream tells of the names in it, each worked out when it is first asked for."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation

    @cached
    def paths(self) -> frozenset[str]:
        """The names that the stream refers to; calls are of no others."""
        return frozenset(name.path for name in self.evaluation.globals.values())

    @cached
    def calls(self) -> dict[str, list[Call]]:
        """The calls of each name."""
        found: dict[str, list[Call]] = {}
        for call in self.evaluation.calls:
            found.setdefault(call.target, []).append(call)
        return found

    def firsts(self, names: Iterable[str], position: int = 0) -> frozenset[str]:
        """The names that calls of *names* are given as the argument at *position*."""
        given = (
            as_global(call.arguments[position])
            for name in self.paths.intersection(names)
            for call in self.calls.get(name, ())
            if len(call.arguments) > position
        )
        return frozenset(name.path for name in given if name is not None)

    @cached
    def called(self) -> frozenset[str]:
        """The names that are called by what the stream calls."""
        # copyreg's calls the __init__ of its second, unless that is object's own
        return self.firsts((*_CALL_THEIR_FIRST, _BIT_GENERATOR)) | self.firsts(("copyreg._reconstructor",), 1)

    @cached
    def made(self) -> frozenset[str]:
        """The classes that are handed to a function which makes an instance without calling the constructor."""
        return self.firsts(_TAKE_A_CLASS)

    @cached
    def wrapped(self) -> frozenset[str]:
        """The names that are kept as ``partial(name, …)``."""
        return self.firsts(_PARTIALS)

    @cached
    def held(self) -> frozenset[str]:
        """The names that stand among the values, other than as what is called."""
        return frozenset(value.path for value in values(self.evaluation) if type(value) is Global)

    @cached
    def purposes(self) -> dict[str, str]:
        """What classes are for, by the state of their instances."""
        found: dict[str, str] = {}
        for call in self.evaluation.calls:
            state = call.state
            if isinstance(state, dict):
                if "_modules" in state and "_parameters" in state:
                    found[call.class_name] = "a nn.Module class"
                elif "param_groups" in state and "defaults" in state:
                    found[call.class_name] = "an optimizer"
        return found

    def only_calls(self, path: str, fits: Callable[[Call], bool]) -> bool:
        """Whether all that is done with *path* are calls that *fits* accepts."""
        calls = self.calls.get(path, ())
        return bool(calls) and all(map(fits, calls)) and path not in self.held


def _judge_name(use: GlobalUse, stream: _Stream) -> NameVerdict:
    module, name = NAME_MAPPING.get((use.module, use.name)) or (
        IMPORT_MAPPING.get(use.module, use.module),
        use.name,
    )
    path = f"{module}.{name}"
    called = "call" in use.uses or path in stream.called
    made = "new" in use.uses or path in stream.made
    if path in ALLOWED_GLOBALS and not use.uses & _CHANGES and path not in stream.wrapped:
        purpose = _purpose(path, "tensor", stream)
        return NameVerdict(intern(path), use.offset, True, "", purpose, "tensor", None, use.opcode, called or made)
    top = module.partition(".")[0]
    kind, category, danger = classify(module, name, called, made=made)
    wrapped = path in stream.wrapped and bool(_LOWER.match(name.rpartition(".")[2]))
    if kind == "unknown class" and wrapped:
        kind = "unknown function"
    if category is None and use.uses & _CHANGES:
        kind, category, danger = "dangerous", "injection", f"is changed itself: {SAYS['injection']}"
    elif category is None and wrapped and _is_impure(module):
        kind, category, danger = "dangerous", "library", SAYS["library"]
    elif category is not None and (fits := _HARMLESS_CALLS.get(path)) and stream.only_calls(path, fits):
        kind, category, danger = "class" if top in _OWN else "inert", None, ""
    elif top == "sympy" and not called and stream.only_calls(path, _is_plain_formula):
        kind, category, danger = "class", None, ""
    elif path in RECONSTRUCTED and not (called or "new" in use.uses or path in stream.wrapped):
        kind, category, danger = "inert", None, ""
    allowed = path in ALLOWED_GLOBALS
    purpose = "" if category is not None else _purpose(path, kind, stream)
    return NameVerdict(path, use.offset, allowed, danger, purpose, kind, category, use.opcode, called or made)


def _is_impure(module: str) -> bool:
    """Whether functions of *module* may do more than compute, though they are no danger as long as they are kept."""
    return module.partition(".")[0] in _OWN and module not in ("torch", "numpy") and not entry(module, _PURE)


_PURE = frozenset(
    {
        *("torch.nn.functional", "torch.nn.init", "torch._C._nn", "torch.utils.checkpoint"),
        *("torchvision.ops", "torchvision.transforms", "torchvision.models"),
    }
)
_CHANGES = frozenset({"build", "append", "add", "set item"})
_OWN = frozenset({"torch", "numpy", "torchvision", "functorch", "torchgen", "caffe2"})
_LOWER = re.compile(r"_*[a-z]")
_UPPER = re.compile(r"_*[A-Z]")
_WEIGHTS = r"torchvision\.models\.[a-z0-9_.]+\.\w+Weights"


@lru_cache(maxsize=4096)
def classify(module: str, name: str, called: bool, *, made: bool = False) -> tuple[Kind, Category | None, str]:
    """What *module*.*name* is; where it is dangerous, the category and what it does, in words.

    *called* is whether the stream calls it as a function, *made* whether it instantiates it as a class, by its
    ``__new__`` alone. That runs no constructor, but the class's ``__setstate__``, and its ``__del__`` in the end.
    """
    path = f"{module}.{name}"
    if path in ALLOWED_GLOBALS:
        return "tensor", None, ""
    if path in INERT or path in INERT_LIBRARY or (path in HELD and not called):
        return "inert", None, ""
    if path in ENUMERATIONS or re.fullmatch(_WEIGHTS, path):
        return "class", None, ""
    if path in CODE_CARRIERS:
        return "code", None, ""
    if module == "copyreg" and name.startswith("extension "):
        return "dangerous", "extension", SAYS["extension"]
    parts = name.split(".")
    top, *below = module.split(".")
    standard, own = top in STANDARD_LIBRARY, top in _OWN
    function = bool(_LOWER.match(name))
    known = entry(path, KNOWN_DANGERS)
    of_classes = entry(path, CLASS_MODULES)
    # a class that is only referred to does nothing; one that is restored may, see RESTORED
    acts = made and len(of_classes) < len(known) and not entry(path, RESTORED)
    if known and (standard or known == path or function or called or acts):
        category = KNOWN_DANGERS[known]
        return "dangerous", category, SAYS[category]
    for part in (*(() if top in _PLAIN_DUNDERS else (top,)), *below, *parts):
        if part.startswith("__") and part.endswith("__"):
            return "dangerous", "reflection", f"is a special attribute: {SAYS['reflection']}"
    if own and made and not of_classes:
        return "dangerous", "library", SAYS["library"]
    if len(parts) > 1:
        return _dotted(module, parts, called)
    bare = name.lstrip("_")
    if name in SUSPECT_WORDS or bare in SUSPECT_WORDS:
        what = f"has the name of something else, which {module} may have imported: {SAYS['reflection']}"
        return "dangerous", "reflection", what
    if function and bare in _MODULES:
        return "dangerous", "reflection", f"hands out the module {bare}"
    if standard or (own and called):
        return "dangerous", "library", SAYS["library"]
    if own or path in MAKERS or name.startswith("__pyx_unpickle_"):
        return "class", None, ""
    if function and called and top != "__torch__":
        return "unknown function", None, ""
    return ("class" if top != "__main__" and entry(module, LIBRARIES) else "unknown class"), None, ""


_PLAIN_DUNDERS = frozenset({"__main__", "__torch__", "__future__"})
_MODULES = STANDARD_LIBRARY - frozenset(
    {
        *("array", "calendar", "chunk", "code", "cmd", "copy", "datetime", "decimal", "enum", "fractions", "glob"),
        *("html", "keyword", "locale", "mailbox", "new", "numbers", "opcode", "parser", "profile", "queue", "random"),
        *("select", "sets", "signal", "statistics", "string", "struct", "symbol", "test", "time", "token", "trace"),
        *("types", "wave", "this", "weakref", "formatter", "resource", "sha", "abc", "stat", "json", "math", "cmath"),
        "typing",
    }
)
"""Modules of the standard library whose names functions and values of other packages are unlikely to have."""


def _dotted(module: str, parts: list[str], called: bool) -> tuple[Kind, Category | None, str]:
    """A name with dots, which protocol 4 resolves by one ``getattr`` after the other."""
    top = module.partition(".")[0]
    *owners, last = parts
    method = not _UPPER.match(last)
    # a class within a class, or a method of a class that is kept; anything else leads through modules and objects
    plain = top not in STANDARD_LIBRARY and not SUSPECT_WORDS.intersection(parts) and all(map(_UPPER.match, owners))
    known = bool(entry(module, CLASS_MODULES))
    if not plain or (method and (called or last.lstrip("_") in _OWN | _MODULES or (top in _OWN and not known))):
        return "dangerous", "reflection", f"is a chain of attributes: {SAYS['reflection']}"
    if called and top in _OWN:
        return "dangerous", "library", SAYS["library"]
    return ("class" if entry(module, LIBRARIES) else "unknown class"), None, ""


def _purpose(path: str, kind: Kind, stream: _Stream) -> str:
    """What the stream makes of the class or function *path*, by how it uses it; else by where it comes from."""
    if kind == "code":
        return "part of a function whose bytecode is in the file"
    if kind == "tensor":
        return "a tensor"
    if path.startswith("numpy.") and path.endswith(".scalar"):
        return "a numpy scalar"
    if path == "builtins.getattr":
        return "a member of an enumeration, or a method"
    if path == "torch.storage._load_from_bytes":
        return "a tensor's storage, kept as bytes"
    if kind == "inert":
        return "a logger" if path.startswith("logging.") else "a plain value"
    return stream.purposes.get(path) or LIBRARIES.get(entry(path, LIBRARIES), "")


# --- deeds: what a stream does with what it has

_CALL_THEIR_FIRST = frozenset({"torch._tensor._rebuild_from_type_v2", "torch._tensor._rebuild_from_type"})
_TAKE_A_CLASS = frozenset(
    {
        *("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__", "numpy.ma.core._mareconstruct"),
        *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
        *_CALL_THEIR_FIRST,
    }
)
# numpy/random/_pickle.py: they call their second argument with the first
_GENERATORS = frozenset({"numpy.random._pickle.__generator_ctor", "numpy.random._pickle.__randomstate_ctor"})
_BIT_GENERATOR = "numpy.random._pickle.__bit_generator_ctor"
_ITERATE = frozenset(
    f"builtins.{name}"
    for name in (
        *("dict", "list", "tuple", "set", "frozenset", "bytes", "bytearray", "sum", "any", "all", "zip"),
        *("enumerate", "reversed"),
    )
) | frozenset(f"collections.{name}" for name in ("OrderedDict", "defaultdict", "Counter", "deque"))
_PLAIN_ARGUMENTS = frozenset(f"builtins.{name}" for name in ("str", "unicode", "int", "long", "float", "complex")) | {
    "collections.UserString"
}
_METACLASSES = frozenset({"builtins.type", "abc.ABCMeta", "enum.EnumMeta", "enum.EnumType"}) | frozenset(
    f"enum.{name}" for name in ("Enum", "IntEnum", "Flag", "IntFlag", "StrEnum")
)
# what these give is shared with the whole process: a logger, a class, a method, what a module holds
_SHARED = frozenset(
    {
        *("logging.getLogger", "builtins.type", "builtins.getattr", "operator.getitem", "_operator.getitem"),
        *("uuid.SafeUUID", "inspect._ParameterKind", "re.RegexFlag", "zoneinfo.ZoneInfo"),
        "torch.nn.backends.thnn._get_thnn_function_backend",
    }
)
_PARTIALS = frozenset({"functools.partial", "_functools.partial"})
_TENSORS = frozenset(name for name in ALLOWED_GLOBALS if "._rebuild_" in name or name.startswith("torch.nn."))
_MEMBER = r"[A-Z][A-Z0-9_]*"
_IDENTIFIER = r"(?a)[A-Za-z_]\w*"
_FUNCTIONS_OF_TORCH = frozenset({"torch._C._VariableFunctions", "torch._C._VariableFunctionsClass"})
_PLAIN_TYPES = frozenset(
    {
        *(f"builtins.{name}" for name in ("str", "bytes", "int", "float", "complex")),
        *(f"builtins.{name}" for name in ("list", "tuple", "dict", "set", "frozenset")),
        *("torch.Tensor", "torch._C.TensorBase", "torch._C._TensorBase"),
    }
)
"""Types whose methods, as long as they are only kept, do nothing."""
_ZONE = ("zoneinfo.ZoneInfo", "_unpickle")


def _deeds(evaluation: Evaluation) -> Iterator[Danger]:
    """What the calls of a stream do beyond what their names tell."""
    budget = Budget(evaluation.end - evaluation.start)
    for call in evaluation.calls:
        target, arguments = call.target, call.arguments
        if target == "":
            if not (_is_code_type(call.func) or _is_time_zone(call)):
                what = f"is {'instantiated' if call.new else 'called'}: {SAYS['computed']}"
                yield Danger("computed", _subject(call.func), what, call.offset)
        elif target in _PARTIALS:
            # the state, if any, is (func, args, keywords, attributes)
            state = call.state if type(call.state) is tuple else ()
            for func in (*arguments[:1], *state[:1]):
                if as_global(func) is None and not (type(func) is Call and func.target in _PARTIALS):
                    yield Danger("computed", target, f"wraps {_subject(func)}: {SAYS['computed']}", call.offset)
        elif target in _TAKE_A_CLASS:
            classes = arguments[: 2 if target == "copyreg._reconstructor" else 1]
            if not classes or any(as_global(cls) is None for cls in classes):
                yield Danger("computed", target, f"is not given a class by its name: {SAYS['computed']}", call.offset)
        elif target in _ITERATE:
            for given in arguments:
                odd = isinstance(given, OrderedDict) and given.state is not None
                if odd or (
                    type(given) is Call and not given.target.startswith(("builtins.", "collections.", "_codecs."))
                ):
                    # dict(x) calls x.keys(), and what that is may stand among the attributes of x
                    what = f"is made from {_subject(given)}, whose methods it calls: {SAYS['computed']}"
                    yield Danger("computed", target, what, call.offset)
        elif target in _PLAIN_ARGUMENTS:
            for given in arguments[:3]:  # they take no more
                encoded = type(given) is Call and given.target == "_codecs.encode"
                if not (given is None or encoded or isinstance(given, str | bool | int | float | bytes | Blob)):
                    # str(x) calls x.__repr__, and that of a module its extra_repr
                    what = f"is made from {_subject(given)}, whose methods it calls: {SAYS['computed']}"
                    yield Danger("computed", target, what, call.offset)
        elif target in _GENERATORS:
            for given in arguments[1:]:
                name = as_global(given)
                if name is None or name.path != _BIT_GENERATOR:
                    yield Danger("computed", target, f"calls {_subject(given)}: {SAYS['computed']}", call.offset)
        elif target == "_codecs.encode" and arguments[1:] != ("latin1",):
            what = f"encodes text by {brief(arguments[1:])}, as no pickler does, so that nobody sees what it is"
            yield Danger("computed", target, what, call.offset)
        elif target in _METACLASSES and len(arguments) != 1:
            yield Danger("reflection", target, "makes a class of what the stream gives", call.offset)
        yield from _odd_attributes(call)
        if not call.new and (address := _address(call)):
            what = f"is constructed with {address}, which it may open, fetch or import"
            yield Danger("loader", target, what, call.offset)
        first = as_global(arguments[0]) if target in _CALL_THEIR_FIRST and arguments else None
        if first is not None and first.path in INERT:
            # what it gives has attributes set, and may be a class or a logger
            what = f"makes a tensor by {first.path}, and changes what that gives: {SAYS['injection']}"
            yield Danger("injection", target, what, call.offset)
        if target == "numpy.dtype" and (what := _odd_type(call)):
            yield Danger("injection", target, what, call.offset)
        shared = target in _SHARED or target in ENUMERATIONS or target.startswith("typing.")
        shared = shared or re.fullmatch(_WEIGHTS, target) is not None
        if shared and not (call.state is None and call.items is None and call.entries is None):
            what = f"gives something that is changed then: {SAYS['injection']}"
            yield Danger("injection", target, what, call.offset)
        if call.entries is not None and target in _TENSORS:
            # CVE-2026-24747
            what = "is a tensor whose items the stream sets, which writes to memory at will in torch before 2.10"
            yield Danger("injection", target, what, call.offset)
        given_state = call.state
        if type(given_state) is tuple and len(given_state) == 2 and isinstance(given_state[1], dict):
            budget.spend(len(given_state[1]))
            for key in given_state[1]:
                if isinstance(key, str) and key.startswith("__") and key.endswith("__"):
                    what = f"has its {key} set: {SAYS['injection']}"
                    yield Danger("injection", target or "an object", what, call.offset)
    for what, offset in evaluation.anomalies:
        if what == "an object's state is set twice":
            yield Danger("injection", "an object", "has its state set twice, so that one hides the other", offset)
        elif what == "attributes are set on what a persistent id refers to":
            yield Danger("injection", "a persistent id", f"is given attributes: {SAYS['injection']}", offset)
    if len(evaluation.anomalies) >= MAX_ANOMALIES:
        offset = evaluation.anomalies[-1][1]
        yield Danger("injection", "the stream", "has more oddities than are listed, so that some may hide", offset)
    yield from _handed_on(evaluation)
    yield from _bytecode(evaluation)


def _odd_attributes(call: Call) -> Iterator[Danger]:
    """Attributes that the stream gives to an object, and that unpickling it then calls, or takes for memory."""
    target, name, state = call.target, call.class_name or "an object", call.state
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    attributes = {key for part in parts if isinstance(part, dict) for key in _ODD if key in part}
    if (call.items is not None or call.entries is not None) and (found := attributes & _FILLS):
        # load_appends of pickle.py: extend = list_obj.extend; an attribute of the object comes before its method
        what = f"is filled by its {min(found)}, which the stream has set: {SAYS['computed']}"
        yield Danger("computed", name, what, call.offset)
    if found := attributes & _MEMORY:
        what = f"has its {min(found)} set, by which numpy and torch read memory at any address"
        yield Danger("injection", name, what, call.offset)
    if target in _WRAPPERS and (call.items is not None or call.entries is not None):
        what = f"has items set, which it sets on what it wraps: {SAYS['injection']}"
        yield Danger("injection", target, what, call.offset)
    if len(parts) == 2 and isinstance(parts[1], dict) and parts[1] and target.startswith(("logging.", "types.")):
        what = f"has its properties set, which may be those of something else: {SAYS['injection']}"
        yield Danger("injection", target, what, call.offset)
    if _SOURCE in attributes:
        text = next((part[_SOURCE] for part in parts if isinstance(part, dict) and _SOURCE in part), None)
        if not (isinstance(text, str) and len(text) < _MAX_SOURCE and re.fullmatch(_PARSE_ARGUMENTS, text)):
            # scipy/stats/_distn_infrastructure.py: rv_generic.__setstate__ has it executed
            yield Danger("code", name, f"has the text {brief(text)} executed", call.offset)


def _odd_type(call: Call) -> str:
    """What is wrong with the fields of a type of numpy's, in words; "" where nothing is.

    ``dtype.__setstate__`` believes them: a field behind the end is read from memory that is not the array's, and
    objects that the flags do not tell of are pointers that the file gives.
    """
    state = call.state
    if type(state) is not tuple or len(state) < 8:
        return ""
    _, _, base, _, fields, size, _, flags = state[:8]
    if type(size) is not int or type(flags) is not int or not -_MOST < size < _MOST:
        return ""
    size = size if size > 0 else _type_size(call) or 0
    parts: list[tuple[object, int, int]] = []
    if isinstance(fields, dict):
        for field in fields.values():
            if type(field) is not tuple or len(field) < 2 or type(field[1]) is not int or not -_MOST < field[1] < _MOST:
                return "has a field that is none"
            parts.append((field[0], field[1], 1))
    if type(base) is tuple and len(base) == 2:
        shape = base[1] if type(base[1]) is tuple else (base[1],)
        if len(shape) > MAX_RANK or not all(type(length) is int and 0 <= length < _MOST for length in shape):
            return "is of a shape that is none"
        parts.append((base[0], 0, math.prod(shape)))
    for part, offset, count in parts:
        length = _type_size(part)
        if length is None:
            continue
        if offset < 0 or size < offset + length * count:
            return f"has a field at byte {offset:,}, beyond its {size:,} bytes, by which numpy reads other memory"
        if _has_objects(part) and not flags & 1:
            return "has objects that its flags do not tell of, by which numpy takes bytes of the file for pointers"
    return ""


_MOST = 1 << 63
"""What sizes and offsets in memory are below."""


def _type_name(call: Call) -> str:
    """The short text by which a stream names a type of numpy's; "" where it gives something else."""
    given = call.arguments[0] if call.arguments else None
    return given if type(given) is str and len(given) <= 64 else ""


def _type_size(value: object) -> int | None:
    """The bytes that an element of a type of numpy's takes; None where that does not stand here."""
    if type(value) is not Call or value.target != "numpy.dtype" or not value.arguments:
        return None
    if type(value.state) is tuple and len(value.state) >= 8 and type(value.state[5]) is int and value.state[5] > 0:
        return value.state[5]
    digits = re.fullmatch(r"[<>|=]?[A-Za-z](\d{1,9})", _type_name(value))
    if digits is None:
        return None
    return int(digits[1]) * (4 if "U" in digits[0] else 1)


def _has_objects(value: object) -> bool:
    """Whether a type of numpy's, as the stream makes it, is that of objects or tells that it has some."""
    if type(value) is not Call or not value.arguments:
        return False
    told = type(value.state) is tuple and len(value.state) >= 8 and type(value.state[7]) is int and value.state[7] & 1
    return bool(told) or _type_name(value).lstrip("<>|=").startswith(("O", "object"))


def _address(call: Call) -> str:
    """The path, the address or the module that a class of a known package is constructed with; "" where none is.

    Objects of such classes are restored by their state; their constructors find models, data and environments.
    """
    if not entry(call.target, LIBRARIES) or call.target.partition(".")[0] in _OWN or call.target in MAKERS:
        return ""
    texts = [text for text in call.arguments[:64] if isinstance(text, str)]
    return next((brief(text) for text in texts if re.search(_ADDRESS, text)), "")


# a path, the address of something to fetch, a module and its attribute, a repository, the name of a file
_ADDRESS = (
    r"://|^[/\\~]|^[A-Za-z]:[/\\]|^\w[\w.]*:[A-Za-z_]|^[\w.-]+/[\w.-]+$"
    r"|\.(?:pt|pth|ckpt|bin|pkl|pickle|h5|onnx|ya?ml|json|toml|py|cfg|joblib|zip|tar|gz|tgz|bz2|xz|7z|npy|npz|txt|csv"
    r"|tsv|log|db|sqlite|xlsx?|xml|html?|safetensors|gguf|keras|nemo|mar|engine|tflite|parquet|feather|so|dll|model)$"
)

_FILLS = frozenset({"append", "extend", "add"})
_MEMORY = frozenset({"__array_interface__", "__array_struct__", "__cuda_array_interface__"})
_ODD = _FILLS | _MEMORY | {"_parse_arg_template"}
_WRAPPERS = frozenset(f"collections.{name}" for name in ("ChainMap", "UserDict", "UserList", "UserString")) | {
    "types.MappingProxyType"
}
_SOURCE = "_parse_arg_template"
_MAX_SOURCE = 4096
_PARSE_ARGUMENTS = r"(?:\s*(?:def _parse_args\w*\([\w ,=']*\):|return (?:self\._argcheck_rvs)?\([\w ,=]*\)[\w ,]*))*\s*"


def _is_plain_formula(call: Call) -> bool:
    """Whether an object of SymPy is made of numbers and other such objects: text would be evaluated.

    But for symbols, whose name is all the text that they take, and for numbers, whose digits are parsed.
    """
    if not call.new:
        return False
    plain = (bool, int, float, str) if call.target in _SYMBOLS else (bool, int, float)
    pending: list[object] = [*call.arguments, call.kwargs]
    for _ in range(_MAX_FORMULA):
        if not pending:
            return True
        value = pending.pop()
        if isinstance(value, tuple | list):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()
        elif not (value is None or isinstance(value, plain)):
            name = value.target if type(value) is Call else getattr(as_global(value), "path", "")
            if not name.startswith("sympy."):
                return False
    return False


_MAX_FORMULA = 1000
_SYMBOLS = frozenset(f"sympy.core.symbol.{name}" for name in ("Symbol", "Dummy", "Str")) | {"sympy.core.numbers.Float"}


def _handed_on(evaluation: Evaluation) -> Iterator[Danger]:
    """Functions that are handed to what may call them: as an argument, or among the attributes of an argument.

    Constructors of layers call the norms that they are given; ``dict(x)`` calls ``x.keys``, ``Parameter(x)`` calls
    ``x.detach``, and what these are may stand among the attributes that the stream gives to x.
    """
    functions = {id(value) for value in values(evaluation) if _is_function(value)}
    if not functions:
        return
    carriers: set[int] = set()
    for value in values(evaluation):
        if _has_function(value, functions):
            carriers.add(id(value))
            if type(value) is Call and (replaced := _replaced(value, functions)):
                what = f"has its {replaced} set to {_IN_PLACE}: {SAYS['computed']}"
                yield Danger("computed", value.class_name or "an object", what, value.offset)
    budget = Budget(evaluation.end - evaluation.start)
    for call in evaluation.calls:
        target = call.target
        if call.new or target in _PARTIALS or not target or target in ENUMERATIONS or re.fullmatch(_WEIGHTS, target):
            continue
        if (fits := _HARMLESS_CALLS.get(target)) is not None and fits(call):
            continue
        top = target.partition(".")[0]
        constructs = top in _OWN or (bool(entry(target, LIBRARIES)) and top not in _PLAIN_DUNDERS)
        constructs = constructs and target not in INERT_LIBRARY and target not in MAKERS
        if target in _CALL_THEIR_FIRST:
            # what it calls first may keep what it is given, as SimpleNamespace does, and be asked for methods then
            first = as_global(call.arguments[0]) if call.arguments else None
            constructs = first is None or "._rebuild_" not in first.path
        for given in _given(call, budget):
            if target in _CALL_THEIR_FIRST and given is call.arguments[0]:
                continue  # judged as what it is: a function that is called
            if id(given) in carriers or (constructs and id(given) in functions):
                what = f"is given {_subject(given)}, and may call it or what it holds: {SAYS['computed']}"
                yield Danger("computed", target, what, call.offset)
                break


def _has_function(value: object, functions: set[int]) -> bool:
    """Whether the stream sets a function among the attributes of *value*."""
    if not isinstance(value, Call | OrderedDict) or value.state is None:
        return False
    state = value.state
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    return any(id(item) in functions for part in parts if isinstance(part, dict) for item in part.values())


def _replaced(call: Call, functions: set[int]) -> str:
    """The method, of those that other objects call while they are restored, that a function stands for; or ""."""
    state = call.state
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    for part in parts:
        if isinstance(part, dict):
            for name in _CALLED_WHEN_RESTORED:
                if id(part.get(name)) in functions:
                    return name
    return ""


_IN_PLACE = "a function, which is called in place of the method"
# optimizers ask their state and defaults, files and handles are closed by __del__
_CALLED_WHEN_RESTORED = (
    *("get", "setdefault", "items", "keys", "values", "pop", "close", "remove", "insert", "detach", "teardown"),
)


def _bytecode(evaluation: Evaluation) -> Iterator[Danger]:
    """What is done with functions that the file holds as bytecode: to be kept is the only thing that runs none."""
    if not any(call.target in CODE_CARRIERS for call in evaluation.calls):
        return
    budget = Budget(evaluation.end - evaluation.start)
    for call in evaluation.calls:
        target = call.target
        if target in CODE_CARRIERS:
            part = target.rpartition(".")[2]
            if part == "_builtin_type" and not _is_code_type(call):
                what = f"fetches {brief(call.args)} from types: {SAYS['reflection']}"
                yield Danger("reflection", target, what, call.offset)
            elif part in ("_function_setstate", "_fill_function", "_cell_set"):
                made = call.arguments[0] if call.arguments else None
                if not (type(made) is Call and made.target in CODE_CARRIERS):
                    yield Danger("injection", target, f"changes {_subject(made)}: {SAYS['injection']}", call.offset)
            continue
        given = [call.args, call.kwargs, call.state, call.items, call.entries]
        if target and _holds_code(given, budget):
            what = "is given a function whose bytecode is in the file, and may run it"
            yield Danger("code", target, what, call.offset)


def _holds_code(pending: list[object], budget: Budget) -> bool:
    """Whether one of *pending* is, or holds in containers, something that a part of cloudpickle makes."""
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if type(one) is Call:
            if one.target in CODE_CARRIERS:
                return True
        elif isinstance(one, dict | list | tuple | set | frozenset):
            budget.spend(len(one))
            pending += _inside(one)
    return False


def _given(call: Call, budget: Budget) -> Iterator[object]:
    """What is handed to a call: its arguments, and what lies in their containers.

    Raises `LimitExceeded` where calls share their containers far more often than real ones do.
    """
    seen: set[int] = set()
    pending: list[object] = [call.args, call.kwargs]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict | list | tuple | set | frozenset):
            budget.spend(len(value))
            pending += _inside(value)
        yield value


def _is_function(value: object) -> bool:
    if type(value) is Call:
        return value.target in _PARTIALS or value.target == "builtins.getattr"
    return (
        type(value) is Global
        and bool(_LOWER.match(value.name.rpartition(".")[2]))
        and not (value.path in INERT or value.path in INERT_LIBRARY)
    )


def _subject(value: object) -> str:
    if type(value) is Call:
        return f"the result of {value.target or 'a call'}"
    name = as_global(value)
    return name.path if name is not None else brief(value)


def _is_code_type(value: object) -> bool:
    return type(value) is Call and value.target.endswith("._builtin_type") and value.arguments == ("CodeType",)


def _is_time_zone(call: Call) -> bool:
    """Whether it is ``ZoneInfo._unpickle("Europe/Rome", True)``, which looks the zone up among those installed."""
    func = call.func
    return (
        type(func) is Call
        and func.target == "builtins.getattr"
        and len(func.arguments) == 2
        and (getattr(as_global(func.arguments[0]), "path", ""), func.arguments[1]) == _ZONE
        and len(call.arguments) == 2
        and isinstance(call.arguments[0], str)
        and re.fullmatch(r"[A-Za-z0-9_+/-]+", call.arguments[0]) is not None
    )


def _is_plain_getattr(call: Call) -> bool:
    """Whether it fetches what real objects have fetched: what is fetched is kept, or else called in plain sight.

    ``getattr(Class, "NAME")`` is a member of an enumeration, ``getattr(torch._C._VariableFunctions, "relu")`` a
    function of torch, ``getattr(object, "method")`` a method of an object in the stream or of a class.
    """
    arguments = call.arguments
    if len(arguments) != 2 or type(arguments[1]) is not str:
        return False
    owner, name = arguments[0], arguments[1]
    if not re.fullmatch(_IDENTIFIER, name) or name.startswith("__") or name in SUSPECT_WORDS:
        return False
    known = as_global(owner)
    if known is not None and known.path in _FUNCTIONS_OF_TORCH:
        return classify("torch", name, True)[1] in (None, "library")
    if known is not None and (known.path in _PLAIN_TYPES or (known.path, name) == _ZONE):
        return True
    if known is not None:
        if _LOWER.match(known.name.rpartition(".")[2]):
            return False
        of_class = known.module.partition(".")[0] not in _OWN or bool(entry(known.module, CLASS_MODULES))
        kind = classify(known.module, known.name, False)[0]
        return re.fullmatch(_MEMBER, name) is not None or (of_class and kind in ("class", "unknown class"))
    if type(owner) is not Call or not owner.class_name:
        return False
    module, _, cls = owner.class_name.rpartition(".")
    return classify(module, cls, False)[0] in ("class", "unknown class") and not _LOWER.match(cls)


def _is_typing(call: Call) -> bool:
    """Whether it is ``getitem(typing.X, …)``, as generic types are pickled."""
    owner = as_global(call.arguments[0]) if call.arguments else None
    return owner is not None and owner.module == "typing" and owner.path in INERT


def _is_union(call: Call) -> bool:
    """Whether it is ``reduce(or_, (int, str))``, as ``int | str`` is pickled."""
    if len(call.arguments) != 2:
        return False
    operator, types = as_global(call.arguments[0]), call.arguments[1]
    if operator is None or operator.path not in ("operator.or_", "_operator.or_") or not isinstance(types, tuple):
        return False
    return all(one is None or (type(one) is Call and _is_type(one)) or _is_class(one) for one in types)


def _is_type(call: Call) -> bool:
    """Whether it is ``list[int]``, ``Optional[int]`` or ``type(None)``."""
    return call.target in ("types.GenericAlias", "builtins.type") or _is_typing(call)


def _is_class(value: object) -> bool:
    name = as_global(value)
    return name is not None and (not _LOWER.match(name.name) or name.path in INERT)


# torch.compile(module), saved whole, is OptimizedModule(module, OptimizeContext(callback, nullcontext, first_ctx)).
# From torch/_dynamo/eval_frame.py: the constructor of OptimizedModule calls its second argument with the first's
# __call__, and OptimizedModule.__setstate__ does so too; an OptimizeContext that is called wraps a function, gives
# a class other methods (cls.__call__ = …), and calls nothing; its own constructor keeps the callback and what the
# context is made with for the first forward pass, and applies torch's patches of itself, as torch.compile does.
# So they are harmless where the one is given a module and the other, the other the compiler's own callback and
# nullcontext, and neither has attributes set that would be called in place of its methods.


def _is_compiled_module(call: Call) -> bool:
    if call.new or call.state is not None or len(call.arguments) != 2:
        return False
    module, context = call.arguments
    if type(module) is not Call or type(context) is not Call or context.target not in _CONTEXTS:
        return False
    if module.target == _COMPILED:  # one in the other, which is asked about by itself
        return not module.new
    state = module.state
    return (
        module.new
        and isinstance(state, dict)
        and all(isinstance(state.get(registry), dict) for registry in ("_parameters", "_modules"))
        and not _CALLED_FOR_THE_CLASS.intersection(key for key in state if isinstance(key, str))
    )


def _is_compile_context(call: Call) -> bool:
    if call.new or len(call.arguments) != 3:
        return False
    callback, made_with, first = call.arguments
    kept = as_global(made_with)
    state = call.state
    return (
        type(callback) is Call
        and callback.new
        and callback.target.startswith("torch._dynamo.convert_frame.")
        and kept is not None
        and kept.path == "contextlib.nullcontext"
        and isinstance(first, bool)
        and (state is None or (isinstance(state, dict) and state.keys() <= _OF_CONTEXTS))
    )


def _has_no_arguments(call: Call) -> bool:
    return not call.new and call.state is None and not call.arguments


_COMPILED = "torch._dynamo.eval_frame.OptimizedModule"
_CONTEXTS = frozenset(f"torch._dynamo.eval_frame.{name}Context" for name in ("Optimize", "Disable", "RunOnly"))
_OF_CONTEXTS = {"export", "dynamic", "compiler_config"}
_CALLED_FOR_THE_CLASS = frozenset({"__call__", "__class__", "_torchdynamo_orig_callable"})

_HARMLESS_CALLS: dict[str, Callable[[Call], bool]] = {
    "torch.storage._load_from_bytes": lambda call: True,  # the bytes are judged, see `_nested`
    "builtins.getattr": _is_plain_getattr,
    "operator.getitem": _is_typing,
    "_operator.getitem": _is_typing,
    "functools.reduce": _is_union,
    "_functools.reduce": _is_union,
    _COMPILED: _is_compiled_module,
    "torch._dynamo.eval_frame.OptimizeContext": _is_compile_context,
    "torch._dynamo.eval_frame.DisableContext": _has_no_arguments,
    "torch._dynamo.eval_frame.RunOnlyContext": _has_no_arguments,
}
"""Names that are dangerous but for calls of one form."""


# --- pickles in byte strings

_BYTES = frozenset(b"BC\x8e\x96TUS")  # the opcodes that hold byte strings
_MARKS = (*(bytes([0x80, version]) for version in range(6)), b"c", b"(", b"}", b"]", b"PK\x03\x04", b"\x8c", b"\x95")
"""How pickles begin that programs write; those that are made to look otherwise may begin with any opcode."""
_NAMING = rb"[ci][\w.]+\n[\w.]+\n|[\x82-\x84\x93]"
"""The opcodes by which a pickle names something."""


def _holds_bytes(evaluation: Evaluation) -> bool:
    """Whether a stream has byte strings, which before protocol 3 are text that is encoded."""
    encodes = any(name.path == "_codecs.encode" for name in evaluation.globals.values())
    return encodes or bool(evaluation.opcodes & _BYTES)


def _nested(pickle: Pickle, evaluation: Evaluation, depth: int, dangers: list[Danger]) -> Iterator[PickleVerdict]:
    """The verdicts for pickles in the byte strings of a stream.

    Those that ``_load_from_bytes`` is given are loaded with the stream: what they are cannot be left open.
    """
    loaded: set[int] = set()
    for call in evaluation.calls:
        if call.target != "torch.storage._load_from_bytes":
            continue
        given = call.arguments[0] if len(call.arguments) == 1 else None
        loaded.add(id(given))
        if isinstance(call.meaning, Storage | View):
            continue  # the format has read it, and counts its pickles among the file's
        where = f"{pickle.member}: bytes for _load_from_bytes at byte {call.offset:,}"
        verdicts = list(_loaded(_source(given, pickle), where, depth))
        yield from verdicts
        if not verdicts or any(verdict.answer == "unknown" for verdict in verdicts):
            what = "has torch.load read bytes that are not what it wrote"
            dangers.append(Danger("loader", "torch.storage._load_from_bytes", what, call.offset))
    if not _holds_bytes(evaluation):
        return
    encoded: set[int] = set()  # texts, of which one may be encoded by any number of calls
    for value in values(evaluation):
        if type(value) is Call:
            text = value.arguments[0] if value.arguments else None
            if value.target != "_codecs.encode" or id(value) in loaded or id(text) in encoded:
                continue
            encoded.add(id(text))
            place = f" at byte {value.offset:,}"
        elif isinstance(value, bytes):
            if len(value) < 4 or id(value) in loaded:
                continue
            place = ""
        elif type(value) is Blob and not value.text and id(value) not in loaded:
            place = f" at byte {value.offset:,}"
        else:
            continue
        source = _source(value, pickle)
        if source is not None:
            if source.peek(0, 4) == b"PK\x03\x04":
                where = f"{pickle.member}: a byte string{place}"
                yield from (verdict for verdict in _loaded(source, where, depth) if verdict.names)
                continue
            marked = source.peek(0, 4).startswith(_MARKS)
            if not marked and isinstance(value, bytes) and not re.search(_NAMING, value):
                continue
            verdict = _kept(source, f"{pickle.member}: a byte string{place}", depth)
            if verdict is not None and (verdict.names or (marked and (verdict.nested or not verdict.complete))):
                yield verdict


def _source(value: object, pickle: Pickle) -> Source | None:
    if pickle.stream is None and type(value) is Blob:
        return None
    try:
        return byte_source(value, pickle.stream or MemorySource(b"", pickle.member))
    except CkptError:
        return None


def _loaded(source: Source | None, member: str, depth: int) -> Iterator[PickleVerdict]:
    """The verdicts for the pickles in *source*, a file that torch.load will read."""
    if source is None or source.size > MAX_NESTED_BYTES or depth >= MAX_NESTED:
        yield _unjudged(member, source)
    elif source.peek(0, 4) == b"PK\x03\x04":
        from ckpt_tools.formats import open_checkpoint  # rarely needed

        try:
            for inner in open_checkpoint(source).pickles:
                yield _judge(inner, depth + 1)
        except CkptError:
            yield _unjudged(member, source)
    else:
        streams = Pickles(source)
        for number in range(5):  # a legacy file
            where = f"{member}, pickle {number + 1}"
            try:
                yield _judge(pickle_of(streams.next(), where, source), depth + 1)
            except CkptError as error:
                partial = getattr(error, "partial", None)
                if isinstance(partial, Evaluation):
                    yield _judge(pickle_of(partial, where, source), depth + 1)
                return


def _unjudged(member: str, source: Source | None) -> PickleVerdict:
    """The verdict for *source*, which may be anything."""
    loaded = payload.digest(payload.of_bytes(source)) if source is not None else ""
    return PickleVerdict(member, "unknown", complete=False, payload=loaded)


def _kept(source: Source, member: str, depth: int) -> PickleVerdict | None:
    """The verdict for *source*, a byte string, if it is a pickle."""
    if source.size > MAX_NESTED_BYTES or depth >= MAX_NESTED:
        looks_so = source.peek(0, 1) == b"\x80"
        return _unjudged(member, source) if looks_so else None
    try:
        with contextlib.suppress(Truncated):
            evaluate(source.peek(0, HEAD_BYTES))  # most of what is no pickle shows it here, and may be large
        evaluation = evaluate(source.read(0, source.size))
    except CkptError as error:
        partial = getattr(error, "partial", None)
        if not isinstance(partial, Evaluation) or not partial.calls:
            return None
        evaluation = partial  # it would act, and then break off
    return _judge(pickle_of(evaluation, member, source), depth + 1)


def values(evaluation: Evaluation) -> Iterator[object]:
    """Every value that a stream makes or hands to a call, once, but plain numbers and text."""
    seen: set[int] = set()
    pending: list[object] = [evaluation.root, *evaluation.calls]
    while pending:
        value = pending.pop()
        if value is None or type(value) in _PLAIN or id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        pending += _inside(value)


_PLAIN = frozenset({str, int, bool, float})


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, OrderedDict):
        return (*value, *value.values(), value.state)
    if isinstance(value, dict):
        return (*value, *value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if type(value) is PersistentId:
        return (value.pid,)
    if type(value) is Call:
        pairs = (part for entry in value.entries or () for part in entry)
        return (value.args, value.kwargs, value.state, *(value.items or ()), *pairs)
    return ()
