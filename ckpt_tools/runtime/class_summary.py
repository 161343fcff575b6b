"""``ckpt summary`` where the class is at hand: its flags as evidence, its forward pass as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ckpt_tools.analysis.summary import pick, summarize
from ckpt_tools.checkpoint import Checkpoint, StateDict
from ckpt_tools.errors import CkptError
from ckpt_tools.report import Facts, Report, Tree, count, size
from ckpt_tools.runtime.forward import ForwardSummary, InputSpec, Layer, Output, forward_summary
from ckpt_tools.runtime.reload import rehearse, requires_grad_of


def summarize_class(
    checkpoint: Checkpoint,
    model: nn.Module,
    inputs: Sequence[InputSpec] = (),
    *,
    batch: int | None = 1,
    select: str | None = None,
    depth: int | None = None,
    **options: Any,
) -> Report:
    """The report of `summarize` (which takes the *options*), with *model*'s ``requires_grad`` flags as evidence.

    With *inputs* (see `forward_summary`), also each layer's outputs, multiply-adds and activations, in a table
    down to *depth* and under ``forward`` in the data.
    """
    state_dict, module = pick(checkpoint, select)
    # a pickled module records its flags; those that its class starts with say no more
    flags = requires_grad_of(model, state_dict) if module is None else None
    report = summarize(checkpoint, select=select, depth=depth, from_class=flags, **options)
    if not inputs:
        return report
    summary = forward_summary(model, inputs, batch=batch, state_dict=state_dict)
    facts = Facts("As the class runs it", _facts(summary, model, state_dict))
    table = Tree(
        "Forward pass",
        ("layer", "class", "output", ">parameters", ">mult-adds", ">activations"),
        _rows(summary, depth),
        f"a line has its own numbers, {'not those of the' if depth is None else 'and those of hidden'} lines inside it",
    )
    return replace(
        report,
        blocks=(*report.blocks, facts, table),
        collect=lambda: {**report.data, "forward": _data(summary)},
    )


def _facts(summary: ForwardSummary, model: nn.Module, state_dict: StateDict) -> list[tuple[str, str]]:
    rows = [("input", ", ".join(f"{_shape(i)} {i.dtype}" for i in summary.inputs))]
    if summary.ran_on == "meta":
        rows.append(("run on", "the meta device: shapes alone, nothing was computed"))
    else:
        rows.append(("run on", f"the {summary.ran_on.upper()}, with the file's weights: {summary.why_not_meta}"))
    return [*rows, ("class", _fit(model, state_dict))]


def _fit(model: nn.Module, state_dict: StateDict) -> str:
    """How the class's tensors compare with the file's."""
    try:
        report = rehearse(model, state_dict)
    except CkptError as error:
        return f"cannot be compared with the file: {error.problem}"
    if report.exact:
        return "its tensors are those of the file, by name and shape"
    parts = [
        (report.mismatched, "in another shape", [mismatch.name for mismatch in report.mismatched]),
        (report.missing, "not in the file", report.missing),
        (report.unexpected, "in the file alone", report.unexpected),
    ]
    told = [
        f"{count(len(found), 'tensor')} {where} ({', '.join(names[:3])}{', …' if names[3:] else ''})"
        for found, where, names in parts
        if found
    ]
    return f"it is not quite the file's: {', '.join(told)}"


def _rows(summary: ForwardSummary, depth: int | None) -> list[tuple[int, tuple[str, ...]]]:
    rows: list[tuple[int, tuple[str, ...]]] = []
    outer: list[str] = []
    for layer in _down_to(summary.layers, depth):
        del outer[layer.depth :]
        parent = outer[-1] if outer else ""
        outer.append(layer.name)
        label = layer.name.removeprefix(f"{parent}.") if layer.depth else "(model)"
        parameters = f"{layer.parameters:,}" if layer.parameters else "(shared)" if layer.shared_parameters else ""
        rows.append(
            (
                layer.depth,
                (
                    label,
                    layer.class_name,
                    _outputs(layer) if layer.called else "not called",
                    parameters,
                    f"{layer.mult_adds:,}" if layer.mult_adds else "",
                    size(layer.activation_bytes) if layer.activation_bytes else "",
                ),
            )
        )
    total = (f"{summary.parameters:,}", f"{summary.mult_adds:,}", size(summary.activation_bytes))
    return [*rows, (0, ("total", "", "", *total))]


def _down_to(layers: Sequence[Layer], depth: int | None) -> list[Layer]:
    """The layers that are at most *depth* calls deep, with the numbers of what is deeper inside them."""
    shown: list[Layer] = []
    for layer in layers:
        if depth is None or layer.depth <= depth:
            shown.append(layer)
            continue
        last = shown[-1]
        shown[-1] = replace(
            last,
            parameters=last.parameters + layer.parameters,
            shared_parameters=last.shared_parameters + layer.shared_parameters,
            mult_adds=last.mult_adds + layer.mult_adds,
            activation_bytes=last.activation_bytes + layer.activation_bytes,
        )
    return shown


def _outputs(layer: Layer) -> str:
    shown = [f"{output.path} {_shape(output)}".strip() for output in layer.outputs[:4]]
    return ", ".join(shown) + (f", and {len(layer.outputs) - 4} more" if layer.outputs[4:] else "")


def _shape(tensor: Output) -> str:
    return "×".join(map(str, tensor.shape)) if tensor.shape else "scalar"


def _data(summary: ForwardSummary) -> dict[str, object]:
    def described(tensor: Output) -> dict[str, object]:
        return {"path": tensor.path, "shape": list(tensor.shape), "dtype": tensor.dtype}

    return {
        "ran_on": summary.ran_on,
        "why_not_meta": summary.why_not_meta or None,
        "inputs": [{"shape": list(tensor.shape), "dtype": tensor.dtype} for tensor in summary.inputs],
        "totals": {
            "parameters": summary.parameters,
            "trainable": summary.trainable_parameters,
            "mult_adds": summary.mult_adds,
            "activation_bytes": summary.activation_bytes,
        },
        "layers": [
            {
                "name": layer.name,
                "class": layer.class_name,
                "depth": layer.depth,
                "outputs": [described(output) for output in layer.outputs],
                "parameters": layer.parameters,
                "shared_parameters": layer.shared_parameters,
                "mult_adds": layer.mult_adds,
                "activation_bytes": layer.activation_bytes,
                "called": layer.called,
            }
            for layer in summary.layers
        ],
    }
