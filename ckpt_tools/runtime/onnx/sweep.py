"""Many inputs through torch and through onnxruntime, and what each run came to."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import permutations

import torch
from torch import Tensor, nn

from ckpt_tools.records import record
from ckpt_tools.runtime.forward import tensors_in
from ckpt_tools.runtime.onnx.compare import Difference, Tolerance, compare, mismatch
from ckpt_tools.runtime.onnx.inputs import Argument, Case, call
from ckpt_tools.runtime.onnx.sessions import Refused, Session
from ckpt_tools.runtime.onnx.weights import same_bits

HALF = (torch.float16, torch.bfloat16)


@record
class Run:
    """One output of one run on one provider, against torch.

    *shape* says why shape or type are not torch's, *refused* why the file was not run, *unfit* why torch itself does
    not take the input; *difference* is there where none of these is. *constant* is whether torch has returned the same
    for another input of these sizes.
    """

    case: Case
    on: str
    output: str
    shape: str = ""
    refused: str = ""
    unfit: str = ""
    difference: Difference | None = None
    order: str = ""
    constant: bool = False

    @property
    def fault(self) -> str:
        """Why the numbers do not pass; "" where they do, or were not compared."""
        return self.difference.fault if self.difference is not None else ""


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[list[str]]:
    """Buffers that are written to inside are as before at the end; their names are in the list then."""
    kept = [
        (f"{path}.{name}".lstrip("."), module, name, buffer, buffer.detach().clone())
        for path, module in model.named_modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    changed: list[str] = []
    try:
        yield changed
    finally:
        with torch.no_grad():
            for title, module, name, buffer, copy in kept:
                if module._buffers[name] is not buffer or not same_bits(buffer, copy):
                    changed.append(title)
                    buffer.copy_(copy)
                    module._buffers[name] = buffer


def reference(model: nn.Module, made: Sequence[Argument], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What torch returns, by the paths of the outputs; inputs of half precision are widened for it."""
    native = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    wide = {name: t.to(native) if t.dtype in HALF and native not in HALF else t for name, t in tensors.items()}
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        return dict(tensors_in(call(model, made, wide)))


def sweep(
    model: nn.Module,
    made: Sequence[Argument],
    cases: Sequence[Case],
    sessions: Sequence[tuple[Session, Tolerance]],
) -> Iterator[Run]:
    """Each output of each case in each session."""
    before: dict[tuple[str, tuple[int, ...]], Tensor] = {}
    for case in cases:
        try:
            with untouched(model):
                wanted = reference(model, made, case.tensors)
        except Exception as error:
            text = textwrap.shorten(f"{type(error).__name__}: {error}", 240, placeholder=" …")
            yield Run(case, "torch", "", unfit=text)
            continue
        constant = {
            path
            for path, tensor in wanted.items()
            if (earlier := before.get((path, tuple(tensor.shape)))) is not None and torch.equal(earlier, tensor)
        }
        before |= {(path, tuple(tensor.shape)): tensor for path, tensor in wanted.items()}
        for session, allowed in sessions:
            yield from _one(case, wanted, session, allowed, constant)


def _one(
    case: Case, wanted: Mapping[str, Tensor], session: Session, allowed: Tolerance, constant: Collection[str]
) -> Iterator[Run]:
    on = session.target.provider
    try:
        found = session.run(case.tensors)
    except Refused as error:
        yield Run(case, on, "", refused=str(error))
        return
    if len(found) != len(wanted):
        text = f"the file has {len(found)} outputs ({', '.join(session.outputs)}), torch returns {len(wanted)}"
        yield Run(case, on, "", shape=text)
        return
    references = list(wanted.values())
    order = _order(references, found, allowed, session.outputs)
    for name, (path, expected), value in zip(session.outputs, wanted.items(), found, strict=True):
        wrong = mismatch(expected, value)
        if wrong:
            yield Run(case, on, name, shape=wrong, order=order)
        else:
            difference = compare(expected, value, allowed)
            yield Run(case, on, name, difference=difference, order=order, constant=path in constant)


def _order(references: Sequence[Tensor], found: Sequence[Tensor], allowed: Tolerance, names: Sequence[str]) -> str:
    """In which other order the outputs are those of torch; "" where they are in this one, or in none."""
    same = [
        [not mismatch(wanted, value) and not compare(wanted, value, allowed).fault for value in found]
        for wanted in references
    ]
    if len(found) < 2 or all(same[i][i] for i in range(len(found))):
        return ""
    if len(found) > 6:
        return ""
    for order in permutations(range(len(found))):
        if all(same[i][j] for i, j in enumerate(order)):
            return ", ".join(names[j] for j in order)
    return ""
