"""The check ``exports``: ``torch.onnx.export``, and its file, without paths of this machine, with where it is from."""

from __future__ import annotations

import contextlib
import os
import re
import textwrap
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import nn

from ckpt_tools.analysis.digest import digest
from ckpt_tools.errors import CkptError
from ckpt_tools.report import count, listed, size
from ckpt_tools.runtime.onnx.bfloat16 import OPSET_OF_BFLOAT16
from ckpt_tools.runtime.onnx.detection import exportable
from ckpt_tools.runtime.onnx.file import DIGEST, SIZES, SMALL, Model, digest_of_files, read
from ckpt_tools.runtime.onnx.inputs import Argument, arguments, cases, placed, traced
from ckpt_tools.runtime.onnx.state import State
from ckpt_tools.runtime.onnx.sweep import reference, untouched
from ckpt_tools.runtime.onnx.weights import state_digest
from ckpt_tools.runtime.verify.subject import Stop
from ckpt_tools.verification.results import Check, Problem

INLINE = 256 << 20
"""Bytes of weights that stay in the model itself with ``--external-data auto``."""

FOLDS = ("Conv", "ConvTranspose", "Gemm")
"""Operators whose weights take up a BatchNorm behind them."""

STACK_TRACE = "pkg.torch.onnx.stack_trace"


class ExportFailed(Exception):
    """The exporter gave up; the text says why, in a sentence."""


def exports(state: State) -> Check:
    """The export, in eval mode; the model must be the same afterwards."""
    job = state.job
    wanted, model = state.models()
    if not job.write:
        state.onnx = job.onnx
        raise Stop("not asked to: the file exists")
    _spare_sources(state)
    if not job.inputs:
        raise CkptError("there is no input to export with", remedy="--input gives its sizes, such as 1,3,224,224")
    state.made = arguments(job.inputs, job.dynamic, job.ranges, job.input_names, model)
    example = next(iter(cases(state.made, 1))).tensors
    try:
        with untouched(wanted) as writes:
            paths = list(reference(wanted, state.made, example))
    except Exception as error:
        remedy = "--input gives complete sizes, batch included: 1,3,224,224"
        text = f"torch does not take the input: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Check("exports", "the forward pass fails", [Problem("forward-fails", "error", text, remedy)])
    state.outputs = list(job.output_names) or output_names(paths)
    before = state_digest(model)
    try:
        with untouched(model):
            made, rewritten = export(
                model,
                state.made,
                state.outputs,
                opset=job.opset or (OPSET_OF_BFLOAT16 if job.dtype == "bfloat16" else None),
                keep_stack_traces=job.keep_stack_traces,
            )
        changed = state_digest(model) != before
        path = os.path.join(state.folder, os.path.basename(os.path.realpath(job.onnx)))
        assert state.subject.state_dict is not None
        about = provenance(job.path, digest(state.subject.state_dict.tensors).sha256, wanted, job.dtype)
        about |= {f"{SIZES}.{one.name}": str(one) for one in state.made}
        written = save(made, path, job.external_data, about)
        data = f"{os.path.realpath(job.onnx)}.data"
        if written.data_files() and os.path.lexists(data) and not job.force:
            raise CkptError("exists already", path=data, remedy="--force replaces it")
    except ExportFailed as error:
        remedy = "torch's page on torch.export tells what a model may not do; an axis in --dynamic may be the cause"
        return Check("exports", "it failed", [Problem("export-failed", "error", str(error), remedy)])
    state.onnx = path
    problems = []
    if changed:
        text = "exporting changed the model: a parameter is another than before, and the file is of either"
        problems.append(Problem("model-changed", "error", text, "Something in forward writes to the module"))
    if writes:
        text = f"forward writes to {listed(writes, 3)}: the file has no memory, each run begins with the checkpoint's"
        problems.append(Problem("stateful", "warning", text))
    if rewritten:
        text = f"torch.export does not follow {listed(sorted(rewritten), 3)}: what is in the file computes the same"
        problems.append(Problem("rewritten", "note", text))
    files = [path, *written.data_files()]
    total = size(sum(os.path.getsize(file) for file in files))
    facts: dict[str, Any] = {"nodes": len(written.proto.graph.node), "files": [os.path.basename(f) for f in files]}
    message = f"{described(written)}, {total} in {count(len(files), 'file')}"
    return Check("exports", message, problems, facts)


def _spare_sources(state: State) -> None:
    """Raise `CkptError` where the file would take the place of one that it is made of."""
    assert state.subject.state_dict is not None
    storages = (storage for tensor in state.subject.state_dict.tensors for storage in tensor.storages())
    located = (storage.source.locate(storage.offset) for storage in storages)
    sources = {state.job.path, *(place[0] for place in located if place is not None)}
    for target in (state.job.onnx, f"{os.path.realpath(state.job.onnx)}.data"):
        if os.path.exists(target) and any(os.path.exists(s) and os.path.samefile(s, target) for s in sources):
            raise CkptError("is the checkpoint; an export does not write over what it reads", path=target)


def export(
    model: nn.Module,
    made: Sequence[Argument],
    outputs: Sequence[str],
    *,
    opset: int | None,
    keep_stack_traces: bool,
) -> tuple[Any, Collection[str]]:
    """The model as ``onnx_ir`` has it, and which functions of torchvision were written in other words.

    *outputs* are the names of its outputs. Raises `ExportFailed`.
    """
    tensors = traced(made)
    positional, named = placed(made, tensors)
    options: dict[str, Any] = {}
    if any(one.dynamic for one in made):
        options["dynamic_shapes"] = _dynamic_shapes(model, made)
    if named:
        options["kwargs"] = named
    if opset is not None:
        options["opset_version"] = opset
    try:
        with warnings.catch_warnings(), torch.no_grad(), exportable() as (translations, rewritten):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                positional,
                dynamo=True,
                verbose=False,
                input_names=[one.name for one in made],
                output_names=list(outputs),
                custom_translation_table=dict(translations),
                **options,
            )
    except Exception as error:
        raise ExportFailed(_why(error)) from error
    assert program is not None
    _narrow(program.model)
    if not keep_stack_traces:
        _strip(program.model)
    return program.model, rewritten


def _narrow(model: Any) -> None:
    """Give weights that BatchNorm was folded into the type of what they meet: folding makes float32 of bfloat16."""
    import onnx_ir

    for node in model.graph.all_nodes():
        if node.op_type not in FOLDS or node.inputs[0] is None or node.inputs[0].dtype != onnx_ir.DataType.BFLOAT16:
            continue
        for value in node.inputs[1:]:
            if value is not None and value.const_value is not None and value.const_value.dtype.itemsize > 2:
                narrow = torch.from_numpy(value.const_value.numpy().astype("float32")).to(torch.bfloat16)
                array = narrow.view(torch.int16).numpy().view("uint16")
                value.const_value = onnx_ir.Tensor(array, dtype=onnx_ir.DataType.BFLOAT16, name=value.name)
                value.dtype = onnx_ir.DataType.BFLOAT16


def _dynamic_shapes(model: nn.Module, made: Sequence[Argument]) -> Any:
    """The dynamic axes in the structure of the arguments; axes of one name are one size."""
    dims: dict[str, Any] = {}
    axes = {
        one.name: {axis: dims.setdefault(name, torch.export.Dim(name)) for axis, name in one.dynamic.items()}
        for one in made
    }
    positional, named = placed(made, axes)
    if not named:
        return positional
    import inspect

    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, positional, strict=False)), **named}


def _why(error: Exception) -> str:
    """The cause in a sentence: the exporter wraps it in advice."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = re.sub(r"\x1b\[[\d;]*m", "", " ".join(str(cause).split()))
    return textwrap.shorten(f"{type(cause).__name__}: {text}", 600, placeholder=" …")


def _strip(model: Any) -> None:
    """Take out the stack traces, which name files of this machine."""
    for holder in _holders(model):
        holder.pop(STACK_TRACE, None)
        for key in [key for key, value in holder.items() if 'File "' in str(value)]:
            del holder[key]


def _holders(model: Any) -> Iterator[Any]:
    for graph in (model.graph, *model.functions.values()):
        yield graph.metadata_props
        for node in graph.all_nodes():
            yield node.metadata_props
            for value in node.outputs:
                yield value.metadata_props
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        yield value.metadata_props


def save(model: Any, path: str, external_data: str, provenance: Mapping[str, str]) -> Model:
    """Write *model* to *path*, its weights beside it where *external_data* says so, and *provenance* into it."""
    import onnx_ir

    tensors = [value.const_value for value in model.graph.initializers.values()]
    nbytes = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    outside = external_data == "always" or (external_data == "auto" and nbytes > INLINE)
    location = f"{os.path.basename(path)}.data"
    if not outside and nbytes >= 2 << 30:
        raise ExportFailed(f"{nbytes:,} bytes of weights do not fit into one file, which protobuf limits to 2 GiB")
    onnx_ir.save(model, path, external_data=location if outside else None, size_threshold_bytes=SMALL)
    written = read(path)
    about = dict(provenance)
    if files := written.data_files():
        about[DIGEST] = digest_of_files(files)
    for key, value in about.items():
        entry = written.proto.metadata_props.add()
        entry.key, entry.value = key, value
    written.proto.producer_version = str(torch.__version__)
    with open(path, "wb") as file:
        file.write(written.proto.SerializeToString())
    return written


def output_names(paths: Sequence[str]) -> list[str]:
    """Names for outputs from where they stand in what forward returns: ``output``, ``output_0``, ``logits``.

    Where all stand in the only entry of a list, as detections of one image do, that says nothing, and is left out.
    """
    if all(path.startswith("[0].") for path in paths):
        paths = [path.removeprefix("[0].") for path in paths]
    names = []
    for path in paths:
        name = re.sub(r"\W+", "_", path).strip("_") or "output"
        name = f"output_{name}" if name[0].isdigit() else name
        names.append(name)
    return [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]


def provenance(path: str, checkpoint_digest: str, model: nn.Module, dtype: str | None) -> dict[str, str]:
    """Where the file comes from, for ``metadata_props``."""
    from importlib.metadata import version

    kind = type(model)
    # a module that was loaded under another one's name is named by its folder, which is nobody's business
    module = "" if os.path.sep in kind.__module__ else f"{kind.__module__}."
    return {
        "ckpt_tools.version": version("ckpt-tools"),
        "ckpt_tools.checkpoint": os.path.basename(os.path.abspath(path)),
        "ckpt_tools.checkpoint_digest": checkpoint_digest,
        "ckpt_tools.class": f"{module}{kind.__qualname__}",
        "ckpt_tools.dtype": dtype or "as in the checkpoint",
        "ckpt_tools.torch": str(torch.__version__),
        "ckpt_tools.onnx": str(onnx.__version__),
    }


def described(model: Model) -> str:
    """``49 nodes, opset 20``."""
    return f"{count(len(model.proto.graph.node), 'node')}, opset {model.opset}"


def put_in_place(state: State) -> None:
    """Give the file and its data their names. What had them goes first: never does a model meet the other's data."""
    goal = os.path.realpath(state.job.onnx)
    folder = os.path.dirname(goal)
    data = f"{goal}.data"
    left = False
    with contextlib.suppress(CkptError):  # what is replaced need not be a model
        left = data in read(goal).data_files()
    try:
        if os.path.lexists(goal):
            os.unlink(goal)
        if left and os.path.lexists(data):
            os.unlink(data)
        for path in state.model().data_files():
            os.replace(path, os.path.join(folder, os.path.basename(path)))
        os.replace(state.onnx, goal)
    except OSError as error:
        raise CkptError(f"cannot be written: {error.strerror}", path=state.job.onnx) from None
    state.onnx = goal
