"""F: whether the file will load elsewhere, and later."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator

from ckpt_tools.analysis.counting import distinct, looks_like_buffer, tally
from ckpt_tools.analysis.overview import wrapper_prefix
from ckpt_tools.analysis.renames import DENSENET, GAMMA, weight_norm_pairs
from ckpt_tools.analysis.trainability import same_bytes
from ckpt_tools.audit.findings import Finding
from ckpt_tools.audit.policy import installed_torch, version
from ckpt_tools.audit.rule import Rule, has_module, rule
from ckpt_tools.audit.subject import Subject
from ckpt_tools.checkpoint import StateDict, TensorInfo, format_path
from ckpt_tools.records import record
from ckpt_tools.report import count, listed, size

SLACK = 1 << 16
"""Bytes of storages that no tensor uses, from which on they are worth a word: alignment and headers are less."""

TABLE = 1 << 12
"""Elements from which on two equal matrices are no coincidence."""


@record
class Needed:
    """An attribute that a layer's ``forward`` reads, and that files older than *since* do not have.

    From the version *filled* on torch puts it in when it loads such a file; None: it never does.
    """

    classes: tuple[str, ...]
    attribute: str
    since: tuple[int, int]
    filled: tuple[int, int] | None


_UPSAMPLINGS = ("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d")
_CONVOLUTIONS = tuple(f"torch.nn.modules.conv.Conv{kind}{n}d" for kind in ("", "Transpose") for n in (1, 2, 3))

# torch/nn/modules/*.py and their `__setstate__`; pytorch issue 20756 and pull requests 21687, 66419, 101248
NEEDED: tuple[Needed, ...] = (
    Needed(_CONVOLUTIONS, "padding_mode", (1, 1), (1, 2)),
    Needed(tuple(f"torch.nn.modules.pooling.AvgPool{n}d" for n in (2, 3)), "divisor_override", (1, 2), None),
    Needed(("torch.nn.modules.activation.MultiheadAttention",), "batch_first", (1, 9), None),
    Needed(
        tuple(f"torch.nn.modules.transformer.Transformer{kind}coderLayer" for kind in ("En", "De")),
        "norm_first",
        (1, 10),
        None,
    ),
    Needed(("torch.nn.modules.loss.CrossEntropyLoss",), "label_smoothing", (1, 10), None),
    Needed(
        tuple(f"torch.nn.modules.upsampling.{name}" for name in _UPSAMPLINGS), "recompute_scale_factor", (1, 11), (2, 1)
    ),
    Needed(("torch.nn.modules.activation.GELU",), "approximate", (1, 12), None),
)


@rule("F101", "full-model-pickle", "warning", when=has_module)
def full_model_pickle(subject: Subject) -> Iterator[Finding]:
    """The file holds a whole pickled ``nn.Module``, not its state_dict.

    Why: loading it imports the class from where it stood when it was saved, and runs it: it fails once the module
    is renamed, moved or gone, and ``torch.load`` refuses it by default since torch 2.6.

    Example: ``torch.save(model, "model.pt")`` in place of ``torch.save(model.state_dict(), "model.pt")``.

    Remedy: take the weights out with ``ckpt convert``, which needs no class, and keep the class in your code.
    """
    module = subject.module
    # a TorchScript archive brings the code of its classes, which are none of Python's
    if module is not None and subject.checkpoint is not None and subject.checkpoint.format != "torchscript":
        classes = Counter(part.class_name for _, part in module.walk())
        own = sorted(name for name in classes if not name.startswith("torch."))
        needs = f"; it needs {listed(own, 4)}" if own else ""
        yield subject.finding(
            f"a pickled {module.class_name}{needs}", evidence={"class": module.class_name, "classes": own}
        )


@rule("F102", "legacy-format", "note")
def legacy_format(subject: Subject) -> Iterator[Finding]:
    """The file is in a format that torch no longer writes by default.

    Why: files from before torch 1.6 cannot be mapped into memory, hold no checksums, and are read by fewer tools
    each year. The tar format before 0.1.10 is read by torch alone, and not at all under weights_only.

    Example: ``torch.save(…, _use_new_zipfile_serialization=False)``.

    Remedy: ``ckpt convert OLD.pth NEW.pth``, or to safetensors.
    """
    checkpoint = subject.checkpoint
    if checkpoint is not None and checkpoint.format in ("torch_legacy", "torch_tar"):
        yield subject.finding(checkpoint.title, evidence={"format": checkpoint.format})


@rule("F103", "wrapper-prefix", "warning")
def wrapper_prefixes(subject: Subject) -> Iterator[Finding]:
    """Every key of a state_dict begins with the prefix of a wrapper, but for the counter of an averaged model.

    Why: ``load_state_dict`` of the bare model finds none of its keys, and with ``strict=False`` loads nothing and
    says nothing.

    Example: ``module.`` of DataParallel, DistributedDataParallel and AveragedModel, ``_orig_mod.`` of torch.compile,
    ``model.`` of Lightning (and of language models of Transformers, in whose files it belongs).

    Remedy: save ``model.module.state_dict()``, or ``ckpt convert --strip-prefix auto``.
    """
    for state_dict in _models(subject):
        keys = [key for key in state_dict.entries if key != "n_averaged"]
        prefix = wrapper_prefix(keys)
        if prefix and not (prefix == "model." and _is_of_transformers(subject)):
            but = "" if len(keys) == len(state_dict.entries) else " but n_averaged"
            yield subject.finding(
                f"all {count(len(keys), 'key')}{_of(state_dict)}{but} begin with {prefix}",
                evidence={"prefix": prefix, "keys": len(keys)},
                remedy=f"Save the state_dict of the model within the wrapper, or ckpt convert --strip-prefix {prefix}",
            )


def _is_of_transformers(subject: Subject) -> bool:
    """Whether the file is of the kind in which ``model.`` is the name that a language model with a tied head gives its
    body, and in which Transformers expects it.
    """
    sorted_tensors = subject.checkpoint is not None and subject.checkpoint.format in ("safetensors", "sharded")
    return sorted_tensors or os.path.basename(subject.path).startswith("pytorch_model")


@rule("F104", "device-tag", "warning")
def device_tag(subject: Subject) -> Iterator[Finding]:
    """Storages are tagged with a device other than the CPU.

    Why: ``torch.load`` without ``map_location`` fails where that device does not exist, or fills a GPU that was
    meant for something else.

    Example: a model saved straight from the GPU: ``cuda:0``, ``mps:0``.

    Remedy: move the model to the CPU before it is saved, load with ``map_location="cpu"``, or convert the file.
    """
    if subject.checkpoint is None or all(storage.device == "cpu" for storage in subject.coverage.storages):
        return
    tensors = (*subject.tensors, *subject.loose.tensors)
    devices = Counter(storage.device for tensor in tensors for storage in tensor.storages())
    tagged = {device: n for device, n in devices.items() if device not in ("cpu", "meta")}
    if tagged:
        told = ", ".join(f"{device} ({count(n, 'tensor')})" for device, n in sorted(tagged.items()))
        yield subject.finding(f"tensors are tagged for {told}", evidence={"devices": tagged})


@rule("F105", "numpy-2-names", "warning")
def numpy_2_names(subject: Subject) -> Iterator[Finding]:
    """A pickle names modules of numpy that only numpy 2 has.

    Why: with numpy 1 the file does not load: ``No module named 'numpy._core'``.

    Example: a metric kept as ``numpy.float64`` beside the weights, saved under numpy 2.

    Remedy: save plain numbers (``float(x)``, ``x.tolist()``), or tensors.
    """
    for pickle in subject.pickles:
        names = sorted({f"{use.module}.{use.name}" for use in pickle.globals if use.module.startswith("numpy._core")})
        if names:
            yield subject.finding(f"needs {listed(names, 4)}", member=pickle.member, evidence={"globals": names})


@rule("F106", "missing-attribute", "warning", when=has_module)
def missing_attribute(subject: Subject) -> Iterator[Finding]:
    """A pickled layer lacks an attribute that the layer's code reads today.

    Why: a pickled module brings its attributes and takes the code of the torch that loads it; an attribute that
    came later is missing, and the forward pass ends in an AttributeError. ``torch`` in the policy says which version
    will load the file; else it is the one that is installed, or the newest.

    Example: ``'GELU' object has no attribute 'approximate'`` (since 1.12), ``'Conv2d' object has no attribute
    'padding_mode'`` (in 1.1), ``'Upsample' object has no attribute 'recompute_scale_factor'`` (1.11 to 2.0).

    Remedy: build the model from its class and load the state_dict (``ckpt convert``), or set the attribute.
    """
    module = subject.module
    if module is None:
        return
    torch = version(subject.options.policy.torch or "") or installed_torch()
    found: dict[tuple[str, str], list[str]] = {}
    for path, part in module.walk():
        for needed in NEEDED:
            wanted = torch is None or torch >= needed.since
            filled = needed.filled is not None and (torch is None or torch >= needed.filled)
            if part.class_name in needed.classes and wanted and not filled and needed.attribute not in part.attributes:
                found.setdefault((part.class_name, needed.attribute), []).append(path)
    for (class_name, attribute), paths in found.items():
        yield subject.finding(
            f"{class_name.rpartition('.')[2]} lacks {attribute}: {_modules(paths)}",
            evidence={"class": class_name, "attribute": attribute, "modules": paths[:100]},
        )


def _modules(paths: list[str]) -> str:
    """``module features.0``; names may be numbers alone."""
    return f"module{'s' if len(paths) > 1 else ''} {listed(paths, 3)}" if any(paths) else "the model itself"


@rule("F107", "optimizer-state", "note")
def optimizer_state(subject: Subject) -> Iterator[Finding]:
    """The file ships an optimizer's state with the weights.

    Why: whoever only runs the model downloads two or three times as much, and needs the optimizer for nothing.

    Example: Adam keeps two numbers for every parameter.

    Remedy: keep it to resume from; to ship, take the weights out with ``ckpt convert``.
    """
    run = subject.checkpoint.training if subject.checkpoint is not None else None
    for optimizer in run.optimizers if run is not None else ():
        values = (value for state in optimizer.state.values() for value in state.values())
        held = sum(tensor.nbytes for tensor in distinct(v for v in values if isinstance(v, TensorInfo)))
        if held:
            name = optimizer.algorithm or "an optimizer"
            where = format_path(optimizer.path) or "the root"
            yield subject.finding(
                f"{size(held)} of {name}'s state, at {where}", evidence={"bytes": held, "path": where}
            )


@rule("F108", "oversize-storage", "warning")
def oversize_storage(subject: Subject) -> Iterator[Finding]:
    """Tensors are views of storages much larger than they are.

    Why: torch saves the whole storage behind a view. A slice of ten rows costs the file, and the memory of whoever
    loads it, the whole table.

    Example: ``torch.save(big[:10], …)``.

    Remedy: ``.clone()`` what is saved, or ``ckpt convert``, which leaves the slack behind.
    """
    if sum(storage.nbytes for storage in subject.coverage.storages) <= SLACK:
        return
    found = tally((*subject.tensors, *subject.loose.tensors))
    if found.slack > max(SLACK, found.nbytes // 10):
        yield subject.finding(
            f"{size(found.slack)} of the tensors' storages belong to no tensor, {size(found.nbytes)} do",
            evidence={"slack": found.slack, "used": found.nbytes},
        )


# --- names


def _has_old_names(subject: Subject) -> bool:
    return any(word in subject.listing for word in ("LayerNorm.", "denselayer"))


def _has_benign_names(subject: Subject) -> bool:
    return any(word in subject.listing for word in ("_g\n", "position_ids\n", "running_mean\n"))


@rule("F109", "old-names", "warning", when=_has_old_names)
def old_names(subject: Subject) -> Iterator[Finding]:
    """Keys have names that a library has changed since.

    Why: a plain ``load_state_dict`` of today's class finds them unexpected, and its own missing. Only the
    library's own loader translates them.

    Example: torchvision's DenseNet had ``denselayer1.norm.1`` for ``norm1``; BERT's LayerNorm had ``gamma`` and
    ``beta`` for ``weight`` and ``bias``.

    Remedy: write the new names once, with ``ckpt diff --write-key-map`` and ``ckpt convert --key-map``.
    """
    for state_dict in _models(subject):
        # elsewhere gamma may be a layer's scale
        norms = [name for name in state_dict.entries if "LayerNorm." in name and re.search(r"LayerNorm\.\w+$", name)]
        dense = [name for name in state_dict.entries if "denselayer" in name]
        for names, what in (
            (list(DENSENET.apply(dense)), "DenseNet's old form (norm.1 for norm1)"),
            (list(GAMMA.apply(norms)), "LayerNorm's form in BERT's first files (gamma for weight)"),
        ):
            if names:
                yield subject.finding(
                    f"{count(len(names), 'key')}{_of(state_dict)} in {what}: {listed(names, 2)}",
                    evidence={"keys": len(names), "first": names[0]},
                )


@rule("F110", "benign-names", "note", when=_has_benign_names)
def benign_names(subject: Subject) -> Iterator[Finding]:
    """Keys are there, or missing, that look like a mistake and are none.

    Why: they come up as missing or unexpected, and worry people. Each is told with what torch makes of it.

    Example: ``weight_g`` and ``weight_v`` of the old ``weight_norm``, which the parametrized one loads; the
    ``position_ids`` that transformers no longer saves; BatchNorm without ``num_batches_tracked``, from before torch
    0.4.1, which loads as 0.

    Remedy: nothing need be done; ``ckpt convert`` can drop or bake what is not wanted.
    """
    for state_dict in _models(subject):
        names = state_dict.entries
        old_norm = weight_norm_pairs(names)
        positions = [name for name in names if name.rpartition(".")[2] == "position_ids"]
        means = [name for name in names if name.rpartition(".")[2] == "running_mean"]
        uncounted = [n for n in means if f"{n.removesuffix('running_mean')}num_batches_tracked" not in names]
        for found, what in (
            (old_norm, "weight_norm's old pairs, which today's parametrization loads"),
            (positions, "position_ids, a constant that newer versions of transformers do not expect"),
            (uncounted, "no num_batches_tracked: torch takes 0 for it, also under strict"),
        ):
            if found:
                yield subject.finding(
                    f"{count(len(found), 'layer')}{_of(state_dict)} with {what} ({listed(found, 2)})",
                    evidence={"layers": len(found), "first": found[0]},
                )


@rule("F111", "mixed-dtypes", "note")
def mixed_dtypes(subject: Subject) -> Iterator[Finding]:
    """A model's floating-point parameters are of several types.

    Why: ``load_state_dict`` casts to the class's type without a word, so that a model that was meant to run mixed
    runs in one type; and a layer left in float32 by mistake doubles its size.

    Example: norms kept in float32 in a bfloat16 model, which is usual; one matrix in float64, which is not.

    Remedy: cast with ``ckpt convert --dtype`` where one type is meant.
    """
    for state_dict in _models(subject):
        if len({tensor.dtype.name for tensor in state_dict.tensors}) < 2:
            continue
        parameters = [t for t in state_dict.tensors if t.dtype.kind == "float" and not looks_like_buffer(t.name)]
        types = Counter(tensor.dtype.name for tensor in parameters)
        if len(types) > 1:
            rarest = min(types, key=lambda name: types[name])
            example = next(tensor.name for tensor in parameters if tensor.dtype.name == rarest)
            told = ", ".join(f"{name} ({count(n, 'tensor')})" for name, n in types.most_common())
            yield subject.finding(f"parameters{_of(state_dict)} are {told}", tensor=example, evidence={"dtypes": types})


@rule("F112", "broken-tie", "warning", needs="values")
def broken_tie(subject: Subject) -> Iterator[Finding]:
    """Two large matrices are equal, bit for bit, and stored twice.

    Why: they were one tensor, such as an embedding and the head over it. Stored as copies they cost twice, and
    once loaded into a class that does not tie them they drift apart in training.

    Example: a tied model saved through a format that cannot share, or after ``copy.deepcopy`` of its parts.

    Remedy: tie them again in the class, and save from there; safetensors' ``save_model`` keeps one of them.
    """
    if subject.checkpoint is None:
        return
    for state_dict in _models(subject):
        mine = {id(tensor) for tensor in distinct(state_dict.tensors)}
        groups: dict[object, list[TensorInfo]] = {}
        measured = {id(tensor): numbers for tensor, numbers in subject.statistics}
        for tensor in state_dict.tensors:
            numbers = measured.get(id(tensor))
            if id(tensor) not in mine or len(tensor.shape) < 2 or tensor.numel < TABLE:
                continue
            if numbers is not None and not numbers.constant:
                key = (tensor.dtype.name, tensor.shape, numbers.minimum, numbers.maximum, numbers.l2)
                groups.setdefault(key, []).append(tensor)
        for first, *others in groups.values():
            for other in others:
                if same_bytes(first, other):
                    yield subject.finding(
                        f"equals {first.name}, bit for bit, and is stored again: {size(other.nbytes)}",
                        tensor=other.name,
                        evidence={"equals": first.name, "bytes": other.nbytes},
                    )


def _models(subject: Subject) -> Iterator[StateDict]:
    return (state_dict for state_dict in subject.state_dicts if state_dict.role in ("model", "ema"))


def _of(state_dict: StateDict) -> str:
    return f" of {format_path(state_dict.path)}" if state_dict.path else ""


RULES: tuple[Rule, ...] = (
    full_model_pickle,
    legacy_format,
    wrapper_prefixes,
    device_tag,
    numpy_2_names,
    missing_attribute,
    optimizer_state,
    oversize_storage,
    old_names,
    benign_names,
    mixed_dtypes,
    broken_tie,
)
