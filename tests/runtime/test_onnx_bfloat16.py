"""bfloat16 by float32 and roundings: the same bits as torch's own bfloat16."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402

from ckpt_tools.runtime.onnx.bfloat16 import rounding, uses_bfloat16  # noqa: E402
from ckpt_tools.runtime.onnx.sessions import Target, open_session  # noqa: E402

BF, BOOL = TensorProto.BFLOAT16, TensorProto.BOOL


def model(nodes: list[Any], inputs: dict[str, Any], outputs: list[str], weights: dict[str, Any] | None = None) -> Any:
    ports = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    results = [helper.make_tensor_value_info(name, BF, None) for name in outputs]
    held = [helper.make_tensor(name, BF, list(t.shape), t.flatten().tolist()) for name, t in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", ports, results, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def run(proto: Any, **tensors: Any) -> list[Any]:
    return open_session(rounding(proto).SerializeToString(), Target("cpu")).run(tensors)


def test_each_value_is_rounded_as_torch_rounds_it() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 16).bfloat16(), torch.randn(16).bfloat16()
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["y"]),
        helper.make_node("Tanh", ["y"], ["z"]),
        helper.make_node("Add", ["z", "x"], ["out"]),
    ]
    proto = model(nodes, {"x": (BF, [4, 16])}, ["out", "y"], {"w": weight})
    before = proto.SerializeToString()
    out, y = run(proto, x=x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(y, x * weight)  # y is an output, and goes on
    assert torch.equal(out, torch.tanh(x * weight) + x)
    assert proto.SerializeToString() == before
    # without the roundings between it would be another
    assert not torch.equal(out, (torch.tanh(x.float() * weight.float()) + x.float()).bfloat16())


def test_inside_of_a_branch_too() -> None:
    def branch(operator: str) -> Any:
        result = [helper.make_tensor_value_info(f"{operator} out", BF, None)]
        return helper.make_graph([helper.make_node(operator, ["x", "x"], [f"{operator} out"])], operator, [], result)

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Mul"), else_branch=branch("Sub"))
    proto = model([node, helper.make_node("Tanh", ["y"], ["out"])], {"c": (BOOL, []), "x": (BF, [3])}, ["out"])
    x = torch.tensor([0.3, 0.7, 1.1]).bfloat16()
    assert torch.equal(run(proto, c=torch.tensor(True), x=x)[0], torch.tanh(x * x))
    assert torch.equal(run(proto, c=torch.tensor(False), x=x)[0], torch.zeros(3).bfloat16())


def test_what_is_not_bfloat16_stays_as_it_is() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Exp", ["wide"], ["e"]),
        helper.make_node("Cast", ["e"], ["out"], to=BF),
    ]
    proto = model(nodes, {"x": (BF, [3])}, ["out"])
    assert [node.op_type for node in rounding(proto).graph.node] == ["Cast", "Exp", "Cast"]
    assert uses_bfloat16(proto)
    assert not uses_bfloat16(model([], {"c": (BOOL, [])}, []))
