"""What the checks know of the file and the class, each adding to it for those after it."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from torch import Tensor, nn

from ckpt_tools.analysis.holding import last_layer
from ckpt_tools.checkpoint import Checkpoint, Module, StateDict, TensorInfo
from ckpt_tools.records import record
from ckpt_tools.runtime.locate import locate
from ckpt_tools.runtime.reload import LoadReport
from ckpt_tools.verification.job import Job


class Stop(Exception):
    """A check cannot be made, because of what an earlier one has found. Its text says why."""


@record
class Head:
    """The last layer: its *name*, and the *weight* that says how many outputs it has."""

    name: str
    weight: TensorInfo

    @property
    def outputs(self) -> int:
        """Classes, or whatever it puts out."""
        return self.weight.shape[0]


@dataclass(slots=True)
class Subject:
    """One file and the class it is held against.

    *renamed* is the state_dict under the class's names, as far as a way to rename it was found, *names* the
    file's name of each of these; *fits* is what loading that would come to, *usable* whether the model can be
    filled by it. *arguments* are what the class is built with: those given, and those found to be missing.
    """

    job: Job
    checkpoint: Checkpoint | None = None
    state_dict: StateDict | None = None
    module: Module | None = None
    arguments: dict[str, object] = field(default_factory=dict)
    model: nn.Module | None = None
    renamed: StateDict | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    fits: LoadReport | None = None
    usable: bool = False
    filled: nn.Module | None = None

    def file(self) -> tuple[Checkpoint, StateDict]:
        """The file, where it could be read."""
        if self.checkpoint is None or self.state_dict is None:
            raise Stop("the file could not be read")
        return self.checkpoint, self.state_dict

    def built(self) -> nn.Module:
        """The model, its parameters without data where the class allows."""
        if self.model is None:
            raise Stop("the class could not be built")
        return self.model

    def loaded(self) -> nn.Module:
        """The model with the file's weights."""
        self.built()
        if self.filled is None:
            raise Stop("the weights could not be loaded")
        return self.filled

    def build(self, *, empty: bool = True) -> nn.Module:
        """A new model of the class."""
        job = self.job
        return locate(job.model, job.args, self.arguments, checkpoint=self.checkpoint, trust=job.trust, empty=empty)


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether *name* matches one of *globs*."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def head_of(tensors: Sequence[TensorInfo]) -> Head | None:
    """The last layer that has a matrix of weights, auxiliary heads left out."""
    by_name = {tensor.name: tensor for tensor in tensors}
    layer = last_layer({name: tensor.shape for name, tensor in by_name.items()})
    return Head(layer, by_name[f"{layer}.weight".removeprefix(".")]) if layer is not None else None


def elements(tensors: Iterable[Tensor]) -> int:
    """Elements of *tensors*, shared ones once; lazy ones have none."""
    distinct = {id(tensor): tensor for tensor in tensors if not nn.parameter.is_lazy(tensor)}
    return sum(tensor.numel() for tensor in distinct.values())


def shape(sizes: Sequence[int]) -> str:
    """``64×3×7×7``."""
    return "×".join(map(str, sizes)) if sizes else "scalar"


def percent(part: int, whole: int) -> str:
    """``99.9 %``, and never 100 where it is not."""
    if part >= whole:
        return "100 %"
    return f"{min(100 * part / whole, 99.99):.4g} %"


def unreachable() -> NoReturn:
    """For what checks that have passed rule out."""
    raise AssertionError("unreachable")
