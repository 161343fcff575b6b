"""The checks themselves, in the order of `CHECKS`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from ckpt_tools.analysis.digest import digest
from ckpt_tools.audit.findings import Severity
from ckpt_tools.errors import CkptError
from ckpt_tools.report import count, listed, number, size
from ckpt_tools.runtime.onnx import environment
from ckpt_tools.runtime.onnx import export as exporter
from ckpt_tools.runtime.onnx import file as onnx_file
from ckpt_tools.runtime.onnx import latency as timing
from ckpt_tools.runtime.onnx.bisect import against_cpu, against_torch
from ckpt_tools.runtime.onnx.compare import Tolerance, tolerance
from ckpt_tools.runtime.onnx.inputs import Argument, arguments, cases, read_samples, with_options
from ckpt_tools.runtime.onnx.sessions import (
    LEVELS,
    Placement,
    Refused,
    Session,
    Target,
    open_session,
    placement,
    target,
)
from ckpt_tools.runtime.onnx.state import State
from ckpt_tools.runtime.onnx.sweep import Run, reference, sweep, untouched
from ckpt_tools.runtime.onnx.weights import state_digest
from ckpt_tools.runtime.onnx.weights import weights as weights_of
from ckpt_tools.runtime.replica import replica
from ckpt_tools.runtime.verify.builds import builds, opens
from ckpt_tools.runtime.verify.keys import keys
from ckpt_tools.runtime.verify.loads import loads
from ckpt_tools.runtime.verify.subject import Stop
from ckpt_tools.verification.results import Check, Problem, worst_first

NOT_ON_A_GPU = "not verified on a GPU"


# --- the environment and the model


def environment_of(state: State) -> Check:
    """The packages, their versions, and whether the provider can be had."""
    job = state.job
    state.provider = environment.best_provider() if job.provider == "auto" else job.provider
    problems = list(environment.faults(state.provider))
    found = environment.versions()
    if not any(problem.severity == "error" for problem in problems):
        try:
            state.target = target(state.provider, job.provider_options, tf32=job.tf32)
        except Refused as error:
            problems.append(Problem(error.kind, "error", str(error), error.remedy))
    state.usable = state.target is not None
    runtime = next((f"{name} {found[name]}" for name in environment.RUNTIMES[::-1] if name in found), "onnxruntime")
    message = f"torch {found.get('torch', '')}, onnx {found.get('onnx', '')}, {runtime}, provider {state.provider}"
    return Check("environment", message, worst_first(problems), {"versions": found, "provider": state.provider})


def _keys(state: State) -> Check:
    """As verify has it; names that had to be mended are no fault of the export."""
    found = keys(state.subject)
    fits = state.subject.fits
    if state.subject.usable and fits is not None and not fits.missing and not fits.mismatched:
        problems = [replace(p, severity="warning") if p.severity == "error" else p for p in found.problems]
        return replace(found, problems=problems)
    return found


def _loads(state: State) -> Check:
    found = loads(state.subject)
    if state.subject.filled is not None:
        model = state.subject.filled.eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        state.reference = state.exported = model
        if state.job.dtype is not None:
            state.exported = replica(model).to(getattr(torch, state.job.dtype))
    return found


# --- the file


def exports(state: State) -> Check:
    """The export, in eval mode; the model must be the same afterwards."""
    job = state.job
    wanted, model = state.models()
    if not job.write:
        state.onnx = job.onnx
        raise Stop("not asked to: the file exists")
    if not job.inputs:
        raise CkptError("there is no input to export with", remedy="--input gives its sizes, such as 1,3,224,224")
    state.made = arguments(job.inputs, job.dynamic, job.ranges, job.input_names, model)
    example = next(iter(cases(state.made, 1))).tensors
    try:
        with untouched(wanted) as writes:
            paths = list(reference(wanted, state.made, example))
    except Exception as error:
        remedy = "--input gives complete sizes, batch included: 1,3,224,224"
        text = f"torch does not take the input: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Check("exports", "the forward pass fails", [Problem("forward-fails", "error", text, remedy)])
    state.outputs = list(job.output_names) or exporter.output_names(paths)
    before = state_digest(model)
    try:
        with untouched(model):
            made = exporter.export(
                model, state.made, state.outputs, opset=job.opset, keep_stack_traces=job.keep_stack_traces
            )
        changed = state_digest(model) != before
        path = os.path.join(state.folder, os.path.basename(os.path.realpath(job.onnx)))
        assert state.subject.state_dict is not None
        about = exporter.provenance(job.path, digest(state.subject.state_dict.tensors).sha256, wanted, job.dtype)
        written = exporter.save(made, path, job.external_data, about)
    except exporter.ExportFailed as error:
        remedy = "torch's page on torch.export tells what a model may not do; an axis in --dynamic may be the cause"
        return Check("exports", "it failed", [Problem("export-failed", "error", str(error), remedy)])
    state.onnx = path
    problems = []
    if changed:
        text = "exporting changed the model: a parameter is another than before, and the file is of either"
        problems.append(Problem("model-changed", "error", text, "Something in forward writes to the module"))
    if writes:
        text = f"forward writes to {listed(writes, 3)}: the file has no memory, each run begins with the checkpoint's"
        problems.append(Problem("stateful", "warning", text))
    files = [path, *written.data_files()]
    total = size(sum(os.path.getsize(file) for file in files))
    facts: dict[str, Any] = {"nodes": len(written.proto.graph.node), "files": [os.path.basename(f) for f in files]}
    message = f"{exporter.described(written)}, {total} in {count(len(files), 'file')}"
    return Check("exports", message, problems, facts)


def file(state: State) -> Check:
    """Whether the file is whole, valid, and what it was asked to be."""
    job = state.job
    if not state.onnx:
        raise Stop("there is no file")
    model = onnx_file.read(state.onnx)
    if not job.write:
        state.made = _arguments_of_file(state, model)
        state.outputs = [port.name for port in model.outputs]
    problems = list(onnx_file.damage(model))
    whole = not problems
    if whole:
        problems += onnx_file.invalid(model)
    problems += onnx_file.in_training(model)
    external = {"always": True, "never": False}.get(job.external_data) if job.write else None
    problems += onnx_file.not_as_asked(
        model,
        opset=job.opset,
        dynamic={one.name: one.dynamic for one in state.made} if job.write or job.dynamic else {},
        dtype=job.dtype if job.write else None,
        inputs=[one.name for one in state.made],
        outputs=state.outputs if job.write else job.output_names,
        external=external,
    )
    if whole:
        state.file = model
    ports = f"{', '.join(map(str, model.inputs))} → {', '.join(map(str, model.outputs))}"
    facts = {
        "opset": model.opset,
        "inputs": [_port(port) for port in model.inputs],
        "outputs": [_port(port) for port in model.outputs],
        "metadata": model.metadata,
    }
    return Check("file", f"opset {model.opset}, {ports}", worst_first(problems), facts)


def _port(port: onnx_file.Port) -> dict[str, object]:
    return {"name": port.name, "dtype": port.dtype, "axes": None if port.axes is None else list(port.axes)}


def _arguments_of_file(state: State, model: onnx_file.Model) -> list[Argument]:
    """The arguments as the file has them: sizes of its own where no input was given, its dynamic axes in any case."""
    job = state.job
    wanted, _ = state.models()
    ports = model.inputs
    if job.inputs:
        made = arguments(job.inputs, (), (), (), wanted)
        if len(made) != len(ports):
            takes = f"it takes {count(len(ports), 'input')} ({', '.join(map(str, ports)) or 'none'})"
            raise CkptError(f"{takes}, --input gives {len(made)}", path=job.onnx)
    else:
        texts = []
        for port in ports:
            if port.axes is None:
                raise CkptError(f"it does not say how many axes {port.name} has", path=job.onnx, remedy="Give --input")
            sizes = ",".join(str(axis) if isinstance(axis, int) else "2" for axis in port.axes)
            texts.append(f"{port.dtype}:{sizes}")
        made = arguments(texts, (), (), (), wanted)
    named = []
    for one, port in zip(made, ports, strict=True):
        axes = enumerate(port.axes or ())
        free = {axis: dim or f"{port.name}_{axis}" for axis, dim in axes if not isinstance(dim, int)}
        dtype = getattr(torch, port.dtype, one.dtype)
        named.append(replace(one, name=port.name, dynamic=free, dtype=dtype))
    return with_options(named, job.dynamic, job.ranges)


def weights(state: State) -> Check:
    """The initializers against the model's tensors."""
    state.model()
    _, model = state.models()
    return weights_of(state.onnx, model)


# --- what it computes


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
            sessions.append((open_session(state.onnx, where), _tolerance(state, where.provider)))
        except Refused as error:
            # what the CPU has no kernels for, such as bfloat16, a GPU may have
            severity: Severity = "note" if where.provider == "cpu" != state.provider else "error"
            problems.append(Problem(error.kind, severity, str(error), error.remedy))
    if not sessions:
        return Check("shapes", "it does not run", problems)
    state.runs = list(sweep(wanted, state.made, tried, sessions))
    given = tried[: state.job.seeds]
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


def _tolerance(state: State, provider: str) -> Tolerance:
    job = state.job
    kinds = [port.dtype for port in state.model().inputs + state.model().outputs]
    narrow = job.dtype or next((kind for kind in ("bfloat16", "float16") if kind in kinds), "float32")
    found = tolerance(narrow, "cpu" if provider == "cpu" else "gpu", tf32=job.tf32)
    return Tolerance(
        found.absolute if job.absolute is None else job.absolute,
        found.relative if job.relative is None else job.relative,
    )


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
        problems += _attributed(state, wrong)
    vacuous = sorted({run.output for run in compared if run.constant})
    if vacuous:
        problems.append(
            Problem(
                "constant-output",
                "warning",
                f"{listed(vacuous)}: torch returns the same for other inputs, so that little is proven by comparing it",
                "Are these trained weights? A head of zeros gives nothing else; --range or --inputs give other inputs",
            )
        )
    facts = {"runs": [_told(run) for run in compared], "tolerance": str(_tolerance(state, state.provider))}
    differences = [run.difference for run in compared if run.difference is not None]
    share = max(found.worst / found.scale if found.scale else found.worst for found in differences)
    top1 = [found.top1 for found in differences if found.top1 is not None]
    rows = f", top-1 {sum(a for a, _ in top1):,} of {sum(b for _, b in top1):,}" if top1 else ""
    apart = (
        "some are not finite"
        if any(found.kind == "nan" for found in differences)
        else (f"at most {number(float(f'{share:.3g}'))} of the largest apart")
    )
    message = f"{count(len(compared), 'output')} compared, {apart}{rows}; allowed {_tolerance(state, state.provider)}"
    return Check("numbers", message, worst_first(problems), facts)


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


def _attributed(state: State, wrong: list[Run]) -> Iterator[Problem]:
    """Whose fault it is: the export's, onnxruntime's optimizer's, or the provider's."""
    first = next((run for run in wrong if run.on == "cpu"), wrong[0])
    assert first.difference is not None
    where = f"{first.case.title}, {first.output} on {first.on}: {first.fault}"
    if first.difference.kind == "nan":
        remedy = "NaN is never within a tolerance; in half precision, an overflow beyond 65,504 is usual"
        yield Problem("not-finite", "error", where, remedy)
    elif first.on == "cpu":
        yield Problem("export-differs", "error", f"{where}. {_levels(state, first)}", _on_batches(wrong, state))
    else:
        blame = "TF32 is on" if state.job.tf32 else f"the difference is of {first.on}"
        text = f"{where}. On the CPU onnxruntime computes what torch does, so {blame}"
        yield Problem("provider-differs", "error", text, "--bisect names the first node that differs")
    if state.job.bisect:
        yield _bisected(state, first)


def _levels(state: State, run: Run) -> str:
    """At which levels of onnxruntime's optimization the numbers are torch's."""
    wanted, _ = state.models()
    fine: list[str] = []
    for level in LEVELS[:-1]:
        try:
            session = open_session(state.onnx, Target("cpu"), level=level)
        except Refused:
            continue
        again = [r for r in sweep(wanted, state.made, [run.case], [(session, _tolerance(state, "cpu"))]) if not r.unfit]
        if again and not any(r.fault or r.shape or r.refused for r in again):
            fine.append(level)
    if fine:
        return f"With {fine[-1]} the numbers are torch's: onnxruntime's optimizer changes them, not the export"
    return "It is so at every level of onnxruntime's optimization: the file computes something else than torch"


def _on_batches(wrong: list[Run], state: State) -> str:
    compared = {run.case.title for run in state.runs if run.difference is not None}
    bad = {run.case.title for run in wrong}
    given = next(iter(cases(state.made, 1))).title
    if bad < compared and given not in bad:
        return f"Only with {listed(sorted(bad), 3)}: forward may branch on a size, and one branch was traced"
    return "--bisect names the first node that differs"


def _bisected(state: State, run: Run) -> Problem:
    wanted, _ = state.models()
    try:
        if run.on == "cpu":
            found = against_torch(state.onnx, wanted, state.made, run.case.tensors, _tolerance(state, "cpu"))
        else:
            assert state.target is not None
            found = against_cpu(state.onnx, run.case.tensors, state.target, _tolerance(state, run.on))
    except (Refused, MemoryError) as error:
        return Problem("bisect", "note", f"the nodes could not be compared one by one: {error}")
    if found is None:
        return Problem("bisect", "note", "no single node differs when each one's output is kept")
    text = f"of {found.compared} values, the first that differs is {found.output}, of {found}"
    return Problem("first-diverging-node", "note", text)


# --- where it runs, and how fast


def placed(state: State) -> Check:
    """Where the nodes of a real run were, and whether that is a proof that a GPU does the work."""
    job = state.job
    if not state.usable or state.file is None or state.target is None or state.provider == "cpu":
        why = "no provider of a GPU was asked for"
        if not state.usable:
            why = f"{state.provider} cannot be had here"
        elif state.file is None:
            why = "there is no file that can be run"
        elif job.provider == "auto":
            why = "there is no GPU that onnxruntime can use"
        verdict = f"{NOT_ON_A_GPU}: {why}"
        if job.require_gpu:
            problem = Problem("not-on-gpu", "error", f"{verdict}, which --require-gpu does not accept")
            return Check("placement", verdict, [problem], {"verdict": NOT_ON_A_GPU})
        return Check("placement", verdict, facts={"verdict": NOT_ON_A_GPU}, skipped=True)
    try:
        found = _ran(state)
    except Refused as error:
        problem = Problem(error.kind, "error", str(error), error.remedy)
        return Check("placement", NOT_ON_A_GPU, [problem], {"verdict": NOT_ON_A_GPU})
    problems = list(_misplaced(state, found))
    faulty = any(problem.severity == "error" for problem in problems)
    verdict = _verdict(state, found, faulty)
    if (state.target.software or faulty) and job.require_gpu:
        what = "a software adapter is no GPU" if state.target.software else "not all of it runs there"
        problems.append(Problem("not-on-gpu", "error", f"{NOT_ON_A_GPU}: {what}, which --require-gpu does not accept"))
    facts = {
        "verdict": verdict,
        "nodes": dict(found.nodes),
        "assigned": dict(found.assigned),
        "on_cpu": [{"node": node, "operator": operator} for node, operator in found.on_cpu],
        "shape_only": [node for node, _ in found.shape_only],
        "memcpy": found.copies,
        "software_adapter": state.target.software,
    }
    return Check("placement", verdict, problems, facts)


def _ran(state: State) -> Placement:
    """A run that is recorded: strict where the CPU may do nothing, and if it cannot be so, to see what it does."""
    assert state.target is not None
    job = state.job
    case = next(iter(cases(state.made, 1)))
    prefix = os.path.join(state.folder, "profile")
    try:
        session = open_session(state.onnx, state.target, strict=not job.allow_cpu_shape_ops, profile=prefix)
    except Refused as error:
        if error.kind != "cpu-nodes":
            raise
        session = open_session(state.onnx, state.target, profile=prefix)
    session.run(case.tensors)
    return profiled(session)


def profiled(session: Session) -> Placement:
    """The placement of the nodes in a session that has run with a profile; ends the profile."""
    assignment = None
    with contextlib.suppress(Exception):  # older ones cannot tell
        assignment = session.raw.get_provider_graph_assignment_info()
    path = session.raw.end_profiling()
    with open(path, encoding="utf-8") as file:
        events = json.load(file)
    os.unlink(path)
    return placement(events, assignment, session.target.execution)


def _misplaced(state: State, found: Placement) -> Iterator[Problem]:
    device = found.device
    excused = set(found.shape_only) if state.job.allow_cpu_shape_ops else set()
    wrong = [pair for pair in found.on_cpu if pair not in excused]
    if wrong:
        named = listed([f"{operator} {node}" for node, operator in wrong], 5)
        only = (
            ""
            if set(wrong) - set(found.shape_only)
            else "; all of them compute sizes, which --allow-cpu-shape-ops allows"
        )
        yield Problem(
            "cpu-nodes",
            "error",
            f"{count(len(wrong), 'node')} of {found.total} did not run on {device}: {named}{only}",
            "The provider has no kernel for them, or thinks that the CPU is faster",
        )
    if not found.nodes.get(device):
        yield Problem("cpu-nodes", "error", f"no node ran on {device}")
    if found.copies:
        text = f"{count(found.copies, 'Memcpy node')} move values between the device and the CPU within a run"
        yield Problem("memcpy", "note" if state.job.allow_cpu_shape_ops else "warning", text)
    if found.assigned and found.assigned.get(device, 0) < found.nodes.get(device, 0):
        text = f"more nodes ran on {device} than onnxruntime says it gave to it: the profile is not of this session"
        yield Problem("assignment-differs", "warning", text)


def _verdict(state: State, found: Placement, faulty: bool) -> str:
    assert state.target is not None
    parts = [f"{found.nodes.get(found.device, 0)}/{found.total} nodes on {found.device}", f"{found.copies} Memcpy"]
    if state.provider == "cuda":
        parts.append(f"TF32 {'on' if state.job.tf32 else 'off'}")
        about = environment.gpu_facts()
        parts += [value if name == "device" else f"{name} {value}" for name, value in about.items()]
    if state.target.software:
        parts.append("a software adapter")
    if state.target.software or faulty:
        parts.append(NOT_ON_A_GPU)
    return ", ".join(parts)


def latency(state: State) -> Check:
    """How long the first run takes and those after it, beside torch."""
    if not state.job.latency:
        raise Stop("not asked for: --latency measures it")
    state.model()
    assert state.target is not None
    _, model = state.models()
    tensors = next(iter(cases(state.made, 1))).tensors
    try:
        found, memory = timing.onnx_times(state.onnx, state.target, tensors)
    except Refused as error:
        raise Stop(str(error)) from None
    found["torch eager"] = timing.torch_times(model, state.made, tensors, state.target)
    facts: dict[str, Any] = {name: times.as_json() for name, times in found.items()}
    facts["device_bytes"] = memory
    own, eager = found["with copies"], found["torch eager"]
    bound = found["without copies"]
    message = (
        f"onnxruntime {_ms(own.p50)} (p95 {_ms(own.p95)}; {_ms(bound.p50)} without copying inputs; the first, with its "
        f"start, {_ms(own.cold)}), torch eager {_ms(eager.p50)} (p95 {_ms(eager.p95)})"
    )
    if memory is not None:
        message += f", {size(memory)} of the device"
    return Check("latency", message, facts=facts)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


# --- the end


def put_in_place(state: State) -> None:
    """Give the file and its data their names. What had them goes first: never does a model meet the other's data."""
    goal = os.path.realpath(state.job.onnx)
    folder = os.path.dirname(goal)
    data = f"{goal}.data"
    left = False
    with contextlib.suppress(CkptError):  # what is replaced need not be a model
        left = data in onnx_file.read(goal).data_files()
    try:
        if os.path.lexists(goal):
            os.unlink(goal)
        if left and os.path.lexists(data):
            os.unlink(data)
        for path in state.model().data_files():
            os.replace(path, os.path.join(folder, os.path.basename(path)))
        os.replace(state.onnx, goal)
    except OSError as error:
        raise CkptError(f"cannot be written: {error.strerror}", path=state.job.onnx) from None
    state.onnx = goal


def _opens(state: State) -> Check:
    return opens(state.subject)


def _builds(state: State) -> Check:
    return builds(state.subject)


FUNCTIONS: tuple[Callable[[State], Check], ...] = (
    environment_of,
    _opens,
    _builds,
    _keys,
    _loads,
    exports,
    file,
    weights,
    shapes,
    numbers,
    placed,
    latency,
)
"""In the order of `CHECKS`."""
