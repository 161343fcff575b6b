"""What changed between two checkpoints: tensor by tensor, and value by value beside them.

Every difference belongs to one of `CATEGORIES`, each of which can be left out of account.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ckpt_tools.analysis.comparison import Comparison, Tolerance, compare_all
from ckpt_tools.analysis.counting import looks_like_buffer, tied
from ckpt_tools.analysis.leaves import Described, Leaf, Opaque, leaves, stream_of
from ckpt_tools.analysis.overview import wrapper_prefix
from ckpt_tools.analysis.pairing import How, Pairing, pair
from ckpt_tools.analysis.summary import loose_weights, pick
from ckpt_tools.analysis.trainability import parameters_of, same_bytes
from ckpt_tools.checkpoint import (
    Checkpoint,
    KeyPath,
    Module,
    Optimizer,
    StateDict,
    TensorInfo,
    format_path,
    is_extra_state,
)
from ckpt_tools.contents import parts_of
from ckpt_tools.errors import CkptError, UnsupportedFeature
from ckpt_tools.formats.base import NOTE
from ckpt_tools.formats.note import note_of
from ckpt_tools.pickles.values import key_text
from ckpt_tools.records import record
from ckpt_tools.report import count, number, plain_json, shortened
from ckpt_tools.sources import Source

Category = Literal["weights", "buffers", "names", "ties", "optimizer", "metadata", "hyperparameters"]
CATEGORIES: tuple[Category, ...] = (
    "weights",
    "buffers",
    "names",
    "ties",
    "optimizer",
    "metadata",
    "hyperparameters",
)

Change = Literal["identical", "within tolerance", "value", "dtype", "shape", "added", "removed", "unreadable"]


@record
class TensorDiff:
    """A tensor of A and the one of B that it was paired with; one of them is None where it has no partner.

    *name* is A's, or B's where A has none, behind the wrappers' prefix. *comparison* is None where nothing was
    measured: no partner, another shape, types that cannot be set against each other, or *problem* says why.
    *told* is what else differs: of tensors made of parts, which of these.
    """

    name: str
    a: TensorInfo | None
    b: TensorInfo | None
    how: How
    is_buffer: bool
    comparison: Comparison | None = None
    problem: str = ""
    told: str = ""

    @property
    def change(self) -> Change:
        """What happened to it from A to B."""
        if self.b is None:
            return "removed"
        if self.a is None:
            return "added"
        if self.a.shape != self.b.shape:
            return "shape"
        if self.comparison is None and (self.problem or self.a.dtype == self.b.dtype):
            return "unreadable"
        if self.comparison is None or self.a.dtype != self.b.dtype:
            return "dtype"
        if self.comparison.identical:
            return "identical"
        return "within tolerance" if self.comparison.within else "value"

    @property
    def differs(self) -> bool:
        """Whether it counts as a difference."""
        return self.change not in ("identical", "within tolerance")

    @property
    def layer(self) -> str:
        """The dotted name of the module that it belongs to."""
        return self.name.rpartition(".")[0]

    @property
    def in_norms(self) -> bool:
        """Whether its change is part of a norm over several tensors: counters and what else counts things never is."""
        compared = self.comparison is not None and self.a is not None and self.b is not None
        return compared and self.a.dtype.kind in ("float", "complex") and self.b.dtype.kind in ("float", "complex")  # type: ignore[union-attr]


class Absent:
    """Stands for a value that one of the files does not have."""


ABSENT = Absent()


@record
class ValueDiff:
    """A value that is not a weight, and differs: at *path*, such as ``param_groups[0].lr``, from *a* to *b*.

    Where it is not *compared*, the words for both are the same, and whether the values are is not known.
    """

    category: Category
    path: KeyPath
    a: Leaf | Absent
    b: Leaf | Absent
    compared: bool = True


@record
class TieDiff:
    """Names of one tensor in A that are several in B (*broken*), or the other way round. *names* are A's."""

    broken: bool
    names: tuple[str, ...]
    equal: bool


@record
class Section:
    """Two state_dicts to compare. *label* stands before the names where there are several sections."""

    label: str
    a: StateDict
    b: StateDict
    modules: tuple[Module | None, Module | None] = (None, None)


@record
class Diff:
    """All that differs between checkpoints *a* and *b*, and what was found equal.

    *prefixes* are those of wrappers, left out of the names; *key_map* has the names of A that B has otherwise.
    *notes* say what could not be compared, or is no difference but good to know. The categories *ignored* were left
    out. *measured* is False where tensors were only asked to be identical or not. *in_all* is how many there are,
    of which *chosen* ones have a name that was asked for. *uncompared* are values that may differ or not: they are too
    deep, too many, or of a kind that is not understood.
    """

    a: Checkpoint
    b: Checkpoint
    sections: Sequence[Section]
    tensors: Sequence[TensorDiff]
    values: Sequence[ValueDiff]
    ties: Sequence[TieDiff]
    prefixes: tuple[str, str]
    key_map: Mapping[str, str]
    notes: Sequence[str] = ()
    ignored: frozenset[str] = frozenset()
    measured: bool = True
    in_all: int = 0
    chosen: int = 0
    uncompared: Sequence[ValueDiff] = ()

    @property
    def different(self) -> bool:
        """Whether anything differs that is not ignored."""
        return bool(self.differing)

    @property
    def differing(self) -> tuple[Category, ...]:
        """The categories, but ignored ones, in which there are differences."""
        found: set[str] = {value.category for value in self.values}
        found |= {"buffers" if tensor.is_buffer else "weights" for tensor in self.tensors if tensor.differs}
        if self.key_map:
            found.add("names")
        if self.ties:
            found.add("ties")
        return tuple(category for category in CATEGORIES if category in found and category not in self.ignored)


@record
class Options:
    """What to compare, and how. *select* and *select_b* are key paths of the state_dicts of A and of B.

    *keys* and *exclude* are globs for names, *tolerances* pairs of a glob and what may go unnoticed where it
    matches, the first match counts. *values* is False where only whether tensors are identical is asked, and there
    are no tolerances.
    *threads* compare at once; None stands for the cores there are, up to four.
    """

    select: str | None = None
    select_b: str | None = None
    keys: Sequence[str] = ()
    exclude: Sequence[str] = ()
    ignore: frozenset[str] = frozenset()
    tolerances: Sequence[tuple[str, Tolerance]] = ()
    values: bool = True
    threads: int | None = None


def diff(
    a: Checkpoint, b: Checkpoint, options: Options | None = None, advance: Callable[[int], object] | None = None
) -> Diff:
    """Compare two checkpoints of any formats. *advance* is told how many bytes were read.

    Raises `Ambiguous` where a file has several models and none is selected, `CkptError` where nothing is left
    to compare.
    """
    options = options or Options()
    if options.tolerances and not options.values:
        options = replace(options, values=True)
    wanted = set(CATEGORIES) - options.ignore
    sections = _sections(a, b, options)
    tensors: list[TensorDiff] = []
    key_map: dict[str, str] = {}
    ties: list[TieDiff] = []
    prefixes = ("", "")
    in_all = 0
    for section in sections:
        pairing = pair(section.a.tensors, section.b.tensors)
        found = _tensors(section, pairing, options)
        prefixes = prefixes if any(prefixes) else pairing.prefixes
        in_all += len(pairing.pairs) + len(pairing.only_a) + len(pairing.only_b)
        kept = {id(entry.a) for entry in found}
        key_map |= {p.a.name: p.b.name for p in pairing.pairs if p.a.name != p.b.name and id(p.a) in kept}
        if "ties" in wanted:
            ties += _ties(section, found, pairing)
        tensors += found
    if sections and not tensors and (options.keys or options.exclude):
        globs = ", ".join((*options.keys, *(f"not {glob}" for glob in options.exclude)))
        raise CkptError(f"no tensor's name matches: {globs}", path=a.path)
    chosen = len(tensors)
    tensors = list(_compared([t for t in tensors if _category(t) in wanted], options, advance))
    notes = list(_notes(a, b, sections))
    told = [tie for tie in ties if tie.equal and not (b if tie.broken else a).pickles]  # which cannot share
    ties = [tie for tie in ties if tie not in told]
    notes += [
        f"{' = '.join(tie.names)}: shared in {'A' if tie.broken else 'B'}, equal copies in the other" for tie in told
    ]
    notes += _spare_names(tensors, sections)
    values: list[ValueDiff] = []
    if not options.keys:
        values += _values(a, b, sections, wanted, notes, options)
    ignored = frozenset(options.ignore)
    unknown = [value for value in values if not value.compared]
    values = [value for value in values if value.compared]
    if unknown and _same_pickles(a, b):
        unknown = [value for value in unknown if value.category == "optimizer"]  # which has tensors
    return Diff(
        a,
        b,
        sections,
        tensors,
        values,
        ties,
        prefixes,
        key_map,
        notes,
        ignored,
        options.values,
        in_all,
        chosen,
        unknown,
    )


def bytes_to_compare(*checkpoints: Checkpoint) -> int:
    """About how many bytes `diff` has to read of these, for a progress bar."""
    storages: dict[int, int] = {}
    for checkpoint in checkpoints:
        models = [state_dict for state_dict, _ in _models(checkpoint)]
        storages |= {id(s): s.nbytes for model in models for tensor in model.tensors for s in tensor.storages()}
    return sum(storages.values())


def moved(entries: Iterable[TensorDiff]) -> float | None:
    """√Σ‖B - A‖² / √Σ‖A‖² over *entries*, without those that enter no norm; infinity where A is zero and B is not.

    None where there is nothing to take a norm of, or it is too large for float64.
    """
    squares = [(e.comparison.distance, e.comparison.norm) for e in entries if e.in_norms and e.comparison is not None]
    if not squares:
        return None
    distance = math.hypot(*(d for d, _ in squares))
    norm = math.hypot(*(n for _, n in squares))
    if math.isinf(distance) and norm:
        return None
    return distance / norm if norm else (math.inf if distance else 0.0)


# --- which state_dict is compared with which


def _sections(a: Checkpoint, b: Checkpoint, options: Options) -> list[Section]:
    if options.select is not None or options.select_b is not None:
        (left, module_a) = pick(a, options.select)
        try:
            right, module_b = pick(b, options.select if options.select_b is None else options.select_b)
        except CkptError as error:
            if options.select_b is None:
                error.remedy = "--select-b names that of B, '' the one at its root"
            raise
        return [Section("", left, right, (module_a, module_b))]
    models_a, models_b = _models(a), _models(b)
    if len(models_a) == 1 and len(models_b) == 1:
        (left, module_a), (right, module_b) = models_a[0], models_b[0]
        found = [Section("", left, right, (module_a, module_b))]
    elif models_a and models_b:
        if 1 in (len(models_a), len(models_b)):  # which of the several is it?
            (left, module_a), (right, module_b) = pick(a, None), pick(b, None)
        by_path = {_path(s): (s, m) for s, m in models_b}
        found = [
            Section(format_path(s.path), s, by_path[_path(s)][0], (m, by_path[_path(s)][1]))
            for s, m in models_a
            if _path(s) in by_path
        ]
        if not found:
            pick(a, None)  # which names them all
    else:  # one side has none, if not both
        several = len(models_a or models_b) > 1
        found = [Section(format_path(s.path) if several else "", s, _NONE, (m, None)) for s, m in models_a]
        found += [Section(format_path(s.path) if several else "", _NONE, s, (None, m)) for s, m in models_b]
    taken = {id(d) for section in found for d in (section.a, section.b)}
    others = {_path(s): s for s in b.state_dicts if s.role in ("ema", "other") and id(s) not in taken}
    for state_dict in a.state_dicts:
        if state_dict.role in ("ema", "other") and id(state_dict) not in taken and _path(state_dict) in others:
            found.append(Section(format_path(state_dict.path), state_dict, others[_path(state_dict)]))
    return found


_NONE = StateDict((), "other", {})


def _path(state_dict: StateDict) -> tuple[str, ...]:
    return tuple(map(key_text, state_dict.path))


def _models(checkpoint: Checkpoint) -> list[tuple[StateDict, Module | None]]:
    """The models' state_dicts; the loose tensors of a file that has none as one."""
    found: list[tuple[StateDict, Module | None]] = []
    if checkpoint.module is not None:
        found.append((replace(checkpoint.module.state_dict(), path=checkpoint.module_path), checkpoint.module))
    found += [(s, None) for s in checkpoint.state_dicts if s.role == "model"]
    if not found:
        found += [(s, None) for s in checkpoint.state_dicts if s.role in ("ema", "other")][:1]
    if not found and (loose := loose_weights(checkpoint)) is not None:
        found.append((loose, None))
    return found


# --- tensors


def _tensors(section: Section, pairing: Pairing, options: Options) -> list[TensorDiff]:
    """The pairs and what has no partner, as far as *options* want them, not compared yet; in the order of A."""
    parameters = [
        {t.name for t in parameters_of(state_dict, module)}
        for state_dict, module in zip((section.a, section.b), section.modules, strict=True)
    ]
    label = f"{section.label}." if section.label else ""

    def named(tensor: TensorInfo, side: int) -> str:
        return label + tensor.name.removeprefix(pairing.prefixes[side])

    def is_buffer(a: TensorInfo | None, b: TensorInfo | None) -> bool:
        if any(t is not None and looks_like_buffer(t.name) for t in (a, b)):
            return True
        sides = zip((a, b), parameters, (section.a, section.b), section.modules, strict=True)
        # the side that records which tensors are parameters knows best
        return any(
            t is not None and t.name not in known and (module is not None or any(x.is_parameter for x in s.tensors))
            for t, known, s, module in sides
        )

    found = [
        TensorDiff(named(p.a, 0), p.a, p.b, p.how, is_buffer(p.a, p.b))
        for p in pairing.pairs
        if _wanted(options, p.a.name, p.b.name, named(p.a, 0))
    ]
    found += [
        TensorDiff(named(t, 0), t, None, "name", is_buffer(t, None))
        for t in pairing.only_a
        if _wanted(options, t.name, named(t, 0))
    ]
    order = {tensor.name: at for at, tensor in enumerate(section.a.tensors)}
    found.sort(key=lambda entry: order[entry.a.name] if entry.a is not None else 0)
    return found + [
        TensorDiff(named(t, 1), None, t, "name", is_buffer(None, t))
        for t in pairing.only_b
        if _wanted(options, t.name, named(t, 1))
    ]


def _wanted(options: Options, *names: str) -> bool:
    def matches(globs: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in globs)

    return (not options.keys or matches(options.keys)) and not matches(options.exclude)


def _category(entry: TensorDiff) -> Category:
    return "buffers" if entry.is_buffer else "weights"


def _compared(
    entries: Sequence[TensorDiff], options: Options, advance: Callable[[int], object] | None
) -> Iterator[TensorDiff]:
    """*entries* with the pairs of one shape compared; what was paired by content is known to be the same."""
    known = () if options.values else ("content",)  # but its norm is not, of which a share is taken
    pending = [e for e in entries if e.a and e.b and e.a.shape == e.b.shape and e.how not in known]

    def tolerance(entry: TensorDiff) -> Tolerance | None:
        return next((t for glob, t in options.tolerances if fnmatch.fnmatchcase(entry.name, glob)), None)

    pairs = ((e.a, e.b, tolerance(e)) for e in pending if e.a is not None and e.b is not None)
    results = compare_all(pairs, threads=options.threads, advance=advance, values=options.values)
    waiting = {id(entry) for entry in pending}
    for entry in entries:
        if id(entry) in waiting and entry.a is not None and entry.b is not None:
            yield _with_parts(entry, entry.a, entry.b, next(results))
        elif entry.how == "content" and entry.a is not None:
            yield replace(entry, comparison=Comparison(entry.a.numel, True, entry.a.numel))
        else:
            yield entry


def _with_parts(entry: TensorDiff, a: TensorInfo, b: TensorInfo, found: Comparison | CkptError | None) -> TensorDiff:
    """*entry* with what was *found*, or with what the parts say: the scales of equal quantized integers, the indices
    and values of sparse ones.
    """
    alike = isinstance(found, Comparison) and found.identical
    if isinstance(found, UnsupportedFeature) or (alike and (parts_of(a) or parts_of(b))):
        apart = _other_parts(a, b)
        if apart is not None and (apart or not alike):
            same = not apart
            made = Comparison(a.numel, same, a.numel if same else None, within=same)
            return replace(entry, comparison=made, told=", ".join(apart))
    if isinstance(found, CkptError):
        return replace(entry, problem=str(found))
    return replace(entry, comparison=found)


def _other_parts(a: TensorInfo, b: TensorInfo) -> list[str] | None:
    """What is not the same of tensors that are made of parts (sparse, nested); None where bytes are missing."""
    found: list[str] = []
    pending = [("", a, b)]
    while pending:
        label, a, b = pending.pop()
        own = [(str(t.dtype), str(t.shape), t.layout) for t in (a, b)]
        if own[0] != own[1]:
            before, after = next((x, y) for x, y in zip(*own, strict=True) if x != y)
            found.append(f"{label} {before} → {after}".strip())
            continue
        ours, theirs = dict(parts_of(a)), dict(parts_of(b))
        if ours.keys() != theirs.keys():
            found.append(f"other parts ({', '.join(sorted(ours.keys() ^ theirs.keys()))})")
            continue
        settings = sorted(key for key in {**a.details, **b.details} if a.details.get(key) != b.details.get(key))
        values = [[shortened(number(side.details.get(key, "none")), 40) for side in (a, b)] for key in settings]
        found += [f"{key} {x} → {y}" for key, (x, y) in zip(settings, values, strict=True)]
        if a.storage is not None or b.storage is not None:  # else parts alone, or a meta tensor without any
            try:
                if not same_bytes(a, b):
                    found.append(f"other {label or 'values'}")
            except CkptError:
                return None
        pending += [(name, part, theirs[name]) for name, part in ours.items() if name not in settings]
    return found


def _ties(section: Section, entries: Sequence[TensorDiff], pairing: Pairing) -> list[TieDiff]:
    """Names that share memory on one side and do not on the other."""
    partner = {p.a.name: p.b.name for p in pairing.pairs}
    back = {b: a for a, b in partner.items()}
    groups_a = [tuple(n for n in names if n in partner) for names in tied(section.a.tensors)]
    groups_b = [tuple(back[n] for n in names if n in back) for names in tied(section.b.tensors)]
    member_a = {name: at for at, names in enumerate(groups_a) for name in names}
    member_b = {name: at for at, names in enumerate(groups_b) for name in names}
    shown = {entry.a.name: entry for entry in entries if entry.a is not None}
    found = []
    for broken, groups, members in ((True, groups_a, member_b), (False, groups_b, member_a)):
        for names in groups:
            names = tuple(name for name in names if name in shown)
            if len(names) > 1 and len({members.get(name, name) for name in names}) > 1:
                pairs = [(shown[name].a, shown[name].b) for name in names]
                sharing, copies = ([pair[side] for pair in pairs] for side in ((0, 1) if broken else (1, 0)))
                if len({(t.shape, t.stride) for t in sharing if t is not None}) > 1:  # one is the other, transposed
                    equal = all(_all_equal(pair) for pair in pairs)
                else:
                    equal = _all_equal(copies)
                found.append(TieDiff(broken, names, equal))
    return found


def _spare_names(entries: Sequence[TensorDiff], sections: Sequence[Section]) -> Iterator[str]:
    """Names that only one side has, for a tensor that both have: a format that cannot share leaves these out."""
    for side, label in enumerate("AB"):
        own = [entry.b if side else entry.a for entry in entries]
        both = {tensor.name for tensor, e in zip(own, entries, strict=True) if tensor and e.a and e.b}
        alone = {tensor.name for tensor in own if tensor} - both
        for section in sections:
            for names in tied((section.b if side else section.a).tensors):
                kept = next((name for name in names if name in both), None)
                for name in names:
                    if kept is not None and name in alone:
                        yield f"{name} is only in {label}, where it is {kept}, which both have"


def _all_equal(tensors: Sequence[TensorInfo | None]) -> bool:
    first, *rest = tensors
    try:
        return first is not None and all(t is not None and same_bytes(first, t) for t in rest)
    except CkptError:
        return False


# --- what is beside the tensors


def _values(
    a: Checkpoint,
    b: Checkpoint,
    sections: Sequence[Section],
    wanted: Collection[str],
    notes: list[str],
    options: Options,
) -> Iterator[ValueDiff]:
    if "optimizer" in wanted:
        yield from _optimizers(a, b)
    if "metadata" in wanted:
        chosen = options.select is not None or options.select_b is not None
        yield from _metadata(a, b, sections, notes, chosen)
    if "hyperparameters" in wanted:
        for section in sections:
            left, right = section.modules
            if left is not None and right is not None:
                yield from _between("hyperparameters", _settings(left, section.a), _settings(right, section.b))


def _same_pickles(a: Checkpoint, b: Checkpoint) -> bool:
    """Whether both are of the same pickles, byte for byte, so that no value of theirs differs that is no tensor."""
    if a.loose or b.loose or len(a.pickles) != len(b.pickles) or not a.pickles:
        return False
    for own, other in zip(a.pickles, b.pickles, strict=True):
        if own.stream is None or other.stream is None or own.size != other.size:
            return False
        sides = own.stream.chunks(own.offset, own.size), other.stream.chunks(other.offset, other.size)
        if any(x != y for x, y in zip(*sides, strict=True)):
            return False
    return True


def _between(category: Category, a: Mapping[KeyPath, Leaf], b: Mapping[KeyPath, Leaf]) -> Iterator[ValueDiff]:
    for path, value in a.items():
        if path not in b:
            yield ValueDiff(category, path, value, ABSENT)
        elif not _same(value, b[path]):
            yield ValueDiff(category, path, value, b[path])
        elif isinstance(value, Opaque):
            yield ValueDiff(category, path, value, b[path], compared=False)
    for path, value in b.items():
        if path not in a:
            yield ValueDiff(category, path, ABSENT, value)


def _same(a: Leaf, b: Leaf) -> bool:
    if isinstance(a, TensorInfo) and isinstance(b, TensorInfo):
        try:
            return same_bytes(a, b)
        except CkptError:
            return not _other_parts(a, b)  # what has no bytes is as it was
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and a == b


def _optimizers(a: Checkpoint, b: Checkpoint) -> Iterator[ValueDiff]:
    left = a.training.optimizers if a.training is not None else ()
    right = b.training.optimizers if b.training is not None else ()
    for index in range(max(len(left), len(right))):
        own = left[index] if index < len(left) else None
        other = right[index] if index < len(right) else None
        label = (own or other).path or ("optimizer",)  # type: ignore[union-attr]
        if own is None or other is None:
            gone, new = ((_gist(o) if o is not None else ABSENT) for o in (own, other))
            yield ValueDiff("optimizer", label, gone, new)
        else:
            yield from _between("optimizer", _of_optimizer(own, label), _of_optimizer(other, label))


def _gist(optimizer: Optimizer) -> Described:
    held = sum(len(group.params) for group in optimizer.groups)
    return Described(f"{optimizer.algorithm or 'optimizer'} of {count(held, 'parameter')}")


def _of_optimizer(optimizer: Optimizer, path: KeyPath) -> dict[KeyPath, Leaf]:
    found: dict[KeyPath, Leaf] = {}
    if optimizer.algorithm:
        found[*path, "algorithm"] = optimizer.algorithm
    for index, group in enumerate(optimizer.groups):
        where = (*path, "param_groups", index)
        names = [str(name) for name in group.names or group.params]
        found[*where, "params"] = Described(f"{len(names)}: {', '.join(names)}")
        found |= leaves(dict(group.options), path=where)
    found |= leaves({key: dict(value) for key, value in optimizer.state.items()}, path=(*path, "state"))
    return found


def _metadata(
    a: Checkpoint, b: Checkpoint, sections: Sequence[Section], notes: list[str], chosen: bool
) -> Iterator[ValueDiff]:
    sides = [s.a for s in sections], [s.b for s in sections]
    taken_a, taken_b = ({_path(s) for s in side if s is not _NONE} for side in sides)
    values = [dict(_beside(c, taken, chosen)) for c, taken in ((a, taken_a), (b, taken_b))]
    noted = [_noted(c, a, b) for c in (a, b)]
    if any(noted):
        # an earlier conversion wrote down what the source had
        for checkpoint, side, note, state_dicts in zip((a, b), values, noted, sides, strict=True):
            side |= leaves(note) if note else ()
            for state_dict in state_dicts:
                root = format_path(state_dict.path)
                for name, value in state_dict.entries.items():
                    if not isinstance(value, TensorInfo) and not is_extra_state(name):
                        key = f"{root}: {name}" if root else name
                        side |= leaves(value, path=(key,), stream=stream_of(checkpoint))
            tensors = (tensor for state_dict in state_dicts for tensor in state_dict.tensors if tensor.attributes)
            for tensor in tensors:  # a conversion notes those that are plain
                kept = leaves(dict(tensor.attributes), path=(tensor.name,))
                side |= {path: leaf for path, leaf in kept if not isinstance(leaf, TensorInfo)}
        values = [dict(_as_noted(side)) for side in values]
    yield from _between("metadata", *values)
    own = [dict(_kept_by_format(c)) for c in (a, b)]
    if a.format == b.format:
        yield from _between("metadata", *own)
    else:
        for checkpoint, found in zip((a, b), own, strict=True):
            if found:
                names = ", ".join(str(path[0]) for path in list(found)[:6])
                notes.append(
                    f"{checkpoint.title} metadata of {checkpoint.path} ({names}) has no like in the other format"
                )
    for section in sections:
        extra = [
            {
                (*filter(None, (section.label,)), *path): leaf
                for path, leaf in _entries(state_dict, stream_of(side))
                if not any(noted) or is_extra_state(str(path[0]))
            }
            for state_dict, side in ((section.a, a), (section.b, b))
        ]
        yield from _between("metadata", *extra)
        if not any(section.modules):
            yield from _between("metadata", *_versions(section.a.metadata or {}, section.b.metadata or {}))


def _noted(checkpoint: Checkpoint, *both: Checkpoint) -> dict[str, object]:
    """What an earlier conversion wrote down of its source's values, but for optimizers that one of *both* has.

    One without tensors is plain data to a conversion, and told as the optimizer that it is.
    """
    values = note_of(checkpoint).get("values")
    optimizers = {
        format_path(found.path[:depth])
        for one in both
        for found in one.state_dicts
        if found.role == "optimizer"
        for depth in range(1, len(found.path) + 1)
    }
    return {k: v for k, v in values.items() if k not in optimizers} if isinstance(values, dict) else {}


def _as_noted(values: Mapping[KeyPath, Leaf]) -> Iterator[tuple[KeyPath, Leaf]]:
    """*values* as our note has them, which is JSON: key paths are text in part, and so are numbers that JSON lacks."""
    for path, leaf in values.items():
        text = format_path(path).replace("[", ".").replace("]", "").removeprefix(".")
        yield (text,), str(plain_json(leaf)) if isinstance(leaf, float) and not math.isfinite(leaf) else leaf


def _versions(a: Mapping[str, object], b: Mapping[str, object]) -> Iterator[dict[KeyPath, Leaf]]:
    """The ``_metadata`` of both on the modules that both have: others are told by their tensors."""
    for own, other in ((a, b), (b, a)):
        yield dict(leaves({name: value for name, value in own.items() if name in other}, path=("_metadata",)))


def _entries(state_dict: StateDict, stream: Source | None) -> Iterator[tuple[KeyPath, Leaf]]:
    """What a state_dict holds beside tensors, such as ``_extra_state``."""
    for name, value in state_dict.entries.items():
        if not isinstance(value, TensorInfo):
            yield from leaves(value, path=(name,), stream=stream)


def _kept_by_format(checkpoint: Checkpoint) -> Iterator[tuple[KeyPath, Leaf]]:
    """What the format keeps beside the tensors: safetensors' ``__metadata__``, GGUF's keys."""
    # which files lie beside those of a checkpoint is no part of it; what our note says is read elsewhere
    without: set[KeyPath] = {("not described",), *([(NOTE,)] if note_of(checkpoint) else ())}
    for path, leaf in leaves(dict(checkpoint.metadata), without=without):
        if path:
            yield path, leaf


def _beside(checkpoint: Checkpoint, taken: Collection[tuple[str, ...]], chosen: bool) -> Iterator[tuple[KeyPath, Leaf]]:
    """The values of a pickle that are in no state_dict compared, no module and no optimizer.

    Another state_dict is one value, and none where the one to compare was *chosen*.
    """
    without: set[KeyPath] = {s.path for s in checkpoint.state_dicts if s.path and _path(s) in taken}
    whole: list[tuple[KeyPath, str]] = [
        (s.path, f"state_dict of {count(len(s.entries), 'entry', 'entries')}")
        for s in checkpoint.state_dicts
        if s.path and _path(s) not in taken and s.role != "optimizer"
    ]
    rooted = any(not s.path for s in checkpoint.state_dicts)
    optimizers = checkpoint.training.optimizers if checkpoint.training is not None else ()
    if rooted or (checkpoint.module is not None and not checkpoint.module_path):
        return
    if any(not optimizer.path for optimizer in optimizers):
        return
    without |= {path for path, _ in whole} | {optimizer.path for optimizer in optimizers}
    without |= {s.path for s in checkpoint.state_dicts if s.role == "optimizer"}
    if checkpoint.module is not None:
        without.add(checkpoint.module_path)
    if not chosen:
        yield from ((path, Described(text)) for path, text in whole)
    if () in taken:  # loose tensors, taken as a model
        without |= {path for path, _ in checkpoint.loose}
    if checkpoint.values != {}:
        yield from leaves(checkpoint.values, without=without, stream=stream_of(checkpoint))


def _settings(module: Module, state_dict: StateDict) -> dict[KeyPath, Leaf]:
    """Class, mode and settings of each module, and the flag of each parameter, without a wrapper's name."""
    prefix = wrapper_prefix(state_dict.entries)
    found: dict[KeyPath, Leaf] = {}
    for name, part in module.walk():
        if len(f"{name}.") < len(prefix):
            continue  # the wrapper itself
        path = f"{name}.".removeprefix(prefix).rstrip(".")
        found[path, "class"] = part.class_name
        if part.training is not None:
            found[path, "training"] = part.training
        found |= leaves(dict(part.hyperparameters), path=(path,))
        for own, parameter in part.parameters.items():
            if parameter is not None and parameter.requires_grad is not None:
                full = f"{path}.{own}" if path else own
                found[full, "requires_grad"] = parameter.requires_grad
    return found


def _notes(a: Checkpoint, b: Checkpoint, sections: Sequence[Section]) -> Iterator[str]:
    if a.format != b.format:
        yield f"formats: {a.title} and {b.title}"
    for section in sections:
        (left, right), where = section.modules, f" of {section.label}" if section.label else ""
        if (left is None) != (right is None):
            has = "A" if left is not None else "B"
            yield f"only {has} records classes and settings of modules{where}; these were not compared"
    if not sections:
        yield "neither file holds a model; what else they hold was compared"
