"""What is this file: the one-screen answer of ``ckpt inspect``."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping

from ckpt_tools.analysis.counting import Tally, distinct, looks_like_buffer, tally, tied
from ckpt_tools.analysis.name_hints import NameHint, name_hints
from ckpt_tools.analysis.tree import Node, fitting_depth, fold, grow, rows_at
from ckpt_tools.checkpoint import (
    Checkpoint,
    Found,
    Module,
    Optimizer,
    StateDict,
    TensorInfo,
    TrainingState,
    format_path,
)
from ckpt_tools.contents import scalar
from ckpt_tools.errors import CkptError
from ckpt_tools.pickles.values import Blob, Call, Global, PersistentId, plain
from ckpt_tools.report import Block, Facts, Report, Table, Tree, count, number, plain_json, shortened, size
from ckpt_tools.sources import Folder

SCREEN_ROWS = 24
"""Rows of the tree that fit on a screen with what stands above it."""

_KINDS = {
    "state_dict": "state_dict",
    "state_dicts": "several state_dicts",
    "model": "full model (pickled nn.Module)",
    "program": "program (graph or code, with its weights)",
    "training": "training checkpoint",
    "optimizer": "optimizer state_dict",
    "tensor": "single tensor",
    "tensors": "collection of tensors",
    "archive": "archive of checkpoints",
    "object": "pickled object without tensors",
}

# who puts each prefix before the names of a state_dict
WRAPPERS = {
    "module": "DataParallel, DistributedDataParallel or AveragedModel",
    "_orig_mod": "torch.compile",
    "model": "a Lightning module or another class that holds the model as .model",
    "_forward_module": "Lightning Fabric",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
}


def overview(
    checkpoint: Checkpoint,
    *,
    all_tensors: bool = False,
    keys: str | None = None,
    depth: int | None = None,
    screen: int = SCREEN_ROWS,
) -> Report:
    """The report of ``ckpt inspect``.

    *all_tensors* lists every tensor, *keys* only those whose name matches the glob; *depth* is how many
    levels of layers the tree shows, by default as many as fit on a *screen* of so many rows.
    """
    sections = _sections(checkpoint)
    hints = name_hints(checkpoint.path)
    blocks: list[Block] = [_what(checkpoint, sections), _bytes_table(checkpoint, sections)]
    run = _run_facts(checkpoint.training, hints)
    if run:
        blocks.append(Facts("Training state", run))
    for section in sections:
        blocks += _tree(checkpoint, section, depth, max(screen // min(len(sections), 3), 6), 4 * screen)
    blocks += _other_values(checkpoint, sections)
    blocks += _refused(checkpoint)
    if checkpoint.anomalies:
        rows = [(a.what, a.where) for a in checkpoint.anomalies]
        blocks.append(Table("Oddities that loaders pass over in silence", ("what", "where"), rows))
    listed = list(_listed(checkpoint, sections, keys)) if all_tensors or keys else []
    if keys and not listed:
        blocks.append(Facts(f"Tensors that match {keys} (0)", [("none", "a glob is held against the whole name")]))
    elif all_tensors or keys:
        blocks.append(_listing(listed, keys))

    def collect() -> dict[str, object]:
        data = _data(checkpoint, sections, hints)
        if all_tensors or keys:
            data["tensors"] = [_tensor_data(path, tensor) for path, tensor in listed]
        return data

    return Report(checkpoint.path, collect, tuple(blocks), _verdict(checkpoint, sections))


# --- the parts of a file


def _sections(checkpoint: Checkpoint) -> list[StateDict]:
    """The state_dicts of the file, the module's own first."""
    found = list(checkpoint.state_dicts)
    if checkpoint.module is not None:
        own = checkpoint.module.state_dict()
        found.insert(0, StateDict(checkpoint.module_path, "model", own.entries, own.metadata))
    return found


def _label(checkpoint: Checkpoint, section: StateDict) -> str:
    return format_path(section.path) or ("model" if checkpoint.module is not None else "state_dict")


def _all_tensors(checkpoint: Checkpoint, sections: Iterable[StateDict]) -> list[TensorInfo]:
    found = [tensor for section in sections for tensor in section.tensors]
    if checkpoint.module is not None:
        found += _non_persistent(checkpoint.module)
    return found + [tensor for _, tensor in checkpoint.loose]


def _non_persistent(module: Module) -> list[TensorInfo]:
    return [
        buffer.renamed(f"{path}.{name}" if path else name)
        for path, part in module.walk()
        for name, buffer in part.buffers.items()
        if buffer is not None and name in part.non_persistent
    ]


def _parameters(checkpoint: Checkpoint) -> tuple[int, int, int] | None:
    """Of a pickled module: elements of its distinct parameters, of those that require grad, of its buffers."""
    if checkpoint.module is None:
        return None
    parameters: list[TensorInfo] = []
    buffers: list[TensorInfo] = []
    for _, part in checkpoint.module.walk():
        parameters += [p for p in part.parameters.values() if p is not None]
        buffers += [b for b in part.buffers.values() if b is not None]
    unique = distinct(parameters)
    return (
        sum(p.numel for p in unique),
        sum(p.numel for p in unique if p.requires_grad),
        sum(b.numel for b in distinct(buffers)),
    )


# --- the blocks


def _verdict(checkpoint: Checkpoint, sections: list[StateDict]) -> str:
    text = _KINDS.get(checkpoint.kind, checkpoint.kind)
    if checkpoint.module is not None:
        text += f", {checkpoint.module.class_name}"
    models = [section for section in sections if section.role == "model"]
    if models:
        elements = tally(t for section in models for t in section.tensors).elements
        text += f", {count(sum(len(s.tensors) for s in models), 'tensor')}, {count(elements, 'element')}"
    return text


def _what(checkpoint: Checkpoint, sections: list[StateDict]) -> Facts:
    rows = [("what", _KINDS.get(checkpoint.kind, checkpoint.kind))]
    rows.append(("format", f"{checkpoint.title}, {size(checkpoint.size)}"))
    if checkpoint.module is not None:
        rows.append(("class", checkpoint.module.class_name))
        training = checkpoint.module.training
        if training is not None:
            rows.append(("mode", "training" if training else "eval"))
    rows += list(checkpoint.producer.items())
    noted = {k: _read_scalar(v) if isinstance(v, TensorInfo) else v for k, v in checkpoint.metadata.items()}
    rows += [(key, _short(value)) for key, value in noted.items() if _short(value)][:12]
    counted = _parameters(checkpoint)
    if counted:
        total, trainable, buffers = counted
        rows.append(("parameters", f"{total:,}, of them {trainable:,} trainable (requires_grad, recorded)"))
        rows.append(("buffers", f"{buffers:,}"))
    else:
        rows += _bare_counts(sections)
    groups = tied(tensor for section in sections if section.role == "model" for tensor in section.tensors)
    if groups:
        rows.append(("tied", "\n".join(" = ".join(names) for names in groups)))
    kinds = _dtypes(_all_tensors(checkpoint, sections))
    if kinds:
        listed = [f"{name} ({count(n, 'tensor')})" for name, (n, _) in kinds.items()]
        more = f", and {len(listed) - 8} more" if len(listed) > 8 else ""
        rows.append(("dtypes", ", ".join(listed[:8]) + more))
    devices = sorted({t.device for t in _all_tensors(checkpoint, sections)})
    if devices and devices != ["cpu"]:
        rows.append(("devices", ", ".join(devices)))
    rows.append(("weights_only", _weights_only(checkpoint)))
    rows += _loading(checkpoint, sections)
    return Facts("", rows)


def _loading(checkpoint: Checkpoint, sections: list[StateDict]) -> list[tuple[str, str]]:
    """What trips people who load it: the key under which the weights stand, the prefix of every name."""
    rows: list[tuple[str, str]] = []
    models = [section for section in sections if section.role == "model" and section.tensors]
    # torch.load takes a file that is one pickle's, no folder and no archive of checkpoints
    one_file = bool(checkpoint.pickles) and not checkpoint.parts and not isinstance(checkpoint.source, Folder)
    loadable = one_file and checkpoint.module is None and checkpoint.kind != "program"
    if loadable and len(models) == 1 and models[0].path:
        keys = "".join(f"[{key!r}]" for key in models[0].path)
        rows.append(("to load", f"the weights are not at the root: model.load_state_dict(torch.load(…){keys})"))
    for section in models:
        prefix = wrapper_prefix(section.entries)
        if prefix:
            who = "; ".join(dict.fromkeys(WRAPPERS[part] for part in prefix.rstrip(".").split(".")))
            rows.append(("prefix", f"every name begins with {prefix} ({who})"))
        elif some := some_prefix(section.entries):
            rows.append(("prefix", some))
    return rows


def wrapper_prefix(names: Iterable[str]) -> str:
    """The wrappers' prefix that every name carries, stacked ones together; "" where there is none."""
    prefix = ""
    listed = list(names)
    while listed:
        first = listed[0].partition(".")[0]
        if first not in WRAPPERS or not all(name.startswith(f"{first}.") for name in listed):
            break
        prefix += f"{first}."
        listed = [name[len(first) + 1 :] for name in listed]
    return prefix


def some_prefix(names: Iterable[str]) -> str:
    """How many names begin with a wrapper's prefix, where some do and others do not; "" where none does or all do.

    ``model.`` does not count: many a class has other parts beside its ``.model``.
    """
    listed = list(names)
    firsts = Counter(name.partition(".")[0] for name in listed if "." in name)
    for wrapper, who in WRAPPERS.items():
        if wrapper != "model" and 0 < (times := firsts[wrapper]) < len(listed):
            others = next(name for name in listed if not name.startswith(f"{wrapper}."))
            return f"{times:,} of {len(listed):,} names begin with {wrapper}. ({who}), {shortened(others)} does not"
    return ""


def _bare_counts(sections: list[StateDict]) -> list[tuple[str, str]]:
    tensors = [tensor for section in sections if section.role == "model" for tensor in section.tensors]
    if not tensors:
        return []
    unique = distinct(tensors)
    flagged = [t for t in unique if t.is_parameter]
    if flagged:
        total = sum(t.numel for t in flagged)
        trainable = sum(t.numel for t in flagged if t.requires_grad)
        return [("parameters", f"{total:,}, of them {trainable:,} trainable (requires_grad, recorded)")]
    buffers = sum(t.numel for t in unique if looks_like_buffer(t.name))
    total = sum(t.numel for t in unique) - buffers
    text = f"{total:,}; trainable or frozen: unknown, a state_dict does not record it"
    rows = [("parameters", text)]
    if buffers:
        rows.append(("buffers", f"{buffers:,} (inferred from BatchNorm's names)"))
    return rows


def _weights_only(checkpoint: Checkpoint) -> str:
    if checkpoint.refusals is None:
        return "does not apply: torch.load does not read this format"
    if not checkpoint.refusals:
        return "yes: torch.load(weights_only=True) takes it"
    return f"no: torch.load(weights_only=True) refuses it ({count(len(checkpoint.refusals), 'reason')} below)"


def _part_tallies(checkpoint: Checkpoint, sections: list[StateDict]) -> list[tuple[str, Tally]]:
    parts: list[tuple[str, Tally]] = []
    for title, role in (
        ("weights", "model"),
        ("EMA weights", "ema"),
        ("optimizer", "optimizer"),
        ("other", "other"),
    ):
        tensors = [t for section in sections if section.role == role for t in section.tensors]
        if role == "model" and checkpoint.module is not None:
            tensors += _non_persistent(checkpoint.module)
        if role == "other":
            tensors += [t for _, t in checkpoint.loose]
        if tensors:
            parts.append((title, tally(tensors)))
    return parts


def _bytes_table(checkpoint: Checkpoint, sections: list[StateDict]) -> Table:
    parts = _part_tallies(checkpoint, sections)
    rows = [
        (
            title,
            f"{part.tensors:,}",
            f"{part.elements:,}",
            size(part.nbytes),
            _share(part.nbytes, checkpoint.size),
        )
        for title, part in parts
    ]
    whole = tally(_all_tensors(checkpoint, sections))
    if whole.slack:
        rows.append(("slack", "", "", size(whole.slack), _share(whole.slack, checkpoint.size)))
    rest = checkpoint.size - whole.nbytes - whole.slack
    if rest > 0:
        rows.append(("structure", "", "", size(rest), _share(rest, checkpoint.size)))
    note = "slack: bytes of storages that no tensor here uses" if whole.slack else ""
    return Table("Bytes", ("part", ">tensors", ">elements", ">size", ">share"), rows, note)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _run_facts(run: TrainingState | None, hints: Iterable[NameHint]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if run is not None:
        for label, found in (("epoch", run.epoch), ("step", run.step), ("loss", run.loss), ("lr", run.lr)):
            if found is not None:
                rows.append((label, f"{_value(found.value)}   (at {format_path(found.path)})"))
        for key, found in run.metrics.items():
            if run.loss is None or found.path != run.loss.path:
                rows.append((key, f"{_value(found.value)}   (at {format_path(found.path)})"))
        for optimizer in run.optimizers:
            rows.append(("optimizer", _optimizer_text(optimizer)))
        rows += [("scheduler", f"at {format_path(path)}") for path in run.schedulers]
        rows += [("random state", f"at {format_path(path)}") for path in run.rng]
        if run.arguments is not None:
            rows.append(("arguments", f"{_arguments(run.arguments)}   (at {format_path(run.arguments.path)})"))
    for hint in hints:
        source = "a guess from the numbers in the file's name" if hint.guess else "from the file's name"
        rows.append((hint.label, f"{number(hint.value)}   ({source})"))
    return rows


def _optimizer_text(optimizer: Optimizer) -> str:
    params = sum(len(group.params) for group in optimizer.groups)
    text = f"{optimizer.algorithm or 'unknown algorithm'}, {count(params, 'parameter')}"
    text += f" in {count(len(optimizer.groups), 'group')}, {len(optimizer.state):,} with state"
    rates = [number(g.options["lr"]) for g in optimizer.groups if isinstance(g.options.get("lr"), int | float)]
    if rates:
        text += f", lr {', '.join(rates[:8])}{', …' if len(rates) > 8 else ''}"
    return f"{text}   (at {format_path(optimizer.path) or 'the root'})"


def _arguments(found: Found) -> str:
    value = found.value
    entries = value.attributes if type(value) is Call else value
    if isinstance(entries, dict):
        shown = [f"{key}={_short(plain(item))}" for key, item in entries.items() if _short(plain(item))]
        text = ", ".join(shown[:8])
        return text + (f", … ({len(shown)} in all)" if len(shown) > 8 else "")
    return _short(value)


def _tree(checkpoint: Checkpoint, section: StateDict, depth: int | None, fitting: int, most: int) -> list[Block]:
    if section.role == "optimizer" or not section.tensors:
        return []
    classes: Mapping[str, str] = {}
    if checkpoint.module is not None and section.path == checkpoint.module_path:
        classes = {path: part.class_name.rpartition(".")[2] for path, part in checkpoint.module.walk()}
    root = fold(grow(section.tensors, classes))
    shown = fitting_depth(root, fitting) if depth is None else max(depth, 1)
    rows: list[tuple[int, tuple[str, ...]]] = []
    for name, tensor in root.tensors.items():
        rows.append((0, (name, "", "1", f"{tensor.numel:,}", size(tensor.nbytes), _shape(tensor))))
    nodes = rows_at(root, shown)
    # a file of thousands of unlike names: the biggest are what a screen can show, and the rest is counted
    hidden = 0
    if depth is None and len(rows) + len(nodes) > most:
        hidden = len(rows) + len(nodes) - most
        rows, nodes = rows[:most], nodes[: max(most - len(rows), 0)]
    for level, node in nodes:
        rows.append((level - 1, _row(node)))
    note = f"{hidden:,} more rows: ckpt inspect --tensors lists every tensor" if hidden else ""
    title = f"{_label(checkpoint, section)} ({section.role}, {count(len(section.tensors), 'tensor')})"
    columns: tuple[str, ...] = ("layer", "class", ">tensors", ">elements", ">size", "shape")
    if not any(row[1] for _, row in rows):
        columns = ("layer", ">tensors", ">elements", ">size", "shape")
        rows = [(depth, (row[0], *row[2:])) for depth, row in rows]
    return [Tree(title, columns, rows, note)]


def _row(node: Node) -> tuple[str, ...]:
    tensors = list(node.all_tensors())
    # folded nodes below count each of their repeats
    elements = nbytes = names = 0
    pending = [(node, 1)]
    while pending:
        current, times = pending.pop()
        times *= current.repeats
        for tensor in current.tensors.values():
            names += times
            elements += times * tensor.numel
            nbytes += times * tensor.nbytes
        pending += [(child, times) for child in current.children.values()]
    shape = ""
    if len(tensors) <= 2 and not node.children:
        shape = ", ".join(f"{name} {_shape(tensor)}" for name, tensor in node.tensors.items())
    return (
        node.name,
        node.class_name,
        f"{names:,}",
        f"{elements:,}",
        size(nbytes),
        shape,
    )


def _shape(tensor: TensorInfo) -> str:
    return "×".join(map(str, tensor.shape)) if tensor.shape else "scalar"


def _other_values(checkpoint: Checkpoint, sections: list[StateDict]) -> list[Block]:
    """What else stands at the root, by class where it is an object."""
    root = plain(checkpoint.values)
    if type(root) is Call:
        return [Facts("Object", [("class", root.class_name or "unknown"), ("attributes", str(len(root.attributes)))])]
    if not isinstance(root, dict):
        return []
    told = {section.path[:1] for section in sections} | {checkpoint.module_path[:1]}
    if checkpoint.training is not None:
        run = checkpoint.training
        told |= {f.path[:1] for f in (run.epoch, run.step, run.loss, run.arguments) if f is not None}
        told |= {f.path for f in run.metrics.values()} | {p[:1] for p in (*run.schedulers, *run.rng)}
    rows: list[tuple[str, str]] = []
    for key, raw in root.items():
        value = plain(raw)
        if (key,) in told or isinstance(value, TensorInfo | Module):
            continue
        rows.append((str(key), _short(value) or _described(value)))
    return [Table("Other entries", ("key", "value"), rows)] if rows else []


def _refused(checkpoint: Checkpoint) -> list[Block]:
    if not checkpoint.refusals:
        return []
    rows = [(r.subject, format_path(r.path) or "the root", r.reason) for r in checkpoint.refusals]
    allow = safe_globals(checkpoint)
    note = ""
    if allow:
        note = f"With these classes imported: torch.serialization.add_safe_globals([{', '.join(allow)}])"
    return [Table("Why weights_only refuses it", ("what", "first used at", "reason"), rows, note)]


def safe_globals(checkpoint: Checkpoint) -> list[str]:
    """The shortest list for ``add_safe_globals`` that makes torch take the file; [] where none does."""
    refused = checkpoint.refusals or ()
    if not all(r.is_global and r.reason == "not among the allowed globals" for r in refused):
        return []
    return [r.subject.removeprefix("builtins.") for r in refused]


def _listed(
    checkpoint: Checkpoint, sections: Iterable[StateDict], keys: str | None
) -> Iterable[tuple[str, TensorInfo]]:
    for section in sections:
        for tensor in section.tensors:
            if keys is None or fnmatch.fnmatchcase(tensor.name, keys):
                yield format_path(section.path), tensor
    for path, tensor in checkpoint.loose:
        name = format_path(path)
        if keys is None or fnmatch.fnmatchcase(name, keys):
            yield "", tensor.renamed(name)


def _listing(listed: list[tuple[str, TensorInfo]], keys: str | None) -> Table:
    rows = [
        (
            f"{path}: {tensor.name}" if path else tensor.name,
            tensor.dtype.name,
            _shape(tensor),
            f"{tensor.numel:,}",
            size(tensor.nbytes),
            _remarks(tensor),
        )
        for path, tensor in listed
    ]
    title = f"Tensors that match {keys}" if keys else "Tensors"
    return Table(f"{title} ({len(rows):,})", ("name", "dtype", "shape", ">elements", ">size", "remarks"), rows)


def _remarks(tensor: TensorInfo) -> str:
    remarks: list[str] = []
    if tensor.is_parameter:
        remarks.append("trainable" if tensor.requires_grad else "frozen")
    if tensor.layout != "strided":
        remarks.append(tensor.layout)
    elif not tensor.contiguous:
        remarks.append(f"stride {'×'.join(map(str, tensor.stride))}")
    if tensor.subclass:
        remarks.append(tensor.subclass)
    if tensor.device != "cpu":
        remarks.append(tensor.device)
    remarks += [f"{key} {_short(plain(value))}" for key, value in tensor.details.items() if value is not False]
    remarks += [f"attribute {key}={_short(plain(value))}" for key, value in tensor.attributes.items()]
    if tensor.storage is not None and tensor.storage.missing:
        remarks.append(tensor.storage.missing)
    return ", ".join(remarks)


# --- values as text


def _value(value: object) -> str:
    if isinstance(value, TensorInfo):
        return number(_read_scalar(value))
    return number(value)


def _read_scalar(tensor: TensorInfo) -> object:
    try:
        return scalar(tensor)
    except CkptError:
        return None


def _short(value: object) -> str:
    """A plain value on one line; "" where there is none that short."""
    if isinstance(value, str):
        line = " ".join(value.split())
        return line if len(line) <= 60 else line[:59] + "…"
    if isinstance(value, bool | int | float | None):
        return number(value)
    if isinstance(value, list | tuple) and 0 < len(value) <= 6:
        parts = [_short(item) for item in value if not isinstance(item, list | tuple)]
        return f"[{', '.join(parts)}]" if len(parts) == len(value) and all(parts) else ""
    return ""


def _described(value: object) -> str:
    if isinstance(value, dict):
        return f"mapping of {count(len(value), 'entry', 'entries')}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"{type(value).__name__} of {count(len(value), 'item')}"
    if type(value) is Call:
        return f"object of class {value.class_name or 'unknown'}"
    if type(value) is Global:
        return f"reference to {value.path}"
    if type(value) is Blob:
        return f"{'text' if value.text else 'bytes'} of {size(value.size)}"
    if type(value) is PersistentId:
        return "persistent id"
    if isinstance(value, str | bytes):
        return f"{type(value).__name__} of {size(len(value))}"
    return type(value).__name__


def _dtypes(tensors: Iterable[TensorInfo]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for tensor in tensors:
        number_of, nbytes = found.get(tensor.dtype.name, (0, 0))
        found[tensor.dtype.name] = (number_of + 1, nbytes + tensor.nbytes)
    return dict(sorted(found.items(), key=lambda item: -item[1][1]))


# --- the same for machines


def _data(checkpoint: Checkpoint, sections: list[StateDict], hints: Iterable[NameHint]) -> dict[str, object]:
    """The JSON of one file; docs/schema/inspect.schema.json describes it."""
    whole = tally(_all_tensors(checkpoint, sections))
    counted = _parameters(checkpoint)
    model = [t for s in sections if s.role == "model" for t in s.tensors]
    data: dict[str, object] = {
        "path": checkpoint.path,
        "bytes": checkpoint.size,
        "format": {"name": checkpoint.format, "title": checkpoint.title},
        "kind": checkpoint.kind,
        "class": checkpoint.module.class_name if checkpoint.module else None,
        "producer": dict(checkpoint.producer),
        "metadata": {key: _json_value(value) for key, value in checkpoint.metadata.items()},
        "parameters": {
            "elements": counted[0] if counted else sum(t.numel for t in distinct(model)),
            "trainable": counted[1] if counted else None,
            "buffer_elements": counted[2] if counted else None,
            "evidence": "recorded" if counted else "unknown",
        },
        "tied": tied(model),
        "state_dicts": [
            {
                "path": list(section.path),
                "role": section.role,
                "tensors": len(section.tensors),
                "elements": part.elements,
                "bytes": part.nbytes,
            }
            for section in sections
            for part in (tally(section.tensors),)
        ],
        "bytes_by_part": {
            **{title: part.nbytes for title, part in _part_tallies(checkpoint, sections)},
            "slack": whole.slack,
            "structure": max(checkpoint.size - whole.nbytes - whole.slack, 0),
        },
        "dtypes": {
            name: {"tensors": n, "bytes": nbytes}
            for name, (n, nbytes) in _dtypes(_all_tensors(checkpoint, sections)).items()
        },
        "devices": sorted({t.device for t in _all_tensors(checkpoint, sections)}),
        "training": _run_data(checkpoint.training),
        "file_name": [{"label": h.label, "value": h.value, "guess": h.guess} for h in hints],
        "weights_only": None
        if checkpoint.refusals is None
        else {
            "accepted": not checkpoint.refusals,
            "refused": [{"what": r.subject, "reason": r.reason, "path": list(r.path)} for r in checkpoint.refusals],
            "add_safe_globals": safe_globals(checkpoint),
        },
        "globals": [
            {"name": str(use), "opcode": use.opcode, "offset": use.offset, "uses": sorted(use.uses)}
            for use in checkpoint.globals
        ],
        "anomalies": [{"what": a.what, "where": a.where} for a in checkpoint.anomalies],
    }
    cleaned = plain_json(data)
    assert isinstance(cleaned, dict)
    return cleaned


def _run_data(run: TrainingState | None) -> dict[str, object] | None:
    if run is None:
        return None

    def found(value: Found | None) -> dict[str, object] | None:
        return None if value is None else {"value": _json_value(value.value), "path": list(value.path)}

    return {
        "epoch": found(run.epoch),
        "step": found(run.step),
        "loss": found(run.loss),
        "lr": found(run.lr),
        "metrics": {key: found(value) for key, value in run.metrics.items()},
        "optimizers": [
            {
                "path": list(o.path),
                "algorithm": o.algorithm,
                "groups": [
                    {
                        "parameters": len(g.params),
                        "options": {k: _json_value(v) for k, v in g.options.items()},
                    }
                    for g in o.groups
                ],
                "with_state": len(o.state),
            }
            for o in run.optimizers
        ],
        "schedulers": [list(path) for path in run.schedulers],
        "random_state": [list(path) for path in run.rng],
    }


def _json_value(value: object) -> object:
    if isinstance(value, TensorInfo):
        return _read_scalar(value)
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, list | tuple) and all(isinstance(v, bool | int | float | str | None) for v in value):
        return list(value)
    return _described(value)


def _tensor_data(path: str, tensor: TensorInfo) -> dict[str, object]:
    data: dict[str, object] = {
        "state_dict": path,
        "name": tensor.name,
        "dtype": tensor.dtype.name,
        "shape": list(tensor.shape),
        "stride": list(tensor.stride),
        "storage_offset": tensor.storage_offset,
        "storage": tensor.storage.key if tensor.storage else None,
        "device": tensor.device,
        "layout": tensor.layout,
        "subclass": tensor.subclass,
        "is_parameter": tensor.is_parameter,
        "requires_grad": tensor.requires_grad if tensor.is_parameter else None,
        "bytes": tensor.nbytes,
        "details": {key: _json_value(plain(value)) for key, value in tensor.details.items()},
        "attributes": {key: _json_value(plain(value)) for key, value in tensor.attributes.items()},
    }
    cleaned = plain_json(data)
    assert isinstance(cleaned, dict)
    return cleaned
