"""The checks of ``ckpt export`` in the order of `CHECKS`: those that this side shares with verify, and the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ckpt_tools.runtime.onnx import environment
from ckpt_tools.runtime.onnx.asked import file
from ckpt_tools.runtime.onnx.export import exports
from ckpt_tools.runtime.onnx.latency import latency
from ckpt_tools.runtime.onnx.outputs import numbers, shapes
from ckpt_tools.runtime.onnx.placement import placed
from ckpt_tools.runtime.onnx.sessions import Refused, target
from ckpt_tools.runtime.onnx.state import State
from ckpt_tools.runtime.onnx.weights import weights as weights_of
from ckpt_tools.runtime.replica import replica
from ckpt_tools.runtime.verify.builds import builds, opens
from ckpt_tools.runtime.verify.keys import keys
from ckpt_tools.runtime.verify.loads import loads
from ckpt_tools.verification.results import Check, Problem, worst_first


def _environment(state: State) -> Check:
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


def _opens(state: State) -> Check:
    return opens(state.subject)


def _builds(state: State) -> Check:
    return builds(state.subject)


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


def _weights(state: State) -> Check:
    """The initializers against the model's tensors."""
    state.model()
    _, model = state.models()
    return weights_of(state.onnx, model)


FUNCTIONS: tuple[Callable[[State], Check], ...] = (
    _environment,
    _opens,
    _builds,
    _keys,
    _loads,
    exports,
    file,
    _weights,
    shapes,
    numbers,
    placed,
    latency,
)
"""In the order of `CHECKS`."""
