"""Code that configurations name: what a program that follows them would import and call.

Hydra calls what stands under ``_target_``, Lightning imports ``_instantiator``, PyYAML makes objects of its tags for
Python, skops those of its schema. None of that is in a pickle, so weights that are safe by themselves may lie beside
it, or hold it among their metadata. Names are judged as those of a pickle are (`ckpt_tools.audit.dangers`).
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import islice

from ckpt_tools.audit.dangers import classify
from ckpt_tools.audit.gadgets import KNOWN_DANGERS, SAYS, STANDARD_LIBRARY, SUSPECT_WORDS
from ckpt_tools.audit.payload import digest, of_value
from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.pickles.values import Blob, Call
from ckpt_tools.records import comparable
from ckpt_tools.sources import Source


@comparable
class Named:
    """*key* is where a configuration names *name*; *what* says in words what following it does.

    *payload* is a digest of what stands with it, of which that is made.
    """

    key: str
    name: str
    what: str
    payload: str = ""


def decoded(data: bytes) -> str:
    """The text of a configuration, by the mark at its beginning, as PyYAML reads it."""
    encoding = "utf-16" if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig"
    return data.decode(encoding, "replace")


def named_code(text: str) -> Iterator[Named]:
    """What *text*, which may be JSON, YAML or a literal of Python, has called that does harm."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            pass  # a literal of Python, or YAML in its flow style
        else:
            yield from named_in(content)
            return
    payload = cache(lambda: digest(of_value(text)))
    if not (re.search(_ANY, text) or "\\" in text or "%" in text):
        return
    plain = re.sub(_ESCAPE, lambda match: chr(int(match[1], 16)), text)
    for match in re.finditer(_IN_TEXT, plain):
        key, value = match["key"], match["value"]
        if value.startswith(("*", "$")):
            if key in _FOLLOWED:
                yield Named(key, value, "what it calls is put together when it is read", payload())
        else:
            yield from _judged(key, value, payload)
    if handle := re.search(_HANDLE, plain):
        what = "what its tags make of Python is put together when they are read"
        yield Named("%TAG", handle[0], what, payload())
    for match in re.finditer(_TAG, re.sub(_PERCENT, lambda match: chr(int(match[1], 16)), plain)):
        yield from _judged("python", match[1] if "." in match[1] else f"{match[1]}.*", payload)


def named_in(content: object, stream: Source | None = None) -> Iterator[Named]:
    """The same for what was read of JSON, or the inert values of a checkpoint; the first `MAX_NAMED`.

    *stream* is the one that their long texts were left in.
    """
    yield from islice(_named_in(content, stream), MAX_NAMED)


def _named_in(content: object, stream: Source | None) -> Iterator[Named]:
    seen: dict[int, object] = {}  # which keeps them, as what is gone leaves its id to others
    parsed: set[int] = set()
    pending: list[object] = [content]
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, dict):
            payload = cache(partial(_digest_of, value))
            for key, item in value.items():
                text = item if isinstance(item, str) else _of_node(item)
                if type(item) is Blob and key in _SOURCES:
                    text = _long_text(item, stream)
                if text is None:
                    if _holds_some(item):
                        pending.append(item)
                elif isinstance(key, str) and not (key in _SOURCES and id(item) in parsed):
                    if key in _SOURCES:  # which takes its time, and may be shared
                        parsed.add(id(item))
                    yield from _judged(key, text, payload)
            module, cls = value.get("__module__"), value.get("__class__")
            if isinstance(module, str) and isinstance(cls, str):  # a node of skops
                yield from _judged("__class__", f"{module}.{cls}", payload)
        elif isinstance(value, list | tuple):
            pending += filter(_holds_some, value)
        elif isinstance(value, Call):
            pending += (part for part in (value.state, dict(_named(value.entries))) if part)
            if value.target in _MAPPINGS:  # which may be given what they hold
                for given in value.arguments[:2]:
                    if isinstance(given, list | tuple):
                        given = dict(
                            _named([pair for pair in given if isinstance(pair, list | tuple) and len(pair) == 2])
                        )
                    if isinstance(given, dict):
                        pending.append(given)


def may_name(checkpoint: Checkpoint) -> bool:
    """Whether the values of *checkpoint* may have one of the keys: in pickles these are looked for byte by byte."""
    for pickle in checkpoint.pickles:
        evaluation, stream = pickle.evaluation, pickle.stream
        if stream is None or evaluation is None or evaluation.opcodes & _ESCAPING:
            return True
        size = evaluation.end - evaluation.start
        if size > MAX_SEARCHED:
            return True
        data = stream.peek(evaluation.start, size)
        for key in _KEYS:
            if key in data:
                return True
    return not checkpoint.pickles


_ESCAPING = frozenset(b"SV")
"""The opcodes whose texts have escapes."""


def _holds_some(value: object) -> bool:
    return isinstance(value, dict | list | tuple) or (
        type(value) is Call and bool(value.state or value.entries or value.target in _MAPPINGS)
    )


_MAPPINGS = frozenset(
    {
        "builtins.dict",
        "collections.Counter",
        "collections.OrderedDict",
        "collections.UserDict",
        "collections.defaultdict",
    }
)


def _digest_of(value: object) -> str:
    return digest(of_value(value))


def _long_text(blob: Blob, stream: Source | None) -> str | None:
    """A text that was left in *stream*, as much of it as is read as Python."""
    if stream is None or not blob.text:
        return None
    return str(stream.peek(blob.offset, min(blob.size, MAX_SOURCE)), "utf-8", "replace")


def _named(entries: Iterable[Sequence[object]] | None) -> Iterator[tuple[str, object]]:
    return ((key, item) for key, item in entries or () if isinstance(key, str))


def _of_node(value: object) -> str | None:
    """The text in a node of OmegaConf; None where *value* is none with a text."""
    state = value.state if type(value) is Call else None
    text = state.get("_val") if isinstance(state, dict) else None
    return text if isinstance(text, str) else None


def _judged(key: str, value: str, payload: Callable[[], str]) -> Iterator[Named]:
    for name, what in _following(key, value):
        yield Named(key, name, what, payload())


def _following(key: str, value: str) -> Iterator[tuple[str, str]]:
    """What of *value*, which stands under *key*, does harm, and how in words."""
    if re.fullmatch(_IMPLEMENTATION, key):
        if "/" in value:
            yield value, "code is fetched from that repository and run"
    elif key == "_instantiator":
        if value not in _INSTANTIATORS:
            yield value, "it is imported, and called with the class"
    elif key in _SOURCES:
        yield from _called(value)
    elif (key in _FOLLOWED or key in _GENERIC) and re.fullmatch(_DOTTED, value):
        what = _harm(value, generic=key in _GENERIC)
        if what:
            yield value, f"it {what}"


def _called(text: str) -> Iterator[tuple[str, str]]:
    """What *text*, if it is Python, imports or calls that does harm: OpenMMLab executes such configurations."""
    if len(text) > MAX_SOURCE or not ("import" in text or "__" in text or "(" in text):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes, in what is no Python
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        paths: list[str] = []
        if isinstance(node, ast.Import):
            paths = [f"{alias.name}.*" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            paths = [f"{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            paths = [f"builtins.{node.func.id}"] if f"builtins.{node.func.id}" in KNOWN_DANGERS else []
            paths += ["builtins.__import__"] if node.func.id == "__import__" else []
        for path in paths:
            if what := _harm(path, generic=False):
                yield path.removesuffix(".*"), f"it {what}"


def _harm(path: str, generic: bool) -> str:
    """What calling *path* does in words; "" where it is none of what only an attacker would have called.

    Configurations name layers, optimizers and datasets, whose constructors a pickle would not be let call.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    top = module.partition(".")[0]
    category = classify(module, name, True)[1]
    if category is None or (generic and top in _WORDS):
        return ""
    if top in STANDARD_LIBRARY:
        return SAYS[category]
    if top in ("torch", "numpy"):
        return SAYS[category] if category in ("code", "loader", "reflection") and path != "torch.compile" else ""
    return SAYS[category] if name in SUSPECT_WORDS else ""


_INSTANTIATORS = ("lightning.pytorch.cli.instantiate_module", "pytorch_lightning.cli.instantiate_module")
"""The only ones that Lightning itself writes, and calls since 2.6.6."""
_SOURCES = frozenset({"cfg", "config"})
MAX_SOURCE = 1 << 17
"""The longest text that is read as Python."""
MAX_SEARCHED = 1 << 20
"""The longest pickle in which the keys are looked for, byte by byte, before its values are."""
MAX_NAMED = 50
"""The most that are told of one configuration: each has a digest of what it stands in."""
_FOLLOWED = frozenset(
    {
        "_target_",
        "_class_path",
        "parent_library",
        "python",
        "__class__",
        "activation_fn",
        "sbert_ce_default_activation_function",
    }
)
_GENERIC = frozenset({"target", "class_path", "type"})
"""Keys that other programs have for other things: of latent-diffusion and NeMo, of jsonargparse, of SBERT."""
_KEYS = (
    *(b"target", b"class", b"type", b"config", b"cfg", b"python", b"parent_library", b"activation_f"),
    *(b"_instantiator", b"_implementation"),
)
"""Parts of the keys, one of which is in each."""
_WORDS = frozenset(
    {
        *("abc", "array", "calendar", "chunk", "cmd", "code", "concurrent", "copy", "csv", "email", "enum", "html"),
        *("http", "json", "locale", "math", "new", "numbers", "parser", "profile", "queue", "random", "resource"),
        *("select", "sets", "signal", "site", "stat", "statistics", "string", "struct", "symbol", "test", "time"),
        *("token", "trace", "types", "wave", "xml"),
    }
)
"""Modules of Python that are words, too: what begins with one is likely to be something else."""
# patterns stay text until there is something to look at: compiling them takes longer than reading most files
_DOTTED = r"(?a)[A-Za-z_][\w.]*[.:](?:\w+|\*)"
_IMPLEMENTATION = r"_?(?:attn|experts)_implementation(?:_internal)?"
# YAML may have a tag, an anchor, or the mark of a folded text before a value, and the value on a line of its own
_IN_TEXT = (
    r"\b(?P<key>_target_|_instantiator|_class_path|class_path|target|_?(?:attn|experts)_implementation(?:_internal)?)"
    r"[\"']?\s*:\s*(?:[|>][-+0-9]{0,4}\s+|[!&]\S{0,200}\s+){0,3}[\"']?(?P<value>\$\{|\*\w|[A-Za-z_][\w.:/-]*)"
)
_TAG = r"python/(?:object/apply|object/new|object|name|module):([\w.]+)"
_HANDLE = r"(?m)^%TAG\b.*\bpython/.*$"
_PERCENT = r"%([0-9a-fA-F]{2})"
_ANY = r"_target_|_instantiator|_class_path|class_path|target|_implementation|python/"
_ESCAPE = r"\\(?:x|u00|U000000)([0-9a-fA-F]{2})"
