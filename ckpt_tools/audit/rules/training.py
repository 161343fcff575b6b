"""T: whether what was meant to be trained was, and what was meant to be frozen is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence

from ckpt_tools.analysis.holding import state_shape
from ckpt_tools.analysis.name_hints import name_hints
from ckpt_tools.analysis.overview import wrapper_prefix
from ckpt_tools.analysis.summary import Subject as Model
from ckpt_tools.analysis.summary import pick, subject_of
from ckpt_tools.analysis.trainability import Mistake
from ckpt_tools.audit.findings import Finding
from ckpt_tools.audit.rule import Rule, has_module, rule
from ckpt_tools.audit.subject import Subject
from ckpt_tools.checkpoint import Optimizer, TensorInfo, TrainingState, format_path
from ckpt_tools.pickles.structure import value_at
from ckpt_tools.report import count, listed, number

ENOUGH = 64
"""Elements of a head from which on its distribution says something."""


def _recorded(model: Model) -> dict[str, bool]:
    """The flag of each parameter that the file records, in order."""
    return {t.name: t.requires_grad for t in model.parameters if t.is_parameter and t.requires_grad is not None}


_HEADS = ("fc", "head", "heads", "classifier", "lm_head", "logits")


def _head(parameters: Sequence[TensorInfo], *, by_name: bool = False) -> list[TensorInfo]:
    """The parameters of the last layer; where they stand *by_name*, of the one called like a head, if any."""
    layer = parameters[-1].name.rpartition(".")[0] if parameters else ""
    if by_name:
        layers = {tensor.name.rpartition(".")[0] for tensor in parameters}
        called = [one for one in layers if one.rpartition(".")[2] in _HEADS]
        layer = called[0] if len(called) == 1 else layer
    return [tensor for tensor in parameters if tensor.name.rpartition(".")[0] == layer]


# --- mistakes that leave a trace


def _has_mistakes(subject: Subject) -> bool:
    return subject.model is not None and bool(subject.model.trainability.mistakes)


def _mistakes(subject: Subject, *, on_modules: bool) -> Iterator[Finding]:
    """A finding for what was done alike, however many parameters it was done to: it was one line of a loop."""
    model = subject.model
    names = {tensor.name for tensor in model.parameters} if model is not None else set()
    alike: dict[tuple[str, bool], list[Mistake]] = {}
    for mistake in model.trainability.mistakes if model is not None else ():
        if (mistake.attribute == "requires_grad") is on_modules:
            what = f"{mistake.attribute} = {mistake.value} {mistake.what}"
            alike.setdefault((what, mistake.where in names), []).append(mistake)
    for (what, of_parameters), mistakes in alike.items():
        places = [mistake.where for mistake in mistakes]
        several = count(len(places), "parameter" if of_parameters else "module")
        yield subject.finding(
            f"{what} ({several}: {listed(places, 3)})" if len(places) > 1 else what,
            tensor=places[0] if of_parameters else "",
            member="" if of_parameters else places[0],
            evidence={"where": places[:100], "attribute": mistakes[0].attribute},
        )


@rule("T101", "misspelt-requires-grad", "error", when=_has_mistakes)
def misspelt_requires_grad(subject: Subject) -> Iterator[Finding]:
    """A parameter or module carries an attribute that is ``requires_grad`` misspelt.

    Why: Python takes any attribute. What was to be unfrozen stays frozen, or the other way round, and the training
    runs without a word.

    Example: ``p.requres_grad = True`` for the parameters of a new head.

    Remedy: write ``p.requires_grad_(True)``, a method, which fails where it is misspelt; and train again.
    """
    yield from _mistakes(subject, on_modules=False)


@rule("T102", "no-op-freeze", "error", when=_has_mistakes)
def no_op_freeze(subject: Subject) -> Iterator[Finding]:
    """A module carries ``requires_grad`` as an attribute of its own.

    Why: a module has no such flag; setting it changes no parameter.

    Example: ``model.features.requires_grad = False``, after which all of it trains.

    Remedy: write ``model.features.requires_grad_(False)``, with the underscore.
    """
    yield from _mistakes(subject, on_modules=True)


# --- what is frozen


@rule("T201", "everything-frozen", "warning")
def everything_frozen(subject: Subject) -> Iterator[Finding]:
    """The file records every parameter of the model as frozen.

    Why: nothing of it can have been trained in the state in which it was saved; training it further changes
    nothing either. A model frozen on purpose before it ships deserves a waiver.

    Example: all parameters frozen, and then the head unfrozen by a misspelt attribute.

    Remedy: unfreeze what is meant to be trained, and look whether it ever was.
    """
    model = subject.model
    flags = _recorded(model) if model is not None else {}
    if flags and not any(flags.values()):
        yield subject.finding(f"all {count(len(flags), 'parameter')} are frozen", evidence={"parameters": len(flags)})


@rule("T202", "frozen-head", "warning")
def frozen_head(subject: Subject) -> Iterator[Finding]:
    """The last layer is recorded as frozen while layers before it are trainable.

    Why: fine-tuning trains the head first; the other way round is seldom meant.

    Example: ``for p in list(model.parameters())[-2:]: p.requires_grad = False`` with the wrong end of the list.

    Remedy: unfreeze the head, freeze what was meant.
    """
    model = subject.model
    flags = _recorded(model) if model is not None else {}
    head = [tensor.name for tensor in _head(model.parameters)] if model is not None and flags else []
    if head and any(flags.values()) and not any(flags.get(name, True) for name in head):
        trainable = sum(flags.values())
        yield subject.finding(
            f"{listed(head)} {'are' if len(head) > 1 else 'is'} frozen, {count(trainable, 'parameter')} elsewhere not",
            tensor=head[0],
            evidence={"head": head, "trainable": trainable},
        )


@rule("T203", "batchnorm-in-train-mode", "warning", when=has_module)
def batchnorm_in_train_mode(subject: Subject) -> Iterator[Finding]:
    """BatchNorm layers whose parameters are frozen were saved in train mode.

    Why: ``requires_grad`` does not stop a BatchNorm from moving its running statistics; only ``eval()`` does. The
    frozen backbone no longer computes what it did, and other heads trained on it go wrong.

    Example: ``for p in backbone.parameters(): p.requires_grad = False``, and then ``model.train()``.

    Remedy: put the frozen part into ``eval()`` after each ``model.train()``, or use ``FrozenBatchNorm2d``.
    """
    module = subject.module
    if module is None:
        return
    found = []
    for path, part in module.walk():
        flags = [p.requires_grad for p in part.parameters.values() if p is not None]
        moves = part.buffers.get("running_var") is not None and part.attributes.get("track_running_stats", True)
        if moves and part.training and flags and not any(flags):
            found.append(path or "the model")
    if found:
        layers = count(len(found), "BatchNorm layer")
        yield subject.finding(
            f"{layers} with frozen parameters in train mode: {listed(found, 3)}", evidence={"modules": found[:100]}
        )


def _bare(names: Iterable[str]) -> set[str]:
    """*names* without the prefix of wrappers."""
    every = list(names)
    prefix = wrapper_prefix(every)
    return {name.removeprefix(prefix) for name in every}


@rule("T204", "drifted-buffers", "warning", needs="bytes")
def drifted_buffers(subject: Subject) -> Iterator[Finding]:
    """Against the base (``--base``), buffers moved in layers whose parameters did not, or nothing could be compared.

    Why: these layers were meant to stay as they were. Their parameters did, their statistics did not, and their
    output is another.

    Example: a frozen ResNet fine-tuned in train mode: 53 BatchNorm layers drift.

    Remedy: restore the base's buffers (they are in the base), and train the head again in ``eval()`` mode.
    """
    if subject.base is None or subject.checkpoint is None or subject.model is None:
        return
    if not _bare(tensor.name for tensor in subject.model.parameters) & _bare(pick(subject.base, None)[0].entries):
        yield subject.finding(
            "nothing was compared: the base has none of its parameters",
            remedy="Name the base that the model began with",
        )
        return
    drifted = subject_of(subject.checkpoint, base=subject.base).trainability.drifted_buffers
    if drifted:
        yield subject.finding(
            f"{count(len(drifted), 'buffer')} moved where no parameter did: {listed(drifted, 3)}",
            tensor=drifted[0],
            evidence={"buffers": list(drifted[:100])},
        )


# --- what was trained


@rule("T301", "head-not-stepped", "warning")
def head_not_stepped(subject: Subject) -> Iterator[Finding]:
    """The optimizer in the file has stepped parameters, but none of the last layer.

    Why: the head is where a transfer-learned model learns. If its parameters were not in the optimizer, it is
    still what it was initialised to.

    Example: the optimizer was made first, and ``model.fc = nn.Linear(512, 2)`` put in afterwards: the optimizer
    went on with the old head's parameters.

    Remedy: make the optimizer after the model is complete, and train again.
    """
    model = subject.model
    if model is None:
        return
    judged = model.trainability.parameters
    head = [tensor.name for tensor in _head(model.parameters)]
    reasons = [e.reason for name in head for e in judged[name].evidence if (e.source, e.verdict) == _NOT_STEPPED]
    if len(reasons) < len(head):
        return
    stepped = [name for name, found in judged.items() if any((e.source, e.verdict) == _STEPPED for e in found.evidence)]
    if stepped:
        others = f"{count(len(stepped), 'other parameter')} {'were' if len(stepped) > 1 else 'was'} stepped"
        yield subject.finding(
            f"{listed(head)}: {reasons[0]}; {others}",
            tensor=head[0],
            evidence={"head": head, "stepped": len(stepped)},
        )


_STEPPED, _NOT_STEPPED = ("optimizer", "trainable"), ("optimizer", "frozen")


@rule("T302", "head-as-initialised", "warning", needs="values")
def head_as_initialised(subject: Subject) -> Iterator[Finding]:
    """The weights of the last layer are distributed as torch initialises a linear layer.

    Why: ``nn.Linear`` begins with values spread evenly between ±1/√fan-in. A step of training carries some of them
    over that bound. A head that keeps to it, and fills it, has hardly been trained, if at all: an inference, not a
    proof.

    Example: a new head whose parameters were frozen, or not in the optimizer.

    Remedy: check that the head was in the optimizer and that the loss went down.
    """
    model = subject.model
    by_name = subject.checkpoint is not None and subject.checkpoint.format in ("safetensors", "sharded")  # its writer
    head = _head(model.parameters, by_name=by_name) if model is not None else []
    weight = next((t for t in head if len(t.shape) == 2 and t.numel >= ENOUGH and t.dtype.kind == "float"), None)
    if weight is None:
        return
    found = subject.numbers_of(weight)
    bound = 1 / math.sqrt(weight.shape[1])
    if found is not None and found.minimum is not None and found.maximum is not None and found.std:
        peak = max(-found.minimum, found.maximum)
        if 0.9 * bound < peak <= bound * (1 + 1e-3) and abs(found.std * math.sqrt(3) / bound - 1) < 0.1:
            yield subject.finding(
                f"its {found.count:,} values fill ±{number(bound)} evenly, as nn.Linear({weight.shape[1]}, "
                f"{weight.shape[0]}) is initialised",
                tensor=weight.name,
                evidence={"bound": bound, "largest": float(peak), "std": found.std},
            )


@rule("T303", "foreign-optimizer", "error")
def foreign_optimizer(subject: Subject) -> Iterator[Finding]:
    """The optimizer's state is not that of the model in the same file.

    Why: it holds more parameters than the model has, or state of shapes that none of them has. Resuming from it
    fails, or steps the wrong parameters.

    Example: the head was replaced after the optimizer was made; the state of another model's optimizer was saved.

    Remedy: make a new optimizer over the model's parameters; its state for the old ones is worth nothing.
    """
    model = subject.model
    run = subject.checkpoint.training if subject.checkpoint is not None else None
    if model is None or run is None or len(run.optimizers) != 1:
        return
    optimizer = run.optimizers[0]
    problems = list(_mismatches(optimizer, model.parameters))
    if problems:
        yield subject.finding(
            "; ".join(problems), evidence={"path": format_path(optimizer.path), "parameters": len(model.parameters)}
        )


def _mismatches(optimizer: Optimizer, parameters: Sequence[TensorInfo]) -> Iterator[str]:
    held = sum(len(group.params) for group in optimizer.groups)
    if held > len(parameters):
        yield f"it holds {count(held, 'parameter')}, the model has {len(parameters)}"
    left: dict[tuple[int, ...], int] = {}
    for tensor in parameters:
        left[tensor.shape] = left.get(tensor.shape, 0) + 1
    foreign = []
    for index, state in optimizer.state.items():
        shape = state_shape(state)
        if shape is None:
            continue
        if not left.get(shape):
            foreign.append(f"{index} ({'×'.join(map(str, shape))})")
        else:
            left[shape] -= 1
    if foreign:
        yield f"state of shapes that no parameter has, or not as often: {listed(foreign, 4)}"


# --- how it was saved


def _has_masks(subject: Subject) -> bool:
    return "_mask\n" in subject.listing


@rule("T401", "train-mode", "note", when=has_module)
def train_mode(subject: Subject) -> Iterator[Finding]:
    """The pickled model was saved in train mode.

    Why: whoever loads it and predicts gets dropout, and statistics of the batch in place of the running ones,
    until somebody calls ``eval()``.

    Example: ``torch.save(model, …)`` within the training loop.

    Remedy: call ``model.eval()`` after loading; better, ship the state_dict.
    """
    module = subject.module
    if module is not None and module.training:
        modules = sum(bool(part.training) for _, part in module.walk())
        yield subject.finding(f"{count(modules, 'module')} in train mode", evidence={"modules": modules})


@rule("T402", "unbaked-pruning", "warning", when=_has_masks)
def unbaked_pruning(subject: Subject) -> Iterator[Finding]:
    """Weights are stored as ``weight_orig`` and ``weight_mask``.

    Why: only a model that ``torch.nn.utils.prune`` has been applied to in the same way has these keys; a plain one
    finds its ``weight`` missing. And the file is twice as large, not smaller.

    Example: ``prune.l1_unstructured`` without ``prune.remove`` before the model is saved.

    Remedy: call ``prune.remove(module, "weight")``, or ``ckpt convert --bake``.
    """
    for state_dict in subject.state_dicts:
        names = state_dict.entries
        found = [name for name in names if name.endswith("_orig") and f"{name.removesuffix('orig')}mask" in names]
        if found:
            yield subject.finding(
                f"{count(len(found), 'tensor')} with a mask: {listed(found, 3)}",
                tensor=found[0],
                evidence={"tensors": found[:100]},
            )


def _counts_steps(subject: Subject, run: TrainingState) -> bool:
    """Whether name and file both count what they call steps: iterations and updates may be several to a step."""
    key = str(run.step.path[-1]) if run.step is not None and run.step.path else ""
    return "step" in os.path.basename(subject.path).lower() and "step" in key.lower()


@rule("T403", "progress-disagrees", "warning")
def progress_disagrees(subject: Subject) -> Iterator[Finding]:
    """The epoch or the step in the file, its optimizer, its scheduler and its name disagree.

    Why: one of them is wrong, and a run resumed from the file repeats epochs or skips them, at the wrong learning
    rate.

    Example: ``checkpoint_epoch=12.pt`` that holds epoch 3; a scheduler that was never stepped; an Adam without any
    state after ten epochs.

    Remedy: find out which is right before anything resumes from it.
    """
    checkpoint = subject.checkpoint
    run = checkpoint.training if checkpoint is not None else None
    if checkpoint is None or run is None:
        return
    epoch = run.epoch.value if run.epoch is not None and type(run.epoch.value) is int else None
    for hint in name_hints(subject.path):
        label = hint.label.rpartition("_")[2]
        found = run.epoch if label == "epoch" else run.step if label == "step" and _counts_steps(subject, run) else None
        if found is None or hint.guess or type(found.value) is not int or type(hint.value) is not int:
            continue
        if abs(hint.value - found.value) > 1:
            yield subject.finding(
                f"the name says {label} {hint.value}, the file {found.value}",
                evidence={"name": hint.value, label: found.value},
            )
    if epoch is None:
        return
    for optimizer in run.optimizers:
        options = [group.options for group in optimizer.groups if group.params]
        keeps_state = any("betas" in one or one.get("momentum") for one in options)
        if epoch > 0 and keeps_state and not optimizer.state:
            where = format_path(optimizer.path) or "the optimizer"
            yield subject.finding(
                f"{where} holds no state, as one that was never stepped; the epoch is {epoch}",
                evidence={"optimizer": where, "epoch": epoch},
            )
    for path in run.schedulers:
        last = value_at(checkpoint.values, (*path, "last_epoch"))
        # one that is stepped with every batch counts far more
        if isinstance(last, int) and not isinstance(last, bool) and last + 1 < epoch:
            where = format_path(path)
            yield subject.finding(
                f"{where} was stepped {count(max(last, 0), 'time')}, the epoch is {epoch}",
                evidence={"scheduler": where, "last_epoch": last, "epoch": epoch},
            )


RULES: tuple[Rule, ...] = (
    misspelt_requires_grad,
    no_op_freeze,
    everything_frozen,
    frozen_head,
    batchnorm_in_train_mode,
    drifted_buffers,
    head_not_stepped,
    head_as_initialised,
    foreign_optimizer,
    train_mode,
    unbaked_pruning,
    progress_disagrees,
)
