"""The weights in the class: filled by assignment from the mapped file, whole, tied, finite; and saved again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from ckpt_tools.analysis.digest import ALGORITHM, TensorDigest, digest
from ckpt_tools.checkpoint import StateDict, TensorInfo
from ckpt_tools.contents import chunks
from ckpt_tools.errors import CkptError
from ckpt_tools.pickles.values import plain
from ckpt_tools.report import count, listed
from ckpt_tools.runtime.reload import load_into, without_data
from ckpt_tools.runtime.verify.subject import Stop, Subject
from ckpt_tools.verification.results import Check, Problem, worst_first

BLOCK = 1 << 22
"""Elements that are looked at together, so that what is computed of them stays small."""


def loads(subject: Subject) -> Check:
    """Whether the class takes the weights, and has nothing else than these afterwards."""
    subject.file()
    model = subject.built()
    if not subject.usable or subject.renamed is None or subject.fits is None:
        raise Stop("the file's tensors are not those of the class")
    if subject.fits.missing:
        # what the file lacks needs the values that the class makes
        model = subject.model = subject.build(empty=False)
    ties = _ties(model)
    try:
        report = load_into(model, subject.renamed, exchange=False)
    except CkptError as error:
        return Check("loads", "the class does not take the weights", [_refusal(error)])
    problems = []
    empty = without_data(model)
    if empty:
        problems.append(
            Problem(
                "no-data",
                "error",
                f"{count(len(empty), 'tensor')} of the model {'has' if len(empty) == 1 else 'have'} no data after "
                f"loading, as neither the file nor the class gives any: {listed(empty, 3)}",
            )
        )
    broken = [names for names in ties if len({id(_named(model, name)) for name in names}) > 1]
    if broken:
        problems.append(
            Problem("ties-broken", "error", f"weights that the class shares are not shared any more: {_tied(broken)}")
        )
    problems += _of_ties(subject.renamed, model)
    problems += _of_versions(subject.renamed, model)
    problems += _not_finite(model)
    problems += _negative(model)
    if not empty:
        subject.filled = model
    lazily = "; ".join(
        f"{count(len(found), 'tensor')} {what}"
        for found, what in ((report.converted, "converted"), (report.missing, "as the class made them"))
        if found
    )
    message = f"{count(len(report.loaded), 'tensor')} assigned from the file{f', {lazily}' if lazily else ''}"
    if ties:
        message += f"; shared as in the class: {_tied(ties)}"
    return Check("loads", message, worst_first(problems), {"loaded": len(report.loaded), "ties": ties})


def _refusal(error: CkptError) -> Problem:
    return Problem("class-refuses", "error", error.problem, error.remedy or "")


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _named(model: nn.Module, name: str) -> object:
    path, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(path), leaf)


def _ties(model: nn.Module) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, tensor in _tensors(model):
        groups.setdefault(id(tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _tied(ties: list[list[str]]) -> str:
    return listed([" = ".join(names) for names in ties], 3)


def _of_ties(state_dict: StateDict, model: nn.Module) -> Iterator[Problem]:
    """Tensors that share memory in the file, all of it, and do not in the class."""
    own = dict(_tensors(model))
    groups: dict[object, list[str]] = {}
    for tensor in state_dict.tensors:
        if tensor.storage is not None and tensor.numel and tensor.name in own:
            key = (id(tensor.storage), tensor.storage_offset, tensor.shape, tensor.stride)
            groups.setdefault(key, []).append(tensor.name)
    lost = [names for names in groups.values() if len({id(own[name]) for name in names}) > 1]
    if lost:
        yield Problem(
            "ties-lost",
            "warning",
            f"{_tied(lost)} share memory in the file and not in the class: trained on, they would part",
        )


def _of_versions(state_dict: StateDict, model: nn.Module) -> Iterator[Problem]:
    """Modules of another version in the class, which has translated the file's on loading."""
    own = getattr(model.state_dict(keep_vars=True), "_metadata", {})
    other = []
    for path, noted in (state_dict.metadata or {}).items():
        theirs, ours = plain(noted), own.get(path)
        if isinstance(theirs, Mapping) and ours is not None and theirs.get("version") != ours.get("version"):
            other.append(f"{path or 'the model'} {theirs.get('version')} → {ours.get('version')}")
    if other:
        message = f"{count(len(other), 'module')} of another version than in the file: {listed(other, 3)}"
        yield Problem("module-versions", "note", f"{message}; the class translates what it finds")


def _not_finite(model: nn.Module) -> Iterator[Problem]:
    found: list[str] = []
    seen: set[int] = set()
    for name, tensor in _tensors(model):
        if id(tensor) in seen or tensor.is_meta or nn.parameter.is_lazy(tensor):
            continue
        seen.add(id(tensor))
        nan, infinite = _odd(tensor)
        if nan or infinite:
            parts = [f"{number:,} {what}" for number, what in ((nan, "NaN"), (infinite, "infinite")) if number]
            found.append(f"{name} ({' and '.join(parts)} of {tensor.numel():,})")
    if found:
        yield Problem(
            "not-finite",
            "error",
            f"{count(len(found), 'tensor')} {'holds' if len(found) == 1 else 'hold'} values that are no numbers: "
            f"{listed(found, 4)}",
            "Take an earlier checkpoint; training has diverged",
        )


def _negative(model: nn.Module) -> Iterator[Problem]:
    found = [
        f"{name}.running_var".removeprefix(".")
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        and module.running_var is not None
        and not module.running_var.is_meta
        and bool((module.running_var < 0).any())
    ]
    if found:
        yield Problem(
            "negative-variance",
            "error",
            f"{listed(found, 3)} {'is' if len(found) == 1 else 'are'} below 0 in places, and BatchNorm takes the root: "
            "what comes out is NaN",
            "Take an earlier checkpoint; variances below 0 come from adding and subtracting checkpoints",
        )


def _odd(tensor: Tensor) -> tuple[int, int]:
    """How many NaN and infinities."""
    if tensor.layout != torch.strided or not (tensor.dtype.is_floating_point or tensor.dtype.is_complex):
        return 0, 0
    tensor = tensor.detach()
    if tensor.dtype.is_complex:
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.dtype.itemsize == 1:
        tensor = tensor.to(torch.float32)
    nan = infinite = 0
    for block in tensor.reshape(-1).split(BLOCK):
        # one pass where all is well: a sum of finite numbers may overflow, but then the numbers are counted
        if not bool(torch.isfinite(block.sum(dtype=torch.float64 if block.dtype == torch.float64 else torch.float32))):
            nan += int(block.isnan().sum())
            infinite += int(block.isinf().sum())
    return nan, infinite


# --- round trip


def round_trip(subject: Subject) -> Check:
    """Whether the model's ``state_dict()``, saved, would have the tensors of the file, bit for bit."""
    _, _ = subject.file()
    model = subject.loaded()
    assert subject.renamed is not None and subject.fits is not None
    saved = dict(_saved(model))
    with ThreadPoolExecutor(1) as other:  # hashing leaves the interpreter to others
        hashing = other.submit(_digests, saved)
        file = {tensor.name: tensor for tensor in subject.renamed.tensors}
        converted = {mismatch.name for mismatch in subject.fits.converted}
        added = {*subject.fits.missing, *subject.fits.supplied}
        compared = [name for name in saved if name in file and name not in added and name not in converted]
        wrong = [name for name in compared if not _same(file[name], saved[name])]
        lines = hashing.result()
    absent = [t for name, t in file.items() if name not in saved and name not in subject.fits.unexpected]
    # what the class translates on loading is saved again under another name
    kept = {line.sha256 for line in lines}
    lost = [line.name for line in digest(absent).tensors if line.sha256 not in kept]
    problems = []
    if wrong:
        problems.append(
            Problem(
                "round-trip-differs",
                "error",
                f"{count(len(wrong), 'tensor')} would be saved with other values than the file has: {listed(wrong, 4)}",
                "The class changes weights when they are loaded or saved: see its state_dict and load_state_dict hooks",
            )
        )
    if lost:
        problems.append(
            Problem("round-trip-loses", "error", f"{listed(lost, 4)} would not be saved again, though the file has it")
        )
    lines.sort(key=lambda line: line.name.encode("utf-8", "surrogatepass"))
    whole = hashlib.sha256("".join(line.line for line in lines).encode("ascii")).hexdigest()
    same = len(compared) - len(wrong)
    aside = [
        f"{count(len(names), 'tensor')} {what}"
        for names, what in ((converted, "in the class's type"), (added & saved.keys(), "not from the file"))
        if names
    ]
    message = f"{count(same, 'tensor')} the same bit for bit{', ' + ', '.join(aside) if aside else ''}"
    return Check("round-trip", message, problems, {"algorithm": ALGORITHM, "sha256": whole, "same": same})


def _saved(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that ``torch.save(model.state_dict())`` would write, by name."""
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
            yield name, tensor


def _digests(tensors: Mapping[str, Tensor]) -> list[TensorDigest]:
    """The line of each tensor in a content digest; what several names share is hashed once."""
    known: dict[object, str] = {}
    lines = []
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if key not in known or not tensor.numel():
            known[key] = hashlib.sha256(_bytes(tensor)).hexdigest()
        lines.append(TensorDigest(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), known[key]))
    return lines


def _bytes(tensor: Tensor) -> Any:
    """Its elements, dense, row-major and little-endian, as a digest takes them: an array of bytes."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else numpy.empty(0, numpy.uint8)


def _same(info: TensorInfo, tensor: Tensor) -> bool:
    """Whether *tensor* has the type, the shape and every bit of what the file has."""
    if info.dtype.name != str(tensor.dtype).removeprefix("torch.") or info.shape != tuple(tensor.shape):
        return False
    found = _bytes(tensor)
    at = 0
    for chunk in chunks(info):
        if not numpy.array_equal(found[at : at + len(chunk)], numpy.frombuffer(chunk, numpy.uint8)):
            return False
        at += len(chunk)
    return bool(at == len(found))
