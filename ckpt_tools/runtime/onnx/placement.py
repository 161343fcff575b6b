"""The check ``placement``: where the nodes of a real run were, and whether that proves that a GPU does the work."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ckpt_tools.records import record
from ckpt_tools.report import count, listed
from ckpt_tools.runtime.onnx import environment
from ckpt_tools.runtime.onnx.environment import EXECUTION
from ckpt_tools.runtime.onnx.inputs import cases
from ckpt_tools.runtime.onnx.sessions import Refused, Session
from ckpt_tools.runtime.onnx.state import State
from ckpt_tools.verification.results import Check, Problem

CUDA = EXECUTION["cuda"]

NOT_ON_A_GPU = "not verified on a GPU"


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
    problems = list(misplaced(state, found))
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
        session = state.open(state.target, strict=not job.allow_cpu_shape_ops, profile=prefix)
    except Refused as error:
        if error.kind != "cpu-nodes":
            raise
        session = state.open(state.target, profile=prefix)
    session.run(case.tensors)
    return profiled(session)


def misplaced(state: State, found: Placement) -> Iterator[Problem]:
    """What stands against the proof: nodes on the CPU that nothing excuses, copies, an account that contradicts it."""
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
    if state.provider == "tensorrt" and found.nodes.get(CUDA):
        parts.insert(1, f"{found.nodes[CUDA]} on {CUDA}")
    if state.provider in environment.NVIDIA:
        on = state.job.tf32 or state.target.options.get("use_tf32") == "1"
        parts.append(f"TF32 {'on' if on else 'off'}")
        about = environment.gpu_facts(int(state.target.options.get("device_id", 0)))
        parts += [value if name == "device" else f"{name} {value}" for name, value in about.items()]
    if state.target.software:
        parts.append("a software adapter")
    if state.target.software or faulty:
        parts.append(NOT_ON_A_GPU)
    return ", ".join(parts)


# --- the profile


@record
class Placement:
    """Where the nodes of a real run were: how many by provider, and those on the CPU with their operator.

    *copies* are Memcpy nodes between devices. *assigned* is how many nodes onnxruntime said it would give each
    provider. *shape_only* of the CPU's nodes compute sizes: small integers, nothing of the data.
    """

    device: str
    nodes: Mapping[str, int]
    on_cpu: Sequence[tuple[str, str]]
    shape_only: Sequence[tuple[str, str]]
    copies: int
    assigned: Mapping[str, int]

    @property
    def total(self) -> int:
        """All nodes that ran, copies aside."""
        return sum(self.nodes.values())


def placement(events: Sequence[Mapping[str, Any]], assignment: Sequence[Any] | None, device: str) -> Placement:
    """What a profile of onnxruntime and its own account of the assignment say about where nodes run."""
    ran: dict[str, tuple[str, str]] = {}
    shapes: dict[str, bool] = {}
    copies: set[str] = set()
    for event in events:
        name = str(event.get("name", ""))
        about = event.get("args") or {}
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        node, operator = name.removesuffix("_kernel_time"), str(about.get("op_name", ""))
        if operator.startswith("Memcpy"):
            copies.add(node)
            continue
        ran[node] = (str(about.get("provider", "")), operator)
        shapes[node] = shapes.get(node, True) and _computes_sizes(about.get("output_type_shape") or [])
    counts: dict[str, int] = {}
    for provider, _ in ran.values():
        counts[provider] = counts.get(provider, 0) + 1
    on_gpu = (device, CUDA) if device == EXECUTION["tensorrt"] else (device,)
    on_cpu = [(node, operator) for node, (provider, operator) in ran.items() if provider not in on_gpu]
    assigned: dict[str, int] = {}
    for group in assignment or ():
        assigned[group.ep_name] = assigned.get(group.ep_name, 0) + len(group.get_nodes())
    return Placement(device, counts, on_cpu, [(node, op) for node, op in on_cpu if shapes[node]], len(copies), assigned)


def _computes_sizes(outputs: Sequence[Mapping[str, Sequence[int]]]) -> bool:
    """Whether everything that comes out is a handful of integers, as sizes are."""
    found = False
    for output in outputs:
        for kind, sizes in output.items():
            elements = 1
            for axis in sizes:
                elements *= axis
            found = True
            if kind not in ("int64", "int32", "bool") or len(sizes) > 1 or elements > 64:
                return False
    return found


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
