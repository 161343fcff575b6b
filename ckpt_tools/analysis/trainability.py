"""Frozen or trainable, with the evidence: what the file records, what follows, and what nobody can know.

Every parameter gets the evidence of each source that has any, and one verdict: that of the strongest source.
Sources that disagree are reported as contradictions; none of them is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from ckpt_tools.analysis.counting import looks_like_buffer, tied
from ckpt_tools.analysis.holding import Index, Place, held_indexes, holding, state_shapes
from ckpt_tools.checkpoint import Checkpoint, Module, Optimizer, StateDict, TensorInfo
from ckpt_tools.contents import chunks
from ckpt_tools.errors import UnsupportedFeature
from ckpt_tools.records import comparable
from ckpt_tools.report import number

Verdict = Literal["trainable", "frozen", "unknown"]
EvidenceSource = Literal["recorded", "class", "base", "optimizer", "none"]
Confidence = Literal["certain", "likely", "unclear"]

# the strongest first: a flag is what autograd obeys; the rest is what happened
_STRENGTH: tuple[EvidenceSource, ...] = ("recorded", "class", "base", "optimizer", "none")


@comparable
class Evidence:
    """One source's word on one parameter, and why."""

    verdict: Verdict
    source: EvidenceSource
    confidence: Confidence
    reason: str


NO_EVIDENCE = Evidence("unknown", "none", "certain", "the file does not record it")


@comparable
class Judgement:
    """The *verdict* on a parameter, the *evidence* for it strongest first, and the *contradictions* in that."""

    verdict: Verdict
    evidence: tuple[Evidence, ...]
    contradictions: tuple[str, ...]

    @property
    def basis(self) -> Evidence:
        """The evidence that decided."""
        return self.evidence[0]


@comparable
class Mistake:
    """A stray attribute that was probably meant to freeze or unfreeze: *where* it is, *what* it does."""

    where: str
    attribute: str
    value: object
    what: str


@comparable
class Trainability:
    """The judgement on each parameter by name, and what holds for the file as a whole."""

    parameters: Mapping[str, Judgement]
    mistakes: tuple[Mistake, ...] = ()
    notes: tuple[str, ...] = ()
    drifted_buffers: tuple[str, ...] = ()


def judge(
    checkpoint: Checkpoint,
    state_dict: StateDict,
    module: Module | None,
    *,
    base: StateDict | None = None,
    from_class: Mapping[str, bool] | None = None,
) -> Trainability:
    """Judge every parameter of *state_dict* (which is *module*'s own, where there is one).

    *base* is an older state_dict to compare bytes with, *from_class* the ``requires_grad`` flags of a model
    built from its class. Names are compared as they are; strip wrappers' prefixes before.
    """
    parameters = parameters_of(state_dict, module)
    notes: list[str] = []
    by_name: dict[str, list[Evidence]] = {tensor.name: [] for tensor in parameters}
    for tensor in parameters:
        if tensor.is_parameter and tensor.requires_grad is not None:
            verdict: Verdict = "trainable" if tensor.requires_grad else "frozen"
            by_name[tensor.name].append(
                Evidence(verdict, "recorded", "certain", f"requires_grad={tensor.requires_grad} in the file")
            )
        if from_class is not None and tensor.name in from_class:
            verdict = "trainable" if from_class[tensor.name] else "frozen"
            # a class that freezes nothing leaves it to the script that trains
            sure: Confidence = "unclear" if all(from_class.values()) else "likely"
            by_name[tensor.name].append(
                Evidence(verdict, "class", sure, f"requires_grad={from_class[tensor.name]} as the class builds it")
            )
    drifted: tuple[str, ...] = ()
    if base is not None:
        drifted = _compare(parameters, state_dict, base, by_name)
    run = checkpoint.training
    if run is not None and len(run.optimizers) == 1:
        notes += _from_optimizer(parameters, run.optimizers[0], from_class, by_name)
    elif run is not None and len(run.optimizers) > 1:
        notes.append(f"the file holds {len(run.optimizers)} optimizers; which one trains this model is not recorded")
    judgements = {name: _weigh(evidence) for name, evidence in by_name.items()}
    return Trainability(judgements, tuple(_mistakes(parameters, module)), tuple(notes), drifted)


def parameters_of(state_dict: StateDict, module: Module | None) -> list[TensorInfo]:
    """The parameters among the tensors: recorded where a module or Parameters are pickled, else by name."""
    if module is not None:
        return [
            parameter.renamed(f"{path}.{name}" if path else name)
            for path, part in module.walk()
            for name, parameter in part.parameters.items()
            if parameter is not None
        ]
    tensors = state_dict.tensors
    if any(tensor.is_parameter for tensor in tensors):
        return [tensor for tensor in tensors if tensor.is_parameter]
    return [tensor for tensor in tensors if not looks_like_buffer(tensor.name)]


def _weigh(evidence: list[Evidence]) -> Judgement:
    if len(evidence) == 1:
        return Judgement(evidence[0].verdict, (evidence[0],), ())
    ordered = sorted(evidence, key=lambda e: (_by_default(e), _STRENGTH.index(e.source))) or [NO_EVIDENCE]
    decided = next((e for e in ordered if e.verdict != "unknown"), ordered[0])
    ordered = [decided, *(e for e in ordered if e is not decided)]
    contradictions = tuple(
        f"{decided.reason}, but {other.reason}"
        for other in ordered[1:]
        if other.verdict != "unknown" and other.verdict != decided.verdict and not _by_default(other)
    )
    return Judgement(decided.verdict, tuple(ordered), contradictions)


def _by_default(evidence: Evidence) -> bool:
    """Whether it is but what a class does that says nothing about freezing."""
    return evidence.source == "class" and evidence.confidence == "unclear"


# --- compared with a base


def _compare(
    parameters: Sequence[TensorInfo], state_dict: StateDict, base: StateDict, by_name: Mapping[str, list[Evidence]]
) -> tuple[str, ...]:
    """Add the evidence of equal and changed bytes; returns the buffers that moved where no parameter did."""
    known = {tensor.name: tensor for tensor in base.tensors}
    changed_layers: set[str] = set()
    for tensor in parameters:
        other = known.get(tensor.name)
        layer = tensor.name.rpartition(".")[0]
        if other is None:
            evidence = Evidence("trainable", "base", "unclear", "the base has no such parameter: it is new")
            changed_layers.add(layer)
        elif other.shape != tensor.shape:
            shapes = f"{_shape(other)} in the base, {_shape(tensor)} here"
            evidence = Evidence("trainable", "base", "unclear", f"it was replaced ({shapes})")
            changed_layers.add(layer)
        else:
            evidence = _by_bytes(tensor, other)
            if evidence.verdict == "trainable":
                changed_layers.add(layer)
        by_name[tensor.name].append(evidence)
    drifted = []
    for tensor in state_dict.tensors:
        other = known.get(tensor.name)
        if tensor.name in by_name or other is None or other.shape != tensor.shape:
            continue
        layer = tensor.name.rpartition(".")[0]
        if layer not in changed_layers and _by_bytes(tensor, other).verdict == "trainable":
            drifted.append(tensor.name)
    return tuple(drifted)


def _by_bytes(tensor: TensorInfo, other: TensorInfo) -> Evidence:
    try:
        same = same_bytes(tensor, other)
    except UnsupportedFeature as error:
        return Evidence("unknown", "base", "unclear", f"it cannot be compared with the base: {error.problem}")
    if same:
        return Evidence("frozen", "base", "likely", "its bytes are those of the base")
    return Evidence("trainable", "base", "certain", "its bytes differ from the base")


def same_bytes(a: TensorInfo, b: TensorInfo) -> bool:
    """Whether two tensors have one dtype and shape and the same bits.

    Raises `UnsupportedFeature` where one of them has no bytes of its own to compare (meta, sparse).
    """
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if (
        a.storage is not None
        and a.storage is b.storage
        and (a.storage_offset, a.stride) == (b.storage_offset, b.stride)
    ):
        return True
    left, right = chunks(a), chunks(b)
    rest_left = rest_right = b""
    while True:
        rest_left = rest_left or next(left, b"")
        rest_right = rest_right or next(right, b"")
        count = min(len(rest_left), len(rest_right))
        if count == 0:
            return not rest_left and not rest_right
        if rest_left[:count] != rest_right[:count]:
            return False
        rest_left, rest_right = rest_left[count:], rest_right[count:]


# --- what the optimizer holds


def _from_optimizer(
    parameters: Sequence[TensorInfo],
    optimizer: Optimizer,
    from_class: Mapping[str, bool] | None,
    by_name: Mapping[str, list[Evidence]],
) -> list[str]:
    """Add what the optimizer's groups and state say; returns remarks on how sure the mapping is."""
    tied_to = {other: first for first, *others in tied(parameters) for other in others}
    recorded = {t.name: t.requires_grad for t in parameters if t.is_parameter and t.requires_grad is not None}
    flags = {**(from_class or {}), **recorded}
    shapes = {tensor.name: tensor.shape for tensor in parameters if tensor.name not in tied_to}
    if from_class and all(name in by_name for name in from_class):
        # the class knows what is a parameter, and in which order
        shapes = {name: shapes[name] for name in from_class if name in shapes}
    found = holding(optimizer, shapes, flags or None)
    if not found.names:
        return []
    rates: dict[Index, float | None] = {}
    for group in optimizer.groups:
        rate = group.options.get("lr")
        rates.update(dict.fromkeys(group.params, rate if isinstance(rate, int | float) else None))
    stateful = any(optimizer.state.values())
    of_all = set(rates.values())
    told: dict[object, Evidence] = {}  # many parameters have the same
    for tensor in parameters:
        place = found.places.get(tied_to.get(tensor.name, tensor.name))
        if place is not None:
            known = len(of_all) == 1 or place.index is not None
            rate = (rates[place.index] if place.index is not None else next(iter(of_all))) if known else None
            key = place.held, place.stepped, rate
            if key not in told:
                suffix = f" (lr {number(rate)})" if rate is not None else ""
                told[key] = _of_place(place, suffix, stateful, found.recorded)
            by_name[tensor.name].append(told[key])
    notes = [found.how]
    if found.stale:
        sizes = dict(zip(held_indexes(optimizer), state_shapes(optimizer), strict=True))
        older = [f"{index} {_text(sizes[index])}" for index in found.stale[:6]]
        notes[0] += f" its parameters {', '.join(older)}{', …' if found.stale[6:] else ''} are of no layer there is now"
    elif found.fits and found.in_doubt:
        notes.append(f"for {found.in_doubt} parameters order and shapes leave doubt")
    return notes


def _of_place(place: Place, suffix: str, stateful: bool, recorded: bool) -> Evidence:
    confidence: Confidence = "certain" if recorded else "likely"
    if place.held is None:
        reason = "whether the optimizer holds it cannot be told from order and shapes"
        return Evidence("unknown", "optimizer", "unclear", reason)
    if not place.held:
        return Evidence("frozen", "optimizer", confidence, "it is not in the optimizer")
    if place.stepped:
        return Evidence("trainable", "optimizer", confidence, f"the optimizer stepped it{suffix}")
    if place.stepped is None:
        reason = f"it is in the optimizer{suffix}; whether it was stepped cannot be told from order and shapes"
        return Evidence("unknown", "optimizer", "unclear", reason)
    if stateful:
        reason = f"it is in the optimizer{suffix} without state: frozen, or it never received a gradient"
        return Evidence("frozen", "optimizer", "unclear", reason)
    reason = f"it is in the optimizer{suffix}, which keeps no state (plain SGD, or no step was made)"
    return Evidence("unknown", "optimizer", "unclear", reason)


# --- attributes that were meant to freeze


def _mistakes(parameters: Iterable[TensorInfo], module: Module | None) -> Iterable[Mistake]:
    for tensor in parameters:
        for name, value in tensor.attributes.items():
            if resembles_requires_grad(name):
                what = f"sets a new attribute and leaves requires_grad={tensor.requires_grad}; meant: requires_grad = "
                yield Mistake(tensor.name, name, value, what + str(value))
    if module is not None:
        for path, part in module.walk():
            for name, value in part.attributes.items():
                if name == "requires_grad":
                    what = "does nothing on a module; meant: .requires_grad_("
                    yield Mistake(path or "the model", name, value, f"{what}{value})")
                elif resembles_requires_grad(name):
                    what = f"does nothing; meant: .requires_grad_({value})"
                    yield Mistake(path or "the model", name, value, what)


def resembles_requires_grad(name: str) -> bool:
    """Whether an attribute's name is ``requires_grad`` misspelt: a few letters missing, doubled or swapped."""
    wanted = "requires_grad"
    if name in (wanted, "_requires_grad") or not 8 <= len(name) <= 20:
        return False
    return _edits(name.lower(), wanted) <= 3 or _edits(name.lower().replace("_", ""), "requiresgrad") <= 2


def _edits(a: str, b: str) -> int:
    """The Levenshtein distance of two short words."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def _shape(tensor: TensorInfo) -> str:
    return _text(tensor.shape)


def _text(shape: tuple[int, ...] | None) -> str:
    return "×".join(map(str, shape)) if shape else "scalar"
