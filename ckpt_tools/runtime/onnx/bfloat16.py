"""bfloat16 on a CPU whose kernels do not compute in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import TensorProto, helper

OPSET_OF_BFLOAT16 = 22
"""The first version of ONNX's operators in which convolutions and their like take bfloat16."""

AS_THEY_ARE = ("Cast", "Constant", "If", "Loop", "Scan")
"""Operators that take bfloat16 on the CPU, or have others in them."""


def uses_bfloat16(proto: Any) -> bool:
    """Whether an input, an output or an initializer of the model *proto* is of that type."""
    graph = proto.graph
    ports = (value.type.tensor_type.elem_type for value in (*graph.input, *graph.output))
    return TensorProto.BFLOAT16 in (*ports, *(tensor.data_type for tensor in graph.initializer))


def rounding(proto: Any) -> Any:
    """The model *proto*, where each node computes in float32 and its results are rounded to bfloat16.

    That is what processors do that have bfloat16: they sum in float32. Every value keeps its name and its type.
    """
    inferred = onnx.shape_inference.infer_shapes(proto)
    made = type(proto)()
    made.CopyFrom(proto)
    _round(made.graph, inferred.graph, {})
    return made


def _round(graph: Any, inferred: Any, outer: dict[str, int]) -> None:
    types = dict(outer)
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    nodes: list[Any] = []
    for node, same in zip(graph.node, inferred.node, strict=True):
        for inside, known in zip(_graphs(node), _graphs(same), strict=True):
            _round(inside, known, types)
        nodes += [node] if node.op_type in AS_THEY_ARE else _around(node, types)
    del graph.node[:]
    graph.node.extend(nodes)


def _graphs(node: Any) -> Iterator[Any]:
    return (attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH)


def _around(node: Any, types: dict[str, int]) -> Iterator[Any]:
    """The *node* in float32 between casts of what is bfloat16."""
    first = node.output[0]
    for index, name in enumerate(node.input):
        if types.get(name) == TensorProto.BFLOAT16:
            node.input[index] = f"{first} input {index} in float32"
            yield helper.make_node("Cast", [name], [node.input[index]], to=TensorProto.FLOAT)
    results = [(index, name) for index, name in enumerate(node.output) if types.get(name) == TensorProto.BFLOAT16]
    for index, name in results:
        node.output[index] = f"{name} in float32"
    yield node
    for index, name in results:
        yield helper.make_node("Cast", [node.output[index]], [name], to=TensorProto.BFLOAT16)
