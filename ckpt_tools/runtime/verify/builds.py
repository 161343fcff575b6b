"""The file is whole and holds weights; the class can be imported and built."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from torch import nn

from ckpt_tools.analysis.leaves import leaves
from ckpt_tools.analysis.summary import pick
from ckpt_tools.checkpoint import Checkpoint, StateDict, TensorInfo, format_path
from ckpt_tools.errors import Ambiguous, CkptError, CorruptFile, MissingDependency, NotACheckpoint
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.report import count, listed, size
from ckpt_tools.runtime.locate import PICKLE, MissingArguments, WantsDownload
from ckpt_tools.runtime.verify.subject import Subject, head_of
from ckpt_tools.verification.results import Check, Problem

_CLASSES = {
    "num_classes", "n_classes", "num_class", "n_class", "nclasses", "nb_classes", "classes", "num_labels", "n_labels",
    "out_features", "out_channels", "out_dim", "output_dim", "output_size", "n_outputs", "num_outputs", "outputs",
}  # fmt: skip
_INPUTS = {
    "in_channels", "in_chans", "input_channels", "n_channels", "channels", "in_features", "in_dim", "input_dim",
    "input_size", "n_inputs", "num_inputs", "inputs", "num_features",
}  # fmt: skip


def opens(subject: Subject) -> Check:
    """Whether the file can be read to its end, and where in it the weights are."""
    job = subject.job
    try:
        checkpoint = open_checkpoint(job.path)
        subject.checkpoint = checkpoint
        state_dict, subject.module = pick(checkpoint, job.select)
    except (CorruptFile, NotACheckpoint) as error:
        code = "damaged-file" if isinstance(error, CorruptFile) else "no-checkpoint"
        return Check("opens", "the file cannot be read", [Problem(code, "error", _without(str(error), job.path))])
    except CkptError as error:
        if subject.checkpoint is None or job.select is not None or isinstance(error, Ambiguous):
            raise
        return Check("opens", subject.checkpoint.title, [_no_model(subject.checkpoint, error)])
    tensors = state_dict.tensors
    cut = [t.name for t in tensors if any(storage.missing for storage in t.storages())]
    if cut:
        message = f"the bytes of {count(len(cut), 'tensor')} are not in it ({cut[0]}{', …' if cut[1:] else ''})"
        return Check("opens", "the file is not whole", [Problem("damaged-file", "error", message)])
    subject.state_dict = state_dict
    problems = []
    module = subject.module
    if not tensors:
        problems.append(Problem("no-tensors", "error", "there is no tensor in it"))
    if checkpoint.pickles and state_dict.path and module is None and not checkpoint.parts:
        keys = "".join(f"[{key!r}]" for key in state_dict.path)
        problems.append(
            Problem(
                "weights-not-at-root",
                "note",
                f"the file as a whole is no state_dict: load_state_dict(torch.load(…)) would be refused, and with "
                f"strict=False it would load nothing and say nothing; the weights are at {keys}",
                f"model.load_state_dict(torch.load(…){keys})",
            )
        )
    problems += _beside(checkpoint, state_dict, job.select)
    total = sum(tensor.numel for tensor in tensors)
    message = f"{checkpoint.title}, {count(len(tensors), 'tensor')}, {count(total, 'element')}, {size(checkpoint.size)}"
    facts = {"format": checkpoint.format, "kind": checkpoint.kind, "tensors": len(tensors), "elements": total}
    return Check("opens", message, problems, facts)


def _no_model(checkpoint: Checkpoint, error: CkptError) -> Problem:
    """What is there instead."""
    run = checkpoint.training
    if run is not None and run.optimizers:
        return Problem(
            "no-model",
            "error",
            f"there is no model in it: it holds the state of {run.optimizers[0].algorithm or 'an optimizer'} alone",
            "Save model.state_dict() too: torch.save({'model': model.state_dict(), 'optimizer': …}, …)",
        )
    loose = [tensor for _, tensor in checkpoint.loose]
    if loose:
        return Problem(
            "no-model",
            "error",
            f"there is no state_dict in it: {count(len(loose), 'tensor')} without names, as list(model.parameters()) "
            "gives; names and buffers are lost",
            "Save model.state_dict()",
        )
    return Problem("no-model", "error", error.problem)


def _beside(checkpoint: Checkpoint, chosen: StateDict, select: str | None) -> Iterator[Problem]:
    """What else one should know of the file before it is loaded."""
    others = [s for s in checkpoint.state_dicts if s.role in ("model", "ema") and s.tensors and s.path != chosen.path]
    if others and select is None and checkpoint.module is None:
        names = listed([format_path(other.path) or "the root" for other in others], 3)
        text = f"verified is {format_path(chosen.path) or 'the root'}; the file also holds {names}"
        yield Problem("other-weights", "note", text, "Choose with --select")
    devices = sorted({storage.device for t in chosen.tensors for storage in t.storages()} - {"cpu", "meta"})
    if devices and checkpoint.pickles:
        text = f"tensors are tagged for {listed(devices, 3)}: torch.load fails where there is no such device"
        yield Problem("device-tag", "note", text, 'torch.load(…, map_location="cpu")')


def builds(subject: Subject) -> Check:
    """Whether the class can be imported and built with the arguments, or which of them would do."""
    job = subject.job
    subject.arguments = dict(job.kwargs)
    if job.model == PICKLE:
        if subject.checkpoint is None:
            return Check("builds", "the file could not be read", skipped=True)
        if not job.trust and subject.checkpoint.module is not None:
            subject.build()  # raises what trust is for
    problems = []
    try:
        subject.model = subject.build()
    except MissingDependency:
        raise
    except MissingArguments as error:
        found = _suggested(error.names, subject.checkpoint, subject.state_dict)
        remedy = error.remedy or ""
        known = " ".join(f"--kwargs {name}={found[name]}" for name in error.names if name in found)
        rest = " ".join(f"--kwargs {name}=VALUE" for name in error.names if name not in found)
        if known and rest:
            remedy = f"The file suggests {known}; give the rest with {rest}"
        elif known:
            subject.arguments |= found
            try:
                subject.model = subject.build()
                remedy = f"The file suggests {known}, with which it can be built"
            except CkptError as second:
                remedy = f"The file suggests {known}, but then {second.problem}"
        problems.append(Problem("arguments-missing", "error", error.problem, remedy))
    except CkptError as error:
        # Hugging Face's libraries know that they are offline, and ask nobody
        offline = any(
            sign in error.problem for sign in ("lets nothing be downloaded", "OfflineMode", "LocalEntryNotFound")
        )
        code = "wants-download" if offline or isinstance(error, WantsDownload) else "cannot-build"
        problems.append(Problem(code, "error", str(error) if error.place else error.problem, error.remedy or ""))
    model = subject.model
    if model is None:
        return Check("builds", f"{job.model} cannot be built", problems)
    hidden = list(_unregistered(model))
    if hidden:
        # what is built without data is filled by names, which these do not have
        model = subject.model = subject.build(empty=False)
        problems.append(
            Problem(
                "unregistered-layers",
                "warning" if next(model.parameters(), None) is not None else "error",
                f"{listed(hidden, 3)} {'holds' if len(hidden) == 1 else 'hold'} layers in a plain list or dict, so "
                "that these are no part of the model: state_dict() does not save them, and no optimizer gets them",
                "Put them into nn.ModuleList or nn.ModuleDict, and train again",
            )
        )
    parameters = sum(p.numel() for p in model.parameters() if not _lazy(p))
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    return Check(
        "builds",
        f"{name}, {count(parameters, 'parameter')}",
        problems,
        {"class": name, "parameters": parameters, "arguments": {k: repr(v) for k, v in subject.arguments.items()}},
    )


def _unregistered(model: nn.Module) -> Iterator[str]:
    """Attributes that hold modules or parameters where nn.Module does not see them."""
    known = {id(module) for module in model.modules()} | {id(parameter) for parameter in model.parameters()}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            if not attribute.startswith("_") and any(
                isinstance(item, nn.Module | nn.Parameter) and id(item) not in known for item in items
            ):
                yield f"{name}.{attribute}".removeprefix(".")


def _lazy(parameter: object) -> bool:
    from torch.nn.parameter import is_lazy

    return bool(is_lazy(parameter))


def _suggested(
    names: tuple[str, ...], checkpoint: Checkpoint | None, state_dict: StateDict | None
) -> dict[str, object]:
    """What the file says the arguments *names* should be, as far as it does."""
    if checkpoint is None or state_dict is None:
        return {}
    noted = dict(_noted(checkpoint))
    found: dict[str, object] = {}
    matrices = [tensor for tensor in state_dict.tensors if len(tensor.shape) >= 2]
    head = head_of(state_dict.tensors)
    for name in names:
        if name in noted:
            found[name] = noted[name]
        elif name in _CLASSES and head is not None:
            found[name] = head.outputs
        elif name in _INPUTS and matrices:
            found[name] = matrices[0].shape[1]
    return found


def _noted(checkpoint: Checkpoint) -> Iterator[tuple[str, object]]:
    """Numbers and texts of the hyperparameters in the file, by the last part of their names."""
    roots: list[object] = []
    if checkpoint.training is not None and checkpoint.training.arguments is not None:
        roots.append(checkpoint.training.arguments.value)
    if isinstance(checkpoint.values, Mapping):
        roots += [
            checkpoint.values[key] for key in ("hyper_parameters", "hparams", "config") if key in checkpoint.values
        ]
    for root in roots:
        for path, value in leaves(root):
            if path and type(value) in (bool, int, float, str) and not isinstance(value, TensorInfo):
                yield str(path[-1]), value


def _without(text: str, path: str) -> str:
    """*text* without the name of the file, which stands above it already."""
    return text.removeprefix(f"{path}: ").removeprefix(os.fspath(path)).lstrip(", ")
