"""What a conversion will do: which tensors go out under which names, what goes along, what is left behind."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ckpt_tools.analysis.overview import wrapper_prefix
from ckpt_tools.analysis.summary import pick
from ckpt_tools.checkpoint import Checkpoint, Module, StateDict, TensorInfo, format_path, is_extra_state
from ckpt_tools.contents import check_expansion
from ckpt_tools.convert.bake import Baked, bake, bare_versions
from ckpt_tools.convert.decompose import Composite, can_be_taken_apart, decompose
from ckpt_tools.convert.decompose import Entry as Entry
from ckpt_tools.convert.sharing import aliases, shared_again
from ckpt_tools.dtypes import DType
from ckpt_tools.errors import CkptError, UnsupportedFeature
from ckpt_tools.formats.base import NOTE as NOTE
from ckpt_tools.formats.note import Alias, aliases_of, note_of
from ckpt_tools.pickles.values import Blob, Call, key_text, plain
from ckpt_tools.report import count, plain_json, shortened, size

VALUE_NODES = 10_000
"""The largest plain value, in numbers, texts and containers, that goes along as JSON."""
VALUE_CHARACTERS = 100_000
"""And its longest text."""


@dataclass(frozen=True, slots=True)
class Names:
    """How names change, in this order: the prefix goes, the map applies, the expressions apply, a prefix comes.

    *strip* is a prefix, or ``auto`` for the wrappers' prefixes that every name carries; *renames* are pairs of a
    regular expression and what takes the place of each match. *keep* and *drop* are globs on the source's names.
    """

    keep: Sequence[str] = ()
    drop: Sequence[str] = ()
    strip: str = ""
    mapping: Mapping[str, str] = field(default_factory=dict)
    renames: Sequence[tuple[str, str]] = ()
    add: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a writer needs.

    *aliases* are those of *entries*, by output name; *values* the plain data that goes along, by key path;
    *left* what does not, with the reason; *versions* torch's ``_metadata``; *metadata* text for the output.
    *names* has each of *tensors*, which are what is taken of the source and *baked* weights, and its output name;
    *composites* are those of them that go out as several of *entries*, by output name. *extras* are the extra states
    of modules that are plain data, by output name. *unmatched* are the options that fit no name, each with what it
    was given.
    """

    checkpoint: Checkpoint
    state_dict: StateDict
    entries: tuple[Entry, ...]
    aliases: Mapping[str, Alias]
    values: Mapping[str, object]
    left: tuple[tuple[str, str], ...]
    versions: Mapping[str, object] | None
    metadata: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    names: Mapping[str, str]
    composites: Mapping[str, Composite]
    extras: Mapping[str, object]
    baked: tuple[Baked, ...] = ()
    unmatched: tuple[tuple[str, str], ...] = ()

    @property
    def complete(self) -> bool:
        """Whether *tensors* are those of the state_dict, all of them and as they are there."""
        return not self.baked and len(self.tensors) == len(self.state_dict.tensors)


def source_of(checkpoint: Checkpoint, select: str | None) -> StateDict:
    """The tensors to convert, with the views sharing memory again that an earlier conversion noted.

    Where the file has no state_dict but loose tensors, these, under their key paths (``tensor`` for a lone one).
    """
    if select is None and checkpoint.module is None and not checkpoint.state_dicts and checkpoint.loose:
        loose = {".".join(map(key_text, path)) or "tensor": tensor for path, tensor in checkpoint.loose}
        if len(loose) == len(checkpoint.loose):
            return StateDict((), "other", loose)
    state_dict, _ = pick(checkpoint, select)
    return shared_again(state_dict, aliases_of(note_of(checkpoint)))


def make_plan(
    checkpoint: Checkpoint,
    objection: Callable[[TensorInfo, DType], str],
    *,
    select: str | None = None,
    names: Names | None = None,
    dtype: DType | None = None,
    metadata: Mapping[str, str] | None = None,
    baking: bool = False,
    apart: Callable[[Entry], bool] = lambda entry: False,
    numbers: bool = True,
    shared: bool = True,
) -> Plan:
    """The plan for one file.

    *objection* says why the output's format cannot hold a tensor, "" where it can; *dtype* is what floating
    tensors of 16 bits or more are cast to; *baking* puts weights in the place of what they are computed from;
    *apart* says which tensors go out as their parts, and *numbers* whether their scales and sizes are parts too;
    *shared* is whether the output holds once what has several names.
    Raises a `CkptError` where a name would be lost or written twice, or tensors cannot be held.
    """
    state_dict = source_of(checkpoint, select)
    try:
        return _plan(
            checkpoint, state_dict, objection, names or Names(), dtype, metadata or {}, baking, apart, numbers, shared
        )
    except CkptError as error:
        raise error.at(path=checkpoint.path) from None


def _plan(
    checkpoint: Checkpoint,
    state_dict: StateDict,
    objection: Callable[[TensorInfo, DType], str],
    names: Names,
    dtype: DType | None,
    metadata: Mapping[str, str],
    baking: bool,
    apart: Callable[[Entry], bool],
    numbers: bool,
    shared: bool,
) -> Plan:
    left: list[tuple[str, str]] = []
    chosen: list[TensorInfo] = []
    for tensor in state_dict.tensors:
        if _wanted(tensor.name, names):
            chosen.append(tensor)
        else:
            left.append((tensor.name, "left out by --keep or --drop"))
    if NOTE in metadata:
        raise CkptError(f"--metadata {NOTE}=… would take the place of what every output says there of its source")
    if state_dict.tensors and not chosen:
        raise CkptError("--keep and --drop leave no tensor")
    check_expansion(chosen, shared=shared, remedy="Leave the largest out with --drop GLOB")
    own = checkpoint.module if state_dict.path == checkpoint.module_path else None
    baked: list[Baked] = []
    if baking:
        chosen, baked = bake(chosen, own)
    extras = {
        name: value
        for name, value in state_dict.entries.items()
        if is_extra_state(name) and _wanted(name, names) and _is_plain(value) and not isinstance(value, TensorInfo)
    }
    renamed, idle = rename([*(tensor.name for tensor in chosen), *extras], names)
    known = [
        name for name, value in state_dict.entries.items() if is_extra_state(name) or isinstance(value, TensorInfo)
    ]
    unmatched = [
        (option, glob)
        for option, globs in (("--keep", names.keep), ("--drop", names.drop))
        for glob in globs
        if not any(fnmatch.fnmatchcase(name, glob) for name in known)
    ]
    unmatched += [("--rename", f"{old}={new}") for old, new in idle]
    entries = [Entry(renamed[tensor.name], tensor, _cast(tensor.dtype, dtype)) for tensor in chosen]
    entries, composites = decompose(entries, apart, numbers=numbers)
    _check(entries, objection)
    root = format_path(state_dict.path)
    values: dict[str, object] = {}
    classes: dict[str, list[str]] = {}
    for tensor in chosen:
        for key, value in tensor.attributes.items():
            if not isinstance(plain(value), TensorInfo):
                _sort_out(f"{tensor.name}.{key}", value, values, left)
        if tensor.subclass is not None and tensor.storage is not None:
            classes.setdefault(tensor.subclass, []).append(tensor.name)
    for name, those in classes.items():
        left.append((name, f"the class of {count(len(those), 'tensor')}, plain in the output: {_some(those)}"))
    frozen = [tensor.name for tensor in chosen if tensor.is_parameter and tensor.requires_grad is False]
    if frozen:
        left.append(
            (
                "requires_grad",
                f"False for {count(len(frozen), 'parameter')}, which no state_dict records: {_some(frozen)}",
            )
        )
    for name, value in state_dict.entries.items():
        if not isinstance(value, TensorInfo) and name not in extras:
            _sort_out(f"{root}: {name}" if root else name, value, values, left)
    for path, value in _beside(checkpoint, state_dict):
        _sort_out(format_path(path), value, values, left)
    if own is not None:
        _leave_module(own, left)
    kept: dict[str, str] = {}
    if checkpoint.format in ("safetensors", "sharded"):
        strings = ((key, value) for key, value in checkpoint.metadata.items() if isinstance(value, str))
        # nor the lines that name tied tensors, which are written anew
        without = {NOTE, "not described", *state_dict.entries}
        kept = {key: value for key, value in strings if key not in without}
    note = note_of(checkpoint)
    earlier = note.get("values")
    if isinstance(earlier, dict):
        values = {**earlier, **values}
    found = aliases([replace(e.tensor, name=e.name) for e in entries])
    recorded = state_dict.metadata
    if own is not None:
        recorded = _known_versions(own)
    if recorded is not None:
        recorded = bare_versions(recorded, baked)
    versions = _versions(recorded, renamed)
    output = {**kept, **metadata}
    return Plan(
        checkpoint,
        state_dict,
        tuple(entries),
        found,
        values,
        tuple(left),
        versions,
        output,
        tuple(chosen),
        renamed,
        composites,
        {renamed[name]: value for name, value in extras.items()},
        tuple(baked),
        tuple(unmatched),
    )


# --- names


def rename(names: Sequence[str], rules: Names) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The new name of each of *names*, and those of the expressions that match none of them.

    Raises `CkptError` where two become one, or what is given name by name (prefix, map) is not there.
    """
    prefix = wrapper_prefix(names) if rules.strip == "auto" else rules.strip
    without = [name for name in names if not name.startswith(prefix)]
    if without:
        raise CkptError(f"{count(len(without), 'name')} of {len(names):,} do not begin with {prefix}: {_some(without)}")
    unknown = sorted(rules.mapping.keys() - set(names))
    if unknown:
        raise CkptError(f"the key map renames what is not there: {_some(unknown)}")
    try:
        compiled = [(re.compile(old), new) for old, new in rules.renames]
    except re.error as error:
        raise CkptError(f"--rename has {error.pattern!r}, which is no regular expression: {error}") from None
    renamed: dict[str, str] = {}
    matched: set[int] = set()
    for name in names:
        new = rules.mapping.get(name, name.removeprefix(prefix))
        for number, (old, replacement) in enumerate(compiled):
            try:
                new, times = old.subn(replacement, new)
            except (re.error, IndexError) as error:
                raise CkptError(f"--rename {old.pattern}={replacement}: {error}") from None
            if times:
                matched.add(number)
        renamed[name] = rules.add + new
    taken: dict[str, str] = {}
    for name, new in renamed.items():
        if not new and name:
            raise CkptError(f"nothing would be left of the name {name}")
        if new in taken:
            raise CkptError(f"{taken[new]} and {name} would both be named {new}, and one of them lost")
        taken[new] = name
    return renamed, [pair for number, pair in enumerate(rules.renames) if number not in matched]


def _wanted(name: str, rules: Names) -> bool:
    if rules.keep and not any(fnmatch.fnmatchcase(name, glob) for glob in rules.keep):
        return False
    return not any(fnmatch.fnmatchcase(name, glob) for glob in rules.drop)


def _known_versions(module: Module) -> Mapping[str, object]:
    """The versions of a pickled model's modules, as far as they are known.

    One that is wrong makes ``load_state_dict`` convert what needs no conversion (torchvision's MNASNet rebuilds its
    stem), so none is made up.
    """
    return {path: {"version": part.version} for path, part in module.walk() if part.version is not None}


def _versions(versions: Mapping[str, object] | None, renamed: Mapping[str, str]) -> Mapping[str, object] | None:
    """The module versions that torch saves, under the new names: a module follows its tensors."""
    if versions is None:
        return None
    moved = {"": ""}
    for old, new in renamed.items():
        module, _, leaf = old.rpartition(".")
        renamed_module, _, new_leaf = new.rpartition(".")
        if leaf == new_leaf:
            moved[module] = renamed_module
    changed = any(old != new for old, new in renamed.items())
    result: dict[str, object] = {}
    for module, version in versions.items():
        plain_version = _plain_json(version)
        target = moved.get(module, None if changed else module)
        if target is not None and plain_version is not None:
            result[target] = plain_version
    return result


# --- tensors


def _cast(own: DType, wanted: DType | None) -> DType:
    return wanted if wanted is not None and own.kind == "float" and own.itemsize > 1 else own


def common_objection(tensor: TensorInfo) -> str:
    """Why no output holds *tensor*: it has no dense bytes of its own. "" where it has."""
    if tensor.storage is None or tensor.layout != "strided":
        if tensor.device == "meta":
            return "on the meta device: the file has no bytes of it"
        return tensor.layout if tensor.layout != "strided" else tensor.subclass or "without bytes of its own"
    if tensor.storage.missing:
        return f"its bytes are missing: {tensor.storage.missing}"
    return "quantized" if tensor.dtype.kind == "quantized" else ""


def _check(entries: Sequence[Entry], objection: Callable[[TensorInfo, DType], str]) -> None:
    refused: list[str] = []
    remedy = "Leave them out with --drop GLOB, or turn them into plain tensors where the checkpoint is made"
    for entry in entries:
        why = common_objection(entry.tensor) or objection(entry.tensor, entry.dtype)
        if why:
            refused.append(f"{entry.tensor.name} ({why})")
            if can_be_taken_apart(entry.tensor):
                remedy = "--decompose writes tensors as their parts, into .safetensors; --drop GLOB leaves them out"
        try:
            entry.name.encode("utf-8")
        except UnicodeEncodeError:
            refused.append(f"{entry.tensor.name!r:.100} (the name is no Unicode text)")
    if refused:
        raise UnsupportedFeature(
            f"{count(len(refused), 'tensor')} cannot be written: {_some(refused)}",
            remedy=remedy,
        )


def _some(items: Sequence[str]) -> str:
    return ", ".join(map(shortened, items[:8])) + (f", … ({len(items):,} in all)" if len(items) > 8 else "")


# --- what is not weights


def _beside(checkpoint: Checkpoint, state_dict: StateDict) -> Iterable[tuple[tuple[object, ...], object]]:
    """What stands in the file beside *state_dict*, by key path."""
    value = plain(checkpoint.values)
    path = state_dict.path
    for depth, key in enumerate(path):
        if not isinstance(value, dict | list | tuple):
            return
        items = value.items() if isinstance(value, dict) else enumerate(value)
        following: object = None
        for own, item in items:
            if own == key:
                following = plain(item)
            else:
                yield (*path[:depth], own), plain(item)
        value = following


def _sort_out(where: str, value: object, values: dict[str, object], left: list[tuple[str, str]]) -> None:
    """Put *value* among the plain *values* or, with what it is, among those *left* behind."""
    simple = _plain_json(value)
    if simple is not None or value is None:
        values[where] = simple
    else:
        left.append((where, _description(value)))


def _plain_json(value: object) -> object:
    """*value* as JSON has it; None where it is not plain data, or too much."""
    if isinstance(value, Call) and value.target == "argparse.Namespace":
        value = value.attributes
    budget = VALUE_NODES
    # a list of one is the root, so that filling in is the same everywhere
    root: list[object] = [None]
    pending: list[tuple[object, list[object] | dict[str, object], int | str]] = [(plain(value), root, 0)]
    while pending:
        item, holder, key = pending.pop()
        budget -= 1
        if budget < 0:
            return None
        made: object
        below: list[object] | dict[str, object]
        if isinstance(item, dict):
            made = below = {}
            for k, v in item.items():
                text = _key(k)
                if text is None or text in below:
                    return None
                below[text] = None
                pending.append((plain(v), below, text))
                if len(pending) > VALUE_NODES:
                    return None
        elif isinstance(item, list | tuple):
            if len(item) > VALUE_NODES:
                return None
            made = below = [None] * len(item)
            pending += [(plain(v), below, index) for index, v in enumerate(item)]
        elif isinstance(item, str) and len(item) <= VALUE_CHARACTERS and _encodable(item):
            made = item
        elif isinstance(item, float):
            made = plain_json(item)
        elif item is None or isinstance(item, bool) or (isinstance(item, int) and abs(item) < 1 << 63):
            made = item
        else:
            return None
        holder[key] = made  # type: ignore[index]
    return root[0]


def _is_plain(value: object) -> bool:
    """Whether *value* is made of numbers, texts, bytes, lists, tuples and dicts only, and not too many."""
    pending = [value]
    seen = 0
    while pending:
        item = plain(pending.pop())
        seen += 1
        if isinstance(item, dict):
            pending += [part for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple):
            pending += item
        elif isinstance(item, str):
            if len(item) > VALUE_CHARACTERS or not _encodable(item):
                return False
        elif not (item is None or isinstance(item, bool | int | float | bytes)):
            return False
        if seen + len(pending) > VALUE_NODES:
            return False
    return True


def _key(key: object) -> str | None:
    if isinstance(key, str):
        return key if _encodable(key) else None
    return str(key) if type(key) is int and abs(key) < 1 << 63 else None


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _description(value: object) -> str:
    if isinstance(value, TensorInfo):
        return f"tensor {value.dtype} {list(value.shape)}"
    if isinstance(value, Module):
        return f"module {value.class_name}"
    if isinstance(value, dict):
        return f"mapping of {count(len(value), 'entry', 'entries')}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {count(len(value), 'item')}"
    if isinstance(value, Call):
        return f"object of class {value.class_name or 'unknown'}"
    if isinstance(value, Blob):
        return f"{'text' if value.text else 'bytes'} of {size(value.size)}"
    return type(value).__name__


def _leave_module(module: Module, left: list[tuple[str, str]]) -> None:
    left.append((module.class_name, "the class and its attributes: the output holds weights only"))
    for path, part in module.walk():
        for name in part.buffers:
            if name in part.non_persistent and part.buffers[name] is not None:
                left.append((f"{path}.{name}" if path else name, "a buffer that its module does not save"))
        left += [(path or "the model", f"torch's own state_dict may differ: {hint}") for hint in part.state_dict_hints]


def is_told(value: object) -> bool:
    """Whether *value* has a place in the note: whether it is JSON."""
    return value is None or _plain_json(value) is not None


def note_text(plan: Plan, digest: str | None, version: str) -> str:
    """Our note as JSON: aliases, values, versions, and the source with its *digest* where one was made."""
    source: dict[str, object] = {"name": os.path.basename(os.path.abspath(plan.checkpoint.path))}
    if digest is not None:
        source["digest"] = digest
        source["complete"] = plan.complete
    note: dict[str, object] = {"source": source, "version": version}
    if plan.aliases:
        note["aliases"] = {name: alias.as_json() for name, alias in plan.aliases.items()}
    if plan.values:
        note["values"] = plan.values
    if plan.versions is not None:
        note["versions"] = plan.versions
    if plan.extras:
        note["extra_state"] = {name: _plain_json(value) for name, value in plan.extras.items() if is_told(value)}
    if plan.composites:
        note["decomposed"] = {name: composite.as_json() for name, composite in plan.composites.items()}
    if plan.baked:
        note["baked"] = {made.name: {"method": made.method, "parts": list(made.parts)} for made in plan.baked}
    return json.dumps(note, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
