"""TorchScript archives (torch.jit.save since 1.4): a zip like torch.save's, in which classes are code.

``data.pkl`` holds instances of ``__torch__.X``, each with one flat dict of attributes. Which of these are
parameters and buffers, and in which order torch goes through them, stands in the class's own text,
``code/__torch__/….py``, which is read here as text: ``__parameters__``, ``__buffers__`` and the list of
attributes before the first method. ``constants.pkl`` has the tensors that the code refers to as
``CONSTANTS.cN`` (torch/csrc/jit/serialization: export_module.cpp, python_print.cpp, import_source.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ckpt_tools.checkpoint import Anomaly, Checkpoint, KeyPath, Module, Pickle, Refusal, StateDict, TensorInfo
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, UnsupportedFeature
from ckpt_tools.formats.archive import Archive, MissingDirectory
from ckpt_tools.formats.base import Format
from ckpt_tools.formats.torch_zip import Members
from ckpt_tools.formats.unpickled import describe, load_buffer, pickle_of, run_machine
from ckpt_tools.pickles.machine import Evaluation
from ckpt_tools.pickles.structure import survey
from ckpt_tools.pickles.torch_objects import Interpreter
from ckpt_tools.pickles.values import Call, Global, as_global
from ckpt_tools.sources import Source

CODE_LIMIT = 1 << 25
"""The most bytes of code that are read, all files together."""
MAX_LITERAL = 256
"""The longest value of a ``Final`` attribute that is read, in characters."""

_MANGLE = re.compile(r"___torch_mangle_\d+\.")
_CLASS = re.compile(r"^class[ \t]+(\w+)[ \t]*\(([^)\n]*)\)[ \t]*:", re.M)
_HEADER_END = re.compile(r"^(?:[ \t]+def[ \t]|class[ \t]|def[ \t])", re.M)
_QUOTED = r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\''
_NAMES = re.compile(rf"__(\w+)__[ \t]*=[ \t]*\[((?:{_QUOTED}|[ \t,])*)\]")
_ATTRIBUTE = re.compile(
    rf"(?:(\w+)[ \t]*:|__annotations__\[[ \t]*({_QUOTED})[ \t]*\][ \t]*=)[ \t]*([^=]+)(?:=[ \t]*(.+))?"
)
_TAGS = frozenset(
    # what keeps the element type of a container (torch/jit/_pickle.py)
    f"torch.jit._pickle.{name}"
    for name in ("restore_type_tag", "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
)


@dataclass(frozen=True, slots=True)
class _Class:
    """A module class of the archive: its attributes in their order, and the values of the ``Final`` ones."""

    parameters: frozenset[str]
    buffers: frozenset[str]
    attributes: tuple[str, ...]
    constants: Mapping[str, object] = field(default_factory=dict)


def detect(source: Source, head: bytes) -> bool:
    """Whether it is a zip archive that torch.load hands on to torch.jit.load, or the oldest kind of these."""
    if not head.startswith(b"PK\x03\x04"):
        return False
    try:
        archive = Archive.of(source)
    except MissingDirectory:
        return False
    root = archive.root
    names = {member.name for member in archive.members}
    # the name as it is, no case folded, decides (torch/serialization.py, _is_torchscript_zip)
    return f"{root}constants.pkl" in names or _is_oldest(root, names)


def _is_oldest(root: str, names: set[str]) -> bool:
    return {f"{root}model.json", f"{root}version"} <= names and any(
        name.startswith((f"{root}code/", f"{root}tensors/")) for name in names
    )


def read(source: Source) -> Checkpoint:
    """Describe a TorchScript archive; of its code, the heads of the classes in use are read, and nothing is run.

    The checkpoint's module is the tree that ``torch.jit.load`` makes. Class names are the file's own, less
    the ``___torch_mangle_N`` with which torch keeps namesakes apart. Raises `UnsupportedFeature` for the
    archives of torch 1.0 to 1.3.
    """
    archive = Archive.of(source)
    root = archive.root
    if archive.find(f"{root}constants.pkl") is None:
        raise UnsupportedFeature(
            "a TorchScript archive of torch 1.0 to 1.3 (model.json)",
            path=source.name,
            remedy="Load it with torch.jit.load, and save it again",
        )
    members = Members(archive, root)
    stream, data = _evaluate(archive, f"{root}data.pkl")
    anomalies: list[Anomaly] = []
    classes = _classes(archive, root, data.globals.values(), anomalies)
    made = describe(
        data,
        members.storage,
        source=source,
        stream=stream,
        member=f"{root}data.pkl",
        format=FORMAT.name,
        title=FORMAT.title,
        interpreter=partial(_Interpreter, classes),
        metadata=_metadata(archive, root),
        producer=_producer(members),
        anomalies=anomalies,
    )
    constants, pickle = _constants(archive, root)
    return replace(
        made,
        kind="program",
        state_dicts=made.state_dicts + ((constants,) if constants.entries else ()),
        loose=(*made.loose, *(_attribute_tensors(made.module) if made.module else ())),
        pickles=(*made.pickles, pickle),
        # torch.load does not get as far as to look at the names in it
        refusals=(Refusal("TorchScript", "only torch.jit.load reads such archives", is_global=False),),
    )


def _evaluate(archive: Archive, name: str) -> tuple[Source, Evaluation]:
    member = archive.find(name)
    if member is None:
        raise CorruptFile("a TorchScript archive without it", path=archive.source.name, member=name)
    stream = archive.open(member)
    return stream, run_machine(load_buffer(stream), 0, path=archive.source.name, member=name)


def _metadata(archive: Archive, root: str) -> dict[str, object]:
    names = [member.name.removeprefix(root) for member in archive.members]
    code = tuple(n[5:-3].replace("/", ".") for n in names if n.startswith("code/") and n.endswith(".py"))
    extra = tuple(n[6:] for n in names if n.startswith("extra/"))
    return {"code": code, "extra files": extra} if extra else {"code": code}


def _producer(members: Members) -> dict[str, str]:
    producer = {"root folder": members.root.rstrip("/")}
    version = members.text("version")
    if version:
        producer["archive version"] = version
    if members.archive.find(f"{members.root}bytecode.pkl") is not None:
        producer["interpreter"] = "the mobile one too (bytecode.pkl)"
    return producer


def _constants(archive: Archive, root: str) -> tuple[StateDict, Pickle]:
    """The tensors that the code names ``CONSTANTS.cN``, and the record of their pickle."""
    member = f"{root}constants.pkl"
    stream, evaluation = _evaluate(archive, member)
    members = Members(archive, root)  # with storages of its own: the numbers begin again
    try:
        values = Interpreter(partial(members.storage, folder="constants/"), stream).run(evaluation)
    except CkptError as error:
        raise error.at(path=archive.source.name, member=member) from None
    found: dict[str, object] = {f"c{path[0]}": tensor for path, tensor in survey(values).loose if len(path) == 1}
    return StateDict(("constants",), "other", found), pickle_of(evaluation, member, stream)


# --- the heads of classes


def _classes(archive: Archive, root: str, names: Iterable[Global], anomalies: list[Anomaly]) -> dict[Global, _Class]:
    """The module classes among *names*, read from the code of the modules that these stand in."""
    wanted: dict[str, list[Global]] = {}
    for name in names:
        if name.module.partition(".")[0] == "__torch__":
            wanted.setdefault(name.module, []).append(name)
    found: dict[Global, _Class] = {}
    budget = CODE_LIMIT
    for module, group in wanted.items():
        member = archive.find(f"{root}code/{module.replace('.', '/')}.py")
        if member is None:
            what = "the class has no code, so that torch cannot load the archive"
            anomalies += [Anomaly(what, f"{name.module}.{name.name}") for name in group]
            continue
        budget -= member.size
        if budget < 0:
            raise LimitExceeded(
                f"the code takes more than {CODE_LIMIT:,} bytes", path=archive.source.name, member=member.name
            )
        heads = _heads(archive.open(member).read(0, member.size).decode("utf-8", "replace"))
        for name in group:
            name.path = _MANGLE.sub("", name.path)
            bases, head = heads.get(name.name, ("", None))
            if bases.strip() == "Module" and head is not None:
                try:
                    found[name] = _parse(head)
                except ValueError as error:
                    anomalies.append(
                        Anomaly(
                            "the class is not written as torch writes it, so that its parameters are unknown: "
                            f"{str(error)!r:.80}",
                            f"{member.name}, class {name.name}",
                        )
                    )
    return found


def _heads(text: str) -> dict[str, tuple[str, str]]:
    """The bases of each class in *text*, and what stands between its name and its first method."""
    heads: dict[str, tuple[str, str]] = {}
    for match in _CLASS.finditer(text):
        end = _HEADER_END.search(text, match.end())
        heads.setdefault(match[1], (match[2], text[match.end() : end.start() if end else len(text)]))
    return heads


def _parse(head: str) -> _Class:
    """A class from the lines before its first method. Raises ValueError with the line that is none of torch's."""
    lists: dict[str, frozenset[str]] = {}
    attributes: list[str] = []
    constants: dict[str, object] = {}
    for line in head.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if match := _NAMES.fullmatch(line):
            lists[match[1]] = frozenset(_unquoted(name) for name in re.findall(_QUOTED, match[2]))
        elif match := _ATTRIBUTE.fullmatch(line):
            name = match[1] or _unquoted(match[2])
            if match[4] is not None and match[3].startswith("Final["):
                constants[name] = _literal(match[4])
            else:
                attributes.append(name)
        else:
            raise ValueError(line)
    return _Class(lists.get("parameters", frozenset()), lists.get("buffers", frozenset()), tuple(attributes), constants)


def _unquoted(literal: str) -> str:
    import codecs

    # what is no printable ASCII is written in octal, byte by byte (c10/util/StringUtil.h, printQuotedString)
    return codecs.escape_decode(literal[1:-1].encode())[0].decode("utf-8", "replace")


def _literal(text: str) -> object:
    """The value of a number, string or container of these; the text itself where it is anything else."""
    from ast import literal_eval

    try:
        return literal_eval(text) if len(text) <= MAX_LITERAL else text
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text


# --- instances


class _Interpreter(Interpreter):
    """Reads instances of the archive's own classes as modules, their attributes sorted by *classes*."""

    def __init__(self, classes: Mapping[Global, _Class], *args: Any) -> None:
        super().__init__(*args)
        self._classes = classes

    def _interpret(self, call: Call) -> object:
        if call.target in _TAGS:
            return self.meaning(call.arguments[0]) if call.arguments else None
        cls = self._class_of(call)
        if cls is None and call.target.startswith("__torch__.") and not isinstance(call.state, dict | None):
            return call.state  # of a class written in C++ (packed weights), or of none: there is no more to tell
        if cls is None:
            return super()._interpret(call)
        values: Mapping[object, object] = call.attributes
        hints: list[str] = []
        if call.state is not None and not isinstance(call.state, dict):
            # its __setstate__, which is code, would make attributes of it
            values = {"__setstate__": call.state}
            cls = replace(cls, attributes=("__setstate__",))
            hints.append("sets its own state by __setstate__, so that its parameters are unknown")
        parts: dict[str, dict[str, object]] = {"_parameters": {}, "_buffers": {}, "_modules": {}}
        others: dict[str, object] = dict(cls.constants)
        for name in cls.attributes:
            value = values.get(name)
            if name in cls.parameters:
                parts["_parameters"][name] = value
            elif name in cls.buffers:
                parts["_buffers"][name] = value
            elif self._class_of(value) is not None:
                parts["_modules"][name] = value
            else:
                others[name] = value
        undeclared = {str(name): value for name, value in values.items() if name not in cls.attributes}
        if undeclared:
            hints.append(f"holds what its code does not declare: {', '.join(undeclared):.80}")
        module = self._module(call.class_name, {**others, **undeclared, **parts})
        if hints:
            measured = self._measured[id(module)]
            module = replace(module, state_dict_hints=(*module.state_dict_hints, *hints))
            self._measured[id(module)] = measured
        return module

    def _class_of(self, value: object) -> _Class | None:
        name = as_global(value.func) if type(value) is Call else None
        return self._classes.get(name) if name is not None else None

    def _tensors(
        self, attributes: Mapping[Any, object], key: str, class_name: str, hints: list[str]
    ) -> dict[str, TensorInfo | None]:
        found = super()._tensors(attributes, key, class_name, hints)
        if key == "_parameters":
            return {name: tensor and replace(tensor, is_parameter=True) for name, tensor in found.items()}
        return found


def _attribute_tensors(root: Module) -> Iterator[tuple[KeyPath, TensorInfo]]:
    """Tensors that modules hold as plain attributes, or in a state of their own making: in no state_dict."""
    seen: set[int] = set()
    pending: list[tuple[KeyPath, Module]] = [((), root)]
    while pending:
        path, module = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found = survey(dict(module.attributes))
        state_dicts = list(found.state_dicts)
        if found.module is not None:
            state_dicts.append(replace(found.module.state_dict(), path=found.module_path))
        for state_dict in state_dicts:
            yield from (((*path, *state_dict.path, tensor.name), tensor) for tensor in state_dict.tensors)
        yield from (((*path, *below), tensor) for below, tensor in found.loose)
        pending += [((*path, name), child) for name, child in reversed([*module.children.items()]) if child is not None]


FORMAT = Format("torchscript", "TorchScript archive (torch.jit.save)", read, detect)
