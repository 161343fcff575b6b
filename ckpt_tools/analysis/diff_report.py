"""The report of ``ckpt diff``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ckpt_tools.analysis.changes import change_histogram
from ckpt_tools.analysis.comparison import Comparison
from ckpt_tools.analysis.diff import ABSENT, Absent, Diff, TensorDiff, ValueDiff, moved
from ckpt_tools.analysis.diff_layers import is_cast, round_to, verdict
from ckpt_tools.analysis.leaves import Described, Leaf
from ckpt_tools.analysis.rank import Rank, change_rank
from ckpt_tools.analysis.transfer import OUTCOMES, Breach, Transfer
from ckpt_tools.analysis.tree import MAX_DEPTH, Node, fitting_depth, fold, grow, rows_at
from ckpt_tools.checkpoint import TensorInfo, format_path
from ckpt_tools.contents import scalar
from ckpt_tools.errors import CkptError
from ckpt_tools.report import (
    PAGE_ROWS,
    Block,
    Facts,
    HeatMap,
    Histogram,
    Report,
    Table,
    Tree,
    count,
    listed,
    number,
    plain_json,
    shortened,
)

SCREEN_ROWS = 40
FEW = 12
"""Up to how many tensors that differ are listed one by one, whatever they are."""
PICTURED = 8
"""How many tensors a page shows a histogram of."""
HEAT_ROWS = 400
"""How many rows a heat map may have, before layers are taken together."""
LONGEST = 120
"""Characters of a name in a table; JSON has all of them."""
_TITLES = {"optimizer": "Optimizer", "metadata": "Metadata", "hyperparameters": "Module settings"}
_HOW = {"content": "same bytes", "order": "same shape, same place in order"}


def report(
    diff: Diff,
    *,
    depth: int | None = None,
    every: bool = False,
    brief: bool = False,
    pictures: bool = False,
    ranks: Mapping[str, Rank] | None = None,
    transferred: Transfer | None = None,
    expectations: int = 0,
    broken: Sequence[Breach] = (),
) -> Report:
    """The report of *diff*: the verdict, the roll-up by module to *depth*, then each kind of difference.

    *every* lists all the tensors that differ, however many; *brief* gives the verdict alone; *pictures* is
    for a page, which has room for more rows, a heat map and histograms. *ranks* are of changes, by name;
    *expectations* were checked and *broken* what breaks them.
    """
    sentence = verdict(diff)
    if transferred is not None and transferred.contradictions:
        sentence = f"{_contradictions(transferred)}; {sentence}"
    sentence += _low_ranks(ranks or {})
    if expectations:
        breaks = "breaks" if len(broken) == 1 else "break"
        held = f"{count(len(broken), 'tensor')} {breaks} expectations" if broken else "as expected"
        sentence = f"{held}: {sentence}"
    title = f"{diff.a.path} → {diff.b.path}"
    screen = PAGE_ROWS if pictures else SCREEN_ROWS
    blocks: list[Block] = []
    if broken:
        rows = [(_name(breach.name), breach.expected, breach.what) for breach in broken]
        blocks.append(Table("Broken expectations", ("tensor", "expected", "but it is"), rows))
    if not brief:
        if transferred is not None:
            blocks += _transfer(transferred)
        blocks.append(Facts("", _facts(diff)))
        if any(entry.differs for entry in diff.tensors):
            blocks.append(_tree(diff.tensors, depth, screen))
            blocks += _tensors(diff.tensors, every, screen)
        if ranks is not None:
            blocks.append(_rank_table(ranks, every))
        blocks += _renames(diff.tensors, every, screen) + _ties(diff)
        for category, heading in _TITLES.items():
            values = [value for value in diff.values if value.category == category]
            if values:
                blocks.append(_value_table(heading, values, screen))
        if pictures:
            blocks += _heat(diff.tensors)
            blocks += _histograms(diff.tensors)
    return Report(title, lambda: _data(diff, sentence, ranks or {}, transferred, broken), tuple(blocks), sentence)


def ranks_of(diff: Diff) -> dict[str, Rank]:
    """The rank of the change of every matrix of weights that changed; reads these once more."""
    found = {}
    for entry in diff.tensors:
        if entry.a is not None and entry.b is not None and not entry.is_buffer and entry.change in ("value", "dtype"):
            dense = entry.a.layout == entry.b.layout == "strided"
            rank = change_rank(entry.a, entry.b) if dense else None
            if rank is not None:
                found[entry.name] = rank
    return found


# --- for people


def _facts(diff: Diff) -> list[tuple[str, str]]:
    rows = [("A", _who(diff.a.path, diff.a.title, diff.a.kind)), ("B", _who(diff.b.path, diff.b.title, diff.b.kind))]
    for word, entries in (
        ("weights", [e for e in diff.tensors if not e.is_buffer]),
        ("buffers", [e for e in diff.tensors if e.is_buffer]),
    ):
        if entries:
            changes: dict[str, int] = {}
            for entry in entries:
                changes[entry.change] = changes.get(entry.change, 0) + 1
            text = ", ".join(f"{n:,} {_WORDS[change]}" for change, n in changes.items())
            share = moved(entries) if word == "weights" and diff.measured else None
            rows.append((word, text + (f"; relative change {_share(share)}" if share else "")))
    if any(diff.prefixes):
        rows.append(("prefix", " → ".join(prefix or "none" for prefix in diff.prefixes)))
    if diff.ignored:
        rows.append(("left out", ", ".join(sorted(diff.ignored))))
    if diff.chosen < diff.in_all:
        rows.append(("chosen", f"{diff.chosen:,} of {count(diff.in_all, 'tensor')}, by their names"))
    return rows + [("note", note) for note in diff.notes]


_WORDS = {
    "identical": "identical",
    "within tolerance": "within the tolerance",
    "value": "changed",
    "dtype": "of another dtype",
    "shape": "of another shape",
    "added": "added",
    "removed": "removed",
    "unreadable": "not comparable",
}


def _who(path: str, title: str, kind: str) -> str:
    return f"{path}, {title}, {kind}"


def _name(name: str) -> str:
    """A name as it stands in a table: on one line, and not so long that the other columns are out of sight."""
    if len(name) > LONGEST:  # of which the end says most
        name = f"{name[: LONGEST // 3]}…{name[1 + LONGEST // 3 - LONGEST :]}"
    return shortened(name) or "(no name)"


def _share(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    return "from zero" if math.isinf(value) else number(round_to(value))


def _tree(entries: Sequence[TensorDiff], depth: int | None, screen: int) -> Tree:
    """The roll-up by module; blocks that are alike in every tensor's fate are one row."""
    by_name = {entry.name: entry for entry in entries}
    infos = [(entry.b or entry.a, entry.name) for entry in entries]
    root = grow(info.renamed(name) for info, name in infos if info is not None)
    alone = ("value", "shape")
    folded = fold(root, {e.name: f"{e.change} {e.name}" if e.change in alone else e.change for e in entries})
    levels = fitting_depth(folded, screen) if depth is None else depth
    rows: list[tuple[int, Sequence[str]]] = []
    if folded.tensors:
        rows.append((0, _row("other parameters", folded, by_name, own_only=True)))
    for level, node in rows_at(folded, levels):
        rows.append((level - 1, _row(node.name, node, by_name)))
    columns = ("layer", "what", ">tensors", ">differ", ">relative change", ">max |Δ|", "buffers")
    return Tree("Layers", columns, rows)


def _row(layer: str, node: Node, by_name: Mapping[str, TensorDiff], own_only: bool = False) -> tuple[str, ...]:
    found: list[TensorDiff] = []
    for member in node.members:
        tensors = member.tensors.values() if own_only else member.all_tensors()
        found += [by_name[tensor.name] for tensor in tensors]
    weights = [entry for entry in found if not entry.is_buffer]
    buffers = sum(entry.is_buffer and entry.change in ("value", "dtype", "shape") for entry in found)
    differ = [entry for entry in weights if entry.differs]
    changes = Counter(entry.change for entry in differ)
    what: str
    if not weights:
        kinds = dict.fromkeys(entry.change for entry in found)
        what = next(iter(kinds)) if len(kinds) == 1 and kinds.keys() <= {"added", "removed"} else ""
        what = what or ("moved" if buffers else "identical")
    elif not differ:
        what = "identical" if not buffers else "weights identical"
    elif len(differ) == len(weights) and len(changes) == 1:
        what = _WORDS[next(iter(changes))]
        shapes = {_reshaped(entry) for entry in differ if entry.change == "shape"}
        what = ", ".join(sorted(shapes)) if 0 < len(shapes) <= 2 else what
    else:
        what = ", ".join(f"{times:,} {_WORDS[change]}" for change, times in changes.items())
    share = moved(weights)
    top = max((e.comparison.max_abs for e in differ if e.comparison is not None), default=0.0)
    return (
        layer,
        what,
        f"{len(weights):,}" if weights else "",
        f"{len(differ):,}" if differ else "",
        _share(share) if share else "",
        number(round_to(top)) if top else "",
        f"{buffers:,} moved" if buffers and weights else "",
    )


def _shape(tensor: TensorInfo) -> str:
    return "×".join(map(str, tensor.shape)) if tensor.shape else "scalar"


def _reshaped(entry: TensorDiff) -> str:
    return f"{_shape(entry.a)} → {_shape(entry.b)}" if entry.a is not None and entry.b is not None else ""


def _tensors(entries: Sequence[TensorDiff], every: bool, screen: int) -> list[Block]:
    """The tensors that differ; where there are many, those that were only cast and the buffers are summed up."""
    both = (entry for entry in entries if entry.differs and entry.change not in ("added", "removed"))
    differing = sorted(both, key=lambda entry: entry.is_buffer)
    apart = differing
    rows: list[tuple[str, ...]] = []
    if not every and len(differing) > FEW:
        apart = [entry for entry in differing if not entry.is_buffer and not is_cast(entry)]
        groups: dict[str, list[TensorDiff]] = {}
        for entry in differing:
            if is_cast(entry):
                groups.setdefault(_change(entry), []).append(entry)
            elif entry.is_buffer:
                groups.setdefault(f"*.{entry.name.rpartition('.')[2]}", []).append(entry)
        rows = [
            _summed_up(label, found) if len(found) > 1 else _tensor_row(found[0]) for label, found in groups.items()
        ]
    shown = apart if every else apart[:screen]
    left = len(apart) - len(shown)
    columns = (
        "tensor",
        "change",
        ">same",
        ">relative",
        ">max |Δ|",
        "at",
        ">cosine",
        ">ULP",
        ">sign flips",
        "remarks",
    )
    note = f"{left:,} more differ; --keys '*' lists all" if left else "--keys '*' lists all" if rows else ""
    blocks: list[Block] = []
    if shown or rows:
        blocks.append(Table("Tensors that differ", columns, [*map(_tensor_row, shown), *rows], note))
    return blocks + _only(entries, "removed", every, screen) + _only(entries, "added", every, screen)


def _only(entries: Sequence[TensorDiff], change: str, every: bool, screen: int) -> list[Block]:
    """The tensors that just one side has."""
    found = [tensor for e in entries if e.change == change and (tensor := e.a or e.b) is not None]
    shown = found if every else found[:screen]
    left = len(found) - len(shown)
    rows = [(_name(tensor.name), str(tensor.dtype), _shape(tensor)) for tensor in shown]
    note = f"{left:,} more; --keys '*' lists all" if left else ""
    return (
        [Table(f"Only in {'A' if change == 'removed' else 'B'}", ("tensor", "dtype", "shape"), rows, note)]
        if rows
        else []
    )


def _summed_up(label: str, entries: Sequence[TensorDiff]) -> tuple[str, ...]:
    """One row for tensors that share a fate: the ranges of their numbers."""
    found = [entry.comparison for entry in entries if entry.comparison is not None and entry.comparison.basis]
    shares = [share for c in found if not math.isnan(share := _relative(c))]
    remarks = "; ".join(dict.fromkeys(text for e in entries if e.comparison for text in _remarks(e, e.comparison)))
    return (
        f"{len(entries):,} tensors" if is_cast(entries[0]) else f"{label} ({len(entries):,})",
        _change(entries[0]),
        _range([100 * c.equal / c.numel for c in found if c.equal is not None and c.numel], " %"),
        "from zero" if shares and min(shares) == math.inf else _range(shares),
        _range([c.max_abs for c in found]),
        "",
        "",
        "",
        f"{sum(c.sign_flips for c in found):,}" if any(c.sign_flips for c in found) else "",
        remarks,
    )


def _range(values: Sequence[float], unit: str = "") -> str:
    if not values:
        return ""
    low, high = (number(round_to(value)) for value in (min(values), max(values)))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _change(entry: TensorDiff) -> str:
    """What happened to a tensor, in a few words."""
    a, b, what = entry.a, entry.b, entry.change
    if what == "shape":
        return _reshaped(entry)
    if what == "dtype" and a is not None and b is not None:
        return f"{a.dtype} → {b.dtype}"
    return "values" if what == "value" else _WORDS[what]


def _tensor_row(entry: TensorDiff) -> tuple[str, ...]:
    found = entry.comparison
    if found is None:
        return (_name(entry.name), _change(entry), *[""] * 7, entry.problem)
    measured = found.basis is not None
    return (
        _name(entry.name),
        _change(entry),
        _equal(found),
        _share(_relative(found)) if measured else "",
        number(round_to(found.max_abs)) if measured else "",
        _index(found),
        f"{found.cosine:.6f}" if measured and found.cosine is not None else "",
        "" if found.max_ulp is None else f"{found.max_ulp:,}" if found.max_ulp < 10**6 else f"{found.max_ulp:.1e}",
        f"{found.sign_flips:,}" if found.sign_flips else "",
        "; ".join(_remarks(entry, found)),
    )


def _equal(found: Comparison) -> str:
    if found.equal is None or not found.numel:
        return ""
    return f"{math.floor(1000 * found.equal / found.numel) / 10:g} %"


def _index(found: Comparison) -> str:
    return "" if found.max_index is None else f"[{', '.join(map(str, found.max_index))}]"


def _remarks(entry: TensorDiff, found: Comparison) -> Iterable[str]:
    if found.cast and found.cast_back:
        yield "same values"
    elif found.cast:
        yield "B is A, cast"
    elif found.cast_back:
        yield "A is B, cast"
    if entry.told:
        yield entry.told
    if found.basis == "stored integer":
        yield "of the stored integers"
    for name, (a, b) in (("NaN", found.nans), ("Inf", found.infs)):
        if a or b:
            yield f"{name} {a:,} → {b:,}" if a != b else f"{a:,} {name}"
    if entry.how in _HOW:
        yield f"paired by {entry.how}"


def _renames(entries: Sequence[TensorDiff], every: bool, screen: int) -> list[Block]:
    """What goes by another name; where there are many, what became of a part of the names is one row."""
    found = [
        (entry.a.name, entry.b.name, _HOW[entry.how])
        for entry in entries
        if entry.a is not None and entry.b is not None and entry.how in _HOW and entry.a.name != entry.b.name
    ]
    if not found:
        return []
    columns: tuple[str, ...] = ("in A", "in B", "known by")
    rows: list[tuple[str, ...]] = [(_name(a), _name(b), how) for a, b, how in found]
    if len(rows) > FEW and not every:
        groups: dict[tuple[str, str, str], int] = {}
        for a, b, how in found:
            group = (*_apart(a, b), how)
            groups[group] = groups.get(group, 0) + 1
        if len(groups) < len(rows):
            columns = ("in A", "in B", ">tensors", "known by")
            rows = [(_name(a), _name(b), f"{times:,}", how) for (a, b, how), times in groups.items()]
    shown = rows if every else rows[:screen]
    left = len(rows) - len(shown)
    folded = len(columns) > 3
    note = f"{left:,} more; " if left else ""
    note += "--write-key-map FILE writes them all" if left or folded else ""
    return [Table("Renamed", columns, shown, note)]


def _apart(a: str, b: str) -> tuple[str, str]:
    """The parts in which two names differ, with ``*`` for what they share: ``*.norm.1.*`` and ``*.norm1.*``."""
    left, right = a.split("."), b.split(".")
    front = back = 0
    shorter = min(len(left), len(right))
    while front < shorter and left[front] == right[front]:
        front += 1
    while back < shorter - front and left[-1 - back] == right[-1 - back]:
        back += 1
    names = []
    for parts in (left, right):
        middle = parts[front : len(parts) - back]
        names.append(".".join([*["*"] * bool(front), *middle, *["*"] * bool(back)]))
    return names[0], names[1]


def _ties(diff: Diff) -> list[Block]:
    rows = [
        (
            " = ".join(map(shortened, tie.names)),
            "shared in A, apart in B" if tie.broken else "apart in A, shared in B",
            "equal bytes" if tie.equal else "different bytes",
        )
        for tie in diff.ties
    ]
    return [Table("Tied tensors", ("names", "what", "the copies have"), rows)] if rows else []


def _value_table(title: str, values: Sequence[ValueDiff], screen: int) -> Table:
    """The values, those that changed alike in many places as one row."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for value in values:
        what, where = _place(value)
        a, b = _leaf(value.a), _leaf(value.b)
        if isinstance(value.a, TensorInfo) and a == b:
            a, b = "tensor", "other values"
        groups.setdefault((what, a, b), []).append(where)
    named = title == "Module settings"
    rows = []
    for (what, a, b), owners in groups.items():
        places = listed(owners, 3) if any(owners) else ""
        rows.append((what, a, b, places))
    shown = rows[:screen]
    note = f"{len(rows) - len(shown):,} more; --format json lists all" if len(rows) > len(shown) else ""
    return Table(title, ("setting" if named else "value", "A", "B", "module" if named else "of"), shown, note)


def _place(value: ValueDiff) -> tuple[str, str]:
    """What a value is and of what: an optimizer's state is told by parameter, a setting by module."""
    path = value.path
    if value.category == "hyperparameters":
        return format_path(path[1:]), str(path[0]) or "the model"
    if value.category == "optimizer" and "state" in path[:-2]:
        at = path.index("state")
        return format_path((*path[: at + 1], *path[at + 2 :])), f"parameter {path[at + 1]}"
    return format_path(path), ""


def _leaf(value: Leaf | Absent) -> str:
    if isinstance(value, Absent):
        return "—"
    if isinstance(value, Described):
        return shortened(str(value), 80)
    if isinstance(value, TensorInfo):
        try:
            single = scalar(value)
        except CkptError:
            single = None
        return number(single) if single is not None else f"tensor {value.dtype} {_shape(value)}"
    if isinstance(value, str):
        return repr(shortened(value, 60)) if not value or value != value.strip() else shortened(value, 60)
    if isinstance(value, bytes):
        return f"bytes {value[:16].hex()}" + ("…" if len(value) > 16 else "")
    return number(value)


def _heat(entries: Sequence[TensorDiff]) -> list[Block]:
    """A cell a tensor: a row for each layer, or for as many levels above as fit a page."""
    cells = [(e.name.split(".", MAX_DEPTH), _relative(e.comparison)) for e in entries if _is_pictured(e)]
    rows: dict[str, list[tuple[str, float]]] = {}
    for levels in range(1, MAX_DEPTH):
        rows = {}
        for parts, value in cells:
            label = ".".join(parts[:-levels])
            rows.setdefault(label or "(root)", []).append((".".join(parts[-levels:] if label else parts), value))
        if len(rows) <= HEAT_ROWS:
            break
    measure = "relative change ‖B − A‖ / ‖A‖"
    return [HeatMap("Relative change by layer", list(rows.items()), measure)] if rows else []


def _is_pictured(entry: TensorDiff) -> bool:
    return not entry.is_buffer and entry.comparison is not None


def _histograms(entries: Sequence[TensorDiff]) -> list[Block]:
    """How large the changes are, of the tensors that changed most; those that were zero come last."""
    changed = [e for e in entries if e.change in ("value", "dtype") and e.comparison and e.comparison.basis]
    changed = [e for e in changed if not e.is_buffer]
    shares = {id(e): _relative(e.comparison) for e in changed}
    changed.sort(key=lambda e: -shares[id(e)] if math.isfinite(shares[id(e)]) else math.inf)
    blocks: list[Block] = []
    for entry in changed[:PICTURED]:
        assert entry.a is not None and entry.b is not None
        found = change_histogram(entry.a, entry.b)
        if found is not None and found.counts:
            rms = number(round_to(found.rms))
            note = f"{count(found.unchanged, 'element')} unchanged; the root mean square of A is {rms}"
            blocks.append(Histogram(f"|Δ| of {shortened(entry.name, 80)}", found.edges, found.counts, note))
    return blocks


def _relative(found: Comparison | None) -> float:
    """The relative change; infinity from zero, NaN where it is not known."""
    if found is None or (found.basis is None and not found.identical):
        return math.nan
    if found.relative is None:
        return math.nan if found.norm else math.inf
    return found.relative


def _low_ranks(ranks: Mapping[str, Rank]) -> str:
    """What the ranks come to, for the sentence: ``, 8 of 22 matrices consistent with LoRA r≈16``."""
    low = [rank.rank for rank in ranks.values() if rank.rank and rank.lora]
    if not low:
        return ""
    rank = f"{min(low)}" if min(low) == max(low) else f"{min(low)} to {max(low)}"
    changed = sum(rank.rank != 0 for rank in ranks.values())
    which = f"{len(low):,} of {changed:,}" if len(low) < changed else f"all {changed:,}" if changed > 1 else "the only"
    return f", {which} changed {'matrix' if changed == 1 else 'matrices'} consistent with LoRA r≈{rank}"


def _rank_table(ranks: Mapping[str, Rank], every: bool) -> Table:
    rows = [
        (
            _name(name),
            f"{rank.rows}×{rank.columns}",
            "full" if rank.rank is None else f"{rank.rank:,}",
            f"{100 * rank.energy:.1f} %",
            rank.lora,
        )
        for name, rank in ranks.items()
    ]
    note = ""
    if len(rows) > FEW and not every:  # those of one rank are one row
        groups: dict[tuple[str, str], list[tuple[str, ...]]] = {}
        for row in rows:
            groups.setdefault((row[2], row[4]), []).append(row)
        rows = []
        for (rank, remark), found in groups.items():
            sizes, energies = (list(dict.fromkeys(row[at] for row in found)) for at in (1, 3))
            name = found[0][0] if len(found) == 1 else f"{len(found):,} matrices, such as {found[0][0]}"
            energy = min(energies, key=lambda text: float(text[:-2]))
            least = "" if len(energies) == 1 else "from "
            rows.append((name, listed(sizes, 3), rank, f"{least}{energy}", remark))
        note = "--keys '*' lists all" if len(rows) < len(ranks) else ""
    columns = ("matrix", "size", ">rank of its change", ">energy in it", "remark")
    return Table("Rank", columns, rows or [("no matrix changed", "", "", "", "")], note)


def _transfer(found: Transfer) -> list[Block]:
    groups: dict[str, list[str]] = {}
    for layer in found.layers:
        groups.setdefault(OUTCOMES[layer.status], []).append(layer.path or "(root)")
    rows = [(outcome, f"{len(paths):,}", listed(paths, 8)) for outcome, paths in groups.items()]
    blocks: list[Block] = []
    if found.contradictions:
        told = [(_name(c.name), c.what) for c in found.contradictions]
        blocks.append(Table("Contradictions", ("parameter", "what disagrees"), told))
    note = f"The head: {found.head}" if found.head is not None else ""
    if not found.judgements:
        note += f"{'. ' if note else ''}B does not record what was frozen"
    blocks.append(Table("Transfer", ("layers that", ">how many", "which"), rows, note))
    return blocks


def _contradictions(found: Transfer) -> str:
    names = listed([c.name for c in found.contradictions], 2)
    return f"{count(len(found.contradictions), 'contradiction')} between what B says and its bytes ({names})"


# --- for machines


def _data(
    diff: Diff,
    sentence: str,
    ranks: Mapping[str, Rank],
    transferred: Transfer | None,
    broken: Sequence[Breach],
) -> dict[str, object]:
    data: dict[str, object] = {
        "path": diff.b.path,
        "a": {"path": diff.a.path, "format": diff.a.format, "kind": diff.a.kind},
        "b": {"path": diff.b.path, "format": diff.b.format, "kind": diff.b.kind},
        "different": diff.different,
        "categories": list(diff.differing),
        "verdict": sentence,
        "relative_change": moved(entry for entry in diff.tensors if not entry.is_buffer) if diff.measured else None,
        "prefixes": list(diff.prefixes),
        "key_map": dict(diff.key_map),
        "ignored": sorted(diff.ignored),
        "tensors": [_tensor_data(entry, ranks.get(entry.name)) for entry in diff.tensors],
        "ties": [{"names": list(t.names), "broken": t.broken, "equal_bytes": t.equal} for t in diff.ties],
        "values": [
            {
                "category": value.category,
                "path": [str(key) if not isinstance(key, int) else key for key in value.path],
                "a": _leaf_data(value.a),
                "b": _leaf_data(value.b),
            }
            for value in diff.values
        ],
        "notes": list(diff.notes),
    }
    if transferred is not None:
        head = transferred.head
        data["transfer"] = {
            "layers": [{"layer": x.path, "outcome": OUTCOMES[x.status]} for x in transferred.layers],
            "head": None if head is None else {"old": head.old, "new": head.new, "outputs": list(head.outputs)},
            "contradictions": [{"name": c.name, "what": c.what} for c in transferred.contradictions],
        }
    data["broken_expectations"] = [{"name": x.name, "expected": x.expected, "what": x.what} for x in broken]
    cleaned = plain_json(data)
    assert isinstance(cleaned, dict)
    return cleaned


def _tensor_data(entry: TensorDiff, rank: Rank | None) -> dict[str, object]:
    data: dict[str, object] = {
        "name": entry.name,
        "change": entry.change,
        "buffer": entry.is_buffer,
        "paired_by": entry.how,
    }
    for side, tensor in (("a", entry.a), ("b", entry.b)):
        data[side] = None
        if tensor is not None:
            data[side] = {"name": tensor.name, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}
    if entry.problem:
        data["problem"] = entry.problem
    if rank is not None:
        data["rank"] = {"rank": rank.rank, "energy": rank.energy, "remark": rank.lora}
    found = entry.comparison
    if found is not None:
        data["equal_elements"] = found.equal
        if found.basis is not None:
            data |= {
                "basis": found.basis,
                "distance": found.distance,
                "norm": found.norm,
                "relative": found.relative,
                "max_abs": found.max_abs,
                "max_index": None if found.max_index is None else list(found.max_index),
                "cosine": found.cosine,
                "max_ulp": found.max_ulp,
                "sign_flips": found.sign_flips,
                "nan": list(found.nans),
                "inf": list(found.infs),
                "b_is_a_cast": found.cast,
                "a_is_b_cast": found.cast_back,
            }
    return data


def _leaf_data(value: Leaf | Absent) -> object:
    if value is ABSENT:
        return None
    if isinstance(value, TensorInfo):
        return {"dtype": value.dtype.name, "shape": list(value.shape)}
    if isinstance(value, Absent | Described | bytes):
        return {"described": _leaf(value)}
    return value
