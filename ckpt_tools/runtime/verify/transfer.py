"""Transfer learning: the head, the backbone, and whether what was meant to be frozen was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ckpt_tools.analysis.diff import diff
from ckpt_tools.analysis.diff_layers import verdict
from ckpt_tools.analysis.overview import wrapper_prefix
from ckpt_tools.analysis.summary import pick
from ckpt_tools.analysis.trainability import Mistake, Trainability, judge, resembles_requires_grad, same_bytes
from ckpt_tools.audit.findings import Severity
from ckpt_tools.checkpoint import Checkpoint, StateDict, TensorInfo
from ckpt_tools.errors import CkptError
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.report import count, listed
from ckpt_tools.runtime.reload import requires_grad_of
from ckpt_tools.runtime.tensors import Tensors
from ckpt_tools.runtime.verify.names import renamed
from ckpt_tools.runtime.verify.subject import Head, Subject, head_of, matches
from ckpt_tools.verification.results import Check, Problem, worst_first

ENOUGH = 64
"""Values of a weight from which its distribution tells something."""

SAMPLE = 1 << 14
"""About how many of a weight's values are compared with a distribution."""


def transfer(subject: Subject) -> Check:
    """Whether head, backbone, flags and optimizer are what they should be, as far as file, class and base tell."""
    checkpoint, state_dict = subject.file()
    job = subject.job
    model = subject.model
    own = subject.renamed or state_dict
    if model is None and job.base is None and not job.frozen and not job.trainable:
        subject.built()
    base, before = _base(job.base) if job.base is not None else (None, None)
    flags = requires_grad_of(model) if model is not None else None
    # with a renamed state_dict, what a pickled module records goes by other names
    module = subject.module if own is state_dict else None
    # a pickled module records its flags; those that its class starts with say no more
    trust = judge(checkpoint, own, module, base=before, from_class=flags if module is None else None)
    head = head_of(own.tensors)
    problems = [*_mistakes(trust.mistakes, model)]
    problems += _expected(subject, trust, own)
    if base is not None and before is not None:
        problems += _drift(trust, job.frozen)
    if head is not None:
        problems += _untrained(head, own, before, trust)
    parts = [f"head `{head.name}` with {count(head.outputs, 'output')}" if head is not None else "no head found"]
    if base is not None:
        parts.append(f"against {job.base}: {verdict(diff(base, checkpoint))}")
    frozen = [name for name, judgement in trust.parameters.items() if judgement.verdict == "frozen"]
    if frozen:
        parts.append(f"{len(frozen):,} of {count(len(trust.parameters), 'parameter tensor')} frozen")
    facts = {
        "head": {"name": head.name, "outputs": head.outputs} if head is not None else None,
        "parameters": {
            name: {"verdict": judgement.verdict, "source": judgement.basis.source}
            for name, judgement in trust.parameters.items()
        },
    }
    return Check("transfer", "; ".join(parts), worst_first(problems), facts)


def _base(path: str) -> tuple[Checkpoint, StateDict]:
    """The base, and its weights without wrappers' prefixes."""
    base = open_checkpoint(path)
    state_dict, _ = pick(base, None)
    prefix = wrapper_prefix(state_dict.entries)
    return base, renamed(state_dict, {name: name.removeprefix(prefix) for name in state_dict.entries})


# --- attributes that were meant to freeze


def _mistakes(in_file: Sequence[Mistake], model: nn.Module | None) -> Iterator[Problem]:
    for places, mistakes in (("in the file", in_file), ("in the class", list(_in_class(model)))):
        for misspelt in (True, False):
            found = [m for m in mistakes if (m.attribute != "requires_grad") is misspelt]
            if not found:
                continue
            first = found[0]
            where = listed([mistake.where for mistake in found], 3)
            if misspelt:
                yield Problem(
                    "misspelt-freeze",
                    "error",
                    f"{first.attribute} = {first.value} {places} on {where} changes nothing: it {first.what}",
                    "Set requires_grad, or call requires_grad_(False)",
                )
            else:
                yield Problem(
                    "module-freeze",
                    "error",
                    f"requires_grad = {first.value} {places} on the module {where} changes nothing: its parameters "
                    "have flags of their own",
                    f"Call .requires_grad_({first.value}), with the underscore, which sets those of its parameters",
                )


def _in_class(model: nn.Module | None) -> Iterator[Mistake]:
    if model is None:
        return
    for name, parameter in model.named_parameters():
        for attribute, value in vars(parameter).items():
            if resembles_requires_grad(attribute):
                what = f"sets a new attribute and leaves requires_grad={parameter.requires_grad}"
                yield Mistake(name, attribute, value, what)
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute == "requires_grad":
                yield Mistake(name or "the model", attribute, value, "does nothing on a module")
            elif resembles_requires_grad(attribute):
                yield Mistake(name or "the model", attribute, value, "does nothing")


# --- what was expected

_SILENT = ", which freezes nothing; what the training script froze is not in the file"
_TELLING = (
    "--base FILE tells, by what training began from; so does a file with the optimizer in it, or a class that freezes"
)


def _expected(subject: Subject, trust: Trainability, own: StateDict) -> Iterator[Problem]:
    job = subject.job
    for globs, wanted, option in (
        (job.frozen, "frozen", "--expect-frozen"),
        (job.trainable, "trainable", "--expect-trainable"),
    ):
        for glob in globs:
            names = [name for name in trust.parameters if matches(name, [glob])]
            if not names:
                raise CkptError(f"no parameter's name matches {option} {glob}", path=job.path)
            other = "trainable" if wanted == "frozen" else "frozen"
            against: dict[tuple[str, Severity], list[str]] = {}
            unknown = []
            for name in names:
                evidence = [e for e in trust.parameters[name].evidence if e.verdict != "unknown"]
                # what the class starts with is no word on the training that froze it, where another source has one
                known = any(e.verdict == wanted and e.source != "class" for e in evidence)
                # a class that freezes nothing leaves that to the script that trains
                silent = all(e.source == "class" and e.confidence == "unclear" for e in evidence)
                if not evidence:
                    unknown.append(name)
                for said in evidence:
                    if said.verdict == other:
                        severity: Severity = "warning" if said.source == "class" and known else "error"
                        reason = f"{said.reason}{_SILENT if silent else ''}"
                        against.setdefault((reason, severity), []).append(name)
            for (reason, severity), concerned in against.items():
                verb = "is" if len(concerned) == 1 else "are"
                still = "are found so, but would not be if trained on" if severity == "warning" else f"{verb} not"
                yield Problem(
                    f"not-{wanted}",
                    severity,
                    f"{count(len(concerned), 'parameter')} that should be {wanted} ({glob}) {still}: "
                    f"{listed(concerned, 3)}: {reason}",
                    _TELLING if reason.endswith(_SILENT) else "",
                )
            if unknown:
                yield Problem(
                    "not-known",
                    "warning",
                    f"whether {listed(unknown, 3)} {'is' if len(unknown) == 1 else 'are'} {wanted} cannot be told from "
                    "the file or the class",
                    "--base FILE compares with what training began from",
                )


def _drift(trust: Trainability, frozen: Sequence[str]) -> Iterator[Problem]:
    moved = trust.drifted_buffers
    if moved:
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in moved))
        held = any(matches(name, frozen) for name in moved)
        yield Problem(
            "batchnorm-drift",
            "error" if held else "warning",
            f"{count(len(layers), 'layer')} whose parameters stayed as in the base "
            f"{'has' if len(layers) == 1 else 'have'} other statistics: {listed(layers, 3)}. "
            "BatchNorm was in training mode while it was frozen, so that "
            "the backbone computes something else than the base does",
            "Call .eval() on frozen BatchNorm layers after each model.train(), and train again",
        )


# --- a head that was never trained


def _untrained(head: Head, own: StateDict, before: StateDict | None, trust: Trainability) -> Iterator[Problem]:
    weight = head.weight
    bias = next((t for t in own.tensors if t.name == f"{head.name}.bias"), None)
    judgement = trust.parameters.get(weight.name)
    evidence = judgement.evidence if judgement is not None else ()
    outside = [e for e in evidence if e.source == "optimizer" and e.verdict == "frozen"]
    stepped = [e for e in evidence if e.source == "optimizer" and e.verdict == "trainable"]
    others = any(
        e.source == "optimizer" and e.verdict == "trainable"
        for name, j in trust.parameters.items()
        if name.rpartition(".")[0] != head.name
        for e in j.evidence
    )
    stale = [note for note in trust.notes if note.startswith("the optimizer was bound before")]
    if stale:
        yield Problem(
            "optimizer-bound-too-early",
            "error",
            f"{stale[0]}. The head `{head.name}` was put in later and never trained",
            "Make the optimizer after the head is in its place, and train again",
        )
    elif outside and others:
        yield Problem(
            "optimizer-without-head",
            "error",
            f"the optimizer trained other layers but not the head `{head.name}`: {outside[0].reason}",
            "Make the optimizer after the head is in its place, with the head's parameters, and train again",
        )
    if stepped:
        return
    same = _same_in(before, weight)
    if same:
        yield Problem(
            "head-untrained", "warning", f"the head `{head.name}` has the very bytes of the base: it was never trained"
        )
        return
    why = _initial(weight, bias)
    if why:
        yield Problem(
            "head-untrained",
            "warning",
            f"the head `{head.name}` looks as it was made: {why}. It was probably never trained, or lost and made anew",
            "See that the head was in the optimizer, and that it was this model that was saved",
        )


def _same_in(before: StateDict | None, weight: TensorInfo) -> bool:
    old: Mapping[str, TensorInfo] = {t.name: t for t in before.tensors} if before is not None else {}
    try:
        return weight.name in old and same_bytes(weight, old[weight.name])
    except CkptError:
        return False


def _initial(weight: TensorInfo, bias: TensorInfo | None) -> str:
    """Why the values are those that nn.Linear or nn.Conv2d begin with; "" where they are not."""
    try:
        made = Tensors()
        values = made.make(weight)
        offsets = made.make(bias) if bias is not None else None
    except CkptError:
        return ""
    if not values.dtype.is_floating_point or not values.numel():
        return ""
    if not bool(values.count_nonzero()):
        return "all its weights are 0"
    bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
    if values.numel() >= ENOUGH and _uniform(values, bound) and (offsets is None or _within(offsets, bound)):
        kind = "nn.Linear" if len(weight.shape) == 2 else "a convolution"
        return f"its weights are spread evenly within ±{bound:.3g}, as {kind} starts"
    if offsets is not None and offsets.numel() > 1 and not bool(offsets.count_nonzero()):
        return "its biases are exactly 0, which no training step would leave them"
    return ""


def _within(values: Tensor, bound: float) -> bool:
    return not values.numel() or (bool(values.abs().max() <= bound * (1 + 1e-6)) and bool(values.count_nonzero()))


def _uniform(values: Tensor, bound: float) -> bool:
    """Whether *values* are like draws from within ±*bound*: none outside, and Kolmogorov and Smirnov do not object."""
    flat = values.detach().reshape(-1)
    if not bool(flat.abs().max() <= bound * (1 + 1e-6)):  # false for NaN too
        return False
    flat = flat[:: max(1, len(flat) // SAMPLE)]
    drawn = flat.double().div(2 * bound).add(0.5).sort().values
    steps = torch.arange(1, len(drawn) + 1, dtype=torch.float64) / len(drawn)
    distance = float((drawn - steps).abs().max())
    # of a thousand samples that are uniform one is further off
    return distance < 1.95 / math.sqrt(len(drawn))
