"""``torch.onnx.export``, and the file that it makes: without paths of this machine, with where it comes from."""

from __future__ import annotations

import os
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import nn

from ckpt_tools.report import count
from ckpt_tools.runtime.onnx.file import DIGEST, SMALL, Model, digest, read
from ckpt_tools.runtime.onnx.inputs import Argument, placed, traced

INLINE = 256 << 20
"""Bytes of weights that stay in the model itself with ``--external-data auto``."""

STACK_TRACE = "pkg.torch.onnx.stack_trace"


class ExportFailed(Exception):
    """The exporter gave up; the text says why, in a sentence."""


def export(
    model: nn.Module,
    made: Sequence[Argument],
    outputs: Sequence[str],
    *,
    opset: int | None,
    keep_stack_traces: bool,
) -> Any:
    """The model as ``onnx_ir`` has it; *outputs* are the names of its outputs. Raises `ExportFailed`."""
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
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                positional,
                dynamo=True,
                verbose=False,
                input_names=[one.name for one in made],
                output_names=list(outputs),
                **options,
            )
    except Exception as error:
        raise ExportFailed(_why(error)) from error
    assert program is not None
    if not keep_stack_traces:
        _strip(program.model)
    return program.model


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
        about[DIGEST] = digest(files)
    for key, value in about.items():
        entry = written.proto.metadata_props.add()
        entry.key, entry.value = key, value
    written.proto.producer_version = str(torch.__version__)
    with open(path, "wb") as file:
        file.write(written.proto.SerializeToString())
    return written


def output_names(paths: Sequence[str]) -> list[str]:
    """Names for outputs from where they stand in what forward returns: ``output``, ``output_0``, ``logits``."""
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
