"""The check ``latency``: the first run and those after it, with and without copies of the inputs, beside torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_tools.records import record
from ckpt_tools.report import size
from ckpt_tools.runtime.onnx.environment import NVIDIA
from ckpt_tools.runtime.onnx.inputs import Argument, call, cases
from ckpt_tools.runtime.onnx.sessions import Refused, Session, Target, open_session, ort_value
from ckpt_tools.runtime.onnx.state import State
from ckpt_tools.runtime.verify.subject import Stop
from ckpt_tools.verification.results import Check

BUDGET = 5.0
"""Seconds that the runs of one kind may take together, once three have been made."""

RUNS = 50


def latency(state: State) -> Check:
    """How long the first run takes and those after it, beside torch."""
    if not state.job.latency:
        raise Stop("not asked for: --latency measures it")
    state.model()
    assert state.target is not None
    _, model = state.models()
    tensors = next(iter(cases(state.made, 1))).tensors
    try:
        found, memory = onnx_times(state.onnx, state.target, tensors)
    except Refused as error:
        raise Stop(str(error)) from None
    found["torch eager"] = torch_times(model, state.made, tensors, state.target)
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


@record
class Times:
    """Seconds of one run: the *cold* one, and of the warm ones the median and the 95th of a hundred, of how many."""

    cold: float
    p50: float
    p95: float
    runs: int

    def as_json(self) -> dict[str, float | int]:
        """Rounded to microseconds."""
        return {"cold": round(self.cold, 6), "p50": round(self.p50, 6), "p95": round(self.p95, 6), "runs": self.runs}


def times(run: Callable[[], object]) -> Times:
    """Call *run* once cold, then as often as the budget allows."""
    cold = _seconds(run)
    warm: list[float] = []
    begun = time.perf_counter()
    while len(warm) < RUNS and (len(warm) < 3 or time.perf_counter() - begun < BUDGET):
        warm.append(_seconds(run))
    warm.sort()
    return Times(cold, statistics.median(warm), warm[min(len(warm) - 1, int(0.95 * len(warm)))], len(warm))


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def onnx_times(path: str, where: Target, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Times], int | None]:
    """Times of a new session, with the inputs copied in and outputs out, and bound; and device memory that it took."""
    before = _device_memory(where)
    begun = time.perf_counter()
    session = open_session(path, where, packed=True)
    started = time.perf_counter() - begun
    copied = times(lambda: session.run(tensors))
    found = {
        "with copies": Times(started + copied.cold, copied.p50, copied.p95, copied.runs),
        "without copies": times(_bound(session, tensors)),
    }
    after = _device_memory(where)
    return found, after - before if before is not None and after is not None else None


def _bound(session: Session, tensors: Mapping[str, Tensor]) -> Callable[[], object]:
    """A run whose inputs lie on the device already, and whose outputs stay there."""
    device = "cuda" if session.target.provider in NVIDIA else "cpu"
    binding: Any = session.raw.io_binding()
    held = {name: ort_value(tensor, device) for name, tensor in tensors.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    for name in session.outputs:
        binding.bind_output(name, device)

    def run() -> None:
        session.raw.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def torch_times(model: nn.Module, made: Sequence[Argument], tensors: Mapping[str, Tensor], where: Target) -> Times:
    """Torch's own eager times on the same device."""
    cuda = where.provider in NVIDIA
    device = torch.device("cuda" if cuda else "cpu")
    there = {name: tensor.to(device) for name, tensor in tensors.items()}
    model.to(device)

    def run() -> None:
        with torch.inference_mode():
            call(model, made, there)
        if cuda:
            torch.cuda.synchronize()

    try:
        return times(run)
    finally:
        model.to("cpu")


def _device_memory(where: Target) -> int | None:
    """Bytes of the device that are in use."""
    if where.provider not in NVIDIA or not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return int(total - free)
