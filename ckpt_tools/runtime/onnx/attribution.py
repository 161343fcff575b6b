"""Whose fault it is that numbers differ: the export's, onnxruntime's optimizer's, or the provider's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckpt_tools.report import listed
from ckpt_tools.runtime.onnx.bfloat16 import rounding
from ckpt_tools.runtime.onnx.bisect import against_cpu, against_torch, as_it_is
from ckpt_tools.runtime.onnx.inputs import cases
from ckpt_tools.runtime.onnx.sessions import LEVELS, Refused, Target
from ckpt_tools.runtime.onnx.state import State
from ckpt_tools.runtime.onnx.sweep import Run, sweep
from ckpt_tools.verification.results import Problem


def attributed(state: State, wrong: Sequence[Run]) -> Iterator[Problem]:
    """The problem that the runs of *wrong* come to, and with ``--bisect`` the first node that differs."""
    first = next((run for run in wrong if run.on == "cpu"), wrong[0])
    assert first.difference is not None
    where = f"{first.case.title}, {first.output} on {first.on}: {first.fault}"
    if first.difference.kind == "nan":
        remedy = "NaN is never within a tolerance; in half precision, an overflow beyond 65,504 is usual"
        yield Problem("not-finite", "error", where, remedy)
    elif first.on == "cpu":
        yield Problem("export-differs", "error", f"{where}. {_levels(state, first)}", _on_batches(wrong, state))
    elif not any(run.on == "cpu" and run.difference is not None for run in state.runs):
        text = f"{where}. Nothing tells whether that is the export's fault or the provider's: the CPU did not run it"
        yield Problem("provider-differs", "error", text)
    else:
        blame = "TF32 is on" if state.job.tf32 else f"the difference is of {first.on}"
        text = f"{where}. On the CPU onnxruntime computes what torch does, so {blame}"
        yield Problem("provider-differs", "error", text, _bisection(state))
    if state.job.bisect:
        yield _bisected(state, first)


def _levels(state: State, run: Run) -> str:
    """At which levels of onnxruntime's optimization the numbers are torch's."""
    wanted, _ = state.models()
    fine: list[str] = []
    for level in LEVELS[:-1]:
        try:
            session = state.open(Target("cpu"), level=level)
        except Refused:
            continue
        again = [r for r in sweep(wanted, state.made, [run.case], [(session, state.tolerance("cpu"))]) if not r.unfit]
        if again and not any(r.fault or r.shape or r.refused for r in again):
            fine.append(level)
    if fine:
        return f"With {fine[-1]} the numbers are torch's: onnxruntime's optimizer changes them, not the export"
    return "It is so at every level of onnxruntime's optimization: the file computes something else than torch"


def _on_batches(wrong: Sequence[Run], state: State) -> str:
    compared = {run.case.title for run in state.runs if run.difference is not None}
    bad = {run.case.title for run in wrong}
    given = next(iter(cases(state.made, 1))).title
    if bad < compared and given not in bad:
        return f"Only with {listed(sorted(bad), 3)}: forward may branch on a size, and one branch was traced"
    return _bisection(state)


def _bisection(state: State) -> str:
    return "" if state.job.bisect else "--bisect names the first node that differs"


def _bisected(state: State, run: Run) -> Problem:
    wanted, _ = state.models()
    try:
        if run.on == "cpu":
            change = rounding if state.rounding else as_it_is
            found = against_torch(state.onnx, wanted, state.made, run.case.tensors, state.tolerance("cpu"), change)
        else:
            assert state.target is not None
            found = against_cpu(state.onnx, run.case.tensors, state.target, state.tolerance(run.on))
    except (Refused, MemoryError) as error:
        return Problem("bisect", "note", f"the nodes could not be compared one by one: {error}")
    if found is None:
        return Problem("bisect", "note", "no single node differs when each one's output is kept")
    text = f"of {found.compared} values, the first that differs is {found.output}, of {found}"
    return Problem("first-diverging-node", "note", text)
