"""A forward pass: shapes, finiteness, the same twice, the same alone and in a batch, the same as recorded."""

from __future__ import annotations

import contextlib
import re
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from ckpt_tools.atomic import replacing
from ckpt_tools.errors import CkptError, MissingDependency
from ckpt_tools.records import record
from ckpt_tools.report import count, listed, number, size
from ckpt_tools.runtime.forward import InputSpec, tensors_in
from ckpt_tools.runtime.locate import PICKLE, locate, place_of
from ckpt_tools.runtime.verify.subject import Subject, shape
from ckpt_tools.verification.results import Check, Problem, worst_first

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

_ABOUT_SIZES = r"(?i)\b(sizes?|shapes?|dim(ension)?s?|channels?|input|dtypes?|mat1|out of (range|bounds))\b"

_OUTPUT = "output:"
"""What stands before an output's path in a recording; inputs stand there as they are."""


@record
class Call:
    """What the model is called with."""

    positional: Sequence[Tensor] = ()
    named: Mapping[str, Tensor] = field(default_factory=dict)
    made_up: bool = False

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*self.positional, *self.named.values()]

    def mapped(self, function: Any) -> Call:
        """The call with each tensor through *function*."""
        return Call(
            [function(tensor) for tensor in self.positional],
            {name: function(tensor) for name, tensor in self.named.items()},
            self.made_up,
        )


def runs(subject: Subject) -> Check:
    """Whether the model runs in eval mode, and whether what comes out can be relied on."""
    job = subject.job
    model = subject.loaded()
    if not job.inputs and job.reference is None:
        return Check("runs", "not asked to: --input gives the sizes of an input, such as 3,224,224", skipped=True)
    device = _device(job.device)
    with _in_full(device):
        return _runs(subject, model, device)


def _runs(subject: Subject, model: nn.Module, device: torch.device) -> Check:
    job = subject.job
    recorded = _recorded(job.reference) if job.reference is not None else None
    call = _call(job.inputs, job.batch, model) if job.inputs else recorded[0] if recorded is not None else Call()
    recorded_training = subject.module.training if subject.module is not None else None
    model.eval()
    problems: list[Problem] = []
    try:
        if device.type != "cpu":
            model.to(device)
            call = call.mapped(lambda tensor: tensor.to(device))
        output, _, memory = _timed(model, call, device, seed=0)
    except Exception as error:
        return Check("runs", "the forward pass fails", [_failure(error, call, model)])
    problems += _finite(output)
    # the first run makes handles and chooses algorithms, so that the second is the one whose time is told
    again, seconds, _ = _timed(model, call, device, seed=1)
    problems += _same_twice(output, again)
    if recorded is not None:
        problems += _against(recorded[1], output, job.tolerance, f"the recording {job.reference}")
    if subject.module is not None and job.trust and job.model != PICKLE:
        problems += _against_pickle(subject, call, output, device)
    problems += _rows(model, call, output, job.batch, job.tolerance)
    problems += _training(model, call, output, recorded_training)
    if job.record is not None:
        _record(job.record, call, output)
        problems.append(Problem("recorded", "note", f"inputs and outputs written to {job.record}"))
    shown = listed([f"{path} {shape(tensor.shape)}".strip() for path, tensor in output.items()], 4)
    given = listed([shape(tensor.shape) for tensor in call.tensors()], 4)
    place = ""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        place = f", in {number(round(seconds, 3))} s on {name}, {size(memory)} of its memory"
    facts = {
        "inputs": [{"shape": list(t.shape), "dtype": _dtype(t)} for t in call.tensors()],
        "outputs": [{"path": p, "shape": list(t.shape), "dtype": _dtype(t)} for p, t in output.items()],
        "device": device.type,
        "seconds": round(seconds, 4),
        "device_bytes": memory or None,
    }
    message = f"input {given}, output {shown}{place}"
    return Check("runs", message, worst_first(problems), facts)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise CkptError("torch finds no CUDA device here", remedy="--device cpu, or auto")
    return torch.device(name)


# --- inputs


def _call(inputs: Sequence[str], batch: int, model: nn.Module) -> Call:
    native = next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), torch.float32)
    generator = torch.Generator().manual_seed(0)
    positional: list[Tensor] = []
    named: dict[str, Tensor] = {}
    made_up = True
    for text in inputs:
        lower = text.lower()
        if lower.endswith((".npy", ".npz")):
            made_up = False
            found = _arrays(text)
            if None in found:
                positional.append(_suited(found[None], native))
            elif all(re.fullmatch(r"arr_\d+|input_?\d*", str(name)) for name in found):
                positional += [_suited(array, native) for array in found.values()]
            else:
                named |= {str(name): _suited(array, native) for name, array in found.items()}
        elif lower.endswith(IMAGES):
            made_up = False
            positional.append(_image(text).to(native)[None])
        else:
            spec = InputSpec.parse(text)
            sizes = (batch, *spec.shape) if batch else spec.shape
            dtype = native if spec.dtype is None else getattr(torch, spec.dtype)
            floating = dtype.is_floating_point or dtype.is_complex
            positional.append(
                torch.rand(sizes, generator=generator).to(dtype) if floating else torch.zeros(sizes, dtype=dtype)
            )
    return Call(positional, named, made_up)


def _suited(array: Any, native: torch.dtype) -> Tensor:
    made = torch.from_numpy(numpy.ascontiguousarray(array))
    return made.to(native) if made.dtype.is_floating_point else made


def _arrays(path: str) -> dict[str | None, Any]:
    try:
        found = numpy.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CkptError(f"is no readable array: {error}", path=path) from None
    if isinstance(found, numpy.ndarray):
        return {None: found}
    with found:
        try:
            return {name: found[name] for name in found.files}
        except (OSError, ValueError, EOFError) as error:
            raise CkptError(f"is no readable array: {error}", path=path) from None


def _image(path: str) -> Tensor:
    """Three channels between 0 and 1; no other normalization."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependency("Pillow", "torch", "an image as input") from None
    try:
        with Image.open(path) as image:
            found = numpy.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise CkptError(f"is no readable image: {' '.join(str(error).split())}", path=path) from None
    return torch.from_numpy(found.copy()).permute(2, 0, 1).float() / 255


# --- running


def _run(model: nn.Module, call: Call, seed: int = 0) -> dict[str, Tensor]:
    """The outputs of one call by their paths, with the generator seeded."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        return dict(tensors_in(model(*call.positional, **call.named)))


@contextlib.contextmanager
def _in_full(device: torch.device) -> Iterator[None]:
    """On a CUDA device: float32 is computed in full, and by algorithms that give the same each time.

    By default cuDNN may take TF32 for convolutions, of 10 bits of mantissa, and other algorithms for other batches: a
    sample alone, beside another and on the CPU would come out apart by more than any fault makes it.
    """
    if device.type != "cuda":
        yield
        return
    precision = torch.get_float32_matmul_precision()
    enabled = torch.backends.cudnn.enabled
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=enabled, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _timed(model: nn.Module, call: Call, device: torch.device, *, seed: int) -> tuple[dict[str, Tensor], float, int]:
    """The outputs, the seconds that they took, and the most memory of a CUDA device, weights included."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    output = _run(model, call, seed)
    if cuda:
        torch.cuda.synchronize(device)
    return output, time.perf_counter() - begun, torch.cuda.max_memory_allocated(device) if cuda else 0


def _failure(error: Exception, call: Call, model: nn.Module) -> Problem:
    message = textwrap.shorten(str(error), 300, placeholder=" …")
    given = listed([shape(tensor.shape) for tensor in call.tensors()], 4)
    remedy = ""
    if isinstance(error, TypeError) and re.search(r"missing \d+ required", message):
        remedy = "Give an --input for each argument, in their order"
    elif isinstance(error, torch.OutOfMemoryError):
        remedy = "--device cpu, or a smaller --batch"
    elif "same device" in message:
        remedy = (
            "A tensor that is no parameter and no buffer stays where it was made: register_buffer(…, persistent=False)"
        )
    elif re.search("NVIDIA|CUDA|cuda", message):
        remedy = "The class moves tensors to a GPU by itself: take the device of what comes in; or --device cuda"
    elif isinstance(error, RuntimeError | ValueError | IndexError) and re.search(_ABOUT_SIZES, message):
        remedy = "--input gives the sizes without the batch, which --batch puts before them"
    if type(model).forward is nn.Module.forward:
        remedy = f"{type(model).__name__} has no forward method: name the class that has one"
    place = place_of(error, own_only=True)
    where = f" ({place})" if place else ""
    text = f"called with {given}, the model raised {type(error).__name__}: {message}{where}"
    return Problem("forward-fails", "error", text, remedy)


def _finite(output: Mapping[str, Tensor]) -> Iterator[Problem]:
    if not output:
        yield Problem("no-output", "warning", "the model returned no tensor")
    odd = [
        f"{path or 'the output'} ({int((~torch.isfinite(t)).sum()):,} of {t.numel():,})"
        for path, t in output.items()
        if t.dtype.is_floating_point and t.layout == torch.strided and not bool(torch.isfinite(t).all())
    ]
    if odd:
        yield Problem("output-not-finite", "error", f"what comes out is not finite: {listed(odd, 3)}")


def _same_twice(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Iterator[Problem]:
    apart = _apart(first, second, 0.0)
    if apart:
        yield Problem(
            "not-deterministic",
            "warning",
            f"in eval mode a second run gives something else: {listed(apart, 3)}",
            "The model draws random numbers in eval mode too, or keeps something between calls",
        )


def _rows(
    model: nn.Module, call: Call, output: Mapping[str, Tensor], batch: int, tolerance: float
) -> Iterator[Problem]:
    """Whether the first sample comes out the same alone and where others stand beside it; *batch* is what has run."""
    if not call.made_up or not call.tensors() or not batch:
        return
    generator = torch.Generator().manual_seed(1)

    def two(tensor: Tensor) -> Tensor:
        if not tensor.dtype.is_floating_point:
            return torch.cat([tensor, tensor])
        other = torch.rand(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
        return torch.cat([tensor, other])

    try:
        ran = _run(model, call.mapped(two if batch == 1 else lambda tensor: tensor[:1]))
    except Exception as error:
        message = textwrap.shorten(str(error), 200, placeholder=" …")
        other, first = ("a batch of two", "one alone") if batch == 1 else ("one alone", "a batch")
        yield Problem("no-batch", "warning", f"{other} is refused, {first} is not: {type(error).__name__}: {message}")
        return
    alone, beside, size = (output, ran, 2) if batch == 1 else (ran, output, batch)
    if any(path.startswith("[1]") for path in beside) and not any(path.startswith("[1]") for path in alone):
        row = {path: beside[path] for path in alone if path in beside}  # a list with an item a sample
    else:
        row = {path: beside[path][:1] for path in alone if path in beside and beside[path].shape[:1] == (size,)}
    apart = _apart({path: alone[path] for path in row}, row, tolerance)
    if apart:
        yield Problem(
            "batch-dependent",
            "error",
            f"a sample comes out otherwise where another stands beside it in the batch: {listed(apart, 3)}",
            "Something mixes the samples of a batch: a normalization over it, or a reshape that takes the batch along. "
            "Where the first dimension is no batch, --batch 0 takes sizes as they are",
        )


def _training(model: nn.Module, call: Call, output: Mapping[str, Tensor], recorded: bool | None) -> Iterator[Problem]:
    """Why the model would give something else had it been left in training mode."""
    kinds: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            kinds.setdefault(f"{type(module).__name__} drops values", []).append(name)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.track_running_stats:
                kinds.setdefault(f"{type(module).__name__} takes the batch's statistics", []).append(name)
            else:
                yield Problem(
                    "no-running-statistics",
                    "warning",
                    f"{name} ({type(module).__name__}) keeps no running statistics: it normalizes by the batch in eval "
                    "mode too",
                )
    if not kinds:
        return
    what = "; ".join(f"{why} in {count(len(names), 'layer')} ({listed(names, 2)})" for why, names in kinds.items())
    was = "; the file holds it in training mode, so call .eval() after loading" if recorded else ""
    yield Problem("training-mode", "note", f"without .eval() outputs would differ: {what}{was}")


# --- comparing


def _apart(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], tolerance: float) -> list[str]:
    """Where *found* is not *expected*, in words; *tolerance* is relative to the largest value of each output."""
    said = []
    for path, wanted in expected.items():
        name = path or "the output"
        other = found.get(path)
        if other is None:
            said.append(f"{name} is missing")
            continue
        if other.shape != wanted.shape:
            said.append(f"{name} is {shape(other.shape)}, not {shape(wanted.shape)}")
            continue
        if not wanted.numel():
            continue
        kind = torch.complex128 if wanted.dtype.is_complex else torch.float64
        a, b = wanted.detach().cpu().to(kind), other.detach().cpu().to(kind)
        same = (a == b) | (a.isnan() & b.isnan())
        if bool(same.all()):
            continue
        distance = float((a - b).abs().nan_to_num(nan=float("inf")).masked_fill(same, 0).max())
        finite = a[torch.isfinite(a)]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        if distance > tolerance * scale or tolerance == 0:
            said.append(f"{name} by up to {number(distance)}, where the largest value is {number(scale)}")
    return said


def _against(
    recorded: Mapping[str, Tensor], output: Mapping[str, Tensor], tolerance: float, what: str
) -> Iterator[Problem]:
    apart = _apart(recorded, output, tolerance)
    extra = [path or "the output" for path in output if path not in recorded]
    if apart:
        yield Problem(
            "outputs-differ",
            "error",
            f"what comes out is not that of {what}: {listed(apart, 3)}",
            "These are not the weights, or not the class, that were recorded",
        )
    if extra:
        yield Problem("outputs-differ", "error", f"{listed(extra, 3)} came out, which {what} does not have")
    if not apart and not extra:
        yield Problem(
            "outputs-equal", "note", f"outputs are those of {what}, within {number(tolerance)} of the largest"
        )


def _against_pickle(
    subject: Subject, call: Call, output: Mapping[str, Tensor], device: torch.device
) -> Iterator[Problem]:
    pickled = locate(PICKLE, checkpoint=subject.checkpoint, trust=True).eval().to(device)
    try:
        theirs = _run(pickled, call)
    except Exception as error:
        message = textwrap.shorten(str(error), 200, placeholder=" …")
        yield Problem(
            "pickle-fails", "warning", f"the pickled model itself does not run: {type(error).__name__}: {message}"
        )
        return
    yield from _against(theirs, output, subject.job.tolerance, "the pickled model itself")


# --- recordings


def _recorded(path: str) -> tuple[Call, dict[str, Tensor]]:
    """The inputs and outputs that ``--record`` wrote."""
    positional: list[Tensor] = []
    named: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for key, array in _arrays(path).items():
        tensor = torch.from_numpy(array)
        name = str(key)
        if name.startswith(_OUTPUT):
            outputs[name.removeprefix(_OUTPUT)] = tensor
        elif re.fullmatch(r"input:\d+", name):
            positional.append(tensor)
        else:
            named[name.removeprefix("input:")] = tensor
    if not outputs:
        raise CkptError("holds no outputs", path=path, remedy="--record writes what --reference reads")
    return Call(positional, named), outputs


def _record(path: str, call: Call, output: Mapping[str, Tensor]) -> None:
    arrays = {f"input:{index}": tensor for index, tensor in enumerate(call.positional)}
    arrays |= {f"input:{name}": tensor for name, tensor in call.named.items()}
    arrays |= {_OUTPUT + name: tensor for name, tensor in output.items()}
    with replacing(path) as file:
        numpy.savez(file, **{name: _plain(tensor) for name, tensor in arrays.items()})


def _plain(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()
