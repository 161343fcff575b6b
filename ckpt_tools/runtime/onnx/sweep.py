"""Many inputs through torch and through onnxruntime, and what each run came to."""

from __future__ import annotations

import contextlib
import functools
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import permutations

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from ckpt_tools.records import record
from ckpt_tools.runtime.forward import tensors_in
from ckpt_tools.runtime.onnx.compare import Difference, Tolerance, compare, mismatch
from ckpt_tools.runtime.onnx.inputs import Argument, Case, call
from ckpt_tools.runtime.onnx.rows import Compared, compare_things, compare_whole, counted, found_things
from ckpt_tools.runtime.onnx.sessions import Refused, Session
from ckpt_tools.runtime.onnx.weights import same_bits

HALF = (torch.float16, torch.bfloat16)

MOVES = 8
"""How often torch runs with other roundings to see what hangs on them: what half of them turn is missed in 0.4 %."""

Moved = Callable[[], Iterator[dict[str, Tensor]]]
"""Torch's outputs for a case, by their paths, with other roundings each time."""


@record
class Run:
    """One output of one run on one provider, against torch.

    *shape* says why shape or type are not torch's, *refused* why the file was not run, *unfit* why torch itself does
    not take the input; *compared* is there where none of these is. *constant* is whether torch has returned the same
    for another input of these sizes, *empty* whether there was nothing to compare.
    """

    case: Case
    on: str
    output: str
    shape: str = ""
    refused: str = ""
    unfit: str = ""
    compared: Compared | None = None
    order: str = ""
    constant: bool = False
    empty: bool = False

    @property
    def difference(self) -> Difference | None:
        """How far the two are apart; None where they were not compared."""
        return self.compared.difference if self.compared is not None else None

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
            moved = functools.partial(_moved, model, made, case, allowed.absolute)
            yield from _one(case, wanted, session, allowed, constant, moved)


def _one(
    case: Case,
    wanted: Mapping[str, Tensor],
    session: Session,
    allowed: Tolerance,
    constant: Collection[str],
    moved: Moved,
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
    answers = _compared(wanted, found, session, allowed, moved)
    for name, path, answer in zip(session.outputs, wanted, answers, strict=True):
        if isinstance(answer, str):
            yield Run(case, on, name, shape=answer, order=order)
        else:
            empty = not wanted[path].numel()
            yield Run(case, on, name, compared=answer, order=order, constant=path in constant, empty=empty)


def _compared(
    wanted: Mapping[str, Tensor], found: Sequence[Tensor], session: Session, allowed: Tolerance, moved: Moved
) -> list[Compared | str]:
    """Each output's difference, or why its shape or type is another."""
    references = list(wanted.values())
    answers: list[Compared | str] = [
        mismatch(reference, value) or Compared(compare(reference, value, allowed))
        for reference, value in zip(references, found, strict=True)
    ]

    def differs(index: int) -> bool:
        answer = answers[index]
        return isinstance(answer, str) or bool(answer.difference.fault)

    for group in found_things(list(wanted), references, counted(session.raw)):
        if any(differs(index) for index in group):
            things = compare_things(
                [references[index] for index in group],
                [found[index] for index in group],
                allowed,
                ([list(other.values())[index] for index in group] for other in moved() if len(other) == len(wanted)),
                [session.outputs[index] for index in group],
            )
            for index, thing in zip(group, things or (), strict=False):
                answers[index] = thing
        for index in group:
            answer = answers[index]
            if not isinstance(answer, str):  # the largest entry of a box is no class
                answers[index] = answer.without_top1()
    for index, answer in enumerate(answers):
        whole = not (references[index].dtype.is_floating_point or references[index].dtype.is_complex)
        if whole and not isinstance(answer, str) and answer.difference.kind == "numbers":
            others = (list(other.values())[index] for other in moved() if len(other) == len(wanted))
            answers[index] = compare_whole(references[index], found[index], allowed, others)
    return answers


def _moved(model: nn.Module, made: Sequence[Argument], case: Case, by: float) -> Iterator[dict[str, Tensor]]:
    """What torch returns for *case* where inputs and the output of each layer are moved, `MOVES` times.

    Each value is moved by up to *by* of the largest in its tensor: as much as the tolerance allows of an output.
    """
    generator = torch.Generator().manual_seed(0)

    def moved(tensor: Tensor) -> Tensor:
        if not tensor.dtype.is_floating_point or not tensor.numel():
            return tensor
        noise = torch.rand(tensor.shape, generator=generator) * 2 - 1
        return tensor + (noise * float(tensor.abs().max()) * by).to(tensor)

    def after(module: nn.Module, inputs: object, output: object) -> object:
        return moved(output) if isinstance(output, Tensor) and not list(module.children()) else None

    for _ in range(MOVES):
        hook = register_module_forward_hook(after)
        try:
            with untouched(model):
                found = reference(model, made, {name: moved(tensor) for name, tensor in case.tensors.items()})
        except Exception:  # of the class, which does not take what is moved: that tells nothing
            return
        finally:
            hook.remove()
        yield found


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
