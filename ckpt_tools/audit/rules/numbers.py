"""N: whether the values of the tensors can be right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ckpt_tools.analysis.counting import looks_like_buffer
from ckpt_tools.audit.findings import Finding
from ckpt_tools.audit.rule import Rule, rule
from ckpt_tools.audit.subject import Subject
from ckpt_tools.checkpoint import StateDict, TensorInfo, format_path
from ckpt_tools.report import count, listed, number

if TYPE_CHECKING:
    from ckpt_tools.analysis.statistics import Statistics

FLOOD = 0.1
"""The share of subnormal values above which they are no accident of single small weights."""

HALF_RANGE = 65504 / 2
"""Half of the greatest float16: one addition of two such values overflows."""

LONE = 0.9
"""The share of a tensor's norm that no single element of a layer's weights has by itself."""

ENOUGH = 64
"""Elements, and peers of a tensor, from which on a distribution says something."""

MANY = 10
"""Tensors that each get a finding of their own for the same defect."""

FAR = 1e4
"""How many times the typical deviation of its peers is out of keeping."""


def _measured(subject: Subject, *, others: bool = False) -> Iterator[tuple[StateDict, TensorInfo, Statistics]]:
    """The tensors that have numbers, each with its state_dict.

    An optimizer's state, and what stands in no state_dict, come only with *others*: they are no weights. Nor are single
    numbers that a run keeps, such as its best loss, which begins at infinity.
    """
    found = iter(subject.statistics)
    for state_dict in (*subject.state_dicts, subject.loose):
        weights = state_dict.role != "optimizer" and state_dict is not subject.loose
        for _ in state_dict.tensors:
            tensor, numbers = next(found)
            is_metric = state_dict.role == "other" and tensor.numel == 1
            if numbers is not None and not is_metric and (others or weights):
                yield state_dict, tensor, numbers


def _further(subject: Subject, found: list[tuple[StateDict, TensorInfo, Statistics]], what: str) -> Iterator[Finding]:
    """One finding for those beyond the first `MANY`: a run that diverged spoils every tensor."""
    names = [tensor.name for _, tensor, _ in found[MANY:]]
    if names:
        told = f"{count(len(names), 'further tensor')} {what}: {listed(names, 3)}"
        yield subject.finding(told, evidence={"tensors": names[:100]})


def _in(subject: Subject, state_dict: StateDict) -> str:
    """Where the tensor's state_dict stands, where there are several."""
    path = format_path(state_dict.path)
    return f" (in {path})" if path and len(subject.state_dicts) > 1 else ""


def _is_float(tensor: TensorInfo) -> bool:
    return tensor.dtype.kind in ("float", "complex")


@rule("N101", "nan-values", "error", needs="values")
def nan_values(subject: Subject) -> Iterator[Finding]:
    """A tensor holds NaN.

    Why: one NaN in a weight makes every output NaN that depends on it. In the state of an optimizer it comes into
    the weights with the next step.

    Example: a run whose loss diverged, and that went on saving.

    Remedy: go back to a checkpoint from before the loss became NaN.
    """
    found = [one for one in _measured(subject, others=True) if one[2].nan]
    for state_dict, tensor, numbers in found[:MANY]:
        yield subject.finding(
            f"{numbers.nan:,} of {count(numbers.count, 'value')} are NaN{_in(subject, state_dict)}",
            tensor=tensor.name,
            evidence={"nan": numbers.nan, "values": numbers.count},
        )
    yield from _further(subject, found, "hold NaN")


@rule("N102", "infinite-values", "error", needs="values")
def infinite_values(subject: Subject) -> Iterator[Finding]:
    """A tensor holds infinities.

    Why: infinity times zero, and infinity less infinity, are NaN. Most come from a cast to float16 of values
    beyond 65504.

    Example: ``model.half()`` on weights that do not fit. The ``-inf`` of a tensor whose name ends in ``mask`` is meant.

    Remedy: convert again from the wider type, to bfloat16 if the range is needed.
    """
    found = [
        (state_dict, tensor, numbers)
        for state_dict, tensor, numbers in _measured(subject, others=True)
        if numbers.infinite and (numbers.positive_infinity or not tensor.name.endswith("mask"))
    ]
    for state_dict, tensor, numbers in found[:MANY]:
        yield subject.finding(
            f"{numbers.infinite:,} of {count(numbers.count, 'value')} are infinite{_in(subject, state_dict)}",
            tensor=tensor.name,
            evidence={
                "positive_infinity": numbers.positive_infinity,
                "negative_infinity": numbers.negative_infinity,
                "values": numbers.count,
            },
        )
    yield from _further(subject, found, "hold infinities")


@rule("N103", "constant-weight", "warning", needs="values")
def constant_weight(subject: Subject) -> Iterator[Finding]:
    """All values of a weight matrix are the same, mostly zero.

    Why: a layer whose weights are equal computes one number over and over; it was never initialised, never loaded,
    or was overwritten. Some layers begin at zero on purpose, such as an adapter's second matrix: then it never
    trained.

    Example: ``torch.empty`` in place of a layer's initialisation; a shard that failed to load and stayed zero.

    Remedy: find out which step left the layer without weights, and save again.
    """
    recorded = {id(found) for found in subject.state_dicts if any(tensor.is_parameter for tensor in found.tensors)}
    for state_dict, tensor, numbers in _measured(subject):
        is_matrix = _is_float(tensor) and sum(length > 1 for length in tensor.shape) >= 2
        # where none is recorded as a parameter, as in a state_dict, any may be one
        may_be_weight = tensor.is_parameter or id(state_dict) not in recorded
        is_weight = is_matrix and may_be_weight and not tensor.name.endswith("mask")
        if is_weight and numbers.constant and numbers.minimum is not None:
            yield subject.finding(
                f"all {numbers.count:,} values are {number(numbers.minimum)}{_in(subject, state_dict)}",
                tensor=tensor.name,
                evidence={"value": float(numbers.minimum), "values": numbers.count},
            )


@rule("N104", "subnormal-flood", "warning", needs="values")
def subnormal_flood(subject: Subject) -> Iterator[Finding]:
    """More than a tenth of a tensor's values are subnormal: smaller than what the type holds at full precision.

    Why: subnormal numbers have few digits left, and on many processors each costs a hundred times as long. They
    come from a cast to a type of too little range, or from weights that decayed towards nothing.

    Example: weights of 1e-6 in float16, where everything below 6e-5 is subnormal.

    Remedy: keep the tensor in bfloat16 or float32, or set what is that small to zero.
    """
    for state_dict, tensor, numbers in _measured(subject):
        others = numbers.finite - numbers.zeros
        if others >= ENOUGH and numbers.subnormal > FLOOD * others:
            yield subject.finding(
                f"{numbers.subnormal:,} of {count(others, 'value')} that are not zero are subnormal"
                f"{_in(subject, state_dict)}",
                tensor=tensor.name,
                evidence={"subnormal": numbers.subnormal, "values": numbers.count},
            )


@rule("N105", "impossible-variance", "error", needs="values")
def impossible_variance(subject: Subject) -> Iterator[Finding]:
    """A BatchNorm's ``running_var`` is negative somewhere.

    Why: a variance is never negative. BatchNorm takes the root of it, and the channel's outputs are NaN.

    Example: running statistics that were averaged, extrapolated or merged with negative factors.

    Remedy: run the model over data in train mode to estimate the statistics anew.
    """
    for state_dict, tensor, numbers in _measured(subject):
        low = numbers.minimum
        if _is_variance(tensor) and low is not None and low < 0:
            yield subject.finding(
                f"the least of {count(numbers.count, 'variance')} is {number(low)}{_in(subject, state_dict)}",
                tensor=tensor.name,
                evidence={"minimum": float(low), "channels": numbers.count},
            )


@rule("N106", "dead-batchnorm", "warning", needs="values")
def dead_batchnorm(subject: Subject) -> Iterator[Finding]:
    """A BatchNorm's ``running_var`` is exactly zero in some channels.

    Why: in such a channel nothing arrived but one constant: the filters before it are dead, or were pruned. At
    inference BatchNorm divides by the root of eps alone, so that any deviation comes out some hundred times larger.

    Example: a ReLU that never fires; a model that never ran in train mode, and whose statistics were zeroed.

    Remedy: prune the channels, or train from where they were alive.
    """
    for state_dict, tensor, numbers in _measured(subject):
        if _is_variance(tensor) and numbers.zeros:
            yield subject.finding(
                f"{numbers.zeros:,} of {count(numbers.count, 'channel')} have a variance of zero"
                f"{_in(subject, state_dict)}",
                tensor=tensor.name,
                evidence={"zeros": numbers.zeros, "channels": numbers.count},
            )


def _is_variance(tensor: TensorInfo) -> bool:
    return tensor.name.rpartition(".")[2] == "running_var" and looks_like_buffer(tensor.name)


@rule("N107", "near-overflow", "warning", needs="values")
def near_overflow(subject: Subject) -> Iterator[Finding]:
    """A float16 tensor holds values above half of what the type can hold.

    Why: float16 ends at 65504. Adding two such values, or multiplying one by two, gives infinity.

    Example: a BatchNorm's variances, or an embedding, cast by ``model.half()``.

    Remedy: use bfloat16, or keep the tensor in float32.
    """
    for state_dict, tensor, numbers in _measured(subject):
        if tensor.dtype.name == "float16" and (peak := _peak(numbers)) > HALF_RANGE:
            yield subject.finding(
                f"its largest magnitude is {number(peak)}; float16 ends at 65504{_in(subject, state_dict)}",
                tensor=tensor.name,
                evidence={"magnitude": peak},
            )


@rule("N108", "out-of-keeping", "warning", needs="values")
def out_of_keeping(subject: Subject) -> Iterator[Finding]:
    """A value, or a whole tensor, is out of keeping with its layer or with the layers like it.

    Why: a flipped bit in an exponent turns 0.02 into 1e36; such a file loads without a word, and torch checks no
    checksum. Found are weights of which a single element makes up nearly the whole norm, and tensors whose values
    deviate ten thousand times as much as those of the same name in the other layers.

    Example: one bit of a download; two runs' layers mixed in one file.

    Remedy: compare with the original (``ckpt diff``, ``ckpt digest --check``), and fetch it again.
    """
    peers: dict[tuple[str, int], list[tuple[StateDict, TensorInfo, float]]] = {}
    for state_dict, tensor, numbers in _measured(subject):
        if not _is_float(tensor) or numbers.finite < ENOUGH or numbers.basis != "value":
            continue
        peak = _peak(numbers)
        if numbers.zeros < numbers.finite / 2 and peak > LONE * numbers.l2:
            yield subject.finding(
                f"one of {count(numbers.finite, 'value')}, {number(peak)}, makes up nearly all of the tensor's norm"
                f"{_in(subject, state_dict)}",
                tensor=tensor.name,
                evidence={"magnitude": peak, "l2": numbers.l2},
            )
        elif numbers.std and math.isfinite(numbers.std) and len(tensor.shape) > 1:
            key = (tensor.name.rpartition(".")[2], len(tensor.shape))
            peers.setdefault(key, []).append((state_dict, tensor, numbers.std))
    for alike in peers.values():
        if len(alike) < 8:
            continue
        deviations = sorted(std for _, _, std in alike)
        typical = (deviations[len(alike) // 2] + deviations[~(len(alike) // 2)]) / 2
        for state_dict, tensor, std in alike:
            if std > FAR * typical:
                yield subject.finding(
                    f"its values deviate by {number(std)}, those of {len(alike) - 1} tensors like it by "
                    f"{number(typical)}{_in(subject, state_dict)}",
                    tensor=tensor.name,
                    evidence={"std": std, "median_std": typical},
                )


def _peak(numbers: Statistics) -> float:
    return float(max(abs(numbers.minimum or 0), abs(numbers.maximum or 0)))


RULES: tuple[Rule, ...] = (
    nan_values,
    infinite_values,
    constant_weight,
    subnormal_flood,
    impossible_variance,
    dead_batchnorm,
    near_overflow,
    out_of_keeping,
)
