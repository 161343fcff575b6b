"""The check ``file``: whether the ONNX file is whole, valid, and what it was asked to be."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ckpt_tools.errors import CkptError
from ckpt_tools.report import count, listed
from ckpt_tools.runtime.onnx.file import (
    SIZES,
    SMALL,
    Model,
    Port,
    bits_of,
    damage,
    dtype_name,
    in_training,
    invalid,
    read,
)
from ckpt_tools.runtime.onnx.inputs import Argument, arguments, with_options
from ckpt_tools.runtime.onnx.state import State
from ckpt_tools.runtime.verify.subject import Stop
from ckpt_tools.verification.results import Check, Problem, worst_first


def file(state: State) -> Check:
    """Whether the file is whole, valid, and what it was asked to be."""
    job = state.job
    if not state.onnx:
        raise Stop("there is no file")
    model = read(state.onnx)
    if not job.write:
        state.made = _arguments_of_file(state, model)
        state.outputs = [port.name for port in model.outputs]
    problems = list(damage(model))
    whole = not problems
    if whole:
        problems += invalid(model)
    problems += in_training(model)
    external = {"always": True, "never": False}.get(job.external_data) if job.write else None
    problems += not_as_asked(
        model,
        opset=job.opset,
        dynamic={one.name: one.dynamic for one in state.made} if job.write or job.dynamic else {},
        dtype=job.dtype if job.write else None,
        inputs=[one.name for one in state.made],
        outputs=state.outputs if job.write else job.output_names,
        external=external,
    )
    if whole:
        state.file = model
    ports = f"{', '.join(map(str, model.inputs))} → {', '.join(map(str, model.outputs))}"
    facts = {
        "opset": model.opset,
        "inputs": [_port(port) for port in model.inputs],
        "outputs": [_port(port) for port in model.outputs],
        "metadata": model.metadata,
    }
    return Check("file", f"opset {model.opset}, {ports}", worst_first(problems), facts)


def _port(port: Port) -> dict[str, object]:
    return {"name": port.name, "dtype": port.dtype, "axes": None if port.axes is None else list(port.axes)}


def _recorded(model: Model, port: Port) -> str:
    """What `export` wrote down of the input *port*; "" where it did not, or the file is another by now."""
    text = model.metadata.get(f"{SIZES}.{port.name}", "")
    match = re.fullmatch(r"(?:\w+=)?\[?\w+:(\d+(?:,\d+)*)\]?", text)
    sizes = [int(digits) for digits in match[1].split(",")] if match is not None else []
    axes = port.axes or ()
    fits = len(sizes) == len(axes) and all(
        a in (s, None) or isinstance(a, str) for a, s in zip(axes, sizes, strict=True)
    )
    return text if sizes and fits else ""


def _sizes(dtype: str, axes: Sequence[int | str | None]) -> str:
    """As ``--input`` has it: axes of any size are 2 of a batch, and 64 of what an image or a text may be."""
    sizes = (str(axis) if isinstance(axis, int) else "64" if index else "2" for index, axis in enumerate(axes))
    return f"{dtype}:{','.join(sizes)}"


def _arguments_of_file(state: State, model: Model) -> list[Argument]:
    """The arguments as the file has them: sizes of its own where no input was given, its dynamic axes in any case."""
    job = state.job
    wanted, _ = state.models()
    ports = model.inputs
    if job.inputs:
        made = arguments(job.inputs, (), (), (), wanted)
        if len(made) != len(ports):
            takes = f"it takes {count(len(ports), 'input')} ({', '.join(map(str, ports)) or 'none'})"
            raise CkptError(f"{takes}, --input gives {len(made)}", path=job.onnx)
    else:
        texts = []
        for port in ports:
            if port.axes is None:
                raise CkptError(f"it does not say how many axes {port.name} has", path=job.onnx, remedy="Give --input")
            texts.append(_recorded(model, port) or _sizes(port.dtype, port.axes))
        made = arguments(texts, (), (), (), wanted)
    named = []
    for one, port in zip(made, ports, strict=True):
        axes = enumerate(port.axes or ())
        free = {axis: dim or f"{port.name}_{axis}" for axis, dim in axes if not isinstance(dim, int)}
        dtype = getattr(torch, port.dtype, one.dtype)
        named.append(replace(one, name=port.name, dynamic=free, dtype=dtype))
    return with_options(named, job.dynamic, job.ranges)


def not_as_asked(
    model: Model,
    *,
    opset: int | None,
    dynamic: Mapping[str, Mapping[int, str]],
    dtype: str | None,
    inputs: Sequence[str],
    outputs: Sequence[str],
    external: bool | None,
) -> Iterator[Problem]:
    """Where the file is not what *opset*, *dynamic* axes, *dtype*, names and *external* data were to be."""
    if opset is not None and model.opset != opset:
        yield Problem(
            "opset-not-reached",
            "error",
            f"opset {opset} was asked for, the exporter made opset {model.opset}",
            f"Without --opset it makes what it can; or ask for {model.opset}",
        )
    yield from _axes(model, dynamic)
    if dtype is not None:
        wrong = [t.name for t in model.proto.graph.initializer if _is_wide(t, dtype)]
        if wrong:
            message = f"{dtype} was asked for, but {count(len(wrong), 'initializer')} ({listed(wrong, 3)}) are wider"
            yield Problem("dtype-not-reached", "error", message)
        wide = [str(p) for p in (*model.inputs, *model.outputs) if p.dtype in {"float32", "float64"}]
        if wide:
            yield Problem("dtype-not-reached", "warning", f"{dtype} was asked for, but {listed(wide, 3)} is not")
    for what, asked, ports in (("inputs", inputs, model.inputs), ("outputs", outputs, model.outputs)):
        names = [port.name for port in ports]
        if asked and names != list(asked):
            yield Problem(
                f"other-{what}", "error", f"the {what} are {listed(names) or 'none'}, where {listed(asked)} was wanted"
            )
    beside = bool(model.data_files())
    large = any(math.prod(t.dims) * bits_of(t.data_type) // 8 >= SMALL for t in model.proto.graph.initializer)
    if external is not None and external != beside and (large or beside):
        have = "in a file beside the model" if not external else "in the model itself"
        yield Problem("external-data-not-as-asked", "error", f"the weights are {have}, which was not asked for")


def _axes(model: Model, dynamic: Mapping[str, Mapping[int, str]]) -> Iterator[Problem]:
    ports = {port.name: port for port in model.inputs}
    for name, axes in dynamic.items():
        port = ports.get(name)
        if port is None or port.axes is None:
            continue
        for axis, dim in axes.items():
            found = port.axes[axis]
            if isinstance(found, int):
                yield Problem(
                    "axis-not-dynamic",
                    "error",
                    f"axis {axis} of {name} was to be dynamic ({dim}), but the exporter made it {found} for good: "
                    "something in forward depends on that size, such as a Python loop over it or int(x.shape[0])",
                    "Write it with tensor operations; a loop over the batch is a batched operator",
                )


def _is_wide(tensor: Any, dtype: str) -> bool:
    """Whether it is a weight, not a constant, of a type that is wider than *dtype*."""
    return dtype_name(tensor.data_type) in {"float32", "float64"} and math.prod(tensor.dims) > 1
