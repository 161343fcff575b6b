"""Whether training can go on: the optimizer's state against the class's parameters, the scheduler against the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ckpt_tools.analysis.holding import Over, Shape, fitting, held_indexes, holding, state_shapes, usual
from ckpt_tools.checkpoint import Checkpoint, KeyPath, Optimizer, TensorInfo, format_path
from ckpt_tools.pickles.values import plain
from ckpt_tools.report import count, listed
from ckpt_tools.runtime.replica import empty_like
from ckpt_tools.runtime.verify.subject import Head, Subject, head_of, shape
from ckpt_tools.verification.results import Check, Problem, worst_first


def resume(subject: Subject) -> Check:
    """Whether each optimizer of the file fits the class's parameters, and scheduler and epoch agree."""
    checkpoint, _ = subject.file()
    run = checkpoint.training
    if run is None or not (run.optimizers or run.schedulers):
        return Check("resume", "the file holds no optimizer", skipped=True)
    model = subject.built()
    problems: list[Problem] = []
    told: list[str] = []
    facts: list[dict[str, object]] = []
    alone = len(run.optimizers) == 1
    for optimizer in run.optimizers:
        where = format_path(optimizer.path)
        over, found = _fit(optimizer, model, subject, alone)
        problems += found
        held = sum(len(group.params) for group in optimizer.groups)
        words = f"{where or 'the optimizer'}: {optimizer.algorithm or 'an optimizer'} over {count(held, 'parameter')}"
        told.append(f"{words}, {over.what}" if over is not None else words)
        facts.append({"path": where, "parameters": held, "over": list(over.names) if over is not None else None})
    problems += _schedulers(checkpoint)
    if run.epoch is not None:
        told.append(f"epoch {run.epoch.value}")
    return Check("resume", "; ".join(told) or "no optimizer", worst_first(problems), {"optimizers": facts})


# --- which parameters


def _fit(optimizer: Optimizer, model: nn.Module, subject: Subject, alone: bool) -> tuple[Over | None, list[Problem]]:
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items() if not _lazy(parameter)}
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    held, wanted = held_indexes(optimizer), state_shapes(optimizer)
    fits = usual(optimizer, shapes, flags)
    if not fits:
        window = None if alone else next(_windows(wanted, shapes), None)
        if window is not None:
            return window, [*_accepted(optimizer, window, parameters)]
        found = holding(optimizer, shapes, flags)
        names = [name for name in found.names if name is not None]
        if found.stale or not found.fits or len(held) > len(shapes):
            return None, [_misfit(optimizer, held, wanted, shapes, subject)]
        if len(names) < len(held):
            return None, [_in_doubt(held, names, parameters)]
        fits = [Over(f"told by their shapes in {count(len(optimizer.groups), 'group')}", "shapes", names)]
    over = fits[0]
    other = _other(fits, wanted, shapes)
    problems = [*_accepted(optimizer, over, parameters)]
    if other is not None:
        problems.append(_either(over, other))
    if len(held) == len(parameters) and over.code not in ("all", "names"):
        message = f"its parameters come in another order than the model's: {over.what} ({listed(over.names, 3)})"
        problems.append(Problem("optimizer-order", "note", message, "Make it over the same groups, in the same order"))
    elif alone and over.code not in ("all", "names"):
        problems.append(
            Problem(
                "optimizer-filtered",
                "note" if over.code == "flags" else "warning",
                f"the optimizer holds {len(held):,} of {count(len(parameters), 'parameter')}: {over.what} "
                f"({listed(over.names, 3)}); one over all of model.parameters() would refuse its state",
                f"Make it over the same again: {_code(over)}",
            )
        )
    return over, problems


def _lazy(parameter: nn.Parameter) -> bool:
    return bool(nn.parameter.is_lazy(parameter))


def _in_doubt(held: Sequence[object], names: Sequence[str], parameters: Mapping[str, object]) -> Problem:
    told = f"; sure are only {listed(names, 3)}" if names else ""
    return Problem(
        "optimizer-ambiguous",
        "warning",
        f"the optimizer holds {len(held):,} of {count(len(parameters), 'parameter')}, and which number is whose cannot "
        f"be told from its groups and the shapes of its state{told}: load_state_dict accepts any parameters of these "
        "numbers, and gives state to the wrong ones",
        "Make it over the parameters, and in the order, that it had; over named_parameters() its state records names",
    )


def _code(over: Over) -> str:
    if over.code == "flags":
        return "[p for p in model.parameters() if p.requires_grad]"
    layer = over.names[0].rpartition(".")[0]
    if over.code in ("head", "outer") and all(name.startswith(layer.partition(".")[0]) for name in over.names):
        return f"model.{layer if over.code == 'head' else layer.partition('.')[0]}.parameters()"
    return f"{over.what}: {listed(over.names, 4)}"


def _other(fits: Sequence[Over], wanted: Sequence[Shape | None], shapes: Mapping[str, Shape]) -> Over | None:
    """Another choice of parameters that fits as well, where the first is a guess and there is state to lose."""
    first = fits[0]
    if first.code in ("all", "names", "flags", "shapes") or not any(wanted):
        return None
    found = [*fits[1:], *_windows(wanted, shapes)]
    return next((over for over in found if list(over.names) != list(first.names)), None)


def _windows(wanted: Sequence[Shape | None], shapes: Mapping[str, Shape]) -> Iterator[Over]:
    """Neighbouring parameters of these shapes, as several optimizers of one model have."""
    names = list(shapes)
    if None in wanted:
        return
    for start in range(len(names) - len(wanted) + 1):
        if fitting(names[start : start + len(wanted)], wanted, shapes):
            yield Over(f"those from {names[start]} on", "window", names[start : start + len(wanted)])


def _either(first: Over, other: Over) -> Problem:
    return Problem(
        "optimizer-ambiguous",
        "warning",
        f"numbers and shapes fit {first.what} ({listed(first.names, 2)}) as well as {other.what} "
        f"({listed(other.names, 2)}): load_state_dict would accept either, and give state to the wrong parameters",
        "Make the optimizer over named_parameters(), so that its state records names",
    )


# --- what torch says


def _accepted(optimizer: Optimizer, over: Over, parameters: Mapping[str, nn.Parameter]) -> Iterator[Problem]:
    """Have an optimizer of torch load the state: on the meta device, so that nothing is read."""
    made = {name: empty_like(parameters[name]) for name in over.names}
    groups = []
    at = 0
    numbers: dict[int | str, int] = {}
    saved = []
    for group in optimizer.groups:
        names = over.names[at : at + len(group.params)]
        groups.append({"params": [made[name] for name in names]})
        for offset, index in enumerate(group.params):
            numbers[index] = at + offset
        options = {str(key): _value(value) for key, value in group.options.items()}
        saved.append({**options, "params": list(range(at, at + len(names)))})
        at += len(names)
    state = {
        numbers[index]: {str(key): _value(value) for key, value in entries.items()}
        for index, entries in optimizer.state.items()
        if index in numbers
    }
    stray = [str(index) for index in optimizer.state if index not in numbers]
    if stray:
        yield Problem(
            "optimizer-stray-state", "error", f"the optimizer has state for {listed(stray, 3)}, in no group of it"
        )
    kind = getattr(torch.optim, optimizer.algorithm or "", None)
    kind = kind if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) else torch.optim.SGD
    if not all(groups) or not groups:
        return
    try:
        target = kind(groups, lr=0.1) if kind is not torch.optim.Adadelta else kind(groups)
        target.load_state_dict({"state": state, "param_groups": saved})
    except Exception as error:
        message = " ".join(str(error).split())
        yield Problem("optimizer-refused", "error", f"torch.optim.{kind.__name__} refuses the state: {message}")


def _value(value: object) -> object:
    value = plain(value)
    if isinstance(value, TensorInfo):
        dtype = getattr(torch, value.dtype.name, torch.float32)
        return torch.empty(value.shape, dtype=dtype, device="meta")
    return value


def _misfit(
    optimizer: Optimizer,
    held: Sequence[object],
    wanted: Sequence[Shape | None],
    shapes: Mapping[str, Shape],
    subject: Subject,
) -> Problem:
    """What stands against every way to make the optimizer over this class."""
    _, state_dict = subject.file()
    head = head_of((subject.renamed or state_dict).tensors)
    if len(held) != len(shapes):
        groups = " and ".join(str(len(group.params)) for group in optimizer.groups)
        return Problem(
            "optimizer-misfit",
            "error",
            f"the optimizer holds {groups} {'parameter' if held == [0] else 'parameters'}, the class has "
            f"{len(shapes):,}, and no usual choice of them has these shapes: load_state_dict would refuse it, "
            "for a parameter group of another size",
            _hint(head, wanted, shapes),
        )
    names = list(shapes)
    wrong = [
        f"{name} is {shape(shapes[name])}, its state {shape(size)}"
        for name, size in zip(names, wanted, strict=True)
        if size is not None and shapes[name] != size
    ]
    return Problem(
        "optimizer-misfit",
        "error",
        f"{count(len(wrong), 'parameter')} would get state of another shape: {listed(wrong, 3)}. load_state_dict "
        "accepts that, and the first step fails or trains the wrong thing",
        _hint(head, wanted, shapes),
    )


def _hint(head: Head | None, wanted: Sequence[Shape | None], shapes: Mapping[str, Shape]) -> str:
    names = list(shapes)
    agree = 0
    while agree < min(len(names), len(wanted)) and wanted[agree] in (None, shapes[names[agree]]):
        agree += 1
    if head is not None and agree < len(names) and names[agree].startswith(head.name.partition(".")[0]):
        return f"All before {names[agree]} agree: the optimizer was probably made before the head was replaced"
    return "Make the optimizer over the parameters, and in the order, that it had when the file was saved"


# --- scheduler and epoch


def _schedulers(checkpoint: Checkpoint) -> Iterator[Problem]:
    run = checkpoint.training
    if run is None:
        return
    groups = [group for optimizer in run.optimizers for group in optimizer.groups]
    for path in run.schedulers:
        state = _at(checkpoint.values, path)
        if not isinstance(state, Mapping):
            continue
        where = format_path(path)
        last = plain(state.get("last_epoch"))
        counts = {"epoch": run.epoch, "step": run.step}
        known = {name: found.value for name, found in counts.items() if found is not None and type(found.value) is int}
        if type(last) is int and known and not any(last - 1 <= int(v) <= last + 1 for v in known.values()):
            told = " and ".join(f"{name} {value}" for name, value in known.items())
            yield Problem(
                "scheduler-epoch",
                "warning",
                f"the scheduler {where} has made {count(last, 'step')}, the file says {told}: after resuming, the "
                "learning rate would be that of another epoch",
                "Save them in the same place of the loop",
            )
        rates = plain(state.get("base_lrs"))
        if isinstance(rates, list) and groups and len(rates) != len(groups):
            yield Problem(
                "scheduler-groups",
                "error",
                f"the scheduler {where} is for {count(len(rates), 'parameter group')}, the optimizer has "
                f"{len(groups):,}",
            )


def _at(root: object, path: KeyPath) -> object:
    value: Any = plain(root)
    for key in path:
        try:
            value = plain(value[key])
        except (KeyError, IndexError, TypeError):
            return None
    return value
