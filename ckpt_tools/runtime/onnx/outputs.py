"""The checks ``shapes`` and ``numbers``: whether what comes out is what torch computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ckpt_tools.audit.findings import Severity
from ckpt_tools.report import count, listed, number
from ckpt_tools.runtime.onnx.attribution import attributed
from ckpt_tools.runtime.onnx.bfloat16 import OPSET_OF_BFLOAT16, uses_bfloat16
from ckpt_tools.runtime.onnx.compare import Tolerance
from ckpt_tools.runtime.onnx.inputs import cases, read_samples
from ckpt_tools.runtime.onnx.sessions import Refused, Session, Target
from ckpt_tools.runtime.onnx.state import State
from ckpt_tools.runtime.onnx.sweep import Run, sweep
from ckpt_tools.runtime.verify.subject import Stop
from ckpt_tools.verification.results import Check, Problem, worst_first


def shapes(state: State) -> Check:
    """The sweep: every output of every run must have the shape and type that torch's has."""
    state.model()
    wanted, _ = state.models()
    assert state.target is not None
    tried = list(cases(state.made, state.job.seeds))
    if state.job.samples is not None:
        tried.append(read_samples(state.job.samples, state.made))
    problems: list[Problem] = []
    sessions = []
    for where in [Target("cpu")] if state.provider == "cpu" else [Target("cpu"), state.target]:
        try:
            sessions.append((_opened(state, where), state.tolerance(where.provider)))
        except Refused as error:
            # what the CPU has no kernels for a GPU may have
            severity: Severity = "note" if where.provider == "cpu" != state.provider else "error"
            old = uses_bfloat16(state.model().proto) and state.model().opset < OPSET_OF_BFLOAT16
            remedy = f"bfloat16 needs opset {OPSET_OF_BFLOAT16} in convolutions and the like" if old else error.remedy
            problems.append(Problem(error.kind, severity, str(error), remedy))
    if state.rounding:
        text = "the CPU has no kernels for bfloat16: its nodes ran in float32, and what they put out was rounded"
        problems.append(Problem("bfloat16-by-rounding", "note", text))
    if not sessions:
        return Check("shapes", "it does not run", problems)
    state.runs = list(sweep(wanted, state.made, tried, sessions))
    given = [*tried[: state.job.seeds], *(tried[-1:] if state.job.samples is not None else ())]
    for run in state.runs:
        if run.unfit:
            severity = "error" if run.case in given else "note"
            text = f"torch itself does not take {run.case.title}: {run.unfit}"
            problems.append(Problem("torch-refuses", severity, text))
        elif run.refused:
            if any(problem.code == "input-refused" for problem in problems):
                continue  # other sizes meet the same refusal
            text = f"{run.case.title}: torch takes it, the file on {run.on} does not: {run.refused}"
            problems.append(Problem("input-refused", "error", text, "Sizes are fixed in it: export it with --dynamic"))
        elif run.shape and run.order:
            problems.append(_permuted(run))
        elif run.shape:
            what = f"{run.output} is {run.shape}" if run.output else run.shape
            text = f"{run.case.title}, on {run.on}: {what}"
            remedy = "Something in the file is of a fixed size, such as a Python loop over the batch that was traced"
            problems.append(Problem("other-shape", "error", text, remedy))
    titles = list(dict.fromkeys(run.case.title for run in state.runs if not run.unfit))
    message = f"{count(len(titles), 'run')}: {listed(titles, 4)}"
    return Check("shapes", message, worst_first(_once(problems)))


def numbers(state: State) -> Check:
    """Whether the values are those of torch, and where a difference comes from."""
    state.model()
    compared = [run for run in state.runs if run.difference is not None]
    if not compared:
        raise Stop("no output could be compared")
    wrong = [run for run in compared if run.fault]
    problems: list[Problem] = []
    if any(run.order for run in wrong):
        problems.append(_permuted(next(run for run in wrong if run.order)))
    elif wrong:
        problems += attributed(state, wrong)
    problems += _otherwise([run for run in compared if not run.fault], state.tolerance(state.provider))
    problems += _vacuous(compared)
    facts = {"runs": [_told(run) for run in compared], "tolerance": str(state.tolerance(state.provider))}
    differences = [run.difference for run in compared if run.difference is not None]
    share = max(found.worst / found.scale if found.scale else found.worst for found in differences)
    top1 = [found.top1 for found in differences if found.top1 is not None]
    rows = f", top-1 {sum(a for a, _ in top1):,} of {sum(b for _, b in top1):,}" if top1 else ""
    apart = (
        "some are not finite"
        if any(found.kind == "nan" for found in differences)
        else (f"at most {number(float(f'{share:.3g}'))} of the largest apart")
    )
    message = f"{count(len(compared), 'output')} compared, {apart}{rows}; allowed {state.tolerance(state.provider)}"
    return Check("numbers", message, worst_first(problems), facts)


def _otherwise(runs: Sequence[Run], allowed: Tolerance) -> Iterator[Problem]:
    """What was taken for the same though it is not so in its place."""
    reordered = [run for run in runs if run.compared is not None and run.compared.reordered]
    if reordered:
        text = f"{_where(reordered)}: rows of equal scores stand in another order than torch's"
        yield Problem("rows-reordered", "note", text)
    hanging = [run for run in runs if run.compared is not None and run.compared.hanging]
    if hanging:
        most = max(run.compared.hanging for run in hanging if run.compared is not None)
        text = (
            f"{_where(hanging)}: up to {count(most, 'row or value', 'rows or values')} hang on a rounding, as torch "
            f"too decides otherwise when what its layers put out is moved by {number(allowed.absolute)} of the largest"
        )
        yield Problem("hangs-on-rounding", "warning", text)


def _where(runs: Sequence[Run]) -> str:
    names, titles = dict.fromkeys(run.output for run in runs), dict.fromkeys(run.case.title for run in runs)
    return f"{listed(list(names))} in {count(len(titles), 'run')} ({listed(list(titles), 2)})"


def _vacuous(runs: Sequence[Run]) -> Iterator[Problem]:
    """Outputs by which little is proven, or nothing."""
    filled = {run.output for run in runs if not run.empty}
    empty = sorted({run.output for run in runs} - filled)
    if empty:
        text = f"{listed(empty)}: torch returns nothing for any of the inputs, so that nothing is proven by it"
        remedy = "Are these trained weights? --range or --inputs give inputs in which there is something to be found"
        yield Problem("empty-output", "warning", text, remedy)
    constant = sorted({run.output for run in runs if run.constant and run.output in filled})
    if constant:
        yield Problem(
            "constant-output",
            "warning",
            f"{listed(constant)}: torch returns the same for other inputs, so that little is proven by comparing it",
            "Are these trained weights? A head of zeros gives nothing else; --range or --inputs give other inputs",
        )


def _told(run: Run) -> dict[str, object]:
    found = run.difference
    assert found is not None
    return {
        "input": run.case.title,
        "on": run.on,
        "output": run.output,
        "worst": found.worst,
        "at": list(found.at),
        "reference": found.reference,
        "found": found.found,
        "scale": found.scale,
        "allowed": found.allowed,
        "cosine": found.cosine,
        "top1": "" if found.top1 is None else f"{found.top1[0]:,}/{found.top1[1]:,}",
        "ok": not found.fault,
    }


def _opened(state: State, where: Target) -> Session:
    try:
        return state.open(where)
    except Refused as error:
        # a kernel that is missing, not a model that is none
        if where.provider != "cpu" or "NOT_IMPLEMENTED" not in str(error) or not uses_bfloat16(state.model().proto):
            raise
        state.rounding = True
        return state.open(where)


def _permuted(run: Run) -> Problem:
    return Problem(
        "outputs-permuted",
        "error",
        f"the outputs come in another order than torch's: in that order they are {run.order}",
        "Whoever takes them by position gets another one; export it again, or take them by name",
    )


def _once(problems: list[Problem]) -> list[Problem]:
    seen: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        seen.setdefault((problem.code, problem.message), problem)
    return list(seen.values())
