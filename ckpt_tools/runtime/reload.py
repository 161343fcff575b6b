"""A model filled from the description of a checkpoint: what ``load_state_dict`` does, without ``torch.load``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ckpt_tools.analysis.overview import wrapper_prefix
from ckpt_tools.checkpoint import StateDict, TensorInfo
from ckpt_tools.errors import CkptError
from ckpt_tools.pickles.values import plain
from ckpt_tools.runtime.replica import replica
from ckpt_tools.runtime.tensors import Tensors, torch_dtype

# torch/nn/modules/batchnorm.py, reset_running_stats
_INITIAL_STATISTICS = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor that the file and the class have with another shape or type; *name* is the class's."""

    name: str
    file_shape: tuple[int, ...]
    file_dtype: str
    class_shape: tuple[int, ...]
    class_dtype: str


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of every tensor; *unexpected* are the file's names, the others the class's.

    *mismatched* ones have another shape and were not loaded; *converted* ones were, and their type was changed
    to the class's, as ``load_state_dict`` does. *supplied* are counters of BatchNorm that the file lacks and
    torch sets to zero by itself, as it does for checkpoints from before it had them. *prefix* is what was
    taken off the file's names, and what was put there.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    converted: tuple[Mismatch, ...]
    supplied: tuple[str, ...]
    prefix: tuple[str, str]

    @property
    def exact(self) -> bool:
        """Whether file and class have the same tensors: ``load_state_dict(strict=True)`` would accept it."""
        return not (self.missing or self.unexpected or self.mismatched)


def load_into(
    model: nn.Module, state_dict: StateDict, tensors: Tensors | None = None, *, exchange: bool = True
) -> LoadReport:
    """Fill *model* with the tensors of *state_dict*, by assignment, and say what fitted.

    The model may be on the meta device or real; what is replaced in it is freed. Parameters keep the class's
    type and ``requires_grad``, tied ones stay tied. The class's own rules of loading apply (renamed keys of
    old versions, extra state). Files are mapped, so that memory stays near the size of the model. Raises
    `CkptError` where the class refuses a tensor, `UnsupportedFeature` for tensors without bytes. *tensors* are what
    the file's are made with, *exchange* is as for `rehearse`.
    """
    return _load(model, state_dict, (tensors or Tensors()).make, exchange)


def rehearse(
    model: nn.Module, state_dict: StateDict, *, exchange: bool = True, build: Callable[[], nn.Module] | None = None
) -> LoadReport:
    """What `load_into` would report; no tensor bytes are read, and *model* stays as it is.

    Without *exchange* of wrappers' prefixes names must fit as they are, as they must for ``load_state_dict``. *build*
    makes another of the kind, where the model is one that cannot be copied.
    """
    try:
        copy = replica(model, empty_parameters=True, empty_buffers=True)
    except CkptError:
        if build is None:
            raise
        copy = build()
    return _load(copy, state_dict, _blank, exchange)


def without_data(model: nn.Module) -> list[str]:
    """The names of parameters and buffers, non-persistent ones included, that are still on the meta device."""
    return [name for name, tensor in _tensors(model) if tensor.is_meta]


def requires_grad_of(model: nn.Module, state_dict: StateDict | None = None) -> dict[str, bool]:
    """The ``requires_grad`` flags of *model*, each name of a tied parameter included.

    With *state_dict*, under its names where a wrapper's prefix makes them differ from the class's.
    """
    flags = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    if state_dict is None:
        return flags
    theirs, ours = _prefixes(state_dict.entries, flags)
    return {theirs + name.removeprefix(ours): flag for name, flag in flags.items()}


def _load(
    model: nn.Module, state_dict: StateDict, make: Callable[[TensorInfo], Tensor], exchange: bool = True
) -> LoadReport:
    own = model.state_dict(keep_vars=True)
    theirs, ours = _prefixes(state_dict.entries, own) if exchange else ("", "")
    given: OrderedDict[str, object] = OrderedDict()
    file_names: dict[str, str] = {}
    unexpected: list[str] = []
    mismatched: list[Mismatch] = []
    converted: list[Mismatch] = []
    for file_name, value in state_dict.entries.items():
        name = ours + file_name.removeprefix(theirs)
        file_names[name] = file_name
        if not isinstance(value, TensorInfo):
            if name.endswith("_extra_state") and _is_data(value):
                given[name] = value
            else:
                unexpected.append(file_name)
            continue
        target = own.get(name)
        if not isinstance(target, Tensor) or nn.parameter.is_lazy(target):
            given[name] = make(value.renamed(file_name))
            continue
        dtype = torch_dtype(value.renamed(file_name))
        mismatch = Mismatch(
            name, value.shape, value.dtype.name, tuple(target.shape), str(target.dtype).removeprefix("torch.")
        )
        # a scalar was a vector of one before torch 0.4; load_state_dict still takes it
        if value.shape != target.shape and not (target.dim() == 0 and value.shape == (1,)):
            mismatched.append(mismatch)
            continue
        made = make(value.renamed(file_name))
        if dtype != target.dtype:
            converted.append(mismatch)
            made = made.to(target.dtype)
        given[name] = made
    given._metadata = _metadata(state_dict, theirs, ours)  # type: ignore[attr-defined]
    ties = _ties(model)
    try:
        answer = model.load_state_dict(given, strict=False, assign=True)
    except RuntimeError as error:
        raise CkptError(f"the class refuses the weights: {' '.join(str(error).split())}") from error
    skipped = {mismatch.name for mismatch in mismatched}
    absent = {*answer.missing_keys, *skipped}
    for names in ties:
        absent -= _tie(model, names, [name for name in names if name not in absent])
    _start_statistics(model)
    counters = {name for name in own if name.endswith("num_batches_tracked") and name not in given}
    return LoadReport(
        loaded=tuple(name for name in own if name not in absent and name not in counters),
        missing=tuple(name for name in answer.missing_keys if name in absent and name not in skipped),
        unexpected=tuple(unexpected + [file_names[name] for name in answer.unexpected_keys]),
        mismatched=tuple(mismatched),
        converted=tuple(converted),
        supplied=tuple(name for name in own if name in counters and name not in absent),
        prefix=(theirs, ours),
    )


def _prefixes(file_names: Mapping[str, object], class_names: Mapping[str, object]) -> tuple[str, str]:
    """The wrappers' prefixes to take off the file's names and to put there, where that makes more of them fit."""
    theirs, ours = wrapper_prefix(file_names), wrapper_prefix(class_names)
    as_they_are = sum(name in class_names for name in file_names)
    exchanged = sum(ours + name.removeprefix(theirs) in class_names for name in file_names)
    return (theirs, ours) if exchanged > as_they_are else ("", "")


def _metadata(state_dict: StateDict, theirs: str, ours: str) -> OrderedDict[str, dict[str, object]]:
    """The ``_metadata`` of torch, whose keys are modules: ``layer1.0.bn1``, and the empty one for the model."""
    found: OrderedDict[str, dict[str, object]] = OrderedDict()
    for path, noted in (state_dict.metadata or {}).items():
        noted = plain(noted)
        if isinstance(noted, Mapping) and f"{path}.".startswith(theirs):
            name = (ours + f"{path}.".removeprefix(theirs)).rstrip(".")
            found[name] = {str(key): plain(value) for key, value in noted.items()}
    return found


def _is_data(value: object) -> bool:
    """Whether *value* is what a class would get from torch too: built of Python's own types all the way down."""
    pending, met = [value], set()
    while pending:
        value = pending.pop()
        if id(value) in met:
            continue
        met.add(id(value))
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            pending += value
        elif type(value) not in (str, bytes, int, float, bool, type(None)):
            return False
    return True


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _ties(model: nn.Module) -> list[list[str]]:
    """The names of each parameter or buffer that has several, in the order in which torch loads them."""
    groups: dict[int, list[str]] = {}
    for name, tensor in _tensors(model):
        groups.setdefault(id(tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _tie(model: nn.Module, names: Sequence[str], loaded: Sequence[str]) -> set[str]:
    """Make *names* one tensor again; the one loaded last decides, as where ``load_state_dict`` copies."""
    if not loaded:
        return set()
    path, _, leaf = loaded[-1].rpartition(".")
    tensor = getattr(model.get_submodule(path), leaf)
    for name in names:
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, tensor)
    return set(names)


def _start_statistics(model: nn.Module) -> None:
    """Give BatchNorm's statistics that are still without data their initial values."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for name, value in _INITIAL_STATISTICS.items():
                buffer = module._buffers.get(name)
                if buffer is not None and buffer.is_meta:
                    module._buffers[name] = torch.full(buffer.shape, value, dtype=buffer.dtype)


def _blank(tensor: TensorInfo) -> Tensor:
    return torch.empty(tensor.shape, dtype=torch_dtype(tensor), device="meta")
