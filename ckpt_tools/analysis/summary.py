"""How many parameters, which of them frozen, layer by layer: the answer of ``ckpt summary``."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ckpt_tools.analysis.counting import distinct, tied
from ckpt_tools.analysis.overview import wrapper_prefix
from ckpt_tools.analysis.trainability import Judgement, Trainability, judge, parameters_of
from ckpt_tools.analysis.tree import Node, fitting_depth, fold, grow, rows_at
from ckpt_tools.checkpoint import Checkpoint, Module, StateDict, TensorInfo, format_path, is_extra_state
from ckpt_tools.errors import Ambiguous, CkptError
from ckpt_tools.pickles.values import key_text, plain
from ckpt_tools.records import comparable
from ckpt_tools.report import Block, Facts, Report, Table, Tree, count, number, plain_json, size

SCREEN_ROWS = 40

_SOURCES = {
    "recorded": "recorded in the file",
    "class": "as the class builds it",
    "base": "inferred from the base",
    "optimizer": "inferred from the optimizer",
}


@dataclass(slots=True)
class Row:
    """A layer's line: counts of elements over it and all below, tied ones where they first stand."""

    layer: str
    path: str
    class_name: str = ""
    shape: str = ""
    tensors: int = 0
    trainable_tensors: int = 0
    trainable: int = 0
    frozen: int = 0
    unknown: int = 0
    buffers: int = 0
    nbytes: int = 0
    status: str = ""
    depth: int = 0

    @property
    def parameters(self) -> int:
        """Elements of parameters, whatever the verdict on them."""
        return self.trainable + self.frozen + self.unknown


@comparable
class Subject:
    """The model that is summed up: its tensors, its module tree where one is pickled, and its verdicts."""

    state_dict: StateDict
    module: Module | None
    parameters: Sequence[TensorInfo]
    buffers: Sequence[TensorInfo]
    trainability: Trainability

    @property
    def tied(self) -> list[list[str]]:
        """Groups of parameters that are the same memory."""
        return tied(self.parameters)


def summarize(
    checkpoint: Checkpoint,
    *,
    select: str | None = None,
    base: Checkpoint | None = None,
    from_class: Mapping[str, bool] | None = None,
    depth: int | None = None,
    sort: str | None = None,
    keys: str | None = None,
    screen: int = SCREEN_ROWS,
) -> Report:
    """The report of ``ckpt summary``.

    *select* is the key path of the state_dict to sum up where the file has several; *base* an older checkpoint
    to compare bytes with; *from_class* the flags of a model built from its class. *sort* lists every layer
    with tensors of its own by parameters, bytes or name instead of the tree; *keys* keeps the parameters whose
    name matches the glob. Where no *depth* is given, the tree is as deep as fits on a *screen* of so many rows.
    """
    subject = subject_of(checkpoint, select, base, from_class)
    parameters = [t for t in subject.parameters if keys is None or fnmatch.fnmatchcase(t.name, keys)]
    buffers = [t for t in subject.buffers if keys is None or fnmatch.fnmatchcase(t.name, keys)]
    if keys is not None and not parameters and not buffers:
        raise CkptError(f"no tensor's name matches {keys}", path=checkpoint.path)
    rows, shown = _rows(subject, parameters, buffers, depth, sort, screen)
    total = rows[0]
    trust = subject.trainability
    title = f"{format_path(subject.state_dict.path)}" if subject.state_dict.path else ""
    blocks: list[Block] = [Facts(title, _facts(checkpoint, subject, total))]
    if trust.mistakes:
        mistakes = [(m.where, f"{m.attribute} = {_text(m.value)}", m.what) for m in trust.mistakes]
        blocks.append(Table("Attributes that change nothing", ("where", "attribute", "what it does"), mistakes))
    contradictions = [(name, c) for name, j in trust.parameters.items() for c in j.contradictions]
    if contradictions:
        blocks.append(Table("Contradictions", ("parameter", "what disagrees"), contradictions))
    blocks.append(_layers(shown, total))
    blocks.append(_evidence(parameters, trust.parameters))
    if trust.drifted_buffers:
        drifted = [(name,) for name in trust.drifted_buffers]
        blocks.append(Table("Buffers that moved in layers whose parameters did not", ("buffer",), drifted))
    return Report(
        checkpoint.path, lambda: _data(checkpoint, subject, total, shown), tuple(blocks), _verdict(total, trust)
    )


def subject_of(
    checkpoint: Checkpoint,
    select: str | None = None,
    base: Checkpoint | None = None,
    from_class: Mapping[str, bool] | None = None,
) -> Subject:
    """The model in *checkpoint*, judged. Raises `Ambiguous` where there are several and none is selected."""
    state_dict, module = pick(checkpoint, select)
    compared = None
    if base is not None:
        compared = pick(base, None)[0]
        ours, theirs = wrapper_prefix(state_dict.entries), wrapper_prefix(compared.entries)
        if ours != theirs:
            entries = {ours + name.removeprefix(theirs): value for name, value in compared.entries.items()}
            compared = replace(compared, entries=entries)
    parameters = parameters_of(state_dict, module)
    names = {tensor.name for tensor in parameters}
    if module is not None:
        buffers = [
            buffer.renamed(f"{path}.{name}" if path else name)
            for path, part in module.walk()
            for name, buffer in part.buffers.items()
            if buffer is not None
        ]
    else:
        buffers = [tensor for tensor in state_dict.tensors if tensor.name not in names]
    trust = judge(checkpoint, state_dict, module, base=compared, from_class=from_class)
    return Subject(state_dict, module, parameters, buffers, trust)


def pick(checkpoint: Checkpoint, select: str | None) -> tuple[StateDict, Module | None]:
    """The state_dict at *select*, or the one that plainly is the model, with its module where one is pickled."""
    candidates: list[tuple[StateDict, Module | None]] = []
    if checkpoint.module is not None:
        own = checkpoint.module.state_dict()
        candidates.append((replace(own, path=checkpoint.module_path), checkpoint.module))
    candidates += [(s, None) for s in checkpoint.state_dicts if s.role != "optimizer"]
    # what a module keeps in its extra state is part of the model
    within = [s for s, _ in candidates if any(map(is_extra_state, s.path))]
    if select is not None:
        for state_dict, module in candidates:
            if format_path(state_dict.path) == select:
                return state_dict, module
        known = ", ".join(format_path(s.path) or "the root" for s, _ in candidates) or "none"
        raise CkptError(f"there is no state_dict at {select!r}; there are: {known}", path=checkpoint.path)
    candidates = [pair for pair in candidates if pair[0] not in within] or candidates
    models = [pair for pair in candidates if pair[0].role == "model"] or candidates
    if len(models) == 1:
        return models[0]
    if not models:
        raise CkptError(f"there is no model in it: {_instead(checkpoint)}", path=checkpoint.path)
    listed = ", ".join(format_path(s.path) or "the root" for s, _ in models)
    raise Ambiguous(
        f"it holds {len(models)} state_dicts: {listed}", path=checkpoint.path, remedy="Choose one with --select"
    )


def _instead(checkpoint: Checkpoint) -> str:
    """What a file holds that holds no model, in a few words."""
    optimizers = [s for s in checkpoint.state_dicts if s.role == "optimizer"]
    if optimizers:
        where = ", ".join(format_path(s.path) or "the root" for s in optimizers)
        return f"the state of {'an optimizer' if len(optimizers) == 1 else 'optimizers'} alone, at {where}"
    return f"{count(len(checkpoint.loose), 'loose tensor')} alone" if checkpoint.loose else "no state_dict, no module"


def weights(checkpoint: Checkpoint, select: str | None) -> StateDict:
    """What `pick` gives, or where the file has no state_dict but loose tensors, `loose_weights`."""
    loose = loose_weights(checkpoint) if select is None else None
    return loose if loose is not None else pick(checkpoint, select)[0]


def loose_weights(checkpoint: Checkpoint) -> StateDict | None:
    """The tensors of a file without state_dicts, by their key paths, ``tensor`` for a lone one; None where it has any.

    Where two paths would read the same, as those of keys 1 and "1" do, they are told apart: ``[1]`` and ``1``.
    """
    if checkpoint.module is not None or checkpoint.state_dicts or not checkpoint.loose:
        return None
    names = [".".join(map(key_text, path)) or "tensor" for path, _ in checkpoint.loose]
    times, copies = Counter(names), Counter[str]()
    found: dict[str, object] = {}
    for name, (path, tensor) in zip(names, checkpoint.loose, strict=True):
        own = name = format_path(path) or name if times[name] > 1 else name
        while name in found:
            copies[own] += 1
            name = f"{own} ({copies[own] + 1})"
        found[name] = tensor
    return StateDict((), "other", found)


# --- rows


def _rows(
    subject: Subject,
    parameters: Sequence[TensorInfo],
    buffers: Sequence[TensorInfo],
    depth: int | None,
    sort: str | None,
    screen: int,
) -> tuple[list[Row], list[Row]]:
    """All rows with the total first, and those to show."""
    verdicts = subject.trainability.parameters
    counted = {id(t) for t in distinct(parameters)}
    first_names = {name: names[0] for names in subject.tied for name in names[1:]}
    parameter_names = {t.name for t in parameters}
    marks: dict[str, str] = {}
    for tensor in (*parameters, *buffers):
        if tensor.name in first_names:
            marks[tensor.name] = f"tied to {first_names[tensor.name]}"
        elif tensor.name in parameter_names:
            marks[tensor.name] = verdicts[tensor.name].verdict
        else:
            marks[tensor.name] = "buffer"
    classes: dict[str, str] = {}
    if subject.module is not None:
        classes = {path: part.class_name.rpartition(".")[2] for path, part in subject.module.walk()}
    tensors = _in_order(subject, parameters, buffers)
    tree = grow(tensors, classes)

    def row_of(node: Node, layer: str, own_only: bool = False, depth: int = 0) -> Row:
        row = Row(layer, node.path, node.class_name, depth=depth)
        pending = [(node, 1)]
        ties: set[str] = set()
        while pending:
            current, times = pending.pop()
            times *= current.repeats
            for tensor in current.tensors.values():
                _count(row, tensor, times, marks[tensor.name], id(tensor) in counted, ties)
            if not own_only:
                pending += [(child, times) for child in current.children.values()]
        row.status = _status(row, ties)
        if own_only or not node.children:
            own = [(n, t) for n, t in node.tensors.items() if marks[t.name] != "buffer"]
            if len(own) <= 3:
                row.shape = ", ".join(f"{n} {_shape(t)}" for n, t in own)
        return row

    total = row_of(tree, "total")
    if sort is not None:
        rows = [row_of(node, node.path or "(root)", own_only=True) for node in tree.walk() if node.tensors]
        order = {
            "parameters": lambda row: (-row.parameters, row.layer),
            "bytes": lambda row: (-row.nbytes, row.layer),
            "name": lambda row: (0, row.layer),
        }[sort]
        rows.sort(key=order)
        return [total, *rows], rows
    folded = fold(tree, marks)
    levels = fitting_depth(folded, screen) if depth is None else depth
    rows = []
    if folded.tensors:
        rows.append(row_of(folded, "other parameters", own_only=True))
    for level, node in rows_at(folded, levels):
        rows.append(row_of(node, node.name, depth=level - 1))
        if node.tensors and node.children and level < levels:
            rows.append(row_of(node, "other parameters", own_only=True, depth=level))
    return [total, *rows], rows


def _in_order(subject: Subject, parameters: Sequence[TensorInfo], buffers: Sequence[TensorInfo]) -> list[TensorInfo]:
    """Parameters and buffers in the order of the state_dict; what it lacks (non-persistent buffers) last."""
    by_name = {tensor.name: tensor for tensor in (*buffers, *parameters)}
    ordered = [by_name.pop(name) for name in subject.state_dict.entries if name in by_name]
    return ordered + list(by_name.values())


def _count(row: Row, tensor: TensorInfo, times: int, mark: str, counted: bool, ties: set[str]) -> None:
    if mark == "buffer":
        row.buffers += times * tensor.numel
        return
    row.tensors += times
    if not counted:
        ties.add(mark)
        return
    row.nbytes += times * tensor.nbytes
    if mark == "trainable":
        row.trainable += times * tensor.numel
        row.trainable_tensors += times
    elif mark == "frozen":
        row.frozen += times * tensor.numel
    else:
        row.unknown += times * tensor.numel


def _status(row: Row, ties: set[str]) -> str:
    if not row.tensors:
        return "buffers only" if row.buffers else ""
    kinds = [name for name in ("trainable", "frozen", "unknown") if getattr(row, name)]
    if not kinds:
        return ", ".join(sorted(ties)) or "empty"
    if len(kinds) == 1:
        return kinds[0]
    text = f"partial {row.trainable_tensors}/{row.tensors}"
    return text + (", some unknown" if row.unknown else "")


# --- blocks


def _verdict(total: Row, trust: Trainability) -> str:
    text = f"{total.parameters:,} parameters"
    known = [
        f"{value:,} {name}"
        for name, value in (("trainable", total.trainable), ("frozen", total.frozen), ("unknown", total.unknown))
        if value
    ]
    if total.unknown == total.parameters:
        text += ", trainable or frozen unknown: the file does not record it"
    else:
        if not total.trainable:
            known.insert(0, "0 trainable")
        sources = dict.fromkeys(j.basis.source for j in trust.parameters.values() if j.verdict != "unknown")
        text += f": {', '.join(known)} ({', '.join(_SOURCES[source] for source in sources)})"
    contradictory = sum(bool(j.contradictions) for j in trust.parameters.values())
    if contradictory:
        text += f"; {count(contradictory, 'contradiction')}"
    for mistake in trust.mistakes[:1]:
        text += f"; {mistake.attribute} on {mistake.where} changes nothing"
    return text


def _facts(checkpoint: Checkpoint, subject: Subject, total: Row) -> list[tuple[str, str]]:
    rows = []
    if subject.module is not None:
        rows.append(("class", subject.module.class_name))
    rows.append(
        ("parameters", f"{total.parameters:,} in {count(len(subject.parameters), 'tensor')}, {size(total.nbytes)}")
    )
    if total.unknown == total.parameters:
        rows.append(
            ("trainable", "unknown: a state_dict does not record it; an optimizer, a full model or --base would tell")
        )
    else:
        rows.append(("trainable", f"{total.trainable:,}"))
        rows.append(("frozen", f"{total.frozen:,}"))
        if total.unknown:
            rows.append(("unknown", f"{total.unknown:,}"))
    if subject.buffers:
        inferred = "" if subject.module is not None else "; inferred from BatchNorm's names"
        rows.append(("buffers", f"{total.buffers:,} elements, not counted above{inferred}"))
    if subject.tied:
        rows.append(("tied", "\n".join(f"{' = '.join(names)}, counted once" for names in subject.tied)))
    rows += [("note", note) for note in subject.trainability.notes]
    if checkpoint.training is not None:
        for optimizer in checkpoint.training.optimizers:
            for index, group in enumerate(optimizer.groups):
                options = [
                    f"{key} {number(group.options[key])}"
                    for key in ("lr", "weight_decay")
                    if isinstance(group.options.get(key), int | float)
                ]
                label = f"{optimizer.algorithm or 'optimizer'}, group {index}"
                rows.append(("optimizer", ", ".join([label, count(len(group.params), "parameter"), *options])))
    return rows


def _layers(rows: Sequence[Row], total: Row) -> Tree:
    known = total.unknown < total.parameters
    body = [
        (
            row.depth,
            (
                row.layer,
                row.class_name,
                row.shape,
                f"{row.parameters:,}" if row.tensors else "",
                f"{row.trainable:,}" if known and row.tensors else "",
                f"{row.frozen:,}" if known and row.tensors else "",
                f"{row.buffers:,}" if row.buffers else "",
                size(row.nbytes) if row.tensors else "",
                f"{100 * row.nbytes / total.nbytes:.1f} %" if total.nbytes and row.tensors else "",
                row.status,
            ),
        )
        for row in (*rows, total)
    ]
    columns = (
        "layer",
        "class",
        "shape",
        ">parameters",
        ">trainable",
        ">frozen",
        ">buffers",
        ">size",
        ">share",
        "status",
    )
    return Tree("Layers", columns, body)


def _evidence(parameters: Iterable[TensorInfo], verdicts: Mapping[str, Judgement]) -> Table:
    groups: dict[tuple[str, str, str, str], list[TensorInfo]] = {}
    for tensor in parameters:
        for evidence in verdicts[tensor.name].evidence:
            key = (evidence.verdict, evidence.source, evidence.confidence, evidence.reason)
            groups.setdefault(key, []).append(tensor)
    rows = []
    for (verdict, source, confidence, reason), tensors in groups.items():
        elements = sum(t.numel for t in distinct(tensors))
        rows.append((verdict, source, confidence, f"{len(tensors):,}", f"{elements:,}", _some(tensors), reason))
    return Table("How we know", ("verdict", "source", "confidence", ">tensors", ">elements", "which", "reason"), rows)


def _some(tensors: Sequence[TensorInfo]) -> str:
    names = [t.name for t in tensors[:2]]
    return ", ".join(names) + (", …" if len(tensors) > 2 else "")


def _shape(tensor: TensorInfo) -> str:
    return "×".join(map(str, tensor.shape)) if tensor.shape else "scalar"


def _text(value: object) -> str:
    value = plain(value)
    return number(value) if isinstance(value, bool | int | float | str | None) else type(value).__name__


# --- for machines


def _data(checkpoint: Checkpoint, subject: Subject, total: Row, shown: Sequence[Row]) -> dict[str, object]:
    trust = subject.trainability
    data = {
        "path": checkpoint.path,
        "state_dict": list(subject.state_dict.path),
        "class": subject.module.class_name if subject.module else None,
        "totals": {
            "parameters": total.parameters,
            "trainable": None if total.unknown == total.parameters and total.parameters else total.trainable,
            "frozen": None if total.unknown == total.parameters and total.parameters else total.frozen,
            "unknown": total.unknown,
            "buffers": total.buffers,
            "bytes": total.nbytes,
        },
        "tied": [list(names) for names in subject.tied],
        "rows": [
            {
                "layer": row.path or row.layer,
                "class": row.class_name,
                "shape": row.shape,
                "parameters": row.parameters,
                "trainable": row.trainable,
                "frozen": row.frozen,
                "unknown": row.unknown,
                "buffers": row.buffers,
                "bytes": row.nbytes,
                "status": row.status,
            }
            for row in shown
        ],
        "verdicts": [
            {
                "name": name,
                "verdict": judgement.verdict,
                "evidence": [
                    {"verdict": e.verdict, "source": e.source, "confidence": e.confidence, "reason": e.reason}
                    for e in judgement.evidence
                ],
                "contradictions": list(judgement.contradictions),
            }
            for name, judgement in trust.parameters.items()
        ],
        "mistakes": [
            {"where": m.where, "attribute": m.attribute, "value": _text(m.value), "what": m.what}
            for m in trust.mistakes
        ],
        "notes": list(trust.notes),
        "drifted_buffers": list(trust.drifted_buffers),
    }
    cleaned = plain_json(data)
    assert isinstance(cleaned, dict)
    return cleaned
