"""The first node that computes something else: every value between input and output, compared in one session."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from onnx import helper
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ckpt_tools.records import record
from ckpt_tools.runtime.forward import tensors_in
from ckpt_tools.runtime.onnx.compare import Tolerance, compare
from ckpt_tools.runtime.onnx.file import Model, read
from ckpt_tools.runtime.onnx.inputs import Argument, call
from ckpt_tools.runtime.onnx.sessions import LEVELS, Target, open_session
from ckpt_tools.runtime.onnx.sweep import untouched

Change = Callable[[Any], Any]

SCOPES = "pkg.torch.onnx.name_scopes"


def as_it_is(proto: Any) -> Any:
    """The model itself."""
    return proto


@record
class Diverging:
    """The first node whose output is another; *layer* is the module it comes from, where the file says so."""

    node: str
    operator: str
    output: str
    layer: str
    compared: int

    def __str__(self) -> str:
        layer = f" (of {self.layer})" if self.layer else ""
        return f"{self.operator} {self.node}{layer}"


def against_torch(
    path: str,
    model: nn.Module,
    made: Sequence[Argument],
    tensors: Mapping[str, Tensor],
    allowed: Tolerance,
    change: Change = as_it_is,
) -> Diverging | None:
    """The first node of *path*, run on the CPU as it stands, whose output torch never computes on its way.

    The CPU runs what *change* makes of the model, in which all values have their names.

    A node is right if its output is one of the values that torch's operators give, or if it leads to one that is:
    exporters take steps of their own in between.
    """
    recorder = _Recorder()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), untouched(model), recorder:
        call(model, made, {name: t.float() if t.dtype in _HALF else t for name, t in tensors.items()})
    found, file = values(path, tensors, Target("cpu"), change)
    right = {
        name: any(compare(torch_value, value, allowed).fault == "" for torch_value in recorder.of_shape(value))
        for name, value in found.items()
    }
    return _first(file, right)


def against_cpu(path: str, tensors: Mapping[str, Tensor], where: Target, allowed: Tolerance) -> Diverging | None:
    """The first node of *path* whose output on *where* is not that on the CPU."""
    cpu, file = values(path, tensors, Target("cpu"))
    other, _ = values(path, tensors, where)
    right = {
        name: other[name].shape == value.shape and not compare(value, other[name], allowed).fault
        for name, value in cpu.items()
    }
    return _first(file, right, by_name=True)


_HALF = (torch.float16, torch.bfloat16)


class _Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Keeps a copy of what every operator puts out, as operators that work in place overwrite it."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[tuple[int, ...], list[Tensor]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for _, tensor in tensors_in(result):
            if tensor.layout == torch.strided and not tensor.is_meta:
                self.values.setdefault(tuple(tensor.shape), []).append(tensor.detach().clone())
        return result

    def of_shape(self, value: Tensor) -> list[Tensor]:
        """What torch computed that has the shape of *value*, and is a float where it is."""
        same = self.values.get(tuple(value.shape), [])
        return [tensor for tensor in same if tensor.dtype.is_floating_point == value.dtype.is_floating_point]


def values(
    path: str, tensors: Mapping[str, Tensor], where: Target, change: Change = as_it_is
) -> tuple[dict[str, Tensor], Model]:
    """The output of every node of the graph in *path*, which is run as it stands, without optimizations."""
    file = read(path)
    proto = change(file.proto)
    known = {value.name for value in proto.graph.output}
    for node in file.proto.graph.node:
        for name in node.output:
            if name and name not in known:
                proto.graph.output.append(helper.make_empty_tensor_value_info(name))
                known.add(name)
    folder = os.path.dirname(os.path.abspath(path))
    session = open_session(proto.SerializeToString(), where, level=LEVELS[0], folder=folder)
    return dict(zip(session.outputs, session.run(tensors), strict=True)), file


def _first(file: Model, right: Mapping[str, bool], by_name: bool = False) -> Diverging | None:
    nodes = list(file.proto.graph.node)
    good = dict(right)
    if not by_name:
        # from the end: what leads to a right value is right
        for node in reversed(nodes):
            if any(good.get(name, False) for name in node.output):
                for name in node.input:
                    good[name] = True
    computed = {name for node in nodes for name in node.output}
    for node in nodes:
        wrong = next((name for name in node.output if name in right and not good[name]), None)
        if wrong is not None and all(good.get(name, True) for name in node.input if name in computed):
            return Diverging(node.name, node.op_type, wrong, _layer(node), len(right))
    return None


def _layer(node: Any) -> str:
    """The module that the exporter noted, or the one whose weight the node reads."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            scopes = [part.strip(" '\"") for part in entry.value.strip("[]").split(",")]
            return next((scope for scope in reversed(scopes[:-1]) if scope), "")
    return next((name.rpartition(".")[0] for name in node.input if name.endswith((".weight", ".bias"))), "")
