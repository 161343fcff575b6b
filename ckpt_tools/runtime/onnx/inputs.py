"""What the model is called with: the arguments that ``--input`` describes, and the sizes and seeds to try."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from ckpt_tools.errors import CkptError
from ckpt_tools.records import record
from ckpt_tools.runtime.forward import InputSpec
from ckpt_tools.runtime.verify.subject import shape

LARGER = 5
"""A batch that no exporter takes for a special case."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One tensor of the call: its *name* in the ONNX file, complete *sizes*, and the names of its *dynamic* axes.

    *keyword* is what forward calls it where it is not positional; with *listed* it stands alone in a list, as
    torchvision's detection models take images. Values are drawn from *low* to *high*.
    """

    name: str
    sizes: tuple[int, ...]
    dtype: torch.dtype
    keyword: str = ""
    listed: bool = False
    dynamic: Mapping[int, str] = field(default_factory=dict)
    low: float = 0.0
    high: float = 1.0

    def __str__(self) -> str:
        """Sizes with the type, as ``--input`` has them."""
        sizes = f"{str(self.dtype).removeprefix('torch.')}:{','.join(map(str, self.sizes))}"
        spec = f"[{sizes}]" if self.listed else sizes
        return f"{self.keyword}={spec}" if self.keyword else spec

    def sized(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """The sizes where the dynamic axes have those of *dims*."""
        return tuple(dims.get(self.dynamic.get(axis, ""), size) for axis, size in enumerate(self.sizes))

    def make(self, dims: Mapping[str, int], generator: torch.Generator) -> Tensor:
        """A tensor of random values."""
        sizes = self.sized(dims)
        if self.dtype.is_floating_point:
            return (torch.rand(sizes, generator=generator) * (self.high - self.low) + self.low).to(self.dtype)
        low, high = math.ceil(self.low), max(math.floor(self.high) + 1, math.ceil(self.low) + 1)
        return torch.randint(low, high, sizes, generator=generator).to(self.dtype)


@record
class Case:
    """One input of the sweep: the tensors by their names in the file, and what people are told of it."""

    title: str
    tensors: Mapping[str, Tensor]


def arguments(
    inputs: Sequence[str], dynamic: Sequence[str], ranges: Sequence[str], names: Sequence[str], model: nn.Module
) -> list[Argument]:
    """The arguments that the options describe. Raises `CkptError` for what does not fit together."""
    native = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    own = _parameters(model)
    made: list[Argument] = []
    for text in inputs:
        keyword, equals, spec = text.rpartition("=")
        listed = spec.startswith("[") and spec.endswith("]")
        parsed = InputSpec.parse(spec[1:-1] if listed else spec)
        dtype = native if parsed.dtype is None else getattr(torch, parsed.dtype)
        position = len(made)
        if equals and keyword in own[:position]:
            raise CkptError(f"{keyword} is given twice", remedy="An input without a name is the next one of forward")
        # what is named in its own place is as good as positional
        positional = not equals or (position < len(own) and own[position] == keyword)
        name = keyword or (own[position] if position < len(own) else f"input_{position}")
        made.append(Argument(name, parsed.shape, dtype, "" if positional else keyword, listed))
    if names:
        if len(names) != len(made):
            raise CkptError(f"{len(names)} names for {len(made)} inputs", remedy="--input-names a,b names each")
        made = [replace(one, name=name) for one, name in zip(made, names, strict=True)]
    return with_options(made, dynamic, ranges)


def with_options(made: list[Argument], dynamic: Sequence[str], ranges: Sequence[str]) -> list[Argument]:
    """The arguments *made* with dynamic axes and ranges as the options have them."""
    return _with_ranges(_with_dynamic(made, dynamic), ranges)


def _parameters(model: nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        return [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):
        return []


def _with_dynamic(made: list[Argument], dynamic: Sequence[str]) -> list[Argument]:
    for text in dynamic:
        name, equals, axes = text.rpartition("=")
        named: dict[int, str] = {}
        for part in axes.split(","):
            match = re.fullmatch(r"(?:(\d+):)?([A-Za-z_]\w*)", part)
            if match is None:
                raise CkptError(f"{text!r} names no axes", remedy="Such as batch, or 0:batch,2:height, or x=0:batch")
            named[int(match[1] or 0)] = match[2]
        chosen = [one for one in made if not equals or one.name == name]
        if not chosen:
            raise CkptError(f"{text!r}: there is no input {name!r}", remedy=f"There is {_names(made)}")
        axis = max(named)
        if all(axis >= len(one.sizes) for one in chosen):
            raise CkptError(f"{text!r}: no input has an axis {axis}")
        made = [
            replace(one, dynamic={**one.dynamic, **{a: n for a, n in named.items() if a < len(one.sizes)}})
            if one in chosen
            else one
            for one in made
        ]
    return made


def _with_ranges(made: list[Argument], ranges: Sequence[str]) -> list[Argument]:
    for text in ranges:
        match = re.fullmatch(r"(?:(.+)=)?([-+.\deE]+):([-+.\deE]+)", text)
        try:
            low, high = (float(match[2]), float(match[3])) if match is not None else (1.0, 0.0)
        except ValueError:
            low, high = 1.0, 0.0
        if match is None or not low <= high:
            raise CkptError(f"{text!r} is no range", remedy="Such as -1:1, or ids=0:30521")
        if match[1] and match[1] not in [one.name for one in made]:
            raise CkptError(f"{text!r}: there is no input {match[1]!r}", remedy=f"There is {_names(made)}")
        made = [replace(one, low=low, high=high) if match[1] in (None, one.name) else one for one in made]
    return made


def _names(made: Sequence[Argument]) -> str:
    return ", ".join(one.name for one in made)


def call(model: nn.Module, made: Sequence[Argument], tensors: Mapping[str, Tensor]) -> Any:
    """What *model* returns for *tensors*."""
    positional, named = placed(made, tensors)
    return model(*positional, **named)


def placed(made: Sequence[Argument], tensors: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """*tensors* (or what stands for them) in the places of forward's arguments."""
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for one in made:
        value = [tensors[one.name]] if one.listed else tensors[one.name]
        if one.keyword:
            named[one.keyword] = value
        else:
            positional.append(value)
    return tuple(positional), named


def traced(made: Sequence[Argument]) -> dict[str, Tensor]:
    """The tensors to trace with: a dynamic axis of 0 or 1 is 2, as torch.export takes those for constants."""
    dims = {name: max(made_of.sizes[axis], 2) for made_of in made for axis, name in made_of.dynamic.items()}
    generator = torch.Generator().manual_seed(0)
    return {one.name: one.make(dims, generator) for one in made}


def cases(made: Sequence[Argument], seeds: int) -> Iterator[Case]:
    """The sweep: each seed at the sizes that were given, then other sizes of each dynamic axis, one at a time.

    Of a first axis: 1, one more than was given, and a larger one; of another: twice of what was given.
    """
    given = {name: one.sizes[axis] for one in made for axis, name in one.dynamic.items()}
    first = {name for one in made for axis, name in one.dynamic.items() if axis == 0}
    for seed in range(seeds):
        yield _case(made, given, seed)
    for name, size in given.items():
        others = (1, size + 1, max(LARGER, 2 * size + 1)) if name in first else (2 * size,)
        for other in others:
            if other != size:
                yield _case(made, {**given, name: other}, 0)


def _case(made: Sequence[Argument], dims: Mapping[str, int], seed: int) -> Case:
    generator = torch.Generator().manual_seed(seed)
    title = ", ".join(shape(one.sized(dims)) for one in made)
    return Case(f"{title}, seed {seed}", {one.name: one.make(dims, generator) for one in made})


def read_samples(path: str, made: Sequence[Argument]) -> Case:
    """The real inputs in a ``.npz``, by the names of the inputs, or in their order where there is no such name."""
    try:
        with numpy.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, TypeError, AttributeError) as error:
        raise CkptError(f"is no readable .npz: {error}", path=path) from None
    names = [one.name for one in made]
    if len(arrays) != len(names):
        raise CkptError(f"holds {len(arrays)} arrays for {len(names)} inputs", path=path)
    if set(arrays) != set(names):
        arrays = dict(zip(names, arrays.values(), strict=True))
    tensors = {one.name: torch.from_numpy(numpy.ascontiguousarray(arrays[one.name])) for one in made}
    for one in made:
        if one.dtype.is_floating_point:
            tensors[one.name] = tensors[one.name].to(one.dtype)
    return Case(f"{path}, {', '.join(shape(tuple(tensors[name].shape)) for name in names)}", tensors)
