"""What each layer puts out when a model runs once: shapes, multiply-adds, activations.

The run is of a copy in eval mode, without gradients. It is done on the meta device, where tensors have shapes
but no data; where the model cannot run so, because its control flow depends on values, it is done on the CPU
with the checkpoint's weights. `ckpt_tools.runtime.mult_adds` has the rule by which multiply-adds are counted.

A layer's parameters and multiply-adds are its own, without those of the layers inside it, so that each column
adds up to its total. Activations are the memory that outputs of layers take, each counted where it first comes
out: a layer that works in place or returns a view adds nothing, nor does the end of a block that returns what
its last layer put out. (torchinfo's "forward/backward pass size" is twice the outputs of leaf layers with
parameters.)
"""

from __future__ import annotations

import contextlib
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ckpt_tools.checkpoint import StateDict
from ckpt_tools.errors import CkptError
from ckpt_tools.runtime.mult_adds import MultAdds
from ckpt_tools.runtime.reload import load_into, without_data
from ckpt_tools.runtime.replica import replica


@dataclass(frozen=True, slots=True)
class InputSpec:
    """An input to make up: *shape* without the batch, and torch's name of its type, None for that of the model."""

    shape: tuple[int, ...]
    dtype: str | None = None

    @classmethod
    def parse(cls, text: str) -> InputSpec:
        """``3,224,224`` or, with a type, ``int64:128``."""
        match = re.fullmatch(r"(?:(\w+):)?(\d+(?:,\d+)*)", text)
        if match is None:
            raise CkptError(f"{text!r} is no input", remedy="Sizes are wanted, such as 3,224,224 or int64:128")
        if match[1] is not None and not isinstance(getattr(torch, match[1], None), torch.dtype):
            raise CkptError(
                f"{text!r}: torch has no type {match[1]!r}", remedy="Types are such as float32, int64, bool"
            )
        return cls(tuple(int(digits) for digits in match[2].split(",")), match[1])


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor among what a layer returned, with the *path* to it: ``""``, ``logits``, ``[0].boxes``."""

    path: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Layer:
    """One call of a module, or one that was never called but has parameters (*called* is False).

    *depth* is how many calls it is inside of. *parameters* are elements of its own parameters,
    *shared_parameters* of those that an earlier line has counted already. *activation_bytes* as the module's
    text says.
    """

    name: str
    class_name: str
    depth: int
    outputs: tuple[Output, ...] = ()
    parameters: int = 0
    shared_parameters: int = 0
    mult_adds: int = 0
    activation_bytes: int = 0
    called: bool = True


@dataclass(frozen=True, slots=True)
class ForwardSummary:
    """The layers in the order in which they were called, and totals.

    *parameters* and *trainable_parameters* are the model's, shared ones once. *ran_on* is the kind of device;
    where that is not meta, *why_not_meta* says what stood against it.
    """

    layers: tuple[Layer, ...]
    inputs: tuple[Output, ...]
    parameters: int
    trainable_parameters: int
    mult_adds: int
    activation_bytes: int
    ran_on: str
    why_not_meta: str = ""


def forward_summary(
    model: nn.Module, inputs: Sequence[InputSpec], *, batch: int | None = 1, state_dict: StateDict | None = None
) -> ForwardSummary:
    """Run a copy of *model* once on made-up *inputs* and report each layer.

    *batch* is put before each input's shape; None takes the shapes as they are. Integers are zeros, floats
    random. *state_dict* fills the copy where it must run on the CPU; without it the model's own weights do.
    Raises `CkptError` where the model cannot run, with the layer and the reason.
    """
    subject = replica(model, empty_parameters=True, empty_buffers=True)
    made = _inputs(inputs, batch, model, torch.device("meta"))
    try:
        return _run(subject, made, torch.device("meta"))
    except CkptError as error:
        obstacle = error
    if state_dict is not None:
        subject = replica(model, empty_parameters=True)
        _fill(subject, state_dict, obstacle)
    elif without_data(model):
        raise obstacle
    else:
        subject = replica(model)
    device = next((parameter.device for parameter in subject.parameters()), torch.device("cpu"))
    summary = _run(subject, _inputs(inputs, batch, model, device), device)
    return replace(summary, why_not_meta=obstacle.problem)


def _fill(subject: nn.Module, state_dict: StateDict, obstacle: CkptError) -> None:
    load_into(subject, state_dict)
    empty = without_data(subject)
    if empty:
        raise CkptError(
            f"the model must run with its weights, but the file does not have {', '.join(empty[:3])}"
            f"{f' and {len(empty) - 3} more' if empty[3:] else ''} as the class does; without: {obstacle.problem}"
        )


def _inputs(specs: Sequence[InputSpec], batch: int | None, model: nn.Module, device: torch.device) -> list[Tensor]:
    native = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    generator = torch.Generator().manual_seed(0)
    made = []
    for spec in specs:
        shape = spec.shape if batch is None else (batch, *spec.shape)
        dtype = native if spec.dtype is None else getattr(torch, spec.dtype)
        if device.type == "meta" or not (dtype.is_floating_point or dtype.is_complex):
            made.append(torch.zeros(shape, dtype=dtype, device=device))
        else:
            made.append(torch.rand(shape, generator=generator).to(device, dtype))
    return made


# --- the run


@dataclass(slots=True)
class _Line:
    """What is gathered of a call while it runs."""

    module: nn.Module
    depth: int
    outputs: tuple[Output, ...] = ()
    mult_adds: int = 0
    activation_bytes: int = 0


class _Recorder:
    """Follows the calls of a model's modules by torch's global hooks, so that none is put on the model."""

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self.lines: list[_Line] = []
        self.stack: list[_Line] = []
        # weak, so that activations are freed as always; while such a reference lives, no other storage gets its address
        self.seen: dict[int, StorageWeakRef] = {}
        for tensor in (*inputs, *_sized(model.parameters()), *_sized(model.buffers())):
            self._first_seen(tensor)

    def before(self, module: nn.Module, inputs: object) -> None:
        if id(module) in self.names:
            line = _Line(module, len(self.stack))
            self.lines.append(line)
            self.stack.append(line)

    def after(self, module: nn.Module, inputs: object, output: object) -> None:
        if id(module) not in self.names:
            return
        # calls that raised, and were caught by the model, are still on the stack
        while self.stack and self.stack[-1].module is not module:
            self.stack.pop()
        line = self.stack.pop()
        found = list(tensors_in(output))
        line.outputs = tuple(_described(path, tensor) for path, tensor in found)
        line.activation_bytes = sum(
            tensor.numel() * tensor.element_size() for _, tensor in found if self._first_seen(tensor)
        )

    def tally(self, mult_adds: int) -> None:
        if self.stack:
            self.stack[-1].mult_adds += mult_adds

    def _first_seen(self, tensor: Tensor) -> bool:
        try:
            reference = StorageWeakRef(tensor.untyped_storage())
        except (NotImplementedError, RuntimeError):  # sparse and wrapped tensors have none
            return False
        if reference.cdata in self.seen:
            return False
        self.seen[reference.cdata] = reference
        return True


def _run(model: nn.Module, inputs: Sequence[Tensor], device: torch.device) -> ForwardSummary:
    model.eval()
    recorder = _Recorder(model, inputs)
    hooks = (register_module_forward_pre_hook(recorder.before), register_module_forward_hook(recorder.after))
    try:
        with _quietly(), torch.inference_mode(), MultAdds(recorder.tally), device:
            model(*inputs)
    except Exception as error:
        place = ""
        if recorder.stack:
            at = recorder.stack[-1]
            place = f" in {recorder.names[id(at.module)] or 'the model'} ({type(at.module).__name__})"
        message = textwrap.shorten(str(error), 240, placeholder=" …")
        raise CkptError(
            f"the forward pass on {device.type} fails{place}: {type(error).__name__}: {message}",
            remedy="--input gives the sizes without the batch",
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    layers = _layers(model, recorder)
    return ForwardSummary(
        layers=layers,
        inputs=tuple(_described("", tensor) for tensor in inputs),
        parameters=sum(p.numel() for p in _sized(model.parameters())),
        trainable_parameters=sum(p.numel() for p in _sized(model.parameters()) if p.requires_grad),
        mult_adds=sum(layer.mult_adds for layer in layers),
        activation_bytes=sum(layer.activation_bytes for layer in layers),
        ran_on=device.type,
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """What the model prints goes to standard error; torch's random state and its fast paths stay as they were."""
    fast = torch.backends.mha.get_fastpath_enabled()
    # the fast path of nn.TransformerEncoder is one operator, in which no layer is seen
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _layers(model: nn.Module, recorder: _Recorder) -> tuple[Layer, ...]:
    """The calls, each uncalled module with parameters after the module that it is in."""
    layers: list[Layer] = []
    waiting: dict[str, list[tuple[str, nn.Module]]] = {}
    called = {recorder.names[id(line.module)] for line in recorder.lines}
    for name, module in model.named_modules():
        if name not in called and any(p is not None for p in module._parameters.values()):
            parent = name
            while parent and parent not in called:
                parent = parent.rpartition(".")[0]
            waiting.setdefault(parent, []).append((name, module))
    counted: set[int] = set()
    for line in recorder.lines:
        name = recorder.names[id(line.module)]
        new, shared = _own_parameters(line.module, counted)
        layers.append(
            Layer(
                name,
                type(line.module).__name__,
                line.depth,
                line.outputs,
                new,
                shared,
                line.mult_adds,
                line.activation_bytes,
            )
        )
        for inner, module in waiting.pop(name, ()):
            new, shared = _own_parameters(module, counted)
            layers.append(Layer(inner, type(module).__name__, line.depth + 1, (), new, shared, called=False))
    return tuple(layers)


def _own_parameters(module: nn.Module, counted: set[int]) -> tuple[int, int]:
    new = shared = 0
    for parameter in _sized(module._parameters.values()):
        if id(parameter) in counted:
            shared += parameter.numel()
        else:
            new += parameter.numel()
            counted.add(id(parameter))
    return new, shared


def _sized(tensors: Iterable[Tensor | None]) -> Iterator[Tensor]:
    """Without what is None, or of a lazy module that has not run."""
    return (tensor for tensor in tensors if tensor is not None and not nn.parameter.is_lazy(tensor))


def _described(path: str, tensor: Tensor) -> Output:
    return Output(path, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def tensors_in(value: object) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested mappings, sequences, named tuples and dataclasses, with the path to each."""
    pending: list[tuple[str, object]] = [("", value)]
    met: set[int] = set()
    while pending:
        path, value = pending.pop()
        if isinstance(value, Tensor):
            yield path, value
            continue
        if isinstance(value, str | bytes) or id(value) in met:
            continue
        met.add(id(value))
        items: list[tuple[str, object]] = []
        if isinstance(value, Mapping):
            items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            items = [(f"{path}.{key}" if path else key, item) for key, item in zip(value._fields, value, strict=True)]
        elif isinstance(value, list | tuple):
            items = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
        elif is_dataclass(value) and not isinstance(value, type):
            items = [(f"{path}.{f.name}" if path else f.name, getattr(value, f.name)) for f in fields(value)]
        pending += reversed(items)
