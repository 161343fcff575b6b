"""The initializers of an ONNX file, held bit for bit against the weights of a model."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.errors import UnsupportedFeature
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.records import record
from ckpt_tools.report import count, listed
from ckpt_tools.runtime.tensors import Tensors
from ckpt_tools.verification.results import Check, Problem

FOLDED = 2
"""How far a weight may be from a multiple of the checkpoint's, in roundings of its type: it is one product."""


@record
class Weights:
    """What became of the model's tensors, by their names.

    *equal* are there bit for bit, *elsewhere* too, but under another name (the value), as transposed matrices are and
    tensors that are equal to another; *folded* were multiplied by one factor a channel, as where BatchNorm is folded
    into the layer before it, *absorbed* are not in the file: the exporter computed with them, or eval mode needs none.
    *altered* are none of these. *own* are initializers that the model has no tensor for.
    """

    equal: list[str]
    elsewhere: dict[str, str]
    folded: list[str]
    absorbed: list[str]
    altered: dict[str, str]
    own: list[str]


def weights(path: str, model: nn.Module) -> Check:
    """Whether the initializers of the file *path* are the tensors of *model*."""
    found = match(path, model)
    problems: list[Problem] = []
    if found.altered:
        named = listed([f"{name} ({how})" for name, how in found.altered.items()], 3)
        problems.append(
            Problem(
                "altered-weights",
                "error",
                f"{count(len(found.altered), 'initializer')} named as a tensor that is not it: {named}",
                "The file was made from other weights, or changed afterwards: export it again",
            )
        )
    if found.folded:
        problems.append(
            Problem(
                "folded-weights",
                "note",
                f"{count(len(found.folded), 'tensor')} multiplied by a factor a channel, as BatchNorm is folded into "
                f"the layer before: {listed(found.folded, 8)}",
            )
        )
    if found.absorbed:
        message = f"not in the file, computed with or not needed in eval mode: {listed(found.absorbed, 8)}"
        problems.append(Problem("absorbed-weights", "note", f"{count(len(found.absorbed), 'tensor')} {message}"))
    elsewhere = set(found.elsewhere.values()) - set(found.equal)
    parts = [
        f"{len(names)} {what}"
        for names, what in (
            ([*found.equal, *elsewhere], "bit for bit the checkpoint's"),
            (found.folded, "folded"),
            (found.own, "the exporter's own"),
            (found.altered, "ALTERED"),
        )
        if names
    ]
    total = len(found.equal) + len(elsewhere) + len(found.folded) + len(found.own) + len(found.altered)
    facts = {
        "equal": found.equal,
        "elsewhere": found.elsewhere,
        "folded": found.folded,
        "absorbed": found.absorbed,
        "altered": found.altered,
        "own": found.own,
    }
    if not total:
        return Check("weights", "it has no initializers", problems, facts)
    return Check("weights", f"{count(total, 'initializer')}: {', '.join(parts)}", problems, facts)


def match(path: str, model: nn.Module) -> Weights:
    """Look for each tensor of *model* in the file; one initializer at a time is in memory."""
    own = dict(_tensors(model))
    initializers = {info.name: info for info in _initializers(path)}
    found = Weights([], {}, [], [], {}, [])
    unmatched: list[TensorInfo] = []
    for name, info in initializers.items():
        wanted = own.get(name)
        if wanted is None:
            unmatched.append(info)
            continue
        try:
            tensor = Tensors().make(info)
        except UnsupportedFeature as error:
            found.altered[name] = error.problem
            continue
        if tensor.dtype == wanted.dtype and tensor.shape == wanted.shape and same_bits(tensor, wanted):
            found.equal.append(name)
        elif _scaled(tensor, wanted):
            found.folded.append(name)
        else:
            found.altered[name] = _how(tensor, wanted)
    for name in [name for name in found.altered if _beside_folded(name, found.folded)]:
        del found.altered[name]
        found.folded.append(name)
    missing = [name for name in own if name not in initializers]
    _elsewhere(found, {name: own[name] for name in missing}, unmatched, own)
    shared = {id(own[name]) for name in (*found.equal, *found.folded, *found.elsewhere)}
    found.absorbed.extend(name for name in missing if name not in found.elsewhere and id(own[name]) not in shared)
    taken = set(found.elsewhere.values())
    found.own.extend(info.name for info in unmatched if info.name not in taken)
    return found


def _initializers(path: str) -> Sequence[TensorInfo]:
    found = open_checkpoint(path).model_state_dict()
    return found.tensors if found is not None else ()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of a type and shape have the same bytes, NaN and zeros of either sign included."""
    return bool(torch.equal(_bytes(a), _bytes(b)))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _scaled(tensor: Tensor, wanted: Tensor) -> bool:
    """Whether *tensor* is *wanted* with each channel (of axis 0, or 1 as of transposed convolutions) times a factor."""
    if tensor.shape != wanted.shape or tensor.dim() < 2 or not tensor.dtype.is_floating_point:
        return False
    for axis in (0, 1):
        a = tensor.detach().transpose(0, axis).flatten(1)
        b = wanted.detach().transpose(0, axis).flatten(1)
        if all(_multiple(x, y) for x, y in zip(a.split(64), b.split(64), strict=True)):
            return True
    return False


def _multiple(a: Tensor, b: Tensor) -> bool:
    kind = torch.finfo(a.dtype)
    a, b = a.double(), b.double()
    factor = (a * b).sum(1, keepdim=True) / (b * b).sum(1, keepdim=True).clamp_min(1e-300)
    return bool(((a - factor * b).abs() <= FOLDED * kind.eps * (factor * b).abs() + kind.smallest_normal).all())


def _beside_folded(name: str, folded: list[str]) -> bool:
    """Whether it is the bias of a layer whose weight was folded: it takes up what BatchNorm adds."""
    layer, _, leaf = name.rpartition(".")
    return leaf == "bias" and f"{layer}.weight" in folded


def _how(tensor: Tensor, wanted: Tensor) -> str:
    if tensor.shape != wanted.shape:
        return f"{list(tensor.shape)} for {list(wanted.shape)}"
    if tensor.dtype != wanted.dtype:
        return f"{tensor.dtype} for {wanted.dtype}".replace("torch.", "")
    different = int((tensor != wanted).sum())
    return f"{different:,} of {tensor.numel():,} values differ"


def _elsewhere(
    found: Weights, missing: Mapping[str, Tensor], initializers: list[TensorInfo], own: Mapping[str, Tensor]
) -> None:
    """Look for tensors by their content, as they are or transposed: exporters turn some, and keep equal ones once."""
    wanted = {name: t for name, t in missing.items() if not t.is_meta and t.numel() > 1}
    sizes = {(t.numel(), _kind(t)) for t in wanted.values()}
    contents: dict[tuple[str, str], str] = {}
    for name in found.equal:
        if (own[name].numel(), _kind(own[name])) in sizes:
            contents[_kind(own[name]), _hash(own[name])] = name
    for info in initializers:
        if (info.numel, info.dtype.name) in sizes:
            with contextlib.suppress(UnsupportedFeature):
                contents[info.dtype.name, _hash(Tensors().make(info))] = info.name
    for name, tensor in wanted.items():
        for view in (tensor, tensor.t()) if tensor.dim() == 2 else (tensor,):
            there = contents.get((_kind(view), _hash(view))) if contents else None
            if there is not None:
                found.elsewhere[name] = there
                break


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _hash(tensor: Tensor) -> str:
    return hashlib.sha256(memoryview(_bytes(tensor).numpy())).hexdigest()


def state_digest(model: nn.Module) -> str:
    """A digest of every parameter and buffer with its name, type, shape and flags, and of each module's mode."""
    found = hashlib.sha256()
    for name, tensor in _tensors(model):
        about = f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}\n"
        found.update(about.encode())
        if not tensor.is_meta:
            found.update(memoryview(_bytes(tensor).numpy()))
    for name, module in model.named_modules():
        found.update(f"{name} {module.training}\n".encode())
    return found.hexdigest()
